"""Which offset of a partition may be committed, while deliveries complete in any order.

Kafka knows one number per partition: everything below it is done with. Deliveries finish out
of order, so the tracker remembers for each offset how many deliveries it still owes; what may
be committed is the lowest offset that owes any, or the position where nothing does.

The owed offsets stand in one dict. Offsets are tracked in ascending order and a dict keeps
the order of insertion, so its first key is the lowest one: no heap, no sorted structure, one
store per record and one lookup per delivery (0.2 us together, benchmarks/micro.py).

What is done beyond the position to commit (`completed`, `partly`) is written down beside the commit, and whoever
takes the partition over begins with it (`ahead`): those offsets are passed over, and what is done for some of its
subscriptions is owed to the others only. Who has settled an offset is noted when others still owe it: an event
for one subscription alone costs nothing more.

Rules:

1. Offsets are tracked once each, in ascending order; `seen` tells which ones come again, or were done before.
2. An offset that owes n deliveries takes exactly n calls of `settle`.
3. `committable` never goes back, and never passes an offset that owes a delivery, or that was not read yet.
4. `completed` and `partly` are offsets that owe nothing (to those) and were read, by this tracker or by a former owner: nothing else is
   ever written down as done.
5. A tracker outlives a rebalance in which its partition comes back and nobody else has worked on it (`resume_at`): what it
   has settled or still owes is not tracked a second time. Otherwise the tracker is `lost`: late
   results settle it harmlessly, and nothing of it is committed or attempted any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from dispatcher.core.commit.note import NOTHING, Note, tells_more


class PartitionTracker:
    """The offsets of one assigned partition. Owned by the engine."""

    __slots__ = (
        "_ahead",
        "_ahead_partly",
        "_marks",
        "_next",
        "_owed",
        "_settled",
        "_stuck_at",
        "_stuck_since",
        "committed",
        "held",
        "lost",
        "noted",
        "overdue_below",
        "partition",
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
        self._settled: dict[int, list[str]] = {}  # by whom, of those offsets that others still owe
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

    def settled_before(self, offset: int) -> Sequence[str]:
        """The subscriptions that need not get the record at `offset`, which was read: a former owner delivered it."""
        ahead = self._ahead_partly
        while ahead and ahead[0][1] <= offset:
            ahead.popleft()
        return ahead[0][2] if ahead and ahead[0][0] <= offset else ()

    def track(self, offset: int, owed: int, settled: Sequence[str] = ()) -> None:
        """The record at `offset` owes so many deliveries; 0 for one that nobody wants.

        `settled` are the subscriptions that have had theirs before.
        """
        if offset < self._next:
            raise ValueError(f"offset {offset} is tracked already (next is {self._next})")
        self._next = offset + 1
        if owed:
            self._owed[offset] = owed
            if settled:
                self._settled[offset] = list(settled)

    def settle(self, offset: int, subscription_id: str = "") -> None:
        """One delivery of the offset is done with: that subscription's, where there are others."""
        owed = self._owed
        left = owed[offset] - 1
        settled = self._settled
        if left:
            owed[offset] = left
            if offset in settled:
                settled[offset].append(subscription_id)
            else:
                settled[offset] = [subscription_id]
        else:
            del owed[offset]
            if settled:
                settled.pop(offset, None)

    def pass_over(self, first: int, end: int) -> None:
        """Whatever was read before `first` has been tracked if all below it is, and nothing is to be read from there to `end`."""
        if not first <= self._next < end:
            return
        ahead = self._ahead
        while ahead and ahead[0][0] <= end:
            end = max(end, ahead.popleft()[1])
        self._next = end

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

    def partly(self) -> dict[tuple[str, ...], list[tuple[int, int]]]:
        """What is done for some subscriptions only, by these: ascending runs of (first, one past the last)."""
        groups: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        # Not in order of offsets: who settles first is written down first.
        for offset in sorted(self._settled):
            _extend(groups.setdefault(tuple(sorted(self._settled[offset])), []), offset, offset + 1)
        for first, end, ids in self._ahead_partly:
            if end > self._next:
                _extend(groups.setdefault(ids, []), max(first, self._next), end)
        return groups

    def resume_at(self, position: int, ahead: Note = NOTHING) -> bool:
        """The partition is assigned again, with `position` committed and `ahead` done beyond it.

        True if the tracker goes on; False if it no longer describes the partition and a new one is needed: the offsets
        were rewound, or something was completed that is owed here, so somebody else had the partition meanwhile.
        """
        if not self.committed <= position <= self.committable:
            return False
        return not tells_more(ahead.done, self.completed(), self.committable)

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
