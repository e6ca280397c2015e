"""The kinds of records in the control topic, and tables of entries by name.

A record's key begins with its kind: `key:<id>`, `event-type:<name>`, `status:<id>`... The key of a subscription is its
id alone, and no id has a colon. `Kinds` is the one list of kinds: a new kind is one `add`, in `store.py`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

import orjson
import structlog

from dispatcher.control.errors import VersionMismatch
from dispatcher.core.control.ledger import LedgerState

log = structlog.get_logger(__name__)
T = TypeVar("T")

SUBSCRIPTION: Final = "subscription"
"""The kind of the records whose keys have no colon."""


class RecordKind(NamedTuple):
    """What the keys of one kind begin with, and who is told what the topic says."""

    name: str
    take: Callable[[str, LedgerState[bytes]], None]
    """Told the rest of the key and the state in force, each time that it changes and once at the start."""


class Kinds:
    """The kinds of records that this version knows."""

    def __init__(self) -> None:
        self._by_name: dict[str, RecordKind] = {}
        self._bare: dict[str, Callable[[bytes], bool]] = {}

    def add(self, kind: RecordKind) -> None:
        """Records of this kind have versions, and the ledger decides which of them count."""
        self._by_name[kind.name] = kind

    def add_bare(self, name: str, take: Callable[[bytes], bool]) -> None:
        """Records of this kind have no versions: the key says all. `take` gets the key, and returns whether it could be read."""
        self._bare[name] = take

    def of(self, key: str) -> tuple[RecordKind | None, str]:
        """The kind of a key, None for one that this version doesn't know, and the rest of the key."""
        name, colon, rest = key.partition(":")
        if not colon:
            return self._by_name.get(SUBSCRIPTION), key
        return None if name == SUBSCRIPTION else self._by_name.get(name), rest

    def take_bare(self, key: bytes | None) -> bool:
        """Hand on a record without versions; False where it is none."""
        if key is None:
            return False
        name, colon, _ = key.partition(b":")
        take = self._bare.get(name.decode(errors="replace")) if colon else None
        return take is not None and take(key)


def kind_of(key: str) -> str:
    """The name of a key's kind, known or not."""
    name, colon, _ = key.partition(":")
    return name if colon else SUBSCRIPTION


class SortedNames:
    """Names in order. Changed one at a time; many are filled in unsorted, and sorted once."""

    def __init__(self) -> None:
        self.sorted: list[str] = []

    def add(self, name: str) -> None:
        """Put the name in its place, once."""
        at = bisect_left(self.sorted, name)
        if at == len(self.sorted) or self.sorted[at] != name:
            self.sorted.insert(at, name)

    def discard(self, name: str) -> None:
        """Take the name out."""
        at = bisect_left(self.sorted, name)
        if at < len(self.sorted) and self.sorted[at] == name:
            del self.sorted[at]


@dataclass(frozen=True, slots=True)
class Row(Generic[T]):
    """One entry of a table."""

    name: str
    version: int
    value: T
    updated_ms: int


class Changes(Protocol):
    """Writes to the topic: `log.ControlLog`."""

    def now_ms(self) -> int:
        """Unix milliseconds."""

    async def change(self, key: str, base: int, value: bytes | None) -> None:
        """Write the key in the place of version `base`. Raises VersionMismatch, Unavailable, TooLarge."""


class Table(Generic[T]):
    """Entries of one kind by name. The log fills it; nothing else changes it."""

    def __init__(
        self,
        changes: Changes,
        kind: str,
        write: Callable[[T], dict[str, Any]],
        read: Callable[[str, dict[str, Any]], T],
    ) -> None:
        """`write` makes a JSON document of a value; `read` reads it, and raises ValueError, KeyError or TypeError."""
        self.kind = RecordKind(kind, self.take)
        self._changes = changes
        self._write = write
        self._read = read
        self._rows: dict[str, Row[T]] = {}
        self._names = SortedNames()

    def get(self, name: str) -> Row[T] | None:
        """The entry of this name."""
        return self._rows.get(name)

    def names(self) -> Sequence[str]:
        """All names, sorted. Not to be changed; a later change of the table may show in it."""
        return self._names.sorted

    def __len__(self) -> int:
        return len(self._rows)

    async def put(self, name: str, value: T, *, base: int) -> Row[T]:
        """Write it in the place of version `base` (0: it must be new). Raises VersionMismatch, Unavailable, TooLarge."""
        raw = {"value": self._write(value), "updated_ms": self._changes.now_ms()}
        await self._changes.change(self._key(name), base, orjson.dumps(raw))
        row = self._rows.get(name)
        if row is None:
            raise VersionMismatch(None)  # deleted in the same moment
        return row

    async def delete(self, name: str, *, base: int) -> None:
        """Delete version `base`. Raises VersionMismatch, Unavailable."""
        await self._changes.change(self._key(name), base, None)

    def take(self, name: str, state: LedgerState[bytes]) -> None:
        """What the topic says of it now. An entry that can't be read is logged, and the one before it stays."""
        if state.value is None:
            if self._rows.pop(name, None) is not None:
                self._names.discard(name)
            return
        try:
            raw = orjson.loads(state.value)
            self._rows[name] = Row(
                name, state.version, self._read(name, raw["value"]), int(raw["updated_ms"])
            )
        except (ValueError, KeyError, TypeError) as error:
            log.error(  # noqa: TRY400 - nothing of ours is broken
                "an entry of the control plane can't be read", key=self._key(name), error=repr(error)
            )
            return
        self._names.add(name)

    def _key(self, name: str) -> str:
        return f"{self.kind.name}:{name}"
