"""The pauses between tries of whatever has failed: short at first, then longer, then the same for ever."""

from __future__ import annotations

from typing import Final

_PAUSES: Final = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # seconds


def pause_after(failures: int, *, longest: float = 5.0) -> float:
    """Seconds to wait for the next try after so many failures in a row (1 or more); never more than `longest`."""
    return min(_PAUSES[min(failures, len(_PAUSES)) - 1], longest)


class Backoff:
    """Counts the failures in a row of one piece of work."""

    __slots__ = ("_longest", "failures")

    def __init__(self, *, longest: float = 5.0) -> None:
        """`longest`: seconds that no pause exceeds."""
        self.failures = 0
        self._longest = longest

    def failed(self) -> float:
        """Count a failure; returns the seconds to wait before the next try."""
        self.failures += 1
        return pause_after(self.failures, longest=self._longest)

    def succeeded(self) -> None:
        """Begin with the shortest pause again."""
        self.failures = 0
