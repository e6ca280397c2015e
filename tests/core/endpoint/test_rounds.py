"""Turns between tenants, and between the endpoints of a tenant."""

from __future__ import annotations

from collections import defaultdict, deque

import pytest
from hypothesis import given, strategies as st

from dispatcher.core.endpoint.rounds import Rounds


def test_whoever_comes_with_one_waits_for_one_of_each_of_the_others() -> None:
    rounds: Rounds[str] = Rounds()
    for number in range(1000):
        rounds.put(f"many {number}", "a", number % 10)
    rounds.put("one", "b", 0)
    assert [rounds.pop() for _ in range(2)] == ["many 0", "one"]


def test_the_endpoints_of_a_tenant_take_turns() -> None:
    rounds: Rounds[str] = Rounds()
    for number in range(3):
        rounds.put(f"x{number}", "a", "x")
    rounds.put("y0", "a", "y")
    assert [rounds.pop() for _ in range(4)] == ["x0", "y0", "x1", "x2"]


def test_an_empty_line_has_nothing_to_give() -> None:
    rounds: Rounds[str] = Rounds()
    with pytest.raises(IndexError):
        rounds.pop()


@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 2), st.integers(0, 2)))))
def test_everything_comes_out_once_and_of_an_endpoint_in_order(steps: list[tuple[int, int] | None]) -> None:
    rounds: Rounds[tuple[int, int, int]] = Rounds()
    model: defaultdict[tuple[int, int], deque[int]] = defaultdict(deque)
    passed_over: defaultdict[int, int] = defaultdict(int)
    count = 0
    for step in [*steps, *[None] * len(steps)]:
        assert len(rounds) == sum(map(len, model.values()))
        if step is not None:
            count += 1
            rounds.put((*step, count), *step)
            model[step].append(count)
        elif len(rounds):
            tenant, endpoint, number = rounds.pop()
            assert model[tenant, endpoint].popleft() == number
            for other in range(3):
                waits = other != tenant and any(model[other, each] for each in range(3))
                passed_over[other] = passed_over[other] + 1 if waits else 0
                assert passed_over[other] < 3
    assert not len(rounds)
