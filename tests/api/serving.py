"""The HTTP side over real HTTP, with the control plane in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
from yarl import URL

from dispatcher.api.limits import ApiLimits
from dispatcher.api.route import Route
from dispatcher.api.server import ApiServer
from dispatcher.settings.groups import ApiSettings, Settings
from dispatcher.telemetry.metrics import Metrics
from tests.api.fakes import REPLAY, Plane

URN = "urn:webhook-dispatcher:problem:"
NEW = {"url": "https://a.example/", "event_types": ["*"]}
KEY = "settings-key-" + "k" * 32
OURS = {"Sec-Fetch-Site": "same-origin"}


class Answer(NamedTuple):
    """One answer, read whole."""

    status: int
    headers: Mapping[str, str]
    json: Any
    body: bytes


class Client:
    """Calls the API; with a key unless that is None."""

    def __init__(self, base: str, session: aiohttp.ClientSession, key: str | None) -> None:
        self.base = base
        self.session = session
        self.key = key

    def using(self, key: str | None) -> Client:
        return Client(self.base, self.session, key)

    async def __call__(self, method: str, path: str, json: Any = None, **more: Any) -> Answer:
        headers = dict(more.pop("headers", {}))
        if self.key is not None:
            headers.setdefault("Authorization", f"Bearer {self.key}")
        url = URL(self.base + path, encoded=True)
        async with self.session.request(method, url, json=json, headers=headers, **more) as response:
            body = await response.read()
            one = "json" in response.content_type and "ndjson" not in response.content_type
            parsed = await response.json(content_type=None) if one and body else None
            return Answer(response.status, response.headers, parsed, body)


async def key_of(call: Client, tenant: str, *capabilities: str) -> Client:
    """A client with a new key of the tenant."""
    wanted: dict[str, Any] = {"name": tenant, "scope": "tenant", "tenant": tenant}
    if capabilities:
        wanted["capabilities"] = capabilities
    made = await call("POST", "/v1/keys", wanted)
    assert made.status == 201, made.body
    return call.using(made.json["secret"])


@asynccontextmanager
async def serving(
    *keys: str,
    problems: Sequence[str] = (),
    plane: Plane | None = None,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[tuple[Client, Plane]]:
    """A server on a port of its own, a client with the first key, and what is behind it."""
    api = ApiSettings.model_validate({"keys": keys})
    made = Settings.model_validate({"api": api, **(settings or {})})
    plane = plane or Plane(made)
    options.setdefault("limits", ApiLimits(trusted_proxies=made.http.trusted_proxies))
    server = ApiServer("127.0.0.1", 0, Metrics().registry, lambda: problems, plane.services, **options)
    port = await server.start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Client(f"http://127.0.0.1:{port}", session, keys[0] if keys else None), plane
    finally:
        await server.stop()


async def login(call: Client, key: str = KEY) -> tuple[dict[str, str], Answer]:
    """The headers of a page that has logged in: a browser's, and the page's own."""
    answer = await call.using(None)("POST", "/v1/session", {"key": key}, headers=OURS)
    assert answer.status == 201, answer
    cookie = answer.headers["Set-Cookie"].partition(";")[0]
    call.session.cookie_jar.clear()
    return {"Cookie": cookie, **OURS}, answer


def address(route: Route) -> str:
    """An address of the route that leads to something."""
    ids = {
        "keys": "0123456789abcdef",
        "deliveries": "dlv_" + "0" * 24,
        "dead letters": "0-1",
        "issues": "sub_1:timeout",
        "portal": "0" * 16,
        "replays": REPLAY,
    }
    id_ = ids.get(route.tag, "sub_1")
    return route.path.replace("{id}", id_).replace("{name}", "invoice.paid").replace("{tenant}", "acme")


def problem(answer: Answer, status: int, kind: str) -> dict[str, Any]:
    """The problem document, which has to have its form."""
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json"), answer
    document: dict[str, Any] = answer.json
    assert document["type"] == URN + kind
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert document["request_id"] == answer.headers["X-Request-Id"]
    return document


def last(plane: Plane) -> Any:
    """What the control plane was asked last."""
    return plane.subscriptions.calls[-1]


def fields(document: dict[str, Any]) -> list[str]:
    return [error["field"] for error in document["errors"]]
