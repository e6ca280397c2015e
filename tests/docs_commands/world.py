"""The installation that the pages' commands are run against, and how their placeholders are filled in.

A page names what its reader has: a customer `acme`, a subscription `sub_billing`, an event `evt_19lV`, addresses, times. All of it is there: a
daemon on a real Kafka with an endpoint that takes everything, except for the first attempts of one subscription, which become a dead letter.

A command runs as it stands, with these exceptions: placeholders and addresses are replaced (`World.filled`), `curl` also fails where the
answer is an error and sends the key where the page takes the API for open, and `make` only says what it would do: its targets are the tests and the builds themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

import orjson
from aiohttp import web

from tests.commands.console import environment
from tests.docs_commands.blocks import ROOT
from tests.e2e.daemon import Daemon, Endpoint
from tests.ports import free_port

WITHIN: Final = 240.0
_FAILING: Final = 2  # attempts of `sub_dead`, which has two


class World:
    """A daemon, its endpoint and a folder to run commands in."""

    def __init__(self, folder: Path, kafka: str, unique: Callable[[str], str]) -> None:
        self._unique = unique
        self.broker = f"kafka://{kafka}"
        self.folder = folder
        self.work = folder / "work"
        self.work.mkdir()
        self.endpoint = Endpoint(self._answer)
        self._failed = 0
        self._wrappers()
        self.daemon: Daemon
        self._filled: list[tuple[str, str]] = []

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/dead" and self._failed < _FAILING:
            self._failed += 1
            return web.Response(status=500)
        return web.Response()

    def _wrappers(self) -> None:
        """`curl` and `make` as above, and whatever is called by its name in the virtual environment."""
        folder = self.folder / "bin"
        folder.mkdir()
        real = {name: shutil.which(name) for name in ("curl", "make")}
        assert None not in real.values(), "curl and make are needed"
        curl = f"{real['curl']} --fail-with-body"
        _script(
            folder / "curl",
            f'case "$*" in *Authorization:*) exec {curl} "$@";; esac\nexec {curl} -H "Authorization: Bearer $key" "$@"',
        )
        _script(folder / "make", f'exec {real["make"]} --directory {ROOT} --dry-run "$@"')
        self.path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])

    async def start(self) -> None:
        """Everything that the pages take for granted, and how it is called here."""
        url = self.endpoint.url
        topic, prefix = self._unique("events"), f"{self._unique('own')}."
        self.daemon = Daemon(
            self.folder,
            self.broker,
            [
                {
                    "id": "sub_billing",
                    "tenant": "acme",
                    "url": f"{url}/billing",
                    "event_types": ["invoice.*"],
                },
                {
                    "id": "sub_dead",
                    "url": f"{url}/dead",
                    "event_types": ["dead"],
                    "retry": {"schedule": ["1s"]},
                },
            ],
            group=self._unique("group"),
            topics={"events": [topic], "prefix": prefix, "partitions": 4},
            kafka={"member_name": "off"},
        )
        await self.daemon.start()
        for event in (
            {"id": "evt_19lV", "type": "invoice.paid", "tenant": "acme", "data": {"amount": 42}},
            {"id": "evt_dead", "type": "dead", "data": {}},
        ):
            await self.daemon.post_event(orjson.dumps(event))
        delivery = await self._one("/v1/deliveries?event=evt_19lV", "deliveries", state="delivered")
        letter = await self._one("/v1/dead-letters", "dead_letters")
        status, made = await self.daemon.call("POST", "/v1/keys", {"name": "docs", "scope": "operator"})
        assert status == 201, made
        now = time.time()
        base = f"http://127.0.0.1:{self.daemon.port}"
        self._filled = [
            (r"http://127\.0\.0\.1:8080", base),
            (r"https://hooks\.acme\.example/webhooks", f"{url}/acme"),
            (r"/etc/dispatcher/dispatcher\.yaml", str(self.daemon.settings_file)),
            (r"/etc/prometheus", str(self.work / "prometheus")),
            (r"\bconfig/", f"{ROOT}/config/"),
            (r"\bdlv_3f0c9b1e5d7a42c68e90b1d2\b", delivery["id"]),
            (r"\b0-42\b", letter["id"]),
            (r"\brpl_019a3f5e8c4017b2e9d1\b", '"$(newest_replay)"'),
            (r"\bID\b", "sub_billing"),
            (r"\bNAME\b", "acme"),
            (r"2026-01-31T(?:00|13):00:00Z", _when(now - 3600)),
            (r"2026-01-31T15:00:00Z", _when(now + 3600)),
            (
                r"dispatcher restore",
                f"DISPATCHER_TOPICS__PREFIX={self._unique('restored')}. dispatcher restore",
            ),
            (
                r"(dispatcher history rebuild(?: --since \w+)?)",
                r"DISPATCHER_HISTORY__DIRECTORY=rebuilt \1 <<< y",  # it asks, as it should
            ),
        ]
        (self.work / "prometheus" / "rules").mkdir(parents=True)
        (self.work / "logo.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
        _script(
            self.folder / "bin" / "newest_replay",
            f'dispatcher replays list --json | {sys.executable} -c \'import json, sys; print(json.load(sys.stdin)["replays"][0]["id"])\'',
        )
        self.environ = {
            "PATH": self.path,
            "DISPATCHER_CONFIG": str(self.daemon.settings_file),
            "DISPATCHER_API_URL": base,
            "DISPATCHER_API_KEY": made["secret"],
            "api": base,
            "key": made["secret"],
            "COLUMNS": "200",
        }

    async def _one(self, path: str, field: str, **wanted: str) -> dict[str, Any]:
        """The first of a list of the API, once there is one that is so."""
        async with asyncio.timeout(WITHIN):
            while True:
                status, answer = await self.daemon.call("GET", path)
                for each in answer[field] if status == 200 else []:
                    if all(each[name] == value for name, value in wanted.items()):
                        found: dict[str, Any] = each
                        return found
                await asyncio.sleep(0.05)

    def filled(self, text: str) -> str:
        """With what the placeholders stand for."""
        for pattern, value in self._filled:
            text = re.sub(pattern, value, text)
        return text

    async def run(self, script: str) -> tuple[int | None, str]:
        """Exit code and output of a script, which ends by itself."""
        process = await asyncio.create_subprocess_exec(
            *("bash", "-e", "-o", "pipefail", "-c", self.filled(script)),
            cwd=self.work,
            env=environment(self.environ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), WITHIN)
        return process.returncode, output.decode()

    async def stop(self) -> None:
        await self.daemon.kill()


class Services:
    """A script whose commands stay: each in the background, until it is left."""

    def __init__(self, folder: Path, script: str, environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._script = script
        self._environ = environ
        self._output = folder / "output"

    async def __aenter__(self) -> Self:
        with self._output.open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                *("bash", "-e", "-c", f"trap 'trap \"\" TERM; wait; exit' TERM\n{self._script}\nwait"),
                cwd=self._folder,
                env=environment(self._environ),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.running:
            os.killpg(self._process.pid, signal.SIGTERM)  # all of them; the shell waits for the others
        try:
            await asyncio.wait_for(self._process.wait(), WITHIN)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def said(self) -> str:
        return self._output.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._process.returncode is None


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def ports(count: int) -> list[int]:
    """Free ones, all different."""
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return sorted(found)
