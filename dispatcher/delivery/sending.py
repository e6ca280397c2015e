"""From the lane to the socket, and back with a result.

In comes a delivery that is taken up, or whose wait is over. Each is offered to the lane of its origin; where the lane has room, the request is
built and handed to the transport; the result comes back by callback and goes to `outcome.py`. What the lane turns away goes to `parking.py`, what nobody
is owed any more to `settlement.py`. This room alone writes `gate`, which attempts are under way (`core/endpoint/fairness.py`), and the fields of a delivery that describe an attempt.

Rules:

1. While the gate is closed no attempt starts.
2. An exception where none can be (a bug) ends the process: it is started anew and reads again what
   isn't committed, while going on could owe a delivery for ever without anybody noticing.
3. A share whose tenant may begin no more is resumed when an attempt has ended and the tenant may (`_resume_held`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from types import FunctionType
from typing import Final

import structlog

from dispatcher.core.endpoint.fairness import Fairness
from dispatcher.core.endpoint.health import EndpointHealth
from dispatcher.core.endpoint.share import Share
from dispatcher.core.replay.standing import ReplayStanding, ReplayStandings
from dispatcher.core.request.build import build, with_replay
from dispatcher.core.request.netguard import Guard
from dispatcher.core.request.redirects import FOLLOWED, Hop, follow
from dispatcher.core.request.results import Failure, Reason, Response, Result
from dispatcher.core.request.urls import Target
from dispatcher.core.retry.generations import CANCELLED, Generations
from dispatcher.core.retry.records import describe
from dispatcher.core.subscription.model import Status
from dispatcher.delivery.delivery import Delivery, DeliveryOwner, DeliveryRoute
from dispatcher.delivery.holding import Holding
from dispatcher.delivery.lanes import Lanes
from dispatcher.delivery.memory import MemoryShares
from dispatcher.delivery.outcome import Outcomes
from dispatcher.delivery.parking import FAIR_SHARE, Parking, keeps, owed_while_kept
from dispatcher.delivery.settlement import Settlement
from dispatcher.registry.registry import Registry
from dispatcher.runtime.timers import Timers
from dispatcher.transport.client import Transport

Outgoing = Callable[[Delivery, bytes, float, float], bytes]
"""What becomes of a request's trace context: the delivery, its request, and now by the loop's clock and the wall's."""

log = structlog.get_logger(__name__)

_SLICE: Final = 32  # deliveries dropped in one turn of the loop: about 1 ms of work
_RESUMED: Final = 8  # held shares that are asked again after an attempt


# Long: the way from the lane to the socket and back is one path over one set of fields.
class Sending(DeliveryOwner):
    """What is queued and attempted."""

    def __init__(
        self,
        *,
        transport: Transport,
        registry: Registry,
        guard: Guard,
        timers: Timers,
        outcomes: Outcomes,
        lanes: Lanes,
        holding: Holding,
        parking: Parking,
        settlement: Settlement,
        replays: ReplayStandings,
        generations: Generations,
        memory: MemoryShares,
        fairness: Fairness,
        outgoing: Outgoing | None,
        on_broken: Callable[[str, Exception], None],
        wall: Callable[[], float],
    ) -> None:
        """`outgoing` is None where requests have the trace context of their event. `generations` tells what is superseded. `on_broken` is told of rule 2. `wall` gives Unix seconds."""
        self.gate = True  # see rule 1
        self._transport = transport
        self._registry = registry
        self._guard = guard
        self._timers = timers
        self._outcomes = outcomes
        self._lanes = lanes
        self._holding = holding
        self._parking = parking
        self._settlement = settlement
        self._replays = replays
        self._generations = generations
        self._memory = memory
        self._fairness = fairness
        self._outgoing = outgoing
        self._on_broken = on_broken
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time

    def broken(self, where: str, error: Exception) -> None:
        """See rule 2."""
        self._on_broken(where, error)

    @property
    def attempting(self) -> int:
        """Attempts that are under way."""
        return self._fairness.attempts

    def close_gate(self) -> None:
        """No attempt starts from now on."""
        self.gate = False

    def open_gate(self) -> None:
        """Attempts may start again."""
        self.gate = True
        now = self._clock()
        for lane in self._lanes.all():
            self._pump(lane, now)

    # To the lane.

    def start(self, owed: list[Delivery]) -> None:
        """Attempt or queue each of them; the list is empty then."""
        if _PREFETCHES:
            _prefetch(owed)
        now = self._clock()
        for delivery in owed:
            self.queue(delivery, now, urgent=False)
        owed.clear()

    def wake(self, delivery: Delivery) -> None:
        """The wait of a held delivery is over."""
        self._holding.woken(delivery)
        current = self._registry.index.get(delivery.subscription.id)
        if current is not None and current.tenant == delivery.subscription.tenant:
            # Its lane is that of the address by now: what is the matter with the former one is not its concern.
            delivery.subscription = current
        self.queue(delivery, self._clock(), urgent=True)

    def queue(self, delivery: Delivery, now: float, *, urgent: bool, parked: bool = False) -> None:
        """Attempt it, queue it, or have it parked. `urgent`: its retry is due; `parked`: it came out of the parked topic."""
        subscription = delivery.subscription
        lane = subscription.route
        if not isinstance(lane, DeliveryRoute) or lane.owner is not self._lanes:
            lane = self._lanes.route_of(subscription)
        fairness = self._fairness
        usage = subscription.usage
        if usage is None or usage.owner is not fairness:
            usage = self._lanes.usage_of(subscription)
        if delivery.usage is None:
            self._settlement.charge(delivery, usage)
        delivery.lane = lane
        delivery.queued = now
        lane.idle_since = None
        if self.gate and fairness.attempts < fairness.easy and fairness.attempt_bytes < fairness.easy_bytes:
            share = lane.pass_through(
                subscription.id, subscription.max_in_flight, subscription.rate_limit, usage
            )
            if share is not None:
                delivery.share = share
                if not self._attempt(delivery, now):
                    lane.release(share)
                return
        if self._memory.short and self._lanes.crowded(lane, subscription.id, usage):
            self._turned_away(delivery, FAIR_SHARE)
            return
        refusal = lane.offer(
            subscription.id,
            subscription.max_in_flight,
            delivery,
            now,
            urgent=urgent,
            parked=parked,
            tight=self._settlement.tight(),
            rate=subscription.rate_limit,
            usage=usage,
        )
        if refusal is not None:
            until = refusal.until if refusal.reason == "retry_after" else 0.0
            self._turned_away(delivery, refusal.reason, until)
            return
        if lane.in_flight < lane.limit:
            self._pump(lane, now)
        if lane.queued:
            self._lanes.watch(lane)

    def _turned_away(self, delivery: Delivery, reason: str, until: float = 0.0) -> None:
        if delivery.tracker.lost or not (self._superseded(delivery) or self._unwanted(delivery)):
            self._parking.park(delivery, reason, until)

    def _pump(self, lane: DeliveryRoute, now: float) -> None:
        """Start attempts while the lane has both a free slot and something to send."""
        dropped = 0
        while self.gate and (taken := lane.take(now)) is not None:
            delivery, share = taken
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

    def _unblock(self, lane: DeliveryRoute, share: Share[Delivery]) -> None:
        try:
            lane.unblock(share)
            self._pump(lane, self._clock())
        except Exception as error:  # noqa: BLE001 - rule 2
            self.broken("the end of a share's wait", error)

    def _resume_held(self, now: float) -> None:
        for _ in range(_RESUMED):
            share = self._fairness.next()
            if not isinstance(share, Share):
                return
            lane = share.lane
            if isinstance(lane, DeliveryRoute):
                lane.resume(share)
                self._pump(lane, now)

    # To the socket, and back.

    def _attempt(self, delivery: Delivery, now: float) -> bool:
        """Send it; False if it is not to be sent (any more) and has been dealt with."""
        if delivery.tracker.lost:
            self._settlement.settle(delivery)
            return False
        if self._generations.any and self._superseded(delivery):
            return False
        subscription = delivery.subscription
        index = self._registry.index
        # Nearly always nothing has changed since it was matched: then it need not be looked for.
        if delivery.serial != index.serial or subscription.status is not Status.ACTIVE:
            if self._unwanted(delivery):
                return False
            delivery.serial = index.serial
            if delivery.subscription.origin != subscription.origin:
                self.queue(delivery, now, urgent=delivery.attempt > 0)
                return False
            subscription = delivery.subscription
        unix = self._wall()
        try:
            delivery.request = build(subscription.request, delivery.event, int(unix))
            if delivery.replay is not None:
                if self._replays.standing(delivery.replay) is ReplayStanding.OVER:
                    delivery.request = b""
                    self._settlement.drop(delivery, "cancelled")
                    return False
                delivery.request = with_replay(delivery.request, delivery.replay)
            if self._outgoing is not None:
                delivery.request = self._outgoing(delivery, delivery.request, now, unix)
        except Exception as error:
            # Whatever it is about this delivery, the others must not wait for it.
            log.exception(
                "request could not be built",
                subscription_id=subscription.id,
                event_id=delivery.event.id,
                **self._outcomes.trace_ids(delivery),
            )
            delivery.last_result = describe(Failure(Reason.PROTOCOL_ERROR, repr(error)))
            self._settlement.give_up(delivery, "unsendable")
            return False
        delivery.attempt += 1
        if delivery.first_attempt_ms is None:
            delivery.first_attempt_ms = int(unix * 1000)
        delivery.hops = 0
        delivery.hop = None
        delivery.started = now
        delivery.deadline = now + subscription.timeout
        usage = delivery.usage
        if usage is not None:
            self._fairness.began(usage, delivery.size)
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
        except Exception as error:  # noqa: BLE001 - rule 2
            self.broken("send", error)
        return True

    def done(self, delivery: Delivery, result: Result) -> None:
        """The attempt is over, or led elsewhere."""
        if type(result) is Response and result.status in FOLLOWED and delivery.subscription.follow_redirects:
            verdict = self._follow(delivery, result)
            if verdict is None:
                return  # on its way to where the endpoint pointed, still the same attempt
            result = verdict
        usage = delivery.usage
        if usage is not None:
            self._fairness.ended(usage, delivery.size)
        delivery.request = b""
        lane = delivery.lane
        now = self._clock()
        self._outcomes.ended(delivery, result, now)
        if lane.queued:
            self._pump(lane, now)
        if self._fairness.waiting:
            self._resume_held(now)

    def _follow(self, delivery: Delivery, response: Response) -> Result | None:
        """Send it to where the redirect leads, within the same deadline; or what the attempt came to instead."""
        subscription = delivery.subscription
        origin = subscription.origin
        base = delivery.hop or Target(origin, subscription.target, origin.host_header)
        onward = follow(self._guard, base, delivery.request, response, delivery.hops)
        if not isinstance(onward, Hop):
            return onward
        delivery.hop, delivery.request = onward
        delivery.hops += 1
        self._transport.send(origin, delivery, subscription.certificate)
        return None

    # Not to be sent after all.

    def _superseded(self, delivery: Delivery) -> bool:
        """Settle it if somebody has commanded otherwise since it began."""
        verdict = self._generations.verdict(
            delivery.source, delivery.subscription.id, delivery.generation, delivery.replay
        )
        if verdict is None:
            return False
        # The end of what is cancelled is recorded by whoever executes that (`executing.py`).
        self._settlement.drop(delivery, verdict, recorded=verdict == CANCELLED)
        return True

    def _unwanted(self, delivery: Delivery) -> bool:
        """Deal with it if its subscription takes nothing now; if it does, go by what the subscription is now."""
        subscription = delivery.subscription
        current = self._registry.index.get(subscription.id)
        if current is None or current.tenant != subscription.tenant:
            # An id that went to another tenant is another subscription: what the one was owed isn't the other's.
            self._settlement.drop(delivery, "deleted")
            return True
        delivery.subscription = current
        status = current.status
        if status is Status.ACTIVE:
            return False
        # Its event came while the subscription was active, or has been tried: that was promised, and is not just dropped.
        owed = (
            delivery.event_source is not None
            or delivery.attempt > 0
            or delivery.offset < delivery.tracker.handed_below
            or subscription.status is Status.ACTIVE
            or owed_while_kept(subscription)
        )
        if owed and (reason := keeps(current)) is not None:
            self._parking.park(delivery, reason)
        elif status is Status.DISABLED and owed:
            self._settlement.give_up(delivery, "gone" if current.reason == "gone" else "disabled")
        else:
            self._settlement.pass_by(delivery, status.value)
        return True

    def leave_behind(self) -> None:
        """Hand what is queued or held to the retry topics: this process ends."""
        self._parking.all()
        left = self._holding.leave_behind() + self._lanes.leave_behind()
        if left:
            log.info("what waits is left to the next process", deliveries=left)

    def hand_over_overdue(self) -> None:
        """Park what is queued and owed for longer than the limit (the trackers know); what is held goes to a tier.

        An attempt under way is let end; what comes of it is handed over next time.
        """
        overdue = self._lanes.park_overdue() + self._holding.hand_over_overdue()
        if overdue:
            log.warning("held for too long: handed to the retry topics", deliveries=overdue)

    def forget_lost(self) -> None:
        """Of partitions that are somebody else's now, nothing is held on to."""
        self._holding.forget_lost()
        self._lanes.forget_lost()


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
        health = subscription.health
        if not isinstance(lane, DeliveryRoute) or not isinstance(health, EndpointHealth) or lane.in_flight:
            continue
        pool = lane.pool
        usage = subscription.usage
        if pool is None or usage is None:
            continue
        touched += len(subscription.id) + health.prefetch() + (lane.idle_since is None) + usage.attempts
        touched += subscription.request.prefetch() + pool.prefetch()
    return touched


# Interpreted, so much is done between two looks that none of them overlap: with 10,000 hosts a delivery took 7 % less without.
_PREFETCHES: Final = not isinstance(_prefetch, FunctionType)
