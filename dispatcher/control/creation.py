"""New subscriptions.

**Creating twice.** A caller that lost the answer sends the request again, perhaps to another replica, perhaps at the
same moment. So with an Idempotency-Key the id is made from the caller and the key. The log lets only one of two
requests in, and the other request finds what the first has made.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from secrets import token_urlsafe
from typing import Any, Final

from orjson import OPT_SORT_KEYS, dumps

from dispatcher.control.checker import Checker, refused
from dispatcher.control.documents import Idempotency, StoredSecret
from dispatcher.control.errors import (
    AlreadyExists,
    Invalid,
    VersionMismatch,
    WrongState,
)
from dispatcher.control.operational_events import CREATED, Announcer
from dispatcher.control.quotas import Quotas
from dispatcher.control.secrets import made_secrets
from dispatcher.control.store import ControlStore
from dispatcher.control.validation import Validator
from dispatcher.control.views import View, Views
from dispatcher.core.flaws import Flaw
from dispatcher.core.subscription.model import Status
from dispatcher.registry.registry import Registry


@dataclass(frozen=True, slots=True)
class Created:
    """A new subscription, and its secrets in full, for the only time. `replayed`: made by an earlier request with this key."""

    view: View
    secrets: tuple[str, ...]
    replayed: bool = False


_MAX_KEY: Final = 255


class Creation:
    """Makes subscriptions. `tenant` None is an operator; a tenant makes its own."""

    def __init__(
        self,
        store: ControlStore,
        registry: Registry,
        validator: Validator,
        announcer: Announcer,
        checker: Checker,
        views: Views,
        quotas: Quotas,
    ) -> None:
        self._store = store
        self._registry = registry
        self._validator = validator
        self._announcer = announcer
        self._checker = checker
        self._views = views
        self._quotas = quotas
        self._creating: set[tuple[str, str]] = set()

    async def create(
        self,
        document: Mapping[str, Any],
        *,
        principal: str,
        tenant: str | None,
        idempotency_key: str | None = None,
    ) -> Created:
        """Make one; `id` and `secrets` are made here where the document has none."""
        self._views.ready()
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
        # A changed subscription has been used: this caller didn't lose the first answer.
        shown = tuple(secret.secret for secret in stored.secrets) if stored.version == 1 else ()
        return Created(self._views.of(stored), shown, replayed=True)

    async def _create(
        self, document: Mapping[str, Any], tenant: str | None, idempotency: Idempotency | None
    ) -> Created:
        fields = {name: value for name, value in document.items() if value is not None}
        flaws = refused(fields)
        if tenant is not None and fields.setdefault("tenant", tenant) != tenant:
            flaws.append(Flaw(("tenant",), "must be your own, or left out"))
        if tenant is not None and "id" in fields:
            # Whether another tenant has it could be told from the answer.
            said = "is made by the dispatcher: leave it out (an Idempotency-Key makes it safe to send a request again)"
            flaws.append(Flaw(("id",), said))
            del fields["id"]
        if tenant is not None:
            self._checker.require_validation(fields, flaws)
            flaws += self._quotas.beyond(tenant, fields)
        given = fields.pop("secrets", None)
        secrets: Any = made_secrets(fields.get("signatures")) if given is None else given
        wanted = fields.pop("id", None)
        id_ = wanted if wanted is not None else _id_for(idempotency)
        origin = self._checker.check(id_, fields, secrets, flaws, patterns=True).origin
        with self._quotas.creating(tenant, origin):
            return await self._put(id_, fields, secrets, idempotency, chosen=wanted is not None)

    async def _put(
        self,
        id_: str,
        fields: Mapping[str, Any],
        secrets: Sequence[str],
        idempotency: Idempotency | None,
        *,
        chosen: bool,
    ) -> Created:
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
                if chosen:
                    raise AlreadyExists(f"there is a subscription {id_} already") from None
                id_ = _id_for(None)
                continue
            break
        subscription = self._registry.index.get(id_)
        if subscription is not None:
            if subscription.status is Status.PENDING:
                self._validator.submit(subscription)
            self._announcer.announce_subscription(CREATED, subscription)
        return Created(self._views.of(stored), tuple(secrets))


def _id_for(idempotency: Idempotency | None) -> str:
    """`sub_` and 20 random characters; with a key the same each time."""
    if idempotency is None:
        return f"sub_{token_urlsafe(15)}"
    made_of = dumps([idempotency.principal, idempotency.key])
    return "sub_" + urlsafe_b64encode(blake2b(made_of, digest_size=15).digest()).decode()
