"""A connection with TLS: `ssl.MemoryBIO` stands between the socket and the reader.

TLS runs inside the protocol rather than in the loop (`create_connection(ssl=...)`): that costs about half as much per request, and tells apart what
matters here: close_notify from data, a failed handshake from a closed connection, what is encrypted from what is sent.

Rules, beside those of `connection.py`:

1. Everything that has come is decrypted before it is read, so that what follows a response in the same segment is seen before the connection is
   reused.
2. Whatever OpenSSL wants to say (tickets, key updates, alerts) is flushed after every step.
3. Handshakes go through the gate (`tls.py`): a step takes the loop a fraction of a millisecond, and hundreds may be due at once.
4. A large request is encrypted piece by piece as the socket takes it.
5. TLS that carries no data (tickets, key updates, alerts, empty records) is counted. More than `MAX_SILENT` bytes of it in an attempt, or while the
   connection is idle, end the connection; so do `MAX_HANDSHAKE` bytes before the handshake is over. Anybody may send it without end.

Sessions are not resumed. A resumed handshake saves little: half of its time goes into handing the session to Python's `wrap_bio`, and the round
trips are the same. A pooled connection saves all of it, and a resumed session would skip the check of the certificate.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from typing import Final

from dispatcher.core.request.results import Failure, Reason
from dispatcher.transport import tls
from dispatcher.transport.connection import Connection, ConnectionOwner, Opening, Shared
from dispatcher.transport.limits import MAX_HANDSHAKE, MAX_SILENT

_RECORD: Final = 16 * 1024  # plaintext of one TLS record at most
_FRAME: Final = 64  # bytes that a record with data may have around it: header, nonce, tag, padding


class SecureConnection(Connection):
    """A connection with TLS."""

    __slots__ = ("_incoming", "_outgoing", "_silent", "_tls", "_unsent")

    def __init__(self, shared: Shared, owner: ConnectionOwner, opening: Opening) -> None:
        super().__init__(shared, owner, opening)
        self._tls: ssl.SSLObject | None = None
        self._unsent: memoryview | None = None  # of a large request, what isn't encrypted yet
        self._silent = 0  # bytes that have come and were no data (rule 5)

    def secure(self, context: ssl.SSLContext, host: str) -> None:
        """Begin the handshake; `Opening.secured` or `Opening.failed` follows."""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._step(lambda: self._begin(context, host))

    def _step(self, step: Callable[[], None]) -> None:
        opening = self._opening
        if opening is not None:
            self._shared.gate.run(step, opening.tenant, opening.endpoint)

    def _begin(self, context: ssl.SSLContext, host: str) -> None:
        if self._opening is None:
            return  # given up while it waited at the gate
        try:
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        except (ssl.SSLError, ValueError) as error:
            self._refuse(self._opening, Failure(Reason.TLS_FAILED, f"TLS: {error}"))
            return
        self._shake()

    def _shake(self) -> None:
        """Take the next step of the handshake."""
        opening, established = self._opening, self._tls
        if opening is None or established is None:
            return  # given up while it waited at the gate
        try:
            established.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self.close()  # with the alert that tells the endpoint why
            opening.failed(self, tls.failure(error))
            return
        self._flush()
        opening.secured(self)
        if self._incoming.pending or self._incoming.eof:
            self._pump()

    def _refuse(self, opening: Opening, failure: Failure) -> None:
        self.abort()
        opening.failed(self, failure)

    def data_received(self, data: bytes) -> None:
        if self._gone:
            return
        self._incoming.write(data)
        self._silent += len(data)
        opening = self._opening
        if opening is None:
            self._pump()
        elif self._silent > MAX_HANDSHAKE:
            detail = f"TLS: the handshake is not over after {MAX_HANDSHAKE} bytes"
            self._refuse(opening, Failure(Reason.TLS_FAILED, detail))
        else:
            self._step(self._shake)

    def eof_received(self) -> bool:
        if self._opening is not None:
            # What came before the end may still wait at the gate. Until then the socket stays.
            self._incoming.write_eof()
            self._step(self._shake)
            return True
        self._ended(None)
        return False

    def _opening_failed(self, opening: Opening, error: Exception | None) -> None:
        how = f" ({error})" if error is not None else ""
        detail = f"the endpoint closed the connection during the TLS handshake{how}"
        self._refuse(opening, Failure(Reason.TLS_FAILED, detail))

    def _pump(self) -> None:
        """Decrypt all that has come, then read it."""
        established = self._tls
        if established is None:
            return
        incoming = self._incoming
        data = b""
        closed = False
        error: ssl.SSLError | None = None
        try:
            while True:
                part = established.read(_RECORD)
                self._silent = max(0, self._silent - len(part) - _FRAME)
                if self._exchange is None:
                    # Rule 3: bytes on an idle connection, or close_notify. Housekeeping never gets here.
                    self._unsolicited()
                    return
                if not part:
                    closed = True
                    break
                if self._unwritten:
                    self._stale()
                    return
                data = data + part if data else part
                if not incoming.pending:
                    break
        except ssl.SSLWantReadError:
            closed = self._silent > MAX_SILENT
        except ssl.SSLError as broken:
            error = broken
        if self._outgoing.pending:
            self._flush()  # the answer to a key update
        exchange = self._exchange
        if data and exchange is not None:
            if closed or error is not None:
                self._responses = 1
            self._read(exchange, data)
            if self._exchange is not exchange:
                return
        if error is not None:
            self._broken(error)
        elif closed:
            if self._silent > MAX_SILENT:
                self._flood()
            else:
                self._ended(None)

    def _broken(self, error: ssl.SSLError) -> None:
        """TLS itself failed: a bad record, or an alert."""
        if self._exchange is None:
            self._unsolicited()
        elif self._has_status() or isinstance(error, ssl.SSLEOFError):
            self._ended(error)
        else:
            self._fail(tls.failure(error))

    def _flood(self) -> None:
        """Nothing but TLS itself comes."""
        if self._exchange is None:
            self._unsolicited()
        elif self._has_status():
            self._ended(None)
        else:
            detail = f"TLS: the endpoint has sent {MAX_SILENT} bytes that carry no data"
            self._fail(Failure(Reason.TLS_FAILED, detail))

    def _has_status(self) -> bool:
        """Whether the head of a final response is complete."""
        return self._reader is not None and self._reader.status >= 200

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._transport.write(self._outgoing.read())

    def _write(self, data: bytes) -> None:
        self._silent = 0
        try:
            if len(data) <= _RECORD:
                self._tls.write(data)  # type: ignore[union-attr]
                self._transport.write(self._outgoing.read())
            else:
                self._unsent = memoryview(data)
                self._write_more()
        except ssl.SSLError as error:
            # We are inside `send`, where no result may be reported.
            self._shared.loop.call_soon(self._ended, error)
            return
        if self._incoming.pending:
            self._shared.loop.call_soon(self._pump)

    def _write_more(self) -> None:
        """Encrypt as much of a large request as the socket's buffer takes: a copy of it all would cost memory."""
        unsent = self._unsent
        while unsent is not None and not self._paused:
            written = self._tls.write(unsent[:_RECORD])  # type: ignore[union-attr]
            unsent = unsent[written:] if written < len(unsent) else None
            self._unsent = unsent
            self._transport.write(self._outgoing.read())

    def resume_writing(self) -> None:
        self._paused = False
        if self._unsent is not None and not self._gone:
            try:
                self._write_more()
            except ssl.SSLError as error:
                self._ended(error)

    def _unsent_bytes(self) -> bool:
        return self._unsent is not None or self._transport.get_write_buffer_size() > 0

    def _say_goodbye(self) -> None:
        # It says close_notify first, and then wants to wait for the other side's, which we don't.
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()  # type: ignore[union-attr]
        self._flush()

    def _leave(self) -> bool:
        self._unsent = None
        return super()._leave()
