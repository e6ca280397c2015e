"""How much of a replay may be written."""

from __future__ import annotations

from hypothesis import given, strategies as st

from dispatcher.core.replay.pacing import AHEAD, SentRate, Throttle, room


@given(
    st.floats(0.01, 10_000),
    st.lists(st.tuples(st.floats(0, 5), st.integers(0, 500)), max_size=50),
)
def test_never_more_than_the_rate_and_a_seconds_worth_at_a_time(
    rate: float, steps: list[tuple[float, int]]
) -> None:
    throttle = Throttle(rate, 0.0)
    now = 0.0
    spent = 0
    for wait, wanted in steps:
        now += wait
        allowed = throttle.allowed(now)
        assert allowed is not None
        take = min(allowed, wanted)
        throttle.spend(take)
        spent += take
        assert spent <= rate * now + 1e-6
        assert allowed <= max(1.0, rate)


def test_what_was_written_too_much_is_made_up_for() -> None:
    throttle = Throttle(10.0, 0.0)
    assert throttle.allowed(1.0) == 10
    throttle.spend(25)
    waits = [(throttle.allowed(now), throttle.wait() > 0) for now in (2.0, 3.0)]
    assert waits == [(0, True), (5, False)]


def test_without_a_rate_any_number_goes() -> None:
    throttle = Throttle(None, 0.0)
    assert throttle.allowed(0.0) is None
    throttle.spend(10**6)
    assert (throttle.allowed(1.0), throttle.wait()) == (None, 0.0)


def test_the_rate_of_sending_is_that_of_the_last_ten_seconds() -> None:
    rate = SentRate()
    seen = [rate.per_second]
    for now, sent in ((0.0, 0), (1.0, 100)):
        rate.note(now, sent)
        seen.append(rate.per_second)
    assert seen == [None, None, 100]
    for second in range(2, 30):
        rate.note(float(second), 100 + 10 * (second - 1))
    assert rate.per_second == 10


def test_a_thousand_or_five_seconds_may_be_ahead() -> None:
    assert room(0, None) == AHEAD
    assert room(400, 10.0) == AHEAD - 400
    assert room(AHEAD + 5, 10.0) == 0
    assert room(0, 1000.0) == 5000
