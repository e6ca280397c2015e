from __future__ import annotations

from pathlib import Path

import pytest

from dispatcher.settings.broker_url import KafkaServers, SqliteFile, parse_broker_url
from dispatcher.settings.groups import Settings


@pytest.mark.parametrize(
    ("rest", "servers"),
    [
        ("h", ["h:9092"]),
        ("h:1,h2:65535", ["h:1", "h2:65535"]),
        (
            "kafka-0.kafka.svc:9093, kafka-1.kafka.svc:9093",
            ["kafka-0.kafka.svc:9093", "kafka-1.kafka.svc:9093"],
        ),
        ("[::1]:9092,[fe80::1]", ["[::1]:9092", "[fe80::1]:9092"]),
        ("h:9092/", ["h:9092"]),
    ],
)
def test_kafka_servers(rest: str, servers: list[str]) -> None:
    assert parse_broker_url(f"kafka://{rest}") == KafkaServers(tuple(servers))


def test_sqlite_paths_are_relative_with_three_slashes_and_absolute_with_four() -> None:
    assert parse_broker_url("sqlite:///./dispatcher-data/log.db") == SqliteFile(
        Path("dispatcher-data/log.db")
    )
    assert parse_broker_url("sqlite:////var/lib/log.db") == SqliteFile(Path("/var/lib/log.db"))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "kafka",
        "localhost:9092",
        "amqp://localhost",
        "KAFKA://localhost",
        "kafka://",
        "kafka://h:0",
        "kafka://h:65536",
        "kafka://h:port",
        "kafka://h,,h2",
        "kafka://h/topic",
        "kafka://::1",
        "sqlite://",
        "sqlite:///",
        "sqlite://log.db",
        "sqlite:///directory/",
        "sqlite:///log.db?mode=ro",
        "kafka://user:hunter2@host",
        "nats://user:hunter2@host",
    ],
)
def test_what_is_no_broker_url_is_refused_and_never_repeated(url: str) -> None:
    with pytest.raises(
        ValueError, match=r"^must (be kafka://host:9092,host2:9092|not contain credentials)"
    ) as raised:
        parse_broker_url(url)
    assert "hunter2" not in str(raised.value)


def test_the_settings_say_which_broker_it_is() -> None:
    assert Settings().embedded
    assert Settings().broker_address == SqliteFile(Path("dispatcher-data/log.db"))
    assert not Settings(broker="kafka://h").embedded
