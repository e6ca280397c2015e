"""Deliveries that wait for a time: in memory for a near retry, in a tier for a later one.

In comes a delivery whose next attempt is due at a known time (`outcome.py`, or out of a tier by `returning.py`). Out it goes when that has come,
by the timing wheel to its owner, or through the outbox to the tier that its wait fits. This room alone knows what is held; a
held delivery owes its offset, one that was written to a tier is settled when the broker has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from heapq import nlargest

from dispatcher.core.attempt.outcome import LEFT_TO_ANOTHER, RETRY
from dispatcher.core.endpoint.fairness import TenantUsage
from dispatcher.core.retry.tiers import LEAD, Tiers
from dispatcher.core.retry.wheel import Entry
from dispatcher.delivery.delivery import Delivery
from dispatcher.delivery.memory import MemoryShares
from dispatcher.delivery.outbox import Outbox
from dispatcher.delivery.parking import FAIR_SHARE, Parking
from dispatcher.delivery.settlement import Settlement
from dispatcher.runtime.timers import Callback, Timers
from dispatcher.telemetry.metrics import Metrics


class Holding:
    """What is held, and what is handed to a tier."""

    def __init__(
        self,
        tiers: Tiers,
        outbox: Outbox,
        metrics: Metrics,
        timers: Timers,
        settlement: Settlement,
        memory: MemoryShares,
        parking: Parking,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        """`clock` is the loop's; `wall` gives Unix seconds."""
        self._tiers = tiers
        self._outbox = outbox
        self._metrics = metrics
        self._timers = timers
        self._settlement = settlement
        self._memory = memory
        self._parking = parking
        self._clock = clock
        self._wall = wall
        self._held: dict[Delivery, Entry[Callback]] = {}

    def __len__(self) -> int:
        """Deliveries that wait in memory for a near retry."""
        return len(self._held)

    def all(self) -> list[Delivery]:
        """Those that are held now."""
        return list(self._held)

    def hold(self, delivery: Delivery) -> None:
        """Wake it when it is due. While memory is short, one whose tenant has its part of it waits in a tier instead."""
        usage = delivery.usage
        if (
            self._memory.short
            and usage is not None
            and self._memory.crowded(usage, 0)
            and delivery.due - self._clock() > LEAD  # or it would come out of its tier at once
        ):
            self._put_off(FAIR_SHARE, delivery)
            return
        self._held[delivery] = self._timers.at(delivery.due, delivery.wake)

    def woken(self, delivery: Delivery) -> None:
        """Its wait is over."""
        del self._held[delivery]
        self._metrics.retries_due["memory"] += 1
        self._metrics.retry_lateness.observe(self._clock() - delivery.due)

    def hand_over(self, delivery: Delivery, reason: str) -> None:
        """Let it wait in a retry topic until it is due; settled when the broker has it."""
        unix = self._wall()
        wait = delivery.due - self._clock()
        self._settlement.left(delivery, RETRY, reason)
        message = delivery.record(
            self._tiers.choose(wait).topic, reason, due=unix + wait, parked=delivery.parked, unix=unix
        )
        self._outbox.put(message, partial(self._settlement.settle, delivery))

    def relieve(self, wanted: int) -> None:
        """Memory is scarce: an endpoint that fails now and then opens no breaker, but may have thousands wait for their retry."""
        surplus = len(self._held) - self._settlement.in_flight // 4
        if wanted > 0 and surplus > 0:
            self._give_up(nlargest(surplus, self._held, key=_due), "cap")

    def cut(self, usage: TenantUsage, count: int) -> None:
        """A tenant has more than its part of the memory: what is due last of its deliveries waits in a tier, so many at the most."""
        mine = [delivery for delivery in self._held if delivery.usage is usage]
        self._give_up(nlargest(count, mine, key=_due), FAIR_SHARE)

    def hand_over_overdue(self) -> int:
        """Hand what is owed for longer than the limit to a tier; how many that are."""
        overdue = [delivery for delivery in self._held if delivery.overdue]
        self._give_up(overdue, "hold_limit")
        return len(overdue)

    def _give_up(self, deliveries: Sequence[Delivery], reason: str) -> None:
        """Let what waits in memory for its retry wait in a tier, until it is due."""
        for delivery in deliveries:
            self._timers.cancel(self._held.pop(delivery))
        self._parking.each(deliveries, partial(self._put_off, reason))

    def _put_off(self, reason: str, delivery: Delivery) -> None:
        if delivery.tracker.lost:
            self._settlement.settle(delivery)
        else:
            self._metrics.parked[reason] += 1
            self.hand_over(delivery, reason)

    def leave_behind(self) -> int:
        """Hand what is held to the retry topics, since this process ends; how many that were."""
        now = self._clock()
        held = list(self._held)
        self.forget()
        for delivery in held:
            if delivery.due <= now:
                self._parking.leave_behind(delivery)
            elif delivery.event_source is None and not delivery.tracker.lost:
                # What came out of a topic of ours still stands there.
                self._metrics.parked["shutdown"] += 1
                self.hand_over(delivery, "shutdown")
            elif delivery.trace is not None:
                self._settlement.left(delivery, LEFT_TO_ANOTHER, "shutdown")
        return len(held)

    def forget(self) -> None:
        """The process ends: nothing of what is held is done any more."""
        for entry in self._held.values():
            self._timers.cancel(entry)
        self._held.clear()

    def forget_lost(self) -> None:
        """Of partitions that are somebody else's now, nothing is held on to."""
        for delivery in [d for d in self._held if d.tracker.lost]:
            self._timers.cancel(self._held.pop(delivery))
            self._settlement.settle(delivery)


def _due(delivery: Delivery) -> float:
    return delivery.due
