"""Batches that the library refuses."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka import codec
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from hypothesis import given, settings, strategies as st

from dispatcher.broker.base import UnreadableBatch, UnreadableRecord
from tests.broker.kafka.wire.batches import (
    NO_PRODUCER,
    batch,
    expected,
    fetched,
    legacy,
    position,
    sealed,
    unreadable,
)

MUTATIONS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6)


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
