"""What this process's deliveries are like, for its record in the cluster view: partitions, what waits, and the subscriptions in trouble.

Asked for every two seconds. Writes no state of the data path, and lets the loop turn in between: a hundred thousand subscriptions may have
something parked.

A subscription is in trouble when its last attempt failed, or when something is parked for it although it may be delivered to, or would be but
for settings or keys (`invalid`, `sealed`). One that is paused, pending or disabled is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from heapq import nsmallest
from typing import Final, NamedTuple, TypeVar

from dispatcher.core.cluster.merge import Elsewhere
from dispatcher.core.cluster.record import Trouble
from dispatcher.core.endpoint.breaker import State
from dispatcher.core.subscription.model import Status, Subscription
from dispatcher.delivery.backlogs import Backlogs
from dispatcher.delivery.endpoints import Endpoints
from dispatcher.delivery.holding import Holding
from dispatcher.delivery.lanes import Lanes
from dispatcher.delivery.membership import Membership
from dispatcher.delivery.reporting import lag_of
from dispatcher.delivery.retry_reader import Retries
from dispatcher.delivery.settlement import Settlement
from dispatcher.registry.registry import Registry

T = TypeVar("T")

_SLICE: Final = 500  # looked at between two turns of the loop
_UNUSABLE: Final = frozenset({"invalid", "sealed"})
_TEXT_LIMIT: Final = 200  # characters


class DeliveryReport(NamedTuple):
    """What a process's deliveries are like now."""

    partitions: Mapping[str, tuple[int, ...]]
    lag: Mapping[str, int]
    queued: int
    in_flight: int
    held: int
    parked: Mapping[str, int]
    lanes: int
    breakers: Mapping[str, int]
    troubles: Sequence[Trouble]
    troubles_total: int
    recovered: Mapping[str, int]


class _WaitingFor:
    """What waits for one subscription. Times in Unix seconds."""

    __slots__ = ("due", "held", "more", "oldest", "parked")

    def __init__(self) -> None:
        self.parked = 0
        self.more = False
        self.held = 0
        self.oldest: float | None = None
        self.due: float | None = None

    def since(self, unix: float) -> None:
        self.oldest = unix if self.oldest is None else min(self.oldest, unix)


class Troubles:
    """Gathers the report."""

    def __init__(
        self,
        *,
        settlement: Settlement,
        lanes: Lanes,
        holding: Holding,
        endpoints: Endpoints,
        memberships: Sequence[Membership],
        retries: Retries,
        backlogs: Backlogs,
        registry: Registry,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        """`clock` is the loop's; `wall` gives Unix seconds."""
        self._settlement = settlement
        self._lanes = lanes
        self._holding = holding
        self._endpoints = endpoints
        self._memberships = memberships
        self._retries = retries
        self._backlogs = backlogs
        self._registry = registry
        self._clock = clock
        self._wall = wall

    async def report(self, most: int, elsewhere: Elsewhere) -> DeliveryReport:
        """As of now, with at most so many subscriptions in trouble, and after what is known elsewhere of the same subscriptions."""
        waiting = await self._waiting()
        async for id_, at in _turning(elsewhere.delivered.items()):
            # For whatever waits here this process finds out by itself, and perhaps it alone doesn't reach the endpoint.
            if id_ in self._endpoints.failing and id_ not in waiting and not self._busy(id_):
                self._endpoints.recovered_elsewhere(id_, at / 1000)
        partitions: dict[str, list[int]] = {}
        for membership in self._memberships:
            for partition in membership.trackers:
                partitions.setdefault(partition.topic, []).append(partition.partition)
        lag: dict[str, int] = {}
        for (topic, *_), count in lag_of(self._memberships, self._retries, self._backlogs).items():
            lag[topic] = lag.get(topic, 0) + round(count)
        troubles, total = await self._worst(most, waiting)
        return DeliveryReport(
            partitions={topic: tuple(sorted(numbers)) for topic, numbers in sorted(partitions.items())},
            lag=dict(sorted(lag.items())),
            queued=self._lanes.queued,
            in_flight=self._settlement.in_flight,
            held=len(self._holding),
            parked={reason: round(count) for (reason,), count in self._backlogs.parked().items() if count},
            lanes=len(self._lanes),
            breakers={scope: round(count) for (scope,), count in self._endpoints.breakers_open().items()},
            troubles=troubles,
            troubles_total=total,
            recovered=await self._recovered(elsewhere.failed, most),
        )

    async def _recovered(self, failed: Mapping[str, int], most: int) -> dict[str, int]:
        """Those that others say fail, and to which this process has delivered after their last failure."""
        found: dict[str, int] = {}
        async for id_, failed_ms in _turning(failed.items()):
            delivered = self._endpoints.delivered_at(id_)
            if delivered is not None and delivered * 1000 >= failed_ms and id_ not in self._endpoints.failing:
                found[id_] = round(delivered * 1000)
                if len(found) >= most:
                    break
        return found

    def _busy(self, id_: str) -> bool:
        """Whether something is queued for it or under way."""
        health = self._endpoints.health(id_)
        return health.queued + health.in_flight > 0

    async def _worst(self, most: int, waiting: Mapping[str, _WaitingFor]) -> tuple[tuple[Trouble, ...], int]:
        index = self._registry.index
        failing = self._endpoints.failing
        ahead = self._wall() - self._clock()
        since: dict[str, float] = {}
        ranked: list[tuple[float, float, str]] = []
        async for id_ in _turning({**failing, **waiting}):
            subscription = index.get(id_)
            if subscription is None or not _wanted(subscription):
                failing.pop(id_, None)
                continue
            found = waiting.get(id_)
            own = failing.get(id_)
            if own is not None:
                noted = self._registry.failing(id_)
                since[id_] = own + ahead if noted is None else min(own + ahead, noted)
            elif found is None or not (found.parked or found.more):
                continue
            oldest = found.oldest if found is not None and found.oldest is not None else float("inf")
            ranked.append((since.get(id_, float("inf")), oldest, id_))
        troubles = []
        for *_, id_ in nsmallest(most, ranked):
            subscription = index.get(id_)
            if subscription is not None:
                troubles.append(self._trouble(subscription, since.get(id_), waiting.get(id_), ahead))
        return tuple(troubles), len(ranked)

    async def _waiting(self) -> dict[str, _WaitingFor]:
        found: dict[str, _WaitingFor] = {}
        for tracker in self._backlogs.trackers():
            async for backlog in _turning(tracker.backlogs.values()):
                each = found.setdefault(backlog.id, _WaitingFor())
                each.parked += len(backlog) + len(backlog.taken)
                each.more = each.more or backlog.more_from is not None
                for since in (backlog.oldest, min(backlog.taken.values(), default=None)):
                    if since is not None:
                        each.since(since)
        ahead = self._wall() - self._clock()
        async for delivery in _turning(self._holding.all()):
            each = found.setdefault(delivery.subscription.id, _WaitingFor())
            each.held += 1
            due = delivery.due + ahead
            each.due = due if each.due is None else min(each.due, due)
            if delivery.first_attempt_ms is not None:
                each.since(delivery.first_attempt_ms / 1000)
        return found

    def _trouble(
        self, subscription: Subscription, since: float | None, waiting: _WaitingFor | None, ahead: float
    ) -> Trouble:
        health = self._endpoints.health(subscription.id)
        waiting = waiting or _WaitingFor()
        due = waiting.due
        lane = self._lanes.find(subscription.origin)
        share = None if lane is None else lane.find(subscription.id)
        for limiter in (lane, share):
            if limiter is not None and limiter.state is State.OPEN:
                until = limiter.open_until + ahead
                due = until if due is None else max(due, until)
        return Trouble(
            subscription_id=subscription.id,
            tenant=subscription.tenant,
            since_ms=_milliseconds(since),
            attempts=health.attempts,
            succeeded=round((health.success_rate or 0.0) * health.attempts),
            latency_mean_ms=None if health.latency_mean is None else round(health.latency_mean * 1000, 1),
            latency_p95_ms=None if health.latency_p95 is None else round(health.latency_p95 * 1000, 1),
            breaker=health.breaker or "closed",
            queued=health.queued,
            in_flight=health.in_flight,
            held=waiting.held,
            parked=waiting.parked,
            parked_more=waiting.more,
            oldest_ms=_milliseconds(waiting.oldest),
            next_ms=_milliseconds(due),
            last_result=None if health.last_failure is None else health.last_failure[:_TEXT_LIMIT],
            last_ms=_milliseconds(health.last_failure_at),
        )


def _wanted(subscription: Subscription) -> bool:
    if subscription.status is Status.ACTIVE:
        return True
    return subscription.status is Status.DISABLED and subscription.reason in _UNUSABLE


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None or not 0 <= seconds < 2**43 else round(seconds * 1000)


async def _turning(items: Iterable[T]) -> AsyncIterator[T]:
    """Each of them, as they are now, with turns of the loop in between."""
    for number, item in enumerate(list(items), 1):
        yield item
        if number % _SLICE == 0:
            await asyncio.sleep(0)
