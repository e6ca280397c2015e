from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from dispatcher.broker.sqlite.broker import SqliteBroker

Opened = Callable[..., Any]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opened]:
    """Opens brokers, by default on the same file; closes what is left open."""
    brokers: list[SqliteBroker] = []

    async def connect(path: Path = tmp_path / "log.db", **options: Any) -> SqliteBroker:
        broker = SqliteBroker(path, **options)
        brokers.append(broker)
        await broker.connect()
        return broker

    yield connect
    for broker in brokers:
        await broker.close()
