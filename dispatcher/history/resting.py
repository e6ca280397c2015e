"""How long the history rests between two rounds, so that in one process with deliveries it takes what they leave over.

After a round the loop turns once. Where that turn was short, nobody waits, and the next round begins. Where it was long there is work of others: then
the history rests until the loop has stood still for a part of the time that the round took, so that the next one takes what nobody
needs. Where the loop never stands still it rests for twelve times as long, and no longer than five seconds: a twelfth is the history's in any case.

Whether the loop stands still is told by the CPU of its thread: a turn's length doesn't tell it. On a slow machine each turn is long, and after a round
there is always something that has waited for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

_BUSY_TURN: Final = 0.002  # seconds
_STILL: Final = 0.25  # of the time that a round took, for which the loop has to stand still
_MOST: Final = 12.0  # times of what a round took
_LONGEST: Final = 5.0  # seconds
_LOOK: Final = 0.005  # seconds, at least, between two looks
_NEVER: Final = (
    0.1  # the part of a look that a loop seems to stand still which never does: a machine's own work
)


class Resting:
    """Rests of one loop's history. `cpu` gives the seconds of CPU that the loop's thread has had; called in that thread."""

    def __init__(self, cpu: Callable[[], float] = time.thread_time) -> None:
        self._cpu = cpu

    async def after(self, took: float, turn: float) -> None:
        """Rest after a round that `took` so long, and after which the loop's `turn` took so long. Seconds."""
        if turn <= _BUSY_TURN:
            return
        clock = asyncio.get_running_loop().time
        left = min(took * _MOST, _LONGEST)
        wanted = took * _STILL
        while left >= _LOOK and wanted > 0:
            began, cpu = clock(), self._cpu()
            await asyncio.sleep(min(left, max(_LOOK, wanted)))
            passed = clock() - began
            still = passed - (self._cpu() - cpu)
            left -= passed
            if still > _NEVER * passed:
                wanted -= still
