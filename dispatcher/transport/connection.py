"""One connection to an endpoint: requests out, responses in. Nothing that an endpoint does can hurt.

Delivering over HTTP/1.1 takes most of this program's time, so this file is written for speed. Endpoints belong to strangers, so it is
written for suspicion. How both go together (`python -m benchmarks toggles` and `against` measure it):

- **Completion by callback.** `start` stores the exchange and writes its request; `data_received` finishes it. There is no future, task or timer
  per request. asyncio's streams and aiohttp's client cost several times as much.
- **One lazy timer per connection.** An exchange nearly always ends before its deadline, so a timer per exchange would be set only to be
  cancelled. One entry stands in the wheel. When it comes due it looks at the deadline of the exchange that is there *then*, and moves on to it. A new
  exchange adds an entry only if its deadline is earlier. Idle expiry and maximum age use the same entry.
- **One reader for all.** Nearly every response comes in one piece; one parser reads those of all connections (`WholeReader`). A
  connection gets a `ResponseReader` of its own when something of a response wasn't so plain.
- **Known bytes are not parsed again.** A response that is to the byte one of the last few gets the result of that one.
- **Header fields are read only where they matter**: a status that isn't 2xx (Retry-After, Location), the first response of a connection
  (Keep-Alive), more lines than a head may have. A Python call per field would cost more than everything else about a response. So the
  reader's parser has no callback for fields, and a second parser (`HeadFields`) goes over the same bytes.
- **Requests leave together.** A system call that finds the other side asleep also wakes it, and that costs more than the sending. So what a
  turn of the loop sends on pooled connections is written at its end, one after the other; of very much, some at a time, while the
  requests are in the CPU's caches. Until then the connection counts as idle to its endpoint.

Rules:

1. At most one exchange at a time. It leaves `_exchange` before its `done` is called, so `done` happens once whatever follows.
2. A connection is reused only if the response was parsed strictly to its end, nothing followed it, it has announced no body where none may be,
   both sides keep it alive, the whole request has left the process, and neither age nor number of requests say otherwise.
3. Bytes or an end of file on an idle connection close it. (TLS housekeeping isn't bytes.) So do bytes that come before the request
   was written: they can't be its response, and the exchange goes to a fresh connection.
4. Once a head is complete its status is the result, however the body ends. The deadline is the exception: it is over head and body.
5. A connection that has completed a response before hands the exchange back for a fresh connection when it ends before the first byte of the
   next response, or when what comes may not be the response to this request: bytes that aren't HTTP (what is left of the response before),
   408 (RFC 9110 15.5.9), and 410, which disables a subscription and so must not be somebody else's. A fresh connection never does.
6. No bytes from outside raise: parser, TLS and socket errors end in a Result.
7. `abort()` and `close()` take the connection out of its pool at once; the socket follows.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol, cast

import structlog

from dispatcher.core.request.results import Failure, HandshakeResponse, Opened, Reason, Response, Result
from dispatcher.core.retry.wheel import Entry
from dispatcher.runtime.timers import Callback, Timers
from dispatcher.transport import tls
from dispatcher.transport.base import Exchange
from dispatcher.transport.heads import FEW_BYTES, HeadFields, contradicts, keep_alive
from dispatcher.transport.limits import KEPT_BODY, MAX_FIELDS, MAX_HEAD
from dispatcher.transport.response import SLICE, ResponseReader, WholeReader

log = structlog.get_logger(__name__)

_LINGER: Final = 5.0  # seconds a closing connection may take to flush
_TOGETHER: Final = 16  # requests written one after the other; more would leave the CPU's caches meanwhile
_NEVER: Final = float("inf")


class ConnectionOwner(Protocol):
    """The pool, as its connections see it."""

    def returned(self, connection: Connection) -> None:
        """It carries nothing and may be used again."""

    def left(self, connection: Connection) -> None:
        """It is no longer a member: closed, or about to be."""

    def resend(self, exchange: Exchange) -> None:
        """Carry the exchange on a fresh connection."""


class Opening(Protocol):
    """Whoever opens a connection, told how far it is. See `dial.py`."""

    tenant: object
    """For whom: who takes turns at the gate (`tls.py`)."""
    endpoint: object
    """And where to."""

    def made(self, connection: Connection) -> None:
        """The socket is connected. Says what to do next (`use`, `secure`) before this returns, or aborts it."""

    def secured(self, connection: Connection) -> None:
        """TLS stands."""

    def failed(self, connection: Connection, failure: Failure) -> None:
        """It is closed again, before it could be used."""


class Shared:
    """What all connections of one transport have in common: clock, timers, limits, counters."""

    __slots__ = (
        "_leaving",
        "_scheduled",
        "closed",
        "dials",
        "gate",
        "idle",
        "idle_timeout",
        "loop",
        "max_age",
        "max_requests",
        "open",
        "opened",
        "resent",
        "response_cap",
        "timers",
        "whole",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timers: Timers,
        *,
        response_cap: int,
        idle_timeout: float,
        max_age: float,
        max_requests: int,
    ) -> None:
        """Sizes in bytes, times in seconds."""
        self.loop = loop
        self.timers = timers
        self.gate = tls.Gate(loop)
        self.response_cap = response_cap
        self.idle_timeout = idle_timeout
        self.max_age = max_age
        self.max_requests = max_requests
        self.open: set[Connection] = set()  # every connection that has a socket
        self.idle = 0  # of them, in their pools
        self.dials = 0  # connections being made
        self.opened = 0
        self.closed = 0
        self.resent = 0
        self.whole = WholeReader()
        self._leaving: list[Connection] = []  # those whose request is still to be written in this turn
        self._scheduled = False

    def write_soon(self, connection: Connection) -> None:
        """Have the connection write its request at the end of this turn of the loop."""
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._turn_over)
        self._leaving.append(connection)
        if len(self._leaving) >= _TOGETHER:
            self._write_all()

    def _turn_over(self) -> None:
        self._scheduled = False
        self._write_all()

    def _write_all(self) -> None:
        leaving, self._leaving = self._leaving, []
        for connection in leaving:
            connection.write_now()


# Long: an exchange is one state machine over one set of fields, and parts of it would cost every delivery a call.
class Connection:
    """A connection without TLS; `secure.py` adds it.

    An `asyncio.Protocol` in all but name: mypyc compiles no class below one of Python's. The loop asks for the methods only.
    """

    __slots__ = (
        "_armed",
        "_entry",
        "_exchange",
        "_expires",
        "_fresh",
        "_gone",
        "_idle_for",
        "_opened",
        "_opening",
        "_owner",
        "_paused",
        "_reader",
        "_responses",
        "_retire_at",
        "_shared",
        "_transport",
        "_unwritten",
    )

    _transport: asyncio.Transport

    def __init__(self, shared: Shared, owner: ConnectionOwner, opening: Opening) -> None:
        # Fields that every exchange reads come first: compiled, they are side by side in memory.
        self._shared = shared
        self._owner = owner
        self._exchange: Exchange | None = None
        self._reader: ResponseReader | None = None  # if the one for all doesn't do
        self._gone = False  # abandoned or closed: nothing that still comes from the socket matters
        self._fresh = True  # no response so far
        self._unwritten = False  # the exchange's request waits for the end of this turn
        self._responses = shared.max_requests  # how many more this connection may bring
        self._armed = _NEVER
        self._expires = _NEVER
        self._retire_at = shared.loop.time() + shared.max_age
        self._idle_for = shared.idle_timeout
        self._paused = False
        self._entry: Entry[Callback] | None = None
        self._opening: Opening | None = opening
        self._opened: Opened | None = None

    # -- The socket's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's, so nothing can be asserted.
        self._transport = cast("asyncio.Transport", transport)
        shared = self._shared
        shared.opened += 1
        if self._gone:  # lost the race, or came too late
            shared.closed += 1
            self._transport.abort()
            return
        shared.open.add(self)
        if self._opening is not None:
            self._opening.made(self)

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            self._unsolicited()
        elif self._unwritten:
            self._stale()
        else:
            self._read(exchange, data)

    def eof_received(self) -> bool:
        # Not left to the loop: it would flush the request first, which the endpoint need not read.
        self._ended(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(exc)
        self._dropped()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False

    # -- The pool's side

    @property
    def exchange(self) -> Exchange | None:
        """What it carries now."""
        return self._exchange

    def use(self, exchange: Exchange, opened: Opened | None = None) -> None:
        """Begin with the first exchange: connected, TLS established. `opened`: what that took."""
        self._opening = None
        self._opened = opened
        self._exchange = exchange
        if exchange.deadline < self._armed:
            self._arm(exchange.deadline)
        self._write(exchange.request)

    def start(self, exchange: Exchange) -> None:
        """Carry the exchange. The connection is idle and out of the pool's idle list."""
        self._exchange = exchange
        if exchange.deadline < self._armed:
            self._arm(exchange.deadline)
        self._unwritten = True
        self._shared.write_soon(self)

    def write_now(self) -> None:
        """Write what `start` was given, unless it was given up or taken elsewhere meanwhile."""
        exchange = self._exchange
        if exchange is None or not self._unwritten:
            return
        self._unwritten = False
        try:
            self._write(exchange.request)
        except Exception as error:  # noqa: BLE001 - the others' requests wait behind this one
            # Not at once: this may be inside somebody's `send`, from which no result may come.
            self._shared.loop.call_soon(self._ended, error)

    def cancel(self, detail: str) -> None:
        """Give up what it carries, and the connection with it."""
        self._fail(Failure(Reason.CANCELLED, detail))

    def prefetch(self) -> int:
        """Bring what is used first into the CPU's caches (`delivery/sending.py`)."""
        return self._transport.get_write_buffer_size()

    def close(self) -> None:
        """Close in the order of the protocol. Only for an idle connection."""
        if self._leave():
            self._say_goodbye()
            self._transport.close()
            # Whoever reads nothing could keep the last bytes, and with them the socket, for ever.
            self._arm(self._shared.loop.time() + _LINGER)

    def abort(self) -> None:
        """Close at once; what is unsent stays unsent."""
        self._leave()
        if self in self._shared.open:
            self._transport.abort()
            self._dropped()

    # -- Inside

    def _leave(self) -> bool:
        """Get out of the pool; False when that was done before."""
        if self._gone:
            return False
        self._gone = True
        self._opening = None
        if self._reader is not None:
            self._reader.release()
            self._reader = None
        if self._entry is not None:
            self._shared.timers.cancel(self._entry)
            self._entry = None
            self._armed = _NEVER
        self._owner.left(self)
        return True

    def _dropped(self) -> None:
        """The socket is gone, or will be without our doing."""
        shared = self._shared
        if self in shared.open:
            shared.open.discard(self)
            shared.closed += 1
        if self._entry is not None:
            shared.timers.cancel(self._entry)
            self._entry = None

    def _write(self, data: bytes) -> None:
        self._transport.write(data)

    def _unsent_bytes(self) -> bool:
        return self._transport.get_write_buffer_size() > 0

    def _say_goodbye(self) -> None:
        """TLS has something to say before the end."""

    def _unsolicited(self) -> None:
        if not self._gone:
            self.abort()

    def _read(self, exchange: Exchange, data: bytes) -> None:
        """Read what came for the exchange; report when there is a result."""
        reader = self._reader
        if reader is None:
            whole = self._shared.whole
            if not self._fresh:
                known = whole.known.get(data)
                if known is not None:
                    self._hand_over(exchange, known, keep=True)
                    return
            if len(data) <= SLICE and whole.read(data):
                self._finish(exchange, None, whole.status, data, whole.body, keep=whole.keep)
                return
            # This endpoint's responses come in pieces, or aren't plain otherwise: from now on, a reader of its own.
            reader = self._reader = ResponseReader(self._shared.response_cap)
        reader.feed(data)
        if reader.failure is not None:
            if reader.foreign and not self._fresh:
                self._stale()
            else:
                self._fail(reader.failure)
        elif reader.complete:
            self._finish(exchange, reader, reader.status, reader.head, reader.body, keep=reader.keep)
        elif not reader.first_byte:
            reader.first_byte = self._shared.loop.time()

    def _finish(
        self,
        exchange: Exchange,
        reader: ResponseReader | None,
        status: int,
        head: bytes,
        body: bytes,
        *,
        keep: bool,
    ) -> None:
        """The response is complete: hand it over, and the connection back."""
        result: Result
        result = response = Response(status, None, None, body)
        interim = 0
        lenient = False
        if reader is not None:
            interim = reader.interim
            lenient = reader.lenient
            response.first_byte = reader.first_byte
            if reader.body_size > KEPT_BODY:
                response.size = reader.body_size
            if reader.last:
                self._responses = 1
        if keep and (status in (204, 304) or interim) and contradicts(head, status, interim):
            keep = False
        first = self._fresh
        if (
            first
            or not 200 <= status < 300
            or (len(head) >= FEW_BYTES and head.count(b"\n", 0, MAX_HEAD) > MAX_FIELDS)
        ):
            fields = HeadFields(head, lenient=lenient)
            if fields.count > MAX_FIELDS:
                detail = f"the response head has more than {MAX_FIELDS} fields"
                self._fail(Failure(Reason.RESPONSE_TOO_LARGE, detail))
                return
            if not first and (status == 410 or (status == 408 and not keep)):
                # Rule 5. With 408 the server gave the idle connection up just as the request set out.
                self._stale()
                return
            if exchange.request.startswith(b"OPTIONS "):
                # Always the first of its connection (`Transport.ask`), so nobody else pays for the question.
                response = HandshakeResponse(
                    status,
                    body=body,
                    allowed_origin=fields.allowed_origin,
                    allowed_rate=fields.allowed_rate,
                )
            response.retry_after = fields.retry_after
            response.location = fields.location
            if first:
                response.opened = self._opened
            result = self._result(response)
            if fields.keep_alive:
                keep = self._granted(fields.keep_alive) and keep
        elif keep and reader is None:
            self._shared.whole.remember(head, response)
        self._fresh = False
        if reader is not None:
            reader.reset()
        self._hand_over(exchange, result, keep=keep)

    def _hand_over(self, exchange: Exchange, result: Result, *, keep: bool) -> None:
        """Tell the exchange; the connection goes back if `keep` and nothing else is against it."""
        self._responses = left = self._responses - 1
        self._exchange = None
        if keep and left > 0 and not self._gone and not self._unsent_bytes():
            self._owner.returned(self)
            report(exchange, result)
            if self.exchange is None and not self._gone:  # done() may send
                self._rest()
        else:
            if keep and not self._gone and not self._unsent_bytes():
                self.close()
            else:
                self.abort()
            report(exchange, result)

    def _result(self, response: Response) -> Result:
        """What a response that isn't 2xx (or is the first) means; a proxy's own isn't the endpoint's."""
        return response

    def _granted(self, value: bytes) -> bool:
        """Take what Keep-Alive grants; False when that is nothing."""
        seconds, requests = keep_alive(value)
        self._idle_for = min(self._shared.idle_timeout, seconds)
        if requests is not None:
            self._responses = min(self._responses, requests + 1)
        return seconds > 0

    def _rest(self) -> None:
        """Be idle, for as long as that is safe."""
        self._expires = expires = min(self._shared.loop.time() + self._idle_for, self._retire_at)
        if expires < self._armed:
            self._arm(expires)

    def _arm(self, due: float) -> None:
        timers = self._shared.timers
        if self._entry is not None:
            timers.cancel(self._entry)
        self._armed = due
        self._entry = timers.at(due, self._on_timer)

    def _on_timer(self) -> None:
        """Look at what is there now, which need not be what this was armed for."""
        self._entry = None
        self._armed = _NEVER
        if self._gone:
            self.abort()
            return
        now = self._shared.loop.time()
        exchange = self._exchange
        if exchange is None:
            due = self._expires
            if due <= now:
                self.close()
                return
        else:
            due = exchange.deadline
            if due <= now:
                self._fail(Failure(Reason.TIMEOUT, self._waiting_for()))
                return
            if self._retire_at <= now:
                self._responses = 1
        self._arm(due)

    def _waiting_for(self) -> str:
        reader = self._reader
        if reader is not None and reader.status:
            return f"the deadline passed in the response body (status {reader.status})"
        if reader is not None and reader.head:
            return "the deadline passed in the response head"
        if self._unsent_bytes():
            return "the deadline passed while the request was being sent"
        return "the deadline passed before a response came"

    def _ended(self, error: Exception | None) -> None:
        """The endpoint has closed, or the network did."""
        exchange, reader = self._exchange, self._reader
        if (opening := self._opening) is not None:
            self._opening_failed(opening, error)
        elif exchange is None:
            self.abort()
        elif reader is not None and reader.status >= 200:
            self._finish(exchange, reader, reader.status, reader.head, reader.body, keep=False)
        elif (reader is None or not reader.head) and not self._fresh:
            self._stale()
        else:
            begun = reader is not None and reader.head
            where = "in the middle of the response head" if begun else "before a response came"
            how = f"connection lost ({error})" if error is not None else "the endpoint closed the connection"
            self._fail(Failure(Reason.CLOSED, f"{how} {where}"))

    def _opening_failed(self, opening: Opening, error: Exception | None) -> None:
        self.abort()
        how = f": {error}" if error is not None else ""
        opening.failed(self, Failure(Reason.CLOSED, f"the endpoint closed the new connection{how}"))

    def _stale(self) -> None:
        """What comes, or doesn't, is no answer to this request: it goes to a fresh connection (rule 5)."""
        exchange = self._exchange
        self._exchange = None
        if exchange is not None:
            # Before this one leaves: a pool that its last connection has left is forgotten.
            self._shared.resent += 1
            self._owner.resend(exchange)
        self.abort()

    def _fail(self, failure: Failure) -> None:
        exchange, reader = self._exchange, self._reader
        self._exchange = None
        self.abort()
        if exchange is not None:
            if reader is not None:
                failure.first_byte = reader.first_byte
            if self._fresh:
                failure.opened = self._opened
            report(exchange, failure)


def report(exchange: Exchange, result: Result) -> None:
    """Tell the exchange."""
    try:
        exchange.done(result)
    except Exception:
        # The caller's mistake; it must not take a connection, and with it other exchanges, down.
        log.exception("taking the result of an attempt failed")
