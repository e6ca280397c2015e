"""What travels through the dispatcher's own topics."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, strategies as st

from dispatcher.broker.base import StoredRecord
from dispatcher.core.event.decode import Event, decode
from dispatcher.core.request.results import Failure, Reason, Response
from dispatcher.core.retry.records import (
    HISTORY_CAP,
    AttemptSummary,
    History,
    InvalidRetryRecord,
    Source,
    delivery_headers,
    delivery_id,
    describe,
    read_retry_record,
    remember,
    unreadable_headers,
)


def test_a_delivery_id_is_the_same_for_the_same_origin_and_subscription_only() -> None:
    same = delivery_id("events", 3, 17, "sub_1")
    assert same == delivery_id("events", 3, 17, "sub_1")
    assert same.startswith("dlv_")
    others = {delivery_id(*other) for other in [("events", 3, 17, "sub_2"), ("events", 3, 18, "sub_1"),
                                                ("events", 31, 7, "sub_1"), ("event", 3, 17, "sub_1")]}  # fmt: skip
    assert len(others | {same}) == 5


def test_a_dead_letter_says_whose_it_is_how_far_it_got_and_where_it_came_from() -> None:
    event = Event("evt_1", "a.b", "acme", b"{}", 5, b"Content-Type: application/json\r\n")
    headers = dict(
        delivery_headers(
            event, "sub_1", Source("events", 2, 9), attempt=4, first_attempt_ms=1000,
            last_result="timeout: no answer", reason="exhausted",
        )
    )  # fmt: skip
    assert headers == {
        "delivery_id": delivery_id("events", 2, 9, "sub_1").encode(),
        "subscription_id": b"sub_1",
        "attempt": b"4",
        "first_attempt_ms": b"1000",
        "reason": b"exhausted",
        "last_result": b"timeout: no answer",
        "topic": b"events",
        "partition": b"2",
        "offset": b"9",
        "timestamp_ms": b"5",
        "occurred_ms": b"5",
        "event_id": b"evt_1",
        "event_type": b"a.b",
        "tenant": b"acme",
        "head": b"Content-Type: application/json\r\n",
    }


_EVENT = Event(
    "evt_1", "a.b", "acme", b"{}", 5, b"Content-Type: application/json\r\n", "1970-01-01T00:00:01Z"
)


def _record(value: bytes | None = b"{}", **changed: bytes | None) -> StoredRecord:
    """A retry record of `_EVENT`; None takes a header away."""
    headers = dict(
        delivery_headers(
            _EVENT, "sub_1", Source("events", 2, 9), attempt=4, first_attempt_ms=1000,
            last_result="status 503", reason="retry", due=1_800_000_000.1234,
        )
    )  # fmt: skip
    return StoredRecord(0, 7, None, value, list({**headers, **changed}.items()))


def test_a_delivery_comes_back_from_a_retry_topic_as_it_went_there() -> None:
    letter = read_retry_record(_record())
    event = letter.event
    assert (event.id, event.type, event.tenant, event.body) == ("evt_1", "a.b", "acme", b"{}")
    assert event.head == _EVENT.head
    assert event.timestamp_ms == 5, (
        "the record's timestamp is the origin's, so that latency counts from there"
    )
    assert event.occurred_ms == 1000, "thin payloads tell the event's own time"
    assert letter.source == ("events", 2, 9)
    assert (letter.subscription_id, letter.attempt, letter.first_attempt_ms) == ("sub_1", 4, 1000)
    assert letter.due == 1_800_000_000.123
    assert letter.last_result == "status 503"
    assert not letter.omitted


@pytest.mark.parametrize("timestamp", [-(2**63), -1, 0, 10**15 - 1, 10**15, 2**63 - 1])
def test_whatever_number_a_records_timestamp_is_its_retry_can_be_read(timestamp: int) -> None:
    """Kafka takes any; a retry that couldn't be read back would end as a dead letter."""
    event = decode(StoredRecord(0, timestamp, b"\xff\xfe", b'{"id": "a", "type": "a.b"}'), "events", 0)
    headers = delivery_headers(
        event, "sub_1", Source("events", 0, 0), attempt=1, first_attempt_ms=1, last_result=None,
        reason="retry", due=1.0,
    )  # fmt: skip
    letter = read_retry_record(StoredRecord(0, 0, None, event.body, headers))
    expected = timestamp if 0 <= timestamp < 10**15 else -1
    assert letter.event.timestamp_ms == letter.event.occurred_ms == expected


def test_what_was_never_attempted_and_has_no_time_comes_back_too() -> None:
    event = Event("evt_1", "a.b", None, b"", -1, b"Content-Type: a/b\r\n")
    headers = delivery_headers(
        event, "sub_1", Source("events", 0, 0), attempt=0, first_attempt_ms=None, last_result=None,
        reason="retry", due=1.0,
    )  # fmt: skip
    letter = read_retry_record(StoredRecord(0, 7, None, b"", headers))
    assert letter.event.timestamp_ms == letter.event.occurred_ms == -1
    assert letter.event.tenant is None
    assert letter.first_attempt_ms is None
    assert letter.last_result is None


def test_an_event_without_data_and_with_an_id_of_any_characters_comes_back_as_it_was() -> None:
    record = StoredRecord(3, 7, None, None, [("type", b"a b"), ("id", "caf\u00e9 1".encode())])
    event = decode(record, "events", 0)
    headers = delivery_headers(
        event, "sub_1", Source("events", 0, 3), attempt=1, first_attempt_ms=1, last_result=None,
        reason="retry", due=1.0,
    )  # fmt: skip
    again = read_retry_record(StoredRecord(0, 9, None, event.body, headers)).event
    assert (again.id, again.type, again.body, again.head) == ("caf\u00e9 1", "a b", b"", b"")
    assert again.wire_id == event.wire_id == b"caf%C3%A9%201"
    assert again.occurred_ms == event.occurred_ms == 7


def test_a_body_that_was_omitted_is_put_back_without_losing_anything_else() -> None:
    letter = read_retry_record(_record(b"", omitted=b"2 bytes"))
    assert letter.omitted
    whole = letter.with_body(b"{}")
    assert not whole.omitted
    assert whole.event.body == b"{}"
    assert whole.event.occurred_ms == 1000
    assert (whole.attempt, whole.due, whole.source) == (letter.attempt, letter.due, letter.source)


@pytest.mark.parametrize(
    "changed",
    [
        *({name: None} for name in ("subscription_id", "attempt", "due_ms", "topic", "partition", "offset",
                                    "event_id", "event_type", "head")),
        {"value": None},
        {"subscription_id": b"sub 1"},
        {"subscription_id": b"\xff"},
        {"attempt": b"-1"},
        {"attempt": "\u0661".encode()},
        {"due_ms": b"9" * 16},
        {"due_ms": b""},
        {"first_attempt_ms": b"soon"},
        {"event_id": b""},
        {"event_id": b"\xff"},
        {"event_id": b"x\r\nX-Evil: 1"},
        {"event_type": b"a\nb"},
        {"tenant": b"*"},
        {"head": b"Content-Type: a/b\r\nX-Evil: 1\r\n"},
        {"head": b"Content-Type: a/b\r\n\r\nGET / HTTP/1.1\r\n"},
        {"head": b"\r\n"},
    ],
)  # fmt: skip
def test_of_a_retry_record_nothing_is_believed(changed: dict[str, bytes | None]) -> None:
    with pytest.raises(InvalidRetryRecord):
        read_retry_record(_record(**changed))


@given(st.none() | st.binary(), st.lists(st.tuples(st.text(), st.none() | st.binary())))
def test_any_record_is_read_or_refused(value: bytes | None, headers: list[tuple[str, bytes | None]]) -> None:
    with contextlib.suppress(InvalidRetryRecord):
        read_retry_record(StoredRecord(0, 7, None, value, headers))


def test_results_are_described_in_one_line() -> None:
    assert describe(Response(503)) == "status 503"
    assert describe(Response(302, location="https://elsewhere?key=1")) == "status 302 to https://elsewhere"
    assert describe(Response(201, location="/made")) == "status 201"
    assert describe(Failure(Reason.DNS_NOT_FOUND)) == "dns_not_found"
    assert len(describe(Failure(Reason.CLOSED, "x" * 10_000))) < 600


@given(st.text(), st.lists(st.tuples(st.text(), st.none() | st.binary())))
def test_whatever_was_in_an_unreadable_record_can_be_written(
    detail: str, original: list[tuple[str, bytes | None]]
) -> None:
    headers = unreadable_headers(
        original, topic="events", partition=0, offset=1, reason="json", detail=detail
    )
    assert headers[0] == ("reason", b"json")
    kept = [(name, value) for name, value in headers if name.startswith("original.")]
    assert kept == [(f"original.{name}", value or b"") for name, value in original]


def _history(count: int, result: str = "status 503") -> History:
    history: History = ()
    for number in range(1, count + 1):
        history = remember(history, AttemptSummary(number, 1000 * number, result))
    return history


def test_of_a_long_history_the_first_two_and_the_last_eight_attempts_are_kept() -> None:
    assert [tried.attempt for tried in _history(10)] == list(range(1, 11))
    assert [tried.attempt for tried in _history(50)] == [1, 2, *range(43, 51)]


def test_a_history_travels_with_its_delivery() -> None:
    headers = delivery_headers(
        _EVENT, "sub_1", Source("events", 2, 9), attempt=12, first_attempt_ms=1000, last_result="status 503",
        reason="retry", due=1.0, history=_history(12),
    )  # fmt: skip
    assert dict(headers)["history"].startswith(b'[[1,1000,"status 503"],[2,2000,"status 503"],[5,')
    letter = read_retry_record(StoredRecord(0, 7, None, b"{}", headers))
    assert letter.history == _history(12)
    assert letter.with_body(b"x").history == _history(12)


@given(st.text(min_size=500, max_size=600), st.integers(1, 30))
def test_a_history_is_bounded_and_readable_whatever_the_results(result: str, count: int) -> None:
    headers = delivery_headers(
        _EVENT, "sub_1", Source("events", 2, 9), attempt=count, first_attempt_ms=1000, last_result=None,
        reason="retry", due=1.0, history=_history(count, result),
    )  # fmt: skip
    assert len(dict(headers)["history"]) <= HISTORY_CAP
    letter = read_retry_record(StoredRecord(0, 7, None, b"{}", headers))
    assert [tried.attempt for tried in letter.history] == [tried.attempt for tried in _history(count)]


@pytest.mark.parametrize(
    ("raw", "left"),
    [(b"", 0), (b"\xff", 0), (b"{}", 0), (b"7", 0), (b'[1,[1,2],["a",1,"x"],[1,2,"ok"]]', 1), (b" " * 5000 + b"[]", 0),
     (b"[" + b'[1,1,"x"],' * 300 + b'[1,1,"x"]]', 10)],
)  # fmt: skip
def test_a_history_that_somebody_else_wrote_does_no_harm(raw: bytes, left: int) -> None:
    assert len(read_retry_record(_record(history=raw)).history) == left
