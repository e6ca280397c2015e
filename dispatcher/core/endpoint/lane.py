"""Everything one origin (scheme, host, port) is owed: who is next, how many at a time, and what is turned away.

Two limits hold at once: the lane's (`connections_per_host`, for the sake of the host) and
each subscription's own (`max_in_flight`, as its owner wrote). Between the subscriptions of a
lane turns go round: each time one comes up, it gets one delivery sent and goes to the end
of the line. So a flood for one subscription delays its neighbours on the same host by one
delivery each, not by the flood.

A subscription may also be limited to a rate. That is kept by the generic cell rate algorithm (ITU-T I.371): a token bucket
that needs one number, the time at which the bucket will be full again, and no refilling. A tenth of a second's worth may go
at once, so that the limit holds for every second and not just on average.

What comes to a lane whose endpoint has asked for less is turned away (`Refusal`), and the owner parks it: a breaker is open (`breaker.py`), or the
endpoint asked for time (Retry-After). Where memory is scarce (the owner says so, `tight`), it is for what will be sent soon: then also what would
have to wait for too long behind what is queued already (`throughput.py`) is turned away. The wait is judged where it arises. A subscription that is slow turns away its own deliveries only. One that
shares a slow host waits for its turns: `n` deliveries before this one, in a lane of `m` subscriptions, are at most n * m turns, and no more
than all that is queued; so a neighbour's flood turns nobody else's delivery away.

While a breaker probes, and until the endpoint takes as much at a time as ever, its throughput says nothing: one attempt at a time that
ends in a timeout would make appointments for hours. So nothing is measured then. As much may wait as may be sent at a time, and
the rest is turned away as if the breaker were open, for the shortest of delays.

The healthy case pays two comparisons for all of this: `backpressure` is None and `room` is infinite wherever nothing is the matter, and a
subscription without anything queued, in flight or to remember leaves no trace in its lane. A lane
without any can be dropped by its owner.

Rules:

1. `take` hands out at most `limit` items that have not been released, and of each share at
   most the share's `limit`, and no sooner than its rate allows. `limit` is the owner's, or less while a window is in force.
2. A share stands in `_turns` at most once, and always if it could be served now, were the lane free
   (something queued, fewer in flight than its limit, not blocked).
3. A share that is blocked and has something queued stands in `blocked` once it came up, until the owner takes it from there; the
   owner calls `unblock` at `blocked_until`.
4. Within a share: what was offered as urgent (its retry is due) first; then what was parked and what is fresh, in turns, each in the
   order of arrival.
5. Every item taken, or passed through, is released exactly once. What is offered is queued or turned away, never both.
6. `failed`, `succeeded`, `throttled` are told before the item's `release`, so that this one already goes by the new limits.
7. Every share with more than one item queued, or with a measured throughput, stands in `_deep`, until `measure` finds neither. Those with one
   item at most are not measured: one may always be queued. There may be 10,000 of them, some times a second.
8. A lane whose last share is released has `_NO_SHARES` for its own, which nothing is ever put into. Of 10,000 lanes in turns each
   would find its own empty dictionary where nobody has been for a while; a new one is in the cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar, cast

from dispatcher.core.endpoint.limiter import Limiter

T = TypeVar("T")

BURST: Final = 0.1
"""Seconds' worth of a rate that may go at once; one delivery at the least."""


_NO_SHARES: Final[dict[str, Any]] = {}  # see rule 8
_NO_TURNS: Final = cast(
    "deque[Any]", ()
)  # of a closed lane: what is offered there raises instead of being lost

ParkReason = Literal["breaker", "retry_after", "queue_wait"]


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
        "key",
        "rate",
    )

    def __init__(self, key: str, limit: int) -> None:
        # The parent's, written out: a share is made for most deliveries of a quiet subscription.
        self.own = self.limit = limit
        self.in_flight = self.queued = self.done = 0
        self.room = float("inf")
        self.throughput = None
        self.backpressure = None
        self.key = key
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


class Refusal(NamedTuple):
    """Why something was not queued, and when it may be at the earliest."""

    reason: ParkReason
    until: float


# Long: who is next, how many at a time and what is turned away go by the same few fields, and each of them changes the others.
class Lane(Limiter, Generic[T]):
    """The queue and the concurrency of one origin. Owned by the engine. All times are seconds of any one clock."""

    __slots__ = (
        "_deep",
        "_max_wait",
        "_shares",
        "_turns",
        "blocked",
        "idle_since",
        "longest_wait",
        "watched",
    )

    def __init__(self, limit: int, max_wait: float = float("inf")) -> None:
        """`max_wait` is how long what is queued may have to wait, in seconds."""
        super().__init__(limit)
        # What every delivery looks at comes first: compiled, it is side by side in memory.
        self._shares: dict[str, Share[T]] = _NO_SHARES
        self.idle_since: float | None = None  # kept by the owner, who drops idle lanes
        self.watched = False  # likewise: it calls `measure`
        self.blocked: list[Share[T]] = []  # see rule 3
        self.longest_wait = 0.0
        """Seconds that the last of a queue in here will wait, as far as that is known: at the last `measure`."""
        self._max_wait = max_wait
        self._turns: deque[Share[T]] = deque()
        self._deep: dict[Share[T], None] = {}  # see rule 7

    def offer(
        self,
        key: str,
        limit: int,
        item: T,
        now: float,
        *,
        urgent: bool = False,
        parked: bool = False,
        tight: bool = True,
        rate: float | None = None,
    ) -> Refusal | None:
        """Queue `item` for the subscription `key`, whose own limits are `limit` and `rate` by now; or say why not.

        `urgent` and `parked` say where it waits (rule 4), `tight` that memory is scarce.
        """
        share = self._shares.get(key)
        if share is None:
            share = self._new_share(key, limit)
        if limit != share.own:
            share.own = limit
            share._adapt()
            if share.queued:
                self._line_up(share)
        if rate != share.rate:
            share.rate = rate
            share.full_at = 0.0
            share.blocked_until = 0.0 if share.backpressure is None else share.backpressure.quiet_until
            share.room = share._roomy(self._max_wait)
        if (
            share.backpressure is not None
            or self.backpressure is not None
            or share.queued >= share.room
            or self.queued >= self.room
        ):
            refusal = self._refusal(share, now, urgent=urgent, tight=tight)
            if refusal is not None:
                if share._nothing_left():
                    del self._shares[key]
                return refusal
        if urgent:
            if share._urgent is None:
                share._urgent = deque()
            share._urgent.append(item)
        elif parked:
            if share._parked is None:
                share._parked = deque()
            share._parked.append(item)
        else:
            share._append(item)
        share.queued += 1
        if share.queued == 2:
            self._deep[share] = None
        self.queued += 1
        if not share._waiting_turn and share.in_flight < share.limit:
            share._waiting_turn = True
            self._turns.append(share)
        return None

    def pass_through(self, key: str, limit: int, rate: float | None) -> Share[T] | None:
        """`offer` and `take` in one, where an item would be sent at once: the share to `release`. None: offer it.

        Most deliveries find nothing queued: 0.6 instead of 1.0 us with `release`, compiled.
        """
        if self.queued or self.in_flight >= self.limit or self.backpressure is not None or rate is not None:
            return None
        share = self._shares.get(key)
        if share is None:
            share = self._new_share(key, limit)
        elif (
            share.own != limit
            or share.in_flight >= share.limit
            or share.backpressure is not None
            or share.rate is not None
        ):
            return None
        share.in_flight += 1
        self.in_flight += 1
        return share

    def _new_share(self, key: str, limit: int) -> Share[T]:
        share: Share[T] = Share(key, limit)
        if self._shares:
            self._shares[key] = share
        else:
            self._shares = {key: share}
        return share

    def room_for_parked(
        self, key: str, limit: int, rate: float | None, now: float
    ) -> tuple[int, bool, float]:
        """How many parked ones of the subscription `key` may be here at a time, whether that is all that may be under way,
        and where it is none, when to ask again.
        """
        share = self._shares.get(key)
        most = min(self.limit, limit if share is None else share.limit)
        recovering = False
        for limiter in (self, share):
            backpressure = None if limiter is None else limiter.backpressure
            if backpressure is None:
                continue
            if backpressure.breaker is not None and not backpressure.breaker.admits(now):
                return 0, True, backpressure.breaker.until
            asked = max(backpressure.closed_until, backpressure.quiet_until)
            if asked > now:
                return 0, True, asked
            recovering = recovering or backpressure.opened
        if rate is not None and rate < most:
            return max(1, int(rate)), True, now
        return most, recovering, now

    def first_fresh(self, key: str) -> T | None:
        """What has waited here longest of what was not parked, if more is queued than may be under way."""
        share = self._shares.get(key)
        if share is None or share.queued <= 2 * share.limit:
            return None
        if share._first is not None:
            return share._first
        return share._fresh[0] if share._fresh else None

    def _refusal(self, share: Share[T], now: float, *, urgent: bool, tight: bool) -> Refusal | None:
        before = len(share._urgent or ()) if urgent else share.queued
        for limiter in (self, share):
            backpressure = limiter.backpressure
            if backpressure is None:
                continue
            if backpressure.breaker is not None and not backpressure.breaker.admits(now):
                return Refusal("breaker", backpressure.breaker.until)
            if backpressure.opened and (
                share.queued >= share.own if limiter is share else self._waits_for_all(before, self.own)
            ):
                return Refusal("breaker", now)
            if backpressure.closed_until > now:
                return Refusal("retry_after", backpressure.closed_until)
        if not tight:
            return None
        if before >= share.room:
            return Refusal("queue_wait", now)
        if self._waits_for_all(before, self.room):
            return Refusal("queue_wait", now)
        return None

    def _waits_for_all(self, before: int, most: float) -> bool:
        """Whether what is queued behind so many of its own share has more than `most` turns of the lane to wait."""
        return self.queued >= most and (before + 1) * len(self._shares) >= most

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
        self.done += 1
        share.in_flight -= 1
        share.done += 1
        if share.queued:
            self._line_up(share)
        elif (
            share.in_flight == 0
            and share.rate is None
            and share.backpressure is None
            and share.throughput is None
        ):
            if len(self._shares) == 1:
                self._shares = _NO_SHARES
            else:
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

    def postpone(self, share: Share[T], started: float, until: float, now: float) -> tuple[bool, bool]:
        """The subscription's endpoint, asked at `started`, wants nothing before `until`.

        Not long: what is queued stays. Else everything that comes is turned away until then; what is queued is the
        owner's to withdraw. Either way it then begins with one at a time. One that asks for a little time again and
        again, and takes nothing in between, has asked for a long time: what waits for it would fill the memory.

        Returns whether to withdraw, and whether it was news: the others of its round only say it again.
        """
        backpressure = share._pressed()
        news = started >= backpressure.cut_at
        wait = until - now
        backpressure.asked = backpressure.asked + wait if news else max(backpressure.asked, wait)
        share._narrow(backpressure, 1.0, now, rising=True)
        if backpressure.asked <= self._max_wait:
            backpressure.quiet_until = max(backpressure.quiet_until, until)
            share.blocked_until = max(share.blocked_until, until)
            return False, news
        backpressure.closed_until = max(backpressure.closed_until, until)
        return True, news

    def measure(self, seconds: float) -> bool:
        """The last measurement was so many `seconds` ago; whether there is any need for another one."""
        # With a slot free, what is queued waits for something else: its own limits, or the time its endpoint asked for.
        full = self.in_flight >= self.limit
        recovering = self.recovering
        needed = self._gauge(seconds, self._max_wait, busy=full and self.queued > 0, recovering=recovering)
        longest = self.wait
        for share in list(self._deep):
            if share.queued > 1 or share.throughput is not None:
                busy = share.queued > 0 and (full or share.in_flight >= share.limit)
                needed |= share._gauge(
                    seconds, self._max_wait, busy=busy, recovering=recovering or share.recovering
                )
                if share._nothing_left():
                    del self._shares[share.key]
            if share.queued <= 1 and share.throughput is None:
                del self._deep[share]
            else:
                longest = max(longest, share.wait)
        self.longest_wait = longest
        return needed

    def trim(self, most: int) -> list[T]:
        """Take out, newest first, what is queued beyond the room, `most` at the most. The subscriptions that have most queued give most."""
        trimmed: list[T] = []
        for share in list(self._deep):
            if share.queued > share.room:
                self._cut(share, max(int(share.room), share.queued - most + len(trimmed)), trimmed)
        if self.queued > self.room:
            wanted = max(int(self.room), self.queued - most + len(trimmed))
            level = _level(sorted(share.queued for share in self._shares.values()), wanted)
            for share in list(self._shares.values()):
                if share.queued > level:
                    self._cut(share, level, trimmed)
        return trimmed

    def _cut(self, share: Share[T], left: int, trimmed: list[T]) -> None:
        before = share.queued
        if before <= left:
            return
        while share.queued > left:
            trimmed.append(share._newest())
        share.queued = before
        self._shrunk(share, before - left)

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
            if share._parked:
                share._parked = deque(item for item in share._parked if not unwanted(item))
            if share._first is not None and unwanted(share._first):
                share._first = None
            if share._fresh:
                share._fresh = deque(item for item in share._fresh if not unwanted(item))
            self._shrunk(share, len(found))
        return withdrawn

    def withdraw_share(self, share: Share[T]) -> list[T]:
        """Take out all that one subscription has queued, in the order it would have been served."""
        withdrawn = list(share._queue())
        share._urgent = share._parked = share._first = share._fresh = None
        self._shrunk(share, len(withdrawn))
        return withdrawn

    def _shrunk(self, share: Share[T], count: int) -> None:
        self.queued -= count
        share.queued -= count
        if not share.queued:
            if share._waiting_turn:
                share._waiting_turn = False
                self._turns.remove(share)
            if share._nothing_left():
                self._shares.pop(share.key, None)

    def find(self, key: str) -> Share[T] | None:
        """The subscription's share, if there is anything to say of it."""
        return self._shares.get(key)

    def shares(self) -> Iterator[Share[T]]:
        """All of them."""
        return iter(self._shares.values())

    def tidy(self, now: float) -> None:
        """Forget what there is no need to remember any more; called now and then."""
        self._settle_down(now)
        for share in list(self._shares.values()):
            share._settle_down(now)
            if share.rate is not None and share.full_at <= now and not share.queued and not share.in_flight:
                share.rate = None  # said again with the next offer
                if share.throughput is None or share.throughput.rate is None:
                    share.room = share._roomy(self._max_wait)
            if share._nothing_left():
                del self._shares[share.key]

    def close(self) -> None:
        """Nothing will come here any more: keep nothing large. Only if it is `empty`."""
        self._turns = _NO_TURNS

    @property
    def empty(self) -> bool:
        """Nothing queued, nothing in flight, nothing to remember."""
        return not self._shares and self.backpressure is None


def _level(amounts: list[int], total: int) -> int:
    """To what each of the ascending `amounts` must be cut, so that together they are at most `total`."""
    left = total
    for number, amount in enumerate(amounts):
        level = left // (len(amounts) - number)
        if amount > level:
            return level
        left -= amount
    return amounts[-1] if amounts else 0
