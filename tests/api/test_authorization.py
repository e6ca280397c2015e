"""Every route times every kind of key: who gets in, who doesn't, and what a tenant sees of others."""

from __future__ import annotations

from typing import Any, Final

import pytest

from dispatcher.api.route import Audience, Route
from dispatcher.api.table import ROUTES
from dispatcher.control.access import Principal
from tests.api.fakes import Plane
from tests.api.serving import KEY, Client, serving

OPERATOR: Final = Principal("test", "test", "operator")
NEW: Final = {"url": "https://a.example/", "event_types": ["*"]}

# What each route answers to: no key, a wrong key, an operator's, the tenant's own, another tenant's.
# The subscription of the address, `sub_acme`, is acme's; so is the first tenant's key.
MATRIX: Final[dict[str, tuple[int, int, int, int, int]]] = {
    "createSubscription": (401, 401, 201, 201, 201),
    "listSubscriptions": (401, 401, 200, 200, 200),
    "getSubscription": (401, 401, 200, 200, 404),
    "updateSubscription": (401, 401, 200, 200, 404),
    "deleteSubscription": (401, 401, 204, 204, 404),
    "pauseSubscription": (401, 401, 200, 200, 404),
    "resumeSubscription": (401, 401, 200, 200, 404),
    "enableSubscription": (401, 401, 200, 200, 404),
    "rotateSecret": (401, 401, 200, 200, 404),
    "pingSubscription": (401, 401, 200, 200, 404),
    "validateSubscription": (401, 401, 200, 200, 404),
    "getSubscriptionHealth": (401, 401, 200, 200, 404),
    "listEventTypes": (200, 200, 200, 200, 200),
    "getEventType": (200, 200, 200, 200, 200),
    "putEventType": (401, 401, 200, 403, 403),
    "deleteEventType": (401, 401, 204, 403, 403),
    "publishEvents": (401, 401, 202, 202, 202),
    "createKey": (401, 401, 201, 403, 403),
    "listKeys": (401, 401, 200, 403, 403),
    "revokeKey": (401, 401, 204, 403, 403),
    "getEgress": (401, 401, 200, 200, 200),
}
CALLERS: Final = ("nobody", "wrong", "operator", "acme", "globex")
BODIES: Final[dict[str, Any]] = {
    "createSubscription": NEW,
    "updateSubscription": {"payload": "thin"},
    "putEventType": {"description": "a"},
    "publishEvents": {"type": "a"},
    "createKey": {"name": "a", "scope": "operator"},
}


def test_every_route_has_its_line() -> None:
    assert MATRIX.keys() == {route.operation for route in ROUTES}
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES) == len(MATRIX)


async def keys(plane: Plane) -> dict[str, str | None]:
    """The keys of each caller."""
    _, operator = await plane.access.create("ops", "operator", None, by=OPERATOR)
    _, acme = await plane.access.create("acme", "tenant", "acme", by=OPERATOR)
    _, globex = await plane.access.create("globex", "tenant", "globex", by=OPERATOR)
    return {
        "nobody": None,
        "wrong": operator[:-4] + "AAAA",
        "operator": operator,
        "acme": acme,
        "globex": globex,
    }


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.operation)
async def test_each_gets_in_where_it_may_and_changes_nothing_where_not(route: Route, caller: str) -> None:
    async with serving(KEY) as (call, plane):
        key = (await keys(plane))[caller]
        plane.subscriptions.add("sub_acme", "acme")
        await plane.catalogue.put("invoice.paid", {})
        before = _state(plane)
        some_key = min(plane.keys.rows)
        id_ = some_key if route.tag == "keys" else "sub_acme"
        path = route.path.replace("{id}", id_).replace("{name}", "invoice.paid")
        answer = await call.using(key)(route.method, path, BODIES.get(route.operation))
        expected = MATRIX[route.operation][CALLERS.index(caller)]
        assert answer.status == expected, answer
        if expected >= 400:
            assert _state(plane) == before
            assert answer.headers["Content-Type"] == "application/problem+json"


def _state(plane: Plane) -> Any:
    return (
        dict(plane.subscriptions.views),
        dict(plane.catalogue.views),
        dict(plane.keys.rows),
        list(plane.publisher.published),
        [name for name, _ in plane.subscriptions.calls if name != "list"],
    )


async def test_what_is_anothers_and_what_is_not_there_look_the_same() -> None:
    async with serving(KEY) as (call, plane):
        acme = call.using((await keys(plane))["globex"])
        plane.subscriptions.add("sub_acme", "acme")
        for route in ROUTES:
            if "{id}" in route.path and route.tag == "subscriptions":
                body = BODIES.get(route.operation)
                theirs = await acme(route.method, route.path.replace("{id}", "sub_acme"), body)
                nobodys = await acme(route.method, route.path.replace("{id}", "sub_none"), body)
                assert _without(theirs.json, "sub_acme") == _without(nobodys.json, "sub_none")


def _without(document: dict[str, Any], id_: str) -> dict[str, Any]:
    return {**document, "detail": document["detail"].replace(id_, "..."), "request_id": ""}


async def test_a_tenant_lists_makes_and_publishes_only_its_own() -> None:
    async with serving(KEY) as (call, plane):
        acme: Client = call.using((await keys(plane))["acme"])
        for number, tenant in enumerate(("acme", "globex", None, "acme")):
            plane.subscriptions.add(f"sub_{number}", tenant)
        listed = (await acme("GET", "/v1/subscriptions")).json["subscriptions"]
        assert [each["id"] for each in listed] == ["sub_0", "sub_3"]
        made = await acme("POST", "/v1/subscriptions", NEW)
        assert made.json["subscription"]["tenant"] == "acme"
        await acme("POST", "/v1/events", {"type": "a"})
        assert plane.publisher.published == [({"type": "a"}, "acme")]


def test_nothing_but_the_catalogue_is_public() -> None:
    public = {route.operation for route in ROUTES if route.allowed is Audience.PUBLIC}
    assert public == {"listEventTypes", "getEventType"}
