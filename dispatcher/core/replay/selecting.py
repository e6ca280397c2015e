"""What a replay sends: which records of a topic, or rows of the history, and to whom.

A replay applies the subscription's own rule of tenants, whoever asks for it: a subscription gets the events of its tenant, and one for every tenant
gets all. A tenant's key reaches its own subscriptions only. Whether a subscription wants the type is asked where events are replayed; a dead letter or a
delivery was owed already.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from dispatcher.core.event.decode import EventRecord, InvalidEvent, decode, is_tombstone
from dispatcher.core.replay.job import ReplayRequest
from dispatcher.core.replay.record import ReplayRecord
from dispatcher.core.retry.dead_letters import InvalidDeadLetter, header, read_dead_letter
from dispatcher.core.retry.records import BODY_EXPIRED, BODY_UNREADABLE, FIRST_GENERATION, Source
from dispatcher.core.retry.sources import ExpectedEvent
from dispatcher.core.subscription.index import Index
from dispatcher.core.subscription.model import EVERY_TENANT, Status, Subscription
from dispatcher.core.subscription.patterns import matches

NOT_ACTIVE: Final = "not_active"
"""The subscription is paused, pending or disabled."""

DELETED: Final = "deleted"
"""The subscription is not there any more."""

UNREADABLE: Final = "unreadable"
"""The record could not be read as an event or a delivery."""

BODY_LOST: Final = "body_lost"
"""The event's body is known to be lost."""

SKIPPED: Final = (NOT_ACTIVE, DELETED, UNREADABLE, BODY_LOST)
"""Why something is not sent, though it matched or might have."""

_STATUS: Final = re.compile(r"status ([1-5][0-9]{2})\b")

NextGeneration = Callable[[Source, str, int], int]
"""Source, subscription and the generation that is known: the one that a replay begins."""


class Selection(NamedTuple):
    """What came of one record or row."""

    records: Sequence[ReplayRecord] = ()
    skipped: Sequence[str] = ()
    """Why something was left out, for each."""
    event_type: str = ""


class FoundDelivery(NamedTuple):
    """A delivery as the history has it."""

    subscription_id: str
    source: Source
    generation: int
    event: ExpectedEvent


_NOTHING: Final = Selection()


class Selector:
    """Selects for one replay. `index` gives the subscriptions in force."""

    def __init__(
        self,
        request: ReplayRequest,
        owner: str | None,
        replay: str,
        index: Callable[[], Index],
        next_generation: NextGeneration,
        least: int = FIRST_GENERATION,
    ) -> None:
        """`least` is the replay's own generation: no other replay's deliveries have it."""
        self._request = request
        self._owner = owner
        self._replay = replay
        self._index = index
        self._next_generation = next_generation
        self._least = least

    def event(self, record: EventRecord, topic: str, partition: int) -> Selection:
        """Of a record of an event topic."""
        if not self._in_time(record.timestamp) or is_tombstone(record):
            return _NOTHING
        try:
            event = decode(record, topic, partition)
        except InvalidEvent:
            return Selection(skipped=(UNREADABLE,))
        if not self._of_tenant(event.tenant) or not self._of_type(event.type):
            return _NOTHING
        index = self._index()
        wanted: Sequence[Subscription] = ()
        if self._request.subscription is None:
            wanted = index.match(event.tenant, event.type)
        else:
            found = index.get(self._request.subscription)
            if found is None:
                return Selection(skipped=(DELETED,))
            if _wants(found, event.tenant, event.type):
                wanted = (found,)
        source = Source(topic, partition, record.offset)
        expected = ExpectedEvent(event.id, event.type, event.tenant)
        records = []
        skipped = []
        for subscription in wanted:
            if not self._reaches(subscription):
                continue
            if subscription.status is not Status.ACTIVE:
                skipped.append(NOT_ACTIVE)
            else:
                generation = self._generation(source, subscription.id, FIRST_GENERATION)
                records.append(ReplayRecord(self._replay, subscription.id, source, generation, expected))
        return Selection(records, skipped, event.type)

    def dead_letter(self, record: EventRecord, topic: str, partition: int) -> Selection:
        """Of a record of the dead-letter topic."""
        request = self._request
        if not self._in_time(record.timestamp):
            return _NOTHING
        try:
            delivery = read_dead_letter(record)
        except InvalidDeadLetter:
            # Nobody else's business: whose it is can't be told.
            everything = self._owner is None and request.subscription is None and request.tenant is None
            return Selection(skipped=(UNREADABLE,)) if everything else _NOTHING
        reason = header(dict(record.headers), "reason")
        event = delivery.event
        if (
            (request.subscription is not None and delivery.subscription_id != request.subscription)
            or not self._of_tenant(event.tenant)
            or not self._of_type(event.type)
            or (request.reasons and reason not in request.reasons)
            or (request.status_codes and not _has_status(delivery.last_result, request.status_codes))
        ):
            return _NOTHING
        at = None if delivery.omitted else Source(topic, partition, record.offset)
        found = FoundDelivery(
            delivery.subscription_id,
            delivery.source,
            delivery.generation,
            ExpectedEvent(event.id, event.type, event.tenant),
        )
        if reason in (BODY_EXPIRED, BODY_UNREADABLE):
            return Selection(skipped=(BODY_LOST,), event_type=event.type) if self._sees(found) else _NOTHING
        return self.delivery(found, at)

    def delivery(self, found: FoundDelivery, at: Source | None = None) -> Selection:
        """Of a delivery. `at` is where its body is read, if not at its source."""
        event = found.event
        if not self._sees(found):
            return _NOTHING
        subscription = self._index().get(found.subscription_id)
        if subscription is None or subscription.tenant not in (event.tenant, EVERY_TENANT):
            return Selection(skipped=(DELETED,), event_type=event.type)
        if subscription.status is not Status.ACTIVE:
            return Selection(skipped=(NOT_ACTIVE,), event_type=event.type)
        generation = self._generation(found.source, found.subscription_id, found.generation)
        record = ReplayRecord(self._replay, found.subscription_id, found.source, generation, event, at)
        return Selection((record,), (), event.type)

    def of_type(self, event_type: str) -> bool:
        """Whether the type is one of those that were asked for."""
        return self._of_type(event_type)

    def _generation(self, source: Source, subscription_id: str, known: int) -> int:
        return max(self._least, self._next_generation(source, subscription_id, known))

    def _sees(self, found: FoundDelivery) -> bool:
        """Whether whoever asks may know of it: a tenant sees what is its own."""
        if self._owner is None:
            return True
        subscription = self._index().get(found.subscription_id)
        return found.event.tenant == self._owner and (subscription is None or self._reaches(subscription))

    def _reaches(self, subscription: Subscription) -> bool:
        return self._owner is None or subscription.tenant == self._owner

    def _in_time(self, time_ms: int) -> bool:
        since = self._request.since_ms
        return (since is None or time_ms >= since) and time_ms < self._request.until_ms

    def _of_tenant(self, tenant: str | None) -> bool:
        wanted = self._request.tenant
        return (wanted is None or tenant == wanted) and (self._owner is None or tenant == self._owner)

    def _of_type(self, event_type: str) -> bool:
        patterns = self._request.event_types
        return not patterns or any(matches(pattern, event_type) for pattern in patterns)


def _wants(subscription: Subscription, tenant: str | None, event_type: str) -> bool:
    return subscription.tenant in (tenant, EVERY_TENANT) and any(
        matches(pattern, event_type) for pattern in subscription.event_types
    )


def _has_status(last_result: str | None, codes: Sequence[str]) -> bool:
    found = _STATUS.match(last_result or "")
    return found is not None and (found[1] in codes or f"{found[1][0]}xx" in codes)
