"""The writing side of the history on SQLite: `history.db` and the files of days. In the store's one thread."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from dispatcher.history.base import (
    DeliveryRow,
    LogBatch,
    LogPartition,
    PositionMoved,
    Retention,
    Sizes,
    Standing,
    SubscriptionVersion,
)
from dispatcher.history.bounds import kept_time
from dispatcher.history.logged import DAY_MS, LoggedAttempt
from dispatcher.history.merge import Group, grouped, merge, repeats, succeeded_at_once
from dispatcher.history.sqlite.day_file import (
    SUFFIX,
    Connect,
    DayFile,
    DayWork,
    abandon,
    open_database,
    size_of,
)

MAIN: Final = "history.db"
"""What is of no day: the positions to read on from, gaps, versions of subscriptions."""

_OPEN_FILES: Final = 8
_BREATH: Final = 16  # deliveries between two moments in which other threads may go on
_NAME: Final = re.compile(r"(\d{4}-\d{2}-\d{2})(?:\.counts)?\.db")

_SCHEMA: Final = """
CREATE TABLE positions (topic TEXT NOT NULL, topic_id TEXT NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL,
  time_ms INTEGER NOT NULL, until INTEGER NOT NULL, PRIMARY KEY (topic, topic_id, partition)) WITHOUT ROWID;
CREATE TABLE gaps (topic TEXT NOT NULL, topic_id TEXT NOT NULL, partition INTEGER NOT NULL, first INTEGER NOT NULL,
  next INTEGER NOT NULL, since_ms INTEGER NOT NULL, until_ms INTEGER NOT NULL, reason TEXT NOT NULL);
CREATE TABLE subscription_versions (subscription_id TEXT NOT NULL, since_ms INTEGER NOT NULL, tenant TEXT, status TEXT NOT NULL,
  document TEXT NOT NULL, PRIMARY KEY (subscription_id, since_ms)) WITHOUT ROWID;
"""

# Beside the tables, also in a file of an earlier version, which works with it all the same.
_ADDED: Final = (
    "CREATE INDEX IF NOT EXISTS versions_by_tenant ON subscription_versions (tenant, subscription_id)"
)


class HistoryFiles:
    """All files of a directory."""

    def __init__(self, directory: Path, retention: Retention, *, keep_all: bool, connect: Connect) -> None:
        self._directory = directory
        self._retention = retention
        self._keep_all = keep_all
        self._connect = connect
        self._main: sqlite3.Connection | None = None
        self._days: dict[int, DayFile] = {}
        self._used: list[DayFile] = []  # those with a connection, the one used last at the end

    def open(self) -> None:
        """Find the files there are."""
        self._main = open_database(self._directory / MAIN, _SCHEMA, self._connect)
        self._main.execute(_ADDED)
        for path in self._directory.glob("*.new"):
            path.unlink()  # a file that was being made when the process ended
        for path in sorted(self._directory.glob(f"*{SUFFIX}")):
            if (day := day_of(path.name)) is not None and day not in self._days:
                self._day(day)

    def close(self) -> None:
        for file in self._days.values():
            file.close()
        self._days.clear()
        self._used.clear()
        if self._main is not None:
            self._main.close()
            self._main = None

    @property
    def _db(self) -> sqlite3.Connection:
        if self._main is None:
            self._main = open_database(self._directory / MAIN, _SCHEMA, self._connect)
        return self._main

    def _day(self, day: int) -> DayFile:
        file = self._days.get(day)
        if file is None:
            file = DayFile(
                self._directory,
                day,
                datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m-%d"),
                self._connect,
            )
            file.load()
            if not self._days or day > max(self._days):
                for other in self._days.values():
                    other.keep_pages(newest=False)
                file.keep_pages(newest=True)
            self._days[day] = file
        if file in self._used:
            self._used.remove(file)
        self._used.append(file)
        if len(self._used) > _OPEN_FILES:
            self._used.pop(0).close()
        return file

    def positions(self) -> dict[LogPartition, Standing]:
        rows = self._db.execute("SELECT topic, topic_id, partition, next, time_ms, until FROM positions")
        return {LogPartition(*row[:3]): Standing(*row[3:]) for row in rows}

    def apply(self, batches: Sequence[LogBatch], now_ms: int) -> None:
        standing = self.positions()
        for batch in batches:
            held = standing.get(batch.partition)
            if (None if held is None else held.next) != batch.first:
                raise PositionMoved(
                    f"{batch.partition.topic}-{batch.partition.partition} stands elsewhere than at {batch.first}"
                )
        works: dict[int, DayWork] = {}
        oldest = self._retention.oldest_day(now_ms)
        for batch in batches:
            self._sort_attempts(batch, now_ms, works)
            for event in batch.events:
                time_ms = kept_time(event.time_ms, now_ms)
                self._sort(
                    batch,
                    event.offset,
                    time_ms // DAY_MS,
                    oldest,
                    works,
                    "events",
                    event._replace(time_ms=time_ms),
                )
            for dead in batch.dead:
                time_ms = kept_time(dead.time_ms, now_ms)
                self._sort(
                    batch,
                    dead.offset,
                    time_ms // DAY_MS,
                    oldest,
                    works,
                    "dead",
                    dead._replace(time_ms=time_ms),
                )
        reached = {batch.partition: batch.next for batch in batches}
        for day, work in sorted(works.items()):
            self._day(day).write(work, reached)
        self._advance(batches)

    def _sort(
        self,
        batch: LogBatch,
        offset: int,
        day: int,
        oldest: int,
        works: dict[int, DayWork],
        kind: str,
        row: Any,
    ) -> None:
        """To the day's work, unless its file has it already, or it is too old to be kept."""
        if day >= oldest and not self._has(day, batch.partition, offset):
            getattr(works.setdefault(day, DayWork()), kind).append(row)

    def _has(self, day: int, partition: LogPartition, offset: int) -> bool:
        file = self._days.get(day)
        return file is not None and offset < file.positions.get(partition, 0)

    def _sort_attempts(self, batch: LogBatch, now_ms: int, works: dict[int, DayWork]) -> None:
        groups = grouped(batch.attempts)
        found = self._find(groups)
        oldest = self._retention.oldest_day(now_ms)
        oldest_minute = self._retention.oldest_minute(now_ms)

        def kept(time_ms: int) -> int:
            return kept_time(time_ms, now_ms)

        for number, (group, records) in enumerate(groups.items()):
            if number % _BREATH == 0:
                time.sleep(0)  # let the event loop have the interpreter
            row = found.get(group)
            created_ms = kept(records[0].time_ms) if row is None else row.created_ms
            day = created_ms // DAY_MS
            new = [record for record in records if not self._has(day, batch.partition, record.at)]
            if not new or (day < oldest and kept(new[-1].time_ms) < oldest_minute):
                continue
            work = works.setdefault(day, DayWork())
            keys = self._day(day).keys(row.delivery_id) if row is not None and repeats(row, new) else ()
            merged, followed = merge(row, new, keys, created_ms, kept, work.counts)
            if merged is None or day < oldest:
                continue
            if row is None and not followed and not self._keep_all and succeeded_at_once(merged):
                continue
            work.deliveries.append(merged)
            work.attempts += followed

    def _find(self, groups: Mapping[Group, Sequence[LoggedAttempt]]) -> dict[Group, DeliveryRow]:
        """The rows of these deliveries, the newest of each."""
        found: dict[Group, DeliveryRow] = {}
        for day in sorted(self._days, reverse=True):
            file = self._days[day]
            asked = [
                group[0]
                for group, records in groups.items()
                if group not in found
                and file.covers((records[0].topic, records[0].partition), records[0].offset)
            ]
            if asked:
                for row in self._day(day).existing(asked):
                    found.setdefault((row.delivery_id, row.event_id), row)
        return {group: row for group, row in found.items() if group in groups}

    def _advance(self, batches: Sequence[LogBatch]) -> None:
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            for batch in batches:
                db.execute(
                    "INSERT INTO positions (topic, topic_id, partition, next, time_ms, until) VALUES (?, ?, ?, ?, ?, 0)"
                    " ON CONFLICT (topic, topic_id, partition) DO UPDATE SET next = excluded.next, time_ms = excluded.time_ms",
                    (*batch.partition, batch.next, batch.time_ms),
                )
                if (gap := batch.gap) is not None:
                    db.execute("INSERT INTO gaps VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*gap.partition, *gap[1:]))
            db.execute("COMMIT")
        except BaseException:
            self._main = None
            abandon(db)
            raise

    def rebuild(self, positions: Mapping[LogPartition, Standing]) -> None:
        # Without positions first: after a crash in the middle everything is read from the beginning, into what is left or made anew.
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            db.execute("DELETE FROM positions")
            db.execute("DELETE FROM gaps")
            db.execute("COMMIT")
        except BaseException:
            self._main = None
            abandon(db)
            raise
        for file in list(self._days.values()):
            file.delete()
        self._days.clear()
        self._used.clear()
        try:
            db.execute("BEGIN IMMEDIATE")
            db.executemany(
                "INSERT INTO positions (topic, topic_id, partition, next, time_ms, until) VALUES (?, ?, ?, ?, ?, ?)",
                [(*partition, *standing) for partition, standing in positions.items()],
            )
            db.execute("COMMIT")
        except BaseException:
            self._main = None
            abandon(db)
            raise

    def restart(self, partitions: Sequence[LogPartition]) -> None:
        # The position in `history.db` goes last: until then whoever looks finds that the log ends before it.
        for day in list(self._days):
            self._day(day).restart(partitions)
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            db.executemany(
                "DELETE FROM positions WHERE topic = ? AND topic_id = ? AND partition = ?", partitions
            )
            db.execute("COMMIT")
        except BaseException:
            self._main = None
            abandon(db)
            raise

    def cut(self, partition: LogPartition, next_: int) -> None:
        # As in `restart`, the position in `history.db` goes last.
        for day in list(self._days):
            self._day(day).cut(partition, next_)
        self._db.execute(
            "UPDATE positions SET next = ?4 WHERE topic = ?1 AND topic_id = ?2 AND partition = ?3 AND next > ?4",
            (*partition, next_),
        )

    def retain(self, now_ms: int) -> None:
        oldest = self._retention.oldest_day(now_ms)
        minute = self._retention.oldest_minute(now_ms)
        for day, file in list(self._days.items()):
            if day < oldest and file.last_minute < minute:
                file.delete()
                del self._days[day]
                if file in self._used:
                    self._used.remove(file)
                continue
            if day < oldest:
                file.strip()
            if day <= minute // DAY_MS:
                self._day(day).drop_counts(minute)
            if file.last_minute >= file.rolled.hours:
                self._day(day).roll(now_ms)
        self._db.execute("DELETE FROM gaps WHERE until_ms < ?", (now_ms - self._retention.rows_ms,))
        # Of each subscription the last version from before stays: it says what held then.
        self._db.execute(
            "DELETE FROM subscription_versions WHERE since_ms < ?1 AND EXISTS (SELECT 1 FROM subscription_versions AS later"
            " WHERE later.subscription_id = subscription_versions.subscription_id AND later.since_ms > subscription_versions.since_ms"
            " AND later.since_ms <= ?1)",
            (now_ms - self._retention.rows_ms,),
        )

    def note_versions(self, versions: Sequence[SubscriptionVersion]) -> None:
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            for version in versions:
                last = db.execute(
                    "SELECT tenant, status, document FROM subscription_versions WHERE subscription_id = ? ORDER BY since_ms DESC LIMIT 1",
                    (version.subscription_id,),
                ).fetchone()
                if last != (version.tenant, version.status, version.document):
                    db.execute(
                        "INSERT INTO subscription_versions VALUES (?, ?, ?, ?, ?)"
                        " ON CONFLICT (subscription_id, since_ms) DO UPDATE SET tenant = excluded.tenant, status = excluded.status,"
                        " document = excluded.document",
                        version,
                    )
            db.execute("COMMIT")
        except BaseException:
            self._main = None
            abandon(db)
            raise

    def sizes(self) -> Sizes:
        rows, size = 0, size_of(self._directory / MAIN)
        for day in list(self._days):
            some, more = self._day(day).sizes()
            rows += some
            size += more
        return Sizes(rows, size)


def day_of(name: str) -> int | None:
    """The day of a file's name, as days since 1970; None for another file."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    try:
        return int(datetime.strptime(match[1], "%Y-%m-%d").replace(tzinfo=UTC).timestamp()) // 86_400
    except ValueError:
        return None
