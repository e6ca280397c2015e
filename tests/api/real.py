"""The whole dispatcher on an embedded broker, called over HTTP."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import yaml

from dispatcher.app import App
from dispatcher.broker.base import Message
from dispatcher.control.errors import VersionMismatch
from dispatcher.core.replay.job import JobState, ReplayJob, ReplayRequest, ReplaySource
from dispatcher.history.base import HistoryStore, LogBatch, StoreUnavailable
from dispatcher.settings.groups import Settings
from tests.api.serving import Answer, Client
from tests.e2e.daemon import eventually

T = TypeVar("T")

# Nothing asks the machine's own name servers: a port of this machine where none is.
NETWORK = {
    "allow": ["127.0.0.0/8"],
    "https_only": False,
    "dns_servers": ["127.0.0.1:9"],
    "dns_timeout": 0.1,
}


def settings(folder: Path, *keys: str, file: list[dict[str, Any]] | None = None, **changes: Any) -> Settings:
    path = None
    if file is not None:
        path = folder / "subscriptions.yaml"
        path.write_text(yaml.safe_dump({"subscriptions": file}))
    document: dict[str, Any] = {
        "broker": f"sqlite:///{folder}/log.db",
        "subscriptions_file": path,
        "http": {"port": 0},
        "network": NETWORK,
        **changes,
    }
    document["api"] = {"keys": keys, "operational_events": False, **changes.get("api", {})}
    return Settings.model_validate(document)


@asynccontextmanager
async def running(
    folder: Path, *keys: str, file: list[dict[str, Any]] | None = None, **changes: Any
) -> AsyncIterator[tuple[Client, App]]:
    """A dispatcher that is ready, and a client with the first key. A second one on the folder has the first one's state."""
    app = App(settings(folder, *keys, file=file, **changes), {})
    try:
        await app.start()
        await eventually(lambda: not app.problems(), 60, lambda: str(app.problems()))
        async with aiohttp.ClientSession() as session:
            yield Client(f"http://127.0.0.1:{app.http_port}", session, keys[0] if keys else None), app
    finally:
        await app.stop()


async def keep(store: HistoryStore, *batches: LogBatch) -> None:
    """Apply them once the store is open."""
    async with asyncio.timeout(60):
        while True:
            try:
                await store.gaps(0, 1)
                break
            except StoreUnavailable:
                await asyncio.sleep(0.02)
    await store.apply(batches, int(time.time() * 1000))


def paused_replay(owner: str | None) -> ReplayJob:
    """One that nobody runs."""
    now = int(time.time() * 1000)
    request = ReplayRequest(ReplaySource.DEAD_LETTERS, now, tenant=owner)
    id_ = f"rpl_{now // 10**7:012x}{'aa' if owner else 'bb'}"
    return ReplayJob(id_, request, owner, now, "somebody", state=JobState.PAUSED, paused_ms=now)


class InThread:
    """One in a thread of its own, for callers that have no loop."""

    def __init__(self, folder: Path, *keys: str, **changes: Any) -> None:
        self._folder = folder
        self._keys = keys
        self._changes = changes
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._done = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.url = ""

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(120)
        assert self.url

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._ready.set()
            self._loop.close()

    async def _serve(self) -> None:
        async with running(self._folder, *self._keys, **self._changes) as (client, app):
            self.url = client.base
            self._app = app
            self._ready.set()
            await self._done.wait()

    def do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Its result, of the thread's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def replay(self, owner: str | None) -> str:
        """The id of a replay of this tenant's key, or of an operator, that is paused."""
        job = paused_replay(owner)

        async def put() -> None:
            store = self._app._replays
            while True:
                row = store.get(job.id)
                try:
                    await store.put(job, base=0 if row is None else row.version)
                except VersionMismatch:
                    continue  # its runner was first
                return

        self.do(put())
        return job.id

    def remember(self, *batches: LogBatch) -> None:
        """Have the history know these, whatever the logs say."""
        assert self._app._history is not None
        self.do(keep(self._app._history.store, *batches))

    def produce(self, *messages: Message) -> None:
        """Write these to the broker."""
        self.do(self._app.broker.produce(messages))

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join(120)


def made(answer: Answer) -> Any:
    assert answer.status == 201, answer.body
    return answer.json


async def shown(call: Client, id_: str) -> Any:
    """A subscription, without what differs from moment to moment."""
    answer = await call("GET", f"/v1/subscriptions/{id_}")
    assert answer.status == 200, answer.body
    return {name: value for name, value in answer.json.items() if name != "health"}
