"""Request bodies, read strictly: within a size, within a time, and as JSON that means one thing only.

RFC 8259 leaves open what two members of one name, a lone surrogate or a number beyond 64 bits mean. Parsers differ
there: one component would check a value, and the next would read another (I-JSON, RFC 7493, forbids all three). So
such bodies are refused, with the place, before anybody acts on a reading of them.

orjson refuses quickly whatever isn't JSON in UTF-8. Its value is taken where it is sure to mean one thing only
(`clear`). Else Python's own parser, ten times slower, reads the text again: it tells of duplicate members, which
orjson passes over.

`event_body.py` reads events, and leaves their data as it is.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn

import orjson
from aiohttp import web

from dispatcher.api.limits import MinimumRate
from dispatcher.api.problems import Kind, Problem, invalid
from dispatcher.core.flaws import Flaw

MAX_DEPTH: Final = 64
MAX_BRACKETS: Final = 200_000
"""Opening ones in a body, those in strings too. Three megabytes of JSON may be a million empty arrays: hundreds of
megabytes once parsed, and seconds of work."""

_CONTAINERS: Final = frozenset({dict, list})
_LONG: Final = re.compile(rb"[0-9]{19}")  # digits that 64 bits may be too few for
_ESCAPED_COLON: Final = re.compile(rb"\\u003[aA]")
_I64: Final = range(-(1 << 63), 1 << 63)


async def read_body(
    request: web.Request, limit: int, pace: MinimumRate, take: Callable[[int], None]
) -> bytes:
    """The whole body, of at most `limit` bytes, as fast as `pace` demands. Raises Problem, or what `take` raises.

    `take` is told of each part how many bytes there are.
    """
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem(
            Kind.UNSUPPORTED_MEDIA_TYPE, "send the body as it is: Content-Encoding is not supported here"
        )
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    body = bytearray()
    clock = asyncio.get_running_loop().time
    deadline = clock() + pace.grace
    try:
        async with asyncio.timeout_at(deadline) as limited:
            while chunk := await request.content.readany():
                take(len(chunk))
                body += chunk
                if len(body) > limit:
                    raise _too_large(limit)
                deadline = pace.deadline(deadline, len(chunk), clock())
                limited.reschedule(deadline)
    except TimeoutError:
        raise Problem(
            Kind.TOO_SLOW,
            f"the body comes more slowly than {pace.rate:g} bytes a second for {pace.grace:g} s",
            headers={"Connection": "close"},
        ) from None
    return bytes(body)


def _too_large(limit: int) -> Problem:
    # What is still to come is not worth reading.
    return Problem(Kind.TOO_LARGE, f"the body is larger than {limit} bytes", headers={"Connection": "close"})


def parse_json(body: bytes, place: tuple[str | int, ...] = ()) -> Any:
    """The value of a JSON text. `place` is where it stands, for messages: the number of its line. Raises Problem."""
    if not body.strip():
        refuse("there is no body: send JSON", place)
    check_brackets(body)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        refuse(words(body, error), place)
    if _LONG.search(body) is None and not beyond_depth(value, MAX_DEPTH - 1) and clear(body, value):
        return value
    duplicates: list[str] = []

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            duplicates.extend(name for name, count in counts.items() if count > 1)
        return found

    try:
        value = json.loads(body, object_pairs_hook=members)
    except (
        ValueError,
        RecursionError,
    ) as error:  # nesting that orjson allows and Python doesn't
        refuse(f"it can't be read as JSON: {error}", place)
    refuse_duplicates(duplicates, place)
    if (flaw := _beyond(value, place)) is not None:
        raise Problem(Kind.MALFORMED, str(flaw), errors=[flaw])
    return value


def ndjson_lines(body: bytes, limit: int) -> list[bytes]:
    """The lines of NDJSON that are not empty, at most `limit` of them. Raises Problem."""
    check_brackets(body)
    # Of empty lines there may be some, but not millions: splitting at each of them would hold the loop up.
    lines = [line for line in body.split(b"\n", 10 * limit) if line.strip()]
    if len(lines) > limit:
        raise invalid([Flaw((), f"there are {len(lines)} lines; 1 to {limit} are taken at once")])
    return lines


def clear(text: bytes, value: Any) -> bool:
    """Whether no object of a JSON text has a name twice; False: perhaps one has.

    Found without looking at names. Parsing keeps one member of each name, so what was parsed (`value`) and is written again has
    fewer colons than the text. The one other way to change their number is an escaped colon.
    """
    if b"{" not in text:
        return True
    if _ESCAPED_COLON.search(text) is not None:
        return False
    try:
        return text.count(b":") == orjson.dumps(value).count(b":")
    except orjson.JSONEncodeError:  # what only Python's parser could read
        return False


def duplicates(text: bytes) -> list[str]:
    """The names that stand twice in an object of a JSON text, each once for each object."""
    found: list[str] = []

    def members(pairs: list[tuple[str, Any]]) -> None:
        if len(dict(pairs)) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            found.extend(name for name, count in counts.items() if count > 1)

    json.loads(text, object_pairs_hook=members, parse_int=float)
    return found


def refuse_duplicates(names: list[str], place: tuple[str | int, ...]) -> None:
    """Raise Problem where there are any."""
    if names:
        flaws = [Flaw((*place, name), "stands twice in one object") for name in dict.fromkeys(names)]
        raise Problem(Kind.MALFORMED, "; ".join(map(str, flaws[:3])), errors=flaws[:20])


def beyond_depth(value: Any, limit: int) -> bool:
    """Whether an array or object stands deeper than `limit` levels below the value."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(limit + 1):
        following: list[Any] = []
        for item in level:
            inner = item.values() if isinstance(item, dict) else item
            # A million numbers are one look in C.
            if not _CONTAINERS.isdisjoint(map(type, inner)):
                following += [one for one in inner if type(one) in _CONTAINERS]
        if not following:
            return False
        level = following
    return True


def check_brackets(body: bytes) -> None:
    """Raise Problem for more of them than MAX_BRACKETS."""
    if body.count(b"[") + body.count(b"{") > MAX_BRACKETS:
        raise Problem(
            Kind.TOO_LARGE,
            f"the body has more than {MAX_BRACKETS} arrays and objects: send less of it at once",
        )


def refuse(said: str, place: tuple[str | int, ...]) -> NoReturn:
    """Raise the Problem of a text that is not taken."""
    flaw = Flaw(place, said)
    raise Problem(Kind.MALFORMED, str(flaw), errors=[flaw] if place else ())


def words(body: bytes, error: orjson.JSONDecodeError) -> str:
    """The mistake in the text, for people."""
    if body.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        return "the body is not JSON in UTF-8: it begins with a byte order mark; send it without"
    try:
        body.decode()
    except UnicodeDecodeError as wrong:
        return f"the body is not UTF-8: byte {wrong.start} can't be read"
    return f"the body is not JSON: {error.msg}"


def _beyond(value: Any, place: tuple[str | int, ...]) -> Flaw | None:
    """A flaw of valid JSON: nested too deeply, or a number that other readers would round."""
    level = [value]
    for depth in range(MAX_DEPTH + 2):
        following: list[Any] = []
        for item in level:
            # In the order of how often they come; a boolean is an integer, and in the range.
            if isinstance(item, str):
                continue
            if isinstance(item, dict):
                following += item.values()
            elif isinstance(item, list):
                following += item
            elif isinstance(item, int) and item not in _I64:
                return Flaw(
                    _place_of(value, item, place), "is an integer beyond 64 bits: send it as a string"
                )
        if depth > MAX_DEPTH and level:
            return Flaw(place, f"is nested deeper than {MAX_DEPTH} levels")
        if not following:
            return None
        level = following
    return None


def _place_of(value: Any, wanted: object, place: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Where in the value this very object stands. Looked for only when it is told: every path costs memory."""
    level = [(place, value)]
    while level:
        following: list[tuple[tuple[str | int, ...], Any]] = []
        for path, item in level:
            if item is wanted:
                return path
            inner: Iterable[tuple[str | int, Any]] = ()
            if isinstance(item, dict):
                inner = item.items()
            elif isinstance(item, list):
                inner = enumerate(item)
            following += (((*path, step), one) for step, one in inner)
        level = following
    return place
