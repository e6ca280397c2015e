"""Where parked records are, and which are owed."""

from __future__ import annotations

import random
import sys

import pytest

from dispatcher.core.commit import parked
from dispatcher.core.commit.note import Note
from dispatcher.core.commit.offsets import PartitionTracker
from dispatcher.core.commit.parked import Backlog, ParkedTracker


def test_the_oldest_are_taken_first_also_of_those_that_were_given_back() -> None:
    backlog = Backlog("a")
    for offset in range(0, 100, 10):
        backlog.add(offset, offset)
    assert backlog.take(3) == [0, 10, 20]
    backlog.give_back(20)
    backlog.give_back(0)
    assert backlog.oldest == 0
    assert backlog.take(4) == [0, 20, 30, 40]
    assert len(backlog) == 5
    assert backlog.taken.keys() == {0, 10, 20, 30, 40}


def test_who_has_most_loses_the_notes_of_its_newest_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parked, "MOST", 1000)
    tracker = ParkedTracker("t", 0, 0)
    for offset in range(5000):
        tracker.note(offset, "small" if offset % 50 == 49 else "large", offset, "cap")
    small, large = tracker.backlogs["small"], tracker.backlogs["large"]
    assert (len(small), small.more_from) == (100, None)
    assert 0 < len(large) <= 1000
    assert large.more_from is not None
    assert large.take(10_000) == [n for n in range(large.more_from) if n % 50 != 49]
    assert len(tracker) == 5000


def test_the_partitions_of_a_process_share_the_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parked, "MOST", 1000)
    monkeypatch.setattr(parked, "_LEAST", 100)
    trackers = [ParkedTracker("t", partition, 0) for partition in range(4)]
    for tracker in trackers:
        tracker.share(1)
        for offset in range(900):
            tracker.note(offset, "a", offset, "cap")
        assert len(tracker.backlogs["a"]) == 900
    for partitions, most in ((4, 250), (100, 100)):
        for tracker in trackers:
            tracker.share(partitions)
            backlog = tracker.backlogs["a"]
            assert 0 < len(backlog) <= most
            assert backlog.more_from == len(backlog), "the oldest are known"
            assert len(tracker) == 900


def test_a_parked_delivery_costs_13_bytes() -> None:
    tracker = ParkedTracker("t", 0, 0)
    for offset in range(200_000):
        tracker.note(offset, f"s{offset % 10}", offset, "cap")
    arrays = sum(
        sys.getsizeof(b._offsets) + sys.getsizeof(b._since) for b in tracker.backlogs.values()
    ) + sys.getsizeof(tracker._states)
    assert arrays / 200_000 < 13 * 1.15


@pytest.mark.parametrize("seed", range(30))
def test_it_tells_what_a_tracker_of_events_would_tell(seed: int) -> None:
    draw = random.Random(seed)
    ahead = Note(((30, 35), (50, 60)), ())
    model, tracker = PartitionTracker("t", 0, 10, ahead), ParkedTracker("t", 0, 10, ahead)
    owed: list[int] = []
    offset = 10
    for _ in range(300):
        if draw.random() < 0.5:
            offset += draw.choice((0, 0, 0, 2))
            assert tracker.seen(offset) == model.seen(offset)
            if not model.seen(offset):
                count = int(draw.random() < 0.9)
                model.track(offset, count)
                tracker.track(offset, count)
                owed += [offset] * count
            offset += 1
        elif owed:
            done = owed.pop(draw.randrange(len(owed)) if draw.random() < 0.7 else 0)
            model.settle(done)
            tracker.settle(done)
        assert tracker.committable == model.committable
        assert tracker.completed() == model.completed()
        assert len(tracker) == len(model)
    oldest = tracker.renew(5)
    assert oldest == sorted(owed)[:5]
    assert not set(tracker.renew(5)) & set(oldest)


def test_it_says_why_how_many_are_parked() -> None:
    tracker = ParkedTracker("t", 0, 0)
    for offset, reason in enumerate(["cap", "paused", "cap", "unheard_of"]):
        tracker.note(offset, "a", 0, reason)
    tracker.settle(0)
    said = tracker.reasons()
    assert {reason: count for reason, count in said.items() if count} == {"cap": 1, "paused": 1, "other": 1}


def test_it_says_since_when_the_oldest_waits_by_why_it_is_parked() -> None:
    tracker = ParkedTracker("t", 0, 5)
    assert tracker.oldest() == {}
    one = tracker.note(5, "one", 100, "breaker")
    tracker.note(6, "two", 90, "breaker")
    tracker.note(7, "three", 95, "paused")
    tracker.note(8, "one", 50, "paused")  # behind an older record: not the next to be taken
    assert tracker.oldest() == {"breaker": 90, "paused": 95}
    tracker.settle(6)
    tracker.backlogs["two"].take(1)
    assert tracker.take(one, 1) == [5]
    assert tracker.oldest() == {"paused": 50}
    tracker.give_back(5)
    assert tracker.oldest() == {"breaker": 100, "paused": 95}


def test_what_is_settled_twice_is_an_error() -> None:
    tracker = ParkedTracker("t", 0, 0)
    tracker.track(0, 1)
    tracker.settle(0)
    with pytest.raises((KeyError, IndexError)):
        tracker.settle(0)
