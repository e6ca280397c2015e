"""What is kept of every attempt: one JSON object, one record of the attempts topic.

For people and their tools: `docs/attempts.md` says what each field means, and a test holds it equal to this. The key
is the subscription's id, so the attempts of a delivery are in one partition, in their order. A write that
was acknowledged late may be there twice; `delivery_id` and `time_ms` tell that from another attempt.

Written for speed, at 25,000 a second: one object with slots, one call of msgspec (0.8 us; a dictionary and orjson take
1.35). What only some attempts have is added where they have it. (Formatting the bytes by hand was measured: no faster.)
"""

from __future__ import annotations

from base64 import b64encode
from typing import Final, Protocol

from dispatcher.core.attempt.record import AttemptRecord, encode_record
from dispatcher.core.event.decode import Event
from dispatcher.core.request.results import Opened, Response, Result
from dispatcher.core.retry.records import delivery_id
from dispatcher.core.subscription.index import Subscription

RESPONSE_CAP: Final = 1024
"""Bytes of a response's body that are kept."""

_TEXT_CAP: Final = 512


class Attempted(Protocol):
    """A delivery, as far as its attempts' records say something of it that doesn't change."""

    @property
    def event(self) -> Event: ...
    @property
    def subscription(self) -> Subscription: ...
    @property
    def read_at(self) -> tuple[str, int, int]:
        """The topic, partition and offset that the event was read from. Not a `Place`, which takes 0.3 us to make."""


Noted = tuple[Attempted, int, float, float, Result, str, float, float, float | None]
"""An attempt that has ended: the delivery; the attempt's number; when it was queued and when the attempt started, by
the loop's clock; what came of it; the decision; when it ended, by the loop's clock and in Unix seconds;
when the next try is due, in Unix seconds. A plain tuple: 0.2 us."""


def encode(noted: Noted, replica: str) -> tuple[bytes, bytes, int]:
    """Key, value and timestamp (Unix ms, of the attempt's start) of its record."""
    delivery, attempt, queued, started, result, decision, ended, unix, due = noted
    event = delivery.event
    subscription_id = delivery.subscription.id
    topic, partition, offset = delivery.read_at
    total = ended - started
    time_ms = int((unix - total) * 1000)
    total_ms = int(total * 1000 + 0.5)
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
        int((started - queued) * 1000 + 0.5),
        total_ms,
        topic,
        partition,
        offset,
        replica,
    )
    if isinstance(result, Response):
        record.status = result.status
        # What came in one piece came when it was over.
        record.first_byte_ms = total_ms
        if result.body:
            _add_body(record, result.body[:RESPONSE_CAP])
        if result.retry_after is not None:
            record.retry_after = result.retry_after[:_TEXT_CAP]
        if result.location is not None:
            # Without its query: that of a signed URL is a secret.
            record.location = result.location.partition("?")[0][:_TEXT_CAP]
    else:
        record.reason = result.reason.value
        if result.detail:
            record.detail = result.detail[:_TEXT_CAP]
    if result.first_byte:
        record.first_byte_ms = int((result.first_byte - started) * 1000 + 0.5)
    if result.opened is not None:
        _add_phases(record, result.opened)
    if due is not None:
        record.due_ms = int(due * 1000)
    try:
        value = encode_record(record)
    except UnicodeEncodeError:
        # A lone surrogate, as in a system's error message that is not UTF-8.
        for name in AttemptRecord.__struct_fields__:
            text = getattr(record, name)
            if isinstance(text, str):
                setattr(record, name, text.encode(errors="replace").decode())
        value = encode_record(record)
    return subscription_id.encode(), value, time_ms


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
