"""Everything one origin (scheme, host, port) is owed: who is next, how many at a time, and what is turned away.

Two limits hold at once: the lane's (`connections_per_host`, for the sake of the host) and
each subscription's own (`max_in_flight`, as its owner wrote). Between the tenants of a lane turns go round, and
between the subscriptions of a tenant (`turns.py`): each time one comes up, it gets one delivery sent and goes to the end
of the line. So a flood for one subscription delays its neighbours on the same host by one
delivery each, not by the flood. A subscription may also be limited to a rate (`share.py`).

What comes to a lane whose endpoint has asked for less is turned away (`Refusal`), and the owner parks it: a breaker is open (`breaker.py`), or the
endpoint asked for time (Retry-After). Where memory is scarce (the owner says so, `tight`), it is for what will be sent soon: then also what would
have to wait for too long behind what is queued already (`throughput.py`) is turned away. The wait is judged where it arises. A subscription that is slow turns away its own deliveries only. One that
shares a slow host waits for its turns: `n` deliveries before this one, in a lane of `m` subscriptions, are at most n * m turns (with several tenants:
of as many subscriptions as its tenant has here, times the tenants), and no more than all that is queued; so a neighbour's flood turns nobody else's delivery away.

While a breaker probes, and until the endpoint takes as much at a time as ever, its throughput says nothing: one attempt at a time that
ends in a timeout would make appointments for hours. So nothing is measured then. As much may wait as may be sent at a time, and
the rest is turned away as if the breaker were open, for the shortest of delays.

The healthy case pays two comparisons for all of this: `backpressure` is None and `room` is infinite wherever nothing is the matter, and a
subscription without anything queued, in flight or to remember leaves no trace in its lane. A lane
without any can be dropped by its owner.

Rules:

1. `take` hands out at most `limit` items that have not been released, and of each share at
   most the share's `limit`, and no sooner than its rate allows. `limit` is the owner's, or less while a window is in force.
2. Who is next, and what the owner has to call for it, is said in `turns.py`.
3. Within a share: what was offered as urgent (its retry is due) first; then what was parked and what is fresh, in turns, each in the
   order of arrival.
4. Every item taken, or passed through, is released exactly once. What is offered is queued or turned away, never both.
5. `failed`, `succeeded`, `throttled` are told before the item's `release`, so that this one already goes by the new limits.
6. Every share with more than one item queued, or with a measured throughput, stands in `_deep`, until `measure` finds neither. Those with one
   item at most are not measured: one may always be queued. There may be 10,000 of them, some times a second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, Literal, NamedTuple, TypeVar

from dispatcher.core.endpoint.fairness import NOBODY, UNLIMITED, Fairness, TenantUsage, level
from dispatcher.core.endpoint.share import Share
from dispatcher.core.endpoint.turns import NO_TURNS, Turns

T = TypeVar("T")

ParkReason = Literal["breaker", "retry_after", "queue_wait"]


class Refusal(NamedTuple):
    """Why something was not queued, and when it may be at the earliest."""

    reason: ParkReason
    until: float


# Long: who is next, how many at a time and what is turned away go by the same few fields, and each of them changes the others.
class Lane(Turns[T], Generic[T]):
    """The queue and the concurrency of one origin. Owned by the engine. All times are seconds of any one clock."""

    __slots__ = (
        "_deep",
        "_max_wait",
        "idle_since",
        "longest_wait",
        "watched",
    )

    def __init__(
        self,
        limit: int,
        max_wait: float = float("inf"),
        fairness: Fairness = UNLIMITED,
        *,
        reserved: bool = False,
    ) -> None:
        """`max_wait` is how long what is queued may have to wait, in seconds; `reserved` whether there may be other tenants."""
        super().__init__(limit, fairness, reserved=reserved)
        self.idle_since: float | None = None  # kept by the owner, who drops idle lanes
        self.watched = False  # likewise: it calls `measure`
        self.longest_wait = 0.0
        """Seconds that the last of a queue in here will wait, as far as that is known: at the last `measure`."""
        self._max_wait = max_wait
        self._deep: dict[Share[T], None] = {}  # see rule 6

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
        usage: TenantUsage = NOBODY,
    ) -> Refusal | None:
        """Queue `item` for the subscription `key`, whose own limits are `limit` and `rate` by now; or say why not.

        `urgent` and `parked` say where it waits (rule 3), `tight` that memory is scarce; `usage` is the tenant's.
        """
        share = self._shares.get(key)
        if share is None:
            share = self._new_share(key, limit, usage)
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
                    self._drop(share)
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
            self._to_line(share)
        return None

    def pass_through(
        self, key: str, limit: int, rate: float | None, usage: TenantUsage = NOBODY
    ) -> Share[T] | None:
        """`offer` and `take` in one, where an item would be sent at once: the share to `release`. None: offer it.

        Most deliveries find nothing queued: 0.6 instead of 1.0 us with `release`, compiled.
        """
        if self.queued or self.in_flight >= self.easy or self.backpressure is not None or rate is not None:
            return None
        share = self._shares.get(key)
        if share is None:
            share = self._new_share(key, limit, usage)
        elif (
            share.own != limit
            or share.in_flight >= share.limit
            or share.backpressure is not None
            or share.rate is not None
        ):
            return None
        share.in_flight += 1
        self.in_flight += 1
        if share.part is not None:
            share.part.in_flight += 1
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
                share.queued >= share.own
                if limiter is share
                else self._waits_for_all(share, before, self.own)
            ):
                return Refusal("breaker", now)
            if backpressure.closed_until > now:
                return Refusal("retry_after", backpressure.closed_until)
        if not tight:
            return None
        if before >= share.room:
            return Refusal("queue_wait", now)
        if self._waits_for_all(share, before, self.room):
            return Refusal("queue_wait", now)
        return None

    def _waits_for_all(self, share: Share[T], before: int, most: float) -> bool:
        """Whether what is queued behind so many of its own share has more than `most` turns of the lane to wait."""
        if self.queued < most:
            return False
        parts = self._divided()
        part = share.part
        if parts is None or part is None:
            return (before + 1) * len(self._shares) >= most
        return (before + 1) * part.members * len(parts) >= most

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
        # With slots to spare, what is queued waits for something else: its own limits, or the time its endpoint asked for.
        full = self.in_flight >= self.easy
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
                    self._drop(share)
            if share.queued <= 1 and share.throughput is None:
                del self._deep[share]
            else:
                longest = max(longest, share.wait)
        self.longest_wait = longest
        return needed

    def trim(self, most: int) -> list[T]:
        """Take out, newest first, what is queued beyond the room, `most` at the most. The tenants that have most queued give most, and of them the subscriptions."""
        trimmed: list[T] = []
        for share in list(self._deep):
            if share.queued > share.room:
                self.cut(share, max(int(share.room), share.queued - most + len(trimmed)), trimmed)
        if self.queued > self.room:
            wanted = max(int(self.room), self.queued - most + len(trimmed))
            tenants: dict[TenantUsage, list[Share[T]]] = {}
            for share in self._shares.values():
                tenants.setdefault(share.usage, []).append(share)
            queued = {usage: sum([share.queued for share in shares]) for usage, shares in tenants.items()}
            left = level(sorted(queued.values()), wanted)
            for usage, shares in tenants.items():
                if queued[usage] > left:
                    each = level(sorted([share.queued for share in shares]), left)
                    for share in shares:
                        self.cut(share, each, trimmed)
        return trimmed

    def cut(self, share: Share[T], left: int, trimmed: list[T]) -> None:
        """Take the newest out of the queue of one subscription, until so many are `left`, and add them to `trimmed`."""
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
                (self._turns if share.part is None else share.part.turns).remove(share)
            if share._nothing_left():
                self._drop(share)

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
                self._drop(share)

    def close(self) -> None:
        """Nothing will come here any more: keep nothing large. Only if it is `empty`."""
        self._turns = NO_TURNS

    @property
    def empty(self) -> bool:
        """Nothing queued, nothing in flight, nothing to remember."""
        return not self._shares and self.backpressure is None
