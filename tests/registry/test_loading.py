from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dispatcher.core.subscription.model import Status
from dispatcher.registry import loading
from dispatcher.registry.file import read_entries
from tests.registry.conftest import document, entry, ids


@pytest.mark.parametrize("piecemeal", [100, 0], ids=["piecemeal", "anew"])
async def test_what_didnt_change_keeps_its_subscription(
    registries: Any, file: Any, monkeypatch: Any, piecemeal: Any
) -> None:
    monkeypatch.setattr(loading, "_PIECEMEAL", piecemeal)
    registry = await registries(document(entry("a"), entry("b"), entry("c")), poll=1000)
    kept, changed = registry.index.get("a"), registry.index.get("b")
    file.write_text("# moved down\n" + document(entry("d"), entry("b", "pong"), entry("a")))
    assert await registry.reload()
    assert ids(registry) == ["a", "b", "d"]
    assert registry.index.get("a") is kept
    assert registry.index.get("b") is not changed
    assert [each.id for each in registry.index.match(None, "pong")] == ["b"]
    assert sorted(each.id for each in registry.index.match(None, "ping")) == ["a", "d"]
    assert registry.counts() == {"active": 3, "paused": 0, "pending": 0, "disabled": 0}


async def test_one_disabled_while_the_file_is_read_is_disabled_afterwards(
    registries: Any, file: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(loading, "_PIECEMEAL", 0)
    registry = await registries(document(entry("a"), entry("b")), poll=1000)
    loop = asyncio.get_running_loop()
    real = read_entries

    def slow(*arguments: Any, **options: Any) -> Any:
        loop.call_soon_threadsafe(registry.disable, "a", "gone")
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result()
        return real(*arguments, **options)

    monkeypatch.setattr(loading, "read_entries", slow)
    file.write_text(document(entry("a"), entry("c")))
    assert await registry.reload()
    found = registry.index.get("a")
    assert found is not None
    assert found.status is Status.DISABLED
    assert registry.counts()["disabled"] == 1


async def test_the_loop_turns_while_a_large_file_is_read(registries: Any, file: Any) -> None:
    registry = await registries(document(*[entry(f"s{n}") for n in range(1500)]), poll=1000)
    turns = 0

    async def turn() -> Any:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    turning = asyncio.get_running_loop().create_task(turn())
    file.write_text(document(*[entry(f"s{n}", "pong") for n in range(1500)]))
    assert await registry.reload()
    turning.cancel()
    assert len(registry.index.match(None, "pong")) == 1500
    assert turns > 20


async def test_stopping_ends_the_reading_of_a_large_file(registries: Any, file: Any) -> None:
    registry = await registries(document(entry("a")), poll=1000)
    file.write_text(document(*[entry(f"s{n}") for n in range(3000)]))
    reading = asyncio.get_running_loop().create_task(registry.reload())
    await asyncio.sleep(0)
    await registry.stop()
    assert await reading is False
    assert ids(registry) == ["a"]
