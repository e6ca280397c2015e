"""Whether a consumer group has delivered to subscriptions of a file: `file:<group>` in the store, with how many there were.

A deploy that loses the setting `subscriptions_file` takes away all of them at once, and what only they want would be passed over without
a word. So a process that delivers writes down that it has a file with subscriptions in it, and one that is started without a file says
what is missing, until a file is named again. A file without subscriptions takes the record away: that is how to say that they are meant to be gone.

A process writes when it has begun, when its file has got its first subscription or lost its last, and when another one whose file has none has
taken the record away: it is gone when no process has any. Otherwise replicas whose files differ for a while don't write against each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import structlog

from dispatcher.control.errors import TooLarge, Unavailable, VersionMismatch
from dispatcher.control.table import Table
from dispatcher.registry.registry import Registry
from dispatcher.settings.groups import Settings

log = structlog.get_logger(__name__)

_LOOK: Final = (
    5.0  # seconds between two looks at the file's subscriptions, and until a write that failed is tried again
)


def to_document(subscriptions: int) -> dict[str, Any]:
    """As it is written."""
    return {"subscriptions": subscriptions}


def from_document(_name: str, document: Mapping[str, Any]) -> int:
    """Read `to_document`. Raises KeyError, TypeError or ValueError for anything else."""
    return int(document["subscriptions"])


class FileMemory:
    """What one process knows of its group's subscriptions file."""

    def __init__(self, table: Table[int], settings: Settings, registry: Registry) -> None:
        self._table = table
        self._group = settings.group
        self._has_file = settings.subscriptions_file is not None
        self._delivers = "deliver" in settings.roles
        self._registry = registry

    @property
    def warning(self) -> str | None:
        """What is missing, in one sentence."""
        if self._has_file or not self._delivers:
            return None
        row = self._table.get(self._group)
        if row is None or not row.value:
            return None
        were = "1 subscription" if row.value == 1 else f"{row.value} subscriptions"
        return (
            f"subscriptions_file is not set, and the group {self._group} had {were} by a file when it was last started with one:"
            " nothing is delivered to these, but to those that the API has by now. Name the file (--subscriptions), or once one with `subscriptions: []` if they are meant to be gone"
        )

    async def run(self) -> None:
        """Write down whether there is a file, and what becomes of it, until cancelled. The store is loaded."""
        if not self._delivers:
            return
        warning = self.warning
        if warning is not None:
            log.warning("the subscriptions file is missing", hint=warning)
        if not self._has_file:
            return
        written: int | None = None
        while True:
            count = self._registry.file_count
            lost = count and self._table.get(self._group) is None
            if written is None or lost or bool(count) != bool(written):
                try:
                    await self._write(count)
                    written = count
                except VersionMismatch:
                    pass  # another replica was first
                except (Unavailable, TooLarge) as error:
                    log.info(
                        "whether there is a subscriptions file can't be written down yet", error=str(error)
                    )
            await asyncio.sleep(_LOOK)

    async def _write(self, count: int) -> None:
        row = self._table.get(self._group)
        if count and (row is None or row.value != count):
            await self._table.put(self._group, count, base=0 if row is None else row.version)
        elif not count and row is not None:
            await self._table.delete(self._group, base=row.version)
