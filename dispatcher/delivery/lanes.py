"""The lanes of all origins: found or made for a delivery, measured while something is queued, trimmed, and closed when they fall silent.

In come deliveries whose subscription keeps no route yet. Out go those that are taken out of a queue again, to be parked or settled: they
are owed for too long, memory is scarce, their partition is lost, or the process ends. This room alone adds and removes lanes, and alone writes
`watched`, `idle_since` and `Subscription.route`. What is inside a lane is `core/endpoint/lane.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from dispatcher.core.endpoint.lane import Share
from dispatcher.core.request.urls import Origin
from dispatcher.core.subscription.model import Subscription
from dispatcher.delivery.delivery import Delivery, DeliveryRoute
from dispatcher.delivery.holding import Holding
from dispatcher.delivery.parking import Parking
from dispatcher.delivery.settlement import Settlement
from dispatcher.settings.groups import Settings

_LANE_IDLE: Final = 60.0  # seconds after which an empty lane is dropped


class Lanes:
    """Origins with anything queued or recently in flight."""

    def __init__(
        self,
        settings: Settings,
        settlement: Settlement,
        parking: Parking,
        holding: Holding,
        *,
        clock: Callable[[], float],
    ) -> None:
        """`clock` is the loop's."""
        self._settlement = settlement
        self._parking = parking
        self._holding = holding
        self._connections_per_host = settings.delivery.connections_per_host
        self._max_wait = settings.delivery.max_queue_wait
        self._routes: dict[Origin, DeliveryRoute] = {}
        self._watched: list[DeliveryRoute] = []  # that had something queued, and are measured
        self._measured = clock()

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
            route = self._routes[origin] = DeliveryRoute(self, self._connections_per_host, self._max_wait)
        subscription.route = route
        return route

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


def _is_overdue(delivery: Delivery) -> bool:
    return delivery.overdue


def _is_lost(delivery: Delivery) -> bool:
    return delivery.tracker.lost


def _any(_: Delivery) -> bool:
    return True


def _longest_wait(lane: DeliveryRoute) -> float:
    return lane.longest_wait
