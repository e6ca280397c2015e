"""Heads of responses: the fields that matter, and what to make of heads that are not quite right.

- **Fields** (`HeadFields`). The strict parser calls nothing for a field. Where one matters, a second parser goes over the head.
- **Sloppy heads** (`mended`). A repeated Content-Length that says the same, a space before a colon and names that
  aren't ASCII leave no doubt where the body ends (RFC 9112 5.1, RFC 9110 8.6), and real servers send them. `mended` writes the head
  as it should be, and a lenient parser reads it. The connection isn't used again.
- **Other protocols** (`speaks_http`). llhttp takes RTSP, ICE and HTTP/0.9 for HTTP.
- **Bodies where there are none** (`contradicts`). After 1xx, 204 and 304 no body follows, whatever their fields say. A server that announces
  one may well send it, and the next response would be read from the middle of it.
"""

from __future__ import annotations

import contextlib
import re
from functools import lru_cache
from typing import Final

import httptools
from httptools import HttpParserError, HttpParserUpgrade

from dispatcher.transport.limits import (
    MAX_FIELD_VALUE,
    MAX_FIELDS,
    MAX_INTERIM,
)

FEW_BYTES: Final = MAX_FIELDS * 4  # a head below this can't have too many fields: "a:\r\n" each
_NEVER: Final = float("inf")
STATUS_LINE_BEGIN: Final = b"HTTP/1."


class Stop(Exception):
    """What follows is of no interest."""


class HeadFields:
    """A second parser over a head that was kept, for its fields. Those of the last head win."""

    __slots__ = (
        "allowed_origin",
        "allowed_rate",
        "complete",
        "count",
        "keep_alive",
        "location",
        "parser",
        "retry_after",
    )

    def __init__(self, head: bytes, *, lenient: bool) -> None:
        self._reset()
        self.complete = False
        self.parser: httptools.HttpResponseParser | None = make_parser(self, lenient=lenient)
        # The first parser has judged these bytes; here only the fields count.
        with contextlib.suppress(HttpParserError, HttpParserUpgrade):
            self.parser.feed_data(head)
        self.parser = None  # it holds this object

    def _reset(self) -> None:
        self.count = 0
        self.retry_after: str | None = None
        self.location: str | None = None
        self.keep_alive = b""
        self.allowed_origin: str | None = None
        self.allowed_rate: str | None = None

    def on_message_begin(self) -> None:
        if self.complete:
            raise Stop
        self._reset()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.complete:
            raise Stop  # a trailer field
        self.count += 1
        length = len(name)
        # The first of several wins, as with every other client.
        if length == 11:
            if self.retry_after is None and name.lower() == b"retry-after":
                self.retry_after = value[:MAX_FIELD_VALUE].decode("latin-1").strip()
        elif length == 8:
            if self.location is None and name.lower() == b"location":
                self.location = value[:MAX_FIELD_VALUE].decode("latin-1").strip()
        elif length == 10:
            if name.lower() == b"keep-alive":
                self.keep_alive = self.keep_alive or value
        elif length == 22:
            if self.allowed_origin is None and name.lower() == b"webhook-allowed-origin":
                self.allowed_origin = value[:MAX_FIELD_VALUE].decode("latin-1").strip()
        elif length == 20 and self.allowed_rate is None and name.lower() == b"webhook-allowed-rate":
            self.allowed_rate = value[:MAX_FIELD_VALUE].decode("latin-1").strip()

    def on_headers_complete(self) -> None:
        parser = self.parser
        self.complete = parser is not None and parser.get_status_code() >= 200


def make_parser(protocol: object, *, lenient: bool = False) -> httptools.HttpResponseParser:
    parser = httptools.HttpResponseParser(protocol)
    if lenient:
        # All of them: the connection won't be used again, so nothing can get out of step.
        parser.set_dangerous_leniencies(
            lenient_headers=True,
            lenient_chunked_length=True,
            lenient_keep_alive=True,
            lenient_transfer_encoding=True,
            lenient_version=True,
            lenient_data_after_close=True,
            lenient_optional_lf_after_cr=True,
            lenient_optional_cr_before_lf=True,
            lenient_optional_crlf_after_chunk=True,
            lenient_spaces_after_chunk_size=True,
        )
    return parser


_TIMEOUT = re.compile(rb"(?:^|[,;\s])timeout\s*=\s*\"?(\d{1,9})", re.IGNORECASE)
_MAX = re.compile(rb"(?:^|[,;\s])max\s*=\s*\"?(\d{1,9})", re.IGNORECASE)


@lru_cache(maxsize=256)
def keep_alive(value: bytes) -> tuple[float, int | None]:
    """What `Keep-Alive: timeout=5, max=100` grants: seconds that an idle connection is safe to use, requests.

    The server counts from when it sent the response and closes on time, so a second (half the time,
    when it is short) is taken off for the way there and back.
    """
    timeout, most = _TIMEOUT.search(value), _MAX.search(value)
    seconds = _NEVER
    if timeout is not None:
        given = int(timeout[1])
        seconds = given - 1.0 if given > 1 else given / 2
    return seconds, int(most[1]) if most is not None else None


_HTTP: Final = re.compile(rb"[\r\n]*HTTP/[12]\.")
_BLANK: Final = re.compile(rb"[\r\n]*")
_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [^\r\n]*)?\r?\n")
_ANNOUNCED: Final = re.compile(
    rb"\n(?:content-length[ \t]*:(?![ \t]*0+[ \t]*[\r\n])|transfer-encoding[ \t]*:)", re.IGNORECASE
)


def speaks_http(head: bytes, interim: int) -> bool:
    """Whether the response after `interim` others is HTTP/1, or 2.0 in its manner; the parser has read it."""
    at = _after(head, interim)
    return at >= 0 and _HTTP.match(head, at) is not None


def contradicts(head: bytes, status: int, interim: int) -> bool:
    """Whether a response that can't have a body (the last one, or an interim one before it) announces one.

    304 may tell the length of what it stands for (RFC 9110 8.6); we never ask for that, so it is the same.
    """
    for number in range(interim):
        begin, end = _after(head, number), _after(head, number + 1)
        if end < 0 or _ANNOUNCED.search(head, begin, end) is not None:
            return True
    if status not in (204, 304):
        return False
    lower = head.lower()  # half of what the expression alone would cost, where there is nothing to find
    if b"\ncontent-length" not in lower and b"\ntransfer-encoding" not in lower:
        return False
    return _ANNOUNCED.search(head, _after(head, interim)) is not None


def _after(head: bytes, heads: int) -> int:
    """Where the heads end; -1: there are fewer."""
    at = 0
    for _ in range(heads):
        blank = _BLANK.match(head, at)
        end = _HEAD_END.search(head, at if blank is None else blank.end())
        if end is None:
            return -1
        at = end.end()
    return at


def may_end_head(head: bytes, news: int) -> bool:
    """Whether the last `news` bytes of it may have brought the end of a head."""
    return b"\n" in head[-news:] and _HEAD_END.search(head, max(0, len(head) - news - 3)) is not None


def mended(data: bytes) -> bytes | None:
    """What a parser refused, with every head in it as it should be. Empty: it isn't complete yet. None: beyond repair."""
    done: list[bytes] = []
    at = 0
    for _ in range(MAX_INTERIM + 1):
        blank = _BLANK.match(data, at)
        if blank is not None:
            at = blank.end()
        line = _STATUS_LINE.match(data, at)
        if line is None:
            rest = data[at:]
            if b"\n" not in rest and STATUS_LINE_BEGIN.startswith(rest[:7]):
                return b""
            return None
        end = _HEAD_END.search(data, at)
        if end is None:
            return b""
        head = _mended_head(data[at : end.end()])
        if head is None:
            return None
        done.append(head)
        at = end.end()
        if line[1] == b"101" or line[1][:1] != b"1":
            return b"".join(done) + data[at:]
    return None


def _mended_head(head: bytes) -> bytes | None:
    """One head, from its status line to the empty line after it; None when the end of the body would be a guess."""
    lines = head.split(b"\n")
    kept = [lines[0]]
    length: bytes | None = None
    dropped = False  # the field before: so are its continuations
    for line in lines[1:]:
        if line[:1] in (b" ", b"\t"):
            if not dropped:
                kept.append(line)
            continue
        name, colon, value = line.partition(b":")
        name = name.rstrip(b" \t")
        dropped = not name.isascii()
        if not colon:
            if line.strip(b"\r"):
                return None
            kept.append(line)
        elif name.lower() == b"content-length":
            lengths = {each.strip() for each in value.split(b",")}
            if length is not None:
                lengths.add(length)
            if len(lengths) > 1:
                return None
            dropped = length is not None
            length = lengths.pop()
            if not dropped:
                kept.append(b"Content-Length: " + length + (b"\r" if line.endswith(b"\r") else b""))
        elif not dropped:
            kept.append(name + colon + value)
    return b"\n".join(kept)
