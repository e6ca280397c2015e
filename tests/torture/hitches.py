"""When the machine stood still: a virtual machine may be stopped for seconds, and all that is noted by the clock is late by that."""

from __future__ import annotations

import asyncio
from collections import deque

_TICK = 0.1
_HITCH = 0.2
_MOST = 10.0


class Hitches:
    """What was lost lately, of the loop's time."""

    def __init__(self) -> None:
        self._clock = asyncio.get_running_loop().time
        self._ticked = self._clock()
        self._all: deque[tuple[float, float]] = deque(maxlen=100)  # when each was over, and how long it was

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(_TICK)
            now = self._clock()
            late = now - self._ticked - _TICK
            if late > _HITCH:
                self._all.append((now, late))
            self._ticked = now

    def within(self, seconds: float) -> float:
        """Seconds in which nothing ran, since it has run for so many: going back from now, hitches are passed over."""
        now = self._clock()
        late = now - self._ticked - _TICK
        stood = late if late > _HITCH else 0.0
        for over, each in reversed(self._all):
            if over < now - stood - seconds:
                break
            stood += each
        return min(stood, _MOST)
