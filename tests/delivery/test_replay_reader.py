"""Deliveries of replays, on virtual time: when they go, what goes with them, and what they leave alone."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import orjson
import pytest

from dispatcher.broker.base import BrokerUnavailable, TopicPartition, UnreadableBatch
from dispatcher.core.event.decode import Event
from dispatcher.core.replay.record import ReplayRecord, write_replay_record
from dispatcher.core.replay.standing import ReplayStanding
from dispatcher.core.request.results import Response, Result
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.core.retry.records import Source, delivery_headers
from dispatcher.core.retry.sources import ExpectedEvent
from dispatcher.core.subscription.model import Status
from dispatcher.runtime.tasks import Tasks
from dispatcher.transport.base import Exchange
from tests.fakes import FixedRegistry, MemoryBroker, subscription
from tests.world import EVENTS, World, event, id_of, now, running, sent_ids, until

pytestmark = [pytest.mark.looptime]

REPLAY = TopicPartition("dispatcher.replay", 0)
OLD = TopicPartition("old", 0)  # events that were consumed long ago: no consumer reads it here
JOB, OTHER = "rpl_0123456789ab00", "rpl_0123456789ab11"


class Standings:
    """Says what it is told to."""

    def __init__(self, **known: ReplayStanding) -> None:
        self.known = {JOB: ReplayStanding.GO, OTHER: ReplayStanding.GO} | known

    def standing(self, replay: str) -> ReplayStanding:
        return self.known.get(replay, ReplayStanding.UNKNOWN)


def old(broker: MemoryBroker, count: int) -> None:
    for number in range(count):
        broker.append(event(number), partition=OLD)


def replayed(
    broker: MemoryBroker,
    *offsets: int,
    job: str = JOB,
    to: str = "sub_1",
    expected: ExpectedEvent | None = None,
    at: Source | None = None,
) -> None:
    for offset in offsets:
        known = expected or ExpectedEvent(f"evt_{offset}", "test.event", None)
        record = ReplayRecord(job, to, Source("old", 0, offset), 3, known, at)
        broker.append(write_replay_record(record), partition=REPLAY)


def committed(world: World) -> int:
    return world.broker.committed.get(REPLAY, 0)


def attempts(world: World) -> list[dict[str, Any]]:
    return [orjson.loads(value) for _, _, value, _ in world.broker.bulk]


async def test_a_replayed_delivery_says_which_replay_it_is_of_and_is_signed_as_ever() -> None:
    broker = MemoryBroker()
    old(broker, 1)
    broker.append(event(0))
    replayed(broker, 0)
    async with running(FixedRegistry(subscription()), broker, replays=Standings()) as world:
        await until(lambda: committed(world) == 1 and world.committed == 1)
        await until(lambda: len(attempts(world)) == 2)
        fresh, again = sorted((request for _, _, request in world.transport.sent), key=len)
        assert f"webhook-replay: {JOB}\r\n".encode() in again
        assert again.replace(f"webhook-replay: {JOB}\r\n".encode(), b"") == fresh
        mine = next(each for each in attempts(world) if "replay" in each)
        assert (mine["replay"], mine["generation"], mine["topic"], mine["offset"]) == (JOB, 3, "old", 0)
        assert mine["decision"] == "delivered"


async def test_the_bodies_are_read_in_runs_and_in_the_order_of_their_source() -> None:
    broker = MemoryBroker()
    old(broker, 1000)
    replayed(broker, *range(0, 1000, 10))
    registry = FixedRegistry(subscription(max_in_flight=1))
    async with running(registry, broker, replays=Standings()) as world:
        await until(lambda: committed(world) == 100)
        assert sent_ids(world) == [f"evt_{number}" for number in range(0, 1000, 10)]


async def test_a_run_is_one_read() -> None:
    broker = MemoryBroker()
    old(broker, 1000)
    replayed(broker, *range(0, 500, 10))
    registry = FixedRegistry(subscription(max_in_flight=200))
    async with running(registry, broker, replays=Standings(), connections_per_host=200) as world:
        await until(lambda: committed(world) == 50)
        reads = [asked for asked in broker.ranges if asked[0] == OLD]
        assert reads == [(OLD, 0, 491)]


async def test_with_one_slot_a_run_is_one_read_all_the_same() -> None:
    broker = MemoryBroker()
    old(broker, 1000)
    replayed(broker, *range(0, 1000, 10))
    async with running(FixedRegistry(subscription(max_in_flight=2)), broker, replays=Standings()) as world:
        world.transport.answer = lambda _origin, _exchange: (0.1, Response(200))
        await until(lambda: committed(world) == 100)
        assert [asked for asked in broker.ranges if asked[0] == OLD] == [(OLD, 0, 991)]


async def test_a_pause_and_its_end_take_hold_at_once() -> None:
    broker = MemoryBroker()
    old(broker, 100)
    replayed(broker, *range(50))
    replayed(broker, 60, job=OTHER)
    standings = Standings()
    async with running(FixedRegistry(subscription(max_in_flight=2)), broker, replays=standings) as world:
        world.transport.answer = lambda _origin, _exchange: (1.0, Response(200))
        await until(lambda: len(world.transport.sent) >= 3)
        standings.known[JOB] = ReplayStanding.WAIT
        before = len(world.transport.sent)
        await asyncio.sleep(600)
        # What was under way ended, the other replay went on, and nothing more of this one was sent.
        assert {*sent_ids(world)[before:]} <= {"evt_60"}
        assert world.value("deliveries_in_flight") == 0
        standings.known[JOB] = ReplayStanding.GO
        await until(lambda: committed(world) == 51, within=120)
        assert sorted(sent_ids(world)) == sorted(f"evt_{number}" for number in [*range(50), 60])


async def test_what_is_cancelled_is_settled_and_not_sent() -> None:
    broker = MemoryBroker()
    old(broker, 100)
    replayed(broker, *range(100))
    standings = Standings(**{JOB: ReplayStanding.WAIT})
    async with running(FixedRegistry(subscription()), broker, replays=standings) as world:
        await asyncio.sleep(5)
        standings.known[JOB] = ReplayStanding.OVER
        await until(lambda: committed(world) == 100)
        assert not world.transport.sent
        assert not world.dead()


async def test_a_replay_that_nobody_knows_is_waited_for_and_then_left_out() -> None:
    broker = MemoryBroker()
    old(broker, 2)
    replayed(broker, 0, job="rpl_ffffffffffff")
    standings = Standings()
    async with running(FixedRegistry(subscription()), broker, replays=standings) as world:
        await asyncio.sleep(20)
        assert committed(world) == 0
        standings.known["rpl_ffffffffffff"] = ReplayStanding.GO
        await until(lambda: committed(world) == 1)
        assert sent_ids(world) == ["evt_0"]
        replayed(broker, 1, job="rpl_eeeeeeeeeeee")
        await until(lambda: committed(world) == 2)
        assert now() > 50
        assert sent_ids(world) == ["evt_0"]


async def test_it_takes_half_of_the_slots_and_none_while_something_fresh_waits() -> None:
    broker = MemoryBroker()
    old(broker, 200)
    replayed(broker, *range(200))
    async with running(FixedRegistry(subscription(max_in_flight=8)), broker, replays=Standings()) as world:
        world.transport.answer = lambda _origin, _exchange: None
        origin = subscription().origin
        await until(lambda: world.transport.busy[origin] == 4)
        await asyncio.sleep(10)
        assert world.transport.busy[origin] == 4
        for number in range(1000, 1020):
            broker.append(event(number))
        await until(lambda: world.transport.busy[origin] == 8)
        assert [number for number in map(_number, sent_ids(world)) if number >= 1000] == [*range(1000, 1004)]
        # Slot by slot the fresh ones go, and no replayed one before the last of them.
        world.transport.answer = lambda _origin, _exchange: (1.0, Response(200))
        world.transport.end(lambda _: Response(200))
        await until(lambda: 1019 in map(_number, sent_ids(world)))
        order = [*map(_number, sent_ids(world))]
        assert order[4:24] == [*range(1000, 1020)]
        await until(lambda: committed(world) == 200, within=600)


def _number(id_: str) -> int:
    return int(id_.removeprefix("evt_"))


@pytest.mark.parametrize(("fresh", "seconds"), [(False, (0.0, 0.5)), (True, (5.9, 7.0))])
async def test_beside_fresh_events_it_uses_a_sixteenth_of_the_time(
    *, fresh: bool, seconds: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    # A delivery takes a millisecond, and so does the turn of the loop behind four.
    monkeypatch.setattr("dispatcher.delivery.engine.time.perf_counter", lambda: next(ticks) / 1000)
    broker = MemoryBroker(EVENTS, REPLAY)
    old(broker, 400)
    standings = Standings(**{JOB: ReplayStanding.WAIT})
    registry = FixedRegistry(subscription(max_in_flight=1000))
    async with running(registry, broker, replays=standings, connections_per_host=1000) as world:
        replayed(broker, *range(400))
        await asyncio.sleep(5)

        async def publish() -> None:
            for number in itertools.count(1000):
                broker.append(event(number))
                await asyncio.sleep(0.1)

        publishing = Tasks()
        if fresh:
            publishing.start(publish(), "publish")
        standings.known[JOB] = ReplayStanding.GO
        await until(lambda: committed(world) == 400, within=60)
        await publishing.stop()
        times = [at for at, _, request in world.transport.sent if _number(id_of(request)) < 1000]
        assert seconds[0] <= max(times) - min(times) <= seconds[1]


async def test_another_event_at_the_old_place_is_not_sent() -> None:
    broker = MemoryBroker()
    old(broker, 3)
    replayed(broker, 1, expected=ExpectedEvent("evt_1", "test.event", "acme"))
    replayed(broker, 2)
    async with running(FixedRegistry(subscription()), broker, replays=Standings()) as world:
        await until(lambda: committed(world) == 2)
        assert sent_ids(world) == ["evt_2"]
        (dead,) = world.dead()
        assert (dead["reason"], dead["replay"], dead["generation"]) == ("body_expired", JOB, "3")


async def test_what_retention_has_deleted_meanwhile_is_ended_and_the_rest_sent() -> None:
    broker = MemoryBroker()
    old(broker, 10)
    broker.begins[OLD] = 5
    replayed(broker, *range(10))
    async with running(FixedRegistry(subscription()), broker, replays=Standings()) as world:
        await until(lambda: committed(world) == 10)
        assert sorted(sent_ids(world)) == [f"evt_{number}" for number in range(5, 10)]
        assert [dead["reason"] for dead in world.dead()] == ["body_expired"] * 5


async def test_a_batch_that_cannot_be_unpacked_costs_its_own_deliveries_only() -> None:
    broker = MemoryBroker()
    old(broker, 10)
    broker.damaged[OLD] = UnreadableBatch(4, 6, "checksum")
    replayed(broker, *range(10))
    async with running(FixedRegistry(subscription()), broker, replays=Standings()) as world:
        await until(lambda: committed(world) == 10)
        assert sorted(map(_number, sent_ids(world))) == [0, 1, 2, 3, 7, 8, 9]
        assert [dead["reason"] for dead in world.dead()] == ["body_unreadable"] * 3


async def test_while_events_cannot_be_read_a_replay_waits() -> None:
    broker = MemoryBroker()
    old(broker, 3)
    replayed(broker, *range(3))
    broker.read_errors = [BrokerUnavailable("away")] * 3
    async with running(FixedRegistry(subscription()), broker, replays=Standings()) as world:
        await until(lambda: committed(world) == 3)
        assert sorted(map(_number, sent_ids(world))) == [0, 1, 2]
        assert not world.dead()


async def test_a_dead_letter_is_sent_from_its_own_copy() -> None:
    broker = MemoryBroker()
    found = Event("evt_9", "test.event", None, event(9), 5, b"Content-Type: application/json\r\n")
    headers = delivery_headers(
        found,
        "sub_1",
        Source("old", 0, 9),
        attempt=4,
        first_attempt_ms=1,
        last_result="status 500",
        reason="exhausted",
    )
    broker.append(event(9), headers, partition=TopicPartition("dispatcher.dead", 0), timestamp=5)
    replayed(broker, 9, at=Source("dispatcher.dead", 0, 0))
    replayed(broker, 8, at=Source("dispatcher.dead", 0, 0))  # somebody else's record
    async with running(FixedRegistry(subscription()), broker, replays=Standings()) as world:
        await until(lambda: committed(world) == 2)
        assert sent_ids(world) == ["evt_9"]
        assert [dead["reason"] for dead in world.dead()] == ["body_expired"]


def always(status: int) -> Any:
    def answer(_origin: object, _exchange: Exchange) -> tuple[float, Result]:
        return 0.001, Response(status)

    return answer


async def test_its_failures_disable_nothing_and_its_retries_take_the_schedule() -> None:
    broker = MemoryBroker()
    old(broker, 1)
    replayed(broker, 0)
    registry = FixedRegistry(subscription(retry=RetryPolicy((5.0, 300.0), 0.0)))
    async with running(registry, broker, replays=Standings()) as world:
        world.transport.answer = always(500)
        await until(lambda: bool(world.dead()), within=900)
        times = [at for at, _, _ in world.transport.sent]
        assert [round(later - earlier) for earlier, later in itertools.pairwise(times)] == [5, 300]
        assert all(f"webhook-replay: {JOB}".encode() in request for _, _, request in world.transport.sent)
        assert {each["replay"] for each in attempts(world)} == {JOB}
        assert not registry.failures
        assert not registry.disabled


async def test_a_410_to_a_replay_disables_nothing() -> None:
    broker = MemoryBroker()
    old(broker, 1)
    replayed(broker, 0)
    registry = FixedRegistry(subscription())
    async with running(registry, broker, replays=Standings()) as world:
        world.transport.answer = always(410)
        await until(lambda: committed(world) == 1)
        (dead,) = world.dead()
        assert dead["reason"] == "gone"
        assert not registry.disabled
        broker.append(event(5))
        await until(lambda: bool(registry.disabled))


async def test_retries_of_a_cancelled_replay_are_dropped() -> None:
    broker = MemoryBroker()
    old(broker, 2)
    replayed(broker, 0, 1)
    standings = Standings()
    # One waits in memory, and one in a tier.
    registry = FixedRegistry(
        subscription(retry=RetryPolicy((20.0,), 0.0)), subscription("sub_2", retry=RetryPolicy((60.0,), 0.0))
    )
    replayed(broker, 0, to="sub_2")
    async with running(registry, broker, replays=standings) as world:
        world.transport.answer = always(500)
        await until(lambda: len(world.transport.sent) == 3)
        standings.known[JOB] = ReplayStanding.OVER
        await asyncio.sleep(120)
        assert len(world.transport.sent) == 3
        ends = [each for each in attempts(world) if each["decision"] == "dropped"]
        assert [each["reason"] for each in ends] == ["cancelled"] * 3
        assert world.value("deliveries_total", outcome="dropped_cancelled") == 3
        assert committed(world) == 3


@pytest.mark.parametrize("status", [Status.PAUSED, Status.DISABLED])
async def test_what_takes_nothing_by_now_keeps_or_ends_its_deliveries_as_ever(status: Status) -> None:
    broker = MemoryBroker()
    old(broker, 40)
    replayed(broker, *range(40))
    registry = FixedRegistry(subscription().with_status(status))
    async with running(registry, broker, replays=Standings()) as world:
        await until(lambda: committed(world) == 40)
        written = world.parked() if status is Status.PAUSED else world.dead()
        assert len(written) == 40
        assert {each["reason"] for each in written} == {status.value}
        assert not world.transport.sent


async def test_what_is_no_record_of_ours_becomes_a_dead_letter() -> None:
    broker = MemoryBroker()
    broker.append(b"no JSON", partition=REPLAY)
    async with running(FixedRegistry(subscription()), broker, replays=Standings()) as world:
        await until(lambda: committed(world) == 1)
        (dead,) = world.dead()
        assert (dead["reason"], dead["topic"]) == ("retry_record", "dispatcher.replay")


@pytest.fixture
def many() -> MemoryBroker:
    broker = MemoryBroker(EVENTS, REPLAY)
    old(broker, 50)
    replayed(broker, *range(50))
    return broker


async def test_of_a_partition_that_goes_elsewhere_nothing_more_is_sent(many: MemoryBroker) -> None:
    standings = Standings()
    async with running(FixedRegistry(subscription(max_in_flight=2)), many, replays=standings) as world:
        world.transport.answer = lambda _origin, _exchange: (1.0, Response(200))
        await until(lambda: len(world.transport.sent) >= 3)
        returning = next(each for each in many.consumers if "dispatcher.replay" in each._topics)
        await returning.assign([])
        before = len(world.transport.sent)
        await asyncio.sleep(60)
        assert len(world.transport.sent) == before
        # The next owner goes on where the commit is: that is this one again.
        await returning.assign([REPLAY])
        await until(lambda: committed(world) == 50, within=120)
        counted = [sent_ids(world).count(f"evt_{number}") for number in range(50)]
        assert min(counted) == max(counted) == 1


async def test_of_a_partition_that_stays_nothing_is_sent_twice(many: MemoryBroker) -> None:
    async with running(FixedRegistry(subscription(max_in_flight=2)), many, replays=Standings()) as world:
        world.transport.answer = lambda _origin, _exchange: (1.0, Response(200))
        await until(lambda: len(world.transport.sent) >= 3)
        returning = next(each for each in many.consumers if "dispatcher.replay" in each._topics)
        await returning.assign([REPLAY])
        await until(lambda: committed(world) == 50, within=120)
        assert sorted(map(_number, sent_ids(world))) == [*range(50)]


class Told(Standings):
    """Says when it has told so many times that a replay goes on, or is over."""

    def __init__(self, times: int, **known: ReplayStanding) -> None:
        super().__init__(**known)
        self.told = asyncio.Event()
        self._left = times

    def standing(self, replay: str) -> ReplayStanding:
        found = super().standing(replay)
        if found is not ReplayStanding.WAIT:
            self._left -= 1
            if not self._left:
                self.told.set()
        return found


# Asked once before a line is dropped; before the events are read and after it, where it is sent.
@pytest.mark.parametrize(("standing", "times"), [(ReplayStanding.GO, 2), (ReplayStanding.OVER, 1)])
async def test_partitions_that_are_shared_out_in_the_midst_of_a_line_change_nothing_of_it(
    standing: ReplayStanding, times: int
) -> None:
    broker = MemoryBroker(EVENTS, REPLAY)
    old(broker, 1000)
    replayed(broker, *range(1000))
    standings = Told(times, **{JOB: ReplayStanding.WAIT})
    registry = FixedRegistry(subscription(max_in_flight=2000))
    async with running(registry, broker, replays=standings, connections_per_host=2000) as world:
        await asyncio.sleep(5)
        returning = next(each for each in broker.consumers if "dispatcher.replay" in each._topics)
        standings.known[JOB] = standing
        await standings.told.wait()
        lag = world.value("partition_lag", topic="dispatcher.replay", partition="0")
        assert lag is not None
        assert 0 < lag < 1000
        await returning.assign([REPLAY])
        await until(lambda: committed(world) == 1000, within=120)
        sent = [*range(1000)] if standing is ReplayStanding.GO else []
        assert sorted(map(_number, sent_ids(world))) == sent
