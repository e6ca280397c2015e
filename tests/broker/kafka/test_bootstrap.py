"""Which servers let us in, and what is said where none does."""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import Callable
from typing import Any

import pytest

from dispatcher.broker.base import (
    BrokerRefused,
    Message,
    TopicPartition,
)
from dispatcher.broker.kafka.broker import KafkaBroker
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import KafkaSettings
from tests.broker.backends import QUICK, WITHIN, Forwarder, Member, OnKafka, eventually, produced
from tests.broker.kafka.secured import Secured
from tests.broker.kafka.test_diagnosis import server
from tests.kafka.mock import MockCluster
from tests.ports import free_port


@pytest.mark.kafka
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
async def test_a_wrong_password_is_refused_at_once(secured: Secured, mechanism: str) -> None:
    broker = KafkaBroker(secured.cluster.bootstrap.split(","), secured.settings(mechanism, password="wrong"))
    with pytest.raises(BrokerRefused, match=r"[Aa]uthentication failed") as raised:
        await asyncio.wait_for(broker.connect(), WITHIN)
    assert "wrong" not in str(raised.value)
    assert broker.problem == str(raised.value)
    await broker.close()


@pytest.mark.kafka
async def test_a_certificate_of_an_unknown_authority_is_refused_at_once(secured: Secured) -> None:
    settings = secured.settings(tls_ca_file=secured.other_ca_file)
    broker = KafkaBroker(secured.cluster.bootstrap.split(","), settings)
    with pytest.raises(BrokerRefused, match="certificate"):
        await asyncio.wait_for(broker.connect(), WITHIN)
    await broker.close()


@pytest.mark.kafka
async def test_a_client_certificate_is_shown(secured: Secured) -> None:
    broker = KafkaBroker(
        secured.cluster.bootstrap.split(","), secured.settings(tls_cert_file=secured.client_file)
    )
    await asyncio.wait_for(broker.connect(), WITHIN)
    await broker.close()


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"security_protocol": "plaintext"},
            "expects sasl_ssl .*PLAIN, SCRAM-SHA-256, SCRAM-SHA-512.*set it to sasl_ssl",
        ),
        ({"security_protocol": "sasl_plaintext"}, "set it to sasl_ssl"),
        ({"security_protocol": "ssl"}, "set it to sasl_ssl, kafka.sasl_mechanism"),
    ],
)
async def test_a_wrong_protocol_is_named_with_the_right_one(
    secured: Secured, changes: dict[str, Any], said: str
) -> None:
    broker = KafkaBroker(secured.cluster.bootstrap.split(","), secured.settings(**changes))
    with pytest.raises(BrokerRefused, match=said):
        await asyncio.wait_for(broker.connect(), WITHIN)
    assert re.search(said, broker.problem or "")
    await broker.close()


@pytest.mark.kafka
@pytest.mark.parametrize("protocol", ["ssl", "sasl_ssl", "sasl_plaintext"])
async def test_a_plaintext_port_is_named(secured: Secured, kafka: str, protocol: str) -> None:
    broker = KafkaBroker([kafka], secured.settings(security_protocol=protocol))
    with pytest.raises(BrokerRefused, match=r"expects plaintext, .*set it to plaintext"):
        await asyncio.wait_for(broker.connect(), WITHIN)
    await broker.close()


async def test_brokers_that_all_moved_are_found_through_the_bootstrap_servers(
    unique: Callable[[str], str],
) -> None:
    """As when a cluster is made anew behind the same name: the library by itself asks the old addresses for ever."""
    with MockCluster() as before, MockCluster() as after:
        front = Forwarder(free_port(), before.bootstrap)
        await front.start()
        backend = OnKafka(unique, f"127.0.0.1:{front.port}")
        topic = unique("topic")
        for cluster in (before, after):
            cluster.create_topic(topic, 1)
        try:
            broker = await backend.connect(QUICK.model_copy(update={"request_timeout": 2.0}))
            member = Member(broker, [topic], unique("group"))
            await member.consumer.start()
            await broker.produce([Message(topic, b"before")])
            await member.poll_for(1)
            front.target = after.bootstrap
            await front.cut()
            before.down()
            async with member.polling():
                await eventually(lambda: broker.problem is not None)
                await eventually(lambda: broker.problem is None)
                await produced(broker, Message(topic, b"after"))
                assert await broker.read(TopicPartition(topic, 0), 0) is not None
        finally:
            await backend.close_all()
            await front.stop()


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
