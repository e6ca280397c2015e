"""The partitions of one member that stand still: a batch can't be unpacked, or the broker doesn't let anybody read on.

What can't be unpacked ends the library's fetch for every partition. `wire/records.py` hands such a batch out as an error
in its place. Here the partition is paused in the library and fetched again now and then: another replica of the
broker may have the batch right, or the batch was broken on its way. The other partitions go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition as KafkaPartition, errors

from dispatcher.broker.base import TopicPartition, UnreadableBatch
from dispatcher.core.control.skips import skip_command
from dispatcher.runtime.backoff import Backoff

log = structlog.get_logger(__name__)

_LONGEST_PAUSE = 30.0  # seconds until an unreadable batch is fetched again
_NOT_ALLOWED = errors.TopicAuthorizationFailedError.errno
# What a broker answers instead of records: unknown error, corrupt message, no right to read the topic, storage error.
_UNREADABLE = {-1, 2, _NOT_ALLOWED, 56}


class _Stuck:
    """A partition stands before a batch that can't be unpacked."""

    __slots__ = ("backoff", "error", "fetching", "retry_at")

    def __init__(self, error: UnreadableBatch) -> None:
        self.error = error
        self.backoff = Backoff(longest=_LONGEST_PAUSE)
        self.retry_at = 0.0  # loop time
        self.fetching = False  # it is being tried again


class StuckPartitions:
    """What stands still, by partition."""

    def __init__(self) -> None:
        self._stuck: dict[TopicPartition, _Stuck] = {}

    def __contains__(self, partition: TopicPartition) -> bool:
        return partition in self._stuck

    def __bool__(self) -> bool:
        return bool(self._stuck)

    def clear(self) -> None:
        """The partitions are given up."""
        self._stuck = {}

    def batches(self) -> Mapping[TopicPartition, UnreadableBatch]:
        """What each of them stands before."""
        return {partition: stuck.error for partition, stuck in self._stuck.items()}

    def stand_still(
        self, consumer: AIOKafkaConsumer, partition: TopicPartition, error: UnreadableBatch
    ) -> None:
        """Fetch no more of the partition for now: the same bytes would come again and again."""
        consumer.pause(KafkaPartition(*partition))
        stuck = self._stuck.get(partition)
        if stuck is None or stuck.error.first != error.first:
            stuck = self._stuck[partition] = _Stuck(error)
            log.error(
                "a partition stands still: its next records can't be read",
                topic=partition.topic,
                partition=partition.partition,
                first=error.first,
                last=error.last,
                reason=error.reason,
                skip=skip_command(*partition, error.first) if error.skippable else None,
            )
        stuck.error = error
        stuck.fetching = False
        stuck.retry_at = asyncio.get_running_loop().time() + stuck.backoff.failed()

    def unreadable(self, code: int) -> bool:
        """Whether a fetch's error code says that the partition can't be read."""
        return code in _UNREADABLE

    def fetched(
        self, consumer: AIOKafkaConsumer, partition: TopicPartition, position: int | None, code: int
    ) -> None:
        """The broker has answered a fetch with this error code, 0 for none; `position`: where reading stands, if it is assigned."""
        stuck = self._stuck.get(partition)
        if not code:
            if stuck is not None and not stuck.error.skippable:
                self.read_again(partition)
        elif position is not None:
            error = UnreadableBatch(position, position, _reason(partition, code), skippable=False)
            self.stand_still(consumer, partition, error)

    def read_again(self, partition: TopicPartition) -> None:
        """Records of the partition have come."""
        if self._stuck.pop(partition, None) is not None:
            log.info("the partition can be read again", topic=partition.topic, partition=partition.partition)

    def try_again(self, consumer: AIOKafkaConsumer, now: float) -> None:
        """Fetch what has waited long enough."""
        for partition, stuck in self._stuck.items():
            if not stuck.fetching and now >= stuck.retry_at:
                stuck.fetching = True
                consumer.resume(KafkaPartition(*partition))

    def skip(self, consumer: AIOKafkaConsumer, partition: TopicPartition) -> int | None:
        """Go on behind what the partition stands before; the offset behind it, None where it doesn't stand still."""
        stuck = self._stuck.pop(partition, None)
        if stuck is None:
            return None
        following = stuck.error.last + 1
        consumer.seek(KafkaPartition(*partition), following)
        consumer.resume(KafkaPartition(*partition))
        return following


def _reason(partition: TopicPartition, code: int) -> str:
    if code == _NOT_ALLOWED:
        return (
            f"the broker does not let us read the topic: allow this user READ on the topic {partition.topic}"
            " (`kafka-acls.sh --add --operation Read --topic ...`)"
        )
    name = errors.for_code(code).__name__
    return f"the broker answers {name} ({code}): look at the disk and the log of the partition's leader"
