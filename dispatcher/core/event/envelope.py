"""The fields that a JSON event is read for. By themselves, because they describe themselves to msgspec at run time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

MISSING: Final = msgspec.UNSET
NotJson: Final = msgspec.DecodeError
NotAnObject: Final = msgspec.ValidationError


class Envelope(msgspec.Struct, gc=False):
    """Of any type each, so that a wrong one is named by us, and not by the library."""

    type: Any = MISSING
    id: Any = None
    tenant: Any = None
    created: Any = None
    timestamp: Any = None


decode_envelope: Final[Callable[[bytes], Envelope]] = msgspec.json.Decoder(Envelope).decode

fields_of: Final[Callable[[Envelope], tuple[Any, Any, Any, Any, Any]]] = msgspec.structs.astuple
"""All fields at once, in their order: what is compiled looks each of them up by its name otherwise."""


class CloudEvent(msgspec.Struct, gc=False):
    """Of a structured CloudEvent."""

    specversion: Any = None
    id: Any = None
    source: Any = None
    type: Any = None
    tenant: Any = None
    time: Any = None


decode_cloud_event: Final[Callable[[bytes], CloudEvent]] = msgspec.json.Decoder(CloudEvent).decode


class TraceExtension(msgspec.Struct, gc=False):
    """What CloudEvents' extension for distributed tracing adds to one."""

    traceparent: Any = None
    tracestate: Any = None


decode_trace_extension: Final[Callable[[bytes], TraceExtension]] = msgspec.json.Decoder(TraceExtension).decode
