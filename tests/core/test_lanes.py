"""Lanes: limits, turns between subscriptions, order within one, and no traces left."""

from __future__ import annotations

from collections import defaultdict, deque

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dispatcher.core.lanes import Lane, Share

KEYS = ["a", "b", "c"]


class LaneAgainstModel(RuleBasedStateMachine):
    """The model keeps a plain queue and a count per subscription."""

    @initialize(limit=st.integers(1, 5))
    def start(self, limit: int) -> None:
        self.limit = limit
        self.lane: Lane[tuple[str, int]] = Lane(limit)
        self.queues: defaultdict[str, deque[int]] = defaultdict(deque)
        self.limits: dict[str, int] = {}
        self.flying: list[tuple[str, Share[tuple[str, int]]]] = []
        self.count = 0

    def in_flight(self, key: str) -> int:
        return sum(1 for flying, _ in self.flying if flying == key)

    def servable(self) -> list[str]:
        return [key for key in KEYS if self.queues[key] and self.in_flight(key) < self.limits[key]]

    @rule(key=st.sampled_from(KEYS), limit=st.integers(1, 4), urgent=st.booleans())
    def offer(self, key: str, limit: int, urgent: bool) -> None:
        self.count += 1
        self.limits[key] = limit
        self.lane.offer(key, limit, (key, self.count), urgent=urgent)
        if urgent:
            self.queues[key].appendleft(self.count)
        else:
            self.queues[key].append(self.count)

    @rule()
    def take(self) -> None:
        servable = self.servable()
        taken = self.lane.take()
        if len(self.flying) >= self.limit or not servable:
            assert taken is None
            return
        assert taken is not None, f"{servable} could have been served"
        (key, number), share = taken
        assert key in servable
        assert self.queues[key].popleft() == number
        self.flying.append((key, share))

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.flying:
            index = data.draw(st.integers(0, len(self.flying) - 1))
            _, share = self.flying.pop(index)
            self.lane.release(share)

    @rule(rest=st.integers(0, 3))
    def withdraw(self, rest: int) -> None:
        withdrawn = self.lane.withdraw(lambda item: item[1] % 3 == rest or rest == 3)
        for key in KEYS:
            expected = [number for number in self.queues[key] if number % 3 == rest or rest == 3]
            assert [number for found, number in withdrawn if found == key] == expected
            self.queues[key] = deque(number for number in self.queues[key] if number not in expected)

    @invariant()
    def counts_hold(self) -> None:
        if hasattr(self, "lane"):
            assert self.lane.in_flight == len(self.flying) <= self.limit
            assert self.lane.queued == sum(map(len, self.queues.values()))
            assert self.lane.empty is not (bool(self.flying) or any(self.queues.values()))


TestLaneAgainstModel = LaneAgainstModel.TestCase


def test_a_flood_to_one_subscription_costs_its_neighbour_one_turn() -> None:
    lane: Lane[str] = Lane(limit=1)
    for i in range(1000):
        lane.offer("flood", 16, f"flood {i}")
    first = lane.take()
    assert first is not None
    lane.offer("neighbour", 16, "the neighbour's")
    lane.release(first[1])
    served = []
    for _ in range(2):
        taken = lane.take()
        assert taken is not None
        served.append(taken[0])
        lane.release(taken[1])
    assert "the neighbour's" in served


def test_a_subscription_at_its_own_limit_leaves_the_slots_to_others() -> None:
    lane: Lane[str] = Lane(limit=10)
    for i in range(5):
        lane.offer("narrow", 2, f"narrow {i}")
        lane.offer("wide", 8, f"wide {i}")
    taken = []
    while (next_one := lane.take()) is not None:
        taken.append(next_one[0].split()[0])
    assert taken.count("narrow") == 2
    assert taken.count("wide") == 5


def test_what_waited_before_goes_ahead_of_what_is_new() -> None:
    lane: Lane[str] = Lane(limit=10)
    lane.offer("a", 10, "new")
    lane.offer("a", 10, "retry", urgent=True)
    order = [taken[0] for _ in range(2) if (taken := lane.take()) is not None]
    assert order == ["retry", "new"]


def test_a_lowered_limit_holds_at_once() -> None:
    lane: Lane[str] = Lane(limit=10)
    for i in range(4):
        lane.offer("a", 3, str(i))
    first = lane.take()
    assert first is not None
    lane.offer("a", 1, "with the new limit")
    assert lane.take() is None
    lane.release(first[1])
    assert lane.take() is not None
