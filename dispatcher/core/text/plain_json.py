"""JSON that means the same as YAML, read in a tenth of the time.

What programs write is JSON mostly, and JSON is YAML. The YAML reader (`yaml_document.py`) tells the line of each mistake, and takes 0.5 ms for an
entry of 80 values. So a document without mistakes can be read by the standard library. Where the two could differ (a key that
stands twice, numbers of more than 18 digits, characters beyond ASCII, NaN), nothing is read here, and the YAML reader decides.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

_DIGITS: Final = 18  # of an integer; a longer one is text in YAML
_NOT_PLAIN: Final = re.compile(rb"[^\n\r -~]|\\u")
"""Characters that YAML folds, refuses or escapes in its own way."""


class NotPlain(ValueError):
    """It isn't JSON, or may mean something else in YAML."""


def plain_json(content: bytes) -> Any:
    """The document's data. Raises NotPlain."""
    if content.lstrip()[:1] != b"{" or _NOT_PLAIN.search(content) is not None:
        raise NotPlain
    try:
        return json.loads(content, object_pairs_hook=_mapping, parse_int=_integer, parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise NotPlain from error


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs) or "<<" in found:
        raise NotPlain
    return found


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise NotPlain
    return int(digits)


def _refused(_: str) -> Any:
    raise NotPlain
