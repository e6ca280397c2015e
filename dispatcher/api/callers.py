"""Who sent a request, and may they: the one place where a caller is let in, whatever it comes with.

A caller shows a key or a portal session's token (`Authorization`), comes by a proxy that names it (`console.trusted_header`), or has
a session's cookie. They are looked at in this order, and the first one that is there decides: a page that sends a token is never
served as the operator whose cookie the browser has added.

A browser is the one client that lets strangers write requests. Keys and tokens it sends only where a page of ours adds them. Cookies
and what a proxy adds come along with every request. So for these two the request has to come from a page of ours, and a change has
to show the session's CSRF value.

While the API is open (no keys, loopback only) nobody shows anything: a page on the web could post to 127.0.0.1, or rebind its own
name to it. So a request then has to be addressed to this machine by a loopback name (`Host`), and where it has an `Origin`, that has
to be a page of ours.
"""

from __future__ import annotations

import hmac
from typing import Final

import structlog
from aiohttp import web

from dispatcher.api.admission import CALLER, GUARD, REQUEST_ID
from dispatcher.api.problems import Kind, Problem, retry_after
from dispatcher.api.route import Audience
from dispatcher.api.site import (
    CSRF_HEADER,
    SAFE_METHODS,
    cookie_of,
    refuse_foreign,
    refuse_other_sites,
    site_of,
)
from dispatcher.control.access import Access, Principal, TooManyWrongKeys, Unauthenticated
from dispatcher.control.sessions import Admitted, Sessions
from dispatcher.core.control.keys import ALL_CAPABILITIES, CAPABILITIES, Capability

log = structlog.get_logger(__name__)

_PORTAL: Final = "portal:"


class Callers:
    """Lets callers in."""

    def __init__(self, access: Access, sessions: Sessions) -> None:
        self._access = access
        self._sessions = sessions

    def admit(
        self, allowed: Audience, request: web.Request, needs: Capability | None = None
    ) -> Admitted | None:
        """The caller, if it may call; None where none is needed and nothing was shown. Raises Problem, Unavailable."""
        if self._access.confined:
            refuse_foreign(request)
        if allowed is Audience.PUBLIC:
            return None
        try:
            admitted = self._who(request, required=allowed is not Audience.ANYBODY)
        except (Unauthenticated, TooManyWrongKeys) as error:
            raise refused(error, request, shown="Authorization" in request.headers) from error
        if admitted is None:
            return None
        principal = admitted.principal
        request.app[GUARD].count_key(f"{principal.id} {principal.name}")
        _check(principal, allowed, needs, request.method)
        return admitted

    def _who(self, request: web.Request, *, required: bool) -> Admitted | None:
        authorization = request.headers.getall("Authorization", [])
        if len(authorization) > 1:
            raise Problem(Kind.MALFORMED, "there is more than one Authorization header")
        if authorization:
            principal = self._access.authenticate(authorization[0], request[CALLER])
            return Admitted(principal, "portal" if principal.id.startswith(_PORTAL) else "key")
        admitted = self._of_browser(request)
        if admitted is not None:
            self._check_page(request, admitted)
            return admitted
        if not required and not self._access.is_open():
            return None
        return Admitted(self._access.authenticate(None, request[CALLER]), "open")

    def _of_browser(self, request: web.Request) -> Admitted | None:
        """Whom the proxy names, or whose session the cookie is."""
        sessions, proxies = self._sessions, request.app[GUARD].proxies
        if not sessions.enabled:
            return None
        if sessions.header is not None and request.remote in proxies:
            names = request.headers.getall(sessions.header, [])
            if len(names) > 1:
                raise Problem(
                    Kind.MALFORMED,
                    f"there is more than one {sessions.header} header: the proxy has to replace what comes from outside",
                )
            if names:
                person = sessions.person(names[0].strip())
                if person is None:
                    raise Problem(Kind.MALFORMED, f"{sessions.header} is no name")
                return person
        cookie = cookie_of(request, sessions.name, site_of(request, proxies))
        return None if cookie is None else sessions.read(cookie)

    def _check_page(self, request: web.Request, admitted: Admitted) -> None:
        refuse_other_sites(request, request.app[GUARD].proxies)
        if request.method in SAFE_METHODS:
            return
        given = request.headers.get(CSRF_HEADER, "").encode(errors="replace")
        if admitted.csrf is None or not hmac.compare_digest(given, admitted.csrf.encode()):
            raise Problem(
                Kind.FOREIGN_ORIGIN,
                f"a change by a cookie or a proxy's header has to carry {CSRF_HEADER}, with `csrf` of GET /v1/session",
            )


def refused(error: Unauthenticated | TooManyWrongKeys, request: web.Request, *, shown: bool) -> Problem:
    """The problem of a caller that is not let in. A wrong key that it has `shown` is logged, without the key."""
    if isinstance(error, TooManyWrongKeys):
        return Problem(Kind.TOO_MANY_WRONG_KEYS, str(error), headers=retry_after(error.retry_after))
    if shown:
        log.warning(
            "a request with a wrong key was refused",
            remote=request[CALLER],
            request_id=request[REQUEST_ID],
        )
    return Problem(
        Kind.UNAUTHENTICATED, str(error), headers={"WWW-Authenticate": 'Bearer realm="dispatcher"'}
    )


def _check(principal: Principal, allowed: Audience, needs: Capability | None, method: str) -> None:
    """Raise Problem unless the caller may do that."""
    if allowed is Audience.OPERATOR:
        if principal.scope != "operator":
            raise Problem(Kind.FORBIDDEN, "this takes an operator's key; this one is a tenant's")
        if method in SAFE_METHODS:
            needs = "read"
        elif principal.capabilities != ALL_CAPABILITIES:
            raise Problem(
                Kind.FORBIDDEN,
                f"this takes an operator who may do everything; this one may {_may(principal)}",
            )
    if needs is not None and needs not in principal.capabilities:
        raise Problem(
            Kind.FORBIDDEN,
            f"this takes a key with the capability {needs}; this one has {_may(principal)}: ask an operator for another key",
        )


def _may(principal: Principal) -> str:
    return ", ".join(name for name in CAPABILITIES if name in principal.capabilities) or "none"
