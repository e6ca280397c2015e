"""How fast a queue moves."""

from __future__ import annotations

import pytest

from dispatcher.core.endpoint.throughput import EVIDENCE, Throughput


def busy(pace: Throughput, rate: float, seconds: float, *, done: int = 0, under_way: int = 0) -> float | None:
    steps = round(seconds / 0.5)
    for step in range(1, steps + 1):
        pace.busy(done + int(rate * step * 0.5), under_way, 0.5)
    return pace.rate


def test_nothing_is_concluded_before_it_has_been_busy_for_a_while() -> None:
    assert busy(Throughput(0), 5.0, EVIDENCE - 0.5) is None


@pytest.mark.parametrize("rate", [0.5, 5.0, 5000.0])
def test_a_steady_rate_is_found(rate: float) -> None:
    assert busy(Throughput(0), rate, 60.0) == pytest.approx(rate, rel=0.2)


def test_at_first_what_is_under_way_counts_as_nearly_done() -> None:
    at_once = busy(Throughput(0), 0.0, EVIDENCE, under_way=16)
    assert at_once is not None
    assert at_once > 16 / EVIDENCE * 0.7
    later = busy(Throughput(0), 0.0, 60.0, under_way=16)
    assert later is not None
    assert later < 0.1


def test_a_change_is_noticed_within_some_seconds() -> None:
    pace = Throughput(0)
    busy(pace, 100.0, 60.0)
    rate = busy(pace, 5.0, 30.0, done=6000)
    assert rate == pytest.approx(5.0, abs=6.0)


def test_a_pause_of_a_fast_one_does_not_make_it_slow() -> None:
    pace = Throughput(0)
    busy(pace, 5000.0, 60.0)
    rate = busy(pace, 0.0, 3.0, done=300_000)
    assert rate is not None
    assert rate > 3000


def test_having_nothing_to_do_is_not_being_slow() -> None:
    pace = Throughput(0)
    busy(pace, 100.0, 20.0)
    assert not pace.idle(2000, 0.5)
    assert not pace.idle(2000, 2.0)
    assert pace.rate == pytest.approx(100.0, rel=0.1)
    assert pace.idle(2000, 1.0)
