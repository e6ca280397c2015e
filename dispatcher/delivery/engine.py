"""The data path of one process: builds its rooms, starts and stops them, and calls them regularly.

The path of one event, a room a file: `consuming.py` polls a batch, decodes and matches each record, and tracks its offset with the number of
deliveries that it owes; `sending.py` queues and attempts each delivery; `outcome.py` says what its result means; `holding.py` and `parking.py`
let it wait; `settlement.py` settles it. What went to a topic of ours comes back by `retry_reader.py`, `backlogs.py` and `returning.py`.

In come the parts around (broker, transport, registry). Out go commits: once a second the lowest owed offset of each partition, with a note of what is
done beyond it (`membership.py`). This room alone writes whether the process is stopping or has failed.

Rules:

1. All rooms run on one loop. No lock; between reading and writing a piece of their state there is no await.
2. A room writes its own state only, and asks the others by their methods.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Final

import structlog

from dispatcher.broker.base import Broker, GroupMemory, NoMemory
from dispatcher.core.cluster.merge import Elsewhere
from dispatcher.core.cluster.record import MOST_TROUBLES
from dispatcher.core.commit.note import Note
from dispatcher.core.commit.offsets import PartitionTracker
from dispatcher.core.commit.parked import ParkedTracker
from dispatcher.core.commit.replayed import ReplayTracker
from dispatcher.core.control.skips import Skip
from dispatcher.core.endpoint.fairness import Fairness
from dispatcher.core.endpoint.health import Health
from dispatcher.core.replay.record import replay_topic
from dispatcher.core.replay.standing import NoReplays, ReplayStandings
from dispatcher.core.request.build import without_trace
from dispatcher.core.request.netguard import Guard
from dispatcher.core.retry.generations import Generations
from dispatcher.core.retry.tiers import Tiers
from dispatcher.delivery.attempt_log import AttemptLog
from dispatcher.delivery.backlogs import Backlogs
from dispatcher.delivery.commit_notes import READ_LIMIT, notes_topic
from dispatcher.delivery.consuming import Consuming
from dispatcher.delivery.delivery import Delivery
from dispatcher.delivery.endpoints import Endpoints
from dispatcher.delivery.executing import Executing
from dispatcher.delivery.holding import Holding
from dispatcher.delivery.interventions import InterventionLog
from dispatcher.delivery.lanes import Lanes
from dispatcher.delivery.membership import Membership
from dispatcher.delivery.memory import MemoryShares
from dispatcher.delivery.outbox import Outbox
from dispatcher.delivery.outcome import Outcomes
from dispatcher.delivery.parking import Parking, parked_retention, parked_topic
from dispatcher.delivery.rebalancing import Rebalancing
from dispatcher.delivery.replay_reader import ReplayReader
from dispatcher.delivery.reporting import report
from dispatcher.delivery.retry_reader import Retries
from dispatcher.delivery.returning import Returning
from dispatcher.delivery.sending import Outgoing, Sending
from dispatcher.delivery.settlement import GivenUp, Settlement, attempts_below
from dispatcher.delivery.stuck import pass_over, sentence
from dispatcher.delivery.troubles import DeliveryReport, Troubles
from dispatcher.delivery.unmatched import Unmatched
from dispatcher.registry.registry import Registry
from dispatcher.runtime.tasks import Tasks
from dispatcher.runtime.timers import Timers
from dispatcher.settings.groups import Settings
from dispatcher.telemetry.metrics import Metrics
from dispatcher.telemetry.tracing import Tracing
from dispatcher.transport.client import Transport

log = structlog.get_logger(__name__)

COMMIT_INTERVAL: Final = 1.0
_SWEEP: Final = 15.0  # seconds between two looks for lanes that fell silent
_LEAVE_LIMIT: Final = 5.0  # seconds for the last commit and for leaving the group
_LOG_LIMIT: Final = 2.0  # seconds for the end of the attempt log
_MEASURE: Final = 0.5  # seconds between two measurements of how fast lanes are
_LAG_INTERVAL: Final = 0.1
_LATE: Final = 0.02  # seconds of lag beyond which the loop has more work than time


# Long: it builds every room of the data path, in the order in which they need each other.
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
        replays: ReplayStandings | None = None,
        interventions: InterventionLog | None = None,
        descriptors: int | None = None,
        tracing: Tracing | None = None,
        chance: Callable[[], float] = random.random,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`replica` names this process in the attempt log. `on_failure` is told when a part of the engine died: the
        process should end; `on_given_up` of each delivery whose dead letter is written. `memory` gives what is
        remembered of a consumer group; without it nothing is. `skips` gives what operators have given up reading. `replays` knows
        what the deliveries of each replay are to do. `interventions` is read already: what people have commanded; without it nothing is superseded.

        `descriptors` is how many files this process may have open: attempts take half of them at the most. `tracing` makes spans; without it none are made.

        `wall` gives Unix seconds, `chance` a number in [0, 1).
        """
        self._skips = skips
        self._transport = transport
        self._timers = timers
        self._metrics = metrics
        loop = asyncio.get_running_loop()
        self._clock = clock = loop.time
        self._on_failure = on_failure
        self._tasks = Tasks(on_failure)
        self._consuming_tasks: list[asyncio.Task[None]] = []
        self._hold_limit = settings.retry.hold_limit
        self._late = False  # whether, at the last look, deliveries waited for a loop that was late
        self._stopping = False
        self._failed_itself = False
        tiers = Tiers(settings.retry.tiers, settings.topics.prefix)
        parked = parked_topic(settings.topics.prefix)
        replayed = replay_topic(settings.topics.prefix)
        standings = NoReplays() if replays is None else replays

        # The data path, from its end to its beginning.
        generations = Generations() if interventions is None else interventions.generations
        most = attempts_below(settings.delivery.max_in_flight)
        fairness = Fairness(
            most if descriptors is None else max(1, min(most, descriptors // 2)),
            attempts_below(settings.delivery.max_in_flight_bytes),
        )
        self._outbox = Outbox(broker.produce)
        self._attempts = AttemptLog(
            settings.attempts.log, f"{settings.topics.prefix}attempts", replica, broker.produce_bulk
        )
        self._settlement = Settlement(
            settings,
            self._outbox,
            self._attempts,
            metrics,
            fairness,
            on_given_up=on_given_up,
            tracing=tracing,
            wall=wall,
        )
        memory_shares = MemoryShares(settings, self._settlement, fairness)
        self._parking = Parking(
            parked, self._outbox, self._attempts, metrics, self._settlement, broken=self._broken, wall=wall
        )
        self._holding = Holding(
            tiers,
            self._outbox,
            metrics,
            timers,
            self._settlement,
            memory_shares,
            self._parking,
            clock=clock,
            wall=wall,
        )
        self._lanes = Lanes(
            settings,
            self._settlement,
            memory_shares,
            self._parking,
            self._holding,
            fairness,
            clock=clock,
        )
        self._endpoints = Endpoints(
            settings, registry=registry, lanes=self._lanes, chance=chance, clock=clock, wall=wall
        )
        self._outcomes = Outcomes(
            settings,
            registry=registry,
            attempts=self._attempts,
            metrics=metrics,
            endpoints=self._endpoints,
            holding=self._holding,
            parking=self._parking,
            settlement=self._settlement,
            tracing=tracing,
            chance=chance,
            wall=wall,
        )
        self._sending = Sending(
            transport=transport,
            registry=registry,
            guard=guard,
            timers=timers,
            outcomes=self._outcomes,
            lanes=self._lanes,
            holding=self._holding,
            parking=self._parking,
            settlement=self._settlement,
            replays=standings,
            generations=generations,
            memory=memory_shares,
            fairness=fairness,
            outgoing=_outgoing(settings, tracing),
            on_broken=self._broken,
            wall=wall,
        )
        returning = Returning(
            settings,
            registry=registry,
            metrics=metrics,
            sending=self._sending,
            lanes=self._lanes,
            holding=self._holding,
            settlement=self._settlement,
            replays=standings,
            generations=generations,
            memory=memory_shares,
            fairness=fairness,
            clock=clock,
            wall=wall,
        )

        # What comes in, from two groups.
        self._rebalancing = Rebalancing(self._sending, self._parking, self._outbox, timers)
        group, retry_group = settings.group, f"{settings.group}.retry"
        remembered = memory or (lambda _: NoMemory())
        notes = notes_topic(settings)
        # No heartbeat goes out meanwhile.
        read_limit = min(READ_LIMIT, settings.kafka.session_timeout / 4)
        self._events = Membership(
            broker,
            settings.topics.events,
            group,
            self._rebalancing,
            metrics,
            memory=remembered(group),
            notes_topic=notes,
            read_limit=read_limit,
            attempts=self._attempts,
            reserves=True,
        )
        self._returning = Membership(
            broker,
            [*(tier.topic for tier in tiers), parked, replayed],
            retry_group,
            self._rebalancing,
            metrics,
            own=True,
            memory=remembered(retry_group),
            notes_topic=notes,
            read_limit=read_limit,
            attempts=self._attempts,
            tracker=partial(_tracker, parked, replayed),
        )
        self._consuming = Consuming(
            self._events,
            registry=registry,
            metrics=metrics,
            unmatched=Unmatched(clock, debug=settings.log.level == "debug"),
            sending=self._sending,
            settlement=self._settlement,
            poll_limit=settings.kafka.max_poll_records,
        )
        self._backlogs = Backlogs(
            parked,
            self._returning,
            returning,
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
        self._replays = ReplayReader(
            replayed,
            f"{settings.topics.prefix}dead",
            self._returning,
            returning,
            standings,
            read_from=broker.read_from,
            turn=time.perf_counter,
            fresh=lambda: sum(metrics.consumed.values()),
        )
        self._retries = Retries(
            self._returning,
            tiers,
            settings.retry.horizon,
            returning,
            broker.read,
            metrics,
            wall,
            self._backlogs,
            self._replays,
        )
        self._executing = (
            None
            if interventions is None
            else Executing(
                interventions,
                self._events,
                returning,
                self._attempts,
                self._outbox,
                registry=registry,
                read=broker.read,
                dead_topic=f"{settings.topics.prefix}dead",
            )
        )
        self._rebalancing.tell(self._events, self._events_assigned)
        self._rebalancing.tell(self._returning, self._retries.reassigned)
        self._troubles = Troubles(
            settlement=self._settlement,
            lanes=self._lanes,
            holding=self._holding,
            endpoints=self._endpoints,
            memberships=(self._events, self._returning),
            retries=self._retries,
            backlogs=self._backlogs,
            registry=registry,
            clock=clock,
            wall=wall,
        )
        report(
            metrics,
            settlement=self._settlement,
            fairness=fairness,
            lanes=self._lanes,
            holding=self._holding,
            endpoints=self._endpoints,
            outbox=self._outbox,
            attempts=self._attempts,
            memberships=(self._events, self._returning),
            retries=self._retries,
            backlogs=self._backlogs,
        )

    # Starting, stopping, and what others may ask.

    def start(self) -> None:
        """Join the group and deliver, in the background; waits for the broker as long as it takes."""
        self._tasks.start(self._outbox.run(), "outbox")
        self._tasks.start(self._attempts.run(), "attempt log")
        for membership in (self._events, self._returning):
            self._tasks.start(self._commit_regularly(membership), f"commit {membership.group}")
        self._tasks.start(self._limit_holding_regularly(), "limit holding")
        self._tasks.start(self._sweep(), "sweep lanes")
        self._tasks.start(self._measure_lag(), "measure loop lag")
        self._tasks.start(self._measure_lanes(), "measure lanes")
        self._tasks.start(self._backlogs.run(), "backlogs")
        self._tasks.start(self._replays.run(), "replays")
        self._consuming_tasks = [
            self._tasks.start(self._consuming.run(), "consume"),
            self._tasks.start(self._retries.run(), "retries"),
        ]
        if self._executing is not None:
            self._consuming_tasks.append(self._tasks.start(self._executing.run(), "interventions"))
            self._tasks.start(self._executing.record_ends(), "ends of interventions")

    def warnings(self) -> list[str]:
        """What isn't as it should be, while deliveries go on, a sentence each."""
        found = [] if self._attempts.problem is None else [self._attempts.problem]
        for membership in (self._events, self._returning):
            found += membership.warnings()
            found += [sentence(*stuck) for stuck in membership.consumer.stuck().items()]
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
        return self._endpoints.health(subscription_id)

    def behind(self) -> bool:
        """Whether deliveries wait: in their lanes, or, under way or not taken up yet, for a loop that is late."""
        return self._late or self._lanes.queued > 0

    async def report(
        self, elsewhere: Elsewhere | None = None, *, most: int = MOST_TROUBLES
    ) -> DeliveryReport:
        """What this process's deliveries are like now, with at most so many subscriptions in trouble.

        `elsewhere` is what the other processes say: to whom they have delivered meanwhile fails here no longer, if nothing waits for it here.
        """
        return await self._troubles.report(most, elsewhere or Elsewhere())

    async def stop(self, drain: float) -> None:
        """Take up nothing new, let what is under way end within `drain` seconds, commit, leave the group."""
        self._stopping = True
        deadline = self._clock() + drain
        self._backlogs.stop()
        self._replays.stop()
        for task in self._consuming_tasks:
            task.cancel()
        await asyncio.gather(*self._consuming_tasks, return_exceptions=True)
        # Held deliveries wait for their retry: for longer than anybody would wait for them here.
        while self._clock() < deadline and self._busy and not self._failed_itself:  # noqa: ASYNC110 - an event would cost every settlement a check
            await asyncio.sleep(0.01)
        log.info("drained", left=self._busy, held=len(self._holding))
        self._rebalancing.close()
        self._attempts.end_soon()
        # A broker that is away must not keep the process from ending in time.
        try:
            async with asyncio.timeout(_LEAVE_LIMIT):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LEAVE_LIMIT / 2):
                        await self._leave_behind()
                for membership in (self._events, self._returning):
                    await membership.commit_last()
                    await membership.consumer.stop()
        except TimeoutError:
            log.warning("the broker did not answer: left without a last commit", seconds=_LEAVE_LIMIT)
        await self._tasks.stop()
        await self._attempts.finish(_LOG_LIMIT)
        self._holding.forget()

    @property
    def _busy(self) -> int:
        """Deliveries that are not held: queued, attempted, or being written."""
        return self._settlement.in_flight - len(self._holding)

    async def _leave_behind(self) -> None:
        """Hand what is left to the retry topics, and wait until it is written.

        Left owed it would be read again with its event, and go again to those who have acknowledged that event.
        """
        self._sending.leave_behind()
        await self._transport.close()  # what is under way comes back cancelled, and is handed over too
        while len(self._outbox):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)

    def _broken(self, where: str, error: Exception) -> None:
        """What can't happen has happened: see rule 2 of `sending.py`."""
        log.error("the engine is broken", where=where, exc_info=error)
        self._failed_itself = True
        if self._on_failure is not None:
            self._on_failure(where, error)

    # Commits, and partitions that come and go.

    async def _commit_regularly(self, membership: Membership) -> None:
        # Each group by itself: their coordinators may be two brokers, of which one is away.
        while True:
            await asyncio.sleep(COMMIT_INTERVAL)
            membership.observe(self._clock())
            pass_over(membership.consumer, self._skips(), membership.memory, self._metrics)
            if membership is self._returning:
                pass_over(self._backlogs, self._skips(), membership.memory, self._metrics)
            await membership.commit()

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
            self._sending.hand_over_overdue()

    def _events_assigned(self) -> None:
        if self._executing is not None and self._executing.reassigned():
            self._sending.forget_lost()
        if self._settlement.full:
            self._events.consumer.pause(self._events.trackers.keys())
        self._metrics.rebalances += 1

    # Housekeeping and metrics.

    async def _sweep(self) -> None:
        """Drop the lanes of origins that fell silent."""
        while True:
            await asyncio.sleep(_SWEEP)
            now = self._clock()
            self._lanes.sweep(now)
            self._endpoints.age(now)

    async def _measure_lanes(self) -> None:
        while True:
            await asyncio.sleep(_MEASURE)
            self._lanes.measure(self._clock(), moving=self._sending.gate)

    async def _measure_lag(self) -> None:
        lag = self._metrics.event_loop_lag
        while True:
            before = time.perf_counter()
            await asyncio.sleep(_LAG_INTERVAL)
            late = max(0.0, time.perf_counter() - before - _LAG_INTERVAL)
            lag.observe(late)
            self._late = late > _LATE and (self._busy > 0 or any(self._events.lag().values()))


def _outgoing(settings: Settings, tracing: Tracing | None) -> Outgoing | None:
    """What requests say of a trace, where that isn't what their event says."""
    match settings.tracing.propagate:
        case "none":
            return _without_trace
        case "attempt" if tracing is not None:
            return tracing.outgoing
    return None


def _without_trace(_delivery: Delivery, request: bytes, _now: float, _unix: float) -> bytes:
    return without_trace(request)


def _tracker(
    parked: str, replayed: str, topic: str, partition: int, start: int, ahead: Note
) -> PartitionTracker:
    """A million may be parked in a partition, and none of them is held back by it. A replay waits for each attempt to end."""
    if topic == parked:
        return ParkedTracker(topic, partition, start, ahead)
    made = ReplayTracker if topic == replayed else PartitionTracker
    return made(topic, partition, start, ahead)
