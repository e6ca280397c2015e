"""The table: what an endpoint does, the result that it must give, and the connection that it must leave.

Each line is one behaviour; the scripts it is made of stand above. The caps are those of the
connection module and a `response_cap` of `CAP` bytes.
"""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

from dispatcher.core.request.results import Reason
from tests.zoo import server as zoo
from tests.zoo.server import Peer, Script, TlsPeer, over_tls

CAP = 16 * 1024
MIB = 1024 * 1024


class Left(Enum):
    """What must be left of the connection when the last exchange is over."""

    IDLE = "idle"
    CLOSED = "closed"


@dataclass(frozen=True)
class Behaviour:
    """One line of the table."""

    name: str
    script: Script
    gives: int | Reason
    leaves: Left
    exchanges: int = 1  # one after the other; each must give the same
    connections: int | None = 1  # how many the server must have seen; None: not fixed
    body: int = 20  # bytes of the request's body
    deadline: float = 10.0  # seconds; short where running into it is the point
    tls: bool = False
    says: str = ""  # a part of the failure's detail, or of the response's body
    pause: float = 0.0  # seconds between two exchanges


def answers(*responses: bytes, then_close: bool = False) -> Script:
    """Answer the n-th request of a connection with the n-th of these, the others with the last."""

    async def script(peer: Peer) -> None:
        index = 0
        while True:
            await peer.request()
            await peer.send(responses[min(index, len(responses) - 1)])
            index += 1
            if then_close and index == len(responses):
                return

    return script


def says(data: bytes) -> Script:
    """Send it as soon as somebody connects, and wait."""

    async def script(peer: Peer) -> None:
        await peer.send(data)
        await peer.hang()

    return script


def closes_after(data: bytes) -> Script:
    """Read a request, send this, close."""
    return answers(data, then_close=True)


def resets_after(data: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(data)
        await asyncio.sleep(0.05 if data else 0)  # so that the reset doesn't overtake it
        peer.reset()

    return script


def floods(first: bytes, rest: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(first)
        await peer.flood(rest)

    return script


def drips(first: bytes, rest: bytes, every: float = 0.0, step: int = 1) -> Script:
    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(first)
            await peer.drip(rest, every, step)

    return script


def response(
    body: bytes = b"ok", *fields: bytes, status: bytes = b"200 OK", version: bytes = b"1.1"
) -> bytes:
    lines = [b"HTTP/" + version + b" " + status, b"Content-Length: %d" % len(body), *fields, b"", body]
    return b"\r\n".join(lines)


def chunked(*chunks: bytes, trailer: bytes = b"") -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return CHUNKED + body + b"0\r\n" + trailer + b"\r\n"


OK = response()
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = b"HTTP/1.1 200 OK\r\n\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"


def head_of(size: int) -> bytes:
    """A response whose head is exactly that long."""
    begin, end = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Pad: ", b"\r\n\r\n"
    return begin + b"p" * (size - len(begin) - len(end)) + end


def fields(count: int) -> bytes:
    """A response with that many fields."""
    return response(b"", *(b"X-%d: %d" % (index, index) for index in range(count - 1)))


async def accepts_and_closes(peer: Peer) -> None:
    return


async def accepts_and_resets(peer: Peer) -> None:
    peer.reset()


async def never_answers(peer: Peer) -> None:
    await peer.hang()


async def never_reads(peer: Peer) -> None:
    await peer.sleep()


async def refuses_early(peer: Peer) -> None:
    """413 at the sight of the head; the body is never read."""
    await peer.head()
    await peer.send(response(b"too large", status=b"413 Content Too Large"))
    await peer.sleep()


async def answers_early_and_reads_on(peer: Peer) -> None:
    await peer.head()
    await peer.send(OK)
    await asyncio.sleep(0.1)
    await peer.hang()


async def answers_before_it_is_asked(peer: Peer) -> None:
    await peer.send(response(b"busy", b"Connection: close", status=b"503 Service Unavailable"))


async def gives_up_idle_connections(peer: Peer) -> None:
    """Answer one request per connection, and close without saying so."""
    await peer.request()
    await peer.send(OK)
    await asyncio.sleep(0.02)


async def closes_on_the_second_request(peer: Peer) -> None:
    await peer.request()
    await peer.send(OK)
    await peer.request()


async def resets_on_the_second_request(peer: Peer) -> None:
    await closes_on_the_second_request(peer)
    peer.reset()


async def half_a_head_on_the_second_request(peer: Peer) -> None:
    await closes_on_the_second_request(peer)
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-")


async def works_once_then_never(peer: Peer) -> None:
    """The second request meets a closed connection, and its repetition another one."""
    if peer.number == 1:
        await closes_on_the_second_request(peer)


async def times_idle_connections_out_with_408(peer: Peer) -> None:
    await closes_on_the_second_request(peer)
    await peer.send(response(b"", b"Connection: close", status=b"408 Request Timeout"))


async def talks_while_idle(peer: Peer) -> None:
    await peer.request()
    await peer.send(OK)
    await asyncio.sleep(0.02)
    await peer.send(OK)
    await peer.hang()


async def sends_a_body_after_204(peer: Peer) -> None:
    """It announces a body where none may be, and sends it when the client has turned to something else."""
    while True:
        await peer.request()
        await peer.send(b"HTTP/1.1 204 No Content\r\nContent-Length: 15\r\n\r\n")
        await asyncio.sleep(0.001)
        await peer.send(b"late and unasked")


async def leaves_something_over(peer: Peer) -> None:
    """More than its length said: the rest meets the next request."""
    await peer.request()
    await peer.send(OK)
    await peer.request()
    await peer.send(b" and more")
    await peer.hang()


async def says_gone_unasked(peer: Peer) -> None:
    """On its first connection an answer to nothing, which meets the second request."""
    await peer.request()
    await peer.send(OK)
    await peer.request()
    if peer.number == 1:
        await peer.send(response(b"", status=b"410 Gone"))
    else:
        await peer.send(OK)
    await peer.hang()


async def shuts_its_side_down(peer: Peer) -> None:
    await peer.request()
    await peer.send(ENDLESS + b"ok")
    await peer.half_close()
    await peer.hang()


PLAIN = [
    # What a decent server does
    Behaviour("answers with a length", answers(OK), 200, Left.IDLE, exchanges=3),
    Behaviour("answers without a body", answers(response(b"")), 200, Left.IDLE, exchanges=3),
    Behaviour("answers 204", answers(b"HTTP/1.1 204 No Content\r\n\r\n"), 204, Left.IDLE, exchanges=3),
    Behaviour("answers 205 with length 0", answers(response(b"", status=b"205 Reset")), 205, Left.IDLE, exchanges=2),
    Behaviour("answers 204 with length 0", answers(b"HTTP/1.1 204 No\r\nContent-Length: 0\r\n\r\n"), 204, Left.IDLE, exchanges=3),
    Behaviour("answers 304", answers(b"HTTP/1.1 304 Same\r\n\r\n"), 304, Left.IDLE, exchanges=2),
    Behaviour("answers in chunks", answers(chunked(b"a", b"bc" * 99)), 200, Left.IDLE, exchanges=3),
    Behaviour("sends a trailer", answers(chunked(b"a", trailer=b"X-Sum: 1\r\n")), 200, Left.IDLE, exchanges=3),
    Behaviour("sends chunk extensions", answers(CHUNKED + b"2;a=b\r\nok\r\n0\r\n\r\n"), 200, Left.IDLE, exchanges=2),
    Behaviour("sends byte by byte", drips(b"", OK), 200, Left.IDLE, exchanges=2),
    Behaviour("sends chunks byte by byte", drips(b"", chunked(b"a", b"b")), 200, Left.IDLE, exchanges=2),
    Behaviour("splits in a line end", drips(b"HTTP/1.1 204 X\r", b"\n\r\n", 0.005), 204, Left.IDLE, exchanges=2),
    Behaviour("has no reason phrase", answers(response(status=b"200")), 200, Left.IDLE, exchanges=2),
    Behaviour("fails politely", answers(response(b"no", status=b"500 Oops")), 500, Left.IDLE, exchanges=2, says="no"),
    Behaviour("says 100 first", answers(b"HTTP/1.1 100 Continue\r\n\r\n" + OK), 200, Left.IDLE, exchanges=2),
    Behaviour("gives early hints", answers(EARLY * 2 + OK), 200, Left.IDLE, exchanges=2),
    Behaviour("gives 16 hints", answers(EARLY * 16 + OK), 200, Left.IDLE),
    Behaviour("offers an upgrade", answers(response(b"ok", b"Upgrade: h2c", b"Connection: upgrade")), 200, Left.IDLE),
    Behaviour("sends a compressed bomb", answers(response(gzip.compress(bytes(9 * MIB)), b"Content-Encoding: gzip")), 200, Left.IDLE, exchanges=2),
    Behaviour("is HTTP/1.0 and keeps alive", answers(response(b"", b"Connection: keep-alive", version=b"1.0")), 200, Left.IDLE, exchanges=2),
    Behaviour("grants a minute", answers(response(b"", b"Keep-Alive: timeout=60, max=9")), 200, Left.IDLE, exchanges=3),
    Behaviour("sends an empty line first", answers(b"\r\n" + OK), 200, Left.IDLE, exchanges=2),
    Behaviour("sends an empty line afterwards", answers(OK + b"\r\n"), 200, Left.IDLE, exchanges=2),
    Behaviour("fills the body cap", answers(response(b"x" * CAP)), 200, Left.IDLE, exchanges=2),
    Behaviour("fills the head cap", answers(head_of(32 * 1024)), 200, Left.IDLE, exchanges=2),
    Behaviour("fills the head cap byte by byte", drips(head_of(32 * 1024 - 9)[:-9], head_of(40)[-9:]), 200, Left.IDLE),
    Behaviour("has 100 fields", answers(fields(100)), 200, Left.IDLE, exchanges=2),
    Behaviour("has latin-1 in a field", answers(response(b"", b"X: caf\xe9")), 200, Left.IDLE),
    Behaviour("has latin-1 in its reason", answers(response(status=b"200 d\xe9j\xe0")), 200, Left.IDLE, exchanges=2),
    Behaviour("has an empty field", answers(response(b"", b"X:", b"Y: ")), 200, Left.IDLE, exchanges=2),
    # Legal, and the end of the connection
    Behaviour("has no length", closes_after(ENDLESS + b"ok"), 200, Left.CLOSED, says="ok"),
    Behaviour("shuts its side down", shuts_its_side_down, 200, Left.CLOSED),
    Behaviour("has a foreign transfer encoding", closes_after(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx"), 200, Left.CLOSED),
    Behaviour("is HTTP/1.0", answers(response(version=b"1.0")), 200, Left.CLOSED, exchanges=2, connections=2),
    Behaviour("says HTTP/2.0", answers(response(version=b"2.0")), 200, Left.CLOSED),
    Behaviour("says close", closes_after(response(b"", b"Connection: close")), 200, Left.CLOSED, exchanges=2, connections=2),
    Behaviour("says close and doesn't", answers(response(b"", b"Connection: close")), 200, Left.CLOSED, exchanges=2, connections=2),
    Behaviour("says close among others", answers(response(b"", b"Connection: x, Close")), 200, Left.CLOSED),
    Behaviour("grants no time", answers(response(b"", b"Keep-Alive: timeout=0")), 200, Left.CLOSED, exchanges=2, connections=2),
    Behaviour("grants no further request", answers(response(b"", b"Keep-Alive: max=0")), 200, Left.CLOSED, exchanges=2, connections=2),
    Behaviour("grants one further request", answers(response(b"", b"Keep-Alive: timeout=5, max=1"), OK), 200, Left.CLOSED, exchanges=2),
    Behaviour("grants 200 ms more or less", answers(response(b"", b"Keep-Alive: timeout=1")), 200, Left.CLOSED, pause=0.8),
    # A body where none may be: the status counts, and nothing can be read as the beginning of the next response
    Behaviour("answers 304 with a length", answers(b"HTTP/1.1 304 Same\r\nContent-Length: 9\r\n\r\n"), 304, Left.CLOSED, exchanges=2, connections=2),
    Behaviour("announces a body with 204", answers(b"HTTP/1.1 204 No\r\ncontent-length:2\r\n\r\n"), 204, Left.CLOSED, exchanges=2, connections=2),
    Behaviour("announces chunks with 204", answers(b"HTTP/1.1 204 No\r\nTRANSFER-ENCODING : chunked\r\n\r\n".replace(b" :", b":")), 204, Left.CLOSED, exchanges=2, connections=2),
    Behaviour("announces a body with a hint", answers(EARLY[:-2] + b"Content-Length: 2\r\n\r\n" + OK), 200, Left.CLOSED, exchanges=2, connections=2),
    Behaviour("announces a body with a later hint", drips(b"", EARLY + EARLY[:-2] + b"Content-Length: 2\r\n\r\n" + OK), 200, Left.CLOSED),
    Behaviour("sends a body after 204", sends_a_body_after_204, 204, Left.CLOSED, exchanges=9, connections=9),
    # Sloppy: the status counts, the connection doesn't
    Behaviour("says its length twice", answers(response(b"ok", b"content-length: 2")), 200, Left.CLOSED, exchanges=2, connections=2, says="ok"),
    Behaviour("says its length twice, byte by byte", drips(b"", response(b"ok", b"Content-Length: 2")), 200, Left.CLOSED, says="ok"),
    Behaviour("says its length twice in a line", answers(OK.replace(b"h: 2", b"h: 2, 2")), 200, Left.CLOSED, says="ok"),
    Behaviour("says its length twice after a hint", answers(EARLY + response(b"ok", b"Content-Length: 2")), 200, Left.CLOSED, says="ok"),
    Behaviour("says its length twice, with LF", answers(response(b"ok", b"Content-Length: 2").replace(b"\r\n", b"\n")), 200, Left.CLOSED, says="ok"),
    Behaviour("has a space before a colon", answers(response(b"ok", b"X : y")), 200, Left.CLOSED, exchanges=2, connections=2, says="ok"),
    Behaviour("has a space before its length's colon", answers(OK.replace(b"h:", b"h :")), 200, Left.CLOSED, says="ok"),
    Behaviour("has a space before a colon, byte by byte", drips(b"", response(b"ok", b"X\t: y")), 200, Left.CLOSED, says="ok"),
    Behaviour("has a space before its chunks' colon", answers(chunked(b"ok").replace(b"g:", b"g :")), 200, Left.CLOSED, says="ok"),
    Behaviour("has a space before a hint's colon", answers(EARLY.replace(b"k:", b"k :") + OK), 200, Left.CLOSED, says="ok"),
    Behaviour("has latin-1 in a name", answers(response(b"ok", b"X-Caf\xe9: a\r\n b")), 200, Left.CLOSED, says="ok"),
    Behaviour("has a strange status", answers(response(status=b"999 Why")), 999, Left.CLOSED, exchanges=2, connections=2, says="ok"),
    Behaviour("has a strange status and no end", answers(b"HTTP/1.1 600 Why\r\n\r\n"), 600, Left.CLOSED),
    Behaviour("ends lines with LF", answers(OK.replace(b"\r\n", b"\n")), 200, Left.CLOSED, says="ok"),
    Behaviour("ends lines with LF, byte by byte", drips(b"", OK.replace(b"\r\n", b"\n")), 200, Left.CLOSED, says="ok"),
    Behaviour("ends some lines with LF", answers(OK.replace(b"\r\n", b"\n", 1)), 200, Left.CLOSED),
    Behaviour("folds a field", answers(response(b"", b"X: a\r\n b")), 200, Left.CLOSED),
    Behaviour("has NUL in a field", answers(response(b"", b"X: a\x00b")), 200, Left.CLOSED),
    Behaviour("says HTTP/1.2", answers(response(version=b"1.2")), 200, Left.CLOSED),
    Behaviour("has a length and chunks", answers(response(b"0\r\n\r\n", b"Transfer-Encoding: chunked")), 200, Left.CLOSED),
    Behaviour("answers 205 without length", answers(b"HTTP/1.1 205 Reset\r\n\r\n"), 205, Left.CLOSED),
    Behaviour("has a body where none may be", answers(b"HTTP/1.1 204 X\r\nContent-Length: 2\r\n\r\nok"), 204, Left.CLOSED),
    Behaviour("sends garbage after it", answers(OK + b"garbage"), 200, Left.CLOSED, exchanges=2, connections=2),
    Behaviour("sends one letter after it", answers(OK + b"H"), 200, Left.CLOSED, exchanges=2, connections=2),
    Behaviour("answers twice", answers(OK + OK), 200, Left.CLOSED, exchanges=2, connections=2),
    Behaviour("has a bad chunk size", answers(CHUNKED + b"zz\r\n"), 200, Left.CLOSED),
    Behaviour("has a negative chunk size", answers(CHUNKED + b"-1\r\n"), 200, Left.CLOSED),
    Behaviour("has a chunk size of 2^64", answers(CHUNKED + b"10000000000000000\r\n"), 200, Left.CLOSED),
    Behaviour("has a chunk longer than said", answers(CHUNKED + b"2\r\nokay\r\n0\r\n\r\n"), 200, Left.CLOSED),
    Behaviour("stops in the body", closes_after(response(b"0123456789")[:-5]), 200, Left.CLOSED, says="01234"),
    Behaviour("stops between chunks", closes_after(CHUNKED + b"2\r\nok\r\n"), 200, Left.CLOSED, says="ok"),
    Behaviour("resets in the body", resets_after(response(b"0123456789")[:-5]), 200, Left.CLOSED),
    Behaviour("answers before it is asked", answers_before_it_is_asked, 503, Left.CLOSED),
    Behaviour("refuses a large body early", refuses_early, 413, Left.CLOSED, body=9 * MIB, says="too large"),
    Behaviour("answers early and reads on", answers_early_and_reads_on, 200, Left.CLOSED, body=9 * MIB),
    # Without end
    Behaviour("goes over the body cap", answers(response(b"x" * (CAP + 1))), 200, Left.CLOSED, exchanges=2, connections=2),
    Behaviour("has no end", floods(ENDLESS, b"x" * 65536), 200, Left.CLOSED),
    Behaviour("has no last chunk", floods(CHUNKED, b"400\r\n" + b"x" * 1024 + b"\r\n"), 200, Left.CLOSED),
    Behaviour("sends crumbs", floods(CHUNKED, b"1\r\nx\r\n" * 9999), 200, Left.CLOSED),
    Behaviour("has a chunk extension without end", floods(CHUNKED + b"1;", b"x" * 65536), 200, Left.CLOSED),
    Behaviour("has a trailer without end", floods(CHUNKED + b"0\r\n", b"x: y\r\n" * 9999), 200, Left.CLOSED),
    Behaviour("promises terabytes", floods(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999\r\n\r\n", bytes(65536)), 200, Left.CLOSED),
    Behaviour("has fields without end", floods(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 9999), Reason.RESPONSE_TOO_LARGE, Left.CLOSED),
    Behaviour("has a field without end", floods(b"HTTP/1.1 200 OK\r\nx: ", b"y" * 65536), Reason.RESPONSE_TOO_LARGE, Left.CLOSED),
    Behaviour("has a reason without end", floods(b"HTTP/1.1 200 ", b"y" * 65536), Reason.RESPONSE_TOO_LARGE, Left.CLOSED),
    Behaviour("sends empty lines without end", floods(b"", b"\r\n" * 9999), Reason.RESPONSE_TOO_LARGE, Left.CLOSED),
    Behaviour("goes over the head cap", answers(head_of(32 * 1024 + 1)), Reason.RESPONSE_TOO_LARGE, Left.CLOSED),
    Behaviour("has 101 fields", answers(fields(101)), Reason.RESPONSE_TOO_LARGE, Left.CLOSED),
    Behaviour("hints without end", floods(b"", EARLY * 999), Reason.PROTOCOL_ERROR, Left.CLOSED, says="interim"),
    Behaviour("gives 17 hints", answers(EARLY * 17 + OK), Reason.PROTOCOL_ERROR, Left.CLOSED, says="interim"),
    # Not HTTP
    Behaviour("is SSH", says(b"SSH-2.0-OpenSSH_9.2\r\n"), Reason.PROTOCOL_ERROR, Left.CLOSED, says="SSH"),
    Behaviour("is SMTP", says(b"220 mail ESMTP\r\n"), Reason.PROTOCOL_ERROR, Left.CLOSED),
    Behaviour("is HTTP/2", says(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64"), Reason.PROTOCOL_ERROR, Left.CLOSED),
    Behaviour("is HTTP/0.9", closes_after(b"<html>ok</html>"), Reason.PROTOCOL_ERROR, Left.CLOSED),
    Behaviour("is TLS", says(b"\x15\x03\x03\x00\x02\x02\x46"), Reason.PROTOCOL_ERROR, Left.CLOSED),
    Behaviour("is random", says(bytes(range(256)) * 8), Reason.PROTOCOL_ERROR, Left.CLOSED),
    Behaviour("is zeros", says(bytes(4096)), Reason.PROTOCOL_ERROR, Left.CLOSED),
    Behaviour("sends a request", answers(b"GET / HTTP/1.1\r\n\r\n"), Reason.PROTOCOL_ERROR, Left.CLOSED),
    Behaviour("has a status of two digits", answers(response(status=b"99 X")), Reason.PROTOCOL_ERROR, Left.CLOSED),
    Behaviour("has a status of four digits", answers(response(status=b"1000 X")), Reason.PROTOCOL_ERROR, Left.CLOSED),
    Behaviour("has a negative length", answers(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"), Reason.PROTOCOL_ERROR, Left.CLOSED),
    Behaviour("has a length of 2^64", answers(b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\n"), Reason.PROTOCOL_ERROR, Left.CLOSED),
    Behaviour("has two lengths", answers(response(b"ok", b"Content-Length: 3")), Reason.PROTOCOL_ERROR, Left.CLOSED),
    Behaviour("has a line without colon", answers(response(b"", b"nonsense")), Reason.PROTOCOL_ERROR, Left.CLOSED),
    Behaviour("has two lengths in a line", answers(OK.replace(b"h: 2", b"h: 2, 3")), Reason.PROTOCOL_ERROR, Left.CLOSED),
    Behaviour("has two lengths, byte by byte", drips(b"", response(b"ok", b"Content-Length: 3")), Reason.PROTOCOL_ERROR, Left.CLOSED),
    Behaviour("has a line without colon, and stays", says(b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n"), Reason.PROTOCOL_ERROR, Left.CLOSED),
    Behaviour("has a status below 100", answers(response(status=b"099 X")), Reason.PROTOCOL_ERROR, Left.CLOSED, says="not an HTTP"),
    Behaviour("has the status 0 and no end", answers(b"HTTP/1.1 000 X\r\n\r\n"), Reason.PROTOCOL_ERROR, Left.CLOSED, says="not an HTTP"),
    Behaviour("is RTSP", answers(OK.replace(b"HTTP/1.1", b"RTSP/1.0")), Reason.PROTOCOL_ERROR, Left.CLOSED, says="RTSP"),
    Behaviour("is RTSP and has no end", answers(b"RTSP/1.0 200 OK\r\n\r\n"), Reason.PROTOCOL_ERROR, Left.CLOSED, says="RTSP"),
    Behaviour("is RTSP byte by byte", drips(b"", OK.replace(b"HTTP/1.1", b"RTSP/1.0")), Reason.PROTOCOL_ERROR, Left.CLOSED),
    Behaviour("is ICE", answers(OK.replace(b"HTTP/1.1", b"ICE/1.0")), Reason.PROTOCOL_ERROR, Left.CLOSED),
    Behaviour("becomes RTSP after a hint", answers(EARLY + OK.replace(b"HTTP/1.1", b"RTSP/1.0")), Reason.PROTOCOL_ERROR, Left.CLOSED),
    Behaviour("says HTTP/0.9", answers(OK.replace(b"/1.1", b"/0.9")), Reason.PROTOCOL_ERROR, Left.CLOSED),
    Behaviour("says HTTP/0.9 and has no end", answers(b"HTTP/0.9 200 OK\r\n\r\n"), Reason.PROTOCOL_ERROR, Left.CLOSED),
    Behaviour("switches protocols", answers(b"HTTP/1.1 101 Go\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nxx"), Reason.PROTOCOL_ERROR, Left.CLOSED, says="switched"),
    Behaviour("switches protocols without a word", answers(b"HTTP/1.1 101 Go\r\n\r\n"), Reason.PROTOCOL_ERROR, Left.CLOSED, says="switched"),
    # Gone
    Behaviour("accepts and closes", accepts_and_closes, Reason.CLOSED, Left.CLOSED),
    Behaviour("accepts and resets", accepts_and_resets, Reason.CLOSED, Left.CLOSED),
    Behaviour("closes without an answer", closes_after(b""), Reason.CLOSED, Left.CLOSED),
    Behaviour("resets without an answer", resets_after(b""), Reason.CLOSED, Left.CLOSED),
    Behaviour("closes after a hint", closes_after(EARLY), Reason.CLOSED, Left.CLOSED),
    Behaviour("stops in the head", closes_after(OK[:20]), Reason.CLOSED, Left.CLOSED, says="head"),
    Behaviour("resets in the head", resets_after(OK[:20]), Reason.CLOSED, Left.CLOSED, says="head"),
    # Gone while the connection was idle: not the endpoint's fault
    Behaviour("gives up idle connections", gives_up_idle_connections, 200, Left.IDLE, exchanges=3, connections=3, pause=0.05),
    Behaviour("closes on the second request", closes_on_the_second_request, 200, Left.IDLE, exchanges=3, connections=3),
    Behaviour("resets on the second request", resets_on_the_second_request, 200, Left.IDLE, exchanges=3, connections=3),
    Behaviour("answers the second request with 408", times_idle_connections_out_with_408, 200, Left.IDLE, exchanges=3, connections=3),
    Behaviour("talks while idle", talks_while_idle, 200, Left.CLOSED, exchanges=2, connections=2, pause=0.1),
    # What is left of a response before isn't the answer to this request
    Behaviour("leaves something over", leaves_something_over, 200, Left.IDLE, exchanges=3, connections=3),
    Behaviour("says gone unasked", says_gone_unasked, 200, Left.IDLE, exchanges=3, connections=2),
    # Slow
    Behaviour("never answers", never_answers, Reason.TIMEOUT, Left.CLOSED, deadline=0.9, says="before a response"),
    Behaviour("never reads", never_reads, Reason.TIMEOUT, Left.CLOSED, deadline=0.5, body=9 * MIB, says="being sent"),
    Behaviour("drips the head", drips(b"", head_of(4096), 0.01), Reason.TIMEOUT, Left.CLOSED, deadline=0.9, says="head"),
    Behaviour("drips the body", drips(response(b"x" * 999)[:-999], b"x" * 999, 0.01), Reason.TIMEOUT, Left.CLOSED, deadline=0.9, says="body"),
    Behaviour("drips hints", drips(b"", EARLY * 99, 0.02, len(EARLY)), Reason.TIMEOUT, Left.CLOSED, deadline=0.2),
    Behaviour("stops after the head", answers(response(b"xx")[:-2]), Reason.TIMEOUT, Left.CLOSED, deadline=0.9, says="body"),
    Behaviour("has no length and stays", answers(ENDLESS + b"ok"), Reason.TIMEOUT, Left.CLOSED, deadline=0.9, says="body"),
]  # fmt: skip


def tls(
    script: Callable[[TlsPeer], Awaitable[None]], context: Callable[[], ssl.SSLContext] = zoo.good
) -> Script:
    return over_tls(script, context)


async def closes_with_notice(peer: TlsPeer) -> None:
    await peer.request()
    await peer.send(ENDLESS + b"ok")
    await peer.close_notify()
    await peer.hang()


async def notifies_and_stays(peer: TlsPeer) -> None:
    """Complete response, close_notify in the same segment, socket open."""
    await peer.request()
    peer.tls.write(OK)
    await peer.close_notify()
    await Peer.hang(peer)


async def breaks_a_record(peer: TlsPeer) -> None:
    await peer.request()
    await peer.send_raw(b"\x17\x03\x03\x00\x20" + bytes(32))
    await Peer.hang(peer)


async def breaks_a_record_in_the_body(peer: TlsPeer) -> None:
    await peer.request()
    await peer.send(response(b"0123456789")[:-5])
    await breaks_a_record_now(peer)


async def breaks_a_record_now(peer: TlsPeer) -> None:
    await peer.send_raw(b"\x17\x03\x03\x00\x20" + bytes(32))
    await peer.hang()


async def speaks_plainly_after_the_handshake(peer: TlsPeer) -> None:
    await peer.request()
    await peer.send_raw(OK)
    await peer.hang()


async def drips_records(peer: TlsPeer) -> None:
    while True:
        await peer.request()
        peer.tls.write(OK)
        await peer.drip(peer.outgoing.read(), 0)


async def many_records(peer: TlsPeer) -> None:
    """A record per byte, all in one segment."""
    while True:
        await peer.request()
        for index in range(len(OK)):
            peer.tls.write(OK[index : index + 1])
        await peer.send_raw(peer.outgoing.read())


async def talks_in_the_handshake(peer: Peer) -> None:
    """The response travels with the server's last flight, before the request."""
    secure = TlsPeer(peer, zoo.good_tls12())
    await secure.handshake()
    await secure.send(response(b"busy", b"Connection: close", status=b"503 Busy"))
    await secure.hang()


async def says_all_in_its_last_flight(peer: Peer) -> None:
    """The end of the handshake, a response and the end of the connection, all in one segment."""
    secure = TlsPeer(peer, zoo.good_tls12())
    while True:
        try:
            secure.tls.do_handshake()
        except ssl.SSLWantReadError:
            await peer.send(secure.outgoing.read())
            secure.incoming.write(await peer.read())
        else:
            break
    secure.tls.write(response(b"busy", b"Connection: close", status=b"503 Busy"))
    await peer.send(secure.outgoing.read())


async def shakes_hands_and_closes(peer: Peer) -> None:
    await TlsPeer(peer, zoo.good_tls12()).handshake()


async def drips_the_handshake(peer: Peer) -> None:
    secure = TlsPeer(peer, zoo.good())
    await secure.handshake(step=31)
    await answers(OK)(secure)


async def closes_in_the_handshake(peer: Peer) -> None:
    await peer.read()


async def resets_in_the_handshake(peer: Peer) -> None:
    await peer.read()
    peer.reset()


async def stops_in_the_handshake(peer: Peer) -> None:
    secure = TlsPeer(peer, zoo.good())
    secure.incoming.write(await peer.read())
    try:
        secure.tls.do_handshake()
    except ssl.SSLWantReadError:
        await peer.send(secure.outgoing.read()[:200])
    await peer.hang()


async def closes_in_its_own_flight(peer: Peer) -> None:
    secure = TlsPeer(peer, zoo.good())
    secure.incoming.write(await peer.read())
    try:
        secure.tls.do_handshake()
    except ssl.SSLWantReadError:
        await peer.send(secure.outgoing.read()[:200])


def sends_tickets(count: int, script: Callable[[TlsPeer], Awaitable[None]] = never_answers) -> Script:
    """Session tickets, some 250 bytes each, before the script begins."""
    return over_tls(script, lambda: zoo.with_tickets(count))


def replies(data: bytes) -> Script:
    """Answer the ClientHello with this."""

    async def script(peer: Peer) -> None:
        await peer.read()
        await peer.send(data)
        await peer.hang()

    return script


ALERT = b"\x15\x03\x03\x00\x02\x02"

SECURE = [
    Behaviour("is in order", tls(answers(OK)), 200, Left.IDLE, exchanges=3, tls=True),
    Behaviour("is in order with TLS 1.2", tls(answers(OK), zoo.good_tls12), 200, Left.IDLE, exchanges=3, tls=True),
    Behaviour("takes a large body", tls(answers(OK)), 200, Left.IDLE, exchanges=2, body=9 * MIB, tls=True),
    Behaviour("drips the handshake", drips_the_handshake, 200, Left.IDLE, exchanges=2, tls=True),
    Behaviour("drips records", tls(drips_records), 200, Left.IDLE, exchanges=2, tls=True),
    Behaviour("sends a record per byte", tls(many_records), 200, Left.IDLE, exchanges=2, tls=True),
    Behaviour("fills the body cap", tls(answers(response(b"x" * CAP))), 200, Left.IDLE, exchanges=2, tls=True),
    Behaviour("goes over the body cap", tls(answers(response(b"x" * (CAP + 1)))), 200, Left.CLOSED, tls=True),
    Behaviour("has no end", tls(floods(ENDLESS, b"x" * 65536)), 200, Left.CLOSED, tls=True),
    Behaviour("says close", tls(closes_after(response(b"", b"Connection: close"))), 200, Left.CLOSED, exchanges=2, connections=2, tls=True),
    Behaviour("has no length and no close_notify", tls(closes_after(ENDLESS + b"ok")), 200, Left.CLOSED, says="ok", tls=True),
    Behaviour("has no length and close_notify", tls(closes_with_notice), 200, Left.CLOSED, says="ok", tls=True),
    Behaviour("notifies after the response", tls(notifies_and_stays), 200, Left.CLOSED, exchanges=2, connections=2, tls=True),
    Behaviour("answers twice", tls(answers(OK + OK)), 200, Left.CLOSED, exchanges=2, connections=2, tls=True),
    Behaviour("answers before it is asked", talks_in_the_handshake, 503, Left.CLOSED, tls=True),
    Behaviour("says all in its last flight", says_all_in_its_last_flight, 503, Left.CLOSED, tls=True),
    Behaviour("shakes hands and closes", shakes_hands_and_closes, Reason.CLOSED, Left.CLOSED, tls=True),
    Behaviour("ends lines with LF", tls(answers(OK.replace(b"\r\n", b"\n"))), 200, Left.CLOSED, tls=True),
    Behaviour("refuses a large body early", tls(refuses_early), 413, Left.CLOSED, body=9 * MIB, tls=True),
    Behaviour("is not HTTP", tls(says(b"220 mail\r\n")), Reason.PROTOCOL_ERROR, Left.CLOSED, tls=True),
    Behaviour("gives up idle connections", tls(gives_up_idle_connections), 200, Left.IDLE, exchanges=3, connections=3, pause=0.05, tls=True),
    Behaviour("closes on the second request", tls(closes_on_the_second_request), 200, Left.IDLE, exchanges=3, connections=3, tls=True),
    Behaviour("resets on the second request", tls(resets_on_the_second_request), 200, Left.IDLE, exchanges=3, connections=3, tls=True),
    Behaviour("talks while idle", tls(talks_while_idle), 200, Left.CLOSED, exchanges=2, connections=2, pause=0.1, tls=True),
    Behaviour("closes without an answer", tls(closes_after(b"")), Reason.CLOSED, Left.CLOSED, tls=True),
    Behaviour("never answers", tls(never_answers), Reason.TIMEOUT, Left.CLOSED, deadline=0.9, tls=True),
    Behaviour("never reads", tls(never_reads), Reason.TIMEOUT, Left.CLOSED, deadline=0.5, body=9 * MIB, says="being sent", tls=True),
    Behaviour("breaks a record", tls(breaks_a_record), Reason.TLS_FAILED, Left.CLOSED, tls=True),
    Behaviour("breaks a record in the body", tls(breaks_a_record_in_the_body), 200, Left.CLOSED, tls=True),
    Behaviour("speaks plainly after the handshake", tls(speaks_plainly_after_the_handshake), Reason.TLS_FAILED, Left.CLOSED, tls=True),
    Behaviour("sends 50 tickets", sends_tickets(50, answers(OK)), 200, Left.IDLE, exchanges=3, tls=True),
    Behaviour("sends tickets without end", sends_tickets(2000), Reason.TLS_FAILED, Left.CLOSED, tls=True, says="carry no data"),
    Behaviour("leaves something over", tls(leaves_something_over), 200, Left.IDLE, exchanges=3, connections=3, tls=True),
    Behaviour("says gone unasked", tls(says_gone_unasked), 200, Left.IDLE, exchanges=3, connections=2, tls=True),
    Behaviour("sends a body after 204", tls(sends_a_body_after_204), 204, Left.CLOSED, exchanges=9, connections=9, tls=True),
    Behaviour("has expired", tls(answers(OK), zoo.expired), Reason.TLS_EXPIRED, Left.CLOSED, tls=True),
    Behaviour("is not valid yet", tls(answers(OK), zoo.not_yet_valid), Reason.TLS_EXPIRED, Left.CLOSED, tls=True),
    Behaviour("is for another name", tls(answers(OK), zoo.other_name), Reason.TLS_HOSTNAME, Left.CLOSED, tls=True),
    Behaviour("is for another address", tls(answers(OK), zoo.other_address), Reason.TLS_HOSTNAME, Left.CLOSED, tls=True),
    Behaviour("is not trusted", tls(answers(OK), zoo.untrusted), Reason.TLS_UNTRUSTED, Left.CLOSED, tls=True),
    Behaviour("is outdated", tls(answers(OK), zoo.outdated), Reason.TLS_FAILED, Left.CLOSED, tls=True),
    Behaviour("wants a certificate", tls(answers(OK), zoo.demanding), Reason.TLS_FAILED, Left.CLOSED, tls=True),
    Behaviour("wants a certificate with TLS 1.2", tls(answers(OK), zoo.demanding_tls12), Reason.TLS_FAILED, Left.CLOSED, tls=True),
    Behaviour("is plain HTTP", replies(OK), Reason.TLS_FAILED, Left.CLOSED, tls=True),
    Behaviour("is SSH", says(b"SSH-2.0-OpenSSH_9.2\r\n"), Reason.TLS_FAILED, Left.CLOSED, tls=True),
    Behaviour("refuses with an alert", replies(ALERT + b"\x28"), Reason.TLS_FAILED, Left.CLOSED, tls=True),
    Behaviour("knows no such name", replies(ALERT + b"\x70"), Reason.TLS_FAILED, Left.CLOSED, tls=True),
    Behaviour("accepts and closes", accepts_and_closes, Reason.TLS_FAILED, Left.CLOSED, tls=True),
    Behaviour("closes at the hello", closes_in_the_handshake, Reason.TLS_FAILED, Left.CLOSED, tls=True),
    Behaviour("resets at the hello", resets_in_the_handshake, Reason.TLS_FAILED, Left.CLOSED, tls=True),
    Behaviour("closes in its own flight", closes_in_its_own_flight, Reason.TLS_FAILED, Left.CLOSED, tls=True),
    Behaviour("stops in the handshake", stops_in_the_handshake, Reason.TIMEOUT, Left.CLOSED, deadline=0.9, says="TLS", tls=True),
    Behaviour("never shakes hands", never_reads, Reason.TIMEOUT, Left.CLOSED, deadline=0.5, says="TLS", tls=True),
]  # fmt: skip

ALL = PLAIN + SECURE
