"""The store of the control plane: what the API manages, and what has become of every subscription at run time.

The facade over the parts, and the one place where they are wired. `log.py` follows and writes the control topic.
`table.py` says which kinds of records there are. `documents.py` turns subscriptions into bytes and seals their
secrets. `managed.py` tells the registry of the API's subscriptions, `statuses.py` of what became of all of them.

What is kept under which key:

- `<id>`: a subscription of the API: the document as it is written, secrets, when and by which request it was created.
- `status:<id>`: what has become of a subscription at run time, one of the file too.
- `key:<id>`, `event-type:<name>`: API keys and the catalogue.
- `quotas:<tenant>`: what an operator has given one tenant in the place of the settings' quotas.
- `group:<name>`: which topics a consumer group has begun to read (`groups.py`).
- `file:<group>`: how many subscriptions a consumer group has had by a file (`file_memory.py`).
- `portal-session:<id>`, `portal-image:<id>`: who is let into the portal, and what it shows (`portal.py`).
- `issue:<subscription>:<cause>`: what somebody said about an issue (`issues.py`).
- `skip:<partition>:<offset>:<topic>:<id>`: a batch that an operator has given up reading (`core/control/skips.py`). It has no version
  and is kept for ever.

To add a kind: make a `Table` for it, and add its `kind` in `ControlStore.__init__`. Kinds that this version doesn't
know are left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import structlog

from dispatcher.broker.base import Broker
from dispatcher.control import file_memory, groups
from dispatcher.control.documents import Documents, Idempotency, Silence, Stored, StoredSecret
from dispatcher.control.errors import VersionMismatch
from dispatcher.control.log import WRITE_TIMEOUT, ControlLog, sliced
from dispatcher.control.managed import ManagedSubscriptions
from dispatcher.control.statuses import Statuses
from dispatcher.control.table import Kinds, Table
from dispatcher.core.control.issues import IssueMark
from dispatcher.core.control.keys import Key
from dispatcher.core.control.portal import PortalImage, PortalSession
from dispatcher.core.control.quotas import Overrides, document_of, overrides_of
from dispatcher.core.control.sealing import Sealer, read_key
from dispatcher.core.control.skips import KIND as SKIP, Skip, read_skip
from dispatcher.core.event.catalogued import EventType
from dispatcher.core.request.netguard import Guard
from dispatcher.core.subscription.model import Status
from dispatcher.registry.registry import Registry
from dispatcher.registry.snapshot import BY_OPERATOR
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import Settings

log = structlog.get_logger(__name__)

_RESEAL_DELAY: Final = 60.0
_HOUSEKEEPING: Final = 60.0  # seconds at the most between two looks at the clock
_FORGET_EVERY: Final = 3600.0


Marks = Sequence[tuple[str, int, int]]
"""Topic, partition and offset, as in `documents.Silence`."""


def subscriptions_topic(settings: Settings) -> str:
    """The topic that all of this is in."""
    return f"{settings.topics.prefix}subscriptions"


class ControlStore:
    """The contents of the control topic; writes answer when they are in force on this replica.

    Every write raises Unavailable until `loaded`, and while the broker is away: a write that ended so may still
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
        write_timeout: float = WRITE_TIMEOUT,
    ) -> None:
        """`wall` gives Unix seconds; `on_failure` is told when it died: the process should end. Times in seconds."""
        self._registry = registry
        self._wall = wall
        self._reseal_delay = reseal_delay
        self._tasks = Tasks(on_failure)
        self._warned = False
        keys = [read_key(key.get_secret_value()) for key in settings.api.secrets_keys]
        self._documents = Documents(Sealer(keys, os.urandom))
        kinds = Kinds()
        topic = subscriptions_topic(settings)
        self._log = ControlLog(broker, topic, kinds, self._tasks, wall, write_timeout)
        self._managed = ManagedSubscriptions(settings, self._log, registry, guard, self._documents)
        self._statuses = Statuses(self._log, registry)
        self.keys: Table[Key] = Table(self._log, "key", Key.to_document, Key.from_document)
        self.event_types: Table[EventType] = Table(self._log, "event-type", EventType.document, EventType.of)
        self.quotas: Table[Overrides] = Table(
            self._log, "quotas", document_of, lambda _, raw: overrides_of(raw)
        )
        self.groups: Table[groups.Topics] = Table(
            self._log, "group", groups.to_document, groups.from_document
        )
        self.files: Table[int] = Table(self._log, "file", file_memory.to_document, file_memory.from_document)
        self.portal_sessions: Table[PortalSession] = Table(
            self._log, "portal-session", PortalSession.to_document, PortalSession.from_document
        )
        self.portal_images: Table[PortalImage] = Table(
            self._log, "portal-image", PortalImage.to_document, PortalImage.from_document
        )
        self.issues: Table[IssueMark] = Table(
            self._log, "issue", IssueMark.to_document, IssueMark.from_document
        )
        self.skips: set[Skip] = set()
        """All batches that operators have given up reading."""
        # The one list of kinds.
        kinds.add(self._managed.kind)
        kinds.add(self._statuses.kind)
        kinds.add(self.keys.kind)
        kinds.add(self.event_types.kind)
        kinds.add(self.quotas.kind)
        kinds.add(self.groups.kind)
        kinds.add(self.files.kind)
        kinds.add(self.portal_sessions.kind)
        kinds.add(self.portal_images.kind)
        kinds.add(self.issues.kind)
        kinds.add_bare(SKIP, self._take_skip)

    def _take_skip(self, key: bytes) -> bool:
        skip = read_skip(key)
        if skip is not None:
            self.skips.add(skip)
        return skip is not None

    # Starting, stopping, and what others may ask.

    async def start(self) -> None:
        """Load in the background and follow from then on; waits for nothing. The topic must exist."""
        began = time.perf_counter()

        async def loaded() -> None:
            await self._registry.load_managed(self._managed.initial(), self._statuses.initial())
            self._warn_unsealed()
            log.info(
                "control plane loaded",
                records=self._log.records,
                subscriptions=len(self),
                keys=len(self.keys),
                event_types=len(self.event_types),
                unusable=sum(self.unusable().values()),
                seconds=round(time.perf_counter() - began, 3),
            )

        self._log.start(loaded)
        self._tasks.start(self._statuses.run(), "control statuses")
        self._tasks.start(self._reseal(), "control resealing")
        self._tasks.start(self._keep_house(), "control housekeeping")

    async def wait_loaded(self) -> None:
        """Wait until everything is read that was there at the start."""
        await self._log.wait_loaded()

    async def stop(self) -> None:
        """Stop following; writes under way end with Unavailable. Statuses that were decided a moment ago are written first."""
        await self._statuses.flush()
        self._log.close()
        await self._tasks.stop()
        await self._log.stop()

    @property
    def loaded(self) -> bool:
        """Whether everything is read that was there at the start."""
        return self._log.loaded

    @property
    def problem(self) -> str | None:
        """Why the control plane can't be asked, in one sentence."""
        return self._log.problem

    @property
    def warning(self) -> str | None:
        """A trouble that doesn't stop the control plane, in one sentence."""
        return self._log.warning

    def now_ms(self) -> int:
        """Unix milliseconds."""
        return self._log.now_ms()

    # Subscriptions of the API.

    def get(self, id: str) -> Stored | None:  # noqa: A002 - the field's name
        """One by its id: parsed and unsealed at each call, some 10 us. What can't be read (the log told) isn't there."""
        return self._managed.get(id)

    def ids(self) -> Sequence[str]:
        """All ids, sorted, for paging by bisection. Not to be changed; a later change may show in it."""
        return self._managed.ids.sorted

    def __len__(self) -> int:
        return len(self._managed.ids.sorted)

    def by_idempotency(self, principal: str, key: str) -> Stored | None:
        """The subscription that this principal created with this Idempotency-Key within the last 24 hours, on any replica."""
        return self._managed.by_idempotency(principal, key)

    def unusable(self) -> dict[str, int]:
        """How many subscriptions can't be delivered to, by why: `sealed`, `invalid`."""
        return self._managed.unusable()

    async def put(
        self,
        id: str,  # noqa: A002 - the field's name
        document: Mapping[str, Any],
        secrets: Sequence[StoredSecret],
        *,
        base: int,
        idempotency: Idempotency | None = None,
        marks: Marks = (),
    ) -> Stored:
        """Write it in the place of version `base` (0: create). In force on this replica when this returns.

        Without `idempotency` it keeps the one that it has. `marks` are those of a pause that begins with this. Raises VersionMismatch, Unavailable, TooLarge, and Invalid
        with the flaws of a document that is no subscription.
        """
        self._log.check()
        now = self.now_ms()
        self._managed.check({**document, "id": id, "secrets": [each.secret for each in secrets]})
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
            paused=silence_of(document, old, now, marks),
        )
        await self._log.change(id, base, self._documents.write(stored))
        written = self.get(id)
        if written is None:
            raise VersionMismatch(None)  # deleted in the same moment
        return written

    async def delete(self, id: str, *, base: int) -> None:  # noqa: A002 - the field's name
        """Delete version `base`. Raises VersionMismatch, Unavailable."""
        await self._log.change(id, base, None)
        await self._statuses.forget(id)

    # What has become of subscriptions at run time, the file's too. `registry.runtime(id)` says what.

    async def enable(self, id: str) -> None:  # noqa: A002 - the field's name
        """End a disabling decided at run time. Raises NotFound, Unavailable."""
        await self._statuses.decide(id, self._registry.enable)

    async def set_validated(self, id: str) -> None:  # noqa: A002 - the field's name
        """The subscription passed its validation: `pending` ends. Raises NotFound, Unavailable."""
        await self._statuses.decide(id, self._registry.note_validated)

    async def set_disabled(self, id: str, text: str) -> None:  # noqa: A002 - the field's name
        """An operator disables it, and says why. Raises NotFound, Unavailable."""
        await self._statuses.decide(id, lambda id_: self._registry.disable(id_, BY_OPERATOR, text))

    # In the background.

    async def _reseal(self) -> None:
        await self._log.wait_loaded()
        await self._managed.reseal(self._reseal_delay)

    async def _keep_house(self) -> None:
        """End secrets when their time is over, and forget deleted keys and old requests."""
        await self._log.wait_loaded()
        forgotten = self._wall()
        managed = self._managed
        while True:
            # A clock that is set forward is noticed within the minute.
            expiry_ms = managed.next_expiry_ms
            left = _HOUSEKEEPING if expiry_ms is None else expiry_ms / 1000 - self._wall()
            managed.sooner.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(max(left, 0.0), _HOUSEKEEPING)):
                    await managed.sooner.wait()
            await sliced(managed.expired(self.now_ms()), managed.end_secrets)
            if self._wall() - forgotten > _FORGET_EVERY:
                forgotten = self._wall()
                managed.forget()
                self._log.forget()

    def _warn_unsealed(self) -> None:
        if self._warned or self._documents.sealing:
            return
        self._warned = True
        log.warning(
            "SECRETS ARE NOT ENCRYPTED AT REST: whoever can read the topic can read the signing secret of every"
            " subscription that the API manages",
            topic=self._log.topic,
            hint="set api.secrets_keys (DISPATCHER_API__SECRETS_KEYS) to 32 random bytes: `openssl rand -base64 32`; "
            "what is there already is sealed at the next start",
        )


def silence_of(document: Mapping[str, Any], old: Stored | None, now_ms: int, marks: Marks) -> Silence | None:
    """Since when a subscription with this document is paused."""
    if document.get("status") != Status.PAUSED.value:
        return None
    known = None if old is None else old.paused
    return known or Silence(now_ms, tuple(marks))
