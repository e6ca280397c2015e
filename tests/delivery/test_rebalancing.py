"""Partitions that come and go."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.broker.base import (
    Position,
    TopicPartition,
)
from dispatcher.core.request.results import Response
from dispatcher.runtime.tasks import Tasks
from tests.fakes import FixedRegistry, MemoryBroker, subscription
from tests.world import EVENTS, World, event, running, until

pytestmark = [pytest.mark.looptime]


async def test_a_partition_that_comes_back_is_not_delivered_a_second_time() -> None:
    async with running(FixedRegistry(subscription())) as world:
        world.transport.answer = lambda _, exchange: (
            (20.0 if b"evt_0\r" in exchange.request else 0.001),
            Response(200),
        )
        for number in range(10):
            world.broker.append(event(number))
        await until(lambda: len(world.transport.sent) == 10)
        await world.broker.consumers[0].assign([EVENTS])
        await until(lambda: world.committed == 10)
        assert len(world.transport.sent) == 10
        assert world.value("events_skipped_total", reason="seen") == 10
        assert world.value("rebalances_total") == 2


async def test_of_a_lost_partition_nothing_more_is_sent_or_committed() -> None:
    other = TopicPartition("events", 1)
    registry = FixedRegistry(subscription(max_in_flight=1))
    async with running(registry, MemoryBroker(EVENTS, other)) as world:
        world.transport.answer = lambda *_: (7.0, Response(500))
        for number in range(5):
            world.broker.append(event(number))
        await until(lambda: len(world.transport.sent) == 1)
        await world.broker.consumers[0].assign([other])
        await asyncio.sleep(8)
        assert len(world.transport.sent) == 1
        assert world.committed == 0
        assert world.value("deliveries_in_flight") == 0
        assert world.value("deliveries_held") == 0


async def test_a_rebalance_lets_attempts_end_and_commits_them() -> None:
    async with running(FixedRegistry(subscription(max_in_flight=2))) as world:
        world.transport.answer = lambda *_: (0.7, Response(200))
        for number in range(10):
            world.broker.append(event(number))
        await until(lambda: len(world.transport.sent) == 2)
        await world.broker.consumers[0].assign([])
        assert world.committed == 2
        assert len(world.transport.sent) == 2


async def test_stopping_in_the_middle_of_a_rebalance_still_drains() -> None:
    world = World(FixedRegistry(subscription(max_in_flight=1)))
    world.engine.start()
    world.transport.answer = lambda *_: (0.05, Response(200))
    for number in range(10):
        world.broker.append(event(number))
    await until(lambda: len(world.transport.sent) >= 1)
    await world.engine._events.on_revoked([EVENTS])
    stopping = Tasks().start(world.engine.stop(20), "stop")
    await asyncio.sleep(0.1)
    started = asyncio.get_running_loop().time()
    await world.engine._events.on_assigned({EVENTS: Position(world.committed or 0)})
    await stopping
    assert asyncio.get_running_loop().time() - started < 2
    assert world.committed == 10


async def test_the_time_limit_of_one_rebalance_does_not_end_the_next_one() -> None:
    async with running(FixedRegistry(subscription())) as world:
        await asyncio.sleep(0.1)
        await world.broker.consumers[0].assign([EVENTS])
        await asyncio.sleep(9)
        await world.engine._events.on_revoked([EVENTS])
        await asyncio.sleep(2)
        world.broker.append(event(1))
        await asyncio.sleep(2)
        assert world.transport.sent == []
        await asyncio.sleep(8)
        assert len(world.transport.sent) == 1, "without an assignment, deliveries go on after the limit"


async def test_a_slow_endpoint_holds_a_rebalance_back_for_a_second_only() -> None:
    async with running(FixedRegistry(subscription())) as world:
        world.transport.answer = lambda *_: (14.0, Response(200))
        world.broker.append(event(1))
        await until(lambda: len(world.transport.sent) == 1)
        started = asyncio.get_running_loop().time()
        await world.broker.consumers[0].assign([EVENTS])
        assert asyncio.get_running_loop().time() - started < 1.5
