"""Dead letters over HTTP, without any history."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from dispatcher.broker.base import Message
from tests.api.real import running
from tests.api.serving import KEY, Client, problem
from tests.api.test_interventions import Answering, publish, subscribe
from tests.e2e.daemon import Endpoint, eventually


async def listed(call: Client, count: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(60):
        while len(found := (await call("GET", "/v1/dead-letters")).json["dead_letters"]) < count:
            await asyncio.sleep(0.05)
    return list(found)


async def test_a_dead_letter_is_shown_and_sent_again_without_any_history(tmp_path: Path) -> None:
    answering = Answering(500)
    async with (
        Endpoint(answering) as endpoint,
        running(tmp_path, KEY, history={"store": "off"}) as (call, _),
    ):
        await subscribe(call, endpoint.url, retry={"schedule": []})
        await publish(call)
        (letter,) = await listed(call, 1)
        assert (letter["reason"], letter["retryable"], letter["event_id"]) == ("exhausted", True, "evt_1")
        assert (letter["subscription_id"], letter["tenant"], letter["last_result"]) == (
            "sub_1",
            "acme",
            "status 500",
        )
        assert (letter["attempts"], letter["generation"]) == (1, 1)
        assert letter["id"] == f"{letter['partition']}-{letter['offset']}"
        answering.status = 200
        answer = await call("POST", f"/v1/dead-letters/{letter['id']}/retry")
        assert answer.status == 202, answer
        assert answer.json["delivery_id"] == letter["delivery_id"]
        await eventually(lambda: endpoint.ids["evt_1"] == 2, 60)
        assert endpoint.requests[0][2] == endpoint.requests[1][2]


async def test_a_record_that_was_no_event_is_shown_and_cannot_be_sent_again(tmp_path: Path) -> None:
    async with running(tmp_path, KEY) as (call, app):
        await app.broker.produce([Message("events", b"not JSON", b"key")])
        (letter,) = await listed(call, 1)
        assert (letter["reason"], letter["retryable"], letter["delivery_id"]) == ("json", False, None)
        assert letter["source"]["topic"] == "events"
        assert letter["body_bytes"] == len(b"not JSON")
        said = problem(await call("POST", f"/v1/dead-letters/{letter['id']}/retry"), 409, "wrong-state")
        assert "publish the event again" in said["detail"]
        problem(await call("POST", "/v1/dead-letters/0-999/retry"), 404, "not-found")
        problem(await call("GET", "/v1/dead-letters?partition=999"), 404, "not-found")
        problem(await call("GET", "/v1/dead-letters?cursor=abc"), 422, "invalid")
