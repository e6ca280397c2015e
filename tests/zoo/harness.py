"""A transport with everything it needs, and exchanges that can be awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from dispatcher.core.request.netguard import Guard
from dispatcher.core.request.results import Result
from dispatcher.core.request.urls import Origin
from dispatcher.core.subscription.model import ClientCertificate
from dispatcher.runtime.timers import Timers
from dispatcher.settings.groups import DeliverySettings, NetworkSettings
from dispatcher.transport.client import Transport
from dispatcher.transport.dial import Lookup

LOOPBACK = ("127.0.0.0/8", "::1/128")


class Exchange:
    """An exchange whose result can be awaited; counts how often it was told."""

    def __init__(self, request: bytes, deadline: float) -> None:
        self.request = request
        self.deadline = deadline
        self.told = 0
        self.result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    def done(self, result: Result) -> None:
        self.told += 1
        if not self.result.done():
            self.result.set_result(result)


def post(body: int | bytes = 20, host: str = "localhost", path: str = "/") -> bytes:
    """A request like those that the dispatcher sends."""
    content = body if isinstance(body, bytes) else b"x" * body
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode("ascii") + content


class Harness:
    """Loopback is allowed. Close it at the end."""

    def __init__(
        self,
        *,
        ca_file: str | None = None,
        allow: Sequence[str] = LOOPBACK,
        lookup: Lookup | None = None,
        delivery: Mapping[str, object] | None = None,
        network: Mapping[str, object] | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.timers = Timers(self.loop)
        self.transport = Transport(
            delivery=DeliverySettings.model_validate(delivery or {}),
            network=NetworkSettings.model_validate({"ca_file": ca_file, **(network or {})}),
            guard=Guard(allow, https_only=False),
            timers=self.timers,
            lookup=lookup,
        )

    def send(
        self,
        origin: Origin,
        *,
        body: int = 20,
        within: float = 10.0,
        certificate: ClientCertificate | None = None,
    ) -> Exchange:
        exchange = Exchange(post(body, origin.host_header), self.loop.time() + within)
        self.transport.send(origin, exchange, certificate)
        return exchange

    async def result(
        self,
        origin: Origin,
        *,
        body: int = 20,
        within: float = 10.0,
        certificate: ClientCertificate | None = None,
    ) -> Result:
        return await self.send(origin, body=body, within=within, certificate=certificate).result

    async def close(self, grace: float = 0.0) -> None:
        await self.transport.close(grace)
        self.timers.close()
