"""Breakers: when they open, what is let through, and whose failures count."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from dispatcher.core.endpoint.breaker import (
    COOL_DOWN,
    COOL_DOWN_MOST,
    MINIMUM,
    WINDOW,
    YOUNG,
    Blame,
    Breaker,
    State,
    blame,
    reached_host,
)
from dispatcher.core.request.results import Failure, Reason, Response

MIDDLE = 0.5  # no jitter


FIRST = 0.9 * COOL_DOWN  # with as much jitter as the tests say


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker(now, 0.8)
    for _ in range(MINIMUM):
        breaker.failed(now, now, MIDDLE)
    assert breaker.state is State.OPEN
    return breaker


def test_nothing_is_concluded_from_a_few_failures() -> None:
    breaker = Breaker(0.0, 0.8)
    assert [breaker.failed(0.0, 1.0, MIDDLE) for _ in range(MINIMUM)] == [False] * (MINIMUM - 1) + [True]


def test_an_endpoint_that_answers_every_other_time_is_left_to_its_retries() -> None:
    breaker = Breaker(0.0, 0.8)
    for number in range(1000):
        now = number / 10
        breaker.succeeded(now, now)
        assert not breaker.failed(now, now, MIDDLE)


def test_what_failed_long_ago_does_not_count() -> None:
    breaker = Breaker(0.0, 0.8)
    for number in range(100):
        now = number * WINDOW / (MINIMUM - 1) * 1.6
        assert not breaker.failed(now, now, MIDDLE)


def test_while_it_is_open_nothing_is_let_through_and_then_one_probe() -> None:
    breaker = opened()
    assert not breaker.admits(FIRST - 0.01)
    assert breaker.admits(FIRST)
    assert breaker.succeeded(COOL_DOWN + 1, COOL_DOWN + 2)
    assert breaker.state is State.CLOSED


def test_failed_probes_double_the_cool_down_up_to_a_bound_once_the_outage_is_no_stall_any_more() -> None:
    breaker = opened()
    now = 0.0
    waits = []
    for _ in range(13):
        waits.append(breaker.until - now)
        now = breaker.until
        assert breaker.admits(now)
        assert breaker.failed(now, now, MIDDLE)
    assert waits[:4] == [FIRST] * 4
    assert waits[4:] == [0.9 * min(COOL_DOWN * 2**number, COOL_DOWN_MOST) for number in range(1, 10)]
    assert sum(waits[:3]) < YOUNG <= sum(waits[:4])


def test_the_cool_down_begins_anew_only_after_a_slow_start_that_went_well() -> None:
    breaker = opened()
    assert breaker.admits(5.0)
    assert breaker.succeeded(5.0, 5.0)
    for _ in range(MINIMUM):
        breaker.failed(6.0, 6.0, MIDDLE)
    assert breaker.admits(17.0)
    breaker.failed(17.0, 17.0, MIDDLE)
    assert breaker.until == 17.0 + 2 * FIRST
    assert breaker.admits(30.0)
    breaker.succeeded(30.0, 30.0)
    breaker.recovered()
    for _ in range(MINIMUM):
        breaker.failed(31.0, 31.0, MIDDLE)
    assert breaker.until == 31.0 + FIRST


def test_attempts_from_before_a_change_say_nothing() -> None:
    breaker = opened(10.0)
    assert not breaker.succeeded(9.0, 11.0)
    assert breaker.admits(15.0)
    assert not breaker.failed(9.0, 15.5, MIDDLE), "a straggler is not the probe"
    assert not breaker.succeeded(9.0, 15.5)
    assert breaker.state is State.PROBING


@given(st.floats(0, 1, exclude_max=True))
def test_cool_downs_are_spread_so_that_replicas_do_not_probe_together(random: float) -> None:
    breaker = Breaker(0.0, 0.8)
    for _ in range(MINIMUM):
        breaker.failed(0.0, 0.0, random)
    assert 0.8 * COOL_DOWN <= breaker.until <= COOL_DOWN


def test_it_can_be_forgotten_once_a_window_has_passed_without_a_failure() -> None:
    breaker = Breaker(0.0, 0.8)
    breaker.failed(0.0, 0.0, MIDDLE)
    assert not breaker.spotless(1.0)
    assert not breaker.spotless(WINDOW / 2 + 1)
    assert breaker.spotless(WINDOW * 1.5 + 1)
    assert not opened().spotless(1e6)


@pytest.mark.parametrize("status", [302, 400, 404, 429, 500, 503])
def test_a_status_speaks_against_the_subscription_and_for_the_host(status: int) -> None:
    assert blame(Response(status), own_certificate=False) is Blame.SUBSCRIPTION
    assert reached_host(Response(status))


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_somebody_to_blame(reason: Any) -> None:
    word = reason.value
    if word in {"proxy_error", "shutdown"}:
        expected = Blame.NOBODY
    elif word.startswith(("connect", "dns", "tls")):
        expected = Blame.HOST
    else:
        expected = Blame.SUBSCRIPTION
    assert blame(Failure(reason), own_certificate=False) is expected
    assert reached_host(Failure(reason)) is (word in {"closed", "protocol_error", "response_too_large"})


def test_a_subscriber_with_a_bad_certificate_of_its_own_closes_the_host_to_nobody() -> None:
    assert blame(Failure(Reason.TLS_FAILED), own_certificate=True) is Blame.SUBSCRIPTION
    assert blame(Failure(Reason.CONNECT_REFUSED), own_certificate=True) is Blame.HOST


class BreakerAgainstModel(RuleBasedStateMachine):
    """The model keeps every result with its time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.breaker = Breaker(0.0, 0.8)
        self.results: list[tuple[float, bool]] = []

    @rule(seconds=st.sampled_from([0.0, 0.5, 4.0, 20.0, 400.0]))
    def advance(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def fail(self) -> None:
        before = self.breaker.state
        opened = self.breaker.failed(self.now, self.now, MIDDLE)
        self.results.append((self.now, False))
        assert opened == (before is not State.OPEN and self.breaker.state is State.OPEN)
        if before is State.PROBING:
            assert opened
        elif opened:
            counted = [ok for time, ok in self.results if time > self.now - WINDOW]
            assert len(counted) >= MINIMUM, "never on a few"
            # Two halves: at the least the last half window counts, at the most all of it.
            shares = []
            for first in range(len(counted) - MINIMUM + 1):
                part = counted[first:]
                shares.append(part.count(False) / len(part))
            assert max(shares) >= 0.8
        else:
            young = [
                ok for time, ok in self.results if time > self.now - WINDOW / 2 and time >= self.breaker.since
            ]
            if before is State.CLOSED and all(
                ok is False for time, ok in self.results if time > self.now - WINDOW
            ):
                assert len(young) < MINIMUM, "surely when everything fails"
        if opened:
            assert self.breaker.until > self.now
            self.results.clear()

    @rule()
    def succeed(self) -> None:
        before = self.breaker.state
        closed = self.breaker.succeeded(self.now, self.now)
        self.results.append((self.now, True))
        assert closed == (before is State.PROBING)
        if closed:
            self.results.clear()

    @rule()
    def ask(self) -> None:
        before = self.breaker.state
        admitted = self.breaker.admits(self.now)
        assert admitted == (before is not State.OPEN or self.now >= self.breaker.until)
        if before is State.OPEN and admitted:
            assert self.breaker.state is State.PROBING


TestBreakerAgainstModel = BreakerAgainstModel.TestCase
