"""One tenant against the others, on the real daemon. The same on virtual time, and more of it: tests/test_fair_shares.py."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from aiohttp import web

from tests.e2e.daemon import Daemon, Endpoint, envelope, eventually

_ORIGINS = 40
_IN_FLIGHT = 1000


class Hanging:
    """A server on as many ports that takes every request and never answers."""

    def __init__(self) -> None:
        self.ports: list[int] = []
        self.requests = 0
        self._servers: list[asyncio.Server] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def listen(self, ports: int) -> None:
        for _ in range(ports):
            server = await asyncio.start_server(self._take, "127.0.0.1", 0)
            self._servers.append(server)
            self.ports.append(server.sockets[0].getsockname()[1])

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        if await reader.read(65536):
            self.requests += 1

    def close(self) -> None:
        for server in self._servers:
            server.close()
        for writer in self._writers:
            writer.close()


async def test_a_tenant_that_gets_no_answers_keeps_no_other_tenant_from_its_events(tmp_path: Path) -> None:
    """Its endpoints could take more attempts than the process has deliveries in memory, for ten minutes each."""
    hanging = Hanging()
    async with AsyncExitStack() as stack, Endpoint() as honest:
        stack.callback(hanging.close)
        await hanging.listen(_ORIGINS)
        subscriptions = [
            {
                "id": f"a_{port}",
                "tenant": "a",
                "url": f"http://127.0.0.1:{port}/",
                "event_types": ["*"],
                "timeout": "10m",
                "max_in_flight": 32,
            }
            for port in hanging.ports
        ]
        subscriptions.append({"id": "b", "tenant": "b", "url": honest.url, "event_types": ["*"]})
        daemon = Daemon(
            tmp_path,
            f"sqlite:///{tmp_path / 'events.db'}",
            subscriptions,
            delivery={"max_in_flight": _IN_FLIGHT},
        )
        await daemon.start()
        try:
            for number in range(32):
                await daemon.post_event(envelope(number, tenant="a")[1])
            await eventually(lambda: hanging.requests >= _IN_FLIGHT // 2, within=60)
            ids = set()
            for number in range(100, 105):
                event_id, body = envelope(number, tenant="b")
                ids.add(event_id)
                await daemon.post_event(body)
            await honest.received(ids, within=60)
            async with asyncio.timeout(60):
                while not await daemon.metric("tenants_at_share"):
                    await asyncio.sleep(0.05)
            assert hanging.requests < _IN_FLIGHT * 0.9
        finally:
            await daemon.kill()


async def test_a_tenant_whose_attempts_hang_leaves_a_shared_origin_to_another_tenant(tmp_path: Path) -> None:
    released = asyncio.Event()
    hanging = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal hanging
        if request.path == "/hang":
            hanging += 1
            await released.wait()
        return web.Response()

    async with Endpoint(answer) as shared:
        subscriptions = [
            {
                "id": f"a_{number}",
                "tenant": "a",
                "url": f"{shared.url}/hang",
                "event_types": ["*"],
                "timeout": "10m",
            }
            for number in range(2)
        ]
        subscriptions.append({"id": "b", "tenant": "b", "url": f"{shared.url}/ok", "event_types": ["*"]})
        daemon = Daemon(tmp_path, f"sqlite:///{tmp_path / 'events.db'}", subscriptions)
        await daemon.start()
        try:
            for number in range(40):
                await daemon.post_event(envelope(number, tenant="a")[1])
            await eventually(lambda: hanging >= 20, within=60)
            ids = set()
            for number in range(100, 105):
                event_id, body = envelope(number, tenant="b")
                ids.add(event_id)
                await daemon.post_event(body)
            await shared.received(ids, within=60)
            assert hanging < 32
        finally:
            await daemon.kill()
            released.set()
