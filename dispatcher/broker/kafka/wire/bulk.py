"""The loops over many small records, to Kafka and from it, in a file of their own to be compiled (`hatch_build.py`).

Source: Kafka's record batch since 0.11 (magic 2): its CRC-32C is 4 bytes at 17, of all from 21 on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from operator import attrgetter
from typing import Any, Final

import google_crc32c
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.memory_records import MemoryRecords

from dispatcher.broker.base import Entry, UnreadableBatch
from dispatcher.broker.kafka.wire.unpack import counted_end, framed, last_offset, unpack
from dispatcher.broker.partitioning import partition_of

_CHECKED: Final = 21  # where that begins which the checksum is of

_NO_HEADERS: Final[list[tuple[str, bytes]]] = []
_OFFSET: Final = attrgetter("offset")


def by_partition(entries: Sequence[Entry], partitions: int) -> dict[int, list[Entry]]:
    """The entries that go to each of the `partitions` of a topic, in their order."""
    shares: dict[int, list[Entry]] = {}
    for entry in entries:
        number = partition_of(entry[0], partitions)
        share = shares.get(number)
        if share is None:
            share = shares[number] = []
        share.append(entry)
    return shares


def fill_bulk(batch: Any, entries: Sequence[Entry], at: int, most: int) -> int:
    """How many of `most` entries, from the one at `at` on, the batch has taken.

    Past the library's `BatchBuilder.append`, which takes longer than the C code behind it: 0.14 instead of 0.36 us a record.
    """
    append = batch._builder.append
    count = 0
    for key, value, timestamp in entries[at : at + most]:
        if append(count, timestamp, key, value, _NO_HEADERS) is None:
            break
        count += 1
    batch._relative_offset = count
    return count


class FetchAnswer:
    """The records that a fetch brought of one partition. `records.py` says what for."""

    def __init__(self, data: bytes | None) -> None:
        self.next_offset = 0
        """Behind what was taken or passed over; `take` goes on there."""
        self._data = data or b""
        self._batches: Any = MemoryRecords(self._data)
        self._begin = 0  # of the last batch, in the data
        self._end = 0
        self._records: Iterator[Any] | None = None  # what is left of the batch being read
        self._after = 0  # the offset behind it

    def has_next(self) -> bool:
        """Whether there is anything to take. What is no whole batch counts: `take` says what is wrong with it."""
        return bool(self._data)

    def size_in_bytes(self) -> int:
        return len(self._data)

    def take(self, limit: int, check: bool, passed: Callable[[Any], bool]) -> list[Any]:
        """At most `limit` records; fewer if there are no more.

        `check` compares checksums, `passed` says of a batch of a transaction that it is passed over. Raises
        UnreadableBatch where the first batch can't be unpacked; behind others, they come without it.
        """
        taken: list[Any] = []
        try:
            while len(taken) < limit:
                records = self._records
                if records is None:
                    records = self._open(check, passed)
                    if records is None:
                        break
                before = len(taken)
                problem = ""
                try:
                    taken.extend(islice(records, limit - before))
                except UnreadableBatch:
                    raise
                except Exception as error:  # noqa: BLE001 - whatever the library makes of bytes that it doesn't expect
                    problem = f"{type(error).__name__}: {error}"
                wrong = _misplaced(taken, before, self.next_offset, self._after)
                if wrong >= 0:
                    problem = f"offset {taken[wrong].offset} is out of order"
                    del taken[wrong:]
                if problem:
                    records = self._salvaged(taken, problem)
                    taken.extend(islice(records, limit - len(taken)))
                if len(taken) == limit and len(taken) > before:
                    self._records = records
                    self.next_offset = taken[-1].offset + 1
                else:
                    self._records = None
                    self.next_offset = self._after
        except UnreadableBatch as error:
            following: int | None = None
            if self._end + 8 <= len(self._data):
                following = int.from_bytes(self._data[self._end : self._end + 8], "big", signed=True)
            else:
                following = counted_end(self._data[self._begin : self._end], error.first)
            # Nothing of this answer is read any more: it is fetched again, from here on.
            self._records = None
            self._data = b""
            self._batches = MemoryRecords(b"")
            if not taken:
                raise error.ending_before(following) from error
            # It may have broken within a batch.
            self.next_offset = max(self.next_offset, taken[-1].offset + 1)
        return taken

    def _salvaged(self, taken: list[Any], problem: str) -> Iterator[Any]:
        """What can be read of the rest of the batch, in which the library's reader failed behind what was taken."""
        first = max(self.next_offset, taken[-1].offset + 1) if taken else self.next_offset
        return unpack(self._data[self._begin : self._end], first, problem)

    def _open(self, check: bool, passed: Callable[[Any], bool]) -> Iterator[Any] | None:
        """The records of the next batch that has any for us."""
        while True:
            begin = self._end
            first = self.next_offset
            if not self._batches.has_next():
                if begin or not self._data:
                    return None  # the last one may be cut off: it comes with the next answer
                framed(self._data, 0, first)  # which mostly says what is wrong with it
                raise self._unreadable("it is shorter than its head")
            self._begin = begin
            self._end = framed(self._data, begin, first)
            try:
                batch = self._batches.next_batch()
                modern = isinstance(batch, DefaultRecordBatch)  # the library takes one format in an answer
                sound = not check or (self._sound(batch) if modern else batch.validate_crc())
                after = batch.next_offset
            except Exception as error:
                raise self._unreadable(f"{type(error).__name__}: {error}") from error
            if not sound:
                raise self._unreadable("its checksum is wrong")
            if modern and batch.magic != 2:
                raise self._unreadable(f"its format is unknown (magic {batch.magic})")
            self._after = max(after, first)  # a head that lies must not lead back
            if batch.is_transactional or batch.is_control_batch:
                try:
                    over = passed(batch)
                except Exception as error:
                    raise self._unreadable(
                        f"a transaction's marker can't be read: {type(error).__name__}: {error}"
                    ) from error
                if over:
                    self.next_offset = self._after
                    continue
            if modern and batch.base_offset >= first:
                return chain(batch)  # which, unlike the batch, may be asked for its iterator again
            # The broker sends whole batches, also where reading starts in the middle of one.
            return (record for record in chain(batch) if record.offset >= first)

    def _sound(self, batch: Any) -> bool:
        return bool(google_crc32c.value(self._data[self._begin + _CHECKED : self._end]) == batch.crc)

    def _unreadable(self, reason: str) -> UnreadableBatch:
        first = self.next_offset
        return UnreadableBatch(first, last_offset(self._data[self._begin : self._end], first), reason)


def _misplaced(taken: list[Any], begin: int, first: int, after: int) -> int:
    """Which of those from `begin` on is the first whose offset isn't between the one before it and `after`; -1: none."""
    offsets: list[int] = list(map(_OFFSET, taken[begin:]))
    # Mostly each follows the one before it: that is told at once, in C.
    if not offsets or (
        first <= offsets[0]
        and offsets[-1] < after
        and offsets == list(range(offsets[0], offsets[0] + len(offsets)))
    ):
        return -1
    for at, offset in enumerate(offsets, begin):
        if not first <= offset < after:
            return at
        first = offset + 1
    return -1
