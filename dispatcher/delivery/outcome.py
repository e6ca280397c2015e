"""What a result means for its delivery, and who hears of it.

In comes the result of each attempt (`sending.py`). Out goes the delivery, to be settled, held, written to a tier or given up, as
`core/retry/policy.py` decides. `attempt_ended` is called once for each attempt, and is the one place where metrics, attempt log, log line, trace and
endpoint (`endpoints.py`) hear of it. This room alone writes a delivery's history, last result and number of attempts after a result, and releases its slot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

import structlog

from dispatcher.core.attempt.outcome import DEAD, DELIVERED, LEFT_TO_ANOTHER, PARKED, RETRY
from dispatcher.core.commit.parked import ParkedTracker
from dispatcher.core.request.results import Failure, Reason, Response, Result
from dispatcher.core.retry.policy import DeadLetter, Delivered, Disable, Hold, Retry, decide
from dispatcher.core.retry.records import AttemptSummary, delivery_id, describe, remember
from dispatcher.delivery.attempt_log import AttemptLog
from dispatcher.delivery.delivery import Delivery
from dispatcher.delivery.endpoints import Endpoints
from dispatcher.delivery.holding import Holding
from dispatcher.delivery.parking import Parking
from dispatcher.delivery.settlement import Settlement
from dispatcher.registry.registry import Registry
from dispatcher.settings.groups import Settings
from dispatcher.telemetry.metrics import Metrics
from dispatcher.telemetry.tracing import SpanPlace, TraceIds, Tracing, ids_of, trace_ids

log = structlog.get_logger(__name__)


class Outcomes:
    """What came of the attempts, and what is known of the endpoints by that."""

    def __init__(
        self,
        settings: Settings,
        *,
        registry: Registry,
        attempts: AttemptLog,
        metrics: Metrics,
        endpoints: Endpoints,
        holding: Holding,
        parking: Parking,
        settlement: Settlement,
        tracing: Tracing | None,
        chance: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        """`tracing` makes spans, where they are made. `wall` gives Unix seconds, `chance` a number in [0, 1)."""
        self._registry = registry
        self._endpoints = endpoints
        self._attempts = attempts
        self._metrics = metrics
        self._holding = holding
        self._parking = parking
        self._settlement = settlement
        self._tracing = tracing
        self._chance = chance
        self._wall = wall
        self._success_sample = settings.log.success_sample
        self._horizon = settings.retry.horizon

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
            decision = self._parking.left_as(delivery)
            reason = "shutdown" if decision == PARKED else None
            if decision == LEFT_TO_ANOTHER:
                self._metrics.left_to_another += 1
            unix = self._wall()
            if self._attempts.failures:
                self._attempts.note(delivery.noted(result, decision, now, unix, reason=reason))
            self._trace(delivery, result, decision, now, unix, reason)
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
            AttemptSummary(delivery.attempt, int((unix - now + delivery.started) * 1000), described),
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
                # An old event may be about something that is gone, though the endpoint is not.
                if delivery.replay is None:
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
        """Tell metrics, endpoint, attempt log, trace and log. `now` by the loop's clock, `unix` the same by the wall's.

        `described` is the result in words, of one that failed. To be called before the attempt's slot is released.
        """
        metrics = self._metrics
        took = now - delivery.started
        metrics.attempt_duration.observe(took)
        span: SpanPlace | None = None
        if self._tracing is not None:
            span = self._trace(delivery, result, decision, now, unix, reason)
        if decision == DELIVERED:
            metrics.delivered += 1
            metrics.delivery_latency.observe(unix - delivery.event.timestamp_ms / 1000)
            self._endpoints.record_success(delivery, took, now)
            if self._attempts.successes:
                self._attempts.note(delivery.noted(result, DELIVERED, now, unix))
            if self._success_sample and self._chance() < self._success_sample:
                self._line(delivery, describe(result), now, DELIVERED, None, None, span)
        else:
            if isinstance(result, Response):
                metrics.attempts["status", f"{result.status // 100}xx"] += 1
            else:
                metrics.attempts[result.reason.value, "none"] += 1
            if decision == RETRY:
                metrics.retried += 1
            elif decision == LEFT_TO_ANOTHER:
                metrics.left_to_another += 1
            self._endpoints.attribute_failure(delivery, result, described, now, unix)
            if self._attempts.failures:
                self._attempts.note(delivery.noted(result, decision, now, unix, due, reason))
            self._line(delivery, described, now, decision, due, reason, span)

    def trace_ids(self, delivery: Delivery) -> TraceIds:
        """What a log line about it says of its trace."""
        return trace_ids(self._tracing, delivery.event, delivery.source, delivery.subscription.id)

    def _trace(
        self, delivery: Delivery, result: Result, decision: str, now: float, unix: float, reason: str | None
    ) -> SpanPlace | None:
        """Make the attempt's span, and say where it is, where the delivery is sampled."""
        tracing = self._tracing
        if tracing is None or not (delivery.trace is not None or delivery.sampled_by(tracing.sampler)):
            return None
        return tracing.attempt(delivery, result, decision, now, unix, reason)

    def _line(
        self,
        delivery: Delivery,
        described: str,
        now: float,
        decision: str,
        due: float | None,
        reason: str | None,
        span: SpanPlace | None,
    ) -> None:
        """The one line of an attempt: always the same keys, with tracing two more."""
        failed = decision != DELIVERED
        subscription_id = delivery.subscription.id
        ids = self.trace_ids(delivery) if span is None else ids_of(span)
        (log.warning if failed else log.info)(
            "attempt failed" if failed else "attempt delivered",
            delivery_id=delivery_id(*delivery.source, subscription_id),
            event_id=delivery.event.id,
            event_type=delivery.event.type,
            tenant=delivery.event.tenant,
            subscription_id=subscription_id,
            host=delivery.subscription.origin.host,
            attempt=delivery.attempt,
            result=described,
            duration_ms=round((now - delivery.started) * 1000, 1),
            decision=decision,
            reason=reason,
            due=None if due is None else round(due, 3),
            **ids,
        )
