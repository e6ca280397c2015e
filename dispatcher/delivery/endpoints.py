"""What is known of endpoints: their breakers, what they have asked for, and how deliveries to them have gone.

In comes the end of each attempt (`outcome.py`). Out go the deliveries that an endpoint's lane gives up, to be parked; the note that everything to
a subscription fails, and the end of one that has failed for days, to the registry. This room alone writes limiters of lanes and shares (after a result),
and the health of subscriptions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import structlog

from dispatcher.core.endpoint.breaker import Blame, State, blame, reached_host
from dispatcher.core.endpoint.health import NOTED_AFTER, SILENCE, EndpointHealth, Health, HealthRegistry
from dispatcher.core.endpoint.limiter import Limiter
from dispatcher.core.endpoint.share import Share
from dispatcher.core.request.results import Response, Result
from dispatcher.core.retry.policy import demand
from dispatcher.delivery.delivery import Delivery
from dispatcher.delivery.lanes import Lanes
from dispatcher.registry.registry import Registry
from dispatcher.settings.groups import Settings

log = structlog.get_logger(__name__)

_AGING: Final = 3600.0  # seconds after which the health of a silent subscription is forgotten, or twice that
_BELIEVED_AFTER: Final = (
    10.0  # seconds without a failure here until another process is believed that the endpoint is well
)
_BREAKERS: Final = {State.CLOSED: "closed", State.OPEN: "open", State.PROBING: "half-open"}


class Endpoints:
    """What the attempts have told of the endpoints."""

    def __init__(
        self,
        settings: Settings,
        *,
        registry: Registry,
        lanes: Lanes,
        chance: Callable[[], float],
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        """`clock` is the loop's; `wall` gives Unix seconds, `chance` a number in [0, 1)."""
        self._registry = registry
        self._lanes = lanes
        self._chance = chance
        self._clock = clock
        self._wall = wall
        self._breaker_threshold = settings.delivery.breaker_threshold or None
        self._disable_after = settings.retry.disable_after or None
        self._patience = min(NOTED_AFTER, self._disable_after or NOTED_AFTER)
        self._open: dict[str, set[Limiter]] = {"subscription": set(), "host": set()}  # breakers, by scope
        self.failing: dict[str, float] = {}
        """Since when each subscription whose last attempt failed has nothing but failures, in the loop's time."""
        self._healths = HealthRegistry()
        self._aged = clock()

    def record_success(self, delivery: Delivery, took: float, now: float) -> None:
        lane, share, subscription = delivery.lane, delivery.share, delivery.subscription
        if share.backpressure is not None or lane.backpressure is not None:
            started = delivery.started
            if lane.succeeded(started, now):
                self._closed("host", lane, delivery)
            if share.succeeded(started, now):
                self._closed("subscription", share, delivery)
        known = subscription.health
        if not isinstance(known, EndpointHealth) or known.generation != self._healths.generation:
            known = subscription.health = self._healths.admit(subscription.id, subscription.tenant)
        if known.succeeded(took, now):
            self.failing.pop(subscription.id, None)
            if self._registry.failing(subscription.id) is not None:
                # Whoever noted that everything fails: that is over.
                self._registry.note_recovered(subscription.id)

    def attribute_failure(
        self, delivery: Delivery, result: Result, described: str, now: float, unix: float
    ) -> None:
        """What a failed attempt means for the endpoint's other deliveries."""
        lane, share, started = delivery.lane, delivery.share, delivery.started
        threshold = self._breaker_threshold
        gone = type(result) is Response and result.status == 410
        wanted = demand(result, unix)
        # What the others of a round say again counts for nothing: it has been heeded (`Limiter.throttled`).
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
                    self._opened("host", lane, delivery, None, now)
            case Blame.SUBSCRIPTION:
                if reached_host(result) and lane.succeeded(started, now):
                    self._closed("host", lane, delivery)
                if gone or repeated or threshold is None:
                    pass
                elif share.failed(started, now, self._chance(), threshold):
                    self._opened("subscription", share, delivery, share, now)
            case Blame.NOBODY:
                return
        if delivery.replay is None:
            # Whoever has a week sent again must not find the subscription disabled for it.
            self._record_failure(delivery, described, now, unix, gone=gone)
        if withdraw:
            self._lanes.withdraw(lane, share, "retry_after", until)

    def _record_failure(
        self, delivery: Delivery, described: str, now: float, unix: float, *, gone: bool
    ) -> None:
        """An attempt failed, and the endpoint or its host is to blame."""
        subscription = delivery.subscription
        id_ = subscription.id
        registry = self._registry
        known = self._healths.admit(id_, subscription.tenant)
        silence = max(SILENCE, 2 * max(subscription.retry.schedule, default=0.0))
        # Notes are by the wall clock, as they outlive this process; what it has seen itself is by its own.
        ahead = unix - now
        noted = registry.failing(id_)
        streak = known.failed(
            now - delivery.started,
            described,
            now,
            None if noted is None else noted - ahead,
            self._patience,
            silence,
        )
        self.failing[id_] = streak.since
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
                last_result=described,
            )
            registry.disable(id_, "failing")

    def _opened(
        self, scope: str, limiter: Limiter, delivery: Delivery, share: Share[Delivery] | None, now: float
    ) -> None:
        queued = self._lanes.withdraw(delivery.lane, share, "breaker", 0.0)
        if limiter not in self._open[scope]:
            self._open[scope].add(limiter)
            log.warning(
                "breaker opened",
                scope=scope,
                host=delivery.subscription.origin.host,
                subscription_id=delivery.subscription.id if scope == "subscription" else None,
                cool_down=round(limiter.open_until - now, 1),
                queued=queued,
            )

    def _closed(self, scope: str, limiter: Limiter, delivery: Delivery) -> None:
        self._open[scope].discard(limiter)
        log.info(
            "breaker closed",
            scope=scope,
            host=delivery.subscription.origin.host,
            subscription_id=delivery.subscription.id if scope == "subscription" else None,
        )

    def recovered_elsewhere(self, subscription_id: str, at: float) -> None:
        """Another process has delivered to it `at` that time (Unix seconds): what failed here before then is over, but for the last seconds.

        Without that a process that was given nothing more for the endpoint would call it failing for as long as it runs.
        """
        known = self._healths.find(subscription_id)
        now = self._clock()
        at = min(at - self._wall() + now, now - _BELIEVED_AFTER)
        since = self.failing.get(subscription_id, now)
        if known.recovered_elsewhere(at) if known is not None else since <= at:
            self.failing.pop(subscription_id, None)

    # For those who ask.

    def delivered_at(self, subscription_id: str) -> float | None:
        """When something was delivered to it last (Unix seconds), if anything was while it is remembered."""
        known = self._healths.find(subscription_id)
        if known is None or math.isinf(known.well_at):
            return None
        return known.well_at + self._wall() - self._clock()

    def breakers_open(self) -> dict[tuple[str, ...], float]:
        """How many, by scope."""
        for scope, limiters in self._open.items():
            # Backpressure may also be forgotten, with its breaker.
            self._open[scope] = {limiter for limiter in limiters if limiter.state is not State.CLOSED}
        return {(scope,): len(limiters) for scope, limiters in self._open.items()}

    def health(self, subscription_id: str) -> Health:
        """How deliveries to it go; nothing, of one that nothing is known of."""
        subscription = self._registry.index.get(subscription_id)
        if subscription is None:
            return Health()
        known = self._healths.find(subscription_id)
        if known is not None and known.tenant != subscription.tenant:
            # What went wrong for the id's former owner is none of the new one's business.
            self._healths.forget(subscription_id)
            self.failing.pop(subscription_id, None)
            known = None
        lane = self._lanes.find(subscription.origin)
        share = None if lane is None else lane.find(subscription_id)
        states = [limiter.state for limiter in (share, lane) if limiter is not None]
        state = next((state for state in (State.OPEN, State.PROBING) if state in states), State.CLOSED)
        if known is None and share is None and state is State.CLOSED:
            return Health()
        health = (known or EndpointHealth(subscription.tenant)).health(
            _BREAKERS[state], 0 if share is None else share.queued, 0 if share is None else share.in_flight
        )
        at, since = health.last_failure_at, self.failing.get(subscription_id)
        ahead = self._wall() - self._clock()
        return health._replace(
            last_failure_at=None if at is None else at + ahead,
            failing_since=None if since is None else since + ahead,
        )

    def age(self, now: float) -> None:
        """Forget what is known of silent subscriptions; called now and then."""
        if now - self._aged >= _AGING:
            self._aged = now
            self._healths.age()
