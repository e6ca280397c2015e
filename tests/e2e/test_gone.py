"""What is decided about subscriptions at run time, by the real daemon, and kept."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from dispatcher.broker.base import Message
from tests.e2e.daemon import Daemon, Endpoint, envelope, eventually, publish
from tests.e2e.test_delivery import Stage, broker_url, stage

__all__ = ["broker_url", "stage"]

WITHIN = 90.0


async def test_an_endpoint_that_is_gone_stays_disabled_after_a_restart(tmp_path: Path) -> None:
    async def gone(_request: web.Request) -> web.Response:
        return web.Response(status=410)

    async with Endpoint(gone) as endpoint, Endpoint() as healthy:
        subscriptions = [
            {"id": "left", "url": f"{endpoint.url}/hook", "event_types": ["test.*"]},
            {"id": "here", "url": f"{healthy.url}/hook", "event_types": ["test.*"]},
        ]
        broker = f"sqlite:///{tmp_path}/log.db"
        daemon = Daemon(tmp_path, broker, subscriptions)
        ids = []
        try:
            for number in range(2):
                event_id, event = envelope(number)
                ids.append(event_id)
                await publish(broker, [Message("events", event)])
                await daemon.start()
                await healthy.received(set(ids), within=60)
                await eventually(
                    lambda: any(
                        line["subscription"] == "left" for line in daemon.log_lines("subscription disabled")
                    ),
                    within=60,
                )
                assert await daemon.metric("subscriptions", 'status="disabled"') == 1
                assert await daemon.stop() == 0
            assert len(daemon.log_lines("subscription disabled")) == 1
            assert list(endpoint.ids) == ids[:1]
            # A changed entry starts over.
            daemon.write_subscriptions([{**subscriptions[0], "timeout": "3s"}, subscriptions[1]])
            event_id, event = envelope(2)
            await publish(broker, [Message("events", event)])
            await daemon.start()
            await endpoint.received({event_id}, within=60)
            assert await daemon.stop() == 0
        finally:
            await daemon.kill()


@pytest.mark.parametrize("meant", [True, False], ids=["gone", "late"])
async def test_a_410_on_a_used_connection_is_confirmed_before_it_disables_anything(
    stage: Stage, *, meant: bool
) -> None:
    """The endpoint keeps its connection, and says 410 on it from the second request on; on another one only if it means it."""
    peers: list[tuple[str, Any]] = []

    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        peer = request.transport.get_extra_info("peername")
        used = any(known == peer for _, known in peers)
        peers.append((request.headers["webhook-id"], peer))
        return web.Response(status=410 if used or (meant and len(peers) > 1) else 200)

    async with Endpoint(answer) as endpoint:
        daemon = stage.make([{"id": "sub", "url": f"{endpoint.url}/hook", "event_types": ["test.*"]}])
        first, event = envelope(1)
        await daemon.start()
        await daemon.post_event(event)
        await endpoint.received({first}, WITHIN)
        second, event = envelope(2)
        await daemon.post_event(event)
        outcome = 'outcome="dead_lettered"' if meant else 'outcome="delivered"'
        async with asyncio.timeout(WITHIN):
            while await daemon.metric("deliveries_total", outcome) < (1 if meant else 2):
                await asyncio.sleep(0.05)
        # The same request once more, on a connection of its own: one attempt for all that is counted and kept.
        assert [id_ for id_, _ in peers] == [first, second, second]
        assert len({peer for _, peer in peers}) == 2
        assert len(daemon.log_lines("subscription disabled")) == meant
        assert await daemon.metric("subscriptions", 'status="disabled"') == meant
        assert await daemon.total("attempts_total") == 2
        assert await daemon.stop() == 0


async def test_an_endpoint_that_only_ever_fails_is_given_up_and_everybody_told_and_a_restart_keeps_it(
    stage: Stage,
) -> None:
    async def fail(_request: web.Request) -> web.Response:
        return web.Response(status=500)

    async with Endpoint(fail) as failing, Endpoint() as watching:
        subscriptions: list[dict[str, Any]] = [
            {
                "id": "failing",
                "url": f"{failing.url}/hook",
                "event_types": ["test.*"],
                "retry": {"schedule": ["500ms"] * 100, "jitter": 0},
            },
            {"id": "well", "url": f"{watching.url}/well", "event_types": ["test.*"]},
            {
                "id": "watching",
                "url": f"{watching.url}/told",
                "event_types": ["dispatcher.subscription.disabled"],
            },
        ]
        daemon = stage.make(subscriptions, retry={"disable_after": "3s"}, api={"operational_events": True})

        async def shown() -> tuple[str, str | None]:
            status, body = await daemon.get("/v1/subscriptions/failing")
            assert status == 200, body
            view = orjson.loads(body)
            return view["status"], view["reason"]

        first, event = envelope(1)
        await stage.publish([event])
        await daemon.start()
        await eventually(lambda: any(path == "/told" for path, _, _ in watching.requests), WITHIN)
        [told] = [orjson.loads(body) for path, _, body in watching.requests if path == "/told"]
        assert told["type"] == "dispatcher.subscription.disabled"
        assert told["data"]["subscription_id"] == "failing"
        assert told["data"]["reason"] == "failing"
        assert await shown() == ("disabled", "failing")
        assert await daemon.metric("subscriptions", 'status="disabled"') == 1
        [line] = daemon.log_lines("subscription disabled")
        assert (line["subscription"], line["reason"]) == ("failing", "failing")
        [line] = daemon.log_lines("nothing but failures")
        assert line["last_result"] == "status 500"
        assert line["seconds"] >= 3
        # What it was owed is not just dropped.
        async with asyncio.timeout(WITHIN):
            while not await daemon.metric("dead_letters_total", 'reason="disabled"'):
                await asyncio.sleep(0.05)
        assert await daemon.stop() == 0
        attempts = failing.ids[first]
        assert attempts == len(daemon.log_lines("attempt failed"))

        second, event = envelope(2)
        await stage.publish([event])
        await daemon.start()
        await watching.received({second}, WITHIN)
        async with asyncio.timeout(WITHIN):
            while not await daemon.metric("deliveries_total", 'outcome="dropped_disabled"'):
                await asyncio.sleep(0.05)
        assert await shown() == ("disabled", "failing")
        assert await daemon.metric("subscriptions", 'status="disabled"') == 1
        assert await daemon.stop() == 0
        assert failing.ids == {first: attempts}
        assert len(daemon.log_lines("subscription disabled")) == 1
        assert watching.ids[first] == 1, "the restart sent nothing again"
