"""Records by their offsets, where the partition's leader moves or says no. What both brokers do alike is in the contract."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import errors
from aiokafka.protocol.fetch import FetchRequest

from dispatcher.broker.base import BrokerRefused, BrokerUnavailable, Stretch, TopicPartition
from dispatcher.broker.kafka.lookup import RecordLookup
from tests.broker.kafka.wire.batches import ABORT, CONTROL, TRANSACTIONAL, batch

pytestmark = [pytest.mark.looptime]

PARTITION = TopicPartition("events", 3)
NOT_LEADER = errors.NotLeaderForPartitionError.errno
OUT_OF_RANGE = errors.OffsetOutOfRangeError.errno


class Client:
    """Its brokers answer a fetch with these: an error code, or bytes."""

    def __init__(
        self,
        *answers: int | bytes,
        first: int = 0,
        aborted: list[tuple[int, int]] | None = None,
        version: int = 4,
    ) -> None:
        self.answers = list(answers)
        self.first = first
        self.version = version
        # What stands in an answer of that version between the end of the partition and the records.
        self.between: list[Any] = [
            0,
            *([0] if version > 4 else []),
            aborted,
            *([-1] if version >= 11 else []),
        ]
        self.leader = 1
        self.asked: list[int] = []
        self.sizes: list[int] = []
        self.cluster = SimpleNamespace(leader_for_partition=lambda _: self.leader)

    async def send(self, node: int, request: Any, **_: Any) -> Any:
        if not isinstance(request, FetchRequest):
            return SimpleNamespace(topics=[("events", [(3, 0, -1, self.first)])])
        self.asked.append(node)
        self.sizes.append(request.topics[0][1][0][2])
        answer = self.answers.pop(0)
        code, data = (answer, b"") if isinstance(answer, int) else (0, answer)
        return SimpleNamespace(
            topics=[("events", [(3, code, 0, *self.between, data)])], API_VERSION=self.version
        )

    async def force_metadata_update(self) -> None:
        self.leader += 1

    def add_topic(self, topic: str) -> None: ...


async def read(client: Client, offset: int = 0) -> Stretch:
    async def live() -> Any:
        return client

    return await RecordLookup(live, dict, timeout=10.0).read_from(PARTITION, offset, 10, 1 << 16)


async def test_a_partition_whose_leader_has_moved_is_read_from_the_new_one() -> None:
    client = Client(NOT_LEADER, batch(5, 3))
    stretch = await read(client, 5)
    assert [record.offset for record in stretch.records] == [5, 6, 7]
    assert stretch.next == 8
    assert client.asked == [1, 2]


async def test_a_partition_without_a_leader_is_unavailable() -> None:
    with pytest.raises(BrokerUnavailable, match="events-3: its leader can't be found"):
        await read(Client(NOT_LEADER, NOT_LEADER, NOT_LEADER))


async def test_below_what_is_kept_reading_goes_on_at_the_first_record() -> None:
    assert await read(Client(OUT_OF_RANGE, first=40), 5) == Stretch((), 40)


async def test_a_topic_that_may_not_be_read_is_refused_with_the_right_that_is_missing() -> None:
    with pytest.raises(BrokerRefused, match="READ"):
        await read(Client(errors.TopicAuthorizationFailedError.errno))


@pytest.mark.parametrize("version", [4, 5, 11])
async def test_records_of_aborted_transactions_are_left_out_whatever_the_version_of_the_answer(
    version: int,
) -> None:
    data = (
        batch(0, 2, producer=7, flags=TRANSACTIONAL)  # aborted
        + batch(2, 1, producer=8, flags=TRANSACTIONAL)  # committed
        + batch(3, 1, producer=7, flags=TRANSACTIONAL | CONTROL, key=ABORT)
        + batch(4, 1, producer=7, flags=TRANSACTIONAL)  # the same producer's next one
    )
    stretch = await read(Client(data, aborted=[(7, 0)], version=version))
    assert [record.offset for record in stretch.records] == [2, 4]
    assert stretch.next == 5


async def test_a_stretch_of_nothing_but_an_aborted_transaction_is_passed_over() -> None:
    data = batch(0, 2, producer=7, flags=TRANSACTIONAL)
    assert await read(Client(data, aborted=[(7, 0)]), 1) == Stretch([], 2)


async def test_no_more_bytes_are_asked_for_than_so_many_records_take() -> None:
    client = Client(batch(0, 10), batch(10, 10), batch(20, 10))

    async def live() -> Any:
        return client

    lookup = RecordLookup(live, dict, timeout=10.0)
    await lookup.read_from(PARTITION, 0, 10, 1 << 20)
    await lookup.read_from(PARTITION, 10, 10, 1 << 20)
    await lookup.read_from(PARTITION, 20, 10, 100)
    # The first answer has told what a record of the topic takes; a batch more than that, and never more than the caller bears.
    assert client.sizes[0] == 1 << 20
    assert 64 * 1024 < client.sizes[1] < 70 * 1024
    assert client.sizes[2] == 100
