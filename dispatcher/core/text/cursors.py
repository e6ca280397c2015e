"""Cursors of lists: where the next page begins, as text that a caller sends back."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import orjson


def write_cursor(key: object) -> str:
    """The text of a key that JSON can say."""
    return urlsafe_b64encode(orjson.dumps(key)).decode().rstrip("=")


def read_cursor(text: str) -> Any:
    """The key, of whatever form: it comes back from outside. None for what is no cursor."""
    try:
        return orjson.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except ValueError:
        return None
