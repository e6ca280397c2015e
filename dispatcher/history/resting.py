"""How long the history rests between two rounds, so that in one process with deliveries it takes what they leave over.

After a round the loop turns once. Where that turn was short, nobody waits, and the next round begins. Where it was long there is work of others: then
the history rests until the process has stood still for a part of the time that the round took, the round itself included: it may have waited for a
database all the while. So the next one takes what nobody needs. Where the process never stands still it rests for twelve times as long, and no longer than
five seconds: a twelfth is the history's in any case.

Whether it stands still is told by its CPU: a turn's length doesn't tell it. On a slow machine each turn is long, and after a round
there is always something that has waited for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

_BUSY_TURN: Final = 0.002  # seconds
_STILL: Final = 0.25  # of the time that a round took, for which the process has to stand still
_MOST: Final = 12.0  # times of what a round took
_LONGEST: Final = 5.0  # seconds
_LOOK: Final = 0.005  # seconds, at least, between two looks
_NEVER: Final = (
    0.1  # the part of a look that a process seems to stand still which never does: a machine's own work
)


class Resting:
    """Rests of one process's history. `cpu` gives the seconds of CPU that the process has had: with SQLite a round is in another thread."""

    def __init__(self, cpu: Callable[[], float] = time.process_time) -> None:
        self._cpu = cpu
        self._began = 0.0
        self._used = 0.0

    def begin(self) -> None:
        """A round begins."""
        self._began, self._used = asyncio.get_running_loop().time(), self._cpu()

    async def after(self, turn: float) -> None:
        """Rest after the round; the loop's `turn` after it took so many seconds."""
        if turn <= _BUSY_TURN:
            return
        took, still = self._look()
        left = min(took * _MOST, _LONGEST)
        wanted = took * _STILL - still
        while left >= _LOOK and wanted > 0:
            await asyncio.sleep(min(left, max(_LOOK, wanted)))
            passed, still = self._look()
            left -= passed
            wanted -= still

    def _look(self) -> tuple[float, float]:
        """Seconds since the last look, and for how many of them the process stood still."""
        now, used = asyncio.get_running_loop().time(), self._cpu()
        passed = now - self._began
        still = passed - (used - self._used)
        self._began, self._used = now, used
        return passed, still if still > _NEVER * passed else 0.0
