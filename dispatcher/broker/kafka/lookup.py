"""Reading from Kafka by offset: one request, one answer, no consumer.

A consumer of the library reads on by itself, waits for what isn't there yet, and serves one position of a partition at a time. What is
parked is read here and there, some records at a time, for many subscriptions. So the request is sent to the partition's
leader as it is, over the producer's client, on a connection of that client which nothing else uses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from aiokafka import TopicPartition as KafkaPartition, errors
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest

from dispatcher.broker.base import BrokerUnavailable, Stretch, TopicPartition
from dispatcher.broker.kafka.client import mapped
from dispatcher.broker.kafka.wire.bulk import Answer

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


class Ranges:
    """Reads stretches of partitions."""

    def __init__(self, client: Callable[[], Awaitable[AIOKafkaClient]], timeout: float) -> None:
        """`client` gives one that is connected, or raises; `timeout` is for one read, in seconds."""
        self._client = client
        self._timeout = timeout

    async def read(self, partition: TopicPartition, offset: int, limit: int, size: int) -> Stretch:
        """As the port's `read_from`."""
        doing = f"reading {partition.topic}-{partition.partition}"
        try:
            async with asyncio.timeout(self._timeout):
                return await self._read(KafkaPartition(*partition), offset, limit, size)
        except (errors.KafkaError, OSError, TimeoutError) as error:
            raise mapped(error, doing) from error

    async def _read(self, key: KafkaPartition, offset: int, limit: int, size: int) -> Stretch:
        client = await self._client()
        for _ in range(_TRIES):
            leader = await _leader(client, key)
            request = FetchRequest(
                0, 0, size, _READ_COMMITTED, [(key.topic, [(key.partition, offset, size)])]
            )
            response = await client.send(leader, request, group=ConnectionGroup.COORDINATION)
            ((_, ((_, code, *_, data),)),) = response.topics
            error = errors.for_code(code)
            if error is errors.NoError:
                return _stretch(offset, limit, data)
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


def _stretch(offset: int, limit: int, data: bytes | None) -> Stretch:
    """The records of an answer. Whether one belongs to an aborted transaction is for the group's consumer to know."""
    if not data:
        return Stretch((), offset)
    answer = Answer(data)
    answer.next_offset = offset
    records = answer.take(limit, True, lambda batch: bool(batch.is_control_batch))
    return Stretch(records, answer.next_offset)
