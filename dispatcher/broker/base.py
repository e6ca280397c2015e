"""The broker port: where events come from, and where durable writes go.

Two implementations keep it, Kafka (`kafka/`) and one SQLite file (`sqlite/`
likewise), and one contract suite (`tests/broker/test_contract.py`) holds both to it.

Rules, for every implementation:

1. Offsets of a partition only grow. They may have gaps (compaction, transaction markers).
2. A position is the *next* offset to read: committing `Position(7)` means that everything
   below 7 is done with.
3. `poll()` never returns a record of a partition that is paused, revoked or not assigned.
   Pausing moves no position: after `resume()` the next record is the one that would have
   come without the pause.
4. A listener's `on_revoked` ends before another member of the group can be assigned the
   partitions, unless the session was lost or the broker's rebalance timeout went by.
5. `produce()` (and `produce_bulk()`) returns when every message is acknowledged by all in-sync replicas (Kafka) or
   on disk (SQLite). When it raises, any of them may have been written: send again those that were not `acknowledged`
   (`left` of a bulk).
6. Partitions that are added, and a topic that is made anew, are found within `LOOK_INTERVAL` and a rebalance. A topic
   that is missing is said in a consumer's `problem`.
7. A broker that is away is waited for, not an error: `connect()`, `poll()` and `commit()`
   recover by themselves, and `problem` says meanwhile what is wrong.
8. What can't be unpacked costs as little as it can. One record: an `UnreadableRecord` comes in its place, with what could
   be got of it. A whole batch: its partition stands still before it (`stuck()`), is tried again now and then, and goes on
   behind it after `skip()`. The other partitions go on meanwhile.

Errors::

    BrokerError                 something the broker said or did
    ├── BrokerUnavailable       not reachable now; the same call may succeed later
    ├── BrokerRefused           it answered no: credentials, authorization, a bad topic name
    ├── MessageTooLarge         larger than the broker takes; sending it again can't help
    ├── MetadataTooLarge        likewise of the text beside a commit; a shorter one can help
    ├── UnreadableBatch         a stretch of offsets can't be unpacked
    ├── MadeAnew                what was read of a partition is not what it holds
    └── CommitRefused           the partition belongs to somebody else by now
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

LOOK_INTERVAL: Final = 10.0
"""Seconds between two looks at which topics and partitions there are."""


class BrokerError(Exception):
    """Something the broker said or did; the message says what, and what to do."""

    left: Sequence[Entry] | None = None
    """Of a `produce_bulk` that was begun: those that were not acknowledged."""


class BrokerUnavailable(BrokerError):
    """The broker can't be reached now; the same call may succeed later."""


class BrokerRefused(BrokerError):
    """The broker answered no; the same call will not succeed until somebody changes something."""


class MessageTooLarge(BrokerError):
    """The message is larger than the broker accepts; sending it again can't help."""


class MetadataTooLarge(BrokerError):
    """The text beside a commit is longer than the broker accepts: its partition's commit was not made."""


class UnreadableBatch(BrokerError):
    """The records of the offsets from `first` to `last` can't be unpacked, because of `reason`."""

    def __init__(self, first: int, last: int, reason: str, *, skippable: bool = True) -> None:
        """`skippable`: `skip()` leads past it. Not so where the broker itself can't read what follows."""
        super().__init__(f"the batch of offsets {first} to {last} can't be unpacked: {reason}")
        self.first = first
        self.last = last
        self.reason = reason
        self.skippable = skippable

    @property
    def offset(self) -> int:
        """Where reading stands."""
        return self.first

    def ending_before(self, offset: int | None) -> UnreadableBatch:
        """The same, whatever its head says, where something else is known to begin at that offset, behind its first."""
        if offset is None or not self.first < offset <= self.last:
            return self
        return UnreadableBatch(self.first, offset - 1, self.reason, skippable=self.skippable)


class MadeAnew(BrokerError):
    """A partition was cut or its topic made anew: what was read of it is not what it holds."""


class CommitRefused(BrokerError):
    """The commit came too late: the partition has been assigned to another member, or its topic is another one by now."""

    def __init__(self, said: str, partitions: Collection[TopicPartition] | None = None) -> None:
        """`partitions`: those that were not committed, where others were; None: all of them."""
        super().__init__(said)
        self.partitions = partitions


class TopicPartition(NamedTuple):
    """One partition of a topic. Equal to any tuple of the same two values."""

    topic: str
    partition: int


class Position(NamedTuple):
    """A committed position: the next offset to read, and text kept beside it (at most `Broker.metadata_limit` bytes)."""

    offset: int
    metadata: str = ""


class Record(Protocol):
    """One record as it was read, of a partition that its reader knows. aiokafka's records and `StoredRecord` have this shape."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int:
        """Milliseconds since the epoch."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...


class Stretch(NamedTuple):
    """Records of one partition that stand one after another."""

    records: Sequence[Record]
    next: int
    """All that can be read of the partition below this offset, and not below the one that was asked for, is in `records`."""


@dataclass(slots=True)
class StoredRecord:
    """A record of an implementation that brings no class of its own."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()


@dataclass(slots=True)
class UnreadableRecord(StoredRecord):
    """What could be got of a record that can't be unpacked. Bytes of a header's name that are no UTF-8 show as escapes.

    Where its value could not be told from the rest, `value` is all of its bytes.
    """

    problem: str = ""
    """What is wrong with it, in one sentence."""
    raw_headers: Sequence[tuple[bytes, bytes | None]] = ()
    """The headers with their names as they came."""


@dataclass(slots=True)
class Message:
    """One record to write. Without `partition` the key decides, as Kafka's default partitioner does."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()
    partition: int | None = None
    timestamp_ms: int | None = None


def content_size(record: Record | Message) -> int:
    """Bytes of its value, key and headers."""
    size = len(record.value or b"") + len(record.key or b"")
    for name, content in record.headers:
        size += len(name) + len(content or b"")
    return size


Acknowledged = Callable[[Sequence[int]], None]
"""Told which messages of a call are durable, by their numbers. Must not raise."""

Entry = tuple[bytes, bytes, int]
"""Key, value and timestamp (Unix ms) of a record for `produce_bulk`."""


class TopicSpec(NamedTuple):
    """A topic that must exist. Sizes of None leave the broker's default."""

    name: str
    partitions: int | None = None
    replication: int | None = None
    config: Mapping[str, str] = {}
    exact: bool = False
    """One that is there already must have this number of partitions and this `cleanup.policy` too."""


class GroupState(NamedTuple):
    """What a group has committed, and whether it has members now."""

    committed: Mapping[TopicPartition, Position]
    alive: bool


@dataclass(frozen=True, slots=True)
class PartitionInfo:
    """What `dispatcher topics` shows of a partition. Offsets as the broker tells them."""

    partition: int
    earliest: int
    latest: int
    committed: int | None = None


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """What `dispatcher topics` shows of a topic."""

    name: str
    partitions: Sequence[PartitionInfo]
    config: Mapping[str, str] = field(default_factory=dict)


class Remembered(NamedTuple):
    """What is remembered of a topic that a group reads."""

    id: str | None
    """The broker's own name of it, which a topic made anew doesn't have again; None where the broker gives none."""
    partitions: int


class GroupMemory(Protocol):
    """What is remembered of one group beside its offsets, which a broker may forget."""

    def topics(self) -> Mapping[str, Remembered] | None:
        """The topics that the group has begun to read; None for a group that isn't known to have read any."""

    def remember(self, topics: Mapping[str, Remembered]) -> None:
        """Remember these, beside the others; kept soon, and waited for by nobody."""


class NoMemory:
    """Remembers for as long as it lives."""

    def __init__(self) -> None:
        self._topics: dict[str, Remembered] | None = None

    def topics(self) -> Mapping[str, Remembered] | None:
        return self._topics

    def remember(self, topics: Mapping[str, Remembered]) -> None:
        self._topics = {**(self._topics or {}), **topics}


class Why(StrEnum):
    """Why reading a partition goes on at another offset than it had come to."""

    RETENTION = "retention"  # what was next was deleted before it was read
    EXPIRED = "expired"  # the group's offset is gone, though the group has read the partition before
    MADE_ANEW = "made_anew"  # the topic was deleted and made anew
    CUT = "cut"  # the partition ends before the offset: made anew, or cut off by its new leader


class Jump(NamedTuple):
    """Reading a partition goes on at `to`, though `expected` was next (None: nobody knows)."""

    partition: TopicPartition
    why: Why
    expected: int | None
    to: int


class AssignmentListener(Protocol):
    """Told of every change of assignment, before `poll()` returns anything of it."""

    async def on_assigned(self, partitions: Mapping[TopicPartition, Position]) -> None:
        """`partitions` are all that the member has now, each with where reading starts. Of what retention has deleted there,
        `Consumer.passed` tells.
        """

    async def on_revoked(self, partitions: Collection[TopicPartition]) -> None:
        """The member is about to lose these; commits made in here still count."""

    def on_gone(self, partitions: Collection[TopicPartition]) -> None:
        """Their topics are deleted or made anew, so that nobody will read again what was read of these.

        Comes between `on_revoked` and `on_assigned`, with partitions that the member had before.
        """

    def on_jump(self, jump: Jump) -> None:
        """Reading skips or repeats records. Comes before `on_assigned`, or while the partition is assigned."""


class Consumer(Protocol):
    """A member of a consumer group. Owned by one task: only `pause`/`resume`/`commit` may be called beside `poll`."""

    async def start(self) -> None:
        """Join the group. Waits for the broker as long as it takes."""

    async def poll(self, timeout: float, limit: int) -> Sequence[tuple[TopicPartition, Sequence[Record]]]:
        """Batches per partition, in offset order, together at most `limit` records.

        Returns as soon as there is something, at the latest after `timeout` seconds, then
        possibly empty. Must be called again and again, also while everything is paused.
        """

    def pause(self, partitions: Collection[TopicPartition]) -> None: ...

    def resume(self, partitions: Collection[TopicPartition]) -> None: ...

    async def commit(self, positions: Mapping[TopicPartition, Position]) -> None:
        """Commit; raises `CommitRefused`, `MetadataTooLarge` or `BrokerUnavailable`. Partitions not assigned are refused."""

    def assignment(self) -> Collection[TopicPartition]: ...

    def lag(self) -> Mapping[TopicPartition, int]:
        """Records between the last one read and the partition's end, as of the last fetch."""

    def ends(self) -> Mapping[TopicPartition, int]:
        """One past the last record of each assigned partition, as of when it was assigned. Told from `on_assigned` on."""

    def passed(self) -> Mapping[TopicPartition, tuple[int, int]]:
        """Stretches that hold nothing to read, each behind the last record that `poll` gave: its first offset, and one
        past its last. Markers of transactions, what compaction took, and what was deleted before it was read.
        """

    def stuck(self) -> Mapping[TopicPartition, UnreadableBatch]:
        """The assigned partitions whose reading stands before a batch that can't be unpacked."""

    def skip(self, partition: TopicPartition) -> None:
        """Go on behind the batch that the partition is stuck at; nothing where it isn't stuck."""

    @property
    def problem(self) -> str | None:
        """What keeps it from consuming now, in one sentence; None when all is well."""

    async def stop(self) -> None:
        """Leave the group. Doesn't call the listener: commit before."""


class Reader(Protocol):
    """Reads one whole partition, without a group: from its first record on, then following it. Owned by one task."""

    async def start(self) -> None:
        """Find the partition and its end. Waits for the broker, and for the topic, as long as it takes."""

    async def read(self, timeout: float, limit: int) -> Sequence[Record]:
        """The next records, at most `limit`, in offset order; none when nothing came within `timeout` seconds.

        Raises MadeAnew when the partition was cut or made anew: what was read of it is not what it holds.
        Stands before a batch that can't be unpacked, with `problem` saying so, until a record that follows it asks for
        its skip (`core/control/skips.py`).
        """

    @property
    def caught_up(self) -> bool:
        """Whether everything has been read that was there at the start. Stays true."""

    @property
    def problem(self) -> str | None:
        """What keeps it from reading now, in one sentence; None when all is well."""

    async def stop(self) -> None:
        """Read no more."""


class Broker(Protocol):
    """A connection to a broker: factory of consumers, the one producer, and topic administration."""

    async def connect(self) -> None:
        """Return once the broker answers. Keeps trying, logging each failure; raises only BrokerRefused."""

    async def close(self) -> None: ...

    @property
    def problem(self) -> str | None:
        """What is wrong with it now, in one sentence; None when all is well."""

    def warnings(self) -> list[str]:
        """What isn't as it should be with it, while it can be used all the same, a sentence each."""

    async def check_rights(
        self, topics: Mapping[str, Collection[str]], groups: Mapping[str, Collection[str]]
    ) -> None:
        """Look whether we may do all this (READ, WRITE, by names of topics and groups); what is missing is a warning until it isn't."""

    async def ensure_topics(self, topics: Sequence[TopicSpec], *, create: bool) -> Sequence[str]:
        """Create the missing ones, or (not `create`) name them: what is returned is still missing.

        Raises BrokerRefused for an `exact` one that is there and is different.
        """

    async def look(self, topics: Sequence[str]) -> Mapping[str, Remembered]:
        """Those of these topics that exist."""

    async def topics(
        self, group: str | None = None, *, only: Callable[[str], bool] | None = None
    ) -> Sequence[TopicInfo]:
        """Every topic that isn't the broker's own, with the group's committed offsets; those that `only` names."""

    async def readers_of(self, topics: Collection[str], suffix: str) -> Mapping[str, GroupState]:
        """The groups whose names end in `suffix` and that have committed offsets on these topics."""

    async def positions_of(self, group: str, topic: str) -> Mapping[TopicPartition, Position]:
        """What the group has committed for the topic's partitions, with the text beside it. Partitions without a commit are left out."""

    def consumer(
        self,
        topics: Collection[str],
        group: str,
        listener: AssignmentListener,
        *,
        own: bool = False,
        memory: GroupMemory | None = None,
    ) -> Consumer:
        """A member of `group`, not started yet.

        Where reading starts is committed with the assignment. `kafka.offset_reset: latest` holds for a group that has
        neither a commit nor a `memory`; any other begins what it has no commit for at its first record.

        `own` is for topics that the dispatcher itself writes: a group without commits begins at their first
        record whatever `kafka.offset_reset` says, and a resumed partition is read again at once.
        """

    def reader(self, topic: str, partition: int = 0) -> Reader:
        """A reader of the whole partition, not started yet."""

    async def produce(self, messages: Sequence[Message], acknowledged: Acknowledged | None = None) -> None:
        """Write all of them durably, batched; order is kept within a partition of one call.

        `acknowledged` is called with the numbers (from 0 on) of messages that are durable, before this returns or raises.
        With it the call waits for as long as the broker takes to answer. When it raises, nothing of it is under way any
        more: what was not acknowledged is not written, or was in the one batch of its partition whose answer was lost.
        """

    async def produce_bulk(self, topic: str, entries: Sequence[Entry]) -> None:
        """Write all of them as `produce` would, for less: many small ones of one topic.

        It goes a way of its own, so that however much it is, and whatever is wrong with its topic, no `produce` waits.
        """

    async def produce_one(self, topic: str, entry: Entry) -> tuple[int, int]:
        """Write one record, of up to 1 MB, durably, the way of `produce_bulk`; the partition and the offset where it stands."""

    @property
    def metadata_limit(self) -> int:
        """Bytes of text that may be kept beside a committed position, unless the broker is configured otherwise."""

    async def read(self, partition: TopicPartition, offset: int) -> Record | None:
        """The one record there; None if it has been deleted or isn't there yet. Raises UnreadableBatch."""

    async def read_from(self, partition: TopicPartition, offset: int, limit: int, size: int) -> Stretch:
        """Records from the offset on, at most `limit`, and some `size` bytes of them; one at least if there is any.

        Of a transaction only what was committed: nothing of an aborted one, and nothing behind the first that is still open.

        Raises BrokerUnavailable, or BrokerRefused. It waits for no record that isn't there yet, and for no other call.
        """


def creation_command(spec: TopicSpec) -> str:
    """What makes the topic on Kafka, to be pasted."""
    options = [
        *([] if spec.partitions is None else [f"--partitions {spec.partitions}"]),
        *([] if spec.replication is None else [f"--replication-factor {spec.replication}"]),
        *(f"--config {name}={value}" for name, value in spec.config.items()),
    ]
    return " ".join(["kafka-topics.sh --bootstrap-server ... --create --topic", spec.name, *options])


def check_exact(spec: TopicSpec, partitions: int, config: Mapping[str, str]) -> None:
    """Raise BrokerRefused unless the topic is as its `exact` spec says. A setting that isn't known is let pass."""
    name = spec.name
    if spec.partitions is not None and partitions != spec.partitions:
        raise BrokerRefused(
            f"topic {name} has {partitions} partitions; it must have {spec.partitions}: delete it, and it is made anew"
            " (`dispatcher topics --create`); what is in it is lost with that, so copy it first if it was in use"
        )
    wanted, found = spec.config.get("cleanup.policy"), config.get("cleanup.policy")
    if wanted is not None and found is not None and found != wanted:
        raise BrokerRefused(
            f"topic {name} has cleanup.policy {found}; with anything but {wanted} its records get lost: set it with"
            f" `kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config cleanup.policy={wanted}`"
        )
