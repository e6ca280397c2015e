"""Partitions whose reading stands before a batch that can't be unpacked: what to say of them, and the way past it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

import structlog

from dispatcher.broker.base import GroupMemory, TopicPartition, UnreadableBatch
from dispatcher.core.control.skips import Skip, skip_command
from dispatcher.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


class StuckSource(Protocol):
    """A consumer, or what reads again what a consumer has read."""

    def stuck(self) -> Mapping[TopicPartition, UnreadableBatch]: ...

    def skip(self, partition: TopicPartition) -> None: ...


def pass_over(consumer: StuckSource, skips: Collection[Skip], memory: GroupMemory, metrics: Metrics) -> None:
    """Go on behind what an operator has given up; whatever else is in `skips` does nothing. `memory` knows the topics' ids."""
    for partition, batch in list(consumer.stuck().items()):
        topic = (memory.topics() or {}).get(partition.topic)
        topic_id = None if topic is None else topic.id
        if batch.skippable and any(
            skip.concerns(partition, topic_id) and batch.first <= skip.offset <= batch.last for skip in skips
        ):
            log.warning(
                "passed over what can't be unpacked, as an operator has asked",
                topic=partition.topic,
                partition=partition.partition,
                first=batch.first,
                last=batch.last,
            )
            metrics.skipped["unreadable"] += batch.last - batch.first + 1
            consumer.skip(partition)


def sentence(partition: TopicPartition, batch: UnreadableBatch) -> str:
    """What `/readyz` says of one."""
    topic, number = partition
    if not batch.skippable:
        return f"{topic}-{number} stands still at offset {batch.first}: {batch.reason}; it is tried again every 30 s"
    return (
        f"{topic}-{number} stands still: {batch}. It is tried again every 30 s, which helps where another replica of the"
        f" broker has it right; to give these records up: `{skip_command(topic, number, batch.first)}`"
    )
