"""Compressed record batches are unpacked as the library does it, and bombs are not."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import cramjam
import pytest
from aiokafka import codec
from aiokafka.record import default_records, legacy_records
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from hypothesis import given, settings, strategies as st

from dispatcher.broker.base import UnreadableBatch
from dispatcher.broker.kafka.wire import codecs
from dispatcher.broker.kafka.wire.bulk import FetchAnswer
from dispatcher.broker.kafka.wire.codecs import CODECS, BatchTooLarge

Encode = Callable[[bytes], bytes]
ENCODERS: dict[int, Encode] = {
    1: codec.gzip_encode,
    2: codec.snappy_encode,
    3: codec.lz4_encode,
    4: codec.zstd_encode,
}


@pytest.fixture(autouse=True)
def _installed() -> None:
    codecs.install()


def batch(number: int, value: bytes) -> bytes:
    """A record batch of one record, with the compression of that number."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=number,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1 << 30,
    )
    assert builder.append(0, timestamp=1, key=None, value=value, headers=[]) is not None
    return bytes(builder.build())


@pytest.mark.parametrize("number", CODECS)
@given(
    st.one_of(
        st.binary(max_size=2000),
        st.builds(lambda part, n: part * n, st.binary(max_size=20), st.integers(0, 20_000)),
    )
)
@settings(max_examples=50)
def test_what_was_compressed_comes_out(number: int, data: bytes) -> None:
    _, there, decode = CODECS[number]
    assert there()
    if data:
        assert decode(ENCODERS[number](data)) == data
        assert decode(memoryview(ENCODERS[number](data))) == data  # type: ignore[arg-type]  # as the library gives it


@pytest.mark.parametrize("number", CODECS)
@given(st.binary(min_size=1, max_size=200))
@settings(max_examples=50)
def test_garbage_raises_and_ends(number: int, data: bytes) -> None:
    try:
        CODECS[number][2](data)
    except (ValueError, zlib.error, cramjam.DecompressionError, OSError):
        return


def test_blocks_of_snappy_that_lead_nowhere_end() -> None:
    stream = codec.snappy_encode(b"abc" * 100)
    assert stream.startswith(b"\x82SNAPPY")
    for size in (0, -4, -1, 1 << 30):
        with pytest.raises(ValueError, match="leads out of its stream"):
            codecs.snappy_decode(stream[:16] + size.to_bytes(4, "big", signed=True) + stream[20:])


def test_gzip_of_several_members_is_one_stream_and_one_that_is_cut_off_is_none() -> None:
    one, two = codec.gzip_encode(b"one"), codec.gzip_encode(b"two")
    assert codecs.gzip_decode(one + two) == b"onetwo"
    with pytest.raises(zlib.error):
        codecs.gzip_decode(one[:-4])


@pytest.mark.parametrize("number", CODECS)
def test_a_bomb_is_not_undone(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "MAX_BATCH", 1 << 20)
    encode, decode = ENCODERS[number], CODECS[number][2]
    assert len(decode(encode(bytes(1 << 20)))) == 1 << 20
    with pytest.raises(BatchTooLarge, match="more than 1048576 bytes"):
        decode(encode(bytes((1 << 20) + 1)))


@pytest.mark.parametrize("number", CODECS)
def test_a_batch_that_is_a_bomb_cannot_be_unpacked_and_one_that_fits_is_read(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codecs, "MAX_BATCH", 1 << 20)
    (record,) = FetchAnswer(batch(number, b"v" * 1000)).take(10, check=True, passed=lambda _: False)
    assert record.value == b"v" * 1000
    with pytest.raises(UnreadableBatch, match="more than 1048576 bytes"):
        FetchAnswer(batch(number, bytes(2 << 20))).take(10, check=True, passed=lambda _: False)


def test_the_library_reads_batches_by_these() -> None:
    assert DefaultRecordBatch.__module__.endswith("default_records")
    for module in (default_records, legacy_records):
        assert module is not None
    (record,) = FetchAnswer(batch(4, b"a" * 5000)).take(1, check=True, passed=lambda _: False)
    assert record.value == b"a" * 5000
