"""How much of a replay may be written now.

Two bounds hold at once. The rate that was asked for: so many a second, and no more than a second's worth at a time. And how far the writer may be
ahead of what is delivered: 1,000 deliveries, or what is delivered in five seconds where that is more. What is ahead is what a pause has to hold back and
what a crash may send twice.
"""

from __future__ import annotations

from collections import deque
from typing import Final

AHEAD: Final = 1000
"""Deliveries that may be written and not sent."""

AHEAD_SECONDS: Final = 5.0
"""Likewise, in seconds of what is sent lately."""

_MEASURED: Final = 10.0  # seconds that the rate of sending is measured over


class Throttle:
    """The rate that was asked for. Times in seconds of any one clock."""

    def __init__(self, rate: float | None, now: float) -> None:
        """`rate` in deliveries a second; None for as fast as it goes."""
        self._rate = rate
        self._tokens = 0.0
        self._at = now

    def allowed(self, now: float) -> int | None:
        """How many may be written now; None for any number."""
        if self._rate is None:
            return None
        most = max(1.0, self._rate)
        self._tokens = min(most, self._tokens + self._rate * (now - self._at))
        self._at = now
        return max(0, int(self._tokens))

    def spend(self, count: int) -> None:
        """So many are written. More than was allowed is made up for later."""
        self._tokens -= count

    def wait(self) -> float:
        """Seconds until the next one is allowed."""
        if self._rate is None or self._tokens >= 1:
            return 0.0
        return (1 - self._tokens) / self._rate


class SentRate:
    """How many are sent in a second, over the last ten seconds. Times in seconds of any one clock."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def note(self, now: float, sent: int) -> None:
        """So many are sent by now, in all."""
        marks = self._marks
        marks.append((now, sent))
        while len(marks) > 2 and marks[1][0] <= now - _MEASURED:
            marks.popleft()

    @property
    def per_second(self) -> float | None:
        """None until there is something to compare."""
        if len(self._marks) < 2:
            return None
        (first, before), (last, after) = self._marks[0], self._marks[-1]
        return None if last <= first else max(0.0, (after - before) / (last - first))


def room(behind: int, per_second: float | None) -> int:
    """How many more may be written while so many are written and not sent."""
    ahead = max(AHEAD, int(AHEAD_SECONDS * (per_second or 0.0)))
    return max(0, ahead - behind)
