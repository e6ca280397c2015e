"""The records of a fetch, as consumers of aiokafka hand them out in this process: many at a time, without Python per record.

The library takes each record through a generator, makes a `ConsumerRecord` of it and notes its offset: 1.6 us a
record. What its C code makes of one is a record as the port has it, so here the records of a batch are taken
by the hundred: 0.35 us. And it computes checksums in software, 0.63 us for a KiB; google-crc32c has an instruction for
it (0.07 us).

Rules, the library's own:

1. A batch that can't be unpacked is not handed out, nor anything after it: an `UnreadableBatch` stands in the place of
   its records, alone. It ends before the next batch and before the partition's end, since its head may be what is broken, and a
   skip must pass over nothing else. (The library raises in the middle of its answer, and loses records of other partitions.)
2. Control batches and, reading committed, those of aborted transactions are passed over.
3. `next_fetch_offset` is past what was handed out or passed over; past a whole batch also where compaction
   took its last records.

Any client of the broker may write the text beside a commit. Where it is no UTF-8, the library can never read the answer with
the offsets of the whole group. Here such bytes become U+FFFD, and a note with one of them is not believed.
"""

from __future__ import annotations

import sys
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.protocol import commit
from aiokafka.protocol.types import Array, Int16, Schema, String

from dispatcher.broker.base import UnreadableBatch
from dispatcher.broker.kafka.wire import codecs
from dispatcher.broker.kafka.wire.bulk import FetchAnswer


class Records(fetcher.PartitionRecords):  # type: ignore[misc] # the library has no types
    """The records of one partition's answer.

    No generator, which would be a cycle with this: one that is dropped half read, with its megabytes, is gone at once.
    """

    _records: FetchAnswer

    def _unpack_records(self) -> None:
        self._records.next_offset = self.next_fetch_offset

    def __iter__(self) -> Records:
        return self

    def __next__(self) -> Any:
        if taken := self.take(1):
            return taken[0]
        raise StopIteration

    def take(self, limit: int | None) -> list[Any]:
        """At most `limit` records; fewer if there are no more. Raises UnreadableBatch: the first can't be unpacked."""
        answer = self._records
        taken = answer.take(sys.maxsize if limit is None else limit, self._check_crcs, self._passed)
        self.next_fetch_offset = answer.next_offset
        return taken

    def _passed(self, batch: Any) -> bool:
        """Whether a batch of a transaction is passed over; keeps the library's books of them."""
        if self._isolation_level == fetcher.READ_COMMITTED:
            self._consume_aborted_up_to(batch.base_offset)
            if batch.is_control_batch and self._contains_abort_marker(batch):
                self._aborted_producers.discard(batch.producer_id)
            if batch.producer_id in self._aborted_producers:
                return True
        return bool(batch.is_control_batch)


class Fetched(fetcher.FetchResult):  # type: ignore[misc] # the library has no types
    """The library's, taking many records at a time."""

    _partition_records: Records | None

    def getall(self, max_records: int | None = None) -> list[Any]:
        if not self.has_more() or not self.check_assignment(self._topic_partition):
            return []
        assert self._partition_records is not None  # noqa: S101 - for the type checker: has_more says so
        try:
            taken = self._partition_records.take(max_records)
        except UnreadableBatch as error:
            self._partition_records = None
            return [error.ending_before(self._assignment.state_value(self._topic_partition).highwater)]
        self._update_position()
        if max_records is None or len(taken) < max_records:
            self._partition_records = None
        return taken


class _Lenient(String):  # type: ignore[misc] # the library has no types
    def decode(self, data: Any) -> str | None:
        length = Int16.decode(data)
        return None if length < 0 else data.read(length).decode(errors="replace")


def _lenient(schema: Schema) -> Schema:
    """The same, with every field `metadata` read leniently."""

    def kind(name: str, field: Any) -> Any:
        if isinstance(field, Array):
            inner = field.array_of
            return (
                Array(*zip(inner.names, map(kind, inner.names, inner.fields), strict=True))
                if isinstance(inner, Schema)
                else field
            )
        return _Lenient() if name == "metadata" else field

    return Schema(
        *((name, kind(name, field)) for name, field in zip(schema.names, schema.fields, strict=True))
    )


def install() -> None:
    """Have every consumer of this process do so; there is no place to say so for one."""
    codecs.install()
    fetcher.MemoryRecords = FetchAnswer
    fetcher.PartitionRecords = Records
    fetcher.FetchResult = Fetched
    for request in (commit.OffsetFetchRequest_v1, commit.OffsetFetchRequest_v2, commit.OffsetFetchRequest_v3):
        request.RESPONSE_TYPE.SCHEMA = _lenient(request.RESPONSE_TYPE.SCHEMA)
