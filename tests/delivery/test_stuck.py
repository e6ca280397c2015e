"""What can't be unpacked, on virtual time: it costs a record, or its partition, and an operator has a way past it."""

from __future__ import annotations

import orjson
import pytest

from dispatcher.broker.base import (
    Remembered,
    StoredRecord,
    TopicPartition,
    UnreadableBatch,
    UnreadableRecord,
)
from dispatcher.core.control.skips import Skip
from tests.delivery.test_retry_reader import FIRST, waiting
from tests.fakes import FixedRegistry, MemoryBroker, subscription
from tests.world import EVENTS, event, running, until

pytestmark = [pytest.mark.looptime]

OTHER = TopicPartition("events", 1)


def unreadable(offset: int, value: bytes | None = b"value") -> UnreadableRecord:
    return UnreadableRecord(
        offset,
        1_000,
        b"key",
        value,
        [("Z\\xff", b"1"), ("null", None)],
        problem="the header name Z\\xff is not UTF-8",
        raw_headers=[(b"Z\xff", b"1"), (b"null", None)],
    )


async def test_a_record_that_cannot_be_unpacked_becomes_a_dead_letter_with_its_bytes() -> None:
    async with running(FixedRegistry(subscription())) as world:
        world.broker.append(event(1))
        world.broker.log[EVENTS].append(unreadable(1))
        world.broker.log[EVENTS].append(unreadable(2, None))
        world.broker.append(event(2))
        await until(lambda: world.committed == 4)
        assert len(world.transport.sent) == 2
        letter, empty = [message for message in world.broker.produced if message.topic == "dispatcher.dead"]
        assert (letter.key, letter.value) == (b"key", b"value")
        assert (empty.key, empty.value) == (b"key", None)
        headers = dict(letter.headers)
        assert headers["reason"] == b"unreadable"
        assert b"UTF-8" in headers["detail"]
        assert (headers["topic"], headers["partition"], headers["offset"]) == (b"events", b"0", b"1")
        assert headers["original.Z\\xff"] == b"1"
        assert orjson.loads(headers["raw_headers"]) == [["Wv8=", "MQ=="], ["bnVsbA==", None]]
        assert world.value("events_invalid_total", reason="unreadable") == 2


async def test_a_retry_record_that_cannot_be_unpacked_becomes_a_dead_letter_too() -> None:
    broker = MemoryBroker(EVENTS, FIRST)
    broker.log[FIRST].append(unreadable(0))
    waiting(broker, 2, due=0.0)
    async with running(FixedRegistry(subscription()), broker) as world:
        await until(lambda: world.broker.committed.get(FIRST) == 2)
        (letter,) = world.dead()
        assert letter["reason"] == "retry_record"
        assert letter["topic"] == FIRST.topic
        assert "UTF-8" in letter["detail"]
        assert len(world.transport.sent) == 1


async def test_a_retry_whose_origin_cannot_be_unpacked_does_not_hold_up_its_tier() -> None:
    broker = MemoryBroker(EVENTS, FIRST)
    broker.log[EVENTS].append(StoredRecord(0, 0, None, b"x"))
    waiting(broker, 0, due=0.0, body=b"", more=(("omitted", b"1"),))
    waiting(broker, 2, due=0.0)
    broker.unreadable[EVENTS] = UnreadableBatch(0, 0, "its checksum is wrong")
    async with running(FixedRegistry(subscription()), broker) as world:
        await until(lambda: world.broker.committed.get(FIRST) == 2)
        letters = [letter for letter in world.dead() if letter["reason"] == "body_unreadable"]
        assert len(letters) == 1
        assert "checksum" in letters[0]["detail"]


@pytest.mark.parametrize("named", [None, "the one there is"])
async def test_a_batch_that_cannot_be_unpacked_stops_its_partition_only_until_an_operator_skips_it(
    named: str | None,
) -> None:
    broker = MemoryBroker(EVENTS, OTHER)
    for number in range(6):
        broker.append(event(number), partition=EVENTS)
    broker.append(event(10), partition=OTHER)
    broker.unreadable[EVENTS] = UnreadableBatch(2, 4, "its checksum is wrong")
    skips: set[Skip] = {Skip("events", 1, 3), Skip("events", 0, 1), Skip("events", 0, 5)}
    skips.add(Skip("events", 0, 3, "the topic before it was made anew"))
    async with running(FixedRegistry(subscription()), broker, skips=skips) as world:
        world.engine._events.memory.remember({"events": Remembered("the one there is", 2)})
        await until(lambda: broker.committed.get(OTHER) == 1 and broker.committed.get(EVENTS) == 2)
        (warning,) = world.engine.warnings()
        assert "events-0" in warning
        assert "checksum" in warning
        assert "`dispatcher topics skip events 0 2`" in warning
        assert world.engine.problems() == []  # the others are delivered
        assert world.value("partitions_stuck", topic="events", partition="0") == 1
        assert len(world.transport.sent) == 3
        skips.add(Skip("events", 0, 3, named))
        await until(lambda: broker.committed.get(EVENTS) == 6)
        assert len(world.transport.sent) == 4
        assert world.engine.warnings() == []
        assert world.value("events_skipped_total", reason="unreadable") == 3
