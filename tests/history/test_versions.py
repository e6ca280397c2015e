"""Subscriptions of a registry, kept in a store as they change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from dispatcher.core.request.netguard import Guard
from dispatcher.core.subscription.model import Status, Subscription
from dispatcher.history.base import DELETED, Retention, StoreUnavailable, SubscriptionVersion
from dispatcher.history.explanation import document_of
from dispatcher.history.logged import DAY_MS
from dispatcher.history.sqlite.store import SqliteHistory
from dispatcher.history.versions import Origins, VersionKeeper
from dispatcher.registry.registry import Registry
from dispatcher.settings.groups import Settings
from tests.fakes import subscription

NOW = 1_760_000_000.0
NOW_MS = round(NOW * 1000)


class Bench:
    """A registry and a store, and the time."""

    def __init__(self, folder: Path) -> None:
        self.now = NOW
        self.origins: dict[str, Origins] = {}
        self.file = folder / "subscriptions.yaml"
        self.file.write_text("subscriptions: []")
        self.registry = Registry(
            Settings(subscriptions_file=self.file), Guard(()), {}, poll=1e9, wall=lambda: self.now
        )
        self.store = SqliteHistory(folder / "history", Retention(30 * DAY_MS, 30 * DAY_MS))
        self.refusals = 0

    def put(self, id_: str, **fields: Any) -> Subscription:
        made = subscription(id_, **{"tenant": "acme", **fields})
        self.registry.put_managed(made, "tag")
        return made

    @asynccontextmanager
    async def keeping(self) -> AsyncIterator[None]:
        keeper = VersionKeeper(
            self.store,
            self.registry,
            lambda id_: self.origins.get(id_, Origins(None, None)),
            clock=lambda: self.now,
        )
        task = asyncio.get_running_loop().create_task(keeper.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert not self.registry.watchers

    async def begun(self) -> None:
        """What was there at the start has been looked at."""
        self.put("first")
        await self.versions("first", 1)

    async def versions(self, id_: str, count: int) -> Sequence[SubscriptionVersion]:
        """Those of a subscription, when there are so many."""
        async with asyncio.timeout(30):
            while len(found := await self.store.versions([id_])) < count:
                await asyncio.sleep(0.01)
        assert len(found) == count
        return found


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    await made.registry.start()
    await made.store.open()
    yield made
    await made.store.close()
    await made.registry.stop()


async def test_what_is_there_already_is_kept_with_the_time_of_its_last_change(bench: Bench) -> None:
    bench.put("sub_a", event_types=("invoice.*",))
    bench.put("sub_b", tenant=None)
    bench.registry.disable("sub_b", "operator", "it floods")
    bench.origins["sub_a"] = Origins(NOW_MS - 9000, NOW_MS - 5000)
    bench.now += 60
    async with bench.keeping():
        (version,) = await bench.versions("sub_a", 1)
        assert version[:4] == ("sub_a", NOW_MS - 5000, "acme", "active")
        assert document_of(version).event_types == ("invoice.*",)
        assert document_of(version).created_ms == NOW_MS - 9000
        (version,) = await bench.versions("sub_b", 1)
        assert version[:4] == ("sub_b", NOW_MS + 60_000, None, "disabled")
        assert document_of(version).reason == "operator"


async def test_each_change_is_kept_with_the_time_at_which_it_was_seen(bench: Bench) -> None:
    async with bench.keeping():
        await bench.begun()
        bench.put("sub_a")
        await bench.versions("sub_a", 1)
        bench.now += 1
        bench.put("sub_a", status=Status.PAUSED)
        bench.now += 1
        bench.put("sub_a", event_types=("order.*",))
        bench.now += 1
        bench.put(
            "sub_a", event_types=("order.*",), max_in_flight=3
        )  # not what decides whether it wants an event
        bench.registry.disable("sub_a", "gone")
        bench.now += 1
        bench.registry.remove_managed("sub_a")
        found = await bench.versions("sub_a", 5)
    assert [(each.since_ms - NOW_MS, each.status, each.tenant) for each in found] == [
        (0, "active", "acme"),
        (1000, "paused", "acme"),
        (2000, "active", "acme"),
        (3000, "disabled", "acme"),
        (4000, DELETED, "acme"),
    ]


async def test_what_changed_while_nobody_looked_is_kept_at_the_next_start(bench: Bench) -> None:
    bench.put("sub_a")
    bench.put("sub_b")
    async with bench.keeping():
        await bench.versions("sub_a", 1)
        await bench.versions("sub_b", 1)
    bench.now += 10
    bench.registry.remove_managed("sub_a")
    bench.put("sub_c")
    async with bench.keeping():
        *_, last = await bench.versions("sub_a", 2)
        assert last == ("sub_a", NOW_MS + 10_000, "acme", DELETED, "{}")
        await bench.versions("sub_c", 1)
        await bench.versions("sub_b", 1)
    assert list(await bench.store.known_subscriptions("acme", 10)) == ["sub_a", "sub_b", "sub_c"]


async def test_a_file_that_is_read_again_brings_its_changes(bench: Bench) -> None:
    entry = {
        "id": "sub_file",
        "tenant": "acme",
        "url": "https://file.example/",
        "event_types": ["a.*"],
        "secrets": ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    }
    async with bench.keeping():
        bench.file.write_text(yaml.safe_dump({"subscriptions": [entry]}))
        assert await bench.registry.reload()
        await bench.versions("sub_file", 1)
        bench.now += 5
        bench.file.write_text(yaml.safe_dump({"subscriptions": [{**entry, "event_types": ["b.*"]}]}))
        assert await bench.registry.reload()
        *_, last = await bench.versions("sub_file", 2)
        assert (last.since_ms, document_of(last).event_types) == (NOW_MS + 5000, ("b.*",))
        bench.now += 5
        bench.file.write_text("subscriptions: []")
        assert await bench.registry.reload()
        *_, last = await bench.versions("sub_file", 3)
        assert last.status == DELETED


async def test_all_that_is_loaded_at_once_is_looked_at(bench: Bench) -> None:
    async with bench.keeping():
        await bench.begun()
        managed = {}
        for id_ in ("sub_a", "sub_b"):
            bench.put(id_)
            managed[id_] = bench.registry._managed[id_]
        bench.now += 1
        for id_ in managed:
            bench.registry.remove_managed(id_)
        await bench.versions("sub_a", 2)
        bench.now += 1
        await bench.registry.load_managed(managed, {})
        *_, last = await bench.versions("sub_a", 3)
        assert (last.status, last.since_ms) == ("active", NOW_MS + 2000)


async def test_a_store_that_is_away_delays_the_versions_and_loses_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = bench.store.note_versions
    left = 2

    async def refuses(versions: Sequence[SubscriptionVersion]) -> None:
        nonlocal left
        if left:
            left -= 1
            raise StoreUnavailable("away")
        await note(versions)

    async with bench.keeping():
        await bench.begun()
        monkeypatch.setattr(bench.store, "note_versions", refuses)
        bench.put("sub_a")
        bench.now += 1
        bench.put("sub_a", status=Status.PAUSED)
        found = await bench.versions("sub_a", 2)
    assert [each.status for each in found] == ["active", "paused"]


async def test_looking_again_and_again_while_the_store_is_away_notes_each_subscription_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    present, note = bench.store.present_subscriptions, bench.store.note_versions
    left = 2
    noted: list[str] = []

    async def refuses(after: str, limit: int) -> Sequence[SubscriptionVersion]:
        nonlocal left
        if left:
            left -= 1
            raise StoreUnavailable("away")
        return await present(after, limit)

    async def notes(versions: Sequence[SubscriptionVersion]) -> None:
        noted.extend(each.subscription_id for each in versions)
        await note(versions)

    monkeypatch.setattr(bench.store, "present_subscriptions", refuses)
    monkeypatch.setattr(bench.store, "note_versions", notes)
    bench.put("sub_a")
    bench.put("sub_b")
    async with bench.keeping():
        await bench.versions("sub_a", 1)
        await bench.versions("sub_b", 1)
    assert noted == ["sub_a", "sub_b"]
