"""Endpoints that can't hurt each other: breakers, demands, parking. On virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from dispatcher.core.request.results import Failure, Reason, Response, Result
from dispatcher.core.request.urls import Origin
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.transport.base import Exchange
from tests.fakes import FixedRegistry, MemoryBroker, subscription
from tests.world import Queueing, accounted, event, now, publish, running, sent_ids, typed, until

pytestmark = [pytest.mark.looptime]

PATIENT = RetryPolicy((30.0,) * 40, 0.0)
REFUSED = Failure(Reason.CONNECT_REFUSED, "nobody listens")


# Too slow for what it is owed.


async def test_a_host_owed_ten_times_what_it_takes_gets_everything_in_order_for_few_writes() -> None:
    """5/s, owed 50/s: 3,000 deliveries a minute, of which each minute's take ten."""
    registry = FixedRegistry(subscription("slow", "http://slow.test/", retry=PATIENT))
    broker = MemoryBroker()
    async with running(registry, broker) as world:
        world.transport.answer = Queueing(5.0)
        count = await publish(world, 50, 60)
        while world.metrics.delivered < count and now() < 20_000:
            await asyncio.sleep(5)
        took = now()
        await until(lambda: world.value("deliveries_in_flight") == 0)
        assert Counter(sent_ids(world)) == {f"evt_{number}": 1 for number in range(count)}
        writes = len(world.parked()) / count
        print(f"{writes:.2f} writes per delivery, done after {took:.0f} s, {dict(world.metrics.parked)}")
        assert writes < 3
        assert took < 1.5 * count / 5
        # The order in which they arrived, against the order in which they came.
        late = [abs(place - int(id_[4:])) for place, id_ in enumerate(sent_ids(world))]
        print(f"displaced by {sum(late) / count:.0f} places on average")


async def test_a_busy_but_fast_host_is_never_parked() -> None:
    async with running(FixedRegistry(subscription(max_in_flight=32)), max_in_flight=4000) as world:
        world.transport.answer = Queueing(2000.0)
        for number in range(6000):
            world.broker.append(event(number))
        await until(lambda: world.metrics.delivered == 6000)
        assert world.parked() == []
        assert len(world.transport.sent) == 6000


async def test_what_waits_in_memory_for_a_retry_does_not_keep_a_cap_full() -> None:
    """Half of everything fails: no breaker opens, but each failure waits five seconds in memory."""
    registry = FixedRegistry(
        subscription("flaky", "http://flaky.test/", event_types=("test.flaky",), retry=PATIENT),
        subscription("well", "http://well.test/", event_types=("test.well",)),
    )
    failed = 0

    def answer(origin: Origin, _: Exchange) -> tuple[float, Result]:
        nonlocal failed
        failed += origin.host == "flaky.test"
        return 0.001, Response(500 if origin.host == "flaky.test" and failed % 2 else 200)

    async with running(registry, max_in_flight=200) as world:
        world.transport.answer = answer
        for number in range(2000):
            world.broker.append(typed(number, "flaky"))
        world.broker.append(typed(0, "well"))
        await until(lambda: any(o.host == "well.test" for _, o, _ in world.transport.sent), within=20)
        assert world.metrics.parked["cap"] > 0
        await until(lambda: world.metrics.delivered == 2001, within=2000)
        await until(lambda: world.value("deliveries_in_flight") == 0)
        await accounted(world)


async def test_a_flood_to_one_subscription_parks_nothing_of_its_neighbours_on_the_same_host() -> None:
    registry = FixedRegistry(
        subscription("flood", "http://host.test/a", event_types=("test.flood",)),
        subscription("calm", "http://host.test/b", event_types=("test.calm",)),
    )
    async with running(registry, connections_per_host=2, max_in_flight=400) as world:
        world.transport.answer = lambda *_: (0.2, Response(200))  # 10/s together
        for number in range(1000):
            world.broker.append(typed(number, "flood"))
        await asyncio.sleep(5)
        for number in range(10):
            world.broker.append(typed(number, "calm"))
            await asyncio.sleep(1)
        await asyncio.sleep(1)
        assert {letter["subscription_id"] for letter in world.parked()} == {"flood"}
        calm = [request for _, _, request in world.transport.sent if b" /b " in request]
        assert len(calm) == 10


async def test_a_rate_limit_parks_what_it_cannot_send_soon_and_sends_everything_in_the_end() -> None:
    async with running(FixedRegistry(subscription(rate_limit=2.0))) as world:
        for number in range(200):
            world.broker.append(event(number))
        while world.metrics.delivered < 200 and now() < 1000:
            await asyncio.sleep(1)
        assert now() < 200
        await until(lambda: world.value("deliveries_in_flight") == 0)
        await accounted(world)
        assert len(world.parked()) < 300
        times = [time for time, _, _ in world.transport.sent]
        assert all(times[number + 20] - times[number] > 9.4 for number in range(180))


# Failing.


async def test_a_dead_host_is_left_alone_and_costs_no_attempts_of_the_schedule() -> None:
    async with running(FixedRegistry(subscription(retry=RetryPolicy((5.0, 10.0), 0.0)))) as world:
        world.transport.answer = lambda *_: (0.01, REFUSED)
        for number in range(100):
            world.broker.append(event(number))
        await until(lambda: world.value("breakers_open", scope="host") == 1)
        assert len(world.transport.sent) <= 16 + 10, "those that were under way"
        await asyncio.sleep(3)
        assert world.value("deliveries_queued") == 0
        assert {letter["reason"] for letter in world.parked()} == {"breaker"}
        untouched = [letter for letter in world.parked() if letter["attempt"] == "0"]
        assert len(untouched) >= 70
        world.transport.answer = lambda *_: (0.01, Response(200))
        await until(lambda: world.metrics.delivered == 100, within=1000)
        await until(lambda: world.value("deliveries_in_flight") == 0)
        assert world.value("breakers_open", scope="host") == 0
        assert world.dead() == []
        await accounted(world)


async def test_an_endpoint_that_comes_back_is_met_by_one_then_by_few_then_by_all() -> None:
    async with running(FixedRegistry(subscription(retry=PATIENT))) as world:
        world.transport.answer = lambda *_: (0.1, Response(500))
        await publish(world, 50, 2)
        await until(lambda: world.value("breakers_open", scope="subscription") == 1)
        await asyncio.sleep(1)
        world.transport.answer = lambda *_: (0.5, Response(200))
        world.transport.sent.clear()
        world.transport.peak.clear()
        await until(lambda: len(world.transport.sent) >= 1, within=60)
        begin = world.transport.sent[0][0]
        for number in range(100):
            world.broker.append(event(1000 + number))
        await until(lambda: world.metrics.delivered >= 100, within=300)
        rounds = [
            sum(begin + at <= time < begin + at + 0.5 for time, _, _ in world.transport.sent)
            for at in (0, 0.5, 1, 1.5)
        ]
        assert rounds[0] == 1, "the probe"
        assert rounds == sorted(rounds)
        assert rounds[2] <= 4
        assert rounds[3] <= 8
        await until(lambda: world.metrics.delivered == 200, within=2000)
        assert max(world.transport.peak.values()) <= 16


async def test_an_endpoint_that_hung_gets_what_it_missed_as_soon_as_it_is_well() -> None:
    """While its breaker probed, one attempt at a time ended in a timeout: that is no pace to make appointments by."""
    async with running(FixedRegistry(subscription(retry=PATIENT))) as world:
        hung_until = 90.0
        world.transport.answer = lambda *_: (
            (15.0, Failure(Reason.TIMEOUT)) if now() < hung_until else (0.05, Response(200))
        )
        count = await publish(world, 50, 120)
        await until(lambda: world.metrics.delivered == count, within=600)
        assert max(int(letter["parked"]) for letter in world.parked() if letter["reason"] == "breaker") <= 2
        await until(lambda: world.value("deliveries_in_flight") == 0)
        await accounted(world)


async def test_the_neighbours_of_a_failing_subscription_on_the_same_host_notice_nothing() -> None:
    registry = FixedRegistry(
        subscription("failing", "http://host.test/bad"), subscription("well", "http://host.test/good")
    )
    async with running(registry) as world:
        world.transport.answer = lambda _, exchange: (
            0.01,
            Response(500 if b" /bad " in exchange.request else 200),
        )
        for number in range(200):
            world.broker.append(event(number))
        await asyncio.sleep(5)
        assert world.value("breakers_open", scope="subscription") == 1
        assert world.value("breakers_open", scope="host") == 0
        assert world.metrics.delivered == 200
        assert {letter["subscription_id"] for letter in world.parked()} == {"failing"}


async def test_what_is_parked_is_written_once_however_long_its_endpoint_fails() -> None:
    async with running(FixedRegistry(subscription(retry=PATIENT))) as world:
        world.transport.answer = lambda *_: (0.01, Response(500))
        for number in range(50):
            world.broker.append(event(number))
        await asyncio.sleep(200)
        untouched = Counter(letter["event_id"] for letter in world.parked() if letter["attempt"] == "0")
        assert len(untouched) >= 20
        assert set(untouched.values()) == {1}


async def test_no_breaker_where_it_is_switched_off() -> None:
    async with running(FixedRegistry(subscription()), breaker_threshold=0.0) as world:
        world.transport.answer = lambda *_: (0.01, Response(500))
        for number in range(50):
            world.broker.append(event(number))
        await until(lambda: len(world.transport.sent) == 50)
        await asyncio.sleep(1)
        assert world.value("breakers_open", scope="subscription") == 0
        assert world.parked() == []


async def test_the_deployments_own_proxy_opens_no_breaker() -> None:
    async with running(FixedRegistry(subscription())) as world:
        world.transport.answer = lambda *_: (0.01, Failure(Reason.PROXY_ERROR))
        for number in range(50):
            world.broker.append(event(number))
        await asyncio.sleep(30)
        assert len(world.transport.sent) >= 150
        assert world.parked() == []


# Asking for time.


async def test_a_short_retry_after_stops_the_subscription_and_parks_nothing() -> None:
    async with running(FixedRegistry(subscription(max_in_flight=2))) as world:
        answers = iter([Response(503, retry_after="3"), Response(503, retry_after="3")])
        world.transport.answer = lambda *_: (0.1, next(answers, Response(200)))
        for number in range(20):
            world.broker.append(event(number))
        await until(lambda: world.metrics.delivered == 20, within=30)
        times = [time for time, _, _ in world.transport.sent]
        assert times[2] - times[1] == pytest.approx(3.1, abs=0.05)
        assert world.parked() == []


async def test_a_long_retry_after_parks_the_others_until_then() -> None:
    registry = FixedRegistry(
        subscription("asking", "http://host.test/a", max_in_flight=1),
        subscription("other", "http://host.test/b"),
    )
    async with running(registry) as world:
        world.transport.answer = lambda _, exchange: (
            0.1,
            Response(429, retry_after="300") if b" /a " in exchange.request else Response(200),
        )
        for number in range(50):
            world.broker.append(event(number))
        await until(lambda: world.committed == 50, within=10)
        assert sum(b" /a " in request for _, _, request in world.transport.sent) == 1
        assert sum(b" /b " in request for _, _, request in world.transport.sent) == 50
        assert Counter(letter["reason"] for letter in world.parked()) == {"retry_after": 49, "retry": 1}
        for number in range(50, 60):
            world.broker.append(event(number))
        await until(lambda: world.committed == 60, within=10)
        assert world.metrics.parked["retry_after"] == 59
        world.transport.sent.clear()
        world.transport.answer = lambda *_: (0.1, Response(200))
        await until(lambda: world.metrics.delivered == 120, within=1000)
        times = [time for time, _, _ in world.transport.sent]
        assert min(times) >= 300.0
        assert max(times) < 340.0
        assert [letter["reason"] for letter in world.parked()].count("retry_after") == 59, "one write each"
        await until(lambda: world.value("deliveries_in_flight") == 0)
        await accounted(world)
