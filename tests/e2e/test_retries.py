"""Retries by way of the tiers: a real broker, a real process, short tiers."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from standardwebhooks import Webhook

from dispatcher.broker.base import TopicPartition
from dispatcher.broker.open import open_broker
from dispatcher.settings.groups import KafkaSettings
from tests.e2e.daemon import SECRET, Endpoint, envelope, eventually
from tests.e2e.test_delivery import Stage, broker_url, everything, stage

__all__ = ["broker_url", "stage"]

SHORT: dict[str, Any] = {"tiers": ["1s", "2s"], "horizon": "1s", "hold_limit": "10s"}
# A killed process that starts again has its partitions back by its name, without waiting for the end of a session. So none has to be short, and
# end because the machine is busy.
QUICK: dict[str, Any] = {"heartbeat_interval": "500ms"}


async def test_what_failed_waits_in_the_tiers_and_comes_when_it_is_due(stage: Stage) -> None:
    times: dict[str, list[float]] = {}

    async def second_time_lucky(request: web.Request) -> web.Response:
        seen = times.setdefault(request.headers["webhook-id"], [])
        seen.append(time.monotonic())
        return web.Response(status=200 if len(seen) == 2 else 503)

    async with Endpoint(second_time_lucky) as endpoint:
        events = dict(envelope(number, size=100) for number in range(200))
        daemon = stage.make([everything(endpoint, retry={"schedule": ["7s"], "jitter": 0})], retry=SHORT)
        await stage.publish(list(events.values()))
        await daemon.start()
        await eventually(lambda: sum(len(seen) == 2 for seen in times.values()) == 200, within=60)
        assert all(second - first >= 6.99 for first, second in times.values())
        assert {body for _, _, body in endpoint.requests} == set(events.values())
        assert await daemon.metric("retries_due_total", 'level="2s"') >= 200
        async with asyncio.timeout(60):
            while await daemon.metric("deliveries_in_flight"):
                await asyncio.sleep(0.05)
        assert await daemon.stop() == 0
        assert endpoint.ids.total() == 400


async def test_an_event_without_data_goes_by_way_of_a_tier_to_an_endpoint_and_to_the_dead_letters(
    stage: Stage,
) -> None:
    seen: list[str] = []

    async def second_time_lucky(request: web.Request) -> web.Response:
        seen.append(request.path)
        return web.Response(status=200 if request.path == "/hook" and seen.count("/hook") == 2 else 503)

    async with Endpoint(second_time_lucky) as endpoint:
        retry = {"schedule": ["3s"], "jitter": 0}
        daemon = stage.make(
            [
                everything(endpoint, retry=retry),
                everything(endpoint, retry=retry) | {"id": "sub_bad", "url": f"{endpoint.url}/bad"},
            ],
            retry=SHORT,
        )
        headers = {"specversion": "1.0", "id": "order 1", "source": "/shop", "type": "order/deleted v2"}
        await stage.publish([None], [(f"ce_{name}", value.encode()) for name, value in headers.items()])
        await daemon.start()
        async with asyncio.timeout(60):
            while not (
                await daemon.metric("dead_letters_total", 'reason="exhausted"')
                and await daemon.metric("deliveries_total", 'outcome="delivered"')
            ):
                await asyncio.sleep(0.1)
        assert await daemon.metric("deliveries_total", 'outcome="delivered"') == 1
        assert await daemon.metric("retries_due_total", 'level="2s"') >= 2
        assert await daemon.stop() == 0
        assert sorted(seen) == ["/bad", "/bad", "/hook", "/hook"]
        for _, received, body in endpoint.requests:
            assert body == b""
            assert "content-type" not in received
            assert received["webhook-id"] == "order%201"
            assert received["webhook-event-type"] == "order/deleted%20v2"
            with pytest.raises(json.JSONDecodeError):  # the signature holds; then the package reads JSON
                Webhook(SECRET).verify(body, received)
        broker = open_broker(stage.broker_url, KafkaSettings())
        await broker.connect()
        try:
            topic = f"{stage.name}.d.dead"
            records = [await broker.read(TopicPartition(topic, number), 0) for number in range(4)]
        finally:
            await broker.close()
        (dead,) = [record for record in records if record is not None]
        assert dead.value == b""
        assert dict(dead.headers)["event_id"] == b"order 1"


async def test_kill_9_with_retries_pending_loses_none_and_starts_none_anew(stage: Stage) -> None:
    failing = True
    attempts: dict[str, int] = {}

    async def recovers(request: web.Request) -> web.Response:
        id_ = request.headers["webhook-id"]
        attempts[id_] = attempts.get(id_, 0) + 1
        return web.Response(status=503 if failing else 200)

    async with Endpoint(recovers) as endpoint:
        events = dict(envelope(number) for number in range(300))
        daemon = stage.make(
            [everything(endpoint, retry={"schedule": ["4s"] * 20, "jitter": 0.2})], retry=SHORT, kafka=QUICK
        )
        await stage.publish(list(events.values()))
        await daemon.start()
        await eventually(lambda: len(attempts) == 300, within=60)
        async with asyncio.timeout(60):
            while await daemon.metric("deliveries_in_flight") > 200:  # the others wait in a tier
                await asyncio.sleep(0.05)
        await asyncio.sleep(1.5)
        for _ in range(2):
            await daemon.kill()
            await daemon.start()
            await asyncio.sleep(3)
        failing = False
        done = set(endpoint.ids)
        answered = endpoint.ids.copy()
        await eventually(lambda: all(endpoint.ids[id_] > answered[id_] for id_ in done), within=90)
        await asyncio.sleep(2)
        assert await daemon.metric("events_consumed_total", f'topic="{stage.topic}"') == 0, (
            "the events themselves were committed long ago"
        )
        assert await daemon.stop() == 0
        lines = daemon.log_lines("attempt failed")
        assert max(line["attempt"] for line in lines) >= 3, "attempts go on counting"


async def test_a_delivery_given_up_after_tiers_tells_all_its_attempts(stage: Stage) -> None:
    async def refuse(_request: web.Request) -> web.Response:
        return web.Response(status=500)

    async with Endpoint(refuse) as endpoint:
        daemon = stage.make(
            [everything(endpoint, retry={"schedule": ["2s", "3s"], "jitter": 0})], retry=SHORT
        )
        _, value = envelope(1)
        await stage.publish([value])
        await daemon.start()
        async with asyncio.timeout(60):
            while not await daemon.metric("dead_letters_total", 'reason="exhausted"'):
                await asyncio.sleep(0.1)
        assert await daemon.stop() == 0
        assert len(endpoint.requests) == 3
        assert [line["attempt"] for line in daemon.log_lines("attempt failed")] == [1, 2, 3]
        assert len({line["delivery_id"] for line in daemon.log_lines("attempt failed")}) == 1


@pytest.mark.kafka
async def test_an_endpoint_that_hangs_for_ever_does_not_keep_the_commit_from_moving_on(
    tmp_path: Path, kafka: str
) -> None:
    async def hang(_request: web.Request) -> web.Response:
        await asyncio.sleep(3600)
        return web.Response()

    stage = Stage(tmp_path, f"kafka://{kafka}")
    broker = open_broker(stage.broker_url, KafkaSettings())
    await broker.connect()

    async def uncommitted() -> int:
        (topic,) = [each for each in await broker.topics(stage.name) if each.name == stage.topic]
        return sum(each.latest - (each.committed or 0) for each in topic.partitions)

    try:
        async with Endpoint(hang) as hanging, Endpoint() as well:
            events = dict(envelope(number) for number in range(100))
            daemon = stage.make(
                [
                    everything(well),
                    {**everything(hanging, timeout="8s", max_in_flight=2), "id": "sub_hanging"},
                ],
                delivery={"max_queue_wait": "1h"},
                retry={"tiers": ["3s", "1h"], "horizon": "3s", "hold_limit": "3s"},
            )
            await stage.publish(list(events.values()))
            await daemon.start()
            await well.received(set(events), within=60)
            async with asyncio.timeout(120):
                while await uncommitted():
                    await asyncio.sleep(0.2)
            assert await daemon.metric("deliveries_parked_total", 'reason="hold_limit"') > 0
            assert await daemon.metric("deliveries_total", 'outcome="delivered"') == 100
    finally:
        await broker.close()
        if stage.daemon is not None:
            await stage.daemon.kill()
