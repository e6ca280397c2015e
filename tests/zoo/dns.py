"""A name server of our own on loopback, by UDP and by TCP: it says what a test tells it, with the TTLs that it is told.

It answers like a recursive server: the whole chain of aliases and the addresses at its end in one message; a name that
doesn't exist, and one without an address, with the SOA record that lets resolvers remember that (RFC 2308).
"""

from __future__ import annotations

import asyncio
import struct
from ipaddress import ip_address
from typing import NamedTuple, Self

A, CNAME, SOA, AAAA = 1, 5, 6, 28


class Record(NamedTuple):
    """One record of a zone."""

    kind: int
    ttl: int
    value: str  # an address, or a name


def address(text: str, ttl: int = 30) -> Record:
    return Record(A if ip_address(text).version == 4 else AAAA, ttl, text)


def alias(name: str, ttl: int = 30) -> Record:
    return Record(CNAME, ttl, name)


class NameServer:
    """`table` says what is known: None for a name that doesn't exist; a missing name gets no answer at all.

    `asked` lists the names that were asked for, one entry a question (A and AAAA are two), `by_tcp` those of it that came by TCP.
    """

    def __init__(self, table: dict[str, list[Record] | None], negative_ttl: int = 3600) -> None:
        self.table = table
        self.negative_ttl = negative_ttl
        self.truncate = False  # by UDP, say that the answer is cut off
        self.asked: list[str] = []
        self.by_tcp: list[str] = []
        self.address = ""

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._tcp = await asyncio.start_server(self._stream, "127.0.0.1", 0)
        port = self._tcp.sockets[0].getsockname()[1]
        self._udp, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), ("127.0.0.1", port))
        self.address = f"127.0.0.1:{port}"
        return self

    async def __aexit__(self, *error: object) -> None:
        self._udp.close()
        self._tcp.close()

    def questions(self, name: str) -> int:
        """How often the name was looked up on the wire: questions for an IPv4 and an IPv6 address are one."""
        return (self.asked.count(name) + 1) // 2

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                (size,) = struct.unpack("!H", await reader.readexactly(2))
                answer = self.answer(await reader.readexactly(size), by_tcp=True)
                if answer is not None:
                    writer.write(struct.pack("!H", len(answer)) + answer)
                    await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    def answer(self, query: bytes, *, by_tcp: bool) -> bytes | None:
        name, kind, end = _question(query)
        self.asked.append(name)
        if by_tcp:
            self.by_tcp.append(name)
        if name not in self.table:
            return None
        head, question = query[:2], query[12:end]
        if self.truncate and not by_tcp:
            return head + struct.pack("!HHHHH", 0x8380, 1, 0, 0, 0) + question
        answers: list[bytes] = []
        found = False
        code, at = 0, name
        for _ in range(100):
            records = self.table.get(at)
            if records is None:
                code = 3
                break
            wanted = [record for record in records if record.kind == kind]
            answers += [_record(at, record) for record in wanted]
            found = found or bool(wanted)
            following = [record for record in records if record.kind == CNAME]
            if wanted or not following:
                break
            answers.append(_record(at, following[0]))
            at = following[0].value
        authority = [] if found else [self._soa()]
        counts = struct.pack("!HHHHH", 0x8180 | code, 1, len(answers), len(authority), 0)
        return head + counts + question + b"".join(answers + authority)

    def _soa(self) -> bytes:
        numbers = struct.pack("!IIIII", 1, 3600, 600, 86400, self.negative_ttl)
        value = _labels("ns.example") + _labels("admin.example") + numbers
        head = struct.pack("!HHIH", SOA, 1, self.negative_ttl, len(value))
        return _labels("example") + head + value


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: NameServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self._server.answer(data, by_tcp=False)
        if answer is not None:
            self._transport.sendto(answer, addr)  # type: ignore[attr-defined]


def _question(query: bytes) -> tuple[str, int, int]:
    """Name and kind of what is asked, and where the question ends."""
    labels, at = [], 12
    while size := query[at]:
        labels.append(query[at + 1 : at + 1 + size].decode())
        at += 1 + size
    (kind,) = struct.unpack("!H", query[at + 1 : at + 3])
    return ".".join(labels).lower(), kind, at + 5


def _labels(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\x00"


def _record(owner: str, record: Record) -> bytes:
    value = _labels(record.value) if record.kind == CNAME else ip_address(record.value).packed
    return _labels(owner) + struct.pack("!HHIH", record.kind, 1, record.ttl, len(value)) + value
