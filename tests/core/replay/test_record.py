"""A replayed delivery as a record."""

from __future__ import annotations

import contextlib
from typing import Any

import orjson
import pytest
from hypothesis import given, strategies as st

from dispatcher.core.replay.record import (
    InvalidReplayRecord,
    ReplayRecord,
    read_replay_record,
    replay_key,
    replay_topic,
    write_replay_record,
)
from dispatcher.core.retry.records import Source
from dispatcher.core.retry.sources import ExpectedEvent

RECORD = ReplayRecord(
    "rpl_0123456789ab77", "sub_1", Source("events", 3, 42), 2, ExpectedEvent("evt_1", "a.b", "acme")
)
ELSEWHERE = RECORD._replace(at=Source("dispatcher.dead", 1, 7), event=ExpectedEvent("evt_1", "a.b", None))


@pytest.mark.parametrize("record", [RECORD, ELSEWHERE])
def test_what_is_written_reads_back(record: ReplayRecord) -> None:
    assert read_replay_record(write_replay_record(record)) == record


def test_the_body_is_read_where_it_is_kept_and_the_key_says_where() -> None:
    assert RECORD.body_at == ("events", 3, 42)
    assert ELSEWHERE.body_at == ("dispatcher.dead", 1, 7)
    assert replay_key(ELSEWHERE.body_at) == b"dispatcher.dead/1"
    assert replay_topic("dispatcher.") == "dispatcher.replay"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("v", 2),
        ("replay", "rpl_x"),
        ("replay", "rpl_0123456789ab\r\nEvil: 1"),
        ("subscription_id", "a b"),
        ("source", ["events", 1]),
        ("source", ["events", -1, 2]),
        ("source", ["", 1, 2]),
        ("at", "dead"),
        ("generation", 0),
        ("generation", True),
        ("event_id", ""),
        ("event_type", "a\nb"),
        ("tenant", 5),
        ("tenant", ""),
    ],
)
def test_what_others_write_is_not_believed(name: str, value: Any) -> None:
    document = orjson.loads(write_replay_record(RECORD))
    document[name] = value
    with pytest.raises(InvalidReplayRecord):
        read_replay_record(orjson.dumps(document))


json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.none() | st.binary(),
    st.dictionaries(st.sampled_from([*orjson.loads(write_replay_record(ELSEWHERE)), "tenant"]), json),
)
def test_whatever_the_bytes_nothing_else_is_raised(value: bytes | None, changes: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidReplayRecord):
        read_replay_record(value)
    document = orjson.loads(write_replay_record(ELSEWHERE)) | changes
    try:
        raw = orjson.dumps(document)
    except TypeError:
        return  # an integer that JSON of this kind can't have
    with contextlib.suppress(InvalidReplayRecord):
        read_replay_record(raw)
