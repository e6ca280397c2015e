"""`dispatcher history` on the embedded broker and SQLite."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path

from dispatcher.broker.base import Message, TopicSpec
from dispatcher.broker.sqlite.broker import SqliteBroker
from dispatcher.history.base import DeliveryQuery, Retention
from dispatcher.history.following import Counter, of_attempts
from dispatcher.history.indexer import Indexer
from dispatcher.history.logged import DAY_MS
from dispatcher.history.sqlite.store import SqliteHistory
from tests.commands.console import dispatcher
from tests.history.records import value

ATTEMPTS = "dispatcher.attempts"
DATA = "dispatcher-data"


async def write(folder: Path, ages_ms: list[int]) -> None:
    """Attempts of these ages in the log."""
    now = int(time.time() * 1000)
    broker = SqliteBroker(folder / DATA / "log.db")
    await broker.connect()
    await broker.ensure_topics([TopicSpec(ATTEMPTS, 2), TopicSpec("dispatcher.dead", 1)], create=True)
    for offset, age in enumerate(ages_ms):
        record = value(offset, time_ms=now - age)
        await broker.produce([Message(ATTEMPTS, record, b"k", (), offset % 2, now - age)])
    await broker.close()


async def index(folder: Path, records: int) -> list[int]:
    """Let the history read so many; the offsets of the deliveries' events that it has then."""
    broker = SqliteBroker(folder / DATA / "log.db")
    await broker.connect()
    counter = Counter()
    store = SqliteHistory(folder / DATA / "log-history", Retention(30 * DAY_MS, 30 * DAY_MS))
    indexer = Indexer(
        store, broker, {ATTEMPTS: of_attempts(counter)}, "g", max_behind=3600.0, counter=counter
    )
    indexer.start()
    async with asyncio.timeout(60):
        while counter.indexed < records:
            await asyncio.sleep(0.02)
    rows = (await store.deliveries(DeliveryQuery(0, 2**53, 100))).items
    await indexer.stop()
    await broker.close()
    return sorted(row.offset for row in rows)


def test_it_is_made_again_of_all_that_the_topics_have_or_of_a_time(tmp_path: Path) -> None:
    hour = 3600_000
    asyncio.run(write(tmp_path, [50 * hour, 40 * hour, 5 * hour, 4 * hour, 0]))
    assert asyncio.run(index(tmp_path, 1)) == [4]
    ended = dispatcher("history", "rebuild", "--yes", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("the history is empty; the dispatcher will read 5 records of 3 partitions")
    assert asyncio.run(index(tmp_path, 5)) == [0, 1, 2, 3, 4]
    ended = dispatcher("history", "rebuild", "--since", "6h", "--yes", cwd=tmp_path)
    assert "will read 3 records" in ended.stdout
    assert asyncio.run(index(tmp_path, 3)) == [2, 3, 4]


def test_it_is_compared_with_the_log_and_what_is_missing_is_named(tmp_path: Path) -> None:
    asyncio.run(write(tmp_path, [0] * 6))
    ended = dispatcher("history", "check", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (0, "0 records looked up, 0 missing; 6 not read yet\n")
    assert asyncio.run(index(tmp_path, 6)) == list(range(6))
    ended = dispatcher("history", "check", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (0, "6 records looked up, 0 missing; 0 not read yet\n")
    (file,) = (tmp_path / DATA / "log-history").glob("2*.db")
    with sqlite3.connect(file) as db:
        db.execute("DELETE FROM history_deliveries WHERE source_offset = 3")
    db.close()
    ended = dispatcher("history", "check", cwd=tmp_path)
    assert ended.returncode == 1
    assert "missing: dlv_" in ended.stdout
    assert f"from {ATTEMPTS}-1 offset 1" in ended.stdout
    assert "dispatcher history rebuild" in ended.stderr


def test_without_a_history_or_beside_a_running_one_it_says_so(tmp_path: Path) -> None:
    ended = dispatcher("history", "rebuild", "--yes", "--set", "history.store=off", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (1, "Error: history.store is off: there is no history\n")
    ended = dispatcher("history", "rebuild", "--since", "soon", "--yes", cwd=tmp_path)
    assert ended.returncode == 2
    assert "--since" in ended.stderr
