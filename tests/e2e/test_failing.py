"""Who is failing, of two replicas on a real Kafka: what one of them learns of an endpoint, the other one hears."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from dispatcher.broker.base import Message
from tests.e2e.daemon import Daemon, Endpoint, envelope, publish

pytestmark = [pytest.mark.kafka]

WITHIN = 60.0
PARTITIONS = 2


class Pair:
    """Two replicas, each with a partition of the events, and an endpoint that is well or not."""

    def __init__(self, replicas: list[Daemon], topic: str) -> None:
        self.replicas = replicas
        self.topic = topic
        self.well = True

    async def answer(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.well else 503)

    async def publish(self, number: int, partition: int) -> str:
        id_, event = envelope(number)
        await publish(
            self.replicas[0].broker, [Message(self.topic, event, id_.encode(), partition=partition)]
        )
        return id_

    async def failing(self) -> dict[str, Any] | None:
        status, found = await self.replicas[0].call("GET", "/v1/failing")
        assert status == 200, found
        return found["failing"][0] if found["failing"] else None

    async def shared_out(self) -> None:
        """Wait until each of them reads a partition."""
        async with asyncio.timeout(WITHIN):
            while True:
                _, cluster = await self.replicas[0].call("GET", "/v1/cluster")
                shares = [each["partitions"].get(self.topic, []) for each in cluster["replicas"]]
                if sorted(map(len, shares)) == [1, 1]:
                    return
                await asyncio.sleep(0.2)


@pytest.fixture
async def pair(tmp_path: Path, kafka: str, unique: Callable[[str], str]) -> AsyncIterator[Pair]:
    topic, group, prefix = unique("events"), unique("group"), f"{unique('own')}."
    replicas = []
    for number in range(2):
        folder = tmp_path / f"replica-{number}"
        folder.mkdir()
        replicas.append(
            Daemon(
                folder,
                f"kafka://{kafka}",
                [],
                group=group,
                topics={"events": [topic], "prefix": prefix, "partitions": PARTITIONS},
                kafka={"member_name": f"dispatcher-{number}"},
            )
        )
    try:
        for daemon in replicas:
            await daemon.start(ready=False)
        for daemon in replicas:
            await daemon.ready()
        made = Pair(replicas, topic)
        await made.shared_out()
        yield made
    finally:
        for daemon in replicas:
            await daemon.kill()


async def test_one_that_another_replica_delivers_to_again_is_failing_no_more(pair: Pair) -> None:
    """A replica that failed last, and has nothing more for the endpoint, never learns by itself that it is well."""
    pair.well = False
    async with Endpoint(pair.answer) as endpoint:
        document = {
            "id": "sub",
            "url": endpoint.url,
            "event_types": ["test.*"],
            "retry": {"schedule": [], "jitter": 0},
        }
        status, answer = await pair.replicas[0].call("POST", "/v1/subscriptions", document)
        assert status == 201, answer
        async with asyncio.timeout(WITHIN):
            for daemon in pair.replicas:
                while not await daemon.metric("subscriptions", 'status="active"'):
                    await asyncio.sleep(0.05)
            for partition in range(PARTITIONS):
                await pair.publish(1 + partition, partition)
            while (found := await pair.failing()) is None or len(found["replicas"]) < PARTITIONS:
                await asyncio.sleep(0.2)
            pair.well = True
            last = await pair.publish(3, 0)
            mended = time.time()
            await endpoint.received({last}, WITHIN)
            while await pair.failing() is not None:
                await asyncio.sleep(0.2)
            _, cluster = await pair.replicas[0].call("GET", "/v1/cluster")
            assert {each["subscriptions_in_trouble"] for each in cluster["replicas"]} == {0}
            for daemon in pair.replicas:
                _, health = await daemon.call("GET", "/v1/subscriptions/sub/health")
                assert health["failing_since"] is None
            # What fails now is another outage: it has failed since then.
            pair.well = False
            await pair.publish(4, 1)
            while (again := await pair.failing()) is None:
                await asyncio.sleep(0.2)
    assert datetime.fromisoformat(again["failing_since"]).timestamp() >= mended
