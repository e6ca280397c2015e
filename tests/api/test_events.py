"""Publishing over HTTP."""

from __future__ import annotations

from tests.api.serving import KEY, fields, problem, serving


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
