"""Explains what became of an event: a sentence for each subscription that it might have been for.

Those are the subscriptions of the event's tenant, those for every tenant, those that are deleted by now, and those to which deliveries are
recorded. A tenant learns of its own only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from dispatcher.control.history import Answered, FoundEvent, HistoryReader
from dispatcher.control.reading_times import ReadingTimes
from dispatcher.control.views import sees, unknown
from dispatcher.core.retry.records import Source
from dispatcher.core.subscription.model import EVERY_TENANT, Subscription
from dispatcher.history.base import DeliveryQuery, DeliveryRow, EventRow, Gap, SubscriptionVersion
from dispatcher.history.explanation import (
    Explanation,
    Subject,
    depends_on_reading,
    explain,
    read_time_of,
)
from dispatcher.registry.registry import Registry

MOST: Final = 200
"""Subscriptions that one answer explains, at the most."""

_ANY_TIME: Final = 2**53


class Explained(NamedTuple):
    """One subscription, and what became of the event for it."""

    subscription_id: str
    delivery_id: str | None
    explanation: Explanation


class ExplainedEvent(NamedTuple):
    """An event, and what became of it. `cut`: there are more subscriptions than were looked at."""

    source: Source
    event_id: str
    event_type: str
    tenant: str | None
    time_ms: int
    explanations: Sequence[Explained]
    cut: bool


class Explanations:
    """Explains. `tenant` None is an operator, who sees all."""

    def __init__(
        self,
        history: HistoryReader,
        registry: Registry,
        *,
        keeps_all: bool,
        reading_times: ReadingTimes | None = None,
    ) -> None:
        """`keeps_all`: the history has a row also of what succeeds at the first attempt. Without `reading_times` nobody asks when neighbours were read."""
        self._history = history
        self._registry = registry
        self._keeps_all = keeps_all
        self._reading_times = reading_times

    async def explain(
        self, tenant: str | None, event_id: str, subscription_id: str | None = None
    ) -> Answered[Sequence[ExplainedEvent]]:
        """Of each event of this id, for all subscriptions, or one. Raises NotFound where no such event is known."""
        found = await self._history.event(tenant, event_id)
        explained = [
            await self._explain(tenant, each, subscription_id, found.as_of_ms, found.gaps)
            for each in found.value
        ]
        return Answered(explained, found.as_of_ms, found.gaps)

    async def _explain(
        self,
        tenant: str | None,
        found: FoundEvent,
        subscription_id: str | None,
        as_of_ms: int,
        gaps: Sequence[Gap],
    ) -> ExplainedEvent:
        row = found.row
        time_ms = row.created_ms if isinstance(row, DeliveryRow) else row.time_ms
        deliveries = {each.subscription_id: each for each in found.deliveries}
        if subscription_id is None:
            ids, cut = await self._candidates(row.tenant, row.event_type, list(deliveries))
        else:
            ids, cut = [subscription_id], False
            if subscription_id not in deliveries:
                deliveries |= await self._delivery(tenant, row, subscription_id)
        versions: dict[str, list[SubscriptionVersion]] = {}
        for version in await self._history.ask(lambda store: store.versions(ids)):
            versions.setdefault(version.subscription_id, []).append(version)
        gap = any(each.until_ms >= time_ms for each in gaps)
        read = read_time_of(deliveries.values())
        subjects = []
        for id_ in ids:
            known = [each for each in versions.get(id_, ()) if sees(tenant, each.tenant)]
            delivery = deliveries.get(id_)
            subscription = self._registry.index.get(id_)
            if not self._may_see(tenant, subscription, known, delivery):
                continue
            subjects.append(
                Subject(
                    id_,
                    row.event_type,
                    row.tenant,
                    time_ms,
                    delivery,
                    known,
                    None if subscription is None else subscription.status.value,
                    as_of_ms,
                    gap,
                    self._keeps_all,
                    () if subscription is None else subscription.retry.schedule,
                    read,
                )
            )
        if subscription_id is not None and not subjects:
            raise unknown(subscription_id)
        if not read.known and self._reading_times is not None and any(map(depends_on_reading, subjects)):
            read = await self._reading_times.around(found.source)
            subjects = [subject._replace(read=read) for subject in subjects]
        explained = [
            Explained(
                each.subscription_id,
                None if each.delivery is None else f"dlv_{each.delivery.delivery_id}",
                explain(each),
            )
            for each in subjects
        ]
        return ExplainedEvent(found.source, row.event_id, row.event_type, row.tenant, time_ms, explained, cut)

    async def _delivery(
        self, tenant: str | None, row: EventRow | DeliveryRow, subscription_id: str
    ) -> dict[str, DeliveryRow]:
        """The one to this subscription, where the event has more than are shown with it."""
        asked = DeliveryQuery(
            0, _ANY_TIME, 10, tenant=tenant, event_id=row.event_id, subscription_id=subscription_id
        )
        rows = (await self._history.ask(lambda store: store.deliveries(asked))).items
        at = (row.topic, row.partition, row.offset)
        return {
            each.subscription_id: each for each in rows if (each.topic, each.partition, each.offset) == at
        }

    async def _candidates(
        self, tenant: str | None, event_type: str, delivered: Sequence[str]
    ) -> tuple[list[str], bool]:
        """For whom the event might have been: those with a delivery first, then those that want its type now, then the others."""
        index = self._registry.index
        found = dict.fromkeys(delivered)
        found.update(dict.fromkeys(sorted(each.id for each in index.match(tenant, event_type))))
        cut = False
        for owner in dict.fromkeys((tenant, EVERY_TENANT)):
            ids = index.ids_of(owner)
            if ids is None:
                cut = True
            else:
                found.update(dict.fromkeys(sorted(ids)))
            found.update(dict.fromkeys(await self._known(owner)))
        return list(found)[:MOST], cut or len(found) > MOST

    async def _known(self, owner: str | None) -> Sequence[str]:
        known: Sequence[str] = await self._history.ask(
            lambda store: store.known_subscriptions(owner, MOST + 1)
        )
        return known

    def _may_see(
        self,
        tenant: str | None,
        subscription: Subscription | None,
        versions: Sequence[SubscriptionVersion],
        delivery: DeliveryRow | None,
    ) -> bool:
        """Whether anything is known of it that the caller may see: a tenant what is its own, or was when it was there."""
        if subscription is not None:
            return sees(tenant, subscription.tenant)
        return bool(versions) or (delivery is not None and sees(tenant, delivery.tenant))
