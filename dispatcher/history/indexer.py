"""Follows the logs and fills the store. A task of its own; nothing waits for it, and it dies of nothing that a store or a broker says.

In one process with deliveries it takes what they leave over (`resting.py`).

Rules:

1. Where a partition is read next is what the store says. After any error or doubt the positions are read again.
2. What is read goes to the store in one call for all partitions of a round; a partition is in a round once.
3. A partition that is further behind than `max_behind` is passed over to where half of that is left, and the gap is kept with
   the new position. Not so below `Standing.until`: somebody has asked for all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, Final

import structlog

from dispatcher.broker.base import Broker, BrokerError, TopicPartition
from dispatcher.history.base import (
    Gap,
    HistoryError,
    HistoryStore,
    LogBatch,
    LogPartition,
    PositionMoved,
    Sizes,
    Standing,
)
from dispatcher.history.following import Counter, Ends, Followed, TopicKind, ends_of, peek, seek
from dispatcher.history.resting import Resting
from dispatcher.history.sharing import PartitionShare
from dispatcher.runtime.backoff import Backoff
from dispatcher.runtime.tasks import Tasks

log = structlog.get_logger(__name__)

_LOOK: Final = 20.0  # seconds between two looks at which partitions there are, and where they end
_RETAIN: Final = 600.0  # seconds between two looks at what is too old
_IDLE: Final = 0.25  # seconds between two rounds that had nothing to do
_LONGEST_PAUSE: Final = 15.0  # seconds between tries
_ROUND: Final = 4000  # records of a round, at the most
_PIECE: Final = 500  # of a partition
_WARN_AT: Final = 0.1  # of the time that a topic keeps: what is left when the warning comes
_WARN_AFTER_MS: Final = 60_000  # behind, and kept at least


# Long: what is followed, what is passed over and what is told of it go by the same partitions.
class Indexer:
    """The history's task: which partitions are followed, and what becomes of what they say."""

    def __init__(
        self,
        store: HistoryStore,
        broker: Broker,
        topics: Mapping[str, TopicKind],
        group: str,
        *,
        max_behind: float,
        counter: Counter,
        follows: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`topics` are followed, each by its kind; `max_behind` in seconds; `clock` gives Unix seconds.

        `follows` is False where others do that, and this process only asks the store.
        """
        self.store = store
        self.sizes = Sizes(0, 0)
        self.on_indexed: Callable[[Sequence[LogBatch]], None] | None = None
        """Told what is in the store now, after each round that brought something."""
        self._broker = broker
        self._topics = dict(topics)
        self._max_behind_ms = round(max_behind * 1000)
        self._counter = counter
        self._follows = follows
        self._clock = clock
        self._began_ms = self._now_ms()
        self._group = group
        self._share: PartitionShare | None = None
        self._tasks = Tasks(self._died)
        self._followed: dict[LogPartition, Followed] = {}
        self._looked = float("-inf")  # loop time
        self._retained = float("-inf")
        self._there = 0
        self._problem: str | None = None
        self._tried = asyncio.Event()
        self._retention_near: str | None = None
        self._resting = Resting()

    # What it says of itself.

    @property
    def problem(self) -> str | None:
        """What keeps it from going on now, in one sentence; None when all is well."""
        return self._problem

    def as_of_ms(self) -> int:
        """Everything that the logs said before is known, but for gaps. Unix ms; 0 where nothing is known yet."""
        return min((followed.as_of_ms() for followed in self._followed.values()), default=0)

    def behind_seconds(self) -> float:
        """How old what is known is; where nothing can be known, for how long that has been so."""
        as_of = self.as_of_ms()
        if not as_of and self._follows and self._problem is not None:
            as_of = self._began_ms
        return max(0.0, self._clock() - as_of / 1000) if as_of else 0.0

    def behind_records(self) -> int:
        """Records that are there and not read, as of the last look."""
        return sum(followed.behind() for followed in self._followed.values())

    def warnings(self) -> list[str]:
        """What isn't as it should be, a sentence each. Deliveries go on all the same."""
        found = [warning for warning in (self._problem, self._retention_near) if warning is not None]
        if self._problem is None and self.behind_seconds() > max(60.0, self._max_behind_ms / 10_000):
            found.append(
                f"the history is {self.behind_seconds():.0f} s behind: it takes what deliveries leave over; give it a process of its own"
                " if that lasts"
            )
        return found

    @property
    def partitions(self) -> int:
        """How many this process indexes."""
        return len(self._followed)

    @property
    def all_partitions(self) -> int:
        """How many there are to be indexed, by this process or others, as of the last look; 0 where this one doesn't look."""
        return self._there

    @property
    def shared(self) -> bool:
        """Whether others index into the same store, so that what this process knows is not all."""
        return self.store.shared

    # The task.

    def start(self) -> None:
        self._tasks.start(self._run(), "history")

    async def tried_to_open(self, within: float) -> None:
        """Return when the store is open or its first refusal is known, after `within` seconds at the latest."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._tried.wait()

    def start_beside(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run what else fills the store, until this ends. If it dies, deliveries go on likewise."""
        self._tasks.start(work, name)

    async def end(self) -> None:
        """Read no more. What is known can be asked until `close`."""
        await self._tasks.stop()

    async def stop(self) -> None:
        """Both."""
        await self.end()
        await self.close()

    async def close(self) -> None:
        """Let go of the store, which may take some seconds."""
        try:
            await self.store.close()
        except HistoryError as error:
            log.warning("the history was not closed well", error=str(error))

    def _died(self, task: str, error: BaseException) -> None:
        self._problem = f"the history has ended by an error of its own ({error!r}): restart this process to go on, and report it"
        log.critical("the history failed; deliveries go on", task=task, exc_info=error)

    async def _run(self) -> None:
        await self._open()
        if not self._follows:
            return
        if self.store.shared:
            self._share = PartitionShare(self._broker, list(self._topics), self._group)
            self._tasks.start(self._share.run(), "history group")
        backoff = Backoff(longest=_LONGEST_PAUSE)
        while True:
            try:
                busy = await self._round()
            except PositionMoved as error:
                log.info("the history reads on where the store stands", reason=str(error))
                self._followed.clear()
                self._looked = float("-inf")
                continue
            except (HistoryError, BrokerError) as error:
                await self._pause(error, backoff.failed())
                self._looked = float("-inf")
                continue
            backoff.succeeded()
            self._problem = None
            if not busy:
                await asyncio.sleep(_IDLE)

    async def _open(self) -> None:
        backoff = Backoff(longest=_LONGEST_PAUSE)
        while True:
            try:
                await self.store.open()
            except HistoryError as error:
                self._tried.set()
                await self._pause(error, backoff.failed())
            else:
                self._problem = None
                self._tried.set()
                return

    async def _pause(self, error: Exception, pause: float) -> None:
        if self._problem != (problem := f"the history stands still: {error}"):
            log.warning(
                "the history stands still, trying again; deliveries go on", error=str(error), pause=pause
            )
        self._problem = problem
        await asyncio.sleep(pause)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    async def _round(self) -> bool:
        """Read what there is and keep it; whether there was anything."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        if started - self._looked >= _LOOK or self._reassigned():
            await self._look()
        if started - self._retained >= _RETAIN:
            await self.store.retain(self._now_ms())
            self.sizes = await self.store.sizes()
            self._retained = started
        self._resting.begin()
        batches = await self._read(loop.time())
        if batches:
            await self._keep(batches)
        turn = loop.time()
        await asyncio.sleep(0)
        await self._resting.after(loop.time() - turn)
        return bool(batches)

    async def _read(self, now: float) -> list[LogBatch]:
        batches: list[LogBatch] = []
        records = 0
        # Those that have waited longest come first.
        for followed in sorted(self._followed.values(), key=lambda followed: followed.due):
            if followed.due > now:
                break
            batch = await followed.read(self._broker, _PIECE, self._now_ms)
            if batch is None:
                continue
            batches.append(batch)
            records += len(batch.attempts) + len(batch.events) + len(batch.dead)
            if records >= _ROUND:
                break
        return batches

    async def _keep(self, batches: Sequence[LogBatch]) -> None:
        await self.store.apply(batches, self._now_ms())
        for batch in batches:
            followed = self._followed[batch.partition]
            until = 0 if followed.standing is None else followed.standing.until
            followed.standing = Standing(batch.next, batch.time_ms, until)
            self._counter.indexed += len(batch.attempts) + len(batch.events) + len(batch.dead)
            if batch.gap is not None:
                self._tell(batch.gap)
        if self.on_indexed is not None:
            self.on_indexed(batches)

    def _tell(self, gap: Gap) -> None:
        self._counter.skipped += gap.next - gap.first
        log.warning(
            "the history has a gap",
            topic=gap.partition.topic,
            partition=gap.partition.partition,
            first=gap.first,
            next=gap.next,
            reason=gap.reason,
        )

    # Which partitions.

    def _reassigned(self) -> bool:
        if self._share is None:
            return False
        return self._share.partitions != {followed.source for followed in self._followed.values()}

    async def _look(self) -> None:
        """See which partitions there are and are this process's, where they end, and where the store stands."""
        there = await self._broker.look(list(self._topics))
        infos = {
            TopicPartition(info.name, partition.partition): ends_of(partition)
            for info in await self._broker.topics(only=lambda name: name in there)
            for partition in info.partitions
        }
        self._there = len(infos)
        mine: Collection[TopicPartition] = infos if self._share is None else self._share.partitions
        wanted = {
            LogPartition(source.topic, there[source.topic].id or "", source.partition)
            for source in mine
            if source.topic in there and source in infos
        }
        positions: Mapping[LogPartition, Standing] = {}
        if wanted - self._followed.keys():
            positions = await self.store.positions()
        for partition in self._followed.keys() - wanted:
            del self._followed[partition]
        for partition in sorted(wanted - self._followed.keys()):
            followed = Followed(partition, self._topics[partition.topic])
            followed.take(positions.get(partition))
            self._followed[partition] = followed
        for followed in self._followed.values():
            followed.ends = infos[followed.source]
        self._retention_near = None
        for followed in list(self._followed.values()):
            await self._pass_over(followed)
        self._looked = asyncio.get_running_loop().time()

    async def _pass_over(self, followed: Followed) -> None:
        """Give up what is too far behind, or what isn't there any more (rule 3)."""
        ends = followed.ends
        if ends is None:
            return
        standing = followed.standing
        now_ms = self._now_ms()
        if standing is not None and standing.next > ends.latest:
            if followed.partition.topic_id:
                standing = await self._cut(followed, standing, ends.latest)
            else:
                await self._made_anew(followed, ends.latest)
                standing = None
        begin = 0 if standing is None else standing.next
        if begin >= ends.latest:
            return
        first = await peek(self._broker, followed.source, max(begin, ends.earliest))
        if first is None:
            return
        first_ms = first.timestamp
        await self._warn(followed, ends, first_ms, now_ms)
        if now_ms - first_ms <= self._max_behind_ms or (standing is not None and begin < standing.until):
            return
        target = await seek(self._broker, followed.source, ends, now_ms - self._max_behind_ms // 2)
        if target <= begin:
            return
        known_ms = first_ms if standing is None else max(standing.time_ms, 0)
        gap = Gap(
            followed.partition,
            begin,
            target,
            min(known_ms, first_ms),
            now_ms - self._max_behind_ms // 2,
            "behind" if standing is not None else "before",
        )
        batch = LogBatch(followed.partition, followed.next, target, max(known_ms, 0), gap=gap)
        await self._keep([batch])

    async def _warn(self, followed: Followed, ends: Ends, first_ms: int, now_ms: int) -> None:
        """Say when what is next to be read will soon be deleted."""
        if now_ms - first_ms < _WARN_AFTER_MS:
            return
        oldest = await peek(self._broker, followed.source, ends.earliest)
        kept_ms = 0 if oldest is None else now_ms - oldest.timestamp
        if kept_ms >= _WARN_AFTER_MS and now_ms - first_ms > kept_ms * (1 - _WARN_AT):
            self._retention_near = (
                f"retention will soon delete records of {followed.source.topic} that the history has not read: give the history more"
                " (a process of its own), or the topic a longer retention"
            )

    async def _cut(self, followed: Followed, standing: Standing, end: int) -> Standing:
        """The topic is the same by its id, so its end is lost: an election has made a replica the leader that did not have it."""
        log.warning(
            "the log has lost its end; reading on from where it ends now",
            topic=followed.source.topic,
            partition=followed.source.partition,
            position=standing.next,
            end=end,
        )
        await self.store.cut(followed.partition, end)
        standing = standing._replace(next=end)
        followed.take(standing)
        return standing

    async def _made_anew(self, followed: Followed, end: int) -> None:
        """The embedded broker's file is another one: its topics have no ids that would tell. What is known of the old one stays."""
        log.warning(
            "the log ends before where the history has read it, so it was made anew; reading it from its beginning",
            topic=followed.source.topic,
            partition=followed.source.partition,
            position=followed.next,
            end=end,
        )
        await self.store.restart([followed.partition])
        followed.take(None)
