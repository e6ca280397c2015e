"""What is parked: kept while its subscription takes nothing, and delivered at its endpoint's pace. On virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter

import orjson
import pytest
from structlog.testing import capture_logs

from dispatcher.broker.base import BrokerUnavailable, StoredRecord, TopicPartition
from dispatcher.core.commit import parked
from dispatcher.core.event.decode import Event
from dispatcher.core.request.results import Failure, Reason, Response, Result
from dispatcher.core.request.urls import Origin
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.core.retry.records import Source, delivery_headers
from dispatcher.core.subscription.index import Index
from dispatcher.core.subscription.model import Status
from dispatcher.settings.groups import SubscriptionSettings
from dispatcher.transport.base import Exchange
from tests.fakes import FixedRegistry, MemoryBroker, subscription
from tests.world import Queueing, accounted, event, now, publish, running, sent_ids, typed, until

pytestmark = [pytest.mark.looptime]

WALL = 1_000_000.0  # of the world when its loop starts
PARKED = TopicPartition("dispatcher.retry.parked", 0)
PATIENT = RetryPolicy((5.0,) * 20, 0.0)
REFUSED = Failure(Reason.CONNECT_REFUSED, "nobody listens")


def park(
    broker: MemoryBroker,
    number: int,
    subscription_id: str = "sub_1",
    *,
    since: float = 0.0,
    attempt: int = 0,
    reason: str = "cap",
    due: float = 0.0,
) -> None:
    """A delivery in the parked topic; times in seconds of the loop."""
    value = event(number)
    found = Event(f"evt_{number}", "test.event", None, value, 0, b"Content-Type: application/json\r\n")
    headers = delivery_headers(
        found,
        subscription_id,
        Source("events", 0, number),
        attempt=attempt,
        first_attempt_ms=5 if attempt else None,
        last_result="status 500" if attempt else None,
        reason=reason,
        due=WALL + due,
        parked=1,
    )
    headers.append(("since_ms", b"%d" % ((WALL + since) * 1000)))
    log = broker.log[PARKED]
    stamp = int((WALL + since) * 1000)
    log.append(StoredRecord(len(log), stamp, subscription_id.encode(), value, headers))
    broker.changed.set()


# Paused.


@pytest.mark.parametrize("schedule", [(5.0,) * 9, (40.0,) * 9], ids=["held", "in a tier"])
async def test_what_was_owed_before_a_pause_is_delivered_after_it(schedule: tuple[float, ...]) -> None:
    sub = subscription(retry=RetryPolicy(schedule, 0.0))
    registry = FixedRegistry(sub)
    async with running(registry) as world:
        world.transport.answer = lambda *_: (0.01, Response(503))
        world.broker.append(event(1))
        await until(lambda: len(world.transport.sent) == 1)
        registry.index = Index([sub.with_status(Status.PAUSED)])
        world.broker.append(event(2))
        await asyncio.sleep(52)
        assert len(world.transport.sent) == 1
        assert [letter["reason"] for letter in world.parked() if letter["reason"] != "retry"] == ["paused"]
        world.transport.answer = lambda *_: (0.01, Response(200))
        registry.index = Index([sub])
        await until(lambda: world.metrics.delivered == 1, within=2)
        await asyncio.sleep(100)
        assert sent_ids(world) == ["evt_1", "evt_1"]
        assert world.metrics.deliveries["dropped_paused"] == 1, "what was matched while it was paused"
        letter = next(letter for letter in world.parked() if letter["reason"] == "paused")
        assert letter["attempt"] == "1"
        assert '"status 503"' in letter["history"]
        await until(lambda: world.value("deliveries_in_flight") == 0)
        await accounted(world)


async def test_a_pause_of_twelve_seconds_loses_nothing_of_what_was_queued() -> None:
    sub = subscription(retry=PATIENT, max_in_flight=2)
    registry = FixedRegistry(sub)
    async with running(registry) as world:
        world.transport.answer = lambda *_: (0.2, Response(200))
        for number in range(100):
            world.broker.append(event(number))
        await until(lambda: len(world.transport.sent) > 10)
        with capture_logs() as logs:
            registry.index = Index([sub.with_status(Status.PAUSED)])
            await asyncio.sleep(12)
        parking = [line for line in logs if line["event"].startswith("parking")]
        assert [(line["event"], line["subscription_id"]) for line in parking] == [("parking began", sub.id)]
        sent = len(world.transport.sent)
        assert world.value("deliveries_in_flight") == 0
        assert world.value("deliveries_parked_waiting", reason="paused") == 100 - sent
        registry.index = Index([sub])
        await until(lambda: world.metrics.delivered == 100, within=15)
        assert Counter(sent_ids(world)) == {f"evt_{number}": 1 for number in range(100)}
        assert sent_ids(world)[sent:] == [f"evt_{number}" for number in range(sent, 100)], "the oldest first"
        assert world.value("deliveries_parked_waiting", reason="paused") == 0
        await accounted(world)


async def test_what_is_kept_for_a_paused_subscription_expires() -> None:
    sub = subscription(status=Status.PAUSED)
    registry = FixedRegistry(sub)
    broker = MemoryBroker()
    for number in range(3):
        park(broker, number, since=20.0 * number, reason="paused")
    async with running(registry, broker, subscription=SubscriptionSettings(pause_keeps=60.0)) as world:
        await asyncio.sleep(55)
        assert world.value("deliveries_parked_waiting", reason="paused") == 3
        assert world.value("deliveries_parked_oldest_seconds", reason="paused") == pytest.approx(55, abs=2)
        await asyncio.sleep(15)
        assert world.metrics.deliveries["dropped_expired_while_paused"] == 1
        assert world.value("deliveries_parked_oldest_seconds", reason="paused") == pytest.approx(50, abs=2)
        await asyncio.sleep(20)
        assert world.metrics.deliveries["dropped_expired_while_paused"] == 2
        registry.index = Index([subscription()])
        await until(lambda: world.metrics.delivered == 1, within=2)
        assert sent_ids(world) == ["evt_2"]
        await accounted(world)
        ends = [orjson.loads(value) for _, _, value, _ in broker.bulk]
        assert [(end["event_id"], end["decision"], end.get("reason")) for end in ends] == [
            ("evt_0", "dropped", "expired_while_paused"),
            ("evt_1", "dropped", "expired_while_paused"),
            ("evt_2", "delivered", None),
        ]


# Invalid, sealed, disabled, deleted.


@pytest.mark.parametrize("reason", ["invalid", "sealed"])
async def test_what_matches_while_the_settings_are_wrong_is_kept_and_delivered_when_they_are_right(
    reason: str,
) -> None:
    sub = subscription()
    registry = FixedRegistry(sub.with_status(Status.DISABLED, reason))
    async with running(registry) as world:
        for number in range(20):
            world.broker.append(event(number))
        await until(lambda: world.committed == 20)
        assert world.transport.sent == []
        assert world.dead() == []
        assert Counter(letter["reason"] for letter in world.parked()) == {reason: 20}
        assert world.value("deliveries_parked_total", reason=reason) == 20
    registry = FixedRegistry(sub)
    async with running(registry, world.broker) as again:
        await until(lambda: again.metrics.delivered == 20, within=3)
        assert sent_ids(again) == [f"evt_{number}" for number in range(20)]
        await accounted(again)


async def test_what_matches_while_it_is_disabled_for_another_reason_is_dropped_and_what_was_owed_is_dead() -> (
    None
):
    broker = MemoryBroker()
    for number in range(150):
        park(broker, number)
    registry = FixedRegistry(subscription(status=Status.DISABLED, reason="gone"))
    async with running(registry, broker) as world:
        broker.append(event(500))
        await until(lambda: len(world.dead()) == 150, within=10)
        assert {letter["reason"] for letter in world.dead()} == {"gone"}
        assert world.metrics.deliveries["dropped_disabled"] == 1
        assert world.transport.sent == []
        await accounted(world)


async def test_what_is_parked_for_a_subscription_that_is_deleted_ends_soon() -> None:
    dead = subscription("dead", "http://dead.test/")
    registry = FixedRegistry(dead)
    async with running(registry) as world:
        world.transport.answer = lambda *_: (0.01, REFUSED)
        for number in range(300):
            world.broker.append(event(number))
        await until(lambda: (world.value("deliveries_parked_waiting", reason="breaker") or 0) > 200)
        await asyncio.sleep(60)
        registry.index = Index([])
        await until(lambda: world.value("deliveries_in_flight") == 0, within=30)
        await until(lambda: world.value("deliveries_parked_waiting", reason="breaker") == 0, within=30)
        assert world.metrics.deliveries["dropped_deleted"] > 200
        await accounted(world)


# At the endpoint's pace.


async def test_what_is_parked_drains_beside_fresh_ones_the_oldest_first() -> None:
    broker = MemoryBroker()
    for number in range(2000):
        park(broker, number, since=-1000.0)
    async with running(FixedRegistry(subscription()), broker) as world:
        world.transport.answer = Queueing(200.0)
        count = await publish(world, 100, 15, first=10_000)
        ids = [int(id_[4:]) for id_ in sent_ids(world)]
        old = [number for number in ids if number < 10_000]
        assert old == sorted(old)
        assert 1300 <= len(old) <= 1700, "half of what the endpoint takes"
        await until(lambda: world.metrics.delivered == 2000 + count, within=20)
        assert Counter(sent_ids(world)).most_common(1)[0][1] == 1
        assert world.parked() == []
        await accounted(world)


async def test_a_probe_takes_the_oldest_parked_one_and_the_rest_follows_within_two_seconds() -> None:
    broker = MemoryBroker()
    well_from = 100.0
    for number in range(500):
        park(broker, number)
    async with running(FixedRegistry(subscription(retry=RetryPolicy((3600.0,) * 9, 0.0))), broker) as world:
        world.transport.answer = lambda *_: (0.05, Response(200) if now() >= well_from else REFUSED)
        await asyncio.sleep(well_from)
        probes = len(world.transport.sent)
        assert probes <= 40, "some at first, until the breaker opened, and then one at a time"
        await until(lambda: len(world.transport.sent) > probes, within=60)
        begin = now()
        await until(lambda: world.metrics.delivered > 50, within=2)
        await until(lambda: world.metrics.delivered == 500 - probes, within=10)
        assert now() - begin < 10
        assert not world.value("deliveries_parked_total", reason="breaker"), "each still stood there"


async def test_what_an_endpoint_asked_time_for_waits_until_then() -> None:
    broker = MemoryBroker()
    for number in range(10):
        park(broker, number, reason="retry_after", due=50.0)
    async with running(FixedRegistry(subscription()), broker) as world:
        await until(lambda: world.metrics.delivered == 10, within=60)
        assert min(time for time, _, _ in world.transport.sent) == pytest.approx(50.0, abs=0.1)


async def test_one_with_many_parked_delays_nobody_with_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it has more parked than is noted."""
    monkeypatch.setattr(parked, "MOST", 3000)
    monkeypatch.setattr(parked, "REFILL", 200)
    registry = FixedRegistry(
        subscription("dead", "http://dead.test/", event_types=("test.dead",)),
        subscription("well", "http://well.test/", event_types=("test.well",)),
    )
    broker = MemoryBroker()
    for number in range(20_000):
        park(broker, number, "well" if number % 20 == 19 else "dead")

    def answer(origin: Origin, _: Exchange) -> tuple[float, Result]:
        return 0.01, Response(200) if origin.host == "well.test" or now() > 60 else REFUSED

    async with running(registry, broker) as world:
        world.transport.answer = answer
        await until(lambda: world.metrics.delivered >= 1000, within=15)
        tracker = world.engine._backlogs._served[PARKED].tracker
        assert len(tracker.backlogs["dead"]) <= 3000, "notes"
        assert len(tracker) == 19_000
        await until(lambda: world.metrics.delivered == 20_000, within=400)
        delivered = Counter(sent_ids(world))
        assert len(delivered) == 20_000
        await accounted(world)


# Restarts and mishaps.


async def test_a_crash_in_the_middle_of_the_drain_loses_nothing() -> None:
    broker = MemoryBroker()
    for number in range(3000):
        park(broker, number)
    registry = FixedRegistry(subscription())
    async with running(registry, broker) as world:
        world.transport.answer = Queueing(300.0)
        await until(lambda: world.metrics.delivered >= 1200)
        first = set(sent_ids(world)[: world.metrics.delivered])
        committed, notes = dict(broker.committed), dict(broker.notes)
    broker.committed, broker.notes = committed, notes  # as if what was done at the end had not been
    async with running(registry, broker) as again:
        again.transport.answer = Queueing(300.0)
        await until(lambda: len(first | set(sent_ids(again))) == 3000, within=60)
        await until(lambda: again.value("deliveries_in_flight") == 0)
        twice = len(first & set(sent_ids(again)))
        assert twice <= 300 * 1.1 + 64, "in flight, and what was completed since the last commit"
        await accounted(again)


async def test_a_partition_that_comes_back_is_not_delivered_twice_and_one_that_is_lost_not_at_all() -> None:
    broker = MemoryBroker()
    for number in range(600):
        park(broker, number)
    async with running(FixedRegistry(subscription()), broker) as world:
        world.transport.answer = Queueing(100.0)
        for _ in range(3):
            await asyncio.sleep(1)
            await broker.consumers[1].assign(broker.consumers[1].assignment())
        await until(lambda: len(world.transport.sent) > 400)
        await broker.consumers[1].assign([])
        sent = len(world.transport.sent)
        await asyncio.sleep(5)
        assert len(world.transport.sent) == sent
        assert world.value("deliveries_in_flight") == 0
        assert Counter(sent_ids(world)).most_common(1)[0][1] == 1


async def test_a_broker_that_is_away_is_waited_for() -> None:
    broker = MemoryBroker()
    for number in range(100):
        park(broker, number)
    broker.read_errors = [BrokerUnavailable("away")] * 5
    async with running(FixedRegistry(subscription()), broker) as world:
        await asyncio.sleep(2)
        assert world.transport.sent == []
        await until(lambda: world.metrics.delivered == 100, within=10)
        assert Counter(sent_ids(world)).most_common(1)[0][1] == 1


async def test_a_dispatcher_that_ends_leaves_what_waits_to_the_next_which_delivers_it_at_once() -> None:
    registry = FixedRegistry(subscription(max_in_flight=1))
    async with running(registry) as world:
        world.transport.answer = lambda *_: (1.0, Response(200))
        for number in range(50):
            world.broker.append(typed(number, "event"))
        await until(lambda: len(world.transport.sent) == 3)
    assert Counter(letter["reason"] for letter in world.parked()) == {"shutdown": 48}
    async with running(registry, world.broker) as again:
        await until(lambda: again.metrics.delivered == 48, within=5)
        await accounted(again)
