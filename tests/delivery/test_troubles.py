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


def heard(*, failed: int | None = None, delivered: int | None = None) -> Elsewhere:
    """What others say of `sub`, in Unix ms."""
    found = Elsewhere()
    if failed is not None:
        found.failed["sub"] = failed
    if delivered is not None:
        found.delivered["sub"] = delivered
    return found


async def test_what_another_process_has_delivered_to_since_fails_no_longer() -> None:
    async with running(FixedRegistry(subscription("sub", retry=ONCE))) as world:
        world.transport.answer = lambda *_: (0.5, Response(503))
        world.broker.append(event(1))
        await until(lambda: len(world.dead()) == 1)
        (trouble,) = (await world.engine.report()).troubles
        failed = trouble.last_ms or 0
        await asyncio.sleep(2)
        assert (await world.engine.report(heard(delivered=failed + 1000))).troubles_total == 1, "a moment ago"
        await asyncio.sleep(10)
        assert (await world.engine.report(heard(delivered=failed - 1000))).troubles_total == 1, "before that"
        assert (await world.engine.report(heard(delivered=failed + 1000))).troubles_total == 0
        await asyncio.sleep(100)
        world.broker.append(event(2))
        await until(lambda: len(world.dead()) == 2)
        (trouble,) = (await world.engine.report()).troubles
        assert (trouble.since_ms or 0) >= failed + 100_000, "what fails now is another outage"


async def test_what_waits_here_for_an_endpoint_fails_whatever_another_process_has_delivered() -> None:
    """It alone may not reach the endpoint, and nobody would see that."""
    async with running(FixedRegistry(subscription("sub", retry=RetryPolicy((20.0,) * 30, 0.0)))) as world:
        world.transport.answer = lambda *_: (5.0, Failure(Reason.CONNECT_FAILED, "no way there"))
        world.broker.append(event(1))
        await asyncio.sleep(6)
        since = [(await world.engine.report()).troubles[0].since_ms]
        for _ in range(50):
            await asyncio.sleep(1)
            found = await world.engine.report(heard(delivered=2**53))
            since += [trouble.since_ms for trouble in found.troubles] or [None]
        assert set(since) == {since[0]}


async def test_what_failed_for_the_former_owner_of_an_id_is_not_told_of_the_new_one() -> None:
    registry = FixedRegistry(subscription("sub", retry=ONCE, tenant="a"))
    async with running(registry) as world:
        world.transport.answer = lambda *_: (0.5, Response(503))
        world.broker.append(event(1, tenant="a"))
        await until(lambda: len(world.dead()) == 1)
        assert (await world.engine.report()).troubles_total == 1
        registry.index = registry.index.replaced(subscription("sub", retry=ONCE, tenant="b"))
        await world.engine.report()
        assert (await world.engine.report()).troubles_total == 0
        world.broker.append(event(2, tenant="b"))
        await until(lambda: len(world.dead()) == 2)
        for _ in range(2):
            (trouble,) = (await world.engine.report()).troubles
            assert (trouble.tenant, trouble.attempts) == ("b", 1), "its own failure stays"


async def test_it_says_to_whom_it_has_delivered_after_another_one_failed() -> None:
    async with running(FixedRegistry(subscription("sub", retry=ONCE))) as world:
        answers = [Response(503)]
        world.transport.answer = lambda *_: (0.5, answers[0])
        world.broker.append(event(1))
        await until(lambda: len(world.dead()) == 1)
        (trouble,) = (await world.engine.report()).troubles
        failed = trouble.last_ms or 0
        assert (await world.engine.report(heard(failed=failed))).recovered == {}
        answers[0] = Response(200)
        await asyncio.sleep(1)
        world.broker.append(event(2))
        await until(lambda: world.metrics.delivered == 1)
        found = (await world.engine.report(heard(failed=failed))).recovered
        assert failed < found["sub"] < failed + 100_000
        assert (await world.engine.report(heard(failed=found["sub"] + 1))).recovered == {}


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
