"""Records out of a fetch's answer, beside what the library itself makes of the same bytes."""

from __future__ import annotations

import gc
import itertools
import struct
import weakref
from typing import Any

import google_crc32c
import pytest
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition
from aiokafka.util import NO_EXTENSIONS
from hypothesis import given, strategies as st

from dispatcher.broker.kafka import consumer as kafka_consumer, records as kafka_records
from dispatcher.broker.kafka.bulk import Answer

PARTITION = TopicPartition("events", 3)
NO_PRODUCER = -1
CONTROL, TRANSACTIONAL = 0x20, 0x10
ABORT = struct.pack(">hh", 0, 0)


def batch(
    offset: int,
    count: int,
    *,
    compression: int = 0,
    producer: int = NO_PRODUCER,
    flags: int = 0,
    key: bytes | None = None,
    gone: int = 0,
) -> bytes:
    """A record batch of `count` records from `offset` on; behind them compaction has taken `gone` more."""
    builder = DefaultRecordBatchBuilder(2, compression, bool(flags & TRANSACTIONAL), producer, 0, 0, 1 << 20)
    for number in range(count):
        builder.append(number, 1_700_000_000_000, key, b"value %d" % (offset + number), [])
    built = bytearray(builder.build())
    built[0:8] = offset.to_bytes(8, "big")
    attributes = int.from_bytes(built[21:23], "big") | flags
    built[21:23] = attributes.to_bytes(2, "big")
    built[23:27] = (count - 1 + gone).to_bytes(4, "big")
    return sealed(built)


def sealed(built: bytearray) -> bytes:
    """With the checksum that the library's software computes."""
    built[17:21] = calc_crc32c(bytes(built[21:])).to_bytes(4, "big")
    return bytes(built)


def damaged(built: bytes) -> bytes:
    return built[:-1] + bytes([built[-1] ^ 1])


def legacy(offset: int, count: int, *, compression: int) -> bytes:
    """A message set of format 1, whose offsets are those of a compressed one's last message."""
    builder = LegacyRecordBatchBuilder(1, compression, 1 << 20)
    for number in range(count):
        at = number if compression else offset + number
        builder.append(at, 1_700_000_000_000, None, b"value %d" % (offset + number))
    built = bytes(builder.build())
    return (offset + count - 1).to_bytes(8, "big") + built[8:] if compression else built


class State:
    """Of a partition, as far as the library's fetch results ask for it."""

    paused = False

    def __init__(self, position: int) -> None:
        self.position = position

    def consumed_to(self, position: int) -> None:
        self.position = position


class Assignment:
    active = True

    def __init__(self, position: int) -> None:
        self.state = State(position)

    def state_value(self, _: TopicPartition) -> State:
        return self.state


def fetched(
    data: bytes, offset: int = 0, *, aborted: list[tuple[int, int]] | None = None, committed: bool = True
) -> kafka_records.Fetched:
    isolation = fetcher.READ_COMMITTED if committed else fetcher.READ_UNCOMMITTED
    records = kafka_records.Records(PARTITION, Answer(data), aborted, offset, None, None, True, isolation)
    return kafka_records.Fetched(
        PARTITION, assignment=Assignment(offset), partition_records=records, backoff=0
    )


def position(result: kafka_records.Fetched) -> int:
    return int(result._assignment.state.position)


def drain(result: kafka_records.Fetched, limit: int | None = None) -> list[tuple[int, bytes]]:
    taken: list[tuple[int, bytes]] = []
    while result.has_more():
        some = result.getall(limit)
        assert limit is None or len(some) <= limit
        if some:
            assert position(result) > some[-1].offset
        taken += [(record.offset, record.value) for record in some]
    return taken


def expected(*offsets: int) -> list[tuple[int, bytes]]:
    return [(offset, b"value %d" % offset) for offset in offsets]


def test_the_hook_is_in_place() -> None:
    assert kafka_consumer.KafkaConsumer is not None  # its import puts it there
    assert fetcher.MemoryRecords is Answer
    assert fetcher.PartitionRecords is kafka_records.Records
    assert fetcher.FetchResult is kafka_records.Fetched


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6, 7, 1000, None])
@pytest.mark.parametrize("compression", [0, 1, 2, 3, 4])
def test_all_records_in_stretches(limit: int | None, compression: int) -> None:
    data = batch(0, 3, compression=compression) + batch(3, 1) + batch(4, 2, compression=compression)
    result = fetched(data)
    assert drain(result, limit) == expected(0, 1, 2, 3, 4, 5)
    assert position(result) == 6


def test_one_at_a_time_as_the_library_may_ask() -> None:
    result = fetched(batch(0, 2) + batch(2, 1))
    taken = []
    while (record := result.getone()) is not None:
        taken.append(record.offset)
        assert position(result) == record.offset + 1
    assert taken == [0, 1, 2]
    assert not result.has_more()


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_reading_starts_within_a_batch(limit: int) -> None:
    assert drain(fetched(batch(10, 5) + batch(15, 1), 13), limit) == expected(13, 14, 15)


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_what_compaction_took_is_passed(limit: int) -> None:
    result = fetched(batch(0, 2, gone=5) + batch(10, 1, gone=3))
    assert drain(result, limit) == expected(0, 1, 10)
    assert position(result) == 14


@pytest.mark.parametrize("limit", [1, 2, 100])
@pytest.mark.parametrize("compression", [0, 1])
def test_the_old_format(limit: int, compression: int) -> None:
    data = legacy(0, 3, compression=compression) + legacy(3, 2, compression=compression)
    assert drain(fetched(data, 1), limit) == expected(1, 2, 3, 4)


def test_a_checksum_of_the_old_format() -> None:
    with pytest.raises(CorruptRecordException):
        fetched(damaged(legacy(0, 1, compression=0))).getall(10)


def test_a_broken_batch_ends_it() -> None:
    result = fetched(damaged(batch(0, 2)) + batch(2, 2))
    with pytest.raises(CorruptRecordException, match="before offset 2 "):
        result.getall(10)
    assert position(result) == 0
    assert result.getall(10) == []  # not what is behind it
    assert not result.has_more()  # it is fetched again
    assert position(result) == 0


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_what_is_before_a_broken_batch_comes(limit: int) -> None:
    data = batch(0, 2) + damaged(batch(2, 2)) + batch(4, 1)
    result = fetched(data)
    taken: list[int] = []
    with pytest.raises(CorruptRecordException, match="before offset 4 "):  # noqa: PT012 - after some rounds or at once
        while True:
            if not result.has_more():
                result = fetched(data[len(batch(0, 2)) :], position(result))  # the broker's next answer
            taken += [record.offset for record in result.getall(limit)]
    assert taken == [0, 1]
    assert position(result) == 2


def test_a_batch_that_breaks_in_its_middle() -> None:
    whole = bytearray(batch(5, 3))
    # The last record, without its bytes but with a right checksum: a broker's bug rather than a bad disk.
    whole = whole[:-3]
    whole[8:12] = (len(whole) - 12).to_bytes(4, "big")
    result = fetched(batch(4, 1) + sealed(whole), 4)
    taken = [record.offset for record in result.getall(100)]
    assert taken == list(range(4, position(result)))
    assert taken
    again = fetched(sealed(whole), position(result))
    with pytest.raises(CorruptRecordException):
        again.getall(100)


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_aborted_transactions_are_passed_over(limit: int) -> None:
    data = (
        batch(0, 2, producer=7, flags=TRANSACTIONAL)  # aborted
        + batch(2, 1)  # of no transaction
        + batch(3, 2, producer=8, flags=TRANSACTIONAL)  # committed
        + batch(5, 1, producer=7, flags=TRANSACTIONAL | CONTROL, key=ABORT)
        + batch(6, 1, producer=7, flags=TRANSACTIONAL)  # the same producer's next one
        + batch(7, 1, producer=7, flags=TRANSACTIONAL | CONTROL, key=struct.pack(">hh", 0, 1))
    )
    result = fetched(data, aborted=[(7, 0)])
    assert drain(result, limit) == expected(2, 3, 4, 6)
    assert position(result) == 8
    uncommitted = fetched(data, aborted=[(7, 0)], committed=False)
    assert drain(uncommitted, limit) == expected(0, 1, 2, 3, 4, 6)


BATCHES = st.lists(
    st.tuples(
        st.integers(1, 4),  # records
        st.integers(0, 3),  # gone behind them
        st.sampled_from([0, 1]),  # compression
        st.sampled_from(["plain", "seven", "eight", "abort seven", "abort eight"]),
    ),
    max_size=8,
)


@given(BATCHES, st.integers(0, 12), st.integers(1, 6), st.booleans())
def test_it_is_what_the_library_makes_of_it(
    shapes: list[tuple[int, int, int, str]], start: int, limit: int, committed: bool
) -> None:
    """The library's own generator, over the same bytes, with the transactions the broker would name."""
    data, offset, aborted = b"", 0, []
    first: dict[int, int] = {}
    for count, gone, compression, kind in shapes:
        producer = {"plain": NO_PRODUCER, "seven": 7, "abort seven": 7}.get(kind, 8)
        if kind.startswith("abort"):
            data += batch(offset, 1, producer=producer, flags=TRANSACTIONAL | CONTROL, key=ABORT)
            if producer in first:
                aborted.append((producer, first.pop(producer)))
            offset += 1
            continue
        flags = 0 if kind == "plain" else TRANSACTIONAL
        data += batch(offset, count, compression=compression, producer=producer, flags=flags, gone=gone)
        if flags:
            first.setdefault(producer, offset)
        offset += count + gone
    isolation = fetcher.READ_COMMITTED if committed else fetcher.READ_UNCOMMITTED
    theirs: Any = LIBRARYS(PARTITION, MemoryRecords(data), aborted, start, None, None, True, isolation)
    wanted = [(record.offset, record.value) for record in theirs]
    result = fetched(data, start, aborted=aborted, committed=committed)
    assert drain(result, limit) == wanted
    assert position(result) == theirs.next_fetch_offset


LIBRARYS: Any = kafka_records.Records.__mro__[1]


def test_one_dropped_half_read_is_gone_at_once() -> None:
    result = fetched(batch(0, 5))
    assert len(result.getall(2)) == 2
    gone = weakref.ref(result._partition_records)
    gc.disable()
    try:
        del result
        assert gone() is None
    finally:
        gc.enable()


def test_an_answer_without_a_whole_batch() -> None:
    answer = Answer(batch(0, 1)[:-1])
    assert not answer.has_next()
    assert answer.size_in_bytes() > 0  # the library says "too large" by that


def test_the_fast_checksum_is_the_librarys() -> None:
    """Else every batch would be broken, or none."""
    assert NO_EXTENSIONS is False
    assert google_crc32c.implementation == "c"
    for size in itertools.chain(range(40), [1000, 100_000]):
        data = bytes(number % 251 for number in range(size))
        assert google_crc32c.value(data) == calc_crc32c(data)
