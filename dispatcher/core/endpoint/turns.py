"""Who is next in a lane: turns between the tenants, and between the subscriptions of a tenant, within their fair parts.

Slots are shared as `fairness.py` says, since attempts that hang keep theirs until their timeout. Where several tenants use the lane, each may have
`FACTOR` times as many slots as are free. A tenant that is alone here may have all but an eighth, which is for the next tenant to come; all of them, where
there are no other tenants at all (`reserved`). Within that, the subscriptions of a tenant share by the same rule. One that is alone has all.

What all lanes have together under way is shared too. Who may begin no more anywhere is held (rule 3).

Rules:

1. A share stands in `_turns` at most once, and always if it could be served now, were the lane free
   (something queued, fewer in flight than its limit, not blocked, not held). Once several tenants have had something queued here, their shares
   stand in the `turns` of their part instead, and the part in `_line`. That ends with the last share.
2. A share that is blocked and has something queued stands in `blocked` once it came up, until the owner takes it from there; the
   owner calls `unblock` at `blocked_until`.
3. A share whose tenant may begin no more is `held`: `Fairness` has it, until the owner gets it from there and calls `resume`.
4. Every item taken, or passed through, is released exactly once.
5. Below `easy` slots nobody is refused one for the others' sake. So in a lane that is not nearly full, nobody's part is counted.
6. A lane whose last share is released has `NO_SHARES` for its own, which nothing is ever put into. Of 10,000 lanes in turns each
   would find its own empty dictionary where nobody has been for a while; a new one is in the cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Final, Generic, TypeVar, cast

from dispatcher.core.endpoint.fairness import FACTOR, NOBODY, RESERVE, Fairness, TenantUsage, more
from dispatcher.core.endpoint.limiter import Limiter
from dispatcher.core.endpoint.share import Share, TenantPart

T = TypeVar("T")

NO_SHARES: Final[dict[str, Any]] = {}  # see rule 6
NO_TURNS: Final = cast(
    "deque[Any]", ()
)  # of a closed lane: what is offered there raises instead of being lost

_ALL: Final = 1 << 30


class Turns(Limiter, Generic[T]):
    """The slots of one origin, and who gets the next."""

    __slots__ = (
        "_fairness",
        "_line",
        "_mixed",
        "_parts",
        "_reserved",
        "_shares",
        "_turns",
        "_usage",
        "blocked",
        "easy",
    )

    def __init__(self, limit: int, fairness: Fairness, *, reserved: bool) -> None:
        """`reserved`: there may be other tenants."""
        super().__init__(limit)
        # What every delivery looks at comes first: compiled, it is side by side in memory.
        self.easy = limit  # see rule 5
        self._shares: dict[str, Share[T]] = NO_SHARES
        self._usage = NOBODY  # of the first of these shares
        self._mixed = False  # there are those of other tenants
        self._parts: dict[TenantUsage, TenantPart[T]] | None = None  # see rule 1
        self._line: deque[TenantPart[T]] = NO_TURNS
        self._fairness = fairness
        self._reserved = reserved
        self.blocked: list[Share[T]] = []  # see rule 2
        self._turns: deque[Share[T]] = deque()
        self._ease()

    def _ease(self) -> None:
        # Had one share all that are in flight, and were `free` left, it would be refused one
        # - by its neighbours of the same tenant from FACTOR * free on,
        # - where other tenants are here too, from FACTOR * (FACTOR * free - in_flight) on.
        limit = self.limit
        if self._reserved:
            easy = (FACTOR**2 * limit - 1) // (1 + FACTOR + FACTOR**2) + 1
            while easy > 1 and easy - 1 >= FACTOR * more(easy - 1, limit - easy + 1):
                easy -= 1  # of few slots, for the sake of the last one
        else:
            easy = (FACTOR * limit - 1) // (1 + FACTOR) + 1
        self.easy = easy

    def _adapt(self) -> None:
        super()._adapt()
        self._ease()

    def reserve(self) -> None:
        """From now on there may be other tenants."""
        self._reserved = True
        self._ease()

    def _new_share(self, key: str, limit: int, usage: TenantUsage) -> Share[T]:
        share: Share[T] = Share(key, limit, usage)
        if self._shares:
            self._shares[key] = share
            if self._parts is not None:
                self._join(self._parts, share)
            elif usage is not self._usage:
                self._mixed = True
        else:
            self._shares = {key: share}
            self._usage = usage
        return share

    def _drop(self, share: Share[T]) -> None:
        """There is nothing to say of the share any more."""
        if self._shares.get(share.key) is not share:
            return
        if len(self._shares) == 1:
            self._shares = NO_SHARES
            if self._mixed:
                self._mixed = False
                self._parts = None
                self._line = NO_TURNS
            return
        del self._shares[share.key]
        part = share.part
        if part is not None and self._parts is not None:
            part.members -= 1
            if not part.members:
                del self._parts[part.usage]

    # The parts of tenants.

    def _divided(self) -> dict[TenantUsage, TenantPart[T]] | None:
        """Each tenant's part; None where there is one tenant."""
        if self._mixed and self._parts is None:
            parts: dict[TenantUsage, TenantPart[T]] = {}
            for share in self._shares.values():
                self._join(parts, share)
            self._parts = parts
            self._line = deque()
            for share in self._turns:
                self._to_line(share)
            self._turns.clear()
        return self._parts

    def _join(self, parts: dict[TenantUsage, TenantPart[T]], share: Share[T]) -> None:
        part = parts.get(share.usage)
        if part is None:
            part = parts[share.usage] = TenantPart(share.usage)
        part.members += 1
        part.in_flight += share.in_flight
        share.part = part

    def _to_line(self, share: Share[T]) -> None:
        part = share.part
        if part is None:
            self._turns.append(share)
            return
        part.turns.append(share)
        if not part.in_line:
            part.in_line = True
            self._line.append(part)

    def _more(self, held: int, *, others: bool) -> int:
        """How many more slots a tenant may have that has `held` of them; `others` are here too."""
        free = self.limit - self.in_flight
        if others:
            return more(held, free)
        return free - self.limit // RESERVE if self._reserved and held else free

    def _pick(self, turns: deque[Share[T]], now: float, most: int) -> Share[T] | None:
        """The next of these shares that may be served, taken out of the line; `most` is how many one of them may have under way."""
        fairness = self._fairness
        easy = fairness.attempts < fairness.easy and fairness.attempt_bytes < fairness.easy_bytes
        for _ in range(len(turns)):
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
            if share.in_flight >= most:
                turns.append(share)
                continue
            if not easy and not fairness.admits(share.usage, share.in_flight):
                share._waiting_turn = False
                if not share.held:
                    share.held = True
                    share.lane = self
                    fairness.hold(share.usage, share)
                continue
            return share
        return None

    def take(self, now: float) -> tuple[T, Share[T]] | None:
        """The next item to send, with the share to `release` when it is over; None if none may be sent."""
        if self.in_flight >= self.limit:
            return None
        if self._mixed:
            return self._take_by_tenants(now)
        turns = self._turns
        if not turns:
            return None
        most = _ALL
        if self.in_flight >= self.easy:
            room = self._more(self.in_flight, others=False)
            if room <= 0:
                return None
            if len(self._shares) > 1:
                most = FACTOR * room
        share = self._pick(turns, now, most)
        return None if share is None else (self._serve(share, turns, now), share)

    def _serve(self, share: Share[T], turns: deque[Share[T]], now: float) -> T:
        item = share._next()
        share.in_flight += 1
        self.in_flight += 1
        self.queued -= 1
        if share.part is not None:
            share.part.in_flight += 1
        if share.rate is not None:
            share._spend(share.rate, now)
        if share.queued and share.in_flight < share.limit:
            turns.append(share)
        else:
            share._waiting_turn = False
        return item

    def _take_by_tenants(self, now: float) -> tuple[T, Share[T]] | None:
        """`take` where there are shares of several tenants: first a tenant's turn, then that of one of its shares."""
        parts = self._divided()
        line = self._line
        others = parts is not None and len(parts) > 1
        easy = self.in_flight < self.easy
        for _ in range(len(line)):
            part = line.popleft()
            room = _ALL if easy else self._more(part.in_flight, others=others)
            share: Share[T] | None = None
            if room > 0:
                share = self._pick(part.turns, now, FACTOR * room if part.members > 1 else _ALL)
            taken = None if share is None else (self._serve(share, part.turns, now), share)
            if part.turns:
                line.append(part)
            else:
                part.in_line = False
            if taken is not None:
                return taken
        return None

    def release(self, share: Share[T]) -> None:
        """An item taken is over, whatever came of it."""
        self.in_flight -= 1
        self.done += 1
        share.in_flight -= 1
        share.done += 1
        if share.part is not None:
            share.part.in_flight -= 1
        if share.queued:
            self._line_up(share)
        elif (
            share.in_flight == 0
            and share.rate is None
            and share.backpressure is None
            and share.throughput is None
        ):
            self._drop(share)

    def resume(self, share: Share[T]) -> None:
        """Its tenant may begin one more."""
        share.held = False
        if share.queued:
            self._line_up(share)

    def unblock(self, share: Share[T]) -> None:
        """Its `blocked_until` has come."""
        share._timed = False
        if share.queued:
            self._line_up(share)

    def _line_up(self, share: Share[T]) -> None:
        if not share._waiting_turn and share.in_flight < share.limit:
            share._waiting_turn = True
            self._to_line(share)

    def find(self, key: str) -> Share[T] | None:
        """The subscription's share, if there is anything to say of it."""
        return self._shares.get(key)

    def shares(self) -> Iterator[Share[T]]:
        """All of them."""
        return iter(self._shares.values())
