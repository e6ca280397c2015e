"""One day of the history in one SQLite file. Used in the store's one thread.

Rules:

1. A record of a log belongs to exactly one file: all that follows from it (row, attempt, count) is in there. That is the file of its
   delivery, which is that of the day on which the first was known of it.
2. The file's positions say what of each log it has: everything below that belongs to it. They are written with the rows.
3. `spans` tells of which stretch of each source partition the file has deliveries: elsewhere there is nothing to look for.
4. A file whose rows are too old is replaced by one that has its counts only (`strip`), and that one is deleted with them.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from dispatcher.history.base import (
    BUCKETS,
    COUNTED,
    AttemptRow,
    DeadRow,
    DeliveryRow,
    EventRow,
    LogPartition,
    StoreRefused,
)
from dispatcher.history.logged import DAY_MS
from dispatcher.history.merge import Counts, Key
from dispatcher.history.questions import (
    ATTEMPT_COLUMNS,
    COUNT_KEY,
    COUNT_VALUES,
    DEAD_COLUMNS,
    DELIVERY_COLUMNS,
    EVENT_COLUMNS,
)
from dispatcher.history.rolling import (
    DAYS,
    HOUR_MS,
    HOURS,
    MINUTES,
    NOT_ROLLED,
    Rolled,
    late,
    summing,
    until_when,
)

T = TypeVar("T")
Connect = Callable[..., sqlite3.Connection]

VERSION: Final = 1
SUFFIX: Final = ".db"
STRIPPED: Final = ".counts.db"
_AT_ONCE: Final = 500  # ids of one statement
_CACHE: Final = 4000  # KiB of pages of a file that are kept in memory
_NEWEST_CACHE: Final = (
    16_000  # of the newest day: nearly all that is written is of it, in no order of its indexes
)

_COUNTS_SCHEMA: Final = f"""
CREATE TABLE history_counts (minute_ms INTEGER NOT NULL, tenant TEXT NOT NULL, subscription_id TEXT NOT NULL,
  event_type TEXT NOT NULL, host TEXT NOT NULL, status INTEGER NOT NULL,
  {", ".join(f"{name} INTEGER NOT NULL" for name in (*COUNTED, *BUCKETS))},
  PRIMARY KEY ({COUNT_KEY})) WITHOUT ROWID;
CREATE TABLE positions (topic TEXT NOT NULL, topic_id TEXT NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL,
  PRIMARY KEY (topic, topic_id, partition)) WITHOUT ROWID;
"""

# Beside the tables, also in a file of an earlier version, which works with it all the same.
_ADDED: Final = (
    *(
        f"CREATE TABLE IF NOT EXISTS {table} (minute_ms INTEGER NOT NULL, tenant TEXT NOT NULL, subscription_id TEXT NOT NULL,"
        " event_type TEXT NOT NULL, host TEXT NOT NULL, status INTEGER NOT NULL, "
        + ", ".join(f"{name} INTEGER NOT NULL" for name in (*COUNTED, *BUCKETS))
        + f", PRIMARY KEY ({COUNT_KEY})) WITHOUT ROWID"
        for table in (HOURS, DAYS)
    ),
    "CREATE TABLE IF NOT EXISTS rolled (one INTEGER PRIMARY KEY CHECK (one = 1), hours INTEGER NOT NULL, days INTEGER NOT NULL)",
)

_SCHEMA: Final = f"""
CREATE TABLE history_deliveries (delivery_id TEXT NOT NULL, created_ms INTEGER NOT NULL, event_id TEXT NOT NULL,
  event_type TEXT NOT NULL, tenant TEXT, subscription_id TEXT NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL,
  source_offset INTEGER NOT NULL, generation INTEGER NOT NULL, state INTEGER NOT NULL, reason TEXT, attempts INTEGER NOT NULL,
  last_ms INTEGER NOT NULL, last_attempt INTEGER NOT NULL, status INTEGER, failure TEXT, total_ms INTEGER NOT NULL,
  due_ms INTEGER, host TEXT, first TEXT NOT NULL);
CREATE UNIQUE INDEX deliveries_by_id ON history_deliveries (delivery_id);
CREATE INDEX deliveries_by_event ON history_deliveries (event_id);
CREATE INDEX deliveries_by_subscription ON history_deliveries (subscription_id, created_ms, delivery_id);
CREATE INDEX deliveries_by_tenant ON history_deliveries (tenant, created_ms, delivery_id);
CREATE INDEX deliveries_by_time ON history_deliveries (created_ms, delivery_id);
CREATE INDEX undelivered_by_subscription ON history_deliveries (subscription_id, created_ms, delivery_id) WHERE state < 4;
CREATE INDEX undelivered_by_tenant ON history_deliveries (tenant, created_ms, delivery_id) WHERE state < 4;
CREATE INDEX undelivered_by_time ON history_deliveries (created_ms, delivery_id) WHERE state < 4;
CREATE TABLE history_attempts (delivery_id TEXT NOT NULL, generation INTEGER NOT NULL, time_ms INTEGER NOT NULL,
  attempt INTEGER NOT NULL, detail TEXT NOT NULL, PRIMARY KEY (delivery_id, generation, time_ms, attempt)) WITHOUT ROWID;
CREATE TABLE history_events (topic TEXT NOT NULL, partition INTEGER NOT NULL, source_offset INTEGER NOT NULL,
  time_ms INTEGER NOT NULL, event_id TEXT NOT NULL, event_type TEXT NOT NULL, tenant TEXT, sha256 TEXT NOT NULL, size INTEGER NOT NULL);
CREATE INDEX events_by_id ON history_events (event_id, time_ms);
CREATE INDEX events_by_tenant ON history_events (tenant, time_ms, event_id);
CREATE INDEX events_by_time ON history_events (time_ms, event_id);
CREATE TABLE history_dead (dead_partition INTEGER NOT NULL, dead_offset INTEGER NOT NULL, time_ms INTEGER NOT NULL, reason TEXT NOT NULL,
  delivery_id TEXT, subscription_id TEXT, event_id TEXT, event_type TEXT, tenant TEXT, topic TEXT NOT NULL, partition INTEGER NOT NULL,
  source_offset INTEGER NOT NULL);
CREATE INDEX dead_by_delivery ON history_dead (delivery_id);
CREATE TABLE spans (topic TEXT NOT NULL, partition INTEGER NOT NULL, low INTEGER NOT NULL, high INTEGER NOT NULL,
  PRIMARY KEY (topic, partition)) WITHOUT ROWID;
{_COUNTS_SCHEMA}
"""

_DELIVERY_WRITE: Final = (
    f"INSERT INTO history_deliveries ({DELIVERY_COLUMNS}) VALUES ({', '.join('?' * len(DeliveryRow._fields))})"
    " ON CONFLICT (delivery_id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in DELIVERY_COLUMNS.split(", ")[1:])
)
_COUNT_WRITES: Final = {
    table: f"INSERT INTO {table} ({COUNT_KEY}, {COUNT_VALUES}) VALUES ({', '.join('?' * (6 + len(COUNTED) + len(BUCKETS)))})"
    f" ON CONFLICT ({COUNT_KEY}) DO UPDATE SET "
    + ", ".join(f"{name} = {name} + excluded.{name}" for name in (*COUNTED, *BUCKETS))
    for table in (MINUTES, HOURS, DAYS)
}


class DayWork:
    """What a batch brings to one day."""

    def __init__(self) -> None:
        self.deliveries: list[DeliveryRow] = []
        self.attempts: list[AttemptRow] = []
        self.events: list[EventRow] = []
        self.dead: list[DeadRow] = []
        self.counts: Counts = {}


class DayFile:
    """The file of a day. What is small of it stays in memory; the connection is opened when it is needed."""

    def __init__(self, directory: Path, day: int, name: str, connect: Connect) -> None:
        self.day = day
        self.positions: dict[LogPartition, int] = {}
        self.spans: dict[tuple[str, int], tuple[int, int]] = {}
        self.last_minute = 0
        self.rolled = NOT_ROLLED
        self._directory = directory
        self._name = name
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._cache = _CACHE
        self.stripped = self.path.with_name(f"{name}{STRIPPED}").exists()

    @property
    def path(self) -> Path:
        return self._directory / f"{self._name}{SUFFIX}"

    @property
    def readable(self) -> Path:
        """The file that holds what there is."""
        return self._directory / f"{self._name}{STRIPPED if self.stripped else SUFFIX}"

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    def load(self) -> None:
        """Open it, made if it isn't there, and read what is kept of it in memory."""
        if self.stripped:
            _unlink(self.path)  # the one with the counts is complete
        db = self._db
        self.positions = {
            LogPartition(*row[:3]): row[3]
            for row in db.execute("SELECT topic, topic_id, partition, next FROM positions")
        }
        self.spans = (
            {}
            if self.stripped
            else {
                (row[0], row[1]): (row[2], row[3])
                for row in db.execute("SELECT topic, partition, low, high FROM spans")
            }
        )
        self.last_minute = db.execute("SELECT max(minute_ms) FROM history_counts").fetchone()[0] or 0
        self.rolled = rolled_of(db)

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = open_database(self.readable, _SCHEMA, self._connect, self._cache)
            for statement in _ADDED:
                self._connection.execute(statement)
        return self._connection

    def keep_pages(self, *, newest: bool) -> None:
        """Keep as many pages in memory as the newest day is allowed, or as any other."""
        self._cache = _NEWEST_CACHE if newest else _CACHE
        if self._connection is not None:
            self._connection.execute(f"PRAGMA cache_size = -{self._cache}")

    def covers(self, source: tuple[str, int], offset: int) -> bool:
        """Whether it may have a delivery of that event (rule 3)."""
        span = self.spans.get(source)
        return span is not None and span[0] <= offset <= span[1]

    def existing(self, ids: Collection[str]) -> Iterator[DeliveryRow]:
        """Those of these deliveries that are in here."""
        for some in chunks(ids):
            marks = ", ".join("?" * len(some))
            query = f"SELECT {DELIVERY_COLUMNS} FROM history_deliveries WHERE delivery_id IN ({marks})"
            for row in self._db.execute(query, some):
                yield DeliveryRow(*row)

    def keys(self, delivery_id: str) -> list[Key]:
        """Those of a delivery's attempts that have rows of their own."""
        query = "SELECT generation, time_ms, attempt FROM history_attempts WHERE delivery_id = ?"
        return list(self._db.execute(query, (delivery_id,)))

    def write(self, work: DayWork, positions: Mapping[LogPartition, int]) -> None:
        """Keep it and stand at the positions: all of it, or nothing."""
        spans = dict(self.spans)
        for row in work.deliveries:
            source = (row.topic, row.partition)
            low, high = spans.get(source, (row.offset, row.offset))
            spans[source] = (min(low, row.offset), max(high, row.offset))
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            if not self.stripped:
                self._write_rows(db, work)
                changed = [
                    (*source, *span) for source, span in spans.items() if self.spans.get(source) != span
                ]
                db.executemany(
                    "INSERT INTO spans (topic, partition, low, high) VALUES (?, ?, ?, ?)"
                    " ON CONFLICT (topic, partition) DO UPDATE SET low = excluded.low, high = excluded.high",
                    changed,
                )
            for table, counts in {MINUTES: work.counts, **late(work.counts, self.rolled)}.items():
                db.executemany(_COUNT_WRITES[table], [(*key, *values) for key, values in counts.items()])
            db.executemany(
                "INSERT INTO positions (topic, topic_id, partition, next) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (topic, topic_id, partition) DO UPDATE SET next = max(next, excluded.next)",
                [(*partition, next_) for partition, next_ in positions.items()],
            )
            db.execute("COMMIT")
        except BaseException:
            self.forget()
            raise
        self.spans = {} if self.stripped else spans
        for partition, next_ in positions.items():
            self.positions[partition] = max(next_, self.positions.get(partition, 0))
        for key in work.counts:
            self.last_minute = max(self.last_minute, key.minute_ms)

    def _write_rows(self, db: sqlite3.Connection, work: DayWork) -> None:
        db.executemany(_DELIVERY_WRITE, work.deliveries)
        # Two records whose numbers are out of bounds may come to one row, and must not stop what follows them.
        db.executemany(
            _insert("history_attempts", ATTEMPT_COLUMNS) + " ON CONFLICT DO NOTHING", work.attempts
        )
        db.executemany(_insert("history_events", EVENT_COLUMNS), work.events)
        db.executemany(_insert("history_dead", DEAD_COLUMNS), work.dead)

    def restart(self, partitions: Sequence[LogPartition]) -> None:
        """Forget the positions of these."""
        self._db.executemany(
            "DELETE FROM positions WHERE topic = ? AND topic_id = ? AND partition = ?", partitions
        )
        for partition in partitions:
            self.positions.pop(partition, None)

    def cut(self, partition: LogPartition, next_: int) -> None:
        """Have nothing of this log from an offset on."""
        if self.positions.get(partition, 0) > next_:
            self._db.execute(
                "UPDATE positions SET next = ?4 WHERE topic = ?1 AND topic_id = ?2 AND partition = ?3",
                (*partition, next_),
            )
            self.positions[partition] = next_

    def roll(self, now_ms: int) -> None:
        """Add up the hours that are over, and the days: all of it, or nothing."""
        end = until_when(now_ms)
        hours, days = self.rolled
        if self.last_minute < hours or hours >= end:
            return
        rolled = Rolled(end, end // DAY_MS * DAY_MS)
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            db.execute(
                summing(MINUTES, HOURS, HOUR_MS, f"minute_ms >= {hours} AND minute_ms < {rolled.hours}")
            )
            db.execute(summing(HOURS, DAYS, DAY_MS, f"minute_ms >= {days} AND minute_ms < {rolled.days}"))
            db.execute("INSERT OR REPLACE INTO rolled (one, hours, days) VALUES (1, ?, ?)", rolled)
            db.execute("COMMIT")
        except BaseException:
            self.forget()
            raise
        self.rolled = rolled

    def drop_counts(self, before_ms: int) -> None:
        """Those of older minutes; of sums those that are older as a whole."""
        for table, length in ((MINUTES, 0), (HOURS, HOUR_MS), (DAYS, DAY_MS)):
            self._db.execute(f"DELETE FROM {table} WHERE minute_ms < ?", (before_ms - length + bool(length),))

    def strip(self) -> None:
        """Keep nothing but the counts and positions (rule 4)."""
        if self.stripped:
            return
        self.close()
        new = self._directory / f"{self._name}.new"
        _unlink(new)
        made = self._connect(new, isolation_level=None, check_same_thread=False)
        try:
            made.executescript(_COUNTS_SCHEMA)
            for statement in _ADDED:
                made.execute(statement)
            made.execute(f"PRAGMA user_version = {VERSION}")
            made.execute("ATTACH ? AS whole", (str(self.path),))
            made.execute("BEGIN IMMEDIATE")
            for table in (MINUTES, HOURS, DAYS, "rolled", "positions"):
                made.execute(f"INSERT INTO main.{table} SELECT * FROM whole.{table}")
            made.execute("COMMIT")
        finally:
            made.close()
        new.replace(self._directory / f"{self._name}{STRIPPED}")
        self.stripped = True
        self.spans = {}
        _unlink(self.path)

    def sizes(self) -> tuple[int, int]:
        """Rows, as far as that is cheap to tell, and bytes."""
        rows = 0
        if not self.stripped:
            for table in ("history_deliveries", "history_events", "history_dead"):
                rows += self._db.execute(f"SELECT max(rowid) FROM {table}").fetchone()[0] or 0
        return rows, size_of(self.readable)

    def forget(self) -> None:
        """Let go of the connection; what was not committed isn't there."""
        connection, self._connection = self._connection, None
        if connection is not None:
            abandon(connection)

    def close(self) -> None:
        self.forget()

    def delete(self) -> None:
        self.forget()
        _unlink(self.path)
        _unlink(self._directory / f"{self._name}{STRIPPED}")


def rolled_of(db: sqlite3.Connection) -> Rolled:
    """Until when the file's counts are added up; a file that an earlier version has written last has no sums."""
    try:
        row = db.execute("SELECT hours, days FROM rolled").fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        row = None
    return NOT_ROLLED if row is None else Rolled(*row)


def _insert(table: str, columns: str) -> str:
    return f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * len(columns.split(',')))})"


def chunks(values: Iterable[T], size: int = _AT_ONCE) -> Iterator[list[T]]:
    """All of them in lists of at most `size`."""
    left = iter(values)
    while some := list(islice(left, size)):
        yield some


def open_database(path: Path, schema: str, connect: Connect, cache: int = _CACHE) -> sqlite3.Connection:
    """Open a file for writing; one that is new gets its tables. `cache` is in KiB. Raises sqlite3.Error or StoreRefused."""
    db = connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA cache_size = -{cache}")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        _check_version(path, version)
        if version == 0:
            statements = [statement for statement in schema.split(";\n") if statement.strip()]
            db.execute("BEGIN IMMEDIATE")
            for statement in statements:
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {VERSION}")
            db.execute("COMMIT")
    except BaseException:
        abandon(db)
        raise
    return db


def _check_version(path: Path, version: int) -> None:
    if version > VERSION:
        raise StoreRefused(
            f"{path} was written by a later version of the dispatcher: go back to that, or move the history's directory away, and it is"
            " made of the topics again"
        )


def abandon(connection: sqlite3.Connection) -> None:
    """Close it. What was not committed is taken back here: a cursor that somebody still holds would keep it, and the file locked."""
    with contextlib.suppress(sqlite3.Error):
        connection.rollback()
    connection.close()


def size_of(path: Path) -> int:
    """Bytes of the file, with what is written ahead of it."""
    total = 0
    for suffix in ("", "-wal"):
        try:
            total += path.with_name(path.name + suffix).stat().st_size
        except FileNotFoundError:
            continue
    return total


def _unlink(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def rows_of(connection: sqlite3.Connection, question: tuple[str, Sequence[Any]]) -> list[Any]:
    """All that it answers."""
    return connection.execute(*question).fetchall()
