"""Which topics there must be, and with which settings."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from dispatcher.broker.base import TopicSpec, creation_command
from dispatcher.control.audit import audit_topic
from dispatcher.control.replicas import replicas_topic
from dispatcher.control.store import subscriptions_topic
from dispatcher.core.replay.record import replay_topic
from dispatcher.core.retry.tiers import RETRY_RETENTION, Tiers
from dispatcher.delivery.commit_notes import notes_topic
from dispatcher.delivery.interventions import interventions_topic
from dispatcher.delivery.parking import parked_retention, parked_topic
from dispatcher.history.open import followed_names, history_group, shares_history
from dispatcher.replays.store import KEPT, PAUSED_AT_MOST, replays_topic
from dispatcher.settings.groups import Settings

_DEAD_RETENTION_MS: Final = 30 * 24 * 3600 * 1000
_NOTES_LAG_MS: Final = 600 * 1000
_NOTES_SEGMENT: Final = 32 << 20  # bytes; the newest segment is never compacted
_AUDIT_BYTES: Final = 64 << 20  # some hundred thousand changes
_REPLICAS_SEGMENT_MS: Final = (
    600 * 1000
)  # what is older than this can be compacted: a record says nothing after a minute
_COMPACTION_LAG_MS: Final = 3600 * 1000  # `core/control/ledger.py` says why


def topic_specs(settings: Settings) -> list[TopicSpec]:
    """Return the topics that must be there."""
    topics = settings.topics
    specs = [TopicSpec(name, topics.partitions, topics.replication) for name in topics.events]
    specs.append(
        TopicSpec(
            subscriptions_topic(settings),
            1,
            topics.replication,
            {"cleanup.policy": "compact", "min.compaction.lag.ms": str(_COMPACTION_LAG_MS)},
            exact=True,
        )
    )
    specs.append(
        TopicSpec(
            replicas_topic(settings),
            1,
            topics.replication,
            {
                "cleanup.policy": "compact",
                "segment.ms": str(_REPLICAS_SEGMENT_MS),
                "min.cleanable.dirty.ratio": "0.1",
            },
        )
    )
    if (notes := notes_topic(settings)) is not None:
        # One record stays for each partition of a group. Compaction leaves alone what a commit may still point to.
        specs.append(
            TopicSpec(
                notes,
                1,
                topics.replication,
                {
                    "cleanup.policy": "compact",
                    "min.compaction.lag.ms": str(_NOTES_LAG_MS),
                    "segment.bytes": str(_NOTES_SEGMENT),
                },
            )
        )
    specs.append(
        TopicSpec(
            interventions_topic(topics.prefix),
            1,
            topics.replication,
            {"cleanup.policy": "compact", "min.compaction.lag.ms": str(_COMPACTION_LAG_MS)},
            exact=True,
        )
    )
    # Whatever happened to this process for a week, what waits in a tier is still there.
    specs += [
        TopicSpec(
            tier.topic,
            topics.partitions,
            topics.replication,
            {
                "cleanup.policy": "delete",
                "retention.ms": str(round((tier.delay + RETRY_RETENTION) * 1000)),
            },
        )
        for tier in Tiers(settings.retry.tiers, topics.prefix)
    ]
    specs.append(
        TopicSpec(
            parked_topic(topics.prefix),
            topics.partitions,
            topics.replication,
            {
                "cleanup.policy": "delete",
                "retention.ms": str(round(parked_retention(settings.subscription.pause_keeps) * 1000)),
                "retention.bytes": "-1",
            },
        )
    )
    specs += [
        # What a paused replay has written waits here; a day beyond that for whoever was away.
        TopicSpec(
            replay_topic(topics.prefix),
            topics.partitions,
            topics.replication,
            {
                "cleanup.policy": "delete",
                "retention.ms": str(round((PAUSED_AT_MOST + KEPT) * 1000)),
                "retention.bytes": "-1",
            },
        ),
        TopicSpec(
            replays_topic(settings),
            1,
            topics.replication,
            {"cleanup.policy": "compact", "min.compaction.lag.ms": str(_COMPACTION_LAG_MS)},
            exact=True,
        ),
    ]
    specs.append(
        TopicSpec(
            f"{topics.prefix}dead",
            topics.partitions,
            topics.replication,
            {"cleanup.policy": "delete", "retention.ms": str(_DEAD_RETENTION_MS)},
        )
    )
    if settings.attempts.log != "none":
        specs.append(
            TopicSpec(
                f"{topics.prefix}attempts",
                topics.partitions,
                topics.replication,
                {
                    "cleanup.policy": "delete",
                    "retention.ms": str(round(settings.attempts.retention * 1000)),
                    # As much as some 3 million attempts: what a busy week writes would fill the broker's disk.
                    "retention.bytes": str(settings.attempts.retention_size),
                },
            )
        )
    specs.append(
        TopicSpec(
            audit_topic(settings),
            1,
            topics.replication,
            {
                "cleanup.policy": "delete",
                "retention.ms": str(round(settings.api.audit_retention * 1000)),
                "retention.bytes": str(_AUDIT_BYTES),
            },
        )
    )
    return specs


def missing_topics(specs: Sequence[TopicSpec], missing: Collection[str]) -> str:
    """What to say where topics are missing, and may not be made unasked."""
    commands = "; ".join(f"`{creation_command(spec)}`" for spec in specs if spec.name in missing)
    return (
        f"missing topics: {', '.join(missing)}. A new version may need more topics than the one before. Create them"
        f" (`dispatcher topics --create`), or set topics.create: true; with Kafka's own tools: {commands}"
    )


def needed_specs(settings: Settings) -> list[TopicSpec]:
    """Those of the topics that this process uses in its roles."""
    rights = needed_rights(settings)
    return [spec for spec in topic_specs(settings) if spec.name in rights]


def needed_rights(settings: Settings) -> dict[str, Sequence[str]]:
    """What this process does with each topic that it uses in its roles.

    The API's right to publish is not asked for: many installations publish past it.
    """
    prefix = settings.topics.prefix
    rights: dict[str, Sequence[str]] = {
        subscriptions_topic(settings): ("READ", "WRITE"),
        replicas_topic(settings): ("READ", "WRITE"),
    }
    if runs_replays(settings):
        rights |= {replays_topic(settings): ("READ", "WRITE"), replay_topic(prefix): ("READ", "WRITE")}
        rights |= dict.fromkeys((f"{prefix}dead", *settings.topics.events), ("READ",))
    if "deliver" in settings.roles:
        # Dead letters are read where one is sent again that retention has taken from its topic.
        only = {f"{prefix}dead": ("READ", "WRITE"), f"{prefix}attempts": ("WRITE",)} | dict.fromkeys(
            settings.topics.events, ("READ",)
        )
        rights = {spec.name: only.get(spec.name, ("READ", "WRITE")) for spec in topic_specs(settings)}
        del rights[audit_topic(settings)]
    if "api" in settings.roles:
        rights[audit_topic(settings)] = rights[interventions_topic(prefix)] = ("READ", "WRITE")
        for name in (*settings.topics.events, f"{prefix}dead"):
            rights[name] = tuple(sorted({*rights.get(name, ()), "READ"}))
    for name in followed_names(settings) if "history" in settings.roles else ():
        rights[name] = tuple(sorted({*rights.get(name, ()), "READ"}))
    return rights


def runs_replays(settings: Settings) -> bool:
    """Whether this process may run replays: any but one that only keeps the history."""
    return "deliver" in settings.roles or "api" in settings.roles


def needed_groups(settings: Settings) -> dict[str, Sequence[str]]:
    """The groups that this process is a member of in its roles."""
    groups: dict[str, Sequence[str]] = {}
    if "deliver" in settings.roles:
        groups = {settings.group: ("READ",), f"{settings.group}.retry": ("READ",)}
    if "history" in settings.roles and shares_history(settings):
        groups[history_group(settings)] = ("READ",)
    return groups
