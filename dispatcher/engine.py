"""The asyncio shell of the data path: batches, results and time in; sends, writes and commits out.

The path of one event: a batch is polled; each record is decoded and matched; its offset is
tracked with the number of deliveries it owes; each delivery is offered to the lane of its
origin; where the lane has room, the request is built and handed to the transport; the result
comes back by callback, `policy.decide` says what it means, and the delivery is settled, held
for a near retry, or written to a retry topic or the dead-letter topic. From a retry topic it comes back
(`retries.py`) when it is near: held, then offered to its lane before fresh ones. Once a second the lowest
owed offset of each partition is committed.

From the lane to the result there is no task, no future and no timer per delivery: a `Delivery`
is itself the exchange that the transport calls back, and one object lives through all of its
attempts. At 25,000 deliveries a second one more await per delivery would be felt.

Rules:

1. Everything here runs on one loop. No lock; between reading and writing a piece of this state
   there is no await.
2. A delivery counts in `_in_flight` and `_bytes` from `_owe` to `_settle`, whatever happens to it
   in between: queued, attempted, held, being written.
3. Each delivery is settled once: acknowledged, its retry record or dead letter acknowledged, dropped for a
   recorded reason, or given back because its partition was lost.
4. At a cap no further record is taken up; the consumer is still polled (paused), so that the group
   keeps this member.
5. While partitions are being reassigned (`_gate` closed) no attempt starts, so that few deliveries are
   sent by two members.
6. Records belong to the tracker that their partition had when they were polled. A partition may leave
   and come back while they wait for room; with its new tracker they would pass for read already.
7. An exception where none can be (a bug) ends the process: it is started anew and reads again what
   isn't committed, while going on could owe a delivery for ever without anybody noticing.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, assert_never

import structlog

from dispatcher.broker.base import Broker, Message, Record, TopicPartition
from dispatcher.core.events import Event, InvalidEvent, decode
from dispatcher.core.lanes import Lane, Share
from dispatcher.core.letters import (
    Letter,
    Place,
    delivery_headers,
    delivery_id,
    describe,
    unreadable_headers,
)
from dispatcher.core.netguard import Blocked, Guard, Origin, Target
from dispatcher.core.offsets import PartitionTracker
from dispatcher.core.policy import DeadLetter, Delivered, Disable, Hold, Retry, decide
from dispatcher.core.request import build, retarget
from dispatcher.core.results import Failure, Reason, Response, Result
from dispatcher.core.subscriptions import EVERY_TENANT, Status, Subscription
from dispatcher.core.tiers import Tiers
from dispatcher.core.wheel import Entry
from dispatcher.intake import Intake
from dispatcher.metrics import Metrics
from dispatcher.outbox import Outbox
from dispatcher.registry import Registry
from dispatcher.retries import Retries
from dispatcher.settings import Settings
from dispatcher.tasks import Tasks
from dispatcher.timers import Callback, Timers
from dispatcher.transport.client import Transport

log = structlog.get_logger(__name__)

COMMIT_INTERVAL: Final = 1.0
_POLL_TIMEOUT: Final = 1.0
_KEEP_ALIVE: Final = 0.5  # polls while at a cap, so that the group keeps this member
_SLICE: Final = 32  # deliveries taken up between two turns of the loop: about 1 ms of work
_LOW_WATER: Final = 0.9  # of a cap: consumption goes on below it
_REVOKE_DRAIN: Final = 3.0  # seconds at the most for attempts under way to end before partitions are given up
# Of that, seconds without any attempt ending: those left are slow, and nobody waits for them.
_REVOKE_PATIENCE: Final = 1.0
_LEAVE_LIMIT: Final = 5.0  # seconds for the last commit and for leaving the group
_GATE_LIMIT: Final = 10.0  # seconds without attempts at the most, should no assignment follow
_LANE_IDLE: Final = 60.0  # seconds after which an empty lane is dropped
_LAG_INTERVAL: Final = 0.1
_FOLLOWED: Final = frozenset({307, 308})  # the redirects that keep method and body (RFC 9110 15.4)
_MAX_HOPS: Final = 3


class Delivery:
    """One event owed to one subscription, through all of its attempts. The transport's exchange."""

    __slots__ = (
        "attempt",
        "deadline",
        "due",
        "engine",
        "event",
        "first_attempt_ms",
        "hop",
        "hops",
        "lane",
        "last_result",
        "offset",
        "parked",
        "place",
        "request",
        "share",
        "started",
        "subscription",
        "tracker",
    )

    share: Share[Delivery]
    lane: Lane[Delivery]

    def __init__(
        self,
        engine: Engine,
        event: Event,
        subscription: Subscription,
        tracker: PartitionTracker,
        offset: int,
    ) -> None:
        self.engine = engine
        self.event = event
        self.subscription = subscription
        self.tracker = tracker
        self.offset = offset
        self.place: Place | None = None  # where the event was read, if not at the tracker's offset
        self.attempt = 0
        self.parked = 0  # times since the last attempt
        self.first_attempt_ms: int | None = None
        self.last_result: str | None = None
        self.request = b""
        self.deadline = 0.0
        self.started = 0.0
        self.due = 0.0
        self.hop: Target | None = None  # where a redirect has led this attempt
        self.hops = 0

    @property
    def origin(self) -> Place:
        """Where the event was read."""
        return self.place or Place(self.tracker.topic, self.tracker.partition, self.offset)

    def done(self, result: Result) -> None:
        """The attempt is over (called by the transport)."""
        try:
            self.engine._done(self, result)
        except Exception as error:  # noqa: BLE001 - rule 7
            self.engine._broken("result of an attempt", error)

    def wake(self) -> None:
        """The wait is over (called by the timing wheel)."""
        try:
            self.engine._wake(self)
        except Exception as error:  # noqa: BLE001 - rule 7
            self.engine._broken("retry", error)


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
        on_failure: Callable[[str, BaseException], None] | None = None,
        chance: Callable[[], float] = random.random,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`on_failure` is told when a part of the engine died: the process should end.

        `wall` gives Unix seconds, `chance` a number in [0, 1).
        """
        self._broker = broker
        self._transport = transport
        self._registry = registry
        self._guard = guard
        self._metrics = metrics
        self._timers = timers
        self._chance = chance
        self._wall = wall
        self._clock = asyncio.get_running_loop().time
        self._loop = asyncio.get_running_loop()
        self._on_failure = on_failure
        self._tasks = Tasks(on_failure)
        self._consuming: list[asyncio.Task[None]] = []

        self._dead_topic = f"{settings.topics.prefix}dead"
        self._connections_per_host = settings.delivery.connections_per_host
        self._max_in_flight = settings.delivery.max_in_flight
        self._max_bytes = settings.delivery.max_in_flight_bytes
        self._poll_limit = settings.kafka.max_poll_records
        self._success_sample = settings.log.success_sample
        self._hold_limit = settings.retry.hold_limit
        self._horizon = settings.retry.horizon
        self._tiers = Tiers(settings.retry.tiers, settings.topics.prefix)

        self._events = Intake(broker, settings.topics.events, settings.group, self, metrics)
        self._returning = Intake(
            broker, [tier.topic for tier in self._tiers], f"{settings.group}.retry", self, metrics, own=True
        )
        self._retries = Retries(self._returning, self._tiers, self._horizon, self, broker.read, metrics, wall)
        self._outbox = Outbox(broker.produce)
        self._batches: deque[tuple[PartitionTracker, Sequence[Record]]] = deque()  # polled, not taken up yet
        self._lanes: dict[Origin, Lane[Delivery]] = {}
        self._held: dict[Delivery, Entry[Callback]] = {}
        self._in_flight = 0
        self._bytes = 0
        self._attempting = 0
        self._queued = 0
        self._full = False  # at a cap: consumption waits for `_has_room`
        self._has_room = asyncio.Event()
        self._gate = True
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
        self._tasks.start(self._commit_regularly(), "commit")
        self._tasks.start(self._sweep_lanes(), "sweep lanes")
        self._tasks.start(self._measure_lag(), "measure loop lag")
        self._consuming = [
            self._tasks.start(self._consume(), "consume"),
            self._tasks.start(self._retries.run(), "retries"),
        ]

    def problems(self) -> list[str]:
        """Why it isn't working just now, a sentence each; empty when it is."""
        found = [self._events.problem, self._outbox.problem]
        if self._returning.problem is not None and self._returning.problem != self._events.problem:
            found.append(f"retries: {self._returning.problem}")
        if self._stopping:
            found.append("the dispatcher is stopping")
        return [problem for problem in found if problem is not None]

    async def stop(self, drain: float) -> None:
        """Take up nothing new, let what is under way end within `drain` seconds, commit, leave the group."""
        self._stopping = True
        deadline = self._clock() + drain
        for task in self._consuming:
            task.cancel()
        await asyncio.gather(*self._consuming, return_exceptions=True)
        # Held deliveries wait for their retry: the next process gets them again from the log.
        while self._clock() < deadline and self._in_flight > len(self._held) and not self._failed_itself:  # noqa: ASYNC110 - an event would cost every settlement a check
            await asyncio.sleep(0.01)
        log.info("drained", left=self._in_flight - len(self._held), held=len(self._held))
        self._closed = True
        self._gate = False
        # A broker that is away must not keep the process from ending in time.
        try:
            async with asyncio.timeout(_LEAVE_LIMIT):
                for intake in (self._events, self._returning):
                    await intake.commit()
                    await intake.consumer.stop()
        except TimeoutError:
            log.warning("the broker did not answer: left without a last commit", seconds=_LEAVE_LIMIT)
        await self._tasks.stop()
        for entry in self._held.values():
            self._timers.cancel(entry)

    def _broken(self, where: str, error: Exception) -> None:
        """What can't happen has happened: see rule 7."""
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
                    await self._take_up(tracker, records)

    def _polled(self, batches: Sequence[tuple[TopicPartition, Sequence[Record]]]) -> None:
        # Bound to their trackers before the next await: see rule 6.
        trackers = self._events.trackers
        self._batches.extend((trackers[partition], records) for partition, records in batches)

    async def _take_up(self, tracker: PartitionTracker, records: Sequence[Record]) -> None:
        metrics = self._metrics
        metrics.consumed[tracker.topic] += len(records)
        taken = 0
        for record in records:
            offset = record.offset
            if tracker.seen(offset):
                metrics.skipped["seen"] += 1
            elif record.value is None:
                metrics.skipped["tombstone"] += 1
                tracker.track(offset, 0)
            else:
                try:
                    event = decode(record)
                except InvalidEvent as error:
                    tracker.track(offset, 1)
                    metrics.invalid[error.reason] += 1
                    self.refuse(record, tracker, error.reason, error.detail)
                else:
                    wanted = self._registry.index.match(event.tenant, event.type)
                    tracker.track(offset, len(wanted))
                    if not wanted:
                        metrics.unmatched += 1
                    for subscription in wanted:
                        if self._in_flight >= self._max_in_flight or self._bytes >= self._max_bytes:
                            await self._room()
                        elif taken >= _SLICE:
                            taken = 0
                            await asyncio.sleep(0)
                        if tracker.lost:
                            return
                        self._owe(Delivery(self, event, subscription, tracker, offset))
                        taken += 1
                    continue
            # What owes no delivery is held to the caps and the slices too.
            taken += 1
            if self._in_flight >= self._max_in_flight or self._bytes >= self._max_bytes:
                await self._room()
            elif taken >= _SLICE:
                taken = 0
                await asyncio.sleep(0)
            if tracker.lost:
                return

    def refuse(self, record: Record, tracker: PartitionTracker, reason: str, detail: str) -> None:
        """The record can't be read: to the dead-letter topic with it, and on. Its offset owes that."""
        offset = record.offset
        log.warning(
            "invalid record",
            topic=record.topic,
            partition=record.partition,
            offset=offset,
            reason=reason,
            detail=detail,
        )
        headers = unreadable_headers(
            record.headers,
            topic=record.topic,
            partition=record.partition,
            offset=offset,
            reason=reason,
            detail=detail,
        )

        def written() -> None:
            self._metrics.dead_letters["invalid"] += 1

        self.pass_on(Message(self._dead_topic, record.value, record.key, headers), tracker, offset, written)

    def pass_on(
        self,
        message: Message,
        tracker: PartitionTracker,
        offset: int,
        written: Callable[[], None] | None = None,
    ) -> None:
        """Write a record of its own for an offset that owes nothing else; settled when the broker has it."""
        size = len(message.value or b"")
        self._count(size)

        def settle() -> None:
            if written is not None:
                written()
            self._settled(tracker, offset, size)

        self._outbox.put(message, settle)

    def has_room(self) -> bool:
        """Whether what comes out of a retry topic may be taken up."""
        return self._gate and self._in_flight < self._max_in_flight and self._bytes < self._max_bytes

    def knows(self, subscription_id: str) -> bool:
        """Whether the subscription is still there."""
        return self._registry.index.get(subscription_id) is not None

    def take_back(self, letter: Letter, tracker: PartitionTracker, offset: int) -> None:
        """A delivery has waited in the retry topics for all but the last of its wait."""
        subscription = self._registry.index.get(letter.subscription_id)
        if subscription is None or subscription.tenant not in (letter.event.tenant, EVERY_TENANT):
            # Deleted, or an id that went to another tenant meanwhile.
            self._count_dropped(letter.place, letter.event, letter.subscription_id, "deleted")
            tracker.settle(offset)
            return
        delivery = Delivery(self, letter.event, subscription, tracker, offset)
        delivery.place = letter.place
        delivery.attempt = letter.attempt
        delivery.first_attempt_ms = letter.first_attempt_ms
        delivery.last_result = letter.last_result
        delivery.parked = letter.parked
        delivery.due = self._clock() + (letter.due - self._wall())
        self._in_flight += 1
        self._bytes += len(letter.event.body)
        self._hold(delivery)

    async def _room(self) -> None:
        """Wait until there is room below the caps again, keeping the membership alive."""
        consumer = self._events.consumer
        self._full = True
        self._has_room.clear()
        try:
            while self._full:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_KEEP_ALIVE):
                        await self._has_room.wait()
                    break
                # What was polled is not all taken up, and what follows it must not come before.
                consumer.pause(consumer.assignment())
                # Nothing, unless a rebalance ends in here that has also emptied the lanes.
                self._polled(await consumer.poll(0, self._poll_limit))
        finally:
            self._full = False
            # Also where nothing was paused here: a rebalance meanwhile pauses what it assigns.
            consumer.resume(consumer.assignment())

    def _check_room(self) -> None:
        if (
            self._full
            and self._in_flight <= self._max_in_flight * _LOW_WATER
            and self._bytes <= self._max_bytes * _LOW_WATER
        ):
            self._full = False
            self._has_room.set()

    def _owe(self, delivery: Delivery) -> None:
        self._count(len(delivery.event.body))
        self._queue(delivery, urgent=False)

    def _queue(self, delivery: Delivery, *, urgent: bool) -> None:
        subscription = delivery.subscription
        lane = self._lanes.get(subscription.origin)
        if lane is None:
            lane = self._lanes[subscription.origin] = Lane(self._connections_per_host)
        delivery.lane = lane
        lane.idle_since = None
        lane.offer(subscription.id, subscription.max_in_flight, delivery, urgent=urgent)
        self._queued += 1
        if lane.in_flight < lane.limit:
            self._pump(lane)

    def _pump(self, lane: Lane[Delivery]) -> None:
        """Start attempts while the lane has both a free slot and something to send."""
        dropped = 0
        while self._gate and (taken := lane.take()) is not None:
            delivery, share = taken
            self._queued -= 1
            delivery.share = share
            if not self._attempt(delivery):
                lane.release(share)
                dropped += 1
                if dropped >= _SLICE:
                    # Thousands may go at once, when a subscription is deleted: not in one turn of the loop.
                    self._loop.call_soon(self._pump, lane)
                    return

    # Attempt, decide, settle.

    def _attempt(self, delivery: Delivery) -> bool:
        """Send it; False if it is not to be sent (any more) and has been dealt with."""
        if delivery.tracker.lost:
            self._settle(delivery)
            return False
        subscription = delivery.subscription
        current = self._registry.index.get(subscription.id)
        if current is not subscription:
            if current is None or current.tenant != subscription.tenant:
                # An id that went to another tenant is another subscription: what the one was owed isn't the other's.
                self._drop(delivery, "deleted")
                return False
            delivery.subscription = current
            if current.origin != subscription.origin:
                self._queue(delivery, urgent=delivery.attempt > 0)
                return False
            subscription = current
        if subscription.status is not Status.ACTIVE:
            self._drop(delivery, subscription.status.value)
            return False
        now = self._clock()
        unix = self._wall()
        try:
            delivery.request = build(subscription, delivery.event, int(unix))
        except Exception as error:
            # Whatever it is about this delivery, the others must not wait for it.
            log.exception(
                "request could not be built", subscription_id=subscription.id, event_id=delivery.event.id
            )
            self._bury(delivery, "unsendable", Failure(Reason.PROTOCOL_ERROR, repr(error)))
            return False
        delivery.attempt += 1
        if delivery.first_attempt_ms is None:
            delivery.first_attempt_ms = int(unix * 1000)
        delivery.hops = 0
        delivery.hop = None
        delivery.started = now
        delivery.deadline = now + subscription.timeout
        self._attempting += 1
        try:
            self._transport.send(subscription.origin, delivery, subscription.certificate)
        except Exception as error:  # noqa: BLE001 - rule 7
            self._broken("send", error)
        return True

    def _done(self, delivery: Delivery, result: Result) -> None:
        if type(result) is Response and result.status in _FOLLOWED and delivery.subscription.follow_redirects:
            verdict = self._follow(delivery, result)
            if verdict is None:
                return  # on its way to where the endpoint pointed, still the same attempt
            result = verdict
        self._attempting -= 1
        delivery.request = b""
        lane = delivery.lane
        lane.release(delivery.share)
        now = self._clock()
        if type(result) is Response and 200 <= result.status < 300:
            metrics = self._metrics
            metrics.delivered += 1
            metrics.attempt_duration.observe(now - delivery.started)
            metrics.delivery_latency.observe(self._wall() - delivery.event.timestamp_ms / 1000)
            if self._success_sample and self._chance() < self._success_sample:
                self._log_attempt(delivery, result, now, "delivered", None)
            self._settle(delivery)
        else:
            self._failed(delivery, result, now)
        self._pump(lane)

    def _follow(self, delivery: Delivery, response: Response) -> Result | None:
        """Send it to where the redirect leads, within the same deadline; or what the attempt came to instead."""
        if delivery.hops >= _MAX_HOPS or not response.location:
            return response
        subscription = delivery.subscription
        origin = subscription.origin
        base = delivery.hop or Target(origin, subscription.target, origin.host_header)
        try:
            delivery.hop = self._guard.check_redirect(base, response.location)
        except Blocked as error:
            return Failure(Reason.BLOCKED, f"status {response.status}, not followed: {error}")
        delivery.hops += 1
        delivery.request = retarget(delivery.request, delivery.hop.target)
        self._transport.send(origin, delivery, subscription.certificate)
        return None

    def _failed(self, delivery: Delivery, result: Result, now: float) -> None:
        metrics = self._metrics
        if type(result) is Failure and result.reason is Reason.CANCELLED:
            return  # stopping: the offset stays owed, the next process delivers it
        metrics.attempt_duration.observe(now - delivery.started)
        if type(result) is Response:
            metrics.attempts["status", f"{result.status // 100}xx"] += 1
        elif type(result) is Failure:
            metrics.attempts[result.reason.value, "none"] += 1
        if delivery.tracker.lost:
            self._settle(delivery)  # whoever has the partition now delivers it
            return
        unix = self._wall()
        decision = decide(
            result,
            delivery.attempt,
            delivery.subscription.retry,
            unix,
            self._chance(),
            self._horizon,
        )
        match decision:
            case Delivered():
                self._settle(delivery)
            case Hold(due=due, counted=counted) | Retry(due=due, counted=counted):
                self._log_attempt(delivery, result, now, "retry", due)
                if not counted:
                    delivery.attempt -= 1
                delivery.last_result = describe(result)
                delivery.parked = 0
                delivery.due = now + (due - unix)
                if type(decision) is Hold:
                    self._hold(delivery)
                else:
                    self._hand_over(delivery, "retry")
            case DeadLetter(reason=reason):
                self._log_attempt(delivery, result, now, "dead letter", None)
                self._bury(delivery, reason, result)
            case Disable(reason=reason):
                self._log_attempt(delivery, result, now, "disable", None)
                self._registry.disable(delivery.subscription.id, reason)
                self._bury(delivery, reason, result)
            case _:
                assert_never(decision)

    def _hold(self, delivery: Delivery) -> None:
        self._held[delivery] = self._timers.at(delivery.due, delivery.wake)

    def _wake(self, delivery: Delivery) -> None:
        del self._held[delivery]
        self._metrics.retries_due["memory"] += 1
        self._metrics.retry_lateness.observe(self._clock() - delivery.due)
        self._queue(delivery, urgent=True)

    def _hand_over(self, delivery: Delivery, reason: str) -> None:
        """Let it wait in a retry topic until it is due; settled when the broker has it."""
        unix = self._wall()
        wait = delivery.due - self._clock()
        event = delivery.event
        headers = delivery_headers(
            event,
            delivery.subscription.id,
            delivery.origin,
            attempt=delivery.attempt,
            first_attempt_ms=delivery.first_attempt_ms,
            last_result=delivery.last_result,
            reason=reason,
            due=unix + wait,
            parked=delivery.parked,
        )
        topic = self._tiers.choose(wait).topic
        key = delivery.subscription.id.encode()
        message = Message(topic, event.body, key, headers, timestamp_ms=int(unix * 1000))
        self._outbox.put(message, partial(self._settle, delivery))

    def _limit_holding(self) -> None:
        """Hand what is owed for longer than the limit to a tier, so that the commit moves on.

        An attempt under way is let end; what comes of it is handed over next time.
        """
        now = self._clock()
        trackers = [*self._events.trackers.values(), *self._returning.trackers.values()]
        looks = [tracker.look(now, self._hold_limit) for tracker in trackers]  # each keeps time by it
        if not any(looks):
            return
        overdue: list[Delivery] = []
        for lane in self._lanes.values():
            queued = lane.withdraw(_is_overdue)
            for delivery in queued:
                delivery.parked += 1
                delivery.due = now + self._tiers.park_delay(delivery.parked)
            self._queued -= len(queued)
            overdue += queued
        for delivery in [d for d in self._held if _is_overdue(d)]:
            self._timers.cancel(self._held.pop(delivery))
            overdue.append(delivery)
        for delivery in overdue:
            self._metrics.parked["hold_limit"] += 1
            self._hand_over(delivery, "hold_limit")
        if overdue:
            log.warning("held for too long: handed to the retry topics", deliveries=len(overdue))

    def _bury(self, delivery: Delivery, reason: str, result: Result) -> None:
        """Write the dead letter; settled when the broker has it."""
        event = delivery.event
        headers = delivery_headers(
            event,
            delivery.subscription.id,
            delivery.origin,
            attempt=delivery.attempt,
            first_attempt_ms=delivery.first_attempt_ms,
            last_result=describe(result),
            reason=reason,
        )

        def written() -> None:
            self._metrics.dead_letters[reason] += 1
            self._metrics.deliveries["dead_lettered"] += 1
            self._settle(delivery)

        key = delivery.subscription.id.encode()
        self._outbox.put(Message(self._dead_topic, event.body, key, headers), written)

    def _drop(self, delivery: Delivery, reason: str) -> None:
        """Its subscription is gone or doesn't take anything now."""
        self._count_dropped(delivery.origin, delivery.event, delivery.subscription.id, reason)
        self._settle(delivery)

    def _count_dropped(self, place: Place, event: Event, subscription_id: str, reason: str) -> None:
        self._metrics.deliveries[f"dropped_{reason}"] += 1
        log.debug(
            "delivery dropped",
            delivery_id=delivery_id(*place, subscription_id),
            event_id=event.id,
            subscription_id=subscription_id,
            reason=reason,
        )

    def _settle(self, delivery: Delivery) -> None:
        self._settled(delivery.tracker, delivery.offset, len(delivery.event.body))

    def _count(self, size: int) -> None:
        self._in_flight += 1
        self._bytes += size

    def _settled(self, tracker: PartitionTracker, offset: int, size: int) -> None:
        self._in_flight -= 1
        self._bytes -= size
        tracker.settle(offset)
        if self._full:
            self._check_room()

    def _log_attempt(
        self, delivery: Delivery, result: Result, now: float, decision: str, due: float | None
    ) -> None:
        """The one line of an attempt: always the same keys."""
        failed = decision != "delivered"
        (log.warning if failed else log.info)(
            "attempt failed" if failed else "attempt delivered",
            delivery_id=delivery_id(*delivery.origin, delivery.subscription.id),
            event_id=delivery.event.id,
            event_type=delivery.event.type,
            tenant=delivery.event.tenant,
            subscription_id=delivery.subscription.id,
            host=delivery.subscription.origin.host,
            attempt=delivery.attempt,
            result=describe(result),
            duration_ms=round((now - delivery.started) * 1000, 1),
            decision=decision,
            due=None if due is None else round(due, 3),
        )

    # Commits, and partitions that come and go.

    async def _commit_regularly(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_INTERVAL)
            now = self._clock()
            for intake in (self._events, self._returning):
                intake.observe(now)
                await intake.commit()
            self._limit_holding()

    async def before_revocation(self, intake: Intake) -> None:
        """Partitions are about to move: let attempts end, start none."""
        self._gate = False
        self._moving.add(intake)
        now = since = self._clock()
        deadline = now + _REVOKE_DRAIN
        fewest = self._attempting
        while fewest and now < deadline and now - since < _REVOKE_PATIENCE:
            await asyncio.sleep(0.01)
            now = self._clock()
            if self._attempting < fewest:
                fewest = self._attempting
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
        for delivery in [d for d in self._held if d.tracker.lost]:
            self._timers.cancel(self._held.pop(delivery))
            self._settle(delivery)
        if intake is self._events:
            if self._full:
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
        if self._gate or self._moving or self._closed:
            return
        self._gate = True
        for lane in list(self._lanes.values()):
            self._pump(lane)

    # Housekeeping and metrics.

    async def _sweep_lanes(self) -> None:
        """Drop the lanes of origins that fell silent."""
        while True:
            await asyncio.sleep(_LANE_IDLE / 4)
            now = self._clock()
            for origin, lane in list(self._lanes.items()):
                if not lane.empty:
                    lane.idle_since = None
                elif lane.idle_since is None:
                    lane.idle_since = now
                elif now - lane.idle_since >= _LANE_IDLE:
                    del self._lanes[origin]

    async def _measure_lag(self) -> None:
        lag = self._metrics.event_loop_lag
        while True:
            before = time.perf_counter()
            await asyncio.sleep(_LAG_INTERVAL)
            lag.observe(max(0.0, time.perf_counter() - before - _LAG_INTERVAL))

    def _report_metrics(self) -> None:
        reads = self._metrics.reads
        reads("deliveries_in_flight", lambda: self._in_flight)
        reads("deliveries_in_flight_bytes", lambda: self._bytes)
        reads("deliveries_queued", lambda: self._queued)
        reads("deliveries_held", lambda: len(self._held))
        reads("lanes", lambda: len(self._lanes))
        reads("outbox_waiting", lambda: len(self._outbox))
        reads("consumption_paused", lambda: self._full)
        reads("partition_lag", lambda: {**self._events.lag(), **self._returning.lag()})
        reads(
            "partition_held_seconds",
            lambda: {**self._events.held(), **self._returning.held()},
        )


def _is_overdue(delivery: Delivery) -> bool:
    return delivery.offset < delivery.tracker.overdue_below
