"""What a result means: row by row."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given, strategies as st

from dispatcher.core.request.results import Failure, Reason, Response, Result
from dispatcher.core.retry.policy import (
    DELIVERED,
    RETRY_AFTER_CAP,
    DeadLetter,
    Demand,
    Disable,
    Hold,
    Retry,
    RetryPolicy,
    decide,
    demand,
    parse_retry_after,
)

NOW = 1_800_000_000.0
POLICY = RetryPolicy((5.0, 300.0, 1800.0), 0.1)
MIDDLE = 0.5  # no jitter


def after(result: Result, attempt: int = 1, *, random: float = MIDDLE, horizon: float = 30.0) -> object:
    return decide(result, attempt, POLICY, NOW, random, horizon)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206, 226, 299])
def test_any_2xx_is_an_acknowledgement(status: int) -> None:
    assert after(Response(status)) is DELIVERED
    assert after(Response(status, retry_after="60"), attempt=99) is DELIVERED


def test_410_disables_the_subscription() -> None:
    assert after(Response(410, retry_after="5")) == Disable("gone")


@pytest.mark.parametrize("status", [100, 301, 302, 307, 400, 401, 404, 408, 418, 500, 501, 505, 599])
def test_any_other_status_waits_as_the_schedule_says(status: int) -> None:
    assert after(Response(status)) == Hold(NOW + 5.0)
    assert after(Response(status), 2) == Retry(NOW + 300.0)


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.PROXY_ERROR])
def test_no_answer_waits_likewise_whatever_the_reason(reason: Reason) -> None:
    assert after(Failure(reason)) == Hold(NOW + 5.0)


@pytest.mark.parametrize("attempt", [1, 4, 100])
def test_what_the_egress_proxy_stopped_uses_up_no_schedule(attempt: int) -> None:
    assert after(Failure(Reason.PROXY_ERROR), attempt) == Hold(NOW + 7.5, counted=False)


@pytest.mark.parametrize("status", [429, 502, 504])
def test_an_overloaded_endpoint_is_throttled_unless_it_names_a_time(status: int) -> None:
    assert after(Response(status)) == Hold(NOW + 5.0)
    assert after(Response(status, retry_after="20")) == Hold(NOW + 20.0)
    assert demand(Response(status), NOW) == Demand(None, fewer=True)
    assert demand(Response(status, retry_after="0"), NOW) == Demand(None, fewer=True)
    assert demand(Response(status, retry_after="soon"), NOW) == Demand(None, fewer=True)
    assert demand(Response(status, retry_after="20"), NOW) == Demand(20.0, fewer=False)


@pytest.mark.parametrize("result", [Response(500), Response(503), Response(404), Failure(Reason.TIMEOUT)])
def test_an_ordinary_failure_says_nothing_about_the_other_deliveries(result: Result) -> None:
    assert demand(result, NOW) == Demand(None, fewer=False)


def test_any_failure_may_ask_for_time() -> None:
    assert demand(Response(500, retry_after="99999999"), NOW) == Demand(RETRY_AFTER_CAP, fewer=False)


def test_attempts_end_with_the_schedule() -> None:
    assert after(Response(500), 3) == Retry(NOW + 1800.0)
    assert after(Response(500), 4) == DeadLetter("exhausted")
    assert after(Failure(Reason.TIMEOUT), 4) == DeadLetter("exhausted")


def test_a_schedule_without_waits_makes_one_attempt() -> None:
    assert decide(Response(500), 1, RetryPolicy((), 0.1), NOW, MIDDLE, 30.0) == DeadLetter("exhausted")


@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_retry_after_puts_off_but_never_hastens(status: int) -> None:
    assert after(Response(status, retry_after="600")) == Retry(NOW + 600.0)
    assert after(Response(status, retry_after="2")) == Hold(NOW + 5.0)
    assert after(Response(status, retry_after="soon")) == Hold(NOW + 5.0)


@pytest.mark.parametrize(
    "value", ["99999999", format_datetime(datetime.fromtimestamp(NOW + 1e6, UTC), usegmt=True)]
)
def test_retry_after_is_capped_at_a_day(value: str) -> None:
    assert after(Response(503, retry_after=value)) == Retry(NOW + RETRY_AFTER_CAP)


@given(st.floats(0, 1, exclude_max=True))
def test_jitter_stays_within_its_share_and_never_shortens_what_was_asked(random: float) -> None:
    plain = after(Response(500), 2, random=random)
    assert isinstance(plain, Retry)
    assert NOW + 270.0 <= plain.due <= NOW + 330.0
    asked = after(Response(503, retry_after="300"), 2, random=random)
    assert isinstance(asked, Retry)
    assert NOW + 300.0 <= asked.due <= NOW + 330.0


def test_the_horizon_parts_what_is_held_from_what_is_written() -> None:
    assert after(Response(500), 2, horizon=300.0) == Hold(NOW + 300.0)
    assert after(Response(500), 2, horizon=299.0) == Retry(NOW + 300.0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 120 ", 120.0),
        ("86400", 86400.0),
        ("86401", 86400.0),
        ("9" * 5000, 86400.0),
        (format_datetime(datetime.fromtimestamp(NOW + 90, UTC), usegmt=True), 90.0),
        (format_datetime(datetime.fromtimestamp(NOW - 90, UTC), usegmt=True), 0.0),
        ("Fri, 15 Jan 2027 08:01:00 -0000", 60.0),
        ("Friday, 15-Jan-27 08:01:00 GMT", 60.0),
        ("Fri Jan 15 08:01:00 2027", 60.0),
    ],
)
def test_retry_after_is_read_in_every_form(value: str, seconds: float) -> None:
    assert parse_retry_after(value, NOW) == seconds


@pytest.mark.parametrize(
    "value", ["", "soon", "-5", "1.5", "12 s", "١٢", "Fri, 99 Jan 2027", "Fri, 32 Foo 2027 08:00:00 GMT"]
)
def test_what_is_no_retry_after_counts_as_none(value: str) -> None:
    assert parse_retry_after(value, NOW) is None


@given(st.text(max_size=60))
def test_no_retry_after_raises(value: str) -> None:
    wait = parse_retry_after(value, NOW)
    assert wait is None or 0.0 <= wait <= RETRY_AFTER_CAP
