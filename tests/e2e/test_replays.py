"""A replay on two replicas and a real Kafka: the one that runs it is killed, and everything is sent all the same."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from dispatcher.broker.base import Message
from dispatcher.core.replay.pacing import AHEAD
from tests.e2e.daemon import Daemon, Endpoint, envelope, eventually, publish

pytestmark = [pytest.mark.kafka]

WITHIN = 120.0
LONG = pytest.mark.skipif(
    not os.environ.get("DISPATCHER_TEST_LONG"), reason="takes minutes: DISPATCHER_TEST_LONG=1"
)


@pytest.fixture
async def replicas(tmp_path: Path, kafka: str, unique: Callable[[str], str]) -> AsyncIterator[list[Daemon]]:
    shared: dict[str, Any] = {
        "group": unique("group"),
        "topics": {"events": [unique("events")], "prefix": f"{unique('own')}.", "partitions": 4},
        "history": {"store": "off"},
    }
    made = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        made.append(
            Daemon(folder, f"kafka://{kafka}", [], kafka={"member_name": f"replica-{number}"}, **shared)
        )
    yield made
    for daemon in made:
        await daemon.kill()


async def call(daemon: Daemon, method: str, path: str, body: Any = None) -> Any:
    status, answer = await daemon.call(method, path, body)
    assert status < 300, answer
    return answer


async def backlog(replicas: list[Daemon], wanted: int, others: int) -> set[str]:
    """Events that were consumed while nobody wanted them; the ids of those of the type `wanted`."""
    topic = topic_of(replicas[0])
    ids: set[str] = set()
    messages = []
    every = max(1, others // wanted + 1)
    for number in range(wanted + others):
        is_wanted = number % every == 0 and len(ids) < wanted
        id_, event = envelope(number, "wanted.event" if is_wanted else "other.event")
        if is_wanted:
            ids.add(id_)
        messages.append(Message(topic, event, id_.encode()))
    await publish(replicas[0].broker, messages)
    return ids


def topic_of(daemon: Daemon) -> str:
    topic: str = daemon.settings["topics"]["events"][0]
    return topic


async def started(replicas: list[Daemon], count: int) -> None:
    for daemon in replicas:
        await daemon.start(ready=False)
    for daemon in replicas:
        await daemon.ready()
    async with asyncio.timeout(WITHIN):
        while sum([await daemon.metric("events_unmatched_total") for daemon in replicas]) < count:
            await asyncio.sleep(0.1)


async def subscribed(replicas: list[Daemon], *documents: dict[str, Any]) -> None:
    for document in documents:
        await call(replicas[0], "POST", "/v1/subscriptions", document)
    async with asyncio.timeout(WITHIN):
        for daemon in replicas:
            while await daemon.metric("subscriptions", 'status="active"') < len(documents):
                await asyncio.sleep(0.05)


async def runner_of(replicas: list[Daemon], id_: str) -> Daemon | None:
    """The replica that runs it now; None once it is over."""
    async with asyncio.timeout(WITHIN):
        while True:
            alive = [daemon for daemon in replicas if daemon.running]
            job = (await call(alive[0], "GET", f"/v1/replays/{id_}"))["replay"]
            if job["state"] == "done":
                return None
            name = job["runner"]
            for daemon in alive:
                if name is not None and name.endswith(f":{daemon.pid}"):
                    return daemon
            await asyncio.sleep(0.05)


async def test_the_replica_that_runs_it_is_killed_and_everything_is_sent(replicas: list[Daemon]) -> None:
    wanted = await backlog(replicas, 2000, 2000)
    await started(replicas, 4000)
    async with Endpoint() as endpoint:
        await subscribed(replicas, {"id": "sub_1", "url": endpoint.url, "event_types": ["wanted.*"]})
        asked = {"source": "events", "subscription": "sub_1", "rate": "200/s"}
        replay = (await call(replicas[0], "POST", "/v1/replays", asked))["replay"]["id"]
        await eventually(lambda: len(endpoint.ids) >= 400, WITHIN)
        victim = await runner_of(replicas, replay)
        assert victim is not None
        await victim.kill()
        (other,) = [daemon for daemon in replicas if daemon is not victim]
        await endpoint.received(wanted, WITHIN)
        async with asyncio.timeout(WITHIN):
            while (job := (await call(other, "GET", f"/v1/replays/{replay}"))["replay"])["state"] != "done":
                await asyncio.sleep(0.1)
        assert endpoint.ids.keys() == wanted
        assert all(headers["webhook-replay"] == replay for _, headers, _ in endpoint.requests)
        # Since the last checkpoint, and what the killed replica had under way or not committed.
        assert endpoint.ids.total() - len(wanted) <= AHEAD
        assert job["progress"]["written"] >= len(wanted)


@LONG
@pytest.mark.timeout(1800)
async def test_a_hundred_thousand_among_a_million_while_runners_die(replicas: list[Daemon]) -> None:
    """A tenth of the endpoints fail, fresh events come beside it, and every few seconds the replica that runs it is killed."""
    wanted = await backlog(replicas, 100_000, 1_000_000)
    await started(replicas, 1_100_000)

    async def fails(_request: web.Request) -> web.Response:
        return web.Response(status=500)

    async with Endpoint() as well, Endpoint(fails) as ill, Endpoint() as beside:
        documents = [
            {
                "id": f"sub_{number}",
                "url": f"{(ill if number == 0 else well).url}/{number}",
                "event_types": ["wanted.*"],
            }
            for number in range(10)
        ]
        documents.append({"id": "sub_fresh", "url": beside.url, "event_types": ["fresh.*"]})
        await subscribed(replicas, *documents)
        replays = [
            (
                await call(
                    replicas[0], "POST", "/v1/replays", {"source": "events", "subscription": f"sub_{number}"}
                )
            )["replay"]["id"]
            for number in (0, 1)
        ]
        fresh = 0
        kills = 0
        async with asyncio.timeout(1200):
            while len(well.ids) < len(wanted):
                victim = await runner_of(replicas, replays[1])
                await asyncio.sleep(5)
                if victim is not None and kills < 10:
                    kills += 1
                    await victim.kill()
                    await victim.start()
                id_, event = envelope(2_000_000 + fresh, "fresh.event")
                await publish(replicas[0].broker, [Message(topic_of(replicas[0]), event, id_.encode())])
                fresh += 1
        assert well.ids.keys() == wanted
        assert well.ids.total() - len(wanted) <= (kills + 1) * 5 * AHEAD
        await eventually(lambda: len(beside.ids) == fresh, WITHIN)
