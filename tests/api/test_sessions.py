"""Logging in and out, and what the pages need to know first."""

from __future__ import annotations

import pytest

from tests.api.serving import KEY, OURS, fields, login, problem, serving

PROXY = {"http": {"trusted_proxies": ["127.0.0.1"]}}


async def test_a_session_is_a_cookie_that_no_script_and_no_other_site_has() -> None:
    async with serving(KEY) as (call, plane):
        anonymous = call.using(None)
        answer = await anonymous("POST", "/v1/session", {"key": KEY}, headers=OURS)
        assert answer.status == 201
        cookie = answer.headers["Set-Cookie"]
        name = cookie.partition("=")[0]
        assert name == plane.services.sessions.name
        assert cookie.endswith("; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict")
        assert KEY not in cookie
        assert answer.json["principal"]["by"] == "cookie"
        assert answer.json["expires_at"] == "2025-10-09T20:53:20.000Z"
        out = await anonymous("DELETE", "/v1/session", headers=OURS)
        assert (out.status, out.headers["Set-Cookie"]) == (
            204,
            f"{name}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict",
        )


@pytest.mark.parametrize(
    ("headers", "secure"),
    [
        ({"Origin": "https://hooks.example", "Host": "hooks.example"}, True),
        ({"Origin": "http://hooks.example", "Host": "hooks.example"}, False),
        ({**OURS, "X-Forwarded-Proto": "https"}, True),
        ({**OURS, "X-Forwarded-Proto": "http"}, False),
    ],
)
async def test_over_https_the_cookie_goes_nowhere_else(headers: dict[str, str], secure: bool) -> None:
    async with serving(KEY, settings=PROXY) as (call, _):
        answer = await call.using(None)("POST", "/v1/session", {"key": KEY}, headers=headers)
        cookie = answer.headers["Set-Cookie"]
        assert cookie.startswith("__Host-") == cookie.endswith("; Secure") == secure


async def test_a_stranger_does_not_say_that_it_is_https() -> None:
    async with serving(KEY) as (call, _):
        headers = {**OURS, "X-Forwarded-Proto": "https"}
        answer = await call.using(None)("POST", "/v1/session", {"key": KEY}, headers=headers)
        assert not answer.headers["Set-Cookie"].startswith("__Host-")


@pytest.mark.parametrize(
    "headers", [{}, {"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}]
)
async def test_no_other_site_logs_anybody_in_or_out(headers: dict[str, str]) -> None:
    """In as somebody else, a reader would change things in the wrong name."""
    async with serving(KEY) as (call, _):
        for method, body in (("POST", {"key": KEY}), ("DELETE", None)):
            answer = await call.using(None)(method, "/v1/session", body, headers=headers)
            problem(answer, 403, "foreign-origin")
            assert "Set-Cookie" not in answer.headers


async def test_a_wrong_key_opens_no_session_and_costs_as_elsewhere() -> None:
    async with serving(KEY) as (call, _):
        anonymous = call.using(None)
        for _ in range(20):
            answer = await anonymous("POST", "/v1/session", {"key": "wrong" * 8}, headers=OURS)
            problem(answer, 401, "unauthenticated")
            assert "Set-Cookie" not in answer.headers
        problem(
            await anonymous("POST", "/v1/session", {"key": KEY}, headers=OURS), 429, "too-many-wrong-keys"
        )


async def test_a_login_is_read_as_strictly_as_any_other_body() -> None:
    async with serving(KEY) as (call, _):
        anonymous = call.using(None)
        for body, field in (({"kye": KEY}, "key"), ({"key": 7}, "key"), ({"key": ""}, "key")):
            answer = await anonymous("POST", "/v1/session", body, headers=OURS)
            assert field in fields(problem(answer, 422, "invalid"))
        form = await anonymous("POST", "/v1/session", data={"key": KEY}, headers=OURS)
        problem(form, 415, "unsupported-media-type")


async def test_a_session_that_has_ended_is_nobodys() -> None:
    async with serving(KEY) as (call, plane):
        anonymous = call.using(None)
        page, _ = await login(call)
        assert (await anonymous("GET", "/v1/session", headers=page)).json["principal"]["id"] == "settings"
        plane.wall += 12 * 3600
        assert (await anonymous("GET", "/v1/session", headers=page)).json["principal"] is None
        problem(await anonymous("GET", "/v1/subscriptions", headers=page), 401, "unauthenticated")


async def test_a_session_ends_when_its_key_is_revoked() -> None:
    async with serving(KEY) as (call, _):
        made = (await call("POST", "/v1/keys", {"name": "ops", "scope": "operator"})).json
        anonymous = call.using(None)
        page, _ = await login(call, made["secret"])
        assert (await anonymous("GET", "/v1/subscriptions", headers=page)).status == 200
        await call("DELETE", f"/v1/keys/{made['key']['id']}")
        problem(await anonymous("GET", "/v1/subscriptions", headers=page), 401, "unauthenticated")


async def test_the_shell_learns_where_it_is_before_anybody_has_logged_in() -> None:
    console = {"name": "production", "color": "#B3261E"}
    async with serving(KEY, settings={"console": console}) as (call, _):
        found = (await call.using(None)("GET", "/v1/session")).json
        assert found["environment"] == {"name": "production", "color": "#b3261e"}
        assert (found["principal"], found["csrf"], found["portal"], found["history"]) == (
            None,
            None,
            None,
            False,
        )
        assert found["version"]
        wrong = await call.using("wrong" * 8)("GET", "/v1/session")
        problem(wrong, 401, "unauthenticated")
        made = await call("POST", "/v1/portal-sessions", {"tenant": "acme"})
        assert (await call.using(made.json["token"])("GET", "/v1/session")).json["environment"] is None
