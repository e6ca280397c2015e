"""What is remembered of a consumer group beside its offsets, which a broker may forget: `group:<name>` in the store.

A group that has run before must not begin at the end of its topics again (`kafka.offset_reset: latest`), whatever
became of its offsets. A topic that was made anew must not be read from the old one's offsets. So the record says
which topics the group has begun to read, with the id that the broker gave each, and how many partitions each had.

The member that is given partitions first writes the record, after the starts are committed. If the record is lost in
between, the commits say the same. Nobody waits for the write: a topic that was never remembered begins by its commits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final, Protocol

import structlog

from dispatcher.broker.base import Remembered
from dispatcher.control.errors import TooLarge, Unavailable, VersionMismatch
from dispatcher.runtime.tasks import Tasks

log = structlog.get_logger(__name__)

Topics = Mapping[str, Remembered]

_PAUSE: Final = 1.0  # seconds until a write that failed is tried again


class GroupRow(Protocol):
    """An entry of the store's table."""

    @property
    def version(self) -> int: ...
    @property
    def value(self) -> Topics: ...


class GroupTable(Protocol):
    """The store's table of groups."""

    def get(self, name: str) -> GroupRow | None: ...

    async def put(self, name: str, value: Topics, *, base: int) -> GroupRow: ...


def to_document(topics: Topics) -> dict[str, Any]:
    """As it is written."""
    return {"topics": {name: {"id": id_, "partitions": count} for name, (id_, count) in topics.items()}}


def from_document(_name: str, document: Mapping[str, Any]) -> Topics:
    """Read `to_document`. Raises KeyError, TypeError or ValueError for anything else."""
    return {
        str(name): Remembered(None if raw["id"] is None else str(raw["id"]), int(raw["partitions"]))
        for name, raw in document["topics"].items()
    }


class StoredMemory:
    """The memory of one group (`broker.base.GroupMemory`)."""

    def __init__(self, table: GroupTable, group: str, tasks: Tasks) -> None:
        self._table = table
        self._group = group
        self._tasks = tasks
        self._wanted: dict[str, Remembered] = {}
        self._writing = False

    def topics(self) -> Topics | None:
        row = self._table.get(self._group)
        if row is None:
            return self._wanted or None
        return {**row.value, **self._wanted}

    def remember(self, topics: Topics) -> None:
        self._wanted.update(topics)
        if not self._writing:
            self._writing = True
            self._tasks.start(self._write(), f"memory of group {self._group}")

    async def _write(self) -> None:
        try:
            while self._wanted:
                row = self._table.get(self._group)
                wanted = dict(self._wanted)
                topics = wanted if row is None else {**row.value, **wanted}
                try:
                    if row is None or row.value != topics:
                        await self._table.put(self._group, topics, base=0 if row is None else row.version)
                except VersionMismatch:
                    # Another replica was first: beside what it wrote. Where that can't be read here, it doesn't show in the
                    # table, and may have been replaced in a while.
                    await asyncio.sleep(_PAUSE if self._table.get(self._group) is row else 0)
                    continue
                except (Unavailable, TooLarge) as error:
                    log.warning(
                        "what the group reads can't be remembered yet, trying again",
                        group=self._group,
                        error=str(error),
                    )
                    await asyncio.sleep(_PAUSE)
                    continue
                self._wanted = {
                    name: topic for name, topic in self._wanted.items() if wanted.get(name) != topic
                }
        finally:
            self._writing = False
