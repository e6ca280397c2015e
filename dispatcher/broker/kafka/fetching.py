"""Records of the partitions that a member of a group has, as the library's consumer hands them out.

The library's `pause` throws away what it has fetched, and fetches it again after `resume`. Here pausing only leaves a
partition out of `getmany`: what was fetched stays (at most one fetch per partition), and a resumed partition goes
on at once.

Rules:

1. `mine` are the partitions that the listener has been told of and has not been told to lose. Nothing of others is handed out.
2. `is_open` is true from the end of `on_assigned` to the beginning of `on_revoked`. Nothing is handed out otherwise.
3. `positions` are behind the last record that was handed out, or the start where none was.
4. A topic that is made anew goes on with the offsets of the one before, and the protocol's fetch knows topics by name only. So what comes
   after a silence, or after a broker has said that a partition isn't there, is `in_doubt`: it is fetched again when its owner has
   seen that the topics are the same (`trust`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition as KafkaPartition, errors
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.fetch import FetchRequest

from dispatcher.broker.base import Record, TopicPartition, UnreadableBatch
from dispatcher.broker.kafka.client import milliseconds
from dispatcher.broker.kafka.predecessor import MemberName, assignor
from dispatcher.broker.kafka.starts import position_of
from dispatcher.broker.kafka.unreadable import StuckPartitions
from dispatcher.settings.groups import KafkaSettings

_NEVER_MS = 2**31 - 1
_QUIET = 5.0  # seconds without records, and without a paused partition, until brokers may wait for long
_SILENCE = 2.0  # seconds beyond the longest fetch, in which a topic may have been made anew unseen
# What a broker answers of a partition that isn't there, or that another one has.
_ABSENT = {errors.UnknownTopicOrPartitionError.errno, errors.NotLeaderForPartitionError.errno}


class PositionsCut(Exception):
    """These partitions end before their positions."""

    def __init__(self, partitions: Collection[TopicPartition]) -> None:
        super().__init__(partitions)
        self.partitions = partitions


class Fetching:
    """What one member reads."""

    def __init__(self, most: int, longest: float, shortest: float | None = None) -> None:
        """`most`: records at a time; `longest`: seconds that a broker may wait for records before it answers a fetch; `shortest`: likewise, while there is anything to do."""
        self._most = most
        self._longest = longest
        self._shortest = longest if shortest is None else shortest
        self._quick_until = 0.0  # loop time
        self._silence = longest + _SILENCE
        self._consumer: AIOKafkaConsumer | None = None
        self.mine: frozenset[TopicPartition] = frozenset()
        self.positions: dict[TopicPartition, int] = {}
        self.is_open = False
        self.stuck = StuckPartitions()
        self._paused: set[TopicPartition] = set()
        # What getmany is asked for: () is everything, None nothing.
        self._wanted: tuple[KafkaPartition, ...] | None = ()
        self._wake = asyncio.Event()
        self._waiting: asyncio.Timeout | None = None
        self.doubts = 0
        """How often there was a reason to doubt that the topics are the same."""
        self._settled = 0  # of these, those before the last look at the topics
        self._looked = 0.0  # when that was
        self._heard: dict[Any, float] = {}  # when each broker has answered a fetch last

    @property
    def in_doubt(self) -> bool:
        """Whether the topics may be others than those that were assigned."""
        return self.doubts != self._settled

    def trust(self, doubts: int) -> None:
        """The topics are the same, or are about to be taken anew: they were looked at after so many doubts."""
        self._settled = max(self._settled, doubts)
        self._looked = asyncio.get_running_loop().time()

    @property
    def has_work(self) -> bool:
        """Whether there is anything to fetch."""
        return self.is_open and self._wanted is not None

    def take(
        self,
        consumer: AIOKafkaConsumer,
        starts: Mapping[TopicPartition, int],
        reads: Mapping[TopicPartition, int],
    ) -> None:
        """These are its partitions, and where each of them starts; nothing is handed out before `open`.

        `reads`: where reading begins, of those where that is behind the start.
        """
        for partition, offset in starts.items():
            consumer.seek(KafkaPartition(*partition), reads.get(partition, offset))
        self._consumer = consumer
        self._ask(at_work=True)
        self.mine = frozenset(starts)
        self.positions = dict(starts)
        self.trust(self.doubts)

    def open(self) -> None:
        """The listener knows of all that was taken."""
        self.is_open = True
        self.interrupt()

    def close(self) -> None:
        """Hand out nothing for now."""
        self.is_open = False

    def drop(self) -> None:
        """All of it is lost."""
        self.is_open = False
        self._consumer = None
        self.mine = frozenset()
        self.positions = {}
        self._paused = set()
        self.stuck.clear()
        self._wanted = ()

    async def fetch(
        self, timeout: float, limit: int
    ) -> Sequence[tuple[TopicPartition, Sequence[Record]]] | None:
        """What is there, or comes within `timeout`; None when nothing came, or `interrupt` was called.

        Raises what the library raises, and PositionsCut.
        """
        consumer, wanted = self._consumer, self._wanted
        if consumer is None or wanted is None:
            return None
        if self.stuck:
            self.stuck.try_again(consumer, asyncio.get_running_loop().time())
        fetched = await self._getmany(consumer, wanted, timeout, min(limit, self._most))
        self._ask(at_work=bool(fetched))
        if fetched and self.in_doubt:
            for partition, records in fetched.items():
                consumer.seek(partition, records[0].offset)
            return None
        return self._accept(consumer, fetched) if fetched else None

    async def _getmany(
        self, consumer: AIOKafkaConsumer, wanted: tuple[KafkaPartition, ...], timeout: float, limit: int
    ) -> dict[Any, list[Any]]:
        """Safe to interrupt: records leave the library's buffer in the same step of the task that returns them."""
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
        positions = self.positions
        cut = []
        for partition, records in fetched.items():
            offset = records[0].offset
            if type(records[0]) is UnreadableBatch:
                self.stuck.stand_still(consumer, TopicPartition(*partition), records[0])
                continue
            if partition in self._paused:
                consumer.seek(partition, offset)  # paused while we waited: it comes again after resume
                continue
            if offset < positions[partition]:
                cut.append(TopicPartition(*partition))
                continue
            positions[partition] = records[-1].offset + 1
            if self.stuck:
                self.stuck.read_again(TopicPartition(*partition))
            batches.append((partition, records))
        if cut:
            # What else came is handed out by nobody: all partitions are taken anew, from their commits on.
            raise PositionsCut(cut)
        return batches

    def watched(
        self, consumer: AIOKafkaConsumer, send: Callable[..., Awaitable[Any]]
    ) -> Callable[..., Awaitable[Any]]:
        """Look at what brokers answer, on its way to the library: it passes over some errors of fetches, and asks again at once;
        and it takes a coordinator's refusal to tell the group's offsets for a group that has none.
        """

        async def watched(node_id: Any, request: Any, **options: Any) -> Any:
            response = await send(node_id, request, **options)
            if isinstance(request, FetchRequest):
                stuck = self.stuck
                current = self._consumer is consumer
                if current:
                    self._hear(node_id)
                for topic, partitions in response.topics:
                    for number, code, *_ in partitions:
                        if current and code in _ABSENT:
                            self.doubts += 1
                        if stuck.unreadable(code) or (not code and stuck):
                            partition = TopicPartition(topic, number)
                            position = self.positions.get(partition) if current else None
                            stuck.fetched(consumer, partition, position, code)
            elif isinstance(request, OffsetFetchRequest) and (code := getattr(response, "error_code", 0)):
                # It is not the coordinator any more, or not yet. Believed, everything would be begun anew.
                refused = errors.for_code(code)
                raise refused
            return response

        return watched

    def _hear(self, node: Any) -> None:
        """A broker has answered a fetch."""
        now = asyncio.get_running_loop().time()
        if now - max(self._heard.get(node, 0.0), self._looked) > self._silence:
            self.doubts += 1
        self._heard[node] = now

    async def idle(self, timeout: float) -> None:
        """Wait until there may be something to fetch."""
        self._wake.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        except TimeoutError:
            pass

    def interrupt(self) -> None:
        """Let whoever waits look again at what there is."""
        self._wake.set()
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(asyncio.get_running_loop().time())

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        """Hand out nothing of these."""
        self._paused.update(partition for partition in partitions if partition in self.mine)
        self._choose()

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        """Hand them out again."""
        before = len(self._paused)
        self._paused.difference_update(partitions)
        if len(self._paused) != before:
            self._choose()
            self.interrupt()

    def _choose(self) -> None:
        if not self._paused:
            self._wanted = ()
        else:
            self._wanted = tuple(KafkaPartition(*p) for p in self.mine if p not in self._paused) or None
        self._ask(at_work=False)

    def _ask(self, *, at_work: bool) -> None:
        """From the next fetch on, have brokers wait for as long as the times want it.

        One fetch is in flight per broker. A partition whose records are used up, or that is resumed, waits for its end.
        """
        if self._consumer is None or self._shortest == self._longest:
            return
        now = asyncio.get_running_loop().time()
        if at_work or self._paused:
            self._quick_until = now + _QUIET
        if (fetcher := self._consumer._fetcher) is not None:
            wait = self._shortest if now < self._quick_until else self._longest
            fetcher._fetch_max_wait_ms = milliseconds(wait)

    def skip(self, partition: TopicPartition) -> None:
        """Go on behind what it stands before."""
        consumer = self._consumer
        if consumer is not None and (following := self.stuck.skip(consumer, partition)) is not None:
            self.positions[partition] = following
            self.interrupt()

    def lag(self) -> Mapping[TopicPartition, int]:
        """Records between each position and the end, as of the last fetch."""
        consumer = self._consumer
        if consumer is None or not self.is_open:
            return {}
        behind = {}
        for partition in self.mine:
            end = consumer.highwater(KafkaPartition(*partition))
            if end is not None:
                position = position_of(consumer, partition)
                behind[partition] = max(
                    0, end - (self.positions[partition] if position is None else position)
                )
        return behind

    def passed(self) -> Mapping[TopicPartition, tuple[int, int]]:
        """Stretches without a record behind each position."""
        consumer = self._consumer
        if consumer is None or not self.is_open:
            return {}
        stretches = {}
        for partition, behind in self.positions.items():
            if partition in self.stuck:
                continue  # what can't be unpacked may still be
            position = position_of(consumer, partition)
            if position is not None and position > behind:
                stretches[partition] = (behind, position)
        return stretches


def make_consumer(
    options: Mapping[str, Any], name: MemberName | None, settings: KafkaSettings, group: str
) -> AIOKafkaConsumer:
    """The library's consumer as a member of the group, not started."""
    options = dict(options)
    # The answer to joining comes when every member has joined, which may take the rebalance timeout.
    options["request_timeout_ms"] = milliseconds(
        max(settings.request_timeout, settings.rebalance_timeout + 5)
    )
    if name is not None:
        options["client_id"] = name.client_id(options["client_id"])
    return AIOKafkaConsumer(
        **options,
        group_id=group,
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
