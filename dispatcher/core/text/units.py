"""Durations, sizes and rates as people write them: `15s`, `1h30m`, `500ms`, `256MiB`, `100/s`.

A bare number is refused wherever a person wrote it: is `timeout: 15` seconds or milliseconds? Code that makes the same
models passes plain seconds and bytes. The validation context (`WRITTEN`) tells the two apart: the readers of files,
environment and flags set it.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, ValidationInfo

WRITTEN: Final = {"written": True}
"""The validation context for what a person wrote."""

_SECONDS: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_MILLISECONDS: Final = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_DURATION: Final = re.compile(
    "".join(rf"(?:(?P<{unit}>[0-9]{{1,12}}(?:\.[0-9]{{1,9}})?){unit})?" for unit in _SECONDS)
)
_BYTES: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,3})?) ?(B|KiB|MiB|GiB|TiB)")

_PER: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}
_RATE: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?/ ?(s|m|h)")

_DURATION_HELP: Final = "a duration with its unit: 500ms, 15s, 2m, 1h30m, 5d"
_SIZE_HELP: Final = "a size with its unit: 512B, 64KiB, 256MiB, 1GiB"
_RATE_HELP: Final = "a number for each second, minute or hour: 100/s, 10/m, 1000/h"


def parse_duration(text: str) -> float:
    """Seconds of `1h30m`, `500ms`, `5d`; units in descending order. Raises ValueError."""
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        raise ValueError(f"must be {_DURATION_HELP}")
    return sum(float(number) * _SECONDS[unit] for unit, number in match.groupdict().items() if number)


def format_duration(seconds: float) -> str:
    """The shortest way to write it, to the millisecond: 5400.0 is `1h30m`."""
    left = round(seconds * 1000)
    if left == 0:
        return "0s"
    parts = []
    for unit, length in _MILLISECONDS.items():
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def parse_size(text: str) -> int:
    """Bytes of `64KiB`, `256MiB`. Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"must be {_SIZE_HELP}")
    return round(float(match[1]) * _BYTES[match[2]])


def format_size(size: int) -> str:
    """With the largest unit that divides it."""
    for unit in reversed(_BYTES):
        if size and size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]}{unit}"
    return f"{size}B"


def parse_rate(text: str) -> float:
    """What `100/s`, `10/m`, `1000/h` make a second. Raises ValueError."""
    match = _RATE.fullmatch(text)
    if match is None:
        raise ValueError(f"must be {_RATE_HELP}")
    return float(match[1]) / _PER[match[2]]


def format_rate(rate: float) -> str:
    """As a person would write it: 0.5 is `30/m`."""
    for unit, seconds in _PER.items():
        count = rate * seconds
        if count >= 1 and abs(count - round(count, 3)) < 1e-9:
            return f"{round(count, 3):g}/{unit}" if count < 1e6 else f"{round(count)}/{unit}"
    return f"{max(0.001, round(rate * _PER['h'], 3)):g}/h"


def _duration(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str):
        return parse_duration(value)
    if _is_number(value) and not (info.context and info.context.get("written")):
        return value
    raise ValueError(duration_please(value))


def _size(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str):
        return parse_size(value)
    if _is_number(value) and not (info.context and info.context.get("written")):
        return value
    raise ValueError(size_please(value))


def _rate(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str):
        return parse_rate(value)
    if _is_number(value) and not (info.context and info.context.get("written")):
        return value
    raise ValueError(rate_please(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def duration_please(value: Any) -> str:
    """What is said of a value that is no text, where a duration is wanted."""
    return _unit_please(value, _DURATION_HELP, "s")


def size_please(value: Any) -> str:
    """Likewise, of a size."""
    return _unit_please(value, _SIZE_HELP, "KiB")


def rate_please(value: Any) -> str:
    """Likewise, of a rate."""
    return _unit_please(value, _RATE_HELP, "/s")


def _unit_please(value: Any, expected: str, unit: str) -> str:
    if _is_number(value):
        return f"has no unit: write {value}{unit} if that is meant; it must be {expected}"
    return f"must be {expected}"


Duration = Annotated[float, BeforeValidator(_duration)]
"""Seconds; written with a unit."""

Size = Annotated[int, BeforeValidator(_size)]
"""Bytes; written with a unit."""


Rate = Annotated[float, BeforeValidator(_rate)]
"""So many a second; written with its period."""

MAX_RATE: Final = 100_000.0
"""Deliveries a second: a limit beyond it says nothing."""


def duration_between(low: str, high: str) -> AfterValidator:
    """A bound for `Duration`, both ends included."""
    lowest, highest = parse_duration(low), parse_duration(high)

    def check(value: float) -> float:
        if not lowest <= value <= highest:
            raise ValueError(f"must be between {low} and {high}")
        return value

    return AfterValidator(check)


def size_between(low: str, high: str) -> AfterValidator:
    """A bound for `Size`, both ends included."""
    lowest, highest = parse_size(low), parse_size(high)

    def check(value: int) -> int:
        if not lowest <= value <= highest:
            raise ValueError(f"must be between {low} and {high}")
        return value

    return AfterValidator(check)
