"""Sending again, ending and purging over HTTP, on the whole dispatcher with its history."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from dispatcher.broker.base import TopicPartition
from dispatcher.delivery import interventions
from tests.api.real import made, running
from tests.api.serving import KEY, Client, problem
from tests.e2e.daemon import Endpoint, eventually

LATER = {"schedule": ["1h"]}


class Answering:
    """An endpoint's answer, which a test may change."""

    def __init__(self, status: int = 200) -> None:
        self.status = status

    async def __call__(self, _request: web.Request) -> web.Response:
        return web.Response(status=self.status)


async def subscribe(call: Client, url: str, id_: str = "sub_1", **more: Any) -> None:
    made(
        await call(
            "POST",
            "/v1/subscriptions",
            {"id": id_, "url": url, "event_types": ["invoice.*"], "tenant": "acme", **more},
        )
    )


async def publish(call: Client, id_: str = "evt_1", **more: Any) -> None:
    event = {"type": "invoice.paid", "id": id_, "tenant": "acme", "data": {"amount": 42}, **more}
    assert (await call("POST", "/v1/events", event)).status == 202


async def known(call: Client, event: str, condition: Callable[[Any], bool] = lambda _: True) -> Any:
    """The delivery of an event, once the history knows this of it."""
    async with asyncio.timeout(60):
        while True:
            # While the history is being opened it can't be asked.
            listed = (await call("GET", f"/v1/deliveries?event={event}")).json.get("deliveries")
            if listed and condition(listed[0]):
                return (await call("GET", f"/v1/deliveries/{listed[0]['id']}")).json
            await asyncio.sleep(0.05)


def state(wanted: str, generation: int = 1) -> Callable[[Any], bool]:
    return lambda found: (found["state"], found["generation"]) == (wanted, generation)


async def test_a_delivery_is_sent_again_and_the_history_says_who_asked(tmp_path: Path) -> None:
    async with Endpoint() as endpoint, running(tmp_path, KEY) as (call, _):
        await subscribe(call, endpoint.url)
        await publish(call)
        found = await known(call, "evt_1", state("delivered"))
        answer = await call("POST", f"/v1/deliveries/{found['delivery']['id']}/retry")
        assert answer.status == 202, answer
        asked = answer.json
        assert (asked["action"], asked["generation"], asked["event_id"]) == ("retry", 2, "evt_1")
        assert asked["requested_by"].startswith("operator ")
        assert asked["source"] == found["delivery"]["source"]
        found = await known(call, "evt_1", state("delivered", 2))
        assert [each.get("triggered_by") for each in found["attempts"]] == [None, asked["requested_by"]]
        assert endpoint.ids["evt_1"] == 2
        assert endpoint.requests[0][2] == endpoint.requests[1][2]


async def test_a_pending_delivery_is_cancelled_and_one_that_ended_is_not(tmp_path: Path) -> None:
    answering = Answering(503)
    async with Endpoint(answering) as endpoint, running(tmp_path, KEY) as (call, _):
        await subscribe(call, endpoint.url, retry=LATER)
        await publish(call)
        found = await known(call, "evt_1", state("retrying"))
        path = f"/v1/deliveries/{found['delivery']['id']}"
        assert (await call("POST", f"{path}/cancel")).status == 202
        found = await known(call, "evt_1", state("dropped"))
        assert found["delivery"]["reason"] == "cancelled"
        assert found["attempts"][-1]["triggered_by"].startswith("operator ")
        async with asyncio.timeout(60):
            # While its end is on its way to the topic, who asks again gets the first command.
            while (again := await call("POST", f"{path}/cancel")).status == 202:
                await asyncio.sleep(0.05)
        assert "it is dropped" in problem(again, 409, "wrong-state")["detail"]
        answering.status = 200
        assert (await call("POST", f"{path}/retry")).status == 202
        await known(call, "evt_1", lambda each: each["state"] == "delivered" and each["generation"] >= 3)
        assert endpoint.ids["evt_1"] == 2


async def test_an_event_is_delivered_to_a_subscription_that_was_made_later(tmp_path: Path) -> None:
    async with Endpoint() as endpoint, running(tmp_path, KEY) as (call, _):
        await publish(call)
        async with asyncio.timeout(60):
            while (await call("GET", "/v1/events/evt_1")).status != 200:
                await asyncio.sleep(0.05)
        await subscribe(call, endpoint.url, event_types=["order.*"])
        answer = await call("POST", "/v1/events/evt_1/deliveries", {"subscription": "sub_1"})
        assert answer.status == 202, answer
        await endpoint.received({"evt_1"}, 60)
        await known(call, "evt_1", state("delivered", 2))
        await subscribe(call, endpoint.url, "sub_globex", tenant="globex")
        refused = await call("POST", "/v1/events/evt_1/deliveries", {"subscription": "sub_globex"})
        assert [each["field"] for each in problem(refused, 422, "invalid")["errors"]] == ["subscription"]
        nowhere = await call("POST", "/v1/events/evt_1/deliveries", {"subscription": "sub_none"})
        problem(nowhere, 404, "not-found")
        problem(
            await call("POST", "/v1/events/evt_none/deliveries", {"subscription": "sub_1"}), 404, "not-found"
        )


async def test_where_several_events_have_an_id_the_source_says_which(tmp_path: Path) -> None:
    async with Endpoint() as endpoint, running(tmp_path, KEY, api={"publish_window": "1s"}) as (call, _):
        await subscribe(call, endpoint.url, event_types=["order.*"])
        await publish(call, data={"amount": 1})
        async with asyncio.timeout(60):
            while (
                await call(
                    "POST",
                    "/v1/events",
                    {"type": "invoice.paid", "id": "evt_1", "tenant": "acme", "data": {"amount": 2}},
                )
            ).status != 202:
                await asyncio.sleep(0.2)
            while len((found := await call("GET", "/v1/events/evt_1")).json.get("events", ())) != 2:
                await asyncio.sleep(0.05)
        wanted = {"subscription": "sub_1"}
        refused = await call("POST", "/v1/events/evt_1/deliveries", wanted)
        assert "2 events have this id" in problem(refused, 422, "invalid")["detail"]
        second = found.json["events"][0]["source"]
        elsewhere = {**second, "offset": second["offset"] + 100}
        problem(
            await call("POST", "/v1/events/evt_1/deliveries", {**wanted, "source": elsewhere}), 422, "invalid"
        )
        assert (await call("POST", "/v1/events/evt_1/deliveries", {**wanted, "source": second})).status == 202
        await endpoint.received({"evt_1"}, 60)
        assert b'"amount": 2' in endpoint.requests[0][2]


async def test_a_purge_ends_what_is_owed_and_nothing_that_is_published_later(tmp_path: Path) -> None:
    answering = Answering(503)
    async with Endpoint(answering) as endpoint, running(tmp_path, KEY) as (call, app):
        await subscribe(call, endpoint.url, retry=LATER)
        await publish(call)
        await known(call, "evt_1", state("retrying"))
        # What is kept for a paused one ends at once; what waits in a tier, when that lets it out.
        assert (await call("POST", "/v1/subscriptions/sub_1/pause")).status == 200
        answer = await call("POST", "/v1/subscriptions/sub_1/purge")
        assert answer.status == 202, answer
        assert (answer.json["action"], answer.json["subscription_id"]) == ("purge", "sub_1")
        assert app._interventions is not None
        assert app._interventions.generations.purged("sub_1") is not None
        answering.status = 200
        assert (await call("POST", "/v1/subscriptions/sub_1/resume")).status == 200
        await publish(call, "evt_2")
        await endpoint.received({"evt_2"}, 60)
        problem(await call("POST", "/v1/subscriptions/sub_none/purge"), 404, "not-found")


async def test_what_cannot_be_sent_is_said_with_what_to_do(tmp_path: Path) -> None:
    async with Endpoint() as endpoint, running(tmp_path, KEY) as (call, app):
        await subscribe(call, endpoint.url)
        await publish(call)
        id_ = (await known(call, "evt_1", state("delivered")))["delivery"]["id"]
        path = f"/v1/deliveries/{id_}/retry"
        await call("POST", "/v1/subscriptions/sub_1/pause")
        said = problem(await call("POST", path), 409, "wrong-state")["detail"]
        assert said == "sub_1 is paused, so nothing is sent to it: resume it first"
        await call("POST", "/v1/subscriptions/sub_1/disable", {"reason": "it floods"})
        assert "enable it first" in problem(await call("POST", path), 409, "wrong-state")["detail"]
        await call("DELETE", "/v1/subscriptions/sub_1")
        problem(await call("POST", path), 404, "not-found")
        problem(await call("POST", f"/v1/deliveries/dlv_{'0' * 24}/retry"), 404, "not-found")
        assert endpoint.ids["evt_1"] == 1
        assert not app._interventions.open()  # type: ignore[union-attr]


async def test_an_event_that_retention_has_taken_is_gone_and_so_is_one_of_a_topic_that_was_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Endpoint() as endpoint, running(tmp_path, KEY) as (call, app):
        await subscribe(call, endpoint.url)
        await publish(call)
        await publish(call, "evt_2")
        one, two = [(await known(call, each, state("delivered")))["delivery"] for each in ("evt_1", "evt_2")]
        read = app.broker.read

        async def gone(partition: TopicPartition, offset: int) -> Any:
            return None

        async def another(partition: TopicPartition, offset: int) -> Any:
            source = two["source"]
            return await read(TopicPartition("events", source["partition"]), source["offset"])

        monkeypatch.setattr(app.broker, "read", gone)
        said = problem(await call("POST", f"/v1/deliveries/{one['id']}/retry"), 410, "gone")["detail"]
        assert "retention has deleted it" in said
        monkeypatch.setattr(app.broker, "read", another)
        said = problem(await call("POST", f"/v1/deliveries/{one['id']}/retry"), 410, "gone")["detail"]
        assert "made anew" in said
        assert endpoint.ids["evt_1"] == 1


async def test_without_a_history_the_answer_says_which_setting_turns_it_on(tmp_path: Path) -> None:
    async with running(tmp_path, KEY, history={"store": "off"}) as (call, _):
        for path, body in (
            (f"/v1/deliveries/dlv_{'0' * 24}/retry", None),
            (f"/v1/deliveries/dlv_{'0' * 24}/cancel", None),
            ("/v1/events/evt_1/deliveries", {"subscription": "sub_1"}),
        ):
            assert "history.store" in problem(await call("POST", path, body), 409, "history-off")["detail"]


async def test_a_tenant_commands_about_its_own_and_of_others_it_learns_nothing(tmp_path: Path) -> None:
    answering = Answering(503)
    async with Endpoint(answering) as endpoint, running(tmp_path, KEY) as (operator, _):
        await subscribe(operator, endpoint.url, retry=LATER)
        await subscribe(operator, endpoint.url, "sub_all", tenant="*", retry=LATER)
        keys = {}
        for tenant in ("acme", "globex"):
            key = made(
                await operator(
                    "POST", "/v1/keys", {"name": f"key of {tenant}", "scope": "tenant", "tenant": tenant}
                )
            )
            keys[tenant] = operator.using(key["secret"])
        await publish(operator)
        await known(operator, "evt_1", state("retrying"))
        async with asyncio.timeout(60):
            while len(listed := (await operator("GET", "/v1/deliveries?event=evt_1")).json["deliveries"]) < 2:
                await asyncio.sleep(0.05)
        by = {each["subscription_id"]: each["id"] for each in listed}
        for verb in ("retry", "cancel"):
            for id_ in by.values():
                theirs = await keys["globex"]("POST", f"/v1/deliveries/{id_}/{verb}")
                nobodys = await keys["globex"]("POST", f"/v1/deliveries/dlv_{'0' * 24}/{verb}")
                assert theirs.status == nobodys.status == 404
            # Its own event, to a subscription that is not its own.
            problem(await keys["acme"]("POST", f"/v1/deliveries/{by['sub_all']}/{verb}"), 404, "not-found")
        problem(
            await keys["globex"]("POST", "/v1/events/evt_1/deliveries", {"subscription": "sub_1"}),
            404,
            "not-found",
        )
        problem(
            await keys["acme"]("POST", "/v1/events/evt_1/deliveries", {"subscription": "sub_all"}),
            404,
            "not-found",
        )
        problem(await keys["globex"]("POST", "/v1/subscriptions/sub_1/purge"), 404, "not-found")
        answering.status = 200
        answer = await keys["acme"]("POST", f"/v1/deliveries/{by['sub_1']}/retry")
        assert (answer.status, answer.json["requested_by"]) == (202, "tenant key of acme")


async def test_beyond_the_limit_a_command_is_refused_and_the_answer_says_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Endpoint() as endpoint, running(tmp_path, KEY) as (call, _):
        await subscribe(call, endpoint.url)
        await publish(call)
        id_ = (await known(call, "evt_1", state("delivered")))["delivery"]["id"]
        monkeypatch.setattr(interventions, "MOST", 1)
        assert (await call("POST", f"/v1/deliveries/{id_}/retry")).status == 202
        await known(call, "evt_1", state("delivered", 2))
        refused = await call("POST", "/v1/subscriptions/sub_1/purge")
        assert "1 interventions are remembered already" in problem(refused, 429, "overloaded")["detail"]
        assert int(refused.headers["Retry-After"]) > 0


async def test_who_asks_twice_while_it_is_under_way_gets_the_same_command(tmp_path: Path) -> None:
    held = asyncio.Event()

    async def answer(_request: web.Request) -> web.Response:
        if endpoint.ids["evt_1"] > 1:
            await held.wait()
        return web.Response()

    async with Endpoint(answer) as endpoint, running(tmp_path, KEY) as (call, _):
        await subscribe(call, endpoint.url)
        await publish(call)
        path = f"/v1/deliveries/{(await known(call, 'evt_1', state('delivered')))['delivery']['id']}/retry"
        first = await call("POST", path)
        await eventually(lambda: endpoint.ids["evt_1"] == 2, 60)
        again = await call("POST", path)
        assert first.json == again.json
        held.set()
        await known(call, "evt_1", state("delivered", 2))
        assert endpoint.ids["evt_1"] == 2
