"""The in-memory level of the timing wheel: what falls due within it, in O(1).

A hierarchical timing wheel (Varghese and Lauck, 1987): level 0 has a slot per tick, each
slot of level k+1 spans all of level k. An entry goes into the slot of the coarsest level
that still separates it from now, and moves to a finer level when that slot's time comes:
at most once per level, so an add is O(1) however many entries wait.

A textbook wheel turns once a tick even when it is empty. As in Kafka's `TimingWheel`, the
slots in use stand in a small heap by the time they come up, so the owner asks `next_due()`
how long it may sleep and an empty wheel costs nothing. The heap holds slots (some
thousands at the most), not entries.

Cancelling marks the entry; it is dropped when its slot comes up, so a cancelled entry keeps
its few bytes until then. Deadlines that are nearly always cancelled should therefore not be
added one by one (see `transport/connection.py`, which adds one per connection).

Rules:

1. An entry never fires before its due time, and at most one tick after it (given that
   `advance` is called on time).
2. Entries of one `advance` come out in the order of their due ticks; within a tick in the
   order they were added to their last slot.
3. Time is an argument and never goes back: `advance` with an earlier time does nothing.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush
from typing import Generic, TypeVar

T = TypeVar("T")

_BITS = 8
_SLOTS = 1 << _BITS
_MASK = _SLOTS - 1
_LEVELS = 5  # with ticks of 10 ms: 2.56 s, 11 min, 46 h, 497 days, 348 years


class Entry(Generic[T]):
    """A waiting item; the handle to cancel it with."""

    __slots__ = ("item", "tick")

    def __init__(self, tick: int, item: T) -> None:
        self.tick = tick
        self.item: T | None = item


class Wheel(Generic[T]):
    """Items that wait for their due time. Times are seconds of any one monotonic clock."""

    __slots__ = ("_heap", "_levels", "_now", "_resolution", "_waiting")

    def __init__(self, now: float, resolution: float = 0.01) -> None:
        self._resolution = resolution
        self._now = math.floor(now / resolution)
        # One dict per level, from absolute slot number to its entries: sparse, so an empty wheel is five empty dicts.
        self._levels: list[dict[int, list[Entry[T]]]] = [{} for _ in range(_LEVELS)]
        self._heap: list[tuple[int, int, int]] = []  # (first tick of the slot, level, slot)
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, due: float, item: T) -> Entry[T]:
        """Let `item` come out of the first `advance(now)` with now >= due."""
        entry = Entry(max(math.ceil(due / self._resolution), self._now + 1), item)
        self._waiting += 1
        self._place(entry)
        return entry

    def _place(self, entry: Entry[T]) -> None:
        tick = entry.tick
        distance = tick - self._now
        level = 0
        # The coarsest slot that doesn't contain now: it comes up before or at the entry's tick.
        while distance >= _SLOTS and level < _LEVELS - 1:
            distance >>= _BITS
            level += 1
        slot = tick >> (level * _BITS)
        slots = self._levels[level]
        entries = slots.get(slot)
        if entries is None:
            slots[slot] = [entry]
            heappush(self._heap, (slot << (level * _BITS), level, slot))
        else:
            entries.append(entry)

    def cancel(self, entry: Entry[T]) -> None:
        """Drop it; of an entry that has come out or was cancelled before, nothing."""
        if entry.item is not None:
            entry.item = None
            self._waiting -= 1

    def next_due(self) -> float | None:
        """When `advance` has something to do next (possibly only inside the wheel); None when empty."""
        while self._heap:
            tick, level, slot = self._heap[0]
            entries = self._levels[level][slot]
            while entries and entries[-1].item is None:
                entries.pop()
            if entries:
                return tick * self._resolution
            heappop(self._heap)
            del self._levels[level][slot]
        return None

    def advance(self, now: float) -> list[T]:
        """Move to `now`; return what is due, earliest first."""
        # The small allowance undoes the rounding of tick * resolution in next_due().
        target = math.floor(now / self._resolution + 1e-6)
        due: list[T] = []
        heap = self._heap
        while heap and heap[0][0] <= target:
            tick, level, slot = heappop(heap)
            self._now = max(self._now, tick)
            for entry in self._levels[level].pop(slot):
                item = entry.item
                if item is None:
                    continue
                if entry.tick <= tick:
                    entry.item = None
                    self._waiting -= 1
                    due.append(item)
                else:
                    self._place(entry)
        self._now = max(self._now, target)
        return due
