"""Through an egress proxy: CONNECT for https, the absolute form for http (RFC 9110 9.3.6, RFC 9112 3.2.2).

An operator who lets nothing out but through a proxy sets `network.proxy`. What changes: the dial goes to
the proxy, and the name of the endpoint is resolved there, so the guard can check the URL, literal addresses and the
name itself here (`Guard.permit_by_proxy`); what a public name resolves to must be checked by the proxy's own rules. TLS is with the endpoint,
inside the tunnel: the proxy sees names and sizes, nothing else.

What the proxy itself does wrong (not reachable, 407, any refusal of a CONNECT) is the
deployment's fault: `proxy_error`, which counts against no endpoint. Over http its own 502
can't be told from the endpoint's, and counts as a status.
"""

from __future__ import annotations

import re
import ssl
from base64 import b64encode
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from dispatcher.core.request.results import Failure, Reason, Response, Result
from dispatcher.core.request.urls import Origin
from dispatcher.transport.connection import Connection, ConnectionOwner, Opening, Shared
from dispatcher.transport.limits import MAX_CONNECT_RESPONSE, MAX_INTERIM
from dispatcher.transport.secure import SecureConnection

_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: ([^\r\n]*))?\r?\n")
_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")


class Proxy(NamedTuple):
    """Where the proxy is, and the header line (with its CRLF) that it wants to see, or nothing."""

    host: str
    port: int
    authorization: bytes = b""

    @classmethod
    def of(cls, url: str, username: str | None = None, password: str | None = None) -> Proxy:
        """From `http://host:port` and the credentials for it. Raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.username is not None:
            raise ValueError("must be http://host:port")
        authorization = b""
        if username is not None:
            # RFC 7617: no colon in the name; UTF-8 is what everybody expects today.
            token = b64encode(f"{username}:{password or ''}".encode())
            authorization = b"Proxy-Authorization: Basic " + token + b"\r\n"
        return cls(parts.hostname, parts.port or 3128, authorization)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class ForwardedConnection(Connection):
    """To a proxy, for http: every request names the whole URL."""

    __slots__ = ("_added", "_prefix")

    def __init__(
        self, shared: Shared, owner: ConnectionOwner, opening: Opening, origin: Origin, proxy: Proxy
    ) -> None:
        super().__init__(shared, owner, opening)
        self._prefix = str(origin).encode("ascii")
        self._added = proxy.authorization

    def _write(self, data: bytes) -> None:
        method = data.index(b" ") + 1
        line = data.index(b"\r\n") + 2
        self._transport.write(
            b"".join((data[:method], self._prefix, data[method:line], self._added, data[line:]))
        )

    def _result(self, response: Response) -> Result:
        if response.status == 407:
            return Failure(Reason.PROXY_ERROR, "the proxy wants other credentials (407)")
        return response


class TunnelConnection(SecureConnection):
    """To an endpoint with TLS, through a tunnel that the proxy makes."""

    __slots__ = ("_answer", "_answered", "_interim_answers", "_then")

    def __init__(self, shared: Shared, owner: ConnectionOwner, opening: Opening) -> None:
        super().__init__(shared, owner, opening)
        self._answer: bytes | None = None
        self._answered = 0  # bytes of it, with those of interim ones
        self._interim_answers = 0
        self._then: tuple[ssl.SSLContext, str] | None = None

    def tunnel(self, proxy: Proxy, origin: Origin, context: ssl.SSLContext) -> None:
        """Ask the proxy for the tunnel, and shake hands through it; `Opening.secured` or `.failed` follows."""
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        target = f"{host}:{origin.port}".encode("ascii")
        self._answer = b""
        self._then = (context, origin.host)
        self._transport.write(
            b"".join(
                (b"CONNECT ", target, b" HTTP/1.1\r\nHost: ", target, b"\r\n", proxy.authorization, b"\r\n")
            )
        )

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            super().data_received(data)
            return
        opening = self._opening
        if opening is not None:
            self._answered += len(data)
            self._read_answer(opening, self._answer + data)

    def _read_answer(self, opening: Opening, answer: bytes) -> None:
        """Read as many responses as there are: interim ones (1xx), and the one that counts."""
        while (end := _HEAD_END.search(answer)) is not None:
            status = _STATUS.match(answer)
            rest = answer[end.end() :]
            if status is None:
                # An echo isn't shown: it holds our credentials for the proxy.
                echo = answer[:8] == b"CONNECT "
                shown = "it is our own request" if echo else f"it begins with {answer[:64]!r}"
                detail = f"the proxy doesn't answer CONNECT with HTTP; {shown}"
                self._refuse(opening, Failure(Reason.PROXY_ERROR, detail))
                return
            if status[1][:1] == b"2":
                self._answer = None
                then = self._then
                if then is not None:
                    self.secure(*then)
                if rest:
                    super().data_received(rest)
                return
            if status[1][:1] != b"1":
                words = b" ".join(part for part in status.groups() if part).decode("latin-1")
                detail = f"the proxy refused the tunnel: {words[:200]}"
                self._refuse(opening, Failure(Reason.PROXY_ERROR, detail))
                return
            self._interim_answers += 1
            if self._interim_answers > MAX_INTERIM:
                detail = f"more than {MAX_INTERIM} interim (1xx) responses to CONNECT"
                self._refuse(opening, Failure(Reason.PROXY_ERROR, detail))
                return
            answer = rest
        self._answer = answer
        if self._answered > MAX_CONNECT_RESPONSE:
            detail = f"the proxy's answer to CONNECT has no end within {MAX_CONNECT_RESPONSE} bytes"
            self._refuse(opening, Failure(Reason.PROXY_ERROR, detail))

    def eof_received(self) -> bool:
        if self._answer is None or self._opening is None:
            return super().eof_received()
        self._ended(None)
        return False

    def _opening_failed(self, opening: Opening, error: Exception | None) -> None:
        if self._answer is None:
            super()._opening_failed(opening, error)
            return
        how = f" ({error})" if error is not None else ""
        detail = f"the proxy closed the connection instead of answering CONNECT{how}"
        self._refuse(opening, Failure(Reason.PROXY_ERROR, detail))
