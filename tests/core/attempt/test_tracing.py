"""Whose trace an event belongs to, in every form that events have; and which deliveries are traced."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given, strategies as st

from dispatcher.broker.base import StoredRecord
from dispatcher.core.attempt.tracing import Sampler, TraceContext, context_of, traceparent_of
from dispatcher.core.event.decode import JSON_HEAD, Event, decode

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
OTHER = "00-11111111111111111111111111111111-2222222222222222-01"
CONTEXT = TraceContext(int(TRACE, 16), int(SPAN, 16), "a=1")

Headers = Sequence[tuple[str, bytes | None]]
BINARY: Headers = [
    ("ce_specversion", b"1.0"),
    ("ce_id", b"1"),
    ("ce_source", b"/shop"),
    ("ce_type", b"order.paid"),
]


def event_of(value: bytes | None, *headers: tuple[str, bytes | None]) -> Event:
    return decode(StoredRecord(7, 0, None, value, headers), "events", 3)


def envelope(**members: object) -> bytes:
    return json.dumps({"type": "order.paid", **members}).encode()


def structured(**members: object) -> Event:
    body = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.paid", **members}
    return event_of(
        json.dumps(body).encode(), ("content-type", b"Application/CloudEvents+JSON; charset=utf-8")
    )


HEADERS = (("traceparent", PARENT.encode()), ("tracestate", b"a=1"))


@pytest.mark.parametrize(
    "event",
    [
        event_of(envelope(), *HEADERS),
        event_of(b"x", ("type", b"order.paid"), *HEADERS),
        event_of(None, ("type", b"order.paid"), *HEADERS),  # its head begins with the trace
        event_of(b"{}", *BINARY, *HEADERS),
        event_of(b"{}", *BINARY, ("ce_traceparent", PARENT.encode()), ("ce_tracestate", b"a=1")),
        event_of(b"{}", *BINARY, ("ce_traceparent", OTHER.encode()), *HEADERS),  # the nearer one
        structured(traceparent=PARENT, tracestate="a=1"),
    ],
    ids=["envelope", "headers", "no body", "binary", "extension", "both", "structured"],
)
def test_the_producers_span_is_found_in_every_form_of_event(event: Event) -> None:
    assert traceparent_of(event) == PARENT.encode()
    assert context_of(event) == CONTEXT


@pytest.mark.parametrize(
    "event",
    [
        event_of(envelope()),
        event_of(envelope(traceparent=PARENT)),  # a member of an envelope is nobody's header
        event_of(envelope(), ("traceparent", b"00-zz-01")),
        event_of(b"{}", *BINARY),
        event_of(b"{}", *BINARY, ("ce_traceparent", b"none")),
        event_of(b"{}", *BINARY, ("ce_xtraceparent", PARENT.encode())),
        event_of(b"{}", *BINARY, ("ce_subject", f"traceparent: {PARENT}".encode())),
        structured(),
        structured(traceparent=7),
        structured(traceparent="naïve"),
        structured(traceparent=PARENT.upper()),
        structured(data={"traceparent": PARENT}),
    ],
)
def test_what_is_no_trace_context_is_none(event: Event) -> None:
    assert traceparent_of(event) is None
    assert context_of(event) is None


def test_a_tracestate_that_can_not_be_one_is_left_out_and_the_rest_counts() -> None:
    for event in (
        event_of(b"{}", *BINARY, ("ce_traceparent", PARENT.encode()), ("ce_tracestate", "ü=1".encode())),
        structured(traceparent=PARENT, tracestate="ü=1"),
        structured(traceparent=PARENT, tracestate=["a=1"]),
    ):
        assert context_of(event) == CONTEXT._replace(state=None)
    escaped = event_of(b"{}", *BINARY, ("ce_traceparent", PARENT.encode()), ("ce_tracestate", b"a=1, b=%"))
    assert context_of(escaped) == CONTEXT._replace(state="a=1, b=%")


@given(st.binary(max_size=200))
def test_no_body_hurts(body: bytes) -> None:
    event = Event(
        "1", "t", None, b'"traceparent"' + body, 0, b"Content-Type: application/cloudevents+json\r\n"
    )
    assert traceparent_of(event) is None


@pytest.mark.parametrize("flags", ["00", "01", "02", "03", "0a", "ff", "fe"])
def test_the_producers_flag_decides_whatever_the_ratio(flags: str) -> None:
    event = event_of(envelope(), ("traceparent", f"00-{TRACE}-{SPAN}-{flags}".encode()))
    expected = bool(int(flags, 16) & 1)
    for ratio in (0.0, 0.5, 1.0):
        assert Sampler(ratio, by_parent=True).samples(event, 0, 0) is expected


def test_without_the_producers_flag_the_traces_id_decides_as_in_opentelemetrys_samplers() -> None:
    sampler = Sampler(0.25, by_parent=False)
    for low, expected in ((0, True), (2**62 - 1, True), (2**62, False), (2**64 - 1, False)):
        event = event_of(envelope(), ("traceparent", f"00-{'f' * 16}{low:016x}-{SPAN}-00".encode()))
        assert sampler.samples(event, 0, 0) is expected


@pytest.mark.parametrize("ratio", [0.001, 0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("partitions", [1, 6, 100])
def test_of_events_without_a_trace_the_ratio_is_sampled_evenly(ratio: float, partitions: int) -> None:
    sampler = Sampler(ratio, by_parent=True)
    event = event_of(envelope())
    assert event.head is JSON_HEAD
    count = 100_000 // partitions
    taken = [
        sampler.samples(event, partition, 5_000_000_000 + offset)
        for partition in range(partitions)
        for offset in range(count)
    ]
    assert sum(taken) == pytest.approx(ratio * len(taken), rel=0.05, abs=10)


def test_no_burst_of_events_is_sampled_as_a_whole() -> None:
    sampler = Sampler(0.01, by_parent=True)
    event = event_of(envelope())
    hundreds = [
        sum(sampler.samples(event, 0, first + offset) for offset in range(100))
        for first in range(0, 50_000, 100)
    ]
    assert max(hundreds) <= 2


def test_all_and_none() -> None:
    event = event_of(envelope())
    assert all(Sampler(1.0, by_parent=True).samples(event, 0, offset) for offset in range(1000))
    assert not any(Sampler(0.0, by_parent=True).samples(event, 0, offset) for offset in range(1000))


def test_the_decision_is_the_same_when_the_event_comes_back_from_a_topic_of_ours() -> None:
    sampler = Sampler(0.3, by_parent=True)
    fresh = event_of(envelope())
    back = Event("1", "t", None, fresh.body, 0, bytes(bytearray(JSON_HEAD)))
    assert back.head is not JSON_HEAD
    for offset in range(200):
        assert sampler.samples(fresh, 3, offset) is sampler.samples(back, 3, offset)
