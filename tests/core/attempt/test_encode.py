"""The record of an attempt: complete, bounded, JSON whatever the endpoint answered; and documented."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, strategies as st

from dispatcher.core.attempt.encode import RESPONSE_CAP, Decided, encode, encode_decided
from dispatcher.core.attempt.record import AttemptRecord
from dispatcher.core.event.decode import Event
from dispatcher.core.request.results import Failure, Opened, Reason, Response, Result
from dispatcher.core.retry.records import delivery_id
from tests.fakes import noted, subscription

DOCUMENTED = Path(__file__).parents[3] / "docs/attempts.md"


def record(result: Result, **fields: Any) -> Any:
    key, value, time_ms = encode(noted(result, **fields), "host:1")
    assert key == b"sub_billing"
    assert time_ms == 1760000000250
    return orjson.loads(value)


def test_an_acknowledged_attempt() -> None:
    assert record(Response(204), decision="delivered") == {
        "v": 2,
        "event_time_ms": 1,
        "body_bytes": 2,
        "host": "endpoint.test",
        "path": "/hook",
        "delivery_id": delivery_id("events", 3, 42, "sub_billing"),
        "event_id": "evt_1",
        "event_type": "invoice.paid",
        "tenant": "acme",
        "subscription_id": "sub_billing",
        "attempt": 2,
        "time_ms": 1760000000250,
        "decision": "delivered",
        "queue_ms": 250,
        "first_byte_ms": 250,
        "total_ms": 250,
        "status": 204,
        "topic": "events",
        "partition": 3,
        "offset": 42,
        "replica": "host:1",
    }


def test_what_only_some_attempts_have() -> None:
    answer = Response(
        503, "120", "https://elsewhere.example/x?secret=1", b"busy", 100.3, Opened(0.002, 0.0104, None)
    )
    got = record(answer, due=1760000120.5, tenant=None)
    assert got["tenant"] is None
    assert got["response"] == "busy"
    assert got["retry_after"] == "120"
    assert got["location"] == "https://elsewhere.example/x"
    assert got["first_byte_ms"] == 50
    assert got["due_ms"] == 1760000120500
    assert (got["dns_ms"], got["connect_ms"]) == (2, 10)
    assert "tls_ms" not in got


def test_an_attempt_without_an_answer() -> None:
    got = record(Failure(Reason.TIMEOUT, "the deadline passed", opened=Opened(dns=1.0)))
    assert (got["failure"], got["detail"]) == ("timeout", "the deadline passed")
    assert got["dns_ms"] == 1000
    assert not {"status", "first_byte_ms", "response"} & got.keys()


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_body_that_was_cut_in_the_middle_of_a_character_is_text_all_the_same(cut: int) -> None:
    body = b"x" * (RESPONSE_CAP - cut) + "\N{GRINNING FACE}".encode()
    assert record(Response(200, body=body[:RESPONSE_CAP]))["response"] == "x" * (RESPONSE_CAP - cut)


def test_a_body_that_is_no_text_is_kept_in_base64() -> None:
    for body in (b"\xff\x00", b"\x80" + b"x" * RESPONSE_CAP, b"ends in \xe2\x82"):
        assert (
            record(Response(200, body=body))["response_base64"]
            == base64.b64encode(body[:RESPONSE_CAP]).decode()
        )


@given(body=st.binary(max_size=2048), detail=st.text(st.characters(), max_size=600), answered=st.booleans())
def test_whatever_comes_back_the_record_is_json_and_of_a_few_kilobytes(
    body: bytes, detail: str, answered: bool
) -> None:
    result = Response(200, detail, detail, body) if answered else Failure(Reason.CLOSED, detail + "\udcff")
    ended = noted(result, attempt=1, queued=0.0, started=0.0, decision="delivered", ended=1.0, unix=1e9)
    value = encode(ended, "host:1")[1]
    assert len(value) < 16 * 1024
    assert orjson.loads(value)["attempt"] == 1


def decided(decision: str = "dropped", **fields: Any) -> Any:
    """What was decided of a delivery at 1760000000.5 by the wall's clock, without a request."""
    values: dict[str, Any] = {
        "event": Event("evt_1", "invoice.paid", "acme", b"{}", -1, b"", None),
        "subscription_id": "sub_billing",
        "source": ("events", 3, 42),
        "subscription": None,
        "attempt": 0,
        "decision": decision,
        "reason": "deleted",
        "unix": 1760000000.5,
        "generation": 1,
        "replay": None,
        **fields,
    }
    key, value, time_ms = encode_decided(Decided(**values), "host:1")
    assert key == b"sub_billing"
    assert time_ms == 1760000000500
    return orjson.loads(value)


def test_an_end_without_a_request_is_a_record_with_its_reason_and_no_phases() -> None:
    assert decided() == {
        "delivery_id": delivery_id("events", 3, 42, "sub_billing"),
        "event_id": "evt_1",
        "event_type": "invoice.paid",
        "tenant": "acme",
        "subscription_id": "sub_billing",
        "attempt": 0,
        "time_ms": 1760000000500,
        "decision": "dropped",
        "reason": "deleted",
        "topic": "events",
        "partition": 3,
        "offset": 42,
        "replica": "host:1",
        "v": 2,
        "body_bytes": 2,
    }


def test_an_end_without_a_request_names_its_replay_its_generation_and_what_came_of_it_last() -> None:
    got = decided(
        "dead",
        reason="disabled",
        subscription=subscription("sub_billing"),
        attempt=3,
        generation=2,
        replay="rpl_1",
        detail="status 503",
    )
    assert (got["attempt"], got["generation"], got["replay"], got["detail"]) == (3, 2, "rpl_1", "status 503")
    assert (got["host"], got["path"]) == ("endpoint.test", "/hook")


def test_the_url_is_told_without_its_query_which_may_be_a_secret() -> None:
    to = subscription("sub_billing", "http://endpoint.test:8443/a/b?key=secret")
    got = record(Response(200), subscription=to)
    assert (got["host"], got["path"]) == ("endpoint.test", "/a/b")
    assert "secret" not in str(got)


def test_the_trace_of_the_event_is_in_its_records_and_nothing_else_of_its_head() -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    event = Event("evt_1", "invoice.paid", "acme", b"{}", 1, b"", None)
    event.head = (
        f"Content-Type: a/b\r\nce-x: traceparent: no\r\ntraceparent: {parent}\r\ntracestate: a=1\r\n"
    ).encode()
    assert record(Response(200), event=event)["traceparent"] == parent
    event.head = b"ce-x: traceparent: no\r\n"
    assert "traceparent" not in record(Response(200), event=event)


def test_of_a_long_answer_its_size_is_told_beside_its_beginning() -> None:
    assert record(Response(200, body=b"x" * 1024, size=50_000))["response_bytes"] == 50_000
    assert record(Response(200, body=b"busy"))["response_bytes"] == 4


def test_a_later_generation_and_a_replay_are_named() -> None:
    got = record(Response(200), generation=3, replay="rpl_7")
    assert (got["generation"], got["replay"]) == (3, "rpl_7")


def test_who_asked_for_a_generation_or_an_end_is_named() -> None:
    assert record(Response(200), generation=2, triggered_by="operator ops")["triggered_by"] == "operator ops"
    assert decided("dropped", triggered_by="operator ops")["triggered_by"] == "operator ops"
    assert "triggered_by" not in decided("dropped")


def test_of_an_event_that_nobody_has_read_no_size_is_told() -> None:
    unread = Event("evt_1", "invoice.paid", "acme", b"", -1, b"")
    assert "body_bytes" not in decided(event=unread)
    assert decided()["body_bytes"] == 2


def test_every_field_is_documented_and_no_other() -> None:
    everything = set(decided("dead", generation=2, replay="rpl_1", triggered_by="operator ops"))
    for result in (
        Response(503, "1", "/x", b"text", 100.3, Opened(0.1, 0.1, 0.1)),
        Response(200, body=b"\xff"),
        Failure(Reason.CLOSED, "why"),
    ):
        everything |= record(result, due=1.0, reason="exhausted").keys()
    assert everything | {"traceparent"} == set(AttemptRecord.__struct_fields__)
    rows = re.findall(r"^\| (`.*?) \|", DOCUMENTED.read_text(), re.MULTILINE)
    assert everything | {"traceparent"} == {
        name for row in rows for name in re.findall(r"`([a-z_0-9]+)`", row)
    }
