"""Which offsets beyond a commit are done with, as text that travels beside it.

A commit is one number, the lowest offset that still owes a delivery. One delivery that waits for its retry holds it
back, while thousands behind it have been acknowledged; whoever reads on from the commit would send all of those again.
Kafka keeps up to 4096 bytes of text with a commit, and gives them back with it. So what is done beyond the
commit is written there, and the next owner of the partition passes over it.

The text is read by programs that may be older or newer, after an operator has moved the offset, or on another
cluster, where a mirror has brought it with offsets that are not the same. A note that is believed wrongly loses events;
one that is not believed costs duplicates. So a note is believed only if its checksum fits, and the checksum
covers what the note is about: topic, partition and committed offset.

An event that several subscriptions want may be done for some of them and wait for another. So a note also says of such
offsets who has been served, or who is still owed (everybody else has been served), whichever is shorter: one endpoint
that fails would else have its neighbours get everything twice. Who is still owed is never more than what is in flight,
however many subscriptions an event has.

A note also says how far its owner may read before it commits again (`Note.reserved`): whatever stands below that may have been taken
up, though the note says nothing of it. A subscription that is paused while the owner is killed is owed that, and the next owner can't
know it otherwise. So records are taken up only below what has been reserved (`delivery/membership.py`).

A note that doesn't fit beside the commit is written as a whole into a record of a topic of ours (`Packed.whole`). The text
then has the place and the checksum of that record (`Pointer`), and as much of the note as fits, for the case that the record can't be read.

The text is a version and base64 of a checksum (CRC-32, four bytes) and of the content, deflated. Numbers are LEB128. A
section begins with its length. Offsets are written either as run lengths (`r`: owed, done, owed, done... from the
committed offset on) or as a bitmap (`b`: one bit per offset, lowest first, 1 for done), whichever is shorter.

- Version 1: the section of the offsets that are done; then for each set of subscriptions a section of their ids and the
  offsets that are done for these. It is still read, and written where nothing is done for some subscriptions only: older programs read it.
- Version 2: 1 and a pointer (partition, offset, checksum) or 0; the section of the offsets that are done; then runs of
  offsets in ascending order, each as owed, done, and the number of its set from 1 on. Number 0 is a new set: how many
  ids, doubled, plus 1 if these are owed; then each id by its number from 1 on, 0 for a new one: its length and itself.
- A record's value is version 2 without base64.
- Behind what is deflated may follow, for either version, how far beyond the committed offset is reserved. The checksum covers
  it. Programs that don't know of it stop reading before it.

What doesn't fit is left out by what it is worth: the deliveries that a run spares, per byte that it takes.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

Runs = Sequence[tuple[int, int]]
"""Offsets: (first, one past the last), in ascending order, with something between one and the next."""


class Who(NamedTuple):
    """Some of the subscriptions that an offset's event is for. Ids in ascending order."""

    owed: bool
    """They are still owed it, and everybody else has been served; else they have been served, and everybody else is owed it."""
    ids: tuple[str, ...]


Partly = Mapping[Who, Runs]
"""Offsets that are done for some subscriptions only. Each offset stands once."""


class Pointer(NamedTuple):
    """Where the whole note stands: partition and offset in the topic of notes, and the checksum of the record's value."""

    partition: int
    offset: int
    checksum: int


class Note(NamedTuple):
    """What is done beyond a commit."""

    done: Runs
    partly: Sequence[tuple[int, int, Who]]
    """(first, one past the last, whose), in ascending order."""
    pointer: Pointer | None = None
    """Where the rest of it stands."""
    reserved: int | None = None
    """Its owner takes up nothing from this offset on, as long as this is its last note; None where it doesn't say."""


class Packed(NamedTuple):
    """A note that is ready to be kept."""

    text: str
    """Goes beside the commit; empty if there is nothing to be said, or no room for it."""
    whole: bytes | None
    """What goes into a record of its own, because the text leaves something out; None if it has everything."""


NOTHING: Final = Note((), ())

LIMIT: Final = 4096
"""Characters of text, all of them ASCII: what Kafka keeps unless it is configured otherwise (`offset.metadata.max.bytes`)."""

RECORD_LIMIT: Final = 960_000
"""Bytes of a record's value: below what brokers take unless they are configured otherwise (1 MiB with all that is around it)."""

_ONE: Final = "1"
_TWO: Final = "2"
_RUN_LENGTHS: Final = b"r"
_BITMAP: Final = b"b"
_LARGEST: Final = 8 << 20  # bytes that are written and read, inflated
_MOST_RUNS: Final = 100_000  # that are written and read: a few bytes, deflated, may be millions
_MOST_IDS: Final = 1_000_000  # likewise of the ids of all sets
_READ: Final = 4 * RECORD_LIMIT  # characters of text that are looked at
_WBITS: Final = -15  # deflate without a header: the checksum is ours
_QUICKLY: Final = 1 << 16  # bytes from which on deflating them well takes too long for what it gains
_TRIES: Final = 9  # at how much of a note fits
_DEFLATED: Final = 1.6  # bytes that are expected to become one
_POINTER_ROOM: Final = 48  # characters
_LOWEST: Final = 2000  # runs that are looked at for a text beside a record
_MOST_BITS: Final = 63  # of a number: one that doesn't end would take the square of its length
_BITS: Final = [[bit for bit in range(8) if byte >> bit & 1] for byte in range(256)]


def pack(
    topic: str,
    partition: int,
    committed: int,
    done: Runs,
    partly: Partly | None = None,
    limit: int = LIMIT,
    *,
    served: float = 1.0,
    record: int = 0,
    reserved: int | None = None,
) -> Packed:
    """The note for what is done beyond `committed`, of at most `limit` characters.

    `reserved` is below which offset its owner may take up records. `record` is how many bytes a record of its own may have, 0 for none. `served` is how many subscriptions have been
    served of an offset that is owed to some, on average: what doesn't fit is chosen by it.
    """
    partly = partly or {}
    about = _about(topic, partition, committed)
    if not done and not partly and reserved is None:
        return Packed("", None)
    tail = _tail(committed, reserved)
    done, runs = done[:_MOST_RUNS], _sorted(partly)[:_MOST_RUNS]
    content = _content(committed, done, runs)
    sealed = _sealed(about, content, tail)
    if not runs:
        # Older programs understand that, without the flag.
        text = _text(_ONE, about, content[1:], tail)
        if len(text) <= limit:
            return Packed(text, None)
        if not done:
            return Packed("", None)
    elif _characters(len(sealed)) <= limit:
        return Packed(_TWO + base64.b64encode(sealed[1:]).decode(), None)
    whole: bytes | None = None
    if record:
        whole = sealed if len(sealed) <= record else _most(about, committed, done, runs, record, served, tail)
        limit = max(0, limit - _POINTER_ROOM)
        # What stands in the record anyway isn't worth a long search for the best of it.
        done, runs = done[:_LOWEST], runs[:_LOWEST]
    short = _most(about, committed, done, runs, limit * 3 // 4 - len(_TWO), served, tail)
    return Packed("" if short is None else _TWO + base64.b64encode(short[1:]).decode(), whole)


def _characters(size: int) -> int:
    return 1 + (size - 1 + 2) // 3 * 4


def pointing(
    topic: str, partition: int, committed: int, text: str, pointer: Pointer, limit: int = LIMIT
) -> str:
    """The text of `pack`, saying where the whole note stands."""
    head = bytearray()
    _number(head, 1)
    for number in pointer:
        _number(head, number)
    about = _about(topic, partition, committed)
    content, tail = _opened(topic, partition, committed, text) or (b"\0\0", b"")
    for rest in (content[1:], b"\0"):
        longer = _text(_TWO, about, bytes(head) + rest, tail)
        if len(longer) <= limit:
            return longer
    return text


def reserving(
    topic: str, partition: int, committed: int, text: str, reserved: int, limit: int = LIMIT
) -> str | None:
    """A text that says the same and reserves so much; None where `text` can't be read, or it would be too long."""
    opened = _opened(topic, partition, committed, text) if text else (b"\0", b"")
    if opened is None:
        return None
    about = _about(topic, partition, committed)
    longer = _text(text[:1] or _ONE, about, opened[0], _tail(committed, reserved))
    return longer if len(longer) <= limit else None


def checksum_of(whole: bytes) -> int:
    """What a pointer has of the record's value."""
    return zlib.crc32(whole)


def read_note(topic: str, partition: int, committed: int, text: str) -> Note:
    """What a note says that belongs to this commit; nothing if it is anything else."""
    opened = _opened(topic, partition, committed, text)
    if opened is None:
        return NOTHING
    content, tail = opened
    try:
        note = _read_one(committed, content) if text.startswith(_ONE) else _read_two(committed, content)
        return note._replace(reserved=_read_tail(committed, tail)) if tail else note
    except (IndexError, KeyError, UnicodeDecodeError):
        return NOTHING


def read_whole(
    topic: str, partition: int, committed: int, value: bytes | None, pointer: Pointer
) -> Note | None:
    """What the record says that `pointer` led to; None if it isn't the one that was meant."""
    if value is None or zlib.crc32(value) != pointer.checksum or value[:1] != _TWO.encode():
        return None
    opened = _unsealed(_about(topic, partition, committed), value[1:])
    if opened is None:
        return None
    content, tail = opened
    try:
        note = _read_two(committed, content)
        return note._replace(reserved=_read_tail(committed, tail)) if tail else note
    except (IndexError, KeyError, UnicodeDecodeError):
        return None


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


# What fits.


def _most(
    about: bytes,
    committed: int,
    done: Runs,
    runs: Sequence[tuple[int, int, Who]],
    limit: int,
    served: float,
    tail: bytes,
) -> bytes | None:
    """The most valuable part of it that takes at most `limit` bytes, sealed."""
    shares: dict[Who, int] = {}
    for _, _, who in runs:
        shares[who] = shares.get(who, 0) + 1
    # (worth per byte, first offset, its number, bytes): the best first, of equals the lowest.
    rated: list[tuple[float, int, int, float]] = []
    at = committed
    for number, (first, end) in enumerate(done):
        cost = float(_size(first - at) + _size(end - first))
        rated.append((-(end - first) * (served + 1.0) / cost, first, number, cost))
        at = end
    for number, (first, end, who) in enumerate(runs):
        each = served if who.owed else float(len(who.ids))
        cost = 4.0 + (sum([len(id_) + 1 for id_ in who.ids]) + 1) / shares[who]
        rated.append((-(end - first) * each / cost, first, len(done) + number, cost))
    rated.sort()
    count, room = 0, limit * _DEFLATED
    while count < len(rated) and room > 0:
        room -= rated[count][3]
        count += 1
    best: bytes | None = None
    fits, fits_size = 0, 0
    too_many, too_large = len(rated) + 1, 0
    for _ in range(_TRIES):
        chosen = sorted([number for _, _, number, _ in rated[:count]])
        content = _content(
            committed,
            [done[number] for number in chosen if number < len(done)],
            [runs[number - len(done)] for number in chosen if number >= len(done)],
        )
        sealed = _sealed(about, content, tail) if len(content) <= _LARGEST else b""
        size = len(sealed) or len(content)
        if sealed and size <= limit:
            best, fits, fits_size = sealed, count, size
        else:
            too_many, too_large = count, size
        if fits == len(rated) or fits + 1 >= too_many or fits_size > 0.97 * limit:
            break
        if too_large:
            between = (0.98 * limit - fits_size) / (too_large - fits_size)
            count = fits + int((too_many - fits) * min(max(between, 0.1), 0.9))
        else:
            count = int(fits * min(limit / max(size, 1), 2.0))
        count = min(max(count, fits + 1), too_many - 1)
    return best


def _size(number: int) -> int:
    return max(1, (number.bit_length() + 6) // 7)


# Text, checksum, deflating.


def _about(topic: str, partition: int, committed: int) -> bytes:
    return f"{topic}\0{partition}\0{committed}\0".encode()


def _text(version: str, about: bytes, content: bytes, tail: bytes) -> str:
    return version + base64.b64encode(_sealed(about, content, tail)[1:]).decode()


def _sealed(about: bytes, content: bytes, tail: bytes) -> bytes:
    level = zlib.Z_DEFAULT_COMPRESSION if len(content) < _QUICKLY else 1
    deflate = zlib.compressobj(level, zlib.DEFLATED, _WBITS)
    data = deflate.compress(content) + deflate.flush() + tail
    return _TWO.encode() + zlib.crc32(data, zlib.crc32(about)).to_bytes(4, "big") + data


def _opened(topic: str, partition: int, committed: int, text: str) -> tuple[bytes, bytes] | None:
    """What was deflated, and what stands behind it."""
    if not text.startswith((_ONE, _TWO)) or len(text) > _READ:
        return None
    try:
        data = base64.b64decode(text[1:].encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return None
    return _unsealed(_about(topic, partition, committed), data)


def _unsealed(about: bytes, data: bytes) -> tuple[bytes, bytes] | None:
    if data[:4] != zlib.crc32(data[4:], zlib.crc32(about)).to_bytes(4, "big"):
        return None
    inflate = zlib.decompressobj(_WBITS)
    try:
        content = inflate.decompress(data[4:], _LARGEST)
    except zlib.error:
        return None
    return (content, inflate.unused_data) if inflate.eof else None


# Content.


def _tail(committed: int, reserved: int | None) -> bytes:
    tail = bytearray()
    if reserved is not None:
        _number(tail, max(0, reserved - committed))
    return bytes(tail)


def _read_tail(committed: int, tail: bytes) -> int:
    return committed + _read_number(tail, 0)[0]


def _sorted(partly: Partly) -> list[tuple[int, int, Who]]:
    runs = [(first, end, who) for who, those in partly.items() for first, end in those]
    runs.sort()
    return runs


def _content(committed: int, done: Runs, runs: Iterable[tuple[int, int, Who]]) -> bytes:
    content = bytearray(1)  # no pointer
    body = _body(committed, done) if done else b""
    _number(content, len(body))
    content += body
    sets: dict[Who, int] = {}
    ids: dict[str, int] = {}
    at = committed
    for first, end, who in runs:
        _number(content, first - at)
        _number(content, end - first)
        at = end
        known = sets.get(who)
        if known is not None:
            _number(content, known)
            continue
        sets[who] = len(sets) + 1
        content.append(0)
        _number(content, len(who.ids) << 1 | int(who.owed))
        for id_ in who.ids:
            number = ids.get(id_, 0)
            _number(content, number)
            if not number:
                ids[id_] = len(ids) + 1
                encoded = id_.encode()
                _number(content, len(encoded))
                content += encoded
    return bytes(content)


def _read_two(committed: int, content: bytes) -> Note:
    pointer: Pointer | None = None
    flag, at = _read_number(content, 0)
    if flag > 1:
        raise KeyError
    if flag:
        place, at = _read_number(content, at)
        offset, at = _read_number(content, at)
        checksum, at = _read_number(content, at)
        pointer = Pointer(place, offset, checksum)
    length, at = _read_number(content, at)
    done = _runs(committed, content[at : at + length]) if length else ()
    at += length
    partly: list[tuple[int, int, Who]] = []
    sets: list[Who] = []
    ids: list[str] = []
    offset = committed
    members_left = _MOST_IDS
    while at < len(content):
        owed, at = _read_number(content, at)
        count, at = _read_number(content, at)
        which, at = _read_number(content, at)
        if len(partly) >= _MOST_RUNS:
            raise KeyError
        if not which:
            size, at = _read_number(content, at)
            members_left -= size >> 1
            if members_left < 0:
                raise KeyError
            members: list[str] = []
            for _ in range(size >> 1):
                number, at = _read_number(content, at)
                if not number:
                    length, at = _read_number(content, at)
                    ids.append(content[at : at + length].decode())
                    at += length
                    number = len(ids)
                members.append(ids[number - 1])
            sets.append(Who(bool(size & 1), tuple(members)))
            which = len(sets)
        first = offset + owed
        offset = first + count
        partly.append((first, offset, sets[which - 1]))
    if at > len(content):
        raise IndexError
    return Note(done, tuple(partly), pointer)


def _read_one(committed: int, content: bytes) -> Note:
    length, at = _read_number(content, 0)
    done = _runs(committed, content[at : at + length]) if length else ()
    at += length
    partly: list[tuple[int, int, Who]] = []
    members_left = _MOST_IDS
    while at < len(content):
        length, at = _read_number(content, at)
        end = at + length
        count, at = _read_number(content, at)
        members_left -= count
        if members_left < 0 or len(partly) > _MOST_RUNS:
            raise KeyError
        ids = []
        for _ in range(count):
            size, at = _read_number(content, at)
            ids.append(content[at : at + size].decode())
            at += size
        who = Who(owed=False, ids=tuple(ids))
        partly += [(first, past, who) for first, past in _runs(committed, content[at:end])]
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
        if shift > _MOST_BITS:
            raise KeyError
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
            if len(lengths) > 2 * _MOST_RUNS:
                raise KeyError
        elif shift > _MOST_BITS:
            raise KeyError
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
                    if len(runs) >= _MOST_RUNS:
                        raise KeyError
                first = offset
            end = offset + 1
    if end >= 0:
        runs.append((first, end))
    return runs
