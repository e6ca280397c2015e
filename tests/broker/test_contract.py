"""One suite for every broker: the rules of dispatcher/broker/base.py, asked of each implementation."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Mapping

import pytest

from dispatcher.broker.base import (
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    CommitRefused,
    Message,
    MessageTooLarge,
    MetadataTooLarge,
    Position,
    TopicPartition,
    TopicSpec,
)
from dispatcher.broker.partitioning import partition_of
from tests.broker.backends import (
    KAFKA,
    MOCK,
    SQLITE,
    WITHIN,
    Backend,
    Forwarder,
    Listener,
    Member,
    OnKafka,
    administered,
    eventually,
    produced,
)
from tests.kafka.server import Cluster
from tests.ports import free_port

# When the records of these tests were made, ms: lately, for a broker deletes what is older than its retention.
STAMP = int(time.time() * 1000)


groups = pytest.mark.parametrize("backend", [SQLITE, KAFKA], indirect=True)


def numbered(topic: str, count: int, partition: int | None = 0, size: int = 0) -> list[Message]:
    return [Message(topic, b"%d" % n + b"." * size, partition=partition) for n in range(count)]


def numbers(values: list[bytes | None]) -> list[int]:
    return [int((value or b"").rstrip(b".")) for value in values]


# Writing and reading.


async def test_a_record_comes_back_as_it_was_written(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    headers = [("type", b"a.b"), ("empty", b""), ("type", b"again"), ("\u00fc", bytes(range(256)))]
    await broker.produce([Message(topic, b"\x00value", b"key", headers, 2, STAMP)])
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    await member.poll_for(1)
    ((partition, record),) = member.placed
    assert (*partition, record.offset) == (topic, 2, 0)
    assert (record.key, record.value, record.timestamp) == (b"key", b"\x00value", STAMP)
    assert [tuple(header) for header in record.headers] == headers


async def test_key_and_value_may_be_absent_or_empty(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    await broker.produce([Message(topic, None, b"k", partition=0), Message(topic, b"", b"", partition=0)])
    await broker.produce([Message(topic, b"v", None, partition=0)])
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    await member.poll_for(3)
    assert [(record.key, record.value) for record in member.all] == [(b"k", None), (b"", b""), (None, b"v")]


async def test_a_message_without_a_timestamp_gets_the_time_of_writing(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    before = time.time() * 1000 - 1
    await broker.produce([Message(topic, b"v", partition=0)])
    record = await broker.read(TopicPartition(topic, 0), 0)
    assert record is not None
    assert before <= record.timestamp <= time.time() * 1000 + 1


async def test_offsets_grow_by_one_and_order_is_kept_within_a_partition(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    await broker.produce(numbered(topic, 1500))
    await broker.produce([Message(topic, b"%d" % (1500 + n), partition=0) for n in range(10)])
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    await member.poll_for(1510)
    assert [record.offset for record in member.all] == list(range(1510))
    assert numbers(member.values) == list(range(1510))


async def test_a_call_larger_than_any_request_is_split(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    await broker.produce(numbered(topic, 3000, size=1024))  # 3 MB into one partition; a request takes 1
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    await member.poll_for(3000)
    assert numbers(member.values) == list(range(3000))


async def test_many_small_records_go_in_bulk_by_their_keys_and_in_their_order(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    # Over a megabyte: more than a batch, in each partition that has keys.
    entries = [(b"key-%d" % (n % 7), b"%d " % n + bytes(1000), STAMP + n) for n in range(1400)]
    await broker.produce_bulk(topic, entries)
    await broker.produce_bulk(topic, [])
    await broker.produce([Message(topic, b"last", b"key-3")])
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    await member.poll_for(1401)
    for partition, records in member.records.items():
        keys = {record.key for record in records}
        expected = [entry for entry in entries if entry[0] in keys]
        got = [(record.key, record.value, record.timestamp) for record in records if record.value != b"last"]
        assert got == expected, partition
    (last,) = (partition for partition, record in member.placed if record.value == b"last")
    assert {partition for partition, record in member.placed if record.key == b"key-3"} == {last}


async def test_bulk_for_a_topic_that_is_not_there_is_refused_and_no_other_write_is_in_trouble(
    backend: Backend,
) -> None:
    broker = await backend.connect(backend.settings.model_copy(update={"request_timeout": 10.0}))
    topic = await backend.topic(broker)
    with pytest.raises(BrokerError):
        await broker.produce_bulk(backend.unique("nowhere"), [(b"key", b"value", STAMP)])
    await broker.produce([Message(topic, b"0", partition=0)])
    assert broker.problem is None


@administered
async def test_bulk_is_split_where_the_topic_takes_small_batches_only(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker, max_message_bytes="10000")
    await broker.produce_bulk(topic, [(b"key", b"%d " % n + bytes(1000), STAMP) for n in range(100)])
    with pytest.raises(MessageTooLarge):
        await broker.produce_bulk(topic, [(b"key", bytes(20_000), STAMP)])
    await broker.produce_bulk(topic, [(b"key", b"100 ", STAMP)])
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    await member.poll_for(101)
    assert [int((value or b"").split()[0]) for value in member.values] == list(range(101))


@administered
async def test_batches_are_split_where_the_topic_takes_small_ones_only(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker, max_message_bytes="10000")
    await asyncio.gather(
        broker.produce(numbered(topic, 200, 0, size=1000)), broker.produce(numbered(topic, 50, 1, size=1000))
    )
    await broker.produce([Message(topic, b"200", partition=0)])
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    await member.poll_for(251)
    assert numbers([r.value for r in member.records[TopicPartition(topic, 0)]]) == list(range(201))
    assert numbers([r.value for r in member.records[TopicPartition(topic, 1)]]) == list(range(50))


@administered
async def test_too_large_a_message_is_refused_and_the_next_ones_are_not(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    await broker.produce(numbered(topic, 3))
    for _ in range(2):
        with pytest.raises(MessageTooLarge):
            await broker.produce([Message(topic, bytes(1_200_000), partition=0)])
    await broker.produce([Message(topic, b"3", partition=0)])
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    await member.poll_for(4)
    assert numbers(member.values) == [0, 1, 2, 3]


async def test_large_messages_below_the_limit_pass(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    await broker.produce([Message(topic, bytes([n]) * 900_000, partition=0) for n in range(4)])
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    await member.poll_for(4)
    assert [record.value for record in member.all] == [bytes([n]) * 900_000 for n in range(4)]


async def test_calls_at_the_same_time_are_all_written_each_in_its_order(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)

    async def call(number: int) -> None:
        await broker.produce([Message(topic, b"%d %d" % (number, n), b"%d" % number) for n in range(7)])

    await asyncio.gather(*(call(number) for number in range(100)))
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    await member.poll_for(700)
    read: dict[int, list[int]] = {}
    for value in member.values:
        number, n = (value or b"").split()
        read.setdefault(int(number), []).append(int(n))
    assert read == {number: list(range(7)) for number in range(100)}


async def test_the_key_decides_the_partition_as_in_kafka(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    keys = [b"sub_%d" % n for n in range(40)]
    await broker.produce([Message(topic, b"v", key) for key in keys])
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    await member.poll_for(40)
    assert {record.key: partition.partition for partition, record in member.placed} == {
        key: partition_of(key, 4) for key in keys
    }


async def test_messages_without_a_key_reach_every_partition(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    await broker.produce(numbered(topic, 200, partition=None, size=1000))
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    await member.poll_for(200)
    assert {partition.partition for partition in member.records} == {0, 1, 2, 3}
    assert max(len(records) for records in member.records.values()) <= 80


async def test_writing_nothing_is_fine(backend: Backend) -> None:
    broker = await backend.connect()
    await broker.produce([])


async def test_a_partition_that_is_not_there_is_refused(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    with pytest.raises(BrokerRefused, match="no partition 9"):
        await broker.produce([Message(topic, b"v", partition=9)])


async def test_a_topic_that_is_not_there_is_refused_and_not_created(backend: Backend) -> None:
    broker = await backend.connect(backend.settings.model_copy(update={"request_timeout": 4.0}))
    topic = backend.unique("absent")
    with pytest.raises(BrokerRefused, match=f"topic {topic} does not exist"):
        await broker.produce([Message(topic, b"v")])
    assert await broker.ensure_topics([TopicSpec(topic)], create=False) == [topic]


async def test_what_was_acknowledged_is_there_after_a_restart(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    await broker.produce(numbered(topic, 100))
    await backend.close(broker)
    broker = await backend.connect()
    await broker.produce([Message(topic, b"100", partition=0)])
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    await member.poll_for(101)
    assert numbers(member.values) == list(range(101))


async def test_one_record_can_be_read_by_its_offset(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    await broker.produce(
        [Message(topic, b"%d" % n, b"k", [("h", b"%d" % n)], 0, STAMP + n) for n in range(20)]
    )
    for offset in (7, 0, 19, 8):
        record = await broker.read(TopicPartition(topic, 0), offset)
        assert record is not None
        assert record.offset == offset
        assert (record.value, record.key, record.timestamp) == (
            b"%d" % offset,
            b"k",
            STAMP + offset,
        )
        assert [tuple(header) for header in record.headers] == [("h", b"%d" % offset)]


async def test_reading_what_is_not_there_gives_none(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    await broker.produce(numbered(topic, 3))
    assert await broker.read(TopicPartition(topic, 0), 3) is None
    assert await broker.read(TopicPartition(topic, 0), 1_000_000) is None
    assert await broker.read(TopicPartition(topic, 0), -1) is None
    assert await broker.read(TopicPartition(topic, 1), 0) is None
    assert await broker.read(TopicPartition(topic, 9), 0) is None
    assert await broker.read(TopicPartition(backend.unique("absent"), 0), 0) is None
    record = await broker.read(TopicPartition(topic, 0), 2)  # and the reader still works
    assert record is not None
    assert record.value == b"2"


@administered
async def test_reading_what_was_deleted_gives_none(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    await broker.produce(numbered(topic, 10))
    await backend.delete_before(broker, TopicPartition(topic, 0), 4)
    assert await broker.read(TopicPartition(topic, 0), 3) is None
    record = await broker.read(TopicPartition(topic, 0), 4)
    assert record is not None
    assert record.value == b"4"


async def test_records_can_be_read_at_the_same_time(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    await broker.produce([Message(topic, b"%d %d" % (p, n), partition=p) for p in range(4) for n in range(5)])
    wanted = [(p, offset) for offset in range(5) for p in range(4)]
    found = await asyncio.gather(*(broker.read(TopicPartition(topic, p), offset) for p, offset in wanted))
    assert [r.value for r in found if r is not None] == [b"%d %d" % place for place in wanted]


# Polling.


async def test_a_poll_without_records_ends_empty(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    assert await member.poll(0) == 0
    assert await member.poll(0.3) == 0


async def test_a_waiting_poll_returns_when_something_is_written(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    async with asyncio.timeout(WITHIN), asyncio.TaskGroup() as tasks:
        poll = tasks.create_task(member.poll(10 * WITHIN))
        await asyncio.sleep(0.3)
        await broker.produce([Message(topic, b"v", partition=0)])
    assert poll.result() == 1


async def test_a_poll_returns_no_more_than_its_limit_and_nothing_is_lost_by_it(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    await broker.produce([m for p in range(4) for m in numbered(topic, 100, p)])
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    async with asyncio.timeout(WITHIN):
        while len(member.all) < 400:
            await member.poll(0.2, limit=7)  # which checks it
    for records in member.records.values():
        assert [record.offset for record in records] == list(range(100))


async def test_a_cancelled_poll_loses_nothing(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    for n in range(20):
        poll = asyncio.get_running_loop().create_task(member.poll(5.0))
        await asyncio.sleep(0.01 * (n % 4))
        await broker.produce([Message(topic, b"%d" % n, partition=0)])
        await asyncio.sleep(0.003 * (n % 5))
        poll.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await poll
    await member.poll_for(20)
    assert numbers(member.values) == list(range(20))


async def test_lag_is_what_has_not_been_read_yet(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    await broker.produce([*numbered(topic, 30, 0), *numbered(topic, 5, 1)])
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    await member.poll_until(lambda: member.all)
    taken = {partition: len(records) for partition, records in member.records.items()}
    lag = member.consumer.lag()
    for partition, count in taken.items():
        assert lag[partition] == {0: 30, 1: 5}[partition.partition] - count
    await member.poll_for(35)
    await member.poll()
    assert all(behind == 0 for behind in member.consumer.lag().values())


# Positions.


async def test_a_new_group_starts_at_the_earliest_record(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    await broker.produce(numbered(topic, 3))
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    assert member.listener.starts == {TopicPartition(topic, p): Position(0) for p in range(4)}
    await member.poll_for(3)


async def test_a_new_group_may_start_at_the_end(backend: Backend) -> None:
    settings = backend.settings.model_copy(update={"offset_reset": "latest"})
    broker = await backend.connect(settings)
    topic = await backend.topic(broker)
    await broker.produce(numbered(topic, 3))
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    assert member.listener.starts[TopicPartition(topic, 0)] == Position(3)
    await broker.produce([Message(topic, b"3", partition=0)])
    await member.poll_for(1)
    assert numbers(member.values) == [3]


async def test_what_the_dispatcher_wrote_itself_is_read_from_its_beginning(backend: Backend) -> None:
    settings = backend.settings.model_copy(update={"offset_reset": "latest"})
    broker = await backend.connect(settings)
    topic = await backend.topic(broker)
    await broker.produce(numbered(topic, 3))
    member = Member(broker, [topic], backend.unique("group"), own=True)
    await member.consumer.start()
    assert member.listener.starts[TopicPartition(topic, 0)] == Position(0)
    await member.poll_for(3)


async def test_reading_goes_on_at_the_committed_offset_with_its_metadata(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    group = backend.unique("group")
    await broker.produce(numbered(topic, 10))
    member = Member(broker, [topic], group)
    await member.consumer.start()
    await member.poll_for(10)
    partition = TopicPartition(topic, 0)
    metadata = "7,9-11 \u00e9 " + "x" * 4000
    await member.consumer.commit({partition: Position(4, "old")})
    await member.consumer.commit({partition: Position(6, metadata)})
    # Where the other partitions begin is committed with the assignment.
    assert (await broker.positions_of(group, topic))[partition] == Position(6, metadata)
    assert await broker.positions_of(backend.unique("group"), topic) == {}
    await member.consumer.stop()
    await backend.close(broker)

    broker = await backend.connect()
    member = Member(broker, [topic], group)
    await member.consumer.start()
    assert member.listener.starts[partition] == Position(6, metadata)
    await member.poll_for(4)
    assert numbers(member.values) == [6, 7, 8, 9]


async def test_a_commit_of_the_same_offset_replaces_its_metadata(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    group = backend.unique("group")
    await broker.produce(numbered(topic, 3))
    partition = TopicPartition(topic, 0)
    member = Member(broker, [topic], group)
    await member.consumer.start()
    for metadata in ("1longer", "1" + "x" * 4095, ""):
        await member.consumer.commit({partition: Position(1, "1before")})
        await member.consumer.commit({partition: Position(1, metadata)})
        await member.consumer.stop()
        member = Member(broker, [topic], group)
        await member.consumer.start()
        assert member.listener.starts[partition] == Position(1, metadata)
    await member.consumer.stop()


async def test_groups_have_offsets_of_their_own(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    await broker.produce(numbered(topic, 3))
    one, other = (Member(broker, [topic], backend.unique("group")) for _ in range(2))
    for member in (one, other):
        await member.consumer.start()
        await member.poll_for(3)
        await member.consumer.commit({TopicPartition(topic, 0): Position(3)})
    assert numbers(one.values) == numbers(other.values) == [0, 1, 2]


async def test_a_commit_may_go_back(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    group = backend.unique("group")
    await broker.produce(numbered(topic, 5))
    member = Member(broker, [topic], group)
    await member.consumer.start()
    for offset in (5, 2):
        await member.consumer.commit({TopicPartition(topic, 0): Position(offset)})
    await member.consumer.stop()
    member = Member(broker, [topic], group)
    await member.consumer.start()
    await member.poll_for(3)
    assert numbers(member.values) == [2, 3, 4]


@administered
async def test_behind_a_committed_offset_that_was_deleted_the_earliest_one_is_read(backend: Backend) -> None:
    broker = await backend.connect(backend.settings.model_copy(update={"offset_reset": "latest"}))
    topic = await backend.topic(broker)
    group = backend.unique("group")
    await broker.produce(numbered(topic, 10))
    member = Member(broker, [topic], group)
    await member.consumer.start()
    await member.consumer.commit({TopicPartition(topic, 0): Position(2, "4,5")})
    await member.consumer.stop()
    await backend.delete_before(broker, TopicPartition(topic, 0), 6)
    member = Member(broker, [topic], group)
    await member.consumer.start()
    # The commit stays the start: what its note says of the offsets beyond still holds.
    assert member.listener.starts[TopicPartition(topic, 0)] == Position(2, "4,5")
    await member.poll_for(4)
    assert numbers(member.values) == [6, 7, 8, 9]


async def test_a_commit_for_what_is_not_assigned_is_refused(backend: Backend) -> None:
    broker = await backend.connect()
    topic, other = await backend.topic(broker), await backend.topic(broker)
    member = Member(broker, [topic], backend.unique("group"))
    with pytest.raises(CommitRefused):
        await member.consumer.commit({TopicPartition(topic, 0): Position(1)})
    await member.consumer.start()
    with pytest.raises(CommitRefused):
        await member.consumer.commit(
            {TopicPartition(topic, 0): Position(1), TopicPartition(other, 0): Position(1)}
        )
    await member.consumer.commit({})
    await member.consumer.stop()
    with pytest.raises(CommitRefused):
        await member.consumer.commit({TopicPartition(topic, 0): Position(1)})


@administered
async def test_too_long_commit_metadata_is_refused(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    fits = Position(0, "x" * broker.metadata_limit)
    await member.consumer.commit({TopicPartition(topic, 0): fits})
    with pytest.raises(MetadataTooLarge):
        await member.consumer.commit({TopicPartition(topic, 0): Position(0, fits.metadata + "x")})


async def test_one_record_is_written_and_found_again_where_it_stands(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker, partitions=2)
    await broker.produce([*numbered(topic, 3, 0), *numbered(topic, 3, 1)])
    small, large = b"x" * 100, bytes(range(256)) * 3750  # 960,000 bytes
    for value in (small, large, small):
        number, offset = await broker.produce_one(topic, (b"key", value, 1000))
        record = await broker.read(TopicPartition(topic, number), offset)
        assert record is not None
        assert (record.key, record.value, record.offset) == (b"key", value, offset)
        assert offset >= 3


@administered
async def test_one_record_that_is_too_large_is_refused_as_such(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker, max_message_bytes="2000")
    with pytest.raises(MessageTooLarge):
        await broker.produce_one(topic, (b"key", bytes(3000), 1000))
    await broker.produce_one(topic, (b"key", bytes(1000), 1000))


# Pausing.


async def test_nothing_of_a_paused_partition_is_returned_and_nothing_lost(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    paused, free = TopicPartition(topic, 0), TopicPartition(topic, 1)
    await broker.produce([*numbered(topic, 50, 0), *numbered(topic, 50, 1)])
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    await member.poll_until(lambda: member.records[paused])
    while len(member.records[paused]) < 10:  # there is more of it in the buffer
        await member.poll(0.2, limit=10)
    member.consumer.pause([paused])
    before = len(member.records[paused])
    await broker.produce([Message(topic, b"50", partition=0), Message(topic, b"50", partition=1)])
    await member.poll_until(lambda: len(member.records[free]) == 51)
    for _ in range(3):
        await member.poll()
    assert len(member.records[paused]) == before
    member.consumer.resume([paused])
    await member.poll_until(lambda: len(member.records[paused]) == 51)
    assert numbers([r.value for r in member.records[paused]]) == list(range(51))
    assert numbers([r.value for r in member.records[free]]) == list(range(51))


async def test_with_everything_paused_polls_are_empty_until_resume_wakes_one(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    member.consumer.pause(member.consumer.assignment())
    await broker.produce(numbered(topic, 5))
    assert await member.poll(0.5) == 0
    async with asyncio.timeout(WITHIN), asyncio.TaskGroup() as tasks:
        tasks.create_task(member.poll(10 * WITHIN))
        await asyncio.sleep(0.2)
        member.consumer.resume(member.consumer.assignment())
    await member.poll_for(5)
    assert numbers(member.values) == list(range(5))


async def test_pausing_holds_for_a_poll_that_is_already_waiting(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    async with asyncio.timeout(WITHIN), asyncio.TaskGroup() as tasks:
        poll = tasks.create_task(member.poll(1.5))
        await asyncio.sleep(0.2)
        member.consumer.pause(member.consumer.assignment())
        await broker.produce(numbered(topic, 5))
    assert poll.result() == 0
    member.consumer.resume(member.consumer.assignment())
    await member.poll_for(5)
    assert numbers(member.values) == list(range(5))


async def test_pausing_and_resuming_at_random_moments_changes_no_record(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    for _ in range(5):
        await broker.produce([m for p in range(4) for m in numbered(topic, 40, p, size=500)])
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    step = 0
    async with asyncio.timeout(WITHIN):
        while len(member.all) < 800:
            step += 1
            partition = TopicPartition(topic, step % 4)
            member.consumer.pause([partition])
            before = len(member.records[partition])
            await member.poll(0.05, limit=13)
            assert len(member.records[partition]) == before
            member.consumer.resume([partition])
    for records in member.records.values():
        assert [record.offset for record in records] == list(range(200))


async def test_pausing_what_is_not_assigned_does_nothing(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    member.consumer.pause([TopicPartition(topic, 77), TopicPartition("elsewhere", 0)])
    member.consumer.resume([TopicPartition("elsewhere", 0)])
    await broker.produce(numbered(topic, 2))
    await member.poll_for(2)


# Groups.


async def test_the_listener_is_told_of_all_partitions_before_start_returns(backend: Backend) -> None:
    broker = await backend.connect()
    topics = [await backend.topic(broker), await backend.topic(broker)]
    member = Member(broker, topics, backend.unique("group"))
    assert member.consumer.problem is not None
    await member.consumer.start()
    assert member.listener.calls == ["assigned"]
    assert set(member.listener.assigned) == {TopicPartition(topic, p) for topic in topics for p in range(4)}
    assert set(member.consumer.assignment()) == set(member.listener.assigned)
    assert member.consumer.problem is None


async def test_stop_does_not_call_the_listener(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.start()
    await member.consumer.stop()
    assert member.listener.calls == ["assigned"]
    assert await member.consumer.poll(0.1, 10) == ()
    await member.consumer.stop()


async def test_a_member_that_never_started_can_be_stopped(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    member = Member(broker, [topic], backend.unique("group"))
    await member.consumer.stop()
    assert member.listener.calls == []


@pytest.mark.parametrize("call", ["assigned", "revoked"])
@groups
async def test_a_listener_that_fails_is_heard_of(backend: Backend, call: str) -> None:
    async def fail(_partitions: object) -> None:
        raise ValueError("the listener's own mistake")

    broker = await backend.connect()
    topic = await backend.topic(broker)
    group = backend.unique("group")
    listener = Listener(during_assigned=fail) if call == "assigned" else Listener(during_revoked=fail)
    member = Member(broker, [topic], group, listener)
    await member.consumer.start()
    other = Member(broker, [topic], group)
    joining = asyncio.get_running_loop().create_task(other.consumer.start())
    with pytest.raises(BrokerError) as raised:
        await member.poll_until(lambda: False)
    assert "the listener's own mistake" in str(raised.value.__cause__)
    await joining


@groups
async def test_two_members_share_the_partitions(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    group = backend.unique("group")
    one, two = Member(broker, [topic], group), Member(broker, [topic], group)
    await one.consumer.start()
    async with one.polling():
        await two.consumer.start()
        async with two.polling():
            await eventually(lambda: len(one.listener.assigned) == len(two.listener.assigned) == 2)
            assert one.listener.calls == ["assigned", "revoked", "assigned"]
            assert not set(one.listener.assigned) & set(two.listener.assigned)
            await broker.produce([m for p in range(4) for m in numbered(topic, 10, p)])
            await eventually(lambda: len(one.all) + len(two.all) == 40)
    assert len(one.all) == len(two.all) == 20


@groups
async def test_what_a_member_leaves_the_others_get(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    group = backend.unique("group")
    one, two = Member(broker, [topic], group), Member(broker, [topic], group)
    await one.consumer.start()
    async with one.polling():
        await two.consumer.start()
        await eventually(lambda: len(one.listener.assigned) == 2)
        await two.consumer.stop()
        await eventually(lambda: len(one.listener.assigned) == 4)
        await broker.produce([m for p in range(4) for m in numbered(topic, 5, p)])
        await eventually(lambda: len(one.all) == 20)


@groups
async def test_more_members_than_partitions_is_fine(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker, partitions=1)
    group = backend.unique("group")
    one, two = Member(broker, [topic], group), Member(broker, [topic], group)
    await one.consumer.start()
    async with one.polling():
        await two.consumer.start()
        async with two.polling():
            await eventually(lambda: len(one.listener.calls) == 3 and len(two.listener.calls) == 1)
            assert len(one.listener.assigned) + len(two.listener.assigned) == 1
            await eventually(lambda: one.consumer.problem is None and two.consumer.problem is None)


@groups
async def test_a_commit_while_partitions_are_revoked_counts_for_their_next_owner(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    group = backend.unique("group")
    await broker.produce([m for p in range(4) for m in numbered(topic, 10, p)])
    finished: list[str] = []

    async def commit(partitions: Collection[TopicPartition]) -> None:
        await asyncio.sleep(0.5)  # deliveries end meanwhile
        await one.consumer.commit({partition: Position(7, "done") for partition in partitions})
        finished.append("revoked")

    async def note(_partitions: Mapping[TopicPartition, Position]) -> None:
        finished.append("assigned")

    one = Member(broker, [topic], group, Listener(during_revoked=commit))
    two = Member(broker, [topic], group, Listener(during_assigned=note))
    await one.consumer.start()
    await one.poll_for(40)
    async with one.polling():
        await two.consumer.start()
        await two.poll_for(6)
    assert finished == ["revoked", "assigned"]
    assert set(two.listener.starts.values()) == {Position(7, "done")}
    for records in two.records.values():
        assert numbers([record.value for record in records]) == [7, 8, 9]


@groups
async def test_after_a_rebalance_a_kept_partition_starts_at_its_committed_offset(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    group = backend.unique("group")
    await broker.produce([m for p in range(4) for m in numbered(topic, 10, p)])
    one, two = Member(broker, [topic], group), Member(broker, [topic], group)
    await one.consumer.start()
    await one.poll_for(40)
    await one.consumer.commit({TopicPartition(topic, p): Position(8) for p in range(4)})
    one.records.clear()
    async with one.polling(), two.polling():
        await two.consumer.start()
        await eventually(lambda: len(one.all) + len(two.all) == 8)
    for member in (one, two):
        for records in member.records.values():
            assert numbers([record.value for record in records]) == [8, 9]


@groups
async def test_a_commit_after_the_partition_went_elsewhere_is_refused(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    group = backend.unique("group")
    one, two = Member(broker, [topic], group), Member(broker, [topic], group)
    await one.consumer.start()
    async with one.polling():
        await two.consumer.start()
        await eventually(lambda: len(one.listener.assigned) == 2)
        for partition in two.listener.assigned:
            with pytest.raises(CommitRefused):
                await one.consumer.commit({partition: Position(1)})
        await one.consumer.commit({partition: Position(0) for partition in one.listener.assigned})


@groups
async def test_a_partition_paused_in_on_assigned_stays_paused(backend: Backend) -> None:
    """A rebalance loses every pause: its owner pauses again, and not one record slips through."""
    broker = await backend.connect()
    topic = await backend.topic(broker)
    group = backend.unique("group")
    await broker.produce([m for p in range(4) for m in numbered(topic, 100, p)])

    async def pause(partitions: Mapping[TopicPartition, Position]) -> None:
        one.consumer.pause(partitions.keys())
        await asyncio.sleep(0.4)  # time enough to fetch, if it did

    one, two = Member(broker, [topic], group, Listener(during_assigned=pause)), Member(broker, [topic], group)
    await one.consumer.start()
    async with one.polling():
        await two.consumer.start()
        await eventually(lambda: len(one.listener.assigned) == 2)
        await two.poll_for(200)
    assert one.all == []
    one.consumer.resume(one.consumer.assignment())
    await one.poll_for(200)


@groups
async def test_in_on_assigned_a_member_knows_where_its_partitions_end_and_may_commit(
    backend: Backend,
) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    group = backend.unique("group")
    await broker.produce([m for p in range(4) for m in numbered(topic, 10 + p, p)])
    ends: list[Mapping[TopicPartition, int]] = []

    async def commit(partitions: Mapping[TopicPartition, Position]) -> None:
        ends.append(dict(one.consumer.ends()))
        await one.consumer.commit({partition: Position(3, "kept") for partition in partitions})

    one = Member(broker, [topic], group, Listener(during_assigned=commit))
    await one.consumer.start()
    assert ends == [{TopicPartition(topic, p): 10 + p for p in range(4)}]
    await broker.produce(numbered(topic, 5, 0))
    await one.poll_for(51)
    assert one.consumer.ends() == ends[0], "as they were then"
    await one.consumer.stop()
    two = Member(broker, [topic], group)
    await two.consumer.start()
    assert set(two.listener.starts.values()) == {Position(3, "kept")}


@groups
async def test_members_may_want_different_topics(backend: Backend) -> None:
    broker = await backend.connect()
    left, both, right = [await backend.topic(broker) for _ in range(3)]
    group = backend.unique("group")
    one, two = Member(broker, [left, both], group), Member(broker, [right, both], group)
    await one.consumer.start()
    async with one.polling():
        await two.consumer.start()
        async with two.polling():
            await eventually(lambda: len(one.listener.assigned) + len(two.listener.assigned) == 12)
            assert {partition.topic for partition in one.listener.assigned} <= {left, both}
            assert {partition.topic for partition in two.listener.assigned} <= {right, both}


@groups
async def test_records_move_between_many_members_and_each_arrives(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker, partitions=6)
    group = backend.unique("group")
    members: list[Member] = []

    def member() -> Member:
        async def commit(partitions: Collection[TopicPartition]) -> None:
            with contextlib.suppress(CommitRefused):
                await made.consumer.commit(
                    {
                        partition: Position(made.records[partition][-1].offset + 1)
                        for partition in partitions
                        if made.records[partition]
                    }
                )

        made = Member(broker, [topic], group, Listener(during_revoked=commit))
        members.append(made)
        return made

    total = 0
    async with contextlib.AsyncExitStack() as running:
        for _ in range(3):
            joined = member()
            await joined.consumer.start()
            await running.enter_async_context(joined.polling())
            await broker.produce([m for p in range(6) for m in numbered(topic, 20, p)])
            total += 120
        await eventually(
            lambda: len({(place, r.offset) for made in members for place, r in made.placed}) == total
        )


async def test_a_member_waits_for_its_topic_and_says_so(backend: Backend) -> None:
    broker = await backend.connect()
    topic = backend.unique("later")
    member = Member(broker, [topic], backend.unique("group"))
    starting = asyncio.get_running_loop().create_task(member.consumer.start())
    await eventually(lambda: (member.consumer.problem or "").startswith(f"topic {topic} does not exist"))
    unique, backend.unique = backend.unique, lambda _: topic
    assert await backend.topic(broker) == topic
    backend.unique = unique
    await asyncio.wait_for(starting, WITHIN)
    await broker.produce(numbered(topic, 2))
    await member.poll_for(2)


# Topics.


@administered
async def test_missing_topics_are_named_or_created(backend: Backend) -> None:
    broker = await backend.connect()
    there, absent = await backend.topic(broker), backend.unique("absent")
    specs = [TopicSpec(there), TopicSpec(absent, 3, config={"retention.ms": "86400000"})]
    assert await broker.ensure_topics(specs, create=False) == [absent]
    assert await broker.ensure_topics(specs, create=True) == []
    assert await broker.ensure_topics(specs, create=True) == []
    assert await broker.ensure_topics(specs, create=False) == []
    (found,) = [topic for topic in await broker.topics() if topic.name == absent]
    assert [partition.partition for partition in found.partitions] == [0, 1, 2]
    assert found.config["retention.ms"] == "86400000"


@administered
async def test_a_topic_without_sizes_gets_the_brokers(backend: Backend) -> None:
    broker = await backend.connect()
    topic = backend.unique("default")
    await broker.ensure_topics([TopicSpec(topic)], create=True)
    await broker.produce([Message(topic, b"v", partition=0)])
    (found,) = [info for info in await broker.topics() if info.name == topic]
    assert len(found.partitions) == 4


@administered
@pytest.mark.parametrize("name", ["no spaces", "", "x" * 250, "a/b", ".."])
async def test_a_bad_topic_name_is_refused(backend: Backend, name: str) -> None:
    broker = await backend.connect()
    with pytest.raises(BrokerRefused):
        await broker.ensure_topics([TopicSpec(name)], create=True)


@administered
async def test_topics_show_offsets_and_the_groups_commits(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker, cleanup_policy="delete")
    group = backend.unique("group")
    await broker.produce([*numbered(topic, 10, 0), *numbered(topic, 4, 1)])
    member = Member(broker, [topic], group)
    await member.consumer.start()
    await member.consumer.commit({TopicPartition(topic, 0): Position(6)})
    await backend.delete_before(broker, TopicPartition(topic, 0), 2)
    infos = await broker.topics(group)
    assert not [info for info in infos if info.name.startswith("__")]
    (found,) = [info for info in infos if info.name == topic]
    assert [(p.partition, p.earliest, p.latest, p.committed) for p in found.partitions] == [
        (0, 2, 10, 6),
        (1, 0, 4, 0),
        (2, 0, 0, 0),
        (3, 0, 0, 0),
    ]
    assert found.config["cleanup.policy"] == "delete"
    (without,) = [info for info in await broker.topics() if info.name == topic]
    assert {partition.committed for partition in without.partitions} == {None}


@administered
async def test_a_compacted_topic_takes_no_message_without_a_key(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker, cleanup_policy="compact")
    with pytest.raises(BrokerError):
        await broker.produce([Message(topic, b"v", partition=0)])
    await broker.produce([Message(topic, b"v", b"k", partition=0)])
    record = await broker.read(TopicPartition(topic, 0), 0)
    assert record is not None
    assert record.key == b"k"


# A broker that isn't there.


@pytest.mark.parametrize("backend", [KAFKA, MOCK], indirect=True)
async def test_a_broker_that_is_not_there_yet_is_waited_for(backend: OnKafka) -> None:
    topic = await backend.topic(await backend.connect())
    front = Forwarder(free_port(), backend.address)
    late = OnKafka(backend.unique, f"127.0.0.1:{front.port}")
    try:
        connecting = asyncio.get_running_loop().create_task(late.connect())
        await eventually(lambda: late._open and "refused" in (late._open[0].problem or "").lower())
        with pytest.raises(BrokerUnavailable):
            await late._open[0].produce([Message(topic, b"early")])
        await front.start()
        broker = await asyncio.wait_for(connecting, WITHIN)
        assert broker.problem is None
        await broker.produce([Message(topic, b"v", partition=0)])
    finally:
        await late.close_all()
        await front.stop()


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_broker_that_goes_away_and_comes_back_is_survived(
    kafka_cluster: Callable[..., Cluster], unique: Callable[[str], str]
) -> None:
    """A real restart, with records, a member and its commits on either side of it."""
    cluster = await asyncio.to_thread(kafka_cluster)
    backend = OnKafka(unique, cluster.bootstrap)
    try:
        broker = await backend.connect(backend.settings.model_copy(update={"request_timeout": 5.0}))
        topic = await backend.topic(broker)
        partition = TopicPartition(topic, 0)
        group = unique("group")
        member = Member(broker, [topic], group)
        await member.consumer.start()
        await broker.produce(numbered(topic, 5))
        await member.poll_for(5)
        await member.consumer.commit({partition: Position(5)})

        await asyncio.to_thread(cluster.nodes[0].kill)
        async with member.polling():
            await eventually(lambda: broker.problem is not None and member.consumer.problem is not None)
            short = broker.produce([Message(topic, b"lost or not", partition=1)])
            with pytest.raises(BrokerUnavailable):
                await short
            with pytest.raises((BrokerUnavailable, CommitRefused)):
                await member.consumer.commit({partition: Position(5)})
            await asyncio.to_thread(cluster.nodes[0].start)
            await eventually(lambda: broker.problem is None)
            await produced(broker, Message(topic, b"5", partition=0))
            await eventually(lambda: any(record.value == b"5" for record in member.all))
            await eventually(lambda: member.consumer.problem is None)
            # On a slow machine the session ended meanwhile, and the member joins anew: as the engine does, commit again.
            async with asyncio.timeout(WITHIN):
                while True:
                    try:
                        await member.consumer.commit({partition: Position(6)})
                        break
                    except (BrokerUnavailable, CommitRefused):
                        await asyncio.sleep(0.1)
        assert numbers([r.value for r in member.records[partition]])[-1] == 5
        record = await broker.read(partition, 5)
        assert record is not None
        (found,) = [info for info in await broker.topics(group) if info.name == topic]
        assert found.partitions[0].committed == 6
    finally:
        await backend.close_all()


async def test_a_stretch_of_records_can_be_read_from_any_offset(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    where = TopicPartition(topic, 0)
    await broker.produce(numbered(topic, 300))
    records, following = await broker.read_from(where, 37, 20, 1 << 20)
    assert [(record.offset, record.value) for record in records] == [(n, b"%d" % n) for n in range(37, 57)]
    assert following == 57
    records, following = await broker.read_from(where, 290, 100, 1 << 20)
    assert [record.offset for record in records] == list(range(290, 300))
    assert following == 300
    records, _ = await broker.read_from(where, 150, 100, 1)
    assert records[0].offset == 150, "one at least, however small the size"


async def test_a_stretch_beyond_the_end_is_empty_and_not_waited_for(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    await broker.produce(numbered(topic, 3))
    records, following = await broker.read_from(TopicPartition(topic, 0), 3, 10, 1 << 20)
    assert (list(records), following) == ([], 3)


@administered
async def test_a_stretch_that_was_deleted_begins_with_what_is_left(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    where = TopicPartition(topic, 0)
    await broker.produce(numbered(topic, 10))
    await backend.delete_before(broker, where, 4)
    found: list[int] = []
    at = 2
    while at < 10:
        records, following = await broker.read_from(where, at, 100, 1 << 20)
        found += [record.offset for record in records]
        assert following > at
        at = following
    assert found == list(range(4, 10))
