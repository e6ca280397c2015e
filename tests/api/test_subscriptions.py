"""Subscriptions over HTTP."""

from __future__ import annotations

import pytest

from tests.api.serving import KEY, NEW, fields, last, problem, serving


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
