"""What a process says of its deliveries: partitions, what waits, and who is in trouble. On virtual time."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.core.cluster.merge import Elsewhere
from dispatcher.core.request.results import Failure, Reason, Response
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.core.subscription.model import Status
from tests.fakes import FixedRegistry, subscription
from tests.world import event, running, typed, until

pytestmark = [pytest.mark.looptime]

START_MS = 1_000_000_000
ONCE = RetryPolicy((), 0.0)


async def test_where_all_is_well_nobody_is_in_trouble() -> None:
    async with running(FixedRegistry(subscription("well"))) as world:
        for number in range(10):
            world.broker.append(event(number))
        await until(lambda: world.metrics.delivered == 10)
        found = await world.engine.report()
        assert (found.troubles, found.troubles_total) == ((), 0)
        assert found.partitions["events"] == (0,)
        assert (found.queued, found.in_flight, found.held, found.parked) == (0, 0, 0, {})
        assert found.lag["events"] == 0


async def test_a_retry_that_is_held_is_told_with_its_time_and_is_over_with_the_next_success() -> None:
    async with running(FixedRegistry(subscription("sub", retry=RetryPolicy((5.0, 300.0), 0.0)))) as world:
        answers = iter([Response(503), Response(200)])
        world.transport.answer = lambda *_: (0.5, next(answers))
        world.broker.append(event(1))
        await until(lambda: world.value("deliveries_held") == 1)
        (trouble,) = (await world.engine.report()).troubles
        assert (trouble.subscription_id, trouble.tenant, trouble.held, trouble.parked) == ("sub", "*", 1, 0)
        assert (trouble.attempts, trouble.succeeded, trouble.last_result) == (1, 0, "status 503")
        assert trouble.since_ms is not None
        assert trouble.next_ms is not None
        assert START_MS <= trouble.since_ms < trouble.next_ms <= trouble.since_ms + 5000
        assert trouble.oldest_ms is not None
        assert trouble.oldest_ms <= trouble.since_ms
        await until(lambda: world.metrics.delivered == 1)
        assert (await world.engine.report()).troubles == ()


async def test_an_open_breaker_is_told_with_what_is_parked_behind_it() -> None:
    async with running(FixedRegistry(subscription("ill", retry=ONCE))) as world:
        world.transport.answer = lambda *_: (0.1, Response(500))
        for number in range(60):
            world.broker.append(event(number))
        await until(lambda: (world.value("deliveries_parked_waiting", reason="breaker") or 0) > 0)
        found = await world.engine.report()
        (trouble,) = found.troubles
        assert (trouble.breaker, found.breakers) == ("open", {"subscription": 1, "host": 0})
        assert trouble.parked == found.parked["breaker"] > 0
        assert trouble.next_ms is not None
        assert trouble.oldest_ms is not None
        assert found.partitions["dispatcher.retry.parked"] == (0,)


async def test_what_another_process_has_delivered_to_since_fails_no_longer_and_the_other_way_round() -> None:
    async with running(FixedRegistry(subscription("sub", retry=ONCE))) as world:
        answers = [Response(503)]
        world.transport.answer = lambda *_: (0.5, answers[0])
        world.broker.append(event(1))
        await until(lambda: len(world.dead()) == 1)
        (trouble,) = (await world.engine.report()).troubles
        failed = trouble.last_ms or 0
        for at in (failed - 1000, failed + 1000):
            found = await world.engine.report(Elsewhere({"sub": failed}, {"sub": at}))
            assert (found.troubles_total, found.recovered) == (int(at < failed), {})
        await asyncio.sleep(100)
        world.broker.append(event(2))
        await until(lambda: len(world.dead()) == 2)
        (trouble,) = (await world.engine.report()).troubles
        assert (trouble.since_ms or 0) >= failed + 100_000, "what fails now is another outage"
        await world.engine.report(Elsewhere({}, {"sub": failed + 1000}))
        assert (await world.engine.report()).troubles_total == 1, "that was before"
        assert (await world.engine.report(Elsewhere({"sub": failed}, {}))).recovered == {}
        answers[0] = Response(200)
        await asyncio.sleep(1)
        world.broker.append(event(3))
        await until(lambda: world.metrics.delivered == 1)
        later = (trouble.last_ms or 0) + 100_000
        found = await world.engine.report(Elsewhere({"sub": trouble.last_ms or 0, "other": 1}, {}))
        assert found.recovered.keys() == {"sub"}
        assert (trouble.last_ms or 0) < found.recovered["sub"] < later
        assert (await world.engine.report(Elsewhere({"sub": later}, {}))).recovered == {}


async def test_those_that_fail_for_longest_are_named_where_not_all_can_be() -> None:
    registry = FixedRegistry(
        *(
            subscription(f"sub_{name}", f"http://{name}.test/", event_types=(f"test.{name}",), retry=ONCE)
            for name in "abc"
        )
    )
    async with running(registry) as world:
        world.transport.answer = lambda *_: (0.1, Failure(Reason.CONNECT_REFUSED, "nobody listens"))
        for number, name in enumerate("bca"):
            world.broker.append(typed(number, name))
            await asyncio.sleep(5)
        found = await world.engine.report(most=2)
        assert [trouble.subscription_id for trouble in found.troubles] == ["sub_b", "sub_c"]
        assert found.troubles_total == 3
        registry.note_failing("sub_a", 1000.0)  # another replica has seen it fail for days
        found = await world.engine.report(most=2)
        assert [trouble.subscription_id for trouble in found.troubles] == ["sub_a", "sub_b"]
        assert found.troubles[0].since_ms == 1_000_000


async def test_one_that_is_paused_or_disabled_or_gone_is_not_in_trouble() -> None:
    registry = FixedRegistry(
        *(
            subscription(f"sub_{name}", f"http://{name}.test/", event_types=(f"test.{name}",), retry=ONCE)
            for name in "abcd"
        )
    )
    async with running(registry) as world:
        world.transport.answer = lambda *_: (0.1, Response(500))
        for number, name in enumerate("abcd"):
            world.broker.append(typed(number, name))
        await until(lambda: len(world.dead()) == 4)
        assert (await world.engine.report()).troubles_total == 4
        for id_, status, reason in (
            ("sub_a", Status.PAUSED, None),
            ("sub_b", Status.DISABLED, "failing"),
            ("sub_d", Status.DISABLED, "sealed"),
        ):
            found = registry.index.get(id_)
            assert found is not None
            registry.index = registry.index.replaced(found.with_status(status, reason))
        registry.index = registry.index.without("sub_c")
        report = await world.engine.report()
        assert [trouble.subscription_id for trouble in report.troubles] == ["sub_d"]
