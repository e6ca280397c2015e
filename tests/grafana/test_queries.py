"""Every query of every panel, asked of a real Prometheus that scrapes the real daemon while everything happens to it."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
import yaml
from aiohttp import web

from dispatcher.broker.base import Message
from dispatcher.commands.receiver import DeadPort
from tests.e2e.daemon import Daemon, Endpoint, envelope, publish
from tests.grafana.dashboards import Query, queries
from tests.ports import free_port

RULES = Path(__file__).parents[2] / "config" / "prometheus"
INTERVAL, SPAN = "10s", "1m"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Prometheus:
    """A server with our rules, which asks the daemon every second."""

    def __init__(self, folder: Path, command: str, target: str) -> None:
        folder.mkdir()
        self._folder = folder
        self.port = free_port()
        self._command = command
        for rule in RULES.glob("*.yaml"):
            (folder / rule.name).write_text(rule.read_text().replace("interval: 30s", "interval: 1s"))
        (folder / "prometheus.yml").write_text(
            yaml.safe_dump(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                    "rule_files": [f"{folder}/{rule.name}" for rule in RULES.glob("*.yaml")],
                    "scrape_configs": [{"job_name": "dispatcher", "static_configs": [{"targets": [target]}]}],
                }
            )
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        with (self._folder / "log").open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                self._command,
                f"--config.file={self._folder}/prometheus.yml",
                f"--storage.tsdb.path={self._folder}/data",
                f"--web.listen-address=127.0.0.1:{self.port}",
                stdout=output,
                stderr=output,
            )
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(30):
                await process.wait()

    async def ask(self, session: aiohttp.ClientSession, expression: str) -> list[float]:
        """The values of the answer, without those that are no number. Raises AssertionError for an error."""
        url = f"http://127.0.0.1:{self.port}/api/v1/query"
        async with session.post(url, data={"query": expression}) as response:
            answer: dict[str, Any] = orjson.loads(await response.read())
        assert answer["status"] == "success", answer
        values = [float(series["value"][1]) for series in answer["data"]["result"]]
        return [value for value in values if math.isfinite(value)]

    async def is_there(self, session: aiohttp.ClientSession) -> bool:
        """Whether it serves, and has found the daemon ready."""
        try:
            async with session.get(f"http://127.0.0.1:{self.port}/-/ready") as response:
                if response.status != 200:
                    return False
            return bool(await self.ask(session, "dispatcher_ready == 1"))
        except aiohttp.ClientConnectionError:
            return False


async def empty(prometheus: Prometheus, asked: Sequence[Query]) -> list[Query]:
    """Those that have no answer."""
    async with aiohttp.ClientSession() as session:
        return [query for query in asked if not await prometheus.ask(session, query.filled(INTERVAL, SPAN))]


@pytest.fixture
def command() -> str:
    found = shutil.which("prometheus")
    if found is None:
        if os.environ.get("CI", "").lower() in {"1", "true"}:
            pytest.fail("no prometheus (Debian: prometheus)", pytrace=False)
        pytest.skip("NOT TESTED: the queries of the dashboards; prometheus is missing (Debian: prometheus)")
    return found


async def _fails(_: web.Request) -> web.StreamResponse:
    return web.Response(status=503)


async def _asks_for_time(_: web.Request) -> web.StreamResponse:
    return web.Response(status=429, headers={"Retry-After": "3600"})


def _of_workers(query: Query) -> bool:
    """Whether only a supervisor of several workers has the answer."""
    return "dispatcher_worker_" in query.expression


async def _answered(
    daemon: Daemon, prometheus: Prometheus, asked: list[Query], happens: Callable[[], Awaitable[None]]
) -> None:
    """Wait until each has an answer, while things happen. Rates need two scrapes, breakers some failures."""
    assert asked
    without = asked
    try:
        async with prometheus.running(), asyncio.timeout(200), aiohttp.ClientSession() as session:
            while not await prometheus.is_there(session):
                await asyncio.sleep(0.2)
            while without:
                await happens()
                await asyncio.sleep(0.5)
                without = await empty(prometheus, without)
    except TimeoutError:
        pytest.fail("no answer:\n" + "\n".join(f"{query.place}: {query.expression}" for query in without))
    finally:
        await daemon.stop()


async def test_every_query_has_an_answer(tmp_path: Path, command: str) -> None:
    dead = DeadPort()
    async with Endpoint() as well, Endpoint(_fails) as failing, Endpoint(_asks_for_time) as busy:
        each = {"event_types": ["test.*"]}
        daemon = Daemon(
            tmp_path,
            f"sqlite:///{tmp_path}/log.db",
            [
                {"id": "well", "url": well.url, **each},
                {"id": "dead", "url": f"http://127.0.0.1:{dead.port}/", **each},
                {"id": "busy", "url": busy.url, **each},
                # Gives up after one more attempt, and has others wait in the retry topics.
                {"id": "gives_up", "url": failing.url, **each, "retry": {"schedule": ["50ms"], "jitter": 0}},
                {"id": "waits", "url": f"{failing.url}/later", **each, "retry": {"schedule": ["1h"]}},
            ],
            delivery={"breaker_threshold": 0.8, "max_queue_wait": "5s"},
            api={"operational_events": True},
        )
        await daemon.start()
        prometheus = Prometheus(tmp_path / "prometheus", command, f"127.0.0.1:{daemon.port}")
        numbers = itertools.count()

        async def happens() -> None:
            for _ in range(25):
                await daemon.post_event(envelope(next(numbers))[1])
            await daemon.post_event(envelope(next(numbers), "nobody.wants.it")[1])
            status, _ = await daemon.get("/v1/deliveries?limit=1")
            assert status == 200

        try:
            asked = [query for query in queries() if not _of_workers(query)]
            await _answered(daemon, prometheus, asked, happens)
        finally:
            dead.close()


async def test_queries_of_workers_have_an_answer(
    tmp_path: Path, command: str, kafka: str, unique: Callable[[str], str]
) -> None:
    topic, own = unique("events"), unique("own")
    topics = {"events": [topic], "prefix": f"{own}.", "partitions": 2}
    daemon = Daemon(tmp_path, f"kafka://{kafka}", [], group=unique("group"), topics=topics)
    daemon.options = ["--workers", "2"]
    await publish(f"kafka://{kafka}", [Message(topic, envelope(0)[1])])
    await daemon.start()
    prometheus = Prometheus(tmp_path / "prometheus", command, f"127.0.0.1:{daemon.port}")

    async def happens() -> None:
        """They run, which is all that is asked for."""

    await _answered(daemon, prometheus, [query for query in queries() if _of_workers(query)], happens)


async def test_a_query_of_nothing_would_be_noticed(tmp_path: Path, command: str) -> None:
    """No answer, and no number: both are a panel that shows nothing."""
    daemon = Daemon(tmp_path, f"sqlite:///{tmp_path}/log.db", [])
    await daemon.start()
    prometheus = Prometheus(tmp_path / "prometheus", command, f"127.0.0.1:{daemon.port}")
    try:
        async with prometheus.running(), aiohttp.ClientSession() as session, asyncio.timeout(60):
            while not await prometheus.is_there(session):
                await asyncio.sleep(0.2)
            wrong = [
                Query("a wrong name", "dispatcher_redy"),
                Query("no number", "0 * dispatcher_ready / 0"),
            ]
            assert await empty(prometheus, [*wrong, Query("right", "dispatcher_ready")]) == wrong
            with pytest.raises(AssertionError, match="bad_data"):
                await prometheus.ask(session, "sum(")
    finally:
        await daemon.stop()
