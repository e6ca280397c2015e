"""An engine on virtual time, between a broker and a transport that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any, Literal

from dispatcher.broker.base import TopicPartition
from dispatcher.core.control.skips import Skip
from dispatcher.core.replay.standing import ReplayStandings
from dispatcher.core.request.netguard import Guard
from dispatcher.core.request.results import Response, Result
from dispatcher.core.request.urls import Origin
from dispatcher.delivery.engine import Engine
from dispatcher.delivery.interventions import InterventionLog
from dispatcher.runtime.timers import Timers
from dispatcher.settings.groups import (
    AttemptsSettings,
    DeliverySettings,
    RetrySettings,
    Settings,
    SubscriptionSettings,
    TracingSettings,
)
from dispatcher.telemetry.metrics import Metrics
from dispatcher.telemetry.tracing import Tracing
from dispatcher.transport.base import Exchange
from tests.fakes import FixedRegistry, MemoryBroker, ScriptedTransport

EVENTS = TopicPartition("events", 0)


def event(number: int, **fields: Any) -> bytes:
    more = "".join(f', "{name}": "{value}"' for name, value in fields.items())
    return f'{{"id": "evt_{number}", "type": "test.event"{more}}}'.encode()


class World:
    """An engine and everything around it."""

    def __init__(
        self,
        registry: FixedRegistry,
        broker: MemoryBroker | None = None,
        *,
        retry: RetrySettings | None = None,
        attempts: AttemptsSettings | None = None,
        skips: Collection[Skip] = (),
        subscription: SubscriptionSettings | None = None,
        replays: ReplayStandings | None = None,
        commands: bool = False,
        descriptors: int | None = None,
        tracing: Tracing | None = None,
        propagate: Literal["event", "attempt", "none"] = "event",
        **delivery: Any,
    ) -> None:
        """`commands`: it follows the topic of interventions (`start`)."""
        loop = asyncio.get_running_loop()
        self.broker = broker or MemoryBroker()
        self.transport = ScriptedTransport()
        self.registry = registry
        self.metrics = Metrics()
        self.step = 0.0  # seconds by which somebody has set the wall clock
        self.given_up: list[tuple[str, str, str, int, str | None]] = []
        self.failures: list[tuple[str, BaseException]] = []
        settings = Settings(
            delivery=DeliverySettings(**delivery),
            retry=retry or RetrySettings(),
            attempts=attempts or AttemptsSettings(),
            subscription=subscription or SubscriptionSettings(),
            tracing=TracingSettings(propagate=propagate),
        )
        self.wall: Callable[[], float] = lambda: 1_000_000.0 + self.step + loop.time()
        self.interventions = (
            InterventionLog(
                self.broker,
                "dispatcher.interventions",
                wall=self.wall,
                chance=lambda: 0.5,
                on_failure=lambda task, error: self.failures.append((task, error)),
            )
            if commands
            else None
        )
        self.engine = Engine(
            settings,
            self.broker,
            self.transport,  # type: ignore[arg-type] # keeps the port's rules
            registry,  # type: ignore[arg-type] # likewise
            Guard(("127.0.0.0/8",), https_only=False),
            self.metrics,
            Timers(loop),
            on_given_up=lambda subscription, event, *rest: self.given_up.append(
                (subscription.id, event.id, *rest)
            ),
            on_failure=lambda task, error: self.failures.append((task, error)),
            skips=lambda: skips,
            replays=replays,
            interventions=self.interventions,
            descriptors=descriptors,
            tracing=tracing,
            chance=lambda: 0.5,
            wall=self.wall,
        )

    async def start(self) -> None:
        if self.interventions is not None:
            await self.interventions.start()
        self.engine.start()

    async def stop(self) -> None:
        await self.engine.stop(0)
        if self.interventions is not None:
            await self.interventions.stop()
        await self.transport.close()

    @property
    def committed(self) -> int | None:
        return self.broker.committed.get(EVENTS)

    def written(self, topic: str) -> list[dict[str, str]]:
        """The headers of what was produced to a topic."""
        return [
            {name: value.decode() for name, value in message.headers}
            for message in self.broker.produced
            if message.topic == topic
        ]

    def parked(self) -> list[dict[str, str]]:
        """The headers of what was written to any retry topic, in order."""
        return [
            {name: value.decode() for name, value in message.headers}
            for message in self.broker.produced
            if message.topic.startswith("dispatcher.retry.")
        ]

    def dead(self) -> list[dict[str, str]]:
        return self.written("dispatcher.dead")

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"dispatcher_{name}", labels)


def counted_as_declared(metrics: Metrics) -> None:
    """Every label that was counted began with 0, so that alarms on it fire for the first burst.

    A new one takes its place in `dispatcher.telemetry.metrics._VALUES`. Topics and levels come with the settings.
    """
    found = metrics.unexpected()
    for name in ("events_consumed_total", "offsets_skipped_total", "retries_due_total"):
        found.pop(name, None)
    assert not found


@asynccontextmanager
async def running(*args: Any, **kwargs: Any) -> AsyncIterator[World]:
    world = World(*args, **kwargs)
    await world.start()
    try:
        yield world
        assert not world.failures
        counted_as_declared(world.metrics)
    finally:
        await world.stop()


async def until(condition: Callable[[], bool], within: float = 60.0) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.05)


TOPICS = {"events", *(f"dispatcher.retry.{level}" for level in ("30s", "2m", "10m", "1h", "6h", "parked"))}


def now() -> float:
    return asyncio.get_running_loop().time()


def id_of(request: bytes) -> str:
    return request.split(b"webhook-id: ")[1].split(b"\r")[0].decode()


def sent_ids(world: World) -> list[str]:
    return [id_of(request) for _, _, request in world.transport.sent]


async def publish(world: World, rate: float, seconds: float, first: int = 0, **fields: Any) -> int:
    """So many events a second; returns how many."""
    count = round(rate * seconds)
    begin = now()
    for number in range(count):
        world.broker.append(event(first + number, **fields))
        if (wait := begin + (number + 1) / rate - now()) > 0.05:
            await asyncio.sleep(wait)
    return count


class Queueing:
    """An endpoint that takes so many a second, one after the other, however many come."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.free_at = 0.0

    def __call__(self, _origin: Origin, _exchange: Exchange) -> tuple[float, Result]:
        self.free_at = max(self.free_at, now()) + 1 / self.rate
        return self.free_at - now(), Response(200)


async def accounted(world: World) -> None:
    """Nothing is in flight, and everything that was read is committed."""
    assert world.value("deliveries_in_flight") == 0
    assert world.value("deliveries_in_flight_bytes") == 0
    assert world.value("deliveries_queued") == 0
    logs = {p: len(log) for p, log in world.broker.log.items() if log and p.topic in TOPICS}
    await until(lambda: all(world.broker.committed.get(p) == length for p, length in logs.items()), within=5)


def typed(number: int, kind: str) -> bytes:
    return f'{{"id": "evt_{number}", "type": "test.{kind}"}}'.encode()
