"""The attempt log: written behind the deliveries' backs, bounded, never in anybody's way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from dispatcher.broker.base import BrokerError, BrokerRefused, BrokerUnavailable, Entry, MessageTooLarge
from dispatcher.core.attempt.encode import Noted
from dispatcher.core.event.decode import Event
from dispatcher.core.request.results import Failure, Reason, Response, Result
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.core.subscription.index import Index
from dispatcher.core.subscription.model import Status
from dispatcher.delivery.attempt_log import AttemptLog
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import AttemptsSettings
from tests.delivery.test_retry_reader import waiting
from tests.fakes import FixedRegistry, noted, subscription
from tests.world import World, event, running, until

pytestmark = [pytest.mark.looptime]


def acknowledged(number: int) -> Noted:
    """An attempt to deliver the event of this number."""
    return noted(
        Response(200),
        event=Event(f"evt_{number}", "test.event", None, b"{}", 1, b"", None),
        subscription=subscription("sub_1"),
        partition=0,
        offset=number,
        attempt=1,
        decision="delivered",
        queued=0.0,
        started=0.0,
        ended=1.0,
        unix=1e9,
    )


class Topic:
    """A broker that takes what it likes."""

    def __init__(self) -> None:
        self.error: BrokerError | None = None
        self.takes = 0.01
        self.leaves: set[str] = set()  # events whose records the next call doesn't take
        self.calls = 0
        self.entries: list[Entry] = []

    async def append(self, topic: str, entries: Sequence[Entry]) -> None:
        assert topic == "dispatcher.attempts"
        self.calls += 1
        await asyncio.sleep(self.takes)
        if self.error is not None:
            raise self.error
        leaves, self.leaves = self.leaves, set()
        left = [entry for entry in entries if orjson.loads(entry[1])["event_id"] in leaves]
        self.entries += [entry for entry in entries if entry not in left]
        if left:
            error = BrokerUnavailable("no leader")
            error.left = left
            raise error

    @property
    def events(self) -> list[str]:
        return [orjson.loads(value)["event_id"] for _, value, _ in self.entries]


def note(log: AttemptLog, *numbers: int) -> None:
    for number in numbers:
        log.note(acknowledged(number))


@asynccontextmanager
async def writing(topic: Topic, **options: Any) -> AsyncIterator[AttemptLog]:
    log = AttemptLog("all", "dispatcher.attempts", "host:1", topic.append, **options)
    tasks = Tasks()
    tasks.start(log.run(), "attempt log")
    yield log
    await tasks.stop()


def ids(numbers: range) -> list[str]:
    return [f"evt_{number}" for number in numbers]


async def test_what_is_noted_is_written_soon_in_order_and_many_at_a_time() -> None:
    topic = Topic()
    async with writing(topic) as log:
        note(log, *range(1000))
        assert len(log) == 1000
        await asyncio.sleep(1)
        assert topic.events == ids(range(1000))
        assert topic.calls == 1
        assert (len(log), log.written, log.dropped, log.problem) == (0, 1000, 0, None)


@pytest.mark.parametrize("error", [BrokerUnavailable("away"), BrokerRefused("no"), BrokerError("odd")])
async def test_while_the_broker_takes_nothing_it_waits_says_so_and_does_not_spin(error: BrokerError) -> None:
    topic = Topic()
    topic.error = error
    async with writing(topic) as log:
        note(log, 0)
        await asyncio.sleep(10)
        note(log, 1)
        await asyncio.sleep(10)
        assert topic.calls < 12
        assert log.problem == f"the attempt log can't be written: {error}"
        topic.error = None
        await asyncio.sleep(10)
        assert topic.events == ids(range(2))
        assert (log.written, log.dropped) == (2, 0)
        assert log.problem is None


async def test_what_does_not_fit_is_dropped_the_oldest_first_and_counted() -> None:
    topic = Topic()
    topic.error = BrokerUnavailable("away")
    async with writing(topic, limit=100_000) as log:
        note(log, 0)
        await asyncio.sleep(1)  # is being written from now on, so it stays
        note(log, *range(1, 10_000))
        assert log._size <= 100_000
        topic.error = None
        await asyncio.sleep(10)
        left = topic.events
        assert 100 < len(left) < 1000
        assert left == ["evt_0", *ids(range(10_001 - len(left), 10_000))]
        assert log.dropped == 10_000 - len(left)
        assert log._size == 0


async def test_what_the_topic_is_too_small_for_is_dropped_and_counted() -> None:
    topic = Topic()
    topic.error = MessageTooLarge("too large")
    async with writing(topic) as log:
        note(log, *range(5))
        await asyncio.sleep(1)
        assert (log.dropped, len(log), log._size) == (5, 0, 0)
        topic.error = None
        note(log, 5)
        await asyncio.sleep(1)
        assert topic.events == ["evt_5"]
        assert log.problem is None


async def test_the_end_of_the_log_is_written_also_what_was_under_way_but_not_waited_for() -> None:
    topic = Topic()
    topic.takes = 1.0
    async with writing(topic) as log:
        note(log, 0)
        await asyncio.sleep(0.5)  # under way
        note(log, 1)
    await log.finish(5)
    assert topic.events == ids(range(2))
    topic.error = BrokerUnavailable("away")
    note(log, 2)
    begin = asyncio.get_running_loop().time()
    await log.finish(2)
    assert asyncio.get_running_loop().time() - begin == pytest.approx(2, abs=0.1)
    assert log.dropped == 1


async def test_an_attempt_that_can_not_be_encoded_costs_no_other() -> None:
    topic = Topic()
    async with writing(topic) as log:
        broken = acknowledged(0)
        broken.topic = None  # type: ignore[assignment]
        log.note(broken)
        note(log, 1)
        await asyncio.sleep(1)
        assert topic.events == ["evt_1"]
        assert log.dropped == 1


# In the engine.


def answers(*results: Result) -> Any:
    left = list(results)
    return lambda _origin, _exchange: (0.001, left.pop(0))


def logged(world: Any) -> list[dict[str, Any]]:
    return [orjson.loads(value) for _, _, value, _ in world.broker.bulk]


async def test_each_attempt_of_a_delivery_leaves_a_record() -> None:
    async with running(FixedRegistry(subscription("sub_1", retry=RetryPolicy((1.0, 1.0), 0.0)))) as world:
        world.transport.answer = answers(
            Failure(Reason.CLOSED, "gone"), Response(500, body=b"oops"), Response(200)
        )
        world.broker.append(event(1))
        await until(lambda: len(logged(world)) == 3)
        first, second, third = logged(world)
        assert [first["decision"], second["decision"], third["decision"]] == ["retry", "retry", "delivered"]
        assert [attempt["attempt"] for attempt in (first, second, third)] == [1, 2, 3]
        assert len({attempt["delivery_id"] for attempt in (first, second, third)}) == 1
        assert first["failure"] == "closed"
        assert (second["status"], second["response"]) == (500, "oops")
        assert second["due_ms"] <= third["time_ms"] <= second["due_ms"] + 100
        assert "due_ms" not in third
        assert world.value("attempt_records_total", result="written") == 3


@pytest.mark.parametrize(("mode", "expected"), [("failures", ["retry"]), ("none", [])])
async def test_the_log_can_be_of_failures_only_or_off(mode: Any, expected: list[str]) -> None:
    registry = FixedRegistry(subscription("sub_1", retry=RetryPolicy((1.0,), 0.0)))
    async with running(registry, attempts=AttemptsSettings(log=mode)) as world:
        world.transport.answer = answers(Response(500), Response(200))
        world.broker.append(event(1))
        await until(lambda: world.metrics.delivered == 1)
        await asyncio.sleep(1)
        assert [attempt["decision"] for attempt in logged(world)] == expected


async def test_a_topic_that_takes_nothing_holds_no_delivery_and_is_a_warning_only() -> None:
    async with running(FixedRegistry(subscription("sub_1"))) as world:
        world.broker.bulk_errors = [BrokerRefused("not authorized to write to dispatcher.attempts")] * 5
        world.broker.append(event(1))
        await until(lambda: world.committed == 1)
        await until(lambda: bool(world.engine.warnings()))
        assert "not authorized" in world.engine.warnings()[0]
        assert world.engine.problems() == []
        await until(lambda: not world.engine.warnings())
        assert len(logged(world)) == 1


async def test_what_was_acknowledged_of_a_write_that_failed_is_not_written_again() -> None:
    class Partly(Topic):
        async def append(self, name: str, entries: Sequence[Entry]) -> None:
            if self.error is not None:
                error, self.error = self.error, None
                self.entries += entries[::2]
                error.left = entries[1::2]
                raise error
            await super().append(name, entries)

    for error in (BrokerUnavailable("away"), MessageTooLarge("one of them")):
        topic = Partly()
        topic.error = error
        async with writing(topic) as log:
            note(log, *range(100))
            await asyncio.sleep(10)
            lost = 50 if isinstance(error, MessageTooLarge) else 0
            assert sorted(topic.events) == sorted(ids(range(0, 100, 2 if lost else 1)))
            assert (len(log), log._size, log.written, log.dropped) == (0, 0, 100 - lost, lost)


# Ends without a request, and what is parked.


def without_request(world: Any) -> list[tuple[str, str | None, str | None]]:
    """Subscription, decision and reason of the records that tell of no request, in order."""
    return [
        (record["subscription_id"], record["decision"], record.get("reason"))
        for record in logged(world)
        if "total_ms" not in record
    ]


async def test_what_is_owed_to_a_deleted_subscription_ends_with_a_record() -> None:
    registry = FixedRegistry(subscription("sub_1"))
    async with running(registry) as world:
        world.transport.answer = lambda *_: (0.001, Response(500))
        world.broker.append(event(1))
        await until(lambda: len(logged(world)) == 1)
        registry.index = Index([])
        await until(lambda: world.committed == 1)
        assert without_request(world) == [("sub_1", "dropped", "deleted")]
        attempt, end = logged(world)
        assert end["delivery_id"] == attempt["delivery_id"]
        assert (end["attempt"], end["detail"], end["body_bytes"]) == (1, "status 500", len(event(1)))
        assert end["time_ms"] >= attempt["due_ms"]


async def test_what_is_owed_to_a_disabled_subscription_ends_dead_with_a_record() -> None:
    registry = FixedRegistry(subscription("sub_1"))
    async with running(registry) as world:
        world.transport.answer = lambda *_: (0.001, Response(500))
        world.broker.append(event(1))
        await until(lambda: len(logged(world)) == 1)
        registry.disable("sub_1", "operator")
        await until(lambda: world.committed == 1)
        assert without_request(world) == [("sub_1", "dead", "disabled")]


async def test_what_is_owed_to_a_paused_subscription_is_parked_with_a_record_and_what_is_not_owed_leaves_none() -> (
    None
):
    sub = subscription("sub_1")
    registry = FixedRegistry(sub)
    async with running(registry) as world:
        world.transport.answer = lambda *_: (0.001, Response(500))
        world.broker.append(event(1))
        await until(lambda: len(logged(world)) == 1)
        registry.index = Index([sub.with_status(Status.PAUSED)])
        world.broker.append(event(2))  # matched while it is paused: never owed
        await until(lambda: world.committed == 2)
        assert without_request(world) == [("sub_1", "parked", "paused")]
        assert world.value("deliveries_total", outcome="dropped_paused") == 1


async def test_what_an_open_breaker_turns_away_is_parked_with_a_record_each() -> None:
    registry = FixedRegistry(subscription("sub_1", retry=RetryPolicy((3600.0,), 0.0), max_in_flight=1))
    async with running(registry) as world:
        world.transport.answer = lambda *_: (0.01, Response(500))
        for number in range(30):
            world.broker.append(event(number))
        await until(lambda: world.committed == 30)
        told = without_request(world)
        assert told
        assert set(told) == {("sub_1", "parked", "breaker")}
        assert len(told) == world.value("deliveries_parked_total", reason="breaker")


async def test_an_attempt_that_a_shutdown_cuts_off_is_a_record_once() -> None:
    world = World(FixedRegistry(subscription("sub_1")))
    world.engine.start()
    world.transport.answer = lambda *_: (1000.0, Response(200))
    world.broker.append(event(1))
    await until(lambda: len(world.transport.sent) == 1)
    await world.engine.stop(0)
    (record,) = logged(world)
    assert (record["decision"], record["reason"], record["failure"]) == ("parked", "shutdown", "shutdown")
    assert world.value("decisions_total", decision="parked", reason="shutdown") == 1
    assert record["attempt"] == 1
    assert "total_ms" in record
    assert world.committed == 1


async def test_an_attempt_of_a_retry_that_a_shutdown_cuts_off_is_left_to_whoever_reads_its_topic_next() -> (
    None
):
    world = World(FixedRegistry(subscription("sub_1")))
    world.engine.start()
    world.transport.answer = lambda *_: (1000.0, Response(200))
    waiting(world.broker, 1, due=1.0)
    await until(lambda: len(world.transport.sent) == 1)
    await world.engine.stop(0)
    (record,) = logged(world)
    assert (record["decision"], record.get("reason"), record["failure"]) == (
        "left_to_another",
        None,
        "shutdown",
    )
    assert world.parked() == [], "nothing was written: it stands in its tier as before"
    assert world.value("decisions_total", decision="left_to_another", reason="") == 1
    assert world.value("decisions_total", decision="parked", reason="shutdown") == 0


async def test_with_the_log_off_no_end_is_recorded() -> None:
    registry = FixedRegistry(subscription("sub_1"))
    async with running(registry, attempts=AttemptsSettings(log="none")) as world:
        world.transport.answer = lambda *_: (0.001, Response(500))
        world.broker.append(event(1))
        await until(lambda: len(world.transport.sent) == 1)
        registry.index = Index([])
        await until(lambda: world.committed == 1)
        assert logged(world) == []


# Commits wait for it.


async def test_an_offset_is_committed_after_the_record_of_its_attempt() -> None:
    async with running(FixedRegistry(subscription("sub_1"))) as world:
        world.broker.bulk_errors = [BrokerUnavailable("away")] * 4
        world.broker.append(event(1))
        await until(lambda: world.metrics.delivered == 1)
        while not logged(world):
            assert world.committed in (None, 0)
            await asyncio.sleep(0.01)
        await until(lambda: world.committed == 1)
        assert world.value("commits_ahead_of_log_total") == 0


async def test_a_log_that_takes_nothing_holds_a_commit_for_five_seconds_once() -> None:
    async with running(FixedRegistry(subscription("sub_1"))) as world:
        world.broker.bulk_errors = [BrokerUnavailable("away")] * 1000
        begin = asyncio.get_running_loop().time()
        world.broker.append(event(1))
        await until(lambda: world.committed == 1)
        first = asyncio.get_running_loop().time() - begin
        assert 5.0 <= first <= 7.5
        assert world.value("commits_ahead_of_log_total") == 1
        for number in range(2, 5):
            begin = asyncio.get_running_loop().time()
            world.broker.append(event(number))
            await until(lambda number=number: world.committed == number)  # type: ignore[misc]
            assert asyncio.get_running_loop().time() - begin <= 1.5
        world.broker.bulk_errors = []
        await until(lambda: len(logged(world)) == 4)
        assert world.value("attempt_records_total", result="dropped") == 0


async def test_who_waits_for_the_log_gets_it_written_at_once() -> None:
    topic = Topic()
    async with writing(topic) as log:
        await asyncio.sleep(0.25)
        begin = asyncio.get_running_loop().time()
        note(log, *range(100))
        assert await log.caught_up()
        assert asyncio.get_running_loop().time() - begin < 0.05
        assert topic.events == ids(range(100))
        assert await log.caught_up()


async def test_what_is_noted_while_somebody_waits_is_not_waited_for() -> None:
    topic = Topic()
    topic.takes = 1.0
    async with writing(topic) as log:
        note(log, 0)
        waiting = asyncio.create_task(log.caught_up())  # noqa: TID251 - awaited below
        await asyncio.sleep(0.5)
        note(log, 1)
        assert await waiting
        assert topic.events == ["evt_0"]


async def test_what_was_dropped_is_not_waited_for() -> None:
    topic = Topic()
    topic.error = BrokerUnavailable("away")
    async with writing(topic, limit=10_000) as log:
        note(log, *range(1000))
        assert not await log.caught_up(1.0)
        topic.error = None
        assert await log.caught_up(60.0)
        assert log.dropped > 0


async def test_what_a_write_left_of_the_first_records_is_waited_for() -> None:
    # A partition without a leader leaves its share of a batch, whichever records those are.
    topic = Topic()
    topic.takes = 1.0
    async with writing(topic) as log:
        note(log, 0)
        waiting = asyncio.create_task(log.caught_up(60.0))  # noqa: TID251 - awaited below
        await asyncio.sleep(0)
        note(log, *range(1, 40))
        topic.leaves = {"evt_0"}
        assert await waiting
        assert "evt_0" in topic.events


async def test_a_log_that_takes_nothing_does_not_cost_the_last_commit() -> None:
    async with running(FixedRegistry(subscription("sub_1"))) as world:
        world.broker.bulk_errors = [BrokerUnavailable("away")] * 1000
        world.broker.append(event(1))
        await until(lambda: world.metrics.delivered == 1)
    assert world.committed == 1
