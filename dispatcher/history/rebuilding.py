"""Making the history again from the topics, and comparing it with them."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Final, NamedTuple

from dispatcher.broker.base import Broker, TopicPartition
from dispatcher.core.attempt.record import InvalidRecord
from dispatcher.history.base import HistoryStore, LogPartition, Standing
from dispatcher.history.bounds import storable
from dispatcher.history.following import ends_of, peek, seek
from dispatcher.history.logged import LoggedAttempt, detail_of, read_attempt

_ALL: Final = 0
"""Of the time to begin with: everything that the topics have."""


async def positions_since(
    broker: Broker, topics: Collection[str], since_ms: int = _ALL
) -> dict[LogPartition, Standing]:
    """Where reading begins for all that these topics have of that time and later. What is there now is not passed over for being late."""
    there = await broker.look(list(topics))
    positions: dict[LogPartition, Standing] = {}
    for info in await broker.topics(only=lambda name: name in there):
        for partition in info.partitions:
            ends = ends_of(partition)
            source = TopicPartition(info.name, partition.partition)
            begin = ends.earliest if since_ms <= _ALL else await seek(broker, source, ends, since_ms)
            log = LogPartition(info.name, there[info.name].id or "", partition.partition)
            positions[log] = Standing(begin, since_ms, ends.latest)
    return positions


class Difference(NamedTuple):
    """A record of the attempt log that the history doesn't have."""

    source: TopicPartition
    offset: int
    delivery_id: str


class Compared(NamedTuple):
    """What a comparison came to."""

    looked: int
    """Records of the log that were looked up."""
    behind: int
    """Of those drawn, how many the history has not read yet."""
    differences: list[Difference]


async def compare(
    broker: Broker,
    store: HistoryStore,
    topic: str,
    samples: int,
    since_ms: int,
    *,
    everything: bool,
    draw: random.Random,
) -> Compared:
    """Draw records of the attempt log and look whether the history has them. `everything`: also first attempts that succeeded."""
    there = await broker.look([topic])
    standing = await store.positions()
    looked = behind = 0
    differences: list[Difference] = []
    for info in await broker.topics(only=topic.__eq__):
        share = max(1, samples // max(1, len(info.partitions)))
        for partition in info.partitions:
            source = TopicPartition(topic, partition.partition)
            ends = ends_of(partition)
            first = await seek(broker, source, ends, since_ms)
            held = standing.get(LogPartition(topic, there[topic].id or "", partition.partition))
            reached = 0 if held is None else held.next
            for offset in sorted(
                {draw.randrange(first, ends.latest) for _ in range(share)} if first < ends.latest else ()
            ):
                record = await peek(broker, source, offset)
                if record is None:
                    continue
                if record.offset >= reached:
                    behind += 1
                    continue
                try:
                    attempt = read_attempt(record.value, record.offset)
                except InvalidRecord:
                    continue
                if not everything and attempt.decision == "delivered" and attempt.attempt <= 1:
                    continue
                looked += 1
                if not await _has(store, attempt):
                    differences.append(Difference(source, record.offset, attempt.delivery_id))
    return Compared(looked, behind, differences)


async def _has(store: HistoryStore, attempt: LoggedAttempt) -> bool:
    found = await store.delivery(attempt.delivery_id[4:])
    if found is None:
        return False
    # Another event of that id: the topic was made anew, and the later one took the place.
    return found.row.event_id != storable(attempt.event_id) or detail_of(attempt) in found.attempts
