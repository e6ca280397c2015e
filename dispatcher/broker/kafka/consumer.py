"""Reading from Kafka: a member of a group, as the port has it, on a consumer of aiokafka.

What the library leaves to its caller, and how it is met here:

- Rebalances are eager: everything is revoked, positions restart at the committed offset, pauses are
  lost. It swallows the exceptions of a rebalance listener, and starts fetching before the listener
  returns. Hence `poll` hands out nothing from the beginning of a revocation until `on_assigned` has
  returned, and a listener's exception is raised by the next `poll`.
- Its `pause` throws away what it has fetched, and fetches it again after `resume` (`fetching.py`).
- It would send a commit that waits for its coordinator through a rebalance with the new generation,
  which Kafka accepts for partitions that belong to another member by then. Commits under way are
  cut off when their partitions are given up.
- `committed()` hides the metadata, and a committed offset may point to what retention deleted, so
  starting positions are read and checked here, once per assignment, and committed where there were none (`starts.py`).
- With `auto_offset_reset` the library goes on after what retention deleted, or from the beginning of a topic that was made
  anew, and tells nobody. Without it the library raises, and what was skipped is counted here.
- It looks for new partitions every five minutes, and never whether a topic is another one than before. `_watch` does.
- Its records come one by one, at 1.6 us each. `wire/records.py` takes them together.
- A batch that it can't unpack ends its fetch for every partition (`unreadable.py`).
- Its background tasks may die, and it doesn't tell: `poll` looks after them, and starts another consumer.

Rules:

1. Only partitions that the listener has been told of and has not been told to lose are polled (`fetching.py`) or committed.
2. The library calls in through a `_Bridge`. Who gives a consumer up cuts its bridge first: a consumer that is
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

from dispatcher.broker.assignment import GuardedListener, absent, news
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
    TopicPartition,
    UnreadableBatch,
    Why,
)
from dispatcher.broker.kafka.client import mapped, reason_of, stop_consumer
from dispatcher.broker.kafka.fetching import Fetching, PositionsCut, make_consumer
from dispatcher.broker.kafka.predecessor import (
    MemberName,
    evict_predecessors,
    living_twin,
    refusal,
)
from dispatcher.broker.kafka.starts import GroupCluster, GroupStarts, out_of_range
from dispatcher.broker.kafka.wire import records as kafka_records
from dispatcher.broker.kafka.wire.metadata import TopicsSeen
from dispatcher.runtime.backoff import Backoff
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import KafkaSettings

log = structlog.get_logger(__name__)


kafka_records.install()

_OWN_FETCH_WAIT = 0.1  # seconds, while there is anything to do: a partition is resumed when its record is due
_LOOK_LIMIT = (
    2.0  # seconds that a revocation, or what is in doubt, waits to learn which topics are still there
)


class ConsumerCluster(GroupCluster, Protocol):
    """What a consumer needs of the connection it belongs to."""

    @property
    def settings(self) -> KafkaSettings: ...

    @property
    def options(self) -> Mapping[str, Any]:
        """What to make a client of the library with, once connected."""

    @property
    def name(self) -> MemberName | None:
        """What this process is called in its groups."""

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


# Long: the library calls into joining, rebalances and commits between the awaits of each other.
class KafkaConsumer:
    """A member of a group."""

    def __init__(
        self,
        cluster: ConsumerCluster,
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
            self._settings = settings.model_copy(update={"offset_reset": "earliest"})
        self._topics = sorted(topics)
        self._owner = GuardedListener(group, listener)
        self._starts = GroupStarts(
            cluster,
            group,
            self._topics,
            self._memory,
            session=settings.session_timeout,
            from_latest=settings.offset_reset == "latest",
            own=own,
        )
        self._tasks = Tasks()
        self._consumer: AIOKafkaConsumer | None = None
        self._bridge: _Bridge | None = None
        wait = settings.fetch_max_wait
        self._fetching = Fetching(
            settings.max_poll_records, wait, min(wait, _OWN_FETCH_WAIT) if own else None
        )
        self._ends: Mapping[TopicPartition, int] = {}
        self._watching = False
        self._rejoining = Backoff(longest=settings.session_timeout / 4)
        self._stopped = False
        self._restarting = False
        self._joined = asyncio.Event()
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
        if self._starts.problem is not None:
            return self._starts.problem
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
        seen = await self._starts.survey()
        if not seen.there and self._starts.problem is not None:
            raise (
                BrokerRefused(self._starts.problem)
                if seen.denied
                else BrokerUnavailable(self._starts.problem)
            )
        if missing := [
            topic for topic in self._topics if topic not in seen.there and topic not in seen.denied
        ]:
            raise BrokerUnavailable(absent(missing, ()) or "")
        await self._starts.look_back()
        consumer = make_consumer(self._cluster.options, self._cluster.name, self._settings, self.group)
        consumer._client.send = self._fetching.watched(consumer, consumer._client.send)
        bridge = _Bridge(self)
        self._consumer, self._bridge = consumer, bridge
        self._problem = f"joining group {self.group}"
        consumer.subscribe(self._topics, listener=bridge)
        evicting = None
        name = self._cluster.name
        if name is not None and not self._twin_told:
            prefix = self._cluster.options["client_id"]
            evicting = self._tasks.start(
                evict_predecessors(consumer, self.group, name, prefix, self._settings.heartbeat_interval),
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
            self._fetching.interrupt()
            return
        log.warning(
            "another process of this group goes by the same host name, address and port; the one that is started later makes"
            " the other one lose its partitions for a moment: give each a kafka.member_name of its own",
            group=self.group,
            name=name.name,
            host=twin.host,
        )

    async def stop(self) -> None:
        self._stopped = True
        self._fetching.close()
        self._problem = "stopped"
        self._fetching.interrupt()
        if self._bridge is not None:
            self._bridge.member = None
        await self._tasks.stop()
        consumer, self._consumer = self._consumer, None
        self._drop()
        if consumer is not None:
            await stop_consumer(consumer)
        self._cluster.forget(self)

    def _look_after_tasks(self) -> None:
        """Begin anew where one of the library's background tasks has died; it won't tell."""
        consumer = self._consumer
        if consumer is None or self._restarting or not consumer._coordinator:
            return
        if consumer._coordinator._coordination_task.done() or consumer._fetcher._fetch_task.done():
            self._restarting = True
            self._tasks.start(self._restart(), f"restart {self.group}")

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
        self._fetching.close()
        self._problem = "the group is rebalancing"
        self._fetching.interrupt()
        if self._fetching.mine:
            with contextlib.suppress(BrokerError, TimeoutError):
                await self._look()
            self._starts.given_up(self._fetching.mine)
            await self._owner.revoked(self._fetching.mine)
        self._drop()

    def _drop(self) -> None:
        """Let go of everything at once; commits are refused from now on."""
        self._fetching.drop()
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
                taken = await self._starts.take(consumer, assigned)
        except (errors.KafkaError, OSError, TimeoutError, BrokerError) as error:
            problem = mapped(error, "reading committed offsets")
            self._problem = str(problem)
            pause = self._rejoining.failed()
            log.warning(
                "can't take over the partitions, joining again",
                group=self.group,
                error=str(problem),
                pause=pause,
            )
            await asyncio.sleep(pause)
            consumer._coordinator.request_rejoin()
            return
        self._rejoining.succeeded()
        for partition in taken.waiting:
            # Else the library reads it from where it likes, or raises for want of a position again and again.
            consumer.seek(KafkaPartition(*partition), 0)
            consumer.pause(KafkaPartition(*partition))
        starts = taken.starts
        self._fetching.take(consumer, {partition: at.offset for partition, at in starts.items()}, taken.reads)
        self._ends = taken.ends
        self._owner.gone(taken.gone)
        for jump in taken.jumps:
            self._owner.jump(jump)
        await self._owner.assigned(starts)
        if new := news(self._starts.read, self._memory):
            self._memory.remember(new)
        if self._consumer is not consumer:
            return  # stopped meanwhile
        self._trouble = self._problem = None
        self._fetching.open()
        self._joined.set()
        if (name := self._cluster.name) is not None and not self._twin_told:
            self._tasks.start(self._look_for_twin(consumer, name), f"look for a twin in {self.group}")

    # Topics that come and go.

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            if self._fetching.is_open:
                # A broker that is away is somebody else's to tell.
                with contextlib.suppress(BrokerError, errors.KafkaError, OSError, TimeoutError):
                    await self._look_around()

    async def _look_around(self) -> None:
        """See which topics there are, and whether what could not be started can be by now."""
        seen = await self._look()
        consumer = self._consumer
        if (
            consumer is not None
            and self._fetching.is_open
            and await self._starts.ready(consumer, seen)
            and self._fetching.is_open
        ):
            consumer._coordinator.request_rejoin()

    async def _look(self) -> TopicsSeen:
        """See which topics there are. Raises BrokerError and TimeoutError."""
        doubts = self._fetching.doubts
        async with asyncio.timeout(_LOOK_LIMIT):
            seen = await self._starts.survey()
        self._see(seen)
        self._fetching.trust(doubts)
        return seen

    def _see(self, seen: TopicsSeen) -> None:
        """Look whether these are the topics that it reads; have the group share them out anew if not."""
        consumer = self._consumer
        if consumer is None or self._stopped:
            return
        others = self._starts.others(self._fetching.mine, seen)
        if others - self._starts.stale:
            log.warning("topics are gone or made anew", group=self.group, topics=sorted(others))
            self._starts.stale |= others
            self._fetching.close()  # what comes of them by now is read when they are taken anew
            consumer._coordinator.request_rejoin()
        known = consumer._client.cluster.partitions_for_topic
        if others or any(len(known(name) or ()) != topic.partitions for name, topic in seen.there.items()):
            # Who leads the group sees the change in it, and has it share them out.
            consumer._client.force_metadata_update()

    async def _look_for_positions(self, error: errors.KafkaError) -> None:
        """Some position isn't there: go on behind what retention has deleted; a partition that was cut is begun anew."""
        consumer, mine = self._consumer, self._fetching.mine
        named = error.args[0] if error.args and isinstance(error.args[0], Mapping) else mine
        partitions = [key for key in map(TopicPartition._make, named) if key in mine]
        async with asyncio.timeout(self._settings.request_timeout):
            passed, cut = await out_of_range(consumer, partitions, self._fetching.positions)
        if self._consumer is not consumer or not self._fetching.is_open:
            return
        for partition, (expected, first) in passed.items():
            self._owner.jump(Jump(partition, Why.RETENTION, expected, first))
        if cut:
            self._begin_anew(cut)

    def _begin_anew(self, partitions: Collection[TopicPartition]) -> None:
        """The partitions end before their positions: have the group share them out, with their new starts."""
        self._starts.cut.update(partitions)
        self._fetching.close()
        positions = {key: self._fetching.positions[key] for key in partitions}
        self._tasks.start(self._move_starts(self._consumer, positions), f"begin anew in {self.group}")

    async def _move_starts(self, consumer: AIOKafkaConsumer, positions: Mapping[TopicPartition, int]) -> None:
        commit = asyncio.timeout(self._settings.session_timeout / 4)
        self._commits.add(commit)
        try:
            async with commit:
                for jump in await self._starts.begin_anew(consumer, positions):
                    self._owner.jump(jump)
        except (errors.KafkaError, OSError, TimeoutError) as error:
            # Whoever is given the partition decides anew: only where its topic has no id may it pass over records.
            log.warning(
                "the new starts of partitions that were cut can't be committed",
                group=self.group,
                error=reason_of(error),
            )
        finally:
            self._commits.discard(commit)
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
            left = max(0.0, deadline - clock())
            if self._fetching.has_work and (batches := await self._fetch(left, limit)):
                return batches
            self._look_after_tasks()
            left = deadline - clock()
            if left <= 0:
                await asyncio.sleep(0)
                return ()
            if not self._fetching.has_work:
                await self._fetching.idle(min(left, 1.0))

    async def _fetch(
        self, left: float, limit: int
    ) -> Sequence[tuple[TopicPartition, Sequence[Record]]] | None:
        try:
            if self._fetching.in_doubt:
                await self._look()
            batches = await self._fetching.fetch(left, limit) if self._fetching.is_open else None
        except PositionsCut as cut:
            self._begin_anew(cut.partitions)
        except (errors.OffsetOutOfRangeError, errors.NoOffsetForPartitionError) as lost:
            try:
                await self._look_for_positions(lost)
            except (errors.KafkaError, OSError, TimeoutError) as error:
                await self._fetch_failed(mapped(error, "looking for positions"), min(left, 1.0))
        except errors.TopicAuthorizationFailedError:
            pass  # those partitions stand still by now
        except (errors.KafkaError, OSError, BrokerError, TimeoutError) as error:
            await self._fetch_failed(mapped(error, "fetching"), min(left, 1.0))
        else:
            if batches is not None:
                self._trouble = None
            return batches
        return None

    async def _fetch_failed(self, error: BrokerError, pause: float) -> None:
        if self._trouble != str(error):
            log.warning("can't fetch, trying again", group=self.group, error=str(error))
        self._trouble = str(error)
        await asyncio.sleep(pause)

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        self._fetching.pause(partitions)

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        self._fetching.resume(partitions)

    async def commit(self, positions: Mapping[TopicPartition, Position]) -> None:
        consumer = self._consumer
        if not positions:
            return
        for topic, partition in positions:
            if consumer is None or (topic, partition) not in self._fetching.mine:
                raise CommitRefused(f"partition {topic}-{partition} is not assigned to this member")
        assert consumer is not None  # noqa: S101 - for the type checker: the loop has run
        refused = [key for key in positions if not self._starts.committable(key)]
        offsets = {
            KafkaPartition(*key): (position.offset, position.metadata)
            for key, position in positions.items()
            if key not in refused
        }
        if offsets:
            await self._commit(consumer, offsets, positions)
        if refused:
            names = ", ".join(f"{topic}-{number}" for topic, number in sorted(refused))
            raise CommitRefused(f"what was read of {names} is of another topic than there is by now", refused)

    async def _commit(
        self,
        consumer: AIOKafkaConsumer,
        offsets: Mapping[KafkaPartition, tuple[int, str]],
        positions: Mapping[TopicPartition, Position],
    ) -> None:
        commit = asyncio.timeout(self._settings.request_timeout)
        self._commits.add(commit)
        try:
            async with commit:
                await consumer.commit(offsets)
        except TimeoutError as error:
            if not self._fetching.mine.issuperset(positions):
                raise CommitRefused("the partitions were given up before the commit was through") from error
            raise BrokerUnavailable(self.problem or "no answer to a commit in time") from error
        except (errors.KafkaError, OSError) as error:
            raise mapped(error, "committing") from error
        finally:
            self._commits.discard(commit)

    def assignment(self) -> Collection[TopicPartition]:
        return self._fetching.mine

    def lag(self) -> Mapping[TopicPartition, int]:
        return self._fetching.lag()

    def ends(self) -> Mapping[TopicPartition, int]:
        return self._ends

    def passed(self) -> Mapping[TopicPartition, tuple[int, int]]:
        return self._fetching.passed()

    def stuck(self) -> Mapping[TopicPartition, UnreadableBatch]:
        return self._fetching.stuck.batches()

    def skip(self, partition: TopicPartition) -> None:
        self._fetching.skip(partition)
