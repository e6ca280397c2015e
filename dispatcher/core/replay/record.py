"""A replayed delivery in the topic `dispatcher.replay`: whose it is and where its event stands, never a body.

Value: one JSON object. Key: the topic and partition that the body is read from, so that one partition has them in the order of their source.

The bodies of dead letters are read from the dead-letter topic, which keeps them longer than the events' own topic may: then `at` says where,
and `source` is still where the event was published, which the delivery's id is made of.

The topic is read by programs that others may write to, so `read_replay_record` believes nothing.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from orjson import JSONDecodeError, dumps, loads

from dispatcher.core.event.decode import valid_tenant, valid_type
from dispatcher.core.retry.records import Source
from dispatcher.core.retry.sources import ExpectedEvent

_REPLAY: Final = re.compile(r"rpl_[0-9a-f]{12,60}")
_SUBSCRIPTION: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_MOST: Final = 2**53
_MAX_ID: Final = 4096
_MAX_TOPIC: Final = 249


class InvalidReplayRecord(ValueError):
    """The record can't be read as a replayed delivery. The message is for people."""


class ReplayRecord(NamedTuple):
    """One delivery of a replay."""

    replay: str
    subscription_id: str
    source: Source
    generation: int
    event: ExpectedEvent
    at: Source | None = None
    """Where the body is read, if not at `source`."""

    @property
    def body_at(self) -> Source:
        """Where the body is read."""
        return self.source if self.at is None else self.at


def replay_topic(prefix: str) -> str:
    """The topic's name."""
    return f"{prefix}replay"


def replay_key(source: Source) -> bytes:
    """The key of a record whose body is read from there."""
    return f"{source.topic}/{source.partition}".encode()


def write_replay_record(record: ReplayRecord) -> bytes:
    """The value of the record."""
    document: dict[str, Any] = {
        "v": 1,
        "replay": record.replay,
        "subscription_id": record.subscription_id,
        "source": list(record.source),
        "generation": record.generation,
        "event_id": record.event.id,
        "event_type": record.event.type,
    }
    if record.event.tenant is not None:
        document["tenant"] = record.event.tenant
    if record.at is not None:
        document["at"] = list(record.at)
    return dumps(document)


def read_replay_record(value: bytes | None) -> ReplayRecord:
    """Read `write_replay_record`; raises InvalidReplayRecord, whatever the bytes."""
    try:
        document = loads(value or b"")
    except JSONDecodeError as error:
        raise InvalidReplayRecord("the value is not JSON") from error
    match document:
        case {
            "v": 1,
            "replay": str(replay),
            "subscription_id": str(subscription_id),
            "source": source,
            "generation": int(generation),
            "event_id": str(event_id),
            "event_type": str(event_type),
        }:
            pass
        case _:
            raise InvalidReplayRecord("a field is missing, or has another type")
    tenant = document.get("tenant")
    if not _REPLAY.fullmatch(replay):
        raise InvalidReplayRecord("replay is no id of a replay")
    if not _SUBSCRIPTION.fullmatch(subscription_id):
        raise InvalidReplayRecord("subscription_id is none")
    if isinstance(generation, bool) or not 1 <= generation < 2**31:
        raise InvalidReplayRecord("generation is none")
    if not 0 < len(event_id) <= _MAX_ID or not valid_type(event_type):
        raise InvalidReplayRecord("event_id or event_type is none")
    if tenant is not None and (not isinstance(tenant, str) or not valid_tenant(tenant)):
        raise InvalidReplayRecord("tenant is none")
    at = document.get("at")
    return ReplayRecord(
        replay,
        subscription_id,
        _source(source),
        generation,
        ExpectedEvent(event_id, event_type, tenant),
        None if at is None else _source(at),
    )


def _source(raw: Any) -> Source:
    match raw:
        case [str(topic), int(partition), int(offset)] if (
            0 < len(topic) <= _MAX_TOPIC and 0 <= partition < 2**31 and 0 <= offset < _MOST
        ):
            return Source(topic, int(partition), int(offset))
        case _:
            raise InvalidReplayRecord("source or at is no topic, partition and offset")
