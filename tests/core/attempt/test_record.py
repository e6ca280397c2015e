"""Records are read whichever version wrote them, and whatever the bytes."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, strategies as st
from msgspec import UNSET

from dispatcher.core.attempt.record import AttemptRecord, InvalidRecord, encode_record, read_record

OLD: dict[str, Any] = {
    "delivery_id": "dlv_3f0c9b1e5d7a42c68e90b1d2",
    "event_id": "evt_19lV",
    "event_type": "invoice.paid",
    "tenant": None,
    "subscription_id": "sub_billing",
    "attempt": 2,
    "time_ms": 1760000000250,
    "decision": "retry",
    "queue_ms": 4,
    "total_ms": 46,
    "topic": "events",
    "partition": 3,
    "offset": 42,
    "replica": "dispatcher-0:1",
}


def read(**fields: Any) -> AttemptRecord:
    return read_record(orjson.dumps({**OLD, **fields}))


def test_what_was_written_is_read_back() -> None:
    record = read(v=2, decision="dropped", reason="deleted", generation=2, replay="rpl_1", failure="timeout")
    assert read_record(encode_record(record)) == record
    assert (record.v, record.reason, record.failure, record.generation) == (2, "deleted", "timeout", 2)


@pytest.mark.parametrize(
    ("old", "decision", "reason"),
    [
        ("delivered", "delivered", UNSET),
        ("retry", "retry", UNSET),
        ("dead letter", "dead", "exhausted"),
        ("disable", "dead", "gone"),
        ("left to another", "left_to_another", UNSET),
    ],
)
def test_a_record_of_version_1_is_read_with_the_words_of_version_2(
    old: str, decision: str, reason: object
) -> None:
    record = read(decision=old, reason="timeout")
    assert (record.v, record.decision, record.reason, record.failure) == (1, decision, reason, "timeout")
    assert record.host is UNSET


def test_fields_of_a_later_version_are_passed_over() -> None:
    assert read(v=3, unheard_of={"a": 1}).v == 3


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"[]",
        b"{}",
        b'{"v": 2}',
        b"\xff",
        orjson.dumps({**OLD, "attempt": "2"}),
        orjson.dumps({**OLD, "offset": None}),
        orjson.dumps({**OLD, "v": 2, "decision": "dead letter"}),
        orjson.dumps({**OLD, "decision": "whatever"}),
    ],
)
def test_what_is_no_record_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidRecord):
        read_record(value)


@given(st.binary(max_size=200))
def test_whatever_the_bytes_nothing_else_is_raised(value: bytes) -> None:
    with pytest.raises(InvalidRecord):
        read_record(value)
