from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dispatcher.broker.base import BrokerUnavailable, Remembered
from dispatcher.settings.groups import Settings
from dispatcher.telemetry.metrics import Metrics
from dispatcher.topics.watch import Drops, TopicWatch
from tests.fakes import MemoryBroker


def test_everything_dropped_for_a_minute_is_said_and_ends_with_an_attempt() -> None:
    metrics = Metrics()
    drops = Drops(metrics)
    drops.look(0.0)
    assert drops.warning() is None
    metrics.deliveries["dropped_disabled"] += 40
    metrics.deliveries["dropped_paused"] += 2
    drops.look(10.0)
    assert "all 42 deliveries" in (drops.warning() or "")
    assert "dropped_disabled: 40, dropped_paused: 2" in (drops.warning() or "")
    metrics.delivered += 1
    drops.look(20.0)
    assert drops.warning() is None


def test_what_was_dropped_long_ago_is_no_warning() -> None:
    metrics = Metrics()
    drops = Drops(metrics)
    drops.look(0.0)
    metrics.deliveries["dropped_disabled"] += 1
    for now in range(10, 130, 10):
        drops.look(float(now))
        assert (drops.warning() is not None) == (now < 70), now


class Flaky(MemoryBroker):
    """Lacks `missing`; `errors` are raised by the next looks."""

    def __init__(self) -> None:
        super().__init__()
        self.missing: set[str] = set()
        self.errors: list[Exception] = []

    async def look(self, topics: Any) -> dict[str, Remembered]:
        if self.errors:
            raise self.errors.pop(0)
        return {topic: Remembered(None, 1) for topic in topics if topic not in self.missing}


@pytest.mark.looptime
async def test_a_topic_that_is_missing_is_a_problem_until_it_is_there_and_the_attempt_log_a_warning() -> None:
    broker = Flaky()
    watch = TopicWatch(Settings(), broker, Metrics())
    task = asyncio.get_running_loop().create_task(watch.run())
    await asyncio.sleep(1)
    assert (watch.problems(), watch.warnings()) == ([], [])
    broker.missing = {"dispatcher.subscriptions", "dispatcher.attempts"}
    await asyncio.sleep(10)
    (problem,) = watch.problems()
    assert problem.startswith("topic dispatcher.subscriptions does not exist: `dispatcher topics --create`")
    (warning,) = watch.warnings()
    assert warning.startswith("topic dispatcher.attempts does not exist")
    broker.errors = [BrokerUnavailable("away")]
    await asyncio.sleep(10)
    assert watch.problems() == [problem], "a broker that is away says nothing of topics"
    broker.missing = set()
    await asyncio.sleep(10)
    assert (watch.problems(), watch.warnings()) == ([], [])
    task.cancel()
