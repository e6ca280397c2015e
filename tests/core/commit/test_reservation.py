"""What is owed at a pause, through any number of owners that are killed, stop, or give their partition up.

A subscription takes deliveries, or is paused. What is taken up while it does is owed to it until that is settled. What a
killed process had taken up nobody knows but by the note beside its last commit.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dispatcher.core.commit.note import Note, pack, read_note, reserving
from dispatcher.core.commit.offsets import PartitionTracker

_SUBSCRIPTION = "sub_1"


class _One:
    id = _SUBSCRIPTION


class PausesAgainstModel(RuleBasedStateMachine):
    """The model keeps a set of the offsets that were taken up in active times and are not done."""

    def __init__(self) -> None:
        super().__init__()
        # The broker.
        self.end = 0
        self.committed, self.text = 0, ""
        # The owner.
        self.tracker = PartitionTracker("events", 0, 0)
        self.in_flight: tuple[int, str, int, tuple[int, int, int]] | None = None
        # The model.
        self.paused = False
        self.owed: set[int] = set()
        self.done: set[int] = set()
        self.doubt = 0  # what is below this may be taken for owed

    @rule(count=st.integers(1, 3000))
    def publish(self, count: int) -> None:
        self.end += count

    @rule(paused=st.booleans())
    def change(self, paused: bool) -> None:
        self.paused = paused

    @precondition(lambda self: self.in_flight is None)
    @rule(count=st.integers(1, 1500), through=st.booleans())
    def read(self, count: int, through: bool) -> None:
        """A batch, announced before it is taken up; whoever can't reserve it waits, in this model."""
        tracker = self.tracker
        end = tracker.reservation.announced = tracker.next + count
        self.end = max(self.end, end)
        if end > tracker.reservation.below:
            wanted = tracker.reservation.wanted(tracker.next)
            assert wanted >= end
            text = reserving("events", 0, self.committed, self.text, wanted)
            assert text is not None
            tracker.noted = self.text = text
            if not through:
                return  # the broker has it, and nobody here knows
            tracker.reservation.made(wanted, tracker.next)
        self._take_up(end)

    @precondition(lambda self: self.in_flight is not None)
    @rule(count=st.integers(1, 1500))
    def read_while_a_commit_is_under_way(self, count: int) -> None:
        tracker = self.tracker
        end = min(tracker.next + count, tracker.reservation.below)
        self.end = max(self.end, end)
        self._take_up(end)

    def _take_up(self, end: int) -> None:
        tracker = self.tracker
        for offset in range(tracker.next, end):
            if tracker.seen(offset):
                assert offset in self.done
                continue
            owed = not self.paused or offset < tracker.handed_below
            if offset in self.owed:
                assert owed, f"{offset} was owed before the pause"
            elif owed and self.paused:
                assert offset < self.doubt, f"{offset} can't have been taken up before the pause"
            tracker.track(offset, 1 if owed else 0, (_One(),))
            if owed:
                self.owed.add(offset)
            else:
                self.done.add(offset)
        self.doubt = max(self.doubt, tracker.next)

    @rule(data=st.data(), count=st.integers(1, 2000))
    def settle(self, data: st.DataObject, count: int) -> None:
        mine = sorted(self.owed.intersection(self.tracker._owed))
        if mine:
            first = data.draw(st.integers(0, len(mine) - 1))
            for offset in mine[first : first + count]:
                self.tracker.settle(offset, _SUBSCRIPTION)
                self.owed.discard(offset)
                self.done.add(offset)

    @rule(begins=st.booleans())
    def commit(self, begins: bool) -> None:
        if self.in_flight is None:
            self._begin_commit(last=False)
        if not begins:
            self.commit_ends(kept=True, known=True)

    def _begin_commit(self, *, last: bool) -> None:
        tracker = self.tracker
        reserved = tracker.reservation.wanted(tracker.next, last=last)
        tracker.reservation.making(reserved)
        offset = tracker.committable
        packed = pack("events", 0, offset, tracker.completed(), tracker.partly(), reserved=reserved)
        self.in_flight = offset, packed.text, reserved, tracker.state()

    @precondition(lambda self: self.in_flight is not None)
    @rule(kept=st.booleans(), known=st.booleans())
    def commit_ends(self, kept: bool, known: bool) -> None:
        """It may fail, or go through without an answer."""
        assert self.in_flight is not None
        offset, text, reserved, state = self.in_flight
        self.in_flight = None
        if kept:
            self.committed, self.text = offset, text
        if kept and known:
            tracker = self.tracker
            tracker.committed, tracker.noted = offset, text
            tracker.told(state)
            tracker.reservation.made(reserved, tracker.next)

    @rule(kept=st.booleans(), paused=st.booleans())
    def kill(self, kept: bool, paused: bool) -> None:
        """And another takes over, when it may be paused."""
        self.paused = paused
        if self.in_flight is not None:
            self.commit_ends(kept, known=False)
        self.done.difference_update(self._forgotten())
        self.doubt = max(self.doubt, self.end)
        self.tracker = PartitionTracker("events", 0, self.committed, self._note())
        self.tracker.committed, self.tracker.noted = self.committed, self.text

    @precondition(lambda self: self.in_flight is None)
    @rule(same=st.booleans())
    def give_up(self, same: bool) -> None:
        """In good order, with a last commit: to somebody else, or to the same one again."""
        self._begin_commit(last=True)
        self.commit_ends(kept=True, known=True)
        if same:
            assert self.tracker.resume_at(self.committed, self._note())
        else:
            self.tracker = PartitionTracker("events", 0, self.committed, self._note())
            self.tracker.committed, self.tracker.noted = self.committed, self.text

    def _note(self) -> Note:
        note = read_note("events", 0, self.committed, self.text)
        return note if note.reserved is None else note._replace(reserved=min(note.reserved, self.end))

    def _forgotten(self) -> set[int]:
        """What is done and not told: it comes again, to whom it was owed if it was."""
        told = {
            offset
            for first, past in read_note("events", 0, self.committed, self.text).done
            for offset in range(first, past)
        }
        return {offset for offset in self.done if offset >= self.committed and offset not in told}

    @invariant()
    def nothing_is_taken_up_that_is_not_reserved(self) -> None:
        # Or is known to have been, by the note of the one before.
        known = read_note("events", 0, self.committed, self.text).reserved or 0
        assert self.tracker.next <= max(known, 0)


TestPausesAgainstModel = PausesAgainstModel.TestCase


def test_while_a_commit_is_under_way_no_more_is_taken_up_than_either_note_allows() -> None:
    reservation = PartitionTracker("events", 0, 0).reservation
    reservation.announced = 5000
    reservation.made(reservation.wanted(0), 0)
    assert reservation.below == 5000
    reservation.announced = 100
    wanted = reservation.wanted(100)
    assert wanted == 1100
    reservation.making(wanted)
    assert reservation.below == 1100


def test_what_is_reserved_grows_with_what_is_read() -> None:
    reservation = PartitionTracker("events", 0, 0).reservation
    reservation.made(1000, 0)
    assert reservation.wanted(20_000) == 60_000
    reservation.made(60_000, 20_000)
    assert reservation.wanted(20_000) == 21_000
