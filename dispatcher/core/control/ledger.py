"""Who was first: optimistic concurrency by the order of a log, the same answer on every replica.

The problem: several replicas write the state of the same keys into one partition, and nobody is asked
before. Each record says which version it was made from (`base`) and which it makes (`version`). Every
replica reads the same records in the same order and decides each by itself: a record made from what
is in force is accepted, any other is ignored. So of two writes made from the same version the one
that the broker wrote first wins on every replica, and the writers learn it by reading their own record back.
A lock, a leader or a database would be one more thing to be away; transactions of the broker wouldn't help, since
they don't compare.

What makes it hard is that the log is compacted. Compaction keeps the last record of a key, and knows
nothing of accepted and ignored. So:

- An ignored record that is the last of its key is poison. It leaves the key *dirty*, and whoever sees a dirty key
  writes the state in force once more, as a *repair*. Compaction leaves records alone for an hour, so that
  it never meets a dirty key, as long as any replica is there within the hour.
- A replica that starts later doesn't have the history: of a key it may see first what the others ignored. What it
  sees first it has to take, and then heals. For that, records newer than what is in force are accepted too.
  For a replica with the whole history that changes nothing: nobody can have made a record from a version that
  isn't in the log before it. For one without, each key's version is never beyond the true one, so that
  the next accepted record, or the repair, brings it to the truth.

Rejected: merging field by field (CRDT), with which two callers may both be told yes and neither gets what it asked for;
timestamps, for which clocks have to agree; one writer elected by a consumer group, whose every rebalance
would be an outage of the API.

Rules:

1. `Ledger.apply` is the one thing that changes a state, and depends on nothing but the records before.
2. A record with the nonce of the state in force is that state once more (a write sent twice, a repair): nothing changes, but for
   the version if it says a higher one.
3. A repair is accepted unless it is older than what is in force, and changes nothing where it is as old.
4. A change is accepted if its key has not been seen, or if its base is the version in force or newer; with base 0
   also if the key is deleted: made by one that doesn't know that there was one. Its version is then the one after the
   deletion's, whatever it says itself, so that versions never go back: what was made from the deletion can't be taken for newer than it.
   A deletion is a change like any other: its version counts on.
5. A key is dirty exactly when its last record was ignored, or says another version than is in force.

The state machine in tests/core/control/test_ledger.py holds all of it together, compaction included.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Final, Generic, NamedTuple, TypeVar

T = TypeVar("T")

BASE: Final = "base"
VERSION: Final = "version"
NONCE: Final = "write"
REPAIR: Final = "repair"


class Change(NamedTuple):
    """One record's part in this: what it was made from, what it makes."""

    base: int  # 0: the key must not be there
    version: int
    nonce: bytes
    repair: bool = False


class LedgerState(Generic[T]):
    """What is in force of a key. `value` is None once it is deleted."""

    __slots__ = ("nonce", "value", "version")

    def __init__(self, version: int, nonce: bytes, value: T | None) -> None:
        self.version = version
        self.nonce = nonce
        self.value = value


class Verdict(Enum):
    """What became of a record."""

    ACCEPTED = "accepted"
    UNCHANGED = "unchanged"  # accepted, but in force already
    IGNORED = "ignored"


class Ledger(Generic[T]):
    """The states of all keys, as one replica has read them."""

    __slots__ = ("_dirty", "_states")

    def __init__(self) -> None:
        self._states: dict[str, LedgerState[T]] = {}
        self._dirty: dict[str, None] = {}

    def apply(self, key: str, change: Change, value: T | None) -> Verdict:
        """Take the next record of the log. `value` None is a deletion."""
        state = self._states.get(key)
        if state is None:
            self._states[key] = LedgerState(change.version, change.nonce, value)
            return Verdict.ACCEPTED
        version = change.version
        if change.nonce == state.nonce:
            verdict = Verdict.ACCEPTED if version > state.version else Verdict.UNCHANGED
        elif change.repair:
            # As old as what is in force, it may still correct what was seen first; see above.
            verdict = Verdict.ACCEPTED if version >= state.version else Verdict.IGNORED
        elif change.base >= state.version:
            verdict = Verdict.ACCEPTED
        elif change.base == 0 and state.value is None:
            verdict = Verdict.ACCEPTED
            version = state.version + 1
        else:
            verdict = Verdict.IGNORED
        if verdict is Verdict.ACCEPTED:
            state.version, state.nonce, state.value = version, change.nonce, value
        if verdict is Verdict.IGNORED or change.version != state.version:
            self._dirty[key] = None
        else:
            self._dirty.pop(key, None)
        return verdict

    def spoil(self, key: str) -> None:
        """A record of the key that is nobody's change: ignored as well."""
        if key in self._states:
            self._dirty[key] = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)

    def get(self, key: str) -> LedgerState[T] | None:
        """What is in force of the key, deleted ones too; None for one that was never seen."""
        return self._states.get(key)

    @property
    def dirty(self) -> Collection[str]:
        """Keys that need a repair."""
        return self._dirty.keys()

    def change(self, key: str, base: int, nonce: bytes) -> Change:
        """The next change of the key, made from version `base` (0: it must not be there)."""
        state = self._states.get(key)
        if base == 0 and state is not None and state.value is None:
            base = state.version  # its versions count on
        return Change(base, base + 1, nonce)

    def repair(self, key: str) -> tuple[Change, T | None]:
        """What repairs a dirty key, and the value with it."""
        state = self._states[key]
        return Change(state.version, state.version, state.nonce, repair=True), state.value

    def forget(self, key: str) -> None:
        """Remember a deleted key no longer; some time after its last record is gone from the log."""
        state = self._states.get(key)
        if state is not None and state.value is None and key not in self._dirty:
            del self._states[key]


def to_headers(change: Change) -> list[tuple[str, bytes]]:
    """The record's headers."""
    headers = [
        (BASE, b"%d" % change.base),
        (VERSION, b"%d" % change.version),
        (NONCE, change.nonce),
    ]
    return [*headers, (REPAIR, b"1")] if change.repair else headers


def from_headers(headers: Sequence[tuple[str, bytes | None]]) -> Change:
    """Read `to_headers`. Raises ValueError for a record that somebody else has written."""
    found: Mapping[str, Any] = dict(headers)
    try:
        change = Change(int(found[BASE]), int(found[VERSION]), found[NONCE], REPAIR in found)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a change of the control plane: {error!r}") from error
    if not change.nonce or not 0 <= change.base <= change.version or change.version < 1:
        raise ValueError("not a change of the control plane")
    return change
