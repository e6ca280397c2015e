from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.protocol.fetch import FetchRequest

from dispatcher.broker.base import (
    Message,
)
from dispatcher.broker.kafka.consumer import KafkaConsumer
from tests.broker.backends import WITHIN, Member, OnMock
from tests.broker.kafka.api_keys import FETCH
from tests.broker.kafka.library import ONE, ZERO, Cluster, Library, Listener


async def test_a_log_that_the_broker_cannot_read_is_said_and_tried_again(on_mock: OnMock) -> None:
    broker = await on_mock.connect()
    topic = await on_mock.topic(broker, 1)
    await broker.produce([Message(topic, b"0", partition=0)])
    member = Member(broker, [topic], on_mock.unique("group"))
    on_mock.cluster.fail_next(FETCH, 2, 2)
    await member.consumer.start()
    async with asyncio.timeout(WITHIN):
        while not member.consumer.stuck():
            await member.consumer.poll(0.1, 10)
    ((partition, batch),) = member.consumer.stuck().items()
    assert partition == (topic, 0)
    assert "CorruptRecordException (2)" in batch.reason
    assert not batch.skippable
    await member.poll_for(1)
    assert member.consumer.stuck() == {}


@pytest.mark.looptime
async def test_a_partition_that_may_not_be_read_any_more_stands_still_and_the_others_go_on() -> None:
    member = KafkaConsumer(Cluster(2), ["events"], "group", Listener())
    library = Library(2)
    member._consumer = library
    await member.take([ZERO, ONE])
    answers = [(0, 29, 0, -1, None, b""), (1, 0, 0, 0, None, b"")]

    async def send(node: Any, request: Any, **options: Any) -> Any:
        return SimpleNamespace(topics=[("events", answers)])

    request = FetchRequest(1, 1, 1, 1, [])
    await member._fetching.watched(library, send)(1, request)
    assert library.paused == {ZERO}
    (batch,) = member.stuck().values()
    assert not batch.skippable
    assert "READ on the topic events" in batch.reason
    answers[0] = (0, 0, 0, 0, None, b"")
    await member._fetching.watched(library, send)(1, request)
    assert member.stuck() == {}
