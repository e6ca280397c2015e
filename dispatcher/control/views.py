"""Subscriptions as their owners may see them: secrets masked, the status in force, and why.

Rule: a caller that may not see a subscription learns nothing of it. It gets NotFound, as where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from dispatcher.control.documents import Stored
from dispatcher.control.errors import (
    NotFound,
    Unavailable,
    WrongState,
)
from dispatcher.control.masking import mask_document, mask_secret
from dispatcher.control.secrets import live
from dispatcher.control.store import ControlStore
from dispatcher.core.request.signing import public_key
from dispatcher.core.subscription.fields import MAX_IN_FLIGHT
from dispatcher.core.subscription.model import Status, Subscription
from dispatcher.core.text.units import format_duration
from dispatcher.registry.registry import Registry
from dispatcher.registry.snapshot import BY_OPERATOR


# Tuples: a page has two hundred, and each frozen dataclass takes three times as long.
class SecretView(NamedTuple):
    """One live secret, masked: `whsec_...abcd`."""

    masked: str
    expires_ms: int | None  # when it stops signing; None: it doesn't
    public_key: str | None = None  # `whpk_...` of an ed25519 secret

    @classmethod
    def of(cls, secret: str, expires_ms: int | None = None) -> SecretView:
        """The view of a secret in full."""
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
    reason_text: str | None  # what the operator wrote who disabled it
    created_ms: int | None
    updated_ms: int | None


class Views:
    """Makes views of subscriptions. `tenant` None is an operator, who sees all; a tenant sees its own, and else NotFound."""

    def __init__(self, store: ControlStore, registry: Registry, said: Callable[[str], str | None]) -> None:
        """`said` tells what came of asking a pending subscription's endpoint."""
        self._store = store
        self._registry = registry
        self._said = said

    def ready(self) -> None:
        """Raise Unavailable until everything is read."""
        if not self._store.loaded:
            raise Unavailable("the subscriptions are still being read: " + (self._store.problem or "wait"))

    def get(self, id: str, *, tenant: str | None) -> View:  # noqa: A002 - the field's name
        """One by its id."""
        self.ready()
        subscription = self._registry.index.get(id)
        if subscription is not None and not sees(tenant, subscription.tenant):
            raise unknown(id)
        view = self.find(id)
        if view is None or not sees(tenant, view.document.get("tenant")):
            raise unknown(id)
        return view

    def usable(self, id: str, tenant: str | None) -> Subscription:  # noqa: A002 - the field's name
        """One that requests can be sent to, whatever its status. Raises NotFound, WrongState."""
        view = self.get(id, tenant=tenant)
        subscription = self._registry.index.get(id)
        if subscription is None or not subscription.secrets:
            raise unusable(view)
        return subscription

    def find(self, id: str) -> View | None:  # noqa: A002 - the field's name
        """One by its id, whoever asks."""
        if not self._registry.in_file(id):
            stored = self._store.get(id)
            return None if stored is None else self.of(stored)
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
            reason_text=self._text(subscription),
            created_ms=None,
            updated_ms=None,
        )

    def of(self, stored: Stored) -> View:
        """One that the API manages."""
        subscription = self._registry.index.get(stored.id)
        now = self._store.now_ms()
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
                SecretView.of(secret.secret, secret.expires_ms) for secret in live(stored.secrets, now)
            ),
            version=stored.version,
            managed="api",
            status=status,
            reason=reason,
            reason_text=None if subscription is None else self._text(subscription),
            created_ms=stored.created_ms,
            updated_ms=stored.updated_ms,
        )

    def _text(self, subscription: Subscription) -> str | None:
        if subscription.status is not Status.DISABLED or subscription.reason != BY_OPERATOR:
            return None
        runtime = self._registry.runtime(subscription.id)
        return None if runtime is None else runtime.text

    def _reason(self, subscription: Subscription) -> str | None:
        if subscription.status is Status.PENDING:
            said = self._said(subscription.id)
            return subscription.reason if said is None else f"not validated: {said}"
        return subscription.reason


def sees(tenant: str | None, owner: Any) -> bool:
    """Whether a caller of this tenant, None for an operator, may see what is the owner's."""
    return tenant is None or tenant == owner


def unknown(id: str) -> NotFound:  # noqa: A002 - the field's name
    """The same for one that isn't there and for one that the caller may not see."""
    return NotFound(f"there is no subscription {id[:64]}")


def unusable(view: View) -> WrongState:
    """The error of a subscription that can't be delivered to, with what to do about it."""
    if view.reason == "sealed":
        remedy = "its secrets are sealed with a key that api.secrets_keys doesn't have: put that back"
    else:
        remedy = "the settings refuse it (the log says why): change the subscription, or the settings"
    return WrongState(f"{view.id} can't be used as it is kept ({view.reason}): {remedy}")


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
        "event_types": list(subscription.event_types),
        "signatures": list(subscription.signatures),
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
