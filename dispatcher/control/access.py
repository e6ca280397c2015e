"""Who may ask: keys of the settings, keys that the API made, and what a wrong key costs.

A wrong key may be a guess, and comparing a right one may tell how close a guess was. So every comparison is of
digests, in constant time, and over all keys that come into question. A source that sends wrong keys has to wait, and
its next key isn't looked at before: an answer to a right key would make the waiting worthless. Behind a proxy all
callers are one source (`api.wrong_keys_per_minute` says so).

Without any operator's key, in the settings or made by the API, the API is open, as operator, to whoever reaches it.
The settings see to it that only this machine does. The first operator's key closes the API at once.

Rules:

1. A key that could be one of the API's is never called wrong before all keys are loaded: that is Unavailable.
2. Failures of a source are forgotten at the rate that is allowed. The number of sources is bounded: the one heard of
   longest ago is forgotten first.
3. The secret of a key leaves this module once, as the answer of `create`.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Final, NamedTuple, Protocol

from dispatcher.control.errors import ControlError, Invalid, NotFound, Unavailable
from dispatcher.control.table import Row
from dispatcher.core.control.keys import (
    ALL_CAPABILITIES,
    CAPABILITIES,
    OF_NEW_TENANT_KEYS,
    SECRET_BYTES,
    Capability,
    Key,
    Scope,
    hash_of,
    id_of,
    is_key,
    make_secret,
)
from dispatcher.core.event.decode import valid_tenant
from dispatcher.core.flaws import Flaw
from dispatcher.settings.groups import Settings

_SOURCES: Final = 10_000
_V6_PREFIX: Final = 64


class Unauthenticated(ControlError):
    """There is no key, or a wrong one."""


class TooManyWrongKeys(ControlError):
    """Too many of them came from one source; it may try again after `retry_after` seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(
            "too many wrong keys came from this address: wait, and check the key before the next try"
        )
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller. `id` is the same in every request with this key, `name` is for people."""

    id: str
    name: str
    scope: Scope
    tenant: str | None = None
    capabilities: frozenset[Capability] = ALL_CAPABILITIES


class Holder(NamedTuple):
    """A key that was found: whose it is, a name of it that tells nothing, and what changes when the key does."""

    principal: Principal
    mark: str
    digest: str


class Tokens(Protocol):
    """Tokens that are no keys: those of portal sessions."""

    def principal(self, token: str) -> Principal | None:
        """The caller; None for what is no token of ours. Raises Unauthenticated for one that has ended, and Unavailable."""


class Keys(Protocol):
    """The table of keys that the API made."""

    def get(self, name: str) -> Row[Key] | None: ...
    def names(self) -> Sequence[str]: ...
    async def put(self, name: str, value: Key, *, base: int) -> Row[Key]: ...
    async def delete(self, name: str, *, base: int) -> None: ...


class Access:
    """Finds the caller of a request, and keeps the keys."""

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        loaded: Callable[[], bool],
        *,
        tokens: Tokens | None = None,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`loaded` says whether all keys are there; `wall` gives Unix seconds."""
        self._loaded = loaded
        self._configured = [sha256(key.get_secret_value().encode()).digest() for key in settings.api.keys]
        # Where a proxy says who asks, whoever it doesn't name is nobody.
        self._loopback = settings.http.loopback and settings.console.trusted_header is None
        self._tokens = tokens
        self._keys = keys
        self._wall = wall
        self._failures = _Failures(settings.api.wrong_keys_per_minute, monotonic)

    def is_open(self) -> bool:
        """Whether no key is needed. Raises Unavailable while that isn't known."""
        return self._loopback and not self._configured and not self._has_operator()

    @property
    def confined(self) -> bool:
        """Whether requests have to be addressed to this machine: the API is open, or that isn't known yet."""
        try:
            return self.is_open()
        except Unavailable:
            return True

    def _ready(self) -> None:
        if not self._loaded():
            raise Unavailable("the keys are still being read: try again soon, or use one of api.keys")

    def _has_operator(self) -> bool:
        self._ready()
        rows = (self._keys.get(name) for name in self._keys.names())
        # One that may only see closes nothing: nobody could open it again.
        return any(row is not None and row.value.full for row in rows)

    def authenticate(self, authorization: str | None, source: str) -> Principal:
        """The caller that sent this `Authorization` header from the address `source`.

        Raises Unauthenticated, TooManyWrongKeys, Unavailable.
        """
        if authorization is None:
            if self.is_open():
                return Principal("open", "no key needed", "operator")
            raise Unauthenticated("send a key: `Authorization: Bearer <key>`")
        self._slow_down(source)
        scheme, _, sent = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("send the key as `Authorization: Bearer <key>`")
        if not sent.strip():
            raise Unauthenticated(
                "there is no key after `Bearer`; while the API is open, leave the header out"
            )
        sent = sent.strip()
        if self._tokens is not None and (principal := self._tokens.principal(sent)) is not None:
            return principal
        return self._held(sent, source).principal

    def holder(self, sent: str, source: str) -> Holder:
        """The holder of a key that came from the address `source`. Raises Unauthenticated, TooManyWrongKeys, Unavailable."""
        self._slow_down(source)
        return self._held(sent, source)

    def _slow_down(self, source: str) -> None:
        """Raise TooManyWrongKeys while the source has to wait. Its key isn't looked at before."""
        self._failures.check(source)

    def _held(self, sent: str, source: str) -> Holder:
        found = self._find(sent)
        if found is None:
            self._failures.note(source)
            raise Unauthenticated("this key is not valid: it is mistyped, or was revoked")
        return found

    def _find(self, sent: str) -> Holder | None:
        digest = sha256(sent.encode(errors="surrogateescape")).digest()
        found: Holder | None = None
        for number, configured in enumerate(self._configured, 1):
            if hmac.compare_digest(digest, configured):
                found = _configured(number, configured)
        if found is not None or (name := id_of(sent)) is None:
            return found
        self._ready()
        row = self._keys.get(name)
        key = None if row is None else row.value
        return _of_key(key) if is_key(sent, key) and key is not None else None

    def marked(self, mark: str) -> Holder | None:
        """The holder of the key with this mark, while the key is there. Raises Unavailable."""
        for number, configured in enumerate(self._configured, 1):
            if (found := _configured(number, configured)).mark == mark:
                return found
        self._ready()
        row = self._keys.get(mark)
        return None if row is None else _of_key(row.value)

    def list(self) -> list[Key]:
        """The keys that the API made, oldest first. Raises Unavailable."""
        self._ready()
        rows = (self._keys.get(name) for name in self._keys.names())
        return sorted(
            (row.value for row in rows if row is not None), key=lambda key: (key.created_ms, key.id)
        )

    async def create(
        self,
        name: str,
        scope: Scope,
        tenant: str | None,
        *,
        by: Principal,
        capabilities: Collection[Capability] | None = None,
    ) -> tuple[Key, str]:
        """A new key, and its secret for the only time. Raises Invalid, Unavailable.

        Without `capabilities` an operator's key has all, and a tenant's those of `OF_NEW_TENANT_KEYS`.
        """
        flaws = []
        if not name.isprintable() or not name.strip():
            flaws.append(Flaw(("name",), "must be printable, and not only spaces"))
        if scope == "tenant" and tenant is None:
            flaws.append(Flaw(("tenant",), "is required with the scope tenant"))
        elif scope == "operator" and tenant is not None:
            flaws.append(Flaw(("tenant",), "has no effect with the scope operator: leave it out"))
        elif tenant is not None and not valid_tenant(tenant):
            flaws.append(Flaw(("tenant",), "must be 1 to 256 printable characters, and no *"))
        if capabilities is not None and not capabilities:
            flaws.append(Flaw(("capabilities",), f"must name some of {', '.join(CAPABILITIES)}"))
        if flaws:
            raise Invalid(flaws)
        self._ready()
        default = ALL_CAPABILITIES if scope == "operator" else OF_NEW_TENANT_KEYS
        may = default if capabilities is None else frozenset(capabilities)
        id = secrets.token_hex(8)  # noqa: A001 - the field's name
        secret = make_secret(id, secrets.token_bytes(SECRET_BYTES))
        key = Key(id, name, scope, tenant, hash_of(secret), round(self._wall() * 1000), by.id, may)
        row = await self._keys.put(id, key, base=0)
        return row.value, secret

    async def revoke(self, id: str) -> Key:  # noqa: A002 - the field's name
        """Revoke a key: each request with it is refused afterwards. Raises NotFound, Unavailable."""
        self._ready()
        row = self._keys.get(id)
        if row is None:
            raise NotFound(f"there is no key {id}")
        await self._keys.delete(id, base=row.version)
        return row.value


def _configured(number: int, digest: bytes) -> Holder:
    principal = Principal("settings", f"key {number} of the settings", "operator")
    return Holder(principal, f"settings-{sha256(digest).hexdigest()[:16]}", digest.hex())


def _of_key(key: Key) -> Holder:
    principal = Principal(key.id, key.name, key.scope, key.tenant, key.capabilities)
    return Holder(principal, key.id, key.hash.hex())


class _Failures:
    """Wrong keys of each source: a bucket that so many fit in, and that runs empty in a minute."""

    def __init__(self, per_minute: int, monotonic: Callable[[], float]) -> None:
        self._limit = per_minute
        self._rate = per_minute / 60
        self._monotonic = monotonic
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # source: level, at

    def _level(self, source: str, now: float) -> float:
        level, at = self._buckets.get(source, (0.0, now))
        return max(0.0, level - (now - at) * self._rate)

    def check(self, source: str) -> None:
        level = self._level(counted_as(source), self._monotonic())
        if level > self._limit - 1:
            raise TooManyWrongKeys((level - self._limit + 1) / self._rate)

    def note(self, source: str) -> None:
        source, now = counted_as(source), self._monotonic()
        level = self._level(source, now) + 1
        self._buckets[source] = level, now
        self._buckets.move_to_end(source)
        if len(self._buckets) > _SOURCES:
            self._buckets.popitem(last=False)


@lru_cache(maxsize=1024)  # each request asks several times
def counted_as(address: str) -> str:
    """What the caller at the address is counted as: one host has a whole /64 of IPv6 addresses to come from."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(ip, ipaddress.IPv6Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((ip, _V6_PREFIX), strict=False))
