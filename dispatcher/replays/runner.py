"""Runs replays: finds the jobs that nobody runs, and writes their deliveries to `dispatcher.replay`, no further ahead than may be.

A job is run by one replica at a time. Whoever writes the job's record last runs it: the record is the checkpoint, and each checkpoint is made from the
version before. A replica that lost a job (it hung for longer than `LEASE`) finds out at its next checkpoint. What it wrote in between is sent twice.

Rules:

1. Deliveries are written first, and the checkpoint that covers them after the broker has them. So a crash between any two writes sends some twice and
   skips none.
2. Nothing is written for a job that is not `running` by this replica, as far as this replica knows.
3. A job whose record did not change for `LEASE` seconds has lost its runner. A runner writes a checkpoint at least every `_HEARTBEAT` seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final

import structlog

from dispatcher.broker.base import Broker, BrokerError, Message
from dispatcher.control.errors import ControlError, VersionMismatch
from dispatcher.control.table import Row
from dispatcher.core.replay.job import JobState, ReplayJob, ReplaySource
from dispatcher.core.replay.pacing import SentRate, Throttle, room
from dispatcher.core.replay.selecting import NextGeneration, Selector
from dispatcher.core.subscription.index import Index
from dispatcher.history.base import HistoryError, QueryTooLong
from dispatcher.replays.planning import plan_ranges
from dispatcher.replays.sources import AskedHistory, HistoryReading, Piece, ReplayReading, log_reading
from dispatcher.replays.store import ReplayStore
from dispatcher.replays.tail import ReplayTail
from dispatcher.runtime.backoff import Backoff
from dispatcher.runtime.tasks import Tasks

log = structlog.get_logger(__name__)

LEASE: Final = 15.0
"""Seconds without a checkpoint after which another replica goes on."""

_HEARTBEAT: Final = 3.0
_CHECKPOINT: Final = 1.0  # seconds between checkpoints, while something is written
_CHECKPOINT_RECORDS: Final = 1000  # deliveries between checkpoints
_PIECE: Final = 500  # deliveries that are written at a time
_LOOK: Final = 0.5  # seconds between two looks at what is sent
_PAUSE: Final = 0.1  # seconds until another look where nothing may be written
_SEEK: Final = 0.5  # seconds between two looks for jobs
_AT_ONCE: Final = 4  # jobs of one replica


class ReplayCounts:
    """What this process has done for replays, for the metrics."""

    def __init__(self) -> None:
        self.written = 0
        self.sent = 0
        self.skipped = 0

    def by_result(self) -> dict[str, int]:
        """By what came of them."""
        return {"written": self.written, "sent": self.sent, "skipped": self.skipped}


class ReplayParts:
    """What running a job takes."""

    def __init__(
        self,
        broker: Broker,
        store: ReplayStore,
        index: Callable[[], Index],
        history: AskedHistory | None,
        *,
        event_topics: Collection[str],
        dead_topic: str,
        replay_topic: str,
        group: str,
        events_group: str,
        replica: str,
        next_generation: NextGeneration,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`index` gives the subscriptions in force; `group` reads `replay_topic`, `events_group` the events; `clock` gives seconds of any clock."""
        self.broker = broker
        self.store = store
        self.index = index
        self.history = history
        self.event_topics = tuple(event_topics)
        self.dead_topic = dead_topic
        self.replay_topic = replay_topic
        self.group = group
        self.events_group = events_group
        self.replica = replica
        self.next_generation = next_generation
        self.clock = clock
        self.counts = ReplayCounts()

    def topics(self, source: ReplaySource) -> tuple[str, ...]:
        """The topics that a replay of this source reads."""
        return (self.dead_topic,) if source is ReplaySource.DEAD_LETTERS else self.event_topics

    def selector(self, job: ReplayJob) -> Selector:
        """What is selected for a job."""
        return Selector(job.request, job.owner, job.id, self.index, self.next_generation, job.generation)


class JobLost(Exception):
    """Another replica runs the job, or it is gone."""


class ReplayRunner:
    """Runs jobs that nobody else runs."""

    def __init__(
        self, parts: ReplayParts, on_failure: Callable[[str, BaseException], None] | None = None
    ) -> None:
        """`on_failure` is told when it died by an error of its own."""
        self._parts = parts
        self._tasks = Tasks(on_failure)
        self._seen: dict[
            str, tuple[int, float]
        ] = {}  # of jobs that others run: the version, and since when it is that
        self._running: dict[str, RunningReplay] = {}

    @property
    def counts(self) -> ReplayCounts:
        """What this process has done for replays."""
        return self._parts.counts

    def start(self) -> None:
        """Look for jobs in the background."""
        self._tasks.start(self._run(), "replay runner")

    async def stop(self) -> None:
        """Let go of the jobs, so that another replica goes on at once."""
        running = list(self._running.values())
        await self._tasks.stop()
        for each in running:
            await each.release()

    def behind(self) -> int:
        """Deliveries that are written and not sent, of the jobs that this process runs."""
        return sum(each.behind for each in self._running.values())

    async def _run(self) -> None:
        await self._parts.store.wait_loaded()
        while True:
            for row in self._parts.store.rows():
                if len(self._running) >= _AT_ONCE:
                    break
                if self._may_run(row):
                    await self._claim(row)
            await asyncio.sleep(_SEEK)

    def _may_run(self, row: Row[ReplayJob]) -> bool:
        job = row.value
        if job.id in self._running:
            return False
        if job.state not in (JobState.PLANNED, JobState.RUNNING):
            self._seen.pop(job.id, None)
            return False
        if job.request.source is ReplaySource.DELIVERIES and self._parts.history is None:
            return False  # a replica with a history takes it
        if job.state is JobState.PLANNED or job.runner in (None, self._parts.replica):
            return True
        now = self._parts.clock()
        version, since = self._seen.get(job.id, (0, now))
        if version != row.version:
            self._seen[job.id] = (row.version, now)
            return False
        return now - since >= LEASE

    async def _claim(self, row: Row[ReplayJob]) -> None:
        store = self._parts.store
        try:
            claimed = await store.put(row.value.begin(store.now_ms(), self._parts.replica), base=row.version)
        except ControlError as error:
            log.info("a replay is not taken over", replay=row.name, reason=str(error))
            return
        self._seen.pop(row.name, None)
        running = self._running[row.name] = RunningReplay(self._parts, claimed)
        log.info("replay runs here", replay=row.name, taken_from=row.value.runner)
        self._tasks.start(self._see_through(running), f"replay {row.name}")

    async def _see_through(self, running: RunningReplay) -> None:
        try:
            await running.run()
        except Exception as error:
            # Deliveries go on, and no other replica is to die of it.
            log.exception("a replay failed by an error of its own", replay=running.id)
            await running.fail(f"an error of the dispatcher's own, report it: {error!r}")
        finally:
            del self._running[running.id]


class RunningReplay:
    """A job that this replica runs."""

    def __init__(self, parts: ReplayParts, row: Row[ReplayJob]) -> None:
        self.id = row.name
        self._parts = parts
        self._job = row.value
        self._version = row.version
        self._tail = ReplayTail(parts.broker, parts.replay_topic, parts.group, row.name, parts.clock)
        self._reading: ReplayReading | None = None
        self._unwritten: tuple[Piece, list[Message]] | None = None
        now = parts.clock()
        self._throttle = Throttle(self._job.request.rate, now)
        self._rate = SentRate()
        self._looked = float("-inf")
        self._kept = now
        self._since = 0  # deliveries written since the last checkpoint

    @property
    def behind(self) -> int:
        """Deliveries that are written and not sent."""
        return self._tail.behind

    async def run(self) -> None:
        """Go on until the job is over, paused, or somebody else's."""
        backoff = Backoff()
        while True:
            try:
                pause = await self.step()
            except JobLost as lost:
                log.info("replay no longer runs here", replay=self.id, reason=str(lost))
                return
            except VersionMismatch:
                continue  # `step` looks at what has changed
            except QueryTooLong as error:
                await self.fail(str(error))
                return
            except (BrokerError, HistoryError, ControlError) as error:
                wait = backoff.failed()
                log.warning(
                    "a replay stands still, trying again", replay=self.id, error=str(error), pause=wait
                )
                await asyncio.sleep(wait)
                continue
            backoff.succeeded()
            if pause is None:
                return
            await asyncio.sleep(pause)

    async def step(self) -> float | None:
        """One step: seconds until the next one; None when the job is over or paused.

        Raises JobLost, BrokerError, HistoryError, ControlError.
        """
        parts = self._parts
        if await self._stopped():
            return None
        if await self._hopeless():
            return None
        reading = await self._open()
        now = parts.clock()
        if now - self._looked >= _LOOK or self._looked < 0:
            await self._look()
        wrote = False
        if self._unwritten is None and not self._job.exhausted:
            wanted = self._allowance(now)
            if wanted > 0:
                piece = await reading.read(min(wanted, _PIECE))
                self._unwritten = piece, self._tail.messages(piece.records)
        if self._unwritten is not None:
            if await self._stopped():
                return None
            await self._write()
            wrote = True
        if self._job.exhausted and not self._tail.behind and self._unwritten is None:
            await self._finish()
            return None
        now = parts.clock()
        idle = now - self._kept
        if self._since >= _CHECKPOINT_RECORDS or (self._since and idle >= _CHECKPOINT) or idle >= _HEARTBEAT:
            await self._checkpoint()
        return 0.0 if wrote else max(_PAUSE, min(self._throttle.wait(), 1.0))

    async def _stopped(self) -> bool:
        """Whether the job is not to be run on: somebody has paused or ended it. Raises JobLost."""
        row = self._parts.store.get(self.id)
        if row is None:
            raise JobLost("it is gone")
        if row.version == self._version:
            return False
        said = row.value
        if said.runner not in (None, self._parts.replica):
            raise JobLost(f"{said.runner} runs it")
        onto = self._job.carried_over(said)
        if said.state is JobState.RUNNING:
            if said.runner is None:
                raise JobLost("somebody let go of it")
            # A checkpoint of ours whose answer was lost.
            self._job, self._version = onto, row.version
            return False
        if said.state is JobState.PLANNED:
            # Paused and resumed within a moment.
            await self._put(onto.begin(self._parts.store.now_ms(), self._parts.replica), row.version)
            return False
        await self._put(replace(onto, runner=None), row.version)
        log.info("replay stops here", replay=self.id, state=said.state.value)
        return True

    async def _hopeless(self) -> bool:
        """End a replay to a subscription that is no more."""
        wanted = self._job.request.subscription
        if wanted is None or self._parts.index().get(wanted) is not None:
            return False
        job = self._job.fail(self._parts.store.now_ms(), f"the subscription {wanted} was deleted")
        await self._put(job, self._version)
        return True

    async def _open(self) -> ReplayReading:
        """What is read, from the checkpoint on."""
        if self._reading is not None:
            return self._reading
        parts, job = self._parts, self._job
        selector = parts.selector(job)
        if job.request.source is ReplaySource.DELIVERIES:
            if parts.history is None:
                raise JobLost("there is no history here")
            self._reading = HistoryReading(parts.history, job.request, job.owner, selector, job.cursor)
            return self._reading
        if job.ranges is None:
            ranges = await plan_ranges(
                parts.broker, parts.topics(job.request.source), job.request, job.created_ms
            )
            await self._put(replace(job, ranges=ranges, exhausted=not ranges), self._version)
        self._reading = log_reading(parts.broker, self._job, selector)
        return self._reading

    async def _look(self) -> None:
        """See what is sent."""
        await self._tail.look()
        now = self._parts.clock()
        self._looked = now
        sent = max(self._job.sent, self._job.written - self._tail.behind)
        self._parts.counts.sent += sent - self._job.sent
        self._rate.note(now, sent)
        self._job = replace(self._job, sent=sent, per_second=self._rate.per_second)

    def _allowance(self, now: float) -> int:
        """How many deliveries may be written now."""
        ahead = room(self._tail.behind, self._job.per_second)
        allowed = self._throttle.allowed(now)
        return ahead if allowed is None else min(ahead, allowed)

    async def _write(self) -> None:
        """Write what was read, as far as the broker does not have it."""
        assert self._unwritten is not None  # noqa: S101 - the caller has looked
        piece, messages = self._unwritten
        if messages:
            have: set[int] = set()
            try:
                await self._parts.broker.produce(messages, have.update)
            except BrokerError:
                self._tail.wrote([message for number, message in enumerate(messages) if number in have])
                left = [message for number, message in enumerate(messages) if number not in have]
                self._unwritten = piece, left
                raise
            self._tail.wrote(messages)
        self._unwritten = None
        written = len(piece.records)
        self._throttle.spend(written)
        self._since += written or 1
        self._parts.counts.written += written
        self._parts.counts.skipped += sum(piece.skipped.values())
        self._job = self._job.advanced(
            ranges=piece.ranges,
            cursor=piece.cursor,
            exhausted=piece.exhausted,
            looked=piece.looked,
            written=written,
            skipped=piece.skipped,
        )

    async def _checkpoint(self) -> None:
        await self._put(replace(self._job, updated_ms=self._parts.store.now_ms()), self._version)
        self._since = 0
        self._kept = self._parts.clock()

    async def _finish(self) -> None:
        await self._look()
        if self._tail.behind:
            return
        job = replace(self._job, sent=self._job.written)
        await self._put(job.done(self._parts.store.now_ms()), self._version)
        log.info("replay done", replay=self.id, sent=job.sent, skipped=dict(job.skipped))

    async def _put(self, job: ReplayJob, base: int) -> None:
        row = await self._parts.store.put(job, base=base)
        self._job, self._version = row.value, row.version

    async def fail(self, detail: str) -> None:
        """End it, since it can't go on."""
        try:
            await self._put(self._job.fail(self._parts.store.now_ms(), detail), self._version)
        except ControlError as error:
            log.warning("a replay that can't go on is not ended", replay=self.id, reason=str(error))

    async def release(self) -> None:
        """Have another replica go on at once. What was written and not kept is written again."""
        try:
            async with asyncio.timeout(1.0):
                if self._job.state is JobState.RUNNING:
                    await self._put(replace(self._job, runner=None), self._version)
        except (ControlError, TimeoutError) as error:
            log.info("a replay is left to whoever finds it", replay=self.id, reason=str(error))
