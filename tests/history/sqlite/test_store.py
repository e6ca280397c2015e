"""What is SQLite's own: files, locks, and what is wrong with them."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from dispatcher.history.base import (
    CountQuery,
    DeliveryQuery,
    QueryTooLong,
    Retention,
    StoreRefused,
    StoreUnavailable,
)
from dispatcher.history.logged import DAY_MS
from dispatcher.history.sqlite.store import SqliteHistory
from tests.history.records import NOON, attempt, batch

EVER = 2**53
MONTH = Retention(30 * DAY_MS, 30 * DAY_MS)


async def opened(directory: Path, retention: Retention = MONTH, **options: float) -> SqliteHistory:
    store = SqliteHistory(directory, retention, **options)  # type: ignore[arg-type] # numbers
    await store.open()
    return store


async def offsets(store: SqliteHistory) -> list[int]:
    return sorted(row.offset for row in (await store.deliveries(DeliveryQuery(0, EVER, 1000))).items)


async def test_each_day_has_a_file_and_retention_unlinks_it(tmp_path: Path) -> None:
    store = await opened(tmp_path, Retention(2 * DAY_MS, 2 * DAY_MS))
    for day in range(3):
        now = NOON + day * DAY_MS
        await store.apply([batch([attempt(day, day, time_ms=now)], day or None, day + 1)], now)
    days = ["2025-11-08.db", "2025-11-09.db", "2025-11-10.db"]
    assert sorted(path.name for path in tmp_path.glob("2025*.db")) == days
    await store.retain(NOON + 3 * DAY_MS)
    assert sorted(path.name for path in tmp_path.glob("2025*")) != []
    assert not list(tmp_path.glob("2025-11-08*"))
    await store.close()


async def test_a_file_whose_rows_are_too_old_keeps_its_counts_only(tmp_path: Path) -> None:
    store = await opened(tmp_path, Retention(DAY_MS, 10 * DAY_MS))
    await store.apply([batch([attempt(0, 0)], None, 1)], NOON)
    await store.retain(NOON + 3 * DAY_MS)
    assert not (tmp_path / "2025-11-08.db").exists()
    assert (tmp_path / "2025-11-08.counts.db").exists()
    await store.close()
    # A crash behind the file that has the counts, before the other one is deleted.
    (tmp_path / "2025-11-08.db").write_bytes(b"")
    (tmp_path / "2025-11-09.new").write_bytes(b"half")
    store = await opened(tmp_path, Retention(DAY_MS, 10 * DAY_MS))
    assert not (tmp_path / "2025-11-08.db").exists()
    assert not (tmp_path / "2025-11-09.new").exists()
    (row,) = await store.counts(CountQuery(0, EVER, EVER))
    assert row.counts[0] == 1
    await store.retain(NOON + 30 * DAY_MS)
    assert not list(tmp_path.glob("2025*"))
    await store.close()


async def test_two_processes_do_not_share_a_directory(tmp_path: Path) -> None:
    first = await opened(tmp_path)
    second = SqliteHistory(tmp_path, MONTH)
    with pytest.raises(StoreUnavailable, match=r"another process has the history"):
        await second.open()
    await first.close()
    await second.open()
    await second.close()


async def test_a_file_of_a_later_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await store.apply([batch([attempt(0, 0)], None, 1)], NOON)
    await store.close()
    db = sqlite3.connect(tmp_path / "2025-11-08.db")
    db.execute("PRAGMA user_version = 99")
    db.close()
    store = SqliteHistory(tmp_path, MONTH)
    with pytest.raises(StoreRefused, match=r"later version"):
        await store.open()
    await store.close()


async def test_a_file_that_is_no_database_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "history.db").write_bytes(b"no database at all" * 100)
    store = SqliteHistory(tmp_path, MONTH)
    with pytest.raises(StoreRefused, match=r"dispatcher history rebuild"):
        await store.open()
    await store.close()


async def test_without_the_main_file_the_days_still_know_what_they_have(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    records = [attempt(at, at) for at in range(3)]
    await store.apply([batch(records, None, 3)], NOON)
    await store.close()
    for path in tmp_path.glob("history.db*"):
        path.unlink()
    store = await opened(tmp_path)
    assert await store.positions() == {}
    await store.apply([batch([*records, attempt(3, 3)], None, 4)], NOON)
    assert await offsets(store) == [0, 1, 2, 3]
    (row,) = await store.counts(CountQuery(0, EVER, EVER))
    assert row.counts[0] == 4
    await store.close()


async def test_a_question_that_takes_too_long_is_interrupted(tmp_path: Path) -> None:
    store = await opened(tmp_path, query_limit=-1.0)
    await store.apply([batch([attempt(at, at) for at in range(5000)], None, 5000)], NOON)
    with pytest.raises(QueryTooLong):
        await store.deliveries(DeliveryQuery(0, EVER, 1000, status=(1, 2)))
    await store.close()


async def test_names_with_signs_that_urls_know_are_found(tmp_path: Path) -> None:
    store = await opened(tmp_path / "a?b#c%20d")
    await store.apply([batch([attempt(0, 0)], None, 1)], NOON)
    assert await offsets(store) == [0]
    await store.close()


async def test_questions_before_it_is_open_say_so(tmp_path: Path) -> None:
    store = SqliteHistory(tmp_path, MONTH)
    with pytest.raises(StoreUnavailable, match=r"not open yet"):
        await store.deliveries(DeliveryQuery(0, EVER, 1))
    await store.close()


async def test_only_so_many_files_are_open_at_a_time(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    for day in range(20):
        time_ms = NOON - day * DAY_MS
        await store.apply([batch([attempt(day, day, time_ms=time_ms)], day or None, day + 1)], NOON)
    assert sum(file.is_open for file in store._files._days.values()) <= 8
    assert await offsets(store) == list(range(20))
    await store.close()


async def test_a_record_whose_numbers_are_none_of_ours_stops_nothing(tmp_path: Path) -> None:
    # Columns are narrower than what a record may say: two that differ there are one row.
    store = await opened(tmp_path)
    strange: list[dict[str, Any]] = [{"generation": 2**40}, {"attempt": 2**40}, {"generation": -5}]
    for at in range(4 * len(strange)):
        record = attempt(at, 0, decision="retry", **strange[at // 4])
        await store.apply([batch([record], at or None, at + 1)], NOON)
    await store.apply([batch([attempt(12, 1)], 12, 13)], NOON)
    assert await offsets(store) == [0, 1]
    await store.close()


async def test_nobody_else_may_look_into_the_folder(tmp_path: Path) -> None:
    store = await opened(tmp_path / "data" / "history")
    assert (tmp_path / "data" / "history").stat().st_mode & 0o777 == 0o700
    await store.close()
