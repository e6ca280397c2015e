"""What the API manages, kept in the compacted topic, and the runtime status of every subscription.

The topic is one partition, read whole at the start and followed from then on, so every replica has all of it in
memory and answers any request. A write is a record; whether it counts, each replica decides by the order of the
log (`core/control/ledger.py`). So a write is answered when its own record has been read back here: then it is acknowledged
by the broker, decided, and in force on this replica; the others are some milliseconds behind.

What is kept under which key:

- `<id>`: a subscription of the API's: the document as it is written, secrets, when and by which request it was created.
- `status:<id>`: what has become of a subscription at run time, the file's too (`registry.Runtime`). Apart from the
  document, so that an endpoint that begins to fail doesn't change the version (the ETag) that its owner goes
  by, and so that a subscription of the same id in the file and in the API have one status each by its tag.
- `skip:...`: a batch of some topic that an operator has given up reading (`core/skips.py`); no document, and kept for ever.
- `key:<id>`, `event-type:<name>`: API keys and the catalogue. `group:<name>`: what a consumer group has begun to read
  (`groups.py`). Kinds that this version doesn't know are left alone. No id of a subscription has a colon.

Secrets and the values of headers are sealed before they are written, where there is a key (`core/control/sealing.py`). A
subscription whose secrets no key opens is kept, listed and disabled (`sealed`); one that the settings refuse by
now (its port, its scheme) likewise (`invalid`). Neither is ever written over by this.

Rejected: a table of parsed documents. A hundred thousand of them are read once in a while, and the bytes that
repairs need are there anyway; parsing and unsealing one takes some 10 us.

Rules:

1. `_take` alone applies records, in their order; nothing else changes the ledger, the tables or the indexes.
2. Until `loaded` nothing is written, and nothing but the ledger is filled; the registry gets all of it at once.
3. A decision of the registry's (`on_status`) is a `_Wish` from then on until the topic says the same. It holds here
   whatever comes in between: what the topic brings is shown to the registry with the wish on top of it.
4. A dirty key is repaired: at once by the one whose record made it dirty, by the others some while later, should that
   one be gone.
5. No step holds the loop up for longer than `_SLICE`, but the building of the snapshot, which a thread does.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import os
import random
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, TypeVar

import orjson
import structlog

from dispatcher.broker.base import (
    Broker,
    BrokerError,
    BrokerUnavailable,
    MadeAnew,
    Message,
    MessageTooLarge,
    Reader as TopicReader,
    Record,
    UnreadableRecord,
)
from dispatcher.control import groups
from dispatcher.control.errors import Invalid, NotFound, TooLarge, Unavailable, VersionMismatch
from dispatcher.core.control.keys import Key
from dispatcher.core.control.ledger import Ledger, State, Verdict, from_headers, to_headers
from dispatcher.core.control.sealing import CannotOpen, Sealer, read_key
from dispatcher.core.event.catalogued import EventType
from dispatcher.core.flaws import FlawedError
from dispatcher.core.request.netguard import Guard
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.core.skips import Skip, read_skip
from dispatcher.core.subscription.index import Status, Subscription
from dispatcher.core.subscription.spec import Reader as SpecReader
from dispatcher.registry.registry import Registry
from dispatcher.registry.snapshot import Managed, Runtime
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import Settings

log = structlog.get_logger(__name__)
T = TypeVar("T")

IDEMPOTENCY_WINDOW: Final = 24 * 3600.0
"""Seconds that a creation is found again by its Idempotency-Key."""

_STATUS: Final = "status:"
_KEY: Final = "key:"
_EVENT_TYPE: Final = "event-type:"
_GROUP: Final = "group:"

_SLICE: Final = 0.005  # seconds of work at a stretch
_BATCH: Final = 1000
_POLL: Final = 1.0
_WRITE_TIMEOUT: Final = 10.0
_RETRY_PAUSE: Final = 0.5
_REPAIR_DELAY: Final = 20.0  # seconds until others repair what the writer should have
_STATUS_BATCH: Final = 500  # statuses written together; those that only say "failing" at most once a second
_STATUS_PAUSE: Final = 1.0
_RESEAL_BATCH: Final = 100
_RESEAL_PAUSE: Final = 0.5
_RESEAL_DELAY: Final = (
    60.0  # seconds after the start: replicas that get a new key one after the other all have it
)
_HOUSEKEEPING: Final = 60.0  # seconds at the most between two looks at the clock
_FORGET_DELETED: Final = 25 * 3600.0
_LOGGED: Final = 20
_LAST_WISHES: Final = 2.0
_STOPPED: Final = "the dispatcher is stopping"


def subscriptions_topic(settings: Settings) -> str:
    """The topic that all of this is in."""
    return f"{settings.topics.prefix}subscriptions"


# Tuples: a hundred thousand are made while loading, and each frozen dataclass takes three times as long.
class StoredSecret(NamedTuple):
    """A signing secret in full, and when it ends by itself (Unix ms; None: it doesn't)."""

    secret: str
    expires_ms: int | None = None


class Idempotency(NamedTuple):
    """The request that created it: whose, its Idempotency-Key, and a digest of what it asked for."""

    principal: str
    key: str
    digest: str


class Stored(NamedTuple):
    """A subscription of the API's as it is kept.

    `document` has the fields of `SubscriptionSpec` as they are written, `status` included, without `id` and
    `secrets`; `secrets` are the live ones, newest first.
    """

    id: str
    version: int
    document: dict[str, Any]
    secrets: tuple[StoredSecret, ...]
    created_ms: int
    updated_ms: int
    idempotency: Idempotency | None = None
    unusable: str | None = None
    """Why it can't be delivered to: `sealed` (no key opens its secrets) or `invalid` (the settings refuse it now)."""


@dataclass(frozen=True, slots=True)
class Row(Generic[T]):
    """One entry of a table."""

    name: str
    version: int
    value: T
    updated_ms: int


class _Names:
    """Names in order. Changed one at a time; many are filled in unsorted, and sorted once."""

    def __init__(self) -> None:
        self.sorted: list[str] = []

    def add(self, name: str) -> None:
        at = bisect_left(self.sorted, name)
        if at == len(self.sorted) or self.sorted[at] != name:
            self.sorted.insert(at, name)

    def discard(self, name: str) -> None:
        at = bisect_left(self.sorted, name)
        if at < len(self.sorted) and self.sorted[at] == name:
            del self.sorted[at]


class Table(Generic[T]):
    """Entries of one kind by name. The store fills it."""

    def __init__(
        self,
        store: Store,
        prefix: str,
        write: Callable[[T], dict[str, Any]],
        read: Callable[[str, dict[str, Any]], T],
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._written = write
        self._read = read
        self._rows: dict[str, Row[T]] = {}
        self._names = _Names()

    def get(self, name: str) -> Row[T] | None:
        """The entry of this name."""
        return self._rows.get(name)

    def names(self) -> Sequence[str]:
        """All names, sorted. Not to be changed; a later change of the table may show in it."""
        return self._names.sorted

    def __len__(self) -> int:
        return len(self._rows)

    async def put(self, name: str, value: T, *, base: int) -> Row[T]:
        """Write it in the place of version `base` (0: it must be new). Raises VersionMismatch, Unavailable."""
        raw = {"value": self._written(value), "updated_ms": self._store.now_ms()}
        await self._store.change(self._prefix + name, base, orjson.dumps(raw))
        row = self._rows.get(name)
        if row is None:
            raise VersionMismatch(None)  # deleted in the same moment
        return row

    async def delete(self, name: str, *, base: int) -> None:
        """Delete version `base`. Raises VersionMismatch, Unavailable."""
        await self._store.change(self._prefix + name, base, None)

    def take(self, name: str, state: State[bytes]) -> None:
        """What the topic says of it now. What can't be read is logged and left out."""
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
                "an entry of the control plane can't be read", key=self._prefix + name, error=repr(error)
            )
            return
        self._names.add(name)


class _Wish(NamedTuple):
    """What was decided here and is not in the topic yet."""

    runtime: Runtime
    status: bool  # whether the status was decided,
    failing: bool  # and since when it fails


class _Write(NamedTuple):
    key: str
    base: int
    value: bytes | None


class Store:
    """What the topic says, followed; writes answer when they have been read back here.

    Everything raises Unavailable until `loaded`, and while the broker is away: a write that ended so may still
    take effect. VersionMismatch: somebody else was first; read again.
    """

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        registry: Registry,
        guard: Guard,
        *,
        wall: Callable[[], float] = time.time,
        on_failure: Callable[[str, BaseException], None] | None = None,
        reseal_delay: float = _RESEAL_DELAY,
        write_timeout: float = _WRITE_TIMEOUT,
    ) -> None:
        """`wall` gives Unix seconds; `on_failure` is told when it died: the process should end. Times in seconds."""
        self.keys: Table[Key] = Table(self, _KEY, Key.to_document, Key.from_document)
        self.groups: Table[groups.Topics] = Table(self, _GROUP, groups.to_document, groups.from_document)
        self.event_types: Table[EventType] = Table(self, _EVENT_TYPE, EventType.document, EventType.of)
        self.skips: set[Skip] = set()
        """What operators have given up reading, since ever."""
        self._settings = settings
        self._topic = subscriptions_topic(settings)
        self._broker = broker
        self._registry = registry
        self._wall = wall
        self._reseal_delay = reseal_delay
        self._write_timeout = write_timeout
        self._sealer = Sealer(
            [read_key(key.get_secret_value()) for key in settings.api.secrets_keys], os.urandom
        )
        self._guard = guard
        self._specs = self._spec_reader(guard)
        self._checks = self._spec_reader(guard, keeps=False)  # of what may never be written
        # For what the settings have come to refuse: it is not delivered to, but there.
        self._lenient = self._spec_reader(Guard(("0.0.0.0/0", "::/0"), https_only=False, ports=("1-65535",)))
        self._reader: TopicReader | None = None
        self._ledger: Ledger[bytes] = Ledger()
        self._ids = _Names()
        self._unusable: dict[str, str] = {}
        self._requests: dict[tuple[str, str], tuple[str, int]] = {}  # id and creation by Idempotency-Key
        self._expiries: list[tuple[int, str]] = []  # a heap: when some secret of it ends
        self._sooner = asyncio.Event()  # something was added to it
        self._deleted: dict[str, float] = {}  # when; to be forgotten some time after
        self._waiting: dict[bytes, asyncio.Future[Verdict]] = {}
        self._wishes: dict[str, _Wish] = {}
        self._wished = asyncio.Event()
        self._granted = asyncio.Event()  # set when a wish is in the topic, and replaced
        self._repairs: dict[str, float] = {}  # dirty keys, and when to repair them (loop time)
        self._to_repair = asyncio.Event()
        self._loaded = asyncio.Event()
        self._warned = False
        self._records = 0
        self._written_back: int | None = None  # entries, since the topic was made anew
        self._foreign = 0  # records that no dispatcher has written
        self._problem: str | None = "the subscriptions are not read yet"
        self._tasks = Tasks(on_failure)
        registry.on_status = self._decided

    def _spec_reader(self, guard: Guard, *, keeps: bool = True) -> SpecReader:
        retry = RetryPolicy(self._settings.retry.schedule, self._settings.retry.jitter)
        return SpecReader(
            guard, timeout=self._settings.delivery.timeout, retry=retry, keeps=keeps, accepted=True
        )

    # Starting, stopping, and what others may ask.

    async def start(self) -> None:
        """Load in the background and follow from then on; waits for nothing. The topic must exist."""
        self._tasks.start(self._follow(), "control store")
        self._tasks.start(self._grant_wishes(), "control statuses")
        self._tasks.start(self._repair_dirty(), "control repairs")
        self._tasks.start(self._keep_house(), "control housekeeping")

    async def wait_loaded(self) -> None:
        """Until everything is read that was there at the start."""
        await self._loaded.wait()

    async def stop(self) -> None:
        """Follow no more; writes under way end with Unavailable. What was disabled just now is written before."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WISHES):
                while self.loaded and any(wish.status for wish in self._wishes.values()):
                    await self._granted.wait()
        self._problem = _STOPPED
        self._loaded.clear()
        await self._tasks.stop()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Unavailable(f"{_STOPPED}: the change may still take effect"))
        if self._reader is not None:
            await self._reader.stop()

    @property
    def loaded(self) -> bool:
        """Whether everything is read that was there at the start."""
        return self._loaded.is_set()

    @property
    def problem(self) -> str | None:
        """Why it can't be asked now, in one sentence."""
        if self._problem is not None:
            return self._problem
        return None if self._reader is None else self._reader.problem

    @property
    def warning(self) -> str | None:
        """What isn't as it should be, while it works, in one sentence."""
        if self._written_back is None:
            return None
        return (
            f"topic {self._topic} was deleted or cut and made anew: the {self._written_back} entries that it held were written to"
            " it again from this process's memory; to begin with an empty one, stop every replica first"
        )

    def now_ms(self) -> int:
        """Unix milliseconds."""
        return round(self._wall() * 1000)

    # Subscriptions of the API's.

    def get(self, id: str) -> Stored | None:  # noqa: A002 - the field's name
        """One by its id: parsed and unsealed at each call, some 10 us. What can't be read (the log told) isn't there."""
        state = self._ledger.get(id)
        if state is None or state.value is None or ":" in id:
            return None
        try:
            return self._parsed(id, state)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def ids(self) -> Sequence[str]:
        """All ids, sorted, for paging by bisection. Not to be changed; a later change may show in it."""
        return self._ids.sorted

    def __len__(self) -> int:
        return len(self._ids.sorted)

    async def put(
        self,
        id: str,  # noqa: A002 - the field's name
        document: Mapping[str, Any],
        secrets: Sequence[StoredSecret],
        *,
        base: int,
        idempotency: Idempotency | None = None,
    ) -> Stored:
        """Write it in the place of version `base` (0: create). In force on this replica when this returns.

        Without `idempotency` it keeps the one that it has. Raises VersionMismatch, Unavailable, TooLarge, and Invalid
        with the flaws of a document that is no subscription.
        """
        self._check()
        now = self.now_ms()
        try:
            self._checks.read({**document, "id": id, "secrets": [each.secret for each in secrets]})
        except FlawedError as error:
            raise Invalid(error.flaws) from error
        old = self.get(id) if base else None
        self._warn_unsealed()
        stored = Stored(
            id,
            0,
            dict(document),
            tuple(secrets),
            created_ms=now if old is None else old.created_ms,
            updated_ms=now,
            idempotency=idempotency or (None if old is None else old.idempotency),
        )
        await self.change(id, base, self._raw(stored))
        written = self.get(id)
        if written is None:
            raise VersionMismatch(None)  # deleted in the same moment
        return written

    async def delete(self, id: str, *, base: int) -> None:  # noqa: A002 - the field's name
        """Delete version `base`. Raises VersionMismatch, Unavailable."""
        await self.change(id, base, None)
        status = self._present(_STATUS + id)
        if status is not None and not self._registry.in_file(id):
            with contextlib.suppress(VersionMismatch, Unavailable):  # it says nothing of anything any more
                await self.change(_STATUS + id, status.version, None)

    def by_idempotency(self, principal: str, key: str) -> Stored | None:
        """What this principal created with this Idempotency-Key within the last 24 hours, by whatever replica."""
        id_, created_ms = self._requests.get((principal, key), ("", 0))
        if created_ms < self.now_ms() - IDEMPOTENCY_WINDOW * 1000:
            return None
        return self.get(id_)

    # What has become of subscriptions at run time, the file's too. `registry.runtime(id)` says what.

    async def enable(self, id: str) -> None:  # noqa: A002 - the field's name
        """End a disabling decided at run time. Raises NotFound, Unavailable."""
        await self._decide(id, self._registry.enable)

    async def set_validated(self, id: str) -> None:  # noqa: A002 - the field's name
        """It passed its validation: `pending` ends. Raises NotFound, Unavailable."""
        await self._decide(id, self._registry.note_validated)

    async def set_disabled(self, id: str, reason: str) -> None:  # noqa: A002 - the field's name
        """Disable it. Raises NotFound, Unavailable."""
        await self._decide(id, lambda id_: self._registry.disable(id_, reason))

    async def _decide(self, id: str, decide: Callable[[str], None]) -> None:  # noqa: A002 - the field's name
        self._check()
        if id not in self._registry:
            raise NotFound(f"there is no subscription {id}")
        decide(id)
        try:
            async with asyncio.timeout(self._write_timeout):
                while id in self._wishes:
                    await self._granted.wait()
        except TimeoutError as error:
            raise self._away() from error

    # Reading the topic.

    async def _follow(self) -> None:
        self._reader = reader = self._broker.reader(self._topic)
        await reader.start()
        began = time.perf_counter()
        while not reader.caught_up:
            self._problem = reader.problem or f"reading the subscriptions: {self._records} records so far"
            await self._sliced(await reader.read(_POLL, _BATCH), self._learn)
        await self._load()
        log.info(
            "control plane loaded",
            records=self._records,
            subscriptions=len(self._ids.sorted),
            keys=len(self.keys),
            event_types=len(self.event_types),
            unusable=len(self._unusable),
            seconds=round(time.perf_counter() - began, 3),
        )
        while True:
            try:
                await self._sliced(await reader.read(_POLL, _BATCH), self._take)
            except MadeAnew as error:
                reader = await self._write_back(reader, error)

    async def _write_back(self, lost: TopicReader, error: MadeAnew) -> TopicReader:
        """The topic was deleted and made anew: give it back what every replica has of it, and follow the new one.

        To drop what it held would end every delivery to these subscriptions, without a word and for good. Each entry is
        written as a repair is: from whichever replica it comes first, the others take it for what they have.
        """
        log.error("the topic of the subscriptions is not the one that was read", error=str(error))
        await lost.stop()
        self._reader = reader = self._broker.reader(self._topic)
        await reader.start()
        keys = [key for key in self._ledger if self._present(key) is not None]
        for key in keys:
            self._ledger.spoil(key)
            self._plan_repair(key, 2 * random.random())  # noqa: S311 - no secret
        self._written_back = len(keys)
        log.error("what the topic of the subscriptions held is written to it again", entries=len(keys))
        return reader

    async def _sliced(self, items: Iterable[T], work: Callable[[T], object]) -> None:
        """Do the work for each, and let the loop turn in between."""
        since = time.perf_counter()
        for item in items:
            work(item)
            if time.perf_counter() - since > _SLICE:
                await asyncio.sleep(0)
                since = time.perf_counter()

    def _learn(self, record: Record) -> tuple[str, Verdict, bytes]:
        """Let the ledger have the record: its key, what became of it, and its nonce."""
        self._records += 1
        if (skip := read_skip(record.key)) is not None:
            self.skips.add(skip)
            return "", Verdict.IGNORED, b""
        key = "" if record.key is None else record.key.decode(errors="replace")
        try:
            if isinstance(record, UnreadableRecord):
                raise ValueError(record.problem)  # noqa: TRY301, TRY004 - handled like what `from_headers` raises
            change = from_headers(record.headers)
        except ValueError as error:
            log.warning(
                "a foreign record in the topic of the subscriptions, passed over",
                key=key[:80],
                offset=record.offset,
                error=str(error),
            )
            self._ledger.spoil(key)
            verdict, nonce = Verdict.IGNORED, b""
        else:
            verdict, nonce = self._ledger.apply(key, change, record.value), change.nonce
        return key, verdict, nonce

    def _take(self, record: Record) -> None:
        """The next record, once everything is loaded."""
        key, verdict, nonce = self._learn(record)
        future = self._waiting.pop(nonce, None)
        if verdict is Verdict.ACCEPTED:
            self._changed(key)
        if key in self._ledger.dirty:
            self._plan_repair(key, 0.0 if future is not None else _REPAIR_DELAY * (1 + random.random()))  # noqa: S311 - no secret
        else:
            self._repairs.pop(key, None)
        if future is not None and not future.done():
            future.set_result(verdict)

    async def _load(self) -> None:
        """Everything at once, when the ledger has all that was there."""
        managed: dict[str, Managed] = {}
        runtimes: dict[str, Runtime] = {}
        ids: list[str] = []
        stale: list[str] = []

        def load(key: str) -> None:
            state = self._ledger.get(key)
            if state is None or state.value is None:
                self._deleted[key] = self._wall()
                return
            if key.startswith(_STATUS):
                runtime = _read_runtime(state)
                if runtime is not None:
                    runtimes[key.removeprefix(_STATUS)] = runtime
            elif ":" in key:
                self._changed(key)
            else:
                ids.append(key)
                made, old_key = self._made(key, state)
                if made is not None:
                    managed[key] = made
                if old_key:
                    stale.append(key)

        self._problem = f"putting {len(self._ledger)} entries of the control plane in place"
        await self._sliced(list(self._ledger), load)
        self._ids.sorted = sorted(ids)
        self._warn_unsealed()
        if self._unusable:
            log.error(
                "SUBSCRIPTIONS ARE NOT DELIVERED TO: the settings refuse them, or no key opens their secrets",
                subscriptions=dict(list(self._unusable.items())[:_LOGGED]),
                total=len(self._unusable),
                reasons=self.unusable(),
                hint="sealed: put the key back into api.secrets_keys; invalid: change them, or the settings that refuse them."
                " What matches them meanwhile is kept for subscription.pause_keeps",
            )
        await self._registry.load_managed(managed, runtimes)
        for key in self._ledger.dirty:
            self._plan_repair(key, 2 * random.random())  # noqa: S311 - no secret
        self._problem = None
        self._loaded.set()
        self._wished.set()
        if stale:
            self._tasks.start(self._reseal(stale), "control resealing")

    def _changed(self, key: str) -> None:
        """Bring everything that follows from the key's state to what it is now."""
        state = self._ledger.get(key)
        assert state is not None  # noqa: S101 - for the type checker: it was just written
        if state.value is None:
            self._deleted[key] = self._wall()
        else:
            self._deleted.pop(key, None)
        if key.startswith(_STATUS):
            id_ = key.removeprefix(_STATUS)
            self._registry.set_runtime(id_, self._with_wish(id_))
        elif key.startswith(_KEY):
            self.keys.take(key.removeprefix(_KEY), state)
        elif key.startswith(_GROUP):
            self.groups.take(key.removeprefix(_GROUP), state)
        elif key.startswith(_EVENT_TYPE):
            self.event_types.take(key.removeprefix(_EVENT_TYPE), state)
        elif ":" in key:
            log.warning("an entry of a kind that this version doesn't know", key=key[:80])
        elif state.value is None:
            self._ids.discard(key)
            self._unusable.pop(key, None)
            self._registry.remove_managed(key)
        else:
            made, _ = self._made(key, state)
            self._ids.add(key)
            if made is None:
                self._registry.remove_managed(key)
            else:
                self._registry.put_managed(*made)

    # Documents and bytes.

    def _raw(self, stored: Stored) -> bytes:
        """As it is written."""
        seal = bool(self._sealer)

        def kept(secret: str, field: str) -> dict[str, Any]:
            return (
                {"sealed": self._sealer.seal(secret, f"{stored.id} {field}")} if seal else {"plain": secret}
            )

        document = dict(stored.document)
        document.pop("id", None)
        document.pop("secrets", None)
        if headers := document.get("headers"):
            document["headers"] = {name: kept(value, f"headers {name}") for name, value in headers.items()}
        raw: dict[str, Any] = {
            "document": document,
            "secrets": [
                {**kept(each.secret, "secrets"), "expires_ms": each.expires_ms} for each in stored.secrets
            ],
            "created_ms": stored.created_ms,
            "updated_ms": stored.updated_ms,
        }
        if stored.idempotency is not None:
            raw["idempotency"] = {
                "principal": stored.idempotency.principal,
                "key": stored.idempotency.key,
                "digest": stored.idempotency.digest,
            }
        return orjson.dumps(raw)

    def _parsed(self, id: str, state: State[bytes]) -> Stored:  # noqa: A002 - the field's name
        """As it is kept; what can't be opened is left out, and `unusable` says so."""
        return self._opened(id, state.version, orjson.loads(state.value or b"{}"))

    def _opened(self, id: str, version: int, raw: dict[str, Any]) -> Stored:  # noqa: A002 - the field's name
        unusable = self._unusable.get(id)

        def opened(kept: Mapping[str, Any], field: str) -> str | None:
            nonlocal unusable
            if "sealed" not in kept:
                return str(kept["plain"])
            try:
                return self._sealer.open(kept["sealed"], f"{id} {field}")
            except CannotOpen as error:
                if unusable is None:
                    self._complain("a secret can't be opened", subscription=id, field=field, error=str(error))
                unusable = "sealed"
                return None

        document: dict[str, Any] = raw["document"]
        if headers := document.get("headers"):
            found = {name: opened(value, f"headers {name}") for name, value in headers.items()}
            document["headers"] = {name: value for name, value in found.items() if value is not None}
        secrets = []
        for each in raw["secrets"]:
            secret = opened(each, "secrets")
            if secret is not None:
                secrets.append(StoredSecret(secret, each["expires_ms"]))
        request = raw.get("idempotency")
        return Stored(
            id,
            version,
            document,
            _live(secrets, self.now_ms()),
            raw["created_ms"],
            raw["updated_ms"],
            None if request is None else Idempotency(request["principal"], request["key"], request["digest"]),
            unusable,
        )

    def _made(self, id: str, state: State[bytes]) -> tuple[Managed | None, bool]:  # noqa: A002 - the field's name
        """The subscription of a record, and whether its secrets should be sealed anew. Fills the indexes."""
        self._unusable.pop(id, None)
        try:
            raw = orjson.loads(state.value or b"{}")
            otherwise = self._sealed_otherwise(raw)
            stored = self._opened(id, state.version, raw)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._complain("a subscription in the topic can't be read", subscription=id, error=repr(error))
            self._unusable[id] = "invalid"
            return None, False
        request = stored.idempotency
        if request is not None and stored.created_ms > self.now_ms() - IDEMPOTENCY_WINDOW * 1000:
            self._requests[request.principal, request.key] = (id, stored.created_ms)
        for each in stored.secrets:
            if each.expires_ms is not None and len(stored.secrets) > 1:
                heapq.heappush(self._expiries, (each.expires_ms, id))
                self._sooner.set()
        subscription = self._subscription(stored)
        if subscription is None:
            return None, False
        # With another URL everything that became of it starts over, as with a changed entry of the file.
        tag = f"{stored.created_ms} {stored.document.get('url')}"
        return Managed(subscription, tag), otherwise and not stored.unusable

    def _subscription(self, stored: Stored) -> Subscription | None:
        written = {**stored.document, "id": stored.id, "secrets": [each.secret for each in stored.secrets]}
        if stored.unusable == "sealed":
            self._unusable[stored.id] = "sealed"
            written["secrets"], written["signatures"] = [_NO_SECRET], ["v1"]
            return self._disabled(written, "sealed")
        try:
            return self._specs.read(written)
        except FlawedError as error:
            self._complain(
                "a subscription is not valid any more",
                subscription=stored.id,
                flaws=[str(flaw) for flaw in error.flaws],
            )
            self._unusable[stored.id] = "invalid"
            return self._disabled(written, "invalid")

    def unusable(self) -> dict[str, int]:
        """How many subscriptions can't be delivered to, by why: `sealed`, `invalid`."""
        return dict(Counter(self._unusable.values()))

    def _complain(self, what: str, **about: object) -> None:
        """A line for each, but of the first ones only while loading: a key that is missing is all subscriptions'."""
        if self.loaded or len(self._unusable) < _LOGGED:
            log.error(what, **about)

    def _disabled(self, written: dict[str, Any], reason: str) -> Subscription | None:
        try:
            subscription = self._lenient.read(written).with_status(Status.DISABLED, reason)
        except FlawedError:
            return None
        if written.get("status") == Status.PAUSED:
            # What matches a paused one is not owed, whatever else is wrong with it.
            subscription = subscription.with_status(Status.PAUSED)
        subscription.secrets = ()  # whatever happens, nothing is sent in its name
        return subscription

    def _sealed_otherwise(self, raw: Mapping[str, Any]) -> bool:
        """Whether anything in it was sealed with another key than the newest, or not at all, and could be."""
        if not self._sealer:
            return False
        newest = self._sealer.is_newest
        kept = raw["secrets"]
        if headers := raw["document"].get("headers"):
            kept = [*kept, *headers.values()]
        return any("sealed" not in each or not newest(each["sealed"]) for each in kept)

    async def _reseal(self, ids: Sequence[str]) -> None:
        """Seal these anew with the newest key, some at a time; whoever else does it, once is enough."""
        await asyncio.sleep(self._reseal_delay * (0.5 + random.random()))  # noqa: S311 - no secret
        left = list(ids)
        done = 0
        while left:
            some, left = left[:_RESEAL_BATCH], left[_RESEAL_BATCH:]
            writes = []
            for id_ in some:
                state = self._present(id_)
                if state is None or not self._sealed_otherwise(orjson.loads(state.value or b"{}")):
                    continue
                stored = self._parsed(id_, state)
                if stored.unusable is None:
                    writes.append(_Write(id_, state.version, self._raw(stored)))
            try:
                verdicts = await self._write_all(writes)
            except Unavailable as error:
                log.warning("secrets can't be sealed anew, trying again", error=str(error))
                left = [*some, *left]
                await asyncio.sleep(10 * _RESEAL_PAUSE)
            else:
                done += sum(verdict is not Verdict.IGNORED for verdict in verdicts)
                await asyncio.sleep(_RESEAL_PAUSE)
        log.info("secrets are sealed with the newest key", subscriptions=done)

    def _warn_unsealed(self) -> None:
        if self._warned or self._sealer:
            return
        self._warned = True
        log.warning(
            "SECRETS ARE NOT ENCRYPTED AT REST: whoever can read the topic can read the signing secret of every"
            " subscription that the API manages",
            topic=self._topic,
            hint="set api.secrets_keys (DISPATCHER_API__SECRETS_KEYS) to 32 random bytes: `openssl rand -base64 32`; "
            "what is there already is sealed at the next start",
        )

    # Writing to the topic.

    def _check(self) -> None:
        """Raise Unavailable before everything is read, and after the stop."""
        if not self.loaded:
            raise Unavailable(self.problem or "the subscriptions are still being read")

    def _away(self) -> Unavailable:
        why = self._broker.problem or "the broker did not answer in time"
        return Unavailable(f"{why}: the change may still take effect; look before trying again")

    def _present(self, key: str) -> State[bytes] | None:
        """The state of what isn't deleted."""
        state = self._ledger.get(key)
        return None if state is None or state.value is None else state

    async def change(self, key: str, base: int, value: bytes | None) -> None:
        """Write it in the place of version `base` (0: new), and wait until it is decided and in force here.

        Raises VersionMismatch, Unavailable, TooLarge.
        """
        self._check()
        state = self._present(key)
        current = None if state is None else state.version
        if base != (current or 0):
            raise VersionMismatch(current)
        (verdict,) = await self._write_all([_Write(key, base, value)])
        if verdict is Verdict.IGNORED:
            state = self._present(key)
            raise VersionMismatch(None if state is None else state.version)

    async def _write_all(self, writes: Sequence[_Write]) -> list[Verdict]:
        """Write all of them, and what became of each. Raises Unavailable, TooLarge."""
        if not writes:
            return []
        loop = asyncio.get_running_loop()
        messages = []
        futures: dict[bytes, asyncio.Future[Verdict]] = {}
        for key, base, value in writes:
            nonce = os.urandom(9).hex().encode()
            change = self._ledger.change(key, base, nonce)
            messages.append(self._message(key, value, to_headers(change)))
            futures[nonce] = loop.create_future()
        self._waiting.update(futures)
        try:
            async with asyncio.timeout(self._write_timeout):
                await self._produce(messages)
                return await asyncio.gather(*futures.values())
        except TimeoutError as error:
            raise self._away() from error
        finally:
            for nonce, future in futures.items():
                self._waiting.pop(nonce, None)
                # Those that gather() had cancelled would raise that here, in the place of what is to be told.
                if not future.cancel() and not future.cancelled():
                    future.exception()  # has been told, or nobody waits for it any more

    def _message(self, key: str, value: bytes | None, headers: Sequence[tuple[str, bytes]]) -> Message:
        kind = key.partition(":")[0].encode() if ":" in key else b"subscription"
        return Message(self._topic, value, key.encode(), [("kind", kind), *headers], partition=0)

    async def _produce(self, messages: Sequence[Message]) -> None:
        """Until the broker has them: what is sent twice counts once."""
        while True:
            self._check()
            try:
                await self._broker.produce(messages)
            except BrokerUnavailable:
                await asyncio.sleep(_RETRY_PAUSE)
            except MessageTooLarge as error:
                raise TooLarge(str(error)) from error
            except BrokerError as error:
                raise Unavailable(f"the broker refused the change: {error}") from error
            else:
                return

    # Statuses (rule 3).

    def _decided(self, id: str) -> None:  # noqa: A002 - the field's name
        """Something was decided by the registry. Called by it."""
        here = self._registry.runtime(id) or Runtime(self._registry.tag(id) or "")
        there = self._said(id) or Runtime(here.tag)
        if there.tag != here.tag:
            there = Runtime(here.tag)
        old = self._wishes.get(id)
        status = here[1:4] != there[1:4]
        failing = here.failing != there.failing
        if old is not None and old.runtime.tag == here.tag:
            status, failing = status or old.status, failing or old.failing
        self._wishes[id] = _Wish(here, status, failing)
        self._wished.set()

    def _said(self, id: str) -> Runtime | None:  # noqa: A002 - the field's name
        """What the topic says has become of it."""
        state = self._ledger.get(_STATUS + id)
        return None if state is None else _read_runtime(state)

    def _with_wish(self, id: str) -> Runtime | None:  # noqa: A002 - the field's name
        """What the topic says has become of it, and on top of that what was decided here."""
        said = self._said(id)
        wish = self._wishes.get(id)
        if wish is None:
            return said
        runtime = said if said is not None and said.tag == wish.runtime.tag else Runtime(wish.runtime.tag)
        if wish.status:
            runtime = runtime._replace(
                status=wish.runtime.status, reason=wish.runtime.reason, since=wish.runtime.since
            )
        if wish.failing:
            runtime = runtime._replace(failing=wish.runtime.failing)
        return None if runtime.blank else runtime

    async def _grant_wishes(self) -> None:
        await self._loaded.wait()
        while True:
            if not self._wishes:
                await self._wished.wait()
            self._wished.clear()
            urgent = [id_ for id_, wish in self._wishes.items() if wish.status]
            chosen = (urgent or list(self._wishes))[:_STATUS_BATCH]
            try:
                await self._grant({id_: self._wishes[id_] for id_ in chosen})
            except (Unavailable, TooLarge) as error:
                log.warning(
                    "statuses can't be kept yet, trying again",
                    subscriptions=len(self._wishes),
                    error=str(error),
                )
                await asyncio.sleep(2 * _RETRY_PAUSE)
            # A notice of failure can wait: however many endpoints fail, it is one batch a second.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STATUS_PAUSE):
                    await self._urgent()

    async def _urgent(self) -> None:
        """Until there is a wish about a status."""
        while not any(wish.status for wish in self._wishes.values()):
            self._wished.clear()
            await self._wished.wait()

    async def _grant(self, wishes: Mapping[str, _Wish]) -> None:
        """Have the topic say what was decided; what somebody else changed meanwhile stays a wish."""
        writes: list[_Write] = []
        granted: list[str] = []
        for id_ in wishes:
            wanted = self._with_wish(id_)
            state = self._present(_STATUS + id_)
            if wanted == self._said(id_) or (wanted is None and state is None):
                granted.append(id_)
                continue
            value = None if wanted is None else _write_runtime(wanted)
            writes.append(_Write(_STATUS + id_, 0 if state is None else state.version, value))
        if writes:
            verdicts = await self._write_all(writes)
            granted += [
                write.key.removeprefix(_STATUS)
                for write, verdict in zip(writes, verdicts, strict=True)
                if verdict is not Verdict.IGNORED
            ]
        for id_ in granted:
            if self._wishes.get(id_) is wishes[id_]:
                del self._wishes[id_]
        done, self._granted = self._granted, asyncio.Event()
        done.set()

    # Repairs (rule 4).

    def _plan_repair(self, key: str, delay: float) -> None:
        due = asyncio.get_running_loop().time() + delay
        self._repairs[key] = min(due, self._repairs.get(key, due))
        self._to_repair.set()

    async def _repair_dirty(self) -> None:
        clock = asyncio.get_running_loop().time
        await self._loaded.wait()
        while True:
            self._to_repair.clear()
            due = min(self._repairs.values(), default=None)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if due is None else max(0.0, due - clock())):
                    await self._to_repair.wait()
                    continue
            now = clock()
            messages = []
            for key in [key for key, when in self._repairs.items() if when <= now]:
                if key not in self._ledger.dirty:
                    del self._repairs[key]
                    continue
                change, value = self._ledger.repair(key)
                messages.append(self._message(key, value, to_headers(change)))
                self._repairs[key] = now + _REPAIR_DELAY  # should it not come
            try:
                await self._broker.produce(messages)
            except BrokerError as error:
                log.warning(
                    "a repair can't be written, trying again later", keys=len(messages), error=str(error)
                )

    # Time.

    async def _keep_house(self) -> None:
        """End secrets when their time is over, and forget what nobody asks for any more."""
        await self._loaded.wait()
        forgotten = self._wall()
        while True:
            # A clock that is set forward is noticed within the minute.
            left = self._expiries[0][0] / 1000 - self._wall() if self._expiries else _HOUSEKEEPING
            self._sooner.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(max(left, 0.0), _HOUSEKEEPING)):
                    await self._sooner.wait()
            now = self.now_ms()
            ended = set()
            while self._expiries and self._expiries[0][0] <= now:
                ended.add(heapq.heappop(self._expiries)[1])
            await self._sliced(sorted(ended), self._end_secrets)
            if self._wall() - forgotten > 3600:
                forgotten = self._wall()
                self._forget()

    def _end_secrets(self, id: str) -> None:  # noqa: A002 - the field's name
        if self._present(id) is not None:
            self._changed(id)
            log.info("a rotated secret has ended", subscription=id)

    def _forget(self) -> None:
        self._specs = self._spec_reader(
            self._guard
        )  # it keeps a copy of all that is equal in many, gone or not
        oldest = self.now_ms() - IDEMPOTENCY_WINDOW * 1000
        for request in [each for each, (_, created_ms) in self._requests.items() if created_ms < oldest]:
            del self._requests[request]
        before = self._wall() - _FORGET_DELETED
        for key in [key for key, when in self._deleted.items() if when < before]:
            del self._deleted[key]
            self._ledger.forget(key)


# A valid form that nothing is ever signed with.
_NO_SECRET: Final = "whsec_" + "A" * 32


def _live(secrets: Sequence[StoredSecret], now: int) -> tuple[StoredSecret, ...]:
    """Those that haven't ended; the newest in any case."""
    if len(secrets) == 1 and secrets[0].expires_ms is None:
        return tuple(secrets)
    live = tuple(each for each in secrets if each.expires_ms is None or each.expires_ms > now)
    return live or tuple(secrets[:1])


def _write_runtime(runtime: Runtime) -> bytes:
    return orjson.dumps(
        {
            "tag": runtime.tag,
            "status": runtime.status,
            "reason": runtime.reason,
            "since": runtime.since,
            "failing": runtime.failing,
        }
    )


def _read_runtime(state: State[bytes]) -> Runtime | None:
    if state.value is None:
        return None
    try:
        raw = orjson.loads(state.value)
        status = None if raw["status"] is None else Status(raw["status"])
        return Runtime(raw["tag"], status, raw["reason"], raw["since"], raw["failing"])
    except (ValueError, KeyError, TypeError) as error:
        log.error("a status in the topic can't be read", error=repr(error))  # noqa: TRY400 - nothing of ours is broken
        return None
