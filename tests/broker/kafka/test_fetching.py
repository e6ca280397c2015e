"""What a member reads, and what brokers answer on the way."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import errors
from aiokafka.protocol.commit import OffsetFetchRequest, OffsetFetchResponse_v2, OffsetFetchResponse_v3
from aiokafka.protocol.fetch import FetchRequest

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
    fetching, library = Fetching(100, 0.5), Polled(2)
    fetching.take(library, {TopicPartition(*ZERO): 5, TopicPartition(*ONE): 0}, {})
    fetching.open()
    return fetching, library


class Polled(Library):
    """Hands out what `fetched` has, of the partitions that are asked for; waits where it has nothing."""

    def __init__(self, partitions: int) -> None:
        super().__init__(partitions)
        self.fetched: dict[Any, list[Any]] = {}
        self.sought: list[tuple[Any, int]] = []
        self._fetcher = self
        self._fetch_max_wait_ms = 0
        self._fetch_task = self._coordination_task = asyncio.get_running_loop().create_future()

    def seek(self, key: Any, offset: int) -> None:
        super().seek(key, offset)
        self.sought.append((key, offset))

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


async def test_brokers_may_wait_for_long_only_where_nothing_has_come_and_nothing_is_paused_for_a_while() -> (
    None
):
    fetching, library = Fetching(100, 0.5, 0.1), Polled(2)
    fetching.take(library, {TopicPartition(*ZERO): 5, TopicPartition(*ONE): 0}, {})
    fetching.open()

    async def asked(seconds: float) -> int:
        await fetching.fetch(seconds, 10)
        return library._fetch_max_wait_ms

    assert library._fetch_max_wait_ms == 100, "there may be much to read"
    assert await asked(4.0) == 100
    assert await asked(2.0) == 500
    library.fetched = {ZERO: records(5)}
    assert await asked(0.0) == 100
    library.fetched = {}
    assert [await asked(4.0), await asked(2.0)] == [100, 500]
    fetching.pause([TopicPartition(*ZERO)])
    assert library._fetch_max_wait_ms == 100
    assert [await asked(4.0), await asked(4.0)] == [100, 100]
    fetching.resume([TopicPartition(*ZERO)])
    assert [await asked(4.0), await asked(2.0)] == [100, 500]


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


# Topics that may have been made anew.


def answering(fetching: Fetching, library: Polled) -> Any:
    """Have the broker answer a fetch with this error code for partition 0."""
    code = 0

    async def send(node: Any, request: Any, **options: Any) -> Any:
        return SimpleNamespace(topics=[("events", [(0, code, 0)])])

    watched = fetching.watched(library, send)

    async def answer(with_code: int = 0) -> None:
        nonlocal code
        code = with_code
        await watched(1, FetchRequest.__new__(FetchRequest))

    return answer


@pytest.mark.parametrize("code", [3, 6])
async def test_what_comes_of_a_partition_that_was_not_there_waits_for_a_look_at_the_topics(code: int) -> None:
    fetching, library = await opened()
    answer = answering(fetching, library)
    await answer()
    assert fetching.doubts == 0
    await answer(code)
    await answer()
    assert fetching.in_doubt, "it is there again, or another one of its name"
    library.fetched = {ZERO: records(5, 6)}
    library.sought.clear()
    assert await fetching.fetch(0.0, 10) is None
    assert library.sought == [(ZERO, 5)], "it is fetched again"
    assert fetching.positions[TopicPartition(*ZERO)] == 5

    before = fetching.doubts
    await answer(code)
    fetching.trust(before)
    assert fetching.in_doubt, "that was after the look"
    fetching.trust(fetching.doubts)
    (batch,) = await fetching.fetch(0.0, 10) or ()
    assert batch == (ZERO, library.fetched[ZERO])


async def test_a_silence_longer_than_a_fetch_takes_is_a_reason_to_look_at_the_topics() -> None:
    fetching, library = await opened()
    answer = answering(fetching, library)
    for _ in range(10):
        await asyncio.sleep(1.0)
        await answer()
        assert not fetching.in_doubt
    await asyncio.sleep(3.0)
    await answer()
    assert fetching.in_doubt
    fetching.trust(fetching.doubts)
    await asyncio.sleep(1.0)
    await answer()
    assert not fetching.in_doubt


async def test_of_a_topic_that_was_made_anew_during_a_silence_nothing_is_handed_out_before_it_is_taken_anew() -> (
    None
):
    cluster, library, listener = Cluster(2), Polled(2), Listener()
    member = KafkaConsumer(cluster, ["events"], "group", listener)
    member._consumer = library
    await member.take([ZERO, ONE])
    library.fetched = {ZERO: records(0, 1)}
    assert await member.poll(0.0, 10) == [(ZERO, library.fetched[ZERO])]
    answer = answering(member._fetching, library)
    await answer()
    await asyncio.sleep(10.0)
    cluster.ids["events"] = "another"
    library.fetched = {ONE: records(0)}
    await answer()
    assert await member.poll(0.0, 10) == ()
    assert library.rejoins == 1
    assert await member.poll(5.0, 10) == (), "nothing of it while the group shares it out"
    await member.revoke()
    await member.take([ZERO, ONE])
    assert listener.gone == {ZERO, ONE}
    assert await member.poll(0.0, 10) == [(ONE, library.fetched[ONE])]


async def test_the_same_topics_are_read_on_after_a_silence_and_only_a_look_is_waited_for() -> None:
    cluster, library = Cluster(2), Polled(2)
    member = KafkaConsumer(cluster, ["events"], "group", Listener())
    member._consumer = library
    await member.take([ZERO, ONE])
    answer = answering(member._fetching, library)
    await asyncio.sleep(10.0)
    await answer()
    library.fetched = {ZERO: records(0, 1)}
    assert await member.poll(0.0, 10) == [(ZERO, library.fetched[ZERO])]
    assert library.rejoins == 0
