"""Where a member of a group starts to read, asked of Kafka and committed there (`assignment.py` says by which rules).

All of it happens while the library waits for its rebalance listener, without heartbeats, so it is bounded by the session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition as KafkaPartition, errors
from aiokafka.structs import OffsetAndMetadata

from dispatcher.broker.assignment import Extent, Plan, plan, say_starts
from dispatcher.broker.base import Position, Remembered, TopicPartition


async def starts_of(
    consumer: AIOKafkaConsumer,
    group: str,
    topics: Mapping[str, Remembered],
    mine: Collection[KafkaPartition],
    past: Mapping[str, Remembered],
    *,
    from_latest: bool,
    cut: Collection[TopicPartition],
    decided: Mapping[TopicPartition, Position],
) -> Plan:
    """Where reading starts with `mine`, committed where it isn't, and with what has no commit of the `topics`' others.

    `decided` are starts of partitions without a commit that this member has decided before, or that another group gave it.
    """
    every = [
        KafkaPartition(name, number) for name, topic in topics.items() for number in range(topic.partitions)
    ]
    if not every:
        return Plan({}, {}, [], {})
    found: Mapping[Any, Any] = await consumer._coordinator.fetch_committed_offsets(every)
    committed = {TopicPartition(*key): Position(at.offset, at.metadata or "") for key, at in found.items()}
    own = {TopicPartition(*key) for key in mine}
    # Of what others have, only what may come to this member without a commit, and where it matters when that is: a partition
    # without a leader would keep every member waiting.
    wanted = [
        key for key in every if key in own or (key not in committed and (from_latest or key in decided))
    ]
    if not wanted:
        return Plan({}, {}, [], {})
    first, end = await asyncio.gather(consumer.beginning_offsets(wanted), consumer.end_offsets(wanted))
    extents = {TopicPartition(*key): Extent(first[key], end[key]) for key in wanted}
    standing = {key: at for key, at in decided.items() if key in extents and key not in committed}
    found_plan = plan(topics, {**standing, **committed}, extents, past, from_latest=from_latest, cut=cut)
    commits = {**standing, **found_plan.commits}
    ours = {key: at for key, at in commits.items() if key in own}
    if ours:
        await _commit(consumer, ours)
        say_starts(group, ours)
    jumps = [jump for jump in found_plan.jumps if jump.partition in own]
    return Plan(found_plan.starts, commits, jumps, found_plan.ends)


async def _commit(consumer: AIOKafkaConsumer, positions: Mapping[TopicPartition, Position]) -> None:
    offsets = {
        KafkaPartition(*key): OffsetAndMetadata(at.offset, at.metadata) for key, at in positions.items()
    }
    subscription = consumer._subscription.subscription
    if subscription is None or subscription.assignment is None:
        raise errors.IllegalStateError("the assignment was lost")
    await consumer._coordinator.commit_offsets(subscription.assignment, offsets)


async def out_of_range(
    consumer: AIOKafkaConsumer, mine: Collection[TopicPartition], handed: Mapping[TopicPartition, int]
) -> tuple[dict[TopicPartition, tuple[int, int]], list[TopicPartition]]:
    """What to do where a fetch said that its offset is not there: `(expected, first)` of partitions that
    retention has passed, where reading goes on by now, and those that end before their position.
    """
    keys = [KafkaPartition(*key) for key in mine]
    if not keys:
        return {}, []
    first, end = await asyncio.gather(consumer.beginning_offsets(keys), consumer.end_offsets(keys))
    passed: dict[TopicPartition, tuple[int, int]] = {}
    cut: list[TopicPartition] = []
    for key in keys:
        partition = TopicPartition(*key)
        position = position_of(consumer, partition)
        expected = handed.get(partition) if position is None else position
        if expected is None or not consumer._subscription.is_assigned(key):
            continue
        if expected < first[key]:
            passed[partition] = (expected, first[key])
            consumer.seek(key, first[key])
        elif expected > end[key]:
            cut.append(partition)
        elif position is None:
            consumer.seek(key, expected)
    return passed, cut


def position_of(consumer: AIOKafkaConsumer, partition: TopicPartition) -> int | None:
    """The next offset that the library will hand out; None while it looks for it."""
    subscription = consumer._subscription.subscription
    assignment = None if subscription is None else subscription.assignment
    if assignment is None:
        return None
    state = assignment.state_value(KafkaPartition(*partition))
    return int(state.position) if state is not None and state.has_valid_position else None
