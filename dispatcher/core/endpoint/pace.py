"""How long something that is queued will have to wait, judged by how fast the queue moves; and appointments for later.

**Pace.** What counts is completions while there was more to do than could be done: a lane with nothing to do isn't
slow. So an owner measures now and then, tells how many have been completed by then, and only for as long as it is busy. Counts
and seconds fade together, so the rate is that of the last ten seconds or so. Attempts under way count as if they were nearly done,
ever less so: at first nothing has come back yet, and a host that takes a second to answer sixteen at a time is no slow one.

**Line.** What can't be served soon is parked, and has to come back some time. All after the same delay would bring the flood back as it
left; so each gets an appointment, one after another as fast as the endpoint has shown it can take them (a little
slower, so that there is room for what is fresh, and for the error of the estimate). So a host that is owed ten times what it takes gets each delivery
written to a retry topic about once, in the order in which they came, however large the flood.

Rejected: a delay from tier to tier alone (an overload of ten times circulates: each delivery is written some five times, in no
order); parking for as long as the backlog divided by the rate, from a count of what is parked (the count is lost with the
process, and wrong as soon as two replicas share the topic).
"""

from __future__ import annotations

from math import exp
from typing import Final

EVIDENCE: Final = 2.0
"""Seconds of being busy before anything is concluded."""

_FADE: Final = 10.0
_RESERVE: Final = 0.9
"""The share of the measured rate at which appointments are given."""

_IDLE: Final = 3.0
"""Seconds of having nothing to do after which it has to be busy again for a while."""


class Pace:
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


def appointment(line: float, earliest: float, latest: float, rate: float) -> tuple[float, float]:
    """When the next of those that are turned away shall come back, and the new end of the line.

    `line` is the end of the line so far, `rate` what the endpoint takes in a second. The line ends at `latest`: that of an
    endpoint which took nothing for a while would otherwise be days long, and make those wait that come when it is well.
    """
    at = max(line, earliest)
    if at > latest:
        return latest, line
    return at, min(at + 1 / max(rate * _RESERVE, 1e-6), latest)
