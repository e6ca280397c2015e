"""Where the daemon begins to read, on a real Kafka: `offset_reset: latest` holds once in a group's life, nothing is lost after."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiokafka import AIOKafkaProducer

from dispatcher.broker.base import Message, TopicPartition, TopicSpec
from tests.broker.backends import OnKafka
from tests.e2e.daemon import SECRET, Daemon, Endpoint, envelope
from tests.e2e.test_delivery import everything
from tests.kafka.groups import delete_group

pytestmark = pytest.mark.timeout(300)

KAFKA: dict[str, Any] = {"offset_reset": "latest", "heartbeat_interval": "500ms"}


class Site:
    """Topics and a group of this test's own."""

    def __init__(self, backend: OnKafka, folder: Path, unique: Callable[[str], str]) -> None:
        self.backend = backend
        self.topic, self.group, self.prefix = unique("events"), unique("group"), unique("p") + "."
        self._folder = folder
        self._made = 0
        self._sent = 0
        self.daemons: list[Daemon] = []

    def daemon(self, endpoint: Endpoint, **settings: Any) -> Daemon:
        self._made += 1
        folder = self._folder / f"d{self._made}"
        folder.mkdir()
        made = Daemon(
            folder,
            self.backend.url,
            [everything(endpoint)],
            **{
                "group": self.group,
                "topics": {"events": [self.topic], "prefix": self.prefix, "partitions": 4, "create": True},
                "kafka": KAFKA,
                "log": {"format": "json", "level": "info"},
                **settings,
            },
        )
        self.daemons.append(made)
        return made

    async def publish(self, count: int, partitions: Iterable[int], size: int = 0) -> set[str]:
        """So many to each of the partitions; their ids."""
        messages, ids = [], set()
        for partition in partitions:
            for _ in range(count):
                id_, value = envelope(self._sent, size=size)
                self._sent += 1
                ids.add(id_)
                messages.append(Message(self.topic, value, partition=partition))
        broker = await self.backend.connect()
        await broker.produce(messages)
        await self.backend.close(broker)
        return ids


@pytest.fixture
async def site(kafka: str, tmp_path: Path, unique: Callable[[str], str]) -> AsyncIterator[Site]:
    backend = OnKafka(unique, kafka)
    made = Site(backend, tmp_path, unique)
    yield made
    for daemon in made.daemons:
        await daemon.kill()
    await backend.close_all()


async def readyz(daemon: Daemon) -> tuple[int, str]:
    status, body = await daemon.get("/readyz")
    document = orjson.loads(body) if body else {}
    return status, " | ".join([*document.get("problems", ()), *document.get("warnings", ())])


async def says(daemon: Daemon, what: str, within: float = 40.0) -> int:
    """Wait until `/readyz` says it; its status then."""
    deadline = asyncio.get_running_loop().time() + within
    while what not in (said := await readyz(daemon))[1]:
        assert daemon.running, daemon.log()
        assert asyncio.get_running_loop().time() < deadline, f"{what!r} not in {said!r}"
        await asyncio.sleep(0.1)
    return said[0]


@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
async def test_partitions_without_traffic_before_the_restart_lose_nothing_after_it(
    site: Site, end: str
) -> None:
    async with Endpoint() as endpoint:
        daemon = site.daemon(endpoint)
        await daemon.start()
        await endpoint.received(await site.publish(50, [0]), within=30)
        await (daemon.stop() if end == "SIGTERM" else daemon.kill())
        ids = await site.publish(50, range(4))
        await daemon.start()
        await endpoint.received(ids, within=40)
        assert (await readyz(daemon))[1] == ""


async def test_what_was_held_in_memory_at_kill_9_comes_after_it(site: Site) -> None:
    down = True

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=500 if down else 200)

    async with Endpoint(answer) as endpoint:
        daemon = site.daemon(endpoint)
        await daemon.start()
        ids = await site.publish(10, range(4))
        await endpoint.received(ids, within=30)
        await daemon.kill()
        endpoint.ids.clear()
        down = False
        await daemon.start()
        await endpoint.received(ids, within=60)


async def test_partitions_added_under_load_are_read_from_their_first_record(site: Site) -> None:
    async with Endpoint() as endpoint:
        daemon = site.daemon(endpoint)
        await daemon.start()
        ids = await site.publish(50, range(4))
        await site.backend.add_partitions(site.topic, 8)
        for _ in range(8):
            ids |= await site.publish(20, range(8))
        await endpoint.received(ids, within=40)
        assert (await readyz(daemon))[1] == ""


async def test_offsets_that_expired_are_said_and_nothing_is_skipped(site: Site) -> None:
    async with Endpoint() as endpoint:
        daemon = site.daemon(endpoint)
        await daemon.start()
        await endpoint.received(await site.publish(10, range(4)), within=30)
        await asyncio.sleep(0)
        await daemon.stop()
        await delete_group(site.backend.address, site.group)
        ids = await site.publish(10, range(4))
        await daemon.start()
        await endpoint.received(ids, within=40)
        assert await says(daemon, "were gone") == 200
        assert await daemon.metric("position_jumps_total", 'reason="expired"') == 4
        assert daemon.log_lines("the group begins to read")


async def test_a_topic_made_anew_under_a_running_daemon_is_read_from_its_beginning(site: Site) -> None:
    async with Endpoint() as endpoint:
        daemon = site.daemon(endpoint)
        await daemon.start()
        await endpoint.received(await site.publish(20, range(4)), within=30)
        await site.backend.delete_topic(site.topic)
        assert await says(daemon, f"topic {site.topic} does not exist") == 503
        await site.backend.create_topic(site.topic, 4)
        ids = await site.publish(40, range(4))
        await endpoint.received(ids, within=40)
        await daemon.ready()
        await says(daemon, "made anew")
        assert daemon.running


async def test_what_retention_takes_from_a_daemon_at_its_cap_is_counted_and_said(site: Site) -> None:
    answers = asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        await answers.wait()
        return web.Response()

    async with Endpoint(answer) as endpoint:
        daemon = site.daemon(
            endpoint,
            kafka={
                **KAFKA,
                "offset_reset": "earliest",
                "max_poll_records": 50,
                "fetch_max_bytes_per_partition": "16KiB",
                "fetch_max_bytes": "64KiB",
            },
            delivery={"max_in_flight": 100, "max_queue_wait": "1h", "breaker_threshold": 0, "timeout": "60s"},
            retry={"hold_limit": "1h"},
        )
        await site.backend.create_topic(site.topic, 1)
        first = TopicPartition(site.topic, 0)
        ids = set[str]().union(*[await site.publish(50, [0], size=500) for _ in range(40)])
        await daemon.start()
        async with asyncio.timeout(40):
            while not await daemon.metric("consumption_paused"):
                await asyncio.sleep(0.05)
        broker = await site.backend.connect()
        await site.backend.delete_before(broker, first, 1900)
        answers.set()
        await endpoint.received({f"evt_{n:08d}" for n in range(1900, 2000)}, within=40)
        missing = len(ids - endpoint.ids.keys())
        assert missing > 500
        assert await daemon.metric("offsets_skipped_total", f'topic="{site.topic}"') == missing
        assert await says(daemon, f"{missing} offsets of topic {site.topic} were deleted by retention") == 200
        async with asyncio.timeout(20):
            while await daemon.metric("partition_lag", f'partition="0",topic="{site.topic}"'):
                await asyncio.sleep(0.1)


async def test_the_topic_of_the_subscriptions_may_be_made_anew_under_a_running_daemon(site: Site) -> None:
    async with Endpoint() as endpoint:
        daemon = site.daemon(endpoint, api={"operational_events": False})
        await daemon.start()
        document = {
            "id": "sub_api",
            "tenant": "*",
            "url": f"{endpoint.url}/api",
            "event_types": ["*"],
            "secrets": [SECRET],
        }
        await post(daemon, "/v1/subscriptions", document)
        topic = f"{site.prefix}subscriptions"
        await site.backend.delete_topic(topic)
        assert await says(daemon, f"topic {topic} does not exist") == 503
        made = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "dispatcher", "topics", "--create", "--config", str(daemon.settings_file)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        assert await says(daemon, "written to it again from this process's memory") in {200, 503}
        await daemon.ready()
        assert daemon.running
        await daemon.stop()
        await daemon.start()
        status, body = await daemon.get("/v1/subscriptions/sub_api")
        assert status == 200, body


async def test_a_retry_topic_that_keeps_too_little_is_said_and_its_lag_ends(site: Site) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=503)

    async with Endpoint(answer) as endpoint:
        daemon = site.daemon(
            endpoint, retry={"tiers": ["1s", "1m"], "horizon": "1s", "hold_limit": "10s", "schedule": ["1h"]}
        )
        broker = await site.backend.connect()
        tier = f"{site.prefix}retry.1m"
        spec = TopicSpec(tier, 1, config={"retention.ms": "20000", "segment.ms": "1000"})
        assert await broker.ensure_topics([spec], create=True) == []
        await daemon.start()
        assert await says(daemon, f"topic {tier} keeps its records for 20s") == 200
        await site.publish(10, range(4))
        labels = f'partition="0",topic="{tier}"'
        async with asyncio.timeout(60):
            while await daemon.metric("partition_lag", labels) < 20:
                await asyncio.sleep(0.1)
        await daemon.stop()
        partition = TopicPartition(tier, 0)
        (info,) = [topic for topic in await broker.topics() if topic.name == tier]
        await site.backend.delete_before(broker, partition, info.partitions[0].latest)
        await daemon.start()
        async with asyncio.timeout(60):
            while await daemon.metric("partition_lag", labels):
                await asyncio.sleep(0.1)
        assert await daemon.metric("offsets_skipped_total", f'topic="{tier}"') >= 40
        assert await says(daemon, f"offsets of topic {tier} were deleted by retention") == 200


async def test_a_group_that_was_renamed_sends_no_retry_again(site: Site) -> None:
    first: dict[str, int] = {}

    async def second_time_lucky(request: web.Request) -> web.Response:
        id_ = request.headers["webhook-id"]
        first[id_] = first.get(id_, 0) + 1
        return web.Response(status=200 if first[id_] > 1 else 503)

    async with Endpoint(second_time_lucky) as endpoint:
        retry = {"tiers": ["1s", "2s"], "horizon": "1s", "schedule": ["4s"], "jitter": 0}
        daemon = site.daemon(endpoint, retry=retry)
        await daemon.start()
        ids = await site.publish(10, range(4))
        async with asyncio.timeout(60):
            while not all(first.get(id_, 0) == 2 for id_ in ids):
                await asyncio.sleep(0.1)
        await asyncio.sleep(1.5)  # the commits of what was settled
        assert await daemon.stop() == 0
        renamed = site.daemon(endpoint, retry=retry, group=f"{site.group}-new")
        await renamed.start()
        more = await site.publish(1, range(4))
        async with asyncio.timeout(60):
            while not all(first.get(id_, 0) == 2 for id_ in more):
                await asyncio.sleep(0.1)
        assert {first[id_] for id_ in ids} == {2}
        assert renamed.log_lines(
            "the group has read none of the retry topics; one of another name has, which has no members: it goes on where that"
            " one had come to"
        )


async def test_retries_in_a_tier_that_was_taken_out_are_said_by_the_daemon_and_by_check_config(
    site: Site,
) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=503)

    async with Endpoint(answer) as endpoint:
        daemon = site.daemon(
            endpoint, retry={"tiers": ["1s", "1m"], "horizon": "1s", "hold_limit": "10s", "schedule": ["1h"]}
        )
        await daemon.start()
        await endpoint.received(await site.publish(5, range(4)), within=30)
        await daemon.stop()
        other = site.daemon(endpoint, retry={"tiers": ["1s", "2m"], "horizon": "1s", "hold_limit": "10s"})
        sentence = (
            f"topic {site.prefix}retry.1m holds 20 retries of group {site.group}.retry that nobody reads"
        )
        asked = await asyncio.to_thread(
            subprocess.run,
            [
                sys.executable,
                "-m",
                "dispatcher",
                "check-config",
                "-q",
                "--connect",
                "--config",
                str(other.settings_file),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert asked.returncode == 0, asked.stderr
        assert sentence in asked.stderr
        assert f"topics that `run` will create: {site.prefix}retry.2m" in asked.stderr
        await other.start()
        assert await says(other, sentence) == 200


async def test_a_replica_without_partitions_says_so_and_stays_ready(site: Site) -> None:
    await site.backend.create_topic(site.topic, 1)
    async with Endpoint() as endpoint:
        one, two = site.daemon(endpoint), site.daemon(endpoint)
        await one.start()
        await two.start()
        idle, busy = (two, one) if "no partitions" in (await readyz(two))[1] else (one, two)
        assert await says(idle, f"no partitions are assigned: group {site.group} has more members") == 200
        assert "no partitions" not in (await readyz(busy))[1]


async def test_markers_of_transactions_leave_no_lag_behind(site: Site) -> None:
    async with Endpoint() as endpoint:
        daemon = site.daemon(endpoint)
        await site.backend.create_topic(site.topic, 1)
        await daemon.start()
        producer = AIOKafkaProducer(bootstrap_servers=site.backend.address, transactional_id=site.group)
        await producer.start()
        ids = set()
        for number in range(3):
            id_, value = envelope(number)
            ids.add(id_)
            async with producer.transaction():
                await producer.send_and_wait(site.topic, value, partition=0)
        await producer.stop()
        await endpoint.received(ids, within=30)
        broker = await site.backend.connect()
        async with asyncio.timeout(20):
            while True:
                (info,) = [topic for topic in await broker.topics(site.group) if topic.name == site.topic]
                if info.partitions[0].committed == info.partitions[0].latest == 6:
                    break
                await asyncio.sleep(0.2)
        assert await daemon.metric("partition_lag", f'partition="0",topic="{site.topic}"') == 0


async def post(daemon: Daemon, path: str, document: dict[str, Any]) -> None:
    status, answer = await daemon.call("POST", path, document)
    assert status == 201, answer
