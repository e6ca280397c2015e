from __future__ import annotations

from dispatcher.runtime.backoff import Backoff, pause_after


def test_pauses_grow_to_the_longest_and_stay_there() -> None:
    backoff = Backoff()
    pauses = [backoff.failed() for _ in range(8)]
    assert pauses == [0.2, 0.5, 1.0, 2.0, 5.0, 5.0, 5.0, 5.0]
    assert backoff.failures == 8


def test_a_success_begins_with_the_shortest_again() -> None:
    backoff = Backoff()
    backoff.failed()
    backoff.failed()
    backoff.succeeded()
    assert (backoff.failures, backoff.failed()) == (0, 0.2)


def test_the_longest_pause_is_the_callers() -> None:
    assert [pause_after(failures, longest=0.7) for failures in (1, 2, 3, 9)] == [0.2, 0.5, 0.7, 0.7]
    assert [pause_after(failures, longest=60.0) for failures in (6, 7, 8, 100)] == [10.0, 30.0, 30.0, 30.0]
