"""The broker in trouble, real: named in /readyz, nothing lost, and over by itself when the trouble is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from dispatcher.broker.base import Message, Record, TopicPartition
from dispatcher.broker.open import open_broker
from dispatcher.settings.groups import KafkaSettings
from tests.e2e.daemon import Daemon, Endpoint, envelope, eventually, publish
from tests.e2e.test_delivery import Stage, everything
from tests.e2e.test_retries import SHORT
from tests.kafka.fencing import fence
from tests.kafka.server import Cluster

QUICK: dict[str, Any] = {
    "session_timeout": "6s",
    "heartbeat_interval": "1s",
    "rebalance_timeout": "10s",
    "request_timeout": "5s",
}


pytestmark = pytest.mark.timeout(420)  # starting and stopping a broker on a busy machine takes its time


async def problems(daemon: Daemon) -> str:
    """What /readyz names; empty when it is ready."""
    status, body = await daemon.get("/readyz")
    document = orjson.loads(body) if body else {}
    return "" if status == 200 else "; ".join(document.get("problems", ["no answer"]))


async def named(daemon: Daemon, what: str, within: float = 60.0) -> None:
    """Wait until /readyz names it."""
    deadline = asyncio.get_running_loop().time() + within
    while what not in (said := await problems(daemon)):
        assert daemon.running, daemon.log()
        assert asyncio.get_running_loop().time() < deadline, f"{what!r} not in {said!r}"
        await asyncio.sleep(0.1)


async def reaches(daemon: Daemon, metric: str, labels: str, value: float, within: float = 60.0) -> None:
    """Wait until the metric has this value."""
    deadline = asyncio.get_running_loop().time() + within
    while (now := await daemon.metric(metric, labels)) != value:
        assert daemon.running, daemon.log()
        assert asyncio.get_running_loop().time() < deadline, f"{metric} is {now}"
        await asyncio.sleep(0.1)


async def read_topic(url: str, topic: str) -> list[tuple[TopicPartition, Record]]:
    """All that is in it, not much, and where it stands."""
    broker = open_broker(url, KafkaSettings())
    await broker.connect()
    try:
        (info,) = [info for info in await broker.topics() if info.name == topic]
        places = [
            (TopicPartition(topic, each.partition), offset)
            for each in info.partitions
            for offset in range(each.earliest, each.latest)
        ]
        return [(place[0], record) for place in places if (record := await broker.read(*place)) is not None]
    finally:
        await broker.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 12 MiB, where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(disk)]
    if (
        os.geteuid() != 0
        or shutil.which("mount") is None
        or subprocess.run(command, capture_output=True, check=False).returncode != 0
    ):
        pytest.skip("no small disk: mounting one takes root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def fill(ballast: Path) -> None:
    """Leave no byte free on its disk."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size):
                    pass


async def test_a_full_disk_is_named_holds_what_cannot_be_written_and_loses_nothing(
    tmp_path: Path, small_disk: Path
) -> None:
    answering = asyncio.Event()
    seen: dict[str, int] = {}

    async def second_time_lucky(request: web.Request) -> web.Response:
        await answering.wait()
        id_ = request.headers["webhook-id"]
        seen[id_] = seen.get(id_, 0) + 1
        return web.Response(status=200 if seen[id_] > 1 else 503)

    url = f"sqlite:///{small_disk}/log.db"
    events = dict(envelope(number, size=200) for number in range(30))
    await publish(url, [Message("events", body) for body in events.values()])
    async with Endpoint(second_time_lucky) as endpoint:
        retry = {"schedule": ["2s"], "jitter": 0}
        daemon = Daemon(tmp_path, url, [everything(endpoint, retry=retry, max_in_flight=30)], retry=SHORT)
        await daemon.start()
        try:
            await eventually(lambda: len(endpoint.requests) == 30, within=60)
            ballast = small_disk / "ballast"
            fill(ballast)
            answering.set()  # every delivery fails, and its retry can't be written
            await named(daemon, "is full: free some space")
            assert sum(seen.values()) == 30
            assert await daemon.metric("outbox_waiting") > 0
            assert daemon.log_lines("write failed, trying again")
            ballast.unlink()
            await eventually(lambda: all(count > 1 for count in seen.values()), within=60)
            await daemon.ready()
            # Not a second time from the start: what had failed was held, not lost.
            assert await daemon.metric("deliveries_total", 'outcome="delivered"') == 30
            assert await daemon.stop() == 0
        finally:
            await daemon.kill()
        assert seen == dict.fromkeys(events, 2)


LONG = (
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        "DISPATCHER_TEST_LONG" not in os.environ, reason="takes minutes: DISPATCHER_TEST_LONG=1"
    ),
)


@pytest.mark.parametrize("away", [8, pytest.param(180, marks=LONG)], ids=["shortly", "minutes"])
async def test_a_broker_that_goes_away_is_named_and_waited_for_while_what_is_in_flight_goes_on(
    tmp_path: Path, kafka_cluster: Callable[..., Cluster], away: float
) -> None:
    cluster = kafka_cluster()
    url = f"kafka://{cluster.bootstrap}"
    answering = asyncio.Event()

    async def hang(_request: web.Request) -> web.Response:
        await answering.wait()
        return web.Response()

    first = dict(envelope(number) for number in range(20))
    later = dict(envelope(number) for number in range(100, 200))
    async with Endpoint(hang) as endpoint:
        await publish(url, [Message("events", body) for body in first.values()])
        subscription = everything(endpoint, max_in_flight=50, timeout="5m")
        # What is in flight stays in memory meanwhile: the limit on holding is for endpoints, not for this.
        daemon = Daemon(tmp_path, url, [subscription], kafka=QUICK, delivery={"timeout": "5m"})
        await daemon.start()
        try:
            await endpoint.received(set(first), within=60)
            cluster.nodes[0].kill()
            await named(daemon, "connection refused")
            answering.set()
            delivered = 0.0
            while delivered < 20:
                assert daemon.running, daemon.log()
                delivered = await daemon.metric("deliveries_total", 'outcome="delivered"')
                await asyncio.sleep(0.1)
            await asyncio.sleep(away)
            assert "connection refused" in await problems(daemon)
            assert (await daemon.get("/healthz"))[0] == 200
            cluster.nodes[0].start()
            await publish(url, [Message("events", body) for body in later.values()])
            await endpoint.received(set(later), within=120)
            await daemon.ready(within=120)
            assert daemon.log_lines("the broker is away, trying again")
            assert daemon.log_lines("the broker is back")
            assert await daemon.stop() == 0
        finally:
            await daemon.kill()


async def test_too_few_replicas_in_sync_hold_what_cannot_be_written_until_they_are_back(
    tmp_path: Path, kafka_cluster: Callable[..., Cluster]
) -> None:
    # One controller, which stays: somebody has to notice that the others' replicas are out of sync.
    sessions = {"broker.session.timeout.ms": 3000, "broker.heartbeat.interval.ms": 500}
    cluster = kafka_cluster(3, controllers=1, properties=sessions)
    url = f"kafka://{cluster.bootstrap}"
    answering = asyncio.Event()
    seen: Counter[str] = Counter()

    async def second_time_lucky(request: web.Request) -> web.Response:
        await answering.wait()
        id_ = request.headers["webhook-id"]
        seen[id_] += 1
        return web.Response(status=200 if seen[id_] > 1 else 503)

    events = dict(envelope(number) for number in range(30))
    await publish(url, [Message("events", body) for body in events.values()])
    async with Endpoint(second_time_lucky) as endpoint:
        retry = {"schedule": ["2s"] * 5, "jitter": 0}
        subscription = everything(endpoint, retry=retry, max_in_flight=30, timeout="10m")
        waiting = {"timeout": "10m"}
        daemon = Daemon(tmp_path, url, [subscription], retry=SHORT, kafka=QUICK, delivery=waiting)
        await daemon.start()
        try:
            await endpoint.received(set(events), within=60)
            for node in cluster.nodes[1:]:
                node.kill()
            answering.set()  # every delivery fails, and its retry can't be written
            await named(daemon, "too few replicas are in sync", within=120)
            assert seen == Counter(events.keys())
            assert await daemon.metric("outbox_waiting") == 30
            assert await daemon.metric("deliveries_in_flight") == 30, "nothing is settled"
            assert (await daemon.get("/healthz"))[0] == 200
            for node in cluster.nodes[1:]:
                await asyncio.to_thread(node.start)
            await eventually(lambda: all(seen[id_] > 1 for id_ in events), within=120)
            await daemon.ready(within=120)
            await reaches(daemon, "deliveries_in_flight", "", 0)
            assert await daemon.metric("outbox_waiting") == 0
            assert await daemon.metric("dead_letters_total", 'reason="exhausted"') == 0
            assert await daemon.stop() == 0
        finally:
            await daemon.kill()


async def test_a_fenced_producer_is_replaced_and_what_it_was_to_write_is_written_once(
    tmp_path: Path, kafka: str
) -> None:
    url = f"kafka://{kafka}"
    stage = Stage(tmp_path, url)
    events = dict(envelope(number) for number in range(21))
    first, *others = events.values()

    async def refuse(_request: web.Request) -> web.Response:
        return web.Response(status=500)

    async with Endpoint(refuse) as endpoint:
        daemon = stage.make([everything(endpoint, retry={"schedule": []})], kafka={"request_timeout": "5s"})
        dead = f"{stage.name}.d.dead"
        await stage.publish([first])
        await daemon.start()
        try:
            await reaches(daemon, "dead_letters_total", 'reason="exhausted"', 1)
            ((place, _),) = await read_topic(url, dead)
            await fence(kafka, dead, place.partition)
            await stage.publish(others)
            await reaches(daemon, "dead_letters_total", 'reason="exhausted"', 21)
            (line,) = daemon.log_lines("a fresh producer is needed")
            assert "another producer was given its id" in line["error"]
            assert await problems(daemon) == ""
            assert await daemon.stop() == 0
        finally:
            await daemon.kill()
        letters = [dict(each.headers)["event_id"] for _, each in await read_topic(url, dead) if each.headers]
        assert Counter(letters) == Counter(id_.encode() for id_ in events)
