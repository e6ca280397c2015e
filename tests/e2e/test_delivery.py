"""The whole program: records in a real broker, a real process, a real endpoint."""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from standardwebhooks import Webhook

from dispatcher.broker.base import Message
from tests.e2e.daemon import SECRET, Daemon, Endpoint, envelope, eventually, publish
from tests.ports import free_port


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def broker_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "kafka":
        return f"kafka://{request.getfixturevalue('kafka')}"
    return f"sqlite:///{tmp_path}/log.db"


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    async with Endpoint() as endpoint:
        yield endpoint


class Stage:
    """A daemon that isn't started yet, and records for it."""

    def __init__(self, folder: Path, broker_url: str) -> None:
        self.folder = folder
        self.broker_url = broker_url
        self.name = f"t{uuid.uuid4().hex[:12]}"
        self.topic = f"{self.name}.events"
        self.daemon: Daemon | None = None

    async def publish(
        self, values: Sequence[bytes | None], headers: list[tuple[str, bytes]] | None = None
    ) -> None:
        messages = [
            Message(self.topic, value, headers=headers or [], key=b"%d" % number)
            for number, value in enumerate(values)
        ]
        await publish(self.broker_url, messages)

    def make(self, subscriptions: list[dict[str, Any]], **settings: Any) -> Daemon:
        topics = {"events": [self.topic], "prefix": f"{self.name}.d.", **settings.pop("topics", {})}
        self.daemon = Daemon(
            self.folder, self.broker_url, subscriptions, group=self.name, topics=topics, **settings
        )
        return self.daemon


@pytest.fixture
async def stage(tmp_path: Path, broker_url: str) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path, broker_url)
    yield stage
    if stage.daemon is not None:
        await stage.daemon.kill()


def everything(endpoint: Endpoint, **fields: Any) -> dict[str, Any]:
    return {"id": "sub_all", "tenant": "*", "url": f"{endpoint.url}/hook", "event_types": ["*"], **fields}


async def test_every_event_arrives_once_signed_and_unchanged(stage: Stage, endpoint: Endpoint) -> None:
    events = dict(envelope(number, size=200) for number in range(500))
    daemon = stage.make([everything(endpoint, headers={"X-Env": "test"})])
    await stage.publish(list(events.values()))
    await daemon.start()
    await endpoint.received(set(events), within=60)
    await asyncio.sleep(1.5)
    assert await daemon.stop() == 0
    assert set(endpoint.ids.values()) == {1}
    for path, headers, body in endpoint.requests:
        assert path == "/hook"
        assert body == events[headers["webhook-id"]]
        assert headers["x-env"] == "test"
        assert headers["content-type"] == "application/json"
        Webhook(SECRET).verify(body, headers)  # raises unless the public package agrees


async def test_a_restart_goes_on_where_the_last_process_stopped(stage: Stage, endpoint: Endpoint) -> None:
    first = dict(envelope(number) for number in range(100))
    second = dict(envelope(number) for number in range(100, 200))
    daemon = stage.make([everything(endpoint)])
    await stage.publish(list(first.values()))
    await daemon.start()
    await endpoint.received(set(first), within=60)
    assert await daemon.stop() == 0
    await stage.publish(list(second.values()))
    await daemon.start()
    await endpoint.received(set(second), within=60)
    assert await daemon.stop() == 0
    assert set(endpoint.ids.values()) == {1}


async def test_kill_9_in_the_middle_loses_nothing(stage: Stage) -> None:
    events = dict(envelope(number, size=500) for number in range(3000))

    async def slow(_request: web.Request) -> web.Response:
        await asyncio.sleep(0.01)
        return web.Response()

    async with Endpoint(slow) as endpoint:
        daemon = stage.make(
            [everything(endpoint)],
            delivery={"connections_per_host": 8},
        )
        await stage.publish(list(events.values()))
        kills = 0
        while len(endpoint.ids) < len(events):
            await daemon.start(ready=False)
            goal = min(len(endpoint.ids) + 600, len(events))
            await eventually(lambda: len(endpoint.ids) >= goal, within=90)  # noqa: B023 - awaited before it changes
            if len(endpoint.ids) < len(events):
                await daemon.kill()
                kills += 1
        await endpoint.received(set(events), within=60)
        assert kills >= 3
        assert await daemon.stop() == 0
        assert endpoint.ids.keys() == events.keys()


async def test_what_failed_is_tried_again_until_it_arrives(stage: Stage) -> None:
    seen: dict[str, int] = {}

    async def third_time_lucky(request: web.Request) -> web.Response:
        id_ = request.headers["webhook-id"]
        seen[id_] = seen.get(id_, 0) + 1
        return web.Response(status=200 if seen[id_] == 3 else 500)

    async with Endpoint(third_time_lucky) as endpoint:
        events = dict(envelope(number) for number in range(50))
        daemon = stage.make([everything(endpoint, retry={"schedule": ["100ms", "200ms"], "jitter": 0.1})])
        await stage.publish(list(events.values()))
        await daemon.start()
        await eventually(lambda: sum(n == 3 for n in seen.values()) == 50, within=60)
        assert await daemon.stop() == 0
        failed = daemon.log_lines("attempt failed")
        assert len(failed) == 100
        assert {line["result"] for line in failed} == {"status 500"}


async def test_what_cannot_be_delivered_or_read_is_in_the_dead_letter_topic(stage: Stage) -> None:
    async def refuse(_request: web.Request) -> web.Response:
        return web.Response(status=422, text="no such customer")

    async with Endpoint(refuse) as endpoint:
        daemon = stage.make([everything(endpoint, retry={"schedule": [], "jitter": 0})])
        _, good = envelope(1)
        await stage.publish([good, b"\xff\x00 not json", b"[1, 2]"])
        await daemon.start()
        async with asyncio.timeout(60):
            while await daemon.metric(
                "dead_letters_total", 'reason="invalid"'
            ) < 2 or not await daemon.metric("dead_letters_total", 'reason="exhausted"'):
                await asyncio.sleep(0.1)
        assert await daemon.stop() == 0
        assert len(endpoint.requests) == 1
        await daemon.start()
        await asyncio.sleep(1)
        assert await daemon.metric("events_consumed_total", f'topic="{stage.topic}"') == 0, (
            "offsets were committed"
        )
        assert await daemon.stop() == 0


async def test_sigterm_drains_and_a_second_one_ends_at_once(stage: Stage) -> None:
    release = asyncio.Event()

    async def hang(_request: web.Request) -> web.Response:
        await release.wait()
        return web.Response()

    async with Endpoint(hang) as endpoint:
        events = dict(envelope(number) for number in range(5))
        daemon = stage.make([everything(endpoint)], shutdown={"drain": "10m"})
        await stage.publish(list(events.values()))
        await daemon.start()
        await endpoint.received(set(events), within=60)
        daemon.signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            while (await daemon.get("/readyz"))[0] != 503:
                await asyncio.sleep(0.05)
        assert (await daemon.get("/healthz"))[0] == 200
        release.set()
        assert await daemon.ended() == 0
        before = endpoint.ids.total()
        release.clear()
        more = dict(envelope(number) for number in range(100, 103))
        await stage.publish(list(more.values()))
        await daemon.start()
        await endpoint.received(set(more), within=60)
        assert endpoint.ids.total() == before + 3, "what was drained had been committed"
        daemon.signal(signal.SIGTERM)
        daemon.signal(signal.SIGTERM)  # as a supervisor does that signals the process and its group
        async with asyncio.timeout(60):
            while (await daemon.get("/readyz"))[0] != 503:
                await asyncio.sleep(0.05)
        await asyncio.sleep(1.5)
        assert daemon.running
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended(within=60) == 128 + signal.SIGTERM
        release.set()


async def test_subscriptions_change_without_a_restart_and_a_bad_file_changes_nothing(
    stage: Stage, endpoint: Endpoint
) -> None:
    daemon = stage.make([everything(endpoint)])
    await daemon.start()
    assert await daemon.metric("subscriptions", 'status="active"') == 1
    daemon.write_subscriptions([everything(endpoint), everything(endpoint, id="sub_two")])
    async with asyncio.timeout(20):
        while await daemon.metric("subscriptions", 'status="active"') != 2:
            await asyncio.sleep(0.05)
    daemon.subscriptions_file.write_text("subscriptions: [{id: broken}]")
    daemon.signal(signal.SIGHUP)
    async with asyncio.timeout(20):
        while not await daemon.metric("registry_reloads_total", 'result="failed"'):
            await asyncio.sleep(0.05)
    assert await daemon.metric("subscriptions", 'status="active"') == 2
    assert (await daemon.get("/readyz"))[0] == 200
    assert await daemon.stop() == 0


async def test_a_broker_that_is_not_there_is_waited_for(tmp_path: Path, endpoint: Endpoint) -> None:
    daemon = Daemon(tmp_path, f"kafka://127.0.0.1:{free_port()}", [everything(endpoint)])
    try:
        await daemon.start(ready=False)
        async with asyncio.timeout(90):
            while (await daemon.get("/healthz"))[0] != 200:
                await asyncio.sleep(0.05)
            while "127.0.0.1" not in str(orjson.loads((await daemon.get("/readyz"))[1])["problems"]):
                await asyncio.sleep(0.05)
        await asyncio.sleep(1)
        assert daemon.running
        assert (await daemon.get("/readyz"))[0] == 503
        assert await daemon.stop() == 0
    finally:
        await daemon.kill()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"delivery": {"timout": "5s"}}, "delivery.timout"),
        ({"delivery": {"timeout": "5 parsecs"}}, "delivery.timeout"),
        ({"network": {"allow": ["127.0.0.300/8"]}}, "network.allow"),
        ({"broker": "mqtt://localhost"}, "broker"),
    ],
)
async def test_a_wrong_setting_is_named_and_nothing_starts(
    tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    daemon = Daemon(tmp_path, **{"broker": "sqlite:///./log.db", "subscriptions": [], **settings})
    await daemon.start(ready=False)
    assert await daemon.ended() == 2
    assert says in daemon.log()
    assert "Traceback" not in daemon.log()
    assert not (tmp_path / "log.db").exists()
