"""The lanes of all origins: found or made for a delivery, measured while something is queued, trimmed, and closed when they fall silent.

In come deliveries whose subscription keeps no route yet. Out go those that are taken out of a queue again, to be parked or settled: they
are owed for too long, memory is scarce, their partition is lost, or the process ends. This room alone adds and removes lanes, and alone writes
`watched`, `idle_since`, `Subscription.route` and `Subscription.usage`. What is inside a lane is `core/endpoint/lane.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import structlog

from dispatcher.core.endpoint.fairness import Fairness, TenantUsage, level
from dispatcher.core.endpoint.share import Share
from dispatcher.core.request.urls import Origin
from dispatcher.core.subscription.model import EVERY_TENANT, Subscription
from dispatcher.delivery.delivery import Delivery, DeliveryRoute
from dispatcher.delivery.holding import Holding
from dispatcher.delivery.memory import MemoryShares
from dispatcher.delivery.parking import FAIR_SHARE, Parking
from dispatcher.delivery.settlement import Settlement
from dispatcher.settings.groups import Settings

log = structlog.get_logger(__name__)

_TOLD_AGAIN: Final = 60.0  # seconds between two lines of the log about the share of one tenant
_LANE_IDLE: Final = 60.0  # seconds after which an empty lane is dropped


class Lanes:
    """Origins with anything queued or recently in flight."""

    def __init__(
        self,
        settings: Settings,
        settlement: Settlement,
        memory: MemoryShares,
        parking: Parking,
        holding: Holding,
        fairness: Fairness,
        *,
        clock: Callable[[], float],
    ) -> None:
        """`clock` is the loop's."""
        self._settlement = settlement
        self._memory = memory
        self._parking = parking
        self._holding = holding
        self._fairness = fairness
        self._reserved = False  # the lanes keep something free: there may be other tenants
        self._connections_per_host = settings.delivery.connections_per_host
        self._max_wait = settings.delivery.max_queue_wait
        self._routes: dict[Origin, DeliveryRoute] = {}
        self._watched: list[DeliveryRoute] = []  # that had something queued, and are measured
        self._measured = clock()
        self._told: dict[str | None, float] = {}  # when the log was told that a tenant has its share

    def __len__(self) -> int:
        return len(self._routes)

    @property
    def queued(self) -> int:
        """Deliveries in all of them. Counted when somebody asks: a count that is carried on is one more for each delivery."""
        return sum([route.queued for route in self._routes.values()])

    def find(self, origin: Origin) -> DeliveryRoute | None:
        """The route to an origin, if there is one."""
        return self._routes.get(origin)

    def route_of(self, subscription: Subscription) -> DeliveryRoute:
        """The route of a subscription that keeps none, or one that is closed."""
        origin = subscription.origin
        route = self._routes.get(origin)
        if route is None:
            route = self._routes[origin] = DeliveryRoute(
                self,
                self._connections_per_host,
                self._max_wait,
                self._fairness,
                reserved=self._reserved,
            )
        subscription.route = route
        return route

    def usage_of(self, subscription: Subscription) -> TenantUsage:
        """What the tenant of a subscription uses. Those without a tenant, and those for every tenant, are the operator's."""
        usage = subscription.usage
        if usage is None or usage.owner is not self._fairness:
            tenant = None if subscription.tenant == EVERY_TENANT else subscription.tenant
            usage = subscription.usage = self._fairness.usage_of(tenant)
            if self._fairness.shared and not self._reserved:
                self._reserved = True
                for route in self._routes.values():
                    route.reserve()
        return usage

    def crowded(self, lane: DeliveryRoute, subscription_id: str, usage: TenantUsage) -> bool:
        """Whether nothing more may be queued for the subscription, since its tenant or itself has its part of the memory."""
        share = lane.find(subscription_id)
        own = 0 if share is None else share.queued + share.in_flight
        return self._memory.crowded(usage, own)

    def all(self) -> list[DeliveryRoute]:
        """Those that there are now."""
        return list(self._routes.values())

    def watch(self, lane: DeliveryRoute) -> None:
        """Something is queued in it: measure it."""
        if not lane.watched:
            lane.watched = True
            self._watched.append(lane)

    def measure(self, now: float, *, moving: bool) -> None:
        """How fast the lanes are that have something queued; called some times a second. `moving`: attempts may start."""
        seconds = now - self._measured
        self._measured = now
        if not moving:
            return  # nothing moves, through no fault of theirs
        watched, self._watched = self._watched, []
        for lane in watched:
            lane.watched = lane.measure(seconds)
            if lane.watched:
                self._watched.append(lane)
        beyond = self._settlement.beyond()
        if beyond > 0:
            self._relieve(beyond)
        if self._memory.look(now):
            self._share_out()
        if self._fairness.waiting:
            self._tell(now)

    def _relieve(self, wanted: int) -> None:
        """Memory is scarce: those give up the newest of theirs who fill it, so that the others need not wait for them."""
        full = self._settlement.full
        reason = "cap" if full else "queue_wait"
        slow = [lane for lane in self._watched if lane.longest_wait > self._max_wait]
        for lane in sorted(slow, key=_longest_wait, reverse=True):
            if wanted <= 0:
                break
            trimmed = lane.trim(wanted)
            trimmed.reverse()  # the eldest is parked first
            wanted -= len(trimmed)
            self._parking.soon(trimmed, reason)
        if full:
            self._holding.relieve(wanted)

    def _share_out(self) -> None:
        """Memory is short: tenants that have more than their part of it give up the newest of what waits."""
        surplus = self._memory.surplus()
        if sum([beyond for _, beyond in surplus]) <= self._parking.unwritten:
            return  # what they gave up is on its way
        queues: dict[TenantUsage, list[tuple[DeliveryRoute, Share[Delivery]]]] = {
            usage: [] for usage, _ in surplus
        }
        for lane in self._routes.values():
            if lane.queued:
                for share in lane.shares():
                    if share.queued and share.usage in queues:
                        queues[share.usage].append((lane, share))
        for usage, beyond in surplus:
            queue = sorted(queues[usage], key=_queued, reverse=True)
            lengths = [share.queued for _, share in reversed(queue)]
            each = level(lengths, max(0, sum(lengths) - beyond))
            trimmed: list[Delivery] = []
            for lane, share in queue:
                lane.cut(share, max(each, share.queued - (beyond - len(trimmed))), trimmed)
            trimmed.reverse()  # the eldest is parked first
            self._parking.soon(trimmed, FAIR_SHARE)
            if len(trimmed) < beyond:
                self._holding.cut(usage, beyond - len(trimmed))

    def _tell(self, now: float) -> None:
        """Tell the log which tenants have their share of all attempts, and want more."""
        self._told = {tenant: at for tenant, at in self._told.items() if now - at < _TOLD_AGAIN}
        for usage in self._fairness.at_share():
            if usage.tenant not in self._told:
                self._told[usage.tenant] = now
                log.warning(
                    "a tenant has its share of attempts",
                    tenant=usage.tenant,
                    attempts=usage.attempts,
                    in_flight=usage.in_flight,
                    all_attempts=self._fairness.attempts,
                    hint="what it is owed waits; its endpoints are slow or do not answer",
                )

    def withdraw(self, lane: DeliveryRoute, share: Share[Delivery] | None, reason: str, until: float) -> int:
        """Park what is queued in a lane, or in one share of it; how many that are. `until` as in `Parking.park`."""
        queued = lane.withdraw(_any) if share is None else lane.withdraw_share(share)
        self._parking.soon(queued, reason, until)
        return len(queued)

    def park_overdue(self) -> int:
        """Park what is queued and owed for longer than the limit (the trackers know); how many that are."""
        return sum([self._park(lane.withdraw(_is_overdue), "hold_limit") for lane in self._routes.values()])

    def _park(self, deliveries: Sequence[Delivery], reason: str) -> int:
        self._parking.soon(deliveries, reason)
        return len(deliveries)

    def leave_behind(self) -> int:
        """Park all that is queued, since this process ends; how many that were."""
        left = 0
        for lane in self._routes.values():
            for delivery in lane.withdraw(_any):
                left += 1
                self._parking.leave_behind(delivery)
        return left

    def forget_lost(self) -> None:
        """Of partitions that are somebody else's now, nothing stays queued."""
        for lane in self._routes.values():
            for delivery in lane.withdraw(_is_lost):
                self._settlement.settle(delivery)

    def sweep(self, now: float) -> None:
        """Close the lanes of origins that fell silent."""
        for origin, lane in list(self._routes.items()):
            if not lane.empty:
                lane.tidy(now)
            if not lane.empty:
                lane.idle_since = None
            elif lane.idle_since is None:
                lane.idle_since = now
            elif now - lane.idle_since >= _LANE_IDLE:
                del self._routes[origin]
                lane.close()
        if self._fairness.many:
            self._fairness.sweep({share.usage for lane in self._routes.values() for share in lane.shares()})


def _is_overdue(delivery: Delivery) -> bool:
    return delivery.overdue


def _is_lost(delivery: Delivery) -> bool:
    return delivery.tracker.lost


def _any(_: Delivery) -> bool:
    return True


def _queued(of: tuple[DeliveryRoute, Share[Delivery]]) -> int:
    return of[1].queued


def _longest_wait(lane: DeliveryRoute) -> float:
    return lane.longest_wait
