"""The record of an attempt, or of a delivery's end without one: its fields, and reading it.

By itself, because the fields describe themselves to msgspec at run time. `docs/attempts.md` says what each one means.

Version 2 is written. Version 1 is read too: `read_record` gives its decisions and reasons the names of version 2, and leaves unset what
version 1 did not have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from dispatcher.core.attempt.outcome import DEAD, DECISIONS, LEFT_TO_ANOTHER

VERSION: Final = 2


class InvalidRecord(ValueError):
    """The bytes are no record of an attempt. The message is for people."""


class AttemptRecord(msgspec.Struct, gc=False):
    """What is unset isn't there. A record without `total_ms` is of an end, or of a parking, without a request."""

    delivery_id: str
    event_id: str
    event_type: str
    tenant: str | None
    subscription_id: str
    attempt: int
    time_ms: int
    decision: str
    topic: str
    partition: int
    offset: int
    replica: str
    v: int = 1
    event_time_ms: int | UnsetType = UNSET
    body_bytes: int | UnsetType = UNSET
    host: str | UnsetType = UNSET
    path: str | UnsetType = UNSET
    queue_ms: int | UnsetType = UNSET
    total_ms: int | UnsetType = UNSET
    generation: int | UnsetType = UNSET
    replay: str | UnsetType = UNSET
    triggered_by: str | UnsetType = UNSET
    traceparent: str | UnsetType = UNSET
    status: int | UnsetType = UNSET
    first_byte_ms: int | UnsetType = UNSET
    response: str | UnsetType = UNSET
    response_base64: str | UnsetType = UNSET
    response_bytes: int | UnsetType = UNSET
    retry_after: str | UnsetType = UNSET
    location: str | UnsetType = UNSET
    failure: str | UnsetType = UNSET
    detail: str | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    dns_ms: int | UnsetType = UNSET
    connect_ms: int | UnsetType = UNSET
    tls_ms: int | UnsetType = UNSET
    due_ms: int | UnsetType = UNSET


_encoder: Final = msgspec.json.Encoder()

encode_record: Final[Callable[[AttemptRecord], bytes]] = _encoder.encode
"""As JSON. Raises UnicodeEncodeError: a lone surrogate in a text."""

encode_into: Final[Callable[[AttemptRecord, bytearray], None]] = _encoder.encode_into
"""Likewise, into a buffer that is there: a new one begins with 32 bytes and is enlarged six times."""

_decode: Final = msgspec.json.Decoder(AttemptRecord).decode

_OLD_DECISIONS: Final = {"dead letter": DEAD, "disable": DEAD, "left to another": LEFT_TO_ANOTHER}
_OLD_REASONS: Final = {"dead letter": "exhausted", "disable": "gone"}


def read_record(value: bytes) -> AttemptRecord:
    """Read a record of version 1 or 2, with the words of version 2; raises InvalidRecord, whatever the bytes.

    Fields that a later version adds are passed over. `v` stays what was read.
    """
    try:
        record = _decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRecord(str(error)) from error
    if record.v == 1:
        record.decision, record.failure, record.reason = in_words_of_2(record.decision, record.reason)
    if record.decision not in DECISIONS:
        raise InvalidRecord(f"the decision {record.decision!r} is none of {', '.join(DECISIONS)}")
    return record


def in_words_of_2(decision: str, reason: str | UnsetType) -> tuple[str, str | UnsetType, str | UnsetType]:
    """Decision, failure and reason of a record of version 1, which called the failure its reason."""
    return _OLD_DECISIONS.get(decision, decision), reason, _OLD_REASONS.get(decision, UNSET)
