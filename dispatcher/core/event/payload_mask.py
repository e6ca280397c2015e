"""Hides fields of a JSON body by their paths, for callers who may see what was sent, but not all of it.

A path is written as a JSON pointer (RFC 6901): `/data/card/number`. A segment `*` stands for every member of an object, and
for every item of an array: `/data/items/*/iban`. A value that is hidden becomes the text `MASK`, whatever it is: nothing shows
its length or kind.

Only objects and arrays on the way to a hidden field are written anew, and of a member that stands twice the last one is kept.
Everything else stays the bytes that were published.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from dispatcher.core.event.decode import without_lone_surrogates

MASK: Final = "***"
MAX_PATHS: Final = 200
_HIDDEN: Final = b'"***"'
_MAX_SEGMENTS: Final = 32
_MAX_PATH: Final = 1024
_WRONG_ESCAPE: Final = re.compile(r"~(?![01])")
_ESCAPED_COLON: Final = re.compile(rb"\\u003[aA]")
_SPACE: Final = b" \t\r\n"

_Path = tuple[str, ...]
_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_items: Final = msgspec.json.Decoder(list[msgspec.Raw])


def read_path(text: str) -> _Path:
    """The segments of a path. Raises ValueError."""
    if not text.startswith("/") or len(text) > _MAX_PATH:
        raise ValueError("must be a path such as /data/card/number; * stands for every member or item")
    if _WRONG_ESCAPE.search(text):
        raise ValueError("has a ~ that is neither ~0 (for ~) nor ~1 (for /)")
    segments = text[1:].split("/")
    if len(segments) > _MAX_SEGMENTS:
        raise ValueError(f"must have at most {_MAX_SEGMENTS} segments")
    return tuple(segment.replace("~1", "/").replace("~0", "~") for segment in segments)


class PayloadMask:
    """The paths of one installation."""

    def __init__(self, paths: Sequence[str]) -> None:
        """Raises ValueError."""
        self._paths = [read_path(path) for path in paths]

    def __bool__(self) -> bool:
        """Whether there is anything to hide."""
        return bool(self._paths)

    def applied(self, body: bytes) -> bytes | None:
        """The body with its fields hidden; None where it has none of them, and may be shown as it is.

        A body that is no JSON is hidden as a whole: no path says where in it a field may be.
        """
        if not self._paths or not body:
            return None
        text = body.removeprefix(b"\xef\xbb\xbf")
        try:
            msgspec.json.decode(without_lone_surrogates(text) or text, type=msgspec.Raw)
            return _hidden(without_lone_surrogates(text) or text, self._paths)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _HIDDEN


def _hidden(text: bytes, paths: Sequence[_Path]) -> bytes | None:
    """The value with what the paths lead to hidden; None where they lead nowhere. Raises msgspec.DecodeError."""
    text = text.strip(_SPACE)
    if text[:1] == b"{":
        members = {name: bytes(raw) for name, raw in _members.decode(text).items()}
        found = _hide(members, list(members), paths)
        return _object(members) if found or _has_more(text, members) else None
    if text[:1] == b"[":
        items = {str(index): bytes(raw) for index, raw in enumerate(_items.decode(text))}
        return b"[" + b",".join(items.values()) + b"]" if _hide(items, list(items), paths) else None
    return None


def _hide(parts: dict[str, bytes], names: Collection[str], paths: Sequence[_Path]) -> bool:
    """Hide in these members or items; whether there was anything to hide."""
    wanted = names if any(path[0] == "*" for path in paths) else {path[0] for path in paths}
    found = False
    for name in wanted:
        if name not in parts:
            continue
        rest = [path[1:] for path in paths if path[0] in ("*", name)]
        hidden = _HIDDEN if () in rest else _hidden(parts[name], rest)
        if hidden is not None:
            parts[name], found = hidden, True
    return found


def _has_more(text: bytes, members: dict[str, bytes]) -> bool:
    """Whether the text may have a name twice: the member that is not looked at must not be shown either.

    Each member has a colon, besides those in names and values. The one other way to a different number is an escaped colon.
    """
    colons = sum(1 + name.count(":") + raw.count(b":") for name, raw in members.items())
    return _ESCAPED_COLON.search(text) is not None or colons != text.count(b":")


def _object(members: dict[str, bytes]) -> bytes:
    return b"{" + b",".join(msgspec.json.encode(name) + b":" + raw for name, raw in members.items()) + b"}"
