"""Notes on their way to the broker: what they take of the loop."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

from dispatcher.broker.base import Broker, TopicPartition
from dispatcher.core.commit.note import Who
from dispatcher.core.commit.offsets import PartitionTracker
from dispatcher.delivery.commit_notes import CommitNotes


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
