"""What the conformance suite runs on: the same questions to every store."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from dispatcher.history.base import (
    DIMENSIONS,
    CountQuery,
    DeliveryQuery,
    EventQuery,
    HistoryStore,
    Retention,
)
from dispatcher.history.logged import DAY_MS
from dispatcher.history.postgres.store import PostgresHistory
from dispatcher.history.sqlite.store import SqliteHistory

SQLITE = pytest.param("sqlite", id="sqlite")
POSTGRES = pytest.param("postgres", id="postgres", marks=pytest.mark.postgres)

MONTH = Retention(30 * DAY_MS, 30 * DAY_MS)
EVER = 2**53


class Crash(Exception):
    """The process ends here, as far as the store can tell."""


class Fuse:
    """Lets so many statements through, and then crashes before (or after) the next one."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.after = False
        self.burned = False

    def light(self, left: int, *, after: bool) -> None:
        self.left, self.after, self.burned = left, after, False

    def out(self) -> None:
        self.left = None
        self.burned = False

    def step(self) -> bool:
        """Before a statement: whether to crash behind it."""
        if self.burned:
            raise Crash
        if self.left is None:
            return False
        self.left -= 1
        if self.left >= 0:
            return False
        self.burned = True
        if not self.after:
            raise Crash
        return True


class Backend(ABC):
    """One kind of store, and the data of one test."""

    def __init__(self) -> None:
        self.fuse = Fuse()
        self._open: list[Any] = []

    @abstractmethod
    def make(self, **options: Any) -> Any:
        """Another process's store on the same data, not open yet."""

    async def store(self, retention: Retention = MONTH, **options: Any) -> HistoryStore:
        """One that is open; closed at the end of the test."""
        made = self.make(retention=retention, **options)
        await made.open()
        self._open.append(made)
        store: HistoryStore = made
        return store

    async def close(self, store: HistoryStore) -> None:
        self._open.remove(store)
        await store.close()

    async def crash(self, store: Any) -> None:
        """The process is gone: nothing of it is committed any more."""
        self.fuse.out()
        await self.close(store)

    async def close_all(self) -> None:
        self.fuse.out()
        while self._open:
            await self._open.pop().close()


class _Connection(sqlite3.Connection):
    fuse: Fuse

    def execute(self, *arguments: Any) -> Any:
        if arguments[0] == "PRAGMA synchronous = FULL":
            return super().execute(
                "PRAGMA synchronous = OFF"
            )  # the machine goes on: only the process crashes
        if arguments[0].startswith(("PRAGMA", "SELECT")):
            return super().execute(*arguments)
        crash = self.fuse.step()
        result = super().execute(*arguments)
        if crash:
            raise Crash
        return result

    def executemany(self, *arguments: Any) -> Any:
        crash = self.fuse.step()
        result = super().executemany(*arguments)
        if crash:
            raise Crash
        return result


class OnSqlite(Backend):
    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory

    def make(self, **options: Any) -> SqliteHistory:
        def connect(*arguments: Any, **more: Any) -> sqlite3.Connection:
            made = sqlite3.connect(*arguments, factory=_Connection, **more)
            made.fuse = self.fuse
            return made

        return SqliteHistory(self.directory, connect=connect, **options)


class OnPostgres(Backend):
    def __init__(self, url: str, schema: str) -> None:
        super().__init__()
        self._base = url
        self.schema = schema.replace("-", "_")
        self.url = f"{url}{'&' if '?' in url else '?'}search_path={self.schema}"

    async def prepare(self) -> None:
        connection = await asyncpg.connect(self._base)
        await connection.execute(f"CREATE SCHEMA {self.schema}")
        await connection.close()

    async def remove(self) -> None:
        connection = await asyncpg.connect(self._base)
        await connection.execute(f"DROP SCHEMA {self.schema} CASCADE")
        await connection.close()

    def make(self, **options: Any) -> PostgresHistory:
        return PostgresHistory(self.url, **options)

    async def store(self, retention: Retention = MONTH, **options: Any) -> HistoryStore:
        store: Any = await super().store(retention, **options)
        store._pool = _Pool(store._pool, self.fuse)
        made: HistoryStore = store
        return made


class _Pool:
    def __init__(self, pool: Any, fuse: Fuse) -> None:
        self._pool = pool
        self._fuse = fuse

    @contextlib.asynccontextmanager
    async def acquire(self) -> AsyncIterator[Any]:
        async with self._pool.acquire() as connection:
            yield _Fused(connection, self._fuse)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)


class _Fused:
    """A connection that is cut where the fuse burns."""

    def __init__(self, connection: Any, fuse: Fuse) -> None:
        self._connection = connection
        self._fuse = fuse

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._connection, name)
        if name not in {"execute", "executemany", "fetch", "fetchval", "fetchrow", "copy_records_to_table"}:
            return found

        async def call(*arguments: Any, **more: Any) -> Any:
            try:
                crash = self._fuse.step()
            except Crash:
                self._connection.terminate()
                raise
            result = await found(*arguments, **more)
            if crash:
                self._connection.terminate()
                raise Crash
            return result

        return call

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with self._connection.transaction():
            yield
            try:
                crash = self._fuse.step()  # before COMMIT
            except Crash:
                self._connection.terminate()
                raise
        if crash:
            self._connection.terminate()
            raise Crash


async def dump(store: HistoryStore) -> dict[str, Any]:
    """All that a store knows, to be compared with what another one does."""
    deliveries = (await store.deliveries(DeliveryQuery(0, EVER, 1000))).items
    details = {row.delivery_id: await store.delivery(row.delivery_id) for row in deliveries}
    return {
        "deliveries": sorted(deliveries),
        "details": {
            id_: (list(found.attempts), found.dead_letter) for id_, found in details.items() if found
        },
        "events": sorted((await store.events(EventQuery(0, EVER, 1000))).items),
        "counts": sorted(await store.counts(CountQuery(0, EVER, 60_000, DIMENSIONS))),
        "gaps": sorted(await store.gaps(0, EVER)),
        "positions": dict(await store.positions()),
    }


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another task does."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)
