"""Parks deliveries: writes them to the parked topic, where they wait for their endpoint instead of in memory.

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
from typing import Final, Generic, Protocol, TypeVar

from dispatcher.broker.base import Message, Record
from dispatcher.core.commit.offsets import PartitionTracker
from dispatcher.core.commit.parked import ParkedTracker
from dispatcher.core.event.decode import Event
from dispatcher.core.retry.records import History, Letter, Place, delivery_headers
from dispatcher.core.subscription.model import Status, Subscription
from dispatcher.delivery.outbox import Outbox
from dispatcher.telemetry.metrics import Metrics

SINCE: Final = "since_ms"
"""The header that says since when a parked delivery has waited, in Unix milliseconds."""

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


class Appetite(Protocol):
    """What a subscription can take (see `deliveries.py`)."""

    @property
    def most(self) -> int: ...
    @property
    def again(self) -> float: ...
    @property
    def kept(self) -> str | None: ...
    @property
    def room(self) -> int: ...


class Host(Protocol):
    """Who delivers what was parked (see `backlogs.py`)."""

    def appetite(self, subscription_id: str, since: float, rate: float) -> Appetite:
        """How many of a subscription may be with its lane."""

    def state_of(self, subscription_id: str) -> object:
        """Something that is another one when the subscription has become deliverable, or is no more."""

    def take_parked(self, letter: Letter, tracker: ParkedTracker, offset: int) -> None:
        """Deliver it, settle its offset, or give it back to the tracker."""

    def expire_parked(self, letter: Letter, tracker: ParkedTracker, offset: int) -> None:
        """It was kept for long enough; settle its offset."""

    def refuse(self, record: Record, tracker: ParkedTracker, reason: str, detail: str) -> None:
        """Nobody can read it: to the dead letters with it, then settle the offset."""


class Waiting(Protocol):
    """A delivery, as it is parked."""

    event: Event
    subscription: Subscription
    tracker: PartitionTracker
    offset: int
    attempt: int
    first_attempt_ms: int | None
    last_result: str | None
    history: History
    parked: int
    queued: float

    @property
    def origin(self) -> Place:
        """Where its event was read."""


W = TypeVar("W", bound=Waiting)


class Parking(Generic[W]):
    """Owned by `Deliveries`."""

    def __init__(
        self,
        topic: str,
        outbox: Outbox,
        metrics: Metrics,
        *,
        settle: Callable[[W], None],
        forget: Callable[[W], None],
        broken: Callable[[str, Exception], None],
        wall: Callable[[], float],
    ) -> None:
        """`settle` and `forget` take a delivery out of the books, the first with its offset. `wall` gives Unix seconds."""
        self._topic = topic
        self._outbox = outbox
        self._metrics = metrics
        self._settle = settle
        self._forget = forget
        self._broken = broken
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        self._soon: deque[tuple[W, Callable[[W], None]]] = deque()

    def __len__(self) -> int:
        """Those that are about to be parked."""
        return len(self._soon)

    def park(self, delivery: W, reason: str, until: float = 0.0) -> None:
        """Write it, or give it back; `until` (of the loop) is when its endpoint takes something again, where it has said so."""
        tracker = delivery.tracker
        if tracker.lost:
            self._settle(delivery)
            return
        if isinstance(tracker, ParkedTracker) and tracker.give_back(delivery.offset):
            self._forget(delivery)
            return
        self._metrics.parked[reason] += 1
        delivery.parked += 1
        now, unix = self._loop.time(), self._wall()
        event = delivery.event
        headers = delivery_headers(
            event,
            delivery.subscription.id,
            delivery.origin,
            attempt=delivery.attempt,
            first_attempt_ms=delivery.first_attempt_ms,
            last_result=delivery.last_result,
            history=delivery.history,
            reason=reason,
            due=unix + max(0.0, until - now),
            parked=delivery.parked,
        )
        headers.append((SINCE, b"%d" % round((unix - max(0.0, now - delivery.queued)) * 1000)))
        key = delivery.subscription.id.encode()
        message = Message(self._topic, event.body, key, headers, timestamp_ms=int(unix * 1000))
        self._outbox.put(message, partial(self._settle, delivery))

    def soon(self, deliveries: Sequence[W], reason: str, until: float = 0.0) -> None:
        """Park what has been taken out of a lane."""
        self.each(deliveries, partial(self.park, reason=reason, until=until))

    def each(self, deliveries: Sequence[W], write: Callable[[W], None]) -> None:
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
