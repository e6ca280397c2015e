"""The fields of an attempt's record. By themselves, because they describe themselves to msgspec at run time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType


class AttemptRecord(msgspec.Struct, gc=False):
    """`docs/attempts.md` says what each one means. What is unset isn't there."""

    delivery_id: str
    event_id: str
    event_type: str
    tenant: str | None
    subscription_id: str
    attempt: int
    time_ms: int
    decision: str
    queue_ms: int
    total_ms: int
    topic: str
    partition: int
    offset: int
    replica: str
    status: int | UnsetType = UNSET
    first_byte_ms: int | UnsetType = UNSET
    response: str | UnsetType = UNSET
    response_base64: str | UnsetType = UNSET
    retry_after: str | UnsetType = UNSET
    location: str | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    detail: str | UnsetType = UNSET
    dns_ms: int | UnsetType = UNSET
    connect_ms: int | UnsetType = UNSET
    tls_ms: int | UnsetType = UNSET
    due_ms: int | UnsetType = UNSET


encode_record: Final[Callable[[AttemptRecord], bytes]] = msgspec.json.Encoder().encode
"""As JSON. Raises UnicodeEncodeError: a lone surrogate in a text."""
