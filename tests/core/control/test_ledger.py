from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from dispatcher.core.control.ledger import Change, Ledger, Verdict, from_headers, to_headers

KEYS = ("a", "b")


class Written(NamedTuple):
    offset: int
    key: str
    change: Change
    value: str | None


def change(base: int, nonce: bytes, *, repair: bool = False) -> Change:
    return Change(base, base if repair else base + 1, nonce, repair)


def test_of_two_changes_from_the_same_version_the_first_wins() -> None:
    ledger: Ledger[str] = Ledger()
    assert ledger.apply("k", change(0, b"1"), "one") is Verdict.ACCEPTED
    assert ledger.apply("k", change(1, b"2"), "two") is Verdict.ACCEPTED
    assert ledger.apply("k", change(1, b"3"), "late") is Verdict.IGNORED
    assert ledger.apply("k", change(0, b"4"), "created too late") is Verdict.IGNORED
    state = ledger.get("k")
    assert state is not None
    assert (state.version, state.value) == (2, "two")
    assert list(ledger.dirty) == ["k"]


def test_a_repair_changes_nothing_but_that_the_key_is_clean() -> None:
    ledger: Ledger[str] = Ledger()
    ledger.apply("k", change(0, b"1"), "one")
    ledger.apply("k", change(0, b"2"), "other")
    repair, value = ledger.repair("k")
    assert (repair, value) == (Change(1, 1, b"1", repair=True), "one")
    assert ledger.apply("k", repair, value) is Verdict.UNCHANGED
    assert not ledger.dirty
    assert ledger.apply("k", ledger.change("k", 1, b"3"), "two") is Verdict.ACCEPTED
    assert ledger.apply("k", repair, value) is Verdict.IGNORED  # one that came late
    assert list(ledger.dirty) == ["k"]


def test_a_write_that_was_sent_twice_counts_once() -> None:
    ledger: Ledger[str] = Ledger()
    ledger.apply("k", change(0, b"1"), "one")
    assert ledger.apply("k", change(0, b"1"), "one") is Verdict.UNCHANGED
    assert not ledger.dirty
    ledger.apply("k", change(1, b"2"), "two")
    assert ledger.apply("k", change(0, b"1"), "one") is Verdict.IGNORED


def test_a_deleted_key_is_created_anew_and_its_versions_count_on() -> None:
    ledger: Ledger[str] = Ledger()
    ledger.apply("k", change(0, b"1"), "one")
    assert ledger.apply("k", change(1, b"2"), None) is Verdict.ACCEPTED
    assert ledger.apply("k", change(1, b"3"), "from before the deletion") is Verdict.IGNORED
    fresh = ledger.change("k", 0, b"4")
    assert fresh == Change(2, 3, b"4")
    assert ledger.apply("k", fresh, "again") is Verdict.ACCEPTED
    ledger.apply("k", change(3, b"5"), None)
    ledger.forget("k")
    assert ledger.get("k") is None


def test_who_creates_a_key_without_knowing_of_its_deletion_takes_the_version_after_it() -> None:
    ledger: Ledger[str] = Ledger()
    ledger.apply("k", change(0, b"1"), "one")
    ledger.apply("k", change(1, b"2"), None)
    informed = ledger.change("k", 0, b"4")
    assert ledger.apply("k", change(0, b"3"), "anew") is Verdict.ACCEPTED
    state = ledger.get("k")
    assert state is not None
    assert (state.version, state.value) == (3, "anew")
    assert list(ledger.dirty) == ["k"], "the log says 1"
    assert ledger.apply("k", change(0, b"3"), "anew") is Verdict.UNCHANGED
    assert list(ledger.dirty) == ["k"], "it says so again"
    assert ledger.apply("k", informed, "made from the deletion") is Verdict.IGNORED
    # One that comes when the deletion is gone from the log, and the repair that it reads then.
    late: Ledger[str] = Ledger()
    late.apply("k", change(0, b"3"), "anew")
    repair, value = ledger.repair("k")
    assert (repair, value) == (Change(3, 3, b"3", repair=True), "anew")
    for each, verdict in ((ledger, Verdict.UNCHANGED), (late, Verdict.ACCEPTED)):
        assert each.apply("k", repair, value) is verdict
        assert not each.dirty
        assert each.change("k", 3, b"5") == Change(3, 4, b"5")
        state = each.get("k")
        assert state is not None
        assert (state.version, state.value) == (3, "anew")
    ledger.forget("k")
    assert ledger.get("k") is not None, "it isn't deleted"


def test_one_who_sees_an_ignored_record_first_is_brought_to_the_truth_by_the_repair() -> None:
    # Compacted between the two, the log begins with what all others ignored.
    ledger: Ledger[str] = Ledger()
    assert ledger.apply("k", change(1, b"late"), "ignored by the others") is Verdict.ACCEPTED
    assert ledger.apply("k", Change(3, 3, b"3", repair=True), "three") is Verdict.ACCEPTED
    state = ledger.get("k")
    assert state is not None
    assert (state.version, state.value) == (3, "three")
    assert not ledger.dirty


def test_one_whom_compaction_overtakes_while_reading_goes_on_from_what_is_left() -> None:
    ledger: Ledger[str] = Ledger()
    ledger.apply("k", change(0, b"1"), "one")
    assert ledger.apply("k", change(3, b"4"), "four") is Verdict.ACCEPTED
    state = ledger.get("k")
    assert state is not None
    assert (state.version, state.value) == (4, "four")


@pytest.mark.parametrize(
    "given", [Change(0, 1, b"n"), Change(7, 8, b"\x00n"), Change(3, 3, b"n", repair=True)]
)
def test_headers_say_what_a_change_was(given: Change) -> None:
    assert from_headers(to_headers(given)) == given


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("base", b"0"), ("version", b"1")],
        [("base", b"x"), ("version", b"1"), ("write", b"n")],
        [("base", b"2"), ("version", b"1"), ("write", b"n")],
        [("base", b"-1"), ("version", b"1"), ("write", b"n")],
        [("base", b"0"), ("version", b"0"), ("write", b"n")],
        [("base", b"0"), ("version", b"1"), ("write", b"")],
        [("base", None), ("version", b"1"), ("write", b"n")],
        [("base", b"0"), ("version", b"1"), ("write", None)],
    ],
)
def test_what_others_write_is_no_change(headers: list[tuple[str, bytes | None]]) -> None:
    with pytest.raises(ValueError, match="not a change"):
        from_headers(headers)


class Replica:
    def __init__(self, end: int) -> None:
        self.ledger: Ledger[str] = Ledger()
        self.position = 0
        self.end = end  # where it has loaded

    @property
    def loaded(self) -> bool:
        return self.position >= self.end

    def read(self, log: list[Written], count: int) -> None:
        for written in [each for each in log if each.offset >= self.position][:count]:
            self.ledger.apply(written.key, written.change, written.value)
            self.position = written.offset + 1

    def states(self) -> dict[str, str]:
        found = {key: self.ledger.get(key) for key in KEYS}
        return {key: state.value for key, state in found.items() if state and state.value is not None}


class Truth:
    """The naive rules, for one who reads everything: exactly the version in force."""

    def __init__(self) -> None:
        self.versions = dict.fromkeys(KEYS, 0)
        self.values: dict[str, str | None] = dict.fromkeys(KEYS)
        self.nonces: dict[str, bytes] = dict.fromkeys(KEYS, b"")
        self.dirty: set[str] = set()

    def apply(self, written: Written) -> None:
        key, made = written.key, written.change
        version, value = self.versions[key], self.values[key]
        applies = made.base == version or (made.base == 0 and value is None)
        if applies and not made.repair and made.nonce != self.nonces[key]:
            self.versions[key], self.values[key] = version + 1, written.value
            self.nonces[key] = made.nonce
        if made.nonce == self.nonces[key] and made.version == self.versions[key]:
            self.dirty.discard(key)
        else:
            self.dirty.add(key)

    @property
    def states(self) -> dict[str, str]:
        return {key: value for key, value in self.values.items() if value is not None}


class Replicas(RuleBasedStateMachine):
    """Replicas that write, read, repair, come and go, while the log is compacted."""

    intents: Bundle[Written] = Bundle("intents")

    def __init__(self) -> None:
        super().__init__()
        self.all: list[Written] = []  # everything ever written
        self.log: list[Written] = []  # what compaction has left of it
        self.replicas: list[Replica] = []
        self.witness = Replica(0)  # reads every record
        self.truth = Truth()
        self.pending: dict[bytes, Written] = {}
        self.nonces = 0
        self.cleaned = 0

    @initialize(count=st.integers(1, 3))
    def begin(self, count: int) -> None:
        self.replicas = [Replica(0) for _ in range(count)]

    def append(self, key: str, made: Change, value: str | None) -> None:
        written = Written(len(self.all), key, made, value)
        self.all.append(written)
        self.log.append(written)
        self.truth.apply(written)
        self.witness.ledger.apply(key, made, value)

    def one(self, number: int) -> Replica:
        return self.replicas[number % len(self.replicas)]

    @rule(target=intents, number=st.integers(0, 9), key=st.sampled_from(KEYS), delete=st.booleans())
    def decide(self, number: int, key: str, delete: bool) -> Any:
        """A replica makes a change from what it knows; it is written later. Until it has loaded it makes none (`control/log.py`, 2)."""
        replica = self.one(number)
        if not replica.loaded:
            return multiple()
        state = replica.ledger.get(key)
        present = state is not None and state.value is not None
        self.nonces += 1
        nonce = b"%d" % self.nonces
        if state is None or not present:
            made, value = replica.ledger.change(key, 0, nonce), f"value {self.nonces}"
        else:
            made = replica.ledger.change(key, state.version, nonce)
            value = None if delete else f"value {self.nonces}"  # type: ignore[assignment]
        written = Written(-1, key, made, value)
        self.pending[nonce] = written
        return written

    @rule(written=consumes(intents), twice=st.booleans())
    def write(self, written: Written, twice: bool) -> None:
        del self.pending[written.change.nonce]
        for _ in range(1 + twice):
            self.append(written.key, written.change, written.value)

    @rule(number=st.integers(0, 9), count=st.integers(1, 5))
    def read(self, number: int, count: int) -> None:
        self.one(number).read(self.log, count)

    @rule(number=st.integers(0, 9))
    def repair(self, number: int) -> None:
        replica = self.one(number)
        if replica.loaded:
            for key in list(replica.ledger.dirty):
                self.append(key, *replica.ledger.repair(key))

    @rule()
    def join(self) -> None:
        if len(self.replicas) < 5:
            self.replicas.append(Replica(len(self.all)))

    @precondition(lambda self: len(self.replicas) > 1)
    @rule(number=st.integers(0, 9))
    def leave(self, number: int) -> None:
        self.replicas.remove(self.one(number))

    @rule(share=st.floats(0, 1), chance=st.randoms(use_true_random=False), forget=st.booleans())
    def compact(self, share: float, chance: object, forget: bool) -> None:
        """Up to a point that is an hour ago: nobody who has loaded is so far behind, and dirty keys are repaired."""
        loaded = [replica.position for replica in self.replicas if replica.loaded]
        upto = int(share * min([len(self.all), *loaded]))
        then = Truth()
        for written in self.all[:upto]:
            then.apply(written)
        later = Truth()
        healed: set[str] = set()
        for written in self.all:
            later.apply(written)
            if written.offset >= upto and written.key not in later.dirty:
                healed.add(written.key)
        if not then.dirty <= healed:
            return
        last = {written.key: written.offset for written in self.log if written.offset < upto}
        busy = {written.key for written in self.pending.values()}
        everybody = all(replica.position >= upto for replica in self.replicas)

        def stays(written: Written) -> bool:
            if written.offset >= upto:
                return True
            if last[written.key] != written.offset:
                return chance.random() < 0.2  # type: ignore[attr-defined, no-any-return] # cleaned piece by piece
            # A tombstone goes a day later: nobody is so far behind, nor holds a change so long.
            return not (forget and written.value is None and written.key not in busy and everybody)

        kept = [written for written in self.log if stays(written)]
        # What was left in front of a tombstone went first.
        gone = {key for key, offset in last.items() if offset not in {written.offset for written in kept}}
        self.log = [written for written in kept if written.offset >= upto or written.key not in gone]

    @invariant()
    def a_replica_with_the_whole_history_agrees_with_the_naive_rules(self) -> None:
        assert self.witness.states() == self.truth.states
        assert set(self.witness.ledger.dirty) == self.truth.dirty

    @invariant()
    def whoever_has_loaded_and_read_all_agrees(self) -> None:
        for replica in self.replicas:
            if replica.loaded and replica.position == len(self.all) and not self.truth.dirty:
                assert replica.states() == self.truth.states

    def teardown(self) -> None:
        before = self.truth.states
        self.join()
        for _ in range(10):
            for replica in self.replicas:
                replica.read(self.log, len(self.log))
            for replica in self.replicas:
                for key in list(replica.ledger.dirty):
                    self.append(key, *replica.ledger.repair(key))
            if not self.truth.dirty and all(not replica.ledger.dirty for replica in self.replicas):
                break
        for replica in self.replicas:
            replica.read(self.log, len(self.log))
            assert not replica.ledger.dirty
            assert replica.states() == before
        # And so does compaction, all of it, for one who comes then.
        self.log = [w for w in self.log if not any(o.key == w.key and o.offset > w.offset for o in self.log)]
        late = Replica(len(self.all))
        late.read(self.log, len(self.log))
        assert late.states() == before
        assert self.truth.states == before, "repairs undo nothing"


TestReplicas = Replicas.TestCase
TestReplicas.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
