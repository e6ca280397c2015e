"""Times as people and programs read them: RFC 3339, in UTC, to the millisecond."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

LAST_MS: Final = 253_402_300_799_999
"""The end of the year 9999, in Unix milliseconds: RFC 3339 can't write what is beyond."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS: Final = tuple([b":%02d." % number for number in range(60)])
_MILLISECONDS: Final = tuple([b"%03dZ" % number for number in range(1000)])


def rfc3339(milliseconds: float | None) -> str | None:
    """A time in Unix milliseconds; None for what was before 1970, or has no year of four digits.

    Records bring such times: whoever writes them chooses their timestamp.
    """
    if milliseconds is None or not 0 <= milliseconds < LAST_MS + 1:
        return None
    return rfc3339_ascii(min(round(milliseconds * 1000) // 1000, LAST_MS)).decode("ascii")


class _Minute:
    """The minute that was written last. Of a backlog nearly every event has a time of its own, but not a minute."""

    __slots__ = ("number", "text")

    def __init__(self) -> None:
        self.number = -1
        self.text = b""


_written: Final = _Minute()


def rfc3339_ascii(moment: int) -> bytes:
    """Unix milliseconds, from 0 to `LAST_MS`, in UTC as RFC 3339. Put together of what is ready: `datetime` takes six times as long."""
    return b"".join(rfc3339_parts(moment))


def rfc3339_parts(moment: int) -> tuple[bytes, bytes, bytes]:
    """The same, to be joined with what goes around it."""
    seconds = moment // 1000
    minute = seconds // 60
    if minute != _written.number:
        _written.text = (_EPOCH + timedelta(minutes=minute)).isoformat()[:16].encode("ascii")
        _written.number = minute
    return _written.text, _SECONDS[seconds % 60], _MILLISECONDS[moment % 1000]
