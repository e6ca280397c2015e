"""A broker and a transport in memory, for tests of the engine on virtual time.

They keep the ports' rules and nothing else; the real ones are held to the same rules by their
own suites, and the end-to-end tests put the real ones together.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from dispatcher.broker.base import (
    Acknowledged,
    AssignmentListener,
    BrokerError,
    CommitRefused,
    Entry,
    GroupMemory,
    GroupState,
    Message,
    PartitionInfo,
    Position,
    Record,
    Remembered,
    StoredRecord,
    Stretch,
    TopicInfo,
    TopicPartition,
    TopicSpec,
    UnreadableBatch,
)
from dispatcher.core.attempt.encode import Noted
from dispatcher.core.event.decode import Event
from dispatcher.core.request.netguard import Guard
from dispatcher.core.request.results import Failure, Reason, Response, Result
from dispatcher.core.request.urls import Origin
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.core.subscription.index import Index
from dispatcher.core.subscription.model import ClientCertificate, Status, Subscription
from dispatcher.transport.base import Exchange


class MemoryConsumer:
    """One member, which has every partition that `MemoryBroker.assign` gives it."""

    def __init__(self, broker: MemoryBroker, topics: Collection[str], listener: AssignmentListener) -> None:
        self._broker = broker
        self._topics = topics
        self._listener = listener
        self._positions: dict[TopicPartition, int] = {}
        self._mine: frozenset[TopicPartition] = frozenset()
        self._ends: dict[TopicPartition, int] = {}
        self.paused: set[TopicPartition] = set()
        self.polls = 0
        self.stopped = False
        self.problem: str | None = None

    async def start(self) -> None:
        await self.assign(self._broker.partitions_of(self._topics))

    async def assign(self, partitions: Collection[TopicPartition]) -> None:
        """Rebalance as Kafka's eager protocol does: everything is revoked, pauses and positions are lost."""
        if self._positions:
            await self._listener.on_revoked(list(self._positions))
        self._positions.clear()
        self.paused.clear()
        notes = self._broker.notes
        committed = {p: Position(self._broker.committed.get(p, 0), notes.get(p, "")) for p in partitions}
        self._mine = frozenset(committed)
        self._ends = {p: len(self._broker.log[p]) for p in committed}
        await self._listener.on_assigned(committed)
        self._positions = {p: position.offset for p, position in committed.items()}
        self._broker.changed.set()

    def passed(self) -> Mapping[TopicPartition, tuple[int, int]]:
        return {}

    def ends(self) -> Mapping[TopicPartition, int]:
        return self._ends

    async def poll(self, timeout: float, limit: int) -> Sequence[tuple[TopicPartition, Sequence[Record]]]:
        self.polls += 1
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            batches = []
            for partition, position in self._positions.items():
                end = position + limit
                batch = self._broker.unreadable.get(partition)
                if batch is not None and position <= batch.first:
                    end = min(end, batch.first)
                records = self._broker.log[partition][position:end]
                if records and partition not in self.paused:
                    limit -= len(records)
                    self._positions[partition] = position + len(records)
                    batches.append((partition, records))
            left = deadline - asyncio.get_running_loop().time()
            if batches or left <= 0:
                return batches
            self._broker.changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._broker.changed.wait()
            except TimeoutError:
                return []

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        self.paused |= set(partitions)

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        self.paused -= set(partitions)
        self._broker.changed.set()

    async def commit(self, positions: Mapping[TopicPartition, Position]) -> None:
        if self._broker.commit_errors:
            raise self._broker.commit_errors.pop(0)
        if not positions.keys() <= self._mine:
            raise CommitRefused("not assigned")
        for partition, position in positions.items():
            self._broker.committed[partition] = position.offset
            self._broker.notes[partition] = position.metadata
            self._broker.commits.append((partition, position.offset))

    def assignment(self) -> Collection[TopicPartition]:
        return list(self._positions)

    def stuck(self) -> Mapping[TopicPartition, UnreadableBatch]:
        return {
            p: batch for p, batch in self._broker.unreadable.items() if self._positions.get(p) == batch.first
        }

    def skip(self, partition: TopicPartition) -> None:
        if (batch := self.stuck().get(partition)) is not None:
            self._positions[partition] = batch.last + 1
            self._broker._wake()

    def lag(self) -> Mapping[TopicPartition, int]:
        return {p: len(self._broker.log[p]) - n for p, n in self._positions.items()}

    async def stop(self) -> None:
        self.stopped = True


class MemoryReader:
    """Reads a partition of a `MemoryBroker`."""

    def __init__(self, broker: MemoryBroker, partition: TopicPartition) -> None:
        self._broker = broker
        self._partition = partition
        self._position = self._end = 0
        self.wake = asyncio.Event()
        self.caught_up = False
        self.problem: str | None = None
        self.error: Exception | None = None  # raised by the next read

    async def start(self) -> None:
        self._end = len(self._broker.log[self._partition])
        self.caught_up = not self._end

    async def read(self, timeout: float, limit: int) -> Sequence[Record]:
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            self.wake.clear()
            if self._broker.read_errors:
                raise self._broker.read_errors.pop(0)
            if self.error is not None:
                raise self.error
            records = self._broker.log[self._partition][self._position : self._position + limit]
            left = deadline - asyncio.get_running_loop().time()
            if records or left <= 0:
                self._position += len(records)
                self.caught_up = self._position >= self._end
                return records
            try:
                async with asyncio.timeout(left):
                    await self.wake.wait()
            except TimeoutError:
                return ()

    async def stop(self) -> None:
        self._broker.readers.remove(self)


class MemoryBroker:
    """Topics as lists. `produce_errors` are raised by the next calls of `produce`, in turn."""

    def __init__(self, *partitions: TopicPartition) -> None:
        self.initial = partitions or (TopicPartition("events", 0),)
        self.log: defaultdict[TopicPartition, list[StoredRecord]] = defaultdict(list)
        self.committed: dict[TopicPartition, int] = {}
        self.notes: dict[TopicPartition, str] = {}
        self.commits: list[tuple[TopicPartition, int]] = []
        self.produced: list[Message] = []
        self.produce_errors: list[BrokerError] = []
        self.commit_errors: list[BrokerError] = []
        self.unreadable: dict[TopicPartition, UnreadableBatch] = {}
        self.damaged: dict[
            TopicPartition, UnreadableBatch
        ] = {}  # likewise, only since consumers have read it
        """Batches that can't be unpacked: reading stands before them. `log` has something at their offsets."""
        self.readers: list[MemoryReader] = []
        self.read_errors: list[BrokerError] = []
        self.bulk: list[tuple[str, bytes, bytes, int]] = []
        self.bulk_errors: list[BrokerError] = []
        self.ranges: list[tuple[TopicPartition, int, int]] = []  # what `read_from` was asked for
        self.begins: defaultdict[TopicPartition, int] = defaultdict(int)  # what retention has left
        self.changed = asyncio.Event()
        self.consumers: list[MemoryConsumer] = []
        self.problem: str | None = None
        self.metadata_limit = 4096

    def append(
        self,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]] = (),
        *,
        key: bytes | None = None,
        partition: TopicPartition | None = None,
        timestamp: int = 0,
    ) -> int:
        """Write one record; returns its offset."""
        where = partition or self.initial[0]
        log = self.log[where]
        log.append(StoredRecord(len(log), timestamp, key, value, headers))
        self._wake()
        return len(log) - 1

    def _wake(self) -> None:
        self.changed.set()
        for reader in self.readers:
            reader.wake.set()

    async def connect(self) -> None: ...

    async def close(self) -> None: ...

    def warnings(self) -> list[str]:
        return []

    async def check_rights(
        self, topics: Mapping[str, Collection[str]], groups: Mapping[str, Collection[str]]
    ) -> None: ...

    async def ensure_topics(self, topics: Sequence[TopicSpec], *, create: bool) -> Sequence[str]:
        return []

    async def topics(
        self, group: str | None = None, *, only: Callable[[str], bool] | None = None
    ) -> Sequence[TopicInfo]:
        found: dict[str, list[PartitionInfo]] = {}
        for partition, log in sorted(self.log.items()):
            if only is None or only(partition.topic):
                info = PartitionInfo(partition.partition, self.begins[partition], len(log))
                found.setdefault(partition.topic, []).append(info)
        return [TopicInfo(name, partitions) for name, partitions in found.items()]

    async def look(self, topics: Sequence[str]) -> Mapping[str, Remembered]:
        return {topic: Remembered(None, 1) for topic in topics}

    async def positions_of(self, group: str, topic: str) -> Mapping[TopicPartition, Position]:
        return {
            p: Position(offset, self.notes.get(p, ""))
            for p, offset in self.committed.items()
            if p.topic == topic
        }

    async def readers_of(self, topics: Collection[str], suffix: str) -> Mapping[str, GroupState]:
        return {}

    def partitions_of(self, topics: Collection[str]) -> Sequence[TopicPartition]:
        """The given ones, and one partition of every other topic."""
        found = [p for p in self.initial if p.topic in topics]
        named = {p.topic for p in self.initial}
        return found + [TopicPartition(topic, 0) for topic in topics if topic not in named]

    def consumer(
        self,
        topics: Collection[str],
        group: str,
        listener: AssignmentListener,
        *,
        own: bool = False,
        memory: GroupMemory | None = None,
    ) -> MemoryConsumer:
        consumer = MemoryConsumer(self, topics, listener)
        self.consumers.append(consumer)
        return consumer

    def reader(self, topic: str, partition: int = 0) -> MemoryReader:
        self.readers.append(MemoryReader(self, TopicPartition(topic, partition)))
        return self.readers[-1]

    async def produce(self, messages: Sequence[Message], acknowledged: Acknowledged | None = None) -> None:
        await asyncio.sleep(0.001)
        if self.produce_errors:
            raise self.produce_errors.pop(0)
        self.produced += messages
        for message in messages:
            log = self.log[TopicPartition(message.topic, 0)]
            log.append(
                StoredRecord(len(log), message.timestamp_ms or 0, message.key, message.value, message.headers)
            )
        if acknowledged is not None:
            acknowledged(range(len(messages)))
        self._wake()

    async def produce_bulk(self, topic: str, entries: Sequence[Entry]) -> None:
        await asyncio.sleep(0.001)
        if self.bulk_errors:
            raise self.bulk_errors.pop(0)
        self.bulk += [(topic, *entry) for entry in entries]

    async def produce_one(self, topic: str, entry: Entry) -> tuple[int, int]:
        await asyncio.sleep(0.001)
        if self.bulk_errors:
            raise self.bulk_errors.pop(0)
        key, value, timestamp = entry
        log = self.log[TopicPartition(topic, 0)]
        log.append(StoredRecord(len(log), timestamp, key, value))
        return 0, len(log) - 1

    async def read(self, partition: TopicPartition, offset: int) -> Record | None:
        batch = self.unreadable.get(partition)
        if batch is not None and batch.first <= offset <= batch.last:
            raise batch
        log = self.log[partition]
        return log[offset] if self.begins[partition] <= offset < len(log) else None

    async def read_from(self, partition: TopicPartition, offset: int, limit: int, size: int) -> Stretch:
        await asyncio.sleep(0.002)
        if self.read_errors:
            raise self.read_errors.pop(0)
        self.ranges.append((partition, offset, limit))
        found = self.log[partition][offset : offset + limit]
        if (batch := self.damaged.get(partition)) is not None and offset <= batch.last:
            if offset >= batch.first:
                raise batch
            found = found[: batch.first - offset]
        kept = [record for record in found if record.offset >= self.begins[partition]]
        return Stretch(kept, max(offset + len(found), min(offset, len(self.log[partition]))))


Answer = Callable[[Origin, Exchange], tuple[float, Result] | None]
"""Seconds until the result, and the result; None for never (until the transport is closed)."""


class ScriptedPool:
    """What the transport says that carries an exchange: it takes the next one too."""

    def __init__(
        self, transport: ScriptedTransport, origin: Origin, certificate: ClientCertificate | None
    ) -> None:
        self.transport = transport
        self.origin = origin
        self.certificate = certificate
        self.dropped = False

    def send(self, exchange: Exchange) -> None:
        assert not self.dropped
        self.transport.carry(self.origin, exchange)

    def prefetch(self) -> int:
        return 0


class ScriptedTransport:
    """Answers as its script says, by virtual time; keeps what was sent and how much at once."""

    def __init__(self, answer: Answer | None = None) -> None:
        self.answer: Answer = answer or (lambda _origin, _exchange: (0.001, Response(200)))
        self.sent: list[tuple[float, Origin, bytes]] = []
        self.busy: defaultdict[Origin, int] = defaultdict(int)
        self.peak: defaultdict[Origin, int] = defaultdict(int)
        self.pools: list[ScriptedPool] = []  # one for each exchange that was sent without saying by which
        self._open: list[tuple[Origin, Exchange]] = []
        self._loop = asyncio.get_running_loop()

    def send(
        self, origin: Origin, exchange: Exchange, certificate: ClientCertificate | None = None
    ) -> ScriptedPool:
        self.pools.append(pool := ScriptedPool(self, origin, certificate))
        pool.send(exchange)
        return pool

    def carry(self, origin: Origin, exchange: Exchange) -> None:
        assert exchange.request.startswith(b"POST ")
        assert exchange.deadline > self._loop.time()
        self.sent.append((self._loop.time(), origin, exchange.request))
        self.busy[origin] += 1
        self.peak[origin] = max(self.peak[origin], self.busy[origin])
        self._open.append((origin, exchange))
        answer = self.answer(origin, exchange)
        if answer is not None:
            self._loop.call_later(answer[0], self._done, origin, exchange, answer[1])

    def _done(self, origin: Origin, exchange: Exchange, result: Result) -> None:
        if (origin, exchange) in self._open:
            self._open.remove((origin, exchange))
            self.busy[origin] -= 1
            exchange.done(result)

    def end(self, result: Callable[[bytes], Result]) -> None:
        """Give everything that is under way its result now, by its request."""
        for origin, exchange in self._open[:]:
            self._done(origin, exchange, result(exchange.request))

    async def close(self) -> None:
        self.end(lambda _: Failure(Reason.CANCELLED))


class FixedRegistry:
    """The engine's view of a registry: a snapshot, and disabling."""

    def __init__(self, *subscriptions: Subscription) -> None:
        self.index = Index(subscriptions)
        self.disabled: list[tuple[str, str]] = []
        self.failures: dict[str, float] = {}
        self.on_status: Callable[[str], None] | None = None

    def failing(self, id: str) -> float | None:  # noqa: A002 - as the registry has it
        return self.failures.get(id)

    def note_failing(self, id: str, since: float) -> None:  # noqa: A002 - as the registry has it
        self.failures[id] = min(since, self.failures.get(id, since))

    def note_recovered(self, id: str) -> None:  # noqa: A002 - as the registry has it
        self.failures.pop(id, None)

    def disable(self, id: str, reason: str) -> None:  # noqa: A002 - as the registry has it
        self.disabled.append((id, reason))
        found = self.index.get(id)
        assert found is not None
        self.index = self.index.replaced(found.with_status(Status.DISABLED, reason))


def subscription(
    id: str = "sub_1",  # noqa: A002 - the field's name
    url: str = "http://endpoint.test/hook",
    **fields: Any,
) -> Subscription:
    """A subscription to everything, with a short schedule."""
    target = Guard(("127.0.0.0/8",), https_only=False).check_url(url)
    values: dict[str, Any] = {
        "tenant": "*",
        "event_types": ("*",),
        "secrets": ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",),
        "signatures": ("v1",),
        "headers": (),
        "thin": False,
        "follow_redirects": False,
        "timeout": 15.0,
        "max_in_flight": 16,
        "retry": RetryPolicy((5.0, 300.0), 0.0),
        "status": Status.ACTIVE,
        **fields,
    }
    return Subscription(id=id, origin=target.origin, target=target.target, **values)


def noted(result: Result, *, tenant: str | None = "acme", **fields: Any) -> Noted:
    """An attempt to deliver `evt_1` that has ended: queued at 100.0, started at 100.25, over at 100.5 (1760000000.5 by the wall's clock)."""
    values: dict[str, Any] = {
        "event": Event("evt_1", "invoice.paid", tenant, b"{}", 1, b"", None),
        "subscription": subscription("sub_billing"),
        "topic": "events",
        "partition": 3,
        "offset": 42,
        "attempt": 2,
        "generation": 1,
        "replay": None,
        "triggered_by": None,
        "queued": 100.0,
        "started": 100.25,
        "result": result,
        "decision": "retry",
        "ended": 100.5,
        "unix": 1760000000.5,
        "due": None,
        "reason": None,
        **fields,
    }
    return Noted(**values)
