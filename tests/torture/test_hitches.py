"""What counts as the machine's standing still."""

from __future__ import annotations

import asyncio
import time

import pytest

from dispatcher.runtime.tasks import Tasks
from tests.torture.hitches import Hitches


async def test_a_hitch_counts_while_it_lies_within_the_time_that_was_run_since() -> None:
    hitches, tasks = Hitches(), Tasks()
    tasks.start(hitches.run(), "hitches")
    await asyncio.sleep(0.3)
    assert hitches.within(1.0) == 0.0
    time.sleep(1.0)
    assert hitches.within(1.0) == pytest.approx(1.0, abs=0.3), "the one that ends just now"
    await asyncio.sleep(0.3)
    assert hitches.within(1.0) == pytest.approx(1.0, abs=0.3)
    await asyncio.sleep(0.5)
    assert hitches.within(0.5) == 0.0, "it has run for longer since"
    await tasks.stop()
