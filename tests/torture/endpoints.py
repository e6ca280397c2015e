"""Endpoints that fail, hang and recover by script, and note what they get.

steady   takes everything at once
flaky    answers 503 to one request in four
picky    answers 422 to one event in 29, whenever it comes: a dead letter in the end; in the end it may turn, and refuse what it took
moody    goes through the schedule's phases: fails, hangs, is down
stall    takes everything, but for its stalls: what comes then is answered when they are over

The last part of a URL's path is the subscription. Each life of a daemon connects from an address of its own
(`address_of`), which says who sent a request.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from collections.abc import Sequence
from typing import Self

from aiohttp import web

from tests.torture.ledger import Ledger
from tests.torture.schedule import Mood, Phase

NAMES = ("steady", "flaky", "picky", "moody", "stall")
TIMEOUT = 5.0
_NUMBER = re.compile(r"\d+")
_GIVES_UP = 1.0  # before a sender's timeout from which on an answer may come too late: none is given then


def refused(event: str) -> bool:
    """Whether picky will never take it."""
    found = _NUMBER.search(event)
    return found is not None and int(found[0]) % 29 == 7


def address_of(life: str) -> str:
    """Where that life (`replica.number`) connects from: all of 127.0.0.0/8 is this machine."""
    replica, _, number = life.partition(".")
    return f"127.1.{int(replica) + int(number) // 250}.{int(number) % 250 + 1}"


class Endpoints:
    """One server, a port for each."""

    def __init__(self, seed: int, patience: float = TIMEOUT) -> None:
        """`patience`: the timeout of those that ask the endpoint that stalls."""
        self._patience = patience
        self.ledger = Ledger()
        self.ports: dict[str, int] = {}
        self.last_request = 0.0
        self.first: dict[str, float] = {}
        """When the first request of each life came."""
        self.lives: dict[str, str] = {}
        """Address to life; whoever starts one enters it."""
        self.strangers = 0
        """Requests from an address of no life."""
        self.failed: set[tuple[str, str]] = set()
        """Debts to the endpoint that stalls which had an attempt that was not answered in time."""
        self.turned: dict[tuple[str, str], bool] = {}
        """Of these debts picky has come to think otherwise: whether it takes them from now on."""
        self.bodies: dict[str, str] = {}
        """SHA-256 of what came of each event."""
        self._draw = random.Random(f"endpoints {seed}")
        self._runner: web.AppRunner | None = None
        self._sites: dict[str, web.TCPSite] = {}
        self._mood: Mood | None = None
        self._healed = asyncio.Event()
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/{endpoint}/{subscription}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        for name in NAMES:
            await self._listen(name, 0)
            self.ports[name] = self._runner.addresses[-1][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        self._healed.set()
        self._flowing.set()
        await self._runner.cleanup()

    async def _listen(self, name: str, port: int) -> None:
        assert self._runner is not None
        site = self._sites[name] = web.TCPSite(
            self._runner, "127.0.0.1", port, reuse_address=True, backlog=1024
        )
        await site.start()

    async def play(self, phases: Sequence[Phase]) -> None:
        clock = asyncio.get_running_loop().time
        start = clock()
        for phase in phases:
            await asyncio.sleep(max(0.0, start + phase.at - clock()))
            self._mood = phase.mood
            if phase.mood is Mood.DOWN:
                await self._sites["moody"].stop()
            try:
                await asyncio.sleep(phase.lasts)
            finally:
                if phase.mood is Mood.DOWN:
                    await self._listen("moody", self.ports["moody"])
                self._mood = None

    async def stall(self, lasts: float) -> None:
        """Answer nothing of the endpoint that stalls for so long."""
        self._flowing.clear()
        try:
            await asyncio.sleep(lasts)
        finally:
            self._flowing.set()

    def heal(self) -> None:
        """All are well from now on (after `play` has ended)."""
        self._healed.set()
        self._flowing.set()

    def incomplete(self) -> int:
        """Debts that are not paid and are not expected in the dead-letter topic."""
        return sum(1 for debt in self.ledger.open if not (debt[0] == "sub_picky" and refused(debt[1])))

    async def _handle(self, request: web.Request) -> web.Response:
        clock = asyncio.get_running_loop().time
        begin = self.last_request = clock()
        body = await request.read()
        event = request.headers["webhook-id"]
        debt = (request.match_info["subscription"], event)
        life = self.lives.get(request.remote or "")
        if life is None:
            self.strangers += 1
            return web.Response(status=503)
        self.first.setdefault(life, begin)
        if event not in self.bodies:
            self.bodies[event] = hashlib.sha256(body).hexdigest()
        self.ledger.ask(debt, life, begin)
        status = await self._decide(request.match_info["endpoint"], debt, request)
        if status == 200:
            # Noted before the answer leaves: what a dying process doesn't get to read counts as paid.
            self.ledger.pay(debt, life, clock(), begin)
        return web.Response(status=status)

    async def _decide(self, name: str, debt: tuple[str, str], request: web.Request) -> int:
        event = debt[1]
        if name == "picky":
            return 200 if self.turned.get(debt, not refused(event)) else 422
        if name == "stall":
            return await self._stalled(debt, request)
        if self._healed.is_set() or name == "steady":
            return 200
        if name == "flaky":
            return 503 if self._draw.random() < 0.25 else 200
        match self._mood:
            case Mood.FAIL:
                return 503
            case Mood.CHOOSE:
                return 503 if int(event[-1]) % 2 else 200
            case Mood.HANG:
                # Longer than anybody waits; the late answer pays for nothing.
                await asyncio.sleep(TIMEOUT + 1)
                return 503
            case Mood.DOWN:
                if request.transport is not None:
                    request.transport.abort()
                return 503
            case None:
                return 200

    async def _stalled(self, debt: tuple[str, str], request: web.Request) -> int:
        if self._flowing.is_set():
            return 200
        try:
            async with asyncio.timeout(self._patience - _GIVES_UP):
                await self._flowing.wait()
        except TimeoutError:
            # The sender is about to give up, and would not hear that it was paid: it is better told so.
            self.failed.add(debt)
            return 503
        gone = request.transport is None or request.transport.is_closing()
        if gone:
            self.failed.add(debt)
        return 503 if gone else 200
