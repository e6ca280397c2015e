"""Why an event was delivered to a subscription or not, as one sentence that may be sent to the subscription's owner. Pure.

What is said is known, and no more: where the history has a gap, or does not know what a subscription was at the time, the sentence says so.

What a subscription was when the event was *read* decides whether it is owed the event. A record's time doesn't say when that was: producers choose it by
clocks of their own, and a record may wait in its topic for hours. So `ReadTime` comes from what is recorded of deliveries. Where nothing is, the sentence goes
by the record's time, and says so wherever another time would make another sentence.

A subscription's versions (`SubscriptionVersion`) say what it was. The document of a version is `VersionDocument`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
from msgspec import UNSET

from dispatcher.core.retry.records import FIRST_GENERATION
from dispatcher.core.subscription.model import EVERY_TENANT
from dispatcher.core.subscription.patterns import matches
from dispatcher.core.text.times import rfc3339
from dispatcher.history.base import DELETED, DeliveryRow, DeliveryState, SubscriptionVersion
from dispatcher.history.bounds import FUTURE_MS
from dispatcher.history.logged import AttemptDetail

_heads: Final = msgspec.json.Decoder(AttemptDetail)
_PATTERNS: Final = 5  # that a sentence names
_BY_THE_RECORD: Final = "that goes by the time in the event's record, as nothing tells when it was read"
_PERHAPS: Final = "perhaps before it was read"

_DEAD: Final[Mapping[str, str]] = {
    "exhausted": "every attempt of its schedule had failed",
    "gone": "the endpoint answered 410 (gone), which ends the subscription",
    "disabled": "the subscription was disabled when the next attempt was due",
    "failing": "the subscription was disabled, because everything to it had failed for days",
    "operator": "an operator had disabled the subscription",
    "unsendable": "no request can be made of the event for this subscription",
    "body_expired": "the event's body had been deleted from its topic before the attempt",
    "body_unreadable": "the event's record can't be unpacked any more",
}
_DROPPED: Final[Mapping[str, str]] = {
    "deleted": "the subscription was deleted, or its id went to another tenant",
    "cancelled": "somebody cancelled the delivery",
    "superseded": "it was sent again, which took its place",
    "purged": "somebody ended everything that was owed to the subscription",
    "expired_while_paused": "it was kept while the subscription took nothing, for as long as pauses are kept (subscription.pause_keeps)",
    "disabled": "the subscription was disabled",
    "record_gone": "its record was deleted from the parked topic before it could be sent",
}
_PARKED: Final[Mapping[str, str]] = {
    "breaker": "until the endpoint, at which nearly everything fails, takes something again",
    "retry_after": "until the time for which the endpoint asked (Retry-After) is over",
    "queue_wait": "behind other deliveries to the same slow endpoint",
    "cap": "until there is room in memory",
    "hold_limit": "until there is room in memory",
    "fair_share": "until its tenant, which has its share of the memory, has room again",
    "shutdown": "until another process of the dispatcher takes it up",
    "paused": "until the subscription is resumed",
    "pending": "until the endpoint has agreed to be sent events",
    "invalid": "until the settings allow the subscription again",
    "sealed": "until the key that opens the subscription's secrets is back",
}
_DISABLED: Final[Mapping[str, str]] = {
    "gone": "its endpoint had answered 410 (gone)",
    "failing": "everything to it had failed for days",
    "operator": "by an operator",
    "invalid": "the settings refuse it",
    "sealed": "no key opens its secrets",
}


class VersionDocument(msgspec.Struct, omit_defaults=True):
    """What a version keeps of a subscription beside its tenant and status."""

    event_types: tuple[str, ...] = ()
    reason: str | None = None
    """Why it is disabled."""
    created_ms: int | None = None
    """When it was made; None where that is not known (of the subscriptions file)."""


class ReadTime(NamedTuple):
    """When an event was read, as far as that is known: not before `since_ms`, not after `until_ms`. Unix ms."""

    since_ms: int | None = None
    until_ms: int | None = None

    @property
    def known(self) -> bool:
        """Whether there is anything to go by."""
        return self.since_ms is not None or self.until_ms is not None


NOT_KNOWN: Final = ReadTime()


def read_time_of(deliveries: Iterable[DeliveryRow]) -> ReadTime:
    """When an event was read that has these deliveries."""
    times = []
    exact = False
    for row in deliveries:
        try:
            head = _heads.decode(row.first)
        except msgspec.MsgspecError:
            continue
        # A replay and whatever somebody asked for come long after.
        if head.generation != FIRST_GENERATION or head.attempt > 1:
            continue
        made = head.total_ms is not UNSET
        exact = exact or made
        times.append(head.time_ms - head.queue_ms if made else head.time_ms)
    return ReadTime(min(times) if exact else None, min(times)) if times else NOT_KNOWN


class Subject(NamedTuple):
    """An event and a subscription, and what is known of the two. Times in Unix ms."""

    subscription_id: str
    event_type: str
    tenant: str | None
    """The event's."""
    time_ms: int
    """When it was published, by its record."""
    delivery: DeliveryRow | None
    versions: Sequence[SubscriptionVersion]
    """The subscription's, the oldest first."""
    status: str | None
    """What it is now; None where it isn't there any more."""
    as_of_ms: int
    """What the logs said before is known."""
    gap: bool
    """The history has a gap at the time of the event or later."""
    keeps_all: bool
    """First attempts that succeed are kept, too."""
    schedule: Sequence[float] = ()
    """The subscription's waits between attempts, in seconds."""
    read: ReadTime = NOT_KNOWN
    """When the event was read."""


class Explanation(NamedTuple):
    """What became of an event for a subscription: a word for programs, and a sentence for people."""

    outcome: str
    sentence: str


def explain(subject: Subject) -> Explanation:
    """Why it was delivered, or not."""
    if subject.delivery is not None:
        return _of_delivery(subject, subject.delivery)
    if not subject.read.known:
        found = _judged(subject, subject.time_ms)
        if found.sentence.endswith(f"{_PERHAPS}.") or not depends_on_reading(subject):
            return found
        return found._replace(sentence=f"{found.sentence.removesuffix('.')}; {_BY_THE_RECORD}.")
    since, until = subject.read
    begin = min(subject.time_ms - FUTURE_MS, until or 0) if since is None else since
    moments = _moments(subject, begin, max(begin, subject.as_of_ms) if until is None else until)
    each_time = [_judged(subject, moment) for moment in moments]
    first = each_time[0]
    changed = next(
        (moment for moment, each in zip(moments, each_time, strict=True) if each.outcome != first.outcome),
        None,
    )
    if changed is None:
        return first
    return Explanation(
        "unknown",
        f"Whether it was owed to {subject.subscription_id} is not known: the subscription changed at {_time(changed)}, at about the time at which the"
        " event was read.",
    )


def depends_on_reading(subject: Subject) -> bool:
    """Whether the explanation is another one if the event was read at another time than its record has. Of one with a delivery nothing does."""
    if subject.delivery is not None:
        return False
    begin = subject.time_ms - FUTURE_MS
    moments = _moments(subject, begin, max(subject.time_ms, subject.as_of_ms))
    return len({_judged(subject, moment).outcome for moment in moments}) > 1


def _moments(subject: Subject, since_ms: int, until_ms: int) -> list[int]:
    """Those from the one to the other at which the subscription became what it was."""
    later = (version.since_ms for version in subject.versions)
    return [since_ms, *(time_ms for time_ms in later if since_ms < time_ms <= until_ms)]


def _judged(subject: Subject, moment: int) -> Explanation:
    """Why there is no delivery, if the event was read then."""
    version = _at(subject, moment)
    if version is None:
        return _before_all(subject, moment)
    return _unrecorded(subject, version)


def document_of(version: SubscriptionVersion) -> VersionDocument:
    """What is kept of it; nothing of a document that can't be read."""
    try:
        return msgspec.json.decode(version.document, type=VersionDocument)
    except msgspec.MsgspecError:
        return VersionDocument()


def _of_delivery(subject: Subject, row: DeliveryRow) -> Explanation:
    to = f"to {subject.subscription_id}"
    answer = _answer(row)
    match DeliveryState(row.state):
        case DeliveryState.DELIVERED:
            at = _time(row.last_ms + row.total_ms)
            said = f"It was delivered {to} at {at}: attempt {row.last_attempt} was answered with {answer}."
            return Explanation("delivered", said)
        case DeliveryState.DEAD:
            why = _DEAD.get(row.reason or "", f"of the reason {row.reason}")
            return Explanation(
                "dead", f"The delivery {to} was given up at {_time(row.last_ms)}, because {why}{_last(row)}."
            )
        case DeliveryState.DROPPED:
            why = _DROPPED.get(row.reason or "", f"of the reason {row.reason}")
            return Explanation(
                "dropped", f"The delivery {to} was ended at {_time(row.last_ms)}, because {why}{_last(row)}."
            )
        case DeliveryState.RETRYING:
            return _retrying(subject, row, to)
        case DeliveryState.PENDING:
            until = _PARKED.get(row.reason or "")
            waits = "waits to be sent" if until is None else f"waits {until}"
            return Explanation(
                "pending",
                f"The delivery {to} {waits}, since {_time(row.last_ms)}{_last(row)}{_now(subject)}.",
            )


def _retrying(subject: Subject, row: DeliveryRow, to: str) -> Explanation:
    said = f"It is not delivered {to} yet: attempt {row.last_attempt} ended with {_answer(row)} at {_time(row.last_ms)}"
    if subject.status == "disabled" or subject.status is None:
        return Explanation("retrying", f"{said}{_now(subject)}.")
    if row.due_ms is not None:
        said += f", and the next one is due at {_time(row.due_ms)}"
        rest = sum(subject.schedule[row.last_attempt :])
        said += f"; the last one of its schedule at about {_time(row.due_ms + round(rest * 1000))}"
    return Explanation("retrying", f"{said}{_now(subject)}.")


def _now(subject: Subject) -> str:
    """What the subscription's present status means for what is still owed to it."""
    if subject.status is None:
        return "; the subscription is deleted by now, so that the delivery will be dropped"
    current = subject.versions[-1] if subject.versions else None
    since = "" if current is None or current.status != subject.status else f" since {_time(current.since_ms)}"
    match subject.status:
        case "disabled":
            return f"; the subscription is disabled{since}, so that the delivery will go to the dead letters when its next attempt is due"
        case "paused":
            return f"; the subscription is paused{since}, and the delivery is kept meanwhile"
        case "pending":
            return "; the subscription waits for its endpoint's agreement, and the delivery is kept meanwhile"
        case _:
            return ""


def _before_all(subject: Subject, moment: int) -> Explanation:
    exactly = subject.read.since_ms is not None and subject.read.since_ms == subject.read.until_ms
    published = (
        f"the event was read{f' at {_time(moment)}' if exactly else ''}"
        if subject.read.known
        else f"the event was published at {_time(subject.time_ms)}"
    )
    if not subject.versions:
        return Explanation(
            "unknown",
            f"Nothing is known of what {subject.subscription_id} was when {published}, and no delivery to it is recorded{_as_of(subject)}.",
        )
    first = subject.versions[0]
    made = document_of(first).created_ms
    if made is not None and made > moment:
        return Explanation(
            "made_later",
            f"It was not owed to {subject.subscription_id}, which was made at {_time(made)}, after {published}.",
        )
    return Explanation(
        "unknown",
        f"No delivery to {subject.subscription_id} is recorded{_as_of(subject)}; what the subscription was before {_time(first.since_ms)} is not"
        f" known, and {published}.",
    )


def _unrecorded(subject: Subject, version: SubscriptionVersion) -> Explanation:
    """No delivery is known: because the event was not owed, or because nothing has been recorded yet."""
    id_ = subject.subscription_id
    document = document_of(version)
    since = _time(version.since_ms)
    if version.status == DELETED:
        return Explanation("deleted", f"It was not owed to {id_}, which had been deleted at {since}.")
    if version.tenant not in (subject.tenant, EVERY_TENANT):
        return Explanation(
            "no_match_tenant",
            f"It was not owed to {id_}, which was another tenant's when the event was {_came(subject)}.",
        )
    if not any(matches(pattern, subject.event_type) for pattern in document.event_types):
        named = ", ".join(document.event_types[:_PATTERNS])
        more = len(document.event_types) - _PATTERNS
        wanted = f"{named} and {more} more" if more > 0 else named or "nothing"
        return Explanation(
            "no_match_type",
            f"It was not owed to {id_}, which wanted {wanted} when the event was {_came(subject)}: the type {subject.event_type} is not among that.",
        )
    match version.status:
        case "paused":
            return Explanation(
                "paused",
                f"It was not owed to {id_}, which was paused then, since {since}: what matches during a pause is not sent later by itself.",
            )
        case "pending":
            return Explanation(
                "pending_validation",
                f"It was not owed to {id_}, whose endpoint had not agreed to be sent events by then (pending since {since}).",
            )
        case "disabled":
            why = _DISABLED.get(document.reason or "")
            because = "" if why is None else f" ({why})"
            return Explanation(
                "disabled", f"It was not owed to {id_}, which was disabled then, since {since}{because}."
            )
        case _:
            return _matched(subject)


def _matched(subject: Subject) -> Explanation:
    id_ = subject.subscription_id
    if subject.gap:
        return Explanation(
            "unknown",
            f"It was owed to {id_}, and what became of it is not known: the history has a gap at that time.",
        )
    later = None
    if not subject.read.known:
        later = next(
            (
                each
                for each in subject.versions
                if each.since_ms > subject.time_ms and each.status != "active"
            ),
            None,
        )
    changed = (
        ""
        if later is None
        else f"; the subscription is {later.status} since {_time(later.since_ms)}, {_PERHAPS}"
    )
    if not subject.keeps_all:
        return Explanation(
            "unknown",
            f"It matched {id_}: it was delivered at the first attempt, of which this history keeps no row (history.keep), or no attempt has"
            f" ended{_as_of(subject)}{changed}.",
        )
    return Explanation(
        "pending", f"It is owed to {id_}, and no attempt has been recorded{_as_of(subject)}{changed}."
    )


def _came(subject: Subject) -> str:
    return "read" if subject.read.known else "published"


def _at(subject: Subject, moment: int) -> SubscriptionVersion | None:
    """What it was then."""
    found = None
    for version in subject.versions:
        if version.since_ms > moment:
            break
        found = version
    return found


def _answer(row: DeliveryRow) -> str:
    if row.status is not None:
        return f"status {row.status}"
    return "no answer" if row.failure is None else f"no answer ({row.failure})"


def _last(row: DeliveryRow) -> str:
    if not row.attempts or (row.status is None and row.failure is None):
        return ""
    return f"; the last attempt ended with {_answer(row)}"


def _as_of(subject: Subject) -> str:
    return f" as of {_time(subject.as_of_ms)}" if subject.as_of_ms else " yet"


def _time(time_ms: int) -> str:
    return rfc3339(time_ms) or "an unknown time"
