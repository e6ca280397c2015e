"""One installation in processes of one role each, on a real Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.e2e.daemon import Daemon, Endpoint, envelope

pytestmark = [pytest.mark.kafka]

WITHIN = 60.0


@pytest.fixture
async def processes(
    tmp_path: Path, kafka: str, unique: Callable[[str], str]
) -> AsyncIterator[dict[str, Daemon]]:
    """A process for each role, none of which knows the other but by the broker."""
    shared: dict[str, Any] = {
        "group": unique("group"),
        "topics": {"events": [unique("events")], "prefix": f"{unique('own')}.", "partitions": 4},
    }
    made = {}
    for roles in ("deliver", "api,history"):
        folder = tmp_path / roles
        folder.mkdir()
        made[roles] = Daemon(folder, f"kafka://{kafka}", [], roles=roles.split(","), **shared)
    yield made
    for daemon in made.values():
        await daemon.kill()


async def test_what_one_process_takes_over_its_api_another_one_delivers(processes: dict[str, Daemon]) -> None:
    deliver, api = processes["deliver"], processes["api,history"]
    async with Endpoint() as endpoint:
        for daemon in processes.values():
            await daemon.start(ready=False)
        for daemon in processes.values():
            await daemon.ready()
            for path in ("/healthz", "/readyz", "/metrics"):
                assert (await daemon.get(path))[0] == 200
        assert (await deliver.get("/v1/subscriptions"))[0] == 404, "it serves no API"
        assert (await api.get("/v1/subscriptions"))[0] == 200

        document = {"id": "one", "url": endpoint.url, "event_types": ["test.*"]}
        status, answer = await api.call("POST", "/v1/subscriptions", document)
        assert status == 201, answer
        async with asyncio.timeout(WITHIN):
            while not await deliver.metric("subscriptions", 'status="active"'):
                await asyncio.sleep(0.05)
        id_, event = envelope(1)
        await api.post_event(event)
        await endpoint.received({id_}, WITHIN)
        assert await api.total("deliveries_total") == 0
        await _is_told_by_the_other(api, deliver)
        assert [await daemon.stop() for daemon in processes.values()] == [0, 0]


async def _is_told_by_the_other(api: Daemon, deliver: Daemon) -> None:
    """Who is failing in the process that delivers, and what it is like, is told by the one that serves the API."""

    async def ill(_: web.Request) -> web.Response:
        return web.Response(status=503)

    async with Endpoint(ill) as endpoint:
        document = {"id": "ill", "url": endpoint.url, "event_types": ["test.*"]}
        status, answer = await api.call("POST", "/v1/subscriptions", document)
        assert status == 201, answer
        async with asyncio.timeout(WITHIN):
            while await deliver.metric("subscriptions", 'status="active"') != 2:
                await asyncio.sleep(0.05)
            id_, event = envelope(2)
            await api.post_event(event)
            failing: list[Any] = []
            while not failing:
                await asyncio.sleep(0.2)
                failing = (await api.call("GET", "/v1/failing"))[1]["failing"]
            explained: dict[str, str] = {}
            while explained != {"one": "delivered", "ill": "retrying"}:
                await asyncio.sleep(0.2)
                status, found = await api.call("GET", f"/v1/events/{id_}/explain")
                events = found["events"] if status == 200 else [{"explanations": []}]
                explained = {each["subscription_id"]: each["outcome"] for each in events[0]["explanations"]}
    (each,) = failing
    assert (each["subscription_id"], each["last_result"]) == ("ill", "status 503")
    _, cluster = await api.call("GET", "/v1/cluster")
    replicas = {",".join(replica["roles"]): replica for replica in cluster["replicas"]}
    assert replicas.keys() == {"deliver", "api,history"}
    assert each["replicas"] == [replicas["deliver"]["replica"]]
    assert replicas["deliver"]["subscriptions_in_trouble"] == 1
    assert len(next(iter(replicas["deliver"]["partitions"].values()))) == 4
    assert (replicas["api,history"]["partitions"], replicas["deliver"]["history"]) == ({}, None)
    status, payload = await api.call("GET", f"/v1/events/{id_}/payload")
    assert (status, payload["id"]) == (200, id_)
