"""Deletes a consumer group, as its broker does by itself after `offsets.retention.minutes`. The client library can't."""

from __future__ import annotations

import asyncio
from typing import Any

from aiokafka import errors
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Int16, Int32, Schema, String

_DELETE_GROUPS = 42
_NON_EMPTY = 68


class _Response(Response):  # type: ignore[misc] # the library has no types
    API_KEY = _DELETE_GROUPS
    API_VERSION = 1
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("results", Array(("group", String("utf-8")), ("error_code", Int16))),
    )


class _Struct(RequestStruct):  # type: ignore[misc]
    API_KEY = _DELETE_GROUPS
    API_VERSION = 1
    RESPONSE_TYPE = _Response
    SCHEMA = Schema(("groups", Array(String("utf-8"))))


class _Request(Request[_Struct]):  # type: ignore[misc]
    API_KEY = _DELETE_GROUPS

    def __init__(self, group: str) -> None:
        self._group = group

    def build(self, request_struct_class: type[Any]) -> Any:
        return request_struct_class([self._group])


async def delete_group(bootstrap: str, group: str, within: float = 30.0) -> None:
    """Delete it with its offsets, as soon as its members are gone."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        async with asyncio.timeout(within):
            while True:
                node = await admin.find_coordinator(group)
                response = await admin._client.send(node, _Request(group))
                ((_, code),) = response.results
                if not code:
                    return
                if code != _NON_EMPTY:
                    raise errors.for_code(code)(group)
                await asyncio.sleep(0.2)
    finally:
        await admin.close()
