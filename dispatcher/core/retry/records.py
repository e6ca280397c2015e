"""What travels through the dispatcher's own topics: dead letters, and deliveries on their way to a retry.

A record's value is the event's bytes, unchanged. Its headers say whose delivery it is, how far
it got, and where it came from, so that it can be read by a person, sent again, or carried on by
another replica:

=====================  ====================================================================
`delivery_id`          stable for one event and one subscription: also after a redelivery
`subscription_id`
`attempt`              attempts made so far
`generation`           absent for the first one; a manual retry or a replay begins the next
`replay`               the id of the replay that the delivery belongs to
`triggered_by`         who asked for the generation, where somebody did
`parked`               how often it was parked since its last attempt; absent for never
`first_attempt_ms`     Unix milliseconds; absent before the first one
`due_ms`               when the next attempt is due, in Unix milliseconds; absent in dead letters
`reason`               why it is here: `retry`, or why it is parked (`breaker`, `hold_limit`, `paused`...); `exhausted`, `gone`, or why a
                       record could not be read
`since_ms`             of a parked delivery: since when it has waited, in Unix milliseconds, however often it was written anew
`last_result`          the last attempt: `status 503`, `timeout: ...`
`history`              the attempts, the first two and the last eight of them: a JSON array of
                       `[number, Unix milliseconds of its start, result]`, of at most 4 KiB
`topic` `partition`    the origin: where the event was read
`offset`
`timestamp_ms`         of the origin's record; absent where it had none
`occurred_ms`          when the event happened, as itself or its record tells
`event_id`             of the event, where it could be read
`event_type` `tenant`
`head`                 the event's own request header lines, ready for the wire
`omitted`              the value was larger than this topic takes; it is still at the origin
`original.<name>`      of an unreadable record: its headers; bytes of a name that are no UTF-8 show as escapes
`raw_headers`          the same, where a name is no UTF-8: a JSON array of `[name, value or null]`, both in base64
=====================  ====================================================================

A retry record comes back from a topic that others may write to, so `read_retry_record` believes nothing: whatever
goes onto the wire or into an index is checked as it was when the event was first read.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

from orjson import JSONDecodeError, dumps, loads

from dispatcher.core.event.decode import (
    Event,
    EventRecord,
    InvalidEvent,
    valid_head,
    valid_tenant,
    valid_type,
    wire_id,
)
from dispatcher.core.request.results import Failure, Response, Result

Headers = list[tuple[str, bytes]]

HISTORY_CAP: Final = 4096
"""Bytes of the `history` header at the most."""

FIRST_GENERATION: Final = 1
"""Of a delivery whose records name none. A manual retry or a replay begins the next one."""

UNREADABLE_RECORD: Final = "unreadable"
"""The reason of the dead letter for a record that can't be unpacked."""

UNREADABLE: Final = "retry_record"
"""The reason of the dead letter for a retry record that can't be read."""

BODY_EXPIRED: Final = "body_expired"
"""The reason of the dead letter for a delivery whose event has been deleted before it was sent."""

BODY_UNREADABLE: Final = "body_unreadable"
"""Likewise where the event can't be unpacked any more."""

_DETAIL_CAP = 512
_REPLAY_CAP: Final = 64
_BY_CAP: Final = 128
_FIRST, _LAST = 2, 8  # attempts of a history that are kept
_RESULT_CAPS = (256, 48)  # characters of each result in it; the second where the first is too much
_BLAKE: Final = blake2b(digest_size=12)
_NUMBER = re.compile(rb"[0-9]{1,15}")
_TIME_LIMIT: Final = 10**15  # ms: what `_NUMBER` reads back
_SUBSCRIPTION_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


class Source(NamedTuple):
    """Where an event was read."""

    topic: str
    partition: int
    offset: int


class AttemptSummary(NamedTuple):
    """One attempt that failed: its number (1 for the first), when it started, and its result in words."""

    attempt: int
    time_ms: int
    result: str


History = tuple[AttemptSummary, ...]


def remember(history: History, tried: AttemptSummary) -> History:
    """One more: the first ones tell what began it, the last ones what it has come to; those between go."""
    if len(history) >= _FIRST + _LAST:
        return (*history[:_FIRST], *history[_FIRST + 1 :], tried)
    return (*history, tried)


class InvalidRetryRecord(ValueError):
    """The record can't be read as a delivery on its way to a retry. The message is for people."""


class LostBody(InvalidRetryRecord):
    """The delivery is known, and its event's body, which was too large for this topic, can't be read at its source any more."""

    def __init__(self, retry: RetryRecord, reason: str, detail: str) -> None:
        """`reason` is `BODY_EXPIRED` or `BODY_UNREADABLE`; `detail` is for people."""
        super().__init__(detail)
        self.retry = retry
        self.reason = reason


class RetryRecord:
    """A delivery that waited in a retry topic."""

    __slots__ = (
        "attempt",
        "due",
        "event",
        "first_attempt_ms",
        "generation",
        "history",
        "last_result",
        "omitted",
        "parked",
        "replay",
        "source",
        "subscription_id",
        "triggered_by",
    )

    def __init__(
        self,
        event: Event,
        subscription_id: str,
        source: Source,
        *,
        attempt: int,
        first_attempt_ms: int | None,
        due: float,
        last_result: str | None,
        omitted: bool,
        parked: int,
        history: History = (),
        generation: int = FIRST_GENERATION,
        replay: str | None = None,
        triggered_by: str | None = None,
    ) -> None:
        """`due` in Unix seconds; `omitted`: the event's body has to be read at `source`."""
        self.event = event
        self.subscription_id = subscription_id
        self.source = source
        self.attempt = attempt
        self.first_attempt_ms = first_attempt_ms
        self.due = due
        self.last_result = last_result
        self.omitted = omitted
        self.parked = parked
        self.history = history
        self.generation = generation
        self.replay = replay
        self.triggered_by = triggered_by

    def with_body(self, body: bytes) -> RetryRecord:
        """The same with its event's body, where it was omitted."""
        event = self.event
        return RetryRecord(
            Event(
                event.id,
                event.type,
                event.tenant,
                body,
                event.timestamp_ms,
                event.head,
                event.occurred_ms / 1000,
                event.wire_id,
            ),
            self.subscription_id,
            self.source,
            attempt=self.attempt,
            first_attempt_ms=self.first_attempt_ms,
            due=self.due,
            last_result=self.last_result,
            omitted=False,
            parked=self.parked,
            history=self.history,
            generation=self.generation,
            replay=self.replay,
            triggered_by=self.triggered_by,
        )


def delivery_id(topic: str, partition: int, offset: int, subscription_id: str) -> str:
    """`dlv_` and 24 hex digits: the same for the same origin and subscription, today and after a restart."""
    hashed = (
        _BLAKE.copy()
    )  # with the parameter set: a fifth less than making one (attempts are logged by the thousand)
    hashed.update(b"%b\0%d\0%d\0%b" % (topic.encode(), partition, offset, subscription_id.encode()))
    return "dlv_" + hashed.hexdigest()


def describe(result: Result) -> str:
    """One line about a result, for people."""
    match result:
        case Response(status=status, location=location):
            # Without its query: that of a signed URL is a secret.
            if location and 300 <= status < 400:
                return f"status {status} to {location.partition('?')[0][:_DETAIL_CAP]}"
            return f"status {status}"
        case Failure(reason=reason, detail=detail):
            return f"{reason}: {detail[:_DETAIL_CAP]}" if detail else str(reason)


def delivery_headers(
    event: Event,
    subscription_id: str,
    source: tuple[str, int, int],
    *,
    attempt: int,
    first_attempt_ms: int | None,
    last_result: str | None,
    reason: str,
    due: float | None = None,
    parked: int = 0,
    history: History = (),
    generation: int = FIRST_GENERATION,
    replay: str | None = None,
    triggered_by: str | None = None,
) -> Headers:
    """The headers of one delivery's record. `due` (Unix seconds) is for those that are tried again."""
    headers: Headers = [
        ("delivery_id", delivery_id(*source, subscription_id).encode()),
        ("subscription_id", subscription_id.encode()),
        ("attempt", b"%d" % attempt),
    ]
    if first_attempt_ms is not None:
        headers.append(("first_attempt_ms", b"%d" % first_attempt_ms))
    if due is not None:
        headers.append(("due_ms", b"%d" % round(due * 1000)))
    if parked:
        headers.append(("parked", b"%d" % parked))
    if generation != FIRST_GENERATION:
        headers.append(("generation", b"%d" % generation))
    if replay is not None:
        headers.append(("replay", replay.encode()))
    if triggered_by is not None:
        headers.append(("triggered_by", triggered_by.encode(errors="replace")))
    headers.append(("reason", reason.encode()))
    if last_result is not None:
        headers.append(("last_result", last_result.encode(errors="replace")))
    if history:
        headers.append(("history", _history_bytes(history)))
    headers += _origin(*source)
    if (
        0 <= event.timestamp_ms < _TIME_LIMIT
    ):  # Kafka knows records without a timestamp (-1), and takes any number for one
        headers.append(("timestamp_ms", b"%d" % event.timestamp_ms))
    if 0 <= (occurred_ms := event.occurred_ms) < _TIME_LIMIT:
        headers.append(("occurred_ms", b"%d" % occurred_ms))
    headers.append(("event_id", event.id.encode()))
    headers.append(("event_type", event.type.encode()))
    if event.tenant is not None:
        headers.append(("tenant", event.tenant.encode(errors="replace")))
    headers.append(("head", event.head))
    return headers


def due_again(headers: Sequence[tuple[str, bytes | None]], due: float) -> Headers:
    """The headers of a retry record that waits on, due at `due` (Unix seconds) by the clock as it is now."""
    again = [(name, value) for name, value in headers if value is not None and name != "due_ms"]
    again.append(("due_ms", b"%d" % round(due * 1000)))
    return again


def read_retry_record(record: EventRecord) -> RetryRecord:
    """Read a retry record; raises InvalidRetryRecord, whatever the bytes."""
    if record.value is None:
        raise InvalidRetryRecord("the record has no value")
    headers = dict(record.headers)
    return read_delivery(record.value, headers, _number(headers, "attempt"), _number(headers, "due_ms"))


def read_delivery(
    value: bytes, headers: Mapping[str, bytes | None], attempt: int, due_ms: int
) -> RetryRecord:
    """The delivery of a record that has these headers; raises InvalidRetryRecord. `due_ms`: when its next attempt is due."""
    subscription_id = _text(headers, "subscription_id")
    if not _SUBSCRIPTION_ID.fullmatch(subscription_id):
        raise InvalidRetryRecord("subscription_id is none")
    event_id = _text(headers, "event_id")
    event_type = _text(headers, "event_type")
    tenant = _text(headers, "tenant") if headers.get("tenant") is not None else None
    head = headers.get("head")
    try:
        sent = wire_id(event_id)
    except InvalidEvent as error:
        raise InvalidRetryRecord(f"event_id is none: {error.detail}") from error
    if not valid_type(event_type):
        raise InvalidRetryRecord("event_type is none")
    if tenant is not None and not valid_tenant(tenant):
        raise InvalidRetryRecord("tenant is none")
    if head is None or not valid_head(head):
        raise InvalidRetryRecord("head is missing, or not header lines as the dispatcher writes them")
    source = Source(_text(headers, "topic"), _number(headers, "partition"), _number(headers, "offset"))
    occurred_ms = _optional_number(headers, "occurred_ms")
    timestamp_ms = _optional_number(headers, "timestamp_ms")
    last_result = headers.get("last_result")
    event = Event(
        event_id,
        event_type,
        tenant,
        value,
        -1 if timestamp_ms is None else timestamp_ms,
        head,
        None if occurred_ms is None else occurred_ms / 1000,
        sent,
    )
    return RetryRecord(
        event,
        subscription_id,
        source,
        attempt=attempt,
        first_attempt_ms=_optional_number(headers, "first_attempt_ms"),
        due=due_ms / 1000,
        last_result=None if last_result is None else last_result.decode(errors="replace"),
        omitted="omitted" in headers,
        parked=_optional_number(headers, "parked") or 0,
        history=_read_history(headers.get("history")),
        generation=_optional_number(headers, "generation") or FIRST_GENERATION,
        replay=_text(headers, "replay")[:_REPLAY_CAP] if headers.get("replay") is not None else None,
        triggered_by=_text(headers, "triggered_by")[:_BY_CAP]
        if headers.get("triggered_by") is not None
        else None,
    )


def _history_bytes(history: History) -> bytes:
    written = b""
    for cap in _RESULT_CAPS:
        written = dumps(
            [
                (number, time_ms, result[:cap].encode(errors="replace").decode())
                for number, time_ms, result in history
            ]
        )
        if len(written) <= HISTORY_CAP:
            break
    return written


def _read_history(raw: bytes | None) -> History:
    """What can be read of it; it only accompanies the delivery, so garbage is none."""
    if raw is None or len(raw) > HISTORY_CAP:
        return ()
    try:
        read = loads(raw)
    except JSONDecodeError:
        return ()
    history: History = ()
    for tried in read if isinstance(read, list) else ():
        match tried:
            case [int(attempt), int(time_ms), str(result)]:
                history = remember(history, AttemptSummary(attempt, time_ms, result))
    return history


def _text(headers: Mapping[str, bytes | None], name: str) -> str:
    raw = headers.get(name)
    if raw is None:
        raise InvalidRetryRecord(f"the header {name} is missing")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidRetryRecord(f"{name} is not UTF-8") from None


def _number(headers: Mapping[str, bytes | None], name: str) -> int:
    raw = headers.get(name)
    if raw is None or not _NUMBER.fullmatch(raw):
        raise InvalidRetryRecord(f"{name} is missing, or not a number of up to 15 digits")
    return int(raw)


def _optional_number(headers: Mapping[str, bytes | None], name: str) -> int | None:
    return None if headers.get(name) is None else _number(headers, name)


def unreadable_headers(
    original: Sequence[tuple[str, bytes | None]],
    *,
    topic: str,
    partition: int,
    offset: int,
    reason: str,
    detail: str,
    raw: Sequence[tuple[bytes, bytes | None]] = (),
) -> Headers:
    """The headers of the dead letter for a record that could not be read as an event.

    `raw`: its headers where a name can't be written as text.
    """
    headers = [
        ("reason", reason.encode()),
        ("detail", detail[:_DETAIL_CAP].encode(errors="replace")),
        *_origin(topic, partition, offset),
        *((f"original.{name}", value or b"") for name, value in original),
    ]
    if raw:
        coded = [
            [b64encode(name).decode(), None if value is None else b64encode(value).decode()]
            for name, value in raw
        ]
        headers.append(("raw_headers", dumps(coded)))
    return headers


def _origin(topic: str, partition: int, offset: int) -> Headers:
    return [
        ("topic", topic.encode()),
        ("partition", b"%d" % partition),
        ("offset", b"%d" % offset),
    ]
