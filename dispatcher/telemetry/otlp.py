"""Sends spans to a collector: OTLP over HTTP or gRPC, by OpenTelemetry's exporters, in a thread of their own.

The only module that imports OpenTelemetry's packages, which are the extra `otel`; whoever uses it imports it where tracing is on.

Its `ReadableSpan` is what exporters take; the SDK's tracer isn't used. It would sample a second time, open spans that nobody closes after a crash, and take locks for each.

Rules:

1. Whoever puts a span never waits: at `tracing.queue` spans that are not sent yet, further ones are dropped and counted.
2. The counts are each written by one thread: what was taken and dropped by the loop's, what was exported and failed by the exporter's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final

import structlog
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from dispatcher.__about__ import __version__
from dispatcher.settings.groups import TracingSettings
from dispatcher.telemetry.spans import FinishedSpan

log = structlog.get_logger(__name__)

_sdk = logging.getLogger("opentelemetry")

_PATH: Final = "/v1/traces"
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_SCOPE: Final = InstrumentationScope("dispatcher", __version__)
_FINE: Final = Status(StatusCode.UNSET)
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

    def __init__(self, inner: SpanExporter) -> None:
        self.exported = 0
        self.failed = 0
        self._inner = inner
        self._failing = False
        self._said = _Said()
        _sdk.handlers[:] = [self._said]
        _sdk.propagate = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Called by the SDK's thread. Never raises."""
        self._said.next_batch()
        try:
            result = self._inner.export(spans)
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

    def shutdown(self) -> None:
        """Nothing more comes."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is kept here."""
        return self._inner.force_flush(timeout_millis)


class OtlpSink:
    """Spans in, batches of OTLP out (`spans.SpanSink`)."""

    def __init__(self, settings: TracingSettings, replica: str, environ: Mapping[str, str]) -> None:
        """`replica` names this process. Raises ImportError where the exporter's package is missing, ValueError for a wrong variable of `OTEL_*`."""
        self._exporter = CountingExporter(exporter_of(settings, environ))
        self._resource = _resource(replica)
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
        self._processor.on_end(_readable(span, self._resource))

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

        return GrpcExporter(
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


def _readable(span: FinishedSpan, resource: Resource) -> ReadableSpan:
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
