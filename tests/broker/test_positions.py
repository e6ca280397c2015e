"""Where reading starts, and what is said when it doesn't go on where it had come to: the same rules on every broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from dispatcher.broker.assignment import Extent, Plan, Start, plan, start_of, vanished
from dispatcher.broker.base import Broker, Jump, Message, NoMemory, Position, Remembered, TopicPartition, Why
from dispatcher.broker.kafka import consumer, reader
from tests.broker.backends import KAFKA, SQLITE, WITHIN, Backend, Member, OnKafka, eventually
from tests.kafka.groups import delete_group

both = pytest.mark.parametrize("backend", [SQLITE, KAFKA], indirect=True)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look after the topics twice a second: once in ten would be most of the time of these tests."""
    for module in (consumer, reader):
        monkeypatch.setattr(module, "LOOK_INTERVAL", 0.5)


@pytest.fixture
async def on_kafka(kafka: str, unique: Callable[[str], str]) -> AsyncIterator[OnKafka]:
    backend = OnKafka(unique, kafka)
    yield backend
    await backend.close_all()


async def latest(backend: Backend) -> Broker:
    return await backend.connect(backend.settings.model_copy(update={"offset_reset": "latest"}))


def spread(topic: str, first: int, count: int, partitions: int = 4) -> list[Message]:
    return [Message(topic, b"%d" % n, partition=n % partitions) for n in range(first, first + count)]


def numbers(member: Member) -> set[int]:
    return {int(value or b"") for value in member.values}


# The rules, without a broker.

A0, A1 = TopicPartition("a", 0), TopicPartition("a", 1)


def planned(
    committed: dict[TopicPartition, Position],
    past: Remembered | None,
    topic: Remembered,
    *,
    from_latest: bool = False,
) -> Plan:
    extents = {TopicPartition("a", n): Extent(5, 20) for n in range(topic.partitions)}
    read = {} if past is None else {"a": past}
    return plan({"a": topic}, committed, extents, read, from_latest=from_latest)


def test_a_group_that_never_ran_starts_at_the_end_everywhere_and_commits_it() -> None:
    found = planned({}, None, Remembered("x", 2), from_latest=True)
    assert found.starts == found.commits == {A0: Position(20), A1: Position(20)}
    assert found.jumps == []


def test_a_group_that_has_run_begins_what_it_has_no_commit_for_at_its_first_record() -> None:
    found = planned({A0: Position(7, "n")}, None, Remembered("x", 2))
    assert found.starts == {A0: Position(7, "n"), A1: Position(5)}
    assert found.commits == {A1: Position(5)}


def test_offsets_that_a_remembered_group_has_no_more_are_said_to_be_gone_and_not_begun_at_the_end() -> None:
    found = planned({}, Remembered("x", 2), Remembered("x", 2))
    assert found.starts == {A0: Position(5), A1: Position(5)}
    assert [(jump.why, jump.to) for jump in found.jumps] == [(Why.EXPIRED, 5), (Why.EXPIRED, 5)]


def test_a_partition_that_was_added_begins_at_its_beginning_and_nothing_is_amiss() -> None:
    found = planned({A0: Position(9)}, Remembered("x", 1), Remembered("x", 2))
    assert found.starts[A1] == Position(5)
    assert found.jumps == []


def test_a_topic_of_another_id_is_begun_anew_whatever_was_committed() -> None:
    found = planned({A0: Position(9), A1: Position(9)}, Remembered("x", 2), Remembered("y", 2))
    assert found.commits == {A0: Position(5), A1: Position(5)}
    assert {jump.why for jump in found.jumps} == {Why.MADE_ANEW}


def test_without_ids_a_commit_within_the_partition_is_believed() -> None:
    found = planned({A0: Position(9)}, Remembered(None, 1), Remembered("y", 1))
    assert found.starts == {A0: Position(9)}


def test_a_partition_that_was_cut_is_begun_anew() -> None:
    assert start_of(Position(9), 5, 20, from_latest=True, cut=True) == Start(Position(5), Why.CUT)


def test_partitions_vanish_with_their_topic_and_with_its_id() -> None:
    before = {"a": Remembered("x", 1), "b": Remembered("y", 1), "c": Remembered(None, 1)}
    had = [TopicPartition(name, 0) for name in "abc"]
    now = {"b": Remembered("z", 1), "c": Remembered("i", 1)}
    assert vanished(had, before, now) == [("a", 0), ("b", 0)]


# `latest`, once in a group's life.


@both
async def test_what_comes_to_a_partition_without_traffic_between_two_processes_is_read(
    backend: Backend,
) -> None:
    broker = await latest(backend)
    topic, group = await backend.topic(broker), backend.unique("group")
    await broker.produce(spread(topic, 0, 8))
    member = Member(broker, [topic], group)
    await member.consumer.start()
    await broker.produce([Message(topic, b"100", partition=0)])
    await member.poll_for(1)
    await member.consumer.commit({TopicPartition(topic, 0): Position(3)})
    await member.consumer.stop()
    await broker.produce(spread(topic, 200, 8))
    member = Member(broker, [topic], group)
    await member.consumer.start()
    await member.poll_for(8)
    assert numbers(member) == set(range(200, 208))
    assert member.listener.jumps == []


@both
async def test_a_start_stands_although_nothing_was_ever_read(backend: Backend) -> None:
    broker = await latest(backend)
    topic, group = await backend.topic(broker), backend.unique("group")
    await broker.produce(spread(topic, 0, 8))
    for _ in range(2):
        member = Member(broker, [topic], group)
        await member.consumer.start()
        await member.consumer.stop()
        await broker.produce(spread(topic, 100, 4))
    member = Member(broker, [topic], group)
    await member.consumer.start()
    await member.poll_for(8)
    assert numbers(member) == set(range(100, 104))


@both
async def test_members_that_come_at_the_same_time_begin_at_the_end(backend: Backend) -> None:
    broker = await latest(backend)
    topic, group = await backend.topic(broker, 8), backend.unique("group")
    await broker.produce(spread(topic, 0, 80, 8))
    members = [Member(broker, [topic], group) for _ in range(3)]
    async with asyncio.timeout(WITHIN):
        await asyncio.gather(*(member.consumer.start() for member in members))
    async with members[0].polling(), members[1].polling(), members[2].polling():
        await eventually(lambda: sum(len(member.listener.assigned) for member in members) == 8)
        await broker.produce(spread(topic, 100, 16, 8))
        await eventually(lambda: sum(len(member.all) for member in members) >= 16)
    assert set().union(*(numbers(member) for member in members)) == set(range(100, 116))


async def test_offsets_that_the_broker_has_forgotten_are_noticed_and_nothing_is_lost(
    on_kafka: OnKafka,
) -> None:
    broker = await latest(on_kafka)
    topic, group, memory = await on_kafka.topic(broker), on_kafka.unique("group"), NoMemory()
    member = Member(broker, [topic], group, memory=memory)
    await member.consumer.start()
    await member.consumer.stop()
    await delete_group(on_kafka.address, group)
    await broker.produce(spread(topic, 0, 8))
    member = Member(broker, [topic], group, memory=memory)
    await member.consumer.start()
    await member.poll_for(8)
    assert numbers(member) == set(range(8))
    assert {(jump.partition.partition, jump.why) for jump in member.listener.jumps} == {
        (number, Why.EXPIRED) for number in range(4)
    }


@pytest.mark.parametrize("reset", ["latest", "earliest"])
async def test_a_slow_member_commits_nothing_of_what_others_have(on_kafka: OnKafka, reset: str) -> None:
    """What it has decided is older than what the owner has committed since."""
    broker = await on_kafka.connect(on_kafka.settings.model_copy(update={"offset_reset": reset}))
    topic, group = await on_kafka.topic(broker, 2), on_kafka.unique("group")
    fast, slow = Member(broker, [topic], group), Member(broker, [topic], group)
    decided, go_on = asyncio.Event(), asyncio.Event()
    starts: Any = slow.consumer._starts  # type: ignore[attr-defined]
    look_back = starts.look_back

    async def late() -> None:
        await look_back()
        decided.set()
        await go_on.wait()

    starts.look_back = late
    joining = asyncio.get_running_loop().create_task(slow.consumer.start())
    await decided.wait()  # the group has never run, it thinks
    await fast.consumer.start()
    await broker.produce(spread(topic, 0, 10, 2))
    await fast.poll_for(10)
    await fast.consumer.commit({TopicPartition(topic, n): Position(5) for n in range(2)})
    await broker.produce(spread(topic, 10, 10, 2))
    go_on.set()
    async with fast.polling(), asyncio.timeout(WITHIN):
        await joining
        await eventually(lambda: len(fast.listener.assigned) == len(slow.listener.assigned) == 1)
    assert set(slow.listener.starts.values()) == {Position(5)}
    (info,) = [info for info in await broker.topics(group) if info.name == topic]
    assert [partition.committed for partition in info.partitions] == [5, 5]


# Partitions and topics that come and go under a running member.


async def test_partitions_that_are_added_are_read_from_their_beginning(on_kafka: OnKafka) -> None:
    broker = await latest(on_kafka)
    topic = await on_kafka.topic(broker, 2)
    member = Member(broker, [topic], on_kafka.unique("group"))
    await member.consumer.start()
    await on_kafka.add_partitions(topic, 6)
    other = await on_kafka.connect()
    await broker_knows(other, topic, 6)
    await other.produce(spread(topic, 0, 60, 6))
    await member.poll_for(60)
    assert numbers(member) == set(range(60))
    assert member.listener.jumps == []


async def broker_knows(broker: Any, topic: str, partitions: int) -> None:
    async with asyncio.timeout(WITHIN):
        while (found := (await broker.look([topic])).get(topic)) is None or found.partitions != partitions:
            await asyncio.sleep(0.05)


async def test_a_topic_made_anew_is_read_from_its_beginning_however_much_is_in_it(on_kafka: OnKafka) -> None:
    broker = await latest(on_kafka)
    topic, group, memory = await on_kafka.topic(broker, 1), on_kafka.unique("group"), NoMemory()
    await broker.produce(spread(topic, 0, 5, 1))
    member = Member(broker, [topic], group, memory=memory)
    await member.consumer.start()
    await broker.produce(spread(topic, 5, 5, 1))
    await member.poll_for(5)
    partition = TopicPartition(topic, 0)
    await member.consumer.commit({partition: Position(10, "noted")})
    await on_kafka.make_anew(topic, 1)
    other = await on_kafka.connect()
    await broker_knows(other, topic, 1)
    await other.produce(spread(topic, 100, 30, 1))  # more than had been read of the old one
    await member.poll_until(lambda: set(range(100, 130)) <= numbers(member))
    assert member.listener.gone == {partition}
    assert [jump.why for jump in member.listener.jumps] in ([Why.MADE_ANEW], [Why.EXPIRED])
    await member.consumer.commit({partition: Position(30)})
    await member.consumer.stop()
    member = Member(broker, [topic], group, memory=memory)
    await member.consumer.start()
    assert member.listener.starts == {partition: Position(30)}


async def test_a_topic_made_anew_between_two_processes_is_read_from_its_beginning(on_kafka: OnKafka) -> None:
    broker = await on_kafka.connect()
    topic, group, memory = await on_kafka.topic(broker, 1), on_kafka.unique("group"), NoMemory()
    await broker.produce(spread(topic, 0, 5, 1))
    member = Member(broker, [topic], group, memory=memory)
    await member.consumer.start()
    await member.poll_for(5)
    await member.consumer.stop()
    await on_kafka.make_anew(topic, 1)
    other = await on_kafka.connect()
    await broker_knows(other, topic, 1)
    await other.produce(spread(topic, 100, 9, 1))
    # A process that has not noticed commits what it had read of the old one.
    unaware = Member(other, [topic], group)
    await unaware.consumer.start()
    await unaware.consumer.commit({TopicPartition(topic, 0): Position(5)})
    await unaware.consumer.stop()
    member = Member(other, [topic], group, memory=memory)
    await member.consumer.start()
    await member.poll_for(9)
    assert numbers(member) == set(range(100, 109))
    assert [jump.why for jump in member.listener.jumps] == [Why.MADE_ANEW]


async def test_a_topic_that_is_missing_is_said_and_read_when_it_is_there_again(on_kafka: OnKafka) -> None:
    broker = await on_kafka.connect()
    topic, there = await on_kafka.topic(broker, 1), await on_kafka.topic(broker, 1)
    member = Member(broker, [topic, there], on_kafka.unique("group"))
    await member.consumer.start()
    await on_kafka.delete_topic(topic)
    await member.poll_until(lambda: "does not exist" in (member.consumer.problem or ""))
    await broker.produce(spread(there, 0, 3, 1))
    await member.poll_for(3)
    await on_kafka.create_topic(topic, 1)
    await broker_knows(broker, topic, 1)
    other = await on_kafka.connect()
    await other.produce(spread(topic, 10, 3, 1))
    await member.poll_for(6)
    assert numbers(member) == {0, 1, 2, 10, 11, 12}
    assert member.consumer.problem is None


# What retention took.


@both
async def test_what_retention_took_before_the_start_is_told(backend: Backend) -> None:
    broker = await backend.connect()
    topic, group = await backend.topic(broker), backend.unique("group")
    await broker.produce([Message(topic, b"%d" % n, partition=0) for n in range(10)])
    partition = TopicPartition(topic, 0)
    member = Member(broker, [topic], group)
    await member.consumer.start()
    await member.consumer.commit({partition: Position(2, "noted")})
    await member.consumer.stop()
    await backend.delete_before(broker, partition, 6)
    member = Member(broker, [topic], group)
    await member.consumer.start()
    assert member.listener.jumps == [Jump(partition, Why.RETENTION, 2, 6)]
    assert member.listener.starts[partition] == Position(2, "noted"), "what was done beyond is still done"
    assert member.consumer.passed()[partition] == (2, 6)
    await member.poll_for(4)
    assert [record.offset for record in member.all] == [6, 7, 8, 9]
    await member.consumer.commit({partition: Position(6)})
    await member.consumer.stop()
    member = Member(broker, [topic], group)
    await member.consumer.start()
    assert member.listener.jumps == [], "it was committed: the same loss is told once"


@both
async def test_a_running_member_that_retention_passes_says_what_it_skipped(backend: Backend) -> None:
    broker = await backend.connect(
        backend.settings.model_copy(update={"fetch_max_bytes_per_partition": 2000, "fetch_max_bytes": 2000})
    )
    topic = await backend.topic(broker, 1)
    partition = TopicPartition(topic, 0)
    await broker.produce([Message(topic, b"%d" % n, partition=0) for n in range(10)])
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    await member.poll(5.0, 10)
    read = len(member.all)
    assert read
    member.consumer.pause([partition])
    for _ in range(6):
        await broker.produce([Message(topic, b"%d" % n + b" " * 1000, partition=0) for n in range(100)])
    await member.poll()
    await backend.delete_before(broker, partition, 500)
    await broker.produce([Message(topic, b"-1", partition=0)])
    member.consumer.resume([partition])
    await member.poll_until(lambda: b"-1" in member.values)
    offsets = [record.offset for record in member.all]
    skipped = [jump for jump in member.listener.jumps if jump.why is Why.RETENTION]
    assert len(member.listener.jumps) == len(skipped) == 1
    (jump,) = skipped
    assert jump.to == 500
    assert jump.expected is not None
    assert offsets == [*range(jump.expected), *range(500, 611)], (
        "what is said to be skipped is what is missing"
    )


@both
async def test_lag_of_what_can_not_be_read_any_more_falls_to_nothing(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker, 1)
    partition = TopicPartition(topic, 0)
    await broker.produce([Message(topic, b"%d" % n, partition=0) for n in range(10)])
    group = backend.unique("group")
    member = Member(broker, [topic], group)
    await member.consumer.start()
    await member.consumer.stop()
    await backend.delete_before(broker, partition, 10)
    member = Member(broker, [topic], group)
    await member.consumer.start()
    await member.poll_until(lambda: member.consumer.lag().get(partition) == 0)


# Offsets that hold nothing to read.


async def test_markers_of_transactions_are_passed_and_leave_no_lag(on_kafka: OnKafka) -> None:
    broker = await on_kafka.connect()
    topic = await on_kafka.topic(broker, 1)
    partition = TopicPartition(topic, 0)
    producer = AIOKafkaProducer(bootstrap_servers=on_kafka.address, transactional_id=on_kafka.unique("tx"))
    await producer.start()
    try:
        for _ in range(3):
            async with producer.transaction():
                await producer.send_and_wait(topic, b"committed", partition=0)
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"aborted", partition=0)
        await producer.abort_transaction()
    finally:
        await producer.stop()
    member = Member(broker, [topic], on_kafka.unique("group"))
    await member.consumer.start()
    await member.poll_for(3)
    await member.poll_until(member.consumer.passed)
    assert member.consumer.passed() == {partition: (member.all[-1].offset + 1, 8)}
    assert member.consumer.lag() == {partition: 0}
