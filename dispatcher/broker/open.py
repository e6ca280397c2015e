"""The broker that a URL names."""

from __future__ import annotations

import re
import socket
from pathlib import Path

from dispatcher.broker.base import Broker
from dispatcher.broker.kafka.broker import KafkaBroker
from dispatcher.broker.kafka.client import client_options
from dispatcher.broker.kafka.predecessor import member_name
from dispatcher.broker.sqlite.broker import SqliteBroker
from dispatcher.settings.groups import KafkaSettings, SqliteSettings

FORMS = "kafka://host:9092,host2:9092, sqlite:///relative/path.db or sqlite:////absolute/path.db"
DEFAULT_PORT = 9092

_SERVER = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:/@\[\],]+)(?::(?P<port>[0-9]{1,5}))?")


def open_broker(
    url: str, kafka: KafkaSettings, sqlite: SqliteSettings | None = None, *, port: int | None = None
) -> Broker:
    """The broker at `url`, not connected yet. A bad URL raises ValueError with the forms there are.

    `port`: where this process serves HTTP, if it is a replica; by it and `kafka.member_name` its groups know it again.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "kafka":
        name = member_name(kafka.member_name, socket.gethostname(), port) if port is not None else None
        return KafkaBroker(kafka_servers(rest), kafka, name)
    if separator and scheme == "sqlite":
        sqlite = sqlite or SqliteSettings()
        return SqliteBroker(
            sqlite_path(rest),
            partitions=sqlite.partitions,
            retention=sqlite.retention,
            offset_reset=kafka.offset_reset,
        )
    raise ValueError(f"{_shown(url)} is no broker URL: it must be {FORMS}")


def check_broker(url: str, kafka: KafkaSettings) -> None:
    """Raise ValueError or BrokerRefused for what is wrong and can be told without contacting anybody."""
    scheme, _, rest = url.partition("://")
    if scheme == "kafka":
        client_options(kafka_servers(rest), kafka)
    else:
        open_broker(url, kafka)


def kafka_servers(rest: str) -> list[str]:
    """`host:port` of each bootstrap server."""
    servers = []
    for server in rest.split(","):
        if "@" in server:
            raise ValueError(
                "a kafka:// URL holds no credentials: they belong into kafka.sasl_username and kafka.sasl_password"
            )
        match = _SERVER.fullmatch(server.strip().rstrip("/"))
        if match is None or (match["port"] is not None and not 0 < int(match["port"]) < 65536):
            raise ValueError(f"{server!r} is no Kafka server: a broker URL must be {FORMS}")
        servers.append(f"{match['host']}:{match['port'] or DEFAULT_PORT}")
    return servers


def sqlite_path(rest: str) -> Path:
    """The file: after `sqlite:///`, so that an absolute path has four slashes."""
    path = rest[1:]
    if not rest.startswith("/") or not path or path.endswith("/"):
        raise ValueError(f"sqlite://{rest} names no file: a broker URL must be {FORMS}")
    return Path(path)


def _shown(url: str) -> str:
    """As it may be logged: what stands before an @ could be a password."""
    return repr(re.sub(r"//[^/@]*@", "//***@", url))
