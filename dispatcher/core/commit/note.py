"""Which offsets beyond a commit are done with, as text that travels beside it.

A commit is one number, the lowest offset that still owes a delivery. One delivery that waits for its retry holds it
back, while thousands behind it have been acknowledged; whoever reads on from the commit would send all of those again.
Kafka keeps up to 4096 bytes of text with a commit, and gives them back with it. So what is done beyond the
commit is written there, and the next owner of the partition passes over it.

The text is read by programs that may be older or newer, after an operator has moved the offset, or on another
cluster, where a mirror has brought it with offsets that are not the same. A note that is believed wrongly loses events;
one that is not believed costs duplicates. So it is believed only if its checksum fits, and the checksum
covers what the note is about: topic, partition and committed offset.

An event that several subscriptions want may be done for some of them and wait for another. So a note also says of such offsets for
whom they are done: one endpoint that fails would else have its neighbours get everything twice.

The text is `1`, then base64 of a checksum (CRC-32, four bytes) and sections, deflated. Each section begins with its length. The first has the offsets that
are done, each further one a number of subscription ids and the offsets that are done for these. Offsets are written either as run lengths
(`r`: owed, done, owed, done... from the committed offset on) or as a bitmap (`b`: one bit per offset, lowest first, 1
for done), whichever is shorter. Numbers are LEB128. Deflating halves what many scattered retries take: 2,500 of them, one
offset in twenty, fit where 1,500 would.
What doesn't fit is left out, first what is done for some only, and of either the highest offsets: they are read last.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

Runs = Sequence[tuple[int, int]]
"""Offsets that are done: (first, one past the last), in ascending order, with something between one and the next."""

Partly = Mapping[tuple[str, ...], Runs]
"""Offsets that are done for these subscriptions and not for all that wanted them. Each offset stands once."""

LIMIT: Final = 4096
"""Bytes of text, all of them ASCII: what a broker keeps unless it is configured otherwise (`offset.metadata.max.bytes`)."""

_VERSION: Final = "1"
_RUN_LENGTHS: Final = b"r"
_BITMAP: Final = b"b"
_LARGEST: Final = 1 << 17  # bytes that are written and read, inflated
_MOST: Final = 20_000  # runs that are looked at: more have never fitted, and would only take time
_WBITS: Final = -15  # deflate without a header: the checksum is ours
_BITS: Final = [[bit for bit in range(8) if byte >> bit & 1] for byte in range(256)]


class Note(NamedTuple):
    """What is done beyond a commit."""

    done: Runs
    partly: Sequence[tuple[int, int, tuple[str, ...]]]
    """(first, one past the last, subscriptions they are done for), in ascending order."""


NOTHING: Final = Note((), ())


def note(
    topic: str, partition: int, committed: int, done: Runs, partly: Partly | None = None, limit: int = LIMIT
) -> str:
    """The text for what is done beyond `committed`, of at most `limit` characters; empty if that is nothing."""
    done = done[:_MOST]
    partly = {} if partly is None else {ids: runs[:_MOST] for ids, runs in partly.items()}
    while done or partly:
        content = _content(committed, done, partly)
        if len(content) <= _LARGEST:
            text = _text(topic, partition, committed, content)
            if len(text) <= limit:
                return text
            share = limit / len(text)
        else:
            share = _LARGEST / len(content)
        if partly:
            partly = {ids: less for ids, runs in partly.items() if (less := runs[: len(runs) // 2])}
        else:
            done = done[: min(len(done) - 1, int(len(done) * share * 0.95))]
    return ""


def read_note(topic: str, partition: int, committed: int, text: str) -> Note:
    """What a note says that belongs to this commit; nothing if it is anything else."""
    if not text.startswith(_VERSION) or len(text) > LIMIT:
        return NOTHING
    try:
        data = base64.b64decode(text[1:].encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return NOTHING
    if data[:4] != _checksum(topic, partition, committed, data[4:]):
        return NOTHING
    inflate = zlib.decompressobj(_WBITS)
    try:
        content = inflate.decompress(data[4:], _LARGEST)
    except zlib.error:
        return NOTHING
    if not inflate.eof:
        return NOTHING
    try:
        return _read(committed, content)
    except (IndexError, KeyError, UnicodeDecodeError):
        return NOTHING


def tells_more(told: Runs, known: Runs, committed: int) -> bool:
    """Whether `told` names an offset from `committed` on that `known` doesn't."""
    mine = iter(known)
    begin = end = committed
    for first, past in told:
        start = max(first, committed)
        if start >= past:
            continue
        while end < past:
            try:
                begin, end = next(mine)
            except StopIteration:
                return True
        if start < begin:
            return True
    return False


def _text(topic: str, partition: int, committed: int, content: bytes) -> str:
    deflate = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, _WBITS)
    data = deflate.compress(content) + deflate.flush()
    return _VERSION + base64.b64encode(_checksum(topic, partition, committed, data) + data).decode()


def _checksum(topic: str, partition: int, committed: int, data: bytes) -> bytes:
    about = f"{topic}\0{partition}\0{committed}\0".encode()
    return zlib.crc32(data, zlib.crc32(about)).to_bytes(4, "big")


def _content(committed: int, done: Runs, partly: Partly) -> bytes:
    content = bytearray()
    body = _body(committed, done) if done else b""
    _number(content, len(body))
    content += body
    for ids, runs in partly.items():
        section = bytearray()
        _number(section, len(ids))
        for id_ in ids:
            encoded = id_.encode()
            _number(section, len(encoded))
            section += encoded
        section += _body(committed, runs)
        _number(content, len(section))
        content += section
    return bytes(content)


def _read(committed: int, content: bytes) -> Note:
    length, at = _read_number(content, 0)
    done = _runs(committed, content[at : at + length]) if length else ()
    at += length
    partly: list[tuple[int, int, tuple[str, ...]]] = []
    while at < len(content):
        length, at = _read_number(content, at)
        end = at + length
        count, at = _read_number(content, at)
        ids = []
        for _ in range(count):
            size, at = _read_number(content, at)
            ids.append(content[at : at + size].decode())
            at += size
        partly += [(first, past, tuple(ids)) for first, past in _runs(committed, content[at:end])]
        at = end
    if at > len(content):
        raise IndexError
    return Note(done, tuple(sorted(partly)))


def _number(body: bytearray, number: int) -> None:
    while number > 127:
        body.append(number & 127 | 128)
        number >>= 7
    body.append(number)


def _read_number(content: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while (byte := content[at]) > 127:
        number |= (byte & 127) << shift
        shift += 7
        at += 1
    return number | byte << shift, at + 1


def _runs(committed: int, body: bytes) -> Runs:
    return tuple({_RUN_LENGTHS: _from_lengths, _BITMAP: _from_bitmap}[body[:1]](committed, body[1:]))


def _body(committed: int, runs: Runs) -> bytes:
    lengths = bytearray()
    at = committed
    for first, end in runs:
        _number(lengths, first - at)
        _number(lengths, end - first)
        at = end
    if at - committed <= 8 * len(lengths):
        return _BITMAP + _bitmap(committed, runs)
    return _RUN_LENGTHS + bytes(lengths)


def _bitmap(committed: int, runs: Runs) -> bytes:
    digits = []  # a number written down, not shifted together: that would take the square of the time
    at = committed
    for first, end in runs:
        digits.append("0" * (first - at))
        digits.append("1" * (end - first))
        at = end
    return int("".join(digits)[::-1], 2).to_bytes((at - committed + 7) // 8, "little")


def _from_lengths(committed: int, body: bytes) -> list[tuple[int, int]]:
    lengths: list[int] = []
    length = shift = 0
    for byte in body:
        length |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            lengths.append(length)
            length = shift = 0
    runs: list[tuple[int, int]] = []
    at = committed
    for owed, done in zip(lengths[::2], lengths[1::2], strict=False):
        runs.append((at + owed, at + owed + done))
        at += owed + done
    return runs


def _from_bitmap(committed: int, body: bytes) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    first = end = -1
    for number, byte in enumerate(body):
        for bit in _BITS[byte]:
            offset = committed + 8 * number + bit
            if offset != end:
                if end >= 0:
                    runs.append((first, end))
                first = offset
            end = offset + 1
    if end >= 0:
        runs.append((first, end))
    return runs
