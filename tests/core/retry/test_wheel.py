"""The in-memory timing wheel against a naive model, and its promises one by one."""

from __future__ import annotations

import math

from hypothesis import given, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dispatcher.core.retry.wheel import Entry, Wheel

TICK = 0.01
WAITS = st.one_of(
    st.floats(0, 0.5),
    st.floats(0, 10),
    st.floats(0, 4000),
    st.floats(0, 40 * 86400),
    st.floats(0, 600 * 86400),
)


class WheelAgainstModel(RuleBasedStateMachine):
    """A list of (due, item) that is scanned whole does the same, slowly."""

    @initialize(now=st.floats(0, 1e6))
    def start(self, now: float) -> None:
        self.now = now
        self.wheel: Wheel[int] = Wheel(now, TICK)
        self.waiting: dict[int, tuple[float, Entry[int]]] = {}
        self.gone: list[Entry[int]] = []
        self.count = 0

    @rule(wait=WAITS)
    def add(self, wait: float) -> None:
        self.count += 1
        due = self.now + wait
        self.waiting[self.count] = (due, self.wheel.add(due, self.count))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.waiting:
            item = data.draw(st.sampled_from(sorted(self.waiting)))
            _, entry = self.waiting.pop(item)
            self.wheel.cancel(entry)
            self.gone.append(entry)

    @rule()
    def cancel_what_is_gone(self) -> None:
        if self.gone:
            self.wheel.cancel(self.gone[-1])

    @rule(step=WAITS)
    def advance_by(self, step: float) -> None:
        self._advance(self.now + step)

    @rule()
    def advance_to_next_due(self) -> None:
        due = self.wheel.next_due()
        if due is not None:
            self._advance(max(self.now, due))

    def _advance(self, now: float) -> None:
        self.now = now
        came = self.wheel.advance(now)
        assert len(came) == len(set(came))
        ticks = []
        for item in came:
            due, entry = self.waiting.pop(item)
            self.gone.append(entry)
            assert due <= now + 1e-6, "fired before it was due"
            ticks.append(math.ceil(due / TICK))
        # What was added when already due comes a tick later than its own time, hence max().
        assert ticks == sorted(ticks) or all(tick <= now / TICK + 1 for tick in ticks)
        for due, _ in self.waiting.values():
            assert due > now - 2 * TICK, "should have fired by now"

    @invariant()
    def counts_what_waits(self) -> None:
        if hasattr(self, "wheel"):
            assert len(self.wheel) == len(self.waiting)

    @invariant()
    def next_due_is_never_late(self) -> None:
        if hasattr(self, "wheel"):
            due = self.wheel.next_due()
            if self.waiting:
                assert due is not None
                assert due <= min(due for due, _ in self.waiting.values()) + 2 * TICK
            else:
                assert due is None


TestWheelAgainstModel = WheelAgainstModel.TestCase


def test_an_empty_wheel_asks_for_nothing() -> None:
    wheel: Wheel[str] = Wheel(100.0)
    assert wheel.next_due() is None
    assert wheel.advance(1e9) == []


def test_an_entry_comes_out_of_the_first_advance_that_is_not_before_its_due_time() -> None:
    wheel: Wheel[str] = Wheel(0.0)
    wheel.add(1.234, "a")
    assert wheel.advance(1.233) == []
    assert wheel.advance(1.24) == ["a"]
    assert wheel.advance(1.25) == []


def test_what_is_due_already_comes_with_the_next_tick() -> None:
    wheel: Wheel[str] = Wheel(50.0)
    wheel.add(49.0, "late")
    assert wheel.advance(50.0) == []
    assert wheel.advance(50.01) == ["late"]


def test_a_cancelled_entry_leaves_the_wheel_empty() -> None:
    wheel: Wheel[str] = Wheel(0.0)
    entry = wheel.add(3600.0, "a")
    wheel.cancel(entry)
    wheel.cancel(entry)
    assert len(wheel) == 0
    assert wheel.next_due() is None
    assert wheel.advance(7200.0) == []


def test_time_that_goes_back_changes_nothing() -> None:
    wheel: Wheel[str] = Wheel(10.0)
    wheel.add(11.0, "a")
    assert wheel.advance(10.5) == []
    assert wheel.advance(3.0) == []
    assert wheel.advance(11.0) == ["a"]


@given(st.lists(st.floats(0, 86400), max_size=200))
def test_a_sleeper_that_wakes_at_next_due_misses_nothing(waits: list[float]) -> None:
    """Following `next_due` alone, every entry fires in its own tick: never early, at most one tick late."""
    wheel: Wheel[int] = Wheel(0.0, TICK)
    for item, wait in enumerate(waits):
        wheel.add(wait, item)
    came: list[int] = []
    turns = 0
    while (due := wheel.next_due()) is not None:
        for item in wheel.advance(due):
            assert waits[item] - 1e-6 <= due <= waits[item] + 2 * TICK
            came.append(item)
        turns += 1
        assert turns <= 5 * len(waits) + 5, "wakes more often than once per entry and level"
    assert sorted(came) == list(range(len(waits)))


def test_a_million_entries_are_added_and_fire() -> None:
    wheel: Wheel[int] = Wheel(0.0)
    for i in range(1_000_000):
        wheel.add((i * 7919) % 100_000, i)
    assert len(wheel) == 1_000_000
    fired = 0
    for second in range(0, 100_001, 100):
        fired += len(wheel.advance(second))
    assert fired == 1_000_000
    assert len(wheel) == 0
