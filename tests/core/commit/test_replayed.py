"""The offsets of the replay topic."""

from __future__ import annotations

from dispatcher.core.commit.replayed import ReplayTracker


def test_somebody_hears_of_each_that_is_done_with() -> None:
    tracker = ReplayTracker("dispatcher.replay", 0, 5)
    heard: list[int] = []
    tracker.track(5, 1)
    tracker.track(6, 1)
    tracker.settle(6)
    assert tracker.committable == 5
    tracker.freed = lambda: heard.append(tracker.committable)
    tracker.settle(5)
    assert heard == [7]
