"""Whose trace a delivery belongs to, and whether it is traced at all.

A producer's trace context (W3C Trace Context) comes with the event: as header lines in its head, or as the attributes of CloudEvents' extension
for distributed tracing, which a binary event has in its head (`ce-traceparent`) and a structured one in its JSON. The header counts where
both are there: it is the nearer one, while the extension names where the trace began.

Rules:

1. Whether a delivery is traced follows from what never changes: the flags of its producer, or the trace's id, or where its event stands. So
   nothing is remembered of a delivery that isn't traced, no object is made for it, and every attempt on every replica decides alike.
2. Where an event stands decides by steps of the golden ratio over its offset: of a hundred events in a row, 1 % are one or two, and never ten. All deliveries of
   an event are decided alike.
3. What can't be read is no trace context, as in `core/event/decode.py`.
"""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from dispatcher.core.event.decode import JSON_HEAD, Event, valid_traceparent, valid_tracestate
from dispatcher.core.event.envelope import NotJson, decode_trace_extension

_LINE: Final = b"traceparent: "
_STATE: Final = b"tracestate: "
_EXTENSION: Final = b"ce-traceparent: "
_EXTENSION_STATE: Final = b"ce-tracestate: "
_STRUCTURED: Final = b"content-type: application/cloudevents+json"
_MEMBER: Final = b'"traceparent"'

# `00-<32 digits>-<16 digits>-<2 digits>`, and whatever later versions add.
# Compiled code takes an object that is a slice for a number, so these are bounds.
_TRACE_ID: Final = 3
_LOW_HALF: Final = 19  # of the trace's id: what OpenTelemetry's samplers go by
_TRACE_ID_END: Final = 35
_SPAN_ID: Final = 36
_SPAN_ID_END: Final = 52
_FLAGS: Final = 54  # the digit with the flag "sampled"
_SAMPLED: Final = frozenset(b"13579bdf")

_OFFSETS: Final = 0x3FFFFFF
# Below 2^30, where compiled code multiplies in a register.
_ALL: Final = 0x40000000
_STEP: Final = 0x278DDE6D  # of it, divided by the golden ratio
_STEP_OF_PARTITIONS: Final = 0x1A827999  # of it, times the square root of 2
_ALL_IDS: Final = 0x10000000000000000


class TraceContext(NamedTuple):
    """A span of the producer."""

    trace_id: int
    span_id: int
    state: str | None
    """What tracing systems have written beside it (`tracestate`)."""


class DeliveryTrace:
    """What is kept of a delivery that is traced while it is in memory."""

    __slots__ = (
        "attempt_span",
        "attempts",
        "began",
        "delivery_id",
        "parent",
        "remote",
        "span",
        "state",
        "trace_id",
    )

    def __init__(
        self,
        delivery_id: str,
        trace_id: int,
        span: int,
        parent: int | None,
        began: float,
        state: str | None,
        *,
        remote: bool,
    ) -> None:
        """`span` is the id of the delivery's span; `parent`, `remote`: the span above it, and whether that is another process's. `began` in Unix seconds."""
        self.delivery_id = delivery_id
        self.trace_id = trace_id
        self.span = span
        self.parent = parent
        self.remote = remote
        self.state = state
        self.began = began
        self.attempts = 0  # that were made since
        self.attempt_span = 0  # the id of the next attempt's span, where it is known already


class Sampler:
    """Which deliveries are traced: a few hundred instructions for each."""

    __slots__ = ("_bound", "_bound_of_ids", "_by_parent")

    def __init__(self, ratio: float, *, by_parent: bool) -> None:
        """`by_parent`: the producer's flag decides where there is one, and `ratio` only elsewhere."""
        self._bound = round(ratio * _ALL)
        self._bound_of_ids = round(ratio * _ALL_IDS)
        self._by_parent = by_parent

    def samples(self, event: Event, partition: int, offset: int) -> bool:
        """Whether the deliveries of an event that stands there are traced."""
        if event.head is not JSON_HEAD:
            parent = traceparent_of(event)
            if parent is not None:
                if self._by_parent:
                    return parent[_FLAGS] in _SAMPLED
                return int(parent[_LOW_HALF:_TRACE_ID_END], 16) < self._bound_of_ids
        place = (offset & _OFFSETS) * _STEP + (partition & _OFFSETS) * _STEP_OF_PARTITIONS
        return place & (_ALL - 1) < self._bound


def traceparent_of(event: Event) -> bytes | None:
    """The event's `traceparent`, as it came; None where it brought none."""
    head = event.head
    if head is JSON_HEAD:
        return None
    found = _line(head, _LINE)
    if found is not None:
        return found
    found = _line(head, _EXTENSION)
    if found is not None:
        return found if valid_traceparent(found) else None
    if head[: len(_STRUCTURED)].lower() == _STRUCTURED and _MEMBER in event.body:
        return _extension(event.body)[0]
    return None


def context_of(event: Event) -> TraceContext | None:
    """The span of the producer that the event came from."""
    parent = traceparent_of(event)
    if parent is None:
        return None
    return TraceContext(
        int(parent[_TRACE_ID:_TRACE_ID_END], 16), int(parent[_SPAN_ID:_SPAN_ID_END], 16), _state_of(event)
    )


def _state_of(event: Event) -> str | None:
    head = event.head
    if _line(head, _LINE) is not None:
        state = _line(head, _STATE)
    elif _line(head, _EXTENSION) is not None:
        written = _line(head, _EXTENSION_STATE)
        state = None if written is None else unquote_to_bytes(written)
    else:
        state = _extension(event.body)[1]
    return None if state is None or not valid_tracestate(state) else state.decode()


def _line(head: bytes, name: bytes) -> bytes | None:
    """The value of a header line."""
    if head.startswith(name):
        start = len(name)
    else:
        at = head.find(b"\r\n" + name)
        if at < 0:
            return None
        start = at + 2 + len(name)
    return head[start : head.index(b"\r\n", start)]


def _extension(body: bytes) -> tuple[bytes | None, bytes | None]:
    """The extension's attributes in a structured CloudEvent."""
    try:
        document = decode_trace_extension(body)
    except (NotJson, UnicodeDecodeError, RecursionError):
        return None, None
    parent, state = document.traceparent, document.tracestate
    if not isinstance(parent, str) or not parent.isascii() or not valid_traceparent(parent.encode()):
        return None, None
    return parent.encode(), state.encode() if isinstance(state, str) and state.isascii() else None
