"""Whether the broker's ACLs let us do what we will have to: asked at the start, before the first dead letter can't be written.

Source: KIP-430; Kafka's Metadata (version 8) and DescribeGroups (version 3) tell which operations the asking user may do, as bits by the number of
the operation. A broker without an authorizer allows all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from aiokafka import errors
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.protocol.admin import DescribeGroupsResponse_v3
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Schema, String

READ: Final = "READ"
WRITE: Final = "WRITE"

_BITS: Final[Mapping[str, int]] = {READ: 1 << 3, WRITE: 1 << 4}
_UNKNOWN: Final = -(2**31)

Rights = Mapping[str, Collection[str]]
"""What has to be allowed, by the name of a topic or a group."""


class _MetadataResponse(Response):  # type: ignore[misc] # the library has no types
    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            Array(("node_id", Int32), ("host", String("utf-8")), ("port", Int32), ("rack", String("utf-8"))),
        ),
        ("cluster_id", String("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", String("utf-8")),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", Array(Int32)),
                        ("isr", Array(Int32)),
                        ("offline_replicas", Array(Int32)),
                    ),
                ),
                ("authorized_operations", Int32),
            ),
        ),
        ("authorized_operations", Int32),
    )


class _MetadataStruct(RequestStruct):  # type: ignore[misc] # likewise
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", Array(String("utf-8"))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
    )


class _MetadataRequest(Request[_MetadataStruct]):  # type: ignore[misc] # likewise
    API_KEY = 3

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_MetadataStruct]) -> _MetadataStruct:
        return request_struct_class(self._topics, False, False, True)


class _GroupsStruct(RequestStruct):  # type: ignore[misc] # likewise
    API_KEY = 15
    API_VERSION = 3
    RESPONSE_TYPE = DescribeGroupsResponse_v3
    SCHEMA = Schema(("groups", Array(String("utf-8"))), ("include_authorized_operations", Boolean))


class _GroupsRequest(Request[_GroupsStruct]):  # type: ignore[misc] # likewise
    API_KEY = 15

    def __init__(self, group: str) -> None:
        self._group = group

    def build(self, request_struct_class: type[_GroupsStruct]) -> _GroupsStruct:
        return request_struct_class([self._group], True)


async def missing_rights(client: AIOKafkaClient, topics: Rights, groups: Rights, principal: str) -> list[str]:
    """What isn't allowed of it, a sentence each with the command that allows it. Raises KafkaError.

    `principal`: how the broker calls us, as far as we know. What a broker doesn't tell passes for allowed.
    """
    found: list[str] = []
    node = client.get_random_node()
    if node is None:
        return found
    try:
        response = await client.send(node, _MetadataRequest(sorted(topics)))
    except (NotImplementedError, errors.IncompatibleBrokerVersion):
        return found  # a broker before 2.3
    for code, name, _, _, allowed in response.topics:
        denied = code == errors.TopicAuthorizationFailedError.errno
        found += [
            _sentence("topic", name, right, principal)
            for right in topics[name]
            if _lacks(allowed, right, denied)
        ]
    for group, rights in groups.items():
        try:
            coordinator = await client.coordinator_lookup(CoordinationType.GROUP, group)
        except errors.GroupAuthorizationFailedError:
            denied, allowed = True, 0
        else:
            response = await client.send(coordinator, _GroupsRequest(group))
            code, *_, allowed = response.groups[0]
            denied = code == errors.GroupAuthorizationFailedError.errno
        found += [
            _sentence("group", group, right, principal) for right in rights if _lacks(allowed, right, denied)
        ]
    return found


def _lacks(allowed: int, right: str, denied: bool) -> bool:
    return denied or (allowed != _UNKNOWN and not allowed & _BITS[right])


def _sentence(kind: str, name: str, right: str, principal: str) -> str:
    return (
        f"the broker does not let us {right} the {kind} {name}: `kafka-acls.sh --bootstrap-server ... --add --allow-principal"
        f" {principal} --operation {right.capitalize()} --{kind} {name}`"
    )
