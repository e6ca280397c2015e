"""Keys and event types by name."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from dispatcher.broker.base import Message
from dispatcher.control.errors import VersionMismatch
from dispatcher.control.table import SUBSCRIPTION, Kinds, RecordKind
from dispatcher.core.control.keys import Key
from dispatcher.core.control.ledger import Change, LedgerState, to_headers
from dispatcher.core.event.catalogued import EventType
from tests.control.replicas import TOPIC, World

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


def test_a_key_says_its_kind_and_one_without_a_colon_is_a_subscriptions() -> None:
    told: list[tuple[str, str]] = []
    kinds = Kinds()
    kinds.add(RecordKind(SUBSCRIPTION, lambda name, _: told.append(("subscription", name))))
    kinds.add(RecordKind("key", lambda name, _: told.append(("key", name))))
    for key in ("sub_a", "key:abc", "key:with:colons", "later:x", ":x", "subscription:x"):
        kind, name = kinds.of(key)
        if kind is not None:
            kind.take(name, LedgerState(1, b"n", b"{}"))
    assert told == [("subscription", "sub_a"), ("key", "abc"), ("key", "with:colons")]


def test_a_kind_without_versions_gets_its_keys_before_the_ledger_and_says_which_it_can_read() -> None:
    kinds = Kinds()
    kinds.add_bare("skip", lambda key: key.endswith(b"events"))
    assert kinds.take_bare(b"skip:0:7:events")
    assert not kinds.take_bare(b"skip:rubbish")
    assert not kinds.take_bare(b"other:0:7:events")
    assert not kinds.take_bare(b"skip")
    assert not kinds.take_bare(b"\xff:events")
    assert not kinds.take_bare(None)


async def test_a_kind_of_a_later_version_is_left_alone(world: World) -> None:
    one = await world.replica()
    message = Message(TOPIC.topic, b"{}", b"later:x", to_headers(Change(0, 1, b"n")), 0)
    with capture_logs() as logs:
        await world.broker.produce([message])
        await asyncio.sleep(1)
        two = await world.replica()
        await asyncio.sleep(60)
    said = [each for each in logs if each["event"] == "an entry of a kind that this version doesn't know"]
    assert len(said) == 2
    assert world.written() == [("later:x", b"{}")], "nothing was written over it"
    assert len(one.store) == len(two.store) == 0
