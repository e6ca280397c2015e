"""Which groups have committed offsets on some topics, asked of every broker of the cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import TopicPartition as KafkaPartition
from aiokafka.admin import AIOKafkaAdminClient

from dispatcher.broker.base import GroupState, Position, TopicPartition

_MOST = 100  # groups that are looked at


async def readers_of(
    admin: AIOKafkaAdminClient, partitions: Sequence[KafkaPartition], suffix: str
) -> Mapping[str, GroupState]:
    """The groups whose names end in `suffix` and that have committed offsets on these partitions."""
    names = sorted(name for name, *_ in await admin.list_consumer_groups() if name.endswith(suffix))
    found: dict[str, GroupState] = {}
    for name in names[:_MOST]:
        offsets: Mapping[Any, Any] = await admin.list_consumer_group_offsets(
            name, partitions=list(partitions)
        )
        committed = {
            TopicPartition(*key): Position(at.offset, at.metadata or "")
            for key, at in offsets.items()
            if at.offset >= 0
        }
        if committed:
            found[name] = GroupState(committed, await _alive(admin, name))
    return found


async def _alive(admin: AIOKafkaAdminClient, group: str) -> bool:
    (response,) = await admin.describe_consumer_groups([group])
    return any(described[5] for described in response.groups)  # its members
