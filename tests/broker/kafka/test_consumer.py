"""How a member takes its partitions over, with a library's consumer that tells what it is asked to tell."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition as KafkaPartition, errors
from aiokafka.protocol.commit import OffsetFetchRequest, OffsetFetchResponse_v2, OffsetFetchResponse_v3
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.structs import OffsetAndMetadata

from dispatcher.broker.base import CommitRefused, Jump, Position, Remembered, TopicPartition, Why
from dispatcher.broker.kafka.admin import offsets_of
from dispatcher.broker.kafka.consumer import KafkaConsumer
from dispatcher.broker.kafka.wire.metadata import TopicsSeen
from dispatcher.settings.groups import KafkaSettings

pytestmark = [pytest.mark.looptime]


class Cluster:
    def __init__(self, partitions: int) -> None:
        self.settings = KafkaSettings()
        self.options: Mapping[str, Any] = {}
        self.name = None
        self.partitions = partitions
        self.denied: set[str] = set()
        self.ids: dict[str, str] = {}

    async def survey(self, topics: Sequence[str], known: Mapping[str, Remembered]) -> TopicsSeen:
        there = {
            topic: Remembered(self.ids.get(topic, "id"), self.partitions)
            for topic in topics
            if topic not in self.denied
        }
        return TopicsSeen(there, frozenset(self.denied))

    async def has_commits(self, group: str, topics: Collection[str]) -> bool:
        return False

    async def inherited(self, group: str, topics: Collection[str]) -> Mapping[TopicPartition, Position]:
        return {}

    def forget(self, consumer: KafkaConsumer) -> None: ...


class Library:
    """As much of `AIOKafkaConsumer` as taking over asks for; also its coordinator and its client."""

    def __init__(self, partitions: int) -> None:
        self._coordinator = self._client = self
        self.coordinator_id = 1
        self._subscription = SimpleNamespace(
            subscription=SimpleNamespace(assignment=SimpleNamespace(state_value=lambda _: None)),
            is_assigned=lambda _: True,
        )
        self.cluster = SimpleNamespace(
            partitions_for_topic=lambda _: set(range(partitions)),
            leader_for_partition=lambda key: -1 if key in self.leaderless else 1,
        )
        self.committed: dict[Any, Any] = {}
        self.leaderless: set[Any] = set()
        self.read_only: set[str] = set()
        self.firsts: dict[Any, int] = {}
        self.ends: dict[Any, int] = {}
        self.positions: dict[Any, int] = {}
        self.paused: set[Any] = set()
        self.rejoins = 0

    async def fetch_committed_offsets(self, keys: Iterable[Any]) -> dict[Any, Any]:
        return {key: self.committed[key] for key in keys if key in self.committed}

    async def commit_offsets(self, assignment: Any, offsets: Mapping[Any, Any]) -> None:
        self.committed.update({key: at for key, at in offsets.items() if key.topic not in self.read_only})
        if denied := self.read_only & {key.topic for key in offsets}:
            raise errors.TopicAuthorizationFailedError(denied)

    async def commit(self, offsets: Mapping[Any, tuple[int, str]]) -> None:
        self.committed.update({key: OffsetAndMetadata(*at) for key, at in offsets.items()})

    async def beginning_offsets(self, keys: Sequence[Any]) -> dict[Any, int]:
        if self.leaderless.intersection(keys):
            await asyncio.Event().wait()
        return {key: self.firsts.get(key, 0) for key in keys}

    async def end_offsets(self, keys: Sequence[Any]) -> dict[Any, int]:
        await self.beginning_offsets(keys)
        return {key: self.ends.get(key, 10) for key in keys}

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
        self.gone: set[TopicPartition] = set()
        self.jumps: list[Jump] = []

    async def on_assigned(self, partitions: Mapping[TopicPartition, Position]) -> None:
        self.starts = dict(partitions)

    async def on_revoked(self, partitions: Collection[TopicPartition]) -> None: ...

    def on_gone(self, partitions: Collection[TopicPartition]) -> None:
        self.gone |= set(partitions)

    def on_jump(self, jump: Jump) -> None:
        self.jumps.append(jump)


ZERO, ONE, TWO = (KafkaPartition("events", number) for number in range(3))


async def test_a_partition_that_the_asked_broker_does_not_know_yet_is_taken_when_it_does() -> None:
    cluster, library, listener = Cluster(1), Library(2), Listener()
    library.committed = {ZERO: OffsetAndMetadata(3, ""), ONE: OffsetAndMetadata(4, "")}
    member = KafkaConsumer(cluster, ["events"], "group", listener)
    member._consumer = library
    await member.take([ZERO, ONE])
    assert listener.starts == {TopicPartition("events", 0): Position(3)}
    assert library.paused == {ONE}, "or it is fetched from somewhere, and nobody knows what to do with it"
    await member._look_around()
    assert library.rejoins == 0

    cluster.partitions = 2
    await member._look_around()
    assert library.rejoins == 1
    await member.take([ZERO, ONE])
    assert listener.starts[TopicPartition("events", 1)] == Position(4)
    await member._look_around()
    assert library.rejoins == 1


async def test_a_committed_partition_without_a_leader_stops_no_other_and_starts_at_its_commit() -> None:
    cluster, library, listener = Cluster(3), Library(3), Listener()
    library.committed = {ONE: OffsetAndMetadata(7, "note")}
    library.leaderless = {ONE}
    member = KafkaConsumer(cluster, ["events"], "group", listener)
    member._consumer = library
    await member.take([ZERO, ONE, TWO])
    assert library.rejoins == 0
    assert listener.starts == {
        TopicPartition("events", 0): Position(0),
        TopicPartition("events", 1): Position(7, "note"),
        TopicPartition("events", 2): Position(0),
    }


async def test_a_partition_without_leader_and_commit_waits_until_it_has_a_leader() -> None:
    cluster, library, listener = Cluster(2), Library(2), Listener()
    library.leaderless = {ONE}
    member = KafkaConsumer(cluster, ["events"], "group", listener)
    member._consumer = library
    await member.take([ZERO, ONE])
    assert listener.starts == {TopicPartition("events", 0): Position(0)}
    assert library.paused == {ONE}
    for _ in range(3):
        await member._look_around()
    assert library.rejoins == 0, "the group is left alone as long as it would change nothing"

    library.leaderless = set()
    await member._look_around()
    assert library.rejoins == 1
    await member.take([ZERO, ONE])
    assert listener.starts[TopicPartition("events", 1)] == Position(0)
    assert library.committed[ONE].offset == 0


async def test_a_topic_that_may_not_be_seen_stops_no_other_and_is_not_gone() -> None:
    cluster, library, listener = Cluster(1), Library(1), Listener()
    member = KafkaConsumer(cluster, ["events", "orders"], "group", listener)
    member._consumer = library
    order = KafkaPartition("orders", 0)
    await member.take([ZERO, order])
    assert set(listener.starts) == {ZERO, order}

    cluster.denied = {"orders"}
    await member.revoke()
    await member.take([ZERO, order])
    assert set(listener.starts) == {ZERO}
    assert listener.gone == set()
    assert library.rejoins == 0
    assert member.problem is not None
    assert "orders" in member.problem
    assert "allow this user READ" in member.problem

    cluster.denied = set()
    await member._look_around()
    assert library.rejoins == 1
    await member.take([ZERO, order])
    assert set(listener.starts) == {ZERO, order}
    assert member.problem is None


async def test_a_topic_on_which_nothing_may_be_committed_stops_no_other() -> None:
    cluster, library, listener = Cluster(1), Library(1), Listener()
    library.read_only = {"orders"}
    member = KafkaConsumer(cluster, ["events", "orders"], "group", listener)
    member._consumer = library
    await member.take([ZERO, KafkaPartition("orders", 0)])
    assert set(listener.starts) == {ZERO}
    assert library.rejoins == 0
    assert "orders" in (member.problem or "")


async def test_pauses_grow_while_partitions_can_not_be_taken_over() -> None:
    class Away(Library):
        async def fetch_committed_offsets(self, keys: Iterable[Any]) -> dict[Any, Any]:
            raise errors.GroupCoordinatorNotAvailableError

    library = Away(1)
    member = KafkaConsumer(Cluster(1), ["events"], "group", Listener())
    member._consumer = library
    clock = asyncio.get_running_loop().time
    pauses = []
    for _ in range(6):
        began = clock()
        await member.take([ZERO])
        pauses.append(round(clock() - began, 3))
    assert library.rejoins == 6
    assert pauses == [0.2, 0.5, 1.0, 2.0, 5.0, 7.5], "at most a quarter of the session"


async def test_the_new_start_of_a_cut_partition_is_committed_before_the_group_shares_it_out() -> None:
    library, listener = Library(2), Listener()
    library.committed = {ZERO: OffsetAndMetadata(9, "note"), ONE: OffsetAndMetadata(4, "")}
    member = KafkaConsumer(Cluster(2), ["events"], "group", listener)
    member._consumer = library
    await member.take([ZERO, ONE])
    library.ends[ZERO] = 5
    cut = TopicPartition("events", 0)
    await member._look_for_positions(errors.OffsetOutOfRangeError({ZERO: 9}))
    assert library.rejoins == 0, "not before the commit"
    with pytest.raises(CommitRefused) as refused:
        await member.commit({cut: Position(12), TopicPartition("events", 1): Position(6)})
    assert refused.value.partitions == [cut]
    while not library.rejoins:
        await asyncio.sleep(0.01)
    assert library.committed[ZERO] == OffsetAndMetadata(0, "")
    assert library.committed[ONE].offset == 6, "others of the same commit are committed"
    assert [(jump.partition, jump.why, jump.expected, jump.to) for jump in listener.jumps] == [
        (cut, Why.CUT, 9, 0)
    ]
    await member.revoke()
    await member.take([ZERO, ONE])
    assert listener.starts[cut] == Position(0)
    assert len(listener.jumps) == 1, "told once"
    assert listener.gone == {cut}


async def test_only_the_partitions_that_are_out_of_range_are_asked_for() -> None:
    library, listener = Library(2), Listener()
    member = KafkaConsumer(Cluster(2), ["events"], "group", listener)
    member._consumer = library
    await member.take([ZERO, ONE])
    library.firsts[ZERO] = 3
    library.leaderless = {ONE}
    await member._look_for_positions(errors.OffsetOutOfRangeError({ZERO: 0}))
    assert [(jump.why, jump.to) for jump in listener.jumps] == [(Why.RETENTION, 3)]


async def test_a_partition_that_may_not_be_read_any_more_stands_still_and_the_others_go_on() -> None:
    member = KafkaConsumer(Cluster(2), ["events"], "group", Listener())
    library = Library(2)
    member._consumer = library
    await member.take([ZERO, ONE])
    answers = [(0, 29, 0, -1, None, b""), (1, 0, 0, 0, None, b"")]

    async def send(node: Any, request: Any, **options: Any) -> Any:
        return SimpleNamespace(topics=[("events", answers)])

    request = FetchRequest(1, 1, 1, 1, [])
    await member._fetching.watched(library, send)(1, request)
    assert library.paused == {ZERO}
    (batch,) = member.stuck().values()
    assert not batch.skippable
    assert "READ on the topic events" in batch.reason
    answers[0] = (0, 0, 0, 0, None, b"")
    await member._fetching.watched(library, send)(1, request)
    assert member.stuck() == {}


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
    watched = member._fetching.watched(Library(1), send)
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
