"""Origins with their limits, pools and rates."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.core.request.results import Response
from dispatcher.core.request.urls import Origin
from dispatcher.core.subscription.model import ClientCertificate
from tests.fakes import FixedRegistry, subscription
from tests.world import event, running, until

pytestmark = [pytest.mark.looptime]


async def test_a_host_gets_no_more_at_a_time_than_its_limit_and_others_do_not_wait_for_it() -> None:
    registry = FixedRegistry(
        subscription("slow", "http://slow.test/", max_in_flight=100),
        subscription("fast", "http://fast.test/", max_in_flight=100),
    )
    async with running(registry, connections_per_host=4, max_queue_wait=3600.0) as world:
        world.transport.answer = lambda origin, _: (
            10.0 if origin.host == "slow.test" else 0.01,
            Response(200),
        )
        for number in range(100):
            world.broker.append(event(number))
        await asyncio.sleep(3)
        sent = [origin.host for _, origin, _ in world.transport.sent]
        assert sent.count("fast.test") == 100
        assert sent.count("slow.test") == 4
        assert world.value("deliveries_queued") == 96
        assert world.transport.peak[Origin("http", "fast.test", 80)] == 4


async def test_lanes_that_fell_silent_are_dropped() -> None:
    registry = FixedRegistry(*(subscription(f"s{n}", f"http://h{n}.test/") for n in range(50)))
    async with running(registry) as world:
        world.broker.append(event(1))
        await until(lambda: world.committed == 1)
        assert world.value("lanes") == 50
        await asyncio.sleep(120)
        assert world.value("lanes") == 0
        # And made anew when there is something for them.
        world.broker.append(event(2))
        await until(lambda: world.committed == 2)
        assert world.value("lanes") == 50
        await asyncio.sleep(120)
        assert world.value("lanes") == 0


async def test_what_goes_to_the_same_origin_goes_by_the_same_pool_until_that_is_dropped() -> None:
    registry = FixedRegistry(
        subscription("a", "http://one.test/a"),
        subscription("b", "http://one.test/b"),
        subscription("c", "http://two.test/"),
    )
    async with running(registry) as world:
        for number in range(5):
            world.broker.append(event(number))
            await until(lambda expected=number + 1: world.committed == expected)  # type: ignore[misc]
        assert [pool.origin.host for pool in world.transport.pools] == ["one.test", "two.test"]
        world.transport.pools[0].dropped = True
        world.broker.append(event(5))
        await until(lambda: world.committed == 6)
        assert [pool.origin.host for pool in world.transport.pools[2:]] == ["one.test"]
        assert len(world.transport.sent) == 18


async def test_what_was_queued_when_its_subscription_got_a_client_certificate_goes_with_it() -> None:
    """And by no pool that was found without one."""
    certificate = ClientCertificate("client.pem")
    registry = FixedRegistry(subscription(max_in_flight=1))
    async with running(registry) as world:
        world.transport.answer = lambda *_: (1.0, Response(200))
        for number in range(3):
            world.broker.append(event(number))
        await until(lambda: len(world.transport.sent) == 1)
        registry.index = registry.index.replaced(subscription(max_in_flight=1, certificate=certificate))
        await until(lambda: world.committed == 3)
        assert [pool.certificate for pool in world.transport.pools] == [None, certificate, certificate]


async def test_a_subscription_gets_no_more_than_its_rate_and_its_neighbour_all_it_can_take() -> None:
    registry = FixedRegistry(
        subscription("limited", "http://endpoint.test/limited", rate_limit=10.0),
        subscription("free", "http://endpoint.test/free"),
    )
    async with running(registry, max_queue_wait=60.0) as world:
        for number in range(100):
            world.broker.append(event(number))
        await until(lambda: world.committed == 100, within=30)
        times = [time for time, _, request in world.transport.sent if b" /limited " in request]
        assert len(times) == 100
        assert times[-1] - times[0] == pytest.approx(9.9, abs=0.2)
        free = [time for time, _, request in world.transport.sent if b" /free " in request]
        assert free[-1] - free[0] < 1
