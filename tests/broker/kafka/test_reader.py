from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from dispatcher.broker.base import (
    BrokerError,
    Message,
    TopicPartition,
)
from dispatcher.broker.kafka.reader import fetch_wait
from dispatcher.settings.groups import KafkaSettings
from tests.broker.backends import OnKafka
from tests.broker.test_contract import numbered, numbers
from tests.broker.test_reader import read_until, started


async def test_a_reader_whose_library_task_has_died_goes_on_where_it_was(
    kafka: str, unique: Callable[[str], str]
) -> None:
    backend = OnKafka(unique, kafka)
    broker = await backend.connect()
    topic = await backend.topic(broker)
    await broker.produce(numbered(topic, 3))
    reader = broker.reader(topic)
    await reader.start()
    assert numbers(await read_until(reader, lambda values: len(values) >= 3)) == [0, 1, 2]
    task = reader._consumer._fetcher._fetch_task  # type: ignore[attr-defined]
    task.cancel()
    await asyncio.wait([task])
    await broker.produce([Message(topic, b"3", partition=0)])
    assert numbers(await read_until(reader, len)) == [3]
    await backend.close_all()


async def test_a_topic_made_anew_is_an_error_and_not_read_as_if_it_went_on(
    kafka: str, unique: Callable[[str], str]
) -> None:
    backend = OnKafka(unique, kafka)
    broker = await backend.connect()
    topic = await backend.topic(broker)
    await broker.produce(numbered(topic, 30))
    reader = await started(broker, topic)
    assert len(await read_until(reader, lambda values: len(values) >= 30)) == 30
    await broker.produce(numbered(topic, 30))
    # As far as this reader can tell: what it would read next is not there any more.
    await backend.delete_before(broker, TopicPartition(topic, 0), 60)
    reader._consumer.seek(TopicPartition(topic, 0), 40)  # type: ignore[attr-defined]
    with pytest.raises(BrokerError, match="start again"):
        await read_until(reader, lambda _: False)
    await backend.close_all()


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [
        ({}, 2.0),
        ({"fetch_max_wait": 5.0}, 5.0),
        ({"fetch_max_wait": 0.1, "request_timeout": 1.0}, 0.5),
    ],
)
def test_an_empty_answer_is_waited_for_as_long_as_no_request_takes(
    settings: dict[str, float], seconds: float
) -> None:
    assert fetch_wait(KafkaSettings(**settings)) == seconds
