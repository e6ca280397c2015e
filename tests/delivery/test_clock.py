"""A wall clock that somebody sets: what waits neither waits on nor comes early."""

from __future__ import annotations

import pytest

from dispatcher.core.request.results import Response
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.settings.groups import RetrySettings
from tests.delivery.test_retry_reader import FIRST, SECOND, waiting
from tests.fakes import FixedRegistry, MemoryBroker, subscription
from tests.world import World, event, now, running, until

pytestmark = [pytest.mark.looptime]

HOUR = 3600.0
STEPS = pytest.mark.parametrize("step", [-HOUR, HOUR, -10 * 86400.0, 10 * 86400.0])


def patient(*waits: float) -> FixedRegistry:
    return FixedRegistry(subscription(retry=RetryPolicy(waits, 0.0)))


def fails_once(world: World) -> None:
    answers = iter([Response(503)])
    world.transport.answer = lambda *_: (0.0, next(answers, Response(200)))


@STEPS
async def test_a_retry_held_in_memory_keeps_its_time(step: float) -> None:
    async with running(patient(20.0)) as world:
        fails_once(world)
        world.broker.append(event(1))
        await until(lambda: len(world.transport.sent) == 1)
        world.step = step
        await until(lambda: len(world.transport.sent) == 2)
        (first, *_), (second, *_) = world.transport.sent
        assert second - first == pytest.approx(20.0, abs=0.02)


@STEPS
async def test_a_retry_read_from_a_tier_keeps_its_time_also_where_it_goes_through_another_one(
    step: float,
) -> None:
    broker = MemoryBroker()
    waiting(broker, 1, due=300.0, where=SECOND)
    async with running(patient(5.0), broker) as world:
        await until(lambda: world.value("partition_lag", topic=SECOND.topic, partition="0") == 1)
        world.step = step
        await until(lambda: len(world.transport.sent) == 1, within=600)
        assert world.transport.sent[0][0] == pytest.approx(300.0, abs=0.1)
        assert world.written("dispatcher.retry.2m"), "it went through another tier on its way"


async def test_a_clock_set_back_gives_what_waits_unread_in_a_tier_no_more_than_its_own_wait() -> None:
    broker = MemoryBroker()
    async with running(patient(60.0), broker) as world:
        world.step = -HOUR
        waiting(broker, 1, due=45.0, written=0.0, where=FIRST)  # by the clock as it was
        await until(lambda: len(world.transport.sent) == 1, within=600)
        assert world.transport.sent[0][0] == pytest.approx(45.0, abs=1.0)


async def test_an_endpoint_that_fails_is_not_given_up_because_the_clock_is_set() -> None:
    registry = patient(*[10.0] * 20)
    async with running(registry, retry=RetrySettings(disable_after=5 * 86400.0)) as world:
        world.transport.answer = lambda *_: (0.0, Response(500))
        world.broker.append(event(1))
        await until(lambda: len(world.transport.sent) == 2)
        world.step = 10 * 86400.0
        sent = len(world.transport.sent)
        await until(lambda: len(world.transport.sent) >= sent + 5)
        assert registry.disabled == []
        last = world.engine.health("sub_1").last_failure_at
        assert last == pytest.approx(1_000_000 + world.step + now(), abs=30), "told by the clock as it is"
