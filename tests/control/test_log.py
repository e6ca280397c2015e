"""The control topic is followed, written and repaired."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from dispatcher.broker.base import BrokerUnavailable, MessageTooLarge
from dispatcher.control.errors import TooLarge, Unavailable, VersionMismatch
from dispatcher.settings.groups import Settings
from tests.control.replicas import TOPIC, Replica, World, create
from tests.fakes import MemoryReader

pytestmark = pytest.mark.looptime


async def test_of_two_changes_of_the_same_version_one_wins_and_the_other_is_told(world: World) -> None:
    one, two = await world.replica(), await world.replica()
    await create(one)
    await asyncio.sleep(0.01)
    results = await asyncio.gather(
        create(one, base=1, event_types=["one"]),
        create(two, base=1, event_types=["two"]),
        return_exceptions=True,
    )
    (won,) = [each for each in results if not isinstance(each, BaseException)]
    (lost,) = [each for each in results if isinstance(each, BaseException)]
    assert isinstance(lost, VersionMismatch)
    assert lost.current == 2
    await asyncio.sleep(60)
    assert one.store.get("s") == two.store.get("s") == won
    key, value = world.written()[-1]
    assert key == "s"
    assert orjson.loads(value or b"")["document"]["event_types"] == won.document["event_types"], "repaired"
    assert len(world.written()) == 4, "once, by the one that lost"


async def test_of_two_creations_of_an_id_one_wins(world: World) -> None:
    one, two = await world.replica(), await world.replica()
    results = await asyncio.gather(create(one), create(two), create(one), return_exceptions=True)
    assert sorted(type(each).__name__ for each in results) == ["Stored", "VersionMismatch", "VersionMismatch"]


async def test_a_change_of_an_old_version_is_refused_without_a_record(world: World) -> None:
    one = await world.replica()
    await create(one)
    for base in (0, 2):
        with pytest.raises(VersionMismatch) as caught:
            await create(one, base=base)
        assert caught.value.current == 1
    with pytest.raises(VersionMismatch) as caught:
        await create(one, "other", base=1)
    assert caught.value.current is None
    assert len(world.written()) == 1


async def test_nothing_can_be_written_before_everything_is_read(world: World) -> None:
    replica = Replica(world.broker, Settings(), world.wall)
    assert not replica.store.loaded
    assert replica.store.problem is not None
    with pytest.raises(Unavailable):
        await create(replica)
    with pytest.raises(Unavailable):
        await replica.store.enable("s")


async def test_a_broker_that_is_away_for_a_moment_is_waited_for_and_the_write_counts_once(
    world: World,
) -> None:
    one = await world.replica()
    world.broker.produce_errors += [BrokerUnavailable("away"), BrokerUnavailable("away")]
    assert (await create(one)).version == 1
    assert len(world.written()) == 1


async def test_a_write_that_is_acknowledged_and_not_read_back_in_time_is_answered_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await world.replica()

    async def hang(*_: object) -> None:
        await asyncio.sleep(1e6)

    monkeypatch.setattr(MemoryReader, "read", hang)
    await asyncio.sleep(2)  # until the poll under way is over
    with pytest.raises(Unavailable, match="may still take effect"):
        await create(one)


async def test_a_broker_that_stays_away_is_told_and_the_store_recovers(world: World) -> None:
    one = await world.replica()
    world.broker.produce_errors += [BrokerUnavailable("away")] * 100
    with pytest.raises(Unavailable, match="may still take effect"):
        await create(one)
    assert one.store.get("s") is None
    world.broker.produce_errors.clear()
    assert (await create(one)).version == 1


async def test_a_document_that_the_broker_does_not_take_is_too_large(world: World) -> None:
    one = await world.replica()
    world.broker.produce_errors.append(MessageTooLarge("too large"))
    with pytest.raises(TooLarge):
        await create(one)


async def test_writes_under_way_end_when_the_store_stops(world: World) -> None:
    one = await world.replica()
    world.broker.produce_errors += [BrokerUnavailable("away")] * 100
    writing = asyncio.get_running_loop().create_task(create(one))
    await asyncio.sleep(0.1)
    await world.stop(one)
    with pytest.raises(Unavailable, match="stopping"):
        await writing


async def test_records_of_others_are_left_alone_and_what_they_cover_is_repaired(world: World) -> None:
    one = await world.replica()
    await create(one)
    for key, value in ((b"s", b"rubbish"), (b"t", b"rubbish"), (None, b"rubbish"), (b"\xff", None)):
        world.broker.append(value, partition=TOPIC)
        world.broker.log[TOPIC][-1].key = key
    await asyncio.sleep(60)
    two = await world.replica()
    assert list(two.store.ids()) == list(one.store.ids()) == ["s"]
    assert world.written()[-1] == world.written()[0], "repaired"
    assert len(world.written()) == 6


async def test_a_dirty_key_whose_writer_is_gone_is_repaired_by_who_comes(world: World) -> None:
    one, two = await world.replica(), await world.replica()
    await create(one)
    await asyncio.sleep(0.1)
    await world.stop(two)
    log = world.broker.log[TOPIC]
    world.broker.append(b"{}", [("base", b"0"), ("version", b"1"), ("write", b"lost")], partition=TOPIC)
    log[-1].key = b"s"
    await world.stop(one)
    three = await world.replica()
    await asyncio.sleep(5)
    assert world.written()[-1] == world.written()[0]
    assert three.status() == ("active", None)


async def test_a_reader_that_fails_ends_the_process(world: World) -> None:
    one = await world.replica()
    world.broker.read_errors.append(BrokerUnavailable("cut"))
    world.broker.append(None, partition=TOPIC)
    await asyncio.sleep(2)
    assert [str(error) for error in one.failures] == ["cut"]
    one.failures.clear()
