"""Explanations, over HTTP, of a whole dispatcher: true of what it did."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from dispatcher.broker.base import Message
from tests.api.real import made, running
from tests.api.serving import KEY, Client, fields, problem, serving
from tests.e2e.daemon import Endpoint


async def explained(call: Client, event_id: str, wanted: dict[str, str]) -> dict[str, Any]:
    """The explanations of the event when their outcomes are these."""
    outcomes: dict[str, str] = {}
    found: dict[str, Any] = {}
    async with asyncio.timeout(60):
        while outcomes != wanted:
            await asyncio.sleep(0.1)
            answer = await call("GET", f"/v1/events/{event_id}/explain")
            if answer.status == 404:
                continue
            (event,) = answer.json["events"]
            found = {each["subscription_id"]: each for each in event["explanations"]}
            outcomes = {id_: each["outcome"] for id_, each in found.items()}
    return found


async def test_what_became_of_an_event_is_told_for_each_subscription(tmp_path: Path) -> None:
    async with Endpoint() as endpoint, running(tmp_path, KEY) as (call, _):
        for id_, more in (
            ("sub_well", {}),
            ("sub_orders", {"event_types": ["order.*"]}),
            ("sub_paused", {"status": "paused"}),
            ("sub_gone", {}),
            ("sub_other", {"tenant": "globex"}),
        ):
            new = {"id": id_, "tenant": "acme", "url": endpoint.url, "event_types": ["*"], **more}
            made(await call("POST", "/v1/subscriptions", new))
        assert (await call("DELETE", "/v1/subscriptions/sub_gone")).status == 204
        event = {"id": "evt_1", "type": "invoice.paid", "tenant": "acme"}
        assert (await call("POST", "/v1/events", event)).status == 202
        wanted = {
            "sub_well": "delivered",
            "sub_orders": "no_match_type",
            "sub_paused": "paused",
            "sub_gone": "deleted",
        }
        found = await explained(call, "evt_1", wanted)
        assert "was answered with status 200" in found["sub_well"]["sentence"]
        assert found["sub_well"]["delivery_id"].startswith("dlv_")
        assert found["sub_orders"]["delivery_id"] is None
        # What happens afterwards changes nothing of what held then.
        assert (await call("POST", "/v1/subscriptions/sub_paused/resume")).status == 200
        late = {"id": "sub_late", "tenant": "acme", "url": endpoint.url, "event_types": ["*"]}
        made(await call("POST", "/v1/subscriptions", late))
        found = await explained(call, "evt_1", {**wanted, "sub_late": "made_later"})
        assert "after the event was read at" in found["sub_late"]["sentence"]
        only = (await call("GET", "/v1/events/evt_1/explain?subscription=sub_late")).json["events"][0]
        assert [each["subscription_id"] for each in only["explanations"]] == ["sub_late"]
        document = problem(await call("GET", "/v1/events/evt_none/explain"), 404, "not-found")
        assert "evt_none" in document["detail"]


async def test_a_producer_whose_clock_is_wrong_changes_no_explanation(tmp_path: Path) -> None:
    async with Endpoint() as endpoint, running(tmp_path, KEY) as (call, app):
        for id_, more in (
            ("sub_well", {}),
            ("sub_orders", {"event_types": ["order.*"]}),
            ("sub_paused", {"status": "paused"}),
        ):
            new = {"id": id_, "tenant": "acme", "url": endpoint.url, "event_types": ["*"], **more}
            made(await call("POST", "/v1/subscriptions", new))
        (topic,) = app.settings.topics.events
        for name, skew in (("slow", -1800), ("fast", 1800)):
            # By its record it is from before the subscriptions were made, or from after the pause has ended.
            event = b'{"id": "evt_%b", "type": "invoice.paid", "tenant": "acme"}' % name.encode()
            at = int((time.time() + skew) * 1000)
            await app.broker.produce([Message(topic, event, b"k", timestamp_ms=at)])
            await explained(
                call,
                f"evt_{name}",
                {"sub_well": "delivered", "sub_orders": "no_match_type", "sub_paused": "paused"},
            )
        assert (await call("POST", "/v1/subscriptions/sub_paused/resume")).status == 200
        for name in ("slow", "fast"):
            (found,) = (await call("GET", f"/v1/events/evt_{name}/explain?subscription=sub_paused")).json[
                "events"
            ]
            assert [each["outcome"] for each in found["explanations"]] == ["paused"]


async def test_what_cannot_be_asked_is_refused_with_its_field() -> None:
    async with serving(KEY) as (call, _):
        for query, field in (("subscription=", "subscription"), ("tenant=acme", "tenant")):
            answer = await call("GET", f"/v1/events/evt_1/explain?{query}")
            assert fields(problem(answer, 422, "invalid")) == [field]
