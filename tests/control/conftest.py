"""A control plane on a store in memory and a transport that does as it is told, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from orjson import loads

from dispatcher.broker.base import Message
from dispatcher.control.errors import Invalid
from dispatcher.control.plane import ControlPlane
from dispatcher.core.request.netguard import Guard
from dispatcher.core.request.results import HandshakeResponse, Response, Result
from dispatcher.registry.registry import Registry
from dispatcher.settings.groups import ApiSettings, QuotaSettings, Settings
from dispatcher.telemetry.metrics import Metrics
from dispatcher.transport.base import Exchange
from tests.control.memory import MemoryStore
from tests.control.replicas import World
from tests.fakes import MemoryBroker
from tests.world import counted_as_declared

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVowMTIzNDU="
IN_FILE = {
    "id": "sub_file",
    "tenant": "acme",
    "url": "https://file.example/in",
    "event_types": ["invoice.paid"],
    "secrets": [SECRET],
    "headers": {"Authorization": "Bearer abcdefghijklmnopqrstuvwxyz"},
}


class Endpoints:
    """Stands for the transport: `answer` gets each request, by method and body."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes]] = []
        self.answer: Callable[[str, bytes], Result] = lambda _method, _body: Response(200, None, None, b"ok")
        self.delay = 0.01

    def send(self, _origin: Any, exchange: Exchange, _certificate: Any = None) -> None:
        head, _, body = exchange.request.partition(b"\r\n\r\n")
        method = head.split()[0].decode()
        self.asked.append((head.decode(), body))
        result = self.answer(method, body)
        asyncio.get_running_loop().call_later(self.delay, exchange.done, result)

    ask = send

    def cancel(self, exchange: Exchange) -> None: ...

    def allow(self, rate: str | None = None) -> None:
        """Agree to everything."""
        self.answer = lambda method, _body: (
            HandshakeResponse(200, allowed_origin="*", allowed_rate=rate)
            if method == "OPTIONS"
            else Response(200)
        )

    def refuse(self) -> None:
        self.answer = lambda method, _body: (
            HandshakeResponse(200, allowed_origin="other.example") if method == "OPTIONS" else Response(200)
        )


class Plane:
    """A control plane and everything around it."""

    def __init__(
        self, registry: Registry, guard: Guard, quotas: QuotaSettings | None = None, **api: Any
    ) -> None:
        loop = asyncio.get_running_loop()
        self.wall = lambda: 1_000_000_000.0 + loop.time()
        self.registry = registry
        self.broker = MemoryBroker()
        self.endpoints = Endpoints()
        self.metrics = Metrics()
        self.store = MemoryStore(registry, guard, self.wall)
        self.plane = ControlPlane(
            Settings(api=ApiSettings(origin="dispatcher.example", **api), quotas=quotas or QuotaSettings()),
            self.broker,
            registry,
            guard,
            self.endpoints,
            self.metrics,
            store=self.store,
            chance=lambda: 0.5,
            wall=self.wall,
        )
        self.views = self.plane.views
        self.listing = self.plane.listing
        self.creation = self.plane.creation
        self.subscriptions = self.plane.subscriptions
        self.checks = self.plane.checks
        self.catalogue = self.plane.catalogue
        self.publisher = self.plane.publisher
        self.quotas = self.plane.quotas

    async def create(self, tenant: str | None = None, key: str | None = None, **fields: Any) -> Any:
        """Make one; of a tenant with an id of its own an operator makes it."""
        document = {"url": "https://hooks.acme.example/in", "event_types": ["billing.*"], **fields}
        if "id" in document and tenant is not None:
            document["tenant"], tenant = tenant, None
        return await self.creation.create(
            {name: value for name, value in document.items() if value is not ...},
            principal="me",
            tenant=tenant,
            idempotency_key=key,
        )

    def events(self) -> list[dict[str, Any]]:
        """What was written to the events topic."""
        return [loads(message.value or b"") for message in self.messages()]

    def messages(self) -> Sequence[Message]:
        return [message for message in self.broker.produced if message.topic == "events"]


Make = Callable[..., Awaitable[Plane]]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Makes planes: `file` are the entries of the subscriptions file, `quotas` those of the settings, all else is for their group `api`."""
    made: list[Plane] = []

    async def make(file: Sequence[dict[str, Any]] = (), **api: Any) -> Plane:
        path = tmp_path / "subscriptions.yaml"
        path.write_text(yaml.safe_dump({"subscriptions": list(file)}))
        guard = Guard(())
        registry = Registry(Settings(subscriptions_file=path), guard, {}, poll=1e9)
        await registry.start()
        plane = Plane(registry, guard, **api)
        await plane.plane.start()
        made.append(plane)
        return plane

    yield make
    for plane in made:
        await plane.plane.stop()
        await plane.registry.stop()
        counted_as_declared(plane.metrics)


@pytest.fixture
async def plane(make: Make) -> Plane:
    """One without anything."""
    return await make()


async def flaws(awaitable: Any) -> dict[str, str]:
    """The fields that are wrong, and how."""
    with pytest.raises(Invalid) as caught:
        await awaitable
    return {flaw.field: flaw.message for flaw in caught.value.flaws}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    for replica in list(made.replicas):
        await made.stop(replica)
