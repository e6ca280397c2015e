"""Portal sessions: a tenant's own people, let in by the operator for some hours, and the images that their portal shows.

Rules:

1. A session is a record of `dispatcher.subscriptions`, so every replica knows of its revocation within a second.
2. Sessions and images are bounded in number. A session that has ended is deleted by whichever replica sees it first.
3. A token is never stored. It can be made only by whoever has the settings' secrets and the record.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from hashlib import sha256
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import structlog

from dispatcher.control.access import Principal, Unauthenticated
from dispatcher.control.errors import Invalid, NotFound, Overloaded, Unavailable, VersionMismatch
from dispatcher.control.table import Row
from dispatcher.core.control.keys import Capability
from dispatcher.core.control.portal import (
    MAX_IMAGE,
    PREFIX,
    PortalImage,
    PortalSession,
    is_token_of,
    make_token,
    media_type,
    read_token,
)
from dispatcher.core.control.signer import Signer
from dispatcher.core.event.decode import valid_tenant
from dispatcher.core.flaws import Flaw

log = structlog.get_logger(__name__)
T = TypeVar("T")

TOKEN_LIFETIME: Final = 15 * 60
"""Seconds."""
MAX_LIFETIME: Final = 24 * 3600.0
MAX_SESSIONS: Final = 10_000
MAX_OF_TENANT: Final = 500
MAX_IMAGES: Final = 100
_SWEEP: Final = 60.0  # seconds between two looks at what has ended
_AT_ONCE: Final = 50  # deletions under way
_ENDED: Final = "this portal session has ended or was revoked: open the portal anew from where you came"


class PortalTable(Protocol[T]):
    """A table of the store."""

    def get(self, name: str) -> Row[T] | None: ...
    def names(self) -> Sequence[str]: ...
    async def put(self, name: str, value: T, *, base: int) -> Row[T]: ...
    async def delete(self, name: str, *, base: int) -> None: ...


class PortalAccess(NamedTuple):
    """A session and a token of it."""

    session: PortalSession
    token: str
    token_expires_ms: int


class PortalSessions:
    """Makes, finds, renews and revokes them."""

    def __init__(
        self,
        sessions: PortalTable[PortalSession],
        images: PortalTable[PortalImage],
        loaded: Callable[[], bool],
        signer: Signer,
        *,
        enabled: bool = True,
        wall: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`loaded` says whether all records are there; `wall` gives Unix seconds, `chance` a number in [0, 1)."""
        self._sessions = sessions
        self._images = images
        self._loaded = loaded
        self._signer = signer
        self._enabled = enabled
        self._wall = wall
        self._chance = chance

    def _ready(self) -> None:
        if not self._loaded():
            raise Unavailable("the portal sessions are still being read: try again soon")

    def _now_ms(self) -> int:
        return round(self._wall() * 1000)

    # Sessions.

    async def create(
        self,
        tenant: str,
        lifetime: float,
        capabilities: Collection[Capability],
        page: dict[str, Any],
        *,
        user: str | None,
        by: Principal,
    ) -> PortalAccess:
        """A new session and its first token. Raises Invalid, Overloaded, Unavailable. `lifetime` in seconds."""
        flaws = []
        if not valid_tenant(tenant):
            flaws.append(Flaw(("tenant",), "must be 1 to 256 printable characters, and no *"))
        if not self._enabled:
            flaws.append(Flaw((), "portal.enabled is false: nobody could open it"))
        for name in ("logo", "favicon"):
            image = page.get("branding", {}).get(name)
            if image is not None and self._images.get(image) is None:
                flaws.append(
                    Flaw(("branding", name), f"there is no image {image}: upload it to /v1/portal-images")
                )
        if flaws:
            raise Invalid(flaws)
        self._ready()
        live = self.list()
        if len(live) >= MAX_SESSIONS or sum(each.tenant == tenant for each in live) >= MAX_OF_TENANT:
            raise Overloaded(
                f"there are {MAX_SESSIONS} portal sessions, or {MAX_OF_TENANT} of this tenant: revoke some, or give them a"
                " shorter lifetime",
                60.0,
            )
        now = self._now_ms()
        id = secrets.token_hex(8)  # noqa: A001 - the field's name
        expires = now + round(min(lifetime, MAX_LIFETIME) * 1000)
        session = PortalSession(
            id, tenant, frozenset(capabilities), now, expires, by.id, user, secrets.token_urlsafe(24), page
        )
        row = await self._sessions.put(id, session, base=0)
        return self._token(row.value)

    def _token(self, session: PortalSession) -> PortalAccess:
        expires = min(int(self._wall()) + TOKEN_LIFETIME, session.expires_ms // 1000)
        return PortalAccess(session, make_token(session, expires, self._signer), expires * 1000)

    def list(self, tenant: str | None = None) -> list[PortalSession]:
        """Those that have not ended, oldest first. Raises Unavailable."""
        self._ready()
        now = self._now_ms()
        rows = (self._sessions.get(name) for name in self._sessions.names())
        found = [
            row.value
            for row in rows
            if row is not None and row.value.expires_ms > now and tenant in (None, row.value.tenant)
        ]
        return sorted(found, key=lambda session: (session.created_ms, session.id))

    def get(self, id: str) -> PortalSession:  # noqa: A002 - the field's name
        """One that has not ended. Raises NotFound, Unavailable."""
        self._ready()
        row = self._sessions.get(id)
        if row is None or row.value.expires_ms <= self._now_ms():
            raise NotFound(f"there is no portal session {id}")
        return row.value

    async def revoke(self, id: str) -> PortalSession:  # noqa: A002 - the field's name
        """End it: every replica refuses its tokens within a second. Raises NotFound, Unavailable."""
        session = self.get(id)
        await self._delete([id])
        return session

    async def revoke_all(self, tenant: str) -> int:
        """End all of the tenant; how many they were. Raises Unavailable."""
        found = [session.id for session in self.list(tenant)]
        await self._delete(found)
        return len(found)

    async def _delete(self, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), _AT_ONCE):
            await asyncio.gather(*(self._delete_one(id_) for id_ in ids[start : start + _AT_ONCE]))

    async def _delete_one(self, id: str) -> None:  # noqa: A002 - the field's name
        row = self._sessions.get(id)
        if row is not None:
            try:
                await self._sessions.delete(id, base=row.version)
            except VersionMismatch:
                # Nothing else is ever written of a session: another replica has deleted it.
                if self._sessions.get(id) is not None:
                    raise

    # Tokens.

    def principal(self, token: str) -> Principal | None:
        """The caller with this token; None for what is none of ours. Raises Unauthenticated for one that has ended, and Unavailable."""
        if not token.startswith(PREFIX):
            return None
        session = self._session_of(token)
        if session is None:
            return None
        name = session.user or f"portal session {session.id}"
        return Principal(f"portal:{session.id}", name, "tenant", session.tenant, session.capabilities)

    def _session_of(self, text: str) -> PortalSession | None:
        token = read_token(text)
        if token is None:
            return None
        self._ready()
        row = self._sessions.get(token.session)
        if row is None:
            # Of a session that is gone nothing tells whether the token was ever right. It opens nothing either way.
            raise Unauthenticated(_ENDED)
        if not is_token_of(token, row.value, self._signer):
            return None
        if not self._enabled or min(token.expires_ms, row.value.expires_ms) <= self._now_ms():
            raise Unauthenticated(_ENDED)
        return row.value

    def renew(self, session_id: str) -> PortalAccess:
        """Another token of the session that the caller has come by. Raises NotFound, Unavailable."""
        return self._token(self.get(session_id))

    # Images.

    async def add_image(self, data: bytes) -> PortalImage:
        """Keep an image. The same bytes again are the same image. Raises Invalid, Overloaded, Unavailable."""
        kind = media_type(data)
        if len(data) > MAX_IMAGE:
            raise Invalid([Flaw(("data",), f"has {len(data)} bytes; an image may have {MAX_IMAGE}")])
        if kind is None:
            raise Invalid([Flaw(("data",), "must be a PNG, JPEG, GIF, WebP, ICO or SVG image")])
        self._ready()
        id_ = sha256(data).hexdigest()[:32]
        known = self._images.get(id_)
        if known is not None:
            return known.value
        if len(self._images.names()) >= MAX_IMAGES:
            raise Overloaded(f"there are {MAX_IMAGES} images: delete some", 60.0)
        row = await self._images.put(id_, PortalImage(id_, kind, data, self._now_ms()), base=0)
        return row.value

    def images(self) -> Sequence[PortalImage]:
        """All images, oldest first. Raises Unavailable."""
        self._ready()
        rows = (self._images.get(name) for name in self._images.names())
        return sorted(
            (row.value for row in rows if row is not None), key=lambda image: (image.created_ms, image.id)
        )

    def image(self, id: str) -> PortalImage:  # noqa: A002 - the field's name
        """An image. Raises NotFound, Unavailable."""
        self._ready()
        row = self._images.get(id)
        if row is None:
            raise NotFound(f"there is no image {id}")
        return row.value

    async def remove_image(self, id: str) -> None:  # noqa: A002 - the field's name
        """Delete it; portals that show it go without. Raises NotFound, VersionMismatch, Unavailable."""
        self.image(id)
        row = self._images.get(id)
        if row is not None:
            await self._images.delete(id, base=row.version)

    # In the background.

    async def run(self) -> None:
        """Delete what has ended, until cancelled."""
        while True:
            # Not all replicas at the same time: one of them is enough.
            await asyncio.sleep(_SWEEP * (1 + self._chance()))
            await self.sweep()

    async def sweep(self) -> None:
        """Delete the records of sessions that have ended."""
        now = self._now_ms()
        rows = (self._sessions.get(name) for name in list(self._sessions.names()))
        ended = [row.name for row in rows if row is not None and row.value.expires_ms <= now]
        try:
            await self._delete(ended)
        except (Unavailable, VersionMismatch) as error:
            log.info("portal sessions that have ended can't be deleted yet", error=str(error))
