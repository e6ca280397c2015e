"""Which protocol a server speaks that doesn't let us in, so that the error can name the wrong setting.

A Kafka listener that expects another protocol doesn't say so: it closes the connection, or waits for more bytes. Every Kafka
answers two requests before a client has authenticated: which versions it knows (ApiVersions), and whether it takes a SASL
mechanism that doesn't exist (SaslHandshake). A listener without SASL calls the second an illegal state; a listener with
SASL names the mechanisms that it takes. Both requests are sent in plain text first, and through TLS where plain text
gets no answer. The certificate is not checked, since nothing secret is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import Collection
from typing import Final, NamedTuple

from dispatcher.broker.kafka.client import reason_of

_PATIENCE: Final = 1.0  # seconds for each question
_API_VERSIONS: Final = 18
_SASL_HANDSHAKE: Final = 17
_UNSUPPORTED_MECHANISM: Final = 33
_LARGEST: Final = 1 << 20
_TLS_RECORDS: Final = (b"\x15\x03", b"\x16\x03")
_NO_ANSWER: Final = (OSError, TimeoutError, EOFError, ValueError, struct.error)
_NO_MECHANISM: Final = b"DISPATCHER-PROBE"


class Spoken(NamedTuple):
    """What a server expects."""

    protocol: str
    """As `kafka.security_protocol` has it, or `http`."""
    mechanisms: tuple[str, ...] = ()


async def spoken(host: str, port: int) -> Spoken | None:
    """What the server expects; None where it can't be told. Takes three seconds at the most."""
    with contextlib.suppress(*_NO_ANSWER):
        if (found := await _asked(host, port, None)) is not None:
            return found
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with contextlib.suppress(*_NO_ANSWER):
        return await _asked(host, port, context)
    return None


async def unreachable(addresses: Collection[tuple[str, int]]) -> dict[str, str]:
    """Of these, as `host:port`, those that no connection can be made to, and why."""

    async def why(host: str, port: int) -> str | None:
        try:
            async with asyncio.timeout(_PATIENCE):
                _, writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError) as error:
            return reason_of(error)
        writer.close()
        return None

    pairs = sorted(set(addresses))
    found = await asyncio.gather(*(why(*pair) for pair in pairs))
    return {
        f"{host}:{port}": reason
        for (host, port), reason in zip(pairs, found, strict=True)
        if reason is not None
    }


def mismatch(server: str, found: Spoken, setting: str, mechanism: str) -> str | None:
    """What is wrong with the settings, if that is what the server says; one sentence."""
    if found.protocol == "http":
        return f"{server} answers HTTP: it is no Kafka broker; check the port in `broker`"
    if found.protocol != setting:
        more = (
            ", kafka.sasl_mechanism, kafka.sasl_username and kafka.sasl_password"
            if "sasl" in found.protocol
            else ""
        )
        names = f" (it takes {', '.join(found.mechanisms)})" if found.mechanisms else ""
        return (
            f"{server} expects {found.protocol}{names}, and kafka.security_protocol is {setting}: set it to"
            f" {found.protocol}{more}, or name another port of the broker"
        )
    if found.mechanisms and mechanism not in found.mechanisms:
        return f"{server} takes {', '.join(found.mechanisms)}, and kafka.sasl_mechanism is {mechanism}"
    return None


async def _asked(host: str, port: int, tls: ssl.SSLContext | None) -> Spoken | None:
    async with asyncio.timeout(_PATIENCE):
        reader, writer = await asyncio.open_connection(host, port, ssl=tls)
    protocol = "plaintext" if tls is None else "ssl"
    try:
        async with asyncio.timeout(_PATIENCE):
            first = await _answer(reader, writer, _API_VERSIONS, 0, b"")
            if first.startswith(_TLS_RECORDS):
                return None  # TLS says what it thinks of our bytes
            if first.startswith(b"HTTP"):
                return Spoken("http")
            body = await _answer(
                reader, writer, _SASL_HANDSHAKE, 1, struct.pack(">h", len(_NO_MECHANISM)) + _NO_MECHANISM
            )
            (code,) = struct.unpack_from(">h", body, 4)
            if code != _UNSUPPORTED_MECHANISM:
                return Spoken(protocol)
            return Spoken("sasl_plaintext" if tls is None else "sasl_ssl", _mechanisms(body[6:]))
    finally:
        writer.close()


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, api: int, version: int, body: bytes
) -> bytes:
    """The answer without its length, from the correlation id on; the first bytes of what is no answer of Kafka's."""
    request = struct.pack(">hhih", api, version, api, -1) + body
    writer.write(struct.pack(">i", len(request)) + request)
    head = await reader.readexactly(4)
    if head[:2] in _TLS_RECORDS or head == b"HTTP":
        return head
    (size,) = struct.unpack(">i", head)
    if not 4 <= size <= _LARGEST:
        raise ValueError(f"an answer of {size} bytes")
    answer = await reader.readexactly(size)
    if answer[:4] != struct.pack(">i", api):
        raise ValueError("an answer to something else")
    return answer


def _mechanisms(data: bytes) -> tuple[str, ...]:
    (count,) = struct.unpack_from(">i", data)
    names = []
    at = 4
    for _ in range(count):
        (length,) = struct.unpack_from(">h", data, at)
        names.append(data[at + 2 : at + 2 + length].decode("ascii", "replace"))
        at += 2 + length
    return tuple(sorted(names))
