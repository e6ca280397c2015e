"""What is parked in one partition of the parked topic: where each subscription's records are, and which are still owed.

A parked delivery waits for its endpoint, not for a time. So whoever owns a partition reads each record of it once and
notes its offset under its subscription. When the endpoint can take something, the oldest offsets are taken from here and
their records are read again, by offset. No body stays in memory: a parked delivery costs 13 bytes, 12 for its offset and its time, and one
in the tracker. A subscription that has anything parked costs 0.4 KiB more.

The offsets are bounded (`MOST`, shared evenly by the partitions of the process). Beyond that the subscriptions that have most lose the notes of
their newest records, and note only from which offset on there are more (`Backlog.more_from`). So an endpoint that is
dead for days takes no room from one that is well again: its own records are all known. Whoever lost notes has the partition
read again from there when its backlog runs low.

`ParkedTracker` stands in for `PartitionTracker`, which spends 100 bytes on an owed offset: here they may be a million.

Rules:

1. An offset of a `Backlog` is in exactly one place: waiting, or taken (`Backlog.taken`), or not noted (`more_from`). A taken one is settled, given
   back, or released: its attempt failed, and what comes of that is the delivery's own affair.
2. Waiting offsets are taken in ascending order: the oldest first.
3. Between the committed offset and `next` each offset is owed until it is settled, noted or not.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Final

from dispatcher.core.commit.note import NOTHING, Note, Who
from dispatcher.core.commit.offsets import PartitionTracker, Wanting

MOST: Final = 4_000_000
"""Offsets that are noted, of all partitions of a process together: 52 MB."""

_LEAST: Final = 10_000  # of one partition, however many there are

REFILL: Final = 1000
"""Offsets below which a subscription that lost notes gets new ones."""

_RUNS: Final = 20_000  # of done offsets, that are told at a time: more than any note takes
_TRIM: Final = 1 << 16  # done bytes at the front of a tracker that are kept before they are cut off
_FEWEST: Final = 16  # offsets that a subscription keeps whatever the others have
_LOOSE: Final = 4096  # taken offsets at the front of a backlog that are kept before they are cut off
_OWED: Final = re.compile(rb"[^\0]")

REASONS: Final = (
    "other",
    "breaker",
    "retry_after",
    "queue_wait",
    "cap",
    "hold_limit",
    "shutdown",
    "paused",
    "pending",
    "invalid",
    "sealed",
    "fair_share",
)
"""Why a delivery is parked."""

_CODES: Final[Mapping[str, int]] = {reason: code for code, reason in enumerate(REASONS, 1)}


class Backlog:
    """What one subscription has parked in one partition."""

    __slots__ = (
        "_head",
        "_offsets",
        "_returned",
        "_since",
        "asked_until",
        "done",
        "id",
        "looked",
        "more_from",
        "purge",
        "rate",
        "taken",
        "waiting",
        "window",
    )

    def __init__(self, id: str) -> None:  # noqa: A002 - the field's name
        """`id` is the subscription's."""
        self.id = id
        self._offsets = array("q")
        self._since = array("I")
        self._head = 0  # of what has been taken from the front of both
        self._returned: list[tuple[int, int]] = []  # a heap of (offset, since): what was given back
        self.taken: dict[int, int] = {}
        """Since when each of those is parked that are with their lane now, by offset."""
        self.more_from: int | None = None
        """The offset from which on records of it aren't noted."""
        self.asked_until = 0.0
        """Seconds of the owner's clock: its endpoint wants nothing before (Retry-After)."""
        # Kept by the owner: how fast they go, and when it looks again.
        self.done = 0
        self.rate = 0.0
        self.looked = 0.0
        self.waiting: object = None
        self.window = 0
        self.purge = 0  # the last one that it has been looked through for

    def __len__(self) -> int:
        """Those that are noted and wait."""
        return len(self._offsets) - self._head + len(self._returned)

    def add(self, offset: int, since: int) -> None:
        """One more, behind all others; `since` in Unix seconds."""
        self._offsets.append(offset)
        self._since.append(since)

    @property
    def oldest(self) -> int | None:
        """Since when (Unix seconds) the next one to be taken has been parked."""
        first = self.first
        return None if first is None else first[1]

    @property
    def first(self) -> tuple[int, int] | None:
        """The next one to be taken: its offset, and since when (Unix seconds) it has been parked."""
        returned = self._returned
        head = self._head
        if head == len(self._offsets):
            return returned[0] if returned else None
        if returned and returned[0][0] < self._offsets[head]:
            return returned[0]
        return self._offsets[head], self._since[head]

    def take(self, count: int) -> list[int]:
        """The offsets of the oldest, at most so many, in ascending order."""
        offsets: list[int] = []
        returned = self._returned
        end = len(self._offsets)
        while len(offsets) < count:
            head = self._head
            if returned and (head == end or returned[0][0] < self._offsets[head]):
                offset, since = heappop(returned)
            elif head < end:
                offset, since = self._offsets[head], self._since[head]
                self._head = head + 1
            else:
                break
            offsets.append(offset)
            self.taken[offset] = since
        self._tidy()
        return offsets

    def give_back(self, offset: int) -> None:
        """One that was taken waits again."""
        heappush(self._returned, (offset, self.taken.pop(offset)))

    def drop(self, offset: int) -> None:
        """Forget one that waits: it is written anew."""
        head = self._head
        at = bisect_left(self._offsets, offset, head)
        if at < len(self._offsets) and self._offsets[at] == offset:
            if at == head:
                self._head = head + 1
            else:
                del self._offsets[at], self._since[at]
            self._tidy()
        else:
            self._returned = sorted(each for each in self._returned if each[0] != offset)

    def drop_between(self, first: int, last: int) -> int:
        """Forget what waits of these offsets: they are given up. Returns how many went."""
        before = len(self)
        begin = bisect_left(self._offsets, first, self._head)
        end = bisect_left(self._offsets, last + 1, begin)
        del self._offsets[begin:end], self._since[begin:end]
        self._returned = sorted(each for each in self._returned if not first <= each[0] <= last)
        if self.more_from is not None and first <= self.more_from <= last:
            self.more_from = last + 1
        self._tidy()
        return before - len(self)

    def cut(self, length: int) -> int:
        """Keep notes of the oldest `length` that were not given back; returns how many went."""
        keep = self._head + length
        gone = len(self._offsets) - keep
        if gone <= 0:
            return 0
        first = self._offsets[keep]
        self.more_from = first if self.more_from is None else min(first, self.more_from)
        del self._offsets[keep:], self._since[keep:]
        return gone

    def _tidy(self) -> None:
        head = self._head
        if head == len(self._offsets):
            self._offsets, self._since, self._head = array("q"), array("I"), 0
        elif head >= _LOOSE and head > len(self._offsets) // 2:
            self._offsets, self._since = self._offsets[head:], self._since[head:]
            self._head = 0

    @property
    def over(self) -> bool:
        """Nothing waits, nothing is taken, and nothing is unnoted."""
        return not len(self) and not self.taken and self.more_from is None


class ParkedTracker(PartitionTracker):
    """The offsets of a partition of the parked topic, and who waits in it."""

    __slots__ = ("_base", "_count", "_counts", "_most", "_noted", "_out", "_states", "backlogs", "freed")

    def __init__(self, topic: str, partition: int, start: int, ahead: Note = NOTHING) -> None:
        """As of any tracker."""
        super().__init__(topic, partition, start, ahead)
        self._base = start  # the offset that `_states` begins with
        self._states = bytearray()  # of an offset that is owed why it is parked, else 0
        self._count = 0  # of those that are owed
        self._counts = [0] * (len(REASONS) + 1)  # likewise, by why they are parked
        self._most = MOST
        self._noted = 0  # offsets that are noted in the backlogs, at least so many
        self._out: dict[int, Backlog] = {}  # of whom the taken offsets are
        self.backlogs: dict[str, Backlog] = {}
        self.freed: Callable[[Backlog, bool], None] | None = None
        """Told of each that is not with its lane any more, and whether it was given back."""

    def __len__(self) -> int:
        return self._count

    # The tracker's part.

    def track(
        self,
        offset: int,
        owed: int,
        wanted: Sequence[Wanting] = (),  # noqa: ARG002 - one delivery a record
        who: Who | None = None,  # noqa: ARG002 - likewise
    ) -> None:
        """`owed` is 0 or 1. Use `note` of what is parked: it tells why."""
        self._track(offset, 1 if owed else 0)

    def _track(self, offset: int, code: int) -> None:
        if offset < self._next:
            raise ValueError(f"offset {offset} is tracked already (next is {self._next})")
        states = self._states
        gap = offset - self._base - len(states)
        if gap:
            states.extend(bytes(gap))
        states.append(code)
        if code:
            self._count += 1
            self._counts[code] += 1
        self._next = offset + 1

    def settle(self, offset: int, subscription_id: str = "") -> None:  # noqa: ARG002 - there is one
        at = offset - self._base
        code = self._states[at] if at >= 0 else 0
        if not code:
            raise KeyError(offset)
        self._states[at] = 0
        self._count -= 1
        self._counts[code] -= 1
        self.release(offset)

    def _find(self, at: int) -> int:
        """Where the next owed one is in `_states`; -1 for nowhere."""
        found = _OWED.search(self._states, at)
        return -1 if found is None else found.start()

    @property
    def committable(self) -> int:
        states = self._states
        at = self._find(0)
        if at < 0:
            self._base = self._next
            states.clear()
            return self._next
        if at >= _TRIM:
            del states[:at]
            self._base += at
            at = 0
        return self._base + at

    def completed(self) -> list[tuple[int, int]]:
        runs: list[tuple[int, int]] = []
        base = self._base
        states = self._states
        owed = self._find(0)
        while owed >= 0 and len(runs) < _RUNS:
            done = states.find(0, owed)
            if done < 0:
                if base + len(states) < self._next:
                    runs.append((base + len(states), self._next))
                break
            owed = self._find(done)
            runs.append((base + done, self._next if owed < 0 else base + owed))
        if len(runs) == _RUNS:
            return runs
        for first, end in self._ahead:
            if runs and runs[-1][1] == first:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((first, end))
        return runs

    def partly(self) -> dict[Who, list[tuple[int, int]]]:
        return {}

    def changed(self) -> bool:
        return self._told != self.state()

    def state(self) -> tuple[int, int, int]:
        return self._next, self._count, 0

    def look(self, now: float, limit: float) -> bool:  # noqa: ARG002 - to wait is what they are here for
        return False

    def observe(self, now: float) -> None:
        """Nothing is held back by what is parked: `held` stays 0."""

    # Who waits.

    def reasons(self) -> dict[str, int]:
        """How many are parked, by why."""
        return dict(zip(REASONS, self._counts[1:], strict=True))

    def oldest(self) -> dict[str, int]:
        """Since when (Unix seconds) the oldest waits, by why it is parked. Of each subscription the next one to be taken counts."""
        found: dict[str, int] = {}
        for backlog in self.backlogs.values():
            first = backlog.first
            if first is None:
                continue
            at = first[0] - self._base
            code = self._states[at] if at >= 0 else 0
            if code:
                reason = REASONS[code - 1]
                found[reason] = min(first[1], found.get(reason, first[1]))
        return found

    def note(self, offset: int, subscription_id: str, since: int, reason: str) -> Backlog:
        """The record at `offset` was read: it is parked for that subscription since then (Unix seconds). It is tracked."""
        self._track(offset, _CODES.get(reason, 1))
        backlog = self.backlogs.get(subscription_id)
        if backlog is None:
            backlog = self.backlogs[subscription_id] = Backlog(subscription_id)
        if backlog.more_from is None:
            backlog.add(offset, since)
            self._noted += 1
            if self._noted > self._most:
                self._make_room(self._most)
        return backlog

    def share(self, partitions: int) -> None:
        """So many, this one with them, have their notes in the process."""
        self._most = max(MOST // partitions, min(MOST, _LEAST))
        if self._noted > self._most:
            self._make_room(self._most)

    def renote(self, backlog: Backlog, offset: int, since: int) -> None:
        """The same of one that had lost its note; in ascending order."""
        if self.owes(offset) and offset not in self._out:
            backlog.add(offset, since)
            self._noted += 1

    def _make_room(self, most: int) -> None:
        """Let those that have most give most, until three quarters of `most` are noted."""
        sizes = sorted(len(backlog) for backlog in self.backlogs.values())
        left = most * 3 // 4
        level = _FEWEST
        for number, size in enumerate(sizes):
            level = left // (len(sizes) - number)
            if size > level:
                break
            left -= size
        level = max(level, _FEWEST)
        self._noted = 0
        for backlog in self.backlogs.values():
            if len(backlog) > level:
                backlog.cut(level)
            self._noted += len(backlog)

    def owes(self, offset: int) -> bool:
        """Whether the offset, which was read, is not settled."""
        at = offset - self._base
        return 0 <= at < len(self._states) and self._states[at] > 0

    def take(self, backlog: Backlog, count: int) -> list[int]:
        """The oldest offsets of a backlog, at most so many, for its lane."""
        offsets = backlog.take(count)
        out = self._out
        if not out.keys().isdisjoint(offsets):  # they are being renewed
            for offset in offsets:
                if offset in out:
                    backlog.give_back(offset)
            offsets = [offset for offset in offsets if offset not in out]
        self._noted -= len(offsets)
        for offset in offsets:
            out[offset] = backlog
        return offsets

    def give_back(self, offset: int) -> bool:
        """One that was taken is to wait on, as it stands; False if its record says less than there is to say by now."""
        backlog = self._out.pop(offset, None)
        if backlog is None or backlog is _NOBODY:
            return False
        backlog.give_back(offset)
        self._noted += 1
        if self.freed is not None:
            self.freed(backlog, True)
        return True

    def release(self, offset: int) -> None:
        """The attempt of one that was taken is over."""
        backlog = self._out.pop(offset, None)
        if backlog is None or backlog is _NOBODY:
            return
        backlog.taken.pop(offset, None)
        backlog.done += 1
        if self.freed is not None:
            self.freed(backlog, False)

    def give_up(self, first: int, last: int) -> None:
        """Settle what is owed of these offsets and with nobody: their records can't be read."""
        for backlog in self.backlogs.values():
            self._noted -= backlog.drop_between(first, last)
        for offset in range(max(first, self._base), min(last + 1, self._next)):
            if self.owes(offset) and offset not in self._out:
                self.settle(offset)

    def renew(self, count: int) -> list[int]:
        """Take the lowest offsets, at most so many, that are owed and with nobody: their records are written anew.

        Each is settled when that is done, or `keep`s its place.
        """
        found: list[int] = []
        at = self._find(0)
        while at >= 0 and len(found) < count:
            if self._base + at not in self._out:
                found.append(self._base + at)
            at = self._find(at + 1)
        for offset in found:
            self._out[offset] = _NOBODY
        return found

    def keep(self, offset: int) -> None:
        """It was not written anew."""
        self._out.pop(offset, None)


_NOBODY: Final = Backlog("")
"""Has what is being written anew."""
