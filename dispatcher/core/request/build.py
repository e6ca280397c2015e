"""The delivered request, as the bytes that go onto the wire.

What is constant for a subscription is rendered once, at its first delivery (a million subscriptions
that are never matched stay small); what is constant for an event was rendered when it was decoded.
A request is then one join of ready blocks around a signature, and the transport writes one buffer.

::

    POST <target> HTTP/1.1                     Template.head
    Host, User-Agent
    Content-Type, ce-*, traceparent...         Event.head
    webhook-event-type, webhook-event-time     here
    webhook-id, webhook-timestamp              here
    webhook-signature [x-hub-signature-256]    Signers
    Content-Length                             here
    the subscription's own headers             Template.tail

    body

Nobody can end a line early or say a thing twice: the target comes from `netguard`, the event's
lines from `events`, the signature is base64, and the subscription's own headers pass
`check_header`, which also refuses every name that the dispatcher itself sets or that changes how
the message is framed.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterable
from typing import Final

from orjson import dumps

from dispatcher.__about__ import __version__
from dispatcher.core.event.decode import JSON_HEAD, Event, wire_text
from dispatcher.core.request.signing import PADS, Signers, v1_line
from dispatcher.core.request.urls import Target
from dispatcher.core.text.times import LAST_MS, rfc3339_ascii, rfc3339_parts

USER_AGENT: Final = f"dispatcher/{__version__}"
MAX_OWN_HEADERS: Final = 32
MAX_OWN_HEADER_VALUE: Final = 4096

# Hop-by-hop and framing (RFC 9110 7.6.1, RFC 9112), and what the dispatcher says itself.
_REFUSED: Final = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "x-hub-signature-256",
    }
)
_REFUSED_PREFIXES: Final = ("webhook-", "ce-", "proxy-")

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}", re.ASCII)
_FOLDED = re.compile(r"[^a-z0-9]", re.ASCII)
_VALUE = re.compile(r"[!-~](?:[\t -~]*[!-~])?", re.ASCII)
_BEARER = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)
_TARGET = re.compile(r"/[!-~]*|https?://[!-~]+", re.ASCII)
_REPLAY = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)

_PATH_CAP: Final = 1024
_TYPES_KEPT: Final = 4096
_TRACEPARENT: Final = b"traceparent: "
_TRACESTATE: Final = b"tracestate: "
_END: Final = b"\r\n\r\n"  # one for all without headers of their own


class Template:
    """What is the same in every request of one subscription. Made by `template`; the repr shows no header."""

    __slots__ = ("host", "padded", "path", "ready", "signers", "tail", "thin")

    def __init__(
        self, head: bytes, tail: bytes, signers: Signers, *, thin: bool, host: str, path: str
    ) -> None:
        """`host` and `path` are what records say of the URL."""
        pads = signers.pads()
        # What every request needs is one piece of memory: of 100,000 subscriptions in turns nobody's is in the cache, nor
        # is where it lies.
        self.ready = pads + head
        self.padded = len(pads) > 0
        self.thin = thin
        self.tail = tail
        self.signers = signers
        self.host = host
        self.path = path

    @property
    def head(self) -> bytes:
        """The request line and the first header fields."""
        return self.ready[PADS:] if self.padded else self.ready

    def prefetch(self) -> int:
        """Bring what is used first into the CPU's caches (`delivery/sending.py`)."""
        return len(self.ready)


class _Second:
    """The time that was signed last: thousands of requests are built in a second."""

    __slots__ = ("number", "text")

    def __init__(self) -> None:
        self.number = -1
        self.text = b""


_signed: Final = _Second()
_type_lines: Final[
    dict[str, bytes]
] = {}  # the types that were sent last; compiled, a third of what `lru_cache` takes


def template(target: Target, headers: Iterable[tuple[str, str]], signers: Signers, *, thin: bool) -> Template:
    """Render the constant parts. `headers` are the subscription's own; raises ValueError for a refused one."""
    if not _TARGET.fullmatch(target.target) or not _VALUE.fullmatch(target.host_header):
        raise ValueError("the URL can't be written into a request")
    own = ""
    for name, value in headers:
        check_header(name, value, folded=False)
        own += f"{name}: {value}\r\n"
    tail = f"\r\n{own}\r\n".encode("ascii") if own else _END
    head = f"POST {target.target} HTTP/1.1\r\nHost: {target.host_header}\r\nUser-Agent: {USER_AGENT}\r\n"
    host, path = target.origin.host, path_of(target.target)
    return Template(head.encode("ascii"), tail, signers, thin=thin, host=host, path=path)


def path_of(target: str) -> str:
    """What records say of a URL's path and query: the path alone, since a query may be a secret; its beginning, where it is long."""
    return target.partition("?")[0][:_PATH_CAP]


def build(parts: Template, event: Event, now: int) -> bytes:
    """The whole request of one attempt. `parts` are the subscription's, `now` is the Unix time in seconds that the receiver will check."""
    if parts.thin:
        body = _thin_body(event, now)
        head = _thin_head(event.head)
    else:
        body = event.body
        head = event.head
    event_id = event.wire_id
    if event_id is None:
        event_id = event.id.encode("ascii")
    lines = event.lines
    if lines is None:
        lines = event.lines = _lines(event.type, event.occurred_ms)
    if now != _signed.number:
        _signed.number, _signed.text = now, b"%d" % now
    timestamp = _signed.text
    first = ready = parts.ready
    if parts.padded:
        first = ready[PADS:]
        signature = v1_line(ready, event_id, timestamp, body)
    else:
        signature = parts.signers.header_lines(event_id, timestamp, body)
    return b"".join(
        (
            first,
            head,
            lines,
            event_id,
            b"\r\nwebhook-timestamp: ",
            timestamp,
            b"\r\n",
            signature,
            b"Content-Length: ",
            b"%d" % len(body),
            parts.tail,
            body,
        )
    )


def with_replay(request: bytes, replay: str) -> bytes:
    """The same request with the header that names the replay it belongs to. What is signed stays as it is. Raises ValueError."""
    if not _REPLAY.fullmatch(replay):
        raise ValueError("the id of the replay can't be written into a request")
    end = request.index(b"\r\n\r\n")
    return b"%b\r\nwebhook-replay: %b%b" % (request[:end], replay.encode("ascii"), request[end:])


def with_traceparent(request: bytes, traceparent: bytes) -> bytes:
    """The same request as part of another span. A `tracestate` stays: it belongs to the trace."""
    end = request.index(_END)
    lines = [line for line in request[:end].split(b"\r\n") if not line.startswith(_TRACEPARENT)]
    return b"%b\r\n%b%b%b" % (b"\r\n".join(lines), _TRACEPARENT, traceparent, request[end:])


def without_trace(request: bytes) -> bytes:
    """The same request without a trace context. What CloudEvents has for an attribute (`ce-traceparent`) is part of the event, and stays."""
    end = request.index(_END)
    if request.find(b"\r\n" + _TRACEPARENT, 0, end) < 0:
        return request
    lines = [
        line for line in request[:end].split(b"\r\n") if not line.startswith((_TRACEPARENT, _TRACESTATE))
    ]
    return b"\r\n".join(lines) + request[end:]


def retarget(request: bytes, target: str) -> bytes:
    """The same request for another target on the same host: a redirect's, or a proxy's absolute form."""
    if not _TARGET.fullmatch(target):
        raise ValueError("the target can't be written into a request")
    return b"POST %b%b" % (target.encode("ascii"), request[request.index(b" HTTP/1.1\r\n") :])


def check_header(name: str, value: str, *, folded: bool = True) -> None:
    """Raise ValueError if a subscription may not have this header of its own. Values are not quoted.

    Without `folded` only for what the name is, not for what some server behind the endpoint may take it for.
    """
    if not _NAME.fullmatch(name):
        raise ValueError("a header name has only letters, digits and !#$%&'*+-.^_`|~, at most 128 of them")
    lower = name.lower()
    # Gateways, CGI and the frameworks behind them write some of these characters for others: `Webhook_Id` arrives as `webhook-id`.
    read = _FOLDED.sub("-", lower) if folded else lower
    if read in _REFUSED or read.startswith(_REFUSED_PREFIXES):
        same = "" if read == lower else f", as {read}, which some servers take {name} for"
        raise ValueError(
            f"{name} is set by the dispatcher itself, or is meaningful to one connection only{same}"
        )
    if len(value) > MAX_OWN_HEADER_VALUE:
        raise ValueError(f"the value of {name} is longer than {MAX_OWN_HEADER_VALUE} characters")
    if not _VALUE.fullmatch(value):
        raise ValueError(
            f"the value of {name} must be visible ASCII, with spaces and tabs only between other characters"
        )
    if lower == "authorization":
        _check_authorization(value)


def _check_authorization(value: str) -> None:
    scheme, _, credentials = value.partition(" ")
    match scheme.lower():
        case "basic":
            try:
                if b":" in b64decode(credentials, validate=True):
                    return
            except Base64Error:
                pass
            raise ValueError("Authorization: Basic is followed by the base64 of user:password")
        case "bearer":
            if _BEARER.fullmatch(credentials):
                return
            raise ValueError("Authorization: Bearer is followed by a token (RFC 6750)")
        case _:
            raise ValueError("Authorization must be Basic or Bearer")


def _type_line(type: str) -> bytes:  # noqa: A002 - the field's name
    if len(_type_lines) >= _TYPES_KEPT:
        _type_lines.clear()
    line = _type_lines[type] = b"webhook-event-type: %b\r\n" % wire_text(type)
    return line


def _lines(type: str, moment: int) -> bytes:  # noqa: A002 - the field's name
    """The type, the time (Unix milliseconds, where anybody can write it), and the name of the field that follows."""
    first = _type_lines.get(type)
    if first is None:
        first = _type_line(type)
    if not 0 <= moment <= LAST_MS:  # Kafka knows records without a timestamp (-1)
        return first + b"webhook-id: "
    minute, second, millisecond = rfc3339_parts(moment)
    return b"".join((first, b"webhook-event-time: ", minute, second, millisecond, b"\r\nwebhook-id: "))


def _thin_body(event: Event, now: int) -> bytes:
    moment = event.occurred_ms
    if not 0 <= moment <= LAST_MS:  # Kafka knows records without a timestamp (-1)
        moment = now * 1000
    return dumps({"id": event.id, "type": event.type, "timestamp": rfc3339_ascii(moment).decode()})


def _thin_head(head: bytes) -> bytes:
    """The trace goes along; content type and attributes describe a body that isn't sent."""
    if head is JSON_HEAD:
        return head
    lines = head.splitlines(keepends=True)
    return JSON_HEAD + b"".join([line for line in lines if line.startswith((_TRACEPARENT, _TRACESTATE))])
