"""ETags guard changes."""

from __future__ import annotations

from tests.api.serving import KEY, Answer, problem, serving


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
