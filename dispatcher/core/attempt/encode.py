"""What is kept of every attempt, and of every end without one: one JSON object, one record of the attempts topic.

For people and their tools: `docs/attempts.md` says what each field means, and a test holds it equal to this. The key
is the subscription's id, so the attempts of a delivery are in one partition, in their order. A write that
was acknowledged late may be there twice; `delivery_id`, `generation` and `time_ms` tell that from another attempt.

Written for speed, at 25,000 a second: one object with slots, one call of msgspec (0.8 us; a dictionary and orjson take
1.35). What only some attempts have is added where they have it. (Formatting the bytes by hand was measured: no faster.)
"""

from __future__ import annotations

from base64 import b64encode
from typing import Final, NamedTuple, Protocol

from msgspec import UNSET, UnsetType

from dispatcher.core.attempt.record import VERSION, AttemptRecord, encode_record
from dispatcher.core.event.decode import JSON_HEAD, Event
from dispatcher.core.request.build import Templated, path_of
from dispatcher.core.request.results import Opened, Response, Result
from dispatcher.core.retry.records import FIRST_GENERATION, delivery_id
from dispatcher.core.subscription.model import Subscription

RESPONSE_CAP: Final = 1024
"""Bytes of a response's body that are kept."""

_TEXT_CAP: Final = 512
_TRACEPARENT: Final = b"traceparent: "


class Attempted(Protocol):
    """A delivery, as far as its records say something of it that doesn't change while they are encoded."""

    @property
    def event(self) -> Event: ...
    @property
    def subscription(self) -> Subscription: ...
    @property
    def generation(self) -> int: ...
    @property
    def replay(self) -> str | None:
        """The id of the replay that it belongs to."""

    @property
    def triggered_by(self) -> str | None:
        """Who asked for its generation, where somebody did."""

    @property
    def source(self) -> tuple[str, int, int]:
        """The topic, partition and offset that the event was read from. Any tuple: a `Source` takes 0.3 us to make."""


Noted = tuple[Attempted, int, float, float, Result, str, float, float, float | None, str | None]
"""An attempt that has ended: the delivery; the attempt's number; when it was queued and when the attempt started, by
the loop's clock; what came of it; the decision; when it ended, by the loop's clock and in Unix seconds;
when the next try is due, in Unix seconds; why the delivery ended or is parked. A plain tuple: 0.2 us."""


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
    delivery, attempt, queued, started, result, decision, ended, unix, due, reason = noted
    subscription = delivery.subscription
    # As a Protocol: what is compiled then asks `__getattr__` too. The subscription may be a newer one than the attempt's, without a request yet.
    templated: Templated = subscription
    template = templated.request
    total = ended - started
    time_ms = int((unix - total) * 1000)
    total_ms = int(total * 1000 + 0.5)
    record = _begin(
        delivery.event,
        subscription.id,
        delivery.source,
        template.host,
        template.path,
        attempt,
        time_ms,
        decision,
        replica,
        int((started - queued) * 1000 + 0.5),
        total_ms,
    )
    if delivery.generation != FIRST_GENERATION:
        record.generation = delivery.generation
        if delivery.triggered_by is not None:
            record.triggered_by = delivery.triggered_by
    if delivery.replay is not None:
        record.replay = delivery.replay
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
    if due is not None:
        record.due_ms = int(due * 1000)
    if reason is not None:
        record.reason = reason
    return subscription.id.encode(), _written(record), time_ms


def encode_decided(decided: Decided, replica: str) -> Encoded:
    """The record of what was decided without a request; its timestamp is when that was."""
    time_ms = int(decided.unix * 1000)
    subscription = decided.subscription
    record = _begin(
        decided.event,
        decided.subscription_id,
        decided.source,
        UNSET if subscription is None else subscription.origin.host,
        UNSET if subscription is None else path_of(subscription.target),
        decided.attempt,
        time_ms,
        decided.decision,
        replica,
        UNSET,
        UNSET,
    )
    record.reason = decided.reason
    if decided.generation != FIRST_GENERATION:
        record.generation = decided.generation
    if decided.replay is not None:
        record.replay = decided.replay
    if decided.triggered_by is not None:
        record.triggered_by = decided.triggered_by
    if not decided.event.body and not decided.event.head:
        record.body_bytes = UNSET  # nobody has read it
    if decided.detail:
        record.detail = decided.detail[:_TEXT_CAP]
    return decided.subscription_id.encode(), _written(record), time_ms


def _begin(
    event: Event,
    subscription_id: str,
    source: tuple[str, int, int],
    host: str | UnsetType,
    path: str | UnsetType,
    attempt: int,
    time_ms: int,
    decision: str,
    replica: str,
    queue_ms: int | UnsetType,
    total_ms: int | UnsetType,
) -> AttemptRecord:
    topic, partition, offset = source
    event_time_ms = event.occurred_ms
    # By place, in the order of its fields: by name it takes half as long again.
    record = AttemptRecord(
        delivery_id(topic, partition, offset, subscription_id),
        event.id,
        event.type,
        event.tenant,
        subscription_id,
        attempt,
        time_ms,
        decision,
        topic,
        partition,
        offset,
        replica,
        VERSION,
        UNSET if event_time_ms < 0 else event_time_ms,
        len(event.body),
        host,
        path,
        queue_ms,
        total_ms,
    )
    head = event.head
    if head is not JSON_HEAD and _TRACEPARENT in head:
        for line in head.split(b"\r\n"):
            if line.startswith(_TRACEPARENT):
                record.traceparent = line[len(_TRACEPARENT) :].decode()
    return record


def _written(record: AttemptRecord) -> bytes:
    try:
        return encode_record(record)
    except UnicodeEncodeError:
        # A lone surrogate, as in a system's error message that is not UTF-8.
        for name in AttemptRecord.__struct_fields__:
            text = getattr(record, name)
            if isinstance(text, str):
                setattr(record, name, text.encode(errors="replace").decode())
        return encode_record(record)


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
