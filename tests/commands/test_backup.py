"""What the API has made goes into a file and back, on both brokers."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import aiohttp
import orjson
import pytest

from tests.commands.console import dispatcher
from tests.e2e.daemon import Daemon

KEY = "Ls3EBgQgc4m8D5nSSqS4tq3l6sQ8p7bNwZ0y2vXr1hE="


async def command(folder: Path, *arguments: str) -> CompletedProcess[str]:
    return await asyncio.to_thread(dispatcher, *arguments, cwd=folder)


class Installation:
    """A daemon with its topics, and what its API says."""

    def __init__(self, folder: Path, broker: str, prefix: str, group: str) -> None:
        folder.mkdir()
        self.folder = folder
        self.options = ("--broker", broker, "--set", f"topics.prefix={prefix}", "--group", group)
        topics = {"prefix": prefix, "events": [f"{prefix}events"]}
        api = {"secrets_keys": [KEY]}
        self.daemon = Daemon(folder, broker, [], topics=topics, group=group, api=api)

    async def ask(self, method: str, path: str, document: Any = None) -> Any:
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                method, f"http://127.0.0.1:{self.daemon.port}/v1/{path}", json=document
            ) as response,
        ):
            assert response.status < 300, await response.text()
            return orjson.loads(await response.read() or b"null")

    async def shown(self) -> tuple[Any, Any]:
        return await self.ask("GET", "subscriptions"), await self.ask("GET", "event-types")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.daemon.start()
        try:
            yield
        finally:
            await self.daemon.stop()

    async def filled(self) -> tuple[Any, Any]:
        """Something of each kind, changed, paused and deleted; what is shown of it."""
        ids = []
        for number in range(3):
            made = {"url": f"http://127.0.0.1:9999/{number}", "event_types": ["a.*"], "tenant": "acme"}
            ids.append((await self.ask("POST", "subscriptions", made))["subscription"]["id"])
            await self.ask("POST", f"subscriptions/{ids[-1]}/pause")
        await self.ask("DELETE", f"subscriptions/{ids[-1]}")
        await self.ask("PUT", "event-types/a.b", {"description": "An a"})
        return await self.shown()

    async def backup(self, file: Path) -> CompletedProcess[str]:
        return await command(self.folder, "backup", str(file), *self.options)

    async def restore(self, file: Path) -> CompletedProcess[str]:
        return await command(self.folder, "restore", str(file), *self.options)


@pytest.fixture(params=["sqlite", "kafka"])
def installation(
    request: pytest.FixtureRequest, tmp_path: Path, unique: Callable[[str], str]
) -> Callable[[], Installation]:
    """Makes installations that share nothing."""

    def make() -> Installation:
        name = unique("backup")
        folder = tmp_path / name
        if request.param == "kafka":
            broker = f"kafka://{request.getfixturevalue('kafka')}"
        else:
            broker = f"sqlite:///{folder}/log.db"
        return Installation(folder, broker, f"{name}.", name)

    return make


async def test_what_was_backed_up_is_what_is_restored(
    installation: Callable[[], Installation], tmp_path: Path
) -> None:
    one, two = installation(), installation()
    file = tmp_path / "backup"
    async with one.running():
        before = await one.filled()
    assert len(before[0]["subscriptions"]) == 2

    done = await one.backup(file)
    assert done.returncode == 0, done.stderr
    assert f"records of {one.options[3].removeprefix('topics.prefix=')}subscriptions are in" in done.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    # The secrets are sealed in the file as they are in the topic.
    assert b"whsec_" not in file.read_bytes()

    done = await two.restore(file)
    assert done.returncode == 0, done.stderr
    async with two.running():
        assert await two.shown() == before

    again = await two.restore(file)
    assert again.returncode == 1
    assert "is not empty: stop every replica, delete the topic" in again.stderr


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda kept: kept[:-1], "is not whole"),
        (lambda kept: kept, "is not whole"),
        (lambda kept: [kept[0], kept[1].replace(b"1", b"2", 1), *kept[2:]], "is not whole"),
        (lambda kept: [kept[0].replace(b'"version":1', b'"version":2'), *kept[1:]], "newer version"),
        (lambda _: [b"subscriptions: []\n"], "is no backup"),
        (lambda _: [], "is no backup"),
    ],
)
def test_a_file_that_is_not_a_whole_backup_is_refused(
    tmp_path: Path, harm: Callable[[list[bytes]], list[bytes]], said: str
) -> None:
    broker = ("--broker", f"sqlite:///{tmp_path}/log.db")
    dispatcher("topics", "--create", *broker, cwd=tmp_path)
    skip: dict[str, Any] = {"key": "foreign", "value": None, "headers": [], "timestamp_ms": 1}
    whole = dispatcher("backup", "-", *broker, cwd=tmp_path).stdout.encode().splitlines(keepends=True)
    assert len(whole) == 2
    file = tmp_path / "file"
    file.write_bytes(b"".join(harm([whole[0], orjson.dumps(skip) + b"\n", whole[1]])))
    done = dispatcher("restore", str(file), *broker, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_backup_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "backup"
    file.write_text("the one before")
    done = dispatcher("backup", str(file), "--broker", f"sqlite:///{tmp_path}/log.db", cwd=tmp_path)
    assert done.returncode == 1
    assert "there is no topic dispatcher.subscriptions" in done.stderr
    assert file.read_text() == "the one before"
    assert list(tmp_path.glob(".backup*")) == []
    done = dispatcher("restore", str(tmp_path / "none"), cwd=tmp_path)
    assert done.returncode == 2
    assert "does not exist" in done.stderr
