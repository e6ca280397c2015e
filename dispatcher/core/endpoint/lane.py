"""Everything one origin (scheme, host, port) is owed: who is next, how many at a time, and what is turned away.

Two limits hold at once: the lane's (`connections_per_host`, for the sake of the host) and
each subscription's own (`max_in_flight`, as its owner wrote). Between the subscriptions of a
lane turns go round: each time one comes up, it gets one delivery sent and goes to the end
of the line. So a flood for one subscription delays its neighbours on the same host by one
delivery each, not by the flood.

A subscription may also be limited to a rate. That is kept by the generic cell rate algorithm (ITU-T I.371): a token bucket
that needs one number, the time at which the bucket will be full again, and no refilling. A tenth of a second's worth may go
at once, so that the limit holds for every second and not just on average.

What comes to a lane that is in trouble is turned away (`Refusal`), and the owner parks it: a breaker is open (`breaker.py`), or the
endpoint asked for time (Retry-After). Where memory is scarce (the owner says so, `tight`), it is for what will be sent soon: then also what would
have to wait for too long behind what is queued already (`pace.py`) is turned away. The wait is judged where it arises. A subscription that is slow turns away its own deliveries only. One that
shares a slow host waits for its turns: `n` deliveries before this one, in a lane of `m` subscriptions, are at most n * m turns, and no more
than all that is queued; so a neighbour's flood turns nobody else's delivery away.

While a breaker probes, and until the endpoint takes as much at a time as ever, its pace says nothing: one attempt at a time that
ends in a timeout would make appointments for hours. So nothing is measured then. As much may wait as may be sent at a time, and
the rest is turned away as if the breaker were open, for the shortest of delays.

The healthy case pays two comparisons for all of this: `trouble` is None and `room` is infinite wherever nothing is the matter, and a
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
7. Every share with more than one item queued, or with a pace, stands in `_deep`, until `measure` finds neither. Those with one
   item at most are not measured: one may always be queued. There may be 10,000 of them, some times a second.
8. A lane whose last share is released has `_NO_SHARES` for its own, which nothing is ever put into. Of 10,000 lanes in turns each
   would find its own empty dictionary where nobody has been for a while; a new one is in the cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar, cast

from dispatcher.core.endpoint.breaker import Breaker, State
from dispatcher.core.endpoint.pace import Pace

T = TypeVar("T")

BURST: Final = 0.1
"""Seconds' worth of a rate that may go at once; one delivery at the least."""

_NO_WINDOW: Final = 1e9
_FORGET: Final = 600.0
"""Seconds of silence after which a trouble is forgotten that never came to a good end."""

_NO_SHARES: Final[dict[str, Any]] = {}  # see rule 8
_NO_TURNS: Final = cast(
    "deque[Any]", ()
)  # of a closed lane: what is offered there raises instead of being lost

ParkReason = Literal["breaker", "retry_after", "queue_wait"]


class Trouble:
    """What has been the matter with an endpoint lately. There is none while nothing is."""

    __slots__ = (
        "asked",
        "breaker",
        "closed_until",
        "cut_at",
        "opened",
        "quiet_until",
        "rising",
        "window",
    )

    def __init__(self) -> None:
        self.breaker: Breaker | None = None
        self.asked = 0.0  # for so many seconds has it asked (Retry-After) since it last took anything
        self.closed_until = 0.0  # likewise: nothing before then, and what comes meanwhile is turned away
        self.quiet_until = 0.0  # likewise, for so short a time that what comes may wait
        self.window = _NO_WINDOW  # attempts at a time
        self.opened = False  # the breaker has, and the window has not been as wide as ever since
        self.rising = False  # the window doubles with each round of successes, instead of growing by one
        self.cut_at = 0.0  # when the window was made smaller: attempts from before say nothing about it


class Valve:
    """What lanes and shares have in common: how much at a time, and how much may wait."""

    __slots__ = ("done", "in_flight", "limit", "own", "pace", "queued", "room", "trouble")

    def __init__(self, limit: int) -> None:
        self.limit = limit  # `own`, or less while a window is in force
        self.in_flight = 0
        self.queued = 0
        self.done = 0
        self.trouble: Trouble | None = None
        self.pace: Pace | None = None
        self.room = float("inf")  # deliveries that it may have queued
        self.own = limit  # as its owner says

    def _adapt(self) -> None:
        trouble = self.trouble
        self.limit = self.own if trouble is None else min(self.own, int(trouble.window))

    def _narrow(self, trouble: Trouble, window: float, now: float, *, rising: bool) -> None:
        trouble.window = window
        trouble.rising = rising
        trouble.cut_at = now
        self._adapt()

    def _in_trouble(self) -> Trouble:
        if self.trouble is None:
            self.trouble = Trouble()
        return self.trouble

    @property
    def state(self) -> State:
        """Of its breaker."""
        trouble = self.trouble
        return State.CLOSED if trouble is None or trouble.breaker is None else trouble.breaker.state

    @property
    def recovering(self) -> bool:
        """Its breaker has opened, and what it is sent at a time since then, a probe first, is not yet all that it may be."""
        return self.trouble is not None and self.trouble.opened

    @property
    def open_until(self) -> float:
        """When its breaker lets the next attempt through; in the past if that has been, or never opened."""
        trouble = self.trouble
        return 0.0 if trouble is None or trouble.breaker is None else trouble.breaker.until

    def failed(self, started: float, now: float, random: float, threshold: float) -> bool:
        """An attempt that began at `started` failed; whether that opened the breaker. `random` in [0, 1).

        `threshold` is the share of failures that opens it.
        """
        trouble = self._in_trouble()
        if trouble.breaker is None:
            trouble.breaker = Breaker(now, threshold)
        if not trouble.breaker.failed(started, now, random):
            return False
        self._narrow(trouble, 1.0, now, rising=True)
        trouble.opened = True
        return True

    def succeeded(self, started: float, now: float) -> bool:
        """An attempt that began at `started` succeeded; whether that closed the breaker. Not needed without `trouble`."""
        trouble = self.trouble
        if trouble is None:
            return False
        closed = trouble.breaker is not None and trouble.breaker.succeeded(started, now)
        if trouble.window < _NO_WINDOW and started >= trouble.cut_at:
            trouble.asked = 0.0
            trouble.window += 1.0 if trouble.rising else 1.0 / trouble.window
            if trouble.window >= self.own:
                trouble.window = _NO_WINDOW
                trouble.opened = False
                if trouble.breaker is not None:
                    trouble.breaker.recovered()
            self._adapt()
        return closed

    def throttled(self, started: float, now: float) -> bool:
        """The endpoint is overloaded: half as many at a time, once for each round; whether that was news.

        What it says to the others of the round has been heeded: to call that a failure too would open the breaker of
        one that takes four at a time and was sent sixteen.
        """
        trouble = self._in_trouble()
        if started < trouble.cut_at:
            return False
        self._narrow(trouble, max(1.0, min(self.limit, self.in_flight) // 2), now, rising=False)
        trouble.opened = False
        return True

    @property
    def rate_of_completion(self) -> float | None:
        """A second, while busy; None while there is too little evidence."""
        return None if self.pace is None else self.pace.rate

    @property
    def wait(self) -> float:
        """Seconds that what is queued last will wait, as far as that is known."""
        rate = self.rate_of_completion
        return 0.0 if rate is None or not self.queued else self.queued / max(rate, 1e-6)

    def _roomy(self, max_wait: float) -> float:  # noqa: ARG002 - a share has an answer
        """The room while nothing is known."""
        return float("inf")

    def _gauge(self, seconds: float, max_wait: float, *, busy: bool, recovering: bool) -> bool:
        """Keep pace and room current; whether there is any need to. `busy`: more could not have been done.

        While it is `recovering` its pace is that of a probe: nothing to go by, and whatever was known before is out of date.
        """
        if recovering:
            self.pace = None
            self.room = self._roomy(max_wait)
            return self.queued > 0
        pace = self.pace
        if pace is None:
            if busy:
                self.pace = Pace(self.done)
        elif busy:
            pace.busy(self.done, self.in_flight, seconds)
            if pace.rate is not None:
                self.room = max(1.0, pace.rate * max_wait)
        elif pace.idle(self.done, seconds):
            self.pace = None
            self.room = self._roomy(max_wait)
        return self.pace is not None

    def _settle_down(self, now: float) -> None:
        """Forget the trouble if it is over."""
        trouble = self.trouble
        if trouble is None:
            return
        breaker = trouble.breaker
        over = (
            (breaker is None or breaker.spotless(now))
            and trouble.window >= _NO_WINDOW
            and max(trouble.closed_until, trouble.quiet_until) <= now
        )
        if not over and not self.queued and not self.in_flight:
            last = max(trouble.closed_until, trouble.quiet_until, trouble.cut_at)
            if breaker is not None:
                last = max(last, breaker.since, breaker.until)
            over = now - last > _FORGET
        if over:
            self.trouble = None
            self._adapt()


class Share(Valve, Generic[T]):
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
        self.pace = None
        self.trouble = None
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
        measured = None if self.pace is None else self.pace.rate
        return self.rate if measured is None else measured

    def _nothing_left(self) -> bool:
        return (
            not self.queued
            and not self.in_flight
            and self.rate is None
            and self.trouble is None
            and self.pace is None
        )


class Refusal(NamedTuple):
    """Why something was not queued, and when it may be at the earliest."""

    reason: ParkReason
    until: float


class Lane(Valve, Generic[T]):
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
            share.blocked_until = 0.0 if share.trouble is None else share.trouble.quiet_until
            share.room = share._roomy(self._max_wait)
        if (
            share.trouble is not None
            or self.trouble is not None
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
        if self.queued or self.in_flight >= self.limit or self.trouble is not None or rate is not None:
            return None
        share = self._shares.get(key)
        if share is None:
            share = self._new_share(key, limit)
        elif (
            share.own != limit
            or share.in_flight >= share.limit
            or share.trouble is not None
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
        for valve in (self, share):
            trouble = None if valve is None else valve.trouble
            if trouble is None:
                continue
            if trouble.breaker is not None and not trouble.breaker.admits(now):
                return 0, True, trouble.breaker.until
            asked = max(trouble.closed_until, trouble.quiet_until)
            if asked > now:
                return 0, True, asked
            recovering = recovering or trouble.opened
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
        for valve in (self, share):
            trouble = valve.trouble
            if trouble is None:
                continue
            if trouble.breaker is not None and not trouble.breaker.admits(now):
                return Refusal("breaker", trouble.breaker.until)
            if trouble.opened and (
                share.queued >= share.own if valve is share else self._waits_for_all(before, self.own)
            ):
                return Refusal("breaker", now)
            if trouble.closed_until > now:
                return Refusal("retry_after", trouble.closed_until)
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
        elif share.in_flight == 0 and share.rate is None and share.trouble is None and share.pace is None:
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
        trouble = share._in_trouble()
        news = started >= trouble.cut_at
        wait = until - now
        trouble.asked = trouble.asked + wait if news else max(trouble.asked, wait)
        share._narrow(trouble, 1.0, now, rising=True)
        if trouble.asked <= self._max_wait:
            trouble.quiet_until = max(trouble.quiet_until, until)
            share.blocked_until = max(share.blocked_until, until)
            return False, news
        trouble.closed_until = max(trouble.closed_until, until)
        return True, news

    def measure(self, seconds: float) -> bool:
        """The last measurement was so many `seconds` ago; whether there is any need for another one."""
        # With a slot free, what is queued waits for something else: its own limits, or the time its endpoint asked for.
        full = self.in_flight >= self.limit
        recovering = self.recovering
        needed = self._gauge(seconds, self._max_wait, busy=full and self.queued > 0, recovering=recovering)
        longest = self.wait
        for share in list(self._deep):
            if share.queued > 1 or share.pace is not None:
                busy = share.queued > 0 and (full or share.in_flight >= share.limit)
                needed |= share._gauge(
                    seconds, self._max_wait, busy=busy, recovering=recovering or share.recovering
                )
                if share._nothing_left():
                    del self._shares[share.key]
            if share.queued <= 1 and share.pace is None:
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
                if share.pace is None or share.pace.rate is None:
                    share.room = share._roomy(self._max_wait)
            if share._nothing_left():
                del self._shares[share.key]

    def close(self) -> None:
        """Nothing will come here any more: keep nothing large. Only if it is `empty`."""
        self._turns = _NO_TURNS

    @property
    def empty(self) -> bool:
        """Nothing queued, nothing in flight, nothing to remember."""
        return not self._shares and self.trouble is None


def _level(amounts: list[int], total: int) -> int:
    """To what each of the ascending `amounts` must be cut, so that together they are at most `total`."""
    left = total
    for number, amount in enumerate(amounts):
        level = left // (len(amounts) - number)
        if amount > level:
            return level
        left -= amount
    return amounts[-1] if amounts else 0
