"""Several processes of one group on one machine, on a real Kafka."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import orjson
from prometheus_client.parser import text_string_to_metric_families

from dispatcher.broker.base import Message
from tests.e2e.daemon import Daemon, Endpoint, envelope, eventually, publish
from tests.ports import free_port


def workers(daemon: Daemon) -> dict[int, int]:
    """The process of each, the newest."""
    return {line["worker"]: line["pid"] for line in daemon.log_lines("worker started")}


async def test_workers_share_the_work_and_one_that_is_killed_is_replaced(
    kafka: str, unique: Callable[[str], str], tmp_path: Path
) -> None:
    topic = unique("events")
    url = f"kafka://{kafka}"
    numbers = iter(range(10_000))

    async def send(count: int) -> set[str]:
        made = [envelope(next(numbers)) for _ in range(count)]
        await publish(url, [Message(topic, body, key=id_.encode()) for id_, body in made])
        return {id_ for id_, _ in made}

    async with Endpoint() as endpoint:
        daemon = Daemon(
            tmp_path,
            url,
            [{"id": "all", "url": endpoint.url, "event_types": ["*"]}],
            group=unique("group"),
            topics={"events": [topic], "prefix": f"{unique('own')}.", "partitions": 4},
            kafka={"member_name": "replica"},
        )
        daemon.options = ["--workers", "2"]
        first = await send(200)
        await daemon.start()
        try:
            await endpoint.received(first, 60)
            await _both_have_partitions(daemon, topic)
            shared = await send(200)
            await endpoint.received(shared, 60)
            await _both_have_delivered(daemon)
            pids = workers(daemon)
            os.kill(pids[2], signal.SIGKILL)
            second = await send(200)
            await endpoint.received(second, 60)
            await eventually(lambda: workers(daemon)[2] != pids[2], 60)
            await _both_have_partitions(daemon, topic)
            assert workers(daemon)[1] == pids[1]
            # Their groups know them by names that stay: the new process has the old one leave.
            assert {line["name"] for line in daemon.log_lines() if "name" in line} == {"replica-2"}
            third = await send(200)
            await endpoint.received(third, 60)
        finally:
            code = await daemon.stop()
        assert code == 0
        assert len(daemon.log_lines("stopped")) == 2
        # A crash may send again what was under way, and a stop nothing.
        assert {id_ for id_, times in endpoint.ids.items() if times > 1} & third == set()


async def _both_have_partitions(daemon: Daemon, topic: str) -> None:
    """Wait until both consume and nobody complains."""
    deadline = asyncio.get_running_loop().time() + 60
    while True:
        status, ready = await daemon.get("/readyz")
        samples = await _samples(daemon)
        consuming = {
            labels["worker"]
            for name, labels, _ in samples
            if name == "dispatcher_partition_lag" and labels["topic"] == topic
        }
        if status == 200 and "warnings" not in orjson.loads(ready) and consuming == {"1", "2"}:
            up = {
                labels["worker"]: value for name, labels, value in samples if name == "dispatcher_worker_up"
            }
            assert up == {"1": 1, "2": 1}
            return
        assert asyncio.get_running_loop().time() < deadline, (status, ready, consuming, daemon.log()[-4000:])
        await asyncio.sleep(0.1)


async def _both_have_delivered(daemon: Daemon) -> None:
    deadline = asyncio.get_running_loop().time() + 60
    delivered: dict[str, float] = {}
    while delivered.keys() != {"1", "2"}:
        assert asyncio.get_running_loop().time() < deadline, (delivered, daemon.log()[-4000:])
        delivered = {
            labels["worker"]: value
            for name, labels, value in await _samples(daemon)
            if name == "dispatcher_deliveries_total" and labels["outcome"] == "delivered" and value
        }
        await asyncio.sleep(0.1)


async def _samples(daemon: Daemon) -> list[tuple[str, dict[str, str], float]]:
    """The metrics of all workers: name, labels, value."""
    _, text = await daemon.get("/metrics")
    return [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    ]


async def test_a_mistake_in_the_settings_is_said_once(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, f"kafka://127.0.0.1:{free_port()}", [{"id": "no url"}])
    daemon.options = ["--workers", "3"]
    await daemon.start(ready=False)
    assert await daemon.ended(60) == 2
    assert len(daemon.log_lines("can't go on")) == 1


async def test_a_broker_that_is_away_makes_them_unready_and_ends_nobody(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, f"kafka://127.0.0.1:{free_port()}", [])
    daemon.options = ["--workers", "2"]
    await daemon.start(ready=False)
    status, body = 0, b""
    async with asyncio.timeout(60):
        while status == 0:
            status, body = await daemon.get("/readyz")
    assert status == 503
    assert "worker 2 does not answer: it is being started, or hangs" in orjson.loads(body)["warnings"]
    assert await daemon.stop() == 0
