"""What is kept of every attempt, and of every end without one: one JSON object, one record of the attempts topic.

For people and their tools: `docs/attempts.md` says what each field means, and a test holds it equal to this. The key
is the subscription's id, so the attempts of a delivery are in one partition, in their order. A write that
was acknowledged late may be there twice; `delivery_id`, `generation` and `time_ms` tell that from another attempt.

Written for speed, at 25,000 a second: one object with slots, one call of msgspec (0.8 us; a dictionary and orjson take
1.35). What only some attempts have is added where they have it. (Formatting the bytes by hand was measured: no faster.)
"""

from __future__ import annotations

from base64 import b64encode
from typing import Final, NamedTuple

from msgspec import UNSET

from dispatcher.core.attempt.record import VERSION, AttemptRecord, encode_into
from dispatcher.core.event.decode import JSON_HEAD, Event
from dispatcher.core.request.build import path_of
from dispatcher.core.request.results import Opened, Response, Result
from dispatcher.core.retry.records import FIRST_GENERATION, delivery_id
from dispatcher.core.subscription.model import Subscription

RESPONSE_CAP: Final = 1024
"""Bytes of a response's body that are kept."""

_TEXT_CAP: Final = 512
_TRACEPARENT: Final = b"traceparent: "
# Compiled, what comes of a module that isn't is looked up by its name in each call, and a constant of this one isn't.
_ENCODE_INTO: Final = encode_into
_RECORD: Final = AttemptRecord
_BUFFER: Final = bytearray(1024)  # what was encoded last


class Noted:
    """An attempt that has ended, with all that its record says. Plain slots: compiled, numbers are kept as they are, and nothing is looked up by its name."""

    __slots__ = (
        "attempt",
        "decision",
        "due",
        "ended",
        "event",
        "generation",
        "offset",
        "partition",
        "queued",
        "reason",
        "replay",
        "result",
        "started",
        "subscription",
        "topic",
        "triggered_by",
        "unix",
    )

    def __init__(
        self,
        event: Event,
        subscription: Subscription,
        topic: str,
        partition: int,
        offset: int,
        attempt: int,
        generation: int,
        replay: str | None,
        triggered_by: str | None,
        queued: float,
        started: float,
        result: Result,
        decision: str,
        ended: float,
        unix: float,
        due: float | None,
        reason: str | None,
    ) -> None:
        """`topic`, `partition` and `offset` are where the event was read. `replay` is the id of the replay that the delivery belongs to, `triggered_by` who asked for its generation.

        When it was `queued` and `started` and has `ended`: by the loop's clock; `unix` is the last again, in Unix seconds, as is when the next try is `due`. `reason` is
        why the delivery ends or is parked.
        """
        self.event = event
        self.subscription = subscription
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.attempt = attempt
        self.generation = generation
        self.replay = replay
        self.triggered_by = triggered_by
        self.queued = queued
        self.started = started
        self.result = result
        self.decision = decision
        self.ended = ended
        self.unix = unix
        self.due = due
        self.reason = reason


class Decided(NamedTuple):
    """What was decided of a delivery without a request: its end, or that it is parked."""

    event: Event
    subscription_id: str
    source: tuple[str, int, int]
    """The topic, partition and offset that the event was read from."""
    subscription: Subscription | None
    """None where it is gone."""
    attempt: int
    """How many were made before."""
    decision: str
    reason: str
    unix: float
    """When, in Unix seconds."""
    generation: int
    replay: str | None
    detail: str | None = None
    """The last attempt's result, of a delivery that is given up."""
    triggered_by: str | None = None
    """Who asked for its generation, or for its end."""


Encoded = tuple[bytes, bytes, int]
"""Key, value and timestamp (Unix ms) of a record."""


def encode(noted: Noted, replica: str) -> Encoded:
    """The record of an attempt; its timestamp is the attempt's start."""
    event = noted.event
    subscription = noted.subscription
    subscription_id = subscription.id
    template = subscription.request
    topic, partition, offset = noted.topic, noted.partition, noted.offset
    result = noted.result
    started = noted.started
    total = noted.ended - started
    time_ms = int((noted.unix - total) * 1000)
    total_ms = int(total * 1000 + 0.5)
    event_time_ms = event.occurred_ms
    # By place, in the order of its fields: by name it takes half as long again. And here: in a function of its own it would be a call with thirteen arguments.
    record = _RECORD(
        delivery_id(topic, partition, offset, subscription_id),
        event.id,
        event.type,
        event.tenant,
        subscription_id,
        noted.attempt,
        time_ms,
        noted.decision,
        topic,
        partition,
        offset,
        replica,
        VERSION,
        UNSET if event_time_ms < 0 else event_time_ms,
        len(event.body),
        template.host,
        template.path,
        int((started - noted.queued) * 1000 + 0.5),
        total_ms,
    )
    if event.head is not JSON_HEAD and _TRACEPARENT in event.head:
        _add_traceparent(record, event.head)
    if noted.generation != FIRST_GENERATION:
        record.generation = noted.generation
        if noted.triggered_by is not None:
            record.triggered_by = noted.triggered_by
    if noted.replay is not None:
        record.replay = noted.replay
    if isinstance(result, Response):
        record.status = result.status
        # What came in one piece came when it was over.
        record.first_byte_ms = total_ms
        if result.body:
            _add_body(record, result.body[:RESPONSE_CAP])
            record.response_bytes = result.size or len(result.body)
        if result.retry_after is not None:
            record.retry_after = result.retry_after[:_TEXT_CAP]
        if result.location is not None:
            # Without its query: that of a signed URL is a secret.
            record.location = result.location.partition("?")[0][:_TEXT_CAP]
    else:
        record.failure = result.reason.value
        if result.detail:
            record.detail = result.detail[:_TEXT_CAP]
    if result.first_byte:
        record.first_byte_ms = int((result.first_byte - started) * 1000 + 0.5)
    if result.opened is not None:
        _add_phases(record, result.opened)
    if noted.due is not None:
        record.due_ms = int(noted.due * 1000)
    if noted.reason is not None:
        record.reason = noted.reason
    return subscription_id.encode(), _written(record), time_ms


def encode_decided(decided: Decided, replica: str) -> Encoded:
    """The record of what was decided without a request; its timestamp is when that was."""
    event = decided.event
    subscription = decided.subscription
    topic, partition, offset = decided.source
    time_ms = int(decided.unix * 1000)
    record = AttemptRecord(
        delivery_id=delivery_id(topic, partition, offset, decided.subscription_id),
        event_id=event.id,
        event_type=event.type,
        tenant=event.tenant,
        subscription_id=decided.subscription_id,
        attempt=decided.attempt,
        time_ms=time_ms,
        decision=decided.decision,
        topic=topic,
        partition=partition,
        offset=offset,
        replica=replica,
        v=VERSION,
        reason=decided.reason,
    )
    if event.occurred_ms >= 0:
        record.event_time_ms = event.occurred_ms
    if event.body or event.head:  # else nobody has read it
        record.body_bytes = len(event.body)
    if subscription is not None:
        record.host, record.path = subscription.origin.host, path_of(subscription.target)
    if event.head is not JSON_HEAD and _TRACEPARENT in event.head:
        _add_traceparent(record, event.head)
    if decided.generation != FIRST_GENERATION:
        record.generation = decided.generation
    if decided.replay is not None:
        record.replay = decided.replay
    if decided.triggered_by is not None:
        record.triggered_by = decided.triggered_by
    if decided.detail:
        record.detail = decided.detail[:_TEXT_CAP]
    return decided.subscription_id.encode(), _written(record), time_ms


def _add_traceparent(record: AttemptRecord, head: bytes) -> None:
    for line in head.split(b"\r\n"):
        if line.startswith(_TRACEPARENT):
            record.traceparent = line[len(_TRACEPARENT) :].decode()


def _written(record: AttemptRecord) -> bytes:
    try:
        _ENCODE_INTO(record, _BUFFER)
    except UnicodeEncodeError:
        # A lone surrogate, as in a system's error message that is not UTF-8.
        for name in AttemptRecord.__struct_fields__:
            text = getattr(record, name)
            if isinstance(text, str):
                setattr(record, name, text.encode(errors="replace").decode())
        _ENCODE_INTO(record, _BUFFER)
    return bytes(_BUFFER)


def _add_body(record: AttemptRecord, body: bytes) -> None:
    try:
        record.response = body.decode()
    except UnicodeDecodeError as error:
        if len(body) == RESPONSE_CAP and error.reason == "unexpected end of data":
            record.response = body[: error.start].decode()  # cut in the middle of a character
        else:
            record.response_base64 = b64encode(body).decode()


def _add_phases(record: AttemptRecord, opened: Opened) -> None:
    if opened.dns is not None:
        record.dns_ms = int(opened.dns * 1000 + 0.5)
    if opened.connect is not None:
        record.connect_ms = int(opened.connect * 1000 + 0.5)
    if opened.tls is not None:
        record.tls_ms = int(opened.tls * 1000 + 0.5)
