"""What a server speaks that doesn't let us in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from dispatcher.broker.base import BrokerRefused
from dispatcher.broker.kafka.broker import KafkaBroker
from dispatcher.broker.kafka.diagnosis import Spoken, mismatch, spoken, unreachable
from dispatcher.settings.groups import KafkaSettings

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
