"""Which groups have committed offsets on some topics, asked of every broker of the cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import TopicPartition as KafkaPartition, errors
from aiokafka.admin import AIOKafkaAdminClient

from dispatcher.broker.base import GroupState, Position, TopicPartition

_MOST = 100  # groups that are looked at


async def readers_of(
    admin: AIOKafkaAdminClient, partitions: Sequence[KafkaPartition], suffix: str
) -> Mapping[str, GroupState]:
    """The groups whose names end in `suffix` and that have committed offsets on these partitions.

    None, where the broker speaks no such request: then nothing is carried over from a renamed group.
    """
    try:
        listed = await admin.list_consumer_groups()
    except errors.IncompatibleBrokerVersion:
        return {}
    names = sorted(name for name, *_ in listed if name.endswith(suffix))
    found: dict[str, GroupState] = {}
    for name in names[:_MOST]:
        offsets = await offsets_of(admin, name, partitions)
        committed = {
            TopicPartition(*key): Position(at.offset, at.metadata or "")
            for key, at in offsets.items()
            if at.offset >= 0
        }
        if committed:
            found[name] = GroupState(committed, await _alive(admin, name))
    return found


async def offsets_of(
    admin: AIOKafkaAdminClient, group: str, partitions: Sequence[KafkaPartition]
) -> Mapping[Any, Any]:
    """What the group has committed on each of these, -1 for nothing. Raises KafkaError where its coordinator doesn't tell."""
    offsets: Mapping[Any, Any] = await admin.list_consumer_group_offsets(group, partitions=list(partitions))
    if len(offsets) < len(partitions):
        # The library passes over the error of the whole answer, which has no partitions then.
        raise errors.GroupCoordinatorNotAvailableError
    return offsets


async def _alive(admin: AIOKafkaAdminClient, group: str) -> bool:
    (response,) = await admin.describe_consumer_groups([group])
    return any(described[5] for described in response.groups)  # its members
