"""Unpacks a record batch that the library's reader refuses: what can be read is read, and a broken record costs only itself.

The library stops at the first unexpected byte, with whatever exception that byte leads to. Only then is this module
called: it is slow (some 10 us a record), and trusts no length and no offset.

- A record of a batch with a right checksum that can't be read (a header's name that is no UTF-8, a length that leads
  nowhere) becomes an `UnreadableRecord`. Where its own length leads to the next record, reading goes on there. Else the
  rest of the batch is one `UnreadableRecord`.
- `UnreadableBatch` is raised where another try or another replica of the broker may help, or an operator has to
  decide: a length that leads out of the data, an unknown format, a compression that can't be undone.

Source: Kafka's message format: magic 0 and 1 (a message set), magic 2 (a record batch; the header's fields by their
place: base offset 0, length 8, magic 16, checksum 17, attributes 21, last offset delta 23, first timestamp 27,
maximal timestamp 35, count 57, records from 61 on).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from dispatcher.broker.base import StoredRecord, UnreadableBatch, UnreadableRecord
from dispatcher.broker.kafka.wire.codecs import CODECS

OVERHEAD: Final = 12
"""Bytes of a batch that its length doesn't count."""
HEAD: Final = 61
"""Bytes of a batch (magic 2) before its records."""

_LEGACY_HEAD: Final = 18  # up to the key of a message
_MAGIC_AT: Final = 16
_COMPRESSION: Final = 0x07
_LOG_APPEND_TIME: Final = 0x08


class _Broken(ValueError):
    """The bytes can't be read as what they should be. The message ends a sentence."""


class _Message(NamedTuple):
    """One of an old format. Where something is wrong (`why`), the value is all of it."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    attributes: int
    why: str | None = None


def framed(data: bytes, begin: int, first: int) -> int:
    """Where the batch ends that begins there. Raises UnreadableBatch where it is not all in the data."""
    left = len(data) - begin
    if left < OVERHEAD:
        raise UnreadableBatch(first, first, f"the broker gave {left} bytes of it")
    end = begin + OVERHEAD + int.from_bytes(data[begin + 8 : begin + OVERHEAD], "big", signed=True)
    if not begin + _MAGIC_AT < end <= len(data):
        raise UnreadableBatch(
            first, last_offset(data[begin:], first), "its length leads out of what the broker gave"
        )
    return end


def last_offset(batch: bytes, first: int) -> int:
    """The last offset that the batch holds, as far as its head can be believed; at least `first`."""
    if len(batch) < OVERHEAD:
        return first
    base: int = struct.unpack_from(">q", batch)[0]
    if len(batch) > _MAGIC_AT and batch[_MAGIC_AT] < 2:
        return max(first, base) if base - first < 1 << 24 else first
    if len(batch) < HEAD or not 0 <= base <= first:
        return first
    delta: int = struct.unpack_from(">i", batch, 23)[0]
    return max(first, base + delta)


def counted_end(batch: bytes, first: int) -> int | None:
    """The offset behind as many records as the batch's head counts, where `first` is before it and the head's last offset beyond.

    Then one of the two is wrong, or compaction took records of the batch. Where nothing tells which, a skip passes over
    no more than both agree on: the second skip goes by the last offset.
    """
    if len(batch) < HEAD or batch[_MAGIC_AT] != 2:
        return None
    base, delta, count = struct.unpack_from(">q15xi30xi", batch)
    return int(base + count) if 0 < count <= delta and first < base + count else None


def unpack(batch: bytes, first: int, problem: str) -> Iterator[StoredRecord]:
    """The records of a batch from the offset `first` on. `problem`: what the library said of it. Raises UnreadableBatch."""
    magic = batch[_MAGIC_AT] if len(batch) > _MAGIC_AT else -1
    if magic in {0, 1}:
        return iter(_unpack_legacy(batch, first, problem))
    if magic != 2 or len(batch) < HEAD:
        raise UnreadableBatch(first, last_offset(batch, first), f"its format is unknown (magic {magic})")
    return iter(_unpack_modern(batch, first, problem))


def _uncompressed(data: bytes, attributes: int, first: int, last: int) -> bytes:
    number = attributes & _COMPRESSION
    if not number:
        return data
    name, there, decode = CODECS.get(number, (f"number {number}", lambda: False, bytes))
    if not there():
        raise UnreadableBatch(first, last, f"nothing here undoes its compression ({name})")
    try:
        return decode(data)
    except Exception as error:
        raise UnreadableBatch(first, last, f"its compression ({name}) can't be undone: {error!r}") from error


def _unpack_modern(batch: bytes, first: int, problem: str) -> list[StoredRecord]:
    (base,) = struct.unpack_from(">q", batch)
    attributes, delta, began, latest = struct.unpack_from(">hi2q", batch, 21)
    (count,) = struct.unpack_from(">i", batch, 57)
    last = base + delta
    if delta < 0 or base < 0 or last < first:
        raise UnreadableBatch(first, first, f"its head names the offsets {base} to {last}")
    data = _uncompressed(batch[HEAD:], attributes, first, last)
    fixed = latest if attributes & _LOG_APPEND_TIME else None
    found: list[StoredRecord] = []
    at, offset = 0, base - 1
    for _ in range(count):
        if at >= len(data):
            break  # fewer than its head says, which nothing hangs on
        if offset >= last:
            break
        try:
            length, begin = _varint(data, at)
            end = begin + length
            if length < 0 or end > len(data):
                raise _Broken("its length leads out of the batch")  # noqa: TRY301 - handled like what `_varint` raises
        except _Broken as error:
            offset += 1
            found.append(
                UnreadableRecord(
                    max(offset, first),
                    began,
                    None,
                    data[at:],
                    problem=f"the records from here to offset {last} can't be told apart: {error} ({problem})",
                )
            )
            return _from(found, first)
        record = _record(
            data, begin, end, base, began if fixed is None else fixed, fixed is not None, problem
        )
        if not offset < record.offset <= last:
            misplaced = f"its offset can't be {record.offset}, behind {offset} in a batch up to {last}"
            record = UnreadableRecord(
                offset + 1,
                record.timestamp,
                record.key,
                record.value,
                record.headers,
                problem=record.problem if isinstance(record, UnreadableRecord) else misplaced,
                raw_headers=record.raw_headers if isinstance(record, UnreadableRecord) else (),
            )
        offset = record.offset
        found.append(record)
        at = end
    if at < len(data) and offset < last:
        found.append(
            UnreadableRecord(
                max(offset + 1, first),
                began,
                None,
                data[at:],
                problem=f"{len(data) - at} bytes follow the batch's last record",
            )
        )
    return _from(found, first)


def _from(found: list[StoredRecord], first: int) -> list[StoredRecord]:
    return [record for record in found if record.offset >= first]


def _record(
    data: bytes, begin: int, end: int, base: int, timestamp: int, fixed: bool, problem: str
) -> StoredRecord:
    """One record; what follows the byte that can't be read is left out. Its offset is `base` - 1 where it can't be read."""
    key: bytes | None = None
    value: bytes | None = None
    headers: list[tuple[bytes, bytes | None]] = []
    offset = base - 1
    valued = False
    why: str | None = None
    try:
        at = begin + 1  # past the attributes
        since, at = _varint(data, at, end)
        if not fixed:
            timestamp += since
        delta, at = _varint(data, at, end)
        offset = base + delta
        key, at = _bytes(data, at, end)
        value, at = _bytes(data, at, end)
        valued = True
        count, at = _varint(data, at, end)
        if count < 0:
            raise _Broken(f"it claims {count} headers")  # noqa: TRY301 - as above
        for _ in range(count):
            name, at = _bytes(data, at, end)
            if name is None:
                raise _Broken("a header has no name")  # noqa: TRY301 - as above
            held, at = _bytes(data, at, end)
            headers.append((name, held))
        if at != end:
            raise _Broken(f"{end - at} bytes follow its headers")  # noqa: TRY301 - as above
    except _Broken as error:
        why = str(error)
    shown: list[tuple[str, bytes | None]] = []
    for name, held in headers:
        try:
            shown.append((name.decode(), held))
        except UnicodeDecodeError:
            printable = name.decode(errors="backslashreplace")
            why = why or f"the header name {printable[:80]} is not UTF-8"
            shown.append((printable, held))
    if why is None:
        return StoredRecord(offset, timestamp, key, value, shown)
    return UnreadableRecord(
        offset,
        timestamp,
        key,
        value if valued else data[begin:end],
        shown,
        problem=f"{why} ({problem})",
        raw_headers=headers,
    )


def _varint(data: bytes, at: int, end: int | None = None) -> tuple[int, int]:
    """A zigzag-coded number of at most ten bytes, and where it ends."""
    stop = len(data) if end is None else end
    number = shift = 0
    while at < stop and shift < 70:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return (number >> 1) ^ -(number & 1), at
        shift += 7
    raise _Broken("a number in it doesn't end")


def _bytes(data: bytes, at: int, end: int) -> tuple[bytes | None, int]:
    length, at = _varint(data, at, end)
    if length < 0:
        return None, at
    if at + length > end:
        raise _Broken(f"a part of {length} bytes leads out of it")
    return data[at : at + length], at + length


def _unpack_legacy(batch: bytes, first: int, problem: str) -> list[StoredRecord]:
    """A message of an old format; one with a compression holds others, whose last has its offset."""
    outer = _message(batch)
    if outer.why is not None or not outer.attributes & _COMPRESSION:
        return _from([_legacy_record(outer, 0, problem)], first)
    data = _uncompressed(outer.value or b"", outer.attributes, first, max(first, outer.offset))
    messages: list[_Message] = []
    at = 0
    while at < len(data):
        end = framed(data, at, first)
        messages.append(_message(data[at:end]))
        at = end
    # Format 1 counts the offsets of what it holds from 0 on.
    shift = outer.offset - messages[-1].offset if messages and batch[_MAGIC_AT] == 1 else 0
    return _from([_legacy_record(message, shift, problem) for message in messages], first)


def _legacy_record(message: _Message, shift: int, problem: str) -> StoredRecord:
    offset, timestamp, key, value, _, why = message
    if why is None:
        return StoredRecord(offset + shift, timestamp, key, value)
    return UnreadableRecord(offset + shift, timestamp, key, value, problem=f"{why} ({problem})")


def _message(batch: bytes) -> _Message:
    offset: int = struct.unpack_from(">q", batch)[0]
    timestamp, attributes = -1, 0
    try:
        magic, attributes = batch[_MAGIC_AT], batch[_MAGIC_AT + 1]
        at = _LEGACY_HEAD
        if magic == 1:
            (timestamp,) = struct.unpack_from(">q", batch, at)
            at += 8
        key, at = _sized(batch, at)
        value, at = _sized(batch, at)
    except (struct.error, IndexError, _Broken) as error:
        why = f"a message of an old format ends early: {error}"
        return _Message(offset, timestamp, None, batch, attributes, why)
    return _Message(offset, timestamp, key, value, attributes)


def _sized(data: bytes, at: int) -> tuple[bytes | None, int]:
    (length,) = struct.unpack_from(">i", data, at)
    at += 4
    if length < 0:
        return None, at
    if at + length > len(data):
        raise _Broken(f"a part of {length} bytes leads out of it")
    return data[at : at + length], at + length
