"""API keys: their form, the record that is kept of each, and comparing them.

A key is `dk_<id>_<32 random bytes, base64url>`. The id finds the record, and may be shown. The rest is shown once, when
the key is made. The record holds the SHA-256 of the whole key. A slow hash (scrypt, argon2) protects what people can
remember, by making each guess expensive. Nobody guesses 256 random bits, and each request of the API would pay for it.

Comparing takes the same time whatever differs (`hmac.compare_digest`), also where there is no such key.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Literal

SECRET_BYTES: Final = 32

Scope = Literal["operator", "tenant"]
Capability = Literal["publish", "read", "write", "secrets", "resend"]
"""What a key may do: publish events; see; change subscriptions and ask their endpoints; rotate secrets; have
deliveries sent again. Each by itself: `write` is not `read`. An operator's key usually has all of them; one with `read` alone only sees."""

CAPABILITIES: Final[tuple[Capability, ...]] = ("publish", "read", "write", "secrets", "resend")
ALL_CAPABILITIES: Final = frozenset(CAPABILITIES)
OF_NEW_TENANT_KEYS: Final = ALL_CAPABILITIES - {"publish"}
"""Unless the key says otherwise. The platform publishes events, not its customers."""

_KEY: Final = re.compile(r"dk_([a-z0-9]{8,32})_[A-Za-z0-9_-]{43}", re.ASCII)
_ID: Final = re.compile(r"[a-z0-9]{8,32}", re.ASCII)
_NOBODY: Final = bytes(32)


@dataclass(frozen=True, slots=True)
class Key:
    """The record of an API key."""

    id: str
    name: str
    scope: Scope
    tenant: str | None  # whose subscriptions it may see and change; None for an operator
    hash: bytes
    created_ms: int
    created_by: str = ""
    capabilities: frozenset[Capability] = ALL_CAPABILITIES

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ValueError("a key's id must be 8 to 32 of the characters a-z 0-9")
        if (self.scope == "tenant") != (self.tenant is not None):
            raise ValueError("a key of scope tenant needs a tenant, and no other has one")

    @property
    def full(self) -> bool:
        """Whether it may do everything."""
        return self.scope == "operator" and self.capabilities == ALL_CAPABILITIES

    def to_document(self) -> dict[str, Any]:
        """As it is kept."""
        return {
            "name": self.name,
            "scope": self.scope,
            "tenant": self.tenant,
            "hash": self.hash.hex(),
            "created_ms": self.created_ms,
            "created_by": self.created_by,
            "capabilities": [name for name in CAPABILITIES if name in self.capabilities],
        }

    @classmethod
    def from_document(cls, id: str, document: dict[str, Any]) -> Key:  # noqa: A002 - the field's name
        """Read what `to_document` made. Raises ValueError for anything else."""
        try:
            scope = document["scope"]
            if scope not in {"operator", "tenant"}:
                raise ValueError(f"no such scope: {scope!r}")
            # Keys that were made before there were capabilities have all of them. What this version doesn't know is left out.
            given = document.get("capabilities", CAPABILITIES)
            return cls(
                id,
                str(document["name"]),
                scope,
                document["tenant"],
                bytes.fromhex(document["hash"]),
                int(document["created_ms"]),
                str(document.get("created_by", "")),
                frozenset(name for name in CAPABILITIES if name in given),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a key: {error!r}") from error


def make_secret(id: str, chance: bytes) -> str:  # noqa: A002 - the field's name
    """The key itself, from 32 random bytes."""
    if len(chance) != SECRET_BYTES:
        raise ValueError(f"needs {SECRET_BYTES} random bytes")
    if not _ID.fullmatch(id):
        raise ValueError("a key's id must be 8 to 32 of the characters a-z 0-9")
    return f"dk_{id}_{urlsafe_b64encode(chance).rstrip(b'=').decode()}"


def id_of(secret: str) -> str | None:
    """The id in a key as it was sent; None if it isn't one of ours."""
    match = _KEY.fullmatch(secret)
    return match[1] if match else None


def hash_of(secret: str) -> bytes:
    """The hash that is kept of a key."""
    return sha256(secret.encode()).digest()


def is_key(secret: str, key: Key | None) -> bool:
    """Whether what was sent is this key; compares, in the same time, where there is none too."""
    same = hmac.compare_digest(hash_of(secret), _NOBODY if key is None else key.hash)
    return same and key is not None
