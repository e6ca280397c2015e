"""Looks after the topics while the daemon runs: whether each is still there, and what is amiss with them.

The event and retry topics are watched by the members of their groups (`broker/`); here are the others, and what only
looking at topics and groups as a whole can tell (`checks.py`). What it finds is a line in the log once, and stays in
`/readyz` for as long as it is so.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from dispatcher.broker.assignment import RETRY_SUFFIX, absent
from dispatcher.broker.base import LOOK_INTERVAL, Broker, BrokerError
from dispatcher.core.retry.tiers import Tiers
from dispatcher.settings.groups import Settings
from dispatcher.telemetry.metrics import Metrics
from dispatcher.topics.checks import concerns, retry_group, warnings
from dispatcher.topics.specs import topic_specs

log = structlog.get_logger(__name__)

_CHECK_INTERVAL: Final = 300.0  # seconds between two looks at retention, offsets and groups
_WINDOW: Final = 60.0  # seconds in which everything has to be dropped to be worth a warning


class TopicWatch:
    """Of one process."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives seconds of any one clock."""
        self._settings = settings
        self._broker = broker
        self._clock = clock
        self._tiers = [tier.topic for tier in Tiers(settings.retry.tiers, settings.topics.prefix)]
        self._attempts = f"{settings.topics.prefix}attempts"
        watched = {*settings.topics.events, *self._tiers}
        self._topics = [spec.name for spec in topic_specs(settings) if spec.name not in watched]
        self._problem: str | None = None
        self._attempts_problem: str | None = None
        self._warnings: Sequence[str] = ()
        self._drops = Drops(metrics)

    def problems(self) -> list[str]:
        """Why it can't work, a sentence each."""
        return [] if self._problem is None else [self._problem]

    def warnings(self) -> list[str]:
        """What isn't as it should be, a sentence each."""
        found = [self._attempts_problem, self._drops.warning(), *self._warnings]
        return [each for each in found if each is not None]

    async def run(self) -> None:
        """Look, again and again."""
        checked = float("-inf")
        while True:
            self._drops.look(self._clock())
            try:
                await self._look()
                if self._clock() - checked >= _CHECK_INTERVAL:
                    await self._check()
                    checked = self._clock()
            except BrokerError as error:
                log.info("can't look after the topics, trying again", error=str(error))
            await asyncio.sleep(LOOK_INTERVAL)

    async def _look(self) -> None:
        there = await self._broker.look(self._topics)
        needed = [name for name in self._topics if name != self._attempts]
        problem = absent(needed, there)
        if problem is not None and problem != self._problem:
            log.error("topics are missing", error=problem)
        self._problem = problem
        self._attempts_problem = absent([name for name in self._topics if name == self._attempts], there)

    async def _check(self) -> None:
        settings = self._settings
        topics = await self._broker.topics(retry_group(settings), only=lambda name: concerns(settings, name))
        found = warnings(settings, topics, await self._broker.readers_of(self._tiers, RETRY_SUFFIX))
        for sentence in found:
            if sentence not in self._warnings:
                log.warning("the topics are not as they should be", warning=sentence)
        self._warnings = found


class Drops:
    """Whether all that was owed for a minute was dropped."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._past: deque[tuple[float, dict[str, int], int]] = deque()

    def look(self, now: float) -> None:
        """Remember what was dropped and attempted until `now`, and forget what is older than the window."""
        dropped = {name: n for name, n in self._metrics.deliveries.items() if name.startswith("dropped_")}
        attempts = self._metrics.delivered + sum(self._metrics.attempts.values())
        self._past.append((now, dropped, attempts))
        while len(self._past) > 2 and self._past[1][0] <= now - _WINDOW:
            self._past.popleft()

    def warning(self) -> str | None:
        """What to say of it, if it was so when last looked."""
        if len(self._past) < 2:
            return None
        (_, before, attempts_before), (_, now, attempts_now) = self._past[0], self._past[-1]
        grown = {name: count - before.get(name, 0) for name, count in now.items()}
        total = sum(grown.values())
        if not total or attempts_now != attempts_before:
            return None
        reasons = ", ".join(f"{name}: {count}" for name, count in sorted(grown.items()) if count)
        return (
            f"nothing is sent, and all {total} deliveries of the last minute were dropped ({reasons}): look at the status of the"
            " subscriptions (`dispatcher subscriptions list`), and whether a setting was lost in a deploy"
        )
