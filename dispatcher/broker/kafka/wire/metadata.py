"""Which topics there are, with the ids that Kafka gives them: a topic made anew has another one.

The client library's own request knows no ids; they came with version 10 of the protocol's metadata (Kafka 2.8,
KIP-516). An older broker is asked without, and its topics have no id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, Final, NamedTuple

from aiokafka import errors
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from dispatcher.broker.base import BrokerRefused, Remembered
from dispatcher.broker.kafka.client import describe, mapped

_METADATA: Final = 3
_NO_ID: Final = bytes(16)
_PATIENCE: Final = 1.0  # seconds that a broker may take where all of them are asked


class _Uuid(AbstractType[bytes]):  # type: ignore[misc] # the library has no types
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


class _Response(Response):  # type: ignore[misc]
    API_KEY = _METADATA
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _RequestStruct(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = _METADATA
    API_VERSION = 10
    RESPONSE_TYPE = _Response
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", _Uuid), ("topic", CompactString("utf-8")), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _Request(Request[_RequestStruct]):  # type: ignore[misc]
    API_KEY = _METADATA

    def __init__(self, topics: Sequence[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[Any]) -> Any:
        topics: list[Any] = [(_NO_ID, topic, {}) for topic in self._topics]
        return request_struct_class(topics, False, False, False, {})


class TopicsSeen(NamedTuple):
    """Topics as brokers tell of them."""

    there: dict[str, Remembered]
    denied: frozenset[str] = frozenset()
    """Those that this user may not see."""


async def look(client: AIOKafkaClient, topics: Sequence[str]) -> TopicsSeen:
    """Those of the topics that exist, as one broker knows them; none is created."""
    problem: BaseException = errors.NoBrokersAvailable()
    for _ in range(3):
        node = client.get_random_node()
        if node is None:
            break
        try:
            return await _ask(client, node, topics)
        except (errors.KafkaError, OSError, TimeoutError) as error:
            problem = error
            await asyncio.sleep(0.1)
    raise mapped(problem, "asking for topics") from problem


async def survey(
    client: AIOKafkaClient, topics: Sequence[str], known: Mapping[str, Remembered]
) -> TopicsSeen:
    """The same; where the answer contradicts what is `known` of a topic, as all brokers together know it.

    A broker that has just been started, or that has lost its controller, tells of topics as they were, or of none. So a
    topic is gone, is another one or has fewer partitions only where no broker that answers says otherwise.
    """
    seen = await look(client, topics)
    if all(_agrees(seen, topic, before) for topic, before in known.items() if topic in topics):
        return seen

    async def asked(node: int) -> TopicsSeen | None:
        try:
            async with asyncio.timeout(_PATIENCE):
                return await _ask(client, node, topics)
        except (errors.KafkaError, OSError, TimeoutError):
            return None  # a broker that is away knows nothing

    answers = await asyncio.gather(*(asked(broker.nodeId) for broker in client.cluster.brokers()))
    return merged([seen, *(answer for answer in answers if answer is not None)], known)


def merged(answers: Sequence[TopicsSeen], known: Mapping[str, Remembered]) -> TopicsSeen:
    """What several brokers say, as one: of a topic that they tell of differently, what agrees with `known`."""
    there: dict[str, Remembered] = {}
    for answer in answers:
        for name, topic in answer.there.items():
            best = there.get(name)
            if best is None or _rank(topic, known.get(name)) > _rank(best, known.get(name)):
                there[name] = topic
    denied = frozenset().union(*(answer.denied for answer in answers))
    return TopicsSeen(there, denied - there.keys())


def _rank(topic: Remembered, before: Remembered | None) -> tuple[bool, int]:
    return before is not None and topic.id == before.id, topic.partitions


def _agrees(seen: TopicsSeen, topic: str, before: Remembered) -> bool:
    found = seen.there.get(topic)
    if found is None:
        return topic in seen.denied
    return found.partitions >= before.partitions and (None in (found.id, before.id) or found.id == before.id)


async def _ask(client: AIOKafkaClient, node: int, topics: Sequence[str]) -> TopicsSeen:
    try:
        response = await client.send(node, _Request(topics))
    except (errors.IncompatibleBrokerVersion, NotImplementedError):
        found = await describe(client, topics)
        return TopicsSeen({name: Remembered(None, len(numbers)) for name, numbers in found.items()})
    there: dict[str, Remembered] = {}
    denied = set()
    for code, name, id_, _internal, partitions, *_ in response.topics:
        error_type = errors.for_code(code)
        if error_type is errors.InvalidTopicError:
            raise BrokerRefused(f"topic {name}: {error_type.description}")
        if error_type is errors.TopicAuthorizationFailedError:
            denied.add(name)
        elif partitions:
            there[name] = Remembered(None if id_ == _NO_ID else id_.hex(), len(partitions))
    return TopicsSeen(there, frozenset(denied))
