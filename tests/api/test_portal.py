"""Portal sessions over HTTP: what a link opens, for how long, and for whom."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest

from tests.api.serving import KEY, fields, problem, serving

GIF = b64encode(b"GIF89a" + bytes(20)).decode()
NEW: dict[str, Any] = {"tenant": "acme"}


async def test_a_link_opens_the_portal_of_its_tenant_and_no_more() -> None:
    async with serving(KEY) as (call, plane):
        plane.subscriptions.add("sub_acme", "acme")
        plane.subscriptions.add("sub_globex", "globex")
        made = await call("POST", "/v1/portal-sessions", {**NEW, "capabilities": ["read"], "user": "ada"})
        assert made.status == 201
        token = made.json["token"]
        assert made.json["url"] == f"{call.base}/portal#token={token}"
        assert "?" not in made.json["url"]
        reader = call.using(token)
        assert [each["id"] for each in (await reader("GET", "/v1/subscriptions")).json["subscriptions"]] == [
            "sub_acme"
        ]
        problem(await reader("GET", "/v1/subscriptions/sub_globex"), 404, "not-found")
        problem(await reader("POST", "/v1/subscriptions/sub_acme/pause"), 403, "forbidden")
        problem(await reader("GET", "/v1/keys"), 403, "forbidden")
        problem(await reader("POST", "/v1/portal-sessions", NEW), 403, "forbidden")
        problem(await reader("GET", "/v1/portal-sessions"), 403, "forbidden")
        other = await reader("DELETE", f"/v1/portal-sessions/{made.json['session']['id']}")
        problem(other, 403, "forbidden")


async def test_the_page_is_told_how_to_look() -> None:
    async with serving(KEY, settings={"portal": {"frame_ancestors": ["https://app.example.com"]}}) as (
        call,
        _,
    ):
        logo = (await call("POST", "/v1/portal-images", {"data": GIF})).json
        new = {
            **NEW,
            "lifetime": "2h",
            "next": "/deliveries?state=dead",
            "navigation": False,
            "gutters": False,
            "branding": {
                "name": "Example Inc.",
                "colors": {"light": {"accent": "#1a56db"}, "dark": {"accent": "#76a9fa"}},
                "font": "Georgia",
                "logo": logo["id"],
            },
            "hidden_event_types": ["internal.*"],
            "back_url": "https://app.example.com/settings",
            "refresh_url": "https://app.example.com/webhooks",
        }
        made = (await call("POST", "/v1/portal-sessions", new)).json
        found = (await call.using(made["token"])("GET", "/v1/session")).json
        assert found["principal"]["tenant"] == "acme"
        assert found["portal"] == {
            "session": made["session"]["id"],
            "expires_at": "2025-10-09T10:53:20.000Z",
            "next": "/deliveries?state=dead",
            "navigation": False,
            "gutters": False,
            "branding": {
                "name": "Example Inc.",
                "colors": {"light": {"accent": "#1a56db"}, "dark": {"accent": "#76a9fa"}},
                "font": "Georgia",
                "logo": f"portal/images/{logo['id']}",
                "favicon": None,
            },
            "hidden_event_types": ["internal.*"],
            "back_url": "https://app.example.com/settings",
            "refresh_url": "https://app.example.com/webhooks",
            "parents": ["https://app.example.com"],
        }


async def test_a_token_is_renewed_until_its_session_ends() -> None:
    async with serving(KEY) as (call, plane):
        made = (await call("POST", "/v1/portal-sessions", {**NEW, "lifetime": "20m"})).json
        assert made["token_expires_at"] == "2025-10-09T09:08:20.000Z"
        plane.wall += 14 * 60
        renewed = await call.using(made["token"])("POST", "/v1/portal-sessions/renew")
        assert (renewed.status, renewed.json["token_expires_at"]) == (200, "2025-10-09T09:13:20.000Z")
        plane.wall += 60
        for path in ("/v1/subscriptions", "/v1/session"):
            problem(await call.using(made["token"])("GET", path), 401, "unauthenticated")
        problem(await call.using(made["token"])("POST", "/v1/portal-sessions/renew"), 401, "unauthenticated")
        assert (await call.using(renewed.json["token"])("GET", "/v1/subscriptions")).status == 200
        problem(await call("POST", "/v1/portal-sessions/renew"), 403, "forbidden")


async def test_a_session_is_revoked_by_itself_and_with_its_tenant() -> None:
    async with serving(KEY) as (call, _):
        made = [
            (await call("POST", "/v1/portal-sessions", {"tenant": name})).json
            for name in ("acme", "acme", "globex")
        ]
        listed = (await call("GET", "/v1/portal-sessions?tenant=acme")).json["sessions"]
        assert {each["id"] for each in listed} == {each["session"]["id"] for each in made[:2]}
        assert made[0]["token"] not in str(listed)
        assert (await call("DELETE", f"/v1/portal-sessions/{made[0]['session']['id']}")).status == 204
        problem(await call("DELETE", f"/v1/portal-sessions/{made[0]['session']['id']}"), 404, "not-found")
        assert (await call("DELETE", "/v1/portal-sessions?tenant=acme")).json == {"revoked": 1}
        assert fields(problem(await call("DELETE", "/v1/portal-sessions"), 422, "invalid")) == ["tenant"]
        states = [(await call.using(each["token"])("GET", "/v1/session")).status for each in made]
        assert states == [401, 401, 200]


async def test_the_link_has_the_address_that_readers_know() -> None:
    public = {"url": "https://webhooks.example.com/hooks/portal"}
    async with serving(KEY, settings={"portal": public}) as (call, _):
        made = (await call("POST", "/v1/portal-sessions", NEW)).json
        assert made["url"] == f"https://webhooks.example.com/hooks/portal#token={made['token']}"


@pytest.mark.parametrize(
    ("new", "field"),
    [
        ({"tenant": "*"}, "tenant"),
        ({"lifetime": "25h"}, "lifetime"),
        ({"lifetime": "5s"}, "lifetime"),
        ({"capabilities": []}, "capabilities"),
        ({"capabilities": ["fly"]}, "capabilities[0]"),
        ({"next": "https://evil.example/"}, "next"),
        ({"next": "//evil.example/"}, "next"),
        ({"next": "/a\\b"}, "next"),
        ({"back_url": "javascript:alert(1)"}, "back_url"),
        ({"back_url": "http://app.example.com/"}, "back_url"),
        ({"refresh_url": "https://a@evil.example/"}, "refresh_url"),
        ({"refresh_url": 'https://app.example.com/"><script>'}, "refresh_url"),
        ({"refresh_url": "https://[::1"}, "refresh_url"),
        ({"branding": {"colors": {"light": {"accent": "red;}"}}}}, "branding.colors.light.accent"),
        ({"branding": {"font": "a;b"}}, "branding.font"),
        ({"branding": {"logo": "0" * 32}}, "branding.logo"),
        ({"branding": {"logo": "https://evil.example/pixel.gif"}}, "branding.logo"),
        ({"branding": {"name": "a\u202eb"}}, "branding.name"),
        ({"hidden_event_types": ["a.**"]}, "hidden_event_types[0]"),
        ({"user": "a\nb"}, "user"),
    ],
)
async def test_nothing_gets_into_a_session_that_could_lead_elsewhere(new: dict[str, Any], field: str) -> None:
    async with serving(KEY) as (call, plane):
        answer = await call("POST", "/v1/portal-sessions", {**NEW, **new})
        assert fields(problem(answer, 422, "invalid")) == [field]
        assert plane.portal.list() == []


async def test_images_are_kept_shown_and_deleted() -> None:
    async with serving(KEY) as (call, _):
        made = await call("POST", "/v1/portal-images", {"data": GIF})
        assert made.status == 201
        assert (made.json["media_type"], made.json["size"]) == ("image/gif", 26)
        assert (await call("GET", "/v1/portal-images")).json == {"images": [made.json]}
        assert (await call.using(None)("GET", f"/{made.json['url']}")).headers["Content-Type"] == "image/gif"
        for data in ("no base64!", b64encode(b"<html>").decode()):
            answer = await call("POST", "/v1/portal-images", {"data": data})
            assert fields(problem(answer, 422, "invalid")) == ["data"]
        assert (await call("DELETE", f"/v1/portal-images/{made.json['id']}")).status == 204
        problem(await call("DELETE", f"/v1/portal-images/{made.json['id']}"), 404, "not-found")
