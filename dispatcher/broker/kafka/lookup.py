"""Reading from Kafka by offset.

A single record is read with a consumer of the library that has no group.

Stretches of records are read without a consumer: one request, one answer. A consumer of the library reads on by itself,
waits for records that aren't there yet, and serves one position of a partition at a time. Parked deliveries are read here
and there, some records at a time, for many subscriptions. So each request goes to the partition's leader as it is, over
the producer's client, on a connection of that client which nothing else uses.

Both are read_committed. For a stretch the broker names the aborted transactions beside the records, which it sends all the
same: the client has to leave them out.

A broker answers with as many bytes as it is allowed, also where only some records are wanted: the rest is sent, received and thrown away. So what
is asked for is what so many records of the topic took when they were read last, and a batch more.

Rule: the consumer without a group has one partition at a time, so it serves one call at a time (`_reading`). It is made
when first asked for, and thrown away after an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition as KafkaPartition, errors
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest

from dispatcher.broker.base import (
    BrokerUnavailable,
    Record,
    Stretch,
    TopicPartition,
    UnreadableBatch,
    content_size,
)
from dispatcher.broker.kafka.client import describe, mapped, stop_consumer
from dispatcher.broker.kafka.wire.bulk import FetchAnswer
from dispatcher.broker.kafka.wire.records import Records

T = TypeVar("T")

_READ_COMMITTED: Final = 1
_STALE: Final = (
    errors.NotLeaderForPartitionError,
    errors.UnknownTopicOrPartitionError,
    errors.LeaderNotAvailableError,
    errors.ReplicaNotAvailableError,
)
_TRIES: Final = 3
_PAUSE: Final = 0.1
_EARLIEST: Final = -2
_BATCH: Final = 64 * 1024  # bytes; the one that an offset is in the midst of comes as a whole
_SAMPLE: Final = 16  # records of an answer that are measured
_OVERHEAD: Final = 20  # bytes of a record beside its content
_NAMES_REPLICA: Final = 11  # the version of a fetch's answer


class RecordLookup:
    """Reads records by their offsets."""

    def __init__(
        self,
        client: Callable[[], Awaitable[AIOKafkaClient]],
        options: Callable[[], Mapping[str, Any]],
        timeout: float,
    ) -> None:
        """`client` gives one that is connected, or raises; `options` are what to make another one with; `timeout`: seconds for one call."""
        self._client = client
        self._options = options
        self._timeout = timeout
        self._consumer: AIOKafkaConsumer | None = None
        self._reading = asyncio.Lock()
        self._sizes: dict[str, float] = {}  # bytes of a record, by topic, as read last

    async def read(self, partition: TopicPartition, offset: int) -> Record | None:
        """As the port's `read`."""
        if offset < 0:
            return None
        key = KafkaPartition(*partition)
        return await self._with_consumer(
            lambda reader: self._read_one(reader, key, offset), f"reading {key[0]}-{key[1]}"
        )

    async def extents(
        self, topics: Mapping[str, Sequence[int]]
    ) -> tuple[Mapping[Any, int], Mapping[Any, int]]:
        """The first offset and the end of each partition of these topics. A partition equals any tuple of the same values."""
        keys = [KafkaPartition(name, number) for name, numbers in topics.items() for number in numbers]

        async def offsets(reader: AIOKafkaConsumer) -> tuple[Mapping[Any, int], Mapping[Any, int]]:
            # All at once: asked for offsets, the library looks for one unknown topic after the other.
            await reader._client.set_topics(topics)
            first, end = await asyncio.gather(reader.beginning_offsets(keys), reader.end_offsets(keys))
            return first, end

        return await self._with_consumer(offsets, "asking for offsets")

    async def _read_one(self, reader: AIOKafkaConsumer, key: KafkaPartition, offset: int) -> Record | None:
        if key.partition not in (reader.partitions_for_topic(key.topic) or ()):
            found = (await describe(await self._client(), [key.topic])).get(key.topic)
            if found is None or key.partition not in found:
                return None
        first, end = await asyncio.gather(reader.beginning_offsets([key]), reader.end_offsets([key]))
        if not first[key] <= offset < end[key]:
            return None
        reader.assign([key])
        try:
            reader.seek(key, offset)
            while True:
                for records in (await reader.getmany(key, timeout_ms=1000, max_records=1)).values():
                    record: Record = records[0]
                    if isinstance(record, UnreadableBatch):
                        raise record
                    if record.offset >= offset:
                        return record if record.offset == offset else None
                    # The assignment's own look for where to start has come after the seek.
                    reader.seek(key, offset)
                if await reader.position(key) > offset:
                    return None  # compacted away, or a transaction's marker
        finally:
            reader.pause(key)  # or it would go on fetching what nobody reads

    async def _with_consumer(self, ask: Callable[[AIOKafkaConsumer], Awaitable[T]], doing: str) -> T:
        """Ask the consumer without a group; a new one after an error."""
        await self._client()
        async with self._reading:
            try:
                async with asyncio.timeout(self._timeout):
                    if self._consumer is None:
                        reader = AIOKafkaConsumer(
                            **self._options(),
                            group_id=None,
                            enable_auto_commit=False,
                            auto_offset_reset="earliest",
                            max_partition_fetch_bytes=64 * 1024,  # a larger record comes all the same
                            isolation_level="read_committed",
                        )
                        try:
                            await reader.start()
                        except BaseException:
                            await stop_consumer(reader)
                            raise
                        self._consumer = reader
                    return await ask(self._consumer)
            except (errors.KafkaError, OSError, TimeoutError) as error:
                await self.close()
                raise mapped(error, doing) from error

    async def close(self) -> None:
        reader, self._consumer = self._consumer, None
        if reader is not None:
            await stop_consumer(reader)

    async def read_from(self, partition: TopicPartition, offset: int, limit: int, size: int) -> Stretch:
        """As the port's `read_from`."""
        doing = f"reading {partition.topic}-{partition.partition}"
        try:
            async with asyncio.timeout(self._timeout):
                return await self._read(KafkaPartition(*partition), offset, limit, size)
        except (errors.KafkaError, OSError, TimeoutError) as error:
            raise mapped(error, doing) from error

    async def _read(self, key: KafkaPartition, offset: int, limit: int, size: int) -> Stretch:
        client = await self._client()
        if (each := self._sizes.get(key.topic)) is not None:
            size = min(size, _BATCH + int(limit * each * 1.25))
        for _ in range(_TRIES):
            leader = await _leader(client, key)
            request = FetchRequest(
                0, 0, size, _READ_COMMITTED, [(key.topic, [(key.partition, offset, size)])]
            )
            response = await client.send(leader, request, group=ConnectionGroup.COORDINATION)
            ((_, ((_, code, _, *parts),)),) = response.topics
            error = errors.for_code(code)
            if error is errors.NoError:
                # From version 11 on the replica to read from stands between the two.
                aborted = parts[-3 if response.API_VERSION >= _NAMES_REPLICA else -2]
                stretch = _stretch(key, offset, limit, parts[-1], aborted)
                if stretch.records:
                    self._sizes[key.topic] = _size_of(stretch.records)
                return stretch
            if error is errors.OffsetOutOfRangeError:
                # Below the first one that is kept, or beyond the end.
                return await self._beyond(client, key, offset)
            if error not in _STALE:
                raise error(key)
            await client.force_metadata_update()
            await asyncio.sleep(_PAUSE)
        raise BrokerUnavailable(f"reading {key.topic}-{key.partition}: its leader can't be found")

    async def _beyond(self, client: AIOKafkaClient, key: KafkaPartition, offset: int) -> Stretch:
        """Nothing is there; where the first record is that is kept."""
        request = OffsetRequest(-1, _READ_COMMITTED, [(key.topic, [(key.partition, _EARLIEST)])])
        leader = await _leader(client, key)
        response = await client.send(leader, request, group=ConnectionGroup.COORDINATION)
        ((_, ((_, code, _, first, *_),)),) = response.topics
        error = errors.for_code(code)
        if error is not errors.NoError:
            raise error(key)
        return Stretch((), max(offset, first))


async def _leader(client: AIOKafkaClient, key: KafkaPartition) -> int:
    for _ in range(_TRIES):
        leader = client.cluster.leader_for_partition(key)
        if leader is not None and leader >= 0:
            return int(leader)
        client.add_topic(key.topic)
        await client.force_metadata_update()
    raise errors.LeaderNotAvailableError(key)


def _stretch(
    key: KafkaPartition,
    offset: int,
    limit: int,
    data: bytes | None,
    aborted: Sequence[tuple[int, int]] | None,
) -> Stretch:
    """The records of an answer. `aborted`: producer and first offset of each aborted transaction that reaches into it."""
    if not data:
        return Stretch((), offset)
    records = Records(key, FetchAnswer(data), aborted, offset, None, None, True, _READ_COMMITTED)
    taken = records.take(limit)
    return Stretch(taken, records.next_fetch_offset)


def _size_of(records: Sequence[Record]) -> float:
    """Bytes that one of these takes, as some of them say."""
    some = records[:: max(1, len(records) // _SAMPLE)]
    return _OVERHEAD + sum(map(content_size, some)) / len(some)
