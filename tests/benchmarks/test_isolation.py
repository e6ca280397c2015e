"""The arithmetic of the isolation benchmark."""

import pytest

from benchmarks import isolation
from benchmarks.end_to_end import Metrics, Wrong


def _ids(*made: float) -> list[str]:
    return [f"{at:.6f}-{number:09d}" for number, at in enumerate(made)]


def test_the_commit_lags_by_the_age_of_the_oldest_event_that_is_not_committed() -> None:
    produced = [_ids(10, 20, 30), _ids(11, 21, 31)]
    assert isolation.lag([(35, {0: 1, 1: 2})], produced) == 15
    assert isolation.lag([(35, {0: 3, 1: 2}), (36, {0: 3, 1: 3})], produced) == 4
    assert isolation.lag([(35, {0: 3})], produced) == 24, "nothing of a partition is committed"


def test_what_is_committed_or_not_produced_yet_does_not_lag() -> None:
    assert isolation.lag([(29, {0: 2}), (35, {0: 3})], [_ids(10, 20, 30)]) == 0
    assert isolation.lag([], [_ids(10)]) == 0


def test_the_time_of_a_delivery_ends_with_its_first_arrival() -> None:
    warm, timed = _ids(1, 2), _ids(3, 4)
    arrivals = [(warm[0], 1.5), (warm[1], 2.5), (timed[0], 3.25), (timed[0], 9.0), (timed[1], 4.5)]
    taken, twice = isolation.arrived([*warm, *timed], timed, arrivals, hosts=50)
    assert taken == [0.25, 0.5]
    assert twice == 1


def test_only_what_the_healthy_hosts_are_owed_has_to_arrive_there() -> None:
    every = _ids(*range(104))  # two rounds of 50 healthy hosts and two others
    healthy = [each for number, each in enumerate(every) if number % 52 < 50]
    taken, _ = isolation.arrived(every, every, [(each, 200.0) for each in healthy], hosts=52)
    assert len(taken) == 100
    with pytest.raises(Wrong, match="of 100 events 1 did not arrive"):
        isolation.arrived(every, every, [(each, 200.0) for each in healthy[1:]], hosts=52)
    with pytest.raises(Wrong, match="1 unknown"):
        isolation.arrived(every, every, [(each, 200.0) for each in [*healthy, every[51]]], hosts=52)


def test_what_a_counter_counted_is_said_in_words() -> None:
    look = Metrics(
        'dispatcher_attempts_total{code_class="2xx",outcome="delivered"} 9000.0\n'
        'dispatcher_attempts_total{code_class="none",outcome="timeout"} 32.0\n'
        'dispatcher_deliveries_parked_total{reason="breaker"} 1234.0\n'
        'dispatcher_deliveries_parked_total{reason="cap"} 0.0\n'
    )
    assert isolation.words(look, "attempts_total", "delivered") == "32 timeout"
    assert isolation.words(look, "deliveries_parked_total") == "1,234 breaker"
    assert isolation.words(look, "retries_due_total") == "none"
