"""Publishing over HTTP."""

from __future__ import annotations

import asyncio

from yarl import URL

from tests.api.serving import KEY, fields, key_of, problem, serving


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


PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def test_an_operators_trace_goes_on_with_its_events_and_a_tenants_does_not() -> None:
    async with serving(KEY) as (call, plane):
        acme = await key_of(call, "acme", "publish")
        for caller, headers, trace in (
            (call, {"traceparent": PARENT}, {"traceparent": PARENT.encode()}),
            (
                call,
                {"traceparent": PARENT, "tracestate": "a=1,b=2"},
                {"traceparent": PARENT.encode(), "tracestate": b"a=1,b=2"},
            ),
            (call, {"traceparent": PARENT, "tracestate": "a=" + "1" * 511}, {"traceparent": PARENT.encode()}),
            (call, {"traceparent": PARENT.upper()}, {}),
            (call, {"traceparent": PARENT[:-1]}, {}),
            (call, {"tracestate": "a=1"}, {}),
            (call, {}, {}),
            (acme, {"traceparent": PARENT}, {}),
        ):
            plane.publisher.traces.clear()
            answer = await caller("POST", "/v1/events", [{"type": "a"}, {"type": "b"}], headers=headers)
            assert (answer.status, plane.publisher.traces) == (202, [trace, trace])


async def test_a_trace_in_bytes_that_are_no_text_is_passed_over() -> None:
    async with serving(KEY) as (call, plane):
        reader, writer = await asyncio.open_connection("127.0.0.1", URL(call.base).port)
        body = b'{"type": "a"}'
        writer.write(
            b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer %b\r\ntraceparent: \xff\xfe\r\nContent-Length: %d\r\n\r\n%b"
            % (KEY.encode(), len(body), body)
        )
        assert (await reader.read()).startswith(b"HTTP/1.1 202 ")
        writer.close()
        assert plane.publisher.traces == [{}]
