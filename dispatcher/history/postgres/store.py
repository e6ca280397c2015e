"""The history on PostgreSQL 14 or newer, by asyncpg. Several processes share it.

Rules:

1. One transaction holds all of `apply`: first the positions advance, by compare-and-set, which locks them. Whoever comes
   second for a partition waits, finds another position and keeps nothing.
2. What is new goes in by COPY, what changes by upserts. `_spans` tells which days may know a delivery; where COPY finds a row that they did
   not tell of (a log partition was added, so that a delivery has two), the transaction is made once more, looking everywhere.
3. A day has a partition before rows of it are written: made ahead by `retain`, or by `apply` where a day comes unexpectedly. There is no DEFAULT
   partition, so that one can be detached without keeping anybody waiting.
4. Every question has a time limit; the server is told to stop when it is over.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any, Final

import asyncpg
import structlog

from dispatcher.history import questions
from dispatcher.history.base import (
    AWAITING_LOOKED_AT,
    GROUPS_LIMIT,
    LOOKED_AT,
    PAGE_LIMIT,
    SUCCESSES_LOOKED_AT,
    UNDELIVERED_LOOKED_AT,
    VERSIONS_LIMIT,
    Awaiting,
    CountQuery,
    CountRow,
    DeadRow,
    DeliveryDetail,
    DeliveryQuery,
    DeliveryRow,
    EventQuery,
    EventRow,
    Gap,
    HistoryError,
    HistoryPage,
    LogBatch,
    LogPartition,
    QueryTooLong,
    Retention,
    Sizes,
    Standing,
    StoreRefused,
    StoreUnavailable,
    SubscriptionVersion,
    Undelivered,
    UndeliveredQuery,
)
from dispatcher.history.bounds import storable
from dispatcher.history.logged import DAY_MS
from dispatcher.history.postgres.migrations import BY_DAY, COUNTS_BY_DAY, CURRENT, MIGRATIONS
from dispatcher.history.postgres.writer import LOCK, WRITE_LIMIT, PostgresWriter
from dispatcher.history.rolling import Rolled

log = structlog.get_logger(__name__)

QUERY_LIMIT: Final = 5.0
"""Seconds that a question may take."""

_WRITER_AND_QUESTIONS: Final = 4  # connections
_OLDEST_SERVER: Final = 14
_CHECK_LIMIT: Final = 10.0  # seconds

_ADDING: Final = "sum(({})::float8)"
"""As whole numbers up to 2**53 are added without loss: the server's own sum of bigints is one of any length, at twice the time."""
_ERRORS: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError, ValueError)


class PostgresHistory:
    """The history in the database that the URL names."""

    shared = True

    def __init__(
        self,
        url: str,
        retention: Retention,
        *,
        password: str | None = None,
        keep_all: bool = True,
        query_limit: float = QUERY_LIMIT,
        looked_at: int = LOOKED_AT,
    ) -> None:
        """`keep_all`: also what succeeded at the first attempt; `query_limit` in seconds."""
        self._url = url
        self._password = password
        self._query_limit = query_limit
        self._looked_at = looked_at
        self._pool: Any = None
        self._writer = PostgresWriter(self._connection, retention, keep_all=keep_all)
        self._problem: str | None = "not open yet"

    @property
    def problem(self) -> str | None:
        return self._problem

    async def open(self) -> None:
        if self._pool is not None:
            return
        async with self._mapped():
            pool = await asyncpg.create_pool(
                self._url,
                password=self._password,
                min_size=1,
                max_size=_WRITER_AND_QUESTIONS,
                command_timeout=WRITE_LIMIT,
                timeout=10.0,
                server_settings={"application_name": "dispatcher"},
            )
        try:
            async with self._mapped(), pool.acquire() as connection:
                _check_server(connection.get_server_version().major)
                await self._migrate(connection)
        except BaseException:
            await pool.close()
            raise
        self._pool = pool

    async def _migrate(self, connection: Any) -> None:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1, hashtext(current_schema()))", LOCK)
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS history_migrations (number integer PRIMARY KEY, oldest integer NOT NULL,"
                " made timestamptz NOT NULL DEFAULT now())"
            )
            row = await connection.fetchrow(
                "SELECT max(number) AS number, max(oldest) AS oldest FROM history_migrations"
            )
            made, oldest = row["number"] or 0, row["oldest"] or 0
            if oldest > CURRENT:
                raise StoreRefused(
                    f"the history's tables are of a later version (step {made}; this dispatcher knows {CURRENT}): update this one"
                )
            for migration in MIGRATIONS:
                if migration.number > made:
                    for statement in migration.statements:
                        await connection.execute(statement)
                    await connection.execute(
                        "INSERT INTO history_migrations (number, oldest) VALUES ($1, $2)",
                        migration.number,
                        migration.oldest,
                    )

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        self._problem = "closed"
        if pool is not None:
            try:
                async with asyncio.timeout(5.0):
                    await pool.close()
            except (TimeoutError, OSError, asyncpg.PostgresError):
                pool.terminate()

    @contextlib.asynccontextmanager
    async def _mapped(self) -> AsyncIterator[None]:
        """Errors in the port's words; `problem` as they go."""
        try:
            yield
        except (StoreRefused, StoreUnavailable) as error:
            self._problem = str(error)
            raise
        except _ERRORS as error:
            mapped = _mapped(error)
            self._problem = str(mapped)
            raise mapped from error
        else:
            self._problem = None

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        if self._pool is None:
            raise StoreUnavailable(self._problem or "the history is not open")
        async with self._mapped(), self._pool.acquire() as connection:
            yield connection

    # Writing.

    async def positions(self) -> Mapping[LogPartition, Standing]:
        async with self._connection() as connection:
            rows = await connection.fetch(
                "SELECT topic, topic_id, partition, next, time_ms, until FROM history_positions"
            )
        return {LogPartition(*row[:3]): Standing(*row[3:]) for row in map(tuple, rows)}

    async def apply(self, batches: Sequence[LogBatch], now_ms: int) -> None:
        await self._writer.apply(batches, now_ms)

    async def rebuild(self, positions: Mapping[LogPartition, Standing]) -> None:
        await self._writer.rebuild(positions)

    async def restart(self, partitions: Sequence[LogPartition]) -> None:
        await self._writer.restart(partitions)

    async def cut(self, partition: LogPartition, next_: int) -> None:
        await self._writer.cut(partition, next_)

    async def note_versions(self, versions: Sequence[SubscriptionVersion]) -> None:
        await self._writer.note_versions(versions)

    async def retain(self, now_ms: int) -> None:
        await self._writer.retain(now_ms)

    # Questions.

    async def _fetch(self, query: str, arguments: Sequence[Any]) -> list[Any]:
        try:
            async with self._connection() as connection:
                rows: list[Any] = await connection.fetch(query, *arguments, timeout=self._query_limit)
        except StoreUnavailable as error:
            if isinstance(error.__cause__, TimeoutError):
                self._problem = None
                raise QueryTooLong(
                    "the answer takes too long: ask about a shorter time, or more narrowly"
                ) from error
            raise
        return rows

    async def deliveries(self, query: DeliveryQuery) -> HistoryPage[DeliveryRow]:
        within = f"day BETWEEN {query.since_ms // DAY_MS} AND {query.until_ms // DAY_MS}"
        asked = questions.deliveries(query, _mark, self._looked_at, within)
        rows = [DeliveryRow(*row) for row in await self._fetch(*asked.rows)]
        if len(rows) >= query.limit:
            return HistoryPage(rows, (rows[-1].created_ms, rows[-1].delivery_id))
        return HistoryPage(rows, await self._end(asked))

    async def events(self, query: EventQuery) -> HistoryPage[EventRow]:
        within = f"day BETWEEN {query.since_ms // DAY_MS} AND {query.until_ms // DAY_MS}"
        asked = questions.events(query, _mark, self._looked_at, within)
        rows = [EventRow(*row) for row in await self._fetch(*asked.rows)]
        if len(rows) >= query.limit:
            end = rows[-1]
            return HistoryPage(rows, (end.time_ms, end.event_id, end.topic, end.partition, end.offset))
        return HistoryPage(rows, await self._end(asked))

    async def _end(self, asked: questions.PageQuestions) -> tuple[Any, ...] | None:
        rows = await self._fetch(*asked.end)
        return tuple(rows[0]) if rows else None

    async def delivery(self, delivery_id: str) -> DeliveryDetail | None:
        id_ = storable(delivery_id)
        query = f"SELECT {questions.DELIVERY_COLUMNS} FROM history_deliveries WHERE delivery_id = $1 ORDER BY created_ms DESC LIMIT 1"
        rows = await self._fetch(query, [id_])
        if not rows:
            return None
        row = DeliveryRow(*rows[0])
        query = (
            "SELECT detail FROM history_attempts WHERE delivery_id = $1 AND day = $2 ORDER BY generation, time_ms, attempt"
            f" LIMIT {PAGE_LIMIT}"
        )
        attempts = [detail for (detail,) in await self._fetch(query, [id_, row.created_ms // DAY_MS])]
        query = f"SELECT {questions.DEAD_COLUMNS} FROM history_dead WHERE delivery_id = $1 ORDER BY time_ms DESC LIMIT 1"
        dead = [DeadRow(*found) for found in await self._fetch(query, [id_])]
        return DeliveryDetail(row, (row.first, *attempts), dead[0] if dead else None)

    async def counts(self, query: CountQuery) -> Sequence[CountRow]:
        ((hours, days),) = await self._fetch("SELECT hours, days FROM history_rolled", [])

        def within(since_ms: int, until_ms: int) -> str:
            return f"day BETWEEN {since_ms // DAY_MS} AND {(until_ms - 1) // DAY_MS}"

        rolled = Rolled(hours, days)
        text, arguments = questions.counts(query, _mark, GROUPS_LIMIT, rolled, within, adding=_ADDING)
        width = 1 + len(query.by)
        return [
            CountRow(row[0], tuple(row[1:width]), [int(value) for value in row[width:]])
            for row in map(tuple, await self._fetch(text, arguments))
        ]

    async def versions(self, subscription_ids: Collection[str]) -> Sequence[SubscriptionVersion]:
        query = (
            "SELECT subscription_id, since_ms, tenant, status, document FROM history_versions WHERE subscription_id = ANY($1)"
            f' ORDER BY subscription_id COLLATE "C", since_ms LIMIT {VERSIONS_LIMIT}'
        )
        asked = sorted({storable(id_, 64) for id_ in subscription_ids})
        return [SubscriptionVersion(*row) for row in await self._fetch(query, [asked])]

    async def present_subscriptions(self, after: str, limit: int) -> Sequence[SubscriptionVersion]:
        query = questions.present_subscriptions("history_versions", "$1", limit, ' COLLATE "C"')
        return [SubscriptionVersion(*row) for row in await self._fetch(query, [storable(after, 64)])]

    async def known_subscriptions(self, tenant: str | None, limit: int) -> Sequence[str]:
        condition = "tenant IS NULL" if tenant is None else "tenant = $1"
        query = (
            'SELECT id FROM (SELECT DISTINCT subscription_id COLLATE "C" AS id FROM history_versions'
            f" WHERE {condition}) AS known ORDER BY id LIMIT {int(limit)}"
        )
        asked = [] if tenant is None else [storable(tenant, 256)]
        return [id_ for (id_,) in await self._fetch(query, asked)]

    async def awaiting(self, subscription_ids: Collection[str]) -> Mapping[str, Awaiting]:
        query = (
            "SELECT wanted.id, found.* FROM unnest($1::text[]) AS wanted(id),"
            f" LATERAL ({questions.awaiting('wanted.id', AWAITING_LOOKED_AT)}) AS found"
        )
        asked = {storable(id_, 64): id_ for id_ in subscription_ids}
        return {
            asked[id_]: Awaiting(int(count or 0), looked >= AWAITING_LOOKED_AT, oldest, due)
            for id_, count, looked, oldest, due in await self._fetch(query, [list(asked)])
        }

    async def undelivered(self, query: UndeliveredQuery) -> Undelivered:
        within = f"day BETWEEN {query.since_ms // DAY_MS} AND {query.until_ms // DAY_MS}"
        asked = questions.undelivered(query, _mark, UNDELIVERED_LOOKED_AT, GROUPS_LIMIT, within)
        rows = await self._fetch(*asked)
        groups, looked = questions.joined(rows)
        return Undelivered(groups, looked >= UNDELIVERED_LOOKED_AT or len(rows) >= GROUPS_LIMIT)

    async def last_successes(self, subscription_ids: Collection[str], since_ms: int) -> Mapping[str, int]:
        asked = {storable(id_, 64): id_ for id_ in subscription_ids}
        of_rows = (
            "SELECT wanted.id, found.success FROM unnest($1::text[]) AS wanted(id),"
            f" LATERAL ({questions.last_success('wanted.id', SUCCESSES_LOOKED_AT)}) AS found"
        )
        of_counts = (
            "SELECT subscription_id, max(minute_ms) FROM history_counts WHERE minute_ms >= $2 AND delivered > 0"
            f" AND day >= {since_ms // DAY_MS} AND subscription_id = ANY($1::text[]) GROUP BY subscription_id"
        )
        rows = [
            *await self._fetch(of_rows, [list(asked)]),
            *await self._fetch(of_counts, [list(asked), since_ms]),
        ]
        found: dict[str, int] = {}
        for id_, at in rows:
            if at is not None and at >= since_ms:
                found[asked[id_]] = max(at, found.get(asked[id_], at))
        return found

    async def gaps(self, since_ms: int, until_ms: int) -> Sequence[Gap]:
        query = (
            "SELECT topic, topic_id, partition, first, next, since_ms, until_ms, reason FROM history_gaps"
            f" WHERE until_ms >= $1 AND since_ms < $2 ORDER BY since_ms DESC LIMIT {PAGE_LIMIT}"
        )
        rows = await self._fetch(query, [since_ms, until_ms])
        return [Gap(LogPartition(*row[:3]), *row[3:]) for row in map(tuple, rows)]

    async def sizes(self) -> Sizes:
        # As the statistics have it: counting would read everything.
        query = (
            "SELECT coalesce(sum(greatest(child.reltuples, 0)), 0)::bigint, coalesce(sum(pg_total_relation_size(child.oid)), 0)::bigint"
            " FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid WHERE inhparent = ANY($1::text[]::regclass[])"
        )
        ((rows, size),) = await self._fetch(query, [[*BY_DAY, *COUNTS_BY_DAY]])
        return Sizes(rows, size)


async def check(url: str, password: str | None) -> None:
    """Ask the server whether a history can be there; nothing is changed. Raises StoreRefused, StoreUnavailable."""
    try:
        connection = await asyncpg.connect(
            url, password=password, timeout=_CHECK_LIMIT, command_timeout=_CHECK_LIMIT
        )
        try:
            _check_server(connection.get_server_version().major)
            allowed = await connection.fetchval("SELECT has_schema_privilege(current_schema(), 'CREATE')")
        finally:
            await connection.close(timeout=_CHECK_LIMIT)
    except _ERRORS as error:
        raise _mapped(error) from error
    if not allowed:
        raise StoreRefused(
            "the user of history.store may not create tables there: GRANT CREATE ON SCHEMA public TO the user, or give it a schema of its own"
            " and name that by ?search_path= at the end of the URL"
        )


def _check_server(version: int) -> None:
    if version < _OLDEST_SERVER:
        raise StoreRefused(
            f"PostgreSQL {version} is too old for the history: it needs {_OLDEST_SERVER} or later"
        )


def _mark(number: int) -> str:
    return f"${number}"


def _mapped(error: BaseException) -> HistoryError:
    """In the port's words. Nothing of the URL is in them: it may hold a password."""
    refused = (
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.InvalidCatalogNameError,
        asyncpg.InsufficientPrivilegeError,
        asyncpg.InvalidSchemaNameError,
        asyncpg.SyntaxOrAccessError,
    )
    if isinstance(error, refused):
        return StoreRefused(
            f"PostgreSQL refuses the history: {error}; see history.store, and the rights of its user there"
        )
    if isinstance(error, ValueError):
        return StoreRefused("history.store is no URL that PostgreSQL's client understands")
    if isinstance(error, TimeoutError):
        return StoreUnavailable("PostgreSQL did not answer in time")
    return StoreUnavailable(
        f"PostgreSQL can't be used for the history now: {str(error) or type(error).__name__}"
    )
