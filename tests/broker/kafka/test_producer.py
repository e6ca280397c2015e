"""Writing to Kafka: errors, fenced producers, brokers that die."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from dispatcher.broker.base import (
    BrokerRefused,
    BrokerUnavailable,
    Message,
    MessageTooLarge,
    TopicPartition,
)
from dispatcher.broker.kafka import producer as kafka_producer
from tests.broker.backends import QUICK, WITHIN, Member, OnKafka, OnMock, eventually, produced
from tests.broker.kafka.api_keys import PRODUCE
from tests.kafka.fencing import fence
from tests.kafka.mock import MockCluster
from tests.kafka.server import Cluster


@pytest.mark.parametrize("compression", ["none", "gzip", "lz4", "snappy", "zstd"])
async def test_every_compression_can_be_written_and_read(on_kafka: OnKafka, compression: str) -> None:
    broker = await on_kafka.connect(QUICK.model_copy(update={"compression": compression}))
    topic = await on_kafka.topic(broker)
    await broker.produce([Message(topic, b"%d" % n + b"." * 1000, partition=0) for n in range(1000)])
    member = Member(broker, [topic], on_kafka.unique("group"))
    await member.consumer.start()
    await member.poll_for(1000)
    assert [int((value or b"").rstrip(b".")) for value in member.values] == list(range(1000))


@pytest.mark.parametrize(
    "codes",
    [
        pytest.param((6, 6), id="not leader"),
        pytest.param((7,), id="timed out"),
        pytest.param((19, 20), id="not enough replicas"),
        pytest.param((5, 3), id="leader not available, unknown topic"),
    ],
)
async def test_passing_errors_of_the_broker_are_tried_again(on_mock: OnMock, codes: tuple[int, ...]) -> None:
    broker = await on_mock.connect()
    topic = await on_mock.topic(broker)
    await broker.produce([Message(topic, b"before", partition=0)])
    on_mock.cluster.fail_next(PRODUCE, *codes)
    await asyncio.wait_for(broker.produce([Message(topic, b"after", partition=0)]), WITHIN)
    record = await broker.read(TopicPartition(topic, 0), 1)
    assert record is not None
    assert record.value == b"after"


async def test_a_write_that_is_not_allowed_is_refused(on_mock: OnMock) -> None:
    broker = await on_mock.connect()
    topic = await on_mock.topic(broker)
    on_mock.cluster.fail_next(PRODUCE, 29)
    with pytest.raises(BrokerRefused):
        await broker.produce([Message(topic, b"v", partition=0)])
    await broker.produce([Message(topic, b"v", partition=0)])


# 59 is what brokers before 2.5 said once they had forgotten a producer; since then they take whatever number comes next.
@pytest.mark.parametrize("code", [45, 59], ids=["out of order", "unknown producer"])
async def test_lost_sequence_numbers_cost_a_fresh_producer_and_no_record(on_mock: OnMock, code: int) -> None:
    broker: Any = await on_mock.connect()
    topic = await on_mock.topic(broker)
    await broker.produce([Message(topic, b"0", partition=0)])
    producer = broker._producer._live
    on_mock.cluster.fail_next(PRODUCE, code)
    await broker.produce([Message(topic, b"1", partition=0)])
    assert broker._producer._live is not producer
    record = await broker.read(TopicPartition(topic, 0), 1)
    assert record is not None
    assert record.value == b"1"


@pytest.mark.parametrize(
    ("code", "named"), [(56, "can't use its disk"), (19, "too few replicas"), (20, "too few replicas")]
)
async def test_what_a_broker_refuses_for_now_is_named_while_it_does(
    on_mock: OnMock, code: int, named: str
) -> None:
    broker = await on_mock.connect()
    topic = await on_mock.topic(broker)
    on_mock.cluster.fail_next(PRODUCE, *[code] * 12)  # three seconds of it
    call = asyncio.get_running_loop().create_task(broker.produce([Message(topic, b"0", partition=0)]))
    await eventually(lambda: broker.problem is not None)
    assert f"writing to {topic}-0: " in (broker.problem or "")
    assert named in (broker.problem or "")
    await call
    assert broker.problem is None
    record = await broker.read(TopicPartition(topic, 0), 0)
    assert record is not None
    assert await broker.read(TopicPartition(topic, 0), 1) is None, (
        "repeated by the library, not written twice"
    )


async def test_a_lost_authorization_is_refused_with_what_to_do(on_mock: OnMock) -> None:
    broker = await on_mock.connect()
    topic = await on_mock.topic(broker)
    on_mock.cluster.fail_next(PRODUCE, 29)
    with pytest.raises(BrokerRefused, match=rf"writing to {topic}-0: .*allow this user READ, WRITE"):
        await broker.produce([Message(topic, b"0", partition=0)])
    await broker.produce([Message(topic, b"0", partition=0)])
    assert broker.problem is None


async def test_a_fenced_producer_is_replaced_and_told_of(
    on_mock: OnMock, capsys: pytest.CaptureFixture[str]
) -> None:
    broker: Any = await on_mock.connect()
    topic = await on_mock.topic(broker)
    await broker.produce([Message(topic, b"0", partition=0)])
    producer = broker._producer._live
    on_mock.cluster.fail_next(PRODUCE, 47)
    await broker.produce([Message(topic, b"1", partition=0)])
    assert broker._producer._live is not producer
    assert "another producer was given its id" in capsys.readouterr().out
    assert broker.problem is None


async def test_a_producer_that_is_fenced_again_and_again_is_named_until_one_is_not(
    on_mock: OnMock,
) -> None:
    broker: Any = await on_mock.connect()
    topic = await on_mock.topic(broker)
    await broker.produce([Message(topic, b"0", partition=0)])
    on_mock.cluster.fail_next(PRODUCE, *[47] * 4)
    call = asyncio.get_running_loop().create_task(broker.produce([Message(topic, b"1", partition=0)]))
    await eventually(lambda: broker.problem is not None)
    assert f"writing to {topic}-0: " in broker.problem
    assert "another producer was given its id" in broker.problem
    await call
    assert broker.problem is None
    record = await broker.read(TopicPartition(topic, 0), 1)
    assert record is not None
    assert record.value == b"1"


async def test_a_producer_that_a_real_broker_fences_is_replaced_and_every_record_written_once(
    on_kafka: OnKafka,
) -> None:
    broker: Any = await on_kafka.connect()
    topic = await on_kafka.topic(broker, partitions=2)
    await broker.produce([Message(topic, b"0", partition=0), Message(topic, b"0", partition=1)])
    producer = broker._producer._live
    await fence(on_kafka.address, topic, 0)
    await broker.produce([Message(topic, b"%d" % n, partition=n % 2) for n in range(1, 100)])
    assert broker._producer._live is not producer
    assert broker.problem is None
    member = Member(broker, [topic], on_kafka.unique("group"))
    await member.consumer.start()
    await member.poll_for(102)  # the impostor's is among them
    assert Counter(member.values) == Counter([b"0", None, *(b"%d" % n for n in range(100))])
    await member.consumer.stop()


async def test_a_bad_message_fails_its_own_call_only(on_mock: OnMock) -> None:
    broker = await on_mock.connect()
    topic = await on_mock.topic(broker)
    bad: Any = Message(topic, "text", partition=0)  # type: ignore[arg-type] # the mistake
    good = [Message(topic, b"v", partition=0)]
    outcomes = await asyncio.gather(
        broker.produce(good), broker.produce([bad]), broker.produce(good), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [type(None), TypeError, type(None)]


async def test_a_call_given_up_by_its_caller_blocks_nobody(on_mock: OnMock) -> None:
    broker = await on_mock.connect()
    topic = await on_mock.topic(broker)
    call = asyncio.get_running_loop().create_task(
        broker.produce([Message(topic, b"." * 1000, partition=0) for _ in range(2000)])
    )
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait_for(broker.produce([Message(topic, b"last", partition=0)]), WITHIN)


async def test_a_value_beyond_any_limit_is_not_even_sent(
    on_mock: OnMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_producer, "LARGEST_MESSAGE", 1000)
    broker = await on_mock.connect()
    topic = await on_mock.topic(broker)
    outcomes = await asyncio.gather(
        broker.produce([Message(topic, bytes(1001), partition=0)]),
        broker.produce([Message(topic, bytes(1000), partition=0)]),
        return_exceptions=True,
    )
    assert isinstance(outcomes[0], MessageTooLarge)
    assert outcomes[1] is None


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_broker_of_three_may_die_in_the_middle_of_writing(
    kafka_cluster: Callable[..., Cluster], unique: Callable[[str], str]
) -> None:
    cluster = await asyncio.to_thread(kafka_cluster, 3)
    backend = OnKafka(unique, cluster.bootstrap)
    try:
        broker = await backend.connect(QUICK.model_copy(update={"request_timeout": 90.0}))
        topic = await backend.topic(broker, partitions=6)
        member = Member(broker, [topic], unique("group"))
        await member.consumer.start()

        async def write() -> None:
            for n in range(200):
                await broker.produce([Message(topic, b"%d" % n, b"key %d" % k) for k in range(20)])

        async with asyncio.timeout(300), member.polling(), asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(write())
            await asyncio.sleep(0.5)
            await asyncio.to_thread(cluster.nodes[1].kill)
            await writing
            await eventually(lambda: len({(r.key, r.value) for r in member.all}) == 4000)
        assert len({(place, r.offset) for place, r in member.placed}) == 4000, (
            "the idempotent producer wrote each once"
        )
    finally:
        await backend.close_all()


async def test_a_batch_stuck_in_a_retired_producer_does_not_block_its_partition(
    unique: Callable[[str], str],
) -> None:
    with MockCluster() as cluster:
        backend = OnMock(unique, cluster)
        broker: Any = await backend.connect(QUICK.model_copy(update={"request_timeout": 1.0}))
        try:
            topic = await backend.topic(broker)
            await broker.produce([Message(topic, b"0", partition=0)])
            cluster.down()
            with pytest.raises(BrokerUnavailable):
                await broker.produce([Message(topic, b"stuck", partition=0)])
            broker._producer._retire(broker._producer._live)
            await eventually(lambda: not broker._producer._lanes[topic, 0].busy)
            cluster.up()
            await eventually(lambda: broker.problem is None)
            await produced(broker, Message(topic, b"1", partition=0))
        finally:
            await backend.close_all()
