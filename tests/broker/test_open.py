from __future__ import annotations

from pathlib import Path

import pytest

from dispatcher.broker.kafka.broker import KafkaBroker
from dispatcher.broker.open import open_broker
from dispatcher.broker.sqlite.broker import SqliteBroker
from dispatcher.settings.groups import KafkaSettings


async def test_the_scheme_decides_which_broker_it_is(tmp_path: Path) -> None:
    assert isinstance(open_broker("kafka://localhost", KafkaSettings()), KafkaBroker)
    broker = open_broker(f"sqlite:///{tmp_path}/log.db", KafkaSettings())
    assert isinstance(broker, SqliteBroker)
    await broker.close()
    assert not list(tmp_path.iterdir()), "nothing is touched before connect()"


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
    ],
)
def test_a_bad_url_gives_one_line_with_the_forms_there_are(url: str) -> None:
    with pytest.raises(ValueError, match="kafka://host:9092,host2:9092") as raised:
        open_broker(url, KafkaSettings())
    assert "\n" not in str(raised.value)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    for url in ("kafka://user:hunter2@host:9092", "nats://user:hunter2@host"):
        with pytest.raises(ValueError, match="kafka") as raised:
            open_broker(url, KafkaSettings())
        assert "hunter2" not in str(raised.value)
