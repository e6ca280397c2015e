"""What the API manages, kept in the compacted topic, and the runtime status of every subscription."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from dispatcher.broker.base import Broker
from dispatcher.core.event_types import EventType
from dispatcher.core.keys import Key
from dispatcher.core.netguard import Guard
from dispatcher.registry import Registry
from dispatcher.settings import Settings

T = TypeVar("T")


def subscriptions_topic(settings: Settings) -> str:
    """The topic that all of this is in."""
    return f"{settings.topics.prefix}subscriptions"


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """A signing secret in full, and when it ends by itself (Unix ms; None: it doesn't)."""

    secret: str
    expires_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Idempotency:
    """The request that created it: whose, its Idempotency-Key, and a digest of what it asked for."""

    principal: str
    key: str
    digest: str


@dataclass(frozen=True, slots=True)
class Stored:
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


class Table(Generic[T]):
    """Entries of one kind by name."""

    def get(self, name: str) -> Row[T] | None:
        """The entry of this name."""
        raise NotImplementedError

    def names(self) -> Sequence[str]:
        """All names, sorted. Not to be changed; a later change of the table may show in it."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    async def put(self, name: str, value: T, *, base: int) -> Row[T]:
        """Write it in the place of version `base` (0: it must be new). Raises VersionMismatch, Unavailable."""
        raise NotImplementedError

    async def delete(self, name: str, *, base: int) -> None:
        """Delete version `base`. Raises VersionMismatch, Unavailable."""
        raise NotImplementedError


class Store:
    """What the topic says, followed; writes answer when they have been read back here.

    Everything raises Unavailable until `loaded`, and while the broker is away: a write that ended so may still
    take effect. VersionMismatch: somebody else was first; read again.
    """

    keys: Table[Key]
    event_types: Table[EventType]

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        registry: Registry,
        guard: Guard,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`wall` gives Unix seconds."""

    async def start(self) -> None:
        """Load in the background and follow from then on; waits for nothing."""
        raise NotImplementedError

    async def wait_loaded(self) -> None:
        """Until everything is read that was there at the start."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Follow no more; writes under way end with Unavailable."""
        raise NotImplementedError

    @property
    def loaded(self) -> bool:
        """Whether everything is read that was there at the start."""
        raise NotImplementedError

    @property
    def problem(self) -> str | None:
        """Why it can't be asked now, in one sentence."""
        raise NotImplementedError

    # Subscriptions of the API's.

    def get(self, id: str) -> Stored | None:  # noqa: A002 - the field's name
        """One by its id: parsed and unsealed at each call, some 20 us."""
        raise NotImplementedError

    def ids(self) -> Sequence[str]:
        """All ids, sorted, for paging by bisection. Not to be changed; a later change may show in it."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

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

        Raises VersionMismatch, Unavailable, TooLarge, and Invalid with the flaws of a document that is no subscription.
        """
        raise NotImplementedError

    async def delete(self, id: str, *, base: int) -> None:  # noqa: A002 - the field's name
        """Delete version `base`. Raises VersionMismatch, Unavailable."""
        raise NotImplementedError

    def by_idempotency(self, principal: str, key: str) -> Stored | None:
        """What this principal created with this Idempotency-Key within the last 24 hours, by whatever replica."""
        raise NotImplementedError

    # What has become of subscriptions at run time, the file's too. `registry.runtime(id)` says what.

    async def enable(self, id: str) -> None:  # noqa: A002 - the field's name
        """End a disabling decided at run time. Raises NotFound, Unavailable."""
        raise NotImplementedError

    async def set_validated(self, id: str) -> None:  # noqa: A002 - the field's name
        """It passed its validation: `pending` ends. Raises NotFound, Unavailable."""
        raise NotImplementedError

    async def set_disabled(self, id: str, reason: str) -> None:  # noqa: A002 - the field's name
        """Disable it. Raises NotFound, Unavailable."""
        raise NotImplementedError
