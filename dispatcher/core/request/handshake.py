"""Whether an endpoint wants to be delivered to: the abuse protection of webhooks, without the I/O.

Anybody can enter anybody's URL. So a subscription with `validate: true` is delivered to only after its
endpoint has agreed, in one of two ways:

- **CloudEvents HTTP Webhooks 1.0.2, section 4**: OPTIONS with `WebHook-Request-Origin`. The endpoint
  answers 2xx with `WebHook-Allowed-Origin` (that origin, or `*`), and perhaps with
  `WebHook-Allowed-Rate`, requests a minute, which is kept to.
- **A signed challenge**, for endpoints that know nothing of that: a `dispatcher.validation` event with
  `{"data": {"challenge": "..."}}`, signed like every other. The endpoint answers 2xx with
  `{"challenge": "..."}` or with the challenge as plain text. It stands deeper in the request than in the
  answer, so that a server that merely returns what it was sent doesn't pass.

An endpoint that answers OPTIONS with another origin has said no, and isn't asked a second way.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Final

from orjson import JSONDecodeError, dumps, loads

from dispatcher.core.event.decode import JSON_HEAD, Event
from dispatcher.core.request.build import Template, build
from dispatcher.core.request.results import Failure, HandshakeResponse, Response, Result
from dispatcher.core.text.units import MAX_RATE as MAX_RATE_PER_SECOND

VALIDATION_TYPE: Final = "dispatcher.validation"
MAX_RATE: Final = int(MAX_RATE_PER_SECOND * 60)
"""A minute; beyond it an allowed rate says nothing."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """The endpoint agrees; `rate` is what it takes in a minute, None without a limit."""

    rate: int | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """It doesn't, or its answer is none. `detail` is for people."""

    detail: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """It knows nothing of the handshake: ask it the other way."""

    detail: str


def handshake_request(parts: Template, origin: str, rate: int | None = None) -> bytes:
    """The OPTIONS request to the subscription's own URL, with its own headers. `rate` is what is asked for, a minute."""
    lines = f"WebHook-Request-Origin: {origin}\r\n"
    if rate is not None:
        lines += f"WebHook-Request-Rate: {rate}\r\n"
    return b"".join(
        (
            b"OPTIONS",
            parts.head.removeprefix(b"POST"),
            lines.encode("ascii"),
            b"Content-Length: 0",
            parts.tail,
        )
    )


def judge_handshake(result: Result, origin: str) -> Allowed | Refused | Unknown:
    """What the answer to OPTIONS means."""
    match result:
        case HandshakeResponse(status=status, allowed_origin=allowed, allowed_rate=rate):
            if not 200 <= status < 300:
                return Unknown(f"OPTIONS was answered with status {status}")
            if allowed is None:
                return Unknown("OPTIONS was answered without WebHook-Allowed-Origin")
            permitted = [name.strip().lower() for name in allowed.split(",")]
            if "*" in permitted or origin.lower() in permitted:
                return Allowed(_rate(rate))
            return Refused(f"the endpoint allows the origin {allowed[:200]!r}, and this is {origin}")
        case Response(status=status):
            return Unknown(f"OPTIONS was answered with status {status}")
        case Failure(reason=reason, detail=detail):
            return Unknown(f"OPTIONS: {reason.value}" + (f" ({detail})" if detail else ""))


def _rate(text: str | None) -> int | None:
    """Requests a minute; None for no limit, or for nothing that can be read as one."""
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > 12:
        return None
    rate = int(text)
    return rate if 0 < rate <= MAX_RATE else None


def challenge_request(parts: Template, event_id: str, challenge: str, now: int) -> bytes:
    """The signed POST with the challenge. `now` in Unix seconds."""
    document = {
        "id": event_id,
        "type": VALIDATION_TYPE,
        "created": now,
        "data": {"challenge": challenge},
    }
    event = Event(event_id, VALIDATION_TYPE, None, dumps(document), now * 1000, JSON_HEAD)
    # With the whole payload, of a thin subscription too: it would leave the challenge out.
    full = Template(parts.head, parts.tail, parts.signers, thin=False, host=parts.host, path=parts.path)
    return build(full, event, now)


def judge_challenge(result: Result, challenge: str) -> Allowed | Refused:
    """What the answer to the challenge means."""
    match result:
        case Failure(reason=reason, detail=detail):
            return Refused(f"the challenge: {reason.value}" + (f" ({detail})" if detail else ""))
        case Response(status=status, body=body):
            if not 200 <= status < 300:
                return Refused(f"the challenge was answered with status {status}")
            if _echoes(body, challenge):
                return Allowed()
            return Refused(
                'the challenge was not echoed: answer 2xx with {"challenge": "..."}, or with its text alone'
            )


def _echoes(body: bytes, challenge: str) -> bool:
    text = body.strip()
    if text.startswith(b"{"):
        try:
            document = loads(text)
        except JSONDecodeError:
            return False
        found = document.get("challenge") if isinstance(document, dict) else None
        return isinstance(found, str) and hmac.compare_digest(found.encode(), challenge.encode())
    return hmac.compare_digest(text.strip(b'"'), challenge.encode())
