"""Reading dead letters."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.broker.base import StoredRecord
from dispatcher.core.event.decode import Event
from dispatcher.core.retry.dead_letters import InvalidDeadLetter, header, read_dead_letter
from dispatcher.core.retry.records import Headers, Source, delivery_headers, unreadable_headers

EVENT = Event("evt_1", "invoice.paid", "acme", b"{}", 5, b"Content-Type: application/json\r\n")


def headers(**more: Any) -> Headers:
    values: dict[str, Any] = {
        "attempt": 9,
        "first_attempt_ms": 7,
        "last_result": "status 503",
        "reason": "exhausted",
        "generation": 3,
    }
    return delivery_headers(EVENT, "sub_1", Source("events", 3, 42), **{**values, **more})


def letter(found: Headers, value: bytes | None = b"{}") -> StoredRecord:
    return StoredRecord(0, 0, b"sub_1", value, found)


def test_a_delivery_that_was_given_up_is_read_with_its_event() -> None:
    found = read_dead_letter(letter(headers()))
    assert (found.source, found.subscription_id) == (("events", 3, 42), "sub_1")
    assert (found.event.id, found.event.type, found.event.tenant, found.event.body) == (
        "evt_1",
        "invoice.paid",
        "acme",
        b"{}",
    )
    assert (found.attempt, found.generation, found.last_result, found.omitted) == (9, 3, "status 503", False)


@pytest.mark.parametrize("reason", ["body_expired", "body_unreadable"])
def test_a_body_that_is_lost_is_not_an_empty_one(reason: str) -> None:
    assert read_dead_letter(letter(headers(reason=reason), b"")).omitted
    assert read_dead_letter(letter([*headers(), ("omitted", b"value of 5 bytes")], b"")).omitted


def test_a_record_that_was_no_event_is_no_delivery_and_the_error_says_what_to_do() -> None:
    found = unreadable_headers([], topic="events", partition=0, offset=1, reason="json", detail="no JSON")
    with pytest.raises(InvalidDeadLetter, match=r"\(json\): publish the event again"):
        read_dead_letter(letter(found))


@pytest.mark.parametrize(
    "broken",
    [
        [("delivery_id", b"dlv_1")],
        [each for each in headers() if each[0] != "head"],
        [*headers(), ("attempt", b"9" * 5000)],
        [*headers(), ("head", b"X: 1\r\n\r\nGET /")],
    ],
    ids=["bare", "no head", "attempts", "smuggled head"],
)
def test_what_others_wrote_is_refused(broken: Headers) -> None:
    with pytest.raises(InvalidDeadLetter, match="can't be read as a delivery"):
        read_dead_letter(letter(broken))


def test_a_header_is_text_whatever_its_bytes() -> None:
    assert header({"a": b"\xff" * 5}, "a", 2) == "��"
    assert header({"a": None}, "a") is None
    assert header({}, "a") is None
