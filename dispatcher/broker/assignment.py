"""What happens to a member of a group when its partitions come and go, with either broker: where reading starts, and how the
member's listener is told.

A listener that fails to take over or to give up partitions must not go on as if it had, and the group can't wait for it. So
its exception is kept here, and the member's next `poll` raises it.

Where reading starts is decided once. `kafka.offset_reset: latest` is for a group that has never run. A missing commit doesn't
mean that: a partition without traffic moves no offset, the broker forgets offsets (`offsets.retention.minutes`), and a new
partition has none. Deciding again at every assignment would lose what came in between. So:

1. A start is committed with the assignment, and only by the member that has the partition. The decision of another member
   may be older than what the partition's owner has committed.
2. A group that has any commit, or is remembered, begins a partition without a commit at its first record. A member looks for
   commits before it joins, so that of two new members neither takes the other's commits for the group's past. A member keeps
   to its decision about partitions of others, should they come to it without a commit.
3. A remembered partition without a commit has lost it: the log and `/readyz` say so (`Why.EXPIRED`).
4. A topic with another id than the remembered one was made anew: its commits are about another topic.
5. A commit that retention has passed stays the start, with its note: reading begins at the first record that is left
   (`Plan.reads`), and what the note says is done there stays done. The member's owner learns from `Consumer.passed` that nothing is
   to be read before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import structlog

from dispatcher.broker.base import (
    AssignmentListener,
    BrokerError,
    GroupMemory,
    GroupState,
    Jump,
    Position,
    Remembered,
    TopicPartition,
    Why,
)

log = structlog.get_logger(__name__)

RETRY_SUFFIX: Final = ".retry"
"""How the names of groups end that read retry topics."""

_SAID = {
    Why.RETENTION: "the next offset was deleted before it was read: raise the topic's retention, or add replicas, as this group is"
    " too far behind",
    Why.EXPIRED: "the group's offset is gone, though the group has read the partition before: reading begins at the oldest record,"
    " and events may be delivered again. Either the group was away for longer than the broker's offsets.retention.minutes, or"
    " somebody deleted its offsets",
    Why.MADE_ANEW: "the topic was deleted and made anew: it is read from its beginning",
    Why.CUT: "the partition ends before the offset: its topic was made anew, or its new leader has cut it off; it is read from its"
    " beginning",
}


class Start(NamedTuple):
    """Where reading a partition starts."""

    position: Position
    why: Why | None = None
    """Set where reading doesn't go on where the group had come to."""


def start_of(
    committed: Position | None,
    earliest: int,
    end: int,
    *,
    from_latest: bool,
    known: bool = False,
    anew: bool = False,
    cut: bool = False,
) -> Start:
    """Where reading a partition starts that holds the offsets from `earliest` to before `end`; what is below `earliest` is passed over.

    `from_latest`: where there is no commit, at the end. `known`: the group has read it before. `anew`, `cut`: what was
    committed is about a former topic of that name, or beyond where the partition was cut.
    """
    if anew or cut:
        return Start(Position(earliest), Why.MADE_ANEW if anew else Why.CUT)
    if committed is None:
        if known:
            return Start(Position(earliest), Why.EXPIRED)
        return Start(Position(end if from_latest else earliest))
    if committed.offset > end:
        # Everything that is there is unread, and what was noted of that offset holds no more.
        return Start(Position(earliest), Why.CUT)
    return Start(committed, Why.RETENTION if committed.offset < earliest else None)


class Extent(NamedTuple):
    """What a partition holds: offsets from `earliest` to before `end`."""

    earliest: int
    end: int


class Plan(NamedTuple):
    """The starts of one assignment."""

    starts: dict[TopicPartition, Position]
    """Of every partition of the topics."""
    reads: dict[TopicPartition, int]
    """The first offset of each that is read: that of its start, or what retention has left behind it."""
    commits: dict[TopicPartition, Position]
    """Those of them that aren't committed yet."""
    jumps: list[Jump]
    ends: dict[TopicPartition, int]
    """One past the last offset that each of them holds."""


def plan(
    topics: Mapping[str, Remembered],
    committed: Mapping[TopicPartition, Position],
    extents: Mapping[TopicPartition, Extent],
    past: Mapping[str, Remembered],
    *,
    from_latest: bool,
    cut: Collection[TopicPartition] = (),
) -> Plan:
    """Where the members of a group start with the partitions that `extents` names, which are of `topics`.

    `past` are the topics that the group has read before. `from_latest` is for a group that has never run (rule 2).
    """
    result = Plan({}, {}, {}, [], {key: extent.end for key, extent in extents.items()})
    for key, (earliest, end) in extents.items():
        topic = topics[key.topic]
        before = past.get(key.topic)
        known = before is not None and key.partition < before.partitions
        anew = before is not None and known and is_another(before, topic)
        kept = committed.get(key)
        start, why = start_of(
            kept, earliest, end, from_latest=from_latest, known=known, anew=anew, cut=key in cut
        )
        result.starts[key] = start
        result.reads[key] = max(start.offset, earliest)
        if start != kept:
            result.commits[key] = start
        if why is not None:
            result.jumps.append(Jump(key, why, None if kept is None else kept.offset, result.reads[key]))
    return result


def say_starts(group: str, commits: Mapping[TopicPartition, Position]) -> None:
    """Log where the group begins to read what it has no commit for."""
    for topic in sorted({key.topic for key in commits}):
        starts = {key.partition: at.offset for key, at in commits.items() if key.topic == topic}
        log.info("the group begins to read", group=group, topic=topic, starts=starts)


def news(topics: Mapping[str, Remembered], memory: GroupMemory) -> dict[str, Remembered]:
    """What of these is to be remembered."""
    known = memory.topics() or {}
    return {name: topic for name, topic in topics.items() if known.get(name) != topic}


def inherited(group: str, readers: Mapping[str, GroupState]) -> Mapping[TopicPartition, Position]:
    """Where a group that has read none of the retry topics goes on: where one of another name has come to.

    Each record there is to be sent by one group only. A group that was renamed would send all of them again; one that
    has commits of its own, or more than one that may have been it, is left alone.
    """
    if group in readers or not readers:
        return {}
    (name, found), *others = readers.items()
    if others or found.alive:
        log.error(
            "the retry topics are read by other groups, and this one has not read them yet: it begins at their beginning, so"
            " retries that were sent may be sent again; if the group was renamed, stop, and copy the offsets of the old one"
            " (`kafka-consumer-groups.sh --reset-offsets --from-file`); if both are meant to be, give this one a topics.prefix"
            " of its own",
            group=group,
            others=list(readers),
        )
        return {}
    log.warning(
        "the group has read none of the retry topics; one of another name has, which has no members: it goes on where that"
        " one had come to",
        group=group,
        other=name,
    )
    return found.committed


def is_another(before: Remembered, now: Remembered) -> bool:
    """Whether the topic was deleted and made anew since."""
    return None not in (before.id, now.id) and before.id != now.id


def vanished(
    had: Iterable[TopicPartition], before: Mapping[str, Remembered], now: Mapping[str, Remembered]
) -> list[TopicPartition]:
    """Of the partitions that a member had, those that are no more: their topics are gone, or made anew."""
    gone = []
    for key in had:
        topic = now.get(key.topic)
        old = before.get(key.topic)
        if topic is None or (old is not None and is_another(old, topic)):
            gone.append(key)
    return gone


def absent(wanted: Sequence[str], there: Collection[str]) -> str | None:
    """What to say of topics that are missing."""
    missing = [topic for topic in wanted if topic not in there]
    if not missing:
        return None
    verb = "does" if len(missing) == 1 else "do"
    return f"topic {', '.join(missing)} {verb} not exist: `dispatcher topics --create` makes what is missing"


class GuardedListener:
    """The listener of a member of `group`, called so that its exceptions reach its next `poll`."""

    __slots__ = ("_failure", "_group", "_listener")

    def __init__(self, group: str, listener: AssignmentListener) -> None:
        self._group = group
        self._listener = listener
        self._failure: Exception | None = None

    async def assigned(self, starts: Mapping[TopicPartition, Position]) -> None:
        try:
            await self._listener.on_assigned(starts)
        except Exception as error:
            log.exception("on_assigned failed", group=self._group)
            self._failure = error

    async def revoked(self, partitions: Collection[TopicPartition]) -> None:
        try:
            await self._listener.on_revoked(partitions)
        except Exception as error:
            log.exception("on_revoked failed", group=self._group)
            self._failure = error

    def gone(self, partitions: Collection[TopicPartition]) -> None:
        if not partitions:
            return
        log.warning(
            "partitions are gone with their topics; what was read of them is delivered all the same",
            group=self._group,
            partitions=[f"{topic}-{number}" for topic, number in partitions],
        )
        self._listener.on_gone(partitions)

    def jump(self, jump: Jump) -> None:
        log.error(
            _SAID[jump.why],
            group=self._group,
            topic=jump.partition.topic,
            partition=jump.partition.partition,
            why=str(jump.why),
            expected=jump.expected,
            read_from=jump.to,
        )
        self._listener.on_jump(jump)

    def fail(self, error: Exception) -> None:
        """The next `poll` has to raise this."""
        self._failure = error

    def raise_failure(self) -> None:
        """Called by `poll`: raises what failed since, once."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise BrokerError(f"group {self._group}: a change of assignment failed: {failure}") from failure
