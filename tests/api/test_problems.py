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
