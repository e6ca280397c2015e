"""A daemon with a collector: the producer's trace goes on through a retry, and the log names the spans that arrive."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from dispatcher.broker.base import Message
from tests.e2e.daemon import Daemon, Endpoint, envelope, eventually, publish
from tests.e2e.test_delivery import everything
from tests.ports import free_port
from tests.telemetry.collector import over_http

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
COLLECTOR = os.environ.get("DISPATCHER_TEST_COLLECTOR")


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


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.skipif(
    COLLECTOR is None, reason="NOT TESTED: a real collector; DISPATCHER_TEST_COLLECTOR=PATH does"
)
async def test_the_projects_own_collector_takes_the_spans(tmp_path: Path, protocol: str) -> None:
    assert COLLECTOR is not None
    url = f"sqlite:///{tmp_path}/log.db"
    event_id, body = envelope(1)
    await publish(url, [Message("events", body, headers=[("traceparent", f"00-{TRACE}-{SPAN}-01".encode())])])
    ports = {"http": free_port(), "grpc": free_port()}
    settings = tmp_path / "collector.yaml"
    settings.write_text(
        yaml.safe_dump(
            {
                "receivers": {
                    "otlp": {
                        "protocols": {name: {"endpoint": f"127.0.0.1:{port}"} for name, port in ports.items()}
                    }
                },
                "exporters": {"debug": {"verbosity": "detailed"}},
                "service": {
                    "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["debug"]}},
                    "telemetry": {"metrics": {"level": "none"}},
                },
            }
        )
    )
    log = tmp_path / "collector.log"
    with log.open("wb") as output:
        collector = await asyncio.create_subprocess_exec(
            COLLECTOR, "--config", str(settings), stdout=output, stderr=output
        )
    try:
        await eventually(lambda: "Everything is ready" in log.read_text(), 60, log.read_text)
        async with Endpoint() as endpoint:
            daemon = Daemon(
                tmp_path,
                url,
                [everything(endpoint)],
                tracing={
                    "enabled": True,
                    "endpoint": f"http://127.0.0.1:{ports['grpc' if protocol == 'grpc' else 'http']}",
                    "protocol": protocol,
                },
            )
            await daemon.start()
            await endpoint.received({event_id}, within=30)
            assert await daemon.stop() == 0
        await eventually(lambda: "deliver events" in log.read_text(), 30, log.read_text)
    finally:
        collector.terminate()
        await collector.wait()
    said = log.read_text()
    for expected in (
        rf"Trace ID +: {TRACE}",
        rf"Parent ID +: {SPAN}",
        r"Name +: deliver events",
        r"Name +: POST",
        r"Kind +: Client",
        r"Kind +: Consumer",
        r"-> service.name: Str\(webhook-dispatcher\)",
        r"-> dispatcher.outcome: Str\(delivered\)",
        r"-> http.response.status_code: Int\(200\)",
        rf"-> messaging.message.id: Str\({event_id}\)",
        r"-> Name: first_byte",
    ):
        assert re.search(expected, said), expected
