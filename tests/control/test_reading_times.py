"""When an event without a delivery was read, by those beside it in its partition."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dispatcher.broker.base import BrokerUnavailable, Stretch, TopicPartition
from dispatcher.control.history import HistoryReader
from dispatcher.control.reading_times import NEAR, ReadingTimes
from dispatcher.core.retry.records import Source
from dispatcher.history.base import Retention
from dispatcher.history.explanation import NOT_KNOWN, ReadTime
from dispatcher.history.logged import DAY_MS
from dispatcher.history.sqlite.store import SqliteHistory
from tests.fakes import MemoryBroker
from tests.history.records import NOON, attempt, batch

EVENTS = TopicPartition("events", 0)


class Bench:
    """A partition whose events were read one a second, and a history that knows of some of them."""

    def __init__(self, folder: Path) -> None:
        self.broker = MemoryBroker(EVENTS)
        self.store = SqliteHistory(folder / "history", Retention(30 * DAY_MS, 30 * DAY_MS))
        self._told = 0

    async def open(self, events: int = 40) -> None:
        await self.store.open()
        for number in range(events):
            # Their producer's clock is a day behind.
            value = b'{"id": "evt_%d", "type": "test.event"}' % number
            self.broker.append(value, partition=EVENTS, timestamp=NOON - DAY_MS)

    async def deliver(self, *offsets: int, **more: Any) -> None:
        records = [
            attempt(self._told + at, offset, time_ms=NOON + 1000 * offset + 3, **more)
            for at, offset in enumerate(offsets)
        ]
        first, self._told = self._told, self._told + len(records)
        await self.store.apply([batch(records, first or None, self._told)], NOON + DAY_MS // 4)

    async def around(self, offset: int) -> ReadTime:
        return await ReadingTimes(HistoryReader(self.store, None), self.broker).around(
            Source("events", 0, offset)
        )


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    await made.open()
    yield made
    await made.store.close()


async def test_the_nearest_neighbours_with_deliveries_bound_it(bench: Bench) -> None:
    await bench.deliver(2, 15, 25, 30)
    assert await bench.around(20) == (NOON + 15_000, NOON + 25_000)
    assert await bench.around(0) == (None, NOON + 2000)
    assert await bench.around(39) == (NOON + 30_000, None)


async def test_neighbours_far_away_are_not_looked_for(bench: Bench) -> None:
    await bench.deliver(2)
    assert await bench.around(2 + NEAR) == (NOON + 2000, None)
    assert await bench.around(3 + NEAR) == NOT_KNOWN


async def test_what_was_sent_again_or_stands_elsewhere_says_nothing(bench: Bench) -> None:
    await bench.deliver(15, generation=2, replay="rpl_000000000000")
    await bench.deliver(16, topic="others")
    assert await bench.around(20) == NOT_KNOWN


async def test_records_that_are_no_events_are_passed_over(bench: Bench) -> None:
    for value in (b"no event", None):
        bench.broker.append(value, partition=EVENTS, timestamp=NOON)
    bench.broker.append(b'{"id": "evt_42", "type": "test.event"}', partition=EVENTS, timestamp=NOON)
    await bench.deliver(42)
    assert await bench.around(39) == (None, NOON + 42_000)


async def test_clocks_that_differ_make_the_bounds_wider_and_not_empty(bench: Bench) -> None:
    await bench.deliver(15, queue_ms=3 - 20_000)
    await bench.deliver(25)
    assert await bench.around(20) == (NOON + 25_000, NOON + 35_000)


async def test_without_the_broker_nothing_is_known(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(partition: TopicPartition, offset: int, limit: int, size: int) -> Stretch:
        raise BrokerUnavailable("away")

    await bench.deliver(15, 25)
    monkeypatch.setattr(bench.broker, "read_from", away)
    assert await bench.around(20) == NOT_KNOWN
