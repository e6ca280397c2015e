"""Between the API's sockets and aiohttp: connections that are too many, and heads that are too slow, get no further.

aiohttp bounds neither. Each connection has a `ApiConnection`, an asyncio protocol that passes everything on to aiohttp's own, and tells the `Admission` what it
sees. The guard is told by the middleware (`frame.py`) where a request begins and ends.

Rules:

1. A gate that was refused never has a handler of aiohttp's.
2. `_reading` has the gates of which a head has begun and isn't over, with their deadlines; `_idle` those without a request, longest first.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final, cast

import orjson
import structlog
from aiohttp import StreamReader, web

from dispatcher.api.limits import HEAD, ConnectionLimit, RequestLimit, TrustedProxies
from dispatcher.api.problems import MEDIA_TYPE, Kind, Problem
from dispatcher.control.access import counted_as

log = structlog.get_logger(__name__)

_SWEEP: Final = 1.0  # seconds between two looks at heads that are being read
_TOLD: Final = 60.0  # seconds between two warnings of one kind
RETRY_AFTER: Final = 5
"""Seconds that a caller whose connection was refused is told to wait."""

REFUSALS: Final = (
    "connections",
    "connections_of_address",
    "slow_head",
    "malformed",
    "requests_of_address",
    "requests_of_key",
)
"""Why a caller was refused: labels of `api_refused_total`."""


class ApiConnection(asyncio.Protocol):
    """One connection to the API."""

    def __init__(self, guard: Admission, handler: Callable[[], asyncio.Protocol]) -> None:
        self._guard = guard
        self._make = handler
        self._handler: asyncio.Protocol | None = None
        self.transport: asyncio.Transport | None = None
        self.address: str | None = None  # what it is counted as; None for a trusted proxy
        self.counted = False
        self.busy = 0  # requests under way
        self.left: StreamReader | None = None  # a body whose request was answered before it was all there

    @property
    def handler(self) -> asyncio.Protocol | None:
        """Aiohttp's protocol."""
        return self._handler

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's, so nothing can be asserted.
        self.transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        why = self._guard.admit(self, str(peer[0]) if peer else "")
        if why is not None:
            self.transport.write(_refusal(why))
            self.transport.close()
            return
        self._handler = self._make()
        self._guard.opened(self)
        self._handler.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._handler is not None:
            self._guard.heard(self, len(data))
            self._handler.data_received(data)

    def eof_received(self) -> bool | None:
        return None if self._handler is None else self._handler.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._guard.lost(self)
        if self._handler is not None:
            self._handler.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._handler is not None:
            self._handler.pause_writing()

    def resume_writing(self) -> None:
        if self._handler is not None:
            self._handler.resume_writing()


class Admission:
    """Admits connections and requests to the API."""

    def __init__(
        self,
        connections: ConnectionLimit,
        addresses: RequestLimit,
        keys: RequestLimit,
        proxies: TrustedProxies,
    ) -> None:
        self.proxies = proxies
        self.refused: Counter[str] = Counter(dict.fromkeys(REFUSALS, 0))
        self._connections = connections
        self._addresses = addresses
        self._keys = keys
        self._loop = asyncio.get_running_loop()
        self._gates: dict[asyncio.Protocol, ApiConnection] = {}  # by aiohttp's protocol
        self._idle: dict[ApiConnection, None] = {}
        self._reading: dict[ApiConnection, float] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._told: dict[str, float] = {}

    def protocol(self, handler: Callable[[], asyncio.Protocol]) -> Callable[[], ApiConnection]:
        """What a server makes for each connection; `handler` makes aiohttp's."""
        return lambda: ApiConnection(self, handler)

    def close(self) -> None:
        """Look at nothing any more."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    # What gates ask and tell.

    def admit(self, gate: ApiConnection, peer: str) -> str | None:
        """Count the connection, or say which bound refuses it."""
        address = None if peer in self.proxies else counted_as(peer)
        limit = self._connections
        if address is not None and limit.full_for(address):
            self._refuse("connections_of_address", address=address, limit=limit.of_one)
            return f"this address has {limit.of_one} connections, which is the most (http.max_connections_per_address)"
        if limit.full and not self._make_room():
            self._refuse("connections", address=peer, limit=limit.total)
            return f"there are {limit.total} connections, which is the most (http.max_connections)"
        limit.opened(address)
        gate.address, gate.counted = address, True
        return None

    def _make_room(self) -> bool:
        """Close the connection that has been without a request for longest."""
        gate = next(iter(self._idle), None)
        if gate is None:
            return False
        self.lost(gate)
        if gate.transport is not None:
            gate.transport.abort()
        return True

    def opened(self, gate: ApiConnection) -> None:
        """It has a handler."""
        if gate.handler is not None:
            self._gates[gate.handler] = gate
            self._idle[gate] = None

    def heard(self, gate: ApiConnection, size: int) -> None:
        """So many bytes have come."""
        if gate.busy:
            return
        if gate.left is not None:
            if not gate.left.is_eof():
                return  # no head: aiohttp reads it to its end, for ten seconds at the most
            gate.left = None
        now = self._loop.time()
        self._reading[gate] = HEAD.deadline(self._reading.get(gate, now + HEAD.grace), size, now)
        if self._sweep is None:
            self._sweep = self._loop.call_later(_SWEEP, self._look)

    def unreadable(self, address: str | None) -> None:
        """No request comes of what was sent."""
        self._refuse("malformed", address=address)

    def lost(self, gate: ApiConnection) -> None:
        """It is closed."""
        self._idle.pop(gate, None)
        self._reading.pop(gate, None)
        if gate.handler is not None:
            self._gates.pop(gate.handler, None)
        if gate.counted:
            gate.counted = False
            self._connections.closed(gate.address)

    def _look(self) -> None:
        """Give up heads that come too slowly."""
        self._sweep = None
        now = self._loop.time()
        for gate in [gate for gate, deadline in self._reading.items() if deadline <= now]:
            del self._reading[gate]
            self._refuse("slow_head", address=gate.address)
            if gate.transport is not None:
                gate.transport.abort()
        if self._reading:
            self._sweep = self._loop.call_later(_SWEEP, self._look)

    # What the middleware tells.

    def began(self, request: web.BaseRequest) -> None:
        """The head of a request is there."""
        gate = self._gates.get(request.protocol)
        if gate is not None:
            gate.busy += 1
            self._reading.pop(gate, None)
            self._idle.pop(gate, None)

    def ended(self, request: web.BaseRequest) -> None:
        """Its answer is made."""
        gate = self._gates.get(request.protocol)
        if gate is not None:
            gate.busy -= 1
            gate.left = None if request.content.is_eof() else request.content
            if not gate.busy:
                self._idle[gate] = None

    def caller(self, request: web.BaseRequest) -> str:
        """The address of whoever sent the request."""
        return self.proxies.caller(request.remote or "", request.headers.getall("X-Forwarded-For", []))

    def count_request(self, caller: str) -> None:
        """Raise Problem when the address has sent too many."""
        self._count(
            self._addresses, counted_as(caller), "requests_of_address", "http.requests_per_second", caller
        )

    def count_key(self, key: str) -> None:
        """Raise Problem when too many were sent with this key, of which there is an id and a name."""
        self._count(self._keys, key, "requests_of_key", "api.requests_per_second", key)

    def _count(self, limit: RequestLimit, subject: str, why: str, setting: str, shown: str) -> None:
        wait = limit.take(subject)
        if wait:
            self._refuse(why, subject=shown, limit=limit.rate)
            raise Problem(
                Kind.TOO_MANY_REQUESTS,
                f"more than {limit.rate:g} requests a second ({setting}): send it again later",
                headers={"Retry-After": str(max(1, -int(-wait // 1)))},
            )

    def _refuse(self, why: str, **about: object) -> None:
        self.refused[why] += 1
        now = self._loop.time()
        if now >= self._told.get(why, now):
            self._told[why] = now + _TOLD
            log.warning("callers of the API are refused", why=why, **about)


GUARD: Final = web.AppKey("guard", Admission)
"""Where an application has its guard."""
REQUEST_ID: Final = web.RequestKey("request_id", str)
CALLER: Final = web.RequestKey("caller", str)
"""The address of the caller, behind trusted proxies too."""


def _refusal(detail: str) -> bytes:
    """The answer to a connection that is not admitted."""
    problem = Problem(Kind.UNAVAILABLE, detail)
    body = orjson.dumps(problem.document(""))
    return (
        f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n"
        f"Retry-After: {RETRY_AFTER}\r\nConnection: close\r\n\r\n"
    ).encode() + body
