"""What both stores can keep of what a log says: text, numbers and times. By itself, to be compiled: each attempt comes by here a dozen times."""

from __future__ import annotations

from typing import Final

FUTURE_MS: Final = 3600 * 1000
"""How far ahead of this process a time may be before it is taken for a wrong clock."""

_LEAST_TIME_MS: Final = (
    10**12
)  # 2001: what is less is no time in milliseconds (no timestamp at all, or seconds)
_INTEGER_LIMIT: Final = 2**31 - 1


def storable(text: str, limit: int = 1024) -> str:
    """The text as both stores can hold and index it: without NUL and lone surrogates, at most `limit` bytes of UTF-8."""
    if text.isascii() and len(text) <= limit and "\0" not in text:
        return text
    raw = text.replace("\0", "�").encode(errors="replace")
    return raw[:limit].decode(errors="ignore")


def small(number: int) -> int:
    """The number, of what is small: attempts, generations, milliseconds of an attempt. At least -1, and a column of four bytes holds it."""
    if -1 <= number <= _INTEGER_LIMIT:
        return number
    return max(-1, min(number, _INTEGER_LIMIT))


def kept_time(time_ms: int, now_ms: int) -> int:
    """The time by which a row is kept: a clock that can't be right doesn't choose the day."""
    return time_ms if _LEAST_TIME_MS <= time_ms <= now_ms + FUTURE_MS else now_ms
