"""Which offsets beyond a commit are done with, as text that travels beside it.

A commit is one number, the lowest offset that still owes a delivery. One delivery that waits for its retry holds it
back, while thousands behind it have been acknowledged; whoever reads on from the commit would send all of those again.
Kafka keeps up to 4096 bytes of text with a commit, and gives them back with it. So what is done beyond the
commit is written there, and the next owner of the partition passes over it.

The text is read by programs that may be older or newer, after an operator has moved the offset, or on another
cluster, where a mirror has brought it with offsets that are not the same. A note that is believed wrongly loses events;
one that is not believed costs duplicates. So it is believed only if its checksum fits, and the checksum
covers what the note is about: topic, partition and committed offset.

The text is `1`, then base64 of: checksum (CRC-32, four bytes), kind (one byte), and deflated, either run lengths (`r`: owed, done, owed, done...
from the committed offset on, in LEB128) or a bitmap (`b`: one bit per offset, lowest first, 1 for done), whichever is shorter.
Deflating halves what many scattered retries take: 2,500 of them, one offset in twenty, fit where 1,500 would.
What doesn't fit is left out from the end: the offsets that are read last.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Sequence
from typing import Final

Runs = Sequence[tuple[int, int]]
"""Offsets that are done: (first, one past the last), in ascending order, with something between one and the next."""

LIMIT: Final = 4096
"""Bytes of text, all of them ASCII: what a broker keeps unless it is configured otherwise (`offset.metadata.max.bytes`)."""

_VERSION: Final = "1"
_RUN_LENGTHS: Final = b"r"
_BITMAP: Final = b"b"
_LARGEST: Final = 1 << 17  # bytes of the body that are written and read
_MOST: Final = 20_000  # runs that are looked at: more have never fitted, and would only take time
_WBITS: Final = -15  # deflate without a header: the checksum is ours
_BITS: Final = [[bit for bit in range(8) if byte >> bit & 1] for byte in range(256)]


def note(topic: str, partition: int, committed: int, runs: Runs, limit: int = LIMIT) -> str:
    """The text for `runs`, all of them beyond `committed`, of at most `limit` characters; empty if there are none."""
    runs = runs[:_MOST]
    while runs:
        kind, body = _body(committed, runs)
        if len(body) <= _LARGEST:
            text = _text(topic, partition, committed, kind, body)
            if len(text) <= limit:
                return text
            share = limit / len(text)
        else:
            share = _LARGEST / len(body)
        runs = runs[: min(len(runs) - 1, int(len(runs) * share * 0.95))]
    return ""


def read_note(topic: str, partition: int, committed: int, text: str) -> list[tuple[int, int]]:
    """The runs of a note that belongs to this commit; none if it is anything else."""
    if not text.startswith(_VERSION) or len(text) > LIMIT:
        return []
    try:
        data = base64.b64decode(text[1:].encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return []
    checksum, content = data[:4], data[4:]
    if checksum != _checksum(topic, partition, committed, content):
        return []
    inflate = zlib.decompressobj(_WBITS)
    try:
        body = inflate.decompress(content[1:], _LARGEST)
    except zlib.error:
        return []
    if not inflate.eof:
        return []
    runs = {_RUN_LENGTHS: _from_lengths, _BITMAP: _from_bitmap}.get(content[:1])
    return [] if runs is None else runs(committed, body)


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


def _text(topic: str, partition: int, committed: int, kind: bytes, body: bytes) -> str:
    deflate = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, _WBITS)
    content = kind + deflate.compress(body) + deflate.flush()
    return _VERSION + base64.b64encode(_checksum(topic, partition, committed, content) + content).decode()


def _checksum(topic: str, partition: int, committed: int, content: bytes) -> bytes:
    about = f"{topic}\0{partition}\0{committed}\0".encode()
    return zlib.crc32(content, zlib.crc32(about)).to_bytes(4, "big")


def _body(committed: int, runs: Runs) -> tuple[bytes, bytes]:
    lengths = _lengths(committed, runs)
    if runs[-1][1] - committed <= 8 * len(lengths):
        return _BITMAP, _bitmap(committed, runs)
    return _RUN_LENGTHS, lengths


def _lengths(committed: int, runs: Runs) -> bytes:
    body = bytearray()
    at = committed
    for first, end in runs:
        for length in (first - at, end - first):
            while length > 127:
                body.append(length & 127 | 128)
                length >>= 7  # noqa: PLW2901 - LEB128
            body.append(length)
        at = end
    return bytes(body)


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
