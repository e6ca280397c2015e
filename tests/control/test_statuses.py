"""What becomes of subscriptions at run time is kept."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dispatcher.broker.base import BrokerUnavailable
from dispatcher.control.errors import NotFound, Unavailable
from tests.control.replicas import World, create

pytestmark = pytest.mark.looptime

FILE = "subscriptions:\n  - {id: f, url: 'https://f.example/', event_types: [%s], secrets: ['${S}']}\n"


async def test_what_is_disabled_stays_so_after_a_restart_until_its_entry_changes(
    world: World, tmp_path: Path
) -> None:
    file = tmp_path / "subscriptions.yaml"
    file.write_text(FILE % "a")
    one, two = await world.replica(file=file), await world.replica(file=file)
    one.registry.disable("f", "gone")
    await asyncio.sleep(3)
    assert one.status("f") == two.status("f") == ("disabled", "gone")
    await world.stop(one)
    await world.stop(two)
    three = await world.replica(file=file)
    assert three.status("f") == ("disabled", "gone")
    assert three.registry.runtime("f").since is not None  # type: ignore[union-attr]
    await world.stop(three)
    file.write_text(FILE % "b")
    four = await world.replica(file=file)
    assert four.status("f") == ("active", None)


async def test_an_entry_that_changes_while_it_runs_is_enabled_and_stays_so(
    world: World, tmp_path: Path
) -> None:
    file = tmp_path / "subscriptions.yaml"
    file.write_text(FILE % "a")
    one = await world.replica(file=file)
    one.registry.disable("f", "gone")
    await asyncio.sleep(3)
    file.write_text(FILE % "b")
    assert await one.registry.reload()
    await asyncio.sleep(3)
    assert one.status("f") == ("active", None)
    assert world.written()[-1] == ("status:f", None)
    file.write_text(FILE % "a")
    two = await world.replica(file=file)
    assert two.status("f") == ("active", None)


async def test_enabling_ends_a_disabling_on_every_replica(world: World) -> None:
    one, two = await world.replica(), await world.replica()
    stored = await create(one)
    await asyncio.sleep(0.1)
    two.registry.disable("s", "gone")
    await asyncio.sleep(3)
    assert one.status() == ("disabled", "gone")
    await one.store.enable("s")
    await asyncio.sleep(0.1)
    assert one.status() == two.status() == ("active", None)
    assert one.store.get("s") == stored, "its version is the same"
    with pytest.raises(NotFound):
        await one.store.enable("nobody")


async def test_another_url_starts_over(world: World) -> None:
    one = await world.replica()
    await create(one)
    await one.store.set_disabled("s", "gone")
    assert (await create(one, base=1, event_types=["b"])).version == 2
    assert one.status() == ("disabled", "operator")
    await create(one, base=2, url="https://hooks.example/new")
    assert one.status() == ("active", None)


async def test_passing_the_validation_is_kept(world: World) -> None:
    one = await world.replica()
    await create(one, validate=True)
    assert one.status() == ("pending", "not validated")
    await one.store.set_validated("s")
    two = await world.replica()
    assert one.status() == two.status() == ("active", None)


async def test_failing_since_is_kept_with_few_records(world: World) -> None:
    one, two = await world.replica(), await world.replica()
    await create(one)
    await asyncio.sleep(0.1)
    before = len(world.written())
    for number in range(100):
        one.registry.note_failing("s", 1000.0 - number)
        await asyncio.sleep(0.01)
    await asyncio.sleep(5)
    assert two.registry.failing("s") == 901.0
    assert len(world.written()) - before <= 3
    three = await world.replica()
    assert three.registry.failing("s") == 901.0
    two.registry.note_recovered("s")
    await asyncio.sleep(5)
    assert one.registry.failing("s") is None
    assert world.written()[-1] == ("status:s", None)


async def test_decisions_of_two_replicas_about_different_things_both_count(world: World) -> None:
    one, two = await world.replica(), await world.replica()
    await create(one)
    await asyncio.sleep(5)
    one.registry.note_failing("s", 500.0)
    two.registry.disable("s", "gone")
    await asyncio.sleep(10)
    for replica in (one, two):
        assert replica.status() == ("disabled", "gone")
        assert replica.registry.failing("s") == 500.0


async def test_a_disabling_holds_here_while_the_broker_is_away_and_is_kept_later(world: World) -> None:
    one, two = await world.replica(), await world.replica()
    await create(one)
    await asyncio.sleep(2)
    world.broker.produce_errors += [BrokerUnavailable("away")] * 100
    one.registry.disable("s", "gone")
    with pytest.raises(Unavailable):
        await one.store.set_validated("s")
    assert one.status() == ("disabled", "gone")
    assert two.status() == ("active", None)
    world.broker.produce_errors.clear()
    await asyncio.sleep(30)
    assert two.status() == ("disabled", "gone")


async def test_what_an_operator_wrote_stands_on_every_replica_and_after_a_restart(world: World) -> None:
    one, two = await world.replica(), await world.replica()
    await create(one)
    await asyncio.sleep(0.1)
    two.registry.disable("s", "failing")
    await asyncio.sleep(3)
    await one.store.set_disabled("s", "floods its endpoint")
    await asyncio.sleep(0.1)
    three = await world.replica()
    for replica in (one, two, three):
        assert replica.status() == ("disabled", "operator")
        assert replica.registry.runtime("s").text == "floods its endpoint"  # type: ignore[union-attr]
    two.registry.disable("s", "gone")
    assert two.status() == ("disabled", "operator"), "what is decided at run time doesn't replace it"
