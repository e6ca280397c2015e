"""What only the embedded broker has: its file, its lock, its disk, its retention."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from dispatcher.broker.base import (
    BrokerRefused,
    BrokerUnavailable,
    CommitRefused,
    Message,
    Position,
    TopicPartition,
    TopicSpec,
)
from dispatcher.broker.sqlite.broker import SqliteBroker
from tests.broker.backends import WITHIN, Listener, Member, eventually

Opened = Callable[..., Any]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opened]:
    """Opens brokers, by default on the same file; closes what is left open."""
    brokers: list[SqliteBroker] = []

    async def connect(path: Path = tmp_path / "log.db", **options: Any) -> SqliteBroker:
        broker = SqliteBroker(path, **options)
        brokers.append(broker)
        await broker.connect()
        return broker

    yield connect
    for broker in brokers:
        await broker.close()


async def earliest_and_latest(broker: SqliteBroker, topic: str, partition: int = 0) -> tuple[int, int]:
    (info,) = [info for info in await broker.topics() if info.name == topic]
    return info.partitions[partition].earliest, info.partitions[partition].latest


# The file.


async def test_the_directory_is_made(opened: Opened, tmp_path: Path) -> None:
    await opened(tmp_path / "not" / "there" / "log.db")
    assert (tmp_path / "not" / "there" / "log.db").exists()


async def test_a_second_process_is_told_who_has_the_file(opened: Opened, tmp_path: Path) -> None:
    await opened()
    script = f"""
        import asyncio
        from pathlib import Path
        from dispatcher.broker.base import BrokerRefused
        from dispatcher.broker.sqlite.broker import SqliteBroker

        async def main():
            try:
                await SqliteBroker(Path({str(tmp_path / "log.db")!r})).connect()
            except BrokerRefused as error:
                print(error)

        asyncio.run(main())
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(script), stdout=asyncio.subprocess.PIPE
    )
    said = (await asyncio.wait_for(process.communicate(), WITHIN))[0].decode()
    assert f"log.db is in use by process {os.getpid()}" in said
    assert process.returncode == 0


async def test_the_lock_goes_with_close(opened: Opened) -> None:
    broker = await opened()
    with pytest.raises(BrokerRefused, match="in use by process"):
        await opened()
    await broker.close()
    await opened()


async def test_what_was_acknowledged_survives_kill_9_and_so_does_the_lock_not(
    opened: Opened, tmp_path: Path
) -> None:
    """A process appends, prints what was acknowledged, and is killed in the middle of it."""
    script = f"""
        import asyncio
        from pathlib import Path
        from dispatcher.broker.base import Message, Position, TopicPartition, TopicSpec
        from dispatcher.broker.sqlite.broker import SqliteBroker

        class Listener:
            async def on_assigned(self, partitions): pass
            async def on_revoked(self, partitions): pass
            def on_jump(self, jump): pass

        async def main():
            broker = SqliteBroker(Path({str(tmp_path / "log.db")!r}))
            await broker.connect()
            await broker.ensure_topics([TopicSpec("t", 1)], create=True)
            consumer = broker.consumer(["t"], "g", Listener())
            await consumer.start()
            for n in range(1_000_000):
                await broker.produce([Message("t", b"%d" % n + b"." * 500)] * 3)
                await consumer.commit({{TopicPartition("t", 0): Position(n, "at %d" % n)}})
                print("acknowledged", n, flush=True)

        asyncio.run(main())
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    last = -1
    for line in process.stdout:  # goes on until the pipe is empty
        if line.startswith("acknowledged ") and line.endswith("\n"):
            last = int(line.split()[1])
            if last == 200:
                process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert last >= 200

    broker = await opened()
    member = Member(broker, ["t"], "other")
    await member.consumer.start()
    await member.poll_for(3 * (last + 1))
    await member.poll()
    read = [int((value or b"").rstrip(b".")) for value in member.values]
    assert read == sorted(read)
    assert all(read.count(n) == 3 for n in (0, last, len(read) // 3 - 1)), (
        "a call is written whole or not at all"
    )
    assert [record.offset for record in member.all] == list(range(len(read)))
    (found,) = await broker.topics("g")
    assert found.partitions[0].committed is not None
    assert found.partitions[0].committed >= last


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
async def test_a_file_that_is_no_database_is_refused(opened: Opened, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log.db").write_bytes(content)
    with pytest.raises(BrokerRefused, match=r"log\.db"):
        await opened()


async def test_somebody_elses_database_is_refused_and_left_alone(opened: Opened, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "log.db") as db:
        db.execute("CREATE TABLE topics (id INTEGER)")
    db.close()
    with pytest.raises(BrokerRefused, match="not one of this program's"):
        await opened()


async def test_a_newer_files_version_is_refused(opened: Opened, tmp_path: Path) -> None:
    await (await opened()).close()
    db = sqlite3.connect(tmp_path / "log.db")
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(BrokerRefused, match="newer version"):
        await opened()


@pytest.mark.parametrize("where", ["directory", "parent is a file"])
async def test_a_path_that_can_not_be_a_file_is_refused(opened: Opened, tmp_path: Path, where: str) -> None:
    if where == "directory":
        path = tmp_path / "log.db"
        path.mkdir()
    else:
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "log.db"
    with pytest.raises(BrokerRefused, match=str(path)):
        await opened(path)


async def test_before_connect_and_after_close_calls_say_so(tmp_path: Path) -> None:
    broker = SqliteBroker(tmp_path / "log.db")
    assert broker.problem is not None
    with pytest.raises(BrokerUnavailable):
        await broker.ensure_topics([TopicSpec("t")], create=True)
    await broker.connect()
    await broker.connect()
    await broker.ensure_topics([TopicSpec("t")], create=True)
    await broker.close()
    closed = broker.problem
    assert closed == "closed"
    with pytest.raises(BrokerUnavailable):
        await broker.produce([Message("t", b"v")])


async def test_defaults_for_topics_come_from_the_settings(opened: Opened) -> None:
    broker = await opened(partitions=2, retention=3600.0)
    await broker.ensure_topics([TopicSpec("t"), TopicSpec("u", 7, config={"retention.ms": "5"})], create=True)
    t, u = await broker.topics()
    assert (len(t.partitions), t.config["retention.ms"]) == (2, "3600000")
    assert (len(u.partitions), u.config["retention.ms"]) == (7, "5")


async def test_a_config_that_is_no_number_is_refused(opened: Opened) -> None:
    broker = await opened()
    with pytest.raises(BrokerRefused, match=r"retention\.ms must be a number"):
        await broker.ensure_topics([TopicSpec("t", config={"retention.ms": "a week"})], create=True)


# A full disk.


async def test_a_full_disk_is_told_of_loses_nothing_and_ends_when_there_is_room(opened: Opened) -> None:
    broker = await opened()
    await broker.ensure_topics([TopicSpec("t", 1)], create=True)
    await broker.produce([Message("t", b"%d" % n) for n in range(10)])
    await broker._store._run(broker._store._file.limit_pages, 60)
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

    await broker._store._run(broker._store._file.limit_pages, 1_000_000)
    await broker.produce([Message("t", b"%d" % written)])
    assert broker.problem is None
    await member.poll_for(written + 1)
    assert [int((value or b"").rstrip(b".")) for value in member.values] == list(range(written + 1))
    assert [record.offset for record in member.all] == list(range(written + 1))


async def test_every_call_that_shared_a_failed_transaction_is_told(opened: Opened) -> None:
    broker = await opened()
    await broker.ensure_topics([TopicSpec("t", 1)], create=True)
    await broker._store._run(broker._store._file.limit_pages, 40)
    calls = [broker.produce([Message("t", bytes(100_000))]) for _ in range(20)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    failed = [outcome for outcome in outcomes if isinstance(outcome, BrokerUnavailable)]
    assert failed
    await broker._store._run(broker._store._file.limit_pages, 1_000_000)
    await broker.produce([Message("t", b"v")])
    assert (await earliest_and_latest(broker, "t"))[1] == len(outcomes) - len(failed) + 1


# Group commit.


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


# Retention and compaction.


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


async def test_a_reader_behind_what_was_compacted_at_the_end_does_not_spin(opened: Opened) -> None:
    broker = await opened()
    await broker.ensure_topics([TopicSpec("t", 1, config={"cleanup.policy": "compact"})], create=True)
    await broker.produce([Message("t", b"v", b"k"), Message("t", None, b"k", timestamp_ms=1)])
    await broker.maintain()
    member = Member(broker, ["t"], "g")
    await member.consumer.start()
    fetches = 0
    fetch = broker._store._file.fetch

    def counted(*arguments: Any) -> Any:
        nonlocal fetches
        fetches += 1
        return fetch(*arguments)

    broker._store._file.fetch = counted
    assert await member.poll(0.3) == 0
    assert fetches <= 1


# Groups.


async def test_a_member_that_does_not_give_up_in_time_is_left_behind_and_joins_again(opened: Opened) -> None:
    broker = await opened(rebalance_timeout=0.3)
    await broker.ensure_topics([TopicSpec("t")], create=True)
    release = asyncio.Event()

    async def hang(_partitions: object) -> None:
        await release.wait()

    slow = Member(broker, ["t"], "g", Listener(during_revoked=hang))
    quick = Member(broker, ["t"], "g")
    await slow.consumer.start()
    await quick.consumer.start()
    assert len(quick.listener.assigned) == 4
    with pytest.raises(CommitRefused):
        await slow.consumer.commit({TopicPartition("t", 0): Position(1)})
    slow.listener.during_revoked = None
    release.set()
    await eventually(lambda: len(slow.listener.assigned) == len(quick.listener.assigned) == 2)


async def test_close_stops_members_and_waits_for_writes(opened: Opened, tmp_path: Path) -> None:
    broker = await opened()
    await broker.ensure_topics([TopicSpec("t", 1)], create=True)
    member = Member(broker, ["t"], "g")
    await member.consumer.start()
    write = asyncio.get_running_loop().create_task(broker.produce([Message("t", b"v")]))
    await asyncio.sleep(0)
    await broker.close()
    await write
    assert await member.consumer.poll(1.0, 10) == ()
    broker = await opened()
    assert await earliest_and_latest(broker, "t") == (0, 1)


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
