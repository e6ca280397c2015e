"""The address that a browser knows this server by, and whether a request comes from a page of ours. Reads headers, keeps nothing.

Behind a reverse proxy the browser speaks to the proxy: scheme and host are what the proxy says they are, where it is a trusted one
(`http.trusted_proxies`). From anybody else `X-Forwarded-Proto` and `X-Forwarded-Host` are not looked at.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from aiohttp import web

from dispatcher.api.limits import TrustedProxies
from dispatcher.api.problems import Kind, Problem

CSRF_HEADER: Final = "X-Dispatcher-Csrf"
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_SECURE: Final = "__Host-"
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


class Site(NamedTuple):
    """The scheme and host that the browser sees; the scheme is None where nobody says it."""

    scheme: str | None
    host: str

    @property
    def base(self) -> str:
        """The beginning of an address."""
        return f"{self.scheme or 'http'}://{self.host}"


def site_of(request: web.Request, proxies: TrustedProxies) -> Site:
    """The site that the request is addressed to."""
    headers = request.headers
    host, scheme = headers.get("Host", ""), None
    if request.remote in proxies:
        host = _last(headers.get("X-Forwarded-Host", "")) or host
        scheme = _last(headers.get("X-Forwarded-Proto", "")).lower() or None
    if scheme not in ("http", "https"):
        # A browser says it with each change. A page can't choose what stands in Origin.
        origin = urlsplit(headers.get("Origin", ""))
        scheme = origin.scheme if origin.netloc == host and origin.scheme in ("http", "https") else None
    return Site(scheme, host if _HOST.fullmatch(host) else "localhost")


def _last(value: str) -> str:
    return value.rpartition(",")[2].strip()


def refuse_other_sites(request: web.Request, proxies: TrustedProxies) -> None:
    """Raise Problem unless a page of ours has made the request: for credentials that a browser sends by itself.

    Every browser says where a change comes from. What says nothing is no browser with a page of ours, and sends a key instead.
    """
    safe = request.method in SAFE_METHODS
    said = request.headers.get("Sec-Fetch-Site")
    if said is not None:
        ours = said == "same-origin" or (safe and said == "none")
    elif "Origin" in request.headers:
        origin = urlsplit(request.headers["Origin"])
        ours = bool(origin.netloc) and origin.netloc == site_of(request, proxies).host
    else:
        ours = safe
    if not ours:
        raise Problem(Kind.FOREIGN_ORIGIN, "the request was not made by a page of this server")


def refuse_foreign(request: web.Request) -> None:
    """Raise Problem unless the request is addressed to this machine, and doesn't come from another site's page."""
    host = request.headers.get("Host", "")
    if not _is_loopback(urlsplit(f"//{host}").hostname if _plain(host) else None):
        raise Problem(
            Kind.FOREIGN_ORIGIN,
            "the API is open because it has no keys, and so answers only to localhost or a loopback address in "
            "`Host`; make a key (api.keys, or `dispatcher keys create`) to reach it by another name",
        )
    origin = request.headers.get("Origin")
    if origin is not None and origin != f"http://{host}":
        raise Problem(
            Kind.FOREIGN_ORIGIN,
            "the API is open because it has no keys, and so takes nothing from pages of other sites",
        )
    # To follow a link to a page of ours is harmless; everything else that another site's page asks for is not.
    link = request.method in ("GET", "HEAD") and request.headers.get("Sec-Fetch-Mode") == "navigate"
    if not link and request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        raise Problem(Kind.FOREIGN_ORIGIN, "the request was made by a page of another site")


def _plain(host: str) -> bool:
    return bool(re.fullmatch(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?", host))


def _is_loopback(name: str | None) -> bool:
    if name is None:
        return False
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


# Cookies.


def cookie_of(request: web.Request, name: str, site: Site) -> str | None:
    """The value of our cookie. Over https only the one that is bound to it counts: anybody on the network can plant the other."""
    secure = request.cookies.get(_SECURE + name)
    return secure if secure is not None or site.scheme == "https" else request.cookies.get(name)


def set_cookie(name: str, value: str, lifetime: int, site: Site) -> str:
    """The header that has a browser keep the cookie for `lifetime` seconds; 0 deletes it."""
    secure = site.scheme == "https"
    bound = (
        f"{_SECURE if secure else ''}{name}={value}; Path=/; Max-Age={lifetime}; HttpOnly; SameSite=Strict"
    )
    return f"{bound}; Secure" if secure else bound
