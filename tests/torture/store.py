"""A PostgreSQL that keeps the histories of runs, each in a schema of its own, and is killed in mid-run."""

from __future__ import annotations

import asyncio
from typing import Self
from urllib.parse import urlsplit

import asyncpg

from tests.postgres.server import Server


class HistoryServer:
    """Raises tests.postgres.server.Unavailable where there is no PostgreSQL."""

    def __init__(self) -> None:
        self._server = Server()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._server.start)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._server.stop)

    @property
    def password(self) -> str:
        password = urlsplit(self._server.url).password
        assert password is not None
        return password

    def url(self, schema: str) -> str:
        """As `history.store` takes it: the password is set apart."""
        parts = urlsplit(self._server.url)
        return f"postgresql://{parts.username}@{parts.hostname}:{parts.port}{parts.path}?search_path={schema}"

    async def make(self, schema: str) -> None:
        """The place of a run."""
        connection = await asyncpg.connect(self._server.url)
        try:
            await connection.execute(f"CREATE SCHEMA {schema}")
        finally:
            await connection.close()

    async def crash(self, lasts: float) -> None:
        """kill -9, and start it again after so many seconds."""
        await asyncio.to_thread(self._server.kill)
        await asyncio.sleep(lasts)
        await asyncio.to_thread(self._server.start)
