"""What a member reads, and what brokers answer on the way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka import errors
from aiokafka.protocol.commit import OffsetFetchRequest, OffsetFetchResponse_v2, OffsetFetchResponse_v3

from dispatcher.broker.base import StoredRecord, TopicPartition
from dispatcher.broker.kafka.consumer import KafkaConsumer
from dispatcher.broker.kafka.fetching import Fetching, PositionsCut
from tests.broker.kafka.library import ONE, ZERO, Cluster, Library, Listener

pytestmark = [pytest.mark.looptime]


@pytest.mark.parametrize(
    "answer",
    [
        OffsetFetchResponse_v2([], errors.NotCoordinatorForGroupError.errno),
        OffsetFetchResponse_v3(0, [], errors.GroupLoadInProgressError.errno),
    ],
)
async def test_a_coordinator_that_does_not_tell_the_offsets_is_not_a_group_without_any(answer: Any) -> None:
    async def send(node: Any, request: Any, **options: Any) -> Any:
        return answer

    member = KafkaConsumer(Cluster(1), ["events"], "group", Listener())
    watched = member._fetching.watched(Library(1), send)
    with pytest.raises(errors.for_code(answer.error_code)) as raised:
        await watched(1, OffsetFetchRequest("group", [("events", [0])]))
    assert raised.value.retriable, "the library asks again, whoever is the coordinator by then"
    answer.error_code = 0
    assert await watched(1, OffsetFetchRequest("group", [("events", [0])])) is answer


async def opened() -> tuple[Fetching, Polled]:
    fetching, library = Fetching(100), Polled(2)
    fetching.take(library, {TopicPartition(*ZERO): 5, TopicPartition(*ONE): 0})
    fetching.open()
    return fetching, library


class Polled(Library):
    """Hands out what `fetched` has, of the partitions that are asked for; waits where it has nothing."""

    def __init__(self, partitions: int) -> None:
        super().__init__(partitions)
        self.fetched: dict[Any, list[Any]] = {}

    async def getmany(self, *partitions: Any, timeout_ms: float, max_records: int) -> dict[Any, list[Any]]:
        wanted = partitions or (ZERO, ONE)
        found = {key: records for key, records in self.fetched.items() if key in wanted}
        if not found and timeout_ms:
            await asyncio.sleep(timeout_ms / 1000)
        return found


def records(*offsets: int) -> list[Any]:
    return [StoredRecord(offset, 0, None, b"") for offset in offsets]


async def test_a_paused_partition_is_left_out_until_it_is_resumed() -> None:
    fetching, library = await opened()
    library.fetched = {ZERO: records(5, 6), ONE: records(0)}
    fetching.pause([TopicPartition(*ZERO)])
    assert [partition for partition, _ in await fetching.fetch(0.0, 10) or ()] == [ONE]
    assert fetching.positions == {ZERO: 5, ONE: 1}
    fetching.pause([TopicPartition(*ONE)])
    assert not fetching.has_work
    fetching.resume([TopicPartition(*ZERO)])
    assert [partition for partition, _ in await fetching.fetch(0.0, 10) or ()] == [ZERO]
    assert fetching.positions == {ZERO: 7, ONE: 1}


async def test_records_before_the_position_are_a_partition_that_was_cut() -> None:
    fetching, library = await opened()
    library.fetched = {ZERO: records(3, 4)}
    with pytest.raises(PositionsCut) as cut:
        await fetching.fetch(0.0, 10)
    assert cut.value.partitions == [ZERO]


async def test_an_interrupted_wait_ends_at_once() -> None:
    fetching, _ = await opened()
    loop = asyncio.get_running_loop()
    began = loop.time()
    loop.call_later(0.5, fetching.interrupt)
    assert await fetching.fetch(60.0, 10) is None
    assert loop.time() - began == pytest.approx(0.5)


async def test_nothing_of_what_was_lost_is_handed_out_or_counted() -> None:
    fetching, library = await opened()
    library.fetched = {ZERO: records(5)}
    fetching.drop()
    assert await fetching.fetch(0.0, 10) is None
    assert (fetching.mine, fetching.lag(), fetching.passed()) == (frozenset(), {}, {})
