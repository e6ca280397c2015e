"""What single keywords of a JSON Schema cost on the values at hand, in comparisons with a subschema (0.01 to 0.2 us each).

`schemas.py` counts how many subschemas a value is compared with. For most keywords that is all there is. Four cost more, as measured
with jsonschema-rs:

- `multipleOf` that is no integer: exact fractions, 1.5 us, and more with the digits of the number and of the divisor (1e300 of
  1e-300: 50 us).
- Limits beside integers beyond 64 bits: 7 us for 300 digits.
- `enum` and `const`: 0.3 to 0.4 us for each value inside them (an `enum` of strings is looked up).
- `pattern`, `patternProperties`: linear in the text, but with each position of the pattern that may be reached at the same time: 11 to 17 ns for a
  character and a position. `[xy]*x[xy]{2000}z` takes 23 s for a megabyte of `x` and `y`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

_LIMITS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_FRACTION: Final = 15  # for a number beside a `multipleOf` that is no integer
_BITS: Final = 16  # of a number or a divisor, for one comparison more
_POSITIONS: Final = 20  # of a pattern, for one comparison a character
_NAMES: Final = 10  # of `required`, likewise
_WIDE: Final = 64  # bits of numbers that cost nothing more
_MOST: Final = 1 << 20  # positions are counted no further


class Weight(NamedTuple):
    """Of one subschema by itself."""

    fixed: int = 0
    """For each value, in comparisons."""
    number: int = 0
    """For each number, in comparisons."""
    wide: int = 0
    """Keywords that each take a comparison more for each `_BITS` of a number."""
    text: int = 0
    """Positions of patterns, for each character."""


class Amounts(NamedTuple):
    """What there is in the values of one level."""

    numbers: int
    bits: int  # of all numbers that have more than 64
    characters: int

    def cost(self, number: int, wide: int, text: int) -> int:
        """In comparisons, where each value is compared with subschemas of these weights together."""
        return self.numbers * number + self.bits * wide // _BITS + self.characters * text // _POSITIONS


def weight(schema: Mapping[str, Any], pattern: str | None = None) -> Weight:
    """Of a subschema; `pattern` is the one under which it stands in `patternProperties`."""
    fixed = 0
    options = schema.get("enum")
    if isinstance(options, list) and not all(isinstance(option, str) for option in options):
        fixed += _size(options)
    if isinstance(schema.get("const"), (dict, list)):
        fixed += _size(schema["const"])
    required = schema.get("required")
    if isinstance(required, list):
        fixed += len(required) // _NAMES
    number = 0
    divisor = schema.get("multipleOf")
    if isinstance(divisor, float) and not divisor.is_integer():
        number = _FRACTION + _bits(divisor) // _BITS
    wide = sum(keyword in schema for keyword in _LIMITS)
    text = sum(positions(each) for each in (schema.get("pattern"), pattern) if isinstance(each, str))
    return Weight(fixed, number, wide, text)


def amounts(values: Iterable[object], names: int) -> Amounts:
    """Of values of one level, and `names` characters of the names of these."""
    numbers = bits = 0
    characters = names
    for value in values:
        if isinstance(value, str):
            characters += len(value) if value.isascii() else 3 * len(value)
        elif isinstance(value, (int, float)):
            numbers += 1
            wide = _bits(value)
            if wide > _WIDE:
                bits += wide
    return Amounts(numbers, bits, characters)


def _bits(number: float) -> int:
    """How large a fraction is written by the number, in about so many bits."""
    return number.bit_length() if isinstance(number, int) else abs(math.frexp(number)[1])


def _size(value: object) -> int:
    count = 0
    level = [value]
    while level:
        count += len(level)
        level = [
            inner
            for each in level
            if isinstance(each, (dict, list))
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return count


def positions(pattern: str) -> int:
    """At how many places of a pattern a match may be at the same time, at the most: characters and classes, repeated as often as counted.

    What isn't understood counts as more, not as less.
    """
    totals = [0]  # of each group that is open
    last = 0  # of what a quantifier would repeat
    at = 0
    while at < len(pattern):
        sign = pattern[at]
        at += 1
        if sign == "\\":
            at = _escaped(pattern, at)
            last = 1
        elif sign == "[":
            at = _class_end(pattern, at)
            last = 1
        elif sign == "(":
            totals.append(0)
            last = 0
            continue
        elif sign == ")" and len(totals) > 1:
            last = totals.pop()
        elif sign == "{" and (repeated := _counted(pattern, at)) is not None:
            times, at = repeated
            totals[-1] = min(_MOST, totals[-1] + last * (times - 1))
            last = min(_MOST, last * times)
            continue
        elif sign in "*+?|^$":
            continue
        else:
            last = 1
        totals[-1] = min(_MOST, totals[-1] + last)
    return min(_MOST, sum(totals))


def _escaped(pattern: str, at: int) -> int:
    """Past an escape, whose letter is at `at`; those of properties and code points may have braces."""
    if pattern[at : at + 1] in {"p", "P", "u", "U", "x"} and pattern[at + 1 : at + 2] == "{":
        end = pattern.find("}", at)
        return len(pattern) if end < 0 else end + 1
    return at + 1


def _class_end(pattern: str, at: int) -> int:
    depth = 1
    first = True
    while at < len(pattern) and depth:
        sign = pattern[at]
        if sign == "\\":
            at += 1
        elif sign == "[":
            depth += 1
        elif sign == "]" and not first:
            depth -= 1
        first = first and sign == "^"
        at += 1
    return at


def _counted(pattern: str, at: int) -> tuple[int, int] | None:
    """How often `{m,n}` repeats at the most, and where it ends; None for a brace that is one."""
    end = pattern.find("}", at)
    least, comma, most = (part.strip() for part in pattern[at : max(at, end)].partition(","))
    if not (least or most) or not (least + most).isdecimal():
        return None
    digits = most or least
    times = _MOST if len(digits.lstrip("0")) > 7 else int(digits) + (1 if comma and not most else 0)
    return max(1, min(times, _MOST)), end + 1
