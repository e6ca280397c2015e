"""Consumer groups of the embedded broker.

They live in this process, since one process owns the file; only their committed
offsets are stored. A change of membership revokes everything from everybody, then assigns anew,
as Kafka's eager protocol does.

Rules:

1. Only a group's rebalance task revokes and assigns, and there is one at a time (`_Group.rebalancing`). Who comes
   or goes meanwhile makes it go round again (`_Group.version`).
2. A member that takes too long to give up its partitions loses them (`late`), and joins again when it is ready.
3. A member's `_open` holds from the end of `on_assigned` to the beginning of `on_revoked`; `_generation` tells
   a read that was under way meanwhile that its records are somebody else's now.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

import structlog

from dispatcher.broker.assignment import (
    RETRY_SUFFIX,
    Extent,
    GuardedListener,
    Plan,
    inherited,
    news,
    plan,
    say_starts,
)
from dispatcher.broker.base import (
    AssignmentListener,
    BrokerUnavailable,
    CommitRefused,
    GroupMemory,
    GroupState,
    Jump,
    MetadataTooLarge,
    NoMemory,
    Position,
    Record,
    Remembered,
    TopicPartition,
    UnreadableBatch,
    Why,
)
from dispatcher.broker.sqlite.file import ReadRequest
from dispatcher.broker.sqlite.store import LogStore, Partition, Topic
from dispatcher.runtime.tasks import Tasks

log = structlog.get_logger(__name__)
M = TypeVar("M")

METADATA_LIMIT = 1 << 20


def assign(
    members: Sequence[tuple[M, Collection[str]]], topics: Mapping[str, int]
) -> list[tuple[M, list[TopicPartition]]]:
    """Deal out the partitions in turn, each to a member that asked for its topic (Kafka's round robin)."""
    shares: list[tuple[M, list[TopicPartition]]] = [(member, []) for member, _ in members]
    turn = 0
    for name in sorted({name for _, wanted in members for name in wanted}):
        for number in range(topics.get(name, 0)):
            while name not in members[turn % len(members)][1]:
                turn += 1
            shares[turn % len(members)][1].append(TopicPartition(name, number))
            turn += 1
    return shares


class _Group:
    """The members of a group."""

    __slots__ = ("members", "name", "rebalancing", "version")

    def __init__(self, name: str) -> None:
        self.name = name
        self.members: list[SqliteConsumer] = []
        self.version = 0  # of the membership
        self.rebalancing = False


class Groups:
    """The groups that have members."""

    def __init__(self, store: LogStore, *, from_latest: bool, rebalance_timeout: float) -> None:
        """`from_latest` is where a group without a committed offset starts; the timeout in seconds."""
        self._store = store
        self._from_latest = from_latest
        self._rebalance_timeout = rebalance_timeout
        self._tasks = Tasks()
        self._groups: dict[str, _Group] = {}

    async def close(self) -> None:
        """Stop every member."""
        for group in list(self._groups.values()):
            for member in list(group.members):
                await member.stop()
        await self._tasks.stop()

    async def readers_of(self, topics: Collection[str], suffix: str) -> Mapping[str, GroupState]:
        """The groups whose names end in `suffix` and that have committed offsets on these topics."""
        keys = {
            partition.id: partition.key
            for name in topics
            if name in self._store.topics
            for partition in self._store.topics[name].partitions
        }
        return {
            group: GroupState(
                {keys[id_]: position for id_, position in committed.items() if id_ in keys},
                group in self._groups,
            )
            for group, committed in (await self._store.all_committed()).items()
            if group.endswith(suffix) and keys.keys() & committed.keys()
        }

    def join(self, member: SqliteConsumer) -> None:
        group = self._groups.get(member.group)
        if group is None:
            group = self._groups[member.group] = _Group(member.group)
        group.members.append(member)
        self._change(group)

    def leave(self, member: SqliteConsumer) -> None:
        group = self._groups.get(member.group)
        if group is None or member not in group.members:
            return
        group.members.remove(member)
        if group.members:
            self._change(group)
        else:
            del self._groups[member.group]

    def _change(self, group: _Group) -> None:
        group.version += 1
        if not group.rebalancing:
            group.rebalancing = True
            self._tasks.start(self._rebalance(group), f"rebalance {group.name}")

    async def _rebalance(self, group: _Group) -> None:
        """Revoke everything, assign everything, until nobody has come or gone meanwhile."""
        try:
            settled = -1
            while settled != group.version:
                version = group.version
                await self._revoke_all(group)
                try:
                    plans = await self._plan(group)
                except BrokerUnavailable as error:
                    log.warning(
                        "can't read committed offsets, trying again", error=str(error), group=group.name
                    )
                    await asyncio.sleep(1.0)
                    continue
                if version == group.version:
                    await self._assign_all(group, plans)
                    settled = version
        finally:
            group.rebalancing = False

    async def _plan(self, group: _Group) -> dict[SqliteConsumer, Plan]:
        """Where each member starts with whatever it may be given; committed, where it isn't."""
        committed = await self._store.committed(group.name)
        plans: dict[SqliteConsumer, Plan] = {}
        rows: dict[int, Position] = {}
        for member in group.members:
            topics = [self._store.topics[name] for name in sorted(member.topics)]
            partitions = [partition for topic in topics for partition in topic.partitions]
            ours = {each.key: committed[each.id] for each in partitions if each.id in committed}
            took_over: Mapping[TopicPartition, Position] = {}
            if member.own and not ours and member.memory.topics() is None:
                took_over = inherited(group.name, await self.readers_of(member.topics, RETRY_SUFFIX))
            remembered = member.memory.topics()
            plans[member] = found = plan(
                _shapes(topics),
                {**took_over, **ours},
                {each.key: Extent(each.start, each.end) for each in partitions},
                remembered or {},
                from_latest=self._from_latest and not (member.own or ours or remembered is not None),
            )
            commits = {**took_over, **found.commits}
            rows |= {each.id: commits[each.key] for each in partitions if each.key in commits}
            committed |= rows  # what the next one finds
        if rows:
            say_starts(group.name, {self._store.key_of(id_): at for id_, at in rows.items()})
            try:
                await self._store.commit(group.name, list(rows.items()))
            except BrokerUnavailable as error:
                if self._from_latest:
                    raise
                # It is decided alike the next time; a full disk must not keep what is there from being read.
                log.warning("can't commit where reading begins", error=str(error), group=group.name)
        return plans

    async def _assign_all(self, group: _Group, plans: Mapping[SqliteConsumer, Plan]) -> None:
        members = [(member, member.topics) for member in group.members if not member.revoking]
        sizes = {name: len(topic.partitions) for name, topic in self._store.topics.items()}
        await asyncio.gather(
            *(
                member.take(
                    {
                        self._store.topics[name].partitions[number]: plans[member].starts[
                            TopicPartition(name, number)
                        ]
                        for name, number in share
                    },
                    plans[member],
                )
                for member, share in assign(members, sizes)
            )
        )

    async def _revoke_all(self, group: _Group) -> None:
        revoking = [
            self._tasks.start(self._revoke(group, member), f"revoke {group.name}")
            for member in group.members
            if not member.revoking
        ]
        if not revoking:
            return
        _, late = await asyncio.wait(revoking, timeout=self._rebalance_timeout)
        for task in late:
            # As in Kafka: the group goes on without it, and it joins again when it is ready.
            log.warning(
                "a member is late in giving up its partitions", group=group.name, task=task.get_name()
            )
        for member in group.members:
            if member.revoking:
                member.late = True
                member.drop()

    async def _revoke(self, group: _Group, member: SqliteConsumer) -> None:
        await member.give_up()
        if member.late:
            member.late = False
            if member in group.members:
                self._change(group)


def _shapes(topics: Iterable[Topic]) -> dict[str, Remembered]:
    # Nothing deletes a topic from the file, so none is made anew.
    return {topic.name: Remembered(None, len(topic.partitions)) for topic in topics}


class SqliteConsumer:
    """A member of a group."""

    def __init__(
        self,
        groups: Groups,
        store: LogStore,
        topics: Collection[str],
        group: str,
        listener: AssignmentListener,
        *,
        own: bool = False,
        memory: GroupMemory | None = None,
    ) -> None:
        self.topics = frozenset(topics)
        self.group = group
        self.own = own  # the dispatcher's own topics: their readers begin at the first record
        self.memory = memory or NoMemory()
        self.revoking = False
        self.late = False
        self._groups = groups
        self._store = store
        self._owner = GuardedListener(group, listener)
        self._mine: dict[TopicPartition, Partition] = {}
        self._positions: dict[TopicPartition, int] = {}
        self._handed: dict[
            TopicPartition, int
        ] = {}  # behind the last record that was given out, or the start
        self._ends: dict[TopicPartition, int] = {}  # where they ended when they were assigned
        self._paused: set[TopicPartition] = set()
        self._open = False
        self._stopped = False
        self._generation = 0
        self._turn = 0
        self._wake = asyncio.Event()
        self._joined = asyncio.Event()
        self._problem: str | None = "not started yet"

    @property
    def problem(self) -> str | None:
        return self._problem or self._store.problem

    async def start(self) -> None:
        store = self._store
        while missing := sorted(self.topics - store.topics.keys()):
            self._problem = f"topic {', '.join(missing)} does not exist"
            log.warning("waiting for topics", missing=missing, group=self.group)
            await store.topics_added.wait()
        self._problem = "waiting for partitions"
        self._groups.join(self)
        await self._joined.wait()

    async def stop(self) -> None:
        self._stopped = True
        self.drop()
        self.wake()
        self._problem = "stopped"
        self._groups.leave(self)

    # What the group does with it.

    async def give_up(self) -> None:
        """Tell the listener, then let go of everything."""
        self._open = False
        self._problem = "the group is rebalancing"
        if not self._mine or self._stopped:
            return
        self.revoking = True
        try:
            await self._owner.revoked(frozenset(self._mine))
        finally:
            self.revoking = False
            self.drop()

    def drop(self) -> None:
        """Let go of everything at once; commits are refused from now on."""
        self._open = False
        self._generation += 1
        for partition in self._mine.values():
            partition.readers.discard(self)
        self._mine = {}
        self._positions = {}
        self._handed = {}
        self._paused = set()

    async def take(self, starts: Mapping[Partition, Position], plan: Plan) -> None:
        """These are its partitions now."""
        if self._stopped:
            return
        self.drop()
        self._mine = {partition.key: partition for partition in starts}
        self._positions = {partition.key: plan.reads[partition.key] for partition in starts}
        self._handed = {partition.key: position.offset for partition, position in starts.items()}
        self._ends = {partition.key: partition.end for partition in starts}
        for jump in plan.jumps:
            self._owner.jump(jump)
        if new := news(_shapes([self._store.topics[name] for name in self.topics]), self.memory):
            self.memory.remember(new)
        await self._owner.assigned({partition.key: position for partition, position in starts.items()})
        if self._mine.keys() != {partition.key for partition in starts}:
            return  # stopped meanwhile
        for partition in starts:
            partition.readers.add(self)
        self._open = True
        self._problem = None
        self._joined.set()
        self.wake()

    def wake(self) -> None:
        self._wake.set()

    # What its owner does with it.

    async def poll(self, timeout: float, limit: int) -> Sequence[tuple[TopicPartition, Sequence[Record]]]:
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        while True:
            self._owner.raise_failure()
            if self._stopped:
                return ()
            self._wake.clear()
            pause = deadline - clock()
            if self._open and (requests := self._requests()):
                try:
                    batches = await self._fetch(requests, limit)
                except BrokerUnavailable as error:
                    self._problem = str(error)
                    log.warning("can't read, trying again", error=str(error), group=self.group)
                    pause = min(pause, 1.0)
                else:
                    if batches:
                        return batches
                    continue
            if pause <= 0:
                await asyncio.sleep(0)
                return ()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    def _requests(self) -> list[ReadRequest]:
        """What there is to read, beginning with another partition each time."""
        positions = self._positions
        requests = [
            ReadRequest(partition.id, key, positions[key])
            for key, partition in self._mine.items()
            if positions[key] < partition.end and key not in self._paused
        ]
        if len(requests) > 1:
            self._turn += 1
            first = self._turn % len(requests)
            requests = requests[first:] + requests[:first]
        return requests

    async def _fetch(
        self, requests: Sequence[ReadRequest], limit: int
    ) -> list[tuple[TopicPartition, Sequence[Record]]]:
        generation = self._generation
        fetched = await self._store.fetch(requests, limit)
        if generation != self._generation or not self._open:
            return []
        self._problem = None
        batches: list[tuple[TopicPartition, Sequence[Record]]] = []
        for partition, records, following in fetched:
            if partition in self._paused:
                continue  # since the read began
            start, expected = self._mine[partition].start, self._positions[partition]
            if expected < start:
                self._owner.jump(Jump(partition, Why.RETENTION, expected, start))
            self._positions[partition] = following
            if records:
                self._handed[partition] = records[-1].offset + 1
                batches.append((partition, records))
        return batches

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        self._paused.update(partition for partition in partitions if partition in self._mine)

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        self._paused.difference_update(partitions)
        self.wake()

    async def commit(self, positions: Mapping[TopicPartition, Position]) -> None:
        rows = []
        for key, position in positions.items():
            partition = self._mine.get(key)
            if partition is None:
                raise CommitRefused(f"partition {key[0]}-{key[1]} is not assigned to this member")
            if len(position.metadata.encode()) > METADATA_LIMIT:
                raise MetadataTooLarge(f"commit metadata is limited to {METADATA_LIMIT} bytes")
            rows.append((partition.id, position))
        if rows:
            await self._store.commit(self.group, rows)

    def assignment(self) -> Collection[TopicPartition]:
        return frozenset(self._mine)

    def stuck(self) -> Mapping[TopicPartition, UnreadableBatch]:
        return {}  # a row is read or is an error of the whole file

    def skip(self, partition: TopicPartition) -> None:
        pass

    def lag(self) -> Mapping[TopicPartition, int]:
        return {
            key: max(0, partition.end - max(self._positions[key], partition.start))
            for key, partition in self._mine.items()
        }

    def ends(self) -> Mapping[TopicPartition, int]:
        return self._ends

    def passed(self) -> Mapping[TopicPartition, tuple[int, int]]:
        positions = self._positions
        return {
            key: (behind, positions[key]) for key, behind in self._handed.items() if positions[key] > behind
        }
