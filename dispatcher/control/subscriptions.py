"""What subscribers and operators do with subscriptions: create, read, change, rotate, ping, validate, delete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

MAX_PAGE: Final = 200
PAGE: Final = 50
OVERLAP: Final = 24 * 3600.0
"""Seconds that a rotated secret goes on signing beside the new one, unless the caller says otherwise."""


@dataclass(frozen=True, slots=True)
class SecretView:
    """One live secret, masked: `whsec_...abcd`."""

    masked: str
    expires_ms: int | None  # when it stops signing; None: it doesn't


@dataclass(frozen=True, slots=True)
class View:
    """A subscription as its owner may see it.

    `document` holds the fields as they are written (`tenant`, `url`, `event_types`, `headers`...), durations in
    seconds, without `id`, `status` and `secrets`; the values of credentials are masked.
    """

    id: str
    document: Mapping[str, Any]
    secrets: tuple[SecretView, ...]
    version: int  # 0 for one of the file
    managed: Literal["api", "file"]
    status: str  # the one in force
    reason: str | None  # why it is disabled or pending
    created_ms: int | None
    updated_ms: int | None


@dataclass(frozen=True, slots=True)
class Created:
    """A new subscription, and its secrets in full, for the only time. `replayed`: made by an earlier request with this key."""

    view: View
    secrets: tuple[str, ...]
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Rotated:
    """After a rotation: the new secret in full, for the only time; the old ones end at `old_expires_ms`."""

    view: View
    secret: str
    old_expires_ms: int


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a listing; `next_cursor` is None on the last one."""

    items: list[View]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class PingResult:
    """What came of one ping: `status` of the answer, or `reason` why there was none."""

    event_id: str
    delivered: bool  # a 2xx
    status: int | None
    reason: str | None
    detail: str | None
    duration: float  # seconds
    body: str  # the first KiB of the answer, undecodable bytes replaced


@dataclass(frozen=True, slots=True)
class Health:
    """How deliveries to it go, as `instance` alone sees it: each replica has its own partitions."""

    id: str
    instance: str
    status: str
    reason: str | None
    success_rate: float | None  # of the recent attempts; None before the first
    latency_mean: float | None  # seconds
    latency_p95: float | None
    breaker: str | None  # closed, open, half-open
    queued: int
    in_flight: int
    last_failure: str | None
    last_failure_ms: int | None
    failing_since_ms: int | None


class Subscriptions:
    """The operations. `tenant` None is an operator, who sees all; a tenant sees its own, and else NotFound."""

    async def create(
        self,
        document: Mapping[str, Any],
        *,
        principal: str,
        tenant: str | None,
        idempotency_key: str | None = None,
    ) -> Created:
        """Make one; `id` and `secrets` are made here where the document has none."""
        raise NotImplementedError

    def get(self, id: str, *, tenant: str | None) -> View:  # noqa: A002 - the field's name
        """One by its id."""
        raise NotImplementedError

    def list(
        self,
        *,
        tenant: str | None,
        of_tenant: str | None = None,
        status: str | None = None,
        event_type: str | None = None,
        host: str | None = None,
        cursor: str | None = None,
        limit: int = PAGE,
    ) -> Page:
        """A page in the order of the ids. `of_tenant` is an operator's filter."""
        raise NotImplementedError

    async def update(
        self,
        id: str,  # noqa: A002 - the field's name
        patch: Mapping[str, Any],
        *,
        tenant: str | None,
        if_match: int | None = None,
    ) -> View:
        """Apply a JSON merge patch (RFC 7396)."""
        raise NotImplementedError

    async def delete(self, id: str, *, tenant: str | None, if_match: int | None = None) -> None:  # noqa: A002
        """Delete it; what it is still owed is dropped."""
        raise NotImplementedError

    async def pause(self, id: str, *, tenant: str | None, if_match: int | None = None) -> View:  # noqa: A002
        """Deliver nothing until `resume`; what matches meanwhile is dropped."""
        raise NotImplementedError

    async def resume(self, id: str, *, tenant: str | None, if_match: int | None = None) -> View:  # noqa: A002
        """End a pause."""
        raise NotImplementedError

    async def enable(self, id: str, *, tenant: str | None, if_match: int | None = None) -> View:  # noqa: A002
        """Make a disabled one active again, of the file too."""
        raise NotImplementedError

    async def rotate(
        self,
        id: str,  # noqa: A002 - the field's name
        *,
        tenant: str | None,
        secret: str | None = None,
        overlap: float = OVERLAP,
        if_match: int | None = None,
    ) -> Rotated:
        """A new secret, made here unless given; the old ones go on signing beside it for `overlap` seconds."""
        raise NotImplementedError

    async def ping(self, id: str, *, tenant: str | None) -> PingResult:  # noqa: A002 - the field's name
        """Send a real signed `ping` event and wait for what comes of it; whatever the status."""
        raise NotImplementedError

    async def validate(self, id: str, *, tenant: str | None) -> View:  # noqa: A002 - the field's name
        """Ask the endpoint again whether it wants these events. WrongState says why it hasn't passed."""
        raise NotImplementedError

    def health(self, id: str, *, tenant: str | None) -> Health:  # noqa: A002 - the field's name
        """How its deliveries go, as this replica sees it."""
        raise NotImplementedError
