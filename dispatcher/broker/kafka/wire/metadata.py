"""Which topics there are, with the ids that Kafka gives them: a topic made anew has another one.

The client library's own request knows no ids; they came with version 10 of the protocol's metadata (Kafka 2.8,
KIP-516). An older broker is asked without, and its topics have no id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from io import BytesIO
from typing import Any

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

_METADATA = 3
_NO_ID = bytes(16)


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


async def look(client: AIOKafkaClient, topics: Sequence[str]) -> dict[str, Remembered]:
    """Those of the topics that exist, without creating any."""
    problem: BaseException = errors.NoBrokersAvailable()
    for _ in range(3):
        node = client.get_random_node()
        if node is None:
            break
        try:
            response = await client.send(node, _Request(topics))
        except (errors.IncompatibleBrokerVersion, NotImplementedError):
            found = await describe(client, topics)
            return {name: Remembered(None, len(numbers)) for name, numbers in found.items()}
        except (errors.KafkaError, OSError, TimeoutError) as error:
            problem = error
            await asyncio.sleep(0.1)
            continue
        there: dict[str, Remembered] = {}
        for code, name, id_, _internal, partitions, *_ in response.topics:
            error_type = errors.for_code(code)
            if error_type is errors.TopicAuthorizationFailedError or error_type is errors.InvalidTopicError:
                raise BrokerRefused(f"topic {name}: {error_type.description}")
            if partitions:
                there[name] = Remembered(None if id_ == _NO_ID else id_.hex(), len(partitions))
        return there
    raise mapped(problem, "asking for topics") from problem
