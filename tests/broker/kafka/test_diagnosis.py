"""What a server speaks that doesn't let us in."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from dispatcher.broker.base import BrokerRefused
from dispatcher.broker.kafka.broker import KafkaBroker
from dispatcher.broker.kafka.diagnosis import Spoken, mismatch, spoken, unreachable
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import KafkaSettings
from tests.ports import free_port

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(talk: Talk) -> AsyncIterator[int]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except (EOFError, OSError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()


async def says_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def hangs_up(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read(4)


async def is_a_web_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(4)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await writer.drain()


async def alerts(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As TLS does, of bytes that are none of its."""
    await reader.read(4)
    writer.write(b"\x15\x03\x03\x00\x02\x02\x46")
    await writer.drain()


async def talks_garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(4)
    writer.write(b"\xff" * 64)
    await writer.drain()


@pytest.mark.parametrize("talk", [says_nothing, hangs_up, alerts, talks_garbage])
async def test_what_cannot_be_told_is_not_guessed(talk: Talk) -> None:
    async with server(talk) as port:
        assert await spoken("127.0.0.1", port) is None


async def test_a_web_server_is_no_broker() -> None:
    async with server(is_a_web_server) as port:
        broker = KafkaBroker([f"127.0.0.1:{port}"], KafkaSettings())
        with pytest.raises(BrokerRefused, match="answers HTTP: it is no Kafka broker"):
            await broker.connect()
        await broker.close()


async def test_a_broker_whose_addresses_nobody_reaches_is_named() -> None:
    """As a broker in a container says that it is `kafka:9092`."""
    closed = free_port()

    async def advertises(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            (size,) = struct.unpack(">i", await reader.readexactly(4))
            request = await reader.readexactly(size)
            api, version, correlation = struct.unpack_from(">hhi", request)
            if api == 18:
                body = struct.pack(">hi", 0, 2) + struct.pack(">hhh", 18, 0, 0) + struct.pack(">hhh", 3, 1, 1)
            else:
                assert (api, version) == (3, 1)
                body = struct.pack(">i", 1)
                body += struct.pack(">ih", 1, 9) + b"127.0.0.1" + struct.pack(">ih", closed, -1)
                body += struct.pack(">ii", 1, 0)
            writer.write(struct.pack(">ii", 4 + len(body), correlation) + body)
            await writer.drain()

    async with server(advertises) as port:
        broker = KafkaBroker([f"127.0.0.1:{port}"], KafkaSettings())
        tasks = Tasks()
        tasks.start(broker.connect(), "connect")
        async with asyncio.timeout(30):
            while "advertised.listeners" not in (broker.problem or ""):
                await asyncio.sleep(0.01)
        assert f"127.0.0.1:{closed} (connection refused)" in (broker.problem or "")
        await tasks.stop()
        await broker.close()


async def test_names_that_are_not_known_are_said() -> None:
    async with server(says_nothing) as port:
        found = await unreachable([("127.0.0.1", port), ("kafka.invalid", 9092)])
    assert list(found) == ["kafka.invalid:9092"]
    assert "can't be resolved" in found["kafka.invalid:9092"]


@pytest.mark.parametrize(
    ("found", "setting", "said"),
    [
        (Spoken("plaintext"), "plaintext", None),
        (Spoken("ssl"), "plaintext", "expects ssl, and kafka.security_protocol is plaintext: set it to ssl"),
        (Spoken("plaintext"), "ssl", "set it to plaintext"),
        (
            Spoken("sasl_plaintext", ("PLAIN", "SCRAM-SHA-256")),
            "plaintext",
            "expects sasl_plaintext (it takes PLAIN, SCRAM-SHA-256)",
        ),
        (Spoken("sasl_ssl", ("PLAIN",)), "sasl_plaintext", "set it to sasl_ssl"),
        (
            Spoken("sasl_ssl", ("SCRAM-SHA-512",)),
            "sasl_ssl",
            "takes SCRAM-SHA-512, and kafka.sasl_mechanism is PLAIN",
        ),
        (Spoken("sasl_ssl", ("PLAIN",)), "sasl_ssl", None),
    ],
)
def test_the_setting_that_is_wrong_is_named(found: Spoken, setting: str, said: str | None) -> None:
    text = mismatch("b:9092", found, setting, "PLAIN")
    assert (text is None) == (said is None)
    assert said is None or said in (text or "")
