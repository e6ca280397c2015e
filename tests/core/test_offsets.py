"""The offset tracker: exact under completion in any order, and across rebalances."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dispatcher.core.offsets import PartitionTracker


def tracker(start: int = 0) -> PartitionTracker:
    return PartitionTracker("events", 0, start)


class TrackerAgainstModel(RuleBasedStateMachine):
    """The model keeps every offset ever tracked, with what it owes."""

    @initialize(start=st.integers(0, 10**12))
    def start(self, start: int) -> None:
        self.tracker = tracker(start)
        self.owed: dict[int, int] = {}
        self.position = start
        self.last_committable = start

    @rule(gap=st.integers(0, 3), owed=st.integers(0, 4))
    def track(self, gap: int, owed: int) -> None:
        offset = self.position + gap
        assert not self.tracker.seen(offset)
        self.tracker.track(offset, owed)
        assert self.tracker.seen(offset)
        self.owed[offset] = owed
        self.position = offset + 1

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        open_offsets = [offset for offset, owed in self.owed.items() if owed]
        if open_offsets:
            offset = data.draw(st.sampled_from(open_offsets))
            self.tracker.settle(offset)
            self.owed[offset] -= 1

    @invariant()
    def commits_the_lowest_owed_offset(self) -> None:
        if not hasattr(self, "tracker"):
            return
        open_offsets = [offset for offset, owed in self.owed.items() if owed]
        expected = min(open_offsets, default=self.position)
        assert self.tracker.committable == expected
        assert self.tracker.committable >= self.last_committable
        self.last_committable = self.tracker.committable
        assert len(self.tracker) == len(open_offsets)


TestTrackerAgainstModel = TrackerAgainstModel.TestCase


def test_an_offset_is_tracked_once() -> None:
    partition = tracker(5)
    partition.track(7, 1)
    with pytest.raises(ValueError, match="offset 6 is tracked already"):
        partition.track(6, 1)


def test_settling_more_than_is_owed_is_an_error() -> None:
    partition = tracker()
    partition.track(0, 1)
    partition.settle(0)
    with pytest.raises(KeyError):
        partition.settle(0)


@pytest.mark.parametrize(
    ("position", "goes_on"),
    [
        pytest.param(3, False, id="rewound below what was committed"),
        pytest.param(4, True, id="as committed"),
        pytest.param(8, True, id="somebody else committed what is tracked here"),
        pytest.param(10, True, id="up to the end of what is tracked"),
        pytest.param(11, False, id="somebody else went further"),
    ],
)
def test_a_partition_that_comes_back_keeps_its_tracker_only_while_it_describes_it(
    position: int, goes_on: bool
) -> None:
    partition = tracker(4)
    for offset in range(4, 10):
        partition.track(offset, 1)
    assert partition.resume_at(position) is goes_on


def test_what_is_owed_for_longer_than_the_limit_is_known_by_looking_regularly() -> None:
    partition = tracker(5)
    assert not partition.look(0.0, 60.0)
    for second in range(1, 100):
        partition.track(4 + second, 1)
        overdue = partition.look(float(second), 60.0)
        assert overdue is (second > 60)
        assert partition.overdue_below == max(5, 5 + second - 60)
    for offset in range(5, 50):
        partition.settle(offset)
    assert not partition.look(100.0, 60.0), "what was owed for too long has been settled"
    assert partition.look(200.0, 60.0)
    assert partition.overdue_below == partition.next


def test_held_counts_from_when_the_lowest_offset_was_first_seen_stuck() -> None:
    partition = tracker()

    def held(now: float) -> float:
        partition.observe(now)
        return partition.held

    assert held(100.0) == 0.0
    partition.track(0, 1)
    partition.track(1, 1)
    assert held(101.0) == 0.0
    assert held(108.0) == 7.0
    partition.settle(0)
    assert held(109.0) == 0.0
    assert held(110.0) == 1.0
    partition.settle(1)
    assert held(111.0) == 0.0
