"""The wheel on the event loop: virtual time for exactness, uvloop for the real thing."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from dispatcher.runtime.timers import Timers


@pytest.mark.looptime
async def test_callbacks_come_when_due_in_their_order() -> None:
    loop = asyncio.get_running_loop()
    timers = Timers(loop)
    start = loop.time()
    called: list[tuple[str, float]] = []
    for name, wait in [("c", 3600.0), ("a", 0.5), ("b", 60.0)]:
        timers.at(start + wait, lambda name=name: called.append((name, loop.time() - start)))  # type: ignore[misc]
    await asyncio.sleep(4000)
    assert [name for name, _ in called] == ["a", "b", "c"]
    for (_, late), wait in zip(called, [0.5, 60.0, 3600.0], strict=True):
        assert wait <= late <= wait + 0.021


@pytest.mark.looptime
async def test_a_cancelled_callback_does_not_come() -> None:
    loop = asyncio.get_running_loop()
    timers = Timers(loop)
    called: list[str] = []
    entry = timers.at(loop.time() + 1, lambda: called.append("cancelled"))
    timers.at(loop.time() + 2, lambda: called.append("kept"))
    timers.cancel(entry)
    assert len(timers) == 1
    await asyncio.sleep(5)
    assert called == ["kept"]


@pytest.mark.looptime
async def test_an_earlier_callback_rearms_the_timer() -> None:
    loop = asyncio.get_running_loop()
    timers = Timers(loop)
    start = loop.time()
    called: list[float] = []
    timers.at(start + 100, lambda: called.append(loop.time() - start))
    await asyncio.sleep(1)
    timers.at(start + 2, lambda: called.append(loop.time() - start))
    await asyncio.sleep(2)
    assert len(called) == 1


@pytest.mark.looptime
async def test_a_failing_callback_does_not_take_the_others_with_it() -> None:
    loop = asyncio.get_running_loop()
    timers = Timers(loop)
    called: list[str] = []
    due = loop.time() + 1
    timers.at(due, lambda: called.append("before"))
    timers.at(due, lambda: called.remove("never there"))
    timers.at(due, lambda: called.append("after"))
    await asyncio.sleep(2)
    assert called == ["before", "after"]


@pytest.mark.looptime
async def test_a_callback_may_add_another() -> None:
    loop = asyncio.get_running_loop()
    timers = Timers(loop)
    turns: list[float] = []

    def again() -> None:
        turns.append(loop.time())
        if len(turns) < 5:
            timers.at(loop.time() + 1, again)

    timers.at(loop.time(), again)
    await asyncio.sleep(10)
    assert len(turns) == 5


@pytest.mark.looptime
async def test_after_closing_nothing_is_called() -> None:
    loop = asyncio.get_running_loop()
    timers = Timers(loop)
    called: list[str] = []
    timers.at(loop.time() + 1, lambda: called.append("late"))
    timers.close()
    timers.at(loop.time() + 1, lambda: called.append("later"))
    await asyncio.sleep(5)
    assert called == []


def test_on_uvloop_a_thousand_timers_come_and_none_early() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        timers = Timers(loop)
        early: list[float] = []
        done = asyncio.Event()
        left = 1000

        def fired(due: float) -> None:
            nonlocal left
            early.append(loop.time() - due)
            left -= 1
            if not left:
                done.set()

        for number in range(1000):
            due = loop.time() + (number % 100) / 200
            timers.at(due, lambda due=due: fired(due))  # type: ignore[misc]
        async with asyncio.timeout(30):
            await done.wait()
        return early

    assert min(uvloop.run(main())) > -0.002, "uvloop's clock has whole milliseconds"
