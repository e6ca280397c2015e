"""A daemon with a collector: the producer's trace goes on through a retry, and the log names the spans that arrive."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import web

from dispatcher.broker.base import Message
from tests.e2e.daemon import Daemon, Endpoint, envelope, publish
from tests.e2e.test_delivery import everything
from tests.telemetry.collector import over_http

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


async def test_a_daemon_continues_the_producers_trace(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/log.db"
    event_id, body = envelope(1)
    await publish(url, [Message("events", body, headers=[("traceparent", f"00-{TRACE}-{SPAN}-01".encode())])])
    failures = iter([503])

    async def fail_once(_: web.Request) -> web.Response:
        return web.Response(status=next(failures, 200))

    with over_http() as collector:
        async with Endpoint(fail_once) as endpoint:
            daemon = Daemon(
                tmp_path,
                url,
                [{**everything(endpoint), "retry": {"schedule": ["100ms"]}}],
                tracing={"enabled": True, "endpoint": collector.url, "ratio": 0, "propagate": "attempt"},
            )
            await daemon.start()
            try:
                await endpoint.received({event_id}, within=30)
                while len(endpoint.requests) < 2:
                    await asyncio.sleep(0.02)
            finally:
                assert await daemon.stop() == 0  # and what is left is flushed
        first, second, delivery = collector.spans(3)
    assert {span.trace_id for span in (first, second, delivery)} == {TRACE}
    assert delivery.parent_id == SPAN
    assert first.parent_id == second.parent_id == delivery.span_id
    assert [name for name, _ in first.events] == ["connect", "send", "first_byte"]
    assert [name for name, _ in second.events] == ["send", "first_byte"]  # on the same connection
    (line,) = daemon.log_lines("attempt failed")
    assert (line["trace_id"], line["span_id"]) == (TRACE, first.span_id)
    assert [headers["traceparent"] for _, headers, _ in endpoint.requests] == [
        f"00-{TRACE}-{span.span_id}-01" for span in (first, second)
    ]
