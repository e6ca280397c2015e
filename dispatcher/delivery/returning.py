"""What comes out of topics of ours: retries that are due, and parked deliveries that their endpoint takes.

In come records of the tiers (`retry_reader.py`) and of the parked topic (`backlogs.py`). Out go deliveries: held until they are due, or
queued in their lane; or nothing, where nobody is owed them any more. It says how much may come, and writes no state of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dispatcher.broker.base import Message, Record
from dispatcher.core.commit.offsets import PartitionTracker
from dispatcher.core.commit.parked import ParkedTracker
from dispatcher.core.endpoint.fairness import Fairness
from dispatcher.core.event.decode import Event
from dispatcher.core.replay.record import ReplayRecord
from dispatcher.core.replay.standing import ReplayStanding, ReplayStandings
from dispatcher.core.retry.generations import CANCELLED, Generations
from dispatcher.core.retry.records import LostBody, RetryRecord
from dispatcher.core.retry.sources import EventLost
from dispatcher.core.subscription.model import EVERY_TENANT, Status
from dispatcher.delivery.delivery import Delivery
from dispatcher.delivery.holding import Holding
from dispatcher.delivery.lanes import Lanes
from dispatcher.delivery.memory import MemoryShares
from dispatcher.delivery.parked_reader import Appetite
from dispatcher.delivery.parking import keeps
from dispatcher.delivery.sending import Sending
from dispatcher.delivery.settlement import Settlement
from dispatcher.registry.registry import Registry
from dispatcher.settings.groups import Settings
from dispatcher.telemetry.metrics import Metrics

_AT_A_TIME: Final = 100  # parked ones at a time of a subscription that is gone
_ASIDE: Final = 16  # replayed ones at a time of a subscription that takes none: they are parked, or dropped
_AGAIN: Final = 0.25  # seconds until a parked one is offered again where there was no room
_SHARE_AGAIN: Final = 2.0  # likewise where the tenant had none: thousands of subscriptions may be looked at


class Returning:
    """Takes over what the readers of our own topics bring (`retry_reader.RetryHost`, `parked_reader.ParkedHost`, `replay_reader.ReplayHost`)."""

    def __init__(
        self,
        settings: Settings,
        *,
        registry: Registry,
        metrics: Metrics,
        sending: Sending,
        lanes: Lanes,
        holding: Holding,
        settlement: Settlement,
        replays: ReplayStandings,
        generations: Generations,
        memory: MemoryShares,
        fairness: Fairness,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        """`generations` tells what is superseded; `clock` is the loop's; `wall` gives Unix seconds."""
        self._generations = generations
        self._registry = registry
        self._metrics = metrics
        self._sending = sending
        self._lanes = lanes
        self._holding = holding
        self._settlement = settlement
        self._replays = replays
        self._memory = memory
        self._fairness = fairness
        self._clock = clock
        self._wall = wall
        self._connections_per_host = settings.delivery.connections_per_host

    def has_room(self) -> bool:
        """Whether what comes out of a retry topic may be taken up."""
        return self._sending.gate and not self._settlement.at_cap()

    def is_owed(self, retry: RetryRecord) -> bool:
        """Whether it waits for anything: its subscription is still there, and nobody has commanded otherwise."""
        return self._registry.index.get(retry.subscription_id) is not None and self._verdict(retry) is None

    def _verdict(self, retry: RetryRecord) -> str | None:
        """Why a delivery that comes out of a topic of ours is not to be sent, where somebody has commanded otherwise."""
        if not self._generations.any:
            return None
        return self._generations.verdict(retry.source, retry.subscription_id, retry.generation, retry.replay)

    def state_of(self, subscription_id: str) -> object:
        """Another one when what is parked for it has to be looked at: its status, why, and its last purge."""
        subscription = self._registry.index.get(subscription_id)
        purge = self.purge_of(subscription_id)
        return None if subscription is None else (subscription.status, subscription.reason, purge)

    def purge_of(self, subscription_id: str) -> int:
        """Another number when all that a subscription was owed has been purged (again); 0 where it never was."""
        return (self._generations.purged(subscription_id) or 0) if self._generations.any else 0

    def tenant_of(self, subscription_id: str) -> object:
        """Whose turn it is when what is parked for it is handed over."""
        subscription = self._registry.index.get(subscription_id)
        return None if subscription is None else self._lanes.usage_of(subscription)

    def take_back(self, retry: RetryRecord, tracker: PartitionTracker, offset: int, due: float) -> None:
        """A delivery has waited in the retry topics for all but the last of its wait. `due` by the loop's clock."""
        delivery = self._taken_over(retry, tracker, offset, due)
        if delivery is not None:
            self._holding.hold(delivery)

    def take_commanded(self, retry: RetryRecord, tracker: PartitionTracker, number: int) -> None:
        """A delivery that somebody has commanded goes to its lane now, ahead of whatever is not due yet."""
        now = self._clock()
        delivery = self._taken_over(retry, tracker, number, now)
        if delivery is not None:
            self._sending.queue(delivery, now, urgent=True)

    def purge_parked(self, retry: RetryRecord, tracker: ParkedTracker, offset: int) -> bool:
        """Settle it if it is superseded, else give it back to the tracker; whether it was settled."""
        verdict = self._verdict(retry)
        if verdict is None:
            tracker.give_back(offset)
            return False
        self._drop_superseded(retry, tracker, offset, verdict)
        return True

    def _drop_superseded(
        self, retry: RetryRecord, tracker: PartitionTracker, offset: int, verdict: str
    ) -> None:
        subscription = self._registry.index.get(retry.subscription_id)
        # The end of what is cancelled is recorded by whoever executes that (`executing.py`).
        recorded = verdict == CANCELLED
        self._settlement.drop_record(retry, subscription, tracker, offset, verdict, recorded=recorded)

    def take_parked(self, retry: RetryRecord, tracker: PartitionTracker, offset: int) -> None:
        """A parked delivery is to go to its lane. One that can't go after all is given back to its backlog."""
        self._metrics.retries_due["parked"] += 1
        now = self._clock()
        delivery = self._taken_over(retry, tracker, offset, now)
        if delivery is not None:
            self._sending.queue(delivery, now, urgent=False, parked=True)

    def _taken_over(
        self, retry: RetryRecord, tracker: PartitionTracker, offset: int, due: float
    ) -> Delivery | None:
        """The delivery that a record of our own topics is; None if nobody is owed it any more."""
        subscription = self._registry.index.get(retry.subscription_id)
        if subscription is None or subscription.tenant not in (retry.event.tenant, EVERY_TENANT):
            # Deleted, or an id that went to another tenant meanwhile.
            self._settlement.drop_record(retry, None, tracker, offset, "deleted")
            return None
        if retry.replay is not None and self._replays.standing(retry.replay) is ReplayStanding.OVER:
            self._settlement.drop_record(retry, subscription, tracker, offset, "cancelled")
            return None
        verdict = self._verdict(retry)
        if verdict is not None:
            self._drop_superseded(retry, tracker, offset, verdict)
            return None
        delivery = Delivery(self._sending, retry.event, subscription, tracker, offset)
        delivery.event_source = retry.source
        delivery.attempt = retry.attempt
        delivery.first_attempt_ms = retry.first_attempt_ms
        delivery.last_result = retry.last_result
        delivery.history = retry.history
        delivery.parked = retry.parked
        delivery.generation = retry.generation
        delivery.replay = retry.replay
        delivery.triggered_by = retry.triggered_by
        delivery.due = due
        self._settlement.owe(len(retry.event.body))
        self._settlement.charge(delivery, self._lanes.usage_of(subscription))
        return delivery

    def replay_room(self, subscription_id: str) -> int:
        """How many deliveries of replays may go to a subscription's lane now: half of what it takes at a time, and none while anything waits there."""
        if not self.has_room() or self._settlement.tight():
            return 0
        subscription = self._registry.index.get(subscription_id)
        if subscription is None or subscription.status is not Status.ACTIVE:
            return _ASIDE
        lane = self._lanes.find(subscription.origin)
        if lane is None:
            most = min(subscription.max_in_flight, self._connections_per_host)
            if subscription.rate_limit is not None:
                most = min(most, int(subscription.rate_limit))
            return max(1, most // 2)
        now = self._clock()
        most, _, _ = lane.room_for_parked(
            subscription_id, subscription.max_in_flight, subscription.rate_limit, now
        )
        if not most:
            return _ASIDE  # the lane turns them away, and they are parked
        if lane.queued:
            return 0
        share = lane.find(subscription_id)
        if share is not None and share.blocked_until > now:
            return 0
        own = max(1, most // 2) - (0 if share is None else share.in_flight)
        return min(own, max(1, lane.limit // 2) - lane.in_flight)

    def take_replayed(
        self, record: ReplayRecord, event: Event, tracker: PartitionTracker, offset: int
    ) -> None:
        """Deliver it now."""
        now = self._clock()
        delivery = self._taken_over(_as_retry(record, event), tracker, offset, now)
        if delivery is not None:
            self._sending.queue(delivery, now, urgent=False, parked=True)

    def lose_replayed(
        self, record: ReplayRecord, lost: EventLost, tracker: PartitionTracker, offset: int
    ) -> None:
        """Its event can't be read any more: a dead letter without it."""
        expected = record.event
        event = Event(expected.id, expected.type, expected.tenant, b"", -1, b"")
        self.give_up_lost(LostBody(_as_retry(record, event), lost.reason, str(lost)), tracker, offset)

    def expire_parked(self, retry: RetryRecord, tracker: PartitionTracker, offset: int) -> None:
        """It was kept for as long as such deliveries are kept."""
        subscription = self._registry.index.get(retry.subscription_id)
        self._settlement.drop_record(retry, subscription, tracker, offset, "expired_while_paused")

    def give_up_lost(self, lost: LostBody, tracker: PartitionTracker, offset: int) -> None:
        """Its event's body can't be read any more: a dead letter without it."""
        subscription = self._registry.index.get(lost.retry.subscription_id)
        self._settlement.give_up_lost(lost, subscription, tracker, offset)

    def refuse(self, record: Record, tracker: PartitionTracker, reason: str, detail: str) -> None:
        """The record can't be read: to the dead-letter topic with it."""
        self._settlement.refuse(record, tracker, reason, detail)

    def pass_on(self, message: Message, tracker: PartitionTracker, offset: int) -> None:
        """Write it to where it waits on; its offset is settled when the broker has it."""
        self._settlement.pass_on(message, tracker, offset)

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
        if not self.has_room():
            return Appetite(0, now + _AGAIN, None)
        lane = self._lanes.find(subscription.origin)
        usage = self._lanes.usage_of(subscription)
        share = None if lane is None else lane.find(subscription_id)
        under_way, queued = (0, 0) if share is None else (share.in_flight, share.queued)
        if not self._fairness.admits(usage, under_way) or self._memory.crowded(usage, under_way + queued):
            return Appetite(0, now + _SHARE_AGAIN, None)
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
        most = limit if exact else max(2 * limit, int(rate))
        return Appetite(most, now + _AGAIN, None, max(1, self._settlement.room_for_parked(usage)))


def _as_retry(record: ReplayRecord, event: Event) -> RetryRecord:
    """A replayed delivery as one that comes back before its first attempt."""
    return RetryRecord(
        event,
        record.subscription_id,
        record.source,
        attempt=0,
        first_attempt_ms=None,
        due=0.0,
        last_result=None,
        omitted=False,
        parked=0,
        generation=record.generation,
        replay=record.replay,
    )
