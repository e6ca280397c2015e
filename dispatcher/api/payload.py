"""Request bodies, read strictly: within a size, within a time, and as JSON that means one thing only.

RFC 8259 leaves open what two members of one name, a lone surrogate or a number beyond 64 bits mean, and parsers
answer differently; what one component checked, the next would read otherwise (I-JSON, RFC 7493, forbids all three).
So they are refused here, with the place, before anybody acts on a reading of them. The body is parsed twice: orjson
refuses quickly what isn't JSON in UTF-8, Python's own parser tells of duplicate members, which orjson passes over.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, NoReturn

import orjson
from aiohttp import web

from dispatcher.api.problems import Kind, Problem, invalid
from dispatcher.core.spec import Flaw

MAX_DEPTH: Final = 64
_I64: Final = range(-(1 << 63), 1 << 63)


async def read_body(request: web.Request, limit: int, timeout: float) -> bytes:
    """The whole body, of at most `limit` bytes, within `timeout` seconds. Raises Problem."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem(
            Kind.UNSUPPORTED_MEDIA_TYPE, "send the body as it is: Content-Encoding is not supported here"
        )
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(timeout):
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise Problem(
            Kind.TOO_SLOW, f"the body was not there within {timeout:g} s", headers={"Connection": "close"}
        ) from None
    return bytes(body)


def _too_large(limit: int) -> Problem:
    # What is still to come is not worth reading.
    return Problem(Kind.TOO_LARGE, f"the body is larger than {limit} bytes", headers={"Connection": "close"})


def parse_json(body: bytes, place: tuple[int, ...] = ()) -> Any:
    """The value of a JSON text. `place` is where it stands, for messages: the number of its line. Raises Problem."""
    if not body.strip():
        _refuse("there is no body: send JSON", place)
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError as error:
        _refuse(_words(body, error), place)
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
        _refuse(f"it can't be read as JSON: {error}", place)
    if duplicates:
        flaws = [Flaw((*place, name), "stands twice in one object") for name in dict.fromkeys(duplicates)]
        raise Problem(Kind.MALFORMED, "; ".join(map(str, flaws[:3])), errors=flaws[:20])
    for flaw in _beyond(value, place):
        raise Problem(Kind.MALFORMED, str(flaw), errors=[flaw])
    return value


def parse_lines(body: bytes, limit: int) -> list[Any]:
    """The values of NDJSON, one a line; empty lines don't count. Raises Problem."""
    lines = [line for line in body.split(b"\n") if line.strip()]
    if len(lines) > limit:
        raise invalid([Flaw((), f"there are {len(lines)} lines; 1 to {limit} are taken at once")])
    return [parse_json(line, (number,)) for number, line in enumerate(lines)]


def _refuse(said: str, place: tuple[int, ...]) -> NoReturn:
    flaw = Flaw(place, said)
    raise Problem(Kind.MALFORMED, str(flaw), errors=[flaw] if place else ())


def _words(body: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        body.decode()
    except UnicodeDecodeError as wrong:
        return f"the body is not UTF-8: byte {wrong.start} can't be read"
    return f"the body is not JSON: {error.msg}"


def _beyond(value: Any, place: tuple[str | int, ...]) -> Iterator[Flaw]:
    """What is JSON and still not taken: too deep, or a number that other readers would round."""
    level: list[tuple[tuple[str | int, ...], Any]] = [(place, value)]
    for depth in range(MAX_DEPTH + 2):
        following: list[tuple[tuple[str | int, ...], Any]] = []
        for path, item in level:
            if isinstance(item, dict):
                following += [((*path, name), inner) for name, inner in item.items()]
            elif isinstance(item, list):
                following += [((*path, number), inner) for number, inner in enumerate(item)]
            elif isinstance(item, int) and item not in _I64:
                yield Flaw(path, "is an integer beyond 64 bits: send it as a string")
            if depth > MAX_DEPTH:
                yield Flaw(place, f"is nested deeper than {MAX_DEPTH} levels")
                return
        if not following:
            return
        level = following
