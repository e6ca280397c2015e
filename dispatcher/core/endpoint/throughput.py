"""How long something that is queued will have to wait, judged by how fast the queue moves.

What counts is completions while there was more to do than could be done: a lane with nothing to do isn't
slow. So an owner measures now and then, tells how many have been completed by then, and only for as long as it is busy. Counts
and seconds fade together, so the rate is that of the last ten seconds or so. Attempts under way count as if they were nearly done,
ever less so: at first nothing has come back yet, and a host that takes a second to answer sixteen at a time is no slow one.
"""

from __future__ import annotations

from math import exp
from typing import Final

EVIDENCE: Final = 2.0
"""Seconds of being busy before anything is concluded."""

_FADE: Final = 10.0
_IDLE: Final = 3.0
"""Seconds of having nothing to do after which it has to be busy again for a while."""


class Throughput:
    """How many are completed in a second while busy."""

    __slots__ = ("_busy", "_count", "_idle", "_seen", "_span", "rate")

    def __init__(self, done: int) -> None:
        """`done` is how many were completed before this began."""
        self._seen = done
        self._count = 0.0
        self._span = 0.0
        self._busy = 0.0
        self._idle = 0.0
        self.rate: float | None = None
        """Completions a second; None while there is too little evidence."""

    def busy(self, done: int, under_way: int, seconds: float) -> None:
        """There was more to do than could be done for the last so many `seconds`; `done` by now."""
        fade = exp(-seconds / _FADE)
        self._count = self._count * fade + (done - self._seen)
        self._span = self._span * fade + seconds
        self._seen = done
        self._busy += seconds
        self._idle = 0.0
        if self._busy >= EVIDENCE:
            self.rate = (self._count + under_way * exp(-self._busy / _FADE)) / self._span

    def idle(self, done: int, seconds: float) -> bool:
        """There was nothing to wait for; whether that has been so for long enough to forget the pace."""
        self._seen = done
        self._idle += seconds
        return self._idle >= _IDLE
