"""Reading the attempt log: versions 1 and 2 of its records, and nothing that somebody else wrote there.

The topic is one that others may write to, so whatever is no record of ours is refused here, with its reason, and
counted. What is known of an attempt and has no column of its own is kept as JSON (`AttemptDetail`).
"""

from __future__ import annotations

import re
from typing import Annotated, Final

import msgspec
from msgspec import UNSET, UnsetType

from dispatcher.core.attempt.outcome import DECISIONS
from dispatcher.core.attempt.record import InvalidRecord, in_words_of_2

DAY_MS: Final = 86_400_000

DETAIL_LIMIT: Final = 16 << 10
"""Bytes of an attempt's JSON. Where that would be more, each text in it is cut."""

_TEXT_LIMIT: Final = 128  # characters, each of at most six bytes

_ID: Final = re.compile(r"dlv_[0-9a-f]{24}")
_Count = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]


class AttemptDetail(msgspec.Struct, omit_defaults=True, gc=False, kw_only=True):
    """What is shown of an attempt. Names as in the log (version 2)."""

    attempt: _Count
    time_ms: _Count
    decision: str
    generation: _Count = 1
    queue_ms: _Count = 0
    total_ms: _Count | UnsetType = UNSET
    replica: str = ""
    status: _Count | UnsetType = UNSET
    first_byte_ms: _Count | UnsetType = UNSET
    response: str | UnsetType = UNSET
    response_base64: str | UnsetType = UNSET
    response_bytes: _Count | UnsetType = UNSET
    body_bytes: _Count | UnsetType = UNSET
    retry_after: str | UnsetType = UNSET
    location: str | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    failure: str | UnsetType = UNSET
    detail: str | UnsetType = UNSET
    dns_ms: _Count | UnsetType = UNSET
    connect_ms: _Count | UnsetType = UNSET
    tls_ms: _Count | UnsetType = UNSET
    due_ms: _Count | UnsetType = UNSET
    traceparent: str | UnsetType = UNSET
    host: str | UnsetType = UNSET
    path: str | UnsetType = UNSET
    replay: str | UnsetType = UNSET
    triggered_by: str | UnsetType = UNSET


class LoggedAttempt(AttemptDetail, gc=False, kw_only=True):
    """A record of the attempt log. `at` is where it stands in it."""

    delivery_id: str
    event_id: str
    event_type: str
    tenant: str | None
    subscription_id: str
    topic: str
    partition: _Count
    offset: _Count
    event_time_ms: _Count | UnsetType = UNSET
    v: int = 1
    at: int = 0


_decoder: Final = msgspec.json.Decoder(LoggedAttempt)
_encoder: Final = msgspec.json.Encoder()
_IDENTITY: Final = b',"delivery_id":'  # the first field that is a column of its own


def read_attempt(value: bytes | None, at: int) -> LoggedAttempt:
    """The record at the offset `at` of its partition, in the words of version 2; raises InvalidRecord, whatever the bytes."""
    if value is None:
        raise InvalidRecord("the record has no value")
    try:
        record = _decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRecord(str(error)[:200]) from None
    if not _ID.fullmatch(record.delivery_id):
        raise InvalidRecord("the delivery_id is none")
    if record.v == 1:
        record.decision, record.failure, record.reason = in_words_of_2(record.decision, record.reason)
    if record.decision not in DECISIONS:
        raise InvalidRecord(f"the decision {record.decision[:64]!r} is none of {', '.join(DECISIONS)}")
    record.at = at
    return record


def detail_of(record: LoggedAttempt) -> str:
    """What is kept of it beside the columns, as JSON of at most `DETAIL_LIMIT` bytes."""
    # The fields of `AttemptDetail` come first; where they end, since a quotation mark within a text is escaped. To read the record once more, and write that, takes twice as many instructions.
    encoded = _encoder.encode(record)
    end = encoded.index(_IDENTITY)
    if end >= DETAIL_LIMIT:
        detail = {name: getattr(record, name) for name in AttemptDetail.__struct_fields__}
        for name, text in detail.items():
            if isinstance(text, str):
                detail[name] = text[:_TEXT_LIMIT]
        return _encoder.encode(AttemptDetail(**detail)).decode()
    return encoded[:end].decode() + "}"
