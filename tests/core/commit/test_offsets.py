"""The offset tracker: exact under completion in any order, and across rebalances."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dispatcher.core.commit.note import (
    NOTHING,
    RECORD_LIMIT,
    Note,
    Pointer,
    Runs,
    Who,
    checksum_of,
    pack,
    read_note,
    read_whole,
)
from dispatcher.core.commit.offsets import PartitionTracker


class Wants(NamedTuple):
    """A subscription."""

    id: str


def wants(ids: Iterable[str]) -> tuple[Wants, ...]:
    return tuple(Wants(id_) for id_ in sorted(ids))


def handed_over(partition: PartitionTracker, limit: int, *, readable: bool) -> Note:
    """What the next owner reads."""
    committed = partition.committable
    packed = pack(
        "events",
        0,
        committed,
        partition.completed(),
        partition.partly(),
        limit,
        served=partition.served,
        record=RECORD_LIMIT,
    )
    if packed.whole is None or not readable:
        return read_note("events", 0, committed, packed.text)
    read = read_whole("events", 0, committed, packed.whole, Pointer(0, 0, checksum_of(packed.whole)))
    assert read is not None
    return read


def tracker(start: int = 0, ahead: Note = NOTHING) -> PartitionTracker:
    return PartitionTracker("events", 0, start, ahead)


class TrackerAgainstModel(RuleBasedStateMachine):
    """The model keeps for every offset ever read who still wants it, through any number of owners."""

    @initialize(start=st.integers(0, 10**12))
    def start(self, start: int) -> None:
        self.tracker = tracker(start)
        self.owed: dict[int, set[str]] = {}
        self.wanted: dict[int, set[str]] = {}
        self.position = start
        self.unread: set[int] = set()
        self.last_committable = start
        self.told: object = None
        self.forgotten: set[int] = set()  # done, but nobody knows: nobody wanted them, so they are read again

    @rule(gap=st.integers(0, 3), wanted=st.sets(st.sampled_from("abcd")))
    def track(self, gap: int, wanted: set[str]) -> None:
        if self.unread:
            return
        offset = self.position + gap
        assert not self.tracker.seen(offset)
        assert self.tracker.handed_on(offset) is None
        self.tracker.track(offset, len(wanted), wants(wanted))
        assert self.tracker.seen(offset)
        self.wanted[offset] = wanted
        self.owed[offset] = set(wanted)
        self.position = offset + 1

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        open_offsets = [offset for offset, owed in self.owed.items() if owed and offset not in self.unread]
        if open_offsets:
            offset = data.draw(st.sampled_from(open_offsets))
            who = data.draw(st.sampled_from(sorted(self.owed[offset])))
            self.tracker.settle(offset, who)
            self.owed[offset].remove(who)

    @rule()
    def a_commit_is_made(self) -> None:
        """Keeps who is owed where these are fewer, for good."""
        assert self.tracker.changed() or self.told == (self.tracker.completed(), self.tracker.partly())
        self.told = self.tracker.completed(), self.tracker.partly()
        self.tracker.told(self.tracker.state())
        assert not self.tracker.changed()

    @rule(limit=st.sampled_from([0, 40, 60, 4096]))
    def another_takes_over(self, limit: int) -> None:
        """The last commit and its note are all that the next owner has."""
        committed = self.tracker.committable
        ahead = handed_over(self.tracker, limit, readable=True)
        assert self.tracker.resume_at(committed, ahead), "it knows what it wrote itself"
        former, self.tracker = self.tracker, tracker(committed, ahead)
        assert self.tracker.completed() == former.completed()
        assert self.tracker.partly() == former.partly()
        self.told = None
        self.unread = {offset for offset in self.owed if offset >= committed}

    @rule(limit=st.sampled_from([0, 40, 60]))
    def another_takes_over_and_can_not_read_it_all(self, limit: int) -> None:
        """What it doesn't know is owed again, and nothing else."""
        committed = self.tracker.committable
        ahead = handed_over(self.tracker, limit, readable=False)
        self.tracker = tracker(committed, ahead)
        self.told = None
        self.unread = {offset for offset in self.owed if offset >= committed}
        done = {offset for first, end in ahead.done for offset in range(first, end)}
        whose = {offset: who for first, end, who in ahead.partly for offset in range(first, end)}
        for offset in self.unread - done:
            who = whose.get(offset)
            before = self.owed[offset]
            if who is None:
                self.owed[offset] = set(self.wanted[offset])
            elif who.owed:
                self.owed[offset] = set(who.ids)
            else:
                self.owed[offset] = self.wanted[offset] - set(who.ids)
            assert before <= self.owed[offset], "what is owed stays owed"
            if not self.owed[offset]:
                self.forgotten.add(offset)

    @rule(count=st.integers(1, 10))
    def read_again(self, count: int) -> None:
        """Records come again from the committed position on; those that are done are passed over."""
        for offset in sorted(self.unread)[:count]:
            owed = self.owed[offset]
            if offset in self.forgotten:
                self.forgotten.discard(offset)
                assert not self.tracker.seen(offset)
                self.tracker.track(offset, 0)
                self.unread.discard(offset)
                continue
            assert self.tracker.seen(offset) == (not owed), "what is done is passed over, what is owed is not"
            if owed:
                who = self.tracker.handed_on(offset)
                if who is None:
                    assert owed == self.wanted[offset]
                elif who.owed:
                    assert set(who.ids) == owed, "and goes to nobody who has had it"
                else:
                    assert set(who.ids) == self.wanted[offset] - owed, "and goes to nobody who has had it"
                self.tracker.track(offset, len(owed), wants(owed), who)
            self.unread.discard(offset)

    @invariant()
    def commits_the_lowest_owed_offset_and_knows_what_is_done_beyond(self) -> None:
        if not hasattr(self, "tracker"):
            return
        open_offsets = [offset for offset, owed in self.owed.items() if owed]
        read = [offset for offset in open_offsets if offset not in self.unread]
        expected = min(open_offsets, default=self.position)
        assert self.tracker.committable <= expected
        assert self.tracker.committable >= self.last_committable
        self.last_committable = self.tracker.committable
        assert len(self.tracker) == len(read)
        done = {o for first, end in self.tracker.completed() for o in range(first, end)}
        assert done.isdisjoint(open_offsets), "nothing that is owed is ever written down as done"
        all_done = {o for o, owed in self.owed.items() if not owed and o > self.tracker.committable}
        all_done -= self.forgotten
        assert all_done <= done, "all that is done is written down"
        partly = {
            o: set(who.ids) if who.owed else self.wanted[o] - set(who.ids)
            for who, runs in self.tracker.partly().items()
            for first, end in runs
            for o in range(first, end)
        }
        some = {o: owed for o, owed in self.owed.items() if owed and owed != self.wanted[o]}
        known = {o: owed for o, owed in partly.items() if owed != self.wanted[o]}
        assert known == some, "likewise what is done for some"
        if not self.unread:
            assert self.tracker.committable == expected


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
    ("position", "ahead", "goes_on"),
    [
        pytest.param(3, (), False, id="rewound below what was committed"),
        pytest.param(4, (), True, id="as committed"),
        pytest.param(6, (), True, id="committed by a commit whose answer did not come"),
        pytest.param(6, ((7, 8),), True, id="with what it has completed itself"),
        pytest.param(5, ((5, 6), (7, 8)), True, id="with some of it below what it owes by now"),
        pytest.param(6, ((7, 9),), False, id="somebody else completed what is owed here"),
        pytest.param(6, ((7, 8), (9, 11)), False, id="somebody else completed what was not read here"),
        pytest.param(7, (), False, id="somebody else committed what is owed here"),
        pytest.param(11, (), False, id="somebody else went further"),
    ],
)
def test_a_partition_that_comes_back_keeps_its_tracker_only_if_nobody_else_worked_on_it(
    position: int, ahead: Runs, goes_on: bool
) -> None:
    partition = tracker(4)
    for offset in range(4, 10):
        partition.track(offset, 1)
    for offset in (4, 5, 7):
        partition.settle(offset)
    assert partition.committable == 6
    assert partition.resume_at(position, Note(ahead, ())) is goes_on


def test_what_a_former_owner_completed_is_passed_over_also_where_records_are_missing() -> None:
    partition = tracker(10, Note(((12, 15), (16, 17), (30, 40)), ()))
    assert not partition.seen(10)
    partition.track(10, 1)
    assert partition.completed() == [(12, 15), (16, 17), (30, 40)], "11 was not read yet"
    # 11 to 13 were deleted: 14 comes next.
    assert partition.seen(14)
    assert not partition.seen(15)
    partition.track(15, 1)
    assert partition.completed() == [(11, 15), (16, 17), (30, 40)]
    assert partition.seen(16)
    assert not partition.seen(17)
    partition.track(17, 0)
    assert partition.completed() == [(11, 15), (16, 18), (30, 40)]
    partition.settle(10)
    partition.settle(15)
    assert partition.committable == 18
    assert partition.completed() == [(30, 40)]


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


def test_of_many_subscriptions_the_fewer_are_remembered() -> None:
    """What one failing endpoint of a thousand leaves behind takes one id an offset, not 999."""
    partition = tracker()
    everybody = wants(f"sub_{number}" for number in range(1000))
    for offset in range(100):
        partition.track(offset, 1000, everybody)
        for each in everybody:
            if each.id != "sub_7":
                partition.settle(offset, each.id)
    assert partition.partly() == {Who(owed=True, ids=("sub_7",)): [(0, 100)]}
    assert not partition._served
    assert sum(len(ids) for ids in partition._left.values()) == 100
    assert partition.served == 999


def test_somebody_else_served_a_subscription_that_is_owed_here() -> None:
    def owing(*ids: str) -> PartitionTracker:
        partition = tracker(4)
        partition.track(4, 3, wants("abc"))
        for served in set("abc") - set(ids):
            partition.settle(4, served)
        return partition

    def told(who: Who) -> Note:
        return Note((), ((4, 5, who),))

    assert owing("a", "b").resume_at(4, told(Who(owed=False, ids=("c",))))
    assert not owing("a", "b").resume_at(4, told(Who(owed=False, ids=("a",))))
    assert owing("a").resume_at(4, told(Who(owed=True, ids=("a",))))
    assert not owing("a", "b").resume_at(4, told(Who(owed=True, ids=("a",))))
    kept = owing("a")
    assert kept.partly() == {Who(owed=True, ids=("a",)): [(4, 5)]}
    assert not kept.resume_at(4, told(Who(owed=False, ids=("a", "b"))))


# Stretches that hold nothing to read.


def test_a_stretch_without_records_is_passed_over_once_all_before_it_is_tracked() -> None:
    partition = tracker(3)
    partition.track(3, 1)
    partition.pass_over(5, 9)
    assert partition.next == 4, "4 was read and is not tracked yet"
    partition.track(4, 0)
    partition.pass_over(5, 9)
    assert (partition.next, partition.committable) == (9, 3), "what is owed holds the commit all the same"
    partition.settle(3)
    assert partition.committable == 9
    partition.pass_over(5, 7)
    assert partition.committable == 9, "it never goes back"


def test_a_stretch_without_records_meets_what_was_done_before() -> None:
    partition = PartitionTracker("t", 0, 3, Note(((4, 6), (8, 12), (20, 21)), ()))
    partition.pass_over(3, 9)
    assert partition.committable == 12
    assert partition.completed() == [(20, 21)]
    assert not partition.seen(12)
    partition.track(12, 1)
    assert partition.completed() == [(20, 21)]


def test_what_was_neither_read_nor_done_before_is_counted() -> None:
    partition = PartitionTracker("t", 0, 10, Note(((12, 17), (25, 40)), ()))
    assert partition.unread(10, 30) == 20 - 5 - 5
    assert partition.unread(12, 17) == 0
    partition.track(10, 1)
    partition.track(11, 0)
    partition.track(17, 0)
    assert partition.unread(10, 30) == 30 - 18 - 5
    assert partition.unread(0, 18) == 0
