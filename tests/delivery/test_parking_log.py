from __future__ import annotations

import itertools

from structlog.testing import capture_logs

from dispatcher.broker.base import TopicPartition
from dispatcher.delivery.parking_log import ParkingLog

ONE, TWO = TopicPartition("dispatcher.retry.parked", 0), TopicPartition("dispatcher.retry.parked", 1)


_times = itertools.count(0, 10)


def said(
    log: ParkingLog, parked: dict[TopicPartition, set[str]], now: float | None = None
) -> list[tuple[str, object]]:
    with capture_logs() as lines:
        log.look(next(_times) if now is None else now, parked)
    return [
        (
            line["event"],
            line.get("subscription_id", line.get("subscriptions", line.get("more_subscriptions"))),
        )
        for line in lines
    ]


def test_a_beginning_and_an_end_are_one_line_each() -> None:
    log = ParkingLog()
    assert said(log, {ONE: set(), TWO: set()}) == []
    assert said(log, {ONE: {"a"}, TWO: {"b"}}) == [("parking began", "a"), ("parking began", "b")]
    assert said(log, {ONE: {"a"}, TWO: {"b"}}) == []
    assert said(log, {ONE: {"a", "c"}, TWO: set()}) == [("parking began", "c"), ("parking ended", "b")]


def test_what_comes_and_goes_with_a_partition_is_no_beginning_and_no_end() -> None:
    log = ParkingLog()
    assert said(log, {ONE: {"a"}}) == [("deliveries are parked", 1)]
    assert said(log, {TWO: {"b", "c"}}) == [("deliveries are parked", 2)]
    assert said(log, {}) == []


def test_thousands_at_once_are_few_lines() -> None:
    log = ParkingLog()
    said(log, {ONE: set()})
    lines = said(log, {ONE: {f"sub_{number:04}" for number in range(1000)}})
    assert len(lines) == 21
    assert lines[0] == ("parking began", "sub_0000")
    assert lines[-1] == ("parking began", 980)


def test_what_comes_and_goes_within_ten_seconds_is_no_news() -> None:
    log = ParkingLog()
    assert said(log, {ONE: set()}, 100.0) == []
    assert said(log, {ONE: {"a"}}, 109.9) == []
    assert said(log, {ONE: {"b"}}, 110.0) == [("parking began", "b")]
