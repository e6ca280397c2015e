"""Servers that misbehave on purpose, on raw sockets and on TLS.

A behaviour is a script: a coroutine that gets a `Peer` for each accepted connection and does with
it what no HTTP library would. `Zoo.serve(script)` returns the port. Everything runs on the test's own loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import re
import socket
import ssl
import struct
import warnings
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Self

import trustme

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Gone(Exception):
    """The client has closed or reset the connection."""


class Peer:
    """The server's end of one connection; `number` counts the connections of this server from 1."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.reader = reader
        self.writer = writer
        self.number = number

    async def read(self, most: int = 65536) -> bytes:
        """What has come; raises Gone at the end."""
        try:
            data = await self.reader.read(most)
        except OSError as error:
            raise Gone from error
        if not data:
            raise Gone
        return data

    async def request(self) -> bytes:
        """Read one whole request and return it."""
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += await self.read()
        length = _LENGTH.search(data[: end + 2])
        size = end + 4 + (int(length[1]) if length else 0)
        while len(data) < size:
            data += await self.read()
        return data

    async def head(self) -> None:
        """Read no more than the request's head."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += await self.read(1)

    async def send(self, data: bytes) -> None:
        """Send and wait until the client takes it."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except (OSError, RuntimeError) as error:  # uvloop raises the latter on a closed transport
            raise Gone from error

    async def drip(self, data: bytes, every: float, step: int = 1) -> None:
        """Send in pieces of `step` bytes, each in a segment of its own."""
        for start in range(0, len(data), step):
            await self.send(data[start : start + step])
            await asyncio.sleep(every)

    async def flood(self, data: bytes) -> None:
        """Send it again and again until the client has enough."""
        while True:
            await self.send(data)

    async def hang(self) -> None:
        """Do nothing until the client closes; what it sends is read and ignored."""
        while True:
            await self.read()

    async def sleep(self, seconds: float = 1.0) -> None:
        """Do nothing at all, not even read; so it can't notice either that the client has gone."""
        self.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(seconds)

    def reset(self) -> None:
        """Close with an RST."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def half_close(self) -> None:
        """Say that nothing more will come, and go on reading."""
        self.writer.write_eof()


class TlsPeer(Peer):
    """The same over TLS, with the bytes of the records in the script's hands."""

    def __init__(self, plain: Peer, context: ssl.SSLContext) -> None:
        super().__init__(plain.reader, plain.writer, plain.number)
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    async def handshake(self, step: int | None = None) -> None:
        """Shake hands; with `step`, sending that many bytes at a time."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush(step)
                self.incoming.write(await super().read())
            except ssl.SSLError as error:
                await self._flush(step)
                raise Gone from error
            else:
                await self._flush(step)
                return

    async def _flush(self, step: int | None = None) -> None:
        if data := self.outgoing.read():
            if step is None:
                await super().send(data)
            else:
                await self.drip(data, 0, step)

    async def read(self, most: int = 65536) -> bytes:
        while True:
            try:
                data = self.tls.read(most)
            except ssl.SSLWantReadError:
                self.incoming.write(await super().read())
            except ssl.SSLError as error:
                raise Gone from error
            else:
                if not data:
                    raise Gone
                return data

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.tls.write(view[:16384]) :]
            await self._flush()

    async def send_raw(self, data: bytes) -> None:
        """Past TLS, straight to the socket."""
        await super().send(data)

    async def drip(self, data: bytes, every: float, step: int = 1) -> None:
        for start in range(0, len(data), step):
            await super().send(data[start : start + step])
            await asyncio.sleep(every)

    async def close_notify(self) -> None:
        """Say in TLS that nothing more will come."""
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        await self._flush()


Script = Callable[[Peer], Awaitable[None]]


def over_tls(script: Callable[[TlsPeer], Awaitable[None]], context: Callable[[], ssl.SSLContext]) -> Script:
    """Make a script for the connection after the handshake one for the whole connection."""

    async def whole(peer: Peer) -> None:
        secure = TlsPeer(peer, context())
        await secure.handshake()
        await script(secure)

    return whole


class Zoo:
    """Serves scripts on loopback. An async context manager: everything is closed at its end."""

    def __init__(self) -> None:
        self._servers: list[asyncio.Server] = []
        self._running: set[asyncio.Task[None] | None] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._running):
            if task is not None:
                task.cancel()
        while self._running:
            await asyncio.sleep(0.001)

    async def serve(self, script: Script, host: str = "127.0.0.1", port: int = 0) -> int:
        """Accept connections and run the script on each. When it returns, the connection is closed."""
        accepted = 0

        async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal accepted
            accepted += 1
            task = asyncio.current_task()
            self._running.add(task)
            try:
                await script(Peer(reader, writer, accepted))
                with contextlib.suppress(OSError):
                    await writer.drain()
                writer.close()
            except (Gone, OSError):
                writer.close()
            except asyncio.CancelledError:
                pass
            finally:
                if not writer.is_closing():
                    writer.transport.abort()
                self._running.discard(task)

        server = await asyncio.start_server(run, host, port, backlog=1024)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])


# -- Certificates. Made once: keys are slow.


@cache
def authority() -> trustme.CA:
    """The authority that tests trust."""
    return trustme.CA()


@cache
def stranger() -> trustme.CA:
    """An authority that nobody trusts."""
    return trustme.CA()


def _context(
    certificate: trustme.LeafCert, newest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = newest
    certificate.configure_cert(context)
    return context


@cache
def with_tickets(count: int) -> ssl.SSLContext:
    """Like `good`, and sends so many session tickets after the handshake."""
    context = _context(authority().issue_cert("localhost", "127.0.0.1"))
    context.num_tickets = count
    return context


@cache
def good() -> ssl.SSLContext:
    """Valid for `localhost` and the loopback addresses."""
    return _context(authority().issue_cert("localhost", "127.0.0.1", "::1"))


@cache
def good_tls12() -> ssl.SSLContext:
    """The same, and nothing newer than TLS 1.2."""
    return _context(authority().issue_cert("localhost", "127.0.0.1"), ssl.TLSVersion.TLSv1_2)


@cache
def expired() -> ssl.SSLContext:
    """Expired yesterday."""
    now = dt.datetime.now(dt.UTC)
    day = dt.timedelta(days=1)
    certificate = authority().issue_cert("127.0.0.1", not_before=now - 10 * day, not_after=now - day)
    return _context(certificate)


@cache
def not_yet_valid() -> ssl.SSLContext:
    """Valid from tomorrow."""
    now = dt.datetime.now(dt.UTC)
    day = dt.timedelta(days=1)
    certificate = authority().issue_cert("127.0.0.1", not_before=now + day, not_after=now + 10 * day)
    return _context(certificate)


@cache
def other_name() -> ssl.SSLContext:
    """Valid, for somebody else's name."""
    return _context(authority().issue_cert("elsewhere.example"))


@cache
def other_address() -> ssl.SSLContext:
    """Valid, for another address."""
    return _context(authority().issue_cert("127.0.0.9"))


@cache
def untrusted() -> ssl.SSLContext:
    """Issued by an authority that nobody trusts."""
    return _context(stranger().issue_cert("127.0.0.1"))


@cache
def outdated() -> ssl.SSLContext:
    """Knows nothing newer than TLS 1.1."""
    context = _context(authority().issue_cert("127.0.0.1"))
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that it is deprecated is the point
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


@cache
def demanding() -> ssl.SSLContext:
    """Wants a client certificate of the authority's."""
    context = _context(authority().issue_cert("localhost", "127.0.0.1"))
    context.verify_mode = ssl.CERT_REQUIRED
    authority().configure_trust(context)
    return context


@cache
def demanding_tls12() -> ssl.SSLContext:
    """The same with TLS 1.2, where it is told in the handshake."""
    context = _context(authority().issue_cert("localhost", "127.0.0.1"), ssl.TLSVersion.TLSv1_2)
    context.verify_mode = ssl.CERT_REQUIRED
    authority().configure_trust(context)
    return context
