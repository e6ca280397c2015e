"""A library's consumer that tells what it is asked to tell, and the cluster that it belongs to."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from aiokafka import TopicPartition as KafkaPartition, errors
from aiokafka.structs import OffsetAndMetadata

from dispatcher.broker.base import Jump, Position, Remembered, TopicPartition
from dispatcher.broker.kafka.consumer import KafkaConsumer
from dispatcher.broker.kafka.wire.metadata import TopicsSeen
from dispatcher.settings.groups import KafkaSettings


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
