from __future__ import annotations

import pytest

from dispatcher.broker.base import (
    BrokerRefused,
    TopicSpec,
    creation_command,
)
from tests.broker.backends import Backend, administered


@administered
async def test_a_topic_that_is_there_must_be_as_an_exact_spec_says(backend: Backend) -> None:
    broker = await backend.connect()
    many = await backend.topic(broker, 2, cleanup_policy="compact")
    deleting = await backend.topic(broker, 1, cleanup_policy="delete")
    right = await backend.topic(broker, 1, cleanup_policy="compact")

    def spec(name: str) -> TopicSpec:
        return TopicSpec(name, 1, config={"cleanup.policy": "compact"}, exact=True)

    for create in (True, False):
        assert await broker.ensure_topics([spec(right)], create=create) == []
        with pytest.raises(BrokerRefused, match="2 partitions; it must have 1"):
            await broker.ensure_topics([spec(many)], create=create)
        with pytest.raises(BrokerRefused, match=r"cleanup\.policy delete"):
            await broker.ensure_topics([spec(deleting)], create=create)
        assert await broker.ensure_topics([spec(deleting)._replace(exact=False)], create=create) == []


def test_the_command_that_makes_a_topic_can_be_pasted() -> None:
    assert creation_command(TopicSpec("events")) == (
        "kafka-topics.sh --bootstrap-server ... --create --topic events"
    )
    spec = TopicSpec("t", 4, 3, {"cleanup.policy": "compact", "retention.bytes": "-1"})
    assert creation_command(spec).endswith(
        "--topic t --partitions 4 --replication-factor 3 --config cleanup.policy=compact --config retention.bytes=-1"
    )
