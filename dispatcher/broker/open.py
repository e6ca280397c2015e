"""The broker that a URL names."""

from __future__ import annotations

import socket

from dispatcher.broker.base import Broker
from dispatcher.broker.kafka.broker import KafkaBroker
from dispatcher.broker.kafka.client import client_options
from dispatcher.broker.kafka.predecessor import member_name
from dispatcher.broker.sqlite.broker import SqliteBroker
from dispatcher.settings.broker_url import KafkaServers, SqliteFile, parse_broker_url
from dispatcher.settings.groups import KafkaSettings, SqliteSettings


def open_broker(
    url: str,
    kafka: KafkaSettings,
    sqlite: SqliteSettings | None = None,
    *,
    port: int | None = None,
    worker: int | None = None,
) -> Broker:
    """The broker at `url`, not connected yet. A bad URL raises ValueError with the forms there are.

    `port`: where this process serves HTTP, if it is a replica; by it and `kafka.member_name` its groups know it again.
    `worker`: its number, where several of them share both.
    """
    match _parsed(url):
        case KafkaServers(servers):
            name = member_name(kafka.member_name, socket.gethostname(), port) if port is not None else None
            if name is not None and worker is not None:
                name = name.of_worker(worker)
            return KafkaBroker(servers, kafka, name)
        case SqliteFile(path):
            sqlite = sqlite or SqliteSettings()
            return SqliteBroker(
                path,
                partitions=sqlite.partitions,
                retention=sqlite.retention,
                offset_reset=kafka.offset_reset,
            )


def check_broker(url: str, kafka: KafkaSettings) -> None:
    """Raise ValueError or BrokerRefused for what is wrong and can be told without contacting anybody."""
    match _parsed(url):
        case KafkaServers(servers):
            client_options(servers, kafka)


def _parsed(url: str) -> KafkaServers | SqliteFile:
    try:
        return parse_broker_url(url)
    except ValueError as error:
        raise ValueError(f"the broker URL {error}") from None
