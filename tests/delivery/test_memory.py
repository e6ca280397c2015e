"""Memory that is short, and who gives something up then. See also tests/test_fair_shares.py."""

from __future__ import annotations

import pytest

from dispatcher.core.request.results import Response
from dispatcher.core.retry.policy import RetryPolicy
from tests.fakes import FixedRegistry, subscription
from tests.test_fair_shares import PATIENT, never, well
from tests.world import accounted, event, now, running, until

pytestmark = [pytest.mark.looptime]


async def test_many_subscriptions_with_a_little_queued_each_do_not_fill_the_memory() -> None:
    """No lane is slow or full: of each one attempt hangs, and one delivery waits."""
    registry = FixedRegistry(
        *(
            subscription(
                f"a_{number}",
                f"http://h{number}.test/hang",
                tenant="a",
                timeout=600.0,
                max_in_flight=1,
                retry=PATIENT,
            )
            for number in range(60)
        ),
        well("b"),
    )
    async with running(registry, max_in_flight=100) as world:
        world.transport.answer = never
        for number in range(2):
            world.broker.append(event(number, tenant="a"))
        for number in range(20):
            world.broker.append(event(1000 + number, tenant="b"))
        await until(lambda: world.metrics.delivered == 20, within=10)


async def test_what_fails_at_once_and_waits_for_its_retry_does_not_fill_the_memory() -> None:
    registry = FixedRegistry(
        *(
            subscription(
                f"a_{number}",
                f"http://bad{number}.test/bad",
                tenant="a",
                retry=RetryPolicy((25.0,) * 9, 0.0),
            )
            for number in range(50)
        ),
        well("b"),
    )
    async with running(registry, max_in_flight=200, breaker_threshold=0.0) as world:
        world.transport.answer = lambda _, exchange: (
            0.01,
            Response(500 if b" /bad " in exchange.request else 200),
        )
        for number in range(20):
            world.broker.append(event(number, tenant="a"))
        for number in range(20):
            world.broker.append(event(1000 + number, tenant="b"))
        await until(lambda: world.metrics.delivered == 20, within=10)
        assert {each["reason"] for each in world.parked()} <= {"cap", "fair_share"}
        assert all("due_ms" in each for each in world.parked()), "they wait in a tier, by their time"
        assert len(world.parked()) > 100
        world.transport.answer = lambda *_: (0.01, Response(200))
        await until(lambda: world.metrics.delivered == 20 + 50 * 20, within=600)
        await until(lambda: world.value("deliveries_in_flight") == 0)
        await accounted(world)


async def test_a_tenant_alone_is_not_parked_while_it_moves() -> None:
    """The caps are full again and again, and nobody is short."""
    registry = FixedRegistry(well("a", max_in_flight=28), well("b", "http://other.test/"))
    async with running(registry, max_in_flight=400) as world:
        world.transport.answer = lambda *_: (0.01, Response(200))
        for number in range(4000):
            world.broker.append(event(number, tenant="a"))
        await until(lambda: world.metrics.delivered == 4000, within=10)
        assert world.parked() == []
        assert now() < 3
