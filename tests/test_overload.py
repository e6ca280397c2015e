"""Endpoints that are overloaded, and what becomes of what they are owed meanwhile. On virtual time."""

from __future__ import annotations

import asyncio
import gc
import os
from collections import Counter
from random import Random

import pytest

from dispatcher.broker.base import BrokerUnavailable
from dispatcher.core.request.results import Failure, Reason, Response, Result
from dispatcher.core.request.urls import Origin
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.core.subscription.index import Index
from dispatcher.settings.groups import RetrySettings
from dispatcher.transport.base import Exchange
from tests.fakes import FixedRegistry, subscription
from tests.world import (
    EVENTS,
    Queueing,
    World,
    accounted,
    event,
    id_of,
    now,
    publish,
    running,
    sent_ids,
    typed,
    until,
)

pytestmark = [pytest.mark.looptime]

PATIENT = RetryPolicy((30.0,) * 40, 0.0)

LONG = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        "DISPATCHER_TEST_LONG" not in os.environ, reason="takes minutes: DISPATCHER_TEST_LONG=1"
    ),
]


class Narrow:
    """An endpoint that takes so many at a time, and says to the rest that they are too many.

    No two answers take equally long. If they did, those of a round would end at the same moment, and which of them the loop
    calls first, a success or a refusal, would depend on how many timers there are besides.
    """

    def __init__(self, world: World, most: int, status: int, seed: int = 0) -> None:
        self.busy = world.transport.busy
        self.most = most
        self.status = status
        self.random = Random(seed)

    def __call__(self, origin: Origin, _: Exchange) -> tuple[float, Result]:
        seconds = 0.1 * self.random.uniform(0.95, 1.05)
        return seconds, Response(200 if self.busy[origin] <= self.most else self.status)


@pytest.mark.parametrize("status", [429, 502, 504])
async def test_an_endpoint_that_says_it_is_overloaded_gets_as_many_at_a_time_as_it_takes(status: int) -> None:
    """It was sent sixteen and takes four: that is no reason to leave it alone altogether."""
    async with running(
        FixedRegistry(subscription(retry=PATIENT)), retry=RetrySettings(hold_limit=300.0)
    ) as world:
        world.transport.answer = Narrow(world, 4, status)
        for number in range(400):
            world.broker.append(event(number))
        await until(lambda: len(world.transport.sent) > 16, within=1)
        world.transport.peak.clear()
        await until(lambda: world.metrics.delivered == 400, within=120)
        assert max(world.transport.peak.values()) <= 8, "of the window, which had been halved"
        refused = world.metrics.attempts["status", f"{status // 100}xx"]
        assert len(world.transport.sent) == 400 + refused
        # The window climbs from two to five in eleven deliveries; then all that is sent is one too many, until the first
        # refusal comes back: up to five, while the last four of the round are taken.
        assert refused <= 20 + 400 * 5 / 15, "the first two rounds, and then one round in each climb"
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


async def test_an_endpoint_that_asks_for_a_little_time_again_and_again_keeps_nobody_waiting() -> None:
    """Every four seconds one attempt: too few for its breaker, and each wait short enough to be waited for."""
    registry = FixedRegistry(
        subscription(
            "asking", "http://asking.test/", event_types=("test.asking",), max_in_flight=1, retry=PATIENT
        ),
        subscription("well", "http://well.test/", event_types=("test.well",)),
    )
    async with running(registry, max_in_flight=200) as world:
        world.transport.answer = lambda origin, _: (
            0.01,
            Response(503, retry_after="4") if origin.host == "asking.test" else Response(200),
        )
        for number in range(1000):
            world.broker.append(typed(number, "asking"))
        world.broker.append(typed(1000, "well"))
        await until(lambda: world.metrics.delivered == 1, within=5)
        await asyncio.sleep(120)
        writes = Counter(letter["event_id"] for letter in world.parked())
        assert max(writes.values()) <= 4, "for longer each time"
        assert world.value("deliveries_queued") == 0
        world.transport.answer = lambda *_: (0.01, Response(200))
        await until(lambda: world.metrics.delivered == 1001, within=1000)
        await until(lambda: world.value("deliveries_in_flight") == 0)
        await accounted(world)


# Changes meanwhile.


async def test_what_came_of_an_attempt_that_ends_within_a_rebalance_is_written_before_its_commit() -> None:
    """Written after it, it would be sent twice: the next owner reads its event again."""
    async with running(FixedRegistry(subscription(max_in_flight=1, retry=PATIENT))) as world:
        world.transport.answer = lambda *_: (0.1, Response(429, retry_after="300"))
        for number in range(50):
            world.broker.append(event(number))
        await until(lambda: len(world.transport.sent) == 1)
        await world.broker.consumers[0].assign([])
        assert world.committed == 50
        assert Counter(letter["reason"] for letter in world.parked()) == {"retry": 1, "retry_after": 49}
        assert world.value("deliveries_in_flight") == 0


async def test_of_a_partition_that_was_lost_nothing_is_parked_and_nothing_kept() -> None:
    async with running(FixedRegistry(subscription(max_in_flight=1, retry=PATIENT))) as world:
        world.transport.answer = lambda *_: (7.0, Response(429, retry_after="300"))
        for number in range(50):
            world.broker.append(event(number))
        await until(lambda: len(world.transport.sent) == 1)
        await world.broker.consumers[0].assign([])
        assert world.value("deliveries_in_flight") == 1, "the attempt under way"
        assert world.value("deliveries_queued") == 0
        await asyncio.sleep(8)
        assert world.value("deliveries_in_flight") == 0
        assert world.parked() == []
        assert {offset for _, offset in world.broker.commits} == {0}, "reservations, which move nothing"


async def test_what_is_queued_and_parked_for_a_subscription_that_is_deleted_is_dropped() -> None:
    gone = subscription("gone", "http://host.test/gone", retry=PATIENT)
    stays = subscription("stays", "http://host.test/stays", retry=PATIENT)
    registry = FixedRegistry(gone, stays)
    async with running(registry, max_in_flight=300) as world:
        world.transport.answer = lambda *_: (2.0, Response(200))  # eight a second, each
        for number in range(300):
            world.broker.append(event(number))
        await until(lambda: world.metrics.parked["queue_wait"] + world.metrics.parked["cap"] > 100, within=10)
        await until(lambda: world.engine._events.trackers[EVENTS].next == 300)
        assert world.engine._lanes.queued > 40
        registry.index = Index([stays])
        world.transport.sent.clear()
        delivered = world.metrics.delivered
        await until(lambda: world.metrics.deliveries["dropped_deleted"] + world.metrics.delivered == 600, 600)
        paths = Counter(request.split()[1] for _, _, request in world.transport.sent)
        assert paths.keys() == {b"/stays"}
        assert world.metrics.delivered - delivered >= paths[b"/stays"]
        assert world.metrics.deliveries["dropped_deleted"] > 200
        await until(lambda: world.value("deliveries_in_flight") == 0)
        await accounted(world)


async def test_what_is_owed_goes_to_the_new_address_of_a_subscription_that_moved() -> None:
    """Queued, parked, waiting for a retry: none of it minds the breaker of the old address."""
    moving = subscription(url="http://old.test/", retry=RetryPolicy((20.0,) * 9, 0.0))
    registry = FixedRegistry(moving)
    async with running(registry, max_in_flight=300) as world:
        world.transport.answer = lambda *_: (0.5, Response(200))  # 32 a second
        for number in range(500):
            world.broker.append(event(number))
        await until(lambda: world.metrics.parked["queue_wait"] + world.metrics.parked["cap"] > 0, within=10)
        world.transport.answer = lambda *_: (0.5, Response(500))
        await until(lambda: world.value("breakers_open", scope="subscription") == 1, within=10)
        assert len(world.engine._holding) >= 10
        for number in range(500, 510):
            world.broker.append(event(number))
        moved = subscription(url="http://new.test/", retry=moving.retry)
        registry.index = registry.index.replaced(moved)
        world.transport.answer = lambda origin, _: (0.01, Response(200 if origin.host == "new.test" else 500))
        world.transport.sent.clear()
        begin = now()
        parked = len(world.parked())
        await until(lambda: world.value("deliveries_held") == 0, within=25)
        assert now() - begin < 21, "its retries were not put off"
        await until(lambda: world.metrics.delivered == 510, within=300)
        assert {origin.host for _, origin, _ in world.transport.sent} == {"new.test"}
        assert len(world.parked()) <= parked + 500
        await until(lambda: world.value("deliveries_in_flight") == 0)
        await accounted(world)


# Caps and the broker.


async def test_a_slow_host_that_fills_the_cap_gives_up_its_newest_so_that_others_go_on() -> None:
    registry = FixedRegistry(
        subscription("slow", "http://slow.test/", event_types=("test.slow",), retry=PATIENT),
        subscription("well", "http://well.test/", event_types=("test.well",)),
    )
    # The queue's own limit is what would otherwise come first: eight seconds' worth is let wait.
    async with running(registry, max_in_flight=100, max_queue_wait=8.0) as world:
        world.transport.answer = lambda origin, _: (
            2.0 if origin.host == "slow.test" else 0.01,
            Response(200),
        )
        for number in range(300):
            world.broker.append(typed(number, "slow"))
        for number in range(20):
            world.broker.append(typed(1000 + number, "well"))
        await until(lambda: sum(o.host == "well.test" for _, o, _ in world.transport.sent) == 20, within=60)
        assert world.metrics.parked["cap"] > 0
        first = [int(letter["event_id"][4:]) for letter in world.parked() if letter["reason"] == "cap"]
        slow = [int(id_[4:]) for id_ in sent_ids(world) if int(id_[4:]) < 1000]
        assert min(first) > max(number for number in slow if number < min(first)), "the newest first"
        await until(lambda: world.metrics.delivered == 320, within=1000)
        await until(lambda: world.value("deliveries_in_flight") == 0)
        await accounted(world)


async def test_while_the_broker_is_away_what_is_to_be_parked_stays_owed() -> None:
    registry = FixedRegistry(
        subscription("dead", "http://dead.test/", retry=PATIENT), subscription("well", "http://well.test/")
    )
    async with running(registry) as world:
        world.transport.answer = lambda origin, _: (
            0.01,
            Failure(Reason.CONNECT_REFUSED) if origin.host == "dead.test" else Response(200),
        )
        world.broker.produce_errors = [BrokerUnavailable("away")] * 20
        for number in range(200):
            world.broker.append(event(number))
        await until(lambda: world.metrics.delivered == 200, within=10)
        await until(lambda: world.value("breakers_open", scope="host") == 1, within=10)
        assert world.engine.problems() == ["can't write to the broker: away"]
        await asyncio.sleep(5)
        assert not world.committed, "what is not written is owed"
        assert world.parked() == []
        await until(lambda: not world.broker.produce_errors, within=200)
        world.transport.answer = lambda *_: (0.01, Response(200))
        await until(lambda: world.metrics.delivered == 400, within=1000)
        await until(lambda: world.value("deliveries_in_flight") == 0)
        assert world.engine.problems() == []
        first = [
            (letter["subscription_id"], letter["event_id"])
            for letter in world.parked()
            if letter.get("parked") == "1"
        ]
        assert len(first) == len(set(first)) > 150, "written once"
        await accounted(world)


# Afterwards.


def traces() -> Counter[str]:
    """What there is in memory of endpoints."""
    gc.collect()
    names = Counter(type(each).__name__ for each in gc.get_objects())
    return Counter({name: names[name] for name in ("Lane", "Share", "Backpressure", "Breaker", "Throughput")})


@pytest.mark.parametrize("hosts", [1000, pytest.param(10_000, marks=LONG)])
async def test_nothing_is_left_in_memory_of_trouble_that_is_over(hosts: int) -> None:
    before = traces()  # of other tests
    registry = FixedRegistry(
        *(
            subscription(f"s{n}", f"http://h{n}.test/", event_types=(f"test.e{n % 100}",), retry=PATIENT)
            for n in range(hosts)
        )
    )
    async with running(registry, max_in_flight=50_000) as world:
        ill = True

        def answer(origin: Origin, _: Exchange) -> tuple[float, Result]:
            if not ill:
                return 0.01, Response(200)
            number = int(origin.host[1:-5])
            kinds: list[Result] = [
                Response(500),
                Response(429),
                Response(503, retry_after="3"),
                Response(503, retry_after="100"),
                Failure(Reason.CONNECT_REFUSED),
            ]
            return 0.01, kinds[number % 5]

        world.transport.answer = answer
        for number in range(100):
            world.broker.append(typed(number, f"e{number}"))
        await asyncio.sleep(5)
        assert len(world.transport.sent) >= hosts
        assert world.value("lanes") == hosts
        ill = False
        await asyncio.sleep(1000)
        assert world.metrics.delivered == hosts
        assert world.value("lanes") == 0
        assert world.value("deliveries_in_flight") == 0
        assert not world.engine._lanes._watched
        assert not world.engine._holding._held
        assert len(world.engine._timers) == 0
        left = traces()
        assert {name: left[name] - before[name] for name in left if left[name] > before[name]} == {}


@pytest.mark.parametrize(
    ("hosts", "minutes"), [(1, 2), pytest.param(1, 10, marks=LONG), pytest.param(3, 2, marks=LONG)]
)
async def test_hosts_that_are_owed_ten_times_what_they_take_get_everything_oldest_roughly_first(
    hosts: int, minutes: int
) -> None:
    """Each takes 5/s and is owed 50/s; they share the tiers."""
    registry = FixedRegistry(
        *(subscription(f"slow{n}", f"http://slow{n}.test/", retry=PATIENT) for n in range(hosts))
    )
    async with running(registry) as world:
        servers = {f"slow{number}.test": Queueing(5.0) for number in range(hosts)}
        world.transport.answer = lambda origin, exchange: servers[origin.host](origin, exchange)
        count = await publish(world, 50, 60 * minutes)
        limit = 1.5 * count / 5
        while world.metrics.delivered < hosts * count and now() < limit:
            await asyncio.sleep(5)
        took = now()
        await asyncio.sleep(5)
        writes = len(world.parked()) / (hosts * count)
        assert writes < 3
        each = Counter((letter["subscription_id"], letter["event_id"]) for letter in world.parked())
        median = sorted((*each.values(), *[0] * (hosts * count - len(each))))[hosts * count // 2]
        assert median < 2
        displaced = []
        for host in servers:
            ids = [id_of(request) for _, origin, request in world.transport.sent if origin.host == host]
            assert Counter(ids) == {f"evt_{number}": 1 for number in range(count)}
            displaced.append(sum(abs(place - int(id_[4:])) for place, id_ in enumerate(ids)) / count)
        print(
            f"{writes:.2f} writes per delivery, {median} in the median, {took:.0f} s to drain, displaced by {displaced} on average"
        )
        assert max(displaced) < 0.1 * count
        await accounted(world)
