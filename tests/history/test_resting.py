"""How long the history rests, on virtual time: what the process had of the CPU is given."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.history.resting import Resting


async def rested(took: float, used: float, *, turn: float = 0.01, in_round: float = 1.0) -> float:
    """Seconds of the rest after a round that `took` so long, of which it used `in_round`, where others use `used` of the CPU."""
    clock = asyncio.get_running_loop().time
    began = clock()
    resting = Resting(lambda: min(clock() - began, took) * in_round + max(0.0, clock() - began - took) * used)
    resting.begin()
    await asyncio.sleep(took)
    await resting.after(turn)
    return clock() - began - took


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("took", "used", "rest"),
    [
        (0.1, 1.0, 1.2),  # the process never stands still: a twelfth is the history's
        (0.1, 0.95, 1.2),  # or for no longer than a machine's own work takes
        (1.0, 1.0, 5.0),  # and never longer than that
        (0.4, 0.0, 0.1),  # nobody else has work
        (0.4, 0.5, 0.2),
        (0.4, 0.8, 0.5),
    ],
)
async def test_the_history_rests_until_the_process_has_stood_still(
    took: float, used: float, rest: float
) -> None:
    assert await rested(took, used) == pytest.approx(rest, abs=0.011)


@pytest.mark.looptime
@pytest.mark.parametrize(("in_round", "rest"), [(0.5, 0.0), (0.75, 0.0), (0.85, 0.04), (0.95, 0.1)])
async def test_what_a_round_waits_for_a_database_is_no_work_of_others(in_round: float, rest: float) -> None:
    assert await rested(0.4, 0.0, in_round=in_round) == pytest.approx(rest, abs=0.011)


@pytest.mark.looptime
async def test_where_nobody_waits_there_is_no_rest() -> None:
    assert await rested(1.0, 1.0, turn=0.001) == 0.0
