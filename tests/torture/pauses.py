"""Subscriptions that are paused and resumed in mid-run, and what that does to what is owed.

What was owed before a pause is delivered after it; what is matched while it lasts need not be. When an event was matched nobody tells.
So of what was published before the resumption was in force everywhere, only that counts as owed before the pause which somebody had been
asked to take before it began: an event is matched for all of its subscribers at once.
"""

from __future__ import annotations

import asyncio
import signal
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.torture.ledger import Debt
from tests.torture.replica import Replica
from tests.torture.subscribers import BY_API, PAUSABLE

if TYPE_CHECKING:
    from tests.torture.run import Run

_IN_FORCE_WITHIN = 40.0
_LATE = 1.5  # seconds by which a request may be noted, or an attempt end, after a pause came into force


@dataclass
class Pause:
    subscription: str
    begin: float
    in_force: float | None = None  # everywhere
    resumed: float | None = None  # when that was begun
    end: float | None = None  # when that was in force everywhere

    def told(self, wall: Callable[[float], str]) -> str:
        times = (self.begin, self.in_force, self.resumed, self.end)
        return f"{self.subscription} " + " ".join("-" if at is None else wall(at) for at in times)


class Pauses:
    def __init__(self, run: Run) -> None:
        self.all: list[Pause] = []
        self._run = run
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def make_by_api(self) -> None:
        """The subscription that is managed through the API; owed from now on."""
        run = self._run
        document = run.subscribers.by_api()
        deadline = run.clock() + 60.0
        while (status := (await run.replicas[0].ask("POST", "/v1/subscriptions", document))[0]) not in {
            201,
            409,
        }:
            if run.clock() > deadline:
                run.report.findings.append(f"no subscription could be made through the API: {status}")
                return
            await asyncio.sleep(0.3)
        await self._everywhere(BY_API, "active")
        run.subscribers.with_api = True

    async def play(self, number: int, lasts: float) -> None:
        """Pause a subscription, and resume it after `lasts`."""
        run = self._run
        by_api = number % 4 == 3 and run.subscribers.with_api
        subscription = BY_API if by_api else PAUSABLE[number % len(PAUSABLE)]
        async with self._locks[subscription]:
            pause = Pause(subscription, run.clock())
            self.all.append(pause)
            pause.in_force = await self._change(subscription, "paused")
            await asyncio.sleep(lasts)
            pause.resumed = run.clock()
            pause.end = await self._change(subscription, "active")

    async def _change(self, subscription: str, status: str) -> float | None:
        run = self._run
        if subscription == BY_API:
            await self._patch(status)
        else:
            (run.subscribers.paused.add if status == "paused" else run.subscribers.paused.discard)(
                subscription
            )
            for replica in run.replicas:
                replica.write_subscriptions()
                if replica.up and replica.daemon.running and await replica.listening():
                    replica.daemon.signal(signal.SIGHUP)
        return await self._everywhere(subscription, status)

    async def _patch(self, status: str) -> None:
        run = self._run
        deadline = run.clock() + _IN_FORCE_WITHIN
        path = f"/v1/subscriptions/{BY_API}/{'pause' if status == 'paused' else 'resume'}"
        while run.clock() < deadline:
            for replica in run.replicas:
                if replica.up and (await replica.ask("POST", path))[0] == 200:
                    return
            await asyncio.sleep(0.3)
        run.report.notes.append(f"nobody took the status {status} through the API")

    async def _everywhere(self, subscription: str, status: str) -> float | None:
        """When it is in force at each replica; None if that doesn't come about."""
        run = self._run
        deadline = run.clock() + _IN_FORCE_WITHIN

        async def told(replica: Replica) -> bool:
            while run.clock() < deadline:
                if not replica.up or not replica.daemon.running:
                    return True  # it begins with what is in force
                _, document = await replica.ask("GET", f"/v1/subscriptions/{subscription}")
                if isinstance(document, dict) and document.get("status") == status:
                    return True
                await asyncio.sleep(0.1)
            return False

        found = await asyncio.gather(*map(told, run.replicas))
        if all(found):
            return run.clock()
        run.report.notes.append(f"{subscription} was not {status} everywhere within {_IN_FORCE_WITHIN:.0f} s")
        return None

    def forgive(self) -> None:
        """Strike out what was matched while its subscription was paused, as far as anybody can tell."""
        run = self._run
        first: dict[str, float] = {}
        for (_, event), asked in run.ledger.asked.items():
            first[event] = min(first.get(event, asked[0][0]), asked[0][0])
        for pause in self.all:
            end = run.clock() if pause.end is None else pause.end
            forgiven: list[Debt] = [
                (owner, event)
                for owner, event in run.ledger.owed
                if owner == pause.subscription
                and run.published[event].at < end
                and first.get(event, end) >= pause.begin
            ]
            run.ledger.forgive(forgiven)

    def findings(self) -> list[str]:
        """What was asked of a subscription while it was paused everywhere."""
        found = []
        for pause in self.all:
            if pause.in_force is None or pause.resumed is None:
                continue
            again = [
                (event, at)
                for (owner, event), asked in self._run.ledger.asked.items()
                if owner == pause.subscription
                for at, _ in asked
                if pause.in_force + _LATE < at < pause.resumed
            ]
            if again:
                found.append(
                    f"{len(again)} attempts at {pause.subscription} while it was paused, such as {again[0][0]}"
                    f" {again[0][1] - pause.in_force:.1f} s after that was in force"
                )
        return found
