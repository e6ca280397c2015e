"""The broker that a test of the contract runs on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.broker.backends import KAFKA, MOCK, SQLITE, Backend, OnKafka, OnMock, OnSqlite


@pytest.fixture(params=[SQLITE, KAFKA, MOCK])
async def backend(
    request: pytest.FixtureRequest, unique: Callable[[str], str], tmp_path: Path
) -> AsyncIterator[Backend]:
    made: Backend
    match request.param:
        case "sqlite":
            made = OnSqlite(unique, tmp_path)
        case "kafka":
            made = OnKafka(unique, request.getfixturevalue("kafka"))
        case _:
            made = OnMock(unique, request.getfixturevalue("mock_kafka"))
    yield made
    await made.close_all()
