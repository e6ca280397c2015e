"""The embedded broker: the semantics of Kafka on one SQLite file, for a laptop, a demo, a small site.

`file.py` is the file, `store.py` the event loop's side of it, `group.py` the consumer
groups. Here is what the port asks of a broker: topics and what their settings may be, checking messages and
giving each its partition, and when maintenance runs.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import structlog

from dispatcher.broker.base import (
    Acknowledged,
    AssignmentListener,
    BrokerError,
    BrokerRefused,
    Entry,
    GroupMemory,
    GroupState,
    Message,
    MessageTooLarge,
    PartitionInfo,
    Position,
    Record,
    Remembered,
    Stretch,
    TopicInfo,
    TopicPartition,
    TopicSpec,
    check_exact,
    content_size,
)
from dispatcher.broker.partitioning import Partitioner, partition_of
from dispatcher.broker.sqlite.file import ReadRequest
from dispatcher.broker.sqlite.group import METADATA_LIMIT, Groups, SqliteConsumer
from dispatcher.broker.sqlite.reader import SqliteReader
from dispatcher.broker.sqlite.store import LogStore
from dispatcher.runtime.tasks import Tasks

log = structlog.get_logger(__name__)

DEFAULT_PARTITIONS = 4
MAX_PARTITIONS = 1000
# Kafka's own defaults, for what a topic's config leaves out.
DEFAULTS = {
    "cleanup.policy": "delete",
    "retention.ms": str(7 * 24 * 3600 * 1000),
    "retention.bytes": "-1",
    "max.message.bytes": "1048588",
    "delete.retention.ms": str(24 * 3600 * 1000),
    "min.cleanable.dirty.ratio": "0.5",
    "min.compaction.lag.ms": "0",
}
_TOPIC_NAME = re.compile(r"(?!\.{1,2}$)[a-zA-Z0-9._-]{1,249}")


class SqliteBroker:
    """The embedded broker on the file `path`."""

    def __init__(
        self,
        path: Path,
        *,
        partitions: int = DEFAULT_PARTITIONS,
        retention: float = 7 * 86400.0,
        offset_reset: str = "earliest",
        rebalance_timeout: float = 60.0,
        maintenance_interval: float = 60.0,
    ) -> None:
        """`partitions` and `retention` (seconds) are for topics that don't say; `offset_reset` is where a
        group without a committed offset starts; intervals in seconds.
        """
        self._default_partitions = partitions
        self._maintenance_interval = maintenance_interval
        self._store = LogStore(path, DEFAULTS | {"retention.ms": str(round(retention * 1000))})
        self._groups = Groups(
            self._store, from_latest=offset_reset == "latest", rebalance_timeout=rebalance_timeout
        )
        self._tasks = Tasks()
        self._partitioner = Partitioner(content_size)

    @property
    def problem(self) -> str | None:
        return self._store.problem

    async def connect(self) -> None:
        if self._store.is_open:
            return
        await self._store.open()
        self._tasks.start(self._maintain(), "sqlite maintenance")

    async def close(self) -> None:
        await self._groups.close()
        await self._tasks.stop()
        await self._store.close()

    # Topics.

    def warnings(self) -> list[str]:
        return []

    async def check_rights(
        self, topics: Mapping[str, Collection[str]], groups: Mapping[str, Collection[str]]
    ) -> None: ...

    async def ensure_topics(self, topics: Sequence[TopicSpec], *, create: bool) -> Sequence[str]:
        missing = [spec for spec in topics if spec.name not in self._store.topics]
        for spec in topics:
            if spec.exact and (found := self._store.topics.get(spec.name)) is not None:
                check_exact(spec, len(found.partitions), found.settings)
        if not create:
            return [spec.name for spec in missing]
        for spec in missing:
            _check_spec(spec)
        for spec in missing:
            if spec.name in self._store.topics:
                continue  # named twice, or created by another call meanwhile
            partitions = spec.partitions or self._default_partitions
            try:
                await self._store.create(spec.name, partitions, spec.config)
            except BrokerError:
                if spec.name not in self._store.topics:
                    raise
            log.info("topic created", topic=spec.name, partitions=partitions)
        return []

    async def look(self, topics: Sequence[str]) -> Mapping[str, Remembered]:
        there = self._store.topics
        return {name: Remembered(None, len(there[name].partitions)) for name in topics if name in there}

    async def positions_of(self, group: str, topic: str) -> Mapping[TopicPartition, Position]:
        found = self._store.topics.get(topic)
        if found is None:
            return {}
        committed = await self._store.committed(group)
        return {each.key: committed[each.id] for each in found.partitions if each.id in committed}

    async def readers_of(self, topics: Collection[str], suffix: str) -> Mapping[str, GroupState]:
        return await self._groups.readers_of(topics, suffix)

    async def topics(
        self, group: str | None = None, *, only: Callable[[str], bool] | None = None
    ) -> Sequence[TopicInfo]:
        committed = {} if group is None else await self._store.committed(group)
        return [
            TopicInfo(
                topic.name,
                [
                    PartitionInfo(
                        partition.key.partition,
                        partition.start,
                        partition.end,
                        committed[partition.id].offset if partition.id in committed else None,
                    )
                    for partition in topic.partitions
                ],
                dict(topic.settings),
            )
            for topic in sorted(self._store.topics.values(), key=lambda topic: topic.name)
            if only is None or only(topic.name)
        ]

    # Writing and reading.

    async def produce(self, messages: Sequence[Message], acknowledged: Acknowledged | None = None) -> None:
        batches: dict[int, list[Message]] = {}
        topics = self._store.topics
        choose = self._partitioner.choose
        for message in messages:
            topic = topics.get(message.topic)
            if topic is None:
                raise BrokerRefused(f"topic {message.topic} does not exist")
            size = content_size(message)
            if size > topic.largest:
                raise MessageTooLarge(
                    f"a message of {size} bytes is larger than topic {topic.name} takes (max.message.bytes {topic.largest})"
                )
            partitions = topic.partitions
            if message.key is None and topic.compacted:
                raise BrokerRefused(f"topic {topic.name} is compacted: every message needs a key")
            number = choose(message, len(partitions))
            batches.setdefault(partitions[number].id, []).append(message)
        if batches:
            await self._store.append(batches)  # one transaction
            if acknowledged is not None:
                acknowledged(range(len(messages)))

    async def produce_bulk(self, topic: str, entries: Sequence[Entry]) -> None:
        # One file, one writer: what is small is written with whatever else waits for the disk.
        await self.produce(
            [Message(topic, value, key, (), None, timestamp) for key, value, timestamp in entries]
        )

    async def produce_one(self, topic: str, entry: Entry) -> tuple[int, int]:
        key, value, timestamp = entry
        found = self._store.topics.get(topic)
        if found is None:
            raise BrokerRefused(f"topic {topic} does not exist")
        number = partition_of(key, len(found.partitions))
        message = Message(topic, value, key, (), number, timestamp)
        if (size := content_size(message)) > found.largest:
            raise MessageTooLarge(f"a message of {size} bytes is larger than topic {topic} takes")
        ((_, end),) = await self._store.append({found.partitions[number].id: [message]})
        return number, end - 1

    @property
    def metadata_limit(self) -> int:
        return METADATA_LIMIT

    async def read(self, partition: TopicPartition, offset: int) -> Record | None:
        topic = self._store.topics.get(partition.topic)
        if topic is None or not 0 <= partition.partition < len(topic.partitions) or offset < 0:
            return None
        found = topic.partitions[partition.partition]
        (batch,) = await self._store.fetch([ReadRequest(found.id, found.key, offset)], 1)
        if batch.records and batch.records[0].offset == offset:
            return batch.records[0]
        return None

    async def read_from(self, partition: TopicPartition, offset: int, limit: int, size: int) -> Stretch:
        topic = self._store.topics.get(partition.topic)
        if topic is None or not 0 <= partition.partition < len(topic.partitions):
            raise BrokerRefused(f"partition {partition.topic}-{partition.partition} does not exist")
        found = topic.partitions[partition.partition]
        (batch,) = await self._store.fetch([ReadRequest(found.id, found.key, offset)], limit, size)
        return Stretch(batch.records, batch.next)

    def consumer(
        self,
        topics: Collection[str],
        group: str,
        listener: AssignmentListener,
        *,
        own: bool = False,
        memory: GroupMemory | None = None,
    ) -> SqliteConsumer:
        return SqliteConsumer(self._groups, self._store, topics, group, listener, own=own, memory=memory)

    def reader(self, topic: str, partition: int = 0) -> SqliteReader:
        return SqliteReader(self._store, TopicPartition(topic, partition))

    # Retention and compaction.

    async def _maintain(self) -> None:
        # Nothing is deleted for its age so early: what waited while the process was away is to be read first.
        maintenance = self._store.compact
        while True:
            try:
                await maintenance()
            except BrokerError as error:
                log.warning("retention or compaction failed, trying again later", error=str(error))
            maintenance = self.maintain
            await asyncio.sleep(self._maintenance_interval)

    async def maintain(self) -> None:
        """Apply retention and compaction once, now. Runs by itself every `maintenance_interval`."""
        await self._store.maintain()


def _check_spec(spec: TopicSpec) -> None:
    if not _TOPIC_NAME.fullmatch(spec.name):
        raise BrokerRefused(
            f"{spec.name!r} is no topic name: 1 to 249 characters of a-z, A-Z, 0-9, dot, underscore and hyphen"
        )
    if spec.partitions is not None and not 1 <= spec.partitions <= MAX_PARTITIONS:
        raise BrokerRefused(f"topic {spec.name}: partitions must be from 1 to {MAX_PARTITIONS}")
    for name in DEFAULTS:
        if name in {"cleanup.policy", "min.cleanable.dirty.ratio"}:
            continue
        try:
            int(spec.config.get(name, "0"))
        except ValueError:
            raise BrokerRefused(
                f"topic {spec.name}: {name} must be a number, not {spec.config[name]!r}"
            ) from None
