"""The store that a test of the suite runs on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.history.conformance.backends import POSTGRES, SQLITE, Backend, OnPostgres, OnSqlite


@pytest.fixture(params=[SQLITE, POSTGRES])
async def backend(
    request: pytest.FixtureRequest, unique: Callable[[str], str], tmp_path: Path
) -> AsyncIterator[Backend]:
    if request.param == "sqlite":
        on_sqlite = OnSqlite(tmp_path / "history")
        yield on_sqlite
        await on_sqlite.close_all()
        return
    on_postgres = OnPostgres(request.getfixturevalue("postgres"), unique("history"))
    await on_postgres.prepare()
    yield on_postgres
    await on_postgres.close_all()
    await on_postgres.remove()
