"""The data path on virtual time, between a broker and a transport that do as they are told."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from dispatcher.broker.base import (
    BrokerUnavailable,
    CommitRefused,
    MetadataTooLarge,
    TopicPartition,
)
from dispatcher.core.commit.note import pack, read_note
from dispatcher.core.request.results import Response, Result
from dispatcher.core.request.urls import Origin
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.core.subscription.index import Index
from dispatcher.core.subscription.model import Status
from dispatcher.delivery import engine
from dispatcher.transport.base import Exchange
from tests.fakes import FixedRegistry, MemoryBroker, subscription
from tests.world import EVENTS, World, event, now, running, sent_ids, until

pytestmark = [pytest.mark.looptime]


async def test_an_event_reaches_every_subscription_that_wants_it_and_its_offset_is_committed() -> None:
    registry = FixedRegistry(
        subscription("a"),
        subscription("b", "http://other.test/"),
        subscription("c", event_types=("else.*",)),
    )
    async with running(registry) as world:
        world.broker.append(event(1))
        await until(lambda: world.committed == 1)
        assert sorted(origin.host for _, origin, _ in world.transport.sent) == ["endpoint.test", "other.test"]
        request = world.transport.sent[0][2]
        assert b"webhook-id: evt_1\r\n" in request
        assert request.endswith(event(1))
        assert world.value("deliveries_total", outcome="delivered") == 2
        assert world.value("attempts_total", outcome="delivered", code_class="2xx") == 2
        assert world.value("deliveries_in_flight") == 0
        assert world.value("deliveries_in_flight_bytes") == 0


async def test_deliveries_are_behind_while_they_are_queued_or_wait_for_a_loop_that_is_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = 0.0
    clock = SimpleNamespace(perf_counter=lambda: now() * (1 + slow), time=time.time)
    monkeypatch.setattr(engine, "time", clock)
    async with running(FixedRegistry(subscription(max_in_flight=2))) as world:
        world.transport.answer = lambda *_: (1.0, Response(200))
        await asyncio.sleep(1)
        assert not world.engine.behind()
        for number in range(4):
            world.broker.append(event(number))
        await until(lambda: len(world.transport.sent) == 2)
        assert world.engine.behind(), "two are queued"
        await until(lambda: world.metrics.delivered == 2)
        await asyncio.sleep(0.2)
        assert not world.engine.behind(), "two are under way, and nothing is queued"
        slow = 1.0  # what should take a tenth of a second takes two
        await asyncio.sleep(0.2)
        assert world.engine.behind()
        await until(lambda: world.metrics.delivered == 4)
        await asyncio.sleep(0.3)
        assert not world.engine.behind(), "nobody waits for the loop, however late it is"


def RetryPolicyOf(*waits: float) -> Any:  # noqa: N802 - reads as the type it makes
    from dispatcher.core.retry.policy import RetryPolicy  # noqa: PLC0415 - beside its only use

    return RetryPolicy(waits, 0.0)


async def test_a_partition_that_somebody_else_took_further_is_read_from_there() -> None:
    async with running(FixedRegistry(subscription())) as world:
        world.transport.answer = lambda *_: (0.001, Response(500))
        for number in range(3):
            world.broker.append(event(number))
        await until(lambda: len(world.transport.sent) == 3)
        await world.broker.consumers[0].assign([])
        for number in range(3, 8):
            world.broker.append(event(number))
        world.broker.committed[EVENTS] = 6
        world.transport.answer = lambda *_: (0.001, Response(200))
        await world.broker.consumers[0].assign([EVENTS])
        await until(lambda: world.committed == 8)
        assert len(world.transport.sent) == 5


async def test_a_refused_or_failed_commit_loses_nothing() -> None:
    async with running(FixedRegistry(subscription())) as world:
        await until(lambda: bool(world.broker.consumers) and world.engine._events.assigned)
        world.broker.commit_errors = [CommitRefused("rebalancing"), BrokerUnavailable("away")]
        world.broker.append(event(1))
        await until(lambda: world.committed == 1)
        assert world.value("commits_total", result="refused") == 1
        assert world.value("commits_total", result="failed") == 1
        assert world.value("commits_total", result="ok") == 1


async def test_stopping_finishes_what_is_queued_and_commits_it() -> None:
    world = World(FixedRegistry(subscription(max_in_flight=2)))
    world.engine.start()
    world.transport.answer = lambda *_: (0.5, Response(200))
    for number in range(20):
        world.broker.append(event(number))
    await until(lambda: len(world.transport.sent) >= 2)
    await world.engine.stop(drain=20)
    assert world.committed == 20
    assert world.broker.consumers[0].stopped


async def test_stopping_does_not_wait_for_what_takes_longer_than_the_drain() -> None:
    world = World(FixedRegistry(subscription()))
    world.engine.start()
    world.transport.answer = lambda _, exchange: (
        (0.1 if b"evt_0\r" in exchange.request else 3600.0),
        Response(200),
    )
    for number in range(3):
        world.broker.append(event(number))
    await until(lambda: len(world.transport.sent) == 3)
    started = asyncio.get_running_loop().time()
    await world.engine.stop(drain=20)
    assert asyncio.get_running_loop().time() - started == pytest.approx(20, abs=0.5)
    assert world.committed == 3
    assert [d["event_id"] for d in world.written("dispatcher.retry.parked")] == ["evt_1", "evt_2"]


def slow_and_failing() -> FixedRegistry:
    """Three subscriptions to everything: one is well, one has a single slow slot, one fails."""
    return FixedRegistry(
        subscription("well", "http://well.test/"),
        subscription("slow", "http://slow.test/", max_in_flight=1),
        subscription("failing", "http://failing.test/"),
    )


def as_their_names_say(origin: Origin, _: object) -> tuple[float, Result]:
    if origin.host == "slow.test":
        return 30.0, Response(200)
    return 0.001, Response(500 if origin.host == "failing.test" else 200)


async def test_stopping_does_not_wait_for_a_broker_that_takes_no_retries() -> None:
    world = World(FixedRegistry(subscription()))
    world.engine.start()
    world.transport.answer = lambda _, exchange: (
        0.001,
        Response(500 if b"evt_1\r" in exchange.request else 200),
    )
    for number in range(3):
        world.broker.append(event(number))
    await until(lambda: world.value("deliveries_held") == 1)
    world.broker.produce_errors = [BrokerUnavailable("away")] * 100
    started = asyncio.get_running_loop().time()
    await world.engine.stop(drain=20)
    assert asyncio.get_running_loop().time() - started < 5
    assert world.committed == 1


async def test_after_a_crash_nothing_is_sent_again_that_was_acknowledged_before_the_last_commit() -> None:
    def number_of(request: bytes) -> int:
        return int(request.split(b"webhook-id: evt_")[1].split(b"\r")[0])

    def one_in_ten_fails(_: object, exchange: Exchange) -> tuple[float, Result]:
        return 0.001, Response(500 if number_of(exchange.request) % 10 == 3 else 200)

    broker = MemoryBroker()
    registry = FixedRegistry(subscription(retry=RetryPolicy((20.0,) * 5, 0.0)))
    for number in range(200):
        broker.append(event(number))
    world = World(registry, broker)
    world.engine.start()
    world.transport.answer = one_in_ten_fails
    await until(lambda: len(world.transport.sent) == 200)
    await until(lambda: world.committed == 3)
    await asyncio.sleep(2)
    # Nothing of it is stopped: as after kill -9, its commits are all that the next one has.
    position, text = broker.committed[EVENTS], broker.notes[EVENTS]
    await world.engine.stop(0)
    for number in range(200, 205):
        broker.append(event(number))
    broker.committed[EVENTS], broker.notes[EVENTS] = position, text
    broker.log.pop(TopicPartition("dispatcher.retry.30s", 0), None)  # what the stop left there
    async with running(registry, broker) as again:
        await until(lambda: broker.committed[EVENTS] == 205)
        sent = Counter(number_of(request) for _, _, request in again.transport.sent)
        assert sent == dict.fromkeys([*range(3, 200, 10), *range(200, 205)], 1)
        assert again.value("events_skipped_total", reason="seen") == 177


async def test_what_was_owed_before_a_crash_is_kept_where_its_subscription_was_paused_meanwhile() -> None:
    """The next process reads the events again. Its commit's note tells that a former one had taken them up."""
    broker = MemoryBroker()
    sub = subscription(retry=RetryPolicy((20.0,) * 5, 0.0))
    for number in range(10):
        broker.append(event(number))
    world = World(FixedRegistry(sub), broker)
    world.engine.start()
    world.transport.answer = lambda _, exchange: (
        0.001,
        Response(500 if b"evt_3\r" in exchange.request or b"evt_5\r" in exchange.request else 200),
    )
    await until(lambda: world.value("deliveries_held") == 2)
    await until(lambda: world.committed == 3)
    await asyncio.sleep(2)
    left = broker.committed[EVENTS], broker.notes[EVENTS]
    await world.engine.stop(0)
    broker.committed[EVENTS], broker.notes[EVENTS] = left
    broker.log.pop(TopicPartition("dispatcher.retry.30s", 0), None)
    broker.append(event(10))  # it may have been taken up right before the end: nobody can tell
    async with running(FixedRegistry(sub.with_status(Status.PAUSED)), broker) as again:
        await until(lambda: broker.committed[EVENTS] == 11)
        broker.append(event(11))  # it wasn't there then
        await until(lambda: broker.committed[EVENTS] == 12)
        assert again.transport.sent == []
        kept = [d["event_id"] for d in again.written("dispatcher.retry.parked")]
        assert kept == ["evt_3", "evt_5", "evt_10"]
        assert again.value("deliveries_total", outcome="dropped_paused") == 1


async def killed(world: World) -> None:
    """Nothing of it is committed or written from now on."""
    committed, notes = dict(world.broker.committed), dict(world.broker.notes)
    logs = {partition: list(log) for partition, log in world.broker.log.items()}
    await world.engine.stop(0)
    world.broker.committed, world.broker.notes = committed, notes
    world.broker.log.clear()
    world.broker.log.update(logs)


async def test_what_was_taken_up_right_before_a_crash_is_owed_to_whom_it_was_owed_then() -> None:
    """Between two commits nothing else tells that it was taken up."""
    broker = MemoryBroker()
    sub = subscription()
    world = World(FixedRegistry(sub), broker, breaker_threshold=0)
    world.engine.start()
    world.transport.answer = lambda *_: (0.001, Response(500))
    await until(lambda: world.committed == 0)
    commits = len(broker.commits)
    for number in range(3000):  # more than a start reserves
        broker.append(event(number))
    await until(lambda: len(sent_ids(world)) > 2500, within=0.9)
    assert len(broker.commits) - commits < 5, "and not with every batch"
    attempted = set(sent_ids(world))
    await killed(world)
    async with running(FixedRegistry(sub.with_status(Status.PAUSED)), broker) as again:
        await until(lambda: broker.committed[EVENTS] == 3000)
        kept = {d["event_id"] for d in again.written("dispatcher.retry.parked")}
        assert attempted <= kept


async def test_a_partition_given_up_in_good_order_leaves_nothing_in_doubt() -> None:
    """What comes after it was matched by its next owner only, whose subscription is paused."""
    broker = MemoryBroker()
    sub = subscription()
    async with running(FixedRegistry(sub), broker) as world:
        world.broker.append(event(0))
        await until(lambda: world.committed == 1)
        await asyncio.sleep(5)  # nothing has changed since the last commit
        await broker.consumers[0].assign([])
        note = read_note("events", 0, 1, broker.notes[EVENTS])
        assert note.reserved == 1
        broker.append(event(1))
        world.registry.index = Index([sub.with_status(Status.PAUSED)])
        await broker.consumers[0].assign([EVENTS])
        await until(lambda: world.committed == 2)
        assert world.value("deliveries_total", outcome="dropped_paused") == 1
        # It has come back: the reader may go on.
        assert (read_note("events", 0, 2, broker.notes[EVENTS]).reserved or 0) > 2


async def test_a_stop_leaves_nothing_in_doubt() -> None:
    broker = MemoryBroker()
    async with running(FixedRegistry(subscription()), broker) as world:
        world.broker.append(event(0))
        await until(lambda: world.committed == 1)
    assert read_note("events", 0, 1, broker.notes[EVENTS]).reserved == 1


async def test_a_coordinator_that_is_away_holds_nothing_up_for_longer_than_a_moment() -> None:
    broker = MemoryBroker()
    async with running(FixedRegistry(subscription()), broker) as world:
        await until(lambda: world.committed == 0)

        async def never(*_: Any) -> None:
            await asyncio.sleep(3600)

        broker.consumers[0].commit = never  # type: ignore[method-assign,assignment]
        for number in range(20_000):
            broker.append(event(number))
        begin = now()
        await until(lambda: world.metrics.delivered == 20_000)
        assert now() - begin < 5


async def life_until_a_crash(registry: FixedRegistry, broker: MemoryBroker) -> Counter[str]:
    """One engine that leaves nothing but its last commit; returns how much each host was sent."""
    world = World(registry, broker)
    world.engine.start()
    world.transport.answer = as_their_names_say
    await until(lambda: world.value("deliveries_held") == 5)
    await asyncio.sleep(2)
    left = broker.committed[EVENTS], broker.notes[EVENTS]
    await world.engine.stop(0)
    # A stop commits and leaves retries; a crash does not.
    broker.committed[EVENTS], broker.notes[EVENTS] = left
    broker.log.pop(TopicPartition("dispatcher.retry.30s", 0), None)
    return Counter(origin.host for _, origin, _ in world.transport.sent)


async def test_after_a_crash_an_event_goes_only_to_those_who_have_not_had_it() -> None:
    broker = MemoryBroker()
    for number in range(5):
        broker.append(event(number))
    registry = slow_and_failing()
    first = await life_until_a_crash(registry, broker)
    assert first == {"well.test": 5, "slow.test": 1, "failing.test": 5}
    assert broker.committed[EVENTS] == 0
    for _ in range(2):
        again = await life_until_a_crash(registry, broker)
        assert again == {"slow.test": 1, "failing.test": 5}


async def test_a_broker_that_takes_no_such_note_gets_shorter_ones() -> None:
    async with running(FixedRegistry(subscription(retry=RetryPolicy((25.0,), 0.0)))) as world:
        world.transport.answer = lambda _, exchange: (
            0.001,
            Response(
                500
                if zlib.crc32(exchange.request.split(b"\r\nwebhook-id: ")[1].split(b"\r")[0]) % 5 == 0
                else 200
            ),
        )
        for number in range(200):
            world.broker.append(event(number))
        world.broker.commit_errors = [MetadataTooLarge("offset metadata too large")]
        await until(lambda: bool(world.broker.commits))
        first = read_note("events", 0, 0, world.broker.notes[EVENTS]).done
        assert 1 <= len(first) < 30
        for number in range(200, 205):
            world.broker.append(event(number))
        world.broker.commit_errors = [MetadataTooLarge("offset metadata too large")] * 10
        await until(lambda: not world.broker.commit_errors)
        await until(lambda: world.committed == 205, within=60)


async def test_what_is_done_is_committed_also_while_the_lowest_owed_offset_does_not_move() -> None:
    async with running(FixedRegistry(subscription())) as world:
        world.transport.answer = lambda _, exchange: (
            0.001,
            Response(500 if b"evt_0\r" in exchange.request else 200),
        )
        world.broker.append(event(0))
        await until(lambda: world.value("deliveries_held") == 1)
        for number in range(1, 4):
            world.broker.append(event(number))
            await asyncio.sleep(1.1)
            assert read_note("events", 0, 0, world.broker.notes[EVENTS]).done == ((1, number + 1),)
        commits = len(world.broker.commits)
        await asyncio.sleep(1)
        assert len(world.broker.commits) == commits, "nothing new, no commit"


async def test_a_partition_that_comes_back_from_somebody_who_worked_on_it_is_not_sent_what_they_sent() -> (
    None
):
    async with running(FixedRegistry(subscription())) as world:
        world.transport.answer = lambda *_: (0.001, Response(500))
        for number in range(4):
            world.broker.append(event(number))
        await until(lambda: world.value("deliveries_held") == 4)
        # Frozen meanwhile, it was never told that another had the partition.
        world.broker.commit_errors = [CommitRefused("somebody else has it")]
        world.broker.committed[EVENTS] = 0
        world.broker.notes[EVENTS] = pack("events", 0, 0, [(1, 3)]).text
        world.transport.answer = lambda *_: (0.001, Response(200))
        sent = len(world.transport.sent)
        await world.broker.consumers[0].assign([EVENTS])
        await until(lambda: world.committed == 4)
        await asyncio.sleep(10)
        assert [b"evt_0\r" in request for _, _, request in world.transport.sent[sent:]] == [True, False]
        assert world.value("deliveries_in_flight") == 0


async def test_it_is_not_ready_before_partitions_are_assigned() -> None:
    world = World(FixedRegistry())
    assert world.engine.problems() == ["no partitions have been assigned yet"]
    world.engine.start()
    await asyncio.sleep(0.1)
    assert world.engine.problems() == []
    await world.engine.stop(0)
    assert world.engine.problems() == ["the dispatcher is stopping"]


async def test_an_error_that_cannot_be_ends_the_process_instead_of_owing_for_ever() -> None:
    world = World(FixedRegistry(subscription()))

    def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    world.transport.send = broken  # type: ignore[method-assign,assignment]
    world.engine.start()
    world.broker.append(event(1))
    await until(lambda: bool(world.failures))
    assert [(where, str(error)) for where, error in world.failures] == [("send", "a bug")]
    started = asyncio.get_running_loop().time()
    await world.engine.stop(20)
    assert asyncio.get_running_loop().time() - started < 1, "nothing is waited for that can't end"
    assert not world.committed


async def test_stopping_does_not_wait_for_a_broker_that_is_away() -> None:
    world = World(FixedRegistry(subscription()))
    world.engine.start()
    world.broker.append(event(1))
    await until(lambda: len(world.transport.sent) == 1)

    async def never(*_: Any) -> None:
        await asyncio.sleep(3600)

    world.broker.consumers[0].commit = never  # type: ignore[method-assign,assignment]
    started = asyncio.get_running_loop().time()
    await world.engine.stop(20)
    assert asyncio.get_running_loop().time() - started < 7
