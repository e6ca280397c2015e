"""/docs: the OpenAPI document and the catalogue of event types as a page, from files of this package alone.

The renderer is Swagger UI (docs/dependencies.md says which version, and from where). The page fetches nothing from
other hosts, and the policy below holds the browser to that: no script, style or request but to this server, no inline
script, no frames.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from aiohttp import web

from dispatcher.api import openapi

_FOLDER: Final = Path(__file__).parent / "page"
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ASSETS: Final = {
    "page.css": (Path("page.css"), "text/css"),
    "page.js": (Path("page.js"), "text/javascript"),
    "swagger-ui.css": (Path("swagger-ui/swagger-ui.css"), "text/css"),
    "swagger-ui-bundle.js": (Path("swagger-ui/swagger-ui-bundle.js"), "text/javascript"),
}


class _Asset(NamedTuple):
    body: bytes
    content_type: str
    etag: str


class Docs:
    """The page and its parts, read when first asked for."""

    def __init__(self) -> None:
        self._read: dict[str, _Asset] = {}

    def page(self, request: web.Request) -> web.Response:
        """/docs."""
        return self._send(request, "index.html", Path("index.html"), "text/html")

    def asset(self, request: web.Request) -> web.Response:
        """/docs/{name}."""
        name = request.match_info["name"]
        if name not in _ASSETS:
            raise web.HTTPNotFound
        return self._send(request, name, *_ASSETS[name])

    def document(self, request: web.Request) -> web.Response:
        """/openapi.json."""
        if "openapi.json" not in self._read:
            self._read["openapi.json"] = _asset(openapi.document(), "application/json")
        return _sent(request, self._read["openapi.json"])

    def _send(self, request: web.Request, name: str, path: Path, content_type: str) -> web.Response:
        if name not in self._read:
            self._read[name] = _asset((_FOLDER / path).read_bytes(), content_type)
        return _sent(request, self._read[name])


def _asset(body: bytes, content_type: str) -> _Asset:
    return _Asset(body, content_type, sha256(body).hexdigest()[:32])


def _sent(request: web.Request, asset: _Asset) -> web.Response:
    known = request.if_none_match or ()
    if any(tag.value in (asset.etag, "*") for tag in known):
        response = web.Response(status=304)
    else:
        charset = None if asset.content_type == "application/json" else "utf-8"
        response = web.Response(body=asset.body, content_type=asset.content_type, charset=charset)
    response.etag = asset.etag
    response.headers["Cache-Control"] = "no-cache"
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response
