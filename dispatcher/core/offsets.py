"""Which offset of a partition may be committed, while deliveries complete in any order.

Kafka knows one number per partition: everything below it is done with. Deliveries finish out
of order, so the tracker remembers for each offset how many deliveries it still owes; what may
be committed is the lowest offset that owes any, or the position where nothing does.

The owed offsets stand in one dict. Offsets are tracked in ascending order and a dict keeps
the order of insertion, so its first key is the lowest one: no heap, no sorted structure, one
store per record and one lookup per delivery (0.2 us together, benchmarks/micro.py).

What is done beyond the position to commit (`completed`) is written down beside the commit, and whoever
takes the partition over begins with it (`ahead`): those offsets are passed over. An offset is done or it is not: of an
event that is acknowledged by three endpoints and waits for the fourth, all four deliveries are owed to the next owner.

Rules:

1. Offsets are tracked once each, in ascending order; `seen` tells which ones come again, or were done before.
2. An offset that owes n deliveries takes exactly n calls of `settle`.
3. `committable` never goes back, and never passes an offset that owes a delivery, or that was not read yet.
4. `completed` are offsets that owe nothing and were read, by this tracker or by a former owner: nothing else is
   ever written down as done.
5. A tracker outlives a rebalance in which its partition comes back and nobody else has worked on it (`resume_at`): what it
   has settled or still owes is not tracked a second time. Otherwise the tracker is `lost`: late
   results settle it harmlessly, and nothing of it is committed or attempted any more.
"""

from __future__ import annotations

from collections import deque

from dispatcher.core.completed import Runs, tells_more


class PartitionTracker:
    """The offsets of one assigned partition. Owned by the engine."""

    __slots__ = (
        "_ahead",
        "_marks",
        "_next",
        "_owed",
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

    def __init__(self, topic: str, partition: int, start: int, ahead: Runs = ()) -> None:
        """`start` is the offset that is read first: the committed position; `ahead` is done already, beyond it."""
        self.topic = topic
        self.partition = partition
        self._owed: dict[int, int] = {}
        self._next = start
        self._ahead = deque(ahead)  # beyond `_next`
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

    def track(self, offset: int, owed: int) -> None:
        """The record at `offset` owes so many deliveries; 0 for one that nobody wants."""
        if offset < self._next:
            raise ValueError(f"offset {offset} is tracked already (next is {self._next})")
        self._next = offset + 1
        if owed:
            self._owed[offset] = owed

    def settle(self, offset: int) -> None:
        """One delivery of the offset is done with."""
        owed = self._owed
        left = owed[offset] - 1
        if left:
            owed[offset] = left
        else:
            del owed[offset]

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
            if runs and first <= runs[-1][1]:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((first, end))
        return runs

    def resume_at(self, position: int, ahead: Runs = ()) -> bool:
        """The partition is assigned again, with `position` committed and `ahead` done beyond it.

        True if the tracker goes on; False if it no longer describes the partition and a new one is needed: the offsets
        were rewound, or something was completed that is owed here, so somebody else had the partition meanwhile.
        """
        if not self.committed <= position <= self.committable:
            return False
        return not tells_more(ahead, self.completed(), self.committable)

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
