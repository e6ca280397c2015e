"""Transactions, retention and compaction of the embedded broker."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from dispatcher.broker.base import (
    BrokerUnavailable,
    Message,
    Position,
    TopicPartition,
    TopicSpec,
)
from dispatcher.broker.sqlite.broker import SqliteBroker
from tests.broker.backends import Member, eventually
from tests.broker.sqlite.conftest import Opened
from tests.broker.sqlite.offsets import earliest_and_latest


async def limit_pages(broker: SqliteBroker, pages: int) -> None:
    """Let the file grow no further than this: a full disk."""
    file = broker._store._file
    await broker._store._run(lambda: file._open_db.execute(f"PRAGMA max_page_count={pages}").fetchone())


async def test_a_full_disk_is_told_of_loses_nothing_and_ends_when_there_is_room(opened: Opened) -> None:
    broker = await opened()
    await broker.ensure_topics([TopicSpec("t", 1)], create=True)
    await broker.produce([Message("t", b"%d" % n) for n in range(10)])
    await limit_pages(broker, 60)
    written = 10

    async def fill() -> None:
        nonlocal written
        while written < 10_000:
            await broker.produce([Message("t", b"%d" % (written + n) + b"." * 1000) for n in range(50)])
            written += 50

    with pytest.raises(BrokerUnavailable, match=r"the disk of .*log\.db is full"):
        await fill()
    assert "is full" in (broker.problem or "")
    member = Member(broker, ["t"], "g")
    await member.consumer.start()
    await member.poll_for(written)
    assert len(member.all) == written
    with pytest.raises(BrokerUnavailable, match=r"is full"):
        await fill()
    assert "is full" in (member.consumer.problem or "")

    await limit_pages(broker, 1_000_000)
    await broker.produce([Message("t", b"%d" % written)])
    assert broker.problem is None
    await member.poll_for(written + 1)
    assert [int((value or b"").rstrip(b".")) for value in member.values] == list(range(written + 1))
    assert [record.offset for record in member.all] == list(range(written + 1))


async def test_every_call_that_shared_a_failed_transaction_is_told(opened: Opened) -> None:
    broker = await opened()
    await broker.ensure_topics([TopicSpec("t", 1)], create=True)
    await limit_pages(broker, 40)
    calls = [broker.produce([Message("t", bytes(100_000))]) for _ in range(20)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    failed = [outcome for outcome in outcomes if isinstance(outcome, BrokerUnavailable)]
    assert failed
    await limit_pages(broker, 1_000_000)
    await broker.produce([Message("t", b"v")])
    assert (await earliest_and_latest(broker, "t"))[1] == len(outcomes) - len(failed) + 1


async def test_calls_at_the_same_time_share_transactions(opened: Opened) -> None:
    broker = await opened()
    await broker.ensure_topics([TopicSpec("t")], create=True)
    transactions = 0
    write = broker._store._file.write

    def counted(changes: Any) -> Any:
        nonlocal transactions
        transactions += 1
        return write(changes)

    broker._store._file.write = counted
    await asyncio.gather(*(broker.produce([Message("t", b"v")]) for _ in range(200)))
    assert transactions <= 3
    assert sum([(await earliest_and_latest(broker, "t", p))[1] for p in range(4)]) == 200


async def test_a_cancelled_call_is_written_all_the_same_and_seen_by_readers(opened: Opened) -> None:
    broker = await opened()
    await broker.ensure_topics([TopicSpec("t", 1)], create=True)
    member = Member(broker, ["t"], "g")
    await member.consumer.start()
    call = asyncio.get_running_loop().create_task(broker.produce([Message("t", b"v")]))
    await asyncio.sleep(0)
    call.cancel()
    await member.poll_for(1)


async def test_records_older_than_the_retention_are_deleted_from_the_front(opened: Opened) -> None:
    broker = await opened()
    await broker.ensure_topics([TopicSpec("t", 1, config={"retention.ms": "60000"})], create=True)
    now = time.time_ns() // 1_000_000
    ages = [90_000, 70_000, 80_000, 50_000, 70_000, 0]
    await broker.produce([Message("t", b"%d" % age, timestamp_ms=now - age) for age in ages])
    member = Member(broker, ["t"], "g")
    await member.consumer.start()
    await member.consumer.commit({TopicPartition("t", 0): Position(0)})
    await broker.maintain()
    # As in Kafka, what stands behind a younger record stays until that one goes.
    assert await earliest_and_latest(broker, "t") == (3, 6)
    await member.poll_for(3)
    assert member.values == [b"50000", b"70000", b"0"]


async def test_retention_by_bytes_is_per_partition_and_keeps_the_newest(opened: Opened) -> None:
    broker = await opened()
    config = {"retention.bytes": "50000", "retention.ms": "-1"}
    await broker.ensure_topics([TopicSpec("t", 2, config=config)], create=True)
    for partition in (0, 1):
        await broker.produce(
            [Message("t", bytes(1000), partition=partition, timestamp_ms=0) for _ in range(80)]
        )
    await broker.maintain()
    assert await earliest_and_latest(broker, "t", 0) == (30, 80)
    assert await earliest_and_latest(broker, "t", 1) == (30, 80)


async def test_offsets_go_on_after_everything_was_deleted_also_after_a_restart(opened: Opened) -> None:
    broker = await opened()
    await broker.ensure_topics([TopicSpec("t", 1, config={"retention.ms": "1000"})], create=True)
    await broker.produce([Message("t", b"old", timestamp_ms=1) for _ in range(5000)])
    await broker.maintain()
    assert await earliest_and_latest(broker, "t") == (5000, 5000)
    await broker.close()
    broker = await opened()
    await broker.produce([Message("t", b"new")])
    record = await broker.read(TopicPartition("t", 0), 5000)
    assert record is not None
    assert record.value == b"new"


async def test_the_file_shrinks_when_most_of_it_is_free(opened: Opened, tmp_path: Path) -> None:
    broker = await opened()
    await broker.ensure_topics([TopicSpec("t", 1, config={"retention.ms": "1000"})], create=True)
    for _ in range(10):
        await broker.produce([Message("t", bytes(2000), timestamp_ms=1) for _ in range(2000)])
    await broker.close()
    full = (tmp_path / "log.db").stat().st_size
    broker = await opened()
    await broker.maintain()
    await broker.close()
    assert (tmp_path / "log.db").stat().st_size < full / 3


async def test_retention_runs_by_itself(opened: Opened) -> None:
    broker = await opened(maintenance_interval=0.05)
    await broker.ensure_topics([TopicSpec("t", 1, config={"retention.ms": "1000"})], create=True)
    await broker.produce([Message("t", b"old", timestamp_ms=1)])
    partition = broker._store.topics["t"].partitions[0]
    await eventually(lambda: partition.start == 1)


async def test_compaction_keeps_the_last_record_of_each_key_with_its_offset(opened: Opened) -> None:
    broker = await opened()
    await broker.ensure_topics([TopicSpec("t", 1, config={"cleanup.policy": "compact"})], create=True)
    now = time.time_ns() // 1_000_000
    await broker.produce([Message("t", b"%d" % n, b"key %d" % (n % 7), timestamp_ms=1) for n in range(5000)])
    await broker.produce(
        [Message("t", None, b"key 0", timestamp_ms=1), Message("t", None, b"key 1", timestamp_ms=now)]
    )
    await broker.maintain()
    member = Member(broker, ["t"], "g")
    await member.consumer.start()
    await member.poll_for(6)
    await member.poll()
    assert [(record.offset, record.key, record.value) for record in member.all] == [
        *((n, b"key %d" % (n % 7), b"%d" % n) for n in range(4993, 5000) if n % 7 > 1),
        (5001, b"key 1", None),  # the tombstone of key 0 is older than delete.retention.ms
    ]
    assert all(behind == 0 for behind in member.consumer.lag().values())
    await broker.produce([Message("t", b"x", b"key 2")])
    await member.poll_for(7)
    assert member.all[-1].offset == 5002


async def test_compaction_waits_until_there_is_something_to_gain(opened: Opened) -> None:
    broker = await opened()
    await broker.ensure_topics([TopicSpec("t", 1, config={"cleanup.policy": "compact"})], create=True)
    await broker.produce([Message("t", b"v", b"%d" % n) for n in range(100)])
    await broker.maintain()
    await broker.produce([Message("t", b"w", b"%d" % n) for n in range(10)])
    await broker.maintain()
    assert (
        await broker._store._run(broker._store._file.count, broker._store.topics["t"].partitions[0].id) == 110
    )
    await broker.produce([Message("t", b"x", b"%d" % n) for n in range(100)])
    await broker.maintain()
    assert (
        await broker._store._run(broker._store._file.count, broker._store.topics["t"].partitions[0].id) == 100
    )


async def test_compaction_leaves_what_is_younger_than_the_lag(opened: Opened) -> None:
    broker = await opened()
    config = {
        "cleanup.policy": "compact",
        "min.compaction.lag.ms": "3600000",
        "min.cleanable.dirty.ratio": "0.1",
    }
    await broker.ensure_topics([TopicSpec("t", 1, config=config)], create=True)
    now = time.time_ns() // 1_000_000
    old, young = now - 7200_000, now - 60_000

    def wrote(key: bytes, value: bytes, timestamp: int) -> Message:
        return Message("t", value, key, timestamp_ms=timestamp)

    await broker.produce([wrote(b"a", b"1", old), wrote(b"a", b"2", old), wrote(b"b", b"1", old)])
    await broker.produce([wrote(b"b", b"2", young), wrote(b"b", b"3", young), wrote(b"a", b"3", old)])
    await broker.maintain()
    reader = broker.reader("t")
    await reader.start()
    kept = [(record.key, record.value) for record in await reader.read(1, 100)]
    # Of what is old enough the last of each key, though the key comes again later; all of the rest.
    assert kept == [(b"a", b"2"), (b"b", b"1"), (b"b", b"2"), (b"b", b"3"), (b"a", b"3")]


async def test_what_was_left_to_compact_is_compacted_when_the_file_is_opened(opened: Opened) -> None:
    broker = await opened()
    await broker.ensure_topics([TopicSpec("t", 1, config={"cleanup.policy": "compact"})], create=True)
    await broker.produce([Message("t", b"%d" % n, b"key") for n in range(100)])
    await broker.close()
    broker = await opened()
    async with asyncio.timeout(20):
        while await broker.read(TopicPartition("t", 0), 98) is not None:
            await asyncio.sleep(0.01)
    last = await broker.read(TopicPartition("t", 0), 99)
    assert last is not None
    assert last.value == b"99"
