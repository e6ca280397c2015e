"""What the metrics ask the rooms of the data path for at scrape time. Writes no state."""

from __future__ import annotations

from collections.abc import Sequence

from dispatcher.core.endpoint.fairness import Fairness
from dispatcher.delivery.attempt_log import AttemptLog
from dispatcher.delivery.backlogs import Backlogs
from dispatcher.delivery.endpoints import Endpoints
from dispatcher.delivery.holding import Holding
from dispatcher.delivery.lanes import Lanes
from dispatcher.delivery.membership import Membership
from dispatcher.delivery.outbox import Outbox
from dispatcher.delivery.retry_reader import Retries
from dispatcher.delivery.settlement import Settlement
from dispatcher.delivery.stuck import StuckSource
from dispatcher.telemetry.metrics import Labels, Metrics


def report(
    metrics: Metrics,
    *,
    settlement: Settlement,
    fairness: Fairness,
    lanes: Lanes,
    holding: Holding,
    endpoints: Endpoints,
    outbox: Outbox,
    attempts: AttemptLog,
    memberships: Sequence[Membership],
    retries: Retries,
    backlogs: Backlogs,
) -> None:
    """Have the metrics read the state of these."""

    def lag() -> dict[Labels, float]:
        return lag_of(memberships, retries, backlogs)

    def stuck() -> dict[Labels, float]:
        sources: tuple[StuckSource, ...] = (*(membership.consumer for membership in memberships), backlogs)
        return {(p.topic, str(p.partition)): 1.0 for source in sources for p in source.stuck()}

    def held() -> dict[Labels, float]:
        return {
            labels: seconds for membership in memberships for labels, seconds in membership.held().items()
        }

    reads = metrics.reads
    reads("deliveries_in_flight", lambda: settlement.in_flight)
    reads("deliveries_in_flight_bytes", lambda: settlement.bytes)
    reads("deliveries_queued", lambda: lanes.queued)
    reads("deliveries_held", lambda: len(holding))
    reads("deliveries_parked_waiting", backlogs.parked)
    reads("deliveries_parked_oldest_seconds", backlogs.ages)
    reads("lanes", lambda: len(lanes))
    reads("tenants_at_share", lambda: fairness.waiting)
    reads("breakers_open", endpoints.breakers_open)
    reads("outbox_waiting", lambda: len(outbox))
    reads("attempt_records_waiting", lambda: len(attempts))
    reads("attempt_records_total", lambda: {("written",): attempts.written, ("dropped",): attempts.dropped})
    reads("partitions_stuck", stuck)
    reads("consumption_paused", lambda: settlement.full)
    reads("partition_lag", lag)
    reads("partition_held_seconds", held)


def lag_of(memberships: Sequence[Membership], retries: Retries, backlogs: Backlogs) -> dict[Labels, float]:
    """Records not taken up yet: of a retry topic also those that were read and wait for their time. By topic and partition."""
    lag = {labels: count for membership in memberships for labels, count in membership.lag().items()}
    for waiting in (retries.waiting(), backlogs.waiting()):
        for labels, count in waiting.items():
            lag[labels] = lag.get(labels, 0.0) + count
    return lag
