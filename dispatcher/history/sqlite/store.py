"""The history on SQLite: a directory with one file a day and one for what is of no day.

Rules:

1. One process at a time has the directory (`lock`), and it indexes everything by itself.
2. Files of days commit before `history.db`, which has the positions to read on from. After a crash between two commits those logs are read
   again from there, and each file passes over what it has already (`day_file.py`). Every commit is on disk when it returns.
3. All writing is in one thread, every question in others with connections of its own: neither waits for the other.
4. A question that takes longer than its limit is interrupted.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

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
from dispatcher.history.sqlite.day_file import STRIPPED, SUFFIX, Connect, chunks, rolled_of, rows_of
from dispatcher.history.sqlite.files import MAIN, HistoryFiles, day_of

T = TypeVar("T")

QUERY_LIMIT: Final = 5.0
"""Seconds that a question may take."""

_CLOSED: Final = "closed"
_INSTRUCTIONS: Final = 10_000  # of SQLite's machine between two looks at the clock


# Long: the whole port, a few lines for each question.
class SqliteHistory:
    """The history in the directory `directory`."""

    shared = False

    def __init__(
        self,
        directory: Path,
        retention: Retention,
        *,
        keep_all: bool = True,
        connect: Connect = sqlite3.connect,
        query_limit: float = QUERY_LIMIT,
        looked_at: int = LOOKED_AT,
    ) -> None:
        """`keep_all`: also what succeeded at the first attempt; `query_limit` in seconds."""
        self._directory = directory
        self._connect = connect
        self._query_limit = query_limit
        self._looked_at = looked_at
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="history")
        self._asker = ThreadPoolExecutor(max_workers=2, thread_name_prefix="history-query")
        self._files = HistoryFiles(directory, retention, keep_all=keep_all, connect=connect)
        self._lock: int | None = None
        self._problem: str | None = "not open yet"

    @property
    def problem(self) -> str | None:
        return self._problem

    async def open(self) -> None:
        await self._write(self._open)

    def _open(self) -> None:
        if self._lock is not None:
            return
        try:
            self._directory.parent.mkdir(parents=True, exist_ok=True)
            # Tenants, hosts and what endpoints answered: for this user alone.
            self._directory.mkdir(mode=0o700, exist_ok=True)
            lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreRefused(
                f"the history's directory {self._directory} can't be written: {error.strerror}; let this user write there, or set"
                " history.directory"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._files.open()
        except BlockingIOError as error:
            os.close(lock)
            raise StoreUnavailable(
                f"another process has the history in {self._directory}: give this one another history.directory, or `roles`"
                " without history"
            ) from error
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock

    async def close(self) -> None:
        if self._problem == _CLOSED:
            return
        await self._run(self._writer, self._close)
        self._problem = _CLOSED
        self._writer.shutdown(wait=False)
        self._asker.shutdown(wait=False)

    def _close(self) -> None:
        self._files.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _write(self, function: Callable[..., T], *arguments: Any) -> T:
        try:
            result = await self._run(self._writer, function, *arguments)
        except (StoreUnavailable, StoreRefused) as error:
            self._problem = str(error)
            raise
        self._problem = None
        return result

    async def _run(self, executor: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, function, *arguments)
        except sqlite3.Error as error:
            raise _mapped(error, self._directory) from error
        except OSError as error:
            raise StoreUnavailable(f"the history in {self._directory}: {error.strerror or error}") from error

    async def positions(self) -> Mapping[LogPartition, Standing]:
        return await self._write(self._files.positions)

    async def apply(self, batches: Sequence[LogBatch], now_ms: int) -> None:
        await self._write(self._files.apply, batches, now_ms)

    async def rebuild(self, positions: Mapping[LogPartition, Standing]) -> None:
        await self._write(self._files.rebuild, positions)

    async def restart(self, partitions: Sequence[LogPartition]) -> None:
        await self._write(self._files.restart, partitions)

    async def cut(self, partition: LogPartition, next_: int) -> None:
        await self._write(self._files.cut, partition, next_)

    async def retain(self, now_ms: int) -> None:
        await self._write(self._files.retain, now_ms)

    async def note_versions(self, versions: Sequence[SubscriptionVersion]) -> None:
        await self._write(self._files.note_versions, versions)

    async def sizes(self) -> Sizes:
        return await self._write(self._files.sizes)

    async def versions(self, subscription_ids: Collection[str]) -> Sequence[SubscriptionVersion]:
        found: list[SubscriptionVersion] = []
        for some in chunks(sorted({storable(id_, 64) for id_ in subscription_ids})):
            query = (
                "SELECT subscription_id, since_ms, tenant, status, document FROM subscription_versions"
                f" WHERE subscription_id IN ({', '.join('?' * len(some))}) ORDER BY subscription_id, since_ms LIMIT {VERSIONS_LIMIT}"
            )
            found += [SubscriptionVersion(*row) for row in await self._ask(self._ask_main, query, some)]
        return found[:VERSIONS_LIMIT]

    async def present_subscriptions(self, after: str, limit: int) -> Sequence[SubscriptionVersion]:
        query = questions.present_subscriptions("subscription_versions", "?1", limit)
        rows = await self._ask(self._ask_main, query, [storable(after, 64)])
        return [SubscriptionVersion(*row) for row in rows]

    async def known_subscriptions(self, tenant: str | None, limit: int) -> Sequence[str]:
        query = (
            "SELECT DISTINCT subscription_id FROM subscription_versions WHERE tenant IS ? ORDER BY subscription_id"
            f" LIMIT {int(limit)}"
        )
        asked = [None if tenant is None else storable(tenant, 256)]
        return [id_ for (id_,) in await self._ask(self._ask_main, query, asked)]

    async def gaps(self, since_ms: int, until_ms: int) -> Sequence[Gap]:
        query = (
            "SELECT topic, topic_id, partition, first, next, since_ms, until_ms, reason FROM gaps"
            f" WHERE until_ms >= ? AND since_ms < ? ORDER BY since_ms DESC LIMIT {PAGE_LIMIT}"
        )
        rows = await self._ask(self._ask_main, query, [since_ms, until_ms])
        return [Gap(LogPartition(*row[:3]), *row[3:]) for row in rows]

    async def deliveries(self, query: DeliveryQuery) -> HistoryPage[DeliveryRow]:
        def ask(limit: int, looked_at: int) -> questions.PageQuestions:
            return questions.deliveries(query._replace(limit=limit), _mark, looked_at)

        page = await self._ask(self._pages, query.since_ms, query.until_ms, query.limit, ask)
        rows = [DeliveryRow(*row) for row in page.items]
        last = page.last or (
            (rows[-1].created_ms, rows[-1].delivery_id) if len(rows) == query.limit else None
        )
        return HistoryPage(rows, last)

    async def events(self, query: EventQuery) -> HistoryPage[EventRow]:
        def ask(limit: int, looked_at: int) -> questions.PageQuestions:
            return questions.events(query._replace(limit=limit), _mark, looked_at)

        page = await self._ask(self._pages, query.since_ms, query.until_ms, query.limit, ask)
        rows = [EventRow(*row) for row in page.items]
        last = page.last
        if last is None and len(rows) == query.limit:
            end = rows[-1]
            last = (end.time_ms, end.event_id, end.topic, end.partition, end.offset)
        return HistoryPage(rows, last)

    async def delivery(self, delivery_id: str) -> DeliveryDetail | None:
        return await self._ask(self._delivery, storable(delivery_id))

    async def counts(self, query: CountQuery) -> Sequence[CountRow]:
        return await self._ask(self._counts, query)

    async def awaiting(self, subscription_ids: Collection[str]) -> Mapping[str, Awaiting]:
        return await self._ask(self._awaiting, subscription_ids)

    async def undelivered(self, query: UndeliveredQuery) -> Undelivered:
        return await self._ask(self._undelivered, query)

    async def last_successes(self, subscription_ids: Collection[str], since_ms: int) -> Mapping[str, int]:
        return await self._ask(self._last_successes, subscription_ids, since_ms)

    # Questions: in their own thread, with connections of their own (rule 3).

    async def _ask(self, function: Callable[..., T], *arguments: Any) -> T:
        if self._lock is None:
            raise StoreUnavailable(self._problem or "the history is not open")
        return await self._run(self._asker, function, *arguments)

    def _read(self, path: Path, deadline: float, ask: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """Ask a file, over a connection that only reads; `otherwise` where it has been deleted, or is being made."""
        if not path.exists():
            return otherwise
        connection = None
        try:
            connection = self._connect(f"file:{_quoted(path)}?mode=ro", uri=True, isolation_level=None)
            connection.set_progress_handler(lambda: int(time.monotonic() > deadline), _INSTRUCTIONS)
            if not connection.execute("PRAGMA user_version").fetchone()[0]:
                return otherwise
            return ask(connection)
        except sqlite3.OperationalError:
            if path.exists():
                raise
            return otherwise
        finally:
            if connection is not None:
                connection.close()

    def _ask_main(self, query: str, arguments: Sequence[Any]) -> list[Any]:
        path = self._directory / MAIN
        return self._read(
            path, self._deadline(), lambda connection: rows_of(connection, (query, arguments)), []
        )

    def _deadline(self) -> float:
        return time.monotonic() + self._query_limit

    def _pages(
        self, since_ms: int, until_ms: int, limit: int, ask: Callable[[int, int], questions.PageQuestions]
    ) -> HistoryPage[Any]:
        deadline = self._deadline()
        found: list[Any] = []
        left = self._looked_at
        for day, path in self._days():
            if not since_ms // DAY_MS <= day <= until_ms // DAY_MS or path.name.endswith(STRIPPED):
                continue
            asked = ask(limit - len(found), left)

            def answer(
                db: sqlite3.Connection, asked: questions.PageQuestions = asked
            ) -> tuple[list[Any], int, Any]:
                return (
                    rows_of(db, asked.rows),
                    rows_of(db, asked.looked)[0][0],
                    next(iter(rows_of(db, asked.end)), None),
                )

            nothing: tuple[list[Any], int, Any] = ([], 0, None)
            rows, looked, end = self._read(path, deadline, answer, nothing)
            found += rows
            left -= looked
            if len(found) >= limit:
                break
            if end is not None:
                return HistoryPage(found, tuple(end))
        return HistoryPage(found, None)

    def _days(self) -> list[tuple[int, Path]]:
        """The files of days, newest first."""
        found = {}
        for path in sorted(self._directory.glob(f"*{SUFFIX}")):
            if (day := day_of(path.name)) is not None:
                found[day] = (
                    path  # of two that with the counts: it is the first by name, and the other about to be deleted
                )
        return sorted(found.items(), reverse=True)

    def _delivery(self, delivery_id: str) -> DeliveryDetail | None:
        deadline = self._deadline()
        dead: DeadRow | None = None

        def answer(db: sqlite3.Connection) -> tuple[DeadRow | None, DeliveryRow | None, list[str]]:
            query = f"SELECT {questions.DEAD_COLUMNS} FROM history_dead WHERE delivery_id = ? ORDER BY time_ms DESC LIMIT 1"
            letter = next((DeadRow(*row) for row in db.execute(query, (delivery_id,))), None)
            query = f"SELECT {questions.DELIVERY_COLUMNS} FROM history_deliveries WHERE delivery_id = ?"
            delivery = next((DeliveryRow(*row) for row in db.execute(query, (delivery_id,))), None)
            query = (
                "SELECT detail FROM history_attempts WHERE delivery_id = ? ORDER BY generation, time_ms, attempt"
                f" LIMIT {PAGE_LIMIT}"
            )
            return letter, delivery, [detail for (detail,) in db.execute(query, (delivery_id,))]

        nothing: tuple[DeadRow | None, DeliveryRow | None, list[str]] = (None, None, [])
        for _, path in self._days():
            if path.name.endswith(STRIPPED):
                continue
            letter, row, attempts = self._read(path, deadline, answer, nothing)
            dead = dead or letter
            if row is not None:
                return DeliveryDetail(row, (row.first, *attempts), dead)
        return None

    def _awaiting(self, subscription_ids: Collection[str]) -> dict[str, Awaiting]:
        deadline = self._deadline()
        found = dict.fromkeys(subscription_ids, Awaiting(0, False, None, None))
        left = dict.fromkeys(found, AWAITING_LOOKED_AT)
        for _, path in self._days():
            wanted = [id_ for id_, looked_at in left.items() if looked_at > 0]
            if path.name.endswith(STRIPPED) or not wanted:
                continue

            def answer(db: sqlite3.Connection, wanted: list[str] = wanted) -> list[Any]:
                return [
                    rows_of(db, (questions.awaiting("?1", left[id_]), [storable(id_, 64)]))[0]
                    for id_ in wanted
                ]

            nothing: list[Any] = []
            for id_, (count, looked, oldest, due) in zip(
                wanted, self._read(path, deadline, answer, nothing), strict=False
            ):
                left[id_] -= looked
                found[id_] = _both(found[id_], Awaiting(count or 0, left[id_] <= 0, oldest, due))
        return found

    def _undelivered(self, query: UndeliveredQuery) -> Undelivered:
        deadline = self._deadline()
        found: list[Any] = []
        left = UNDELIVERED_LOOKED_AT
        for day, path in self._days():
            if not query.since_ms // DAY_MS <= day <= query.until_ms // DAY_MS or path.name.endswith(
                STRIPPED
            ):
                continue
            if left <= 0:
                break
            asked = questions.undelivered(query, _mark, left, GROUPS_LIMIT)

            def answer(db: sqlite3.Connection, asked: questions.Question = asked) -> list[Any]:
                return rows_of(db, asked)

            rows: list[Any] = self._read(path, deadline, answer, [])
            left = 0 if len(rows) == GROUPS_LIMIT else left - sum(row[2] for row in rows)
            found += rows
        groups, _ = questions.joined(found)
        return Undelivered(groups[:GROUPS_LIMIT], left <= 0)

    def _last_successes(self, subscription_ids: Collection[str], since_ms: int) -> dict[str, int]:
        deadline = self._deadline()
        wanted = {storable(id_, 64): id_ for id_ in subscription_ids}
        found: dict[str, int] = {}
        exact: set[str] = set()
        for _, path in self._days():
            left = [id_ for id_ in wanted if id_ not in exact]

            def answer(
                db: sqlite3.Connection, left: list[str] = left, path: Path = path
            ) -> list[tuple[str, int | None, bool]]:
                said: list[tuple[str, int | None, bool]] = []
                for some in chunks(wanted):
                    query = (
                        "SELECT subscription_id, max(minute_ms) FROM history_counts WHERE minute_ms >= ? AND delivered > 0"
                        f" AND subscription_id IN ({', '.join('?' * len(some))}) GROUP BY subscription_id"
                    )
                    said += [(id_, minute, False) for id_, minute in rows_of(db, (query, [since_ms, *some]))]
                if not path.name.endswith(STRIPPED):
                    query = questions.last_success("?1", SUCCESSES_LOOKED_AT)
                    said += [(id_, rows_of(db, (query, [id_]))[0][0], True) for id_ in left]
                return said

            nothing: list[tuple[str, int | None, bool]] = []
            for id_, at, of_row in self._read(path, deadline, answer, nothing):
                if at is not None and at >= since_ms:
                    found[wanted[id_]] = max(at, found.get(wanted[id_], at))
                    if of_row:
                        exact.add(id_)
        return found

    def _counts(self, query: CountQuery) -> Sequence[CountRow]:
        deadline = self._deadline()
        width = 1 + len([name for name in query.by if name])
        sums: dict[tuple[Any, ...], list[int]] = {}
        # Of a group that is busy on one day there may be little on another: which are the busiest is told of all days together.
        of_a_day = query if query.busiest is None else query._replace(busiest=GROUPS_LIMIT)

        def answer(db: sqlite3.Connection) -> list[Any]:
            return rows_of(db, questions.counts(of_a_day, _mark, GROUPS_LIMIT, rolled_of(db)))

        for day, path in self._days():
            # A retry is counted where its delivery is, some days before.
            if day > query.until_ms // DAY_MS:
                continue
            rows: list[Any] = self._read(path, deadline, answer, [])
            for row in rows:
                key, values = row[:width], row[width:]
                held = sums.get(key)
                sums[key] = (
                    list(values) if held is None else [a + b for a, b in zip(held, values, strict=True)]
                )
        found = [CountRow(key[0], key[1:], values) for key, values in sorted(sums.items())]
        if query.busiest is not None:
            return questions.by_busiest(found)[: min(query.busiest, GROUPS_LIMIT)]
        return found[:GROUPS_LIMIT]


def _mark(number: int) -> str:
    return f"?{number}"


def _both(one: Awaiting, other: Awaiting) -> Awaiting:
    def least(*times: int | None) -> int | None:
        return min((time_ms for time_ms in times if time_ms is not None), default=None)

    return Awaiting(
        one.waiting + other.waiting,
        one.at_least or other.at_least,
        least(one.oldest_ms, other.oldest_ms),
        least(one.due_ms, other.due_ms),
    )


def _quoted(path: Path) -> str:
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _mapped(error: sqlite3.Error, directory: Path) -> HistoryError:
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_INTERRUPT:
        return QueryTooLong("the answer takes too long: ask about a shorter time, or more narrowly")
    where = f"the history in {directory}"
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB} or (
        code is None and isinstance(error, sqlite3.DatabaseError)
    ):
        return StoreRefused(
            f"{where}: {error}. Move the file away and run `dispatcher history rebuild`: the topics have all of it"
        )
    return StoreUnavailable(f"{where}: {error}")
