"""How much an endpoint takes at a time: a window that shrinks once a round, and grows again."""

from __future__ import annotations

from dispatcher.core.endpoint.breaker import State
from dispatcher.core.endpoint.limiter import Limiter


def test_while_nothing_is_the_matter_there_is_no_backpressure_and_the_limit_is_its_owners() -> None:
    limiter = Limiter(16)
    assert not limiter.succeeded(0.0, 1.0)
    assert (limiter.limit, limiter.backpressure, limiter.state) == (16, None, State.CLOSED)


def test_one_answer_of_a_round_halves_the_window_and_the_others_of_the_round_say_nothing_new() -> None:
    limiter = Limiter(16)
    limiter.in_flight = 16
    assert limiter.throttled(started=1.0, now=2.0)
    assert limiter.limit == 8
    assert not limiter.throttled(started=1.5, now=2.5)
    assert limiter.limit == 8
    limiter.in_flight = 8
    assert limiter.throttled(started=3.0, now=4.0)
    assert limiter.limit == 4


def test_a_window_that_was_halved_grows_by_one_with_each_round_of_successes() -> None:
    limiter = Limiter(16)
    limiter.in_flight = 8
    limiter.throttled(started=1.0, now=2.0)
    assert limiter.limit == 4
    for _ in range(5):  # 1/4 each at first, then a little less
        limiter.succeeded(started=3.0, now=3.1)
    assert limiter.limit == 5


def test_what_began_before_the_window_was_made_smaller_widens_nothing() -> None:
    limiter = Limiter(16)
    limiter.in_flight = 16
    limiter.throttled(started=1.0, now=2.0)
    for _ in range(100):
        limiter.succeeded(started=1.9, now=3.0)
    assert limiter.limit == 8


def test_a_breaker_that_opens_leaves_a_window_of_one_that_doubles_with_each_round() -> None:
    limiter = Limiter(4)
    opened = [limiter.failed(0.0, float(number), 0.0, 0.8) for number in range(10)]
    assert opened == [False] * 9 + [True]
    assert (limiter.limit, limiter.state, limiter.recovering) == (1, State.OPEN, True)
    now = limiter.open_until
    assert limiter.backpressure is not None
    assert limiter.backpressure.breaker is not None
    assert limiter.backpressure.breaker.admits(now)
    assert limiter.succeeded(now, now + 1)
    assert (limiter.limit, limiter.state) == (2, State.CLOSED)
    for _ in range(2):
        limiter.succeeded(now + 1, now + 2)
    assert (limiter.limit, limiter.recovering) == (4, False)
