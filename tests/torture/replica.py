"""One daemon of a run, however often it is started, and what its log tells."""

from __future__ import annotations

import asyncio
import math
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import aiohttp
import yaml

from dispatcher.broker.base import TopicPartition, Why
from tests.e2e.daemon import Daemon
from tests.torture.endpoints import Endpoints, address_of
from tests.torture.hitches import Hitches
from tests.torture.ledger import COMMITTED, Trouble
from tests.torture.report import Report
from tests.torture.subscribers import Subscribers

STOPS_WITHIN = 60.0  # drain, and what a broker that is away costs
_LEAVES_WITHIN = 6.0  # at the end of a stop: what is left is written, committed, and the groups are left
HEARD_WITHIN = 10.0  # that its partitions are somebody else's
RECORD_GONE = "a parked delivery is lost: its record has been deleted from the topic"
_LATE = 1.0  # by which a request may be noted after it was sent, on a busy machine
_BUSY = re.compile(
    rb"^dispatcher_(?:deliveries_in_flight|deliveries_parked_waiting|partition_lag|outbox_waiting)(?:\{.*\})? (\S+)$",
    re.MULTILINE,
)


class Replica:
    """One daemon, however often it is started. `lock` is held by whoever is doing something to it."""

    def __init__(
        self,
        name: str,
        number: int,
        daemon: Daemon,
        endpoints: Endpoints,
        subscribers: Subscribers,
        report: Report,
        session: float,
        hitches: Hitches,
    ) -> None:
        self.name = name
        self.daemon = daemon
        self.lock = asyncio.Lock()
        self.up = False
        self.troubles: list[Trouble] = []
        self.births: list[tuple[float, str]] = []
        self.owing: set[str] = set()
        """Lives that had something to deliver when they began."""
        self._number = number
        self._endpoints = endpoints
        self._subscribers = subscribers
        self._report = report
        self._session = session
        self._hitches = hitches

    @property
    def life(self) -> str:
        return f"{self._number}.{len(self.births)}"

    async def start(self) -> None:
        life = f"{self._number}.{len(self.births) + 1}"
        self.births.append((now(), life))
        if self._endpoints.incomplete():
            self.owing.add(life)
        address = address_of(life)
        self._endpoints.lives[address] = life
        settings = yaml.safe_load(self.daemon.settings_file.read_text())
        settings["network"]["bind"] = address
        self.daemon.settings_file.write_text(yaml.safe_dump(settings))
        self.write_subscriptions()
        await self.daemon.start(ready=False)
        self.up = True

    def write_subscriptions(self) -> None:
        self._subscribers.write(self.daemon.subscriptions_file)

    def trouble(
        self,
        kind: str,
        begin: float,
        until: float,
        since: float | None = None,
        over: float | None = None,
        *,
        wide: bool = False,
    ) -> None:
        self.troubles.append(Trouble(kind, self.life, begin, until, since, over, wide))

    async def kill(self) -> None:
        self.check()
        self.up = False
        # While the machine stood still nobody committed either.
        begin, stood = now(), self._hitches.within(COMMITTED)
        if stood:
            self._report.notes.append(f"{self.name}: the machine stood still for {stood:.1f} s before a kill")
        await self.daemon.kill()
        self.trouble("kill", begin, math.inf, since=begin - COMMITTED - stood, over=now())

    async def terminate(self) -> None:
        """SIGTERM, and wait for its end."""
        if not self.check():
            return
        # Before it handles signals, one ends it as it ends any process.
        early = not await self.listening()
        self.up = False
        begin = now()
        self.daemon.signal(signal.SIGTERM)
        try:
            code = await self.daemon.ended(STOPS_WITHIN)
        except TimeoutError:
            self._report.findings.append(f"{self.name}: did not end within {STOPS_WITHIN:.0f} s of SIGTERM")
            await self.daemon.kill()
            return
        finally:
            # It commits what has ended; only what was cut off at the end of the drain may come again.
            self.trouble("term", begin, math.inf, since=max(begin, now() - _LEAVES_WITHIN), over=now())
        if code != 0 and not (early and code == -signal.SIGTERM):
            self._report.findings.append(f"{self.name}: exit code {code} after SIGTERM")
        self._report.notes.append(f"{self.name}: ended {now() - begin:.1f} s after SIGTERM")

    def check(self) -> bool:
        """Whether it runs as it should; if it ended by itself that is a finding."""
        if self.up and not self.daemon.running:
            self.up = False
            tail = "\n    ".join(self.daemon.log().splitlines()[-15:])
            self._report.findings.append(f"{self.name}: ended by itself:\n    {tail}")
        return self.up

    async def busy(self) -> bool:
        """Whether it isn't ready, or has anything in flight or to read."""
        try:
            async with asyncio.timeout(2.0):
                if (await self.daemon.get("/readyz"))[0] != 200:
                    return True
                _, body = await self.daemon.get("/metrics")
        except TimeoutError:
            return True
        values = _BUSY.findall(body)
        return not values or any(float(value) for value in values)

    async def _get(self, path: str) -> int:
        try:
            async with asyncio.timeout(2.0):
                return (await self.daemon.get(path))[0]
        except TimeoutError:
            return 0

    async def listening(self) -> bool:
        """Whether it answers, and so handles signals."""
        return (await self._get("/healthz")) == 200

    def heard(self) -> list[Trouble]:
        """What its log tells of: partitions that were taken from it, commits that came too late."""
        found = []
        for at, line in self._lines("partitions revoked"):
            del line
            # In good order: what was completed is committed, what was under way may come again.
            found.append(Trouble("revoked", self._life_at(at), at, at + HEARD_WITHIN, before=at + _LATE))
        refused: list[Trouble] = []
        for at, line in self._lines("commit refused: the partitions were reassigned"):
            del line
            life, until = self._life_at(at), at + HEARD_WITHIN
            if refused and refused[-1].life == life and at <= refused[-1].until:
                refused[-1] = replace(refused[-1], until=until)  # of the same rebalance
            else:
                begin = at - self._session - COMMITTED
                refused.append(Trouble("refused", life, begin, until, wide=True))
        found += refused
        return found

    def starts(self) -> list[float]:
        """When it says that it is starting, in each of its lives that come to that."""
        return [at for at, _ in self._lines("starting")]

    def skipped(self) -> Iterator[tuple[TopicPartition, int, int]]:
        """Partitions, first offsets and ends of what it says expired before it was read, or before it was delivered."""
        for line in self.daemon.log_lines(RECORD_GONE):
            yield TopicPartition(line["topic"], line["partition"]), line["offset"], line["offset"] + 1
        for line in self.daemon.log_lines():
            if line.get("why") == Why.RETENTION and line["expected"] is not None:
                partition = TopicPartition(line["topic"], line["partition"])
                yield partition, line["expected"], line["read_from"]

    def _lines(self, message: str) -> Iterator[tuple[float, dict[str, Any]]]:
        ahead = time.time() - now()
        for line in self.daemon.log_lines(message):
            yield datetime.fromisoformat(line["timestamp"]).timestamp() - ahead, line

    def _life_at(self, at: float) -> str:
        return ["", *(name for birth, name in self.births if birth <= at)][-1]

    async def ask(self, method: str, path: str, document: object = None) -> tuple[int, Any]:
        """A request to its API; status 0 where it doesn't answer in time."""
        try:
            async with (
                asyncio.timeout(5.0),
                aiohttp.ClientSession() as session,
                session.request(
                    method, f"http://127.0.0.1:{self.daemon.port}{path}", json=document
                ) as response,
            ):
                return response.status, await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return 0, None


def now() -> float:
    """Seconds of the loop's clock, by which everything here is noted."""
    return asyncio.get_running_loop().time()
