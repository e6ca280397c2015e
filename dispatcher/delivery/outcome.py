"""What a result means: for this delivery, and for its endpoint's others.

In comes the result of each attempt (`sending.py`). Out goes the delivery, to be settled, held, written to a tier or given up, as
`core/retry/policy.py` decides; and what the endpoint's lane, breakers and health are to know. `attempt_ended` is called once for each attempt, and is the one place
where metrics, attempt log, log line and endpoint hear of it. This room alone writes breakers (through the lanes) and endpoints' health, and
disables subscriptions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, assert_never

import structlog

from dispatcher.core.attempt.outcome import DEAD, DELIVERED, LEFT_TO_ANOTHER, PARKED, RETRY
from dispatcher.core.commit.parked import ParkedTracker
from dispatcher.core.endpoint.breaker import Blame, State, blame, reached_host
from dispatcher.core.endpoint.health import NOTED_AFTER, SILENCE, Health, Roster, Vitals
from dispatcher.core.endpoint.lane import Share, Valve
from dispatcher.core.request.results import Failure, Reason, Response, Result
from dispatcher.core.retry.policy import DeadLetter, Delivered, Disable, Hold, Retry, decide, demand
from dispatcher.core.retry.records import Tried, delivery_id, describe, remember
from dispatcher.delivery.attempt_log import AttemptLog
from dispatcher.delivery.delivery import Delivery
from dispatcher.delivery.holding import Holding
from dispatcher.delivery.lanes import Lanes
from dispatcher.delivery.parking import Parking
from dispatcher.delivery.settlement import Settlement
from dispatcher.registry.registry import Registry
from dispatcher.settings.groups import Settings
from dispatcher.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_AGING: Final = 3600.0  # seconds after which the health of a silent subscription is forgotten, or twice that
_BREAKERS: Final = {State.CLOSED: "closed", State.OPEN: "open", State.PROBING: "half-open"}


class Outcomes:
    """What came of the attempts, and what is known of the endpoints by that."""

    def __init__(
        self,
        settings: Settings,
        *,
        registry: Registry,
        attempts: AttemptLog,
        metrics: Metrics,
        lanes: Lanes,
        holding: Holding,
        parking: Parking,
        settlement: Settlement,
        chance: Callable[[], float],
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        """`clock` is the loop's; `wall` gives Unix seconds, `chance` a number in [0, 1)."""
        self._registry = registry
        self._attempts = attempts
        self._metrics = metrics
        self._lanes = lanes
        self._holding = holding
        self._parking = parking
        self._settlement = settlement
        self._chance = chance
        self._clock = clock
        self._wall = wall
        self._success_sample = settings.log.success_sample
        self._horizon = settings.retry.horizon
        self._breaker_threshold = settings.delivery.breaker_threshold or None
        self._disable_after = settings.retry.disable_after or None
        self._patience = min(NOTED_AFTER, self._disable_after or NOTED_AFTER)
        self._open: dict[str, set[Valve]] = {"subscription": set(), "host": set()}  # breakers, by scope
        self._roster = Roster()
        self._aged = clock()

    # For this delivery.

    def ended(self, delivery: Delivery, result: Result, now: float) -> None:
        """The attempt is over: say so, release its slot, and do with the delivery what is decided."""
        if type(result) is Response and 200 <= result.status < 300:
            self.attempt_ended(delivery, result, DELIVERED, now, self._wall())
            delivery.lane.release(delivery.share)
            self._settlement.settle(delivery)
        elif type(result) is Failure and result.reason is Reason.CANCELLED:
            delivery.lane.release(delivery.share)
            # Stopping. Whether it has arrived is not known, so it is sent again.
            if self._attempts.failures:
                self._attempts.note(delivery, result, PARKED, now, self._wall(), None, "shutdown")
            delivery.attempt -= 1
            self._parking.leave_behind(delivery, noted=True)
        else:
            self._failed(delivery, result, now)

    def _failed(self, delivery: Delivery, result: Result, now: float) -> None:
        unix = self._wall()
        tracker = delivery.tracker
        if isinstance(tracker, ParkedTracker):
            tracker.release(delivery.offset)
        described = describe(result)
        if tracker.lost:
            self.attempt_ended(delivery, result, LEFT_TO_ANOTHER, now, unix, described)
            delivery.lane.release(delivery.share)
            self._settlement.settle(delivery)  # whoever has the partition now delivers it
            return
        delivery.history = remember(
            delivery.history,
            Tried(delivery.attempt, int((unix - now + delivery.started) * 1000), described),
        )
        delivery.last_result = described
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
                raise AssertionError("a success is no failure")  # `ended` has dealt with it
            case Hold(due=due, counted=counted) | Retry(due=due, counted=counted):
                self.attempt_ended(delivery, result, RETRY, now, unix, described, due=due)
                delivery.lane.release(delivery.share)
                if not counted:
                    delivery.attempt -= 1
                delivery.parked = 0
                delivery.due = now + (due - unix)
                if type(decision) is Hold:
                    self._holding.hold(delivery)
                else:
                    self._holding.hand_over(delivery, "retry")
            case DeadLetter(reason=reason):
                self.attempt_ended(delivery, result, DEAD, now, unix, described, reason=reason)
                delivery.lane.release(delivery.share)
                self._settlement.dead_letter(delivery, reason)
            case Disable(reason=reason):
                self.attempt_ended(delivery, result, DEAD, now, unix, described, reason=reason)
                delivery.lane.release(delivery.share)
                self._registry.disable(delivery.subscription.id, reason)
                self._settlement.dead_letter(delivery, reason)
            case _:
                assert_never(decision)

    # For everybody who hears of it.

    def attempt_ended(
        self,
        delivery: Delivery,
        result: Result,
        decision: str,
        now: float,
        unix: float,
        described: str = "",
        *,
        due: float | None = None,
        reason: str | None = None,
    ) -> None:
        """Tell metrics, endpoint, attempt log and log. `now` by the loop's clock, `unix` the same by the wall's.

        `described` is the result in words, of one that failed. To be called before the attempt's slot is released.
        """
        metrics = self._metrics
        took = now - delivery.started
        metrics.attempt_duration.observe(took)
        if decision == DELIVERED:
            metrics.delivered += 1
            metrics.delivery_latency.observe(unix - delivery.event.timestamp_ms / 1000)
            self._record_success(delivery, took, now)
            if self._attempts.successes:
                self._attempts.note(delivery, result, DELIVERED, now, unix)
            if self._success_sample and self._chance() < self._success_sample:
                self._line(delivery, describe(result), now, DELIVERED, None, None)
        else:
            if isinstance(result, Response):
                metrics.attempts["status", f"{result.status // 100}xx"] += 1
            else:
                metrics.attempts[result.reason.value, "none"] += 1
            self._attribute_failure(delivery, result, described, now, unix)
            if self._attempts.failures:
                self._attempts.note(delivery, result, decision, now, unix, due, reason)
            self._line(delivery, described, now, decision, due, reason)

    def _line(
        self,
        delivery: Delivery,
        described: str,
        now: float,
        decision: str,
        due: float | None,
        reason: str | None,
    ) -> None:
        """The one line of an attempt: always the same keys."""
        failed = decision != DELIVERED
        (log.warning if failed else log.info)(
            "attempt failed" if failed else "attempt delivered",
            delivery_id=delivery_id(*delivery.source, delivery.subscription.id),
            event_id=delivery.event.id,
            event_type=delivery.event.type,
            tenant=delivery.event.tenant,
            subscription_id=delivery.subscription.id,
            host=delivery.subscription.origin.host,
            attempt=delivery.attempt,
            result=described,
            duration_ms=round((now - delivery.started) * 1000, 1),
            decision=decision,
            reason=reason,
            due=None if due is None else round(due, 3),
        )

    # For the endpoint.

    def _record_success(self, delivery: Delivery, took: float, now: float) -> None:
        lane, share, subscription = delivery.lane, delivery.share, delivery.subscription
        if share.trouble is not None or lane.trouble is not None:
            started = delivery.started
            if lane.succeeded(started, now):
                self._closed("host", lane, delivery)
            if share.succeeded(started, now):
                self._closed("subscription", share, delivery)
        vitals = subscription.vitals
        if not isinstance(vitals, Vitals) or vitals.generation != self._roster.generation:
            vitals = subscription.vitals = self._roster.admit(subscription.id, subscription.tenant)
        if vitals.succeeded(took, now) and self._registry.failing(subscription.id) is not None:
            # Whoever noted that everything fails: that is over.
            self._registry.note_recovered(subscription.id)

    def _attribute_failure(
        self, delivery: Delivery, result: Result, described: str, now: float, unix: float
    ) -> None:
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
        vitals = self._roster.admit(id_, subscription.tenant)
        silence = max(SILENCE, 2 * max(subscription.retry.schedule, default=0.0))
        # Notes are by the wall clock, as they outlive this process; what it has seen itself is by its own.
        ahead = unix - now
        noted = registry.failing(id_)
        streak = vitals.failed(
            now - delivery.started,
            described,
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
                last_result=described,
            )
            registry.disable(id_, "failing")

    def _opened(
        self, scope: str, valve: Valve, delivery: Delivery, share: Share[Delivery] | None, now: float
    ) -> None:
        queued = self._lanes.withdraw(delivery.lane, share, "breaker", 0.0)
        if valve not in self._open[scope]:
            self._open[scope].add(valve)
            log.warning(
                "breaker opened",
                scope=scope,
                host=delivery.subscription.origin.host,
                subscription_id=delivery.subscription.id if scope == "subscription" else None,
                cool_down=round(valve.open_until - now, 1),
                queued=queued,
            )

    def _closed(self, scope: str, valve: Valve, delivery: Delivery) -> None:
        self._open[scope].discard(valve)
        log.info(
            "breaker closed",
            scope=scope,
            host=delivery.subscription.origin.host,
            subscription_id=delivery.subscription.id if scope == "subscription" else None,
        )

    # For those who ask.

    def breakers_open(self) -> dict[tuple[str, ...], float]:
        """How many, by scope."""
        for scope, valves in self._open.items():
            # A trouble may also be forgotten, with its breaker.
            self._open[scope] = {valve for valve in valves if valve.state is not State.CLOSED}
        return {(scope,): len(valves) for scope, valves in self._open.items()}

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
        lane = self._lanes.find(subscription.origin)
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

    def age(self, now: float) -> None:
        """Forget what is known of silent subscriptions; called now and then."""
        if now - self._aged >= _AGING:
            self._aged = now
            self._roster.age()
