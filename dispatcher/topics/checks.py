"""What can be wrong with topics that exist, in sentences: retention too short, retries that nobody reads, a group renamed.

Pure: it is told what the broker says, at the start and now and then (`watch.py`), and by `dispatcher check-config --connect`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from dispatcher.broker.base import GroupState, PartitionInfo, TopicInfo
from dispatcher.core.retry.tiers import Tier, Tiers
from dispatcher.core.text.units import format_duration
from dispatcher.delivery.parking import parked_retention, parked_topic
from dispatcher.settings.groups import Settings

SPARE: Final = 24 * 3600.0
"""Seconds beyond its delay that a retry topic must keep its records: for as long the dispatcher may be away."""

_RETRY = re.compile(r"(^|\.)retry\.[0-9]+(ms|s|m|h|d)([0-9]+(ms|s|m|h|d))*$")
_EXAMPLE = "kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config {config}"


def retry_group(settings: Settings) -> str:
    """The group that reads the retry topics."""
    return f"{settings.group}.retry"


def concerns(settings: Settings, topic: str) -> bool:
    """Whether `warnings` needs to know of this topic."""
    return topic.startswith(settings.topics.prefix) or _RETRY.search(topic) is not None


def warnings(settings: Settings, topics: Sequence[TopicInfo], readers: Mapping[str, GroupState]) -> list[str]:
    """A sentence for each thing amiss. `topics` with what the retry group has committed; `readers` of the retry topics."""
    return [
        *_retention(settings, topics),
        *_left_over(settings, topics),
        *_renamed(settings, topics, readers),
    ]


def _retention(settings: Settings, topics: Sequence[TopicInfo]) -> list[str]:
    tiers = {tier.topic: tier for tier in Tiers(settings.retry.tiers, settings.topics.prefix)}
    renewed = parked_retention(settings.subscription.pause_keeps) / 2  # its records are written anew by then
    parked = parked_topic(settings.topics.prefix)
    tiers[parked] = Tier(renewed, format_duration(renewed), parked)
    found = []
    for topic in topics:
        tier = tiers.get(topic.name)
        if tier is None:
            continue
        kept, size = (_number(topic.config, name) for name in ("retention.ms", "retention.bytes"))
        policy = topic.config.get("cleanup.policy", "delete")
        if "delete" in policy and kept is not None and 0 <= kept < (tier.delay + SPARE) * 1000:
            wanted = round((tier.delay + 7 * SPARE) * 1000)
            found.append(
                f"topic {topic.name} keeps its records for {format_duration(kept / 1000)}, and they wait there for"
                f" {tier.level}, and while the dispatcher is away: retries get lost; `"
                + _EXAMPLE.format(topic=topic.name, config=f"retention.ms={wanted}")
                + "`"
            )
        if "delete" in policy and size is not None and size >= 0:
            found.append(
                f"topic {topic.name} is cut at {size} bytes a partition (retention.bytes): retries get lost when more wait; `"
                + _EXAMPLE.format(topic=topic.name, config="retention.bytes=-1")
                + "`"
            )
        if "compact" in policy:
            found.append(
                f"topic {topic.name} is compacted: retries of the same key get lost; `"
                + _EXAMPLE.format(topic=topic.name, config="cleanup.policy=delete")
                + "`"
            )
    return found


def _number(config: Mapping[str, str], name: str) -> int | None:
    try:
        return int(config[name])
    except (KeyError, ValueError):
        return None


def _left_over(settings: Settings, topics: Sequence[TopicInfo]) -> list[str]:
    """Retry topics that hold retries of ours and that nobody reads: a tier taken out, another prefix."""
    listed = _listed(settings)
    prefix = f"{settings.topics.prefix}retry."
    found = []
    for topic in topics:
        read_by_us = any(partition.committed is not None for partition in topic.partitions)
        if topic.name in listed or not _RETRY.search(topic.name):
            continue
        if not read_by_us and not topic.name.startswith(prefix):
            continue  # another dispatcher's
        waiting = sum(map(_waiting, topic.partitions))
        if waiting:
            level = topic.name.rpartition("retry.")[2]
            found.append(
                f"topic {topic.name} holds {waiting} retries of group {retry_group(settings)} that nobody reads: it is not in the"
                f" settings any more (retry.tiers, topics.prefix); put {level} back into retry.tiers, or the old topics.prefix,"
                " until `dispatcher topics` shows no lag of it"
            )
    return found


def _listed(settings: Settings) -> set[str]:
    """The topics that the group of the retries reads."""
    prefix = settings.topics.prefix
    return {tier.topic for tier in Tiers(settings.retry.tiers, prefix)} | {parked_topic(prefix)}


def _waiting(partition: PartitionInfo) -> int:
    done = partition.earliest if partition.committed is None else max(partition.committed, partition.earliest)
    return max(partition.latest - done, 0)


def _renamed(settings: Settings, topics: Sequence[TopicInfo], readers: Mapping[str, GroupState]) -> list[str]:
    """Other groups beside ours at the retry topics."""
    group = retry_group(settings)
    listed = _listed(settings)
    holding = sum(
        max(partition.latest - partition.earliest, 0)
        for topic in topics
        if topic.name in listed
        for partition in topic.partitions
    )
    others = {name: state for name, state in readers.items() if name != group}
    found = [
        f"group {name} reads the retry topics {settings.topics.prefix}retry.* too: every retry is sent by both; give one of the"
        " dispatchers a topics.prefix of its own"
        for name, state in others.items()
        if state.alive
    ]
    silent = [name for name, state in others.items() if not state.alive]
    if group not in readers and holding and len(silent) > 1:
        found.append(
            f"group {group} has read none of the retry topics, which hold {holding} records, and the groups {', '.join(silent)}"
            " have: if the group was renamed, its retries are sent again; copy the offsets of the old group before the start"
            " (`kafka-consumer-groups.sh --reset-offsets --from-file`)"
        )
    return found


def takes_over(settings: Settings, readers: Mapping[str, GroupState]) -> list[str]:
    """What becomes of a renamed group at its first start, where that is plain (`broker/assignment.py`)."""
    group = retry_group(settings)
    if group in readers or len(readers) != 1:
        return []
    ((name, state),) = readers.items()
    if state.alive:
        return []
    sentence = (
        f"group {group} has read none of the retry topics, and {name} has: at its first start it goes on where that one had come"
        " to; the events' own group begins by kafka.offset_reset"
    )
    return [sentence]
