from __future__ import annotations

from dispatcher.core.attempt import outcome


def test_every_decision_is_one_word_of_its_own() -> None:
    assert len(set(outcome.DECISIONS)) == len(outcome.DECISIONS)
    assert all(word.isidentifier() and word.islower() for word in outcome.DECISIONS)


def test_of_several_ends_exactly_one_holds() -> None:
    assert set(outcome.STRENGTH) == outcome.ENDS < set(outcome.DECISIONS)
    ranked = sorted(outcome.ENDS, key=outcome.STRENGTH.__getitem__, reverse=True)
    assert ranked == [outcome.DELIVERED, outcome.DEAD, outcome.DROPPED]
    assert len(set(outcome.STRENGTH.values())) == len(outcome.STRENGTH)
