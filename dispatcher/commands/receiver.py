"""A local webhook endpoint: it verifies each request and answers as it was told to. `listen` and `demo` use it.

The receiver checks signatures the way a consumer would, from the Standard Webhooks specification and the standard
library alone. The program's own signing code, checked by itself, would agree with itself whatever it did.

Rules:

1. Every request is verified and reported exactly once, before it is answered, also when it is left without an answer.
2. The answer depends on the request and its number alone, so that a run can be repeated.
3. A sender that leaves before its answer is reported once more (`on_left`): it never got what it was to be answered.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import socket
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from aiohttp import web

TOLERANCE: Final = 300
"""Seconds that `webhook-timestamp` may be off the receiver's clock, either way (the specification's advice)."""

BODY_CAP: Final = 64 * 1024 * 1024
_REMEMBERED: Final = 100_000
"""Ids whose requests are counted; beyond that the oldest is forgotten."""


class SignatureVerdict(StrEnum):
    """The result of verifying a request's signature."""

    VALID = "valid"
    MISSING = "missing"  # webhook-id, webhook-timestamp or webhook-signature isn't there
    STALE = "stale"  # signed rightly, but the timestamp is too far from now
    WRONG = "wrong"  # no signature of the list fits


class InvalidSecretError(ValueError):
    """The text is not a symmetric Standard Webhooks secret."""


def secret_key(secret: str) -> bytes:
    """Return the key inside `whsec_<base64>`."""
    encoded = secret.removeprefix("whsec_")
    try:
        key = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidSecretError("a secret is whsec_ followed by base64") from error
    if not 24 <= len(key) <= 64:
        raise InvalidSecretError(f"a secret holds 24 to 64 bytes, this one {len(key)}")
    return key


def verify(key: bytes, headers: Mapping[str, str], body: bytes, now: float) -> SignatureVerdict:
    """Judge a request as a consumer would (Standard Webhooks 1.0.0). `headers` must ignore case."""
    message_id = headers.get("webhook-id")
    timestamp = headers.get("webhook-timestamp")
    signatures = headers.get("webhook-signature")
    if not (message_id and timestamp and signatures):
        return SignatureVerdict.MISSING
    expected = expected_signature(key, message_id, timestamp, body)
    if not any(hmac.compare_digest(expected, _raw(signature)) for signature in signatures.split(" ")):
        return SignatureVerdict.WRONG
    if not (timestamp.isascii() and timestamp.isdigit() and abs(int(timestamp[:20]) - now) <= TOLERANCE):
        return SignatureVerdict.STALE
    return SignatureVerdict.VALID


def expected_signature(key: bytes, message_id: str, timestamp: str, body: bytes) -> bytes:
    """Return the `v1` signature of a request with this id, timestamp and body."""
    signed = b"%b.%b.%b" % (_raw(message_id), _raw(timestamp), body)
    return b"v1," + base64.b64encode(hmac.digest(key, signed, "sha256"))


def _raw(text: str) -> bytes:
    # aiohttp decodes header bytes that are not UTF-8 to surrogates; this gets the same bytes back.
    return text.encode("utf-8", "surrogateescape")


class ReceiverAnswer(NamedTuple):
    """The receiver's answer: after `delay` seconds send `status`, or reset the connection if it is None."""

    status: int | None = 200
    delay: float = 0.0


class Arrival(NamedTuple):
    """One request, as the endpoint saw it. `number` counts the requests with this webhook-id, from 1, and `serial` all requests."""

    id: str
    number: int
    verdict: SignatureVerdict
    answer: ReceiverAnswer
    at: float  # Unix seconds
    headers: Mapping[str, str]
    body: bytes
    method: str = "POST"
    target: str = "/"  # path and query, as they were sent
    remote: str | None = None  # the sender's address
    serial: int = 1


Behaviour = Callable[[str, int], ReceiverAnswer]
"""From the webhook-id and the number of the request with it (from 1) to the answer."""


def healthy(_id: str, _number: int) -> ReceiverAnswer:
    """Acknowledge everything at once."""
    return ReceiverAnswer()


class Receiver:
    """One endpoint on a port of its own. `on_arrival` hears of every request, `on_left` of senders that left before their answer."""

    def __init__(
        self,
        key: bytes,
        on_arrival: Callable[[Arrival], None],
        behaviour: Behaviour = healthy,
        on_left: Callable[[Arrival], None] | None = None,
    ) -> None:
        self._key = key
        self._on_arrival = on_arrival
        self._behaviour = behaviour
        self._on_left = on_left
        self._serial = 0
        self._numbers: dict[str, int] = {}
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int = 0) -> int:
        """Listen; return the port. Raises OSError when it can't be had."""
        app = web.Application(client_max_size=BODY_CAP)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        self._runner = runner
        # A site of its own would resolve port 0 where it can't be read back.
        listener = listening_socket(host, port)
        await web.SockSite(runner, listener, backlog=1024).start()
        return int(listener.getsockname()[1])

    async def stop(self) -> None:
        """Stop listening and drop what is still being answered."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        now = time.time()
        event_id = request.headers.get("webhook-id", "")
        number = self._numbers.get(event_id, 0) + 1
        self._numbers[event_id] = number
        if len(self._numbers) > _REMEMBERED:
            del self._numbers[next(iter(self._numbers))]
        verdict = verify(self._key, request.headers, body, now)
        answer = self._behaviour(event_id, number)
        self._serial += 1
        arrival = Arrival(
            event_id,
            number,
            verdict,
            answer,
            now,
            request.headers,
            body,
            request.method,
            request.raw_path,
            request.remote,
            self._serial,
        )
        self._on_arrival(arrival)
        if answer.delay > 0:
            try:
                await asyncio.sleep(answer.delay)
            except asyncio.CancelledError:
                if self._on_left is not None:
                    self._on_left(arrival)
                raise
        if answer.status is None:
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=500)  # goes nowhere
        return web.Response(status=answer.status)


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a bound socket, whose port can be read also where it was 0. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


class DeadPort:
    """A port that refuses every connection, and that nobody else can get meanwhile: bound, never listening."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.bind((host, 0))
        self.port = int(self._socket.getsockname()[1])

    def close(self) -> None:
        """Give the port back."""
        self._socket.close()
