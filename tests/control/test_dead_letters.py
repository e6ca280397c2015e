"""Pages of the dead-letter topic."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from dispatcher.broker.base import BrokerUnavailable, TopicPartition, UnreadableBatch
from dispatcher.control.dead_letters import DeadLetters, FoundDeadLetter
from dispatcher.control.errors import Gone, Invalid, NotFound, Unavailable
from dispatcher.core.retry.dead_letters import InvalidDeadLetter
from tests.core.retry.test_dead_letters import headers
from tests.fakes import MemoryBroker

TOPIC = "dispatcher.dead"


def put(broker: MemoryBroker, partition: int, time_ms: int, value: bytes = b"{}") -> None:
    where = TopicPartition(TOPIC, partition)
    broker.append(value, headers(), key=b"sub_1", partition=where, timestamp=time_ms)


async def pages(letters: DeadLetters, limit: int, partition: int | None = None) -> list[tuple[int, int]]:
    """All of them, page by page."""
    found: list[FoundDeadLetter] = []
    cursor: str | None = None
    for _ in range(1000):
        page = await letters.page(partition, limit, cursor)
        assert len(page.items) <= limit
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            return [(each.partition, each.offset) for each in found]
    raise AssertionError("it has no end")


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50)), max_size=40), st.integers(1, 7))
async def test_page_by_page_each_comes_once_and_of_a_partition_the_newest_first(
    records: list[tuple[int, int]], limit: int
) -> None:
    broker = MemoryBroker()
    for partition, time_ms in records:
        put(broker, partition, time_ms)
    found = await pages(DeadLetters(broker, TOPIC), limit)
    wanted = {(p, n) for (_, p), log in broker.log.items() for n in range(len(log))}
    assert len(found) == len(set(found)) == len(wanted)
    assert set(found) == wanted
    for partition in range(3):
        offsets = [offset for number, offset in found if number == partition]
        assert offsets == sorted(offsets, reverse=True)


async def test_over_partitions_the_newest_comes_first_and_one_partition_can_be_asked_for() -> None:
    broker = MemoryBroker()
    for number in range(10):
        put(broker, number % 2, number)
    letters = DeadLetters(broker, TOPIC)
    page = await letters.page(None, 4, None)
    assert [each.time_ms for each in page.items] == [9, 8, 7, 6]
    assert await pages(letters, 3, 1) == [(1, offset) for offset in (4, 3, 2, 1, 0)]
    with pytest.raises(NotFound):
        await letters.page(7, 4, None)


async def test_no_body_is_kept_and_its_size_is_told() -> None:
    broker = MemoryBroker()
    put(broker, 0, 1, b"x" * 5000)
    (letter,) = (await DeadLetters(broker, TOPIC).page(None, 10, None)).items
    assert letter.body_bytes == 5000
    assert letter.delivery is not None
    assert letter.delivery.event.body == b""


async def test_what_cannot_be_unpacked_is_passed_over_and_the_rest_is_shown() -> None:
    broker = MemoryBroker()
    for number in range(6):
        put(broker, 0, number)
    broker.damaged[TopicPartition(TOPIC, 0)] = UnreadableBatch(2, 3, "it is damaged")
    assert await pages(DeadLetters(broker, TOPIC), 10) == [(0, 5), (0, 4), (0, 1), (0, 0)]


@pytest.mark.parametrize(
    "cursor", ["abc", "W10", "eyIwIjotMX0", "eyJhIjoxfQ", "eyIwIjp0cnVlfQ", "é", "bnVsbA"]
)
async def test_a_cursor_that_was_not_sent_is_refused(cursor: str) -> None:
    broker = MemoryBroker()
    put(broker, 0, 1)
    with pytest.raises(Invalid):
        await DeadLetters(broker, TOPIC).page(None, 10, cursor)


async def test_one_is_found_by_its_place() -> None:
    broker = MemoryBroker()
    put(broker, 0, 1)
    broker.append(b"x", [("reason", b"json")], partition=TopicPartition(TOPIC, 0))
    letters = DeadLetters(broker, TOPIC)
    assert (await letters.find(0, 0)).event.id == "evt_1"
    with pytest.raises(InvalidDeadLetter):
        await letters.find(0, 1)
    with pytest.raises(NotFound):
        await letters.find(0, 2)
    broker.unreadable[TopicPartition(TOPIC, 0)] = UnreadableBatch(0, 5, "it is damaged")
    with pytest.raises(Gone):
        await letters.find(0, 0)


async def test_while_the_broker_is_away_the_answer_says_so() -> None:
    broker = MemoryBroker()
    put(broker, 0, 1)
    broker.read_errors = [BrokerUnavailable("gone fishing")]
    with pytest.raises(Unavailable, match="gone fishing"):
        await DeadLetters(broker, TOPIC).page(None, 10, None)
