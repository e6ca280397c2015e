"""Notes on their way to the broker: what they take of the loop."""

from __future__ import annotations

import asyncio
import random
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dispatcher.broker.base import Broker, TopicPartition
from dispatcher.core.commit.note import Who, read_note
from dispatcher.core.commit.offsets import PartitionTracker
from dispatcher.delivery.commit_notes import CommitNotes, NoteBudget


class Slow(PartitionTracker):
    """One whose note takes long, and that tells when it is made."""

    def __init__(self, partition: int, told: list[str]) -> None:
        super().__init__("events", partition, 0)
        self.told_to = told

    def partly(self) -> dict[Who, list[tuple[int, int]]]:
        self.told_to.append("note")
        asyncio.get_running_loop().call_soon(self.told_to.append, "others")
        until = time.thread_time() + 0.006
        while time.thread_time() < until:
            pass
        return {}


async def test_others_have_their_turn_between_the_notes_of_partitions() -> None:
    told: list[str] = []
    broker = cast("Broker", SimpleNamespace(metadata_limit=4096))
    notes = CommitNotes(broker, "group", None)
    trackers: dict[TopicPartition, Any] = {TopicPartition("events", n): Slow(n, told) for n in range(3)}
    assert len(await notes.prepare(trackers, last=False)) == 3
    assert told == ["note", "others"] * 3


def share_of(costs: list[tuple[float, float]]) -> tuple[float, float]:
    """Of the loop's time and of a core's what goes to notes within an hour, looked at every second, after the first minutes."""
    budget = NoteBudget()
    loop = thread = 0.0
    for second in range(-600, 3600):
        for number, cost in enumerate(costs):
            partition = TopicPartition("events", number)
            if budget.is_due(partition, second + 600):
                budget.note(partition, *cost, second + 600)
                if second >= 0:
                    loop, thread = loop + cost[0], thread + cost[1]
    return loop / 3600, thread / 3600


def test_notes_take_a_bounded_share_of_the_loop_however_many_partitions_there_are() -> None:
    assert share_of([(0.001, 0.001)] * 20) == pytest.approx((0.02, 0.02)), "what is short goes every second"
    for partitions in (1, 3, 20, 200):
        loop, thread = share_of([(0.08, 0.3)] * partitions)
        assert loop <= min(0.021 * partitions, 0.11)
        assert thread <= min(0.051 * partitions, 0.26)
    assert share_of([(0.08, 0.3)])[0] > 0.01, "and one by itself is made every few seconds"


class Away:
    """A broker that takes no record for a while, and then each."""

    metadata_limit = 300

    def __init__(self) -> None:
        self.back = asyncio.Event()
        self.written = 0

    async def produce_one(self, topic: str, entry: tuple[bytes, bytes, int]) -> tuple[int, int]:
        await self.back.wait()
        self.written += 1
        return 0, self.written


@pytest.mark.looptime
async def test_a_record_that_could_not_be_written_is_written_when_it_can_be_although_nothing_has_changed() -> (
    None
):
    broker = Away()
    notes = CommitNotes(cast("Broker", broker), "group", "progress")
    tracker = PartitionTracker("events", 0, 0)
    for offset in range(3000):
        tracker.track(offset, 1)
    for offset in sorted(random.Random(1).sample(range(1, 3000), 1500)):
        tracker.settle(offset)
    trackers = {TopicPartition("events", 0): tracker}

    async def committed() -> str | None:
        """The text of a commit, where there is something to be said."""
        for made in (await notes.prepare(trackers, last=False)).values():
            tracker.told(made.state)
            return made.position.metadata
        return None

    cut = await committed()
    assert cut is not None
    said = notes.problem
    assert said is not None
    assert "no acknowledgement within 3 s" in said
    assert read_note("events", 0, 0, cut).pointer is None
    broker.back.set()
    async with asyncio.timeout(40):
        while (text := await committed()) is None:
            await asyncio.sleep(1)
    assert read_note("events", 0, 0, text).pointer is not None
    assert broker.written == 1
    assert notes.problem != said
    await asyncio.sleep(60)
    assert await committed() is None, "and all is said"
