"""Who is failing, and the processes, over HTTP: a whole dispatcher that delivers to an endpoint that fails."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from dispatcher.runtime.replica import replica_name
from tests.api.real import made, running
from tests.api.serving import KEY, Client, fields, problem, serving
from tests.e2e.daemon import Endpoint


async def failing(call: Client, query: str = "") -> Any:
    answer = await call("GET", f"/v1/failing{query}")
    assert answer.status == 200, answer
    return answer.json


async def one_failing(call: Client) -> Any:
    """The answer when there is one."""
    async with asyncio.timeout(60):
        while not (found := await failing(call))["failing"]:
            await asyncio.sleep(0.1)
    return found


async def test_an_endpoint_that_fails_is_told_until_it_takes_something(tmp_path: Path) -> None:
    well = False

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=200 if well else 503)

    async with Endpoint(answer) as endpoint, running(tmp_path, KEY) as (call, _):
        assert (await failing(call))["failing"] == []
        new = {
            "id": "sub_ill",
            "tenant": "acme",
            "url": endpoint.url,
            "event_types": ["*"],
            "retry": {"schedule": ["2s"] * 15, "jitter": 0.0},
        }
        made(await call("POST", "/v1/subscriptions", new))
        event = {"id": "evt_1", "type": "invoice.paid", "tenant": "acme"}
        assert (await call("POST", "/v1/events", event)).status == 202
        found = await one_failing(call)
        (each,) = found["failing"]
        assert (each["subscription_id"], each["tenant"], each["host"]) == ("sub_ill", "acme", "127.0.0.1")
        assert (each["last_result"], each["success_rate"], each["status"]) == ("status 503", 0.0, "active")
        assert each["failing_since"] is not None
        assert each["replicas"] == found["replicas"] == [replica_name()]
        assert (found["total"], found["cut"]) == (1, False)
        assert (await failing(call, "?tenant=globex"))["failing"] == []
        assert (await failing(call, "?host=elsewhere.example"))["total"] == 0
        health = (await call("GET", "/v1/subscriptions/sub_ill/health")).json
        assert health["last_failure"] == "status 503"
        assert health["replicas"] == [{"replica": replica_name(), "in_trouble": True}]
        (replica,) = (await call("GET", "/v1/cluster")).json["replicas"]
        assert replica["subscriptions_in_trouble"] == 1
        assert (replica["replica"], replica["ready"], replica["problems"]) == (replica_name(), True, [])
        assert replica["partitions"]["events"] == [0, 1, 2, 3]
        assert replica["history"]["partitions"] > 0
        well = True
        async with asyncio.timeout(60):
            while (await failing(call))["failing"]:
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "tenant=", "since=2025-01-01T00:00:00Z"])
async def test_what_cannot_be_asked_is_refused_with_its_field(query: str) -> None:
    async with serving(KEY) as (call, _):
        document = problem(await call("GET", f"/v1/failing?{query}"), 422, "invalid")
        assert fields(document) == [query.partition("=")[0]]
