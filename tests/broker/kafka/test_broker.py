"""What only Kafka has: security, transactions, compression, brokers that fail, a client library that dies."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiokafka import AIOKafkaProducer, TopicPartition as KafkaPartition
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Int8, Int16, Int32, Schema, String
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import SecretStr

from dispatcher.broker.base import (
    Broker,
    BrokerRefused,
    BrokerUnavailable,
    CommitRefused,
    Message,
    MessageTooLarge,
    Position,
    TopicPartition,
    TopicSpec,
    Why,
)
from dispatcher.broker.kafka import producer as kafka_producer
from dispatcher.broker.kafka.broker import KafkaBroker
from dispatcher.settings.groups import KafkaSettings
from tests.broker.backends import QUICK, WITHIN, Forwarder, Member, OnKafka, OnMock, eventually
from tests.kafka.fencing import fence
from tests.kafka.mock import MockCluster
from tests.kafka.server import Cluster, Unavailable
from tests.ports import free_port

PRODUCE = 0  # Kafka's API keys
FETCH = 1
OFFSET_COMMIT = 8


@pytest.fixture
async def on_kafka(kafka: str, unique: Callable[[str], str]) -> AsyncIterator[OnKafka]:
    backend = OnKafka(unique, kafka)
    yield backend
    await backend.close_all()


@pytest.fixture
async def on_mock(mock_kafka: MockCluster, unique: Callable[[str], str]) -> AsyncIterator[OnMock]:
    backend = OnMock(unique, mock_kafka)
    yield backend
    for api_key in (PRODUCE, FETCH, OFFSET_COMMIT):
        mock_kafka.clear(api_key)
    await backend.close_all()


# Security, on a real broker.


class Secured:
    """A cluster that asks for TLS and SASL, and what its clients need."""

    def __init__(self, directory: Path) -> None:
        authority, stranger = trustme.CA(), trustme.CA()
        self.ca_file, self.other_ca_file = directory / "ca.pem", directory / "other.pem"
        authority.cert_pem.write_to_path(str(self.ca_file))
        stranger.cert_pem.write_to_path(str(self.other_ca_file))
        server = authority.issue_cert("127.0.0.1", "localhost")
        key = load_pem_private_key(server.private_key_pem.bytes(), None)
        keystore = directory / "server.pem"
        keystore.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            + b"".join(blob.bytes() for blob in server.cert_chain_pems)
        )
        self.client_file = directory / "client.pem"
        authority.issue_cert("client.example").private_key_and_cert_chain_pem.write_to_path(
            str(self.client_file)
        )
        listener = "listener.name.sasl_ssl"
        login = "org.apache.kafka.common.security"
        users = 'user_admin="admin-secret" user_alice="alice-secret"'
        self.cluster = Cluster(
            protocol="SASL_SSL",
            properties={
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": keystore,
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": self.ca_file,
                "ssl.client.auth": "requested",
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "allow.everyone.if.no.acl.found": "true",
                "super.users": "User:admin;User:ANONYMOUS",
                "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
                "sasl.mechanism.inter.broker.protocol": "PLAIN",
                f"{listener}.plain.sasl.jaas.config": f"{login}.plain.PlainLoginModule required"
                f' username="admin" password="admin-secret" {users};',
                f"{listener}.scram-sha-256.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
                f"{listener}.scram-sha-512.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
            },
            format_arguments=[
                "--add-scram",
                "SCRAM-SHA-256=[name=alice,password=alice-secret]",
                "--add-scram",
                "SCRAM-SHA-512=[name=alice,password=alice-secret]",
            ],
        )

    def settings(
        self, mechanism: str = "PLAIN", password: str = "alice-secret", **more: Any
    ) -> KafkaSettings:
        return QUICK.model_copy(
            update={
                "security_protocol": "sasl_ssl",
                "sasl_mechanism": mechanism,
                "sasl_username": "alice",
                "sasl_password": SecretStr(password),
                "tls_ca_file": self.ca_file,
                **more,
            }
        )


class _AclsCreated(Response):  # type: ignore[misc] # the library has no types
    API_KEY = 30
    API_VERSION = 1
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("results", Array(("error_code", Int16), ("error_message", String("utf-8")))),
    )


class _CreateAcls(RequestStruct):  # type: ignore[misc] # likewise
    API_KEY = 30
    API_VERSION = 1
    RESPONSE_TYPE = _AclsCreated
    SCHEMA = Schema(
        (
            "creations",
            Array(
                ("resource_type", Int8),
                ("resource_name", String("utf-8")),
                ("pattern_type", Int8),
                ("principal", String("utf-8")),
                ("host", String("utf-8")),
                ("operation", Int8),
                ("permission_type", Int8),
            ),
        )
    )


class _AclRequest(Request[_CreateAcls]):  # type: ignore[misc] # likewise
    API_KEY = 30

    def __init__(self, *acls: tuple[Any, ...]) -> None:
        self._acls = list(acls)

    def build(self, request_struct_class: type[_CreateAcls]) -> _CreateAcls:
        return request_struct_class(self._acls)


async def allow_nobody_but_bob(boss: Broker, resource: int, name: str) -> None:
    """An ACL on a topic (2) or a group (3), of somebody else: whoever has none there may do nothing any more."""
    assert isinstance(boss, KafkaBroker)
    client = await boss._connected().live_client()
    response = await client.send(
        client.get_random_node(), _AclRequest((resource, name, 3, "User:bob", "*", 3, 3))
    )
    assert [code for code, _ in response.results] == [0]


@pytest.fixture(scope="module")
def secured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    # Asked for here so that a machine without Java skips, and CI fails, in one place.
    request.getfixturevalue("kafka")
    made = Secured(tmp_path_factory.mktemp("secured"))
    try:
        made.cluster.start()
    except Unavailable as error:
        pytest.skip(f"no real Apache Kafka: {error}")
    yield made
    made.cluster.stop()


@pytest.mark.kafka
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_everything_works_over_tls_with_each_sasl_mechanism(
    secured: Secured, unique: Callable[[str], str], mechanism: str
) -> None:
    backend = OnKafka(unique, secured.cluster.bootstrap)
    try:
        broker = await backend.connect(secured.settings(mechanism))
        topic = await backend.topic(broker)
        await broker.produce([Message(topic, b"v", partition=0)])
        member = Member(broker, [topic], unique("group"))
        await member.consumer.start()
        await member.poll_for(1)
        await member.consumer.commit({TopicPartition(topic, 0): Position(1)})
        record = await broker.read(TopicPartition(topic, 0), 0)
        assert record is not None
        assert record.value == b"v"
    finally:
        await backend.close_all()


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


@pytest.mark.kafka
async def test_rights_that_are_missing_are_warnings_until_they_are_given(
    secured: Secured, unique: Callable[[str], str]
) -> None:
    backend = OnKafka(unique, secured.cluster.bootstrap)
    try:
        boss = await backend.connect(secured.settings(sasl_username="admin", password="admin-secret"))
        topic, group = await backend.topic(boss), unique("group")
        await allow_nobody_but_bob(boss, 2, topic)
        broker = await backend.connect(secured.settings())
        assert isinstance(broker, KafkaBroker)

        async def warned(topics: dict[str, tuple[str, ...]], groups: dict[str, tuple[str, ...]]) -> list[str]:
            """Once the broker has heard of its own ACL."""
            async with asyncio.timeout(WITHIN):
                while not broker.warnings():
                    await broker.check_rights(topics, groups)
            return broker.warnings()

        read, write = await warned({topic: ("READ", "WRITE")}, {group: ("READ",)})
        assert read.startswith(f"the broker does not let us READ the topic {topic}: ")
        assert write.startswith(f"the broker does not let us WRITE the topic {topic}: ")
        assert "--add --allow-principal User:alice --operation Write --topic" in write
        await broker.check_rights({}, {group: ("READ",)})
        assert broker.warnings() == []
        await allow_nobody_but_bob(boss, 3, group)
        (warning,) = await warned({}, {group: ("READ",)})
        assert f"READ the group {group}" in warning
        await broker.check_rights({}, {unique("group"): ("READ",)})
        assert broker.warnings() == []
    finally:
        await backend.close_all()


@pytest.mark.kafka
async def test_topics_that_may_not_be_seen_are_named_at_the_start(
    secured: Secured, unique: Callable[[str], str]
) -> None:
    backend = OnKafka(unique, secured.cluster.bootstrap)
    try:
        boss = await backend.connect(secured.settings(sasl_username="admin", password="admin-secret"))
        there, new = await backend.topic(boss), unique("topic")
        for topic in (there, new):
            await allow_nobody_but_bob(boss, 2, topic)
        broker = await backend.connect(secured.settings())
        specs = [TopicSpec(there, 4), TopicSpec(new, 1)]
        said = ""
        async with asyncio.timeout(WITHIN):
            while not (there in said and new in said):  # until the broker has heard of both of its ACLs
                try:
                    await broker.ensure_topics(specs, create=False)
                except BrokerRefused as refused:
                    said = str(refused)
        assert "--allow-principal User:alice --operation Read --operation Write" in said
    finally:
        await backend.close_all()


# Writing.


@pytest.mark.parametrize("compression", ["none", "gzip", "lz4", "snappy", "zstd"])
async def test_every_compression_can_be_written_and_read(on_kafka: OnKafka, compression: str) -> None:
    broker = await on_kafka.connect(QUICK.model_copy(update={"compression": compression}))
    topic = await on_kafka.topic(broker)
    await broker.produce([Message(topic, b"%d" % n + b"." * 1000, partition=0) for n in range(1000)])
    member = Member(broker, [topic], on_kafka.unique("group"))
    await member.consumer.start()
    await member.poll_for(1000)
    assert [int((value or b"").rstrip(b".")) for value in member.values] == list(range(1000))


@pytest.mark.parametrize(
    "codes",
    [
        pytest.param((6, 6), id="not leader"),
        pytest.param((7,), id="timed out"),
        pytest.param((19, 20), id="not enough replicas"),
        pytest.param((5, 3), id="leader not available, unknown topic"),
    ],
)
async def test_passing_errors_of_the_broker_are_tried_again(on_mock: OnMock, codes: tuple[int, ...]) -> None:
    broker = await on_mock.connect()
    topic = await on_mock.topic(broker)
    await broker.produce([Message(topic, b"before", partition=0)])
    on_mock.cluster.fail_next(PRODUCE, *codes)
    await asyncio.wait_for(broker.produce([Message(topic, b"after", partition=0)]), WITHIN)
    record = await broker.read(TopicPartition(topic, 0), 1)
    assert record is not None
    assert record.value == b"after"


async def test_a_write_that_is_not_allowed_is_refused(on_mock: OnMock) -> None:
    broker = await on_mock.connect()
    topic = await on_mock.topic(broker)
    on_mock.cluster.fail_next(PRODUCE, 29)
    with pytest.raises(BrokerRefused):
        await broker.produce([Message(topic, b"v", partition=0)])
    await broker.produce([Message(topic, b"v", partition=0)])


# 59 is what brokers before 2.5 said once they had forgotten a producer; since then they take whatever number comes next.
@pytest.mark.parametrize("code", [45, 59], ids=["out of order", "unknown producer"])
async def test_lost_sequence_numbers_cost_a_fresh_producer_and_no_record(on_mock: OnMock, code: int) -> None:
    broker: Any = await on_mock.connect()
    topic = await on_mock.topic(broker)
    await broker.produce([Message(topic, b"0", partition=0)])
    producer = broker._producer._live
    on_mock.cluster.fail_next(PRODUCE, code)
    await broker.produce([Message(topic, b"1", partition=0)])
    assert broker._producer._live is not producer
    record = await broker.read(TopicPartition(topic, 0), 1)
    assert record is not None
    assert record.value == b"1"


@pytest.mark.parametrize(
    ("code", "named"), [(56, "can't use its disk"), (19, "too few replicas"), (20, "too few replicas")]
)
async def test_what_a_broker_refuses_for_now_is_named_while_it_does(
    on_mock: OnMock, code: int, named: str
) -> None:
    broker = await on_mock.connect()
    topic = await on_mock.topic(broker)
    on_mock.cluster.fail_next(PRODUCE, *[code] * 12)  # three seconds of it
    call = asyncio.get_running_loop().create_task(broker.produce([Message(topic, b"0", partition=0)]))
    await eventually(lambda: broker.problem is not None)
    assert f"writing to {topic}-0: " in (broker.problem or "")
    assert named in (broker.problem or "")
    await call
    assert broker.problem is None
    record = await broker.read(TopicPartition(topic, 0), 0)
    assert record is not None
    assert await broker.read(TopicPartition(topic, 0), 1) is None, (
        "repeated by the library, not written twice"
    )


async def test_a_log_that_the_broker_cannot_read_is_said_and_tried_again(on_mock: OnMock) -> None:
    broker = await on_mock.connect()
    topic = await on_mock.topic(broker, 1)
    await broker.produce([Message(topic, b"0", partition=0)])
    member = Member(broker, [topic], on_mock.unique("group"))
    on_mock.cluster.fail_next(FETCH, 2, 2)
    await member.consumer.start()
    async with asyncio.timeout(WITHIN):
        while not member.consumer.stuck():
            await member.consumer.poll(0.1, 10)
    ((partition, batch),) = member.consumer.stuck().items()
    assert partition == (topic, 0)
    assert "CorruptRecordException (2)" in batch.reason
    assert not batch.skippable
    await member.poll_for(1)
    assert member.consumer.stuck() == {}


async def test_a_lost_authorization_is_refused_with_what_to_do(on_mock: OnMock) -> None:
    broker = await on_mock.connect()
    topic = await on_mock.topic(broker)
    on_mock.cluster.fail_next(PRODUCE, 29)
    with pytest.raises(BrokerRefused, match=rf"writing to {topic}-0: .*allow this user READ, WRITE"):
        await broker.produce([Message(topic, b"0", partition=0)])
    await broker.produce([Message(topic, b"0", partition=0)])
    assert broker.problem is None


async def test_a_fenced_producer_is_replaced_and_told_of(
    on_mock: OnMock, capsys: pytest.CaptureFixture[str]
) -> None:
    broker: Any = await on_mock.connect()
    topic = await on_mock.topic(broker)
    await broker.produce([Message(topic, b"0", partition=0)])
    producer = broker._producer._live
    on_mock.cluster.fail_next(PRODUCE, 47)
    await broker.produce([Message(topic, b"1", partition=0)])
    assert broker._producer._live is not producer
    assert "another producer was given its id" in capsys.readouterr().out
    assert broker.problem is None


async def test_a_producer_that_is_fenced_again_and_again_is_named_until_one_is_not(
    on_mock: OnMock,
) -> None:
    broker: Any = await on_mock.connect()
    topic = await on_mock.topic(broker)
    await broker.produce([Message(topic, b"0", partition=0)])
    on_mock.cluster.fail_next(PRODUCE, *[47] * 4)
    call = asyncio.get_running_loop().create_task(broker.produce([Message(topic, b"1", partition=0)]))
    await eventually(lambda: broker.problem is not None)
    assert f"writing to {topic}-0: " in broker.problem
    assert "another producer was given its id" in broker.problem
    await call
    assert broker.problem is None
    record = await broker.read(TopicPartition(topic, 0), 1)
    assert record is not None
    assert record.value == b"1"


async def test_a_producer_that_a_real_broker_fences_is_replaced_and_every_record_written_once(
    on_kafka: OnKafka,
) -> None:
    broker: Any = await on_kafka.connect()
    topic = await on_kafka.topic(broker, partitions=2)
    await broker.produce([Message(topic, b"0", partition=0), Message(topic, b"0", partition=1)])
    producer = broker._producer._live
    await fence(on_kafka.address, topic, 0)
    await broker.produce([Message(topic, b"%d" % n, partition=n % 2) for n in range(1, 100)])
    assert broker._producer._live is not producer
    assert broker.problem is None
    member = Member(broker, [topic], on_kafka.unique("group"))
    await member.consumer.start()
    await member.poll_for(102)  # the impostor's is among them
    assert Counter(member.values) == Counter([b"0", None, *(b"%d" % n for n in range(100))])
    await member.consumer.stop()


async def test_a_bad_message_fails_its_own_call_only(on_mock: OnMock) -> None:
    broker = await on_mock.connect()
    topic = await on_mock.topic(broker)
    bad: Any = Message(topic, "text", partition=0)  # type: ignore[arg-type] # the mistake
    good = [Message(topic, b"v", partition=0)]
    outcomes = await asyncio.gather(
        broker.produce(good), broker.produce([bad]), broker.produce(good), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [type(None), TypeError, type(None)]


async def test_a_call_given_up_by_its_caller_blocks_nobody(on_mock: OnMock) -> None:
    broker = await on_mock.connect()
    topic = await on_mock.topic(broker)
    call = asyncio.get_running_loop().create_task(
        broker.produce([Message(topic, b"." * 1000, partition=0) for _ in range(2000)])
    )
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait_for(broker.produce([Message(topic, b"last", partition=0)]), WITHIN)


async def test_a_value_beyond_any_limit_is_not_even_sent(
    on_mock: OnMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_producer, "LARGEST_MESSAGE", 1000)
    broker = await on_mock.connect()
    topic = await on_mock.topic(broker)
    outcomes = await asyncio.gather(
        broker.produce([Message(topic, bytes(1001), partition=0)]),
        broker.produce([Message(topic, bytes(1000), partition=0)]),
        return_exceptions=True,
    )
    assert isinstance(outcomes[0], MessageTooLarge)
    assert outcomes[1] is None


@pytest.mark.kafka
@pytest.mark.slow
async def test_a_broker_of_three_may_die_in_the_middle_of_writing(
    kafka_cluster: Callable[..., Cluster], unique: Callable[[str], str]
) -> None:
    cluster = await asyncio.to_thread(kafka_cluster, 3)
    backend = OnKafka(unique, cluster.bootstrap)
    try:
        broker = await backend.connect(QUICK.model_copy(update={"request_timeout": 30.0}))
        topic = await backend.topic(broker, partitions=6)
        member = Member(broker, [topic], unique("group"))
        await member.consumer.start()

        async def write() -> None:
            for n in range(200):
                await broker.produce([Message(topic, b"%d" % n, b"key %d" % k) for k in range(20)])

        async with asyncio.timeout(90), member.polling(), asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(write())
            await asyncio.sleep(0.5)
            await asyncio.to_thread(cluster.nodes[1].kill)
            await writing
            await eventually(lambda: len({(r.key, r.value) for r in member.all}) == 4000)
        assert len({(place, r.offset) for place, r in member.placed}) == 4000, (
            "the idempotent producer wrote each once"
        )
    finally:
        await backend.close_all()


async def test_close_ends_calls_that_wait_for_a_broker_that_is_away(unique: Callable[[str], str]) -> None:
    with MockCluster() as cluster:
        backend = OnMock(unique, cluster)
        broker = await backend.connect()
        topic = await backend.topic(broker)
        await broker.produce([Message(topic, b"v", partition=0)])
        cluster.down()
        calls = [
            asyncio.get_running_loop().create_task(broker.produce([Message(topic, b"v", partition=0)]))
            for _ in range(3)
        ]
        await asyncio.sleep(0.3)
        await asyncio.wait_for(backend.close(broker), WITHIN)
        for call in calls:
            with pytest.raises(BrokerUnavailable):
                await asyncio.wait_for(call, 1)


async def test_a_batch_stuck_in_a_retired_producer_does_not_block_its_partition(
    unique: Callable[[str], str],
) -> None:
    with MockCluster() as cluster:
        backend = OnMock(unique, cluster)
        broker: Any = await backend.connect(QUICK.model_copy(update={"request_timeout": 1.0}))
        try:
            topic = await backend.topic(broker)
            await broker.produce([Message(topic, b"0", partition=0)])
            cluster.down()
            with pytest.raises(BrokerUnavailable):
                await broker.produce([Message(topic, b"stuck", partition=0)])
            broker._producer._retire(broker._producer._live)
            await eventually(lambda: not broker._producer._lanes[topic, 0].busy)
            cluster.up()
            await eventually(lambda: broker.problem is None)
            await asyncio.wait_for(broker.produce([Message(topic, b"1", partition=0)]), WITHIN)
        finally:
            await backend.close_all()


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
                await broker.produce([Message(topic, b"after")])
                assert await broker.read(TopicPartition(topic, 0), 0) is not None
        finally:
            await backend.close_all()
            await front.stop()


# Consuming.


async def test_records_of_an_aborted_transaction_are_not_returned(on_kafka: OnKafka) -> None:
    broker = await on_kafka.connect()
    topic = await on_kafka.topic(broker)
    producer = AIOKafkaProducer(bootstrap_servers=on_kafka.address, transactional_id=on_kafka.unique("tx"))
    await producer.start()
    try:
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"aborted", partition=0)
        await producer.abort_transaction()
        async with producer.transaction():
            await producer.send_and_wait(topic, b"committed", partition=0)
    finally:
        await producer.stop()
    member = Member(broker, [topic], on_kafka.unique("group"))
    await member.consumer.start()
    await member.poll_for(1)
    await member.poll()
    assert member.values == [b"committed"]
    assert await broker.read(TopicPartition(topic, 0), 0) is None
    marker = member.all[0].offset + 1
    assert await broker.read(TopicPartition(topic, 0), marker) is None


async def test_a_dead_task_inside_the_library_means_a_new_member_not_silence(on_kafka: OnKafka) -> None:
    broker = await on_kafka.connect()
    topic = await on_kafka.topic(broker)
    member: Any = Member(broker, [topic], on_kafka.unique("group"))
    await member.consumer.start()
    for part, task in (("_fetcher", "_fetch_task"), ("_coordinator", "_coordination_task")):
        library = member.consumer._consumer
        getattr(getattr(library, part), task).cancel()
        await member.poll_until(
            lambda library=library: (
                member.consumer._consumer not in {None, library} and member.consumer.problem is None
            )
        )
    await broker.produce([Message(topic, b"v", partition=0)])
    await member.poll_for(1)
    assert member.listener.calls == ["assigned", "revoked", "assigned", "revoked", "assigned"]


async def test_offsets_that_go_back_begin_their_partition_anew(on_kafka: OnKafka) -> None:
    """Whoever knows the old ones would take the new records for seen."""
    broker = await on_kafka.connect()
    topic = await on_kafka.topic(broker)
    await broker.produce([Message(topic, b"%d" % n, partition=0) for n in range(5)])
    member: Any = Member(broker, [topic], on_kafka.unique("group"))
    await member.consumer.start()
    await member.poll_for(5)
    consumer = member.consumer
    consumer._consumer.seek(KafkaPartition(topic, 0), 1)  # as an out-of-range reset does
    await member.poll_for(10)
    assert [(jump.partition, jump.why) for jump in member.listener.jumps] == [((topic, 0), Why.CUT)]
    assert member.listener.gone == {(topic, 0)}


async def test_a_commit_is_cut_off_when_its_partitions_are_given_up(on_mock: OnMock) -> None:
    """Kafka would take it with the new generation, over the head of the partition's next owner."""
    broker = await on_mock.connect()
    topic = await on_mock.topic(broker)
    member: Any = Member(broker, [topic], on_mock.unique("group"))
    await member.consumer.start()
    on_mock.cluster.fail_next(OFFSET_COMMIT, *[14] * 40)  # the coordinator is loading, for ten seconds
    commit = asyncio.get_running_loop().create_task(
        member.consumer.commit({TopicPartition(topic, 0): Position(1)})
    )
    await asyncio.sleep(0.5)
    assert not commit.done()
    await member.consumer.revoke()
    with pytest.raises(CommitRefused):
        await asyncio.wait_for(commit, 2)


async def test_a_commit_that_gets_no_answer_ends_as_unavailable(on_mock: OnMock) -> None:
    broker = await on_mock.connect(QUICK.model_copy(update={"request_timeout": 1.0}))
    topic = await on_mock.topic(broker)
    member = Member(broker, [topic], on_mock.unique("group"))
    await member.consumer.start()
    on_mock.cluster.fail_next(OFFSET_COMMIT, *[14] * 40)
    with pytest.raises(BrokerUnavailable):
        await member.consumer.commit({TopicPartition(topic, 0): Position(1)})
    on_mock.cluster.clear(OFFSET_COMMIT)
    await member.consumer.commit({TopicPartition(topic, 0): Position(1)})
