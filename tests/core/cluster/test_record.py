"""A process's record of itself: written, read, bounded, and refused where it is none."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, strategies as st

from dispatcher.core.cluster.record import (
    MOST_SIZE,
    HistoryState,
    InvalidReplica,
    ReplicaRecord,
    Trouble,
    read_replica,
    write_replica,
)

RECORD = ReplicaRecord(
    replica="host-1:7",
    version="1.0.0",
    started_ms=1,
    at_ms=2,
    roles=("deliver", "api"),
    partitions={"events": (0, 3)},
    lag={"events": 12},
    troubles=(Trouble(subscription_id="sub_a", tenant="acme", since_ms=1, breaker="open", parked=7),),
    troubles_total=1,
    history=HistoryState(as_of_ms=1, partitions=4, shared=True),
)


def test_what_is_written_is_read_alike() -> None:
    assert read_replica(write_replica(RECORD)) == RECORD
    assert not RECORD.cut


def test_a_later_version_may_have_more_fields() -> None:
    written = write_replica(RECORD).replace(b'{"replica"', b'{"news":[1],"replica"')
    assert read_replica(written) == RECORD


def test_a_record_with_more_troubles_than_there_is_room_for_names_the_first_and_says_that_it_is_cut() -> None:
    text = "x" * 1000
    troubles = tuple(
        Trouble(subscription_id=f"sub_{number}", last_result=text, since_ms=number) for number in range(1000)
    )
    written = write_replica(
        ReplicaRecord(replica="a", version="1", started_ms=1, at_ms=1, troubles=troubles, troubles_total=1000)
    )
    assert len(written) <= MOST_SIZE
    found = read_replica(written)
    assert 0 < len(found.troubles) < 1000
    assert found.troubles == troubles[: len(found.troubles)]
    assert found.cut


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"replica": 1, "version": "1", "started_ms": 1, "at_ms": 1}',
        b'{"replica": "a", "version": "1", "started_ms": -1, "at_ms": 1}',
        b'{"replica": "%b", "version": "1", "started_ms": 1, "at_ms": 1}' % (b"x" * 2000),
        b'{"replica": "a", "version": "1", "started_ms": 1, "at_ms": 1, "troubles": [{}]}',
    ],
)
def test_what_is_no_record_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidReplica):
        read_replica(value)


@given(st.binary(max_size=200))
def test_whatever_the_bytes_nothing_else_is_raised(value: bytes) -> None:
    with contextlib.suppress(InvalidReplica):
        read_replica(value)
