"""A broker that is lost and comes back: what the outbox had written is not written again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest

from dispatcher.broker.base import Message, TopicSpec
from dispatcher.broker.open import open_broker
from dispatcher.delivery.outbox import Outbox
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import KafkaSettings
from tests.kafka.fencing import fence
from tests.kafka.server import Cluster

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

GIVES_UP = 3.0  # seconds after which a write without acknowledgement would be given up


async def values(servers: str, topic: str, partitions: int) -> Counter[bytes | None]:
    """What is in it."""
    broker = open_broker(f"kafka://{servers}", KafkaSettings())
    await broker.connect()
    found: Counter[bytes | None] = Counter()
    try:
        for number in range(partitions):
            reader = broker.reader(topic, number)
            await reader.start()
            while not reader.caught_up:
                found.update(record.value for record in await reader.read(1.0, 1000))
            await reader.stop()
    finally:
        await broker.close()
    return found


@pytest.mark.parametrize("away", [GIVES_UP / 3, GIVES_UP * 3])
async def test_a_broker_killed_while_retries_are_written_gets_each_of_them_once(
    kafka_cluster: Callable[..., Cluster], away: float
) -> None:
    cluster = kafka_cluster(1)
    patient = open_broker(f"kafka://{cluster.bootstrap}", KafkaSettings())
    await patient.connect()
    topics = [TopicSpec("one", 4, 1), TopicSpec("two", 4, 1)]
    assert await patient.ensure_topics(topics, create=True) == []
    await patient.close()
    settings = KafkaSettings(request_timeout=GIVES_UP, session_timeout=6, fetch_max_wait=0.5)
    broker = open_broker(f"kafka://{cluster.bootstrap}", settings)
    await broker.connect()
    tasks = Tasks()
    try:
        outbox = Outbox(broker.produce)
        tasks.start(outbox.run(), "outbox")
        written: Counter[int] = Counter()

        def put(first: int, count: int) -> None:
            for number in range(first, first + count):
                message = Message(("one", "two")[number % 2], b"%d" % number, b"%d" % number)
                outbox.put(message, partial(written.update, [number]))

        put(0, 2000)
        while len(written) < 1500:
            await asyncio.sleep(0)
        # Some of these are on their way, and some of them have been written, when it dies.
        put(2000, 5000)
        while len(written) < 3000:
            await asyncio.sleep(0)
        cluster.nodes[0].kill()
        put(7000, 1000)
        await asyncio.sleep(away)
        await asyncio.to_thread(cluster.nodes[0].start)
        async with asyncio.timeout(120):
            while len(outbox):
                await asyncio.sleep(0.05)
        assert written == Counter(range(8000)), "each callback was called once"
        found = await values(cluster.bootstrap, "one", 4) + await values(cluster.bootstrap, "two", 4)
        assert found == Counter(b"%d" % number for number in range(8000)), "and each is there once"
    finally:
        await tasks.stop()
        await broker.close()


async def test_a_fenced_partition_repeats_nothing_that_another_one_has_taken(
    kafka: str, unique: Callable[[str], str]
) -> None:
    broker = open_broker(f"kafka://{kafka}", KafkaSettings())
    await broker.connect()
    topic = unique("topic")
    tasks = Tasks()
    try:
        assert await broker.ensure_topics([TopicSpec(topic, 4)], create=True) == []
        outbox = Outbox(broker.produce)
        tasks.start(outbox.run(), "outbox")
        for number in range(100):
            outbox.put(Message(topic, b"%d" % number, b"%d" % number, partition=number % 4), lambda: None)
        while len(outbox):
            await asyncio.sleep(0.02)
        await fence(kafka, topic, 2)
        for number in range(100, 200):
            outbox.put(Message(topic, b"%d" % number, b"%d" % number, partition=number % 4), lambda: None)
        while len(outbox):
            await asyncio.sleep(0.02)
        found = await values(kafka, topic, 4)
        found.pop(None)  # the impostor's
        assert found == Counter(b"%d" % number for number in range(200))
    finally:
        await tasks.stop()
        await broker.close()
