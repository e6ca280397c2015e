"""What is remembered of one group, on its way into the store."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import pytest

from dispatcher.broker.base import Remembered
from dispatcher.control.errors import VersionMismatch
from dispatcher.control.groups import StoredMemory, Topics
from dispatcher.runtime.tasks import Tasks

pytestmark = [pytest.mark.looptime]

EVENTS = Remembered("id of events", 2)
OTHERS = Remembered("id of others", 1)


class Row(NamedTuple):
    version: int
    value: Topics


class Table:
    """The store's, with one entry."""

    def __init__(self) -> None:
        self.version = 0  # in force
        self.row: Row | None = None  # what can be read of it
        self.tries = 0

    def get(self, name: str) -> Row | None:
        return self.row

    async def put(self, name: str, value: Topics, *, base: int) -> Row:
        self.tries += 1
        assert self.tries < 100, "it spins"
        if base != self.version:
            raise VersionMismatch(self.version)
        self.version += 1
        self.row = Row(self.version, value)
        return self.row


async def test_it_is_written_beside_what_another_replica_wrote_first() -> None:
    table, tasks = Table(), Tasks()
    memory = StoredMemory(table, "dispatcher", tasks)
    memory.remember({"events": EVENTS})
    table.version, table.row = 1, Row(1, {"others": OTHERS})
    await asyncio.sleep(0.1)
    assert table.row == (2, {"others": OTHERS, "events": EVENTS})
    await tasks.stop()


async def test_an_entry_that_cannot_be_read_is_waited_for_without_spinning() -> None:
    table, tasks = Table(), Tasks()
    table.version = 3
    memory = StoredMemory(table, "dispatcher", tasks)
    memory.remember({"events": EVENTS})
    await asyncio.sleep(10)
    assert memory.topics() == {"events": EVENTS}, "as long as this process lives, it is remembered"
    table.row = Row(3, {"others": OTHERS})
    await asyncio.sleep(10)
    assert table.row == (4, {"others": OTHERS, "events": EVENTS})
    await tasks.stop()
