"""The store as a whole: several replicas, restarts."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.control.documents import Idempotency, StoredSecret
from dispatcher.control.errors import VersionMismatch
from tests.control.replicas import DOCUMENT, SECRET, World, create

pytestmark = pytest.mark.looptime


async def test_a_created_subscription_is_in_force_here_at_once_and_on_the_others_soon(world: World) -> None:
    one, two = await world.replica(), await world.replica()
    stored = await create(one, timeout="3s", headers={"X-Env": "prod"})
    assert (stored.id, stored.version, stored.secrets) == ("s", 1, (StoredSecret(SECRET),))
    assert stored.document == DOCUMENT | {"timeout": "3s", "headers": {"X-Env": "prod"}}
    assert stored.created_ms == stored.updated_ms
    found = one.registry.index.match("acme", "a.b")[0]
    assert (found.timeout, found.secrets, found.headers) == (3.0, (SECRET,), (("X-Env", "prod"),))
    await asyncio.sleep(0.01)
    assert two.store.get("s") == stored
    assert two.registry.index.match("acme", "a.b")[0].url == "https://hooks.example/acme"
    assert (list(two.store.ids()), len(two.store)) == (["s"], 1)


async def test_a_change_keeps_when_and_by_which_request_it_was_created(world: World) -> None:
    one = await world.replica()
    request = Idempotency("key abc", "retry-1", "digest")
    first = await one.store.put("s", DOCUMENT, [StoredSecret(SECRET)], base=0, idempotency=request)
    await asyncio.sleep(5)
    second = await create(one, base=first.version, event_types=["b"])
    assert (second.version, second.created_ms, second.idempotency) == (2, first.created_ms, request)
    assert 5000 <= second.updated_ms - first.updated_ms < 5100
    assert one.registry.index.match("acme", "a.b") == ()
    assert one.store.by_idempotency("key abc", "retry-1") == second
    assert one.store.by_idempotency("another", "retry-1") is None


async def test_a_deleted_one_is_gone_everywhere_and_may_be_made_anew(world: World) -> None:
    one, two = await world.replica(), await world.replica()
    await create(one)
    one.registry.disable("s", "gone")
    await asyncio.sleep(5)
    await one.store.delete("s", base=1)
    await asyncio.sleep(0.1)
    assert two.store.get("s") is None
    assert (list(two.store.ids()), len(two.registry.index)) == ([], 0)
    with pytest.raises(VersionMismatch):
        await two.store.delete("s", base=1)
    again = await create(two)
    assert again.version == 3
    await asyncio.sleep(0.1)
    assert one.status() == two.status() == ("active", None)


async def test_everything_is_there_again_after_a_restart(world: World) -> None:
    one = await world.replica()
    for number in range(20):
        await create(one, f"s{number:02}")
    await create(one, "s03", base=1, url="https://else.example/")
    await one.store.delete("s07", base=1)
    one.registry.disable("s05", "gone")
    await asyncio.sleep(5)
    before = [one.store.get(id_) for id_ in one.store.ids()]
    counts = one.registry.counts()
    await world.stop(one)
    two = await world.replica()
    assert [two.store.get(id_) for id_ in two.store.ids()] == before
    assert two.registry.counts() == counts == {"active": 18, "paused": 0, "pending": 0, "disabled": 1}
    assert two.status("s05") == ("disabled", "gone")
    assert two.status("s07") is None
