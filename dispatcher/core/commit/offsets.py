"""Which offset of a partition may be committed, while deliveries complete in any order.

Kafka knows one number per partition: everything below it is done with. Deliveries finish out
of order, so the tracker remembers for each offset how many deliveries it still owes; what may
be committed is the lowest offset that owes any, or the position where nothing does.

The owed offsets stand in one dict. Offsets are tracked in ascending order and a dict keeps
the order of insertion, so its first key is the lowest one: no heap, no sorted structure, one
store per record and one lookup per delivery (`python -m benchmarks micro` says what they take).

What is done beyond the position to commit (`completed`, `partly`) is written down beside the commit, and whoever
takes the partition over begins with it (`ahead`): those offsets are passed over, and what is done for some of its
subscriptions is owed to the others only. Who has settled an offset is noted when others still owe it: an event
for one subscription alone costs nothing more. At the next commit those that are fewer are kept, the served or the owed: what
one failing endpoint of a thousand leaves behind is one id an offset, in memory and in the note.

The note also says how far its owner may read (`reservation.py`).

Rules:

1. Offsets are tracked once each, in ascending order; `seen` tells which ones come again, or were done before.
2. An offset that owes n deliveries takes exactly n calls of `settle`.
3. `committable` never goes back, and never passes an offset that owes a delivery, or that was not read yet.
4. `completed` and `partly` are offsets that owe nothing (to those) and were read, by this tracker or by a former owner: nothing else is
   ever written down as done.
5. Of an offset that is owed to some, either `_served` or `_left` says to whom, never both.
6. A tracker outlives a rebalance in which its partition comes back and nobody else has worked on it (`resume_at`): what it
   has settled or still owes is not tracked a second time. Otherwise the tracker is `lost`: late
   results settle it harmlessly, and nothing of it is committed or attempted any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from dispatcher.core.commit.note import NOTHING, Note, Who, tells_more
from dispatcher.core.commit.reservation import Reservation


class Wanting(Protocol):
    """A subscription that an event is owed to."""

    @property
    def id(self) -> str: ...


class PartitionTracker:
    """The offsets of one assigned partition. Owned by the engine."""

    __slots__ = (
        "_ahead",
        "_ahead_partly",
        "_left",
        "_marks",
        "_next",
        "_owed",
        "_served",
        "_served_most",
        "_served_of",
        "_stuck_at",
        "_stuck_since",
        "_told",
        "_turns",
        "_wanted",
        "_whose",
        "committed",
        "held",
        "lost",
        "noted",
        "overdue_below",
        "partition",
        "reservation",
        "topic",
    )

    def __init__(self, topic: str, partition: int, start: int, ahead: Note = NOTHING) -> None:
        """`start` is the offset that is read first: the committed position; `ahead` is done already, beyond it."""
        self.topic = topic
        self.partition = partition
        self._owed: dict[int, int] = {}
        self._next = start
        self._ahead = deque(ahead.done)  # beyond `_next`
        self._ahead_partly = deque(ahead.partly)  # likewise
        self._wanted: dict[int, Sequence[Wanting]] = {}  # those for whom an offset is that is for several
        self._served: dict[int, list[str]] = {}  # of an offset that others are still owed
        self._left: dict[int, set[str]] = {}  # those who are still owed it, where they are the fewer
        self._whose: dict[int, Who] = {}  # the same as `partly` tells it, where it hasn't changed
        self._turns = 0  # how often somebody was served while others were still owed
        self._served_most = self._served_of = 0  # deliveries, and offsets, of those that came into `_left`
        self._told: tuple[int, int, int] | None = None
        self.reservation = Reservation(start, ahead)
        self.committed = start
        self.noted = ""
        """The note beside the commit."""
        self.lost = False
        self._stuck_at = start
        self._stuck_since: float | None = None
        self._marks: deque[tuple[int, float]] = (
            deque()
        )  # (next offset, when) of each `look` that saw new ones
        self.overdue_below = start
        """Whatever is owed below this has been owed for longer than the limit given to `look`."""
        self.held = 0.0
        """Seconds for which the lowest owed offset has not moved."""

    def __len__(self) -> int:
        """Offsets that owe a delivery."""
        return len(self._owed)

    def seen(self, offset: int) -> bool:
        """Whether the offset, which was read, is not to be taken up: it has been before, be it settled by now or not."""
        return offset < self._next or (bool(self._ahead) and self._done_before(offset))

    def _done_before(self, offset: int) -> bool:
        ahead = self._ahead
        while ahead and ahead[0][0] <= offset:
            # Between `_next` and there is nothing to read any more, or it would have come first.
            self._next = ahead.popleft()[1]
        return offset < self._next

    def handed_on(self, offset: int) -> Who | None:
        """Who of them is owed the record at `offset`, which was read, as a former owner has left it; None where it says nothing."""
        ahead = self._ahead_partly
        while ahead and ahead[0][1] <= offset:
            ahead.popleft()
        return ahead[0][2] if ahead and ahead[0][0] <= offset else None

    def track(self, offset: int, owed: int, wanted: Sequence[Wanting] = (), who: Who | None = None) -> None:
        """The record at `offset` owes so many deliveries; 0 for one that nobody wants.

        `wanted` are the subscriptions that it is owed to, and `who` is what `handed_on` has said of it.
        """
        if offset < self._next:
            raise ValueError(f"offset {offset} is tracked already (next is {self._next})")
        self._next = offset + 1
        if owed:
            self._owed[offset] = owed
            if who is not None:
                if who.owed:
                    self._left[offset] = {each.id for each in wanted}
                else:
                    self._served[offset] = list(who.ids)
                    self._wanted[offset] = wanted
            elif owed > 1:
                self._wanted[offset] = wanted

    def settle(self, offset: int, subscription_id: str = "") -> None:
        """One delivery of the offset is done with: that subscription's, where there are others."""
        owed = self._owed
        left = owed[offset] - 1
        if left:
            owed[offset] = left
            self._turns += 1
            if offset in self._left:
                self._left[offset].discard(subscription_id)
                self._whose.pop(offset, None)
            elif offset in self._served:
                self._served[offset].append(subscription_id)
                self._whose.pop(offset, None)
            else:
                self._served[offset] = [subscription_id]
        else:
            del owed[offset]
            if self._wanted:
                self._wanted.pop(offset, None)
            if self._served:
                self._served.pop(offset, None)
            if self._left:
                self._left.pop(offset, None)
            if self._whose:
                self._whose.pop(offset, None)

    def pass_over(self, first: int, end: int) -> None:
        """Whatever was read before `first` has been tracked if all below it is, and nothing is to be read from there to `end`."""
        if not first <= self._next < end:
            return
        ahead = self._ahead
        while ahead and ahead[0][0] <= end:
            end = max(end, ahead.popleft()[1])
        self._next = end

    def unread(self, first: int, end: int) -> int:
        """How many offsets from `first` to before `end` were neither read nor done before."""
        first = max(first, self._next)
        count = max(0, end - first)
        for begin, past in self._ahead:
            count -= max(0, min(past, end) - max(begin, first))
        return count

    @property
    def committable(self) -> int:
        """The position to commit: the lowest offset that owes a delivery, else the next to be read."""
        for offset in self._owed:
            return offset
        return self._next

    @property
    def next(self) -> int:
        """One past the last tracked offset."""
        return self._next

    @property
    def handed_below(self) -> int:
        """What is owed below this may have been taken up by a former owner, when its subscriptions took deliveries."""
        return self.reservation.handed_below

    def completed(self) -> list[tuple[int, int]]:
        """What is done beyond `committable`: ascending runs of (first, one past the last)."""
        runs: list[tuple[int, int]] = []
        at: int | None = None
        for offset in self._owed:
            if at is not None and offset > at:
                runs.append((at, offset))
            at = offset + 1
        if at is not None and at < self._next:
            runs.append((at, self._next))
        for first, end in self._ahead:
            _extend(runs, first, end)
        return runs

    def partly(self) -> dict[Who, list[tuple[int, int]]]:
        """What is done for some subscriptions only, by who is owed it: ascending runs of (first, one past the last)."""
        self._keep_the_fewer()
        groups: dict[Who, list[tuple[int, int]]] = {}
        whose = self._whose
        # Not in order of offsets: what is settled first is written down first.
        for offset in sorted([*self._left, *self._served]):
            who = whose.get(offset)
            if who is None:
                left = self._left.get(offset)
                who = whose[offset] = Who(
                    left is not None, tuple(sorted(self._served[offset] if left is None else left))
                )
            runs = groups.get(who)
            if runs is None:
                groups[who] = [(offset, offset + 1)]
            else:
                _extend(runs, offset, offset + 1)
        for first, end, who in self._ahead_partly:
            if end > self._next:
                _extend(groups.setdefault(who, []), max(first, self._next), end)
        return groups

    def _keep_the_fewer(self) -> None:
        for offset in [offset for offset, ids in self._served.items() if len(ids) > self._owed[offset]]:
            wanted = self._wanted.get(offset)
            if wanted is None:
                continue
            served = self._served[offset]
            left = {each.id for each in wanted}.difference(served)
            if len(left) != self._owed[offset]:
                continue
            self._served_most += len(served)
            self._served_of += 1
            del self._served[offset], self._wanted[offset]
            self._left[offset] = left
            self._whose.pop(offset, None)

    @property
    def served(self) -> float:
        """How many subscriptions have been served of an offset that is owed to a few, on average."""
        return self._served_most / self._served_of if self._served_of else 1.0

    def changed(self) -> bool:
        """Whether `committable`, `completed` or `partly` may tell anything that they didn't at the last `told`."""
        return self._told != (self._next, len(self._owed), self._turns)

    def state(self) -> tuple[int, int, int]:
        """What `told` takes: as of now."""
        # Nothing is settled without one of these: what is taken up moves the first, and what is done with lessens the second.
        return self._next, len(self._owed), self._turns

    def told(self, state: tuple[int, int, int]) -> None:
        """What the tracker said in that state has been committed."""
        self._told = state

    def resume_at(self, position: int, ahead: Note = NOTHING) -> bool:
        """The partition is assigned again, with `position` committed and `ahead` done beyond it.

        True if the tracker goes on, whose `handed_below` then covers what that note has reserved; False if it no longer describes the partition and a new one is needed: the offsets
        were rewound, or something was completed that is owed here, so somebody else had the partition meanwhile.
        """
        if not self.committed <= position <= self.committable:
            return False
        if tells_more(ahead.done, self.completed(), self.committable):
            return False
        if any(self._owes(first, end, who) for first, end, who in ahead.partly):
            return False
        self.reservation.inherit(ahead)
        return True

    def _owes(self, first: int, end: int, who: Who) -> bool:
        """Whether anybody is owed one of these offsets here who has been served according to `who`."""
        for offset in range(first, min(end, self._next)):
            owed = self._owed.get(offset)
            if owed is None:
                continue
            if who.owed:
                if owed > len(who.ids):
                    return True
            elif offset in self._left:
                if not self._left[offset].isdisjoint(who.ids):
                    return True
            elif not set(who.ids).issubset(self._served.get(offset, ())):
                return True
        return False

    def look(self, now: float, limit: float) -> bool:
        """Move `overdue_below` to what was tracked `limit` seconds before `now`; whether any of it is still owed.

        Called regularly: the time of tracking is known as exactly as that, at no cost per offset.
        """
        marks = self._marks
        if not marks or marks[-1][0] != self._next:
            marks.append((self._next, now))
        while marks and marks[0][1] <= now - limit:
            self.overdue_below = marks.popleft()[0]
        return self.committable < self.overdue_below

    def observe(self, now: float) -> None:
        """Keep `held` current; called every second or so, with seconds of any one clock."""
        if not self._owed:
            self._stuck_since = None
            self.held = 0.0
            return
        lowest = self.committable
        if self._stuck_since is None or lowest != self._stuck_at:
            self._stuck_at = lowest
            self._stuck_since = now
        self.held = now - self._stuck_since


def _extend(runs: list[tuple[int, int]], first: int, end: int) -> None:
    if runs and runs[-1][1] == first:
        runs[-1] = (runs[-1][0], end)
    else:
        runs.append((first, end))
