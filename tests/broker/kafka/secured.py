"""A cluster that asks for TLS, SASL and rights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trustme
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
)
from dispatcher.broker.kafka.broker import KafkaBroker
from dispatcher.settings.groups import KafkaSettings
from tests.broker.backends import QUICK
from tests.kafka.server import Cluster


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
