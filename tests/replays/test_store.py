"""The jobs that every replica knows."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.control.errors import VersionMismatch
from dispatcher.core.replay.job import JobState
from dispatcher.core.replay.standing import ReplayStanding
from dispatcher.replays.store import KEPT, PAUSED_AT_MOST, ReplayStore, replays_topic
from dispatcher.settings.groups import Settings
from tests.fakes import MemoryReader
from tests.replays.world import ID, ReplayWorld, asked

pytestmark = [pytest.mark.looptime]


async def store_of(made: ReplayWorld) -> ReplayStore:
    store = ReplayStore(Settings(), made.broker, wall=made.wall)
    store.start()
    await store.wait_loaded()
    return store


async def test_every_replica_knows_each_job_and_only_one_of_two_changes_counts() -> None:
    made = ReplayWorld()
    one, other = await store_of(made), await store_of(made)
    row = await one.put(asked(), base=0)
    await asyncio.sleep(1)
    seen = other.get(ID)
    assert seen is not None
    assert seen.value == row.value == asked()
    await one.put(row.value.begin(5, "one"), base=row.version)
    with pytest.raises(VersionMismatch):
        await other.put(row.value.begin(5, "other"), base=row.version)
    await asyncio.sleep(1)
    seen = other.get(ID)
    assert seen is not None
    assert seen.value.runner == "one"
    third = await store_of(made)
    assert [each.value.runner for each in third.rows()] == ["one"]
    assert replays_topic(Settings()) == "dispatcher.replays"
    for store in (one, other, third):
        await store.stop()


async def test_deliveries_are_told_what_to_do_by_the_state_of_their_replay() -> None:
    made = ReplayWorld()
    store = ReplayStore(Settings(), made.broker, wall=made.wall)
    # Before anything is read nobody can say that there is no such replay.
    before = store.standing(ID)
    store.start()
    await store.wait_loaded()
    assert before == ReplayStanding.WAIT
    assert (store.standing(ID), store.warning) == (ReplayStanding.UNKNOWN, None)
    row = await store.put(asked(), base=0)
    standings = []
    for job in (
        row.value,
        row.value.begin(1, "a"),
        row.value.pause(2),
        row.value.resume(),
        row.value.done(3),
        row.value.fail(3, "x"),
        row.value.cancel(3),
    ):
        row = await store.put(job, base=row.version)
        standings.append(store.standing(ID).value)
        assert store.counts()[job.state.value] == 1
    assert standings == ["go", "go", "wait", "go", "go", "go", "over"]
    await store.stop()


async def test_reading_at_a_start_is_told_only_where_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(reader: MemoryReader) -> None:
        await asyncio.sleep(20)
        reader.caught_up = True

    monkeypatch.setattr(MemoryReader, "start", slow)
    made = ReplayWorld()
    store = ReplayStore(Settings(), made.broker, wall=made.wall)
    store.start()
    await asyncio.sleep(9)
    assert (store.loaded, store.warning) == (False, None)
    await asyncio.sleep(2)
    assert "not read yet" in str(store.warning)
    await store.wait_loaded()
    assert store.warning is None
    await store.stop()


async def test_jobs_that_are_over_are_forgotten_after_a_week_and_paused_ones_end() -> None:
    made = ReplayWorld()
    store = await store_of(made)
    now = round(made.wall() * 1000)
    row = await store.put(asked().pause(now), base=0)
    made.later = PAUSED_AT_MOST - 60
    await store.keep_house()
    assert store.get(ID) == row
    made.later += 120
    await store.keep_house()
    ended = store.get(ID)
    assert ended is not None
    assert ended.value.state is JobState.CANCELLED
    assert "paused" in (ended.value.detail or "")
    made.later += KEPT - 60
    await store.keep_house()
    assert store.ids() == [ID]
    made.later += 120
    await store.keep_house()
    assert not store.ids()
    await store.stop()
