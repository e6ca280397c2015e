"""Replays over the API of a whole dispatcher on an embedded broker: what is sent arrives."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from dispatcher.app import App
from dispatcher.broker.base import Message
from tests.api.real import running
from tests.api.serving import KEY, Client
from tests.e2e.daemon import Endpoint, eventually


async def add(call: Client, url: str, id_: str = "sub_1", **more: Any) -> None:
    answer = await call("POST", "/v1/subscriptions", {"id": id_, "url": url, "event_types": ["*"], **more})
    assert answer.status == 201, answer


async def publish(app: App, *numbers: int, **more: str) -> None:
    await app.broker.produce(
        [
            Message("events", json.dumps({"id": f"evt_{number}", "type": "order.made", **more}).encode())
            for number in numbers
        ]
    )


async def done(call: Client, id_: str, state: str = "done") -> Any:
    async with asyncio.timeout(60):
        while True:
            replay = (await call("GET", f"/v1/replays/{id_}")).json["replay"]
            if replay["state"] == state:
                return replay
            assert replay["state"] in ("planned", "running"), replay
            await asyncio.sleep(0.05)


async def start(call: Client, **asked: Any) -> str:
    answer = await call("POST", "/v1/replays", asked)
    assert answer.status == 201, answer
    id_: str = answer.json["replay"]["id"]
    assert answer.headers["Location"] == f"/v1/replays/{id_}"
    return id_


async def test_a_subscription_that_was_made_today_gets_last_weeks_events(tmp_path: Path) -> None:
    async with running(tmp_path, KEY) as (call, app), Endpoint() as endpoint:
        await publish(app, *range(100))
        await eventually(lambda: app.metrics.unmatched == 100, 30)
        await add(call, endpoint.url)
        planned = await call(
            "POST",
            "/v1/replays",
            {"source": "events", "subscription": "sub_1", "rate": "50/s", "dry_run": True},
        )
        plan = planned.json["plan"]
        assert (plan["deliveries"], plan["exact"], plan["by_type"], plan["seconds"]) == (
            100,
            True,
            {"order.made": 100},
            2.0,
        )
        assert not endpoint.requests
        id_ = await start(call, source="events", subscription="sub_1")
        await endpoint.received({f"evt_{number}" for number in range(100)}, 60)
        replay = await done(call, id_)
        assert replay["progress"] == {
            "fraction": 1.0, "looked": 100, "written": 100, "sent": 100, "behind": 0, "skipped": {},
        }  # fmt: skip
        assert all(headers["webhook-replay"] == id_ for _, headers, _ in endpoint.requests)
        assert len(endpoint.requests) == 100
        listed = (await call("GET", "/v1/replays?state=done&subscription=sub_1")).json
        assert [each["id"] for each in listed["replays"]] == [id_]
        metrics = (await call("GET", "/metrics")).body.decode()
        assert 'dispatcher_replays{state="done"} 1.0' in metrics
        assert 'dispatcher_replay_deliveries_total{result="sent"} 100.0' in metrics


async def test_dead_letters_are_sent_again_from_their_own_copies(tmp_path: Path) -> None:
    well = False

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=200 if well else 500)

    async with (
        running(tmp_path, KEY, retry={"schedule": []}, delivery={"breaker_threshold": 0}) as (call, app),
        Endpoint(answer) as endpoint,
    ):
        await add(call, endpoint.url)
        await publish(app, *range(20))
        await eventually(lambda: app.metrics.dead_letters["exhausted"] == 20, 30)
        well = True
        endpoint.requests.clear()
        refused = await call(
            "POST", "/v1/replays", {"source": "dead_letters", "reasons": ["gone"], "dry_run": True}
        )
        assert refused.json["plan"]["deliveries"] == 0
        id_ = await start(call, source="dead_letters", status_codes=["5xx"], subscription="sub_1")
        assert (await done(call, id_))["progress"]["sent"] == 20
        assert {headers["webhook-id"] for _, headers, _ in endpoint.requests} == {
            f"evt_{n}" for n in range(20)
        }


async def test_deliveries_are_found_in_the_history(tmp_path: Path) -> None:
    async with running(tmp_path, KEY) as (call, app), Endpoint() as endpoint:
        await add(call, endpoint.url)
        await publish(app, *range(10))
        await endpoint.received({f"evt_{number}" for number in range(10)}, 60)

        async def known() -> bool:
            listed = (await call("GET", "/v1/deliveries?state=delivered")).json
            return len(listed["deliveries"]) == 10

        async with asyncio.timeout(60):
            while not await known():
                await asyncio.sleep(0.1)
        nothing = await call("POST", "/v1/replays", {"source": "deliveries", "dry_run": True})
        assert nothing.json["plan"]["deliveries"] == 0  # none is dead or dropped
        id_ = await start(call, source="deliveries", states=["delivered"], since="2020-01-01T00:00:00Z")
        await done(call, id_)
        await eventually(lambda: len(endpoint.requests) == 20, 30)
        # The history has them in the next generation.
        async with asyncio.timeout(60):
            while True:
                listed = (await call("GET", "/v1/deliveries")).json["deliveries"]
                if {each["generation"] for each in listed} == {2}:
                    break
                await asyncio.sleep(0.1)
        shown = (await call("GET", f"/v1/deliveries/{listed[0]['id']}")).json
        assert [each.get("replay") for each in shown["attempts"]] == [None, id_]


async def test_a_replay_is_paused_resumed_and_cancelled_and_each_takes_hold(tmp_path: Path) -> None:
    async with running(tmp_path, KEY) as (call, app), Endpoint() as endpoint:
        await publish(app, *range(300))
        await eventually(lambda: app.metrics.unmatched == 300, 30)
        await add(call, endpoint.url)
        id_ = await start(call, source="events", subscription="sub_1", rate="15/s")
        await eventually(lambda: len(endpoint.requests) >= 20, 60)
        assert (await call("POST", f"/v1/replays/{id_}/pause")).json["replay"]["state"] == "paused"
        await eventually(lambda: app._engine is not None and app._engine._settlement.in_flight == 0, 30)
        paused = len(endpoint.requests)
        # An event of today is delivered meanwhile, and nothing of the replay.
        await publish(app, 1000)
        await endpoint.received({"evt_1000"}, 60)
        assert len(endpoint.requests) == paused + 1
        assert (await call("POST", f"/v1/replays/{id_}/resume")).status == 200
        await eventually(lambda: len(endpoint.requests) >= paused + 20, 60)
        cancelled = (await call("POST", f"/v1/replays/{id_}/cancel")).json["replay"]
        assert (cancelled["state"], cancelled["estimate"]["seconds_left"]) == ("cancelled", None)
        await eventually(lambda: app._engine is not None and app._engine._settlement.in_flight == 0, 30)
        sent = len(endpoint.requests)
        await publish(app, 1001)
        await endpoint.received({"evt_1001"}, 60)
        assert len(endpoint.requests) == sent + 1 < 302
        again = await call("POST", f"/v1/replays/{id_}/resume")
        assert (again.status, again.json["type"].rpartition(":")[2]) == (409, "wrong-state")


async def test_what_is_wrong_with_a_request_is_said_field_by_field(tmp_path: Path) -> None:
    async with running(tmp_path, KEY, history={"store": "off"}) as (call, _), Endpoint() as endpoint:
        await add(call, endpoint.url, "sub_paused", status="paused")

        async def refused(status: int, kind: str, **asked: Any) -> Any:
            answer = await call("POST", "/v1/replays", asked)
            assert (answer.status, answer.json["type"].rpartition(":")[2]) == (status, kind), answer
            return answer.json

        wrong = await refused(
            422,
            "invalid",
            source="events",
            since="2026-01-02T00:00:00Z",
            until="2026-01-01T00:00:00Z",
            states=["dead"],
            status_codes=["503"],
            reasons=["gone"],
        )
        assert sorted(each["field"] for each in wrong["errors"]) == [
            "reasons",
            "since",
            "states",
            "status_codes",
        ]
        everything = await refused(422, "invalid", source="events")
        assert everything["errors"][0]["field"] == "since"
        await refused(422, "invalid", source="letters")
        await refused(422, "invalid", source="deliveries", states=["pending"])
        await refused(404, "not-found", source="events", subscription="sub_none")
        paused = await refused(409, "wrong-state", source="events", subscription="sub_paused")
        assert "resume it first" in paused["detail"]
        await refused(409, "history-off", source="deliveries")
        assert (await call("GET", "/v1/replays/rpl_000000000000")).status == 404


async def test_the_same_request_begins_one_replay(tmp_path: Path) -> None:
    async with running(tmp_path, KEY) as (call, _):
        keyed = {"headers": {"Idempotency-Key": "k1"}}
        first = await call("POST", "/v1/replays", {"source": "dead_letters"}, **keyed)
        again = await call("POST", "/v1/replays", {"source": "dead_letters"}, **keyed)
        assert first.json["replay"]["id"] == again.json["replay"]["id"]
        other = await call("POST", "/v1/replays", {"source": "dead_letters", "reasons": ["gone"]}, **keyed)
        assert other.status == 409
        assert len((await call("GET", "/v1/replays")).json["replays"]) == 1


@pytest.mark.parametrize("how", ["pause", "disable"])
async def test_what_matched_while_it_took_nothing_is_caught_up(tmp_path: Path, how: str) -> None:
    async with running(tmp_path, KEY) as (call, app), Endpoint() as endpoint:
        await add(call, endpoint.url)
        await publish(app, *range(10))
        await endpoint.received({f"evt_{number}" for number in range(10)}, 60)
        path = "/v1/subscriptions/sub_1"
        stopped = await call("POST", f"{path}/{how}", {"reason": "x"} if how == "disable" else None)
        assert stopped.status == 200, stopped
        await publish(app, *range(10, 40))
        dropped = "dropped_paused" if how == "pause" else "dropped_disabled"
        await eventually(lambda: app.metrics.deliveries[dropped] == 30, 30)
        resumed = await call("POST", f"{path}/{'resume' if how == 'pause' else 'enable'}", {"catch_up": True})
        assert (resumed.status, resumed.json["status"]) == (200, "active")
        await endpoint.received({f"evt_{number}" for number in range(10, 40)}, 60)
        replay = await done(call, resumed.json["replay"])
        assert (replay["source"], replay["subscription"]) == ("events", "sub_1")
        await publish(app, 99)
        await endpoint.received({"evt_99"}, 60)
        # Without it, or where it took deliveries all the time, nothing is sent again.
        before = len(endpoint.requests)
        plain = await call("POST", f"{path}/resume", {"catch_up": True})
        assert (plain.status, plain.json["replay"]) == (200, None)
        assert len(endpoint.requests) == before
