"""The loops over many small records, to Kafka and from it, in a file of their own to be compiled (`hatch_build.py`).

Source: Kafka's record batch since 0.11 (magic 2): its length is 4 bytes at 8 and counts from 12 on, its CRC-32C is 4
bytes at 17, of all from 21 on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Final

import google_crc32c
from aiokafka.errors import CorruptRecordException, KafkaError
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.memory_records import MemoryRecords

from dispatcher.broker.base import Entry
from dispatcher.broker.partitioning import partition_of

_OVERHEAD: Final = 12  # bytes of a batch that its length doesn't count
_CHECKED: Final = 21  # where that begins which the checksum is of

_NO_HEADERS: Final[list[tuple[str, bytes]]] = []


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


class Answer:
    """The records that a fetch brought of one partition. `records.py` says what for."""

    def __init__(self, data: bytes) -> None:
        self.next_offset = 0
        """Behind what was taken or passed over; `take` goes on there."""
        self._data = data
        self._batches: Any = MemoryRecords(data)
        self._end = 0  # of the last batch, in the data
        self._records: Iterator[Any] | None = None  # what is left of the batch being read
        self._after = 0  # the offset behind it

    def has_next(self) -> bool:
        return bool(self._batches.has_next())

    def size_in_bytes(self) -> int:
        return len(self._data)

    def take(self, limit: int, check: bool, passed: Callable[[Any], bool]) -> list[Any]:
        """At most `limit` records; fewer if there are no more.

        `check` compares checksums, `passed` says of a batch of a transaction that it is passed over. Raises
        KafkaError where the first batch can't be read; behind others, they come without it.
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
                taken.extend(islice(records, limit - before))
                if len(taken) == limit and len(taken) > before:
                    self._records = records
                    self.next_offset = taken[-1].offset + 1
                else:
                    self._records = None
                    self.next_offset = self._after
        except KafkaError:
            # Nothing of this answer is read any more: it is fetched again, from here on.
            self._records = None
            self._batches = MemoryRecords(b"")
            if not taken:
                raise
            # It may have broken within a batch.
            self.next_offset = max(self.next_offset, taken[-1].offset + 1)
        return taken

    def _open(self, check: bool, passed: Callable[[Any], bool]) -> Iterator[Any] | None:
        """The records of the next batch that has any for us."""
        while True:
            batch = self._batches.next_batch()
            if batch is None:
                return None
            modern = isinstance(batch, DefaultRecordBatch)  # the library takes one format in an answer
            if check and not (self._sound(batch) if modern else batch.validate_crc()):
                raise CorruptRecordException(
                    f"a batch that ends before offset {batch.next_offset} has a wrong checksum"
                )
            self._after = batch.next_offset
            if (batch.is_transactional or batch.is_control_batch) and passed(batch):
                self.next_offset = self._after
                continue
            records = chain(batch)  # which, unlike the batch, may be asked for its iterator again
            first = self.next_offset
            if modern and batch.base_offset >= first:
                return records
            # The broker sends whole batches, also where reading starts in the middle of one.
            return iter([record for record in records if record.offset >= first])

    def _sound(self, batch: Any) -> bool:
        begin = self._end
        self._end = end = begin + _OVERHEAD + int.from_bytes(self._data[begin + 8 : begin + _OVERHEAD], "big")
        return bool(google_crc32c.value(self._data[begin + _CHECKED : end]) == batch.crc)
