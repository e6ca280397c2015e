"""What people may command about deliveries: send one again, send one to a named subscription, end one, end all that a subscription is owed.

A command is checked here, and written to the topic of interventions (`delivery/interventions.py`). It is answered when it is in force. The process that has the
partition of the event executes it (`delivery/executing.py`); so a process without the role `deliver` takes commands too.

Rules:

1. A tenant commands about its own deliveries to its own subscriptions. What is another's is not found.
2. The subscription's rule of tenants holds, also for operators: it gets events of its own tenant, or of every tenant.
3. What was published is sent, or nothing: the event is read before the command is written, and must be the one that the history knows.
4. A command that is under way already is not made twice: whoever asks for it again gets the first one.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from dispatcher.broker.base import Broker, BrokerError, TopicPartition, UnreadableBatch
from dispatcher.control.access import Principal
from dispatcher.control.dead_letters import DeadLetters
from dispatcher.control.errors import Gone, Invalid, NotFound, Overloaded, Unavailable, WrongState
from dispatcher.control.history import FoundEvent, HistoryReader
from dispatcher.control.views import Views, sees
from dispatcher.core.flaws import Flaw
from dispatcher.core.retry.dead_letters import InvalidDeadLetter
from dispatcher.core.retry.interventions import (
    BY_LIMIT,
    PURGE,
    Action,
    Intervention,
    key_of,
)
from dispatcher.core.retry.records import FIRST_GENERATION, Source
from dispatcher.core.retry.tiers import RETRY_RETENTION
from dispatcher.core.subscription.model import EVERY_TENANT, Status, Subscription
from dispatcher.delivery.executing import event_at, event_of_dead_letter
from dispatcher.delivery.interventions import InterventionLog
from dispatcher.history.base import DeliveryState
from dispatcher.registry.registry import Registry
from dispatcher.settings.groups import Settings

_TRIES: Final = 5  # where others command about the same delivery at the same moment
_SPARE: Final = 2 * 86400.0  # seconds: what an endpoint may ask for beyond its schedule
_LONGEST: Final = 400 * 86400.0
_FULL_FOR: Final = 60.0  # seconds
_REMEDIES: Final = {
    Status.PAUSED: "resume it first",
    Status.PENDING: "its endpoint has to agree first",
    Status.DISABLED: "enable it first",
}


class _Wanted(NamedTuple):
    """The delivery that a command is about."""

    source: Source
    subscription_id: str
    event_id: str
    event_type: str
    tenant: str | None
    generation: int = FIRST_GENERATION
    attempts: int = 0
    dead_letter: tuple[int, int] | None = None


class _Subject(NamedTuple):
    """The subscription that is purged."""

    subscription_id: str
    tenant: str | None


_Whose = _Wanted | _Subject


class Interventions:
    """Takes commands. `who` is the caller, who may see what it commands about."""

    def __init__(
        self,
        interventions: InterventionLog,
        history: HistoryReader,
        dead_letters: DeadLetters,
        views: Views,
        registry: Registry,
        broker: Broker,
        settings: Settings,
        *,
        wall: Callable[[], float],
    ) -> None:
        """`wall` gives Unix seconds."""
        self._log = interventions
        self._history = history
        self._dead_letters = dead_letters
        self._views = views
        self._registry = registry
        self._broker = broker
        self._topics = settings.topics.events
        self._dead_topic = f"{settings.topics.prefix}dead"
        self._schedule = settings.retry.schedule
        # What a record can wait for beside its schedule.
        self._keeps = settings.subscription.pause_keeps + settings.retry.tiers[-1] + RETRY_RETENTION + _SPARE
        self._wall = wall

    # Of one delivery.

    async def retry(self, who: Principal, delivery: str) -> Intervention:
        """Send it again now, whatever its state. Raises NotFound, WrongState, Gone, HistoryOff, Overloaded, Unavailable."""
        wanted, _ = await self._known(who, delivery)
        return await self._send("retry", who, wanted)

    async def cancel(self, who: Principal, delivery: str) -> Intervention:
        """End it without sending it (again). Raises as `retry` does; WrongState where it has ended."""
        wanted, state = await self._known(who, delivery)
        subscription = self._registry.index.get(wanted.subscription_id)
        if subscription is not None and not sees(who.tenant, subscription.tenant):
            raise NotFound(f"there is no delivery {delivery}")
        known = self._log.get(key_of(wanted.source, wanted.subscription_id))
        if known is not None and not known.ended and known.action == "cancel":
            return known
        if state not in (DeliveryState.PENDING, DeliveryState.RETRYING) and (known is None or known.ended):
            raise WrongState(f"{delivery} has ended already: it is {state.name.lower()}")
        self._check_topic(wanted.source)
        return await self._command("cancel", who, wanted, subscription)

    async def deliver(
        self, who: Principal, event_id: str, subscription_id: str, source: tuple[str, int, int] | None
    ) -> Intervention:
        """Deliver an event to a subscription, also to one that it did not match. `source` says which, where several have the id. Raises as `retry` does, and Invalid."""
        found = (await self._history.event(who.tenant, event_id)).value
        wanted = _one_of([_wanted_event(each, event_id, subscription_id) for each in found], source)
        subscription = self._subscription(who, subscription_id)
        if subscription.tenant not in (wanted.tenant, EVERY_TENANT):
            raise Invalid([Flaw(("subscription",), "is another tenant's than the event")])
        try:
            known, _ = await self._known(who, key_of(wanted.source, subscription_id))
        except NotFound:
            known = wanted
        if known.source == wanted.source:
            wanted = wanted._replace(
                generation=known.generation, attempts=known.attempts, dead_letter=known.dead_letter
            )
        return await self._send("deliver", who, wanted)

    async def retry_dead_letter(self, who: Principal, partition: int, offset: int) -> Intervention:
        """Send again what a dead letter holds. Needs no history. Raises as `retry` does."""
        try:
            found = await self._dead_letters.find(partition, offset)
        except InvalidDeadLetter as error:
            raise WrongState(f"the dead letter {partition}-{offset} can't be sent again: {error}") from error
        event = found.event
        wanted = _Wanted(
            found.source,
            found.subscription_id,
            event.id,
            event.type,
            event.tenant,
            found.generation,
            found.attempt,
            (partition, offset),
        )
        return await self._send("retry", who, wanted)

    async def purge(self, who: Principal, subscription_id: str) -> Intervention:
        """End all that the subscription is owed now. Raises NotFound, Overloaded, Unavailable."""
        view = self._views.get(subscription_id, tenant=who.tenant)
        subscription = self._registry.index.get(subscription_id)
        tenant = view.document.get("tenant")
        whose = _Subject(subscription_id, None if tenant is None else str(tenant))
        self._check_room(who)
        try:
            infos = await self._broker.topics(only=frozenset(self._topics).__contains__)
        except BrokerError as error:
            raise Unavailable(f"the ends of the event topics can't be read now: {error}") from error
        ends: dict[str, list[int]] = {}
        for info in infos:
            latest = {each.partition: each.latest for each in info.partitions}
            ends[info.name] = [max(0, latest.get(number, 0)) for number in range(max(latest, default=-1) + 1)]
        command = replace(self._make(PURGE, who, whose, subscription), ends=ends)
        await self._write(command)
        return command

    # Checks.

    async def _known(self, who: Principal, delivery: str) -> tuple[_Wanted, DeliveryState]:
        found = (await self._history.delivery(who.tenant, delivery)).value
        row, dead = found.row, found.dead_letter
        wanted = _Wanted(
            Source(row.topic, row.partition, row.offset),
            row.subscription_id,
            row.event_id,
            row.event_type,
            row.tenant,
            max(FIRST_GENERATION, row.generation),
            max(0, row.last_attempt),
            None if dead is None else (dead.partition, dead.offset),
        )
        return wanted, DeliveryState(row.state)

    async def _send(self, action: Action, who: Principal, wanted: _Wanted) -> Intervention:
        """Command that it is sent now."""
        subscription = self._subscription(who, wanted.subscription_id)
        if subscription.tenant not in (wanted.tenant, EVERY_TENANT):
            raise WrongState(
                f"{subscription.id} belongs to another tenant by now: what the former owner was owed is not sent to it"
            )
        if subscription.status is not Status.ACTIVE:
            raise WrongState(
                f"{subscription.id} is {subscription.status.value}, so nothing is sent to it: {_REMEDIES[subscription.status]}"
            )
        self._check_topic(wanted.source)
        known = self._log.get(key_of(wanted.source, wanted.subscription_id))
        purged = self._log.generations.purged(wanted.subscription_id) or 0
        if known is not None and not known.ended and known.action != "cancel" and known.order > purged:
            return known
        await self._check_event(self._about(wanted, self._make(action, who, wanted, subscription)))
        return await self._command(action, who, wanted, subscription)

    def _subscription(self, who: Principal, subscription_id: str) -> Subscription:
        return self._views.usable(subscription_id, who.tenant)

    def _check_topic(self, source: Source) -> None:
        if source.topic not in self._topics:
            raise WrongState(
                f"the event was read from {source.topic}, which no dispatcher of this group reads any more (topics.events)"
            )

    async def _check_event(self, command: Intervention) -> None:
        """Rule 3."""
        where = f"{command.topic} partition {command.partition} offset {command.offset}"
        try:
            record = await self._broker.read(TopicPartition(command.topic, command.partition), command.offset)
            if record is not None and event_at(record, command) is not None:
                return
            if command.dead_letter is not None:
                partition, offset = command.dead_letter
                letter = await self._broker.read(TopicPartition(self._dead_topic, partition), offset)
                if letter is not None and event_of_dead_letter(letter, command) is not None:
                    return
        except UnreadableBatch as error:
            raise Gone(f"the event can't be read where it was published ({where}): {error}") from error
        except BrokerError as error:
            raise Unavailable(f"the event can't be read now: {error}") from error
        if record is None:
            raise Gone(
                f"the event is not in its topic any more ({where}): the topic's retention has deleted it. Publish it again"
            )
        raise Gone(
            f"another record stands where the event was published ({where}): the topic was made anew. Publish the event again"
        )

    def _check_room(self, who: Principal) -> None:
        full = self._log.full(who.tenant)
        if full is not None:
            raise Overloaded(
                f"{full}. Each is remembered until no older record of it can be left: some days. For many at once make a replay,"
                " or purge the subscription",
                _FULL_FOR,
            )

    # Writing.

    async def _command(
        self, action: Action, who: Principal, wanted: _Wanted, subscription: Subscription | None
    ) -> Intervention:
        self._check_room(who)
        for _ in range(_TRIES):
            command = self._about(wanted, self._make(action, who, wanted, subscription))
            if await self._write(command):
                return command
        raise Overloaded(
            "others command about the same delivery at this moment: look what they want, then try again"
        )

    def _about(self, wanted: _Wanted, command: Intervention) -> Intervention:
        """The command with the delivery that it is about."""
        source = wanted.source
        return replace(
            command,
            generation=self._log.generations.next_generation(
                source, wanted.subscription_id, wanted.generation
            ),
            topic=source.topic,
            partition=source.partition,
            offset=source.offset,
            event_id=wanted.event_id,
            event_type=wanted.event_type,
            attempts=wanted.attempts,
            dead_letter=wanted.dead_letter,
        )

    def _make(
        self, action: Action, who: Principal, what: _Whose, subscription: Subscription | None
    ) -> Intervention:
        now = self._wall()
        at_ms = round(now * 1000)
        schedule = sum(self._schedule)
        if subscription is not None:
            policy = subscription.retry
            schedule = max(schedule, sum(policy.schedule) * (1 + policy.jitter))
        return Intervention(
            id=f"int_{secrets.token_hex(12)}",
            action=action,
            subscription_id=what.subscription_id,
            order=self._log.generations.next_order(at_ms),
            at_ms=at_ms,
            until_ms=at_ms + round(min(_LONGEST, schedule + self._keeps) * 1000),
            by=f"{who.scope} {who.name}"[:BY_LIMIT],
            tenant=what.tenant,
        )

    async def _write(self, command: Intervention) -> bool:
        may = "the command may still take effect: look before trying again"
        try:
            return await self._log.write(command)
        except TimeoutError as error:
            why = self._broker.problem or self._log.problem or "the broker did not answer in time"
            raise Unavailable(f"{why}: {may}") from error
        except BrokerError as error:
            raise Unavailable(f"{error}: {may}") from error


def _one_of(candidates: Sequence[_Wanted], source: tuple[str, int, int] | None) -> _Wanted:
    # The history may tell of one event twice.
    candidates = list({each.source: each for each in candidates}.values())
    if source is not None:
        candidates = [each for each in candidates if each.source == source]
        if not candidates:
            raise Invalid(
                [Flaw(("source",), "no event of this id stands there: GET /v1/events/{id} shows where")]
            )
    if len(candidates) > 1:
        raise Invalid(
            [
                Flaw(
                    ("source",),
                    f"{len(candidates)} events have this id: say which one is meant, as GET /v1/events/{{id}} shows its source",
                )
            ]
        )
    return candidates[0]


def _wanted_event(found: FoundEvent, event_id: str, subscription_id: str) -> _Wanted:
    row = found.row
    return _Wanted(found.source, subscription_id, event_id, row.event_type, row.tenant)
