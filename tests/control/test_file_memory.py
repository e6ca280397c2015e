"""What is remembered of a group's subscriptions file, on replicas that share the topic."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import yaml
from orjson import loads
from structlog.testing import capture_logs

from dispatcher.broker.base import BrokerUnavailable
from dispatcher.control.file_memory import FileMemory
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import Role, Settings
from tests.control.replicas import SECRET, World

pytestmark = pytest.mark.looptime

KEY = "file:dispatcher"


def write(file: Path, *ids: str) -> Path:
    entry = {"url": "https://file.example/in", "event_types": ["a.*"], "secrets": [SECRET]}
    file.write_text(yaml.safe_dump({"subscriptions": [{"id": id_, **entry} for id_ in ids]}))
    return file


class Process:
    """A replica and its memory, as the control plane has them."""

    def __init__(self, world: World, *roles: Role) -> None:
        self.world = world
        self.roles = roles or ("deliver", "api", "history")

    async def starts(self, file: Path | None) -> FileMemory:
        self.replica = await self.world.replica(file=file)
        settings = Settings(subscriptions_file=file, roles=self.roles)
        self.memory = FileMemory(self.replica.store.files, settings, self.replica.registry)
        self._tasks = Tasks()
        self._tasks.start(self.memory.run(), "memory")
        await asyncio.sleep(0.1)
        return self.memory

    async def stops(self) -> None:
        await self._tasks.stop()
        await self.world.stop(self.replica)


async def test_a_start_without_the_file_says_what_is_missing_until_a_file_is_named(
    world: World, tmp_path: Path
) -> None:
    one = Process(world)
    assert (await one.starts(None)).warning is None, "there never was one"
    await one.stops()
    assert world.written() == []

    file = write(tmp_path / "subscriptions.yaml", "x", "y")
    assert (await one.starts(file)).warning is None
    await one.stops()
    with capture_logs() as logs:
        warning = (await one.starts(None)).warning or ""
    assert "the group dispatcher had 2 subscriptions by a file" in warning
    assert "--subscriptions" in warning
    assert [line["log_level"] for line in logs if line["event"] == "the subscriptions file is missing"] == [
        "warning"
    ]
    beside = Process(world)
    await beside.starts(file)
    assert one.memory.warning is not None, "it is this one that delivers nothing to them"
    for process in (beside, one):
        await process.stops()

    assert (await one.starts(write(tmp_path / "empty.yaml"))).warning is None
    await one.stops()
    assert (await one.starts(None)).warning is None
    await one.stops()


async def test_it_is_written_once_and_when_the_file_gets_its_first_or_loses_its_last(
    world: World, tmp_path: Path
) -> None:
    file = write(tmp_path / "subscriptions.yaml")
    other = write(tmp_path / "other.yaml", "a", "b", "c")
    one, two = Process(world), Process(world)
    await one.starts(file)
    assert world.written() == []
    for ids in (["x"], ["x", "y"]):
        write(file, *ids)
        await one.replica.registry.reload()
        await asyncio.sleep(10)
    assert [(key, loads(value or b"")["value"]) for key, value in world.written()] == [
        (KEY, {"subscriptions": 1})
    ]
    # Another one, with another file, writes once, and nobody writes against it.
    await two.starts(other)
    await asyncio.sleep(60)
    assert [loads(value or b"")["value"]["subscriptions"] for _, value in world.written()] == [1, 3]
    # Who takes it away is not believed while another one has some.
    write(file)
    await one.replica.registry.reload()
    await asyncio.sleep(60)
    row = one.replica.store.files.get("dispatcher")
    assert (len(world.written()), row and row.value) == (4, 3)
    write(other)
    await two.replica.registry.reload()
    await asyncio.sleep(60)
    assert (len(world.written()), one.replica.store.files.get("dispatcher")) == (5, None)
    for process in (one, two):
        await process.stops()


async def test_one_that_delivers_nothing_neither_says_nor_writes_anything(
    world: World, tmp_path: Path
) -> None:
    file = write(tmp_path / "subscriptions.yaml", "x")
    api, deliver = Process(world, "api", "history"), Process(world, "deliver")
    await api.starts(file)
    assert world.written() == []
    await api.stops()
    await deliver.starts(file)
    await deliver.stops()
    assert (await api.starts(None)).warning is None
    await api.stops()


async def test_a_broker_that_is_away_is_waited_for(world: World, tmp_path: Path) -> None:
    world.broker.produce_errors = [BrokerUnavailable("away")] * 30
    process = Process(world)
    await process.starts(write(tmp_path / "subscriptions.yaml", "x"))
    await asyncio.sleep(120)
    assert [key for key, _ in world.written()] == [KEY]
    await process.stops()
