"""The API's limits, as arithmetic: on time that the tests make pass."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from dispatcher.api import limits
from dispatcher.api.limits import (
    BODY,
    MAX_FORWARDED,
    ConnectionLimit,
    MinimumRate,
    RequestLimit,
    TrustedProxies,
    connections_within,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("peer", "forwarded", "caller"),
    [
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),  # no proxy of ours: it says what it likes
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),  # the first was written by the caller
        ("10.0.0.1", ["1.1.1.1", "198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("::ffff:10.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8::1]:443"], "2001:db8::1"),
        ("10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("10.0.0.1", ["1.1.1.1, nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["1.1.1.1, nonsense, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("", ["1.1.1.1"], ""),
    ],
)
def test_the_caller_is_the_last_address_that_no_trusted_proxy_has(
    peer: str, forwarded: list[str], caller: str
) -> None:
    assert TrustedProxies(["10.0.0.0/8"]).caller(peer, forwarded) == caller


def test_without_trusted_proxies_nobody_is_believed() -> None:
    assert TrustedProxies([]).caller("10.0.0.1", ["198.51.100.1"]) == "10.0.0.1"


def test_only_so_many_entries_are_looked_at() -> None:
    long = ", ".join(["198.51.100.1", *["10.0.0.2"] * MAX_FORWARDED])
    assert TrustedProxies(["10.0.0.0/8"]).caller("10.0.0.1", [long]) == "10.0.0.2"


def test_what_stalls_is_given_up_after_the_grace_however_fast_it_was() -> None:
    deadline = BODY.deadline(100.0 + BODY.grace, 4 << 20, now=101.0)
    assert deadline == 101.0 + BODY.grace


@given(st.lists(st.tuples(st.floats(0.01, 5.0), st.integers(1, 100_000)), max_size=50))
def test_who_sends_at_the_rate_is_never_given_up_and_who_stalls_always(sent: list[tuple[float, int]]) -> None:
    pace = MinimumRate(10.0, 1000.0)
    now, deadline = 0.0, pace.grace
    for pause, size in sent:
        now += pause
        deadline = pace.deadline(deadline, size, now)
        assert deadline <= now + pace.grace
        if size < pause * pace.rate:
            continue
        assert deadline >= min(now + pace.grace, deadline)
    steady, deadline = 0.0, pace.grace
    for _ in range(100):
        steady += 1.0
        deadline = pace.deadline(deadline, 1000, steady)
        assert deadline > steady


def test_who_trickles_below_the_rate_is_given_up() -> None:
    pace = MinimumRate(10.0, 1000.0)
    now, deadline = 0.0, pace.grace
    while now < deadline:
        now += 1.0
        deadline = pace.deadline(deadline, 500, now)
        assert now < 25
    assert now >= 19


def test_connections_are_counted_of_each_address_and_in_all() -> None:
    limit = ConnectionLimit(3, 2)
    limit.opened("a")
    limit.opened("a")
    assert (limit.full_for("a"), limit.full_for("b"), limit.full) == (True, False, False)
    limit.opened(None)
    assert (limit.full, limit.full_for("a")) == (True, True)
    limit.closed("a")
    assert (limit.full, limit.full_for("a")) == (False, False)
    limit.closed("a")
    limit.closed(None)
    assert limit.open == 0
    assert not limit._by_address


def test_a_caller_has_two_seconds_worth_of_requests_at_once_and_then_the_rate() -> None:
    clock = Clock()
    limit = RequestLimit(10.0, clock)
    assert [limit.take("a") for _ in range(20)] == [0.0] * 20
    assert limit.take("a") == pytest.approx(0.1)
    assert limit.take("b") == 0.0, "others have their own"
    clock.now += 0.1
    assert limit.take("a") == 0.0
    assert limit.take("a") == pytest.approx(0.1)
    clock.now += 100.0
    assert [limit.take("a") for _ in range(21)].count(0.0) == 20


@given(st.lists(st.floats(0.0, 3.0), max_size=60))
def test_in_no_stretch_of_time_are_there_more_than_the_burst_and_the_rate_allow(pauses: list[float]) -> None:
    clock = Clock()
    limit = RequestLimit(5.0, clock)
    taken: list[float] = []
    for pause in pauses:
        clock.now += pause
        taken += [clock.now for _ in range(4) if not limit.take("a")]
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= 10 + (taken[last] - taken[first]) * 5.0 + 1e-6


def test_callers_are_counted_in_bounded_memory_and_those_heard_of_last_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MAX_BUCKETS", 100)
    clock = Clock()
    limit = RequestLimit(1.0, clock)
    for number in range(5000):
        limit.take(f"caller-{number}")
        limit.take("busy")
        clock.now += 0.0001
        assert len(limit) <= 101
    assert limit.take("busy") > 0, "a flood of others doesn't make it forgotten"


@pytest.mark.parametrize(
    ("limit", "descriptors", "connections"),
    [(1000, 1024, 256), (1000, 1 << 20, 1000), (10, 8, 2), (1000, 1, 1), (1000, -1, 1000)],
)
def test_three_quarters_of_the_descriptors_are_for_deliveries(
    limit: int, descriptors: int, connections: int
) -> None:
    assert connections_within(limit, descriptors) == connections
