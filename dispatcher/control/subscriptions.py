"""Operations on subscriptions that are there: change, pause, disable, enable, rotate, delete.

A change is one write of the whole subscription to the topic, in the place of the version it was made from
(`store.py`), and answers when this replica has read it back. Without an ETag the caller means "whatever it
is by then": a change that lost against another one is made again on what that one left.

Rules:

1. A caller that may not see a subscription learns nothing of it: NotFound, as where there is none.
2. Secrets leave in full only in the answer that made them.
3. Nothing is written before everything is checked; all that is wrong is told at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from dispatcher.control.checker import Checker, refused
from dispatcher.control.documents import Silence, Stored, StoredSecret
from dispatcher.control.errors import (
    FileManaged,
    Invalid,
    Unavailable,
    VersionMismatch,
    WrongState,
)
from dispatcher.control.masking import unmask_headers
from dispatcher.control.operational_events import DELETED, Announcer
from dispatcher.control.quotas import Quotas
from dispatcher.control.secrets import MAX_OVERLAP, OVERLAP, live, rotated, successor
from dispatcher.control.store import ControlStore, Marks
from dispatcher.control.validation import Validator
from dispatcher.control.views import View, Views, sees, unknown, unusable
from dispatcher.core.flaws import Flaw, FlawedError
from dispatcher.core.subscription.model import Status
from dispatcher.core.subscription.spec import SpecReader
from dispatcher.core.text.merge_patch import merge
from dispatcher.core.text.units import format_duration
from dispatcher.registry.registry import Registry
from dispatcher.registry.snapshot import BY_OPERATOR


@dataclass(frozen=True, slots=True)
class Rotated:
    """After a rotation: the new secret in full, for the only time; the old ones end at `old_expires_ms`."""

    view: View
    secret: str
    old_expires_ms: int


_TRIES: Final = 5  # to make a change on a subscription that others change too
_OWN_FIELDS: Final = ("id", "secrets")
_Change = Callable[[Stored], "tuple[Mapping[str, Any], Sequence[StoredSecret]] | None"]


class Subscriptions:
    """The operations. `tenant` None is an operator, who sees all; a tenant sees its own, and else NotFound."""

    def __init__(
        self,
        store: ControlStore,
        registry: Registry,
        validator: Validator,
        announcer: Announcer,
        reader: SpecReader,
        checker: Checker,
        views: Views,
        quotas: Quotas,
    ) -> None:
        """`reader` checks what comes over the network."""
        self._store = store
        self._registry = registry
        self._validator = validator
        self._announcer = announcer
        self._reader = reader
        self._checker = checker
        self._views = views
        self._quotas = quotas

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
        flaws = refused(patch)
        if "secrets" in patch:
            flaws.append(Flaw(("secrets",), "are changed by rotating them (POST .../secret/rotate)"))
        if "id" in patch and patch["id"] != id:
            flaws.append(Flaw(("id",), "can't be changed"))
        changes = {name: value for name, value in patch.items() if name not in _OWN_FIELDS}
        held = ExitStack()  # what the change needs of the tenant's quotas, until it is in force

        def change(stored: Stored) -> tuple[Mapping[str, Any], Sequence[StoredSecret]] | None:
            held.close()
            wrong = list(flaws)
            if "tenant" in changes and changes["tenant"] != stored.document.get("tenant"):
                wrong.append(
                    Flaw(("tenant",), "can't be changed: make a new subscription for the other tenant")
                )
            wanted = changes
            if isinstance(headers := changes.get("headers"), Mapping):
                known = stored.document.get("headers", {})
                wanted = {**changes, "headers": unmask_headers(_as_known(headers, known), known)}
            merged = merge(stored.document, wanted)
            if tenant is not None and merged.get("url") != stored.document.get("url"):
                self._checker.require_validation(merged, wrong)
                # Another URL starts over: that must not release the operator's brake.
                view = self._views.get(id, tenant=tenant)
                if view.reason == BY_OPERATOR:
                    raise _braked(view)
            wrong += self._quotas.beyond(tenant, merged, stored.document)
            if merged.get("status") == Status.ACTIVE.value:
                merged.pop("status")
            patterns = merged.get("event_types") != stored.document.get("event_types")
            secrets = [secret.secret for secret in live(stored.secrets, self._store.now_ms())]
            read = self._checker.check(id, merged, secrets, wrong, patterns=patterns)
            before = self._registry.index.get(id)
            if before is None or read.origin != before.origin:
                held.enter_context(self._quotas.creating(tenant, read.origin, new=False))
            return None if merged == stored.document else (merged, stored.secrets)

        with held:
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
                self._announcer.announce_subscription(DELETED, subscription)
            return
        raise _contended(id)

    async def pause(
        self,
        id: str,  # noqa: A002 - the field's name
        *,
        tenant: str | None,
        if_match: int | None = None,
        marks: Marks = (),
    ) -> View:
        """Deliver nothing until `resume`; what matches meanwhile is dropped. `marks`: where the event topics were read at least."""
        return await self._set_written(id, tenant, if_match, Status.PAUSED, marks)

    def silence(self, id: str, *, tenant: str | None) -> Silence | None:  # noqa: A002 - the field's name
        """Since when it takes nothing, where it is paused or disabled."""
        view = self._views.get(id, tenant=tenant)
        if view.status == Status.DISABLED:
            runtime = self._registry.runtime(id)
            return None if runtime is None or runtime.since is None else Silence(round(runtime.since * 1000))
        stored = self._store.get(id)
        return stored.paused if stored is not None and view.status == Status.PAUSED else None

    async def resume(self, id: str, *, tenant: str | None, if_match: int | None = None) -> View:  # noqa: A002
        """End a pause."""
        return await self._set_written(id, tenant, if_match, Status.ACTIVE)

    async def _set_written(
        self,
        id: str,  # noqa: A002 - the field's name
        tenant: str | None,
        if_match: int | None,
        status: Status,
        marks: Marks = (),
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

        return await self._change(id, tenant, if_match, change, marks)

    async def disable(
        self,
        id: str,  # noqa: A002 - the field's name
        text: str,
        *,
        tenant: str | None,
        if_match: int | None = None,
    ) -> View:
        """The operator's brake: deliver nothing until an operator enables it. `text` says why."""
        view = self._views.get(id, tenant=tenant)
        if if_match is not None and if_match != view.version:
            raise VersionMismatch(view.version)
        if not text.strip() or not text.isprintable():
            raise Invalid([Flaw(("reason",), "must be printable, and not only spaces")])
        if (view.reason, view.reason_text) != (BY_OPERATOR, text):
            await self._store.set_disabled(id, text)
        return self._views.get(id, tenant=tenant)

    async def enable(self, id: str, *, tenant: str | None, if_match: int | None = None) -> View:  # noqa: A002
        """Make a disabled one active again, of the file too."""
        view = self._views.get(id, tenant=tenant)
        if if_match is not None and if_match != view.version:
            raise VersionMismatch(view.version)
        if view.status != Status.DISABLED:
            return view
        if tenant is not None and view.reason == BY_OPERATOR:
            raise _braked(view)
        runtime = self._registry.runtime(id)
        if runtime is None or runtime.status is not Status.DISABLED:
            if view.managed == "file":
                raise FileManaged(id)
            raise unusable(view)
        await self._store.enable(id)
        subscription = self._registry.index.get(id)
        if subscription is not None and subscription.status is Status.PENDING:
            self._validator.submit(subscription)
        return self._views.get(id, tenant=tenant)

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
        end = self._store.now_ms() + round(overlap * 1000)
        new = secret or ""

        def change(stored: Stored) -> tuple[Mapping[str, Any], Sequence[StoredSecret]]:
            nonlocal new
            known = live(stored.secrets, self._store.now_ms())
            if any(one.secret == secret for one in known):
                raise Invalid([Flaw(("secret",), "is the one in use")])
            new = new or successor(known)
            secrets = rotated(known, new, end, overlapping=overlap > 0)
            # Without its headers: what was taken before may be refused by now, and must not keep a secret alive.
            unchanged = {name: value for name, value in stored.document.items() if name != "headers"}
            try:
                self._reader.read({"id": id, **unchanged, "secrets": [one.secret for one in secrets]})
            except FlawedError as error:
                raise Invalid([Flaw(("secret",), flaw.message) for flaw in error.flaws]) from error
            return stored.document, secrets

        view = await self._change(id, tenant, if_match, change)
        return Rotated(view, new, end)

    def _changeable(self, id: str, tenant: str | None, if_match: int | None) -> Stored:  # noqa: A002
        """The subscription that a change starts from. Raises NotFound, FileManaged, VersionMismatch."""
        self._views.ready()
        if self._registry.in_file(id):
            subscription = self._registry.index.get(id)
            if subscription is None or not sees(tenant, subscription.tenant):
                raise unknown(id)
            raise FileManaged(id)
        stored = self._store.get(id)
        if stored is None or not sees(tenant, stored.document.get("tenant")):
            raise unknown(id)
        if if_match is not None and if_match != stored.version:
            raise VersionMismatch(stored.version)
        return stored

    async def _change(
        self,
        id: str,  # noqa: A002 - the field's name
        tenant: str | None,
        if_match: int | None,
        change: _Change,
        marks: Marks = (),
    ) -> View:
        for _ in range(_TRIES):
            stored = self._changeable(id, tenant, if_match)
            if stored.unusable == "sealed":
                # What can't be read can't be written again either: its secrets would be lost for good.
                raise unusable(self._views.of(stored))
            changed = change(stored)
            if changed is None:
                return self._views.of(stored)
            document, secrets = changed
            try:
                written = await self._store.put(
                    id, document, secrets, base=stored.version, idempotency=stored.idempotency, marks=marks
                )
            except VersionMismatch:
                if if_match is not None:
                    raise
                continue
            subscription = self._registry.index.get(id)
            if subscription is not None and subscription.status is Status.PENDING:
                self._validator.submit(subscription)
            return self._views.of(written)
        raise _contended(id)


def _as_known(headers: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Headers under the names that they are known by: upper and lower case make no difference in a header's name."""
    names = {name.lower(): name for name in known if name not in headers}
    return {names.pop(name.lower(), name): value for name, value in headers.items()}


def _braked(view: View) -> WrongState:
    return WrongState(
        f"{view.id} was disabled by an operator of this installation ({view.reason_text}): only an operator enables it"
    )


def _contended(id: str) -> Unavailable:  # noqa: A002 - the field's name
    return Unavailable(f"{id} is changed by others all the time: send it again", 1.0)
