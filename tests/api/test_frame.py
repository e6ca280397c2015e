"""The way of a request: what is refused before anything happens, and how errors are told."""

from __future__ import annotations

import asyncio
import json
import re
from base64 import b64encode
from collections.abc import AsyncIterator
from typing import Any

import pytest
from multidict import CIMultiDict
from structlog.testing import capture_logs

from dispatcher.api import frame
from dispatcher.api.limits import MinimumRate
from dispatcher.api.route import BODY_LIMIT, Audience, Route
from dispatcher.api.table import ROUTES
from dispatcher.control.errors import Unavailable
from dispatcher.runtime.tasks import Tasks
from tests.api.serving import KEY, NEW, address, fields, problem, serving

# Where a body has to be sent to, and one that is right.
BODIES: dict[str, Any] = {
    "createSubscription": NEW,
    "updateSubscription": {"max_in_flight": 3},
    "rotateSecret": {"overlap": "1h"},
    "disableSubscription": {"reason": "it floods"},
    "testSubscription": {"event_type": "invoice.paid"},
    "putEventType": {"description": "a"},
    "publishEvents": {"type": "ping"},
    "putQuotas": {"subscriptions": 5000},
    "createKey": {"name": "a", "scope": "operator"},
    "createPortalSession": {"tenant": "acme"},
    "createPortalImage": {"data": b64encode(b"GIF89a").decode()},
    "resumeSubscription": {"catch_up": True},
    "enableSubscription": {"catch_up": True},
    "startReplay": {"source": "dead_letters"},
    "deliverEvent": {"subscription": "sub_1"},
    "ignoreIssue": {"until": "2026-02-02T08:00:00Z"},
}
# Those of pages are in test_sessions.py.
OTHERS = [route for route in ROUTES if not route.from_page]
WITH_BODY = [route for route in OTHERS if route.body is not None]


def names(route: Route) -> str:
    return route.operation


@pytest.mark.parametrize("route", WITH_BODY, ids=names)
async def test_a_wrong_field_is_named_by_every_route_and_nothing_is_written(route: Route) -> None:
    good = BODIES[route.operation]
    async with serving(KEY) as (call, plane):
        if route.operation != "createSubscription":
            plane.subscriptions.add("sub_1")
        await plane.catalogue.put("invoice.paid", {})
        before = (dict(plane.subscriptions.views), dict(plane.catalogue.views))
        unknown = await call(route.method, address(route), {**good, "no_such": 1})
        assert "no_such" in fields(problem(unknown, 422, "invalid"))
        name = next(iter(good))
        mistyped = await call(route.method, address(route), {**good, name: {"a": [1]}})
        assert re.split(r"[.\[]", fields(problem(mistyped, 422, "invalid"))[0])[0] == name
        for body, kind in (
            (b"{", "malformed"),
            (b"[]" if not route.body or not route.body.many else b"7", "invalid"),
            (b'{"a": 1, "a": 2}', "malformed"),
            (b'{"a": "\xff"}', "malformed"),
            (b'{"a":' * 100 + b"1" + b"}" * 100, "malformed"),
        ):
            wrong = await call(
                route.method, address(route), data=body, headers={"Content-Type": "application/json"}
            )
            problem(wrong, 422 if kind == "invalid" else 400, kind)
        form = await call(route.method, address(route), data={"url": "x"})
        problem(form, 415, "unsupported-media-type")
        assert (plane.subscriptions.views, plane.catalogue.views) == before
        assert not plane.keys.rows
        assert not plane.publisher.published
        assert not plane.subscriptions.calls
        right = await call(route.method, address(route), good)
        if route.operation == "deliverEvent":
            problem(right, 409, "history-off")  # this one keeps none
        elif route.operation == "ignoreIssue":
            problem(right, 404, "not-found")  # no delivery has failed here
        else:
            assert right.status in route.answers


@pytest.mark.parametrize("route", OTHERS, ids=names)
async def test_every_route_refuses_an_unknown_parameter_and_a_second_authorization(route: Route) -> None:
    async with serving(KEY) as (call, plane):
        plane.subscriptions.add("sub_1")
        unknown = await call(route.method, address(route) + "?limt=3", BODIES.get(route.operation))
        assert fields(problem(unknown, 422, "invalid")) == ["limt"]
        if route.query is not None and "limit" in route.query.model_fields:
            assert "did you mean limit?" in unknown.json["detail"]
        both = CIMultiDict([("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer other")])
        if route.allowed is not Audience.PUBLIC:
            url = call.base + address(route)
            async with call.session.request(route.method, url, headers=both) as response:
                assert response.status == 400


@pytest.mark.parametrize("route", [route for route in OTHERS if route.body is None], ids=names)
async def test_a_body_where_none_is_wanted_is_refused(route: Route) -> None:
    async with serving(KEY) as (call, plane):
        plane.subscriptions.add("sub_1")
        query = "?tenant=acme" if route.operation == "revokePortalSessions" else ""
        problem(await call(route.method, address(route) + query, {"a": 1}), 400, "malformed")
        assert not plane.subscriptions.calls


async def test_a_body_has_a_size_and_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(KEY, events_limit=1000) as (call, plane):
        big = {**NEW, "headers": {"X-A": "a" * BODY_LIMIT}}
        problem(await call("POST", "/v1/subscriptions", big), 413, "too-large")
        events = [{"type": "a", "data": "x" * 100}] * 20
        problem(await call("POST", "/v1/events", events), 413, "too-large")

        async def chunks(count: int, pause: float) -> Any:
            for _ in range(count):
                yield b" " * 100_000
                await asyncio.sleep(pause)

        headers = {"Content-Type": "application/json"}
        endless = await call("POST", "/v1/subscriptions", data=chunks(4, 0), headers=headers)
        problem(endless, 413, "too-large")
        monkeypatch.setattr(frame, "BODY", MinimumRate(0.1, 8192.0))
        slow = await call("POST", "/v1/subscriptions", data=chunks(2, 1.0), headers=headers)
        problem(slow, 408, "too-slow")
        assert slow.headers["Connection"] == "close"
        assert not plane.subscriptions.views


async def test_of_very_many_mistakes_some_are_told_and_no_time_is_spent_on_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_up: list[str] = []

    def did_you_mean(name: str, _known: object) -> str:
        looked_up.append(name)
        return ""

    monkeypatch.setattr(frame, "did_you_mean", did_you_mean)
    many = {f"evnt_types{number}": 1 for number in range(5000)}
    async with serving(KEY) as (client, _):
        told = problem(
            await client("POST", "/v1/subscriptions", json={**many, **NEW, "id": 5}), 422, "invalid"
        )
        assert "id" in {error["field"] for error in told["errors"]}
        assert "url" not in {error["field"] for error in told["errors"]}
        assert 50 < len(told["errors"]) <= 101
        answer = await client("POST", "/v1/events", json=[{"type": "a", **many}] * 20)
        assert len(problem(answer, 422, "invalid")["errors"]) == 100
        query = "&".join(f"a{number}=1" for number in range(500))
        answer = await client("GET", f"/v1/subscriptions?{query}")
        assert len(problem(answer, 422, "invalid")["errors"]) == 100
    assert len(looked_up) <= 300


async def test_bodies_with_events_have_so_much_room_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame, "BODIES", 100_000)
    async with serving(KEY) as (client, _):
        started, more = asyncio.Event(), asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b'{"type": "a", "data": "' + b"x" * 90_000
            started.set()
            await more.wait()
            yield b'"}'

        headers = {"Content-Type": "application/json"}
        first = Tasks().start(client("POST", "/v1/events", data=slow(), headers=headers), "first")
        await started.wait()
        event = {"type": "a", "data": "x" * 20_000}
        while (answer := await client("POST", "/v1/events", json=event)).status == 202:
            await asyncio.sleep(0.01)  # the first one's bytes are still on their way
        assert problem(answer, 429, "overloaded")
        assert answer.headers["Retry-After"] == "1"
        assert (await client("POST", "/v1/subscriptions", json=NEW)).status == 201
        more.set()
        assert (await first).status == 202
        assert (await client("POST", "/v1/events", json=event)).status == 202


async def test_large_bodies_are_read_like_small_ones() -> None:
    async with serving(KEY) as (client, _):
        large = {"type": "a", "data": "x" * 100_000}
        assert (await client("POST", "/v1/events", json=large)).status == 202
        lines = "\n".join([json.dumps(large)] * 2)
        headers = {"Content-Type": "application/x-ndjson"}
        assert (await client("POST", "/v1/events", data=lines, headers=headers)).status == 202
        blank = await client("POST", "/v1/events", data=b"\n" * 100_000, headers=headers)
        problem(blank, 400, "malformed")
        wrong = await client("POST", "/v1/events", data=lines[:-1], headers=headers)
        assert [error["field"] for error in problem(wrong, 400, "malformed")["errors"]] == ["[1]"]


async def test_a_compressed_body_is_not_unpacked() -> None:
    async with serving(KEY) as (call, _):
        answer = await call(
            "POST", "/v1/subscriptions", data=b"{}", headers={"Content-Encoding": "gzip"}, compress=False
        )
        problem(answer, 415, "unsupported-media-type")


async def test_a_bug_is_a_500_with_the_id_that_the_log_has_and_nothing_of_the_inside() -> None:
    async with serving(KEY) as (call, plane):
        plane.subscriptions.failure = RuntimeError("secret thing")
        with capture_logs() as logs:
            answer = await call("POST", "/v1/subscriptions", NEW, headers={"X-Request-Id": "mine-1"})
        assert b"secret thing" not in answer.body
        assert problem(answer, 500, "internal")["request_id"] == "mine-1"
        assert [line["request_id"] for line in logs if line["log_level"] == "error"] == ["mine-1"]


async def test_a_request_id_that_could_break_a_log_is_replaced() -> None:
    async with serving(KEY) as (call, _):
        answer = await call("GET", "/v1/egress", headers={"X-Request-Id": 'a" x=1'})
        assert answer.headers["X-Request-Id"].startswith("req_")
        assert answer.json == {"addresses": ["192.0.2.7/32"]}


async def test_a_change_leaves_a_line_in_the_audit_log_without_any_value() -> None:
    async with serving(KEY) as (call, _):
        with capture_logs() as logs:
            await call(
                "POST", "/v1/subscriptions", {**NEW, "id": "a", "headers": {"Authorization": "Bearer hush"}}
            )
            await call("GET", "/v1/subscriptions/a")
            await call("PATCH", "/v1/subscriptions/a", {"url": "https://hush.example/"})
            created = await call("POST", "/v1/keys", {"name": "ops", "scope": "operator"})
            await call("POST", "/v1/subscriptions", {**NEW, "id": "a"})
            await call("DELETE", f"/v1/keys/{created.json['key']['id']}")
        audit = [line for line in logs if line["event"] == "audit"]
        assert [(line["action"], line["subject"], line["principal"]) for line in audit] == [
            ("subscription.create", "a", "settings"),
            ("subscription.update", "a", "settings"),
            ("key.create", created.json["key"]["id"], "settings"),
            ("key.revoke", created.json["key"]["id"], "settings"),
        ]
        assert audit[0]["fields"] == ["event_types", "headers", "id", "url"]
        assert (audit[1]["fields"], audit[1]["remote"]) == (["url"], "127.0.0.1")
        assert "hush" not in str(audit)
        assert created.json["secret"] not in str(logs)


async def test_a_change_that_may_have_taken_effect_is_in_the_audit_log_too() -> None:
    async with serving(KEY) as (client, plane):
        plane.subscriptions.add("sub_1")
        with capture_logs() as logs:
            plane.subscriptions.failure = Unavailable("the broker did not answer in time")
            assert (await client("DELETE", "/v1/subscriptions/sub_1")).status == 503
            plane.publisher.failure = Unavailable("the broker is away")
            assert (await client("POST", "/v1/events", json={"type": "a"})).status == 503
        [line] = [line for line in logs if line["event"] == "audit"]
        assert (line["action"], line["subject"], line["outcome"]) == (
            "deleteSubscription",
            "sub_1",
            "unknown",
        )
        assert line["principal"] == "settings"


async def test_wrong_keys_cost_time_and_are_logged_without_the_key() -> None:
    # Few: in half a minute one more is forgiven.
    async with serving(KEY, settings={"api": {"keys": (KEY,), "wrong_keys_per_minute": 2}}) as (call, _):
        with capture_logs() as logs:
            first = await call.using("wrong-key")("GET", "/v1/egress")
        problem(first, 401, "unauthenticated")
        assert first.headers["WWW-Authenticate"].startswith("Bearer")
        assert [line["log_level"] for line in logs] == ["warning"]
        assert "wrong-key" not in str(logs)
        problem(await call.using(None)("GET", "/v1/egress"), 401, "unauthenticated")
        await call.using("wrong-key")("GET", "/v1/egress")
        for key in (KEY, "wrong-key"):
            limited = await call.using(key)("GET", "/v1/egress")
            problem(limited, 429, "too-many-wrong-keys")
            assert int(limited.headers["Retry-After"]) >= 1
        assert (await call.using(None)("GET", "/v1/event-types")).status == 200


async def test_until_the_topic_is_read_an_api_without_keys_answers_nobody() -> None:
    async with serving() as (call, plane):
        plane.keys.loaded = False
        answer = await call("GET", "/v1/egress")
        problem(answer, 503, "unavailable")
        assert answer.headers["Retry-After"]
        assert (await call("GET", "/healthz")).status == 200


class TestAnOpenApi:
    """Without keys, anything that a page on the web can make a browser send is refused."""

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({}, 200),
            ({"Host": "localhost:8080"}, 200),
            ({"Host": "api.localhost"}, 200),
            ({"Host": "[::1]:80"}, 200),
            ({"Host": "rebound.example:8080"}, 403),
            ({"Host": "127.0.0.1.evil.example"}, 403),
            ({"Host": "localhost.evil.example"}, 403),
            ({"Host": "user@localhost"}, 403),
            ({"Host": "192.168.1.5"}, 403),
            ({"Host": "localhost:8080", "Origin": "http://localhost:8080"}, 200),
            ({"Host": "localhost:8080", "Origin": "http://localhost:3000"}, 403),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Sec-Fetch-Site": "same-origin"}, 200),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, 403),
            ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ],
    )
    async def test_is_there_for_this_machine_alone(self, headers: dict[str, str], status: int) -> None:
        async with serving() as (call, _):
            for path in ("/v1/egress", "/v1/event-types", "/docs", "/openapi.json"):
                answer = await call("GET", path, headers=headers)
                assert answer.status == status, (path, answer)
                if status == 403:
                    problem(answer, 403, "foreign-origin")
            for path in ("/healthz", "/readyz", "/metrics"):
                assert (await call("GET", path, headers=headers)).status == 200

    async def test_takes_no_form_of_another_sites_page(self) -> None:
        async with serving() as (call, plane):
            plane.subscriptions.add("sub_1")
            headers = {
                "Origin": "https://evil.example",
                "Sec-Fetch-Site": "cross-site",
                "Sec-Fetch-Mode": "navigate",
            }
            problem(
                await call("POST", "/v1/subscriptions/sub_1/pause", headers=headers), 403, "foreign-origin"
            )
            assert not plane.subscriptions.calls

    async def test_with_keys_answers_to_every_name(self) -> None:
        async with serving(KEY) as (call, _):
            headers = {"Host": "hooks.example", "Origin": "https://console.example"}
            assert (await call("GET", "/v1/egress", headers=headers)).status == 200


async def test_methods_that_are_not_there_are_named() -> None:
    async with serving(KEY) as (call, _):
        wrong = await call("PUT", "/v1/subscriptions")
        problem(wrong, 405, "method-not-allowed")
        assert wrong.headers["Allow"] == "GET, HEAD, OPTIONS, POST"
        options = await call("OPTIONS", "/v1/subscriptions")
        assert (options.status, options.headers["Allow"]) == (204, "GET, HEAD, OPTIONS, POST")
        assert not [name for name in options.headers if name.startswith("Access-Control")]
        head = await call("HEAD", "/v1/subscriptions")
        assert (head.status, head.body) == (200, b"")
        problem(await call("GET", "/v1/subscription"), 404, "not-found")


async def test_the_root_leads_to_the_page() -> None:
    async with serving(KEY) as (call, _):
        answer = await call("GET", "/", allow_redirects=False)
        assert (answer.status, answer.headers["Location"]) == (
            302,
            "docs",
        )  # relative: a proxy may have put a prefix before it
        assert (await call.using(None)("GET", "/")).status == 200


async def test_an_address_that_can_be_nobodys_is_not_found() -> None:
    async with serving(KEY) as (call, _):
        for path in ("a%20b", "%2e%2e", "a%2fb", "x" * 65, "%00"):
            problem(await call("GET", f"/v1/subscriptions/{path}"), 404, "not-found")
        named = await call("PUT", "/v1/event-types/a%0Ab", {})
        assert fields(problem(named, 422, "invalid")) == ["name"]


async def test_what_is_shown_is_never_kept_by_a_cache() -> None:
    async with serving(KEY) as (call, _):
        assert (await call("GET", "/v1/egress")).headers["Cache-Control"] == "no-store"
