"""What several brokers say about topics, where they don't say the same."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import errors

from dispatcher.broker.base import BrokerUnavailable, Remembered
from dispatcher.broker.kafka.wire.metadata import TopicsSeen, look, survey

OLD, NEW = uuid.uuid4(), uuid.uuid4()
DENIED = errors.TopicAuthorizationFailedError.errno
READ = {"events": Remembered(OLD.hex, 2)}

pytestmark = [pytest.mark.looptime]


class Client:
    """Brokers that answer each with its own topics: id and number of partitions, None where the topic may not be seen."""

    def __init__(self, *brokers: Mapping[str, tuple[uuid.UUID, int] | None] | Exception) -> None:
        self.brokers = brokers
        self.asked: list[int] = []
        self.cluster = SimpleNamespace(
            brokers=lambda: [SimpleNamespace(nodeId=node) for node in range(len(brokers))]
        )

    def get_random_node(self) -> int:
        return 0

    async def send(self, node: int, request: Any) -> Any:
        self.asked.append(node)
        broker = self.brokers[node]
        if isinstance(broker, Exception):
            raise broker
        topics = [
            (DENIED, name, bytes(16), False, [])
            if topic is None
            else (0, name, topic[0].bytes, False, [()] * topic[1])
            for name, topic in broker.items()
        ]
        return SimpleNamespace(topics=topics)


async def seen(*brokers: Any, known: Mapping[str, Remembered] = READ) -> TopicsSeen:
    return await survey(Client(*brokers), ["events"], known)


async def test_one_broker_is_asked_where_it_says_what_is_known() -> None:
    client = Client({"events": (OLD, 2)}, {})
    assert (await survey(client, ["events"], READ)).there == READ
    assert client.asked == [0]


@pytest.mark.parametrize(
    "stale",
    [
        pytest.param({}, id="knows of no topics yet"),
        pytest.param({"events": (NEW, 2)}, id="knows another topic"),
        pytest.param({"events": (OLD, 1)}, id="knows fewer partitions"),
    ],
)
async def test_a_topic_is_not_gone_because_one_broker_does_not_know_it(stale: Any) -> None:
    assert (await seen(stale, {"events": (OLD, 2)}, {"events": (OLD, 2)})).there == READ


async def test_a_topic_that_no_broker_knows_is_gone() -> None:
    assert await seen({}, {}, errors.KafkaConnectionError()) == TopicsSeen({})


async def test_a_topic_that_every_broker_knows_as_another_one_is_another_one() -> None:
    found = await seen({"events": (NEW, 1)}, {"events": (NEW, 3)})
    assert found.there == {"events": Remembered(NEW.hex, 3)}


async def test_a_topic_that_may_not_be_seen_is_neither_there_nor_gone() -> None:
    assert await seen({"events": None}) == TopicsSeen({}, frozenset({"events"}))
    assert (await seen({"events": None}, {"events": (OLD, 2)}, known={})).denied == {"events"}


async def test_without_any_answer_nothing_is_said_about_topics() -> None:
    client = Client(errors.KafkaConnectionError("away"))
    with pytest.raises(BrokerUnavailable, match="away"):
        await look(client, ["events"])
    with pytest.raises(BrokerUnavailable, match="away"):
        await survey(client, ["events"], READ)
