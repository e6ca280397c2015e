"""Everything one origin (scheme, host, port) is owed: who is next, and how many at a time.

Two limits hold at once: the lane's (`connections_per_host`, for the sake of the host) and
each subscription's own (`max_in_flight`, as its owner wrote). Between the subscriptions of a
lane turns go round: each time one comes up, it gets one delivery sent and goes to the end
of the line. So a flood for one subscription delays its neighbours on the same host by one
delivery each, not by the flood.

A subscription may also be limited to a rate. That is kept by the generic cell rate algorithm (ITU-T I.371): a token bucket
that needs one number, the time at which the bucket will be full again, and no refilling. A tenth of a second's worth may go
at once, so that the limit holds for every second and not just on average.

A subscription without anything queued or in flight leaves no trace in its lane, once its bucket is full again; a lane
without any can be dropped by its owner.

Rules:

1. `take` hands out at most `limit` items that have not been released, and of each share at
   most the share's `limit`, and no sooner than its rate allows.
2. A share stands in `_turns` at most once, and always if it could be served now, were the lane free
   (something queued, fewer in flight than its limit, not blocked).
3. A share that is blocked and has something queued stands in `blocked` once it came up, until the owner takes it from there; the
   owner calls `unblock` at `blocked_until`.
4. Within a share: what was offered as urgent (it waited before) first, then the rest, each in the order of arrival.
5. Every item taken is released exactly once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Final, Generic, TypeVar

T = TypeVar("T")

BURST: Final = 0.1
"""Seconds' worth of a rate that may go at once; one delivery at the least."""


class Share(Generic[T]):
    """One subscription's part of a lane."""

    __slots__ = (
        "_fresh",
        "_timed",
        "_urgent",
        "_waiting_turn",
        "blocked_until",
        "full_at",
        "in_flight",
        "key",
        "limit",
        "queued",
        "rate",
    )

    def __init__(self, key: str, limit: int, rate: float | None) -> None:
        """`rate` is in deliveries a second; None for any."""
        self.key = key
        self.limit = limit
        self.in_flight = 0
        self.queued = 0
        self.rate = rate
        self.blocked_until = 0.0
        self.full_at = 0.0  # when the bucket is full again; only with a rate
        self._fresh: deque[T] = deque()
        self._urgent: deque[T] | None = None
        self._waiting_turn = False
        self._timed = False  # the owner has been asked to call `unblock`

    def _next(self) -> T:
        self.queued -= 1
        urgent = self._urgent
        return urgent.popleft() if urgent else self._fresh.popleft()

    def _spend(self, rate: float, now: float) -> None:
        """One has been taken: the next may go when the bucket allows."""
        self.full_at = max(self.full_at, now) + 1 / rate
        next_one = self.full_at - max(BURST - 1 / rate, 0.0)
        self.blocked_until = max(self.blocked_until, next_one)

    def _queue(self) -> Iterator[T]:
        return chain(self._urgent or (), self._fresh)


class Lane(Generic[T]):
    """The queue and the concurrency of one origin. Owned by the engine. All times are seconds of any one clock."""

    __slots__ = ("_shares", "_turns", "blocked", "idle_since", "in_flight", "limit", "queued")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0
        self.queued = 0
        self.idle_since: float | None = None  # kept by the owner, who drops idle lanes
        self.blocked: list[Share[T]] = []  # see rule 3
        self._shares: dict[str, Share[T]] = {}
        self._turns: deque[Share[T]] = deque()

    def offer(
        self, key: str, limit: int, item: T, *, urgent: bool = False, rate: float | None = None
    ) -> None:
        """Queue `item` for the subscription `key`, whose own limits are `limit` and `rate` by now."""
        share = self._shares.get(key)
        if share is None:
            share = self._shares[key] = Share(key, limit, rate)
        share.limit = limit
        if rate != share.rate:
            share.rate = rate
            share.full_at = share.blocked_until = 0.0
        if urgent:
            if share._urgent is None:
                share._urgent = deque()
            share._urgent.append(item)
        else:
            share._fresh.append(item)
        share.queued += 1
        self.queued += 1
        if not share._waiting_turn and share.in_flight < limit:
            share._waiting_turn = True
            self._turns.append(share)

    def take(self, now: float) -> tuple[T, Share[T]] | None:
        """The next item to send, with the share to `release` when it is over; None if none may be sent."""
        if self.in_flight >= self.limit:
            return None
        turns = self._turns
        while turns:
            share = turns.popleft()
            if share.blocked_until > now:
                share._waiting_turn = False
                if not share._timed:
                    share._timed = True
                    self.blocked.append(share)
                continue
            if share.in_flight >= share.limit:  # the limit was lowered while it stood in line
                share._waiting_turn = False
                continue
            item = share._next()
            share.in_flight += 1
            self.in_flight += 1
            self.queued -= 1
            if share.rate is not None:
                share._spend(share.rate, now)
            if share.queued and share.in_flight < share.limit:
                turns.append(share)
            else:
                share._waiting_turn = False
            return item, share
        return None

    def release(self, share: Share[T]) -> None:
        """An item taken is over, whatever came of it."""
        self.in_flight -= 1
        share.in_flight -= 1
        if share.queued:
            self._line_up(share)
        elif share.in_flight == 0 and share.rate is None:
            del self._shares[share.key]

    def unblock(self, share: Share[T]) -> None:
        """Its `blocked_until` has come."""
        share._timed = False
        if share.queued:
            self._line_up(share)

    def _line_up(self, share: Share[T]) -> None:
        if not share._waiting_turn and share.in_flight < share.limit:
            share._waiting_turn = True
            self._turns.append(share)

    def withdraw(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Take out of the queue what is `unwanted`, in the order it would have been served within each share."""
        withdrawn: list[T] = []
        for share in list(self._shares.values()):
            found = [item for item in share._queue() if unwanted(item)]
            if not found:
                continue
            withdrawn += found
            if share._urgent:
                share._urgent = deque(item for item in share._urgent if not unwanted(item))
            share._fresh = deque(item for item in share._fresh if not unwanted(item))
            self._shrunk(share, len(found))
        return withdrawn

    def _shrunk(self, share: Share[T], count: int) -> None:
        self.queued -= count
        share.queued -= count
        if not share.queued:
            if share._waiting_turn:
                share._waiting_turn = False
                self._turns.remove(share)
            if share.in_flight == 0 and share.rate is None:
                del self._shares[share.key]

    def tidy(self, now: float) -> None:
        """Forget the shares that have nothing to remember any more; called now and then."""
        for share in [
            share
            for share in self._shares.values()
            if not share.queued and not share.in_flight and share.full_at <= now
        ]:
            del self._shares[share.key]

    @property
    def empty(self) -> bool:
        """Nothing queued, nothing in flight, nothing to remember."""
        return not self._shares
