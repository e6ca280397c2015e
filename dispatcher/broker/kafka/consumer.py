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
  starting positions are read, checked and committed here, once per assignment (`starts.py`).
- Told to (`auto_offset_reset`), it goes on after what retention deleted, or from the beginning of a topic that was made
  anew, and tells nobody. It isn't told to: it raises, and what was skipped is counted here.
- It looks for new partitions every five minutes, and never whether a topic is another one than before. `_watch` does.
- Its records come one by one, at 1.6 us each. `records.py` takes them together.
- What can't be unpacked ends its fetch for every partition, and what it has taken of them is lost. `records.py`
  hands such a batch out as an error in its place; its partition is paused in the library, and tried again now and then.
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
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import structlog
from aiokafka import (
    AIOKafkaConsumer,
    ConsumerRebalanceListener,
    TopicPartition as KafkaPartition,
    errors,
)
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.fetch import FetchRequest

from dispatcher.broker.assignment import Owner, absent, news, vanished
from dispatcher.broker.base import (
    LOOK_INTERVAL,
    AssignmentListener,
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    CommitRefused,
    GroupMemory,
    Jump,
    NoMemory,
    Position,
    Record,
    Remembered,
    TopicPartition,
    UnreadableBatch,
    Why,
)
from dispatcher.broker.kafka.client import mapped, milliseconds, stop_consumer
from dispatcher.broker.kafka.predecessor import (
    MemberName,
    assignor,
    evict_predecessors,
    living_twin,
    refusal,
)
from dispatcher.broker.kafka.starts import out_of_range, position_of, starts_of
from dispatcher.broker.kafka.wire import records as kafka_records
from dispatcher.core.control.skips import skip_command
from dispatcher.runtime.backoff import Backoff
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import KafkaSettings

log = structlog.get_logger(__name__)


kafka_records.install()

_REJOIN_PAUSE = 0.5
_OWN_FETCH_WAIT = 0.1  # seconds
_LOOK_LIMIT = 2.0  # seconds that a revocation waits to learn which topics are still there
_NEVER_MS = 2**31 - 1
_UNREADABLE = {
    -1,
    2,
    56,
}  # unknown error, corrupt message, storage error: what a broker says of a log that it can't read
_LONGEST_PAUSE = 30.0  # seconds until an unreadable batch is fetched again


class Cluster(Protocol):
    """What a consumer needs of the connection it belongs to."""

    @property
    def settings(self) -> KafkaSettings: ...

    @property
    def options(self) -> Mapping[str, Any]:
        """What to make a client of the library with, once connected."""

    @property
    def name(self) -> MemberName | None:
        """What this process is called in its groups."""

    async def look(self, topics: Sequence[str]) -> dict[str, Remembered]:
        """Those of these topics that exist."""

    async def has_commits(self, group: str, topics: Collection[str]) -> bool:
        """Whether the group has committed anything on these topics."""

    async def inherited(self, group: str, topics: Collection[str]) -> Mapping[TopicPartition, Position]:
        """What a group of another name has committed on these topics, for a group that has begun none of them."""

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


class _Stuck:
    """A partition stands before a batch that can't be unpacked."""

    __slots__ = ("backoff", "error", "fetching", "retry_at")

    def __init__(self, error: UnreadableBatch) -> None:
        self.error = error
        self.backoff = Backoff(longest=_LONGEST_PAUSE)
        self.retry_at = 0.0  # loop time
        self.fetching = False  # it is being tried again


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
        memory: GroupMemory | None = None,
    ) -> None:
        self.group = group
        self._cluster = cluster
        self._own = own
        self._memory = memory or NoMemory()
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
        self._positions: dict[TopicPartition, int] = {}  # behind the last record handed out
        self._ends: dict[TopicPartition, int] = {}  # where they ended when they were assigned
        self._had: frozenset[TopicPartition] = frozenset()  # before the last revocation
        self._topics_read: Mapping[
            str, Remembered
        ] = {}  # the topics as they were when it took its partitions
        self._stale: set[str] = set()  # topics that have gone since
        self._cut: set[TopicPartition] = set()  # that end before their position
        # Starts of partitions that have no commit yet: of other members', or of another group's that this one was.
        self._decided: dict[TopicPartition, Position] = {}
        self._past: Mapping[str, Remembered] | None = (
            None  # topics that the group has read, as of before joining
        )
        self._fresh = False  # the group had never run when this member joined it first
        self._unstarted: frozenset[TopicPartition] = (
            frozenset()
        )  # assigned, and not there when it was looked for
        self._absent: str | None = None
        self._watching = False
        self._paused: set[TopicPartition] = set()
        self._stuck: dict[TopicPartition, _Stuck] = {}
        # What getmany is asked for: () is everything, None nothing.
        self._wanted: tuple[KafkaPartition, ...] | None = ()
        self._open = False
        self._stopped = False
        self._restarting = False
        self._joined = asyncio.Event()
        self._wake = asyncio.Event()
        self._waiting: asyncio.Timeout | None = None
        self._commits: set[asyncio.Timeout] = set()
        self._twin_told = False
        self._refused: BrokerRefused | None = None
        self._problem: str | None = "not started yet"
        self._trouble: str | None = None  # of the last fetch

    @property
    def client(self) -> AIOKafkaClient | None:
        return None if self._consumer is None else self._consumer._client

    @property
    def problem(self) -> str | None:
        if self._problem is not None:
            return self._problem
        if self._absent is not None:
            return self._absent
        if self._trouble is not None:
            return self._trouble
        consumer = self._consumer
        if consumer is not None and consumer._coordinator.coordinator_id is None:
            return f"the coordinator of group {self.group} can't be reached"
        return None

    # Joining and leaving.

    async def start(self) -> None:
        backoff = Backoff()
        while not self._stopped:
            try:
                await self._start()
            except BrokerUnavailable as error:
                pause = backoff.failed()
                self._problem = str(error)
                log.warning(
                    "can't join the group, trying again",
                    group=self.group,
                    error=str(error),
                    tries=backoff.failures,
                    pause=pause,
                )
                await asyncio.sleep(pause)
            except BrokerRefused as error:
                self._problem = str(error)
                raise
            else:
                return

    async def _start(self) -> None:
        found = await self._cluster.look(self._topics)
        if (missing := absent(self._topics, found)) is not None:
            raise BrokerUnavailable(missing)
        if not self._topics_read:
            await self._look_back()
        settings = self._settings
        options = dict(self._cluster.options)
        # The answer to joining comes when every member has joined, which may take the rebalance timeout.
        options["request_timeout_ms"] = milliseconds(
            max(settings.request_timeout, settings.rebalance_timeout + 5)
        )
        name = self._cluster.name
        prefix = options["client_id"]
        if name is not None:
            options["client_id"] = name.client_id(prefix)
        consumer = AIOKafkaConsumer(
            **options,
            group_id=self.group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            partition_assignment_strategy=(assignor(name),),
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
        consumer._client.send = self._watched(consumer, consumer._client.send)
        bridge = _Bridge(self)
        self._consumer, self._bridge = consumer, bridge
        self._problem = f"joining group {self.group}"
        consumer.subscribe(self._topics, listener=bridge)
        evicting = None
        if name is not None and not self._twin_told:
            evicting = self._tasks.start(
                evict_predecessors(consumer, self.group, name, prefix, settings.heartbeat_interval),
                f"look for a predecessor in {self.group}",
            )
        try:
            await consumer.start()
        except BaseException as error:
            bridge.member = None
            self._consumer = None
            await stop_consumer(consumer)
            if isinstance(error, errors.KafkaError | OSError | TimeoutError):
                raise mapped(error, f"joining group {self.group}") from error
            raise
        finally:
            if evicting is not None:
                evicting.cancel()
        await self._joined.wait()
        if not self._watching:
            self._watching = True
            self._tasks.start(self._watch(), f"watch topics of {self.group}")

    async def _look_for_twin(self, consumer: AIOKafkaConsumer, name: MemberName) -> None:
        """End, or say so, where another living process has our name and was there before us."""
        twin = await living_twin(consumer, self.group, name, self._cluster.options["client_id"])
        if twin is None or self._stopped or self._twin_told:
            return
        self._twin_told = True
        error = refusal(self.group, name, twin)
        if name.given:
            self._problem = str(error)
            self._refused = error
            self._interrupt()
            return
        log.warning(
            "another process of this group goes by the same host name, address and port; the one that is started later makes"
            " the other one lose its partitions for a moment: give each a kafka.member_name of its own",
            group=self.group,
            name=name.name,
            host=twin.host,
        )

    async def _look_back(self) -> None:
        """See whether the group has run before: once it is joined, the commits of members that came just now say so too."""
        remembered = self._memory.topics()
        self._past = remembered or {}
        self._fresh = False
        if remembered is None and self._own:
            self._decided = dict(await self._cluster.inherited(self.group, self._topics))
        elif remembered is None and self._settings.offset_reset == "latest":
            self._fresh = not await self._cluster.has_commits(self.group, self._topics)

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
            with contextlib.suppress(BrokerError, TimeoutError):
                async with asyncio.timeout(_LOOK_LIMIT):
                    self._see(await self._cluster.look(self._topics))
            self._had = self._mine
            await self._owner.revoked(self._mine)
        self._drop()

    def _drop(self) -> None:
        """Let go of everything at once; commits are refused from now on."""
        self._open = False
        self._mine = frozenset()
        self._positions = {}
        self._paused = set()
        self._stuck = {}
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
            async with asyncio.timeout(self._settings.session_timeout / 2):
                topics = await self._cluster.look(self._topics)
                past = self._past
                if past is None:
                    past = {**(self._memory.topics() or {}), **self._topics_read}
                plan = await starts_of(
                    consumer,
                    self.group,
                    topics,
                    assigned,
                    past,
                    from_latest=self._fresh,
                    cut=self._cut,
                    decided=self._decided,
                )
        except (errors.KafkaError, OSError, TimeoutError, BrokerError) as error:
            problem = mapped(error, "reading committed offsets")
            self._problem = str(problem)
            log.warning("can't take over the partitions, joining again", group=self.group, error=str(problem))
            await asyncio.sleep(_REJOIN_PAUSE)
            consumer._coordinator.request_rejoin()
            return
        starts = {
            partition: plan.starts[partition]
            for partition in (TopicPartition(*each) for each in assigned)
            if partition in plan.starts  # or it was added, or deleted, in this moment
        }
        self._unstarted = frozenset(TopicPartition(*each) for each in assigned).difference(starts)
        for partition in self._unstarted:
            # Else the library reads it from where it likes, or raises for want of a position again and again.
            consumer.seek(KafkaPartition(*partition), 0)
            consumer.pause(KafkaPartition(*partition))
        for partition, position in starts.items():
            consumer.seek(KafkaPartition(*partition), position.offset)
        self._mine = frozenset(starts)
        self._positions = {partition: position.offset for partition, position in starts.items()}
        self._ends = {partition: plan.ends[partition] for partition in starts}
        self._owner.gone({*vanished(self._had, self._topics_read, topics), *(self._cut & self._had)})
        for jump in plan.jumps:
            self._owner.jump(jump)
        self._topics_read = topics
        self._decided = {key: at for key, at in plan.commits.items() if key not in starts}
        self._past, self._fresh = None, False
        self._had, self._cut, self._stale = frozenset(), set(), set()
        self._absent = absent(self._topics, topics)
        await self._owner.assigned(starts)
        if new := news(topics, self._memory):
            self._memory.remember(new)
        if self._consumer is not consumer:
            return  # stopped meanwhile
        self._trouble = self._problem = None
        self._open = True
        self._joined.set()
        self._interrupt()
        if (name := self._cluster.name) is not None and not self._twin_told:
            self._tasks.start(self._look_for_twin(consumer, name), f"look for a twin in {self.group}")

    # Topics that come and go.

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            if self._open:
                # A broker that is away is somebody else's to tell.
                with contextlib.suppress(BrokerError):
                    self._see(await self._cluster.look(self._topics))

    def _see(self, topics: Mapping[str, Remembered]) -> None:
        """Look whether these are the topics that it reads; have the group share them out anew if not."""
        consumer = self._consumer
        self._absent = absent(self._topics, topics)
        if consumer is None or self._stopped:
            return
        others = {topic for topic, _ in vanished(self._mine, self._topics_read, topics)}
        if others - self._stale:
            log.warning("topics are gone or made anew", group=self.group, topics=sorted(others))
            self._stale |= others
            consumer._coordinator.request_rejoin()
        elif self._open and any(
            key.topic in topics and key.partition < topics[key.topic].partitions for key in self._unstarted
        ):
            # The broker that was asked didn't know of it yet.
            consumer._coordinator.request_rejoin()
        known = consumer._client.cluster.partitions_for_topic
        if others or any(len(known(name) or ()) != topic.partitions for name, topic in topics.items()):
            # Who leads the group sees the change in it, and has it share them out.
            consumer._client.force_metadata_update()

    async def _look_for_positions(self, consumer: AIOKafkaConsumer) -> None:
        """Some position isn't there: go on behind what retention has deleted; a partition that was cut is begun anew."""
        async with asyncio.timeout(self._settings.request_timeout):
            passed, cut = await out_of_range(consumer, self._mine, self._positions)
        if self._consumer is not consumer or not self._open:
            return
        for partition, (expected, first) in passed.items():
            self._owner.jump(Jump(partition, Why.RETENTION, expected, first))
        if cut:
            self._begin_anew(consumer, cut)

    def _begin_anew(self, consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition]) -> None:
        self._cut.update(partitions)
        self._open = False
        consumer._coordinator.request_rejoin()

    # What its owner does with it.

    async def poll(self, timeout: float, limit: int) -> Sequence[tuple[TopicPartition, Sequence[Record]]]:
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        while True:
            self._owner.raise_failure()
            if self._refused is not None:
                raise self._refused
            if self._stopped:
                return ()
            consumer, wanted = self._consumer, self._wanted
            if self._stuck and consumer is not None:
                self._try_again(consumer, clock())
            left = max(0.0, deadline - clock())
            if self._open and consumer is not None and wanted is not None:
                try:
                    fetched = await self._getmany(
                        consumer, wanted, left, min(limit, self._settings.max_poll_records)
                    )
                except (errors.OffsetOutOfRangeError, errors.NoOffsetForPartitionError):
                    try:
                        await self._look_for_positions(consumer)
                    except (errors.KafkaError, OSError, TimeoutError) as error:
                        await self._fetch_failed(mapped(error, "looking for positions"), min(left, 1.0))
                    if left:
                        continue
                    return ()
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
            if type(records[0]) is UnreadableBatch:
                self._stand_still(consumer, partition, records[0])
                continue
            if partition in self._paused:
                consumer.seek(partition, offset)  # paused while we waited: it comes again after resume
                continue
            if offset < positions[partition]:
                self._begin_anew(consumer, [TopicPartition(*partition)])
                continue
            positions[partition] = records[-1].offset + 1
            if self._stuck and self._stuck.pop(partition, None) is not None:
                log.info("the batch can be read again", topic=partition.topic, partition=partition.partition)
            batches.append((partition, records))
        return batches

    # Batches that can't be unpacked.

    def _stand_still(
        self, consumer: AIOKafkaConsumer, partition: KafkaPartition, error: UnreadableBatch
    ) -> None:
        """Fetch no more of the partition for now: the same bytes would come again and again."""
        consumer.pause(partition)
        key = TopicPartition(*partition)
        stuck = self._stuck.get(key)
        if stuck is None or stuck.error.first != error.first:
            stuck = self._stuck[key] = _Stuck(error)
            log.error(
                "a partition stands still: a batch can't be unpacked",
                topic=key.topic,
                partition=key.partition,
                first=error.first,
                last=error.last,
                reason=error.reason,
                skip=skip_command(key.topic, key.partition, error.first) if error.skippable else None,
            )
        stuck.error = error
        stuck.fetching = False
        stuck.retry_at = asyncio.get_running_loop().time() + stuck.backoff.failed()

    def _watched(
        self, consumer: AIOKafkaConsumer, send: Callable[..., Awaitable[Any]]
    ) -> Callable[..., Awaitable[Any]]:
        """Look at what brokers answer, on its way to the library: it passes over some errors of fetches, and asks again at once;
        and it takes a coordinator's refusal to tell the group's offsets for a group that has none.
        """

        async def watched(node_id: Any, request: Any, **options: Any) -> Any:
            response = await send(node_id, request, **options)
            if isinstance(request, FetchRequest):
                for topic, partitions in response.topics:
                    for number, code, *_ in partitions:
                        if code in _UNREADABLE or (not code and self._stuck):
                            self._fetched(consumer, TopicPartition(topic, number), code)
            elif isinstance(request, OffsetFetchRequest) and (code := getattr(response, "error_code", 0)):
                # It is not the coordinator any more, or not yet. Believed, everything would be begun anew.
                refused = errors.for_code(code)
                raise refused
            return response

        return watched

    def _fetched(self, consumer: AIOKafkaConsumer, partition: TopicPartition, code: int) -> None:
        """The broker can't read its own log there; or it can again."""
        stuck = self._stuck.get(partition)
        if not code:
            if stuck is not None and not stuck.error.skippable:
                del self._stuck[partition]
                log.info(
                    "the partition can be read again", topic=partition.topic, partition=partition.partition
                )
        elif self._consumer is consumer and partition in self._mine:
            at = self._positions[partition]
            error = errors.for_code(code)
            reason = f"the broker answers {error.__name__} ({code}): look at the disk and the log of the partition's leader"
            self._stand_still(
                consumer, KafkaPartition(*partition), UnreadableBatch(at, at, reason, skippable=False)
            )

    def _try_again(self, consumer: AIOKafkaConsumer, now: float) -> None:
        """Another replica of the broker may have it right, or it was broken on its way here."""
        for partition, stuck in self._stuck.items():
            if not stuck.fetching and now >= stuck.retry_at:
                stuck.fetching = True
                consumer.resume(KafkaPartition(*partition))

    def stuck(self) -> Mapping[TopicPartition, UnreadableBatch]:
        return {partition: stuck.error for partition, stuck in self._stuck.items()}

    def skip(self, partition: TopicPartition) -> None:
        stuck = self._stuck.pop(partition, None)
        consumer = self._consumer
        if stuck is None or consumer is None:
            return
        following = stuck.error.last + 1
        consumer.seek(KafkaPartition(*partition), following)
        self._positions[partition] = following
        consumer.resume(KafkaPartition(*partition))
        self._interrupt()

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
            KafkaPartition(*key): (position.offset, position.metadata)
            for key, position in positions.items()
            if key.topic not in self._stale and key not in self._cut  # of another topic than there is by now
        }
        if not offsets:
            return
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
                position = position_of(consumer, partition)
                behind[partition] = max(
                    0, end - (self._positions[partition] if position is None else position)
                )
        return behind

    def ends(self) -> Mapping[TopicPartition, int]:
        return self._ends

    def passed(self) -> Mapping[TopicPartition, tuple[int, int]]:
        consumer = self._consumer
        if consumer is None or not self._open:
            return {}
        stretches = {}
        for partition, behind in self._positions.items():
            if partition in self._stuck:
                continue  # what can't be unpacked may still be
            position = position_of(consumer, partition)
            if position is not None and position > behind:
                stretches[partition] = (behind, position)
        return stretches
