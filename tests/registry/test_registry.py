from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from structlog.testing import capture_logs

import dispatcher.registry.registry as module
from dispatcher.core.request.netguard import Guard
from dispatcher.core.subscription.model import Status
from dispatcher.registry.file import SubscriptionsError, mark_of
from dispatcher.registry.registry import Registry
from dispatcher.registry.snapshot import Managed, Runtime, build
from dispatcher.settings.groups import Settings
from tests.registry.conftest import document, entry, eventually, ids, managed, replace


async def test_without_a_file_there_are_no_subscriptions_of_one_and_that_is_said() -> None:
    registry = Registry(Settings(), Guard(), {})
    with capture_logs() as logs:
        await registry.start()
        assert await registry.reload()
    await registry.stop()
    assert len(registry.index) == 0
    assert [each["log_level"] for each in logs] == ["info", "warning"]


@pytest.mark.parametrize("text", [None, "subscriptions: [", document(entry("a b"))])
async def test_a_start_with_a_missing_or_bad_file_fails(registries: Any, file: Any, text: Any) -> None:
    with pytest.raises(SubscriptionsError, match=r"subscriptions\.yaml"):
        await registries(text)


async def test_a_rewritten_file_is_taken(registries: Any, file: Any) -> None:
    registry = await registries(document(entry("a")))
    assert ids(registry) == ["a"]
    file.write_text(document(entry("a"), entry("b")))
    await eventually(lambda: ids(registry) == ["a", "b"])
    assert (registry.reloads_ok, registry.reloads_failed) == (2, 0)


async def test_a_replaced_file_is_taken(registries: Any, file: Any) -> None:
    registry = await registries(document(entry("a")))
    replace(file, document(entry("b")))
    await eventually(lambda: ids(registry) == ["b"])


async def test_a_config_map_swapped_by_its_link_is_taken(registries: Any, file: Any, tmp_path: Any) -> None:
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        (tmp_path / version / file.name).write_text(document(entry(version)))
    (tmp_path / "..data").symlink_to("one")
    file.symlink_to(f"..data/{file.name}")
    registry = await registries()
    assert ids(registry) == ["one"]
    (tmp_path / "..data_tmp").symlink_to("two")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    await eventually(lambda: ids(registry) == ["two"])


async def test_a_bad_file_keeps_the_old_snapshot_and_is_logged_once(registries: Any, file: Any) -> None:
    registry = await registries(document(entry("a")))
    index = registry.index
    with capture_logs() as logs:
        replace(file, document(entry("a"), entry("b", "no*")))
        await eventually(lambda: registry.reloads_failed == 1)
        replace(file, document(entry("a"), entry("b", "no*")))
        await eventually(lambda: registry.reloads_failed == 2)
    assert registry.index is index
    [line] = [each for each in logs if each["log_level"] == "error"]
    assert line["mistakes_total"] == 1
    assert ":3: b: event_types[0]" in line["mistakes"][0]
    replace(file, document(entry("b")))
    await eventually(lambda: ids(registry) == ["b"])


async def test_a_file_that_went_away_keeps_the_old_snapshot_until_it_is_back(
    registries: Any, file: Any
) -> None:
    registry = await registries(document(entry("a")))
    file.unlink()
    assert not await registry.reload()
    assert ids(registry) == ["a"]
    file.write_text(document(entry("b")))
    await eventually(lambda: ids(registry) == ["b"])


async def test_a_file_that_still_changes_is_not_read(registries: Any, file: Any, monkeypatch: Any) -> None:
    registry = await registries(document(entry("a")))
    real = mark_of
    looks = 0
    writing = True

    def look(path: Any) -> Any:
        # While somebody writes in place, each look finds another state.
        nonlocal looks
        looks += 1
        return (0, 0, 0, looks) if writing else real(path)

    monkeypatch.setattr(module, "mark_of", look)
    file.write_text("subscriptions: []\n")  # valid, and not what its author means
    await eventually(lambda: looks >= 5)
    assert (registry.reloads_ok, registry.reloads_failed) == (1, 0)
    file.write_text(document(entry("b")))
    writing = False
    await eventually(lambda: ids(registry) == ["b"])
    assert (registry.reloads_ok, registry.reloads_failed) == (2, 0)


async def test_reload_reads_at_once_and_tells_again_of_the_same_mistake(registries: Any, file: Any) -> None:
    registry = await registries(document(entry("a")), poll=1000)
    file.write_text(document(entry("a"), entry("b")))
    assert await registry.reload()
    assert ids(registry) == ["a", "b"]
    file.write_text("subscriptions: [")
    with capture_logs() as logs:
        assert not await registry.reload()
        assert not await registry.reload()
    assert [each["log_level"] for each in logs] == ["error", "error"]
    assert (registry.reloads_ok, registry.reloads_failed) == (2, 2)


async def test_a_fifo_is_refused_and_the_file_that_comes_after_it_is_taken(
    registries: Any, file: Any
) -> None:
    """Opening one waits for its writer: the thread that reads would never come back, and nothing be reloaded again."""
    registry = await registries(document(entry("a")))
    file.unlink()
    os.mkfifo(file)
    await eventually(lambda: registry.reloads_failed)
    assert ids(registry) == ["a"]
    replace(file, document(entry("b")))
    await eventually(lambda: ids(registry) == ["b"])


async def test_a_file_that_can_not_be_read_is_named_with_the_reason(registries: Any, file: Any) -> None:
    file.mkdir()
    with pytest.raises(SubscriptionsError, match="Is a directory"):
        await registries()


# What the API manages, and what becomes of subscriptions at run time.


async def test_subscriptions_of_the_api_stand_beside_those_of_the_file(registries: Any) -> None:
    registry = await registries(document(entry("a")), poll=1000)
    registry.put_managed(managed("b"), "first")
    assert ids(registry) == ["a", "b"]
    assert sorted(each.id for each in registry.index.match(None, "ping")) == ["a", "b"]
    assert (registry.in_file("a"), registry.in_file("b"), "b" in registry, "c" in registry) == (
        *(True, False),
        *(True, False),
    )
    registry.put_managed(managed("b", ("pong",)), "first")
    assert [each.id for each in registry.index.match(None, "pong")] == ["b"]
    assert registry.counts()["active"] == 2
    registry.remove_managed("b")
    registry.remove_managed("b")
    assert ids(registry) == ["a"]
    assert registry.counts()["active"] == 1


async def test_all_of_the_apis_are_loaded_at_once(registries: Any) -> None:
    registry = await registries(document(entry("a"), entry("b")), poll=1000)
    many = {f"m{n}": Managed(managed(f"m{n}"), "t") for n in range(1000)} | {"b": Managed(managed("b"), "t")}
    tag = registry.tag("a")
    runtimes = {
        "a": Runtime(tag, Status.DISABLED, "gone", 5.0),
        "m1": Runtime("t", Status.DISABLED, "failing", 6.0, 1.0),
        "m2": Runtime("of an earlier one", Status.DISABLED, "gone"),
    }
    with capture_logs() as logs:
        await registry.load_managed(many, runtimes)
    assert [each["total"] for each in logs if each["log_level"] == "warning"] == [1]
    assert len(registry.index) == 1002
    assert registry.counts() == {"active": 1000, "paused": 0, "pending": 0, "disabled": 2}
    assert registry.runtime("a") == runtimes["a"]
    assert (registry.failing("m1"), registry.failing("m2"), registry.runtime("m2")) == (1.0, None, None)


async def test_what_changes_while_a_thread_builds_is_in_force_afterwards(
    registries: Any, monkeypatch: Any
) -> None:
    registry = await registries(document(entry("a")), poll=1000)
    loop = asyncio.get_running_loop()
    real = build

    def change() -> None:
        registry.put_managed(managed("late"))
        registry.remove_managed("m2")
        registry.disable("a", "gone")

    def slow(*arguments: Any) -> Any:
        built = real(*arguments)
        loop.call_soon_threadsafe(change)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result()
        return built

    monkeypatch.setattr(module, "build", slow)
    await registry.load_managed({f"m{n}": Managed(managed(f"m{n}"), "") for n in range(3)}, {})
    assert ids(registry) == ["a", "late", "m0", "m1"]
    assert registry.counts() == {"active": 3, "paused": 0, "pending": 0, "disabled": 1}


async def test_what_is_decided_here_is_told_and_what_the_topic_brings_is_not(registries: Any) -> None:
    registry = await registries(document(entry("a")), poll=1000)
    told: Any = []
    registry.on_status = told.append
    registry.note_failing("a", 100.0)
    registry.note_failing("a", 150.0)
    registry.note_failing("nobody", 100.0)
    assert (told, registry.failing("a")) == (["a"], 100.0)
    registry.disable("a", "gone")
    assert (told, registry.failing("a")) == (["a", "a"], 100.0)
    registry.note_recovered("a")
    registry.note_recovered("a")
    registry.enable("a")
    registry.enable("a")
    assert told == ["a"] * 4
    assert registry.runtime("a") is None
    assert registry.counts()["active"] == 1
    registry.set_runtime("a", Runtime(registry.tag("a"), Status.DISABLED, "gone"))
    assert registry.counts()["disabled"] == 1
    assert told == ["a"] * 4
