"""Which generation of a delivery is sent, and which is settled without being sent."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dispatcher.core.retry.generations import (
    CANCELLED,
    PURGED,
    SUPERSEDED,
    Generations,
    replay_id,
    replay_order,
)

AT = ("events", 0, 7)


def test_without_commands_everything_is_sent_and_nothing_need_be_asked() -> None:
    generations = Generations()
    assert not generations.any
    assert generations.verdict(AT, "sub", 1) is None
    assert generations.next_generation(AT, "sub") == 2


def test_a_retry_supersedes_older_generations_of_its_own_delivery_only() -> None:
    generations = Generations()
    generations.note(AT, "sub", 3, 100, cancels=False)
    assert generations.any
    assert generations.verdict(AT, "sub", 1) == SUPERSEDED
    assert generations.verdict(AT, "sub", 2) == SUPERSEDED
    assert generations.verdict(AT, "sub", 3) is None
    assert generations.verdict(AT, "sub", 4, replay_id(1, "00")) is None
    assert generations.verdict(AT, "other", 1) is None
    assert generations.verdict(("events", 0, 8), "sub", 1) is None


def test_a_cancel_ends_what_is_older_and_a_retry_after_it_is_sent() -> None:
    generations = Generations()
    generations.note(AT, "sub", 2, 100, cancels=True)
    assert generations.verdict(AT, "sub", 1) == CANCELLED
    generations.note(AT, "sub", 3, 101, cancels=False)
    assert generations.verdict(AT, "sub", 1) == SUPERSEDED
    assert generations.verdict(AT, "sub", 3) is None


def test_a_purge_ends_events_by_their_offsets_and_not_by_any_clock() -> None:
    generations = Generations()
    generations.note_purge("sub", 100, {("events", 0): 8, ("events", 1): 2})
    assert generations.verdict(AT, "sub", 1) == PURGED
    assert generations.verdict(("events", 0, 8), "sub", 1) is None
    assert generations.verdict(("events", 1, 1), "sub", 1) == PURGED
    assert generations.verdict(("events", 2, 0), "sub", 1) is None  # a partition that was added since
    assert generations.verdict(AT, "other", 1) is None


def test_a_command_from_before_a_purge_is_purged_and_one_after_it_is_sent() -> None:
    generations = Generations()
    generations.note(AT, "sub", 2, 99, cancels=False)
    generations.note_purge("sub", 100, {("events", 0): 8})
    assert generations.verdict(AT, "sub", 2) == PURGED
    assert generations.verdict(AT, "sub", 1) == SUPERSEDED
    generations.note(AT, "sub", 3, 101, cancels=False)
    assert generations.verdict(AT, "sub", 2) == SUPERSEDED
    assert generations.verdict(AT, "sub", 3) is None


def test_a_replay_is_purged_if_it_began_before_the_purge() -> None:
    generations = Generations()
    generations.note_purge("sub", 100, {("events", 0): 8})
    assert generations.verdict(AT, "sub", 2, replay_id(99, "ab")) == PURGED
    assert generations.verdict(AT, "sub", 2, replay_id(101, "ab")) is None
    assert generations.verdict(AT, "sub", 2, "somebody else's") == PURGED


def test_a_command_that_knows_of_another_comes_behind_it_whatever_the_clock_says() -> None:
    generations = Generations()
    generations.note_purge("sub", 5_000, {("events", 0): 8})
    order = generations.next_order(4_000)  # a clock that is a second behind
    assert order == 5_001
    generations.note(AT, "sub", 2, order, cancels=False)
    assert generations.verdict(AT, "sub", 2) is None
    assert generations.next_order(9_000) == 9_000


def test_what_is_forgotten_costs_nothing_any_more() -> None:
    generations = Generations()
    generations.note(AT, "sub", 2, 1, cancels=False)
    generations.note(AT, "other", 2, 2, cancels=False)
    generations.note_purge("sub", 3, {})
    generations.forget(AT, "sub")
    assert generations.verdict(AT, "other", 1) == SUPERSEDED
    generations.forget(AT, "other")
    before = generations.any
    generations.forget_purge("sub")
    assert (before, generations.any) == (True, False)
    generations.forget(AT, "sub")
    generations.forget_purge("sub")


@pytest.mark.parametrize(
    "replay", ["", "rpl_", "rpl_xyz", "rpl_00000000000", "abc_000000000001", "rpl_00000000000g1"]
)
def test_an_id_that_was_not_made_here_has_no_order(replay: str) -> None:
    assert replay_order(replay) is None


def test_the_id_of_a_replay_tells_its_order() -> None:
    made = replay_id(1_760_000_000_250, "0badcafe")
    assert made == "rpl_0199c82cc0fa0badcafe"
    assert replay_order(made) == 1_760_000_000_250


class Commands(RuleBasedStateMachine):
    """Whatever is commanded, one generation of each delivery is sent at the most: the newest."""

    def __init__(self) -> None:
        super().__init__()
        self.generations = Generations()
        self.newest: dict[tuple[int, str], tuple[int, bool, int]] = {}  # generation, cancelled, order
        self.purges: dict[str, int] = {}
        self.clock = 0

    @rule(offset=st.integers(0, 3), who=st.sampled_from("ab"), cancels=st.booleans(), step=st.integers(-5, 5))
    def command(self, offset: int, who: str, cancels: bool, step: int) -> None:
        self.clock = max(0, self.clock + step)
        source = ("events", 0, offset)
        generation = self.generations.next_generation(source, who)
        order = self.generations.next_order(self.clock)
        self.generations.note(source, who, generation, order, cancels=cancels)
        self.newest[offset, who] = (generation, cancels, order)

    @rule(who=st.sampled_from("ab"), end=st.integers(0, 4), step=st.integers(-5, 5))
    def purge(self, who: str, end: int, step: int) -> None:
        self.clock = max(0, self.clock + step)
        order = self.generations.next_order(self.clock)
        self.generations.note_purge(who, order, {("events", 0): end})
        self.purges[who] = order

    @invariant()
    def the_newest_is_sent_and_nothing_older(self) -> None:
        for (offset, who), (generation, cancels, order) in self.newest.items():
            source = ("events", 0, offset)
            for older in range(1, generation):
                wanted = CANCELLED if cancels else SUPERSEDED
                assert self.generations.verdict(source, who, older) == wanted
            purged = order < self.purges.get(who, 0)
            assert self.generations.verdict(source, who, generation) == (PURGED if purged else None)


TestCommands = Commands.TestCase
