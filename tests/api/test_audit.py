"""Who did what, over HTTP."""

from __future__ import annotations

from typing import Any

from tests.api.serving import KEY, NEW, fields, problem, serving


async def test_a_change_is_shown_beside_what_was_changed() -> None:
    async with serving(KEY) as (call, _):
        await call(
            "POST", "/v1/subscriptions", {**NEW, "id": "sub_1", "headers": {"Authorization": "Bearer hush"}}
        )
        await call("POST", "/v1/subscriptions/sub_1/pause")
        await call("POST", "/v1/subscriptions/sub_1/secret/rotate")
        await call("POST", "/v1/keys", {"name": "ops", "scope": "operator"})
        found = (await call("GET", "/v1/audit?subject=sub_1")).json["records"]
        assert [each["action"] for each in found] == [
            "subscription.rotate",
            "subscription.pause",
            "subscription.create",
        ]
        assert {(each["by"], each["by_id"], each["outcome"]) for each in found} == {
            ("key 1 of the settings", "settings", "done")
        }
        assert found[2]["details"] == {"fields": ["event_types", "headers", "id", "url"]}
        assert "hush" not in str(found)
        keys = (await call("GET", "/v1/audit?action=key.&limit=1")).json["records"]
        assert [each["action"] for each in keys] == ["key.create"]


async def test_a_tenant_sees_what_was_done_to_its_own_and_not_by_which_operator() -> None:
    async with serving(KEY) as (call, plane):
        plane.subscriptions.add("sub_acme", "acme")
        plane.subscriptions.add("sub_globex", "globex")
        made: Any = await call("POST", "/v1/portal-sessions", {"tenant": "acme", "user": "ada"})
        reader = call.using(made.json["token"])
        for id_ in ("sub_acme", "sub_globex"):
            await call("POST", f"/v1/subscriptions/{id_}/pause")
        await reader("POST", "/v1/subscriptions/sub_acme/resume")
        found = (await reader("GET", "/v1/audit?subject=sub_acme")).json["records"]
        assert [(each["action"], each["by"]) for each in found] == [
            ("subscription.resume", "ada"),
            ("subscription.pause", "operator"),
        ]
        assert "settings" not in str(found)
        problem(await reader("GET", "/v1/audit?subject=sub_globex"), 404, "not-found")
        problem(await reader("GET", "/v1/audit?subject=sub_none"), 404, "not-found")
        assert fields(problem(await reader("GET", "/v1/audit"), 422, "invalid")) == ["subject"]
