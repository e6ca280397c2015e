"""What the API says of endpoints, by the real daemon."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from dispatcher.broker.base import Message
from tests.e2e.daemon import Daemon, Endpoint, envelope, eventually, publish

WITHIN = 60.0


async def health(daemon: Daemon, subscription: str) -> dict[str, Any]:
    status, body = await daemon.get(f"/v1/subscriptions/{subscription}/health")
    assert status == 200, body
    shown: dict[str, Any] = orjson.loads(body)
    return shown


async def test_an_endpoint_that_fails_is_shown_as_failing_and_its_neighbour_as_well(tmp_path: Path) -> None:
    async def failing(_request: web.Request) -> web.Response:
        return web.Response(status=500)

    async with Endpoint(failing) as ill, Endpoint() as well:
        subscriptions = [
            {"id": "ill", "url": ill.url, "event_types": ["*"]},
            {"id": "well", "url": well.url, "event_types": ["*"]},
        ]
        broker = f"sqlite:///{tmp_path}/log.db"
        daemon = Daemon(tmp_path, broker, subscriptions, delivery={"breaker_threshold": 0.8})
        began = time.time()
        events = [envelope(number) for number in range(60)]
        await publish(broker, [Message("events", event) for _, event in events])
        try:
            await daemon.start()
            await well.received({id_ for id_, _ in events}, WITHIN)
            await eventually(lambda: bool(daemon.log_lines("breaker opened")), WITHIN)
            shown = await health(daemon, "ill")
            assert shown["success_rate"] == 0.0
            assert shown["breaker"] in ("open", "half-open")
            assert shown["last_failure"] == "status 500"
            assert shown["last_failure_at"] is not None
            assert shown["latency_mean"] is None
            shown = await health(daemon, "well")
            assert shown["success_rate"] == 1.0
            assert shown["breaker"] == "closed"
            assert 0 < shown["latency_mean"] <= time.time() - began
            assert shown["latency_p95"] >= shown["latency_mean"] / 2
            assert (shown["last_failure"], shown["last_failure_at"]) == (None, None)
            assert await daemon.stop() == 0
        finally:
            await daemon.kill()
