"""Endpoints that fail, hang and recover by script, and note what they get.

steady   takes everything at once
flaky    answers 503 to one request in four
picky    answers 422 to one event in 29, whenever it comes: a dead letter in the end
moody    goes through the schedule's phases: fails, hangs, is down
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Sequence
from typing import Any, Self

from aiohttp import web

from tests.torture.ledger import Ledger
from tests.torture.schedule import Mood, Phase

NAMES = ("steady", "flaky", "picky", "moody")
TIMEOUT = 5.0
_NUMBER = re.compile(r"\d+")


def refused(event: str) -> bool:
    """Whether picky will never take it."""
    found = _NUMBER.search(event)
    return found is not None and int(found[0]) % 29 == 7


class Endpoints:
    """One server, a port for each."""

    def __init__(self, seed: int) -> None:
        self.ledger = Ledger()
        self.last_request = 0.0
        self._draw = random.Random(f"endpoints {seed}")
        self._runner: web.AppRunner | None = None
        self._sites: dict[str, web.TCPSite] = {}
        self._ports: dict[str, int] = {}
        self._mood: Mood | None = None
        self._healed = asyncio.Event()

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/{name}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        for name in NAMES:
            await self._listen(name, 0)
            self._ports[name] = self._runner.addresses[-1][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        self._healed.set()
        await self._runner.cleanup()

    async def _listen(self, name: str, port: int) -> None:
        assert self._runner is not None
        site = self._sites[name] = web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True)
        await site.start()

    def subscriptions(self, life: str = "") -> list[dict[str, Any]]:
        """As they stand in the file of a daemon in that life."""
        patient = {"schedule": ["200ms", "500ms", "1s", *["2s"] * 60], "jitter": 0.1}
        return [
            {
                "id": f"sub_{name}",
                "tenant": "*",
                "url": f"http://127.0.0.1:{self._ports[name]}/{name}",
                "event_types": ["*"],
                "timeout": f"{TIMEOUT:g}s",
                "headers": {"X-Life": life},
                "retry": {"schedule": ["200ms"], "jitter": 0} if name == "picky" else patient,
            }
            for name in NAMES
        ]

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
                    await self._listen("moody", self._ports["moody"])
                self._mood = None

    def heal(self) -> None:
        """All are well from now on (after `play` has ended)."""
        self._healed.set()

    async def _handle(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        await request.read()
        event = request.headers["webhook-id"]
        self.last_request = asyncio.get_running_loop().time()
        debt, life = (f"sub_{name}", event), request.headers["x-life"]
        self.ledger.ask(debt, life)
        status = await self._decide(name, event, request)
        if status == 200:
            # Noted before the answer leaves: what a dying process doesn't get to read counts as paid.
            self.ledger.pay(debt, life, asyncio.get_running_loop().time())
        return web.Response(status=status)

    async def _decide(self, name: str, event: str, request: web.Request) -> int:
        if name == "picky":
            return 422 if refused(event) else 200
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
