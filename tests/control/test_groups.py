"""What is remembered of consumer groups, on replicas that share the topic."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import pytest

from dispatcher.broker.base import BrokerUnavailable, MadeAnew, Remembered
from dispatcher.control.errors import VersionMismatch
from dispatcher.control.groups import StoredMemory, Topics
from dispatcher.runtime.tasks import Tasks
from tests.control.replicas import TOPIC, World, create

pytestmark = pytest.mark.looptime

EVENTS, MORE = Remembered("x", 4), Remembered(None, 1)


async def test_what_one_replica_remembers_all_do_and_after_a_restart_too(world: World) -> None:
    tasks = Tasks()
    one, two = await world.replica(), await world.replica()
    here, there = (StoredMemory(each.store.groups, "g", tasks) for each in (one, two))
    assert here.topics() is None
    here.remember({"a": EVENTS})
    assert here.topics() == {"a": EVENTS}, "at once, here"
    await asyncio.sleep(0.1)
    assert there.topics() == {"a": EVENTS}
    here.remember({"b": MORE})
    there.remember({"c": MORE})
    await asyncio.sleep(0.1)
    for replica in (one, two):
        await world.stop(replica)
    late = await world.replica()
    assert StoredMemory(late.store.groups, "g", tasks).topics() == {"a": EVENTS, "b": MORE, "c": MORE}
    assert StoredMemory(late.store.groups, "other", tasks).topics() is None
    assert late.store.ids() == [], "it is no subscription"


async def test_what_is_remembered_already_is_not_written_again(world: World) -> None:
    tasks = Tasks()
    replica = await world.replica()
    memory = StoredMemory(replica.store.groups, "g", tasks)
    memory.remember({"a": EVENTS})
    await asyncio.sleep(0.1)
    memory.remember({"a": EVENTS})
    await asyncio.sleep(0.1)
    assert [key for key, _ in world.written()] == ["group:g"]


async def test_a_broker_that_is_away_is_waited_for(world: World) -> None:
    tasks = Tasks()
    replica = await world.replica()
    memory = StoredMemory(replica.store.groups, "g", tasks)
    world.broker.produce_errors = [BrokerUnavailable("away")] * 30
    memory.remember({"a": EVENTS})
    await asyncio.sleep(60)
    assert [key for key, _ in world.written()] == ["group:g"]


async def test_a_topic_made_anew_gets_back_what_every_replica_has_of_it(world: World) -> None:
    one, two = await world.replica(), await world.replica()
    await create(one)
    await create(one, "gone")
    await one.store.delete("gone", base=1)
    StoredMemory(one.store.groups, "g", Tasks()).remember({"a": EVENTS})
    await asyncio.sleep(0.1)
    world.broker.log[TOPIC].clear()  # as deleting the topic and creating it does
    for reader in world.broker.readers:
        reader.error = MadeAnew("the topic is another one")
        reader.wake.set()
    await asyncio.sleep(10)
    assert {key for key, _ in world.written()} == {"s", "group:g"}
    assert one.store.get("s") is not None
    assert "written to it again" in (one.store.warning or "")
    changed = await create(two, base=1, timeout="3s")
    assert changed.version == 2
    await asyncio.sleep(0.1)
    late = await world.replica()
    assert late.store.get("s") == changed == one.store.get("s")
    assert late.store.warning is None


READ = Remembered("id of events", 2)
WRITTEN = Remembered("id of others", 1)


class OneRow(NamedTuple):
    version: int
    value: Topics


class OneTable:
    """The store's, with one entry."""

    def __init__(self) -> None:
        self.version = 0  # in force
        self.row: OneRow | None = None  # what can be read of it
        self.tries = 0

    def get(self, name: str) -> OneRow | None:
        return self.row

    async def put(self, name: str, value: Topics, *, base: int) -> OneRow:
        self.tries += 1
        assert self.tries < 100, "it spins"
        if base != self.version:
            raise VersionMismatch(self.version)
        self.version += 1
        self.row = OneRow(self.version, value)
        return self.row


async def test_it_is_written_beside_what_another_replica_wrote_first() -> None:
    table, tasks = OneTable(), Tasks()
    memory = StoredMemory(table, "dispatcher", tasks)
    memory.remember({"events": READ})
    table.version, table.row = 1, OneRow(1, {"others": WRITTEN})
    await asyncio.sleep(0.1)
    assert table.row == (2, {"others": WRITTEN, "events": READ})
    await tasks.stop()


async def test_an_entry_that_cannot_be_read_is_waited_for_without_spinning() -> None:
    table, tasks = OneTable(), Tasks()
    table.version = 3
    memory = StoredMemory(table, "dispatcher", tasks)
    memory.remember({"events": READ})
    await asyncio.sleep(10)
    assert memory.topics() == {"events": READ}, "as long as this process lives, it is remembered"
    table.row = OneRow(3, {"others": WRITTEN})
    await asyncio.sleep(10)
    assert table.row == (4, {"others": WRITTEN, "events": READ})
    await tasks.stop()
