"""The real daemon as a process, and an endpoint that remembers what it got."""

from __future__ import annotations

import asyncio
import re
import signal
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Self

import aiohttp
import orjson
import yaml
from aiohttp import web

from dispatcher.broker.base import Message, TopicSpec
from dispatcher.broker.open import open_broker
from dispatcher.settings.groups import KafkaSettings
from tests.commands.console import environment
from tests.ports import free_port

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Endpoint:
    """A local endpoint. `answer` decides what it says; every request is kept."""

    def __init__(
        self,
        answer: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self._answer = answer
        self._runner: web.AppRunner | None = None
        self.port = 0
        self.ids: Counter[str] = Counter()
        self.requests: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((request.path, headers, body))
        self.ids[headers.get("webhook-id", "")] += 1
        return web.Response() if self._answer is None else await self._answer(request)

    async def received(self, ids: set[str], within: float) -> None:
        """Wait until every id has arrived at least once."""
        await eventually(
            lambda: ids <= self.ids.keys(), within, lambda: f"missing {len(ids - self.ids.keys())}"
        )


async def eventually(
    condition: Callable[[], bool], within: float, describe: Callable[[], str] = lambda: "it did not happen"
) -> None:
    """Fail unless `condition` comes true within so many seconds."""
    deadline = asyncio.get_running_loop().time() + within
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"after {within} s: {describe()}"
        await asyncio.sleep(0.02)


class Daemon:
    """`dispatcher run` in a process of its own, configured through files in `folder`."""

    def __init__(
        self, folder: Path, broker: str, subscriptions: Sequence[dict[str, Any]], **settings: Any
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.command = [sys.executable, "-m", "dispatcher"]
        self.options: list[str] = []  # of `run`
        self.environ: dict[str, str] = {}
        self.output = folder / "daemon.log"
        self.subscriptions_file = folder / "subscriptions.yaml"
        self.settings_file = folder / "dispatcher.yaml"
        self.write_subscriptions(subscriptions)
        document: dict[str, Any] = {
            "broker": broker,
            "subscriptions_file": str(self.subscriptions_file),
            "http": {"port": self.port},
            "network": {"allow": ["127.0.0.0/8", "::1/128"], "https_only": False},
            "log": {"format": "json"},
            # They would stand in the topic beside what a test has published.
            "api": {"operational_events": False},
            # Endpoints that fail or dawdle to show something else are to be attempted all the same.
            "delivery": {"breaker_threshold": 0, "max_queue_wait": "1h"},
        }
        for name, value in settings.items():
            document[name] = {**document[name], **value} if isinstance(document.get(name), dict) else value
        self.settings_file.write_text(yaml.safe_dump(document))
        self.settings = document
        self.broker = broker
        self._process: asyncio.subprocess.Process | None = None

    def write_subscriptions(self, subscriptions: Sequence[dict[str, Any]]) -> None:
        text = yaml.safe_dump({"subscriptions": [{"secrets": [SECRET], **each} for each in subscriptions]})
        new = self.subscriptions_file.with_suffix(".new")
        new.write_text(text)
        new.replace(self.subscriptions_file)

    async def start(self, *, ready: bool = True) -> None:
        with self.output.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *(*self.command, "run", "--config", str(self.settings_file), *self.options),
                cwd=self.folder,
                env=environment(self.environ),
                stdout=output,
                stderr=output,
            )
        if ready:
            await self.ready()

    async def ready(self, within: float = 60.0) -> None:
        deadline = asyncio.get_running_loop().time() + within
        while (status := (await self.get("/readyz"))[0]) != 200:
            assert self.running, f"the daemon ended:\n{self.log()}"
            assert asyncio.get_running_loop().time() < deadline, f"not ready ({status}):\n{self.log()}"
            await asyncio.sleep(0.05)

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body; status 0 where nothing answers."""
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://127.0.0.1:{self.port}{path}") as response,
            ):
                return response.status, await response.read()
        except aiohttp.ClientConnectionError:
            return 0, b""

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and document of an answer of the API."""
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, f"http://127.0.0.1:{self.port}{path}", json=body) as response,
        ):
            return response.status, await response.json()

    async def post_event(self, event: bytes) -> None:
        """Publish an envelope by the API, which works on the embedded broker while the daemon runs."""
        url = f"http://127.0.0.1:{self.port}/v1/events"
        headers = {"Content-Type": "application/json"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data=event, headers=headers) as response,
        ):
            assert response.status == 202, await response.text()

    async def metric(self, name: str, labels: str = "") -> float:
        """The value of one sample: `metric("commits_total", 'result="ok"')`; 0 if it isn't there."""
        _, body = await self.get("/metrics")
        sample = f"dispatcher_{name}" + (f"{{{labels}}}" if labels else "")
        found = re.search(rf"^{re.escape(sample)} (\S+)$", body.decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    async def total(self, name: str) -> float:
        """The sum of a metric's samples, whatever their labels."""
        _, body = await self.get("/metrics")
        found = re.findall(rf"^dispatcher_{re.escape(name)}(?:\{{.*\}})? (\S+)$", body.decode(), re.MULTILINE)
        return sum(map(float, found))

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def ended(self, within: float = 30.0) -> int:
        """Its exit code."""
        assert self._process is not None
        async with asyncio.timeout(within):
            return await self._process.wait()

    async def stop(self) -> int:
        """SIGTERM, and its exit code."""
        if self.running:
            self.signal(signal.SIGTERM)
        return await self.ended()

    async def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self.running:
            self.signal(signal.SIGKILL)
            await self.ended()

    def log(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def log_lines(self, message: str | None = None) -> list[dict[str, Any]]:
        """The JSON log lines with that message; all of them without one."""
        lines = [orjson.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if message in (None, line.get("message"))]


async def publish(broker_url: str, messages: Sequence[Message]) -> None:
    """Write records with a broker connection of its own (the embedded broker's file must be free)."""
    broker = open_broker(broker_url, KafkaSettings())
    await broker.connect()
    try:
        await broker.ensure_topics(
            [TopicSpec(name, 4) for name in {message.topic for message in messages}], create=True
        )
        await broker.produce(messages)
    finally:
        await broker.close()


def envelope(number: int, type_: str = "test.event", size: int = 0, **fields: Any) -> tuple[str, bytes]:
    """An id, and an event in the JSON envelope with it."""
    event_id = f"evt_{number:08d}"
    document = {"id": event_id, "type": type_, "data": {"n": number, "pad": "x" * size}, **fields}
    return event_id, orjson.dumps(document)
