"""One subscription's part of a lane: its queue, its limits, and its rate.

A subscription may be limited to a rate. That is kept by the generic cell rate algorithm (ITU-T I.371): a token bucket
that needs one number, the time at which the bucket will be full again, and no refilling. A tenth of a second's worth may go
at once, so that the limit holds for every second and not just on average.

A share belongs to its lane (`lane.py`), which alone writes it; its rules stand there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import Final, Generic, TypeVar

from dispatcher.core.endpoint.fairness import TenantUsage
from dispatcher.core.endpoint.limiter import Limiter

T = TypeVar("T")

BURST: Final = 0.1
"""Seconds' worth of a rate that may go at once; one delivery at the least."""


class TenantPart(Generic[T]):
    """What one tenant has of a lane that several tenants use."""

    __slots__ = ("in_flight", "in_line", "members", "turns", "usage")

    def __init__(self, usage: TenantUsage) -> None:
        self.usage = usage
        self.in_flight = 0
        self.members = 0  # shares
        self.turns: deque[Share[T]] = deque()
        self.in_line = False


class Share(Limiter, Generic[T]):
    """One subscription's part of a lane."""

    __slots__ = (
        "_first",
        "_fresh",
        "_parked",
        "_parked_last",
        "_timed",
        "_urgent",
        "_waiting_turn",
        "blocked_until",
        "full_at",
        "held",
        "key",
        "lane",
        "part",
        "rate",
        "usage",
    )

    lane: object
    """Where it is, from when it was `held` first."""

    def __init__(self, key: str, limit: int, usage: TenantUsage) -> None:
        # The parent's, written out: a share is made for most deliveries of a quiet subscription.
        self.own = self.limit = limit
        self.in_flight = self.queued = self.done = 0
        self.room = float("inf")
        self.throughput = None
        self.backpressure = None
        self.key = key
        self.usage = usage  # its tenant's
        self.part: TenantPart[T] | None = None  # its tenant's of the lane, where that counts them
        self.held = False  # its tenant may begin no more (`fairness.py`), and it waits for that
        self.rate: float | None = None  # deliveries a second
        self.blocked_until = 0.0
        self.full_at = 0.0  # when the bucket is full again; only with a rate
        # The first one stands apart: of 10,000 shares with one delivery each, the queues alone would take 8 MB.
        self._first: T | None = None
        self._fresh: deque[T] | None = None  # what came after it
        self._urgent: deque[T] | None = None
        self._parked: deque[T] | None = None  # what came out of the parked topic
        self._parked_last = False  # the last one taken was such
        self._waiting_turn = False
        self._timed = False  # the owner has been asked to call `unblock`

    def _next(self) -> T:
        self.queued -= 1
        urgent = self._urgent
        if urgent:
            return urgent.popleft()
        first = self._first
        parked = self._parked
        if parked and (not self._parked_last or (first is None and not self._fresh)):
            self._parked_last = True
            return parked.popleft()
        self._parked_last = False
        if first is not None:
            self._first = None
            return first
        return self._fresh.popleft()  # type: ignore[union-attr]

    def _append(self, item: T) -> None:
        fresh = self._fresh
        if not fresh and self._first is None:
            self._first = item
        elif fresh is None:
            self._fresh = deque((item,))
        else:
            fresh.append(item)

    def _spend(self, rate: float, now: float) -> None:
        """One has been taken: the next may go when the bucket allows."""
        self.full_at = max(self.full_at, now) + 1 / rate
        self.blocked_until = max(self.blocked_until, self.full_at - max(BURST - 1 / rate, 0.0))

    def _queue(self) -> Iterator[T]:
        first = self._first
        return chain(
            self._urgent or (), self._parked or (), () if first is None else (first,), self._fresh or ()
        )

    def _newest(self) -> T:
        self.queued -= 1
        if self._parked:
            return self._parked.pop()  # it goes back for nothing
        if self._fresh:
            return self._fresh.pop()
        first = self._first
        if first is not None:
            self._first = None
            return first
        return self._urgent.pop()  # type: ignore[union-attr]

    def _roomy(self, max_wait: float) -> float:
        return float("inf") if self.rate is None else max(1.0, self.rate * max_wait)

    @property
    def rate_of_completion(self) -> float | None:
        """A second, while busy: as measured, or as it is limited to."""
        measured = None if self.throughput is None else self.throughput.rate
        return self.rate if measured is None else measured

    def _nothing_left(self) -> bool:
        return (
            not self.queued
            and not self.in_flight
            and self.rate is None
            and self.backpressure is None
            and self.throughput is None
        )
