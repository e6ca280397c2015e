"""Undoes the compression of record batches, up to a size.

The library's decoders have no bound: a batch of one megabyte may hold a gigabyte of zeros, or with zstd a hundred, and would take all of the
process's memory. These end at `MAX_BATCH` bytes. A batch that is larger can't be unpacked: its partition stands still, named in `/readyz`,
and `dispatcher topics skip` leads past it.

A decoder that can't say before how much comes gets a buffer of `_USUAL` times the compressed size first, which nearly every batch fits into, then one of
`MAX_BATCH` bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any, Final

from aiokafka import codec
from aiokafka.record import _crecords, default_records, legacy_records

try:
    import cramjam
except ImportError:  # pragma: no cover - without it the library has gzip alone, and says so
    cramjam = None  # type: ignore[assignment]  # as above

MAX_BATCH: Final = 128 << 20
"""Bytes of a record batch once its compression is undone."""
_USUAL: Final = 16
_LEAST: Final = 64 << 10
_FULL: Final = "failed to write whole buffer"  # what cramjam says where a buffer is too small
_GZIP: Final = 31  # zlib's window bits for a gzip header
_XERIAL: Final = b"\x82SNAPPY\x00"
_XERIAL_HEAD: Final = 16


class BatchTooLarge(ValueError):
    """A batch is larger than `MAX_BATCH`."""

    def __init__(self) -> None:
        super().__init__(f"it holds more than {MAX_BATCH} bytes")


def gzip_decode(payload: Any) -> bytes:
    """The bytes of a gzip stream of one member or more. Raises BatchTooLarge, or zlib.error."""
    rest = bytes(payload)
    parts: list[bytes] = []
    left = MAX_BATCH
    while rest:
        inflate = zlib.decompressobj(_GZIP)
        parts.append(inflate.decompress(rest, left + 1))
        left -= len(parts[-1])
        if left < 0:
            raise BatchTooLarge
        if not inflate.eof:
            raise zlib.error("the stream is cut off")
        rest = inflate.unused_data
    return parts[0] if len(parts) == 1 else b"".join(parts)


def snappy_decode(payload: Any) -> bytes:
    """The bytes of a block of snappy, or of the stream of blocks that Java writes. Raises BatchTooLarge, or what cramjam raises."""
    data = bytes(payload)
    if not data.startswith(_XERIAL):
        return _snappy_block(data, MAX_BATCH)
    parts: list[bytes] = []
    left = MAX_BATCH
    at = _XERIAL_HEAD
    while at < len(data):
        (size,) = struct.unpack_from(">i", data, at)
        at += 4
        if not 0 < size <= len(data) - at:
            raise ValueError("a block of snappy leads out of its stream")
        parts.append(_snappy_block(data[at : at + size], left))
        left -= len(parts[-1])
        at += size
    return b"".join(parts)


def _snappy_block(data: bytes, most: int) -> bytes:
    if cramjam.snappy.decompress_raw_len(data) > most:
        raise BatchTooLarge
    return bytes(cramjam.snappy.decompress_raw(data))


def lz4_decode(payload: Any) -> bytes:
    """The bytes of an LZ4 frame. Raises BatchTooLarge, or what cramjam raises."""
    return _into_buffer(cramjam.lz4.decompress_into, bytes(payload))


def zstd_decode(payload: Any) -> bytes:
    """The bytes of a zstd frame. Raises BatchTooLarge, or what cramjam raises."""
    return _into_buffer(cramjam.zstd.decompress_into, bytes(payload))


def _into_buffer(decompress_into: Callable[[bytes, bytearray], int], data: bytes) -> bytes:
    for size in (min(MAX_BATCH, _USUAL * len(data) + _LEAST), MAX_BATCH):
        buffer = bytearray(size)
        try:
            written = decompress_into(data, buffer)
        except cramjam.DecompressionError as error:
            if _FULL not in str(error):
                raise
            continue
        return bytes(memoryview(buffer)[:written])
    raise BatchTooLarge


CODECS: Final[dict[int, tuple[str, Callable[[], bool], Callable[[bytes], bytes]]]] = {
    1: ("gzip", codec.has_gzip, gzip_decode),
    2: ("snappy", codec.has_snappy, snappy_decode),
    3: ("lz4", codec.has_lz4, lz4_decode),
    4: ("zstd", codec.has_zstd, zstd_decode),
}
"""Name, whether there is one, and decoder, by the number in a batch's attributes."""


def install() -> None:
    """Have the library's readers of record batches use these."""
    modules = [default_records, legacy_records]
    modules += [
        module for name in ("default_records", "legacy_records") if (module := getattr(_crecords, name, None))
    ]
    for module in modules:
        for name, there, decode in CODECS.values():
            if there() and hasattr(module, f"{name}_decode"):
                setattr(module, f"{name}_decode", decode)
