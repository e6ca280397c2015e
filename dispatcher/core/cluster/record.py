"""What a process says of itself to all others: its record in the topic of replicas.

Others may write to that topic, so whatever is no such record is refused here. What is not known of a field is left out, and a field
that a later version adds is passed over.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

MOST_TROUBLES: Final = 1000
"""Subscriptions in trouble that a record names, at the most: the worst."""

MOST_SIZE: Final = 600_000
"""Bytes of a record, at the most. A broker takes some more."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Text = Annotated[str, msgspec.Meta(max_length=1024)]
_Number = Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class InvalidReplica(ValueError):
    """It is no record of a replica; the message says why."""


class Trouble(msgspec.Struct, omit_defaults=True, kw_only=True, frozen=True):
    """A subscription in trouble, as one process sees it. Times in Unix ms."""

    subscription_id: _Text
    tenant: _Text | None = None
    since_ms: _Count | None = None
    """Since when there is nothing but failures; None where the last attempt did not fail."""
    attempts: _Count = 0
    """Of the last ones, how many are known,"""
    succeeded: _Count = 0
    """and how many of those were acknowledged."""
    latency_mean_ms: float | None = None
    """Of those that were acknowledged, as the next one."""
    latency_p95_ms: float | None = None
    breaker: str = "closed"
    queued: _Count = 0
    in_flight: _Count = 0
    held: _Count = 0
    """In memory until their retry is due."""
    parked: _Count = 0
    parked_more: bool = False
    """There are more parked than are counted."""
    oldest_ms: _Count | None = None
    """Since when the oldest waits of those that are parked, queued or held."""
    next_ms: _Count | None = None
    """When something is attempted next, where that is known."""
    last_result: _Text | None = None
    last_ms: _Count | None = None


class HistoryState(msgspec.Struct, omit_defaults=True, kw_only=True, frozen=True):
    """How far a process has indexed the logs, of the partitions that are its."""

    as_of_ms: _Count = 0
    """What was said before is known; 0: nothing yet."""
    behind_records: _Count = 0
    partitions: _Count = 0
    shared: bool = False
    """Its store is the others' too, so that only all of them together know everything."""


class ReplicaRecord(msgspec.Struct, omit_defaults=True, kw_only=True, frozen=True):
    """A process as it is now."""

    replica: _Text
    version: _Text
    started_ms: _Count
    at_ms: _Count
    """When this was written, by its clock."""
    roles: tuple[str, ...] = ()
    problems: tuple[_Text, ...] = ()
    """Why it isn't ready, a sentence each."""
    warnings: tuple[_Text, ...] = ()
    partitions: dict[str, tuple[_Number, ...]] = {}
    """Those that it reads, by topic."""
    lag: dict[str, _Count] = {}
    """Records of them that are not taken up yet, by topic."""
    queued: _Count = 0
    in_flight: _Count = 0
    held: _Count = 0
    parked: dict[str, _Count] = {}
    """Deliveries that wait in the parked topic, by why."""
    lanes: _Count = 0
    breakers: dict[str, _Count] = {}
    """Open ones, by scope."""
    troubles: tuple[Trouble, ...] = ()
    """The worst first."""
    troubles_total: _Count = 0
    recovered: dict[_Text, _Count] = {}
    """Subscriptions that another process says fail, and to which this one has delivered since: when, in Unix ms."""
    history: HistoryState | None = None
    v: int = 1

    @property
    def cut(self) -> bool:
        """Whether more subscriptions are in trouble than it names."""
        return self.troubles_total > len(self.troubles)


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(ReplicaRecord)


def write_replica(record: ReplicaRecord) -> bytes:
    """Its bytes, at most `MOST_SIZE`: of its troubles those that there is room for."""
    while True:
        written = _encoder.encode(record)
        if len(written) <= MOST_SIZE or not record.troubles:
            return written
        fewer = record.troubles[: len(record.troubles) * MOST_SIZE // len(written) * 9 // 10]
        record = msgspec.structs.replace(record, troubles=fewer)


def read_replica(value: bytes) -> ReplicaRecord:
    """The record of these bytes; raises InvalidReplica, whatever they are."""
    try:
        return _decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidReplica(str(error)[:200]) from None
