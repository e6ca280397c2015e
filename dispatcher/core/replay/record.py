"""A replayed delivery in the topic `dispatcher.replay`: whose it is and where its event stands, never a body.

Value: one JSON object. Key: the topic and partition that the body is read from, so that one partition has them in the order of their source.

The bodies of dead letters are read from the dead-letter topic, which keeps them longer than the events' own topic may: then `at` says where,
and `source` is still where the event was published, which the delivery's id is made of.

The topic is read by programs that others may write to, so `read_replay_record` believes nothing.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from dispatcher.core.event.decode import valid_tenant, valid_type
from dispatcher.core.retry.records import Source
from dispatcher.core.retry.sources import ExpectedEvent

_Number = Annotated[int, Meta(ge=0, lt=2**31)]
_Place = tuple[
    Annotated[str, Meta(min_length=1, max_length=249)], _Number, Annotated[int, Meta(ge=0, lt=2**53)]
]


class _Document(msgspec.Struct, gc=False, omit_defaults=True):
    """The value."""

    v: Literal[1]
    replay: Annotated[str, Meta(pattern=r"^rpl_[0-9a-f]{12,60}\Z")]
    subscription_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
    source: _Place
    generation: Annotated[int, Meta(ge=1, lt=2**31)]
    event_id: Annotated[str, Meta(min_length=1, max_length=4096)]
    event_type: str
    tenant: str | None = None
    at: _Place | None = None


_DOCUMENTS: Final = msgspec.json.Decoder(_Document)
_ENCODER: Final = msgspec.json.Encoder()


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
    return _ENCODER.encode(
        _Document(
            1,
            record.replay,
            record.subscription_id,
            record.source,
            record.generation,
            record.event.id,
            record.event.type,
            record.event.tenant,
            record.at,
        )
    )


def read_replay_record(value: bytes | None) -> ReplayRecord:
    """Read `write_replay_record`; raises InvalidReplayRecord, whatever the bytes."""
    try:
        found = _DOCUMENTS.decode(value or b"")
    except msgspec.ValidationError as error:
        raise InvalidReplayRecord(f"a field is missing, or is not what it has to be: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidReplayRecord("the value is not JSON") from error
    if not valid_type(found.event_type):
        raise InvalidReplayRecord("event_type is none")
    if found.tenant is not None and not valid_tenant(found.tenant):
        raise InvalidReplayRecord("tenant is none")
    return ReplayRecord(
        found.replay,
        found.subscription_id,
        Source(*found.source),
        found.generation,
        ExpectedEvent(found.event_id, found.event_type, found.tenant),
        None if found.at is None else Source(*found.at),
    )
