"""Records out of a fetch's answer, beside what the library itself makes of the same bytes."""

from __future__ import annotations

import io
import struct
from typing import Any

import pytest
from aiokafka.consumer import fetcher
from aiokafka.protocol.commit import OffsetFetchResponse_v3
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given, strategies as st

from dispatcher.broker.kafka import consumer as kafka_consumer
from dispatcher.broker.kafka.wire import records as kafka_records
from dispatcher.broker.kafka.wire.bulk import FetchAnswer
from tests.broker.kafka.wire.batches import (
    ABORT,
    CONTROL,
    NO_PRODUCER,
    PARTITION,
    TRANSACTIONAL,
    batch,
    damaged,
    drain,
    expected,
    fetched,
    legacy,
    long,
    position,
    unreadable,
)


def test_the_hook_is_in_place() -> None:
    assert kafka_consumer.KafkaConsumer is not None  # its import puts it there
    assert fetcher.MemoryRecords is FetchAnswer
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
    error = unreadable(fetched(damaged(legacy(7, 1, compression=0)), 7))
    assert (error.first, error.last) == (7, 7)
    assert "checksum" in error.reason


def test_a_broken_batch_ends_where_the_partition_ends_whatever_its_head_says() -> None:
    result = fetched(long(batch(10, 5)), 10)
    result._assignment.state.highwater = 15
    error = unreadable(result)
    assert (error.first, error.last) == (10, 14)


def test_a_marker_of_a_transaction_that_cannot_be_read() -> None:
    data = batch(0, 1, producer=7, flags=TRANSACTIONAL | CONTROL, key=b"\0")
    assert "marker" in unreadable(fetched(data)).reason


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
            if offset >= start:  # a broker sends nothing that ends before
                data += batch(offset, 1, producer=producer, flags=TRANSACTIONAL | CONTROL, key=ABORT)
            if producer in first:
                aborted.append((producer, first.pop(producer)))
            offset += 1
            continue
        flags = 0 if kind == "plain" else TRANSACTIONAL
        if offset + count + gone > start:
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


def test_text_beside_a_commit_that_is_no_utf8() -> None:
    """The library's own reading of the answer fails for the whole group."""
    answer = struct.pack(">i", 0) + struct.pack(">ih6sii", 1, 6, b"events", 1, 3)
    answer += struct.pack(">qh3sh", 42, 3, b"\xff\xfe!", 0) + struct.pack(">h", 0)
    decoded = OffsetFetchResponse_v3.decode(io.BytesIO(answer))
    assert decoded.topics == [("events", [(3, 42, "\ufffd\ufffd!", 0)])]
