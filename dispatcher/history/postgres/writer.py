"""What is written to the history in PostgreSQL, and the partitions that hold it."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import asyncpg

from dispatcher.history import questions
from dispatcher.history.base import (
    BUCKETS,
    COUNTED,
    DeliveryRow,
    LogBatch,
    LogPartition,
    PositionMoved,
    Retention,
    Standing,
    SubscriptionVersion,
)
from dispatcher.history.logged import DAY_MS
from dispatcher.history.merge import Counts
from dispatcher.history.postgres.migrations import BY_DAY, COUNTS_BY_DAY
from dispatcher.history.postgres.sums import roll, with_late
from dispatcher.history.rolling import MINUTES
from dispatcher.history.writing import Spans, Work, plan

DAYS_AHEAD: Final = 3
"""Days whose partitions there are before they begin: a maintenance that fails for that long stops nothing."""

WRITE_LIMIT: Final = 60.0
"""Seconds for one statement of a write."""

LOCK: Final = 0x64697370
"""Ours, of PostgreSQL's advisory locks; the schema is the other half."""

_DELIVERY_COLUMNS: Final = ("day", *questions.DELIVERY_COLUMNS.split(", "))
_ATTEMPT_COLUMNS: Final = ("day", *questions.ATTEMPT_COLUMNS.split(", "))
_EVENT_COLUMNS: Final = ("day", *questions.EVENT_COLUMNS.split(", "))
_DEAD_COLUMNS: Final = ("day", *questions.DEAD_COLUMNS.split(", "))
_COUNT_COLUMNS: Final = ("day", *questions.COUNT_KEY.split(", "), *COUNTED, *BUCKETS)


def _upsert(table: str, columns: Sequence[str], key: Sequence[str], change: str) -> str:
    marks = ", ".join(f"${number}" for number in range(1, len(columns) + 1))
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks}) ON CONFLICT ({', '.join(key)}) DO {change}"


_DELIVERY_WRITE: Final = _upsert(
    "history_deliveries",
    _DELIVERY_COLUMNS,
    ("delivery_id", "day"),
    "UPDATE SET " + ", ".join(f"{name} = excluded.{name}" for name in _DELIVERY_COLUMNS[2:]),
)
_ATTEMPT_WRITE: Final = _upsert(
    "history_attempts",
    _ATTEMPT_COLUMNS,
    ("delivery_id", "generation", "time_ms", "attempt", "day"),
    "NOTHING",
)
_COUNT_WRITES: Final = {
    table: _upsert(
        table,
        _COUNT_COLUMNS,
        (*questions.COUNT_KEY.split(", "), "day"),
        "UPDATE SET "
        + ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in (*COUNTED, *BUCKETS)),
    )
    for table in COUNTS_BY_DAY
}
_SPAN_WRITE: Final = _upsert(
    "history_spans",
    ("log_topic", "log_partition", "topic", "partition", "day", "low", "high"),
    ("log_topic", "log_partition", "topic", "partition", "day"),
    "UPDATE SET low = least(history_spans.low, excluded.low), high = greatest(history_spans.high, excluded.high)",
)


class _KnownAlready(Exception):
    """What was taken for new is there already."""


@contextlib.contextmanager
def _unmapped() -> Iterator[None]:
    try:
        yield
    except asyncpg.UniqueViolationError as error:
        raise _KnownAlready from error


class PostgresWriter:
    """Writes over the connections that `connect` gives, which maps the errors."""

    def __init__(
        self, connect: Callable[[], AbstractAsyncContextManager[Any]], retention: Retention, *, keep_all: bool
    ) -> None:
        """`keep_all`: also what succeeded at the first attempt."""
        self._connection = connect
        self._retention = retention
        self._keep_all = keep_all
        self._writing = asyncio.Lock()
        self._spans = Spans()
        self._days: dict[str, set[int]] = {}

    async def apply(self, batches: Sequence[LogBatch], now_ms: int) -> None:
        async with self._writing:
            try:
                await self._apply(batches, now_ms, everywhere=False)
            except _KnownAlready:
                await self._apply(batches, now_ms, everywhere=True)

    async def _apply(self, batches: Sequence[LogBatch], now_ms: int, *, everywhere: bool) -> None:
        """`everywhere`: take nothing for new (rule 2)."""
        try:
            async with self._connection() as connection, connection.transaction():
                with _unmapped():
                    await self._advance(connection, batches)
                    work = await self._work(connection, batches, now_ms, everywhere=everywhere)
                    sums = await with_late(connection, work.counts, now_ms)
                    made = await self._make_days(connection, work, sums)
                    await self._keep(connection, work, sums, everywhere=everywhere)
        except BaseException:
            self._spans.forget()
            self._days.clear()
            raise
        self._spans.add(work.spans, {batch.partition: batch.next for batch in batches})
        self._remember(made)

    async def _advance(self, connection: Any, batches: Sequence[LogBatch]) -> None:
        for batch in sorted(batches, key=lambda batch: batch.partition):
            if batch.first is None:
                done = await connection.execute(
                    "INSERT INTO history_positions (topic, topic_id, partition, next, time_ms) VALUES ($1, $2, $3, $4, $5)"
                    " ON CONFLICT DO NOTHING",
                    *batch.partition,
                    batch.next,
                    batch.time_ms,
                )
            else:
                done = await connection.execute(
                    "UPDATE history_positions SET next = $4, time_ms = $5 WHERE topic = $1 AND topic_id = $2 AND partition = $3"
                    " AND next = $6",
                    *batch.partition,
                    batch.next,
                    batch.time_ms,
                    batch.first,
                )
            if not done.endswith(" 1"):
                topic, _, partition = batch.partition
                raise PositionMoved(f"{topic}-{partition} stands elsewhere than at {batch.first}")
            if (gap := batch.gap) is not None:
                await connection.execute(
                    "INSERT INTO history_gaps (topic, topic_id, partition, first, next, since_ms, until_ms, reason)"
                    " VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
                    *gap.partition,
                    *gap[1:],
                )

    async def _work(
        self, connection: Any, batches: Sequence[LogBatch], now_ms: int, *, everywhere: bool
    ) -> Work:
        """What these batches come to, with what is known already."""
        if not self._spans.current({batch.partition: batch.first for batch in batches}):
            self._spans.load(
                await connection.fetch(
                    "SELECT topic, partition, day, min(low), max(high) FROM history_spans GROUP BY topic, partition, day"
                )
            )
        work = plan(batches, now_ms, self._retention, keep_all=self._keep_all)
        ids, days = work.asked(None if everywhere else self._spans)
        if ids:
            condition = "" if everywhere else " AND day = ANY($2)"
            query = f"SELECT {questions.DELIVERY_COLUMNS} FROM history_deliveries WHERE delivery_id = ANY($1){condition}"
            rows = await connection.fetch(query, ids, *(() if everywhere else (sorted(days),)))
            work.found(DeliveryRow(*row) for row in rows)
        if repeated := work.repeated():
            rows = await connection.fetch(
                "SELECT delivery_id, generation, time_ms, attempt FROM history_attempts WHERE delivery_id = ANY($1)",
                repeated,
            )
            for row in rows:
                work.keys.setdefault(row[0], []).append((row[1], row[2], row[3]))
        for _ in work.merging():
            await asyncio.sleep(0)
        return work

    async def _keep(
        self, connection: Any, work: Work, sums: Mapping[str, Counts], *, everywhere: bool
    ) -> None:
        new = [(row.created_ms // DAY_MS, *row) for row in work.new]
        changed = [(row.created_ms // DAY_MS, *row) for row in work.changed]
        if everywhere:
            new, changed = [], sorted(changed + new, key=lambda row: row[1])
        await _copy(connection, "history_deliveries", _DELIVERY_COLUMNS, new)
        if changed:
            await connection.executemany(_DELIVERY_WRITE, changed)
        if everywhere and work.attempts:
            await connection.executemany(_ATTEMPT_WRITE, work.attempts)
        else:
            await _copy(connection, "history_attempts", _ATTEMPT_COLUMNS, work.attempts)
        await _copy(connection, "history_events", _EVENT_COLUMNS, work.events)
        await _copy(connection, "history_dead", _DEAD_COLUMNS, work.dead)
        for table, counts in sums.items():
            if counts:
                rows = [(key[0] // DAY_MS, *key, *values) for key, values in sorted(counts.items())]
                await connection.executemany(_COUNT_WRITES[table], rows)
        if work.spans:
            await connection.executemany(
                _SPAN_WRITE, sorted((*log_, *source, *span) for (log_, source), span in work.spans.items())
            )

    async def rebuild(self, positions: Mapping[LogPartition, Standing]) -> None:
        async with self._writing, self._connection() as connection, connection.transaction():
            self._spans.forget()
            # The positions first, as `apply` has them first: then neither waits for the other with something that the other wants.
            tables = ", ".join(
                ("history_positions", *BY_DAY, *COUNTS_BY_DAY, "history_spans", "history_gaps")
            )
            await connection.execute(f"TRUNCATE {tables}")
            await connection.execute("UPDATE history_rolled SET hours = 0, days = 0")
            await connection.executemany(
                "INSERT INTO history_positions (topic, topic_id, partition, next, time_ms, until) VALUES ($1, $2, $3, $4, $5, $6)",
                [(*partition, *standing) for partition, standing in positions.items()],
            )

    async def restart(self, partitions: Sequence[LogPartition]) -> None:
        async with self._writing, self._connection() as connection, connection.transaction():
            self._spans.forget()
            await connection.executemany(
                "DELETE FROM history_positions WHERE topic = $1 AND topic_id = $2 AND partition = $3",
                partitions,
            )

    async def cut(self, partition: LogPartition, next_: int) -> None:
        async with self._writing, self._connection() as connection, connection.transaction():
            self._spans.forget()
            await connection.execute(
                "UPDATE history_positions SET next = $4 WHERE topic = $1 AND topic_id = $2 AND partition = $3 AND next > $4",
                *partition,
                next_,
            )

    async def note_versions(self, versions: Sequence[SubscriptionVersion]) -> None:
        query = (
            "INSERT INTO history_versions (subscription_id, since_ms, tenant, status, document) SELECT $1, $2, $3, $4, $5"
            " WHERE NOT EXISTS (SELECT 1 FROM (SELECT tenant, status, document FROM history_versions WHERE subscription_id = $1"
            " ORDER BY since_ms DESC LIMIT 1) AS last WHERE last.tenant IS NOT DISTINCT FROM $3 AND last.status = $4"
            " AND last.document = $5)"
            " ON CONFLICT (subscription_id, since_ms) DO UPDATE SET tenant = excluded.tenant, status = excluded.status,"
            " document = excluded.document"
        )
        async with self._connection() as connection, connection.transaction():
            # Each statement sees what the ones before it did; of two processes the second one waits.
            await connection.execute("SELECT pg_advisory_xact_lock($1, hashtext(current_schema()) + 1)", LOCK)
            for version in versions:
                await connection.execute(query, *version)

    # Days.

    async def _make_days(
        self, connection: Any, work: Work, sums: Mapping[str, Counts]
    ) -> dict[str, set[int]]:
        """Have a partition for each day of the work; returns those of which that is known from now on."""
        needed = dict.fromkeys(BY_DAY, work.days)
        for table, counts in sums.items():
            needed[table] = {key[0] // DAY_MS for key in counts}
        missing = {table: days - self._days.get(table, set()) for table, days in needed.items()}
        for table, days in missing.items():
            await self._ensure(connection, table, days)
        return missing

    def _remember(self, made: Mapping[str, Iterable[int]]) -> None:
        for table, days in made.items():
            self._days.setdefault(table, set()).update(days)

    async def _ensure(self, connection: Any, table: str, days: Iterable[int]) -> None:
        """Have a partition for each of the days, when the transaction is committed."""
        for day in sorted(days):
            name = f"{table}_{day}"
            if await connection.fetchval("SELECT to_regclass($1)", name) is not None:
                continue
            # Of two processes one makes it, and the other one waits for that.
            await connection.execute("SELECT pg_advisory_xact_lock($1, hashtext($2))", LOCK + 1, name)
            if await connection.fetchval("SELECT to_regclass($1)", name) is not None:
                continue
            # Attached, not made in place: that would wait for every question that reads the table, and make others wait.
            await connection.execute(
                f"CREATE TABLE {name} (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS,"
                f" CONSTRAINT in_day CHECK (day >= {day} AND day < {day + 1}))"
            )
            await connection.execute(
                f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ({day}) TO ({day + 1})"
            )
            await connection.execute(f"ALTER TABLE {name} DROP CONSTRAINT in_day")

    async def retain(self, now_ms: int) -> None:
        today = now_ms // DAY_MS
        ahead = range(today, today + DAYS_AHEAD + 1)
        async with self._connection() as connection:
            # The maintenance of one process at a time; the others have nothing to do.
            if not await connection.fetchval(
                "SELECT pg_try_advisory_lock($1, hashtext(current_schema()) + 2)", LOCK
            ):
                return
            try:
                for table in (*BY_DAY, MINUTES):
                    async with connection.transaction():
                        await self._ensure(connection, table, ahead)
                    self._remember({table: ahead})
                while await roll(connection, now_ms, self._ensure):
                    pass
                oldest = self._retention.oldest_day(now_ms)
                for table in BY_DAY:
                    await self._drop(connection, table, oldest)
                for table in COUNTS_BY_DAY:
                    await self._drop(connection, table, self._retention.oldest_minute(now_ms) // DAY_MS)
                await connection.execute("DELETE FROM history_spans WHERE day < $1", oldest)
                before = now_ms - self._retention.rows_ms
                await connection.execute("DELETE FROM history_gaps WHERE until_ms < $1", before)
                # Of each subscription the last version from before stays: it says what held then.
                await connection.execute(
                    "DELETE FROM history_versions AS old WHERE since_ms < $1 AND EXISTS (SELECT 1 FROM history_versions AS later"
                    " WHERE later.subscription_id = old.subscription_id AND later.since_ms > old.since_ms AND later.since_ms <= $1)",
                    before,
                )
            finally:
                if not connection.is_closed():
                    await connection.execute(
                        "SELECT pg_advisory_unlock($1, hashtext(current_schema()) + 2)", LOCK
                    )

    async def _drop(self, connection: Any, table: str, oldest: int) -> None:
        """The partitions of the days before."""
        rows = await connection.fetch(
            "SELECT child.relname AS name, inhdetachpending AS pending FROM pg_inherits"
            " JOIN pg_class AS child ON child.oid = inhrelid WHERE inhparent = to_regclass($1)",
            table,
        )
        for name, pending in rows:
            match = re.fullmatch(rf"{table}_(\d+)", name)
            if match is None or int(match[1]) >= oldest:
                continue
            self._days.get(table, set()).discard(int(match[1]))
            # What was interrupted in the middle is ended first.
            how = "FINALIZE" if pending else "CONCURRENTLY"
            await connection.execute(f"ALTER TABLE {table} DETACH PARTITION {name} {how}")
            await connection.execute(f"DROP TABLE {name}")


async def _copy(connection: Any, table: str, columns: Sequence[str], rows: Sequence[Any]) -> None:
    if rows:
        await connection.copy_records_to_table(table, records=rows, columns=columns, timeout=WRITE_LIMIT)
