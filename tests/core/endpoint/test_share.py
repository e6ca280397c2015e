"""The queue of one subscription: what goes first. Its limits and its rate: test_lane.py."""

from __future__ import annotations

from dispatcher.core.endpoint.lane import Lane


def test_what_waited_before_goes_ahead_of_what_is_new() -> None:
    lane: Lane[str] = Lane(limit=10)
    lane.offer("a", 10, "new", 0.0)
    lane.offer("a", 10, "retry", 0.0, urgent=True)
    order = [taken[0] for _ in range(2) if (taken := lane.take(0.0)) is not None]
    assert order == ["retry", "new"]


def test_what_came_back_is_served_in_the_order_in_which_it_came_back() -> None:
    lane: Lane[str] = Lane(limit=10)
    lane.offer("a", 10, "new", 0.0)
    for number in range(3):
        lane.offer("a", 10, f"retry {number}", 0.0, urgent=True)
    order = [taken[0] for _ in range(4) if (taken := lane.take(0.0)) is not None]
    assert order == ["retry 0", "retry 1", "retry 2", "new"]


def test_what_was_parked_and_what_is_fresh_take_turns() -> None:
    lane: Lane[str] = Lane(limit=10)
    for number in range(2):
        lane.offer("a", 10, f"fresh {number}", 0.0)
        lane.offer("a", 10, f"parked {number}", 0.0, parked=True)
    order = [taken[0] for _ in range(4) if (taken := lane.take(0.0)) is not None]
    assert order == ["parked 0", "fresh 0", "parked 1", "fresh 1"]


def test_the_newest_go_first_when_some_have_to_go() -> None:
    lane: Lane[str] = Lane(limit=10)
    for number in range(3):
        lane.offer("a", 10, f"fresh {number}", 0.0)
    share = lane.find("a")
    assert share is not None
    trimmed: list[str] = []
    lane.cut(share, 1, trimmed)
    assert trimmed == ["fresh 2", "fresh 1"]
    assert lane.queued == share.queued == 1
