"""Errors are problem documents."""

from __future__ import annotations

import pytest

from dispatcher.control.errors import Overloaded, TooLarge, Unavailable, WrongState
from tests.api.serving import KEY, NEW, problem, serving


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


async def test_a_name_that_no_utf8_can_say_is_told_as_an_escape() -> None:
    async with serving() as (call, _):
        body = rb'{"type": "a", "data": {"\ud83d": 1, "\ud83d": 2}}'
        answer = await call("POST", "/v1/events", data=body, headers={"Content-Type": "application/json"})
        assert (answer.status, answer.headers["Content-Type"]) == (400, "application/problem+json")
        assert answer.json["errors"] == [{"field": "data.\\ud83d", "message": "stands twice in one object"}]


async def test_an_id_that_can_not_be_is_answered_with_what_it_looks_like() -> None:
    async with serving(KEY) as (call, _):
        for method, path, form in (
            ("GET", "deliveries/evt_1", "dlv_ and 24 hexadecimal digits"),
            ("GET", "replays/nope", "rpl_"),
            ("POST", "dead-letters/d1/retry", "0-17"),
        ):
            assert form in problem(await call(method, f"/v1/{path}"), 404, "not-found")["detail"]


async def test_a_header_without_a_key_is_told_from_a_wrong_one() -> None:
    async with serving(KEY) as (call, _):
        answer = await call("GET", "/v1/keys", headers={"Authorization": "Bearer "})
        assert "no key after `Bearer`" in problem(answer, 401, "unauthenticated")["detail"]
