"""Which offset of a partition may be committed, while deliveries complete in any order.

Kafka knows one number per partition: everything below it is done with. Deliveries finish out
of order, so the tracker remembers for each offset how many deliveries it still owes; what may
be committed is the lowest offset that owes any, or the position where nothing does.

The owed offsets stand in one dict. Offsets are tracked in ascending order and a dict keeps
the order of insertion, so its first key is the lowest one: no heap, no sorted structure, one
store per record and one lookup per delivery (0.2 us together, benchmarks/micro.py).

Rules:

1. Offsets are tracked once each, in ascending order; `seen` tells which ones come again.
2. An offset that owes n deliveries takes exactly n calls of `settle`.
3. `committable` never goes back, and never passes an offset that owes a delivery.
4. A tracker outlives a rebalance in which its partition comes back (`resume_at`): what it has
   settled or still owes is not tracked a second time. When the partition went to somebody
   else, the tracker is `lost`: late results settle it harmlessly, and nothing of it is
   committed or attempted any more.
"""

from __future__ import annotations

from collections import deque


class PartitionTracker:
    """The offsets of one assigned partition. Owned by the engine."""

    __slots__ = (
        "_marks",
        "_next",
        "_owed",
        "_stuck_at",
        "_stuck_since",
        "committed",
        "held",
        "lost",
        "overdue_below",
        "partition",
        "topic",
    )

    def __init__(self, topic: str, partition: int, start: int) -> None:
        """`start` is the offset that is read first: the committed position."""
        self.topic = topic
        self.partition = partition
        self._owed: dict[int, int] = {}
        self._next = start
        self.committed = start
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
        """Whether the offset has been tracked before, be it settled by now or not."""
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

    def resume_at(self, position: int) -> bool:
        """The partition is assigned again and will be read from `position`.

        True if the tracker goes on; False if it no longer describes the partition and a new one
        is needed: somebody else has gone further, or the offsets were rewound.
        """
        return self.committed <= position <= self._next

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
