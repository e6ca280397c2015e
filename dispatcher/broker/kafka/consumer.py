"""Reading from Kafka: a member of a group, as the port has it, on a consumer of aiokafka.

What the library leaves to its caller, and how it is met here:

- Rebalances are eager: everything is revoked, positions restart at the committed offset, pauses are
  lost. It swallows the exceptions of a rebalance listener, and starts fetching before the listener
  returns. Hence `poll` hands out nothing from the beginning of a revocation until `on_assigned` has
  returned, and a listener's exception is raised by the next `poll`.
- Its `pause` throws away what it has fetched, and fetches it again after `resume`. Here pausing
  only leaves a partition out of `getmany`: what was fetched stays (at most one fetch per
  partition), and a resumed partition goes on at once.
- A commit that waits for its coordinator through a rebalance would be sent with the new generation,
  which Kafka accepts for partitions that belong to somebody else by then. Commits under way are
  cut off when their partitions are given up.
- `committed()` hides the metadata, and a committed offset may point to what retention deleted, so
  starting positions are read and checked here, once per assignment.
- Its records come one by one, at 1.6 us each. `records.py` takes them together.
- Its background tasks may die, and it doesn't tell: `poll` looks after them, and starts another consumer.

Rules:

1. `_mine` is what the listener has been told of and has not been told to lose. Only partitions in
   it are polled or committed.
2. `_open` is true from the end of `on_assigned` to the beginning of `on_revoked`.
3. The library calls in through a `_Bridge`. Who gives a consumer up cuts its bridge first: a consumer that is
   on its way out changes nothing any more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import structlog
from aiokafka import (
    AIOKafkaConsumer,
    ConsumerRebalanceListener,
    TopicPartition as KafkaPartition,
    errors,
)
from aiokafka.client import AIOKafkaClient
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from dispatcher.broker.assignment import Owner, start_of
from dispatcher.broker.base import (
    AssignmentListener,
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    CommitRefused,
    Position,
    Record,
    TopicPartition,
)
from dispatcher.broker.kafka import records as kafka_records
from dispatcher.broker.kafka.client import mapped, milliseconds, pause_after, reason_of
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.settings import KafkaSettings

log = structlog.get_logger(__name__)


kafka_records.install()

_STOP_TIMEOUT = 5.0
_OWN_FETCH_WAIT = 0.1  # seconds
_NEVER_MS = 2**31 - 1


class Cluster(Protocol):
    """What a consumer needs of the connection it belongs to."""

    @property
    def settings(self) -> KafkaSettings: ...

    @property
    def options(self) -> Mapping[str, Any]:
        """What to make a client of the library with, once connected."""

    async def describe(self, topics: Sequence[str]) -> dict[str, list[int]]:
        """The partitions of each of these topics that exists."""

    def forget(self, consumer: KafkaConsumer) -> None:
        """It has stopped."""


class _Bridge(ConsumerRebalanceListener):  # type: ignore[misc] # the library has no types
    """Passes the library's calls on, as long as its consumer is the current one."""

    def __init__(self, member: KafkaConsumer) -> None:
        self.member: KafkaConsumer | None = member

    async def on_partitions_revoked(self, revoked: Any) -> None:  # noqa: ARG002 - all of it
        if self.member is not None:
            await self.member.revoke()

    async def on_partitions_assigned(self, assigned: Any) -> None:
        if self.member is not None:
            await self.member.take(assigned)


class KafkaConsumer:
    """A member of a group."""

    def __init__(
        self,
        cluster: Cluster,
        topics: Collection[str],
        group: str,
        listener: AssignmentListener,
        *,
        own: bool = False,
    ) -> None:
        self.group = group
        self._cluster = cluster
        self._settings = settings = cluster.settings
        if own:
            # One fetch is in flight per broker, and a partition that is resumed waits for its end.
            wait = min(settings.fetch_max_wait, _OWN_FETCH_WAIT)
            self._settings = settings.model_copy(update={"offset_reset": "earliest", "fetch_max_wait": wait})
        self._topics = sorted(topics)
        self._owner = Owner(group, listener)
        self._tasks = Tasks()
        self._consumer: AIOKafkaConsumer | None = None
        self._bridge: _Bridge | None = None
        self._mine: frozenset[TopicPartition] = frozenset()
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        # What getmany is asked for: () is everything, None nothing.
        self._wanted: tuple[KafkaPartition, ...] | None = ()
        self._open = False
        self._stopped = False
        self._restarting = False
        self._joined = asyncio.Event()
        self._wake = asyncio.Event()
        self._waiting: asyncio.Timeout | None = None
        self._commits: set[asyncio.Timeout] = set()
        self._problem: str | None = "not started yet"
        self._trouble: str | None = None  # of the last fetch

    @property
    def client(self) -> AIOKafkaClient | None:
        return None if self._consumer is None else self._consumer._client

    @property
    def problem(self) -> str | None:
        if self._problem is not None:
            return self._problem
        if self._trouble is not None:
            return self._trouble
        consumer = self._consumer
        if consumer is not None and consumer._coordinator.coordinator_id is None:
            return f"the coordinator of group {self.group} can't be reached"
        return None

    # Joining and leaving.

    async def start(self) -> None:
        tries = 0
        while not self._stopped:
            try:
                await self._start()
            except BrokerUnavailable as error:
                pause = pause_after(tries)
                tries += 1
                self._problem = str(error)
                log.warning(
                    "can't join the group, trying again", group=self.group, error=str(error), tries=tries
                )
                await asyncio.sleep(pause)
            except BrokerRefused as error:
                self._problem = str(error)
                raise
            else:
                return

    async def _start(self) -> None:
        found = await self._cluster.describe(self._topics)
        if missing := [topic for topic in self._topics if topic not in found]:
            raise BrokerUnavailable(f"topic {', '.join(missing)} does not exist")
        settings = self._settings
        options = dict(self._cluster.options)
        # The answer to joining comes when every member has joined, which may take the rebalance timeout.
        options["request_timeout_ms"] = milliseconds(
            max(settings.request_timeout, settings.rebalance_timeout + 5)
        )
        consumer = AIOKafkaConsumer(
            **options,
            group_id=self.group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",  # where retention has passed us by; `_starts` decides the rest
            isolation_level="read_committed",
            partition_assignment_strategy=(RoundRobinPartitionAssignor,),
            fetch_max_wait_ms=milliseconds(settings.fetch_max_wait),
            fetch_max_bytes=settings.fetch_max_bytes,
            max_partition_fetch_bytes=settings.fetch_max_bytes_per_partition,
            session_timeout_ms=milliseconds(settings.session_timeout),
            heartbeat_interval_ms=milliseconds(settings.heartbeat_interval),
            rebalance_timeout_ms=milliseconds(settings.rebalance_timeout),
            # The heartbeat comes from the loop that does the work: a hung program has none. And a
            # cancelled getmany leaves the count wrong that this goes by.
            max_poll_interval_ms=_NEVER_MS,
        )
        bridge = _Bridge(self)
        self._consumer, self._bridge = consumer, bridge
        self._problem = f"joining group {self.group}"
        consumer.subscribe(self._topics, listener=bridge)
        try:
            await consumer.start()
        except BaseException as error:
            bridge.member = None
            self._consumer = None
            await stop_consumer(consumer)
            if isinstance(error, errors.KafkaError | OSError | TimeoutError):
                raise mapped(error, f"joining group {self.group}") from error
            raise
        await self._joined.wait()

    async def stop(self) -> None:
        self._stopped = True
        self._open = False
        self._problem = "stopped"
        self._interrupt()
        if self._bridge is not None:
            self._bridge.member = None
        await self._tasks.stop()
        consumer, self._consumer = self._consumer, None
        self._drop()
        if consumer is not None:
            await stop_consumer(consumer)
        self._cluster.forget(self)

    def _dead(self, consumer: AIOKafkaConsumer) -> bool:
        """One of the library's background tasks has died; it won't tell."""
        return bool(consumer._coordinator._coordination_task.done() or consumer._fetcher._fetch_task.done())

    async def _restart(self) -> None:
        """Begin anew with another consumer; the partitions are lost until then."""
        log.error("the consumer has died, starting another", group=self.group)
        consumer, self._consumer = self._consumer, None
        if self._bridge is not None:
            self._bridge.member = None
        self._joined.clear()
        try:
            await self.revoke()
            if consumer is not None:
                await stop_consumer(consumer)
            await self.start()
        except Exception as error:  # noqa: BLE001 - the owner has to know, whatever it is
            self._owner.fail(error)
        finally:
            self._restarting = False

    # What the group does with it: called by the library.

    async def revoke(self) -> None:
        """Tell the listener, then let go of everything."""
        self._open = False
        self._problem = "the group is rebalancing"
        self._interrupt()
        if self._mine:
            await self._owner.revoked(self._mine)
        self._drop()

    def _drop(self) -> None:
        """Let go of everything at once; commits are refused from now on."""
        self._open = False
        self._mine = frozenset()
        self._positions = {}
        self._paused = set()
        self._wanted = ()
        now = asyncio.get_running_loop().time()
        for commit in self._commits:
            if not commit.expired():
                commit.reschedule(now)

    async def take(self, assigned: Collection[KafkaPartition]) -> None:
        """These are its partitions now."""
        consumer = self._consumer
        if self._stopped or consumer is None:
            return
        try:
            starts = await self._starts(consumer, list(assigned))
        except (errors.KafkaError, OSError, TimeoutError) as error:
            problem = mapped(error, "reading committed offsets")
            self._problem = str(problem)
            log.warning("can't take over the partitions, joining again", group=self.group, error=str(problem))
            consumer._coordinator.request_rejoin()
            return
        for partition, position in starts.items():
            consumer.seek(partition, position.offset)
        self._mine = frozenset(TopicPartition(*partition) for partition in starts)
        self._positions = {
            TopicPartition(*partition): position.offset for partition, position in starts.items()
        }
        await self._owner.assigned({TopicPartition(*p): position for p, position in starts.items()})
        if self._consumer is not consumer:
            return  # stopped meanwhile
        self._trouble = self._problem = None
        self._open = True
        self._joined.set()
        self._interrupt()

    async def _starts(
        self, consumer: AIOKafkaConsumer, partitions: list[KafkaPartition]
    ) -> dict[KafkaPartition, Position]:
        """Where reading starts, with the metadata of the commit. No heartbeat is sent meanwhile."""
        if not partitions:
            return {}
        async with asyncio.timeout(self._settings.session_timeout / 2):
            committed, first, end = await asyncio.gather(
                consumer._coordinator.fetch_committed_offsets(partitions),
                consumer.beginning_offsets(partitions),
                consumer.end_offsets(partitions),
            )
        from_latest = self._settings.offset_reset == "latest"
        starts = {}
        for partition in partitions:
            found = committed.get(partition)
            kept = None if found is None else Position(found.offset, found.metadata or "")
            start = start_of(kept, first[partition], end[partition], from_latest=from_latest)
            if kept is not None and start.offset != kept.offset:
                log.warning(
                    "the committed offset is gone, starting at the earliest",
                    topic=partition.topic,
                    partition=partition.partition,
                    committed=kept.offset,
                    earliest=first[partition],
                    latest=end[partition],
                )
            starts[partition] = start
        return starts

    # What its owner does with it.

    async def poll(self, timeout: float, limit: int) -> Sequence[tuple[TopicPartition, Sequence[Record]]]:
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        while True:
            self._owner.raise_failure()
            if self._stopped:
                return ()
            consumer, wanted = self._consumer, self._wanted
            left = max(0.0, deadline - clock())
            if self._open and consumer is not None and wanted is not None:
                try:
                    fetched = await self._getmany(
                        consumer, wanted, left, min(limit, self._settings.max_poll_records)
                    )
                except (errors.KafkaError, OSError) as error:
                    await self._fetch_failed(mapped(error, "fetching"), min(left, 1.0))
                    if left:
                        continue
                    return ()
                if fetched:
                    self._trouble = None
                    if batches := self._accept(consumer, fetched):
                        return batches
                    continue
            if (
                consumer is not None
                and not self._restarting
                and consumer._coordinator
                and self._dead(consumer)
            ):
                self._restarting = True
                self._tasks.start(self._restart(), f"restart {self.group}")
            left = deadline - clock()
            if left <= 0:
                await asyncio.sleep(0)
                return ()
            if not self._open or self._wanted is None:
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, 1.0)):
                        await self._wake.wait()

    async def _getmany(
        self, consumer: AIOKafkaConsumer, wanted: tuple[KafkaPartition, ...], timeout: float, limit: int
    ) -> dict[Any, list[Any]]:
        """What is there, or comes within `timeout`; nothing when `_interrupt` was called.

        Safe to interrupt: records leave the library's buffer in the same step of the task that returns them.
        """
        if not timeout:
            return await consumer.getmany(*wanted, timeout_ms=0, max_records=limit)  # type: ignore[no-any-return]
        try:
            # The library waits for the end of a rebalance whatever timeout it is given.
            async with asyncio.timeout(timeout + 0.1) as self._waiting:
                return await consumer.getmany(  # type: ignore[no-any-return]
                    *wanted, timeout_ms=timeout * 1000, max_records=limit
                )
        except TimeoutError:
            return {}
        finally:
            self._waiting = None

    def _accept(
        self, consumer: AIOKafkaConsumer, fetched: dict[Any, list[Any]]
    ) -> list[tuple[TopicPartition, Sequence[Record]]]:
        batches: list[tuple[TopicPartition, Sequence[Record]]] = []
        positions = self._positions
        for partition, records in fetched.items():
            offset = records[0].offset
            if partition in self._paused:
                consumer.seek(partition, offset)  # paused while we waited: it comes again after resume
                continue
            if offset < positions[partition]:
                raise BrokerError(
                    f"{partition.topic}-{partition.partition} was cut or its topic made anew: offset {offset} follows"
                    f" {positions[partition] - 1}; start again to read it from its beginning"
                )
            positions[partition] = records[-1].offset + 1
            batches.append((partition, records))
        return batches

    async def _fetch_failed(self, error: BrokerError, pause: float) -> None:
        if self._trouble != str(error):
            log.warning("can't fetch, trying again", group=self.group, error=str(error))
        self._trouble = str(error)
        await asyncio.sleep(pause)

    def _interrupt(self) -> None:
        """Let a waiting `poll` look again at what there is."""
        self._wake.set()
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(asyncio.get_running_loop().time())

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        self._paused.update(partition for partition in partitions if partition in self._mine)
        self._choose()

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        before = len(self._paused)
        self._paused.difference_update(partitions)
        if len(self._paused) != before:
            self._choose()
            self._interrupt()

    def _choose(self) -> None:
        if not self._paused:
            self._wanted = ()
        else:
            self._wanted = tuple(KafkaPartition(*p) for p in self._mine if p not in self._paused) or None

    async def commit(self, positions: Mapping[TopicPartition, Position]) -> None:
        consumer = self._consumer
        if not positions:
            return
        for topic, partition in positions:
            if consumer is None or (topic, partition) not in self._mine:
                raise CommitRefused(f"partition {topic}-{partition} is not assigned to this member")
        assert consumer is not None  # noqa: S101 - for the type checker: the loop has run
        offsets = {
            KafkaPartition(*key): (position.offset, position.metadata) for key, position in positions.items()
        }
        commit = asyncio.timeout(self._settings.request_timeout)
        self._commits.add(commit)
        try:
            async with commit:
                await consumer.commit(offsets)
        except TimeoutError as error:
            if not self._mine.issuperset(positions):
                raise CommitRefused("the partitions were given up before the commit was through") from error
            raise BrokerUnavailable(self.problem or "no answer to a commit in time") from error
        except (errors.KafkaError, OSError) as error:
            raise mapped(error, "committing") from error
        finally:
            self._commits.discard(commit)

    def assignment(self) -> Collection[TopicPartition]:
        return self._mine

    def lag(self) -> Mapping[TopicPartition, int]:
        consumer = self._consumer
        if consumer is None or not self._open:
            return {}
        behind = {}
        for partition in self._mine:
            end = consumer.highwater(KafkaPartition(*partition))
            if end is not None:
                behind[partition] = max(0, end - self._positions[partition])
        return behind


async def stop_consumer(consumer: AIOKafkaConsumer) -> None:
    """Leave the group, if the broker lets us know in time; close the connections in any case."""
    try:
        async with asyncio.timeout(_STOP_TIMEOUT):
            await consumer.stop()
    except (errors.KafkaError, OSError, TimeoutError, asyncio.CancelledError) as error:
        log.warning("a consumer did not stop cleanly", error=reason_of(error))
        with contextlib.suppress(errors.KafkaError, OSError, asyncio.CancelledError):
            if consumer._fetcher is not None:
                await consumer._fetcher.close()
            await consumer._client.close()
        # The library lets the end of its own tasks out as a cancellation; only ours is passed on.
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
