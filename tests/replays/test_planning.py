"""Which stretches a replay reads, and what it would send."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.broker.base import TopicPartition
from dispatcher.core.replay.job import ReplayRange, ReplaySource
from dispatcher.core.replay.selecting import Selector
from dispatcher.core.subscription.index import Index
from dispatcher.core.subscription.model import Status
from dispatcher.history.base import DeliveryState
from dispatcher.replays.planning import plan_history, plan_log, plan_ranges
from tests.fakes import MemoryBroker, subscription
from tests.replays.test_sources import History, asked_history, row
from tests.replays.world import asked

pytestmark = [pytest.mark.looptime]

MINUTE = 60_000
NOW = 10_000 * MINUTE


def selector(**more: Any) -> Selector:
    index = Index([subscription(), subscription("sub_2", status=Status.PAUSED, event_types=("b",))])
    return Selector(
        asked(**more).request, None, "rpl_1", lambda: index, lambda _source, _sub, known: known + 1
    )


def broker_with(count: int, *, partitions: int = 1) -> MemoryBroker:
    """An event a minute, from the beginning of the clock on."""
    broker = MemoryBroker()
    for partition in range(partitions):
        for number in range(count):
            broker.append(
                b'{"id": "evt_%d", "type": "%s"}' % (number, b"b" if number % 10 == 0 else b"a"),
                partition=TopicPartition("events", partition),
                timestamp=number * MINUTE,
            )
    return broker


async def test_a_stretch_is_some_minutes_wider_than_the_time_that_was_asked_for() -> None:
    request = asked(since_ms=100 * MINUTE, until_ms=200 * MINUTE).request
    ranges = await plan_ranges(broker_with(1000, partitions=2), ["events"], request, NOW)
    assert ranges == tuple(ReplayRange("events", number, 95, 95, 205) for number in range(2))


async def test_without_times_it_is_all_that_is_there_now() -> None:
    broker = broker_with(50)
    broker.begins[TopicPartition("events", 0)] = 20
    request = asked(until_ms=NOW).request
    assert await plan_ranges(broker, ["events"], request, NOW) == (ReplayRange("events", 0, 20, 20, 50),)
    assert await plan_ranges(broker, ["others"], request, NOW) == ()
    late = asked(since_ms=NOW - MINUTE, until_ms=NOW).request
    assert await plan_ranges(broker, ["events"], late, NOW) == ()


async def test_few_are_all_looked_at() -> None:
    broker = broker_with(500)
    chosen = selector(since_ms=100 * MINUTE, until_ms=200 * MINUTE)
    plan = await plan_log(broker, [ReplayRange("events", 0, 90, 90, 210)], chosen.event)
    assert (plan.exact, plan.records, plan.deliveries) == (True, 120, 100)
    assert plan.by_type == {"a": 90, "b": 10}
    assert plan.not_active == 10
    assert (plan.first_ms, plan.last_ms) == (100 * MINUTE, 199 * MINUTE)


async def test_of_many_a_sample_is_looked_at_and_said_to_be_one() -> None:
    broker = broker_with(60_000)
    whole = ReplayRange("events", 0, 0, 0, 60_000)
    plan = await plan_log(broker, [whole], selector(until_ms=60_000 * MINUTE).event)
    assert (plan.exact, plan.records) == (False, 60_000)
    assert 55_000 <= plan.deliveries <= 65_000
    assert sum(limit for _, _, limit in broker.ranges) <= 20_000
    assert 4000 <= plan.by_type["b"] <= 8000


async def test_the_history_is_counted() -> None:
    rows = [row(number) for number in range(10)] + [
        row(number, state=DeliveryState.DELIVERED) for number in range(10, 15)
    ]
    plan = await plan_history(History(*rows), asked_history(), None, selector(source=ReplaySource.DELIVERIES))
    assert (plan.deliveries, plan.exact, plan.by_type) == (10, True, {"a.b": 10})
    assert (plan.first_ms, plan.last_ms) == (1000, 1009)


async def test_a_large_history_is_estimated_by_the_time_that_was_looked_at() -> None:
    rows = [row(number, created_ms=number) for number in range(5000)]
    request = asked_history(since_ms=0, until_ms=5000)
    plan = await plan_history(
        History(*rows, page=100), request, None, selector(source=ReplaySource.DELIVERIES)
    )
    assert not plan.exact
    assert 4500 <= plan.deliveries <= 5500
