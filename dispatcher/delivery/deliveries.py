"""What is owed, from its lane to its settlement: the half of the engine that meets the endpoints.

Each delivery is offered to the lane of its origin; where the lane has room, the request is built and handed to the
transport; the result comes back by callback, `policy.decide` says what it means, and the delivery is settled, held
for a near retry, or written to a retry topic or the dead-letter topic. From a retry topic it comes back
when it is near: held, then offered to its lane before fresh ones.

From the lane to the result there is no task, no future and no timer per delivery: a `Delivery`
is itself the exchange that the transport calls back, and one object lives through all of its
attempts. At 25,000 deliveries a second one more await per delivery would be felt.

Rules:

1. A delivery counts in `in_flight` and `bytes` from `owe` to `_settle`, whatever happens to it
   in between: queued, attempted, held, being written.
2. Each delivery is settled once: acknowledged, its retry record or dead letter acknowledged, dropped for a
   recorded reason, or given back because its partition was lost.
3. While the gate is closed no attempt starts.
4. An exception where none can be (a bug) ends the process: it is started anew and reads again what
   isn't committed, while going on could owe a delivery for ever without anybody noticing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from heapq import nlargest
from typing import Final, NamedTuple, assert_never

import structlog

from dispatcher.broker.base import Message, Record, UnreadableRecord
from dispatcher.core.attempt.outcome import DEAD, DELIVERED, LEFT_TO_ANOTHER, RETRY
from dispatcher.core.attempt.record import FIRST_GENERATION
from dispatcher.core.commit.offsets import PartitionTracker
from dispatcher.core.commit.parked import ParkedTracker
from dispatcher.core.endpoint.breaker import Blame, State, blame, reached_host
from dispatcher.core.endpoint.health import NOTED_AFTER, SILENCE, Health, Roster, Vitals
from dispatcher.core.endpoint.lane import Lane, Share, Valve
from dispatcher.core.event.decode import Event
from dispatcher.core.request.build import build, retarget
from dispatcher.core.request.netguard import Guard
from dispatcher.core.request.results import Failure, Reason, Response, Result
from dispatcher.core.request.urls import Blocked, Origin, Target
from dispatcher.core.retry.policy import DeadLetter, Delivered, Disable, Hold, Retry, decide, demand
from dispatcher.core.retry.records import (
    History,
    Letter,
    Place,
    Tried,
    delivery_headers,
    delivery_id,
    describe,
    remember,
    unreadable_headers,
)
from dispatcher.core.retry.tiers import Tiers
from dispatcher.core.retry.wheel import Entry
from dispatcher.core.subscription.model import EVERY_TENANT, Status, Subscription
from dispatcher.delivery.attempt_log import AttemptLog
from dispatcher.delivery.outbox import Outbox
from dispatcher.delivery.parking import Parking, keeps, owed_while_kept, parked_topic
from dispatcher.registry.registry import Registry
from dispatcher.runtime.timers import Callback, Timers
from dispatcher.settings.groups import Settings
from dispatcher.telemetry.metrics import Metrics
from dispatcher.transport.client import Transport
from dispatcher.transport.pool import Pool

log = structlog.get_logger(__name__)

GivenUp = Callable[[Subscription, Event, str, int, str | None], None]
"""Subscription, event, reason, attempts made, last result."""

_SLICE: Final = 32  # deliveries dropped in one turn of the loop: about 1 ms of work
_LOW_WATER: Final = 0.9  # of a cap: consumption goes on below it
_TIGHT: Final = 0.5  # of a cap: above it memory is for what will be sent soon
_PARKED_SHARE: Final = 0.75  # of a cap: above it what is parked comes one by one
_AT_A_TIME: Final = 100  # parked ones at a time of a subscription that is gone
_AGAIN: Final = 0.25  # seconds until a parked one is offered again where there was no room
_LANE_IDLE: Final = 60.0  # seconds after which an empty lane is dropped
_FOLLOWED: Final = frozenset({307, 308})  # the redirects that keep method and body (RFC 9110 15.4)
_MAX_HOPS: Final = 3
_AGING: Final = 3600.0  # seconds after which the health of a silent subscription is forgotten, or twice that
_BREAKERS: Final = {State.CLOSED: "closed", State.OPEN: "open", State.PROBING: "half-open"}


class Route(Lane["Delivery"]):
    """The way to an origin: its lane, with the pool of its connections. Subscriptions keep theirs (`Subscription.route`).

    With 10,000 hosts in turns, looking lane and pool up for each delivery takes 1 us: nothing of that is in the cache any more.
    """

    __slots__ = ("owner", "pool")

    def __init__(self, owner: Deliveries, limit: int, max_wait: float) -> None:
        """`owner` is who may go by it; the rest is the lane's."""
        super().__init__(limit, max_wait)
        self.owner: Deliveries | None = owner  # None: the way is closed, find another
        self.pool: Pool | None = None  # what goes there without a client certificate went by it last

    def close(self) -> None:
        """There is no way here any more. Silent subscriptions may keep this for weeks, but nothing that it led to."""
        super().close()
        self.owner = self.pool = None


class Delivery:
    """One event owed to one subscription, through all of its attempts. The transport's exchange."""

    __slots__ = (
        "attempt",
        "deadline",
        "due",
        "event",
        "first_attempt_ms",
        "generation",
        "history",
        "hop",
        "hops",
        "index",
        "lane",
        "last_result",
        "offset",
        "owner",
        "parked",
        "place",
        "queued",
        "replay",
        "request",
        "share",
        "started",
        "subscription",
        "tracker",
    )

    share: Share[Delivery]
    lane: Route

    def __init__(
        self,
        owner: Deliveries,
        event: Event,
        subscription: Subscription,
        tracker: PartitionTracker,
        offset: int,
        index: int = 0,
    ) -> None:
        """`index` is the serial of the one that `subscription` was found in; 0: it is looked up before it is attempted."""
        self.owner = owner
        self.event = event
        self.subscription = subscription
        self.index = index
        self.tracker = tracker
        self.offset = offset
        self.place: Place | None = None  # where the event was read, if not at the tracker's offset
        self.attempt = 0
        self.generation = FIRST_GENERATION
        self.replay: str | None = None  # the id of the replay that it belongs to
        self.parked = 0  # times since the last attempt
        self.first_attempt_ms: int | None = None
        self.last_result: str | None = None
        self.history: History = ()
        self.request = b""
        self.deadline = 0.0
        self.queued = 0.0  # when it came into its lane
        self.started = 0.0
        self.due = 0.0
        self.hop: Target | None = None  # where a redirect has led this attempt
        self.hops = 0

    @property
    def origin(self) -> Place:
        """Where the event was read."""
        return Place(*self.read_at)

    @property
    def read_at(self) -> tuple[str, int, int]:
        """The same for the attempt log."""
        if self.place is not None:
            return self.place
        tracker = self.tracker
        return tracker.topic, tracker.partition, self.offset

    def done(self, result: Result) -> None:
        """The attempt is over (called by the transport)."""
        try:
            self.owner.done(self, result)
        except Exception as error:  # noqa: BLE001 - rule 4
            self.owner.broken("result of an attempt", error)

    def wake(self) -> None:
        """The wait is over (called by the timing wheel)."""
        try:
            self.owner.wake(self)
        except Exception as error:  # noqa: BLE001 - rule 4
            self.owner.broken("retry", error)


class Appetite(NamedTuple):
    """What a subscription can take of what is parked for it."""

    most: int
    """So many at a time; 0 for none now."""
    again: float
    """Where it takes none: when to ask again, in seconds of the loop."""
    kept: str | None
    """Why it takes nothing until its status changes; None if it isn't that."""
    room: int = 1 << 30
    """So many at once."""


class Deliveries:
    """Every delivery that this process owes. Also what the readers of our own topics hand over to (`retries.Host`, `backlogs.Host`)."""

    def __init__(
        self,
        settings: Settings,
        tiers: Tiers,
        *,
        transport: Transport,
        registry: Registry,
        guard: Guard,
        outbox: Outbox,
        attempts: AttemptLog,
        metrics: Metrics,
        timers: Timers,
        broken: Callable[[str, Exception], None],
        chance: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        """`broken` is told of rule 4. `wall` gives Unix seconds, `chance` a number in [0, 1)."""
        self.in_flight = 0
        self.bytes = 0  # of the events' bodies, once per delivery
        self.attempting = 0
        self.queued = 0
        self.gate = True  # see rule 3
        self.full = False  # somebody waits for `has_room_again`
        self.has_room_again = asyncio.Event()
        self.broken = broken
        self.on_given_up: GivenUp | None = None  # told of each delivery whose dead letter is written
        self._transport = transport
        self._registry = registry
        self._guard = guard
        self._outbox = outbox
        self._attempts = attempts
        self._metrics = metrics
        self._timers = timers
        self._chance = chance
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time
        self._tiers = tiers
        self._dead_topic = f"{settings.topics.prefix}dead"
        self._connections_per_host = settings.delivery.connections_per_host
        self._max_in_flight = settings.delivery.max_in_flight
        self._max_bytes = settings.delivery.max_in_flight_bytes
        self._tight_at = int(self._max_in_flight * _TIGHT)
        self._tight_bytes = int(self._max_bytes * _TIGHT)
        self._success_sample = settings.log.success_sample
        self._horizon = settings.retry.horizon
        self._max_wait = settings.delivery.max_queue_wait
        self._breaker_threshold = settings.delivery.breaker_threshold or None
        self._disable_after = settings.retry.disable_after or None
        self._patience = min(NOTED_AFTER, self._disable_after or NOTED_AFTER)
        self._lanes: dict[Origin, Route] = {}
        self._watched: list[Route] = []  # that had something queued, and are measured
        self._measured = self._clock()
        self._open: dict[str, set[Valve]] = {"subscription": set(), "host": set()}  # breakers, by scope
        self._parking: Parking[Delivery] = Parking(
            parked_topic(settings.topics.prefix),
            outbox,
            metrics,
            settle=self._settle,
            forget=self._forget,
            broken=broken,
            wall=wall,
        )
        self._held: dict[Delivery, Entry[Callback]] = {}
        self._roster = Roster()
        self._aged = self._clock()

    @property
    def held(self) -> int:
        """Deliveries that wait in memory for a near retry."""
        return len(self._held)

    @property
    def busy(self) -> int:
        """Those that don't: queued, attempted, or being written."""
        return self.in_flight - len(self._held)

    @property
    def unsettled(self) -> int:
        """Those that will be settled before long: attempted, about to be parked, or being written."""
        return self.attempting + len(self._parking) + len(self._outbox)

    @property
    def lanes(self) -> int:
        """Origins with anything queued or recently in flight."""
        return len(self._lanes)

    def health(self, subscription_id: str) -> Health:
        """How deliveries to it go; nothing, of one that nothing is known of."""
        subscription = self._registry.index.get(subscription_id)
        if subscription is None:
            return Health()
        vitals = self._roster.find(subscription_id)
        if vitals is not None and vitals.tenant != subscription.tenant:
            # What went wrong for the id's former owner is none of the new one's business.
            self._roster.forget(subscription_id)
            vitals = None
        lane = self._lanes.get(subscription.origin)
        share = None if lane is None else lane.find(subscription_id)
        states = [valve.state for valve in (share, lane) if valve is not None]
        state = next((state for state in (State.OPEN, State.PROBING) if state in states), State.CLOSED)
        if vitals is None and share is None and state is State.CLOSED:
            return Health()
        health = (vitals or Vitals(subscription.tenant)).health(
            _BREAKERS[state], 0 if share is None else share.queued, 0 if share is None else share.in_flight
        )
        at = health.last_failure_at
        return health if at is None else health._replace(last_failure_at=at + self._wall() - self._clock())

    # Taking up.

    def owe(self, delivery: Delivery) -> None:
        """Take on a delivery of an event that has just been read. `start` it before anything is waited for."""
        self._count(len(delivery.event.body))

    def start(self, owed: list[Delivery]) -> None:
        """Attempt or queue each of them; the list is empty then."""
        _prefetch(owed)
        for delivery in owed:
            self._queue(delivery, self._clock(), urgent=False)
        owed.clear()

    def take_back(self, letter: Letter, tracker: PartitionTracker, offset: int, due: float) -> None:
        """A delivery has waited in the retry topics for all but the last of its wait. `due` by the loop's clock."""
        delivery = self._taken_over(letter, tracker, offset, due)
        if delivery is not None:
            self._hold(delivery)

    def _taken_over(
        self, letter: Letter, tracker: PartitionTracker, offset: int, due: float
    ) -> Delivery | None:
        """The delivery that a record of our own topics is; None if nobody is owed it any more."""
        subscription = self._registry.index.get(letter.subscription_id)
        if subscription is None or subscription.tenant not in (letter.event.tenant, EVERY_TENANT):
            # Deleted, or an id that went to another tenant meanwhile.
            self._count_dropped(letter.place, letter.event, letter.subscription_id, "deleted")
            tracker.settle(offset)
            return None
        delivery = Delivery(self, letter.event, subscription, tracker, offset)
        delivery.place = letter.place
        delivery.attempt = letter.attempt
        delivery.first_attempt_ms = letter.first_attempt_ms
        delivery.last_result = letter.last_result
        delivery.history = letter.history
        delivery.parked = letter.parked
        delivery.due = due
        self._count(len(letter.event.body))
        return delivery

    def appetite(self, subscription_id: str, since: float, rate: float) -> Appetite:
        """How many parked deliveries of a subscription may be with its lane now, the oldest parked at `since` (Unix seconds).

        `rate` is how many went in a second lately.
        """
        subscription = self._registry.index.get(subscription_id)
        if subscription is None:
            return Appetite(_AT_A_TIME, 0.0, None)
        reason = keeps(subscription)
        if reason is not None:
            return Appetite(0, 0.0, reason)
        if subscription.status is not Status.ACTIVE:
            return Appetite(_AT_A_TIME, 0.0, None)
        now = self._clock()
        if not self.gate or self.at_cap():
            return Appetite(0, now + _AGAIN, None)
        lane = self._lanes.get(subscription.origin)
        limit = min(subscription.max_in_flight, self._connections_per_host)
        exact = False
        if lane is None:
            limit = min(limit, max(1, int(subscription.rate_limit or limit)))
        else:
            limit, exact, again = lane.room_for_parked(
                subscription_id, subscription.max_in_flight, subscription.rate_limit, now
            )
            if not limit:
                return Appetite(0, max(again, now), None)
            first = lane.first_fresh(subscription_id)
            if first is not None and self._wall() - (now - first.queued) < since:
                return Appetite(0, now + _AGAIN, None)  # those who wait in memory have waited longer
        room = int(self._max_in_flight * _PARKED_SHARE) - self.in_flight
        if self.bytes > self._max_bytes * _PARKED_SHARE:
            room = 0
        most = limit if exact else max(2 * limit, int(rate))
        return Appetite(most, now + _AGAIN, None, max(1, room))

    def state_of(self, subscription_id: str) -> object:
        """Another one when what is parked for it has to be looked at: its status, and why."""
        subscription = self._registry.index.get(subscription_id)
        return None if subscription is None else (subscription.status, subscription.reason)

    def take_parked(self, letter: Letter, tracker: PartitionTracker, offset: int) -> None:
        """A parked delivery is to go to its lane. One that can't go after all is given back to its backlog."""
        self._metrics.retries_due["parked"] += 1
        now = self._clock()
        delivery = self._taken_over(letter, tracker, offset, now)
        if delivery is not None:
            self._queue(delivery, now, urgent=False, parked=True)

    def expire_parked(self, letter: Letter, tracker: PartitionTracker, offset: int) -> None:
        """It was kept for as long as such deliveries are kept."""
        self._count_dropped(letter.place, letter.event, letter.subscription_id, "expired_while_paused")
        tracker.settle(offset)

    def at_cap(self) -> bool:
        """Whether nothing more may be taken on."""
        return self.in_flight >= self._max_in_flight or self.bytes >= self._max_bytes

    def has_room(self) -> bool:
        """Whether what comes out of a retry topic may be taken up."""
        return self.gate and not self.at_cap()

    def knows(self, subscription_id: str) -> bool:
        """Whether the subscription is still there."""
        return self._registry.index.get(subscription_id) is not None

    def refuse(self, record: Record, tracker: PartitionTracker, reason: str, detail: str) -> None:
        """The record can't be read: to the dead-letter topic with it, and on. Its offset owes that."""
        offset = record.offset
        log.warning(
            "invalid record",
            topic=tracker.topic,
            partition=tracker.partition,
            offset=offset,
            reason=reason,
            detail=detail,
        )
        headers = unreadable_headers(
            record.headers,
            topic=tracker.topic,
            partition=tracker.partition,
            offset=offset,
            reason=reason,
            detail=detail,
            raw=record.raw_headers if isinstance(record, UnreadableRecord) else (),
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
            self._settled(tracker, offset, size, "")

        self._outbox.put(message, settle)

    def _queue(self, delivery: Delivery, now: float, *, urgent: bool, parked: bool = False) -> None:
        subscription = delivery.subscription
        lane = subscription.route
        if not isinstance(lane, Route) or lane.owner is not self:
            lane = self._find_route(subscription)
        delivery.lane = lane
        delivery.queued = now
        lane.idle_since = None
        if self.gate:
            share = lane.pass_through(subscription.id, subscription.max_in_flight, subscription.rate_limit)
            if share is not None:
                delivery.share = share
                if not self._attempt(delivery, now):
                    lane.release(share)
                return
        refusal = lane.offer(
            subscription.id,
            subscription.max_in_flight,
            delivery,
            now,
            urgent=urgent,
            parked=parked,
            tight=self.in_flight > self._tight_at or self.bytes > self._tight_bytes,
            rate=subscription.rate_limit,
        )
        if refusal is not None:
            if not delivery.tracker.lost and self._unwanted(delivery):
                return
            self._parking.park(
                delivery, refusal.reason, refusal.until if refusal.reason == "retry_after" else 0.0
            )
            return
        self.queued += 1
        if lane.in_flight < lane.limit:
            self._pump(lane, now)
        if lane.queued and not lane.watched:
            lane.watched = True
            self._watched.append(lane)

    def _find_route(self, subscription: Subscription) -> Route:
        origin = subscription.origin
        route = self._lanes.get(origin)
        if route is None:
            route = self._lanes[origin] = Route(self, self._connections_per_host, self._max_wait)
        subscription.route = route
        return route

    def _pump(self, lane: Route, now: float) -> None:
        """Start attempts while the lane has both a free slot and something to send."""
        dropped = 0
        while self.gate and (taken := lane.take(now)) is not None:
            delivery, share = taken
            self.queued -= 1
            delivery.share = share
            if not self._attempt(delivery, now):
                lane.release(share)
                dropped += 1
                if dropped >= _SLICE:
                    # Thousands may go at once, when a subscription is deleted: not in one turn of the loop.
                    self._loop.call_soon(self._pump, lane, now)
                    return
        if lane.blocked:
            # One timer for each share that waits, however many deliveries wait in it.
            for share in lane.blocked:
                self._timers.at(share.blocked_until, partial(self._unblock, lane, share))
            lane.blocked.clear()

    def _unblock(self, lane: Route, share: Share[Delivery]) -> None:
        try:
            lane.unblock(share)
            self._pump(lane, self._clock())
        except Exception as error:  # noqa: BLE001 - rule 4
            self.broken("the end of a share's wait", error)

    # Attempt, decide, settle.

    def _attempt(self, delivery: Delivery, now: float) -> bool:
        """Send it; False if it is not to be sent (any more) and has been dealt with."""
        if delivery.tracker.lost:
            self._settle(delivery)
            return False
        subscription = delivery.subscription
        index = self._registry.index
        # Nearly always nothing has changed since it was matched: then it need not be looked for.
        if delivery.index != index.serial or subscription.status is not Status.ACTIVE:
            if self._unwanted(delivery):
                return False
            delivery.index = index.serial
            if delivery.subscription.origin != subscription.origin:
                self._queue(delivery, now, urgent=delivery.attempt > 0)
                return False
            subscription = delivery.subscription
        unix = self._wall()
        try:
            delivery.request = build(subscription, delivery.event, int(unix))
        except Exception as error:
            # Whatever it is about this delivery, the others must not wait for it.
            log.exception(
                "request could not be built", subscription_id=subscription.id, event_id=delivery.event.id
            )
            self._bury(delivery, "unsendable", describe(Failure(Reason.PROTOCOL_ERROR, repr(error))))
            return False
        delivery.attempt += 1
        if delivery.first_attempt_ms is None:
            delivery.first_attempt_ms = int(unix * 1000)
        delivery.hops = 0
        delivery.hop = None
        delivery.started = now
        delivery.deadline = now + subscription.timeout
        self.attempting += 1
        certificate = subscription.certificate
        lane = delivery.lane
        pool = lane.pool
        try:
            if certificate is not None:
                self._transport.send(subscription.origin, delivery, certificate)
            elif pool is None or pool.dropped:
                lane.pool = self._transport.send(subscription.origin, delivery)
            else:
                pool.send(delivery)
        except Exception as error:  # noqa: BLE001 - rule 4
            self.broken("send", error)
        return True

    def done(self, delivery: Delivery, result: Result) -> None:
        if type(result) is Response and result.status in _FOLLOWED and delivery.subscription.follow_redirects:
            verdict = self._follow(delivery, result)
            if verdict is None:
                return  # on its way to where the endpoint pointed, still the same attempt
            result = verdict
        self.attempting -= 1
        delivery.request = b""
        lane = delivery.lane
        now = self._clock()
        if type(result) is Response and 200 <= result.status < 300:
            share = delivery.share
            if share.trouble is not None or lane.trouble is not None:
                self._absolve(delivery, now)
            lane.release(share)
            metrics = self._metrics
            metrics.delivered += 1
            unix = self._wall()
            took = now - delivery.started
            subscription = delivery.subscription
            vitals = subscription.vitals
            if not isinstance(vitals, Vitals) or vitals.generation != self._roster.generation:
                vitals = subscription.vitals = self._roster.admit(subscription.id, subscription.tenant)
            if vitals.succeeded(took, now):
                self._well(subscription.id)
            metrics.attempt_duration.observe(took)
            metrics.delivery_latency.observe(unix - delivery.event.timestamp_ms / 1000)
            if self._attempts.successes:
                self._attempts.note(delivery, result, DELIVERED, now, unix)
            if self._success_sample and self._chance() < self._success_sample:
                self._log_attempt(delivery, result, now, DELIVERED, None)
            self._settle(delivery)
        else:
            self._failed(delivery, result, now)
        if lane.queued:
            self._pump(lane, now)

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
        lane = delivery.lane
        if type(result) is Failure and result.reason is Reason.CANCELLED:
            lane.release(delivery.share)
            # Stopping. Whether it has arrived is not known, so it is sent again.
            delivery.attempt -= 1
            self._leave_parked(delivery)
            return
        metrics.attempt_duration.observe(now - delivery.started)
        if type(result) is Response:
            metrics.attempts["status", f"{result.status // 100}xx"] += 1
        elif type(result) is Failure:
            metrics.attempts[result.reason.value, "none"] += 1
        unix = self._wall()
        tracker = delivery.tracker
        if isinstance(tracker, ParkedTracker):
            tracker.release(delivery.offset)
        self._judge(delivery, result, now, unix)
        lane.release(delivery.share)
        if delivery.tracker.lost:
            self._log_attempt(delivery, result, now, LEFT_TO_ANOTHER, None)
            self._settle(delivery)  # whoever has the partition now delivers it
            return
        described = describe(result)
        delivery.history = remember(
            delivery.history,
            Tried(delivery.attempt, int((unix - now + delivery.started) * 1000), described),
        )
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
                self._log_attempt(delivery, result, now, RETRY, due)
                if not counted:
                    delivery.attempt -= 1
                delivery.last_result = described
                delivery.parked = 0
                delivery.due = now + (due - unix)
                if type(decision) is Hold:
                    self._hold(delivery)
                else:
                    self._hand_over(delivery, "retry")
            case DeadLetter(reason=reason):
                self._log_attempt(delivery, result, now, DEAD, None, reason)
                self._bury(delivery, reason, described)
            case Disable(reason=reason):
                self._log_attempt(delivery, result, now, DEAD, None, reason)
                self._registry.disable(delivery.subscription.id, reason)
                self._bury(delivery, reason, described)
            case _:
                assert_never(decision)

    def _hold(self, delivery: Delivery) -> None:
        self._held[delivery] = self._timers.at(delivery.due, delivery.wake)

    def wake(self, delivery: Delivery) -> None:
        del self._held[delivery]
        self._metrics.retries_due["memory"] += 1
        self._metrics.retry_lateness.observe(self._clock() - delivery.due)
        current = self._registry.index.get(delivery.subscription.id)
        if current is not None and current.tenant == delivery.subscription.tenant:
            # Its lane is that of the address by now: what is the matter with the former one is not its concern.
            delivery.subscription = current
        self._queue(delivery, self._clock(), urgent=True)

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
            history=delivery.history,
            reason=reason,
            due=unix + wait,
            parked=delivery.parked,
        )
        tier = self._tiers.choose(wait)
        key = delivery.subscription.id.encode()
        message = Message(tier.topic, event.body, key, headers, timestamp_ms=int(unix * 1000))
        self._outbox.put(message, partial(self._settle, delivery))

    def leave_behind(self) -> None:
        """Hand what is queued or held to the retry topics: this process ends."""
        now = self._clock()
        self._parking.all()
        held = list(self._held)
        self.forget_held()
        for delivery in held:
            if delivery.due > now:
                self._leave(delivery)
            else:
                self._leave_parked(delivery)
        left = len(held)
        for lane in self._lanes.values():
            queued = lane.withdraw(_any)
            self.queued -= len(queued)
            left += len(queued)
            for delivery in queued:
                self._leave_parked(delivery)
        if left:
            log.info("what waits is left to the next process", deliveries=left)

    def _leave(self, delivery: Delivery) -> None:
        # What came out of a topic of ours still stands there.
        if delivery.place is None and not delivery.tracker.lost:
            self._metrics.parked["shutdown"] += 1
            self._hand_over(delivery, "shutdown")

    def _leave_parked(self, delivery: Delivery) -> None:
        if delivery.place is None:
            self._parking.park(delivery, "shutdown")

    def hand_over_overdue(self) -> None:
        """Park what is queued and owed for longer than the limit (the trackers know); what is held goes to a tier.

        An attempt under way is let end; what comes of it is handed over next time.
        """
        overdue = 0
        for lane in self._lanes.values():
            queued = lane.withdraw(_is_overdue)
            self._withdrawn(queued, "hold_limit")
            overdue += len(queued)
        held = [delivery for delivery in self._held if _is_overdue(delivery)]
        self._give_up_holding(held, "hold_limit")
        overdue += len(held)
        if overdue:
            log.warning("held for too long: handed to the retry topics", deliveries=overdue)

    def _unwanted(self, delivery: Delivery) -> bool:
        """Deal with it if its subscription takes nothing now; if it does, go by what the subscription is now."""
        subscription = delivery.subscription
        current = self._registry.index.get(subscription.id)
        if current is None or current.tenant != subscription.tenant:
            # An id that went to another tenant is another subscription: what the one was owed isn't the other's.
            self._drop(delivery, "deleted")
            return True
        delivery.subscription = current
        status = current.status
        if status is Status.ACTIVE:
            return False
        # Its event came while the subscription was active, or has been tried: that was promised, and is not just dropped.
        owed = (
            delivery.place is not None
            or delivery.attempt > 0
            or delivery.offset < delivery.tracker.handed_below
            or subscription.status is Status.ACTIVE
            or owed_while_kept(subscription)
        )
        if owed and (reason := keeps(current)) is not None:
            self._parking.park(delivery, reason)
        elif status is Status.DISABLED and owed:
            self._bury(delivery, "gone" if current.reason == "gone" else "disabled", delivery.last_result)
        else:
            self._drop(delivery, status.value)
        return True

    def _bury(self, delivery: Delivery, reason: str, last_result: str | None) -> None:
        """Write the dead letter; settled when the broker has it."""
        event = delivery.event
        headers = delivery_headers(
            event,
            delivery.subscription.id,
            delivery.origin,
            attempt=delivery.attempt,
            first_attempt_ms=delivery.first_attempt_ms,
            last_result=last_result,
            history=delivery.history,
            reason=reason,
        )

        def written() -> None:
            self._metrics.dead_letters[reason] += 1
            self._metrics.deliveries["dead_lettered"] += 1
            if self.on_given_up is not None:
                self.on_given_up(delivery.subscription, event, reason, delivery.attempt, last_result)
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
        size = len(delivery.event.body)
        self._settled(delivery.tracker, delivery.offset, size, delivery.subscription.id)

    def _forget(self, delivery: Delivery) -> None:
        """It waits in its topic again, its offset owed as before."""
        self.in_flight -= 1
        self.bytes -= len(delivery.event.body)
        if self.full:
            self._check_room()

    def _count(self, size: int) -> None:
        self.in_flight += 1
        self.bytes += size

    def _settled(self, tracker: PartitionTracker, offset: int, size: int, subscription_id: str) -> None:
        self.in_flight -= 1
        self.bytes -= size
        tracker.settle(offset, subscription_id)
        if self.full:
            self._check_room()

    def _check_room(self) -> None:
        if (
            self.full
            and self.in_flight <= self._max_in_flight * _LOW_WATER
            and self.bytes <= self._max_bytes * _LOW_WATER
        ):
            self.full = False
            self.has_room_again.set()

    def _log_attempt(
        self,
        delivery: Delivery,
        result: Result,
        now: float,
        decision: str,
        due: float | None,
        reason: str | None = None,
    ) -> None:
        """The one line of an attempt: always the same keys. And of one that failed, its record."""
        failed = decision != DELIVERED
        if failed and self._attempts.failures:
            self._attempts.note(delivery, result, decision, now, self._wall(), due, reason)
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
            reason=reason,
            due=None if due is None else round(due, 3),
        )

    # Keeping endpoints apart: breakers, demands, parking.

    def _absolve(self, delivery: Delivery, now: float) -> None:
        """It was delivered to an endpoint that has been in trouble."""
        started = delivery.started
        if delivery.lane.succeeded(started, now):
            self._closed("host", delivery.lane, delivery)
        if delivery.share.succeeded(started, now):
            self._closed("subscription", delivery.share, delivery)

    def _judge(self, delivery: Delivery, result: Result, now: float, unix: float) -> None:
        """What a failed attempt means for the endpoint's other deliveries."""
        lane, share, started = delivery.lane, delivery.share, delivery.started
        threshold = self._breaker_threshold
        gone = type(result) is Response and result.status == 410
        wanted = demand(result, unix)
        # What the others of a round say again counts for nothing: it has been heeded (`Valve.throttled`).
        repeated = withdraw = False
        until = now + (wanted.wait or 0.0)
        if wanted.fewer:
            repeated = not share.throttled(started, now)
        elif wanted.wait is not None and not gone:
            withdraw, news = lane.postpone(share, started, until, now)
            repeated = not news
        match blame(result, own_certificate=delivery.subscription.certificate is not None):
            case Blame.HOST:
                if threshold is not None and lane.failed(started, now, self._chance(), threshold):
                    self._opened("host", lane, delivery, lane.withdraw(_any), now)
            case Blame.SUBSCRIPTION:
                if reached_host(result) and lane.succeeded(started, now):
                    self._closed("host", lane, delivery)
                if gone or repeated or threshold is None:
                    pass
                elif share.failed(started, now, self._chance(), threshold):
                    self._opened("subscription", share, delivery, lane.withdraw_share(share), now)
            case Blame.NOBODY:
                return
        self._ail(delivery, result, now, unix, gone=gone)
        if withdraw:
            self._withdrawn(lane.withdraw_share(share), "retry_after", until)

    def _well(self, subscription_id: str) -> None:
        """Something was delivered to it: whoever noted that everything fails, that is over."""
        if self._registry.failing(subscription_id) is not None:
            self._registry.note_recovered(subscription_id)

    def _ail(self, delivery: Delivery, result: Result, now: float, unix: float, *, gone: bool) -> None:
        """An attempt failed, and the endpoint or its host is to blame."""
        subscription = delivery.subscription
        id_ = subscription.id
        registry = self._registry
        vitals = self._roster.admit(id_, subscription.tenant)
        silence = max(SILENCE, 2 * max(subscription.retry.schedule, default=0.0))
        # Notes are by the wall clock, as they outlive this process; what it has seen itself is by its own.
        ahead = unix - now
        noted = registry.failing(id_)
        streak = vitals.failed(
            now - delivery.started,
            describe(result),
            now,
            None if noted is None else noted - ahead,
            self._patience,
            silence,
        )
        if streak.struck:
            registry.note_recovered(id_)
        if streak.worth_noting:
            registry.note_failing(id_, streak.since + ahead)
        longest = self._disable_after
        if (
            longest is not None
            and not gone
            and now - streak.since >= longest
            and now - streak.own >= self._patience
        ):
            log.warning(
                "nothing but failures",
                subscription_id=id_,
                host=subscription.origin.host,
                seconds=round(now - streak.since),
                last_result=describe(result),
            )
            registry.disable(id_, "failing")

    def _opened(
        self, scope: str, valve: Valve, delivery: Delivery, queued: list[Delivery], now: float
    ) -> None:
        if valve not in self._open[scope]:
            self._open[scope].add(valve)
            log.warning(
                "breaker opened",
                scope=scope,
                host=delivery.subscription.origin.host,
                subscription_id=delivery.subscription.id if scope == "subscription" else None,
                cool_down=round(valve.open_until - now, 1),
                queued=len(queued),
            )
        self._withdrawn(queued, "breaker")

    def _closed(self, scope: str, valve: Valve, delivery: Delivery) -> None:
        self._open[scope].discard(valve)
        log.info(
            "breaker closed",
            scope=scope,
            host=delivery.subscription.origin.host,
            subscription_id=delivery.subscription.id if scope == "subscription" else None,
        )

    def breakers_open(self) -> dict[tuple[str, ...], float]:
        """How many, by scope."""
        for scope, valves in self._open.items():
            # A trouble may also be forgotten, with its breaker.
            self._open[scope] = {valve for valve in valves if valve.state is not State.CLOSED}
        return {(scope,): len(valves) for scope, valves in self._open.items()}

    def _withdrawn(self, deliveries: Sequence[Delivery], reason: str, until: float = 0.0) -> None:
        """Park what has been taken out of a lane."""
        self.queued -= len(deliveries)
        self._parking.soon(deliveries, reason, until)

    def _give_up_holding(self, deliveries: Sequence[Delivery], reason: str) -> None:
        """Let what waits in memory for its retry wait in a tier, until it is due."""
        for delivery in deliveries:
            self._timers.cancel(self._held.pop(delivery))
        self._parking.each(deliveries, partial(self._put_off, reason))

    def _put_off(self, reason: str, delivery: Delivery) -> None:
        if delivery.tracker.lost:
            self._settle(delivery)
        else:
            self._metrics.parked[reason] += 1
            self._hand_over(delivery, reason)

    def measure(self, now: float) -> None:
        """How fast the lanes are that have something queued; called some times a second."""
        seconds = now - self._measured
        self._measured = now
        if not self.gate:
            return  # nothing moves, through no fault of theirs
        watched, self._watched = self._watched, []
        for lane in watched:
            lane.watched = lane.measure(seconds)
            if lane.watched:
                self._watched.append(lane)
        beyond = self.in_flight - self._tight_at
        if self.bytes > self._tight_bytes:
            beyond = max(beyond, self.in_flight - int(self.in_flight * self._tight_bytes / self.bytes))
        if beyond > 0:
            self._relieve(beyond)

    def _relieve(self, wanted: int) -> None:
        """Memory is scarce: those give up the newest of theirs who fill it, so that the others need not wait for them."""
        reason = "cap" if self.full else "queue_wait"
        for lane in sorted(self._watched, key=_longest_wait, reverse=True):
            if wanted <= 0 or lane.longest_wait <= self._max_wait:
                break
            trimmed = lane.trim(wanted)
            trimmed.reverse()  # the eldest is parked first
            wanted -= len(trimmed)
            self._withdrawn(trimmed, reason)
        if not self.full:
            return
        # An endpoint that fails now and then opens no breaker, but may have thousands wait for their retry.
        surplus = len(self._held) - self.in_flight // 4
        if wanted > 0 and surplus > 0:
            self._give_up_holding(nlargest(surplus, self._held, key=_due), "cap")

    # Housekeeping.

    def forget_lost(self) -> None:
        """Of partitions that are somebody else's now, nothing is held on to."""
        for delivery in [d for d in self._held if d.tracker.lost]:
            self._timers.cancel(self._held.pop(delivery))
            self._settle(delivery)
        for lane in self._lanes.values():
            queued = lane.withdraw(_is_lost)
            self.queued -= len(queued)
            for delivery in queued:
                self._settle(delivery)

    def forget_held(self) -> None:
        """The process ends: nothing of them is done any more."""
        for entry in self._held.values():
            self._timers.cancel(entry)
        self._held.clear()

    def open_gate(self) -> None:
        """Attempts may start again."""
        self.gate = True
        now = self._clock()
        for lane in list(self._lanes.values()):
            self._pump(lane, now)

    def sweep(self, now: float) -> None:
        """Drop the lanes of origins that fell silent, and what is known of silent subscriptions."""
        for origin, lane in list(self._lanes.items()):
            if not lane.empty:
                lane.tidy(now)
            if not lane.empty:
                lane.idle_since = None
            elif lane.idle_since is None:
                lane.idle_since = now
            elif now - lane.idle_since >= _LANE_IDLE:
                del self._lanes[origin]
                lane.close()
        if now - self._aged >= _AGING:
            self._aged = now
            self._roster.age()


def _prefetch(owed: Sequence[Delivery]) -> int:
    """Bring into the CPU's caches what starting these will need. Returns nothing of interest.

    With 10,000 hosts in turns nobody has been at a host's objects for a fifth of a second, and each of them is found
    through the one before. Delivery by delivery the CPU waits for every one; here so little is done in between that it
    fetches those of several deliveries at once: 23.1 us a delivery became 22.3. Where a host has something in flight, they are there.
    """
    touched = 0
    for delivery in owed:
        subscription = delivery.subscription
        lane = subscription.route
        vitals = subscription.vitals
        if not isinstance(lane, Route) or not isinstance(vitals, Vitals) or lane.in_flight:
            continue
        pool = lane.pool
        if pool is None:
            continue
        touched += len(subscription.id) + vitals.prefetch() + (lane.idle_since is None)
        touched += subscription.request.prefetch() + pool.prefetch()
    return touched


def _is_overdue(delivery: Delivery) -> bool:
    return delivery.offset < delivery.tracker.overdue_below


def _is_lost(delivery: Delivery) -> bool:
    return delivery.tracker.lost


def _any(_: Delivery) -> bool:
    return True


def _due(delivery: Delivery) -> float:
    return delivery.due


def _longest_wait(lane: Route) -> float:
    return lane.longest_wait
