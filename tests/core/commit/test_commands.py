"""The tracker of commands."""

from __future__ import annotations

import pytest

from dispatcher.core.commit.commands import CommandTracker


def test_a_command_ends_when_its_delivery_is_settled_in_any_order() -> None:
    ended: list[tuple[int, bool]] = []
    tracker = CommandTracker("events", 3, lambda number, lost: ended.append((number, lost)))
    for number in (2, 1, 5):
        tracker.track(number, 1)
    assert len(tracker) == 3
    tracker.settle(5, "sub_1")
    tracker.settle(2)
    assert ended == [(5, False), (2, False)]
    tracker.lost = True
    tracker.settle(1)
    assert ended[-1] == (1, True)
    with pytest.raises(KeyError):
        tracker.settle(1)


def test_no_commit_waits_for_a_command() -> None:
    tracker = CommandTracker("events", 3, lambda *_: None)
    tracker.track(1, 1)
    tracker.observe(1000.0)
    assert tracker.held == 0
    assert not tracker.look(1000.0, 60.0)
    assert tracker.overdue_below == 0
