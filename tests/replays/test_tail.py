"""What a replay has written and what of it is sent, as the topic and the group's commits tell."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.broker.base import TopicPartition
from dispatcher.core.commit.note import pack
from dispatcher.core.replay.record import ReplayRecord
from dispatcher.core.retry.records import Source
from dispatcher.core.retry.sources import ExpectedEvent
from dispatcher.replays.tail import ReplayTail
from tests.fakes import MemoryBroker

pytestmark = [pytest.mark.looptime]

REPLAY = TopicPartition("dispatcher.replay", 0)


def records(count: int, replay: str = "rpl_0123456789ab") -> list[ReplayRecord]:
    return [
        ReplayRecord(
            replay, "sub_1", Source("events", 0, number), 2, ExpectedEvent(f"evt_{number}", "a", None)
        )
        for number in range(count)
    ]


def tail_of(broker: MemoryBroker, replay: str = "rpl_0123456789ab") -> ReplayTail:
    return ReplayTail(
        broker, "dispatcher.replay", "dispatcher.retry", replay, asyncio.get_running_loop().time
    )


async def write(broker: MemoryBroker, tail: ReplayTail, *found: ReplayRecord) -> None:
    messages = tail.messages(found)
    await broker.produce(messages)
    tail.wrote(messages)


async def test_what_is_written_is_behind_until_it_is_committed_or_noted_as_done() -> None:
    broker = MemoryBroker()
    tail = tail_of(broker)
    await tail.look()
    await write(broker, tail, *records(10))
    assert tail.behind == 10
    await tail.look()
    assert tail.behind == 10
    broker.committed[REPLAY] = 4
    await tail.look()
    assert tail.behind == 6
    # Beyond the commit some are done as well: the note says which.
    broker.notes[REPLAY] = pack("dispatcher.replay", 0, 4, [(5, 8)], {}).text
    await tail.look()
    assert tail.behind == 3
    broker.committed[REPLAY] = 10
    broker.notes[REPLAY] = ""
    await tail.look()
    assert tail.behind == 0


async def test_whoever_takes_over_finds_what_its_predecessor_has_written_and_only_that() -> None:
    broker = MemoryBroker()
    one, other = tail_of(broker), tail_of(broker, "rpl_ba9876543210")
    await one.look()
    await other.look()
    await write(broker, one, *records(10))
    await write(broker, other, *records(5, "rpl_ba9876543210"))
    broker.append(b"no record of ours", partition=REPLAY)
    broker.committed[REPLAY] = 3
    successor = tail_of(broker)
    await successor.look()
    assert successor.behind == 7
    await other.look()
    assert other.behind == 5


async def test_what_its_topic_has_lost_is_not_waited_for_for_ever() -> None:
    broker = MemoryBroker()
    tail = tail_of(broker)
    await tail.look()
    messages = tail.messages(records(5))
    tail.wrote(messages)  # and the topic was made anew
    await tail.look()
    assert tail.behind == 5
    await asyncio.sleep(120)
    await tail.look()
    assert tail.behind == 0
