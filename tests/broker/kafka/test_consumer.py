"""How a member takes its partitions over, with a library's consumer that tells what it is asked to tell."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition as KafkaPartition, errors
from aiokafka.protocol.commit import OffsetFetchRequest, OffsetFetchResponse_v2, OffsetFetchResponse_v3
from aiokafka.structs import OffsetAndMetadata

from dispatcher.broker.base import Jump, Position, Remembered, TopicPartition
from dispatcher.broker.kafka.admin import offsets_of
from dispatcher.broker.kafka.consumer import KafkaConsumer
from dispatcher.settings.groups import KafkaSettings

pytestmark = [pytest.mark.looptime]


class Cluster:
    def __init__(self, partitions: int) -> None:
        self.settings = KafkaSettings()
        self.options: Mapping[str, Any] = {}
        self.name = None
        self.partitions = partitions

    async def look(self, topics: Sequence[str]) -> dict[str, Remembered]:
        return {topic: Remembered("id", self.partitions) for topic in topics}

    async def has_commits(self, group: str, topics: Collection[str]) -> bool:
        return False

    async def inherited(self, group: str, topics: Collection[str]) -> Mapping[TopicPartition, Position]:
        return {}

    def forget(self, consumer: KafkaConsumer) -> None: ...


class Library:
    """As much of `AIOKafkaConsumer` as taking over asks for; also its coordinator and its client."""

    def __init__(self, partitions: int) -> None:
        self._coordinator = self._client = self
        self._subscription = SimpleNamespace(subscription=SimpleNamespace(assignment=object()))
        self.cluster = SimpleNamespace(partitions_for_topic=lambda _: set(range(partitions)))
        self.committed: dict[Any, Any] = {}
        self.leaderless: set[Any] = set()
        self.positions: dict[Any, int] = {}
        self.paused: set[Any] = set()
        self.rejoins = 0

    async def fetch_committed_offsets(self, keys: Iterable[Any]) -> dict[Any, Any]:
        return {key: self.committed[key] for key in keys if key in self.committed}

    async def commit_offsets(self, assignment: Any, offsets: Mapping[Any, Any]) -> None:
        self.committed.update(offsets)

    async def beginning_offsets(self, keys: Sequence[Any]) -> dict[Any, int]:
        if self.leaderless.intersection(keys):
            await asyncio.Event().wait()
        return dict.fromkeys(keys, 0)

    async def end_offsets(self, keys: Sequence[Any]) -> dict[Any, int]:
        return {key: at + 10 for key, at in (await self.beginning_offsets(keys)).items()}

    def seek(self, key: Any, offset: int) -> None:
        self.positions[key] = offset

    def pause(self, key: Any) -> None:
        self.paused.add(key)

    def request_rejoin(self) -> None:
        self.rejoins += 1

    def force_metadata_update(self) -> None: ...


class Listener:
    def __init__(self) -> None:
        self.starts: dict[TopicPartition, Position] = {}

    async def on_assigned(self, partitions: Mapping[TopicPartition, Position]) -> None:
        self.starts = dict(partitions)

    async def on_revoked(self, partitions: Collection[TopicPartition]) -> None: ...

    def on_gone(self, partitions: Collection[TopicPartition]) -> None: ...

    def on_jump(self, jump: Jump) -> None: ...


ZERO, ONE = KafkaPartition("events", 0), KafkaPartition("events", 1)


async def test_a_partition_that_the_asked_broker_does_not_know_yet_is_taken_when_it_does() -> None:
    cluster, library, listener = Cluster(1), Library(2), Listener()
    library.committed = {ZERO: OffsetAndMetadata(3, ""), ONE: OffsetAndMetadata(4, "")}
    member = KafkaConsumer(cluster, ["events"], "group", listener)
    member._consumer = library
    await member.take([ZERO, ONE])
    assert listener.starts == {TopicPartition("events", 0): Position(3)}
    assert library.paused == {ONE}, "or it is fetched from somewhere, and nobody knows what to do with it"
    member._see(await cluster.look(["events"]))
    assert library.rejoins == 0

    cluster.partitions = 2
    member._see(await cluster.look(["events"]))
    assert library.rejoins == 1
    await member.take([ZERO, ONE])
    assert listener.starts[TopicPartition("events", 1)] == Position(4)
    member._see(await cluster.look(["events"]))
    assert library.rejoins == 1


async def test_a_partition_without_a_leader_keeps_only_its_own_member_waiting() -> None:
    cluster, library, listener = Cluster(2), Library(2), Listener()
    library.leaderless = {ONE}
    member = KafkaConsumer(cluster, ["events"], "group", listener)
    member._consumer = library
    await member.take([ZERO])
    assert listener.starts == {TopicPartition("events", 0): Position(0)}
    assert library.rejoins == 0


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
    watched = member._watched(Library(1), send)
    with pytest.raises(errors.for_code(answer.error_code)) as raised:
        await watched(1, OffsetFetchRequest("group", [("events", [0])]))
    assert raised.value.retriable, "the library asks again, whoever is the coordinator by then"
    answer.error_code = 0
    assert await watched(1, OffsetFetchRequest("group", [("events", [0])])) is answer


async def test_nor_is_it_for_who_asks_beforehand() -> None:
    class Admin:
        told: Mapping[Any, Any] = {}

        async def list_consumer_group_offsets(self, group: str, partitions: Any) -> Mapping[Any, Any]:
            return self.told

    admin = Admin()
    with pytest.raises(errors.GroupCoordinatorNotAvailableError):
        await offsets_of(admin, "group", [ZERO])
    admin.told = {ZERO: OffsetAndMetadata(-1, "")}
    assert await offsets_of(admin, "group", [ZERO]) == admin.told
