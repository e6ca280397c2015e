"""/console and /portal: the application that people look at, from files of the package alone (`dispatcher/web`).

Every path below them answers with the same shell, so that a link and a reload lead to where they were. The shell names its parts
by relative addresses, and a `<base>` put in here leads them to the right place however deep the path is: the pages work below any
prefix that a proxy puts before them, and the server need not know it.

The policy holds the browser to this server: no script, style or request to another one, nothing inline, and no text becomes markup
(Trusted Types). Only `portal.frame_ancestors` may embed the portal, and nobody the console.

What is uploaded for portals (`/portal/images`) is served as an image and nothing else: an SVG that is opened by itself stands in a
sandbox without scripts.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final, NamedTuple

from aiohttp import web

from dispatcher.api.problems import Kind, Problem
from dispatcher.control.errors import NotFound
from dispatcher.control.portal import PortalSessions

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    "base-uri 'self'; form-action 'none'; frame-ancestors {ancestors}; require-trusted-types-for 'script'; trusted-types 'none'"
)
_IMAGE_POLICY: Final = "default-src 'none'; sandbox"
_HASHED: Final = re.compile(r"-[A-Za-z0-9_-]{8,}\.[a-z0-9]+$")
_FOR_EVER: Final = "public, max-age=31536000, immutable"
_TYPES: Final = {
    "js": "text/javascript",
    "css": "text/css",
    "svg": "image/svg+xml",
    "png": "image/png",
    "ico": "image/x-icon",
    "woff2": "font/woff2",
    "json": "application/json",
    "txt": "text/plain",
}
_TEXT: Final = frozenset({"text/javascript", "text/css", "image/svg+xml", "application/json", "text/plain"})
_HEAD: Final = b"<head>"
_WORTH: Final = 1024  # bytes that are worth compressing
_MISSING: Final = "the pages are not in this package: install a released wheel or the image, or build them in a checkout with `make web`"


class _PageAsset(NamedTuple):
    body: bytes
    compressed: bytes | None
    content_type: str
    etag: str
    for_ever: bool


class PageFiles:
    """The shell and its parts, read when first asked for."""

    def __init__(self, folder: Traversable | None = None) -> None:
        """`folder` is where the application was built to."""
        self._folder = files("dispatcher").joinpath("web") if folder is None else folder
        self._shell: tuple[bytes, bytes] | None = None  # before and after the place of <base>
        self._assets: Mapping[str, _PageAsset] | None = None

    def page(self, request: web.Request, name: str, ancestors: str = "'none'") -> web.Response:
        """/<name> and all below: the shell. `ancestors` may embed it."""
        if self._shell is None:
            self._shell = self._read_shell()
        before, after = self._shell
        body = before + f'<base href="{base_of(request.rel_url.raw_path, name)}">'.encode() + after
        etag = sha256(body).hexdigest()[:32]
        response = (
            web.Response(status=304)
            if _known(request, etag)
            else web.Response(body=body, content_type="text/html", charset="utf-8")
        )
        response.etag = etag
        headers = response.headers
        headers["Cache-Control"] = "no-cache"
        headers["Content-Security-Policy"] = _POLICY.format(ancestors=ancestors)
        headers["Cross-Origin-Opener-Policy"] = "same-origin"
        embedded = ancestors != "'none'"
        headers["Cross-Origin-Resource-Policy"] = "cross-origin" if embedded else "same-origin"
        if not embedded:
            headers["X-Frame-Options"] = "DENY"
        return _careful(response)

    def _read_shell(self) -> tuple[bytes, bytes]:
        try:
            html = self._folder.joinpath("index.html").read_bytes()
        except (OSError, NotADirectoryError):
            raise Problem(Kind.NOT_FOUND, _MISSING) from None
        before, head, after = html.partition(_HEAD)
        if not head:
            raise Problem(Kind.NOT_FOUND, _MISSING)
        return before + head, after

    def asset(self, request: web.Request) -> web.Response:
        """/console/assets/{name} and /portal/assets/{name}."""
        if self._assets is None:
            self._assets = _read_assets(self._folder.joinpath("assets"))
        asset = self._assets.get(request.match_info["name"])
        if asset is None:
            raise web.HTTPNotFound
        compressed = asset.compressed if _takes_gzip(request) else None
        etag = asset.etag if compressed is None else f"{asset.etag}-gz"
        if _known(request, etag):
            response = web.Response(status=304)
        else:
            charset = "utf-8" if asset.content_type.startswith("text/") else None
            response = web.Response(
                body=compressed or asset.body, content_type=asset.content_type, charset=charset
            )
            if compressed is not None:
                response.headers["Content-Encoding"] = "gzip"
        response.etag = etag
        response.headers["Cache-Control"] = _FOR_EVER if asset.for_ever else "no-cache"
        if asset.compressed is not None:
            response.headers["Vary"] = "Accept-Encoding"
        response.headers["Content-Security-Policy"] = _IMAGE_POLICY
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return _careful(response)


class Pages(PageFiles):
    """The console and the portal, with what was uploaded for portals."""

    def __init__(self, portal: PortalSessions, frame_ancestors: Sequence[str]) -> None:
        """`frame_ancestors` may embed the portal."""
        super().__init__()
        self._portal = portal
        self._ancestors = " ".join(frame_ancestors) or "'none'"

    def console(self, request: web.Request) -> web.Response:
        """/console and all below."""
        return self.page(request, "console")

    def portal(self, request: web.Request) -> web.Response:
        """/portal and all below."""
        return self.page(request, "portal", self._ancestors)

    def image(self, request: web.Request) -> web.Response:
        """/portal/images/{name}."""
        try:
            image = self._portal.image(request.match_info["name"])
        except NotFound:
            raise web.HTTPNotFound from None
        if _known(request, image.id):
            response = web.Response(status=304)
        else:
            response = web.Response(body=image.data, content_type=image.media_type)
        response.etag = image.id
        response.headers["Cache-Control"] = _FOR_EVER
        response.headers["Content-Security-Policy"] = _IMAGE_POLICY
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return _careful(response)


def base_of(path: str, name: str) -> str:
    """From a path as it was sent, the relative address of the application's root: where its own addresses begin."""
    _, slash, rest = path.partition(f"/{name}/")
    if not slash:
        return f"{name}/"
    return "../" * rest.count("/") or "./"


def _read_assets(folder: Traversable) -> Mapping[str, _PageAsset]:
    found = {}
    for file in folder.iterdir() if folder.is_dir() else ():
        content_type = _TYPES.get(file.name.rpartition(".")[2])
        if content_type is None:
            continue
        body = file.read_bytes()
        compressed = None
        if content_type in _TEXT and len(body) >= _WORTH:
            compressed = gzip.compress(body, 9, mtime=0)
        found[file.name] = _PageAsset(
            body,
            compressed,
            content_type,
            sha256(body).hexdigest()[:32],
            _HASHED.search(file.name) is not None,
        )
    return found


def _takes_gzip(request: web.Request) -> bool:
    for part in request.headers.get("Accept-Encoding", "").split(","):
        coding, _, weight = part.partition(";")
        if coding.strip().lower() == "gzip":
            return not re.fullmatch(r"\s*q=0(\.0*)?\s*", weight)
    return False


def _known(request: web.Request, etag: str) -> bool:
    return any(tag.value in (etag, "*") for tag in request.if_none_match or ())


def _careful(response: web.Response) -> web.Response:
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response
