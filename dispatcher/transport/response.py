"""Reading responses, without I/O: bytes in, a status and a body out.

- **`WholeReader`** reads the responses that come in one piece, for every connection. Nearly all of them do.
- **`ResponseReader`** reads the responses of one connection of which something wasn't so plain.

Both use llhttp, strictly. llhttp doesn't tell that a leniency was used. So when the strict parser refuses a head, a lenient one goes over
the kept bytes, mended where they are sloppy (`heads.py`), and the connection isn't used again.

Rules:

1. No bytes raise. Whatever comes ends in `complete` or in `failure`, or waits for more.
2. Once a head is complete its status is the result, however the body ends: cut off, too long or malformed.
3. `keep` is True only if the response was parsed strictly to its end, nothing followed it, and both sides keep the connection.
"""

from __future__ import annotations

import re
from typing import Final

import httptools
from httptools import HttpParserError, HttpParserUpgrade

from dispatcher.core.request.results import Failure, Reason, Response
from dispatcher.transport.heads import (
    STATUS_LINE_BEGIN,
    Stop,
    make_parser,
    may_end_head,
    mended,
    speaks_http,
)
from dispatcher.transport.limits import (
    KEPT_BODY,
    KNOWN_RESPONSE_BYTES,
    KNOWN_RESPONSES,
    MAX_HEAD,
    MAX_INTERIM,
)

LAST_STATUS: Final = 599
SLICE: Final = 16 * 1024  # bytes: the most that is parsed without a look at the caps in between
_UNFIT: Final = -1  # instead of a status: of no HTTP response
_ECHO: Final = re.compile(rb"(?:POST|OPTIONS|CONNECT) ")


class WholeReader:
    """Reads the responses that come in one piece, which is nearly all of them, for every connection.

    One parser for all, because it stays in the CPU's caches while a connection's own does not: where thousands
    of connections take turns, each response would wait for the memory of its parser first. It is between two messages
    whenever somebody uses it; as soon as anything isn't as it should be it is replaced, and the connection reads the same
    bytes again with a parser of its own, so that only one place decides what they mean.

    An endpoint that is delivered to at full speed says the same again and again, to the byte, until its clock's next
    second. So the last answers that were as they should be are kept, and known bytes are not parsed again.
    """

    __slots__ = ("body", "complete", "keep", "known", "odd", "parser", "status")

    def __init__(self) -> None:
        self.known: dict[bytes, Response] = {}
        self._renew()

    def remember(self, data: bytes, response: Response) -> None:
        """What these bytes say: a 2xx after which the connection goes on. From now on the response is everybody's."""
        if len(data) <= KNOWN_RESPONSE_BYTES:
            if len(self.known) >= KNOWN_RESPONSES:
                self.known.clear()
            self.known[data] = response

    def _renew(self) -> None:
        self.parser = make_parser(self)

    def read(self, data: bytes) -> bool:
        """Whether it is exactly one final response, strictly parsed, with a body of at most `KEPT_BODY` in one part."""
        if not data.startswith(STATUS_LINE_BEGIN):
            return False
        self.complete = False
        self.odd = False
        self.body = b""
        try:
            self.parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            self._renew()
            return False
        if self.complete and not self.odd:
            if not self.keep:
                self._renew()
            return True
        self._renew()
        return False

    def on_message_begin(self) -> None:
        if self.complete:
            self.odd = True

    def on_body(self, chunk: bytes) -> None:
        if self.body or len(chunk) > KEPT_BODY:
            self.odd = True
        else:
            self.body = chunk

    def on_message_complete(self) -> None:
        parser = self.parser
        self.status = status = parser.get_status_code()
        self.keep = parser.should_keep_alive()
        self.complete = True
        if not 200 <= status <= LAST_STATUS:
            self.odd = True


class ResponseReader:
    """Reads the responses of one connection, however they come. Made where `WholeReader` doesn't do.

    `feed` it until it has a result, `complete` or `failure`; `reset` it before the next response.
    """

    __slots__ = (
        "_cap",
        "_mending",
        "_parser",
        "_raw",
        "body",
        "body_size",
        "complete",
        "failure",
        "first_byte",
        "foreign",
        "head",
        "interim",
        "keep",
        "last",
        "lenient",
        "status",
    )

    def __init__(self, cap: int) -> None:
        """`cap`: bytes of a body after which it isn't worth waiting for its end."""
        self._cap = cap
        self._parser: httptools.HttpResponseParser | None = make_parser(self)
        self._mending = False  # the head is refused as it is; its end is awaited
        self.lenient = False
        self.last = False  # whatever follows on this connection isn't read
        self.failure: Failure | None = None
        self.foreign = False  # what came is no HTTP at all
        self.reset()

    def reset(self) -> None:
        """Forget the last response."""
        self._raw = 0  # bytes received after the head
        self.status = 0  # of the last complete head
        self.head = b""  # what was received until the head was complete, and what came with it
        self.body = b""
        self.body_size = 0
        self.interim = 0  # responses before this one
        self.complete = False
        self.keep = False
        self.first_byte = 0.0
        """For whoever feeds it to note when the response began, if it isn't complete at once."""

    def release(self) -> None:
        """Let go of the parser, which holds this object."""
        self._parser = None

    def feed(self, data: bytes) -> None:
        """Read what came. Sets `complete` or `failure` when there is a result."""
        if len(data) <= SLICE:
            self._read(data)
            return
        for start in range(0, len(data), SLICE):
            if self.failure is not None:
                return
            if self.complete:
                self.keep = False  # something follows the response
                return
            self._read(data[start : start + SLICE])

    def _read(self, data: bytes) -> None:
        if self.status == 0:
            size = len(data)
            head = self.head
            room = MAX_HEAD - len(head)
            self.head = head + data if head else data
            if size > room:
                self._read_to_the_brim(data, room)
                return
            if self._mending:
                self._mend(size)
                return
        else:
            # Chunk sizes and trailers aren't body, but they aren't free either.
            self._raw += len(data)
        self._parse(data)
        self._check_caps()

    def _read_to_the_brim(self, data: bytes, room: int) -> None:
        """The head could be over its cap now, unless it ends in what there is still room for."""
        self.head = self.head[:MAX_HEAD]
        if self._mending:
            self._mend(room)
        else:
            self._parse(data[:room])
        if self.failure is not None:
            return
        if self.complete:
            self.keep = False
        elif self.status:
            self._read(data[room:])
        else:
            detail = f"the response head is larger than {MAX_HEAD} bytes"
            self.failure = Failure(Reason.RESPONSE_TOO_LARGE, detail)

    def _parse(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            return
        try:
            parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._refused(error)

    def _check_caps(self) -> None:
        """If the head is complete and the body isn't: is it still worth waiting for?"""
        status = self.status
        # 205 has no content by definition (RFC 9110 15.3.6); many servers don't say so with a length. What a status of 600
        # or more means is nowhere said (RFC 9110 15): no body makes it a success.
        if status and (
            status == 205
            or status > LAST_STATUS
            or self.body_size > self._cap
            or self._raw > 2 * self._cap + MAX_HEAD
        ):
            self.complete = True

    def _refused(self, error: HttpParserError | HttpParserUpgrade) -> None:
        """The parser didn't like it."""
        if self.complete:
            self.keep = False  # the response was fine, what follows it is not
        elif self.status == 101 or isinstance(error, HttpParserUpgrade):
            self._fail("the endpoint switched protocols without being asked")
        elif self.interim > MAX_INTERIM:
            self._fail(f"more than {MAX_INTERIM} interim (1xx) responses")
        elif self.status == _UNFIT:
            self._fail(f"not an HTTP response: {self._shown()}")
        elif self.status:
            self.complete = True  # the status is known; the body is beyond understanding
            self.keep = False
        elif not self.lenient:
            self.lenient = True
            self.last = True
            self._mend(len(self.head))
        else:
            self.foreign = not speaks_http(self.head, 0)
            self._fail(f"not an HTTP response: {error}; {self._shown()}")

    def _fail(self, detail: str) -> None:
        self.failure = Failure(Reason.PROTOCOL_ERROR, detail)

    def _shown(self) -> str:
        """What came instead of a response, for people. An echo isn't shown: our requests hold secrets."""
        if _ECHO.match(self.head) is not None:
            return "it is our own request"
        return f"it begins with {self.head[:64]!r}"

    def _mend(self, news: int) -> None:
        """Read the head again, more leniently and mended, or wait for its end. `news` bytes of it are new."""
        if self._mending and not may_end_head(self.head, news):
            return
        head = mended(self.head)
        self._mending = head == b""
        if not self._mending:
            if head is not None:
                self.head = head
            self.interim = 0
            self._parser = make_parser(self, lenient=True)
            self._parse(self.head)
        self._check_caps()

    # httptools finds these by name.

    def on_message_begin(self) -> None:
        if self.complete:
            self.keep = False
            raise Stop

    def on_headers_complete(self) -> None:
        self.status = status = self._parser.get_status_code()  # type: ignore[union-attr]
        head = self.head
        if status < 100 or not (
            (head.startswith(STATUS_LINE_BEGIN) and not self.interim) or speaks_http(head, self.interim)
        ):
            self.status = _UNFIT
            raise Stop

    def on_body(self, chunk: bytes) -> None:
        self.body_size = size = self.body_size + len(chunk)
        if size <= KEPT_BODY:
            self.body = self.body + chunk if self.body else chunk
            return
        if len(self.body) < KEPT_BODY:
            self.body = (self.body + chunk)[:KEPT_BODY]
        if size > self._cap:
            self.last = True  # too long, even where it ends in the same segment

    def on_message_complete(self) -> None:
        if self.status >= 200:
            self.complete = True
            self.keep = self.status <= LAST_STATUS and self._parser.should_keep_alive()  # type: ignore[union-attr]
        elif self.status == 101:
            raise Stop
        else:
            self.interim += 1
            self.status = 0
            if self.interim > MAX_INTERIM:
                raise Stop
