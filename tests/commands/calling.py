"""A server with the control plane in memory, and the commands that call its API."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web
from click.testing import CliRunner, Result

from dispatcher.cli import main
from tests.api.fakes import Plane
from tests.api.real import InThread
from tests.api.serving import KEY, serving
from tests.e2e.daemon import Endpoint


class Api:
    """A server in a thread of its own, as a command has its own loop."""

    def __init__(self, *keys: str) -> None:
        self._keys = keys
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._done = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.url = ""
        self.plane: Plane

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(60)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        async with serving(*self._keys) as (client, plane):
            self.url, self.plane = client.base, plane
            self._ready.set()
            await self._done.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join(60)

    def __call__(self, *arguments: str, stdin: str | None = None, **variables: str | None) -> Result:
        return call(self.url, arguments, stdin, variables)

    def json(self, *arguments: str) -> Any:
        return _parsed(self(*arguments, "--json"))


class HistoryApi(InThread):
    """A whole dispatcher with a history, which `remember` tells what to know."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, KEY)

    def __call__(self, *arguments: str) -> Result:
        return call(self.url, arguments, None, {})

    def json(self, *arguments: str) -> Any:
        return _parsed(self(*arguments, "--json"))


class Site:
    """An endpoint in the dispatcher's thread, and what the tests do with it."""

    def __init__(self, api: HistoryApi) -> None:
        self.api = api
        self.status = 200
        self.endpoint = Endpoint(self._answer)
        api.do(self.endpoint.__aenter__())

    async def _answer(self, _request: web.Request) -> web.Response:
        return web.Response(status=self.status)

    def close(self) -> None:
        self.api.do(self.endpoint.__aexit__())

    def subscribe(self, id_: str, pattern: str) -> None:
        added = self.api("subscriptions", "add", self.endpoint.url, pattern, "--id", id_, "--tenant", "*")
        assert added.exit_code == 0, added.output

    def publish(self, id_: str, kind: str) -> None:
        event = {"id": id_, "type": kind, "data": {}}
        self.api.do(self.api._app.plane.publisher.publish([event], tenant=None))

    def delivery(self, event: str, state: str) -> str:
        """The id of the delivery of an event, once it is so."""
        deadline = time.monotonic() + 60
        while True:
            found = self.api.json("deliveries", "list", "--event", event)["deliveries"]
            if found and found[0]["state"] == state:
                return str(found[0]["id"])
            assert time.monotonic() < deadline, found
            time.sleep(0.1)


def call(
    url: str, arguments: Sequence[str], stdin: str | None, variables: Mapping[str, str | None]
) -> Result:
    """One command that calls the API there."""
    environ = {"DISPATCHER_API_URL": url, "DISPATCHER_API_KEY": KEY, "COLUMNS": "200", **variables}
    return CliRunner().invoke(main, arguments, prog_name="dispatcher", input=stdin, env=environ)


def _parsed(ended: Result) -> Any:
    assert ended.exit_code == 0, ended.output
    return json.loads(ended.stdout)


def one_line(ended: Result, *said: str, code: int = 1) -> None:
    """An error is one line that says what to do."""
    assert ended.exit_code == code, ended.output
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert ended.stderr.startswith("Error: ")
    for part in said:
        assert part in ended.stderr
