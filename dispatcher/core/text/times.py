"""Times as people and programs read them: RFC 3339, in UTC, to the millisecond."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

_FIRST_BEYOND: Final = 253_402_300_800_000  # the year 10000, which RFC 3339 can't write


def rfc3339(milliseconds: float | None) -> str | None:
    """A time in Unix milliseconds; None for what was before 1970, or has no year of four digits.

    Records bring such times: whoever writes them chooses their timestamp.
    """
    if milliseconds is None or not 0 <= milliseconds < _FIRST_BEYOND:
        return None
    return (
        datetime.fromtimestamp(milliseconds / 1000, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )
