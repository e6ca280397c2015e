"""Endpoints that are overloaded, and what becomes of what they are owed meanwhile. On virtual time."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.core.netguard import Origin
from dispatcher.core.policy import RetryPolicy
from dispatcher.core.results import Response, Result
from dispatcher.transport.base import Exchange
from tests.fakes import FixedRegistry, subscription
from tests.world import World, accounted, event, now, running, until

pytestmark = [pytest.mark.looptime]

PATIENT = RetryPolicy((30.0,) * 40, 0.0)


class Narrow:
    """An endpoint that takes so many at a time, and says to the rest that they are too many."""

    def __init__(self, world: World, most: int, status: int) -> None:
        self.busy = world.transport.busy
        self.most = most
        self.status = status

    def __call__(self, origin: Origin, _: Exchange) -> tuple[float, Result]:
        return 0.1, Response(200 if self.busy[origin] <= self.most else self.status)


@pytest.mark.parametrize("status", [429, 502, 504])
async def test_an_endpoint_that_says_it_is_overloaded_gets_as_many_at_a_time_as_it_takes(status: int) -> None:
    """It was sent sixteen and takes four: that is no reason to leave it alone altogether."""
    async with running(FixedRegistry(subscription(retry=PATIENT)), max_queue_wait=60.0) as world:
        world.transport.answer = Narrow(world, 4, status)
        for number in range(400):
            world.broker.append(event(number))
        await until(lambda: len(world.transport.sent) > 16, within=1)
        world.transport.peak.clear()
        await until(lambda: world.metrics.delivered == 400, within=120)
        assert max(world.transport.peak.values()) <= 8, "of the window, which had been halved"
        refused = world.metrics.attempts["status", f"{status // 100}xx"]
        assert len(world.transport.sent) == 400 + refused
        assert refused < 12 + 400 * 0.2, "one of a round, now and then"
        assert world.parked() == []
        await until(lambda: world.value("deliveries_in_flight") == 0)
        await accounted(world)


async def test_an_endpoint_that_is_overloaded_even_by_one_at_a_time_is_left_alone() -> None:
    async with running(FixedRegistry(subscription(retry=PATIENT))) as world:
        world.transport.answer = Narrow(world, 0, 429)
        for number in range(400):
            world.broker.append(event(number))
        await until(lambda: world.value("breakers_open", scope="subscription") == 1, within=10)
        assert len(world.transport.sent) < 16 + 8 + 4 + 2 + 10
        assert now() < 3
        await asyncio.sleep(3)
        assert world.value("deliveries_queued") == 0
        world.transport.answer = Narrow(world, 16, 429)
        await until(lambda: world.metrics.delivered == 400, within=1000)
