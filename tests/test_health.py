"""How deliveries to a subscription go, as the engine tells it. On virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from dispatcher.core.endpoint.health import Health
from dispatcher.core.request.results import Failure, Reason, Response, Result
from dispatcher.core.retry.policy import RetryPolicy
from tests.fakes import FixedRegistry, subscription
from tests.world import event, running, until

pytestmark = [pytest.mark.looptime]

ONCE = RetryPolicy((), 0.0)
START = 1_000_000.0  # Unix time when the loop's is 0


def typed(number: int, kind: str) -> bytes:
    return f'{{"id": "evt_{number}", "type": "test.{kind}"}}'.encode()


async def test_an_endpoint_that_is_well_is_shown_as_well() -> None:
    async with running(FixedRegistry(subscription("well"))) as world:
        world.transport.answer = lambda *_: (0.25, Response(200))
        for number in range(10):
            world.broker.append(event(number))
        await until(lambda: world.metrics.delivered == 10)
        health = world.engine.health("well")
        assert health.success_rate == 1.0
        assert health.latency_mean == pytest.approx(0.25, abs=0.01)
        assert health.latency_p95 == pytest.approx(0.25, abs=0.01)
        assert (health.breaker, health.queued, health.in_flight) == ("closed", 0, 0)
        assert (health.last_failure, health.last_failure_at) == (None, None)


async def test_an_endpoint_that_fails_is_shown_as_failing_with_its_breaker() -> None:
    async with running(FixedRegistry(subscription("ill", retry=ONCE))) as world:
        world.transport.answer = lambda *_: (0.1, Response(500))
        for number in range(40):
            world.broker.append(event(number))
        await until(lambda: len(world.parked()) > 0)
        health = world.engine.health("ill")
        assert (health.success_rate, health.latency_mean, health.latency_p95) == (0.0, None, None)
        assert health.breaker == "open"
        assert health.last_failure == "status 500"
        assert health.last_failure_at is not None
        assert START < health.last_failure_at < START + 60


async def test_a_host_that_refuses_shows_its_breaker_at_each_of_its_subscriptions() -> None:
    registry = FixedRegistry(
        subscription("first", "http://down.test/a", event_types=("test.a",), retry=ONCE),
        subscription("second", "http://down.test/b", event_types=("test.b",), retry=ONCE),
    )
    async with running(registry) as world:
        world.transport.answer = lambda *_: (0.1, Failure(Reason.CONNECT_REFUSED, "nobody listens"))
        for number in range(40):
            world.broker.append(typed(number, "a"))
        await until(lambda: len(world.parked()) > 0)
        assert world.engine.health("first").last_failure == "connect_refused: nobody listens"
        second = world.engine.health("second")
        assert (second.breaker, second.success_rate, second.last_failure) == ("open", None, None)


async def test_subscriptions_that_take_turns_on_a_host_are_told_apart() -> None:
    registry = FixedRegistry(
        subscription("quick", "http://one.test/a", event_types=("test.a",)),
        subscription("slow", "http://one.test/b", event_types=("test.b",)),
    )
    async with running(registry) as world:
        world.transport.answer = lambda _, exchange: (
            0.1 if b"POST /a " in exchange.request else 0.4,
            Response(200),
        )
        for number in range(20):
            world.broker.append(typed(number, "ab"[number % 2]))
        await until(lambda: world.metrics.delivered == 20)
        assert world.engine.health("quick").latency_mean == pytest.approx(0.1, abs=0.01)
        assert world.engine.health("slow").latency_mean == pytest.approx(0.4, abs=0.01)


async def test_what_waits_and_what_is_under_way_are_told_apart() -> None:
    async with running(FixedRegistry(subscription("slow", max_in_flight=2))) as world:
        world.transport.answer = lambda *_: None
        for number in range(7):
            world.broker.append(event(number))
        await until(lambda: world.engine.health("slow").queued == 5)
        assert world.engine.health("slow").in_flight == 2


async def test_what_the_deployments_own_proxy_stopped_says_nothing_of_the_endpoint() -> None:
    async with running(FixedRegistry(subscription("sub"))) as world:
        answers: Iterator[Result] = iter([Failure(Reason.PROXY_ERROR, "502"), Response(200)])
        world.transport.answer = lambda *_: (0.1, next(answers))
        world.broker.append(event(1))
        await until(lambda: world.metrics.delivered == 1)
        health = world.engine.health("sub")
        assert (health.success_rate, health.last_failure) == (1.0, None)


async def test_of_a_subscription_that_nothing_is_known_of_nothing_is_said() -> None:
    async with running(FixedRegistry(subscription("silent"))) as world:
        assert world.engine.health("silent") == Health()
        assert world.engine.health("unknown") == Health()


async def test_who_takes_an_id_over_learns_nothing_of_its_former_owner() -> None:
    registry = FixedRegistry(subscription("sub", tenant="*", retry=ONCE))
    async with running(registry) as world:
        world.transport.answer = lambda *_: (0.1, Response(404))
        world.broker.append(event(1))
        await until(lambda: len(world.dead()) == 1)
        assert world.engine.health("sub").last_failure == "status 404"
        for tenant in ("acme", "*"):  # and it is forgotten, not hidden
            registry.index = registry.index.replaced(subscription("sub", tenant=tenant))
            health = world.engine.health("sub")
            assert (health.success_rate, health.last_failure, health.last_failure_at) == (None, None, None)


async def test_minutes_of_nothing_but_failures_are_noted_and_one_success_strikes_the_note_out() -> None:
    registry = FixedRegistry(subscription("sub", retry=RetryPolicy((60.0,) * 20, 0.0)))
    async with running(registry, breaker_threshold=0.0) as world:
        world.transport.answer = lambda *_: (0.1, Response(500))
        world.broker.append(event(1))
        await until(lambda: bool(registry.failures), within=1000)
        assert len(world.transport.sent) == 11
        assert registry.failures["sub"] == pytest.approx(START, abs=10)
        world.transport.answer = lambda *_: (0.1, Response(200))
        await until(lambda: world.metrics.delivered == 1, within=200)
        assert registry.failures == {}


async def test_a_success_here_strikes_out_what_another_replica_noted() -> None:
    registry = FixedRegistry(subscription("sub"))
    async with running(registry) as world:
        world.broker.append(event(1))
        await until(lambda: world.metrics.delivered == 1)
        registry.note_failing("sub", START - 3600)
        for number in range(20):
            await asyncio.sleep(5)
            world.broker.append(event(2 + number))
        await until(lambda: world.metrics.delivered == 21)
        assert registry.failures == {}
