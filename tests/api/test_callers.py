"""Who is let in, by what, and what a page of another site can make a browser do."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict
from structlog.testing import capture_logs

from dispatcher.core.control.keys import ALL_CAPABILITIES
from tests.api.serving import KEY, OURS, login, problem, serving

PROXY = {"http": {"trusted_proxies": ["127.0.0.1"]}}
NAMED = {**PROXY, "console": {"trusted_header": "X-Forwarded-User", "trusted_operators": ["ada"]}}


async def test_a_cookie_is_the_key_that_opened_it() -> None:
    async with serving(KEY) as (call, plane):
        plane.subscriptions.add("sub_1")
        page, answer = await login(call)
        anonymous = call.using(None)
        assert (await anonymous("GET", "/v1/subscriptions", headers=page)).status == 200
        changed = {**page, "X-Dispatcher-Csrf": answer.json["csrf"]}
        assert (await anonymous("POST", "/v1/subscriptions/sub_1/pause", headers=changed)).status == 200
        assert plane.audit.records("sub_1", None, 10)[0].by == "settings"


@pytest.mark.parametrize(
    "headers",
    [
        {},  # a form of another site, by a browser that says nothing
        {"Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
        {"Sec-Fetch-Site": "same-origin"},  # a page of ours that can't read the session
        {"Sec-Fetch-Site": "same-origin", "X-Dispatcher-Csrf": "guessed"},
        {"Origin": "null", "X-Dispatcher-Csrf": "right"},
        {"Sec-Fetch-Site": "cross-site", "X-Dispatcher-Csrf": "right"},
    ],
)
@pytest.mark.parametrize("by", ["cookie", "proxy"])
async def test_no_other_site_changes_anything_in_a_readers_name(by: str, headers: dict[str, str]) -> None:
    async with serving(KEY, settings=NAMED) as (call, plane):
        plane.subscriptions.add("sub_1")
        page, _ = await login(call)
        come = {"Cookie": page["Cookie"]} if by == "cookie" else {"X-Forwarded-User": "ada"}
        anonymous = call.using(None)
        right = (await anonymous("GET", "/v1/session", headers=come)).json["csrf"]
        sent = {name: right if value == "right" else value for name, value in {**headers, **come}.items()}
        answer = await anonymous("POST", "/v1/subscriptions/sub_1/pause", headers=sent)
        problem(answer, 403, "foreign-origin")
        assert not plane.subscriptions.calls


async def test_no_other_site_reads_by_a_cookie_and_none_is_told_that_it_may() -> None:
    async with serving(KEY) as (call, _):
        page, _ = await login(call)
        for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "same-site"}):
            answer = await call.using(None)(
                "GET", "/v1/subscriptions", headers={"Cookie": page["Cookie"], **headers}
            )
            problem(answer, 403, "foreign-origin")
            assert not [name for name in answer.headers if name.lower().startswith("access-control")]


async def test_a_value_of_another_session_does_not_pass() -> None:
    async with serving(KEY) as (call, plane):
        plane.subscriptions.add("sub_1")
        page, _ = await login(call)
        _, other = await login(call)
        headers = {**page, "X-Dispatcher-Csrf": other.json["csrf"]}
        problem(
            await call.using(None)("POST", "/v1/subscriptions/sub_1/pause", headers=headers),
            403,
            "foreign-origin",
        )


async def test_a_token_that_is_sent_counts_and_not_the_cookie_that_the_browser_adds() -> None:
    async with serving(KEY) as (call, plane):
        plane.subscriptions.add("sub_acme", "acme")
        plane.subscriptions.add("sub_globex", "globex")
        page, _ = await login(call)
        made = await call("POST", "/v1/portal-sessions", {"tenant": "acme"})
        reader = call.using(made.json["token"])
        listed = await reader("GET", "/v1/subscriptions", headers=page)
        assert [each["id"] for each in listed.json["subscriptions"]] == ["sub_acme"]
        # Nor does a token that has ended fall back on it.
        assert (await call("DELETE", f"/v1/portal-sessions/{made.json['session']['id']}")).status == 204
        problem(await reader("GET", "/v1/subscriptions", headers=page), 401, "unauthenticated")


async def test_a_proxys_word_is_taken_from_a_trusted_proxy_alone() -> None:
    named = {"X-Forwarded-User": "ada"}
    elsewhere = {**NAMED, "http": {"trusted_proxies": ["192.0.2.1"]}}
    async with serving(KEY, settings=elsewhere) as (call, _):
        problem(await call.using(None)("GET", "/v1/subscriptions", headers=named), 401, "unauthenticated")
    async with serving(KEY, settings=NAMED) as (call, _):
        assert (await call.using(None)("GET", "/v1/subscriptions", headers=named)).status == 200
        twice = CIMultiDict([("X-Forwarded-User", "ada"), ("X-Forwarded-User", "bob")])
        async with call.session.get(call.base + "/v1/subscriptions", headers=twice) as response:
            assert response.status == 400
        # Nobody is named: nobody is let in.
        problem(await call.using(None)("GET", "/v1/subscriptions"), 401, "unauthenticated")


async def test_whoever_may_only_see_changes_nothing() -> None:
    async with serving(KEY, settings=NAMED) as (call, plane):
        plane.subscriptions.add("sub_1")
        made = await call("POST", "/v1/keys", {"name": "eyes", "scope": "operator", "capabilities": ["read"]})
        eyes = call.using(made.json["secret"])
        bob = {"X-Forwarded-User": "bob", **OURS}
        csrf = (await call.using(None)("GET", "/v1/session", headers=bob)).json["csrf"]
        for method, path, body in (
            ("POST", "/v1/subscriptions/sub_1/pause", None),
            ("POST", "/v1/keys", {"name": "more", "scope": "operator"}),
            ("PUT", "/v1/event-types/a", {}),
            ("POST", "/v1/portal-sessions", {"tenant": "acme"}),
            ("POST", "/v1/events", {"type": "a"}),
        ):
            problem(await eyes(method, path, body), 403, "forbidden")
            named = await call.using(None)(method, path, body, headers={**bob, "X-Dispatcher-Csrf": csrf})
            problem(named, 403, "forbidden")
        for path in ("/v1/subscriptions", "/v1/keys", "/v1/portal-sessions", "/v1/audit", "/v1/egress"):
            assert (await eyes("GET", path)).status == 200, path
            assert (await call.using(None)("GET", path, headers=bob)).status == 200, path
        assert (await eyes("GET", "/v1/session")).json["principal"]["read_only"]
        assert {name for name, _ in plane.subscriptions.calls} == {"list"}
        assert not plane.publisher.published


async def test_an_operator_who_may_only_see_leaves_an_open_api_open() -> None:
    async with serving() as (call, _):
        made = await call("POST", "/v1/keys", {"name": "eyes", "scope": "operator", "capabilities": ["read"]})
        assert made.status == 201
        assert (await call("GET", "/v1/keys")).status == 200


async def test_where_the_console_is_off_there_is_no_session() -> None:
    async with serving(KEY) as (call, _):
        page, _ = await login(call)
    async with serving(KEY, settings={"console": {"enabled": False}}) as (call, _):
        assert (await call.using(None)("POST", "/v1/session", {"key": KEY}, headers=OURS)).status == 404
        problem(await call.using(None)("GET", "/v1/subscriptions", headers=page), 401, "unauthenticated")


async def test_what_was_shown_stands_in_no_log() -> None:
    async with serving(KEY, settings=PROXY) as (call, plane):
        with capture_logs() as logs:
            page, _ = await login(call)
            made = await call("POST", "/v1/portal-sessions", {"tenant": "acme"})
            token = made.json["token"]
            reader = call.using(token)
            await reader("POST", "/v1/portal-sessions/renew")
            await reader("DELETE", "/v1/subscriptions/none")
            await call.using(token[:-4] + "AAAA")("GET", "/v1/session")
            await call.using(None)("GET", f"/v1/session?token={token}")
            await call.using(None)("GET", f"/portal?token={token}")
            await call.using("wrong" * 8)("GET", "/v1/session", headers={"Referer": f"/portal#token={token}"})
            await call("DELETE", f"/v1/portal-sessions/{made.json['session']['id']}")
        assert [line for line in logs if line["event"] == "audit"]
        said = str(logs) + str(plane.audit.records(None, None, 100))
        for secret in (token, token.rpartition("_")[2], page["Cookie"].partition("=")[2], KEY):
            assert secret not in said


async def test_the_principal_of_each_way_in_is_told() -> None:
    async with serving(KEY, settings=NAMED) as (call, _):
        page, _ = await login(call)
        made = await call("POST", "/v1/portal-sessions", {"tenant": "acme"})
        ways = {
            "key": (call, {}),
            "cookie": (call.using(None), page),
            "proxy": (call.using(None), {"X-Forwarded-User": "ada"}),
            "portal": (call.using(made.json["token"]), {}),
        }
        for by, (client, headers) in ways.items():
            answer = await client("GET", "/v1/session", headers=headers)
            assert answer.json["principal"]["by"] == by
            assert (answer.json["csrf"] is not None) == (by in ("cookie", "proxy"))
        nobody = await call.using(None)("GET", "/v1/session")
        assert (nobody.status, nobody.json["principal"]) == (200, None)
    async with serving() as (call, _):
        opened = (await call("GET", "/v1/session")).json["principal"]
        assert (opened["by"], set(opened["capabilities"])) == ("open", set(ALL_CAPABILITIES))
