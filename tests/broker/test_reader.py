"""Readers of whole partitions: the same questions to every broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dispatcher.broker.base import (
    Broker,
    Message,
    Reader,
    TopicPartition,
    TopicSpec,
)
from tests.broker.backends import WITHIN, Backend, OnMock, OnSqlite, administered
from tests.broker.test_contract import numbered, numbers


async def started(broker: Broker, topic: str, partition: int = 0) -> Reader:
    reader = broker.reader(topic, partition)
    async with asyncio.timeout(WITHIN):
        await reader.start()
    return reader


async def read_until(
    reader: Reader, done: Callable[[list[bytes | None]], object], limit: int = 1000
) -> list[bytes | None]:
    values: list[bytes | None] = []
    async with asyncio.timeout(WITHIN):
        while not done(values):
            records = await reader.read(0.2, limit)
            assert len(records) <= limit
            values += [record.value for record in records]
    return values


async def test_a_reader_reads_a_partition_from_its_first_record_and_follows_it(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    await broker.produce([*numbered(topic, 300, 1), *numbered(topic, 10, 2)])
    reader = await started(broker, topic, 1)
    before = reader.caught_up
    assert not before
    assert reader.problem is None
    assert numbers(await read_until(reader, lambda values: len(values) >= 300, 70)) == list(range(300))
    assert reader.caught_up
    await broker.produce([Message(topic, b"7000", b"key", [("kind", b"x")], 1)])
    assert numbers(await read_until(reader, len)) == [7000]
    assert reader.caught_up
    assert len(await reader.read(0.05, 10)) == 0


async def test_an_empty_partition_is_caught_up_with_at_once(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    reader = await started(broker, topic)
    assert reader.caught_up
    await broker.produce(numbered(topic, 1))
    assert numbers(await read_until(reader, len)) == [0]


async def test_what_is_written_after_the_start_is_not_waited_for(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    await broker.produce(numbered(topic, 5))
    reader = await started(broker, topic)
    await broker.produce(numbered(topic, 500))
    values = await read_until(reader, lambda _: reader.caught_up, 5)
    assert 5 <= len(values) <= 10
    await read_until(reader, lambda more: len(values) + len(more) == 505)


async def test_readers_are_independent_of_each_other_and_of_groups(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    await broker.produce(numbered(topic, 20))
    other = broker if isinstance(backend, OnSqlite) else await backend.connect()
    first, second = await started(broker, topic), await started(other, topic)
    for reader in (first, second):
        assert numbers(await read_until(reader, lambda values: len(values) >= 20)) == list(range(20))
    await first.stop()
    await other.produce([Message(topic, b"20", partition=0)])
    assert numbers(await read_until(second, len)) == [20]
    assert await first.read(0.05, 10) == ()


@administered
async def test_a_partition_whose_beginning_is_gone_is_read_from_what_is_left(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    await broker.produce(numbered(topic, 30))
    await backend.delete_before(broker, TopicPartition(topic, 0), 12)
    reader = await started(broker, topic)
    assert numbers(await read_until(reader, lambda _: reader.caught_up)) == list(range(12, 30))


@administered
async def test_a_partition_of_which_all_is_gone_is_caught_up_with(backend: Backend) -> None:
    broker = await backend.connect()
    topic = await backend.topic(broker)
    await broker.produce(numbered(topic, 30))
    await backend.delete_before(broker, TopicPartition(topic, 0), 30)
    reader = await started(broker, topic)
    assert await read_until(reader, lambda _: reader.caught_up) == []


async def test_a_reader_waits_for_its_topic(backend: Backend) -> None:
    broker = await backend.connect()
    topic = backend.unique("topic")
    reader = broker.reader(topic)
    starting = asyncio.get_running_loop().create_task(reader.start())
    async with asyncio.timeout(WITHIN):
        while "does not exist" not in (reader.problem or ""):
            await asyncio.sleep(0.02)
        if isinstance(backend, OnMock):
            backend.cluster.create_topic(topic, 1)
        else:
            await broker.ensure_topics([TopicSpec(topic, 1)], create=True)
        await starting
    await broker.produce(numbered(topic, 1))
    assert numbers(await read_until(reader, len)) == [0]
