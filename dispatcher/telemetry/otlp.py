"""Sends spans to a collector: OTLP over HTTP or gRPC, by OpenTelemetry's exporters, in a thread of their own.

The only module that imports OpenTelemetry's packages, which are the extra `otel`; whoever uses it imports it where tracing is on.

Its `ReadableSpan` is what exporters take; the SDK's tracer isn't used. It would sample a second time, open spans that nobody closes after a crash, and take locks for each.

Rules:

1. Whoever puts a span never waits: at `tracing.queue` spans that are not sent yet, further ones are dropped and counted.
2. The counts are each written by one thread: what was taken and dropped by the loop's, what was exported and failed by the exporter's.
3. Batches are encoded by `telemetry/span_wire.py`, which is several times as fast as the SDK's encoder, where the exporter has the place for that (its private
   parts, as of 1.45). Where another version hasn't, the SDK's encoder does it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import structlog
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from dispatcher.__about__ import __version__
from dispatcher.settings.groups import TracingSettings
from dispatcher.telemetry.span_wire import encode_batch, encode_span
from dispatcher.telemetry.spans import FinishedSpan

log = structlog.get_logger(__name__)

_sdk = logging.getLogger("opentelemetry")

_PATH: Final = "/v1/traces"
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_SCOPE: Final = InstrumentationScope("dispatcher", __version__)
_FINE: Final = Status(StatusCode.UNSET)
_HTTP: Final = "OTLPSpanExporter"
_SAMPLE: Final = FinishedSpan("", 1, 1, None, False, None, True, 1, 1, {}, [], None)
_BATCHES: Final = 512
"""How many more spans than `tracing.queue` the SDK's own queue takes, so that it never drops any: its drops are not counted."""


class _Said(logging.Handler):
    """What the SDK said of the last batch of which it said anything. It would say it again for every batch that fails."""

    def __init__(self) -> None:
        super().__init__()
        self._messages: list[str] = []
        self._over = True

    def emit(self, record: logging.LogRecord) -> None:
        if self._over:
            self._over = False
            self._messages = []
        self._messages.append(record.getMessage())

    def next_batch(self) -> None:
        """What is said from now on is about another one."""
        self._over = True

    @property
    def text(self) -> str:
        """What it said first, of the first try, and last."""
        return " ... ".join(dict.fromkeys((*self._messages[:1], *self._messages[-1:])))


class CountingExporter(SpanExporter):
    """Counts what another exporter sends, and says when that begins to fail and when it works again."""

    def __init__(self, inner: SpanExporter, resource: Resource) -> None:
        """`resource` says whose spans they are."""
        self.exported = 0
        self.failed = 0
        self._inner = inner
        self._resource = resource
        # What all batches have, as the SDK encodes it.
        sample = encode_spans([readable(_SAMPLE, resource)]).resource_spans[0]
        self._resource_bytes = sample.resource.SerializeToString()
        self._scope_bytes = sample.scope_spans[0].scope.SerializeToString()
        self._failing = False
        self._said = _Said()
        _sdk.handlers[:] = [self._said]
        _sdk.propagate = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Called by the SDK's thread. Never raises."""
        self._said.next_batch()
        try:
            result = self._send([cast("_Queued", span).span for span in spans])
        except Exception as error:  # noqa: BLE001 - whatever it is, the spans are lost and nothing else
            _sdk.error("%r", error)
            result = SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self.exported += len(spans)
            if self._failing:
                self._failing = False
                log.info("the collector takes spans again", failed=self.failed)
        else:
            self.failed += len(spans)
            if not self._failing:
                self._failing = True
                log.warning("the collector takes no spans: they are lost", error=self._said.text)
        return result

    def _send(self, spans: Sequence[FinishedSpan]) -> SpanExportResult:
        """Rule 3."""
        inner = self._inner
        client: Any = getattr(inner, "_client", None)
        if getattr(inner, "takes_encoded", False):
            return inner.export(
                cast("Sequence[ReadableSpan]", EncodedSpans(self._encoded(spans), len(spans)))
            )
        if type(inner).__name__ == _HTTP and hasattr(client, "export"):
            sent = client.export(self._encoded(spans)).success
            return SpanExportResult.SUCCESS if sent else SpanExportResult.FAILURE
        return inner.export([readable(span, self._resource) for span in spans])

    def _encoded(self, spans: Sequence[FinishedSpan]) -> bytes:
        return encode_batch(map(encode_span, spans), self._resource_bytes, self._scope_bytes)

    def shutdown(self) -> None:
        """Nothing more comes."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is kept here."""
        return self._inner.force_flush(timeout_millis)


class EncodedSpans:
    """A batch in the form of the wire, in the place of its spans."""

    def __init__(self, encoded: bytes, count: int) -> None:
        self.encoded = encoded
        self._count = count

    def __len__(self) -> int:
        return self._count


class _Queued:
    """What the processor keeps of a span until it goes to the exporter."""

    __slots__ = ("span",)

    context: Final = SpanContext(1, 1, is_remote=False, trace_flags=_SAMPLED)

    def __init__(self, span: FinishedSpan) -> None:
        self.span = span


class OtlpSink:
    """Spans in, batches of OTLP out (`spans.SpanSink`)."""

    def __init__(self, settings: TracingSettings, replica: str, environ: Mapping[str, str]) -> None:
        """`replica` names this process. Raises ImportError where the exporter's package is missing, ValueError for a wrong variable of `OTEL_*`."""
        self._exporter = CountingExporter(exporter_of(settings, environ), _resource(replica))
        self._most = settings.queue
        self._taken = 0
        self._dropped = 0
        self._processor = BatchSpanProcessor(self._exporter, max_queue_size=settings.queue + _BATCHES)

    @property
    def waiting(self) -> int:
        """How many are taken and not sent yet."""
        return self._taken - self._exporter.exported - self._exporter.failed

    def counts(self) -> Mapping[str, int]:
        """How many were exported, dropped or failed."""
        exporter = self._exporter
        return {"exported": exporter.exported, "failed": exporter.failed, "dropped": self._dropped}

    def put(self, span: FinishedSpan) -> None:
        """Take one, or drop it (rule 1)."""
        if self.waiting >= self._most:
            self._dropped += 1
            return
        self._taken += 1
        # What the processor asks of a span is whether it is sampled; the exporter knows what is in it.
        self._processor.on_end(cast("ReadableSpan", _Queued(span)))

    def close(self) -> None:
        """Send what is left."""
        self._processor.shutdown()  # type: ignore[no-untyped-call] # of the SDK


def exporter_of(settings: TracingSettings, environ: Mapping[str, str]) -> SpanExporter:
    """The exporter that settings and environment ask for. Raises ImportError where its package is missing, ValueError for a wrong variable."""
    headers = dict(_header(text.get_secret_value()) for text in settings.headers) or None
    said = [environ.get(name, "").strip() for name in _PROTOCOLS]
    protocol = next(filter(None, (settings.protocol, *said)), "http/protobuf")
    endpoint = settings.endpoint
    if protocol == "grpc":
        # An extra within the extra, for those who install less than all of it.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter as GrpcExporter,
        )

        class EncodedGrpcExporter(GrpcExporter):
            """Takes a batch as it goes onto the wire too."""

            takes_encoded = hasattr(GrpcExporter, "_translate_data")

            def _translate_data(self, data: Any) -> ExportTraceServiceRequest:
                request: ExportTraceServiceRequest = (
                    ExportTraceServiceRequest.FromString(data.encoded)
                    if isinstance(data, EncodedSpans)
                    else super()._translate_data(data)
                )
                return request

        return EncodedGrpcExporter(
            endpoint=endpoint,
            insecure=None if endpoint is None else endpoint.startswith("http://"),
            headers=headers,
            timeout=settings.timeout,
        )
    if protocol != "http/protobuf":
        raise ValueError(
            f"the protocol of OTEL_EXPORTER_OTLP_PROTOCOL, {protocol}, is neither http/protobuf nor grpc"
        )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - as above
        OTLPSpanExporter as HttpExporter,
    )

    if endpoint is not None and not endpoint.endswith(_PATH):
        endpoint = endpoint.rstrip("/") + _PATH
    return HttpExporter(endpoint=endpoint, headers=headers, timeout=settings.timeout)


def _header(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name.strip().lower(), value.strip()


def _resource(replica: str) -> Resource:
    """What says whose spans they are: what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have, and the rest by us."""
    said = OTELResourceDetector().detect().attributes
    ours = {
        "service.name": "webhook-dispatcher",
        "service.version": __version__,
        "service.instance.id": replica,
    }
    return Resource.create({name: value for name, value in ours.items() if name not in said})


def readable(span: FinishedSpan, resource: Resource) -> ReadableSpan:
    """The span as the SDK has it."""
    state = None if span.state is None else TraceState.from_header([span.state])
    parent = None
    if span.parent_id is not None:
        parent = SpanContext(span.trace_id, span.parent_id, span.remote, _SAMPLED, state)
    return ReadableSpan(
        name=span.name,
        context=SpanContext(
            span.trace_id, span.span_id, is_remote=False, trace_flags=_SAMPLED, trace_state=state
        ),
        parent=parent,
        resource=resource,
        attributes=span.attributes,
        events=[Event(name, attributes, at) for name, at, attributes in span.events],
        kind=SpanKind.CLIENT if span.client else SpanKind.CONSUMER,
        status=_FINE if span.error is None else Status(StatusCode.ERROR, span.error),
        start_time=span.began_ns,
        end_time=span.ended_ns,
        instrumentation_scope=_SCOPE,
    )
