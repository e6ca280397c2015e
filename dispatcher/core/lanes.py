"""Everything one origin (scheme, host, port) is owed: who is next, and how many at a time.

Two limits hold at once: the lane's (`connections_per_host`, for the sake of the host) and
each subscription's own (`max_in_flight`, as its owner wrote). Between the subscriptions of a
lane turns go round: each time one comes up, it gets one delivery sent and goes to the end
of the line. So a flood for one subscription delays its neighbours on the same host by one
delivery each, not by the flood.

A subscription without anything queued or in flight leaves no trace in its lane, and a lane
without any can be dropped by its owner.

Rules:

1. `take` hands out at most `limit` items that have not been released, and of each share at
   most the share's `limit`.
2. A share stands in `_turns` exactly once if it could be served now, were the lane free
   (something queued, fewer in flight than its limit), and otherwise not at all.
3. Within a share: what was offered as urgent (it waited before) first, the latest of them
   ahead; then the rest in the order of arrival.
4. Every item taken is released exactly once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Share(Generic[T]):
    """One subscription's part of a lane."""

    __slots__ = ("_waiting_turn", "in_flight", "key", "limit", "queue")

    def __init__(self, key: str, limit: int) -> None:
        self.key = key
        self.limit = limit
        self.in_flight = 0
        self.queue: deque[T] = deque()
        self._waiting_turn = False


class Lane(Generic[T]):
    """The queue and the concurrency of one origin. Owned by the engine."""

    __slots__ = ("_shares", "_turns", "idle_since", "in_flight", "limit", "queued")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0
        self.queued = 0
        self.idle_since: float | None = None  # kept by the owner, who drops idle lanes
        self._shares: dict[str, Share[T]] = {}
        self._turns: deque[Share[T]] = deque()

    def offer(self, key: str, limit: int, item: T, *, urgent: bool = False) -> None:
        """Queue `item` for the subscription `key`, whose own limit is `limit` by now."""
        share = self._shares.get(key)
        if share is None:
            share = self._shares[key] = Share(key, limit)
        share.limit = limit
        if urgent:
            share.queue.appendleft(item)
        else:
            share.queue.append(item)
        self.queued += 1
        if not share._waiting_turn and share.in_flight < limit:
            share._waiting_turn = True
            self._turns.append(share)

    def take(self) -> tuple[T, Share[T]] | None:
        """The next item to send, with the share to `release` when it is over; None if none may be sent."""
        if self.in_flight >= self.limit:
            return None
        turns = self._turns
        while turns:
            share = turns.popleft()
            if share.in_flight >= share.limit:  # the limit was lowered while it stood in line
                share._waiting_turn = False
                continue
            item = share.queue.popleft()
            share.in_flight += 1
            self.in_flight += 1
            self.queued -= 1
            if share.queue and share.in_flight < share.limit:
                turns.append(share)
            else:
                share._waiting_turn = False
            return item, share
        return None

    def release(self, share: Share[T]) -> None:
        """An item taken is over, whatever came of it."""
        self.in_flight -= 1
        share.in_flight -= 1
        if share.queue:
            if not share._waiting_turn and share.in_flight < share.limit:
                share._waiting_turn = True
                self._turns.append(share)
        elif share.in_flight == 0:
            del self._shares[share.key]

    def withdraw(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Take out of the queue what is `unwanted`, in the order it would have been served within each share."""
        withdrawn: list[T] = []
        for share in list(self._shares.values()):
            found = [item for item in share.queue if unwanted(item)]
            if not found:
                continue
            withdrawn += found
            share.queue = deque(item for item in share.queue if not unwanted(item))
            if not share.queue:
                if share._waiting_turn:
                    share._waiting_turn = False
                    self._turns.remove(share)
                if share.in_flight == 0:
                    del self._shares[share.key]
        self.queued -= len(withdrawn)
        return withdrawn

    @property
    def empty(self) -> bool:
        """Nothing queued, nothing in flight."""
        return not self._shares
