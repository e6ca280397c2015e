"""Every route times every kind of key, on the real control plane: who gets in, who doesn't, and what a tenant sees of others."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from dispatcher.api.route import Audience, Route
from dispatcher.api.table import ROUTES
from dispatcher.broker.base import Message
from dispatcher.core.control.keys import CAPABILITIES, Capability
from dispatcher.core.text.times import rfc3339
from dispatcher.history.base import LogPartition
from tests.api.real import InThread
from tests.api.serving import KEY, Client
from tests.e2e.daemon import Endpoint
from tests.history.records import attempt, batch, event

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
    "disableSubscription": (401, 401, 200, 403, 403),
    "rotateSecret": (401, 401, 200, 200, 404),
    "pingSubscription": (401, 401, 200, 200, 404),
    "testSubscription": (401, 401, 200, 200, 404),
    "validateSubscription": (401, 401, 200, 200, 404),
    "getSubscriptionHealth": (401, 401, 200, 200, 404),
    "listEventTypes": (200, 200, 200, 200, 200),
    "getEventType": (200, 200, 200, 200, 200),
    "putEventType": (401, 401, 200, 403, 403),
    "deleteEventType": (401, 401, 204, 403, 403),
    "publishEvents": (401, 401, 202, 202, 202),
    "listEvents": (401, 401, 200, 200, 200),
    "getEvent": (401, 401, 200, 200, 404),
    "getEventPayload": (401, 401, 200, 200, 404),
    "explainEvent": (401, 401, 200, 200, 404),
    "getStatistics": (401, 401, 200, 200, 200),
    "listIssues": (401, 401, 200, 200, 200),
    "acknowledgeIssue": (401, 401, 200, 200, 404),
    "ignoreIssue": (401, 401, 200, 200, 404),
    "reopenIssue": (401, 401, 200, 200, 404),
    "listFailing": (401, 401, 200, 200, 200),
    "getCluster": (401, 401, 200, 403, 403),
    "listDeliveries": (401, 401, 200, 200, 200),
    "getDelivery": (401, 401, 200, 200, 404),
    "startReplay": (401, 401, 201, 201, 201),
    "listReplays": (401, 401, 200, 200, 200),
    "getReplay": (401, 401, 200, 200, 404),
    "pauseReplay": (401, 401, 200, 200, 404),
    "resumeReplay": (401, 401, 200, 200, 404),
    "cancelReplay": (401, 401, 200, 200, 404),
    "retryDelivery": (401, 401, 202, 202, 404),
    "cancelDelivery": (401, 401, 409, 409, 404),
    "deliverEvent": (401, 401, 202, 202, 404),
    "purgeSubscription": (401, 401, 202, 202, 404),
    "listDeadLetters": (401, 401, 200, 403, 403),
    "retryDeadLetter": (401, 401, 404, 403, 403),
    "createKey": (401, 401, 201, 403, 403),
    "listKeys": (401, 401, 200, 403, 403),
    "revokeKey": (401, 401, 204, 403, 403),
    "getQuotas": (401, 401, 200, 200, 404),
    "putQuotas": (401, 401, 200, 403, 403),
    "getEgress": (401, 401, 200, 200, 200),
    "getSession": (200, 401, 200, 200, 200),
    # Of pages: tests/api/test_sessions.py. Whoever sends a key needs no session.
    "logIn": (403, 403, 403, 403, 403),
    "logOut": (403, 403, 403, 403, 403),
    "createPortalSession": (401, 401, 201, 403, 403),
    "listPortalSessions": (401, 401, 200, 403, 403),
    "revokePortalSessions": (401, 401, 200, 403, 403),
    "renewPortalSession": (401, 401, 403, 403, 403),
    "revokePortalSession": (401, 401, 204, 403, 403),
    "createPortalImage": (401, 401, 201, 403, 403),
    "listPortalImages": (401, 401, 200, 403, 403),
    "deletePortalImage": (401, 401, 204, 403, 403),
    "listChanges": (401, 401, 200, 200, 404),
    "followStream": (401, 401, 200, 200, 200),
}
CALLERS: Final = ("nobody", "wrong", "operator", "acme", "globex")
BODIES: Final[dict[str, Any]] = {
    "createSubscription": {"url": "http://127.0.0.1:80/", "event_types": ["*"]},
    "updateSubscription": {"payload": "thin"},
    "disableSubscription": {"reason": "it floods"},
    "testSubscription": {"event_type": "invoice.paid"},
    "putEventType": {"description": "a"},
    "publishEvents": {"type": "a"},
    "deliverEvent": {"subscription": "sub_acme"},
    "createKey": {"name": "a", "scope": "operator"},
    "logIn": {"key": KEY},
    "createPortalSession": {"tenant": "acme"},
    "createPortalImage": {"data": b64encode(b"GIF89a").decode()},
    "putQuotas": {"subscriptions": 5000},
    "startReplay": {"source": "dead_letters"},
    "ignoreIssue": {"until": rfc3339((time.time() + 86_400) * 1000)},
}
# What a request has to have besides.
QUERIES: Final = {"revokePortalSessions": "?tenant=acme", "listChanges": "?subject=sub_acme"}
# What the history knows: of acme an event by the id of the address, delivered; of globex another one. They are in the broker, too.
PUBLISHED: Final = [
    Message(
        "events",
        b'{"id": "%b", "type": "invoice.paid", "tenant": "%b"}' % (id_, tenant),
        partition=0,
    )
    for id_, tenant in ((b"sub_acme", b"acme"), (b"evt_globex", b"globex"))
]
SHA_256: Final = [hashlib.sha256(message.value or b"").hexdigest() for message in PUBLISHED]
_NOW: Final = int(time.time() * 1000)
_SEED: Final = LogPartition("seed", "", 0)
_RECORDS: Final = [
    attempt(0, 0, "sub_acme", tenant="acme", event_id="sub_acme", time_ms=_NOW),
    attempt(1, 1, "sub_globex", tenant="globex", event_id="evt_globex", time_ms=_NOW),
]
# What keeps another delivery of acme's from arriving: an issue.
_FAILED: Final = attempt(2, 2, "sub_acme", tenant="acme", decision="dead", status=503, time_ms=_NOW)
HISTORY: Final = [
    batch([*_RECORDS, _FAILED], None, 3, partition=_SEED),
    batch(
        [],
        None,
        2,
        partition=_SEED._replace(partition=1),
        events=[
            event(0, event_id="sub_acme", time_ms=_NOW, sha256=SHA_256[0]),
            event(1, event_id="evt_globex", tenant="globex", time_ms=_NOW, sha256=SHA_256[1]),
        ],
    ),
]
DELIVERY, OTHERS = [record.delivery_id for record in _RECORDS]


def test_every_route_has_its_line() -> None:
    assert MATRIX.keys() == {route.operation for route in ROUTES}
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES) == len(MATRIX)


def test_nothing_but_the_catalogue_and_a_session_is_public() -> None:
    public = {route.operation for route in ROUTES if route.allowed is Audience.PUBLIC}
    assert public == {"listEventTypes", "getEventType", "logIn", "logOut"}
    anybody = {route.operation for route in ROUTES if route.allowed is Audience.ANYBODY}
    assert anybody == {"getSession"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    made = InThread(tmp_path_factory.mktemp("dispatcher"), KEY, api={"wrong_keys_per_minute": 10_000})
    with capture_logs():
        made.start()
        made.produce(*PUBLISHED)
        made.remember(*HISTORY)
        yield made
        made.stop()


class World:
    """A running dispatcher with a subscription of acme's, an event type, and a key of each kind."""

    def __init__(
        self,
        daemon: InThread,
        operator: Client,
        keys: dict[str, str | None],
        spare: str,
        endpoint: Endpoint,
    ) -> None:
        self.daemon = daemon
        self.operator = operator
        self.keys = keys
        self.spare = spare  # the id of a key that nobody uses
        self.portal = self.image = ""  # of a portal session of acme's, and of an image
        self.endpoint = endpoint

    def caller(self, name: str) -> Client:
        return self.operator.using(self.keys[name])

    async def call(self, route: Route, caller: str, id_: str = "sub_acme") -> Any:
        if route.tag == "keys":
            id_ = self.spare
        if route.tag == "deliveries" and id_ == "sub_acme":
            id_ = DELIVERY
        if route.tag == "portal":
            id_ = self.image if "images" in route.path else self.portal
        if route.tag == "replays" and id_ == "sub_acme":
            id_ = self.daemon.replay("acme")
        if route.tag == "issues":
            id_ = f"{id_}:503"
        if route.tag == "dead letters":
            id_ = "0-0"
        path = route.path.replace("{id}", id_).replace("{name}", "invoice.paid").replace("{tenant}", "acme")
        path += QUERIES.get(route.operation, "")
        # A stream has no end that could be waited for: its head says who gets in.
        method = "HEAD" if route.operation == "followStream" else route.method
        answer = await self.caller(caller)(method, path, BODIES.get(route.operation))
        interventions = self.daemon._app._interventions
        async with asyncio.timeout(60):
            # What one route has commanded is over before the next one is asked.
            while interventions is not None and interventions.open():
                await asyncio.sleep(0.02)
        return answer

    async def add(self, id_: str, tenant: str | None) -> None:
        new = {"id": id_, "url": self.endpoint.url, "event_types": ["order.*"]}
        if tenant is not None:
            new["tenant"] = tenant
        answer = await self.operator("POST", "/v1/subscriptions", new)
        assert answer.status == 201, answer

    async def state(self) -> Any:
        """Everything that a request could have changed."""
        listed = {
            path: (await self.operator("GET", path)).json
            for path in (
                "/v1/subscriptions",
                "/v1/event-types",
                "/v1/keys",
                "/v1/portal-sessions",
                "/v1/portal-images",
            )
        }
        metrics = (await self.operator("GET", "/metrics")).body.decode()
        marks = list(self.daemon._app.plane.store.issues.names())
        return listed, marks, re.findall(r'events_published_total{outcome="published"} (\S+)', metrics)

    async def clear(self) -> None:
        for path, many, name in (
            ("/v1/subscriptions", "subscriptions", "id"),
            ("/v1/event-types", "event_types", "name"),
            ("/v1/keys", "keys", "id"),
            ("/v1/portal-sessions", "sessions", "id"),
            ("/v1/portal-images", "images", "id"),
        ):
            for each in (await self.operator("GET", path)).json[many]:
                await self.operator("DELETE", f"{path}/{each[name]}")


async def agree(request: web.Request) -> web.Response:
    """Of an endpoint that wants the events of whoever asks."""
    return web.Response(
        headers={"WebHook-Allowed-Origin": request.headers.get("WebHook-Request-Origin", "*")}
    )


@pytest.fixture
async def world(daemon: InThread) -> AsyncIterator[World]:
    async with aiohttp.ClientSession() as session, Endpoint(agree) as endpoint:
        operator = Client(daemon.url, session, KEY)

        async def key(name: str, **more: Any) -> Any:
            answer = await operator("POST", "/v1/keys", {"name": name, **more})
            assert answer.status == 201, answer
            return answer.json

        ops = await key("ops", scope="operator")
        acme, globex = [
            await key(name, scope="tenant", tenant=name, capabilities=CAPABILITIES)
            for name in ("acme", "globex")
        ]
        spare = await key("spare", scope="tenant", tenant="acme")
        keys = {
            "nobody": None,
            "wrong": ops["secret"][:-4] + "AAAA",
            "operator": ops["secret"],
            "acme": acme["secret"],
            "globex": globex["secret"],
        }
        made = World(daemon, operator, keys, spare["key"]["id"], endpoint)
        await made.add("sub_acme", "acme")
        await operator("PUT", "/v1/event-types/invoice.paid", {"example": {"amount": 1}})
        opened = await operator("POST", "/v1/portal-sessions", {"tenant": "acme"})
        made.portal = opened.json["session"]["id"]
        image = await operator("POST", "/v1/portal-images", {"data": b64encode(b"GIF89a1").decode()})
        made.image = image.json["id"]
        made.keys["portal"] = opened.json["token"]
        yield made
        await made.clear()


@pytest.mark.parametrize("capability", CAPABILITIES)
async def test_a_tenants_key_may_what_its_capabilities_say_and_no_more(
    world: World, capability: Capability
) -> None:
    """Alone, and all but this one: each route is open to one of the two keys, and the other one changes nothing."""
    new = {"scope": "tenant", "tenant": "acme"}
    alone = await world.operator("POST", "/v1/keys", {**new, "name": "alone", "capabilities": [capability]})
    others = [name for name in CAPABILITIES if name != capability]
    without = await world.operator("POST", "/v1/keys", {**new, "name": "without", "capabilities": others})
    assert (alone.json["key"]["capabilities"], without.json["key"]["capabilities"]) == ([capability], others)
    world.keys |= {"alone": alone.json["secret"], "without": without.json["secret"]}
    # The one that deletes comes last.
    for route in sorted(ROUTES, key=lambda route: route.method == "DELETE"):
        if route.allowed is not Audience.TENANT or route.needs is None:
            continue
        refused, allowed = ("without", "alone") if route.needs == capability else ("alone", "without")
        before = await world.state()
        answer = await world.call(route, refused)
        assert answer.status == 403, route.operation
        if answer.body:
            assert answer.json["type"].rpartition(":")[2] == "forbidden"
            assert f"capability {route.needs}" in answer.json["detail"]
        assert await world.state() == before
        answer = await world.call(route, allowed)
        assert answer.status == MATRIX[route.operation][CALLERS.index("acme")], (route.operation, answer)


async def test_a_new_tenants_key_may_everything_but_publish(world: World) -> None:
    made = await world.operator("POST", "/v1/keys", {"name": "a", "scope": "tenant", "tenant": "acme"})
    assert made.json["key"]["capabilities"] == ["read", "write", "secrets", "resend"]
    call = world.operator.using(made.json["secret"])
    assert (await call("POST", "/v1/events", {"type": "a"})).status == 403
    assert (await call("GET", "/v1/subscriptions")).status == 200
    operator = await world.operator("POST", "/v1/keys", {"name": "a", "scope": "operator"})
    assert operator.json["key"]["capabilities"] == list(CAPABILITIES)


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.operation)
async def test_each_gets_in_where_it_may_and_changes_nothing_where_not(
    world: World, route: Route, caller: str
) -> None:
    before = await world.state()
    answer = await world.call(route, caller)
    assert answer.status == MATRIX[route.operation][CALLERS.index(caller)], answer
    if answer.status >= 400:
        assert await world.state() == before
        assert not world.endpoint.requests
        assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.operation)
async def test_a_portal_session_may_what_a_key_of_its_tenant_and_capabilities_may(
    world: World, route: Route
) -> None:
    """All but publishing; and no operators' route, whatever the session."""
    answer = await world.call(route, "portal")
    wanted = MATRIX[route.operation][CALLERS.index("acme")]
    if route.needs == "publish":
        wanted = 403
    elif route.operation == "renewPortalSession":
        wanted = 200
    assert answer.status == wanted, answer
    if route.allowed is Audience.OPERATOR:
        assert answer.status == 403


async def test_what_is_anothers_and_what_is_not_there_look_the_same(world: World) -> None:
    for route in ROUTES:
        if "{id}" in route.path and route.tag == "subscriptions":
            theirs = await world.call(route, "globex")
            nobodys = await world.call(route, "globex", "sub_none")
            assert _without(theirs.json, "sub_acme") == _without(nobodys.json, "sub_none")


async def test_a_tenant_learns_nothing_of_anothers_history(world: World) -> None:
    acme, globex = world.caller("acme"), world.caller("globex")
    for path, own, others in (
        ("/v1/events", "sub_acme", "evt_globex"),
        ("/v1/deliveries", DELIVERY, OTHERS),
    ):
        name = path.removeprefix("/v1/")
        for caller, mine, theirs in ((acme, own, others), (globex, others, own)):
            listed = [each["id"] for each in (await caller("GET", path)).json[name]]
            assert mine in listed
            assert theirs not in listed
            assert (await caller("GET", f"{path}/{mine}")).status == 200
            hidden = await caller("GET", f"{path}/{theirs}")
            absent = "dlv_" + "0" * 24 if path == "/v1/deliveries" else "evt_none"
            nothing = await caller("GET", f"{path}/{absent}")
            assert hidden.status == nothing.status == 404
            assert _without(hidden.json, theirs) == _without(nothing.json, absent)
        # By another's filter or another's cursor nothing more is seen.
        assert (await acme("GET", f"{path}?tenant=globex")).json[name] == []
        page = (await world.operator("GET", f"{path}?limit=1")).json
        after = await acme("GET", f"{path}?cursor={page['next_cursor']}")
        assert {each["tenant"] for each in after.json[name]} <= {"acme"}
    deliveries = await acme("GET", "/v1/deliveries?subscription=sub_globex")
    assert deliveries.json["deliveries"] == []
    deliveries = await acme("GET", "/v1/deliveries?event=evt_globex")
    assert deliveries.json["deliveries"] == []


async def test_a_tenant_learns_nothing_of_anothers_payloads_explanations_and_figures(world: World) -> None:
    acme, globex = world.caller("acme"), world.caller("globex")
    for path in ("payload", "explain"):
        assert (await globex("GET", f"/v1/events/evt_globex/{path}")).status == 200
        hidden = await acme("GET", f"/v1/events/evt_globex/{path}")
        nothing = await acme("GET", f"/v1/events/evt_none/{path}")
        assert hidden.status == nothing.status == 404
        assert _without(hidden.json, "evt_globex") == _without(nothing.json, "evt_none")
    payload = await acme("GET", "/v1/events/sub_acme/payload")
    assert payload.body == PUBLISHED[0].value
    assert payload.headers["Content-Type"] == "application/json"
    # Another's event by its place, under an id of one's own.
    assert (await acme("GET", "/v1/events/sub_acme/payload?source=events-0-1")).status == 404
    assert (await acme("GET", "/v1/events/sub_acme/payload?source=events-0-0")).status == 200
    await world.add("sub_other", "globex")
    explained = (await acme("GET", "/v1/events/sub_acme/explain")).json["events"]
    ids = {each["subscription_id"] for event in explained for each in event["explanations"]}
    assert "sub_acme" in ids
    assert not ids & {"sub_other", "sub_globex"}
    hidden = await acme("GET", "/v1/events/sub_acme/explain?subscription=sub_other")
    nothing = await acme("GET", "/v1/events/sub_acme/explain?subscription=sub_none")
    assert hidden.status == nothing.status == 404
    assert _without(hidden.json, "sub_other") == _without(nothing.json, "sub_none")
    for group in ("tenant", "subscription", "event_type,host", "status"):
        for caller, tenant, other in ((acme, "acme", "globex"), (globex, "globex", "acme")):
            found = (await caller("GET", f"/v1/statistics?group={group}")).json
            assert found["totals"]["attempts"] > 0
            assert {series["group"]["tenant"] for series in found["series"]} <= {None, tenant}
            assert f"sub_{other}" not in {series["group"]["subscription"] for series in found["series"]}
    for asked in ("tenant=globex", "subscription=sub_globex"):
        found = (await acme("GET", f"/v1/statistics?{asked}")).json
        assert (found["series"], found["totals"]["attempts"]) == ([], 0)


async def test_a_tenant_learns_nothing_of_anothers_replays(world: World) -> None:
    """Nor of an operator's, even one of its own events."""
    acme, globex = world.caller("acme"), world.caller("globex")
    own, foreign = world.daemon.replay("acme"), world.daemon.replay(None)
    listed = [each["id"] for each in (await acme("GET", "/v1/replays")).json["replays"]]
    assert own in listed
    assert foreign not in listed
    assert own not in (await globex("GET", "/v1/replays")).body.decode()
    for caller, id_ in ((acme, foreign), (globex, own)):
        for method, path in (("GET", ""), ("POST", "/pause"), ("POST", "/resume"), ("POST", "/cancel")):
            hidden = await caller(method, f"/v1/replays/{id_}{path}")
            nothing = await caller(method, f"/v1/replays/rpl_000000000000{path}")
            assert hidden.status == nothing.status == 404
            assert _without(hidden.json, id_) == _without(nothing.json, "rpl_000000000000")
    # Whose subscription it is decides, whatever is asked for.
    for asked in ({"subscription": "sub_acme"}, {"subscription": "sub_none"}):
        refused = await globex("POST", "/v1/replays", {"source": "dead_letters", **asked})
        assert refused.status == 404
    refused = await globex("POST", "/v1/replays", {"source": "dead_letters", "tenant": "acme"})
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "tenant")


async def test_catching_up_takes_the_capability_to_resend(world: World) -> None:
    new = {"name": "a", "scope": "tenant", "tenant": "acme", "capabilities": ["write"]}
    made = await world.operator("POST", "/v1/keys", new)
    writer = world.operator.using(made.json["secret"])
    assert (await writer("POST", "/v1/subscriptions/sub_acme/pause")).status == 200
    refused = await writer("POST", "/v1/subscriptions/sub_acme/resume", {"catch_up": True})
    assert refused.status == 403
    assert (await writer("GET", "/v1/subscriptions/sub_acme")).status == 403
    shown = await world.operator("GET", "/v1/subscriptions/sub_acme")
    assert shown.json["status"] == "paused"
    resumed = await world.caller("acme")("POST", "/v1/subscriptions/sub_acme/resume", {"catch_up": True})
    assert resumed.status == 200
    assert resumed.headers["Location"] == f"/v1/replays/{resumed.json['replay']}"


def _without(document: dict[str, Any], id_: str) -> dict[str, Any]:
    return {**document, "detail": document["detail"].replace(id_, "..."), "request_id": ""}


async def test_a_tenant_lists_and_makes_only_its_own(world: World) -> None:
    for number, tenant in enumerate(("globex", None, "acme", "*")):
        await world.add(f"sub_{number}", tenant)
    acme = world.caller("acme")
    listed = (await acme("GET", "/v1/subscriptions")).json["subscriptions"]
    assert [each["id"] for each in listed] == ["sub_2", "sub_acme"]
    for asked in ("globex", "*"):
        found = await acme("GET", f"/v1/subscriptions?tenant={asked}")
        assert found.json["subscriptions"] == []
    made = await acme("POST", "/v1/subscriptions", BODIES["createSubscription"])
    assert made.json["subscription"]["tenant"] == "acme"
    for other in ("globex", "*"):
        refused = await acme("POST", "/v1/subscriptions", {**BODIES["createSubscription"], "tenant": other})
        assert (refused.status, refused.json["errors"][0]["field"]) == (422, "tenant")
        refused = await acme("PATCH", "/v1/subscriptions/sub_acme", {"tenant": other})
        assert (refused.status, refused.json["errors"][0]["field"]) == (422, "tenant")


async def test_what_a_tenant_publishes_reaches_its_own_subscriptions_only(world: World) -> None:
    async with Endpoint() as others:
        new = {"url": others.url, "event_types": ["*"]}
        for tenant in ({"tenant": "globex"}, {}):
            assert (await world.operator("POST", "/v1/subscriptions", {**new, **tenant})).status == 201
        for body in (
            {"type": "order.made", "id": "evt_own"},
            {"type": "order.made", "id": "evt_named", "tenant": "acme"},
        ):
            assert (await world.caller("acme")("POST", "/v1/events", body)).status == 202
        refused = await world.caller("acme")("POST", "/v1/events", {"type": "order.made", "tenant": "globex"})
        assert (refused.status, refused.json["errors"][0]["field"]) == (422, "tenant")
        await world.endpoint.received({"evt_own", "evt_named"}, 60)
        # One of globex's own comes after them: whatever else was sent there is queued before it.
        own = {"type": "order.made", "id": "evt_last"}
        assert (await world.caller("globex")("POST", "/v1/events", own)).status == 202
        await others.received({"evt_last"}, 60)
        assert others.ids.keys() == {"evt_last"}
        assert world.endpoint.ids.keys() == {"evt_own", "evt_named"}


async def test_a_tenant_cannot_tell_a_taken_id_from_a_free_one(world: World) -> None:
    """Ids of tenants' subscriptions are made by the dispatcher."""
    said = []
    for id_ in ("sub_acme", "sub_free"):
        new = {**BODIES["createSubscription"], "id": id_}
        answer = await world.caller("globex")("POST", "/v1/subscriptions", new)
        said.append((answer.status, {**answer.json, "request_id": ""}))
    assert said[0] == said[1]
    assert said[0][0] == 422
    assert [each["field"] for each in said[0][1]["errors"]] == ["id"]
