"""Records out of a fetch's answer, beside what the library itself makes of the same bytes."""

from __future__ import annotations

import gc
import io
import itertools
import struct
import weakref
from typing import Any

import google_crc32c
import pytest
from aiokafka import codec
from aiokafka.consumer import fetcher
from aiokafka.protocol.commit import OffsetFetchResponse_v3
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition
from aiokafka.util import NO_EXTENSIONS
from hypothesis import given, settings, strategies as st

from dispatcher.broker.base import UnreadableBatch, UnreadableRecord
from dispatcher.broker.kafka import consumer as kafka_consumer
from dispatcher.broker.kafka.wire import records as kafka_records
from dispatcher.broker.kafka.wire.bulk import FetchAnswer

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
    highwater: int | None = None

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
    records = kafka_records.Records(
        PARTITION, FetchAnswer(data), aborted, offset, None, None, True, isolation
    )
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


def unreadable(result: kafka_records.Fetched, limit: int = 10) -> UnreadableBatch:
    (error,) = result.getall(limit)
    assert type(error) is UnreadableBatch
    assert not result.has_more()  # it is fetched again
    return error


def test_a_checksum_of_the_old_format() -> None:
    error = unreadable(fetched(damaged(legacy(7, 1, compression=0)), 7))
    assert (error.first, error.last) == (7, 7)
    assert "checksum" in error.reason


def test_a_broken_batch_ends_it() -> None:
    result = fetched(damaged(batch(0, 2)) + batch(2, 2))
    error = unreadable(result)
    assert (error.first, error.last) == (0, 1)
    assert "checksum" in error.reason
    assert position(result) == 0
    assert result.getall(10) == []  # not what is behind it


def long(built: bytes, delta: int = 1_000_000) -> bytes:
    """With a head that claims more offsets than the batch has, which its checksum tells."""
    return built[:23] + delta.to_bytes(4, "big") + built[27:]


def test_a_broken_batch_ends_where_the_next_one_begins_whatever_its_head_says() -> None:
    error = unreadable(fetched(long(batch(10, 5)) + batch(17, 5), 10))
    assert (error.first, error.last) == (10, 16)
    assert "offsets 10 to 16" in str(error)
    # What isn't an offset behind its first is not believed either.
    error = unreadable(fetched(damaged(batch(10, 5)) + bytes(100), 10))
    assert (error.first, error.last) == (10, 14)


def test_a_broken_batch_ends_where_the_partition_ends_whatever_its_head_says() -> None:
    result = fetched(long(batch(10, 5)), 10)
    result._assignment.state.highwater = 15
    error = unreadable(result)
    assert (error.first, error.last) == (10, 14)


def test_of_a_broken_batch_alone_in_its_fetch_no_more_is_passed_over_than_its_head_counts() -> None:
    error = unreadable(fetched(long(batch(10, 5)), 10))
    assert (error.first, error.last) == (10, 14), "records from 15 on may be readable"
    error = unreadable(fetched(long(batch(10, 5), 19), 15))
    assert (error.first, error.last) == (15, 29), "the broker says that the batch goes on"
    error = unreadable(fetched(damaged(batch(10, 5)), 10))
    assert (error.first, error.last) == (10, 14)


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_what_is_before_a_broken_batch_comes(limit: int) -> None:
    data = batch(0, 2) + damaged(batch(2, 2)) + batch(4, 1)
    result = fetched(data)
    taken: list[Any] = []
    for _ in range(5):
        if not result.has_more():
            result = fetched(data[len(batch(0, 2)) :], position(result))  # the broker's next answer
        taken += result.getall(limit)
        if type(taken[-1]) is UnreadableBatch:
            break
    assert [record.offset for record in taken] == [0, 1, 2]
    assert (taken[-1].first, taken[-1].last) == (2, 3)
    assert position(result) == 2


def test_a_batch_that_breaks_in_its_middle_costs_what_is_broken() -> None:
    whole = bytearray(batch(5, 3))
    # The last record, without its bytes but with a right checksum: a producer's bug rather than a bad disk.
    whole = whole[:-3]
    whole[8:12] = (len(whole) - 12).to_bytes(4, "big")
    result = fetched(batch(4, 1) + sealed(whole) + batch(8, 1), 4)
    *before, bad, after = result.getall(100)
    assert [(record.offset, record.value) for record in before] == expected(4, 5, 6)
    assert isinstance(bad, UnreadableRecord)
    assert bad.offset == 7
    assert bad.value is not None
    assert b"valu" in bad.value
    assert (after.offset, after.value) == (8, b"value 8")
    assert position(result) == 9


@pytest.mark.parametrize("limit", [1, 2, 100])
@pytest.mark.parametrize("compression", [0, 1, 4])
def test_a_header_name_that_is_no_utf8_costs_one_record(limit: int, compression: int) -> None:
    builder = DefaultRecordBatchBuilder(2, compression, False, NO_PRODUCER, 0, 0, 1 << 20)
    for number in range(3):
        name = "ZabQ" if number == 1 else "name"
        builder.append(
            number,
            1_700_000_000_000 + number,
            b"key",
            b"value %d" % number,
            [(name, b"\xfe"), ("null", None)],
        )
    built = bytearray(builder.build())
    if compression:
        body = (
            codec.gzip_decode(bytes(built[61:])) if compression == 1 else codec.zstd_decode(bytes(built[61:]))
        )
        body = body.replace(b"ZabQ", b"Z\xff\xfeQ")
        built = built[:61] + (codec.gzip_encode(body) if compression == 1 else codec.zstd_encode(body))
        built[8:12] = (len(built) - 12).to_bytes(4, "big")
    else:
        built = built.replace(b"ZabQ", b"Z\xff\xfeQ")
    result = fetched(sealed(built) + batch(3, 1))
    taken: list[Any] = []
    while result.has_more():
        taken += result.getall(limit)
    assert [record.offset for record in taken] == [0, 1, 2, 3]
    assert position(result) == 4
    bad = taken.pop(1)
    assert [record.value for record in taken] == [b"value 0", b"value 2", b"value 3"]
    assert not any(isinstance(record, UnreadableRecord) for record in taken)
    assert isinstance(bad, UnreadableRecord)
    assert (bad.key, bad.value, bad.timestamp) == (b"key", b"value 1", 1_700_000_000_001)
    assert bad.raw_headers == [(b"Z\xff\xfeQ", b"\xfe"), (b"null", None)]
    assert bad.headers == [("Z\\xff\\xfeQ", b"\xfe"), ("null", None)]
    assert "UTF-8" in bad.problem


def test_a_compression_that_cannot_be_undone() -> None:
    built = bytearray(batch(3, 2, compression=1))
    built[61:70] = bytes(9)
    error = unreadable(fetched(sealed(built), 3))
    assert (error.first, error.last) == (3, 4)
    assert "gzip" in error.reason


def test_a_compression_that_nobody_knows() -> None:
    built = bytearray(batch(3, 2))
    built[22] |= 7
    error = unreadable(fetched(sealed(built), 3))
    assert (error.first, error.last) == (3, 4)
    assert "compression" in error.reason


@pytest.mark.parametrize("length", [-100, -1, 0, 1, 40, 10_000, 2**31 - 1])
def test_a_length_that_leads_nowhere(length: int) -> None:
    built = bytearray(batch(3, 2))
    built[8:12] = length.to_bytes(4, "big", signed=True)
    error = unreadable(fetched(bytes(built), 3))
    assert error.first == 3
    assert 3 <= error.last <= 4


def test_an_offset_outside_of_its_batch_is_not_believed() -> None:
    """Believed, it would have the group commit past records that nobody has read."""
    builder = DefaultRecordBatchBuilder(2, 0, False, NO_PRODUCER, 0, 0, 1 << 20)
    for number in (0, 50, 2):
        builder.append(number, 1_700_000_000_000, None, b"value", [])
    built = bytearray(builder.build())
    built[23:27] = (2).to_bytes(4, "big")
    taken = fetched(sealed(built)).getall(10)
    assert [record.offset for record in taken] == [0, 1, 2]
    assert [isinstance(record, UnreadableRecord) for record in taken] == [False, True, False]


def test_an_offset_before_its_batch_is_not_believed_where_the_next_record_breaks_either() -> None:
    built = bytearray(batch(0, 2))
    assert built[64] == 0  # the first record's offset, behind its length, attributes and time
    built[64] = 1  # -1
    built = built[:-3]
    built[8:12] = (len(built) - 12).to_bytes(4, "big")
    taken = fetched(sealed(built)).getall(10)
    assert [record.offset for record in taken] == [0, 1]
    assert all(isinstance(record, UnreadableRecord) for record in taken)


def test_a_marker_of_a_transaction_that_cannot_be_read() -> None:
    data = batch(0, 1, producer=7, flags=TRANSACTIONAL | CONTROL, key=b"\0")
    assert "marker" in unreadable(fetched(data)).reason


MUTATIONS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6)


@settings(max_examples=1500)
@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.sampled_from([0, 1, 2, 3, 4, "v0", "v1", "v1 gzip"])),
        min_size=1,
        max_size=3,
    ),
    MUTATIONS,
    st.booleans(),
    st.one_of(st.none(), st.floats(0, 1)),
    st.integers(1, 7),
)
def test_whatever_the_bytes_records_come_or_a_named_batch(
    shapes: list[tuple[int, Any]],
    mutations: list[tuple[float, int]],
    reseal: bool,
    cut: float | None,
    limit: int,
) -> None:
    """Mutated anywhere, their checksums right or not: what comes is in order, and nothing is passed over in silence."""
    data, offset, edges = bytearray(), 0, []
    for count, kind in shapes:
        edges.append(len(data))
        if isinstance(kind, str):
            data += legacy(offset, count, compression=1 if kind == "v1 gzip" else 0)
        else:
            data += batch(offset, count, compression=kind)
        offset += count
    for where, byte in mutations:
        data[int(where * len(data))] = byte
    if reseal:
        for begin, end in zip(edges, [*edges[1:], len(data)], strict=True):
            if data[begin + 16 : begin + 17] == b"\2" and end - begin > 61:
                data[begin:end] = sealed(data[begin:end])
    if cut is not None:
        data = data[: int(cut * len(data))]
    result = fetched(bytes(data))
    following = 0
    for _ in range(100):
        if not result.has_more():
            break
        for record in result.getall(limit):
            if type(record) is UnreadableBatch:
                assert following <= record.first <= record.last
                assert record.reason
                assert not result.has_more()
                break
            assert record.offset >= following
            following = record.offset + 1
            assert isinstance(record.timestamp, int)
            assert record.key is None or isinstance(record.key, bytes)
            assert record.value is None or isinstance(record.value, bytes)
            assert all(isinstance(name, str) for name, _ in record.headers)
            if isinstance(record, UnreadableRecord):
                assert record.problem
    else:
        raise AssertionError("it never ends")
    assert position(result) >= following


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


def test_an_answer_without_a_whole_batch_is_said_and_not_passed_over() -> None:
    """The library calls it too large, and goes on behind its first offset."""
    answer = FetchAnswer(batch(0, 3)[:-1])
    assert answer.has_next()
    error = unreadable(fetched(batch(0, 3)[:-1]))
    assert (error.first, error.last) == (0, 2)
    assert not FetchAnswer(None).has_next()


def test_text_beside_a_commit_that_is_no_utf8() -> None:
    """The library's own reading of the answer fails for the whole group."""
    answer = struct.pack(">i", 0) + struct.pack(">ih6sii", 1, 6, b"events", 1, 3)
    answer += struct.pack(">qh3sh", 42, 3, b"\xff\xfe!", 0) + struct.pack(">h", 0)
    decoded = OffsetFetchResponse_v3.decode(io.BytesIO(answer))
    assert decoded.topics == [("events", [(3, 42, "\ufffd\ufffd!", 0)])]


def test_the_fast_checksum_is_the_librarys() -> None:
    """Else every batch would be broken, or none."""
    assert NO_EXTENSIONS is False
    assert google_crc32c.implementation == "c"
    for size in itertools.chain(range(40), [1000, 100_000]):
        data = bytes(number % 251 for number in range(size))
        assert google_crc32c.value(data) == calc_crc32c(data)
