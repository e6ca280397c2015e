"""How a member takes its partitions over, with a library's consumer that tells what it is asked to tell."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition as KafkaPartition, errors

from dispatcher.broker.base import (
    BrokerUnavailable,
    CommitRefused,
    Message,
    Position,
    TopicPartition,
    Why,
)
from dispatcher.broker.kafka.consumer import KafkaConsumer
from tests.broker.backends import QUICK, Member, OnKafka, OnMock
from tests.broker.kafka.api_keys import OFFSET_COMMIT
from tests.broker.kafka.library import ZERO, Cluster, Library, Listener


@pytest.mark.looptime
async def test_pauses_grow_while_partitions_can_not_be_taken_over() -> None:
    class Away(Library):
        async def fetch_committed_offsets(self, keys: Iterable[Any]) -> dict[Any, Any]:
            raise errors.GroupCoordinatorNotAvailableError

    library = Away(1)
    member = KafkaConsumer(Cluster(1), ["events"], "group", Listener())
    member._consumer = library
    clock = asyncio.get_running_loop().time
    pauses = []
    for _ in range(6):
        began = clock()
        await member.take([ZERO])
        pauses.append(round(clock() - began, 3))
    assert library.rejoins == 6
    assert pauses == [0.2, 0.5, 1.0, 2.0, 5.0, 7.5], "at most a quarter of the session"


async def test_records_of_an_aborted_transaction_are_not_returned(on_kafka: OnKafka) -> None:
    broker = await on_kafka.connect()
    topic = await on_kafka.topic(broker)
    producer = AIOKafkaProducer(bootstrap_servers=on_kafka.address, transactional_id=on_kafka.unique("tx"))
    await producer.start()
    try:
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"aborted", partition=0)
        await producer.abort_transaction()
        async with producer.transaction():
            await producer.send_and_wait(topic, b"committed", partition=0)
    finally:
        await producer.stop()
    member = Member(broker, [topic], on_kafka.unique("group"))
    await member.consumer.start()
    await member.poll_for(1)
    await member.poll()
    assert member.values == [b"committed"]
    assert await broker.read(TopicPartition(topic, 0), 0) is None
    marker = member.all[0].offset + 1
    assert await broker.read(TopicPartition(topic, 0), marker) is None
    for offset in range(marker):
        stretch = await broker.read_from(TopicPartition(topic, 0), offset, 10, 1 << 20)
        assert [record.value for record in stretch.records] == [b"committed"], offset
        assert stretch.next == marker + 1


async def test_a_group_of_our_own_that_has_nothing_to_do_asks_the_broker_to_wait_as_long_as_others_do(
    on_kafka: OnKafka,
) -> None:
    broker = await on_kafka.connect(QUICK.model_copy(update={"fetch_max_wait": 0.5}))
    topic = await on_kafka.topic(broker)
    member: Any = Member(broker, [topic], on_kafka.unique("group"), own=True)
    await member.consumer.start()
    await member.poll_until(member.consumer.assignment)
    asked = []
    send = member.consumer._consumer._fetcher._client.send

    async def watch(node: Any, request: Any, **options: Any) -> Any:
        built = getattr(request, "_max_wait_ms", None)
        if built is not None:
            asked.append(built)
        return await send(node, request, **options)

    member.consumer._consumer._fetcher._client.send = watch
    await member.poll_until(lambda: 500 in asked)  # nothing has come for a while
    member.consumer.pause(list(member.consumer.assignment())[:1])
    await member.poll_until(lambda: asked[-1] == 100)
    member.consumer.resume(list(member.consumer.assignment()))
    await member.poll_until(lambda: asked[-1] == 500)


async def test_a_dead_task_inside_the_library_means_a_new_member_not_silence(on_kafka: OnKafka) -> None:
    broker = await on_kafka.connect()
    topic = await on_kafka.topic(broker)
    member: Any = Member(broker, [topic], on_kafka.unique("group"))
    await member.consumer.start()
    for part, task in (("_fetcher", "_fetch_task"), ("_coordinator", "_coordination_task")):
        library = member.consumer._consumer
        getattr(getattr(library, part), task).cancel()
        await member.poll_until(
            lambda library=library: (
                member.consumer._consumer not in {None, library} and member.consumer.problem is None
            )
        )
    await broker.produce([Message(topic, b"v", partition=0)])
    await member.poll_for(1)
    assert member.listener.calls == ["assigned", "revoked", "assigned", "revoked", "assigned"]


async def test_offsets_that_go_back_begin_their_partition_anew(on_kafka: OnKafka) -> None:
    """Whoever knows the old ones would take the new records for seen."""
    broker = await on_kafka.connect()
    topic = await on_kafka.topic(broker)
    await broker.produce([Message(topic, b"%d" % n, partition=0) for n in range(5)])
    member: Any = Member(broker, [topic], on_kafka.unique("group"))
    await member.consumer.start()
    await member.poll_for(5)
    consumer = member.consumer
    consumer._consumer.seek(KafkaPartition(topic, 0), 1)  # as an out-of-range reset does
    await member.poll_for(10)
    assert [(jump.partition, jump.why) for jump in member.listener.jumps] == [((topic, 0), Why.CUT)]
    assert member.listener.gone == {(topic, 0)}


async def test_a_commit_is_cut_off_when_its_partitions_are_given_up(on_mock: OnMock) -> None:
    """Kafka would take it with the new generation, over the head of the partition's next owner."""
    broker = await on_mock.connect()
    topic = await on_mock.topic(broker)
    member: Any = Member(broker, [topic], on_mock.unique("group"))
    await member.consumer.start()
    on_mock.cluster.fail_next(OFFSET_COMMIT, *[14] * 40)  # the coordinator is loading, for ten seconds
    commit = asyncio.get_running_loop().create_task(
        member.consumer.commit({TopicPartition(topic, 0): Position(1)})
    )
    await asyncio.sleep(0.5)
    assert not commit.done()
    await member.consumer.revoke()
    with pytest.raises(CommitRefused):
        await asyncio.wait_for(commit, 2)


async def test_a_commit_that_gets_no_answer_ends_as_unavailable(on_mock: OnMock) -> None:
    broker = await on_mock.connect(QUICK.model_copy(update={"request_timeout": 3.0}))
    topic = await on_mock.topic(broker)
    member = Member(broker, [topic], on_mock.unique("group"))
    await member.consumer.start()
    on_mock.cluster.fail_next(OFFSET_COMMIT, *[14] * 40)
    with pytest.raises(BrokerUnavailable):
        await member.consumer.commit({TopicPartition(topic, 0): Position(1)})
    on_mock.cluster.clear(OFFSET_COMMIT)
    await member.consumer.commit({TopicPartition(topic, 0): Position(1)})
