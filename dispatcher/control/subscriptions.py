"""What subscribers and operators do with subscriptions: create, read, change, rotate, ping, validate, delete.

A change is one write of the whole subscription to the topic, in the place of the version it was made from
(`store.py`), and answers when this replica has read it back. Without an ETag the caller means "whatever it
is now": then a change that lost against another one is made again on what that one left.

**Creating twice.** A caller that lost the answer sends the request again, perhaps to another replica, perhaps at the
same moment. So with an Idempotency-Key the id is made from the caller and the key: of two at once the log lets
only one in, and the other finds what the first has made.

**Listing.** The ids of the API's subscriptions and of the file's stand sorted; a page begins by bisection at its
cursor, which is the last id of the page before, so that it stays right whatever comes and goes meanwhile. The filters
look at the snapshot that deliveries use, and only what is shown is parsed and unsealed. A filter that hardly
anything passes could look at a hundred thousand in one go, while deliveries wait: after `_LOOKED_AT` a page
ends as it is, perhaps empty, with a cursor to go on from. One tenant's ids the index has together.

Rules:

1. A caller that may not see a subscription learns nothing of it: NotFound, as where there is none.
2. Secrets leave in full only in the answer that made them.
3. Nothing is written before everything is checked; all that is wrong is told at once.
"""

from __future__ import annotations

import builtins
import contextlib
import heapq
import socket
from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from secrets import token_bytes, token_hex, token_urlsafe
from typing import Any, Final, Literal, NamedTuple, Protocol

from orjson import OPT_SORT_KEYS, dumps

from dispatcher.control.catalogue import Catalogue
from dispatcher.control.documents import Idempotency, Stored, StoredSecret
from dispatcher.control.errors import (
    AlreadyExists,
    FileManaged,
    Invalid,
    NotFound,
    Overloaded,
    Unavailable,
    VersionMismatch,
    WrongState,
)
from dispatcher.control.masking import mask_document, mask_secret, unmask_headers
from dispatcher.control.operational_events import CREATED, DELETED, Announcer
from dispatcher.control.probes import Busy, Probes
from dispatcher.control.store import ControlStore
from dispatcher.control.validation import Validator
from dispatcher.core.event.decode import JSON_HEAD, Event
from dispatcher.core.flaws import Flaw, FlawedError
from dispatcher.core.request.handshake import Refused
from dispatcher.core.request.results import Failure, Response
from dispatcher.core.request.signing import MAX_SECRETS, public_key
from dispatcher.core.subscription.index import EVERY_TENANT, Status, Subscription, matches
from dispatcher.core.subscription.spec import MAX_IN_FLIGHT, Reader
from dispatcher.core.text.merge_patch import merge
from dispatcher.core.text.units import format_duration
from dispatcher.registry.registry import Registry

MAX_PAGE: Final = 200
PAGE: Final = 50
OVERLAP: Final = 24 * 3600.0
"""Seconds that a rotated secret goes on signing beside the new one, unless the caller says otherwise."""
MAX_OVERLAP: Final = 30 * 24 * 3600.0


# Tuples: a page has two hundred, and each frozen dataclass takes three times as long.
class SecretView(NamedTuple):
    """One live secret, masked: `whsec_...abcd`."""

    masked: str
    expires_ms: int | None  # when it stops signing; None: it doesn't
    public_key: str | None = None  # `whpk_...` of an ed25519 secret

    @classmethod
    def of(cls, secret: str, expires_ms: int | None = None) -> SecretView:
        """Of a secret, which is not kept."""
        return cls(mask_secret(secret), expires_ms, public_key(secret))


class View(NamedTuple):
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


class Deliveries(Protocol):
    """How deliveries to one subscription go, in one process. Times in seconds."""

    @property
    def success_rate(self) -> float | None: ...
    @property
    def latency_mean(self) -> float | None: ...
    @property
    def latency_p95(self) -> float | None: ...
    @property
    def breaker(self) -> str | None: ...
    @property
    def queued(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def last_failure(self) -> str | None: ...
    @property
    def last_failure_at(self) -> float | None:
        """Unix seconds."""


class Source(Protocol):
    """Who knows how deliveries go: the engine."""

    def health(self, subscription_id: str) -> Deliveries:
        """As this process sees it; of one that it knows nothing of, nothing."""


_LOOKED_AT: Final = 10_000  # subscriptions that one page looks at, and where it shows some...
_SHOWN: Final = 25  # ...fewer by so many for each: parsing, unsealing and checking one takes that much longer
_TRIES: Final = 5  # to make a change on a subscription that others change too
_OWN_FIELDS: Final = ("id", "secrets")
_REFUSED: Final = {
    "client_certificate": "names files of the dispatcher's own disk: only the subscriptions file may have it",
}
_STATUSES: Final = ("active", "paused")
_MAX_KEY: Final = 255

_Change = Callable[[Stored], "tuple[Mapping[str, Any], Sequence[StoredSecret]] | None"]


class Subscriptions:
    """The operations. `tenant` None is an operator, who sees all; a tenant sees its own, and else NotFound."""

    def __init__(
        self,
        store: ControlStore,
        registry: Registry,
        catalogue: Catalogue,
        probes: Probes,
        validator: Validator,
        announcer: Announcer,
        reader: Reader,
        wall: Callable[[], float],
    ) -> None:
        """`reader` checks what comes over the network; `wall` gives Unix seconds."""
        self._store = store
        self._registry = registry
        self._catalogue = catalogue
        self._probes = probes
        self._validator = validator
        self._announcer = announcer
        self._reader = reader
        self._wall = wall
        self._instance = socket.gethostname()
        self._creating: set[tuple[str, str]] = set()
        self.source: Source | None = None

    # Create.

    async def create(
        self,
        document: Mapping[str, Any],
        *,
        principal: str,
        tenant: str | None,
        idempotency_key: str | None = None,
    ) -> Created:
        """Make one; `id` and `secrets` are made here where the document has none."""
        self._ready()
        if idempotency_key is None:
            return await self._create(document, tenant, None)
        if not 0 < len(idempotency_key) <= _MAX_KEY or not idempotency_key.isprintable():
            raise Invalid([Flaw(("Idempotency-Key",), f"must be 1 to {_MAX_KEY} printable characters")])
        digest = blake2b(
            dumps([tenant, dict(document)], option=OPT_SORT_KEYS), digest_size=16, usedforsecurity=False
        ).hexdigest()
        idempotency = Idempotency(principal, idempotency_key, digest)
        if (made := self._made_before(idempotency)) is not None:
            return made
        turn = (principal, idempotency_key)
        if turn in self._creating:
            raise WrongState("a request with this Idempotency-Key is still under way: send it again soon")
        self._creating.add(turn)
        try:
            return await self._create(document, tenant, idempotency)
        finally:
            self._creating.discard(turn)

    def _made_before(self, idempotency: Idempotency) -> Created | None:
        stored = self._store.by_idempotency(idempotency.principal, idempotency.key)
        if stored is None:
            return None
        if stored.idempotency is None or stored.idempotency.digest != idempotency.digest:
            raise Invalid(
                [Flaw(("Idempotency-Key",), "was used for another request: a new request needs a new key")]
            )
        # Once it has changed, its secrets have been used: whoever asks now didn't lose the first answer.
        shown = tuple(secret.secret for secret in stored.secrets) if stored.version == 1 else ()
        return Created(self._view_of(stored), shown, replayed=True)

    async def _create(
        self, document: Mapping[str, Any], tenant: str | None, idempotency: Idempotency | None
    ) -> Created:
        fields = {name: value for name, value in document.items() if value is not None}
        flaws = _refused(fields)
        if tenant is not None and fields.setdefault("tenant", tenant) != tenant:
            flaws.append(Flaw(("tenant",), "must be your own, or left out"))
        given = fields.pop("secrets", None)
        secrets: Any = _made_secrets(fields.get("signatures")) if given is None else given
        wanted = fields.pop("id", None)
        id_ = wanted if wanted is not None else _id_for(idempotency)
        self._check(id_, fields, secrets, flaws, patterns=True)
        while True:
            if self._registry.in_file(id_):
                raise AlreadyExists(f"{id_} stands in the subscriptions file")
            try:
                stored = await self._store.put(
                    id_,
                    fields,
                    [StoredSecret(secret) for secret in secrets],
                    base=0,
                    idempotency=idempotency,
                )
            except VersionMismatch:
                if idempotency is not None and (made := self._made_before(idempotency)) is not None:
                    return made
                if wanted is not None:
                    raise AlreadyExists(f"there is a subscription {id_} already") from None
                id_ = _id_for(None)
                continue
            break
        subscription = self._registry.index.get(id_)
        if subscription is not None:
            if subscription.status is Status.PENDING:
                self._validator.submit(subscription)
            self._announce(CREATED, subscription)
        return Created(self._view_of(stored), tuple(secrets))

    def _check(
        self,
        id: str,  # noqa: A002 - the field's name
        fields: Mapping[str, Any],
        secrets: Any,
        flaws: list[Flaw],
        *,
        patterns: bool,
    ) -> None:
        """Raise Invalid with all that is wrong."""
        status = fields.get("status")
        if status is not None and status not in _STATUSES:
            flaws.append(Flaw(("status",), "must be active or paused"))
        wrong = {flaw.path[:1] for flaw in flaws}
        raw = {name: value for name, value in fields.items() if (name,) not in wrong}
        try:
            self._reader.read({"id": id, **raw, "secrets": secrets})
        except FlawedError as error:
            flaws.extend(flaw for flaw in error.flaws if flaw.path[:1] not in wrong)
        wanted = fields.get("event_types")
        if patterns and isinstance(wanted, (list, tuple)):
            known = {flaw.path for flaw in flaws}
            flaws.extend(
                flaw
                for flaw in self._catalogue.check_patterns([str(one) for one in wanted])
                if flaw.path not in known
            )
        if flaws:
            raise Invalid(flaws)

    # Read.

    def get(self, id: str, *, tenant: str | None) -> View:  # noqa: A002 - the field's name
        """One by its id."""
        self._ready()
        subscription = self._registry.index.get(id)
        if subscription is not None and not _sees(tenant, subscription.tenant):
            raise _unknown(id)
        view = self._view(id)
        if view is None or not _sees(tenant, view.document.get("tenant")):
            raise _unknown(id)
        return view

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
        """A page in the order of the ids. `of_tenant` is an operator's filter.

        A page may hold fewer than `limit`, even none: only `next_cursor` None says that it was the last.
        """
        self._ready()
        if not 1 <= limit <= MAX_PAGE:
            raise Invalid([Flaw(("limit",), f"must be 1 to {MAX_PAGE}")])
        if status is not None and status not in set(Status):
            raise Invalid([Flaw(("status",), f"must be one of {', '.join(Status)}")])
        after = "" if cursor is None else _after(cursor)
        whose = of_tenant if tenant is None else tenant
        if host is not None:
            host = host.lower().rstrip(".")
        if tenant is not None and of_tenant not in (None, tenant):
            return Page([], None)
        index = self._registry.index

        # The same few lists of patterns stand in most subscriptions.
        @cache
        def wants(patterns: tuple[str, ...]) -> bool:
            return any(matches(pattern, event_type or "") for pattern in patterns)

        items: builtins.list[View] = []
        left = _LOOKED_AT
        for id_ in self._ids(whose, after):
            if len(items) == limit or left <= 0:
                return Page(items, _cursor(after))
            left -= 1
            after = id_
            subscription = index.get(id_)
            if subscription is None:
                # The topic has it, but it is no subscription (`Stored.unusable`).
                view = self._view(id_)
                if view is None or not _shown(view, whose, status, event_type, host):
                    continue
            else:
                if (
                    (whose is not None and subscription.tenant != whose)
                    or (status is not None and subscription.status != status)
                    or (host is not None and subscription.origin.host != host)
                    or (event_type is not None and not wants(subscription.event_types))
                ):
                    continue
                view = self._view(id_)
                if view is None:
                    continue
            items.append(view)
            left -= _SHOWN
        return Page(items, None)

    def _ids(self, tenant: str | None, after: str) -> Iterable[str]:
        """Ids beyond `after`, in order; of a tenant's only its own where the index has them at hand."""
        if tenant is not None:
            own = self._registry.index.ids_of(tenant)
            if own is not None:
                return sorted(id_ for id_ in own if id_ > after)
        ids, file_ids = (
            map(known.__getitem__, range(bisect_right(known, after), len(known)))
            for known in (self._store.ids(), self._registry.file_ids())
        )
        # One of the two is nearly always empty, and merging costs more than all else that is done for an id.
        if not self._registry.file_ids():
            return ids
        return file_ids if not len(self._store) else _merged(ids, file_ids)

    def _view(self, id: str) -> View | None:  # noqa: A002 - the field's name
        if not self._registry.in_file(id):
            stored = self._store.get(id)
            return None if stored is None else self._view_of(stored)
        subscription = self._registry.index.get(id)
        if subscription is None:
            return None
        return View(
            id=id,
            document=mask_document(_document_of(subscription)),
            secrets=tuple(SecretView.of(secret) for secret in subscription.secrets),
            version=0,
            managed="file",
            status=subscription.status.value,
            reason=self._reason(subscription),
            created_ms=None,
            updated_ms=None,
        )

    def _view_of(self, stored: Stored) -> View:
        subscription = self._registry.index.get(stored.id)
        now = self._now()
        document = mask_document(stored.document)
        written = document.pop("status", Status.ACTIVE.value)
        if subscription is not None and stored.unusable is None:
            status, reason = subscription.status.value, self._reason(subscription)
        else:
            status, reason = Status.DISABLED.value if stored.unusable else written, stored.unusable
        return View(
            id=stored.id,
            document=document,
            secrets=tuple(
                SecretView.of(secret.secret, secret.expires_ms)
                for secret in stored.secrets
                if secret.expires_ms is None or secret.expires_ms > now
            ),
            version=stored.version,
            managed="api",
            status=status,
            reason=reason,
            created_ms=stored.created_ms,
            updated_ms=stored.updated_ms,
        )

    def _reason(self, subscription: Subscription) -> str | None:
        if subscription.status is Status.PENDING:
            said = self._validator.said(subscription.id)
            return subscription.reason if said is None else f"not validated: {said}"
        return subscription.reason

    # Change.

    async def update(
        self,
        id: str,  # noqa: A002 - the field's name
        patch: Mapping[str, Any],
        *,
        tenant: str | None,
        if_match: int | None = None,
    ) -> View:
        """Apply a JSON merge patch (RFC 7396)."""
        flaws = _refused(patch)
        if "secrets" in patch:
            flaws.append(Flaw(("secrets",), "are changed by rotating them (POST .../secret/rotate)"))
        if "id" in patch and patch["id"] != id:
            flaws.append(Flaw(("id",), "can't be changed"))
        changes = {name: value for name, value in patch.items() if name not in _OWN_FIELDS}

        def change(stored: Stored) -> tuple[Mapping[str, Any], Sequence[StoredSecret]] | None:
            wrong = builtins.list(flaws)
            if "tenant" in changes and changes["tenant"] != stored.document.get("tenant"):
                wrong.append(
                    Flaw(("tenant",), "can't be changed: make a new subscription for the other tenant")
                )
            wanted = changes
            if isinstance(headers := changes.get("headers"), Mapping):
                known = stored.document.get("headers", {})
                wanted = {**changes, "headers": unmask_headers(_as_known(headers, known), known)}
            merged = merge(stored.document, wanted)
            if merged.get("status") == Status.ACTIVE.value:
                merged.pop("status")
            patterns = merged.get("event_types") != stored.document.get("event_types")
            secrets = [secret.secret for secret in self._live(stored)]
            self._check(id, merged, secrets, wrong, patterns=patterns)
            return None if merged == stored.document else (merged, stored.secrets)

        return await self._change(id, tenant, if_match, change)

    async def delete(self, id: str, *, tenant: str | None, if_match: int | None = None) -> None:  # noqa: A002
        """Delete it; what it is still owed is dropped."""
        for _ in range(_TRIES):
            stored = self._changeable(id, tenant, if_match)
            subscription = self._registry.index.get(id)
            try:
                await self._store.delete(id, base=stored.version)
            except VersionMismatch:
                if if_match is not None:
                    raise
                continue
            if subscription is not None:
                self._announce(DELETED, subscription)
            return
        raise _contended(id)

    async def pause(self, id: str, *, tenant: str | None, if_match: int | None = None) -> View:  # noqa: A002
        """Deliver nothing until `resume`; what matches meanwhile is dropped."""
        return await self._set_written(id, tenant, if_match, Status.PAUSED)

    async def resume(self, id: str, *, tenant: str | None, if_match: int | None = None) -> View:  # noqa: A002
        """End a pause."""
        return await self._set_written(id, tenant, if_match, Status.ACTIVE)

    async def _set_written(
        self,
        id: str,  # noqa: A002 - the field's name
        tenant: str | None,
        if_match: int | None,
        status: Status,
    ) -> View:
        def change(stored: Stored) -> tuple[Mapping[str, Any], Sequence[StoredSecret]] | None:
            current = self._registry.index.get(id)
            if current is not None and current.status is Status.DISABLED:
                raise WrongState(f"{id} is disabled ({current.reason}): enable it first")
            written = stored.document.get("status", Status.ACTIVE.value)
            if written == status.value:
                return None
            document = {name: value for name, value in stored.document.items() if name != "status"}
            if status is not Status.ACTIVE:
                document["status"] = status.value
            return document, stored.secrets

        return await self._change(id, tenant, if_match, change)

    async def enable(self, id: str, *, tenant: str | None, if_match: int | None = None) -> View:  # noqa: A002
        """Make a disabled one active again, of the file too."""
        view = self.get(id, tenant=tenant)
        if if_match is not None and if_match != view.version:
            raise VersionMismatch(view.version)
        if view.status != Status.DISABLED:
            return view
        runtime = self._registry.runtime(id)
        if runtime is None or runtime.status is not Status.DISABLED:
            if view.managed == "file":
                raise FileManaged(id)
            raise _unusable(view)
        await self._store.enable(id)
        subscription = self._registry.index.get(id)
        if subscription is not None and subscription.status is Status.PENDING:
            self._validator.submit(subscription)
        return self.get(id, tenant=tenant)

    async def rotate(
        self,
        id: str,  # noqa: A002 - the field's name
        *,
        tenant: str | None,
        secret: str | None = None,
        overlap: float = OVERLAP,
        if_match: int | None = None,
    ) -> Rotated:
        """A new secret, made here unless given; the old ones go on signing beside it for `overlap` seconds.

        Only secrets of its own kind end: an ed25519 key (`whsk_`) outlives the rotation of an HMAC secret.
        """
        if not 0 <= overlap <= MAX_OVERLAP:
            raise Invalid([Flaw(("overlap",), f"must be 0s to {format_duration(MAX_OVERLAP)}")])
        end = self._now() + round(overlap * 1000)
        made = secret or ""

        def change(stored: Stored) -> tuple[Mapping[str, Any], Sequence[StoredSecret]]:
            nonlocal made
            live = self._live(stored)
            if secret is None and not made:
                symmetric = [one for one in live if _kind(one.secret) != "whsk_"]
                made = _made_secret("whsec_" if symmetric or not live else "whsk_")
            kept = [
                StoredSecret(
                    one.secret,
                    end
                    if _kind(one.secret) == _kind(made) and (one.expires_ms is None or one.expires_ms > end)
                    else one.expires_ms,
                )
                for one in live
            ]
            if overlap == 0:
                kept = [one for one in kept if one.expires_ms != end]
            secrets = [StoredSecret(made), *kept]
            ending = [one for one in secrets if one.expires_ms is not None]
            while len(secrets) > MAX_SECRETS and ending:
                # Rotated more often than their overlap allows: the oldest go at once.
                secrets.remove(ending.pop())
            flaws: builtins.list[Flaw] = []
            if secret is not None and any(one.secret == secret for one in live):
                flaws.append(Flaw(("secret",), "is the one in use"))
            else:
                # Without its headers: what was taken before may be refused by now, and must not keep a secret alive.
                unchanged = {name: value for name, value in stored.document.items() if name != "headers"}
                try:
                    self._reader.read({"id": id, **unchanged, "secrets": [one.secret for one in secrets]})
                except FlawedError as error:
                    flaws += [Flaw(("secret",), flaw.message) for flaw in error.flaws]
            if flaws:
                raise Invalid(flaws)
            return stored.document, secrets

        view = await self._change(id, tenant, if_match, change)
        return Rotated(view, made, end)

    def _changeable(self, id: str, tenant: str | None, if_match: int | None) -> Stored:  # noqa: A002
        """What a change may be made of. Raises NotFound, FileManaged, VersionMismatch."""
        self._ready()
        if self._registry.in_file(id):
            subscription = self._registry.index.get(id)
            if subscription is None or not _sees(tenant, subscription.tenant):
                raise _unknown(id)
            raise FileManaged(id)
        stored = self._store.get(id)
        if stored is None or not _sees(tenant, stored.document.get("tenant")):
            raise _unknown(id)
        if if_match is not None and if_match != stored.version:
            raise VersionMismatch(stored.version)
        return stored

    async def _change(
        self,
        id: str,  # noqa: A002 - the field's name
        tenant: str | None,
        if_match: int | None,
        change: _Change,
    ) -> View:
        for _ in range(_TRIES):
            stored = self._changeable(id, tenant, if_match)
            if stored.unusable == "sealed":
                # What can't be read can't be written again either: its secrets would be lost for good.
                raise _unusable(self._view_of(stored))
            changed = change(stored)
            if changed is None:
                return self._view_of(stored)
            document, secrets = changed
            try:
                written = await self._store.put(
                    id, document, secrets, base=stored.version, idempotency=stored.idempotency
                )
            except VersionMismatch:
                if if_match is not None:
                    raise
                continue
            subscription = self._registry.index.get(id)
            if subscription is not None and subscription.status is Status.PENDING:
                self._validator.submit(subscription)
            return self._view_of(written)
        raise _contended(id)

    # Ask.

    async def ping(self, id: str, *, tenant: str | None) -> PingResult:  # noqa: A002 - the field's name
        """Send a real signed `ping` event and wait for what comes of it; whatever the status."""
        subscription = self._usable(id, tenant)
        now = self._wall()
        event_id = f"evt_ping_{token_hex(12)}"
        document: dict[str, Any] = {"id": event_id, "type": "ping", "created": round(now, 3)}
        whose = None if subscription.tenant == EVERY_TENANT else subscription.tenant
        if whose is not None:
            document["tenant"] = whose
        document["data"] = {"subscription_id": id}
        event = Event(event_id, "ping", whose, dumps(document), int(now * 1000), JSON_HEAD, now)
        try:
            result, duration = await self._probes.ping(subscription, event)
        except Busy as error:
            raise Overloaded(f"{error}: wait for them") from error
        if isinstance(result, Failure):
            return PingResult(event_id, False, None, result.reason.value, result.detail or None, duration, "")
        body = result.body.decode("utf-8", "replace")
        return PingResult(event_id, _is_2xx(result), result.status, None, None, duration, body)

    async def validate(self, id: str, *, tenant: str | None) -> View:  # noqa: A002 - the field's name
        """Ask the endpoint again whether it wants these events. WrongState says why it hasn't passed."""
        subscription = self._usable(id, tenant)
        if subscription.status is Status.DISABLED:
            raise WrongState(f"{id} is disabled ({subscription.reason}): enable it first")
        try:
            verdict = await self._validator.ask(subscription)
        except Busy as error:
            raise Overloaded(f"{error}: wait for them") from error
        if isinstance(verdict, Refused):
            raise WrongState(f"the endpoint did not pass: {verdict.detail}")
        return self.get(id, tenant=tenant)

    def health(self, id: str, *, tenant: str | None) -> Health:  # noqa: A002 - the field's name
        """How its deliveries go, as this replica sees it."""
        view = self.get(id, tenant=tenant)
        seen = None if self.source is None else self.source.health(id)
        failing = self._registry.failing(id)
        at = None if seen is None else seen.last_failure_at
        return Health(
            id=id,
            instance=self._instance,
            status=view.status,
            reason=view.reason,
            success_rate=None if seen is None else seen.success_rate,
            latency_mean=None if seen is None else seen.latency_mean,
            latency_p95=None if seen is None else seen.latency_p95,
            breaker=None if seen is None else seen.breaker,
            queued=0 if seen is None else seen.queued,
            in_flight=0 if seen is None else seen.in_flight,
            last_failure=None if seen is None else seen.last_failure,
            last_failure_ms=None if at is None else round(at * 1000),
            failing_since_ms=None if failing is None else round(failing * 1000),
        )

    def _usable(self, id: str, tenant: str | None) -> Subscription:  # noqa: A002 - the field's name
        view = self.get(id, tenant=tenant)
        subscription = self._registry.index.get(id)
        if subscription is None or not subscription.secrets:
            raise _unusable(view)
        return subscription

    # Inside.

    def _ready(self) -> None:
        if not self._store.loaded:
            raise Unavailable("the subscriptions are still being read: " + (self._store.problem or "wait"))

    def _now(self) -> int:
        return round(self._wall() * 1000)

    def _live(self, stored: Stored) -> builtins.list[StoredSecret]:
        now = self._now()
        return [one for one in stored.secrets if one.expires_ms is None or one.expires_ms > now]

    def _announce(self, type: str, subscription: Subscription) -> None:  # noqa: A002 - the field's name
        self._announcer.announce(
            type,
            subscription.id,
            subscription.tenant,
            {
                "host": subscription.origin.host,
                "event_types": builtins.list(subscription.event_types),
                "status": subscription.status.value,
            },
        )


def _as_known(headers: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Headers under the names that they are known by: upper and lower case make no difference in a header's name."""
    names = {name.lower(): name for name in known if name not in headers}
    return {names.pop(name.lower(), name): value for name, value in headers.items()}


def _sees(tenant: str | None, owner: Any) -> bool:
    return tenant is None or tenant == owner


def _unknown(id: str) -> NotFound:  # noqa: A002 - the field's name
    return NotFound(f"there is no subscription {id[:64]}")


def _unusable(view: View) -> WrongState:
    """What can't be delivered to as it is kept, and what to do about it."""
    if view.reason == "sealed":
        remedy = "its secrets are sealed with a key that api.secrets_keys doesn't have: put that back"
    else:
        remedy = "the settings refuse it by now (the log says why): change it, or them"
    return WrongState(f"{view.id} can't be used as it is kept ({view.reason}): {remedy}")


def _contended(id: str) -> Unavailable:  # noqa: A002 - the field's name
    return Unavailable(f"{id} is changed by others all the time: send it again", 1.0)


def _refused(fields: Mapping[str, Any]) -> builtins.list[Flaw]:
    return [Flaw((name,), said) for name, said in _REFUSED.items() if fields.get(name) is not None]


def _kind(secret: str) -> str:
    return "whsk_" if secret.startswith("whsk_") else "whsec_"


def _made_secret(prefix: str) -> str:
    return prefix + b64encode(token_bytes(32)).decode()


def _made_secrets(signatures: Any) -> builtins.list[str]:
    """What the signatures need: an ed25519 key for v1a, an HMAC secret for the others."""
    names = signatures if isinstance(signatures, (builtins.list, tuple)) and signatures else ["v1"]
    prefixes = dict.fromkeys("whsk_" if name == "v1a" else "whsec_" for name in names)
    return [_made_secret(prefix) for prefix in prefixes]


def _id_for(idempotency: Idempotency | None) -> str:
    """`sub_` and 20 random characters; with a key the same each time."""
    if idempotency is None:
        return f"sub_{token_urlsafe(15)}"
    made_of = dumps([idempotency.principal, idempotency.key])
    return "sub_" + urlsafe_b64encode(blake2b(made_of, digest_size=15).digest()).decode()


def _cursor(after: str) -> str:
    return urlsafe_b64encode(after.encode()).decode().rstrip("=")


def _after(cursor: str) -> str:
    text = ""
    with contextlib.suppress(ValueError):
        text = urlsafe_b64decode(cursor[:128] + "=" * (-len(cursor) % 4)).decode("ascii")
    if not text or _cursor(text) != cursor:
        raise Invalid([Flaw(("cursor",), "is not one that a page of this list ended with")])
    return text


def _merged(ones: Iterable[str], others: Iterable[str]) -> Iterator[str]:
    """Both in order, what stands in both once."""
    last = ""
    for id_ in heapq.merge(ones, others):
        if id_ != last:
            last = id_
            yield id_


def _is_2xx(result: Response) -> bool:
    return 200 <= result.status < 300


def _shown(
    view: View, tenant: str | None, status: str | None, event_type: str | None, host: str | None
) -> bool:
    """Whether one that is in no index passes the filters."""
    return (
        _sees(tenant, view.document.get("tenant"))
        and status in (None, view.status)
        and event_type is None
        and host is None
    )


def _rate(rate: float) -> str:
    """Deliveries a second, as they are written."""
    for unit, seconds in (("s", 1), ("m", 60), ("h", 3600)):
        count = round(rate * seconds, 3)
        if count == int(count) and count:
            return f"{int(count)}/{unit}"
    return f"{rate * 3600:.3f}/h"


def _document_of(subscription: Subscription) -> dict[str, Any]:
    """As it could have been written in the file."""
    document: dict[str, Any] = {
        "url": subscription.url,
        "event_types": builtins.list(subscription.event_types),
        "signatures": builtins.list(subscription.signatures),
        "headers": dict(subscription.headers),
        "payload": "thin" if subscription.thin else "full",
        "redirects": "same-origin" if subscription.follow_redirects else "never",
        "timeout": format_duration(subscription.timeout),
        "retry": {
            "schedule": [format_duration(wait) for wait in subscription.retry.schedule],
            "jitter": subscription.retry.jitter,
        },
    }
    if subscription.tenant is not None:
        document["tenant"] = subscription.tenant
    if subscription.max_in_flight != MAX_IN_FLIGHT:
        document["max_in_flight"] = subscription.max_in_flight
    if subscription.rate_limit is not None:
        document["rate_limit"] = _rate(subscription.rate_limit)
    if subscription.certificate is not None:
        cert_file, key_file = subscription.certificate
        document["client_certificate"] = {"cert_file": cert_file, "key_file": key_file}
    return document
