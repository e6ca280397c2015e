"""What is decided about subscriptions at run time, by the real daemon, and kept."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from dispatcher.broker.base import Message
from tests.e2e.daemon import Daemon, Endpoint, envelope, eventually, publish


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
