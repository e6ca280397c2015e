"""Subscriptions of the API as bytes of the control topic, and back; secrets are sealed on the way.

Sealed are signing secrets and the values of headers, where `api.secrets_keys` has a key
(`core/control/sealing.py`). A record looks so::

    {"document": {...}, "secrets": [{"sealed": "...", "expires_ms": null}], "created_ms": 1, "updated_ms": 1,
     "idempotency": {"principal": "...", "key": "...", "digest": "..."}, "paused": {"since_ms": 1, "marks": [["events", 0, 42]]}}

A secret or header value is `{"sealed": text}`, or `{"plain": text}` where there is no key. Nothing here keeps state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from dispatcher.core.control.sealing import CannotOpen, Sealer

SEALED: Final = "sealed"
INVALID: Final = "invalid"


# Tuples: a hundred thousand are made while loading, and each frozen dataclass takes three times as long.
class StoredSecret(NamedTuple):
    """A signing secret in full, and when it ends by itself (Unix ms; None: it doesn't)."""

    secret: str
    expires_ms: int | None = None


class Idempotency(NamedTuple):
    """The request that created a subscription: whose, its Idempotency-Key, and a digest of what it asked for."""

    principal: str
    key: str
    digest: str


class Silence(NamedTuple):
    """Since when a subscription takes nothing."""

    since_ms: int
    marks: tuple[tuple[str, int, int], ...] = ()
    """Topic, partition and offset: before these offsets nothing was dropped for it. Partitions of which that isn't known are left out."""


class Stored(NamedTuple):
    """A subscription of the API as it is kept.

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
    """Why it can't be delivered to: `sealed` (no key opens its secrets) or `invalid` (the settings refuse it)."""
    paused: Silence | None = None
    """Of one that is paused."""


Complaint = Callable[[str, str, str], None]
"""Told the id, the field, and why a secret can't be opened; once for a document."""


class Documents:
    """Writes and reads documents of subscriptions."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer

    @property
    def sealing(self) -> bool:
        """Whether secrets are sealed."""
        return bool(self._sealer)

    def write(self, stored: Stored) -> bytes:
        """The bytes of a record."""
        document = dict(stored.document)
        document.pop("id", None)
        document.pop("secrets", None)
        if headers := document.get("headers"):
            document["headers"] = {
                name: self._kept(stored.id, f"headers {name}", value) for name, value in headers.items()
            }
        raw: dict[str, Any] = {
            "document": document,
            "secrets": [
                {**self._kept(stored.id, "secrets", each.secret), "expires_ms": each.expires_ms}
                for each in stored.secrets
            ],
            "created_ms": stored.created_ms,
            "updated_ms": stored.updated_ms,
        }
        if stored.idempotency is not None:
            raw["idempotency"] = stored.idempotency._asdict()
        if stored.paused is not None:
            raw["paused"] = {"since_ms": stored.paused.since_ms, "marks": stored.paused.marks}
        return orjson.dumps(raw)

    def _kept(self, id: str, field: str, secret: str) -> dict[str, Any]:  # noqa: A002 - the field's name
        if not self._sealer:
            return {"plain": secret}
        return {"sealed": self._sealer.seal(secret, f"{id} {field}")}

    def read(
        self,
        id: str,  # noqa: A002 - the field's name
        version: int,
        raw: dict[str, Any],
        now_ms: int,
        *,
        unusable: str | None = None,
        complain: Complaint | None = None,
    ) -> Stored:
        """A record's JSON as it is kept. Secrets that can't be opened are left out, and `Stored.unusable` says so.

        `unusable` is what is known of it already. Raises ValueError, KeyError, TypeError or AttributeError for a
        record that no dispatcher has written.
        """

        def opened(kept: Mapping[str, Any], field: str) -> str | None:
            nonlocal unusable
            if "sealed" not in kept:
                return str(kept["plain"])
            try:
                return self._sealer.open(kept["sealed"], f"{id} {field}")
            except CannotOpen as error:
                if unusable is None and complain is not None:
                    complain(id, field, str(error))
                unusable = SEALED
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
            _live(secrets, now_ms),
            raw["created_ms"],
            raw["updated_ms"],
            None if request is None else Idempotency(request["principal"], request["key"], request["digest"]),
            unusable,
            _silence(raw.get("paused")),
        )

    def sealed_otherwise(self, raw: Mapping[str, Any]) -> bool:
        """Whether anything in it was sealed with another key than the newest, or not at all, and could be."""
        if not self._sealer:
            return False
        newest = self._sealer.is_newest
        kept = raw["secrets"]
        if headers := raw["document"].get("headers"):
            kept = [*kept, *headers.values()]
        return any("sealed" not in each or not newest(each["sealed"]) for each in kept)


def _silence(raw: Mapping[str, Any] | None) -> Silence | None:
    if raw is None:
        return None
    return Silence(
        int(raw["since_ms"]), tuple((topic, partition, at) for topic, partition, at in raw["marks"])
    )


def _live(secrets: Sequence[StoredSecret], now_ms: int) -> tuple[StoredSecret, ...]:
    """The secrets that haven't ended; the newest in any case."""
    if len(secrets) == 1 and secrets[0].expires_ms is None:
        return tuple(secrets)
    live = tuple(each for each in secrets if each.expires_ms is None or each.expires_ms > now_ms)
    return live or tuple(secrets[:1])
