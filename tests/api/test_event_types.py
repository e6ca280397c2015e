"""The catalogue over HTTP."""

from __future__ import annotations

from tests.api.serving import KEY, Answer, problem, serving


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
