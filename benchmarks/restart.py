"""How long deliveries rest when a replica is killed and started again, and when one is stopped.

A real Kafka, a session of half a minute (the daemon's default): none of this waits for its end. Each replica has a name
(`kafka.member_name`), as a pod or a host has one.

- *Killed*: `kill -9`, then an event for each partition, then the same command again. The time is from its start to the
  delivery of the last of these events: of the partitions that the replica had, in whichever of them it is.
- *Stopped*: SIGTERM, and ten times a second an event for each partition until the process has ended. The time is the longest
  from the publishing of one of them to its delivery, by whomever.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Final

import uvloop
from aiohttp import web

from benchmarks.end_to_end import Daemon, kafka
from benchmarks.harness import (
    BODY_BYTES,
    CORES,
    SECRET,
    CannotRun,
    Section,
    Table,
    envelope,
    free_port,
    on_core,
    require,
    spread,
)
from dispatcher.broker.base import Broker, Message, TopicSpec
from dispatcher.broker.open import open_broker
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import KafkaSettings

PARTITIONS: Final = 12
_EVERY: Final = 0.1  # seconds between two waves of events
_WITHIN: Final = 90.0  # seconds for a wave of events to arrive

# What the daemon is held to, in seconds.
_KILLED: Final = 3.0
_STOPPED: Final = 2.0


class _Endpoint:
    """Takes everything, and knows when each event came first."""

    def __init__(self) -> None:
        self.port = free_port()
        self.arrived: dict[str, float] = {}
        self._news = asyncio.Event()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_post("/", self._take)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", self.port).start()
            yield
        finally:
            await runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        await request.read()
        self.arrived.setdefault(request.headers["webhook-id"], time.monotonic())
        self._news.set()
        return web.Response()

    async def all_of(self, ids: Collection[str]) -> float:
        """When the last of them came."""
        try:
            async with asyncio.timeout(_WITHIN):
                while not self.arrived.keys() >= set(ids):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            left = len(set(ids) - self.arrived.keys())
            raise CannotRun(f"{left} of {len(ids)} events were not delivered within {_WITHIN:g} s") from None
        return max(self.arrived[event_id] for event_id in ids)


class _Group:
    """The replicas of one group."""

    def __init__(self, url: str, broker: Broker, endpoint: _Endpoint, folder: Path, count: int) -> None:
        self._broker = broker
        self._endpoint = endpoint
        self._published = 0
        self._topic = _topic(count)
        self._running: dict[int, tuple[contextlib.ExitStack, subprocess.Popen[bytes]]] = {}
        subscription = {
            "id": "sub",
            "tenant": "*",
            "url": f"http://127.0.0.1:{endpoint.port}/",
            "event_types": ["*"],
            "secrets": [SECRET],
        }
        self._daemons = []
        for number in range(count):
            own = folder / f"replica-{number}"
            own.mkdir()
            self._daemons.append(
                Daemon(
                    url,
                    _NOWHERE,
                    own,
                    topic=self._topic,
                    subscriptions=[subscription],
                    group=f"bench-restart-{folder.name}",
                    kafka={"member_name": f"replica-{number}"},
                )
            )

    async def start(self, number: int) -> None:
        stack = contextlib.ExitStack()
        self._running[number] = stack, stack.enter_context(self._daemons[number].started())

    async def ready(self) -> None:
        """Every replica has what the group gives it."""
        for number in self._running:
            await asyncio.to_thread(self._daemons[number].wait_until_ready)

    async def end(self, number: int, how: signal.Signals) -> float:
        """When it was over."""
        stack, child = self._running.pop(number)
        child.send_signal(how)
        await asyncio.to_thread(child.wait, 60.0)
        over = time.monotonic()
        stack.close()
        return over

    async def end_all(self) -> None:
        for number in list(self._running):
            await self.end(number, signal.SIGKILL)

    async def publish(self) -> list[str]:
        """An event for each partition; their ids."""
        wave = []
        for partition in range(PARTITIONS):
            event_id, body = envelope(self._published, BODY_BYTES, "ping", "tenant-0")
            self._published += 1
            wave.append((event_id, Message(self._topic, body, partition=partition)))
        await self._broker.produce([message for _, message in wave])
        return [event_id for event_id, _ in wave]

    async def killed(self) -> float:
        """Seconds from the start of a killed one to the last delivery."""
        await self.ready()
        await self._endpoint.all_of(await self.publish())
        await self.end(0, signal.SIGKILL)
        wave = await self.publish()
        begin = time.monotonic()
        await self.start(0)
        return await self._endpoint.all_of(wave) - begin

    async def stopped(self) -> float:
        """The longest that an event takes which is published while one ends."""
        await self.ready()
        await self._endpoint.all_of(await self.publish())
        waves = []
        ending = Tasks().start(self.end(0, signal.SIGTERM), "stop")
        while not ending.done():
            waves.append((time.monotonic(), await self.publish()))
            await asyncio.sleep(_EVERY)
        await ending  # raises what went wrong
        waves.append((time.monotonic(), await self.publish()))
        took = max([await self._endpoint.all_of(wave) - began for began, wave in waves])
        await self.start(0)
        return took


def _topic(count: int) -> str:
    """Of its own, or the second group would begin with what the first one got."""
    return f"bench-restart-{count}"


class _Nowhere:
    """Subscriptions are given: nobody looks here."""

    port = tls_port = 0
    ca_file = Path()


_NOWHERE: Final = _Nowhere()


async def _measure(url: str, folder: Path, count: int, runs: int) -> tuple[list[float], list[float]]:
    broker = open_broker(url, KafkaSettings())
    await broker.connect()
    endpoint = _Endpoint()
    try:
        await broker.ensure_topics([TopicSpec(_topic(count), PARTITIONS)], create=True)
        async with endpoint.listening():
            group = _Group(url, broker, endpoint, folder, count)
            try:
                for number in range(count):
                    await group.start(number)
                killed = [await group.killed() for _ in range(runs)]
                stopped = [await group.stopped() for _ in range(runs)] if count > 1 else []
            finally:
                await group.end_all()
    finally:
        await broker.close()
    return killed, stopped


def run(command: str, *, quick: bool, runs: int | None = None) -> Section:
    """With one replica and with three."""
    require("taskset")
    runs = runs or (1 if quick else 5)
    section = Section("Restart", command)
    table = Table(("seconds without deliveries", "median (lowest-highest)", "wanted"))
    with kafka() as url, tempfile.TemporaryDirectory(prefix="bench-restart-") as name:
        for count in (1, 3):
            folder = Path(name, str(count))
            folder.mkdir()
            with on_core(CORES.server):
                killed, stopped = uvloop.run(_measure(url, folder, count, runs))
            who = "the only replica" if count == 1 else f"one of {count} replicas"
            _row(table, f"{who}, kill -9, from its start again", killed, _KILLED)
            if stopped:
                _row(table, f"{who}, SIGTERM, the longest delivery", stopped, _STOPPED)
    section.add(table)
    section.add(
        f"{runs} times each, {PARTITIONS} partitions, Apache Kafka with its defaults, a session of 30 s. All replicas share one core; Kafka and the endpoint"
        " have the other one."
    )
    return section


def _row(table: Table, what: str, seconds: list[float], wanted: float) -> None:
    print(f"  {what}: {', '.join(f'{each:.2f} s' for each in seconds)}", flush=True)
    holds = max(seconds) <= wanted
    table.add(
        what, spread(seconds, lambda value: f"{value:.2f}"), f"<= {wanted:g} {'✓' if holds else '✗ missed'}"
    )
