"""What the benchmark of the pages generates, and how it reads a trace."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks import pages
from benchmarks.harness import CannotRun
from dispatcher.history.base import BUCKETS

NOW = 1_800_000_000_000
DAY = 86_400_000


def asked(directory: Path, query: str) -> list[int]:
    """The sums of a query over all files of days."""
    found = []
    for path in sorted(directory.glob("????-??-??.db")):
        with closing(sqlite3.connect(path)) as database:
            found.append(database.execute(query).fetchone()[0])
    return found


def test_a_history_of_so_many_deliveries_is_generated_with_its_counts_and_indexes(tmp_path: Path) -> None:
    pages.generate(tmp_path, 3000, NOW)
    assert sum(asked(tmp_path, "SELECT count(*) FROM history_deliveries")) == pytest.approx(3000, abs=11)
    for counted, column in (("state = 4", "delivered"), ("state = 3", "dead"), ("state < 4", "failed")):
        assert asked(tmp_path, f"SELECT count(*) FROM history_deliveries WHERE {counted}") == asked(
            tmp_path, f"SELECT sum({column}) FROM history_counts"
        )
    buckets = " + ".join(f"sum({name})" for name in BUCKETS)
    assert asked(tmp_path, f"SELECT {buckets} FROM history_counts") == asked(
        tmp_path, "SELECT count(*) FROM history_deliveries"
    )
    assert set(
        asked(tmp_path, "SELECT count(*) FROM sqlite_master WHERE tbl_name = 'history_deliveries'")
    ) == {9}
    first, last = (
        asked(tmp_path, f"SELECT {which}(created_ms) FROM history_deliveries") for which in ("min", "max")
    )
    assert min(first) >= NOW - 10 * DAY
    assert NOW - 3600_000 < max(last) < NOW


def test_it_is_used_again_where_it_is_the_same_and_of_this_day(tmp_path: Path) -> None:
    pages.generate(tmp_path, 100, NOW)
    before = asked(tmp_path, "SELECT max(delivery_id) FROM history_deliveries")
    assert pages.generate(tmp_path, 100, NOW + 1000) == NOW
    assert asked(tmp_path, "SELECT max(delivery_id) FROM history_deliveries") == before
    pages.generate(tmp_path, 200, NOW)
    assert sum(asked(tmp_path, "SELECT count(*) FROM history_deliveries")) > 150


def test_one_that_was_not_completed_is_gone_on_with(tmp_path: Path) -> None:
    pages.generate(tmp_path, 3000, NOW)
    last = max(tmp_path.glob("????-??-??.db"))
    before = asked(tmp_path, "SELECT max(delivery_id) FROM history_deliveries")
    note = tmp_path / "generated.json"
    made = json.loads(note.read_text())
    note.write_text(json.dumps({**made, "done": made["done"][:-1]}))
    last.write_bytes(b"half of a file")
    pages.generate(tmp_path, 3000, NOW + 1000)
    after = asked(tmp_path, "SELECT max(delivery_id) FROM history_deliveries")
    assert after[:-1] == before[:-1]
    assert after[-1] != before[-1]


def test_of_a_trace_the_longest_task_of_the_pages_main_thread_counts() -> None:
    def task(thread: int, micros: int, cpu: int) -> dict[str, object]:
        return {"ph": "X", "name": "RunTask", "pid": 1, "tid": thread, "dur": micros, "tdur": cpu}

    main = {"name": "thread_name", "pid": 1, "tid": 7, "args": {"name": "CrRendererMain"}}
    trace = [main, task(7, 12_000, 9_000), task(7, 30_000, 4_000), task(8, 90_000, 90_000)]
    assert pages.longest_task(trace) == (2, 30.0, 9.0)
    with pytest.raises(CannotRun):
        pages.longest_task([main])
