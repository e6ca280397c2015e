"""What is owed, and how it ends: counted, settled with its offset, dropped, or written as a dead letter.

In comes every delivery twice: when it is taken on (`owe`), and when it is done with (`settle`, `drop`, `dead_letter`), from all rooms
above. Records that can't be read come too (`refuse`). Out go calls of the trackers' `settle`, and dead letters through the outbox. This room alone
writes `in_flight`, `bytes` (of all, and of each tenant) and `full`, and alone decides whether there is room below the caps.

Rules:

1. A delivery counts in `in_flight` and `bytes` from `owe` to its settlement, whatever happens to it
   in between: queued, attempted, held, being written.
2. Each delivery is settled once: acknowledged, its retry record or dead letter acknowledged, dropped for a
   recorded reason, or given back because its partition was lost.
3. What is under way can't be given up. So consumption goes on when a tenth of the rest is free again, and attempts never take a cap as a whole (`attempts_below`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from dispatcher.broker.base import Message, Record, UnreadableRecord
from dispatcher.core.attempt.encode import Decided
from dispatcher.core.attempt.outcome import DEAD, DROPPED, LEFT_TO_ANOTHER
from dispatcher.core.commit.offsets import PartitionTracker
from dispatcher.core.endpoint.fairness import Fairness, TenantUsage, more
from dispatcher.core.event.decode import Event
from dispatcher.core.retry.records import (
    LostBody,
    RetryRecord,
    delivery_headers,
    delivery_id,
    unreadable_headers,
)
from dispatcher.core.subscription.model import Subscription
from dispatcher.delivery.attempt_log import AttemptLog
from dispatcher.delivery.delivery import Delivery
from dispatcher.delivery.outbox import Outbox
from dispatcher.settings.groups import Settings
from dispatcher.telemetry.metrics import Metrics
from dispatcher.telemetry.tracing import Tracing, trace_ids

log = structlog.get_logger(__name__)

GivenUp = Callable[[Subscription, Event, str, int, str | None], None]
"""Subscription, event, reason, attempts made, last result."""

LOW_WATER: Final = 10
"""The part of a cap that has to be free for consumption to go on: a tenth."""

_TIGHT: Final = 0.5  # of a cap: above it memory is for what will be sent soon
_PARKED_SHARE: Final = 0.75  # of a cap: above it what is parked comes one by one


def attempts_below(cap: int) -> int:
    """How much of a cap may be under way: a tenth is for what is queued, held or being written."""
    return cap - cap // LOW_WATER


class Settlement:
    """The books of everything that this process owes."""

    def __init__(
        self,
        settings: Settings,
        outbox: Outbox,
        attempts: AttemptLog,
        metrics: Metrics,
        fairness: Fairness,
        *,
        on_given_up: GivenUp | None = None,
        tracing: Tracing | None = None,
        wall: Callable[[], float],
    ) -> None:
        """`on_given_up` is told of each delivery whose dead letter is written. `tracing` makes spans, where they are made. `wall` gives Unix seconds."""
        self.in_flight = 0
        self.bytes = 0  # of the events' bodies, once per delivery
        self.full = False  # somebody waits for `has_room_again`
        self.has_room_again = asyncio.Event()
        self.full_since = 0.0
        self._fairness = fairness
        self._on_given_up = on_given_up
        self._outbox = outbox
        self._attempts = attempts
        self._metrics = metrics
        self._tracing = tracing
        self._wall = wall
        self._dead_topic = f"{settings.topics.prefix}dead"
        self._max_in_flight = settings.delivery.max_in_flight
        self._max_bytes = settings.delivery.max_in_flight_bytes
        self._tight_at = int(self._max_in_flight * _TIGHT)
        self._tight_bytes = int(self._max_bytes * _TIGHT)
        self._clock = asyncio.get_running_loop().time

    # Room.

    def owe(self, size: int) -> None:
        """Take on a delivery of an event whose body has so many bytes."""
        self.in_flight += 1
        self.bytes += size

    def charge(self, delivery: Delivery, usage: TenantUsage) -> None:
        """From now on until its end the delivery counts as its tenant's."""
        delivery.usage = usage
        usage.in_flight += 1
        usage.bytes += delivery.size

    def _discharge(self, delivery: Delivery) -> None:
        size = delivery.size
        self.in_flight -= 1
        self.bytes -= size
        usage = delivery.usage
        if usage is not None:
            usage.in_flight -= 1
            usage.bytes -= size
        if delivery.trace is not None:
            self.left(delivery, LEFT_TO_ANOTHER, None)

    def left(self, delivery: Delivery, outcome: str, reason: str | None) -> None:
        """It is on its way out of memory, to its end or into a topic: the end of its span. Whoever leaves without a word went with its partition."""
        tracing = self._tracing
        if tracing is not None and (delivery.trace is not None or delivery.sampled_by(tracing.sampler)):
            tracing.ended(delivery, outcome, reason, self._clock(), self._wall())

    @property
    def free(self) -> int:
        """Deliveries below the cap."""
        return self._max_in_flight - self.in_flight

    @property
    def free_bytes(self) -> int:
        """Bytes below the cap."""
        return self._max_bytes - self.bytes

    def at_cap(self) -> bool:
        """Whether nothing more may be taken on."""
        return self.in_flight >= self._max_in_flight or self.bytes >= self._max_bytes

    def tight(self) -> bool:
        """Whether memory is scarce: then it is for what will be sent soon."""
        return self.in_flight > self._tight_at or self.bytes > self._tight_bytes

    def beyond(self) -> int:
        """How many deliveries too many there are, while memory is scarce; 0 or less where it isn't."""
        beyond = self.in_flight - self._tight_at
        if self.bytes > self._tight_bytes:
            beyond = max(beyond, self.in_flight - int(self.in_flight * self._tight_bytes / self.bytes))
        return beyond

    def room_for_parked(self, usage: TenantUsage) -> int:
        """How many parked deliveries of a tenant may be taken on besides those that are here."""
        if self.bytes > self._max_bytes * _PARKED_SHARE:
            return 0
        room = int(self._max_in_flight * _PARKED_SHARE) - self.in_flight
        return more(usage.in_flight, room) if self._fairness.shared else room

    def wait_for_room(self) -> None:
        """Nothing more is taken on: from now on `has_room_again` is set as soon as there is room."""
        self.full = True
        self.full_since = self._clock()
        self.has_room_again.clear()

    def wait_is_over(self) -> None:
        """Nobody waits for room any more."""
        self.full = False

    def _check_room(self) -> None:
        fairness = self._fairness
        if (
            self.full
            and not self.at_cap()
            and self.free * LOW_WATER >= self._max_in_flight - fairness.attempts
            and self.free_bytes * LOW_WATER >= self._max_bytes - fairness.attempt_bytes
        ):
            self.full = False
            self.has_room_again.set()

    # Ends.

    def settle(self, delivery: Delivery) -> None:
        """It is done with."""
        self._discharge(delivery)
        delivery.tracker.settle(delivery.offset, delivery.subscription.id)
        if self.full:
            self._check_room()

    def forget(self, delivery: Delivery) -> None:
        """It waits in its topic again, its offset owed as before."""
        self._discharge(delivery)
        if self.full:
            self._check_room()

    def drop(self, delivery: Delivery, reason: str, *, recorded: bool = False) -> None:
        """It is owed to nobody any more: an end. `recorded`: the attempt log has it already."""
        if self._attempts.failures and not recorded:
            self._attempts.decided(delivery.decided(DROPPED, reason, self._wall()))
        self.left(delivery, DROPPED, reason)
        self.pass_by(delivery, reason)

    def pass_by(self, delivery: Delivery, reason: str) -> None:
        """It never was owed: its subscription took nothing when its event was matched. Counted, and not recorded one by one."""
        self._dropped(delivery.source, delivery.event, delivery.subscription.id, reason)
        self.settle(delivery)

    def drop_record(
        self,
        retry: RetryRecord,
        subscription: Subscription | None,
        tracker: PartitionTracker,
        offset: int,
        reason: str,
        *,
        recorded: bool = False,
    ) -> None:
        """A delivery that was not taken on out of its record is owed to nobody any more. `subscription`: if it is still there. Else as `drop`."""
        if not recorded:
            self._decided(retry, subscription, DROPPED, reason)
        self._dropped(retry.source, retry.event, retry.subscription_id, reason)
        tracker.settle(offset)

    def give_up_lost(
        self, lost: LostBody, subscription: Subscription | None, tracker: PartitionTracker, offset: int
    ) -> None:
        """A delivery that was not taken on can't be attempted, since its event's body is lost: an end, and a dead letter without it."""
        retry = lost.retry
        self._decided(retry, subscription, DEAD, lost.reason)
        log.warning(
            "the body of a delivery is lost: its event can't be read where it was published",
            delivery_id=delivery_id(*retry.source, retry.subscription_id),
            subscription_id=retry.subscription_id,
            reason=lost.reason,
            detail=str(lost),
            **trace_ids(self._tracing, retry.event, retry.source, retry.subscription_id),
        )
        headers = delivery_headers(
            retry.event,
            retry.subscription_id,
            retry.source,
            attempt=retry.attempt,
            first_attempt_ms=retry.first_attempt_ms,
            last_result=retry.last_result,
            reason=lost.reason,
            history=retry.history,
            generation=retry.generation,
            replay=retry.replay,
            triggered_by=retry.triggered_by,
        )
        headers.append(("detail", str(lost).encode(errors="replace")))

        def written() -> None:
            self._metrics.dead_letters[lost.reason] += 1
            self._metrics.deliveries["dead_lettered"] += 1
            if self._on_given_up is not None and subscription is not None:
                self._on_given_up(subscription, retry.event, lost.reason, retry.attempt, retry.last_result)

        key = retry.subscription_id.encode()
        self.pass_on(Message(self._dead_topic, b"", key, headers), tracker, offset, written)

    def _decided(
        self, retry: RetryRecord, subscription: Subscription | None, decision: str, reason: str
    ) -> None:
        if self._attempts.failures:
            self._attempts.decided(
                Decided(
                    retry.event,
                    retry.subscription_id,
                    retry.source,
                    subscription,
                    retry.attempt,
                    decision,
                    reason,
                    self._wall(),
                    retry.generation,
                    retry.replay,
                    retry.last_result,
                    retry.triggered_by,
                )
            )

    def _dropped(self, source: tuple[str, int, int], event: Event, subscription_id: str, reason: str) -> None:
        self._metrics.deliveries[f"dropped_{reason}"] += 1
        log.debug(
            "delivery dropped",
            delivery_id=delivery_id(*source, subscription_id),
            event_id=event.id,
            subscription_id=subscription_id,
            reason=reason,
            **trace_ids(self._tracing, event, source, subscription_id),
        )

    def give_up(self, delivery: Delivery, reason: str) -> None:
        """It is not attempted (any more): an end without a request, and a dead letter."""
        if self._attempts.failures:
            self._attempts.decided(delivery.decided(DEAD, reason, self._wall()))
        self.left(delivery, DEAD, reason)
        self.dead_letter(delivery, reason)

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        """Write the dead letter of what an attempt has ended; settled when the broker has it."""

        def written() -> None:
            self._metrics.dead_letters[reason] += 1
            self._metrics.deliveries["dead_lettered"] += 1
            if self._on_given_up is not None:
                self._on_given_up(
                    delivery.subscription, delivery.event, reason, delivery.attempt, delivery.last_result
                )
            self.settle(delivery)

        self._outbox.put(delivery.record(self._dead_topic, reason), written)

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
        self.owe(size)

        def settle() -> None:
            if written is not None:
                written()
            self.in_flight -= 1
            self.bytes -= size
            tracker.settle(offset, "")
            if self.full:
                self._check_room()

        self._outbox.put(message, settle)
