"""What only Kafka has: security, transactions, compression, brokers that fail, a client library that dies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from dispatcher.broker.base import (
    BrokerUnavailable,
    Message,
    Position,
    TopicPartition,
)
from tests.broker.backends import WITHIN, Member, OnKafka, OnMock
from tests.broker.kafka.secured import Secured
from tests.kafka.mock import MockCluster

# Security, on a real broker.


@pytest.mark.kafka
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_everything_works_over_tls_with_each_sasl_mechanism(
    secured: Secured, unique: Callable[[str], str], mechanism: str
) -> None:
    backend = OnKafka(unique, secured.cluster.bootstrap)
    try:
        broker = await backend.connect(secured.settings(mechanism))
        topic = await backend.topic(broker)
        await broker.produce([Message(topic, b"v", partition=0)])
        member = Member(broker, [topic], unique("group"))
        await member.consumer.start()
        await member.poll_for(1)
        await member.consumer.commit({TopicPartition(topic, 0): Position(1)})
        record = await broker.read(TopicPartition(topic, 0), 0)
        assert record is not None
        assert record.value == b"v"
    finally:
        await backend.close_all()


# Writing.


async def test_close_ends_calls_that_wait_for_a_broker_that_is_away(unique: Callable[[str], str]) -> None:
    with MockCluster() as cluster:
        backend = OnMock(unique, cluster)
        broker = await backend.connect()
        topic = await backend.topic(broker)
        await broker.produce([Message(topic, b"v", partition=0)])
        cluster.down()
        calls = [
            asyncio.get_running_loop().create_task(broker.produce([Message(topic, b"v", partition=0)]))
            for _ in range(3)
        ]
        await asyncio.sleep(0.3)
        await asyncio.wait_for(backend.close(broker), WITHIN)
        for call in calls:
            with pytest.raises(BrokerUnavailable):
                await asyncio.wait_for(call, 1)


# Consuming.
