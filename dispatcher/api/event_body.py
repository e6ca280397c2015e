"""Bodies with events: the envelope's fields become values, `data` stays the bytes that came.

`data` is checked to be JSON in UTF-8, not nested too deeply, and without an object that has a name twice (two readers
would see two values). Text that doesn't become a value costs little: a million numbers take some milliseconds. Making
Python objects of them takes half a second, and nearly all of that time holds up the loop, in whatever thread it is done.

Names that stand twice are found as `payload.clear` says.
"""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

import msgspec
import orjson

from dispatcher.api.payload import (
    MAX_DEPTH,
    beyond_depth,
    check_brackets,
    clear,
    duplicates,
    ndjson_lines,
    parse_json,
    refuse,
    refuse_duplicates,
    words,
)
from dispatcher.api.problems import invalid
from dispatcher.core.event.decode import without_lone_surrogates
from dispatcher.core.event.raw_json import RawJson
from dispatcher.core.flaws import Flaw

DATA: Final = "data"
FIELDS: Final = frozenset({"id", "type", "tenant", "created", "timestamp"})
_MAX_FIELD: Final = 16 << 10  # bytes of JSON that any other field may have

Members = dict[str, Any]
_Raw = dict[str, msgspec.Raw]

_one: Final = msgspec.json.Decoder(_Raw)
_several: Final = msgspec.json.Decoder(list[_Raw])
_decoder: Final = json.JSONDecoder(parse_int=float)


def parse_events(body: bytes, lines: int = 0) -> Members | list[Members]:
    """An event, or a list of them, as the members of each; `data` as RawJson. With `lines` NDJSON of at most so many.

    Raises Problem, for what is no object too.
    """
    try:
        if lines:
            return [_event(line, (number,)) for number, line in enumerate(ndjson_lines(body, lines))]
        return _body(body)
    except RecursionError:  # of Python's parser
        refuse(f"it is nested deeper than {MAX_DEPTH} levels", ())


def _body(body: bytes) -> Members | list[Members]:
    check_brackets(body)
    text = body.strip(b" \t\r\n")
    if not text:
        refuse("there is no body: send JSON", ())
    if text[:1] != b"[":
        return _event(text, ())
    mended = without_lone_surrogates(text)
    try:
        if mended is None:
            return _checked(text, _several.decode(text))
        _several.decode(mended)
    except msgspec.ValidationError as error:
        # `Expected `object`, got `int` - at `$[3]``
        number = str(error).rpartition("[")[2].rstrip("`]")
        raise invalid([Flaw((int(number),) if number.isdecimal() else (), "must be an object")]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        _not_json(text, ())
    return [_slowly(each.encode(), (number,)) for number, each in enumerate(_elements(text.decode()))]


def _event(text: bytes, place: tuple[int, ...]) -> Members:
    if without_lone_surrogates(text) is not None:
        return _slowly(text, place)
    try:
        (event,) = _checked(text, [_one.decode(text)], place)
    except msgspec.ValidationError:
        raise invalid([Flaw(place, "must be an object")]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        _not_json(text, place)
    return event


def _not_json(text: bytes, place: tuple[int, ...]) -> NoReturn:
    try:
        orjson.loads(without_lone_surrogates(text) or text)
    except orjson.JSONDecodeError as error:
        refuse(words(text, error), place)
    refuse("the body is not JSON, or nested too deeply", place)


def _checked(text: bytes, events: list[_Raw], place: tuple[int, ...] | None = None) -> list[Members]:
    """The members of events that `text` consists of."""
    if not text.isascii():
        text.decode()  # msgspec doesn't look at what it passes over
    found: list[Members] = []
    colons = 0
    for number, event in enumerate(events):
        members = {name: bytes(raw) for name, raw in event.items()}
        colons += len(members) + sum([raw.count(b":") for raw in members.values()])
        found.append(_members(members, (number,) if place is None else place))
    if colons != text.count(b":"):  # or a name has a colon itself: of the fields none has
        refuse_duplicates(duplicates(text), place or ())
    return found


def _members(members: dict[str, bytes], place: tuple[int, ...]) -> Members:
    event: Members = {}
    for name, raw in members.items():
        if name == DATA:
            _check_data(raw, place)
            event[name] = RawJson(raw)
        elif len(raw) > _MAX_FIELD:
            if name in FIELDS:
                raise invalid([Flaw((*place, name), f"takes {len(raw)} bytes, which none takes")])
            event[name] = False  # there is no such field, whatever it is
        elif raw[:1] == b'"' and b"\\" not in raw:
            event[name] = orjson.loads(raw)
        else:
            event[name] = parse_json(raw, (*place, name))
    return event


def _check_data(raw: bytes, place: tuple[int, ...]) -> None:
    brackets = raw.count(b"[") + raw.count(b"{")
    if b"{" not in raw and brackets < MAX_DEPTH - 1:
        return
    value = None
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:  # a number beyond a double, or a surrogate
        value = json.loads(raw, parse_int=float)
    if brackets >= MAX_DEPTH - 1 and beyond_depth(value, MAX_DEPTH - len(place) - 1):
        refuse(f"is nested deeper than {MAX_DEPTH} levels", (*place, DATA))
    if not clear(raw, value):
        refuse_duplicates(duplicates(raw), (*place, DATA))


def _slowly(text: bytes, place: tuple[int, ...]) -> Members:
    """With surrogates that are no half of a pair, which only Python's own parser takes."""
    try:
        _one.decode(without_lone_surrogates(text) or text)
        document = text.decode()
    except msgspec.ValidationError:
        raise invalid([Flaw(place, "must be an object")]) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        _not_json(text, place)
    members: dict[str, bytes] = {}
    twice: list[str] = []
    end = _past(document, document.index("{") + 1)
    while document[end] != "}":
        if document[end] == ",":
            end = _past(document, end + 1)
        name, end = _decoder.raw_decode(document, end)
        begin = _past(document, _past(document, end) + 1)
        _, end = _decoder.raw_decode(document, begin)
        if name in members:
            twice.append(name)
        members[name] = document[begin:end].encode()
        end = _past(document, end)
    refuse_duplicates(twice, place)
    return _members(members, place)


def _elements(document: str) -> list[str]:
    """The texts of an array's elements. It is known to be one."""
    found = []
    end = _past(document, document.index("[") + 1)
    while document[end] != "]":
        if document[end] == ",":
            end = _past(document, end + 1)
        begin = end
        _, end = _decoder.raw_decode(document, begin)
        found.append(document[begin:end])
        end = _past(document, end)
    return found


def _past(document: str, at: int) -> int:
    """The first place from there that is no white space."""
    while document[at] in " \t\n\r":
        at += 1
    return at
