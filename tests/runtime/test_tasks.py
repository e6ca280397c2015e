"""Background tasks have an owner."""

from __future__ import annotations

import asyncio

from dispatcher.runtime.tasks import Tasks


async def fail() -> None:
    raise RuntimeError("broken")


async def test_a_task_that_dies_is_reported_at_once() -> None:
    failures: list[tuple[str, BaseException]] = []
    tasks = Tasks(lambda name, error: failures.append((name, error)))
    tasks.start(fail(), "doomed")
    await asyncio.sleep(0.01)
    assert [(name, str(error)) for name, error in failures] == [("doomed", "broken")]
    assert len(tasks) == 0


async def test_stopping_cancels_what_runs_and_waits_for_it() -> None:
    cleaned: list[str] = []

    async def run() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append("up")

    failures: list[str] = []
    tasks = Tasks(lambda name, _: failures.append(name))
    tasks.start(run(), "long")
    await asyncio.sleep(0)
    await tasks.stop()
    assert cleaned == ["up"]
    assert failures == []
    assert len(tasks) == 0
