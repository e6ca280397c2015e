"""Keys and event types by name."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.control.errors import VersionMismatch
from dispatcher.core.control.keys import Key
from dispatcher.core.event.catalogued import EventType
from tests.control.replicas import World

pytestmark = pytest.mark.looptime


async def test_keys_and_event_types_are_kept_with_versions(world: World) -> None:
    one, two = await world.replica(), await world.replica()
    key = Key("abcd2345", "billing", "tenant", "acme", bytes(32), 5)
    kind = EventType("invoice.paid", "Somebody paid", {"type": "object"}, {"amount": 3})
    assert (await one.store.keys.put(key.id, key, base=0)).version == 1
    row = await one.store.event_types.put(kind.name, kind, base=0)
    await one.store.event_types.put("a.first", EventType("a.first"), base=0)
    await asyncio.sleep(0.1)
    assert two.store.keys.get("abcd2345").value == key  # type: ignore[union-attr]
    assert two.store.event_types.get("invoice.paid") == row
    assert list(two.store.event_types.names()) == ["a.first", "invoice.paid"]
    with pytest.raises(VersionMismatch):
        await two.store.event_types.put(kind.name, kind, base=0)
    await two.store.keys.delete("abcd2345", base=1)
    three = await world.replica()
    assert (three.store.keys.get("abcd2345"), len(three.store.keys), len(three.store.event_types)) == (
        None,
        0,
        2,
    )
    assert len(three.store) == 0
    assert three.registry.index.get("invoice.paid") is None
