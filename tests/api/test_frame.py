"""The way of a request: what is refused before anything happens, and how errors are told."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from multidict import CIMultiDict
from structlog.testing import capture_logs

from dispatcher.api import frame
from dispatcher.api.route import BODY_LIMIT, Audience, Route
from dispatcher.api.table import ROUTES
from dispatcher.control.errors import Overloaded, TooLarge, Unavailable, WrongState
from dispatcher.runtime.tasks import Tasks
from tests.api.fakes import Plane
from tests.api.serving import KEY, Answer, serving

URN = "urn:webhook-dispatcher:problem:"
NEW = {"url": "https://a.example/", "event_types": ["*"]}
# Where a body has to be sent to, and one that is right.
BODIES: dict[str, Any] = {
    "createSubscription": NEW,
    "updateSubscription": {"max_in_flight": 3},
    "rotateSecret": {"overlap": "1h"},
    "putEventType": {"description": "a"},
    "publishEvents": {"type": "ping"},
    "createKey": {"name": "a", "scope": "operator"},
}
WITH_BODY = [route for route in ROUTES if route.body is not None]


def address(route: Route) -> str:
    """An address of the route that leads to something."""
    id_ = "0123456789abcdef" if route.tag == "keys" else "sub_1"
    return route.path.replace("{id}", id_).replace("{name}", "invoice.paid")


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
        assert right.status in route.answers


@pytest.mark.parametrize("route", ROUTES, ids=names)
async def test_every_route_refuses_an_unknown_parameter_and_a_second_authorization(route: Route) -> None:
    async with serving(KEY) as (call, plane):
        plane.subscriptions.add("sub_1")
        unknown = await call(route.method, address(route) + "?limt=3", BODIES.get(route.operation))
        assert fields(problem(unknown, 422, "invalid")) == ["limt"]
        if route.query is not None:
            assert "did you mean limit?" in unknown.json["detail"]
        both = CIMultiDict([("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer other")])
        if route.allowed is not Audience.PUBLIC:
            url = call.base + address(route)
            async with call.session.request(route.method, url, headers=both) as response:
                assert response.status == 400


@pytest.mark.parametrize("route", [route for route in ROUTES if route.body is None], ids=names)
async def test_a_body_where_none_is_wanted_is_refused(route: Route) -> None:
    async with serving(KEY) as (call, plane):
        plane.subscriptions.add("sub_1")
        problem(await call(route.method, address(route), {"a": 1}), 400, "malformed")
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
        monkeypatch.setattr(frame, "BODY_TIMEOUT", 0.1)
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


@pytest.mark.parametrize(
    ("failure", "status", "kind", "retry_after"),
    [
        (Unavailable("the broker is away", 1.2), 503, "unavailable", "2"),
        (Overloaded("too many pings", 30.0), 429, "overloaded", "30"),
        (WrongState("it is not disabled"), 409, "wrong-state", None),
        (TooLarge("it takes 3 MiB"), 413, "too-large", None),
        (TimeoutError(), 503, "unavailable", "5"),
    ],
)
async def test_what_the_control_plane_says_becomes_a_problem(
    failure: Exception, status: int, kind: str, retry_after: str | None
) -> None:
    async with serving(KEY) as (call, plane):
        plane.subscriptions.failure = failure
        answer = await call("POST", "/v1/subscriptions", NEW)
        problem(answer, status, kind)
        assert answer.headers.get("Retry-After") == retry_after


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


async def test_etags_guard_changes() -> None:
    async with serving(KEY) as (call, plane):
        plane.subscriptions.add("sub_1", version=7)
        shown = await call("GET", "/v1/subscriptions/sub_1")
        assert shown.headers["ETag"] == '"7"'

        async def patch(if_match: str) -> Answer:
            return await call(
                "PATCH", "/v1/subscriptions/sub_1", {"payload": "thin"}, headers={"If-Match": if_match}
            )

        for stale in ('"6"', 'W/"7"', '"x"'):
            problem(await patch(stale), 412, "version-mismatch")
        for no_tag in ("7a", "", '"7', '"7" "8"', "W/*"):
            problem(await patch(no_tag), 400, "malformed")
        changed = await patch('"7"')
        assert (changed.status, changed.headers["ETag"]) == (200, '"8"')
        assert (await patch('"3", "8"')).headers["ETag"] == '"9"'
        assert (await patch("9")).headers["ETag"] == '"10"'
        assert (await patch("*")).headers["ETag"] == '"11"'
        assert (await call("DELETE", "/v1/subscriptions/sub_1", headers={"If-Match": '"10"'})).status == 412
        assert (await call("DELETE", "/v1/subscriptions/sub_1", headers={"If-Match": '"11"'})).status == 204
        problem(await call("GET", "/v1/subscriptions/sub_1"), 404, "not-found")


async def test_an_event_type_is_put_on_its_version_or_only_where_there_is_none() -> None:
    async with serving(KEY) as (call, _):

        async def put(**headers: str) -> Answer:
            return await call(
                "PUT",
                "/v1/event-types/a.b",
                {},
                headers={name.replace("_", "-"): v for name, v in headers.items()},
            )

        for tag in ('"1"', "*"):
            problem(await put(If_Match=tag), 412, "version-mismatch")
        problem(await put(If_None_Match='"1"'), 400, "malformed")
        assert (await put(If_None_Match="*")).status == 201
        problem(await put(If_None_Match="*"), 412, "version-mismatch")
        assert (await put(If_Match="*")).headers["ETag"] == '"2"'
        assert (await put(If_Match='"2"')).headers["ETag"] == '"3"'


async def test_a_patch_says_how_else_a_field_is_changed() -> None:
    async with serving(KEY) as (call, plane):
        plane.subscriptions.add("sub_1")
        wrong = {
            "status": "paused",
            "secrets": ["x"],
            "id": "sub_2",
            "version": 5,
            "url": None,
            "event_types": None,
        }
        refused = problem(await call("PATCH", "/v1/subscriptions/sub_1", wrong), 422, "invalid")
        said = {each["field"]: each["message"] for each in refused["errors"]}
        assert set(said) == set(wrong)
        assert "/pause" in said["status"]
        assert "/secret/rotate" in said["secrets"]
        assert {said["url"], said["event_types"]} == {"must not be null"}


async def test_what_is_sent_reaches_the_control_plane_as_it_was_meant() -> None:
    async with serving(KEY) as (call, plane):
        created = await call(
            "POST",
            "/v1/subscriptions",
            {**NEW, "id": "sub_9", "tenant": None, "timeout": "5s", "validate": True},
            headers={"Idempotency-Key": "abc"},
        )
        assert created.status == 201
        assert created.headers["Location"] == "/v1/subscriptions/sub_9"
        assert created.json["secrets"] == ["whsec_new"]
        assert last(plane) == (
            "create",
            ({**NEW, "id": "sub_9", "timeout": "5s", "validate": True}, "settings", None, "abc"),
        )
        await call("PATCH", "/v1/subscriptions/sub_9", {"timeout": None, "headers": {"X-A": None}})
        assert last(plane) == ("update", {"timeout": None, "headers": {"X-A": None}})
        await call("POST", "/v1/subscriptions/sub_9/secret/rotate")
        assert last(plane) == ("rotate", (None, 86400.0))
        rotated = await call(
            "POST", "/v1/subscriptions/sub_9/secret/rotate", {"secret": "whsec_x", "overlap": "90s"}
        )
        assert last(plane) == ("rotate", ("whsec_x", 90.0))
        assert (rotated.json["secret"], rotated.json["old_expires_at"]) == (
            "whsec_x",
            "2025-10-09T08:54:50.000Z",
        )
        query = "?tenant=acme&status=paused&event_type=a.b&host=a.example&limit=7"
        await call("GET", "/v1/subscriptions" + query)
        assert last(plane) == (
            "list",
            (None, "acme", "paused", "a.b", "a.example", None, 7),
        )


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=1_0", "limit"),
        ("limit=%205", "limit"),
        ("limit=1&limit=2", "limit"),
        ("status=lost", "status"),
        ("event_type=a%0Ab", "event_type"),
        ("cursor=%00", "cursor"),
        ("tenant=", "tenant"),
    ],
)
async def test_wrong_parameters_are_named(query: str, field: str) -> None:
    async with serving(KEY) as (call, _):
        assert fields(problem(await call("GET", f"/v1/subscriptions?{query}"), 422, "invalid")) == [field]


async def test_pages_follow_one_another_by_their_cursor() -> None:
    async with serving(KEY) as (call, plane):
        for number in range(5):
            plane.subscriptions.add(f"sub_{number}")
        seen, query = [], "?limit=2"
        while query:
            page = (await call("GET", "/v1/subscriptions" + query)).json
            seen.append([each["id"] for each in page["subscriptions"]])
            query = page["next_cursor"] and f"?limit=2&cursor={page['next_cursor']}"
        assert seen == [["sub_0", "sub_1"], ["sub_2", "sub_3"], ["sub_4"]]


async def test_events_come_one_by_one_as_a_list_or_as_lines() -> None:
    async with serving(KEY) as (call, plane):
        one = await call("POST", "/v1/events", {"type": "a", "id": "evt_1", "data": [1]})
        assert (one.status, one.json["events"]) == (
            202,
            [{"id": "evt_1", "duplicate": False, "warnings": []}],
        )
        assert (await call("POST", "/v1/events", [{"type": "a"}, {"type": "b"}])).status == 202
        lines = await call(
            "POST",
            "/v1/events",
            data=b'{"type": "c"}\n\n{"type": "d"}\n',
            headers={"Content-Type": "application/x-ndjson"},
        )
        assert len(lines.json["events"]) == 2
        assert [event["type"] for event, _ in plane.publisher.published] == ["a", "a", "b", "c", "d"]
        wrong = await call("POST", "/v1/events", [{"type": "a"}, {"type": ""}, {"typ": "a"}])
        assert fields(problem(wrong, 422, "invalid")) == ["[1].type", "[2].type", "[2].typ"]
        problem(await call("POST", "/v1/events", []), 422, "invalid")
        problem(await call("POST", "/v1/events", [{"type": "a"}] * 1001), 422, "invalid")


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
    async with serving(KEY) as (call, _):
        with capture_logs() as logs:
            first = await call.using("wrong-key")("GET", "/v1/egress")
        problem(first, 401, "unauthenticated")
        assert first.headers["WWW-Authenticate"].startswith("Bearer")
        assert [line["log_level"] for line in logs] == ["warning"]
        assert "wrong-key" not in str(logs)
        problem(await call.using(None)("GET", "/v1/egress"), 401, "unauthenticated")
        for _ in range(19):
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


async def test_a_name_that_no_utf8_can_say_is_told_as_an_escape() -> None:
    async with serving() as (call, _):
        body = rb'{"type": "a", "data": {"\ud83d": 1, "\ud83d": 2}}'
        answer = await call("POST", "/v1/events", data=body, headers={"Content-Type": "application/json"})
        assert (answer.status, answer.headers["Content-Type"]) == (400, "application/problem+json")
        assert answer.json["errors"] == [{"field": "data.\\ud83d", "message": "stands twice in one object"}]
