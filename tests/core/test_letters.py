"""What travels through the dispatcher's own topics."""

from __future__ import annotations

from hypothesis import given, strategies as st

from dispatcher.core.events import Event
from dispatcher.core.letters import delivery_headers, delivery_id, describe, unreadable_headers
from dispatcher.core.results import Failure, Reason, Response


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
            event, "sub_1", topic="events", partition=2, offset=9, attempt=4, first_attempt_ms=1000,
            last_result=Failure(Reason.TIMEOUT, "no answer"), reason="exhausted",
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
        "event_id": b"evt_1",
        "event_type": b"a.b",
        "tenant": b"acme",
        "head": b"Content-Type: application/json\r\n",
    }


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
