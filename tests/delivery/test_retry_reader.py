"""Retries by way of the tiers, on virtual time: when they come, what they cost, what they survive."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import orjson
import pytest

from dispatcher.broker.base import BrokerUnavailable, StoredRecord, TopicPartition
from dispatcher.core.event.decode import Event
from dispatcher.core.request.results import Failure, Reason, Response, Result
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.core.retry.records import Source, delivery_headers
from tests.fakes import FixedRegistry, MemoryBroker, subscription
from tests.world import EVENTS, World, event, running, until

pytestmark = [pytest.mark.looptime]

WALL = 1_000_000.0  # of the world when its loop starts
FIRST = TopicPartition("dispatcher.retry.30s", 0)
SECOND = TopicPartition("dispatcher.retry.2m", 0)


def patient(*waits: float) -> FixedRegistry:
    return FixedRegistry(subscription(retry=RetryPolicy(waits, 0.0)))


def waiting(
    broker: MemoryBroker,
    number: int,
    due: float,
    *,
    written: float = 0.0,
    where: TopicPartition = FIRST,
    subscription_id: str = "sub_1",
    body: bytes | None = None,
    more: tuple[tuple[str, bytes], ...] = (),
) -> None:
    """A delivery in a tier; `due` and `written` in seconds of the loop."""
    value = event(number) if body is None else body
    found = Event(f"evt_{number}", "test.event", None, value, 0, b"Content-Type: application/json\r\n")
    headers = delivery_headers(
        found,
        subscription_id,
        Source("events", 0, number),
        attempt=1,
        first_attempt_ms=5,
        last_result="status 500",
        reason="retry",
        due=WALL + due,
    )
    log = broker.log[where]
    stamp = int((WALL + written) * 1000)
    log.append(StoredRecord(len(log), stamp, None, value, [*headers, *more]))
    broker.changed.set()


async def test_a_wait_beyond_the_horizon_holds_no_offset_and_is_kept_to_the_millisecond() -> None:
    async with running(patient(300.0)) as world:
        answers: Iterator[Result] = iter([Response(503), Response(200)])
        world.transport.answer = lambda *_: (0.0, next(answers))
        world.broker.append(event(1))
        await until(lambda: world.committed == 1, within=3)
        assert world.value("deliveries_in_flight") == 0
        await until(lambda: len(world.transport.sent) == 2, within=400)
        first, second = (time for time, _, _ in world.transport.sent)
        assert second - first == pytest.approx(300.0, abs=0.02)
        topics = [message.topic for message in world.broker.produced]
        assert topics == [f"dispatcher.retry.{level}" for level in ("2m", "2m", "30s", "30s")]
        assert all(message.key == b"sub_1" for message in world.broker.produced)
        assert world.value("retries_due_total", level="2m") == 2
        assert world.value("retries_due_total", level="30s") == 2
        assert world.value("retries_due_total", level="memory") == 1
        assert world.value("retry_lateness_seconds_sum") == pytest.approx(0, abs=0.02)
        await until(lambda: world.broker.committed.get(FIRST) == 2 and world.broker.committed[SECOND] == 2)
        assert world.value("deliveries_in_flight") == world.value("deliveries_in_flight_bytes") == 0


async def test_a_delivery_given_up_after_tiers_tells_its_origin_and_all_its_attempts() -> None:
    async with running(patient(5.0, 60.0, 650.0)) as world:
        world.transport.answer = lambda *_: (0.0, Response(500))
        world.broker.append(event(0))
        world.broker.append(event(1, tenant="acme"))
        await until(lambda: len(world.dead()) == 2, within=900)
        dead = world.dead()[1]
        assert dead["reason"] == "exhausted"
        assert dead["attempt"] == "4"
        assert (dead["topic"], dead["partition"], dead["offset"]) == ("events", "0", "1")
        assert (dead["event_id"], dead["tenant"], dead["last_result"]) == ("evt_1", "acme", "status 500")
        assert float(dead["first_attempt_ms"]) == pytest.approx(WALL * 1000, abs=100)
        assert "due_ms" not in dead
        assert len({d["delivery_id"] for d in world.written("dispatcher.retry.10m") + world.dead()}) == 2


async def test_what_waits_in_a_tier_is_counted_until_it_comes_out_also_once_it_was_read() -> None:
    async with running(patient(300.0)) as world:
        for number in range(150):  # more than one poll brings
            waiting(world.broker, number, due=30.0)
        lag = {"topic": FIRST.topic, "partition": "0"}
        await asyncio.sleep(20)
        assert world.value("partition_lag", **lag) == 150
        await until(lambda: world.metrics.delivered == 150)
        assert world.value("partition_lag", **lag) == 0


async def test_a_restart_goes_on_from_the_tier_and_not_from_the_first_attempt() -> None:
    registry = patient(300.0)
    async with running(registry) as world:
        world.transport.answer = lambda *_: (0.0, Response(503))
        world.broker.append(event(1))
        await until(lambda: world.committed == 1, within=3)
    started = asyncio.get_running_loop().time()
    async with running(registry, world.broker) as again:
        again.transport.answer = lambda *_: (0.0, Response(503))
        await until(lambda: len(again.dead()) == 1, within=400)
        ((time, _, _),) = again.transport.sent
        assert time == pytest.approx(300.0, abs=0.02)
        assert time > started
        assert again.dead()[0]["attempt"] == "2"


async def test_nothing_of_a_tier_is_settled_before_the_broker_has_it() -> None:
    async with running(patient(300.0)) as world:
        world.transport.answer = lambda *_: (0.0, Response(503))
        world.broker.produce_errors = [BrokerUnavailable("gone fishing")] * 4
        world.broker.append(event(1))
        await asyncio.sleep(1.5)
        assert not world.committed
        assert world.value("deliveries_in_flight") == 1
        await until(lambda: world.committed == 1)
        assert len(world.written("dispatcher.retry.2m")) == 1


async def test_of_a_long_queue_only_the_head_is_in_memory() -> None:
    broker = MemoryBroker()
    for number in range(5000):
        waiting(broker, number, due=100.0, where=SECOND)
    async with running(FixedRegistry(subscription()), broker, max_in_flight=200) as world:
        consumer = broker.consumers[1]
        await asyncio.sleep(90)
        assert consumer.lag()[SECOND] == 4900
        assert consumer.paused == {SECOND}
        assert world.value("deliveries_in_flight") == 0
        assert world.transport.sent == []
        peak = 0.0
        while broker.committed.get(SECOND) != 5000:
            peak = max(peak, world.value("deliveries_in_flight") or 0)
            await asyncio.sleep(0.05)
        assert peak == 200
        assert len(world.transport.sent) == 5000
        assert min(time for time, _, _ in world.transport.sent) >= 100.0


async def test_a_queue_that_cannot_come_out_keeps_the_membership() -> None:
    broker = MemoryBroker()
    waiting(broker, 1, due=1.0)
    async with running(
        FixedRegistry(subscription()), broker, max_in_flight=100, max_queue_wait=3600.0
    ) as world:
        world.transport.answer = lambda *_: (30.0, Response(200))
        for number in range(200):
            broker.append(event(1000 + number))
        await until(lambda: world.value("deliveries_in_flight") == 100)
        consumer = broker.consumers[1]
        polls = consumer.polls
        await asyncio.sleep(5)
        assert consumer.polls > polls + 9
        await until(lambda: broker.committed.get(FIRST) == 1, within=200)


async def test_a_record_of_a_tier_that_cannot_be_read_is_dead_lettered_and_blocks_nothing() -> None:
    broker = MemoryBroker()
    waiting(broker, 1, due=10.0, more=(("head", b"X: 1\r\n\r\nGET /"),))
    waiting(broker, 2, due=10.0)
    async with running(FixedRegistry(subscription()), broker) as world:
        await until(lambda: broker.committed.get(FIRST) == 2)
        assert len(world.transport.sent) == 1
        (dead,) = world.dead()
        assert dead["reason"] == "retry_record"
        assert (dead["topic"], dead["offset"]) == ("dispatcher.retry.30s", "0")
        assert dead["original.subscription_id"] == "sub_1"
        assert broker.produced[0].value == event(1)
        assert world.value("dead_letters_total", reason="invalid") == 1


async def test_a_body_too_large_for_the_tier_is_read_at_its_origin_when_it_is_due() -> None:
    broker = MemoryBroker()
    broker.append(event(0))
    broker.committed[EVENTS] = 1
    waiting(broker, 0, due=10.0, body=b"", more=(("omitted", b"34 bytes"),))
    async with running(FixedRegistry(subscription()), broker) as world:
        await until(lambda: broker.committed.get(FIRST) == 1)
        assert world.transport.sent[0][2].endswith(event(0))


async def test_a_body_whose_origin_was_deleted_is_not_delivered_empty() -> None:
    broker = MemoryBroker()
    waiting(broker, 0, due=10.0, body=b"", more=(("omitted", b"34 bytes"),))
    async with running(FixedRegistry(subscription()), broker) as world:
        await until(lambda: broker.committed.get(FIRST) == 1)
        assert world.transport.sent == []
        (dead,) = world.dead()
        assert (dead["reason"], dead["subscription_id"], dead["event_id"]) == (
            "body_expired",
            "sub_1",
            "evt_0",
        )
        assert "has been deleted" in dead["detail"]
        await until(lambda: bool(broker.bulk))
        (end,) = [orjson.loads(value) for _, _, value, _ in broker.bulk]
        assert (end["decision"], end["reason"], end["event_id"]) == ("dead", "body_expired", "evt_0")
        assert [(id_, event_id, reason) for id_, event_id, reason, *_ in world.given_up] == [
            ("sub_1", "evt_0", "body_expired")
        ]


async def test_a_tier_partition_that_comes_back_is_not_delivered_a_second_time() -> None:
    broker = MemoryBroker()
    for number in range(150):
        waiting(broker, number, due=20.0 + number)
    async with running(FixedRegistry(subscription()), broker) as world:
        for _ in range(20):
            await asyncio.sleep(7)
            await broker.consumers[1].assign(broker.consumers[1].assignment())
        await until(lambda: len(world.transport.sent) >= 150, within=300)
        await asyncio.sleep(5)
        ids = [request.split(b"webhook-id: ")[1].split(b"\r")[0] for _, _, request in world.transport.sent]
        assert len(ids) == len(set(ids)) == 150
        assert world.value("deliveries_in_flight") == 0
        assert world.value("rebalances_total") == 1, "the event topics' group had nothing to do with it"


async def test_of_a_lost_tier_partition_nothing_more_is_sent() -> None:
    broker = MemoryBroker()
    for number in range(150):
        waiting(broker, number, due=20.0)
    async with running(FixedRegistry(subscription()), broker) as world:
        await until(lambda: world.value("deliveries_held") == 150)
        await broker.consumers[1].assign([SECOND])
        await asyncio.sleep(60)
        assert world.transport.sent == []
        assert world.value("deliveries_in_flight") == 0
        assert FIRST not in broker.committed


async def test_one_group_rebalancing_leaves_the_other_ones_partitions_alone() -> None:
    broker = MemoryBroker()
    waiting(broker, 1, due=20.0)
    async with running(FixedRegistry(subscription()), broker) as world:
        await until(lambda: world.value("deliveries_held") == 1)
        await broker.consumers[0].assign([])
        await until(lambda: broker.committed.get(FIRST) == 1, within=30)
        assert len(world.transport.sent) == 1


async def test_it_is_not_ready_before_it_has_partitions_of_the_tiers() -> None:
    world = World(FixedRegistry())
    assert "retries: no partitions have been assigned yet" not in world.engine.problems()
    await world.engine._events.on_assigned({})
    assert world.engine.problems() == ["retries: no partitions have been assigned yet"]


HANGING = (15.0, Failure(Reason.TIMEOUT, "no answer"))


async def test_an_endpoint_that_hangs_forever_holds_no_offset_beyond_the_limit() -> None:
    registry = FixedRegistry(
        subscription("hanging", "http://hanging.test/", max_in_flight=1, retry=RetryPolicy((5.0,) * 9, 0.0)),
        subscription("well", "http://well.test/"),
    )
    async with running(registry, max_queue_wait=3600.0, breaker_threshold=0.0) as world:
        world.transport.answer = lambda origin, _: (
            HANGING if origin.host == "hanging.test" else (0.001, Response(200))
        )
        for number in range(50):
            world.broker.append(event(number))
        await asyncio.sleep(50)
        assert world.committed == 0, "what the other has had is noted, nothing passed over"
        await until(lambda: world.committed == 50, within=60 + 15 + 3 - 50)
        parked = world.parked()
        assert len(parked) == 50
        assert {letter["reason"] for letter in parked} == {"hold_limit"}
        attempts = [letter["attempt"] for letter in parked]
        assert sorted(attempts) == ["0"] * 48 + ["2", "3"], "parking counts no attempt and forgets none"
        assert world.value("deliveries_parked_total", reason="hold_limit") == 50
        assert [origin.host for _, origin, _ in world.transport.sent].count("well.test") == 50


async def test_what_the_limit_handed_over_comes_back_as_fast_as_the_endpoint_takes_it() -> None:
    registry = FixedRegistry(subscription(max_in_flight=1, retry=RetryPolicy((5.0,) * 9, 0.0)))
    async with running(registry, max_queue_wait=3600.0, breaker_threshold=0.0) as world:
        world.transport.answer = lambda *_: (4.0, Response(200))
        for number in range(60):
            world.broker.append(event(number))
        await until(lambda: len(world.transport.sent) == 60, within=1500)
        await asyncio.sleep(6)
        assert len({request for _, _, request in world.transport.sent}) == 60
        assert world.value("deliveries_total", outcome="delivered") == 60
        assert world.value("deliveries_in_flight") == 0
        assert len(world.broker.produced) < 60


async def test_a_restart_goes_on_with_what_the_limit_handed_over() -> None:
    registry = FixedRegistry(subscription(max_in_flight=4, retry=RetryPolicy((5.0,) * 3, 0.0)))
    async with running(registry, max_queue_wait=3600.0, breaker_threshold=0.0) as world:
        world.transport.answer = lambda *_: HANGING
        for number in range(30):
            world.broker.append(event(number))
        await until(lambda: world.committed == 30, within=90)
        attempted = {letter["event_id"]: int(letter["attempt"]) for letter in world.parked()}
        assert len(attempted) == 30
    async with running(registry, world.broker, breaker_threshold=0.0) as again:
        again.transport.answer = lambda *_: (0.0, Response(500))
        before = len(again.broker.produced)
        await until(lambda: len(again.dead()) == 30, within=1000)
        assert all(dead["attempt"] == "4" for dead in again.dead())
        assert len(again.broker.produced) == before + 30
        sent = Counter(
            request.split(b"webhook-id: ")[1].split(b"\r")[0] for _, _, request in again.transport.sent
        )
        assert sent == {id_.encode(): 4 - attempts for id_, attempts in attempted.items()}


async def test_a_dead_letter_tells_of_every_attempt_also_those_before_a_retry_topic() -> None:
    registry = FixedRegistry(subscription("sub_1", retry=RetryPolicy((1.0, 100.0), 0.0)))
    async with running(registry) as world:
        results: list[Result] = [Response(503), Failure(Reason.CLOSED, "cut off"), Response(500)]
        world.transport.answer = lambda _origin, _exchange: (0.5, results.pop(0))
        world.broker.append(event(1))
        await until(lambda: bool(world.dead()), within=300)
        first, second, third = orjson.loads(world.dead()[0]["history"])
        assert [first[0], second[0], third[0]] == [1, 2, 3]
        assert [first[2], second[2], third[2]] == ["status 503", "closed: cut off", "status 500"]
        assert second[1] - first[1] == pytest.approx(1500, abs=50)
        assert third[1] - second[1] == pytest.approx(100_500, abs=100)
