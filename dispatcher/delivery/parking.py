"""Parks deliveries: writes them to the parked topic, where they wait for their endpoint instead of in memory.

In comes a delivery that its lane turns away, that is trimmed, left behind, or owed to a subscription that takes nothing now. Out goes its
record through the outbox, and when the broker has it the delivery is settled (`settlement.py`). This room alone writes `Delivery.parked`, and the
line of deliveries that are about to be parked.

A parked delivery has no time of its own to come back at: it goes when its endpoint takes something (`backlogs.py` sees to that). Retries with
a due time of their own are not parked; they wait in the tiers, to the millisecond.

A delivery that came out of the parked topic and has not been attempted since still stands there as it is. Parking it again writes nothing: its
offset is given back to the backlog.

Rules:

1. What is parked is settled when the broker has its record, or not at all: given back, its offset stays owed.
2. A delivery of a partition that is somebody else's by now is not written: its owner reads it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from dispatcher.core.attempt.outcome import LEFT_TO_ANOTHER, PARKED
from dispatcher.core.commit.parked import ParkedTracker
from dispatcher.core.subscription.model import Status, Subscription
from dispatcher.delivery.attempt_log import AttemptLog
from dispatcher.delivery.delivery import Delivery
from dispatcher.delivery.outbox import Outbox
from dispatcher.delivery.settlement import Settlement
from dispatcher.telemetry.metrics import Metrics

SINCE: Final = "since_ms"
"""The header that says since when a parked delivery has waited, in Unix milliseconds."""

FAIR_SHARE: Final = "fair_share"
"""Why a delivery is parked whose tenant has its part of the memory."""

_KEPT_AT_LEAST: Final = 7 * 86400.0  # seconds for which this process may be away, and nothing is lost
_SLICE: Final = 32  # deliveries parked in one turn of the loop: about 1 ms of work
_MENDED: Final = frozenset(
    {"invalid", "sealed"}
)  # why a subscription is disabled until its settings are right again


def parked_topic(prefix: str) -> str:
    """The topic's name: with the tiers', so that what they are allowed holds for it too."""
    return f"{prefix}retry.parked"


def parked_retention(pause_keeps: float) -> float:
    """Seconds for which the topic keeps its records. They are written anew when they are half as old."""
    return 2 * max(pause_keeps, _KEPT_AT_LEAST)


def keeps(subscription: Subscription) -> str | None:
    """Why what a subscription is owed is kept for it although it takes nothing now; None if it takes it, or never will."""
    match subscription.status:
        case Status.PAUSED | Status.PENDING:
            return subscription.status.value
        case Status.DISABLED if subscription.reason in _MENDED:
            return subscription.reason
    return None


def owed_while_kept(subscription: Subscription) -> bool:
    """Whether what it would be sent now is owed to it: only where the settings are wrong, and not its owner's wish."""
    return subscription.status is Status.DISABLED and subscription.reason in _MENDED


class Parking:
    """What is written to the parked topic, and what is about to be."""

    def __init__(
        self,
        topic: str,
        outbox: Outbox,
        attempts: AttemptLog,
        metrics: Metrics,
        settlement: Settlement,
        *,
        broken: Callable[[str, Exception], None],
        wall: Callable[[], float],
    ) -> None:
        """`broken` is told of an exception where none can be. `wall` gives Unix seconds."""
        self._topic = topic
        self._outbox = outbox
        self._attempts = attempts
        self._metrics = metrics
        self._settlement = settlement
        self._broken = broken
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        self._soon: deque[tuple[Delivery, Callable[[Delivery], None]]] = deque()

    def __len__(self) -> int:
        """Those that are about to be parked."""
        return len(self._soon)

    @property
    def unwritten(self) -> int:
        """Records of deliveries that the broker doesn't have yet, and those that are about to be parked."""
        return len(self._soon) + len(self._outbox)

    def park(self, delivery: Delivery, reason: str, until: float = 0.0, *, noted: bool = False) -> None:
        """Write it, or give it back; `until` (of the loop) is when its endpoint takes something again, where it has said so.

        `noted`: the attempt log knows of it.
        """
        tracker = delivery.tracker
        if tracker.lost:
            self._settlement.settle(delivery)
            return
        if isinstance(tracker, ParkedTracker) and tracker.give_back(delivery.offset):
            self._settlement.forget(delivery)
            return
        self._metrics.parked[reason] += 1
        delivery.parked += 1
        now, unix = self._loop.time(), self._wall()
        if self._attempts.failures and not noted:
            self._attempts.decided(delivery.decided(PARKED, reason, unix))
        self._settlement.left(delivery, PARKED, reason)
        message = delivery.record(
            self._topic,
            reason,
            due=unix + max(0.0, until - now),
            parked=delivery.parked,
            extra=[(SINCE, b"%d" % round((unix - max(0.0, now - delivery.queued)) * 1000))],
            unix=unix,
        )
        self._outbox.put(message, partial(self._settlement.settle, delivery))

    def soon(self, deliveries: Sequence[Delivery], reason: str, until: float = 0.0) -> None:
        """Park what has been taken out of a lane."""
        self.each(deliveries, partial(self.park, reason=reason, until=until))

    def each(self, deliveries: Sequence[Delivery], write: Callable[[Delivery], None]) -> None:
        """Have each written. Thousands may be: not in one turn of the loop."""
        if deliveries and not self._soon:
            self._loop.call_soon(self._some)
        self._soon.extend((delivery, write) for delivery in deliveries)

    def _some(self) -> None:
        try:
            for _ in range(min(_SLICE, len(self._soon))):
                self._next()
        except Exception as error:  # noqa: BLE001 - nothing of a delivery may get lost on the way
            self._broken("parking", error)
        if self._soon:
            self._loop.call_soon(self._some)

    def _next(self) -> None:
        delivery, write = self._soon.popleft()
        write(delivery)

    def all(self) -> None:
        """Write those at once that are about to be."""
        while self._soon:
            self._next()

    def left_as(self, delivery: Delivery) -> str:
        """What comes of it by `leave_behind`, as a decision."""
        if delivery.tracker.lost:
            return LEFT_TO_ANOTHER
        if delivery.event_source is None or isinstance(delivery.tracker, ParkedTracker):
            return PARKED
        return LEFT_TO_ANOTHER  # it stands in its tier as before, and whoever has the partition then reads it

    def leave_behind(self, delivery: Delivery, *, noted: bool = False) -> None:
        """Park it, since this process ends. What came out of a topic of ours still stands there. `noted` as in `park`."""
        if delivery.event_source is None:
            self.park(delivery, "shutdown", noted=noted)
        elif delivery.trace is not None:
            self._settlement.left(delivery, self.left_as(delivery), "shutdown")
