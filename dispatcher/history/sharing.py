"""Which partitions this process indexes, where several share a store: those that the broker's group gives it.

The group only shares them out. Nothing is fetched through it, and where reading goes on is what the store says: the store's
compare-and-set settles what two members believe at the same time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Final

from dispatcher.broker.base import Broker, Jump, Position, TopicPartition

_POLL: Final = 0.5  # seconds


class PartitionShare:
    """A member of the group that shares out the partitions of these topics. Its own assignment listener."""

    def __init__(self, broker: Broker, topics: Collection[str], group: str) -> None:
        self.partitions: frozenset[TopicPartition] = frozenset()
        self._consumer = broker.consumer(topics, group, self, own=True)

    @property
    def problem(self) -> str | None:
        return self._consumer.problem

    async def run(self) -> None:
        """Be a member until cancelled."""
        try:
            await self._consumer.start()
            while True:
                self._consumer.pause(self._consumer.assignment())
                await self._consumer.poll(_POLL, 1)
        finally:
            self.partitions = frozenset()
            await asyncio.shield(self._consumer.stop())

    async def on_assigned(self, partitions: Mapping[TopicPartition, Position]) -> None:
        self._consumer.pause(partitions)
        self.partitions = frozenset(partitions)

    async def on_revoked(self, partitions: Collection[TopicPartition]) -> None:
        self.partitions -= set(partitions)

    def on_gone(self, partitions: Collection[TopicPartition]) -> None:
        self.partitions -= set(partitions)

    def on_jump(self, jump: Jump) -> None: ...
