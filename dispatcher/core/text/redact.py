"""Text that a person typed, as it may be shown: error messages end up in logs, terminals and tickets."""

from __future__ import annotations

import re

_NAME = re.compile(r"([A-Za-z0-9_.-]{1,64})[:\s]", re.ASCII)


def without_credentials(text: str) -> str:
    """Leave out what may be a user and password: all before the last @, but for the scheme."""
    before, at, after = text.rpartition("@")
    if not at:
        return text
    scheme, separator, _ = before.partition("://")
    return f"{scheme}{separator}***@{after}" if separator else f"***@{after}"


def name_of(assignment: str) -> str:
    """The name in what should be NAME=VALUE and isn't: the value may be a secret."""
    match = _NAME.match(assignment)
    return match[1] if match is not None else "what is given"
