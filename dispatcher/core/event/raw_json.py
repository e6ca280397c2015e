"""JSON that is passed on as the bytes that came, and what of it somebody reads who has to.

A value that is parsed and written anew isn't the one that was published: `1.10` becomes `1.1`, `1E2` becomes `100.0`, digits
beyond a double's go, and escapes and white space change, so that a signature over the published text is wrong.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any, Final

from orjson import JSONDecodeError, loads

from dispatcher.core.event.decode import without_lone_surrogates

_LONG: Final = re.compile(rb"[0-9]{19}")  # digits of an integer that may not fit into 64 bits
_LARGEST: Final = sys.float_info.max


class RawJson(bytes):
    """The text of one JSON value, known to be valid."""


def reading(text: bytes) -> Any:
    """The value of a JSON text, as a schema sees it.

    Integers are exact and other numbers doubles, the largest double in the place of what is larger; for a surrogate that is no half of
    a pair stands U+FFFD, the replacement character. Of a name that stands twice in an object the last value counts.
    """
    text = without_lone_surrogates(text, b"\\ufffd") or text
    if _LONG.search(text) is None:
        try:
            return loads(text)
        except JSONDecodeError:
            pass  # a number larger than any double, or nesting: the standard library's parser may be asked
    return json.loads(text, parse_int=_integer, parse_float=_double)


def _integer(digits: str) -> float:
    # Python reads no integer of more than 4300 digits.
    return int(digits) if len(digits) < 400 else _double(digits)


def _double(digits: str) -> float:
    return max(-_LARGEST, min(_LARGEST, float(digits)))
