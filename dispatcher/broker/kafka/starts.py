"""Where a member of a group starts to read, asked of Kafka and committed there (`broker/assignment.py` says by which rules).

The library waits for its rebalance listener without sending heartbeats, so everything here is bounded by the session.
One partition that can't be asked for its offsets holds none of the others up: with a commit it starts there unchecked, and
without one it waits (`unstarted`) until it can be asked.

Rules:

1. `read` are the topics as they were at the last assignment. Whether a topic is gone or another one is decided against it.
2. `stale` and `cut` partitions are of a topic that isn't there any more, or end before their position. Nothing of them is
   committed any more; the next assignment starts them anew.
3. A new start of a cut partition is committed before the group is asked to share out its partitions (`begin_anew`): whoever
   gets the partition begins there.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition as KafkaPartition, errors
from aiokafka.structs import OffsetAndMetadata

from dispatcher.broker.assignment import Extent, Plan, absent, is_another, plan, say_starts, vanished
from dispatcher.broker.base import GroupMemory, Jump, Position, Remembered, TopicPartition, Why
from dispatcher.broker.kafka.client import reason_of
from dispatcher.broker.kafka.wire.metadata import TopicsSeen
from dispatcher.broker.kafka.wire.rights import READ, missing_rights

log = structlog.get_logger(__name__)

_ASK_LIMIT: Final = 3.0  # seconds for the offsets of the partitions of one broker
_ROUNDS: Final = 2  # times that they are asked for, as another broker may lead a partition by then


class GroupCluster(Protocol):
    """What is asked of the cluster."""

    async def survey(self, topics: Sequence[str], known: Mapping[str, Remembered]) -> TopicsSeen:
        """What is there of topics of which something is known."""

    async def has_commits(self, group: str, topics: Collection[str]) -> bool:
        """Whether the group has committed anything on these topics."""

    async def inherited(self, group: str, topics: Collection[str]) -> Mapping[TopicPartition, Position]:
        """What a group of another name has committed on these topics, for a group that has begun none of them."""


class Taken(NamedTuple):
    """What a member reads after an assignment."""

    starts: dict[TopicPartition, Position]
    reads: dict[TopicPartition, int]
    """Where reading begins, of those where that isn't at the start: retention has deleted what is between."""
    waiting: frozenset[TopicPartition]
    """Assigned, and not to be read yet."""
    gone: set[TopicPartition]
    """Those it had before whose topics are gone, or that were cut."""
    jumps: list[Jump]
    ends: dict[TopicPartition, int]
    """One past the last offset of each, where that is known."""


class GroupStarts:
    """The starts of one member, over all of its assignments."""

    def __init__(
        self,
        cluster: GroupCluster,
        group: str,
        topics: Sequence[str],
        memory: GroupMemory,
        *,
        session: float,
        from_latest: bool,
        own: bool,
    ) -> None:
        """`session`: seconds without a heartbeat after which the group gives a member up."""
        self._cluster = cluster
        self._group = group
        self._topics = topics
        self._memory = memory
        self._limit = min(_ASK_LIMIT, session / 8)
        self._from_latest = from_latest
        self._own = own
        self.read: Mapping[str, Remembered] = {}
        self.stale: set[str] = set()
        self.cut: set[TopicPartition] = set()
        self.unstarted: frozenset[TopicPartition] = frozenset()
        self.problem: str | None = None
        """What keeps topics from being read, in one sentence."""
        self._had: frozenset[TopicPartition] = frozenset()  # before the last revocation
        self._moved: set[TopicPartition] = set()  # cut ones whose new start is committed
        self._denied: set[str] = set()  # topics on which this user may commit nothing
        # Starts of partitions that have no commit yet: of other members', or of another group's that this one was.
        self._decided: dict[TopicPartition, Position] = {}
        self._past: Mapping[str, Remembered] | None = None  # what the group has read, as of before joining
        self._fresh = False  # the group had never run when this member joined it first

    async def look_back(self) -> None:
        """See whether the group has run before: once it is joined, the commits of members that came just now say so too."""
        if self.read:
            return
        remembered = self._memory.topics()
        self._past = remembered or {}
        self._fresh = False
        if remembered is None and self._own:
            self._decided = dict(await self._cluster.inherited(self._group, self._topics))
        elif remembered is None and self._from_latest:
            self._fresh = not await self._cluster.has_commits(self._group, self._topics)

    def given_up(self, partitions: frozenset[TopicPartition]) -> None:
        """The member has lost these."""
        self._had = partitions

    def committable(self, partition: TopicPartition) -> bool:
        """Whether what was read of it is of the topic that is there (rule 2)."""
        return partition.topic not in self.stale and partition not in self.cut

    async def survey(self) -> TopicsSeen:
        """The topics as they are."""
        seen = await self._cluster.survey(self._topics, self.read)
        self._say_absent(seen)
        return seen

    def _say_absent(self, seen: TopicsSeen) -> None:
        denied = sorted(seen.denied | self._denied)
        self.problem = absent([topic for topic in self._topics if topic not in seen.denied], seen.there)
        if denied and self.problem is None:
            self.problem = f"topic {', '.join(denied)}: {reason_of(errors.TopicAuthorizationFailedError())}"

    def others(self, mine: Collection[TopicPartition], seen: TopicsSeen) -> set[str]:
        """Which topics of these partitions are gone, or are others than those that were read."""
        return {key.topic for key in vanished(mine, self.read, seen.there) if key.topic not in seen.denied}

    async def take(self, consumer: AIOKafkaConsumer, assigned: Collection[KafkaPartition]) -> Taken:
        """Where reading starts with these; committed where it isn't. Raises KafkaError and BrokerError."""
        known = {**(self._memory.topics() or {}), **self.read}
        past = known if self._past is None else self._past
        partitions = frozenset(TopicPartition(*each) for each in assigned)
        self._denied = set()
        seen = await self._cluster.survey(self._topics, _at_least(known, partitions))
        found = await self._starts_of(consumer, seen.there, partitions, past)
        starts = {key: found.starts[key] for key in partitions if key in found.starts}
        gone = {
            key
            for key in (*vanished(self._had, self.read, seen.there), *(self.cut & self._had))
            if key.topic not in seen.denied
        }
        self.read = {**{name: self.read[name] for name in seen.denied & self.read.keys()}, **seen.there}
        self._decided = {key: at for key, at in found.commits.items() if key not in starts}
        self._past, self._fresh = None, False
        self._had, self.cut, self._moved, self.stale = frozenset(), set(), set(), set()
        self.unstarted = partitions.difference(starts)
        self._say_absent(seen)
        reads = {key: found.reads[key] for key, at in starts.items() if found.reads.get(key, 0) > at.offset}
        ends = {key: found.ends[key] for key in starts if key in found.ends}
        return Taken(starts, reads, self.unstarted, gone, found.jumps, ends)

    async def ready(self, consumer: AIOKafkaConsumer, seen: TopicsSeen) -> bool:
        """Whether some of `unstarted` can be started by now. Raises KafkaError."""
        there = {
            key
            for key in self.unstarted
            if key.topic in seen.there and key.partition < seen.there[key.topic].partitions
        }
        if not there:
            return False
        denied = sorted({key.topic for key in there} & self._denied)
        if denied and await missing_rights(consumer._client, dict.fromkeys(denied, (READ,)), {}, ""):
            there = {key for key in there if key.topic not in denied}
        return bool(await self._extents(consumer, there))

    async def begin_anew(
        self, consumer: AIOKafkaConsumer, positions: Mapping[TopicPartition, int]
    ) -> list[Jump]:
        """Commit where the partitions that were cut start anew (rule 3). Returns what is to be told of it.

        `positions`: where reading them had come to. Raises KafkaError.
        """
        extents = await self._extents(consumer, positions)
        starts = {key: Position(extents[key].earliest) for key in positions if key in extents}
        if starts:
            await _commit(consumer, starts)
        self._moved.update(starts)
        return [Jump(key, Why.CUT, positions[key], at.offset) for key, at in starts.items()]

    async def _starts_of(
        self,
        consumer: AIOKafkaConsumer,
        topics: Mapping[str, Remembered],
        mine: Collection[TopicPartition],
        past: Mapping[str, Remembered],
    ) -> Plan:
        """Where reading starts with `mine`, as far as that can be told, committed where it isn't; and with what has no
        commit of the `topics`' others.
        """
        every = [
            TopicPartition(name, number)
            for name, topic in topics.items()
            for number in range(topic.partitions)
        ]
        if not every:
            return Plan({}, {}, {}, [], {})
        found: Mapping[Any, Any] = await consumer._coordinator.fetch_committed_offsets(
            [KafkaPartition(*key) for key in every]
        )
        committed = {
            TopicPartition(*key): Position(at.offset, at.metadata or "") for key, at in found.items()
        }
        # Of what others have, only what may come to this member without a commit, and where it matters when that is.
        wanted = [
            key
            for key in every
            if key in mine or (key not in committed and (self._fresh or key in self._decided))
        ]
        extents = await self._extents(consumer, wanted)
        cut = self.cut - self._moved
        standing = {key: at for key, at in self._decided.items() if key in extents and key not in committed}
        result = plan(topics, {**standing, **committed}, extents, past, from_latest=self._fresh, cut=cut)
        commits = {**standing, **result.commits}
        ours = {key: at for key, at in commits.items() if key in mine}
        starts = dict(result.starts)
        for key in await self._not_committed(consumer, ours):
            del starts[key]
            del ours[key]
        if ours:
            say_starts(self._group, ours)
        for key in wanted:
            if key in mine and key not in extents and key in committed and key not in cut:
                before = past.get(key.topic)
                if before is None or not is_another(before, topics[key.topic]):
                    starts[key] = committed[key]
        jumps = [jump for jump in result.jumps if jump.partition in mine and jump.partition in starts]
        return Plan(starts, result.reads, commits, jumps, result.ends)

    async def _not_committed(
        self, consumer: AIOKafkaConsumer, starts: Mapping[TopicPartition, Position]
    ) -> list[TopicPartition]:
        """Commit these; returns those that this user may not commit."""
        if not starts:
            return []
        try:
            await _commit(consumer, starts)
        except errors.TopicAuthorizationFailedError as error:
            # The library raises it when everything else is committed.
            self._denied = set(error.args[0])
            return [key for key in starts if key.topic in self._denied]
        return []

    async def _extents(
        self, consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, Extent]:
        """What each of these holds, as far as its leader says so in time."""
        found: dict[TopicPartition, Extent] = {}
        leader_of = consumer._client.cluster.leader_for_partition

        async def asked(keys: Sequence[KafkaPartition]) -> None:
            try:
                async with asyncio.timeout(self._limit):
                    first, end = await asyncio.gather(
                        consumer.beginning_offsets(keys), consumer.end_offsets(keys)
                    )
            except (errors.KafkaError, OSError, TimeoutError):
                return
            found.update((TopicPartition(*key), Extent(first[key], end[key])) for key in keys)

        left = list(partitions)
        for _ in range(_ROUNDS):
            # The library answers when all of them have: by broker, so that none waits for another one's.
            by_leader: defaultdict[Any, list[KafkaPartition]] = defaultdict(list)
            for key in left:
                partition = KafkaPartition(*key)
                by_leader[leader_of(partition)].append(partition)
            await asyncio.gather(*map(asked, by_leader.values()))
            left = [key for key in left if key not in found]
            if not left:
                break
        if left:
            log.warning(
                "some partitions don't tell their offsets: they have no leader, or it can't be reached",
                group=self._group,
                partitions=[f"{topic}-{number}" for topic, number in left],
            )
        return found


def _at_least(
    known: Mapping[str, Remembered], partitions: Collection[TopicPartition]
) -> Mapping[str, Remembered]:
    """What is known of the topics, with the partitions that the group has just shared out."""
    found = dict(known)
    for topic, number in partitions:
        before = found.get(topic)
        if before is None or before.partitions <= number:
            found[topic] = Remembered(None if before is None else before.id, number + 1)
    return found


async def _commit(consumer: AIOKafkaConsumer, positions: Mapping[TopicPartition, Position]) -> None:
    offsets = {
        KafkaPartition(*key): OffsetAndMetadata(at.offset, at.metadata) for key, at in positions.items()
    }
    subscription = consumer._subscription.subscription
    if subscription is None or subscription.assignment is None:
        raise errors.IllegalStateError("the assignment was lost")
    await consumer._coordinator.commit_offsets(subscription.assignment, offsets)


async def out_of_range(
    consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition], handed: Mapping[TopicPartition, int]
) -> tuple[dict[TopicPartition, tuple[int, int]], list[TopicPartition]]:
    """What to do where a fetch said that its offset is not there: `(expected, first)` of partitions that
    retention has passed, where reading goes on by now, and those that end before their position.
    """
    keys = [KafkaPartition(*key) for key in partitions]
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
