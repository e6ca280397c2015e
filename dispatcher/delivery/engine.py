"""The asyncio shell of the data path: batches, results and time in; sends, writes and commits out.

The path of one event: a batch is polled; each record is decoded and matched; its offset is
tracked with the number of deliveries it owes; each delivery is queued, attempted and settled
(`delivery/deliveries.py`, the other half of this engine). What goes to a retry topic comes back (`delivery/retry_reader.py`) when it is near.
Once a second the lowest owed offset of each partition is committed, with a note of what is done beyond it (`delivery/membership.py`).

Rules:

1. Everything here and in `delivery/deliveries.py` runs on one loop. No lock; between reading and writing a piece of this
   state there is no await.
2. At a cap no further record is taken up; the consumer is still polled (paused), so that the group
   keeps this member.
3. While partitions are being reassigned (the gate is closed) no attempt starts, so that few deliveries are
   sent by two members.
4. Records belong to the tracker that their partition had when they were polled. A partition may leave
   and come back while they wait for room; with its new tracker they would pass for read already.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final

import structlog

from dispatcher.broker.base import Broker, GroupMemory, NoMemory, Record, TopicPartition, UnreadableRecord
from dispatcher.core.commit.note import Note
from dispatcher.core.commit.offsets import PartitionTracker
from dispatcher.core.commit.parked import ParkedTracker
from dispatcher.core.control.skips import Skip
from dispatcher.core.endpoint.health import Health
from dispatcher.core.event.decode import InvalidEvent, decode, is_tombstone
from dispatcher.core.request.netguard import Guard
from dispatcher.core.retry.records import UNREADABLE_RECORD as UNREADABLE
from dispatcher.core.retry.tiers import Tiers
from dispatcher.core.retry.wheel import Entry
from dispatcher.delivery.attempt_log import AttemptLog
from dispatcher.delivery.backlogs import Backlogs
from dispatcher.delivery.commit_notes import READ_LIMIT, notes_topic
from dispatcher.delivery.deliveries import Deliveries, Delivery, GivenUp
from dispatcher.delivery.membership import Intake
from dispatcher.delivery.outbox import Outbox
from dispatcher.delivery.parking import parked_retention, parked_topic
from dispatcher.delivery.retry_reader import Retries
from dispatcher.delivery.stuck import pass_over, sentence
from dispatcher.delivery.unmatched import Unmatched
from dispatcher.registry.registry import Registry
from dispatcher.runtime.tasks import Tasks
from dispatcher.runtime.timers import Callback, Timers
from dispatcher.settings.groups import Settings
from dispatcher.telemetry.metrics import Labels, Metrics
from dispatcher.transport.client import Transport

log = structlog.get_logger(__name__)

COMMIT_INTERVAL: Final = 1.0
_POLL_TIMEOUT: Final = 1.0
_KEEP_ALIVE: Final = 0.5  # polls while at a cap, so that the group keeps this member
_SWEEP: Final = 15.0  # seconds between two looks for lanes that fell silent
_SLICE: Final = 32  # deliveries taken up between two turns of the loop: about 1 ms of work
_REVOKE_DRAIN: Final = 3.0  # seconds at the most for attempts under way to end before partitions are given up
# Of that, seconds without any attempt ending: those left are slow, and nobody waits for them.
_REVOKE_PATIENCE: Final = 1.0
_LEAVE_LIMIT: Final = 5.0  # seconds for the last commit and for leaving the group
_LOG_LIMIT: Final = 2.0  # seconds for the end of the attempt log
_GATE_LIMIT: Final = 10.0  # seconds without attempts at the most, should no assignment follow
_MEASURE: Final = 0.5  # seconds between two measurements of how fast lanes are
_LAG_INTERVAL: Final = 0.1


class Engine:
    """The data path of one process."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        transport: Transport,
        registry: Registry,
        guard: Guard,
        metrics: Metrics,
        timers: Timers,
        *,
        replica: str = "",
        on_failure: Callable[[str, BaseException], None] | None = None,
        on_given_up: GivenUp | None = None,
        memory: Callable[[str], GroupMemory] | None = None,
        skips: Callable[[], Collection[Skip]] = tuple,
        chance: Callable[[], float] = random.random,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`replica` names this process in the attempt log. `on_failure` is told when a part of the engine died: the
        process should end; `on_given_up` of each delivery whose dead letter is written. `memory` gives what is
        remembered of a consumer group; without it nothing is. `skips` gives what operators have given up reading.

        `wall` gives Unix seconds, `chance` a number in [0, 1).
        """
        self._registry = registry
        self._skips = skips
        self._transport = transport
        self._metrics = metrics
        self._timers = timers
        self._clock = asyncio.get_running_loop().time
        self._unmatched = Unmatched(self._clock, debug=settings.log.level == "debug")
        self._on_failure = on_failure
        self._tasks = Tasks(on_failure)
        self._consuming: list[asyncio.Task[None]] = []

        self._poll_limit = settings.kafka.max_poll_records
        self._hold_limit = settings.retry.hold_limit
        tiers = Tiers(settings.retry.tiers, settings.topics.prefix)

        self._outbox = Outbox(broker.produce)
        self._attempts = AttemptLog(
            settings.attempts.log, f"{settings.topics.prefix}attempts", replica, broker.produce_bulk
        )
        self._deliveries = Deliveries(
            settings,
            tiers,
            transport=transport,
            registry=registry,
            guard=guard,
            outbox=self._outbox,
            attempts=self._attempts,
            metrics=metrics,
            timers=timers,
            broken=self._broken,
            chance=chance,
            wall=wall,
        )
        self._deliveries.on_given_up = on_given_up
        group, retry_group = settings.group, f"{settings.group}.retry"
        remembered = memory or (lambda _: NoMemory())
        notes = notes_topic(settings)
        # No heartbeat goes out meanwhile.
        read_limit = min(READ_LIMIT, settings.kafka.session_timeout / 4)
        self._events = Intake(
            broker,
            settings.topics.events,
            group,
            self,
            metrics,
            memory=remembered(group),
            notes_topic=notes,
            read_limit=read_limit,
            reserves=True,
        )
        parked = parked_topic(settings.topics.prefix)
        self._returning = Intake(
            broker,
            [*(tier.topic for tier in tiers), parked],
            retry_group,
            self,
            metrics,
            own=True,
            memory=remembered(retry_group),
            notes_topic=notes,
            read_limit=read_limit,
            tracker=partial(_tracker, parked),
        )
        self._backlogs = Backlogs(
            parked,
            self._returning,
            self._deliveries,
            self._outbox,
            metrics,
            timers,
            read_from=broker.read_from,
            read=broker.read,
            start=self._tasks.start,
            keeps=settings.subscription.pause_keeps,
            renew_after=parked_retention(settings.subscription.pause_keeps) / 2,
            wall=wall,
        )
        self._retries = Retries(
            self._returning,
            tiers,
            settings.retry.horizon,
            self._deliveries,
            broker.read,
            metrics,
            wall,
            self._backlogs,
        )
        self._batches: deque[tuple[PartitionTracker, Sequence[Record]]] = deque()  # polled, not taken up yet
        self._moving: set[Intake] = set()  # whose partitions are being reassigned
        self._gate_limits: dict[Intake, Entry[Callback]] = {}
        self._closed = False  # the drain is over: the gate stays closed
        self._stopping = False
        self._failed_itself = False
        self._report_metrics()

    # Starting, stopping, and what others may ask.

    def start(self) -> None:
        """Join the group and deliver, in the background; waits for the broker as long as it takes."""
        self._tasks.start(self._outbox.run(), "outbox")
        self._tasks.start(self._attempts.run(), "attempt log")
        for intake in (self._events, self._returning):
            self._tasks.start(self._commit_regularly(intake), f"commit {intake.group}")
        self._tasks.start(self._limit_holding_regularly(), "limit holding")
        self._tasks.start(self._sweep(), "sweep lanes")
        self._tasks.start(self._measure_lag(), "measure loop lag")
        self._tasks.start(self._measure_lanes(), "measure lanes")
        self._tasks.start(self._backlogs.run(), "backlogs")
        self._consuming = [
            self._tasks.start(self._consume(), "consume"),
            self._tasks.start(self._retries.run(), "retries"),
        ]

    def warnings(self) -> list[str]:
        """What isn't as it should be, while deliveries go on, a sentence each."""
        found = [] if self._attempts.problem is None else [self._attempts.problem]
        for intake in (self._events, self._returning):
            found += intake.warnings()
            found += [sentence(*stuck) for stuck in intake.consumer.stuck().items()]
        found += [sentence(*stuck) for stuck in self._backlogs.stuck().items()]
        return found

    def problems(self) -> list[str]:
        """Why it isn't working just now, a sentence each; empty when it is."""
        found = [self._events.problem, self._outbox.problem]
        if self._returning.problem is not None and self._returning.problem != self._events.problem:
            found.append(f"retries: {self._returning.problem}")
        if self._stopping:
            found.append("the dispatcher is stopping")
        return [problem for problem in found if problem is not None]

    def health(self, subscription_id: str) -> Health:
        """How deliveries to it go, as this process sees it; of one that it knows nothing of, nothing."""
        return self._deliveries.health(subscription_id)

    async def stop(self, drain: float) -> None:
        """Take up nothing new, let what is under way end within `drain` seconds, commit, leave the group."""
        self._stopping = True
        deadline = self._clock() + drain
        self._backlogs.stop()
        for task in self._consuming:
            task.cancel()
        await asyncio.gather(*self._consuming, return_exceptions=True)
        # Held deliveries wait for their retry: for longer than anybody would wait for them here.
        while self._clock() < deadline and self._deliveries.busy and not self._failed_itself:  # noqa: ASYNC110 - an event would cost every settlement a check
            await asyncio.sleep(0.01)
        log.info("drained", left=self._deliveries.busy, held=self._deliveries.held)
        self._closed = True
        self._deliveries.gate = False
        # A broker that is away must not keep the process from ending in time.
        try:
            async with asyncio.timeout(_LEAVE_LIMIT):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LEAVE_LIMIT / 2):
                        await self._leave_behind()
                for intake in (self._events, self._returning):
                    await intake.commit_last()
                    await intake.consumer.stop()
        except TimeoutError:
            log.warning("the broker did not answer: left without a last commit", seconds=_LEAVE_LIMIT)
        await self._tasks.stop()
        await self._attempts.finish(_LOG_LIMIT)
        self._deliveries.forget_held()

    async def _leave_behind(self) -> None:
        """Hand what is left to the retry topics, and wait until it is written.

        Left owed it would be read again with its event, and go again to those who have acknowledged that event.
        """
        self._deliveries.leave_behind()
        await self._transport.close()  # what is under way comes back cancelled, and is handed over too
        while len(self._outbox):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)

    def _broken(self, where: str, error: Exception) -> None:
        """What can't happen has happened: see rule 4 of `delivery/deliveries.py`."""
        log.error("the engine is broken", where=where, exc_info=error)
        self._failed_itself = True
        if self._on_failure is not None:
            self._on_failure(where, error)

    # Consume, match, track, queue.

    async def _consume(self) -> None:
        consumer = self._events.consumer
        await consumer.start()
        while True:
            self._polled(await consumer.poll(_POLL_TIMEOUT, self._poll_limit))
            while self._batches:
                tracker, records = self._batches.popleft()
                if not tracker.lost:
                    await self._events.reserve(tracker, records[-1].offset + 1)
                if not tracker.lost:
                    await self._take_up(tracker, records)

    def _polled(self, batches: Sequence[tuple[TopicPartition, Sequence[Record]]]) -> None:
        # Bound to their trackers before the next await: see rule 4.
        trackers = self._events.trackers
        self._batches.extend((trackers[partition], records) for partition, records in batches)

    async def _take_up(self, tracker: PartitionTracker, records: Sequence[Record]) -> None:
        metrics = self._metrics
        deliveries = self._deliveries
        topic, partition = tracker.topic, tracker.partition
        metrics.consumed[topic] += len(records)
        taken = 0
        ready: list[Delivery] = []  # owed; started together, and before anything is waited for
        for record in records:
            offset = record.offset
            if tracker.seen(offset):
                metrics.skipped["seen"] += 1
            elif isinstance(record, UnreadableRecord):
                tracker.track(offset, 1)
                metrics.invalid[UNREADABLE] += 1
                deliveries.refuse(record, tracker, UNREADABLE, record.problem)
            elif record.value is None and is_tombstone(record):
                metrics.skipped["tombstone"] += 1
                tracker.track(offset, 0)
            else:
                try:
                    event = decode(record, topic, partition)
                except InvalidEvent as error:
                    tracker.track(offset, 1)
                    metrics.invalid[error.reason] += 1
                    deliveries.refuse(record, tracker, error.reason, error.detail)
                else:
                    index = self._registry.index
                    wanted = index.match(event.tenant, event.type)
                    serial = index.serial
                    who = tracker.handed_on(offset)
                    if who is not None:
                        wanted = index.owed(event.tenant, wanted, who.owed, who.ids)
                    tracker.track(offset, len(wanted), wanted, who)
                    if not wanted:
                        metrics.unmatched += 1
                        self._unmatched.note(event)
                    for subscription in wanted:
                        if taken >= _SLICE or deliveries.at_cap():
                            taken = 0
                            await self._pause(ready)
                            if tracker.lost:
                                return
                        delivery = Delivery(deliveries, event, subscription, tracker, offset, serial)
                        deliveries.owe(delivery)
                        ready.append(delivery)
                        taken += 1
                    if wanted:
                        continue
            # What owes no delivery is held to the caps and the slices too.
            taken += 1
            if taken >= _SLICE or deliveries.at_cap():
                taken = 0
                await self._pause(ready)
                if tracker.lost:
                    return
        deliveries.start(ready)

    async def _pause(self, ready: list[Delivery]) -> None:
        """Start these, and let others have their turn, until there is room."""
        self._deliveries.start(ready)
        if self._deliveries.at_cap():
            await self._room()
        else:
            await asyncio.sleep(0)

    async def _room(self) -> None:
        """Wait until there is room below the caps again, keeping the membership alive."""
        consumer = self._events.consumer
        deliveries = self._deliveries
        deliveries.full = True
        deliveries.has_room_again.clear()
        try:
            await self._wait_for_room()
        finally:
            deliveries.full = False
            # Also where nothing was paused here: a rebalance meanwhile pauses what it assigns.
            consumer.resume(consumer.assignment())

    async def _wait_for_room(self) -> None:
        consumer = self._events.consumer
        deliveries = self._deliveries
        while deliveries.full:
            try:
                async with asyncio.timeout(_KEEP_ALIVE):
                    await deliveries.has_room_again.wait()
            except TimeoutError:
                # What was polled is not all taken up, and what follows it must not come before.
                consumer.pause(consumer.assignment())
                # Nothing, unless a rebalance ends in here that has also emptied the lanes.
                self._polled(await consumer.poll(0, self._poll_limit))
            else:
                return

    # Commits, and partitions that come and go.

    async def _commit_regularly(self, intake: Intake) -> None:
        # Each group by itself: their coordinators may be two brokers, of which one is away.
        while True:
            await asyncio.sleep(COMMIT_INTERVAL)
            intake.observe(self._clock())
            pass_over(intake.consumer, self._skips(), self._metrics)
            if intake is self._returning:
                pass_over(self._backlogs, self._skips(), self._metrics)
            await intake.commit()

    async def _limit_holding_regularly(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_INTERVAL)
            self._limit_holding()

    def _limit_holding(self) -> None:
        """Hand what is owed for longer than the limit to a tier, so that the commit moves on."""
        now = self._clock()
        trackers = [*self._events.trackers.values(), *self._returning.trackers.values()]
        looks = [tracker.look(now, self._hold_limit) for tracker in trackers]  # each keeps time by it
        if any(looks):
            self._deliveries.hand_over_overdue()

    async def before_revocation(self, intake: Intake) -> None:
        """Partitions are about to move: let attempts end and what came of them be written, start none.

        A retry that is written after the commit would be a duplicate: the next owner reads its event again.
        """
        self._deliveries.gate = False
        self._moving.add(intake)
        now = since = self._clock()
        deadline = now + _REVOKE_DRAIN
        fewest = self._deliveries.unsettled
        while fewest and now < deadline and now - since < _REVOKE_PATIENCE:
            await asyncio.sleep(0.01)
            now = self._clock()
            left = self._deliveries.unsettled
            if left < fewest:
                fewest = left
                since = now

    async def after_revocation(self, intake: Intake) -> None:
        """Should no assignment follow soon (the broker went away), deliveries go on without."""
        limit = self._gate_limits.pop(intake, None)
        if limit is not None:
            self._timers.cancel(limit)
        self._gate_limits[intake] = self._timers.at(
            self._clock() + _GATE_LIMIT, partial(self._open_gate, intake)
        )

    def after_assignment(self, intake: Intake) -> None:
        """Forget what waited for partitions that are somebody else's now."""
        self._deliveries.forget_lost()
        if intake is self._events:
            if self._deliveries.full:
                intake.consumer.pause(intake.trackers.keys())
            self._metrics.rebalances += 1
        else:
            self._retries.reassigned()
        self._open_gate(intake)

    def _open_gate(self, intake: Intake) -> None:
        self._moving.discard(intake)
        limit = self._gate_limits.pop(intake, None)
        if limit is not None:
            self._timers.cancel(limit)
        if not (self._deliveries.gate or self._moving or self._closed):
            self._deliveries.open_gate()

    # Housekeeping and metrics.

    async def _sweep(self) -> None:
        """Drop the lanes of origins that fell silent."""
        while True:
            await asyncio.sleep(_SWEEP)
            self._deliveries.sweep(self._clock())

    async def _measure_lanes(self) -> None:
        while True:
            await asyncio.sleep(_MEASURE)
            self._deliveries.measure(self._clock())

    async def _measure_lag(self) -> None:
        lag = self._metrics.event_loop_lag
        while True:
            before = time.perf_counter()
            await asyncio.sleep(_LAG_INTERVAL)
            lag.observe(max(0.0, time.perf_counter() - before - _LAG_INTERVAL))

    def _lag(self) -> dict[Labels, float]:
        """Records not taken up yet: of a retry topic also those that were read and wait for their time."""
        lag = {**self._events.lag(), **self._returning.lag()}
        for waiting in (self._retries.waiting(), self._backlogs.waiting()):
            for labels, count in waiting.items():
                lag[labels] = lag.get(labels, 0.0) + count
        return lag

    def _report_metrics(self) -> None:
        reads = self._metrics.reads
        deliveries = self._deliveries
        reads("deliveries_in_flight", lambda: deliveries.in_flight)
        reads("deliveries_in_flight_bytes", lambda: deliveries.bytes)
        reads("deliveries_queued", lambda: deliveries.queued)
        reads("deliveries_held", lambda: deliveries.held)
        reads("deliveries_parked_waiting", self._backlogs.parked)
        reads("lanes", lambda: deliveries.lanes)
        reads("breakers_open", deliveries.breakers_open)
        reads("outbox_waiting", lambda: len(self._outbox))
        reads("attempt_records_waiting", lambda: len(self._attempts))
        reads(
            "attempt_records_total",
            lambda: {("written",): self._attempts.written, ("dropped",): self._attempts.dropped},
        )
        reads(
            "partitions_stuck",
            lambda: {
                (p.topic, str(p.partition)): 1.0
                for source in (self._events.consumer, self._returning.consumer, self._backlogs)
                for p in source.stuck()
            },
        )
        reads("consumption_paused", lambda: deliveries.full)
        reads("partition_lag", self._lag)
        reads(
            "partition_held_seconds",
            lambda: {**self._events.held(), **self._returning.held()},
        )


def _tracker(parked: str, topic: str, partition: int, start: int, ahead: Note) -> PartitionTracker:
    """A million may be parked in a partition, and none of them is held back by it."""
    return (ParkedTracker if topic == parked else PartitionTracker)(topic, partition, start, ahead)
