"""Giving a subscription up after nothing but failures, and what becomes of what it was owed. On virtual time."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.core.request.results import Failure, Reason, Response, Result
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.core.subscription.model import Status
from dispatcher.settings.groups import RetrySettings
from tests.fakes import FixedRegistry, subscription
from tests.world import World, event, running, until

pytestmark = [pytest.mark.looptime]

START = 1_000_000.0  # Unix time when the loop's is 0
AFTER = 120.0
RETRY = RetrySettings(disable_after=AFTER)
PATIENT = RetryPolicy((10.0,) * 100, 0.0)
REFUSED = Failure(Reason.CONNECT_REFUSED, "nobody listens")


def now() -> float:
    return asyncio.get_running_loop().time()


async def settled(world: World, owed: int, within: float = 60.0) -> None:
    """So many dead letters are written, and everything read is committed."""
    await until(lambda: len(world.dead()) == owed, within)
    await until(lambda: world.value("deliveries_in_flight") == 0)
    logs = {p: len(log) for p, log in world.broker.log.items() if log and p.topic != "dispatcher.dead"}
    await until(lambda: all(world.broker.committed.get(p) == length for p, length in logs.items()))


@pytest.mark.parametrize("result", [Response(404), REFUSED])
async def test_after_so_long_of_nothing_but_failures_it_is_disabled(result: Result) -> None:
    registry = FixedRegistry(subscription(retry=PATIENT))
    async with running(registry, retry=RETRY) as world:
        world.transport.answer = lambda *_: (0.1, result)
        world.broker.append(event(1))
        await until(lambda: bool(registry.disabled), within=200)
        assert registry.disabled == [("sub_1", "failing")]
        assert AFTER <= now() <= AFTER + 30
        assert registry.failures["sub_1"] == pytest.approx(START, abs=10)
        # What was promised is kept, with how it went; what comes now is not promised to anybody.
        sent = len(world.transport.sent)
        world.broker.append(event(2))
        await settled(world, 1, within=200)
        [letter] = world.dead()
        assert (letter["reason"], letter["event_id"]) == ("disabled", "evt_1")
        assert letter["attempt"] == str(sent)
        assert letter["last_result"] in letter["history"]
        assert world.value("deliveries_total", outcome="dropped_disabled") == 1
        assert world.value("dead_letters_total", reason="disabled") == 1
        assert [given[2] for given in world.given_up] == ["disabled"]
        assert len(world.transport.sent) == sent


@pytest.mark.parametrize("never", [None, 0.0])
async def test_never_means_never(never: float | None) -> None:
    registry = FixedRegistry(subscription(retry=PATIENT))
    registry.note_failing("sub_1", START - 100 * 86400)
    async with running(registry, retry=RetrySettings(disable_after=never)) as world:
        world.transport.answer = lambda *_: (0.1, Response(500))
        world.broker.append(event(1))
        await asyncio.sleep(150)
        assert len(world.transport.sent) > 10
        assert registry.disabled == []


async def test_one_success_in_time_begins_it_anew() -> None:
    registry = FixedRegistry(subscription(retry=PATIENT))
    async with running(registry, retry=RETRY) as world:
        world.transport.answer = lambda *_: (0.1, Response(200 if 60 < now() < 75 else 500))
        world.broker.append(event(1))
        await asyncio.sleep(80)
        assert world.metrics.delivered == 1
        assert registry.failures == {}
        world.broker.append(event(2))
        await asyncio.sleep(AFTER - 20)
        assert registry.disabled == []
        await until(lambda: bool(registry.disabled), within=60)
        assert registry.failures["sub_1"] == pytest.approx(START + 80, abs=5)


async def test_the_time_before_a_restart_counts_once_this_process_has_seen_for_itself() -> None:
    registry = FixedRegistry(subscription(retry=PATIENT))
    registry.note_failing("sub_1", START - 5 * 86400)
    async with running(registry, retry=RETRY, breaker_threshold=0.0) as world:
        world.transport.answer = lambda *_: (0.1, Response(500))
        world.broker.append(event(1))
        await asyncio.sleep(60)
        assert len(world.transport.sent) > 3
        assert registry.disabled == []  # it may have been a mishap, after a silence
        await until(lambda: bool(registry.disabled), within=100)
        assert registry.disabled == [("sub_1", "failing")]


async def test_another_replicas_success_begins_it_anew() -> None:
    registry = FixedRegistry(subscription(retry=PATIENT))
    registry.note_failing("sub_1", START - 10)
    async with running(registry, retry=RETRY) as world:
        world.transport.answer = lambda *_: (0.1, Response(500))
        world.broker.append(event(1))
        await asyncio.sleep(50)
        registry.note_recovered("sub_1")  # as the topic would bring it
        await asyncio.sleep(AFTER - 20)
        assert registry.disabled == []
        await until(lambda: bool(registry.disabled), within=60)
        assert registry.failures["sub_1"] == pytest.approx(START + 55, abs=10)


async def test_what_the_deployment_itself_has_broken_disables_nobody() -> None:
    registry = FixedRegistry(subscription(retry=PATIENT))
    async with running(registry, retry=RetrySettings(disable_after=10.0)) as world:
        world.transport.answer = lambda *_: (0.1, Failure(Reason.PROXY_ERROR, "502"))
        world.broker.append(event(1))
        await asyncio.sleep(120)
        assert len(world.transport.sent) > 10
        assert (registry.disabled, registry.failures) == ([], {})


@pytest.mark.parametrize(
    ("reason", "written"), [("failing", "disabled"), ("gone", "gone"), ("by hand", "disabled")]
)
async def test_what_waits_anywhere_is_dead_lettered_once_it_is_disabled(reason: str, written: str) -> None:
    """In the lane, in memory for its retry, and in a retry topic."""
    registry = FixedRegistry(subscription(max_in_flight=1, retry=RetryPolicy((20.0, 60.0), 0.0)))
    async with running(registry, breaker_threshold=0.0) as world:
        world.transport.answer = lambda *_: (0.1, Response(500))
        world.broker.append(event(0))
        await until(lambda: bool(world.written("dispatcher.retry.30s")), within=60)
        world.broker.append(event(1))
        await until(lambda: world.value("deliveries_held") == 1)
        world.transport.answer = lambda *_: (5.0, Response(200))
        for number in range(2, 6):
            world.broker.append(event(number))
        await until(lambda: world.value("deliveries_queued") == 3)
        registry.disable("sub_1", reason)
        await settled(world, 5, within=1000)
        assert {letter["event_id"] for letter in world.dead()} == {f"evt_{n}" for n in (0, 1, 3, 4, 5)}
        assert {letter["reason"] for letter in world.dead()} == {written}
        tried = {letter["event_id"]: letter.get("history") for letter in world.dead()}
        assert tried["evt_0"] is not None
        assert tried["evt_3"] is None
        assert world.metrics.delivered == 1  # what was under way


async def test_what_comes_for_a_disabled_one_is_dropped_also_while_its_breaker_is_open() -> None:
    registry = FixedRegistry(subscription(retry=RetryPolicy((), 0.0)))
    async with running(registry) as world:
        world.transport.answer = lambda *_: (0.1, Response(500))
        for number in range(40):
            world.broker.append(event(number))
        await until(lambda: len(world.parked()) > 0)
        await until(lambda: len(world.parked()) + len(world.dead()) == 40)
        registry.disable("sub_1", "failing")
        parked = len(world.parked())
        for number in range(40, 50):
            world.broker.append(event(number))
        await until(lambda: world.value("deliveries_total", outcome="dropped_disabled") == 10)
        assert len(world.parked()) == parked
        await settled(world, 40, within=1000)


@pytest.mark.parametrize("status", [Status.PAUSED, Status.PENDING])
async def test_what_a_paused_one_was_owed_is_kept_for_it(status: Status) -> None:
    active = subscription(retry=RetryPolicy((20.0,), 0.0))
    registry = FixedRegistry(active)
    async with running(registry) as world:
        world.transport.answer = lambda *_: (0.1, Response(500))
        world.broker.append(event(1))
        await until(lambda: world.value("deliveries_held") == 1)
        registry.index = registry.index.replaced(subscription(status=status))
        await until(lambda: len(world.parked()) == 1)
        assert world.value("deliveries_total", outcome=f"dropped_{status.value}") == 0
        world.transport.answer = lambda *_: (0.1, Response(200))
        registry.index = registry.index.replaced(active)
        await until(lambda: world.metrics.delivered == 1)
