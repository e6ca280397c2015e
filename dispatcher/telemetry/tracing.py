"""The spans of deliveries: one for each stay of a delivery in this process, and below it one for each attempt.

In comes what the data path knows at the end of an attempt (`delivery/outcome.py`) and where a delivery leaves the process's memory
(`delivery/settlement.py`). Out go spans that are over, to a `SpanSink`: none is open anywhere, so nothing of a process that is killed hangs about in a collector.
`telemetry/otlp.py` is the sink that sends them, and the only module that knows OpenTelemetry's packages; it is imported where tracing is on.

Rules:

1. What isn't sampled comes no further than `Sampler.samples` (`core/attempt/tracing.py`).
2. A delivery whose event brings a trace context has its spans below that span. One without gets a trace of its own, whose id is made of the delivery's id
   (`dlv_`, in hexadecimal, and its 24 digits): attempts out of a topic of ours come into the same trace, on whatever replica they are made.
3. No span has a URL, a header or a body. A path may be a secret, and collectors are often somebody else's.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, Protocol

import structlog

from dispatcher.core.attempt.outcome import DEAD, DELIVERED, LEFT_TO_ANOTHER
from dispatcher.core.attempt.tracing import DeliveryTrace, Sampler, context_of, traceparent_of
from dispatcher.core.event.decode import Event
from dispatcher.core.request.build import with_traceparent
from dispatcher.core.request.results import Failure, Reason, Response, Result
from dispatcher.core.retry.records import FIRST_GENERATION, delivery_id, describe
from dispatcher.core.subscription.model import Subscription
from dispatcher.settings.groups import Settings
from dispatcher.telemetry.spans import FinishedSpan, SpanSink, Value

log = structlog.get_logger(__name__)

FLUSH_LIMIT: Final = 3.0
"""Seconds that a collector has to take the last spans when the process ends."""

_MISSING: Final = "tracing.enabled needs OpenTelemetry's SDK, which is not installed: pip install 'webhook-dispatcher[otel]'"
_OWN_TRACE: Final = b"dlv_".hex()
_DISABLED: Final = "OTEL_SDK_DISABLED"
_ENDS: Final = frozenset({DELIVERED, DEAD, LEFT_TO_ANOTHER})
# An attempt that got so far had written its request.
_SENT: Final = frozenset(
    {Reason.TIMEOUT, Reason.CLOSED, Reason.PROTOCOL_ERROR, Reason.RESPONSE_TOO_LARGE, Reason.CANCELLED}
)

TraceIds = Mapping[str, str | None]
"""`trace_id` and `span_id`, in hexadecimal, as a log line has them."""

SpanPlace = tuple[int, int]
"""The ids of a trace and of a span in it."""

_NO_IDS: Final[TraceIds] = {}


class TracingRefused(ValueError):
    """Tracing is on and can't be had. The message says what to do."""


class Traced(Protocol):
    """A delivery, as far as its spans say something of it."""

    @property
    def event(self) -> Event: ...
    @property
    def subscription(self) -> Subscription: ...
    @property
    def generation(self) -> int: ...
    @property
    def replay(self) -> str | None:
        """The id of the replay that it belongs to."""

    @property
    def source(self) -> tuple[str, int, int]:
        """The topic, partition and offset that the event was read from."""

    @property
    def event_source(self) -> tuple[str, int, int] | None:
        """Where the event was read, of a delivery that came out of a topic of ours."""

    @property
    def attempt(self) -> int: ...
    @property
    def queued(self) -> float: ...
    @property
    def started(self) -> float: ...

    trace: DeliveryTrace | None

    def sampled_by(self, sampler: Sampler) -> bool:
        """Whether it is traced."""


class Tracing:
    """Makes the spans of the deliveries that are sampled."""

    def __init__(
        self,
        sink: SpanSink,
        sampler: Sampler,
        *,
        system: str,
        bits: Callable[[int], int] = random.getrandbits,
    ) -> None:
        """`system` is what the events come from, in the words of OpenTelemetry (`messaging.system`); `bits` gives random ones."""
        self.sampler = sampler
        self.sink = sink
        self._system = system
        self._offset_name = "messaging.kafka.offset" if system == "kafka" else "dispatcher.offset"
        self._bits = bits

    # Spans.

    def attempt(
        self, delivery: Traced, result: Result, decision: str, now: float, unix: float, reason: str | None
    ) -> SpanPlace:
        """An attempt of a delivery that is sampled is over; with the last one the delivery is too. Returns where the attempt's span is."""
        trace = delivery.trace
        if trace is None:
            trace = self._begin(delivery, now, unix)
        span_id = trace.attempt_span or self._span_id()
        trace.attempt_span = 0
        trace.attempts += 1
        origin = delivery.subscription.origin
        attributes: dict[str, Value] = {
            "http.request.method": "POST",
            "server.address": origin.host,
            "server.port": origin.port,
            "url.scheme": origin.scheme,
            "dispatcher.attempt": delivery.attempt,
            "dispatcher.decision": decision,
        }
        if reason is not None:
            attributes["dispatcher.reason"] = reason
        if delivery.attempt > 1:
            attributes["http.request.resend_count"] = delivery.attempt - 1
        if isinstance(result, Response):
            attributes["http.response.status_code"] = result.status
            kind = str(result.status)
        else:
            kind = result.reason.value
        error = None
        if decision != DELIVERED:
            attributes["error.type"] = kind
            error = describe(result)
        began = unix - (now - delivery.started)
        self.sink.put(
            FinishedSpan(
                "POST",
                trace.trace_id,
                span_id,
                trace.span,
                remote=False,
                state=trace.state,
                client=True,
                began_ns=_ns(began),
                ended_ns=_ns(unix),
                attributes=attributes,
                events=_phases(
                    result, began, began + (result.first_byte - delivery.started), unix, origin.scheme
                ),
                error=error,
            )
        )
        delivery.trace = trace
        if decision in _ENDS:
            self.ended(delivery, decision, reason, now, unix)
        return trace.trace_id, span_id

    def ended(self, delivery: Traced, outcome: str, reason: str | None, now: float, unix: float) -> None:
        """A delivery that is sampled leaves the process's memory: it has ended, or waits in a topic from now on."""
        trace = delivery.trace
        if trace is None:
            trace = self._begin(delivery, now, unix)
        delivery.trace = None
        event = delivery.event
        topic, partition, offset = delivery.source
        attributes: dict[str, Value] = {
            "messaging.system": self._system,
            "messaging.operation.type": "process",
            "messaging.operation.name": "deliver",
            "messaging.destination.name": topic,
            "messaging.destination.partition.id": str(partition),
            self._offset_name: offset,
            "messaging.message.id": event.id,
            "messaging.message.body.size": len(event.body),
            "dispatcher.event.type": event.type,
            "dispatcher.subscription.id": delivery.subscription.id,
            "dispatcher.delivery.id": trace.delivery_id,
            "dispatcher.outcome": outcome,
            "dispatcher.attempts": trace.attempts,
        }
        if event.tenant is not None:
            attributes["dispatcher.tenant"] = event.tenant
        if reason is not None:
            attributes["dispatcher.reason"] = reason
        if delivery.generation != FIRST_GENERATION:
            attributes["dispatcher.generation"] = delivery.generation
        if delivery.replay is not None:
            attributes["dispatcher.replay"] = delivery.replay
        self.sink.put(
            FinishedSpan(
                f"deliver {topic}",
                trace.trace_id,
                trace.span,
                trace.parent,
                remote=trace.remote,
                state=trace.state,
                client=False,
                began_ns=_ns(trace.began),
                ended_ns=_ns(unix),
                attributes=attributes,
                events=[],
                error=(reason or outcome) if outcome == DEAD else None,
            )
        )

    def outgoing(self, delivery: Traced, request: bytes, now: float, unix: float) -> bytes:
        """The request of an attempt that begins, with the attempt's span for its `traceparent`; as it is where it isn't sampled."""
        trace = delivery.trace
        if trace is None:
            if not delivery.sampled_by(self.sampler):
                return request
            trace = delivery.trace = self._begin(delivery, now, unix)
        trace.attempt_span = self._span_id()
        return with_traceparent(request, b"00-%032x-%016x-01" % (trace.trace_id, trace.attempt_span))

    def _begin(self, delivery: Traced, now: float, unix: float) -> DeliveryTrace:
        """What is sampled came into its lane not long ago: from there its span counts."""
        began = unix - (now - delivery.queued)
        id_ = delivery_id(*delivery.source, delivery.subscription.id)
        context = context_of(delivery.event)
        if context is not None:
            return DeliveryTrace(
                id_, context.trace_id, self._span_id(), context.span_id, began, context.state, remote=True
            )
        own = _own_trace(id_)
        # The last 16 digits are the id of the first stay's span, so that those after it know it.
        first = own & 0xFFFFFFFFFFFFFFFF
        if delivery.generation != FIRST_GENERATION:
            return DeliveryTrace(id_, own, self._span_id(), None, began, None, remote=False)
        if delivery.event_source is None:
            return DeliveryTrace(id_, own, first, None, began, None, remote=False)
        return DeliveryTrace(id_, own, self._span_id(), first, began, None, remote=True)

    def _span_id(self) -> int:
        return self._bits(64) or 1

    # For log lines.

    def ids(self, event: Event, source: tuple[str, int, int], subscription_id: str) -> TraceIds:
        """The ids for a line about a delivery outside of an attempt's span."""
        parent = traceparent_of(event)
        if parent is not None:
            return {"trace_id": parent[3:35].decode(), "span_id": None}
        if self.sampler.samples(event, source[1], source[2]):
            return {
                "trace_id": f"{_own_trace(delivery_id(*source, subscription_id)):032x}",
                "span_id": None,
            }
        return {"trace_id": None, "span_id": None}

    # The end.

    async def close(self) -> None:
        """Send what is left, within `FLUSH_LIMIT`."""
        loop = asyncio.get_running_loop()
        over = asyncio.Event()

        def end() -> None:
            try:
                self.sink.close()
            finally:
                with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(over.set)

        # A thread that the interpreter doesn't wait for: a collector that hangs must not keep the process.
        threading.Thread(target=end, name="last spans", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_LIMIT):
                await over.wait()
        except TimeoutError:
            log.warning("the collector did not take the last spans in time", left=self.sink.waiting)


def ids_of(place: SpanPlace) -> TraceIds:
    """What a log line says of a span."""
    trace_id, span_id = place
    return {"trace_id": f"{trace_id:032x}", "span_id": f"{span_id:016x}"}


def trace_ids(
    tracing: Tracing | None, event: Event, source: tuple[str, int, int], subscription_id: str
) -> TraceIds:
    """What a log line about a delivery says of its trace; nothing without tracing."""
    return _NO_IDS if tracing is None else tracing.ids(event, source, subscription_id)


def open_tracing(settings: Settings, replica: str, environ: Mapping[str, str]) -> Tracing | None:
    """What makes and sends the spans of this process; None where there is nothing to trace. Raises TracingRefused."""
    tracing = settings.tracing
    if not tracing.enabled or "deliver" not in settings.roles:
        return None
    if environ.get(_DISABLED, "").strip().lower() == "true":
        log.info("tracing is on and disabled by the environment", variable=_DISABLED)
        return None
    try:
        from dispatcher.telemetry.otlp import OtlpSink  # noqa: PLC0415 - an extra, and only where it is used

        sink = OtlpSink(tracing, replica, environ)
    except ImportError as error:
        raise TracingRefused(_MISSING) from error
    log.info(
        "tracing is on",
        endpoint=tracing.endpoint or "as OTEL_EXPORTER_OTLP_* say",
        protocol=tracing.protocol or "as OTEL_EXPORTER_OTLP_* say",
        sampler=tracing.sampler,
        ratio=tracing.ratio,
    )
    sampler = Sampler(tracing.ratio, by_parent=tracing.sampler == "parentbased_traceidratio")
    return Tracing(sink, sampler, system="dispatcher" if settings.embedded else "kafka")


def check_tracing(settings: Settings, environ: Mapping[str, str]) -> None:
    """Raise TracingRefused where a start would. Nothing is sent."""
    if not settings.tracing.enabled or "deliver" not in settings.roles:
        return
    try:
        from dispatcher.telemetry.otlp import exporter_of  # noqa: PLC0415 - as above

        exporter_of(settings.tracing, environ).shutdown()
    except ImportError as error:
        raise TracingRefused(_MISSING) from error


def _phases(
    result: Result, began: float, first_byte: float, ended: float, scheme: str
) -> list[tuple[str, int, dict[str, Value]]]:
    """What an attempt went through, each at the time when it was over. All in Unix seconds."""
    at = began
    events: list[tuple[str, int, dict[str, Value]]] = []
    opened = result.opened
    sent = isinstance(result, Response) or result.first_byte > 0 or result.reason in _SENT
    if opened is not None:
        for name, took in (("dns", opened.dns), ("connect", opened.connect), ("tls", opened.tls)):
            if took is not None:
                at = min(at + took, ended)
                events.append((name, _ns(at), {"dispatcher.duration_ms": round(took * 1000)}))
        # As far as it got.
        sent = sent and (opened.tls if scheme == "https" else opened.connect) is not None
    if sent:
        events.append(("send", _ns(at), {}))
        if isinstance(result, Failure) and not result.first_byte:
            return events
        # What came in one piece came when it was over.
        arrived = min(max(first_byte, at), ended) if result.first_byte else ended
        events.append(("first_byte", _ns(arrived), {"dispatcher.duration_ms": round((arrived - at) * 1000)}))
    return events


def _own_trace(id_: str) -> int:
    """Rule 2."""
    return int(_OWN_TRACE + id_[4:], 16)


def _ns(unix: float) -> int:
    return int(unix * 1e9)
