"""Following the logs: on the embedded broker, into SQLite."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from structlog.testing import capture_logs

from dispatcher.broker.base import (
    Broker,
    BrokerUnavailable,
    Message,
    Remembered,
    TopicPartition,
    TopicSpec,
    UnreadableBatch,
)
from dispatcher.broker.sqlite.broker import SqliteBroker
from dispatcher.history.base import (
    DeliveryQuery,
    DeliveryState,
    EventQuery,
    HistoryStore,
    LogBatch,
    LogPartition,
    Retention,
    Standing,
    StoreUnavailable,
)
from dispatcher.history.following import Counter, Ends, of_attempts, of_dead_letters, of_events, seek
from dispatcher.history.indexer import Indexer
from dispatcher.history.logged import DAY_MS
from dispatcher.history.sqlite.store import SqliteHistory
from tests.broker.backends import OnKafka
from tests.history.records import value

ATTEMPTS, DEAD, EVENTS = "dispatcher.attempts", "dispatcher.dead", "events"
EVER = 2**53


def now_ms() -> int:
    return int(time.time() * 1000)


class Bench:
    """A broker with the topics, and a directory for the store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counter = Counter()
        self.broker = SqliteBroker(folder / "log.db")

    async def open(self) -> None:
        await self.broker.connect()
        await self.broker.ensure_topics(
            [TopicSpec(name, 2) for name in (ATTEMPTS, DEAD, EVENTS)], create=True
        )

    def store(self) -> SqliteHistory:
        return SqliteHistory(self.folder / "history", Retention(30 * DAY_MS, 30 * DAY_MS))

    def indexer(
        self, store: HistoryStore | None = None, *, broker: Broker | None = None, max_behind: float = 3600.0
    ) -> Indexer:
        topics = {
            ATTEMPTS: of_attempts(self.counter),
            DEAD: of_dead_letters(self.counter),
            EVENTS: of_events(self.counter),
        }
        return Indexer(
            store or self.store(),
            broker or self.broker,
            topics,
            "dispatcher.history",
            max_behind=max_behind,
            counter=self.counter,
        )

    @asynccontextmanager
    async def running(self, store: HistoryStore | None = None, **options: Any) -> AsyncIterator[Indexer]:
        indexer = self.indexer(store, **options)
        indexer.start()
        try:
            yield indexer
        finally:
            await indexer.stop()

    async def attempts(self, *values: bytes, timestamp_ms: int | None = None, partition: int = 0) -> None:
        await self.broker.produce(
            [Message(ATTEMPTS, value, b"sub", (), partition, timestamp_ms or now_ms()) for value in values]
        )


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    await made.open()
    yield made
    await made.broker.close()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while True:
            met = condition()
            if asyncio.iscoroutine(met):
                met = await met
            if met:
                return
            await asyncio.sleep(0.02)


async def rows_of(store: HistoryStore) -> list[Any]:
    return sorted((await store.deliveries(DeliveryQuery(0, EVER, 1000))).items, key=lambda row: row.offset)


async def caught_up(bench: Bench, indexer: Indexer, records: int) -> None:
    await until(lambda: bench.counter.indexed >= records and indexer.behind_records() == 0)


async def test_attempts_events_and_dead_letters_are_indexed(bench: Bench) -> None:
    now = now_ms()
    body = json.dumps({"id": "evt_x", "type": "invoice.paid", "tenant": "acme", "data": {}}).encode()
    dead = [
        ("delivery_id", b"dlv_" + b"0" * 24),
        ("reason", b"exhausted"),
        ("topic", b"events"),
        ("partition", b"1"),
        ("offset", b"3"),
    ]
    await bench.attempts(value(0, time_ms=now), value(1, decision="retry", time_ms=now))
    await bench.broker.produce([Message(EVENTS, body, b"k", (), 1), Message(DEAD, b"{}", b"k", dead, 0)])
    async with bench.running() as indexer:
        await caught_up(bench, indexer, 4)
        rows = await rows_of(indexer.store)
        assert [row.state for row in rows] == [DeliveryState.DELIVERED, DeliveryState.RETRYING]
        (event,) = (await indexer.store.events(EventQuery(0, EVER, 10))).items
        assert (event.event_id, event.tenant, event.topic, event.partition, event.offset) == (
            "evt_x",
            "acme",
            "events",
            1,
            0,
        )
        assert event.sha256 == hashlib.sha256(body).hexdigest()
        assert event.size == len(body)
        await until(lambda: indexer.as_of_ms() >= now)
        assert indexer.problem is None
        assert indexer.warnings() == []


async def test_it_follows_what_is_written_and_goes_on_where_it_stopped(bench: Bench) -> None:
    now = now_ms()
    async with bench.running() as indexer:
        await bench.attempts(value(0, decision="retry", time_ms=now))
        await caught_up(bench, indexer, 1)
    await bench.attempts(value(0, attempt=2, time_ms=now + 1), value(1, time_ms=now))
    async with bench.running() as indexer:
        await caught_up(bench, indexer, 3)
        rows = await rows_of(indexer.store)
        assert [(row.offset, row.attempts) for row in rows] == [(0, 2), (1, 1)]
    assert bench.counter.indexed == 3  # nothing is read twice


async def test_what_is_no_record_of_ours_is_refused_and_counted(bench: Bench) -> None:
    now = now_ms()
    await bench.attempts(
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"v": 3}',
        value(0, time_ms=now, decision="eaten"),
        value(0, time_ms=now, delivery_id="dlv_x"),
        value(0, time_ms=2**70),
        b"[" * 100_000,
        value(1, time_ms=now),
    )
    await bench.broker.produce([Message(EVENTS, b"{", b"k", (), 0), Message(EVENTS, None, b"k", (), 0)])
    async with bench.running() as indexer:
        await caught_up(bench, indexer, 1)
        await until(lambda: bench.counter.refused == 10)
        assert [row.offset for row in await rows_of(indexer.store)] == [1]


class Unwilling(SqliteHistory):
    """A store that is away now and then."""

    failures = 0
    refusing = True

    async def apply(self, batches: Sequence[LogBatch], now_ms: int) -> None:
        if self.refusing:
            self.failures += 1
            raise StoreUnavailable("the disk is full")
        await super().apply(batches, now_ms)


async def test_a_store_that_is_away_is_waited_for_and_said(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.runtime.backoff._PAUSES", (0.01,))
    await bench.attempts(value(0, time_ms=now_ms()))
    store = Unwilling(bench.folder / "history", Retention(DAY_MS, DAY_MS))
    async with bench.running(store) as indexer:
        await until(lambda: store.failures >= 3)
        assert indexer.warnings() == ["the history stands still: the disk is full"]
        store.refusing = False
        await caught_up(bench, indexer, 1)
        await until(lambda: indexer.warnings() == [])
        assert len(await rows_of(store)) == 1


async def test_a_history_that_was_never_there_falls_behind_all_the_same(bench: Bench) -> None:
    (bench.folder / "file").write_bytes(b"")
    store = SqliteHistory(bench.folder / "file" / "history", Retention(DAY_MS, DAY_MS))
    now = [1000.0]
    indexer = Indexer(
        store, bench.broker, {}, "history", max_behind=60.0, counter=bench.counter, clock=lambda: now[0]
    )
    assert indexer.behind_seconds() == 0
    indexer.start()
    await until(lambda: indexer.problem)
    now[0] += 300
    assert indexer.behind_seconds() == 300
    await indexer.stop()


async def test_a_directory_that_another_process_has_is_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.runtime.backoff._PAUSES", (0.01,))
    other = bench.store()
    await other.open()
    async with bench.running() as indexer:
        await until(lambda: indexer.problem is not None and "another process" in indexer.problem)
        await other.close()
        await until(lambda: indexer.problem is None)


async def test_a_directory_that_cannot_be_written_is_said_with_what_to_do(bench: Bench) -> None:
    (bench.folder / "history").write_text("a file")
    async with bench.running() as indexer:
        await until(lambda: indexer.problem is not None and "history.directory" in indexer.problem)


async def test_a_store_that_was_rebuilt_meanwhile_is_followed(bench: Bench) -> None:
    now = now_ms()
    await bench.attempts(*(value(offset, time_ms=now) for offset in range(5)))
    async with bench.running() as indexer:
        await caught_up(bench, indexer, 5)
        await indexer.store.rebuild({LogPartition(ATTEMPTS, "", 0): Standing(2, now, 5)})
        await bench.attempts(value(5, time_ms=now))
        await until(lambda: rows_are(indexer.store, [2, 3, 4, 5]))


async def rows_are(store: HistoryStore, offsets: list[int]) -> bool:
    try:
        return [row.offset for row in await rows_of(store)] == offsets
    except StoreUnavailable:
        return False  # not open yet


async def test_what_is_too_far_behind_is_passed_over_and_the_gap_is_known(bench: Bench) -> None:
    now = now_ms()
    old = now - 3 * 3600_000
    for offset in range(6):
        await bench.attempts(value(offset, time_ms=old + offset), timestamp_ms=old + offset)
    await bench.attempts(value(6, time_ms=now - 60_000), timestamp_ms=now - 60_000)
    async with bench.running() as indexer:
        await until(lambda: rows_are(indexer.store, [6]))
        (gap,) = await indexer.store.gaps(old, now)
        assert (gap.partition.topic, gap.first, gap.next, gap.reason) == (ATTEMPTS, 0, 6, "before")
        assert gap.since_ms == old
        assert bench.counter.skipped == 6


async def test_what_somebody_has_asked_for_is_not_passed_over(bench: Bench) -> None:
    now = now_ms()
    old = now - 3 * 3600_000
    for offset in range(4):
        await bench.attempts(value(offset, time_ms=old + offset), timestamp_ms=old + offset)
    store = bench.store()
    await store.open()
    await store.rebuild({LogPartition(ATTEMPTS, "", 0): Standing(1, old, 4)})
    async with bench.running(store) as indexer:
        await until(lambda: rows_are(indexer.store, [1, 2, 3]))
        assert await store.gaps(0, EVER) == []


async def test_what_retention_deletes_before_it_is_read_is_a_gap(bench: Bench) -> None:
    now = now_ms()
    old = now - 8 * DAY_MS
    ever = 40 * 86_400.0
    await bench.attempts(value(0, time_ms=now), timestamp_ms=old)
    async with bench.running(max_behind=ever) as indexer:
        await caught_up(bench, indexer, 1)
    await bench.attempts(*(value(offset, time_ms=now) for offset in range(1, 5)), timestamp_ms=old)
    await bench.broker.maintain()
    await bench.attempts(value(5, time_ms=now))
    async with bench.running(max_behind=ever) as indexer:
        await until(lambda: rows_are(indexer.store, [0, 5]))
        # The rows of a day may be there a moment before the gap.
        await until(lambda: indexer.store.gaps(0, EVER))
        (gap,) = await indexer.store.gaps(0, EVER)
        assert (gap.first, gap.next, gap.reason) == (1, 5, "retention")


async def test_a_log_that_was_made_anew_is_read_from_its_beginning(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.open()
    now = now_ms()
    await bench.attempts(*(value(offset, time_ms=now) for offset in range(5)))
    async with bench.running() as indexer:
        await caught_up(bench, indexer, 5)
    await bench.broker.close()
    for file in tmp_path.glob("log.db*"):
        file.unlink()
    bench = Bench(tmp_path)
    await bench.open()
    await bench.attempts(value(9, time_ms=now))
    async with bench.running() as indexer:
        await until(lambda: rows_are(indexer.store, [0, 1, 2, 3, 4, 9]))
    await bench.broker.close()


class Named:
    """The broker, but its topics have ids, as Kafka's do."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    async def look(self, topics: Sequence[str]) -> Mapping[str, Remembered]:
        found = await self._broker.look(topics)
        return {name: remembered._replace(id=f"id of {name}") for name, remembered in found.items()}


async def test_a_log_that_lost_its_end_is_read_on_and_not_from_its_beginning(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.open()
    now = now_ms()
    body = json.dumps({"id": "evt_x", "type": "invoice.paid"}).encode()
    events = [Message(EVENTS, body, b"k", (), 0)] * 5
    await bench.attempts(*(value(offset, time_ms=now) for offset in range(5)))
    await bench.broker.produce(events)
    named: Any = Named(bench.broker)
    async with bench.running(broker=named) as indexer:
        await caught_up(bench, indexer, 10)
    await bench.broker.close()
    for file in tmp_path.glob("log.db*"):
        file.unlink()
    bench = Bench(tmp_path)
    await bench.open()
    # A replica that had only three of each is the leader now.
    await bench.attempts(*(value(offset, time_ms=now) for offset in range(3)))
    await bench.broker.produce(events[:3])
    named = Named(bench.broker)
    with capture_logs() as logs:
        async with bench.running(broker=named) as indexer:
            await until(lambda: "the log has lost its end; reading on from where it ends now" in _said(logs))
            await bench.attempts(value(9, time_ms=now))
            await until(lambda: rows_are(indexer.store, [0, 1, 2, 3, 4, 9]))
            assert len((await indexer.store.events(EventQuery(0, EVER, 100))).items) == 5
    await bench.broker.close()


def _said(logs: Sequence[Mapping[str, Any]]) -> list[str]:
    return [line["event"] for line in logs]


class Odd:
    """The broker, but for some reads."""

    def __init__(self, broker: Broker, reads: Callable[[TopicPartition, int], Exception | None]) -> None:
        self._broker = broker
        self._reads = reads

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    async def read_from(self, partition: TopicPartition, offset: int, limit: int, size: int) -> Any:
        if (error := self._reads(partition, offset)) is not None:
            raise error
        return await self._broker.read_from(partition, offset, limit, size)


async def test_a_batch_that_cannot_be_unpacked_is_a_gap(bench: Bench) -> None:
    now = now_ms()
    await bench.attempts(*(value(offset, time_ms=now) for offset in range(6)))

    def reads(partition: TopicPartition, offset: int) -> Exception | None:
        return UnreadableBatch(0, 3, "bad checksum") if partition == (ATTEMPTS, 0) and offset <= 3 else None

    broker: Any = Odd(bench.broker, reads)
    async with bench.running(broker=broker) as indexer:
        await until(lambda: rows_are(indexer.store, [4, 5]))
        (gap,) = await indexer.store.gaps(0, EVER)
        assert (gap.first, gap.next, gap.reason) == (0, 4, "unreadable")


async def test_a_broker_that_is_away_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispatcher.runtime.backoff._PAUSES", (0.01,))
    await bench.attempts(value(0, time_ms=now_ms()))
    away = [True]
    broker: Any = Odd(
        bench.broker, lambda _, __: BrokerUnavailable("connection refused") if away[0] else None
    )
    async with bench.running(broker=broker) as indexer:
        await until(lambda: indexer.problem == "the history stands still: connection refused")
        away[0] = False
        await caught_up(bench, indexer, 1)
        await until(lambda: indexer.problem is None)


@pytest.mark.parametrize(
    ("time_ms", "expected"), [(0, 0), (1000, 0), (1001, 1), (5500, 5), (9000, 8), (9001, 9), (EVER, 9)]
)
async def test_a_time_is_found_by_halves(bench: Bench, time_ms: int, expected: int) -> None:
    for number in range(9):
        await bench.attempts(b"{}", timestamp_ms=1000 * (number + 1))
    found = await seek(bench.broker, TopicPartition(ATTEMPTS, 0), Ends(0, 9), time_ms)
    assert found == expected


class Shared(SqliteHistory):
    """A store that says of itself what PostgreSQL's does."""

    shared = True


async def test_a_shared_store_is_filled_from_the_partitions_that_the_group_gives(bench: Bench) -> None:
    now = now_ms()
    stores = [Shared(bench.folder / f"history-{number}", Retention(DAY_MS, DAY_MS)) for number in range(2)]
    async with bench.running(stores[0]) as first, bench.running(stores[1]) as second:
        await until(lambda: len(first._followed) == len(second._followed) == 3)
        assert (first.partitions, first.all_partitions) == (3, 6)
        await bench.attempts(value(0, time_ms=now), partition=0)
        await bench.attempts(value(1, time_ms=now), partition=1)
        await caught_up(bench, first, 2)
        shared = [[row.offset for row in await rows_of(store)] for store in stores]
        assert sorted([*shared[0], *shared[1]]) == [0, 1]
        assert not set(shared[0]) & set(shared[1])
        # Whoever is left has all of them.
        await second.stop()
        await until(lambda: len(first._followed) == 6)


async def test_an_error_of_its_own_ends_the_history_and_not_the_process(bench: Bench) -> None:
    class Broken(SqliteHistory):
        async def positions(self) -> Mapping[LogPartition, Standing]:
            raise RuntimeError("a bug")

    async with bench.running(Broken(bench.folder / "history", Retention(DAY_MS, DAY_MS))) as indexer:
        await until(lambda: indexer.problem is not None and "a bug" in indexer.problem)
        assert len(indexer.warnings()) == 1


async def test_an_event_of_an_aborted_transaction_was_never_published(
    kafka: str, unique: Callable[[str], str], tmp_path: Path
) -> None:
    backend = OnKafka(unique, kafka)
    broker = await backend.connect()
    topic = await backend.topic(broker, 1)

    def body(event_id: str) -> bytes:
        return json.dumps({"id": event_id, "type": "invoice.paid", "data": {}}).encode()

    counter = Counter()
    store = SqliteHistory(tmp_path / "history", Retention(30 * DAY_MS, 30 * DAY_MS))
    indexer = Indexer(
        store, broker, {topic: of_events(counter)}, unique("group"), max_behind=3600.0, counter=counter
    )

    async def known() -> list[str]:
        return sorted(row.event_id for row in (await store.events(EventQuery(0, EVER, 10))).items)

    producer = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=unique("tx"))
    await producer.start()
    try:
        await producer.begin_transaction()
        for number in range(3):
            await producer.send_and_wait(topic, body(f"evt_aborted_{number}"), partition=0)
        await producer.abort_transaction()
        async with producer.transaction():
            await producer.send_and_wait(topic, body("evt_committed"), partition=0)
        indexer.start()
        await until(lambda: counter.indexed >= 1)
        assert await known() == ["evt_committed"]
        # And while the history stands at the end: an aborted one between two that are committed.
        await producer.begin_transaction()
        await producer.send_and_wait(topic, body("evt_aborted_later"), partition=0)
        await producer.abort_transaction()
        async with producer.transaction():
            await producer.send_and_wait(topic, body("evt_committed_later"), partition=0)
        await until(lambda: counter.indexed >= 2)
        assert await known() == ["evt_committed", "evt_committed_later"]
        assert await store.gaps(0, EVER) == []
    finally:
        await producer.stop()
        await indexer.stop()
        await backend.close_all()


async def test_partitions_that_always_have_more_leave_the_others_their_turn(bench: Bench) -> None:
    await bench.broker.ensure_topics([TopicSpec("many", 12)], create=True)
    counter = Counter()
    store = bench.store()
    indexer = Indexer(
        store, bench.broker, {"many": of_attempts(counter)}, "history", max_behind=3600.0, counter=counter
    )
    now = now_ms()
    for partition in range(12):
        values = [value(at, partition=partition, time_ms=now) for at in range(1500)]
        await bench.broker.produce([Message("many", one, b"sub", (), partition, now) for one in values])
    await store.open()
    for _ in range(2):
        await indexer._round()
    assert len([one for one in (await store.positions()).values() if one.next]) == 12
    await indexer.stop()
