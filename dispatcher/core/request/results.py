"""What came of one HTTP attempt: an answer of the endpoint, or the reason why there was none.

The transport makes them, `policy.decide` reads them. Reasons are a closed set, because they
become metric labels and log fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Reason(StrEnum):
    """Why an attempt got no answer."""

    TIMEOUT = "timeout"  # the total deadline passed
    CONNECT_TIMEOUT = "connect_timeout"  # no connection within the connect timeout
    CONNECT_REFUSED = "connect_refused"
    CONNECT_FAILED = "connect_failed"  # unreachable, reset while connecting, no local port...
    DNS_NOT_FOUND = "dns_not_found"
    DNS_FAILED = "dns_failed"  # the look-up itself failed or timed out
    TLS_EXPIRED = "tls_expired"
    TLS_HOSTNAME = "tls_hostname"
    TLS_UNTRUSTED = "tls_untrusted"
    TLS_FAILED = "tls_failed"  # any other failed handshake or broken TLS record
    CLOSED = "closed"  # closed or reset before the head of a response was complete
    PROTOCOL_ERROR = "protocol_error"  # what came back is not HTTP
    RESPONSE_TOO_LARGE = "response_too_large"  # the head went over its cap
    BLOCKED = "blocked"  # netguard refused the URL or every address
    PROXY_ERROR = "proxy_error"  # the deployment's own egress proxy failed
    CANCELLED = "shutdown"  # the dispatcher is stopping; the endpoint is not to blame


@dataclass(slots=True)
class Opened:
    """What opening a connection took, in seconds, as far as it got. None: not reached, or not needed."""

    dns: float | None = None
    connect: float | None = None
    tls: float | None = None


@dataclass(slots=True)
class Response:
    """The endpoint answered. `body` is the first KiB at most; header values are as sent, or None."""

    status: int
    retry_after: str | None = None
    location: str | None = None
    body: bytes = b""
    first_byte: float = field(default=0.0, compare=False)
    """When the answer began, in seconds of the loop's clock; 0: all of it came at once."""
    opened: Opened | None = field(default=None, compare=False)
    """Of the connection, if it was a new one."""
    size: int = field(default=0, compare=False)
    """Bytes of the body that were read, where those are more than `body` has; else 0."""


@dataclass(slots=True)
class HandshakeResponse(Response):
    """The answer to an OPTIONS request, with what the endpoint permits (CloudEvents HTTP Webhooks 1.0.2, 4.2)."""

    allowed_origin: str | None = None
    allowed_rate: str | None = None


@dataclass(slots=True)
class Failure:
    """The endpoint did not answer. `detail` is for people: it goes to logs, never to labels."""

    reason: Reason
    detail: str = ""
    first_byte: float = field(default=0.0, compare=False)
    """When an answer began that did not become one; 0: none did."""
    opened: Opened | None = field(default=None, compare=False)
    """Of the connection, if it was a new one, or was being opened."""


Result = Response | Failure
