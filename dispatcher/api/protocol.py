"""aiohttp's protocol of a connection, whose own answers are problem documents as all others are.

aiohttp answers by itself where no request comes of what was sent: a line that is too long, a field that can't be read, a method that none is. Its answers are
plain text, and quote what came. The answers made here name the fault, quote nothing, and are counted with those whom a bound refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import (
    BadHttpMethod,
    BadStatusLine,
    HttpProcessingError,
    InvalidURLError,
    LineTooLong,
)

from dispatcher.api.admission import Admission
from dispatcher.api.frame import answer, bug, new_request_id, of_http, tag
from dispatcher.api.limits import MAX_FIELD, MAX_FIELDS, MAX_LINE
from dispatcher.api.problems import Kind, Problem

LINGER: Final = 2.0
"""Seconds for which the rest of what can't be read is passed over, so that the caller reads the answer before the connection closes."""
_PASSED_OVER: Final = 1 << 20  # bytes
_BREAK: Final = "\n"


class ApiProtocol(web.RequestHandler):
    """Serves one connection."""

    def __init__(self, manager: web.Server, admission: Admission, server: str, **options: Any) -> None:
        """`server` is the product in the answers; `options` are those of aiohttp's own."""
        super().__init__(
            manager,
            loop=asyncio.get_running_loop(),
            max_line_size=MAX_LINE,
            max_field_size=MAX_FIELD,
            max_headers=MAX_FIELDS,
            **options,
        )
        self._admission = admission
        self._server = server
        self._refusal: web.StreamResponse | None = None  # the last answer of this connection
        self._passed_over = 0
        self._heard_out = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None:
            self._passed_over += len(data)
            if self._passed_over > _PASSED_OVER:
                self._heard_out.set()
        super().data_received(data)

    def eof_received(self) -> None:
        self._heard_out.set()
        super().eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._heard_out.set()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no request, or to one that failed outside the way of requests."""
        if isinstance(exc, HttpProcessingError):
            self._admission.unreadable(request.remote)
            problem = unreadable(exc)
        else:
            super().handle_error(request, status, exc, message)  # logs it
            problem = bug()
        request_id = new_request_id()
        self._refusal = response = answer(problem, request_id)
        response.headers["X-Request-Id"] = request_id
        response.headers["Server"] = self._server
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the answer."""
        if isinstance(resp, web.HTTPException) and resp.status >= 400 and isinstance(request, web.Request):
            # Of aiohttp, before the way of requests begins: what `Expect` says is unknown to it.
            tag(request)
            resp = of_http(resp, request)
            resp.force_close()
        finished = await super().finish_response(request, resp, start_time)
        if resp is self._refusal:
            await self._hear_out()
        return finished

    async def _hear_out(self) -> None:
        """Close only when the caller has, or has had time to read the answer.

        A connection that is closed while bytes are on their way is reset, and the answer is lost with it (RFC 9112, section 9.6).
        """
        self.close()  # aiohttp passes over whatever comes
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        with suppress(OSError):  # the caller has gone
            transport.write_eof()
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                await self._heard_out.wait()


def protocols(
    manager: web.Server, admission: Admission, server: str, **options: Any
) -> Callable[[], ApiProtocol]:
    """Makes the protocol of each connection to the server."""
    return lambda: ApiProtocol(manager, admission, server, **options)


def unreadable(error: HttpProcessingError) -> Problem:
    """What is wrong with bytes that no request comes of. Nothing of them is in it."""
    if isinstance(error, LineTooLong):
        if MAX_LINE in error.args:
            return Problem(Kind.ADDRESS_TOO_LONG, f"an address has at most {MAX_LINE} bytes, its query too")
        return Problem(Kind.FIELDS_TOO_LARGE, f"a header field has at most {MAX_FIELD} bytes")
    if error.message.startswith("Too many headers"):
        return Problem(Kind.FIELDS_TOO_LARGE, f"a request has at most {MAX_FIELDS} header fields")
    # The parser's own words stand before what it quotes.
    words, quotes, _ = error.message.partition(":\n\n")
    if isinstance(error, BadHttpMethod):
        said = "it does not begin with a method of HTTP; TLS is not spoken here"
    elif isinstance(error, BadStatusLine):
        said = "its first line does not end in a version of HTTP: send HTTP/1.1"
    elif isinstance(error, InvalidURLError):
        said = "the address in its first line can't be read"
    elif quotes:
        said = "its head, or a chunk of its body, is not what HTTP allows"
    else:
        said = "a header field can't be read, or Host is missing, or a field stands twice that may stand once"
    return Problem(Kind.MALFORMED, f"{said} ({words.rpartition(_BREAK)[2].strip()})" if quotes else said)
