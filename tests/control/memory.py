"""A store in memory, with the rules of the real one and nothing of its topic."""

from __future__ import annotations

import asyncio
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, Generic, TypeVar

from dispatcher.control.documents import Idempotency, Stored, StoredSecret
from dispatcher.control.errors import NotFound, Unavailable, VersionMismatch
from dispatcher.control.store import ControlStore, Marks, silence_of
from dispatcher.control.table import Row, Table
from dispatcher.core.control.keys import Key
from dispatcher.core.control.portal import PortalImage, PortalSession
from dispatcher.core.control.quotas import Overrides
from dispatcher.core.event.catalogued import EventType
from dispatcher.core.request.netguard import Guard
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.core.subscription.model import Status
from dispatcher.core.subscription.spec import SpecReader
from dispatcher.registry.registry import Registry
from dispatcher.registry.snapshot import BY_OPERATOR, Managed, Runtime

T = TypeVar("T")


class MemoryTable(Table[T], Generic[T]):
    """Entries in a dictionary."""

    def __init__(self) -> None:
        self.rows: dict[str, Row[T]] = {}

    def get(self, name: str) -> Row[T] | None:
        return self.rows.get(name)

    def names(self) -> Sequence[str]:
        return sorted(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    async def put(self, name: str, value: T, *, base: int) -> Row[T]:
        await asyncio.sleep(0)
        current = self.rows.get(name)
        if (current.version if current else 0) != base:
            raise VersionMismatch(current.version if current else None)
        row = self.rows[name] = Row(name, base + 1, value, 1_000_000_000_000)
        return row

    async def delete(self, name: str, *, base: int) -> None:
        await asyncio.sleep(0)
        current = self.rows.get(name)
        if current is None or current.version != base:
            raise VersionMismatch(current.version if current else None)
        del self.rows[name]


class MemoryStore(ControlStore):
    """Writes take a turn of the loop; `before_write` is called in it, to come in between."""

    def __init__(self, registry: Registry, guard: Guard, wall: Callable[[], float]) -> None:
        self.registry = registry
        self.wall = wall
        self.rows: dict[str, Stored] = {}
        self.sorted: list[str] = []
        self.reader = SpecReader(guard, timeout=15.0, retry=RetryPolicy((5.0,), 0.0), accepted=True)
        self.keys: Table[Key] = MemoryTable()
        self.event_types: Table[EventType] = MemoryTable()
        self.portal_sessions: MemoryTable[PortalSession] = MemoryTable()
        self.portal_images: MemoryTable[PortalImage] = MemoryTable()
        self.quotas: Table[Overrides] = MemoryTable()
        self.files: Table[int] = MemoryTable()
        self.before_write: Callable[[], None] | None = None
        self.away = False
        self.reading = False
        self.refused: dict[str, int] = {}

    async def start(self) -> None: ...

    async def wait_loaded(self) -> None: ...

    async def stop(self) -> None: ...

    @property
    def loaded(self) -> bool:
        return not self.reading

    @property
    def problem(self) -> str | None:
        return "still reading" if self.reading else None

    @property
    def warning(self) -> str | None:
        return None

    def unusable(self) -> dict[str, int]:
        return self.refused

    def now_ms(self) -> int:
        return round(self.wall() * 1000)

    def get(self, id: str) -> Stored | None:  # noqa: A002 - as the store has it
        return self.rows.get(id)

    def ids(self) -> Sequence[str]:
        return self.sorted

    def __len__(self) -> int:
        return len(self.rows)

    async def _turn(self) -> None:
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("the broker is away")
        if self.before_write is not None:
            come_between, self.before_write = self.before_write, None
            come_between()

    def write(
        self,
        id: str,  # noqa: A002 - as the store has it
        document: Mapping[str, Any],
        secrets: Sequence[StoredSecret],
        idempotency: Idempotency | None = None,
        marks: Marks = (),
    ) -> Stored:
        """In the place of whatever is there."""
        now = round(self.wall() * 1000)
        old = self.rows.get(id)
        raw = {"id": id, **document, "secrets": [secret.secret for secret in secrets]}
        subscription = self.reader.read(raw)
        stored = Stored(
            id,
            old.version + 1 if old else 1,
            dict(document),
            tuple(secrets),
            old.created_ms if old else now,
            now,
            idempotency,
            paused=silence_of(document, old, now, marks),
        )
        if old is None:
            insort(self.sorted, id)
        self.rows[id] = stored
        self.registry.put_managed(subscription, f"{stored.created_ms} {document['url']}")
        return stored

    async def fill(self, count: int, tenants: int) -> None:
        """So many at once: `s00000` and so on, of `t0` and so on in turn."""
        managed: dict[str, Managed] = {}
        secret = StoredSecret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
        fields = {"url": "https://x.example/", "event_types": ["a.*"]}
        read = self.reader.read({"id": "s", **fields, "secrets": [secret.secret]})
        for number in range(count):
            id_ = f"s{number:06}"
            document: dict[str, Any] = {**fields, "tenant": f"t{number % tenants}"}
            subscription = copy(read)
            subscription.id, subscription.tenant = id_, document["tenant"]
            managed[id_] = Managed(subscription, "tag")
            self.rows[id_] = Stored(id_, 1, document, (secret,), 0, 0, None)
        self.sorted = sorted(self.rows)
        await self.registry.load_managed(managed, {})

    async def put(
        self,
        id: str,  # noqa: A002 - as the store has it
        document: Mapping[str, Any],
        secrets: Sequence[StoredSecret],
        *,
        base: int,
        idempotency: Idempotency | None = None,
        marks: Marks = (),
    ) -> Stored:
        await self._turn()
        self._compare(id, base)
        return self.write(id, document, secrets, idempotency, marks)

    def _compare(self, id: str, base: int) -> None:  # noqa: A002 - as the store has it
        old = self.rows.get(id)
        if (old.version if old else 0) != base:
            raise VersionMismatch(old.version if old else None)

    async def delete(self, id: str, *, base: int) -> None:  # noqa: A002 - as the store has it
        await self._turn()
        self._compare(id, base)
        del self.rows[id]
        self.sorted.remove(id)
        self.registry.set_runtime(id, None)
        self.registry.remove_managed(id)

    def by_idempotency(self, principal: str, key: str) -> Stored | None:
        for stored in self.rows.values():
            made = stored.idempotency
            if made is not None and (made.principal, made.key) == (principal, key):
                return stored
        return None

    async def _become(self, id: str, status: Status | None, reason: str | None = None) -> None:  # noqa: A002
        await self._turn()
        tag = self.registry.tag(id)
        if tag is None:
            raise NotFound(id)
        self.registry.set_runtime(id, None if status is None else Runtime(tag, status, reason, self.wall()))

    async def enable(self, id: str) -> None:  # noqa: A002 - as the store has it
        await self._become(id, None)

    async def set_validated(self, id: str) -> None:  # noqa: A002 - as the store has it
        await self._become(id, Status.ACTIVE)

    async def set_disabled(self, id: str, text: str) -> None:  # noqa: A002 - as the store has it
        await self._turn()
        if self.registry.tag(id) is None:
            raise NotFound(id)
        self.registry.disable(id, BY_OPERATOR, text)
