"""Records of the attempt log as the history reads them: versions 1 and 2, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dispatcher.core.attempt.record import InvalidRecord
from dispatcher.history.logged import DETAIL_LIMIT, detail_of, read_attempt
from dispatcher.history.merge import made
from tests.history.records import value


def read(**more: Any) -> Any:
    return read_attempt(value(0, **more), 7)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("dead letter", "dead", "exhausted"),
        ("disable", "dead", "gone"),
        ("left to another", "left_to_another", None),
    ],
)
def test_version_1_is_read_in_the_words_of_version_2(old: str, new: str, reason: str | None) -> None:
    record = read(decision=old, reason="timeout")
    detail = json.loads(detail_of(record))
    assert (record.at, made(record)) == (7, True)
    assert (record.decision, record.failure) == (new, "timeout")
    assert (detail["decision"], detail["failure"], detail.get("reason")) == (new, "timeout", reason)


def test_an_end_without_a_request_is_none_that_was_made() -> None:
    raw = json.loads(value(0, decision="dropped", v=2, reason="cancelled"))
    del raw["total_ms"], raw["queue_ms"]
    record = read_attempt(json.dumps(raw).encode(), 0)
    assert not made(record)
    assert record.reason == "cancelled"


def test_fields_of_a_later_version_are_passed_over() -> None:
    assert read(v=3, mood="good").decision == "delivered"


@pytest.mark.parametrize(
    "raw",
    [
        None,
        b"",
        b"null",
        b"[1]",
        b"\xff\xfe",
        b'{"delivery_id": "\\ud800"}',
        b"{" * 5000,
        value(0, delivery_id="dlv_" + "G" * 24),
        value(0, delivery_id="x"),
        value(0, decision="eaten"),
        value(0, time_ms=2**60),
        value(0, due_ms="1"),
        value(0, tenant=5),
    ],
    ids=repr,
)
def test_what_is_no_record_is_refused(raw: bytes | None) -> None:
    with pytest.raises(InvalidRecord):
        read_attempt(raw, 0)


def test_a_detail_ends_where_the_columns_begin_whatever_its_texts_say() -> None:
    hostile = '","delivery_id":"dlv_' + "0" * 24
    record = read(
        response=hostile, detail=f"\\{hostile}", v=2, host="h", path="/p", replay="rpl_1", total_ms=7
    )
    detail = json.loads(detail_of(record))
    assert (detail["response"], detail["detail"]) == (hostile, f"\\{hostile}")
    assert (detail["host"], detail["path"], detail["replay"], detail["total_ms"]) == ("h", "/p", "rpl_1", 7)
    assert not {"delivery_id", "event_id", "tenant", "topic", "offset", "at", "v"} & set(detail)


def test_details_are_bounded_whatever_a_record_holds() -> None:
    record = read(response="\x00" * 100_000, detail="ü" * 100_000, replica="x" * 100_000)
    detail = detail_of(record)
    assert len(detail.encode()) <= DETAIL_LIMIT
    assert json.loads(detail)["response"].startswith("\x00")
