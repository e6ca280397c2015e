"""Sessions of the console: a cookie in the place of a key, and people whom a proxy names.

Nothing is stored for a session. The cookie says which key opened it and until when it holds, and is signed. The signature is over
the key's digest too, so a session ends with its key, on every replica. What signs is derived of `api.secrets_keys` and `api.keys`,
which all replicas have. Where there are neither, each process signs with a secret of its own: then the API is for this machine only.

A cookie comes along with every request that a page makes, also one of another site. So does a proxy's header. Whoever comes in by
either has to show the session's CSRF value with every change (`api/callers.py`): only a page of ours can read it.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Final, Literal, NamedTuple

from dispatcher.control.access import Access, Principal
from dispatcher.core.control.keys import ALL_CAPABILITIES, Capability
from dispatcher.core.control.signer import TEXT_LENGTH, Signer
from dispatcher.settings.groups import Settings

LIFETIME: Final = 12 * 3600
"""Seconds that a session lasts. It isn't prolonged."""

_COOKIE: Final = re.compile(
    rf"([a-z0-9-]{{8,32}})\.([0-9]{{9,11}})\.([A-Za-z0-9_-]{{22}})\.([A-Za-z0-9_-]{{{TEXT_LENGTH}}})",
    re.ASCII,
)
_SEES: Final[frozenset[Capability]] = frozenset({"read"})
_MAX_PERSON: Final = 256

By = Literal["open", "key", "cookie", "proxy", "portal"]
"""How a caller came in."""


class Admitted(NamedTuple):
    """A caller, and how it came in."""

    principal: Principal
    by: By
    csrf: str | None = None
    """What changes have to carry, where the browser sends the credentials by itself."""
    expires_ms: int | None = None


class OpenedSession(NamedTuple):
    """A new session, and its cookie."""

    cookie: str
    admitted: Admitted


def make_signer(settings: Settings, chance: Callable[[int], bytes] = os.urandom) -> Signer:
    """What signs for this installation. `chance` gives random bytes."""
    known = [*settings.api.secrets_keys, *settings.api.keys]
    found = [sha256(b"dispatcher sessions " + key.get_secret_value().encode()).digest() for key in known]
    return Signer(found or [chance(32)])


class Sessions:
    """Opens and reads sessions."""

    def __init__(
        self, settings: Settings, access: Access, signer: Signer, *, wall: Callable[[], float] = time.time
    ) -> None:
        """`wall` gives Unix seconds."""
        self._access = access
        self._signer = signer
        self._wall = wall
        self._operators = frozenset(settings.console.trusted_operators)
        self.enabled = settings.console.enabled
        self.header = settings.console.trusted_header
        self.name = f"dispatcher_{signer.name}"
        """Of the cookie: two installations that are called by one host name leave each other's alone."""

    def open(self, key: str, source: str) -> OpenedSession:
        """A session of the holder of this key. Raises Unauthenticated, TooManyWrongKeys, Unavailable."""
        holder = self._access.holder(key.strip(), source)
        expires = str(int(self._wall()) + LIFETIME)
        nonce = secrets.token_urlsafe(16)
        signature = self._signer.sign("session", holder.mark, expires, nonce, holder.digest)
        cookie = f"{holder.mark}.{expires}.{nonce}.{signature}"
        return OpenedSession(cookie, self._admitted(holder.principal, cookie, expires))

    def read(self, cookie: str) -> Admitted | None:
        """Whose session it is; None for one that has ended, or is none. Raises Unavailable."""
        match = _COOKIE.fullmatch(cookie)
        if match is None or int(match[2]) <= self._wall():
            return None
        mark, expires, nonce, signature = match.groups()
        holder = self._access.marked(mark)
        if holder is None or not self._signer.verifies(
            signature, "session", mark, expires, nonce, holder.digest
        ):
            return None
        return self._admitted(holder.principal, cookie, expires)

    def _admitted(self, principal: Principal, cookie: str, expires: str) -> Admitted:
        return Admitted(principal, "cookie", self._signer.sign("csrf", cookie), int(expires) * 1000)

    def person(self, name: str) -> Admitted | None:
        """The operator whom a trusted proxy names; None for what is no name."""
        if not 0 < len(name) <= _MAX_PERSON or not name.isprintable():
            return None
        full = name in self._operators or "*" in self._operators
        principal = Principal(f"proxy:{name}", name, "operator", None, ALL_CAPABILITIES if full else _SEES)
        return Admitted(principal, "proxy", self._signer.sign("csrf of a person", name))
