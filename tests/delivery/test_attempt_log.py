"""The attempt log: written behind the deliveries' backs, bounded, never in anybody's way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from dispatcher.broker.base import BrokerError, BrokerRefused, BrokerUnavailable, Entry, MessageTooLarge
from dispatcher.core.event.decode import Event
from dispatcher.core.request.results import Failure, Reason, Response, Result
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.delivery.attempt_log import AttemptLog
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import AttemptsSettings
from tests.fakes import FixedRegistry, subscription
from tests.world import event, running, until

pytestmark = [pytest.mark.looptime]


class Delivery:
    """As the engine's."""

    attempt = generation = 1
    queued = started = 0.0
    replay: str | None = None

    def __init__(self, number: int) -> None:
        self.event = Event(f"evt_{number}", "test.event", None, b"{}", 1, b"", None)
        self.subscription = subscription("sub_1")
        self.source = ("events", 0, number)


class Topic:
    """A broker that takes what it likes."""

    def __init__(self) -> None:
        self.error: BrokerError | None = None
        self.takes = 0.01
        self.calls = 0
        self.entries: list[Entry] = []

    async def append(self, topic: str, entries: Sequence[Entry]) -> None:
        assert topic == "dispatcher.attempts"
        self.calls += 1
        await asyncio.sleep(self.takes)
        if self.error is not None:
            raise self.error
        self.entries += entries

    @property
    def events(self) -> list[str]:
        return [orjson.loads(value)["event_id"] for _, value, _ in self.entries]


def note(log: AttemptLog, *numbers: int) -> None:
    for number in numbers:
        log.note(Delivery(number), Response(200), "delivered", 1.0, 1e9)


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
        broken = Delivery(0)
        broken.source = None  # type: ignore[assignment]
        log.note(broken, Response(200), "delivered", 1.0, 1e9)
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
