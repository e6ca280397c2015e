"""What is on the wire is what OpenTelemetry's own encoder would put there."""

from __future__ import annotations

from typing import Any

from hypothesis import given, strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource

from dispatcher.telemetry.otlp import readable
from dispatcher.telemetry.span_wire import encode_batch, encode_span
from dispatcher.telemetry.spans import FinishedSpan

RESOURCE = Resource({"service.name": "webhook-dispatcher"})

texts = st.text(st.characters(codec="utf-8"), max_size=300)
values = st.one_of(texts, st.booleans(), st.integers(-(2**63), 2**63 - 1))
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
attributes = st.dictionaries(names, values, max_size=6)
times = st.integers(0, 2**63 - 1)
spans = st.builds(
    FinishedSpan,
    texts,
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    st.none() | st.integers(1, 2**64 - 1),
    st.booleans(),
    st.none() | st.just("a=1,b=2"),
    st.booleans(),
    times,
    times,
    attributes,
    st.lists(st.tuples(texts, times, attributes), max_size=4),
    st.none() | texts.filter(bool),
)


@given(st.lists(spans, min_size=1, max_size=4))
def test_a_batch_says_what_the_sdk_would_say(batch: list[FinishedSpan]) -> None:
    expected = encode_spans([readable(span, RESOURCE) for span in batch])
    (group,) = expected.resource_spans
    resource = group.resource.SerializeToString()
    scope = group.scope_spans[0].scope.SerializeToString()
    written = encode_batch(map(encode_span, batch), resource, scope)
    assert ExportTraceServiceRequest.FromString(written) == expected


def test_a_text_that_is_no_unicode_is_written_all_the_same() -> None:
    odd: Any = FinishedSpan("a\ud800", 1, 1, None, False, None, True, 1, 1, {"x": "\udfff"}, [], None)
    found = ExportTraceServiceRequest.FromString(encode_batch([encode_span(odd)], b"", b""))
    (span,) = found.resource_spans[0].scope_spans[0].spans
    assert span.name == "a?"
    assert span.attributes[0].value.string_value == "?"
