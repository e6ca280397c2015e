"""Which write counts: optimistic concurrency by the order of a log, with the same answer on every replica.

The problem: several replicas write the state of the same keys into one partition, and nobody is asked before. Each
record says which version it was made from (`base`) and which version it makes (`version`). Every replica reads the same
records in the same order and decides each by itself: a record made from the version in force is accepted, any other
is ignored. So of two writes made from one version, the one that the broker wrote first wins on every replica. The
writers learn the decision by reading their own record back. A lock, a leader or a database would be one more
thing to be away. Transactions of the broker wouldn't help: they don't compare.

The log is compacted, and that makes it hard. Compaction keeps the last record of a key, and knows nothing of accepted
and ignored records. So:

- An ignored record that is the last of its key is poison. It leaves the key *dirty*, and a replica that sees a dirty
  key writes the state in force once more, as a *repair*. Compaction leaves records alone for an hour, so it never meets
  a dirty key, as long as any replica runs within the hour.
- A replica that starts later lacks the history: the first record that it sees of a key may be one that the others
  ignored. It has to take that record, and then heals. For that, records newer than the state in force are accepted too.
  For a replica with the whole history that changes nothing: nobody can have made a record from a version that isn't in
  the log before it. For a replica without it, each key's version is never beyond the true one, so the next
  accepted record, or the repair, brings it to the truth.

Rejected: merging field by field (CRDT), with which two callers may both be told yes and neither gets what it asked
for; timestamps, for which clocks have to agree; one writer elected by a consumer group, whose every rebalance would
be an outage of the API.

Rules:

1. `Ledger.apply` is the one thing that changes a state, and depends on nothing but the records before.
2. A record with the nonce of the state in force is that state once more (a write sent twice, a repair): nothing
   changes, but for the version if the record says a higher one.
3. A repair is accepted unless it is older than the state in force, and changes nothing where it is as old.
4. A change is accepted if its key has not been seen, or if its base is the version in force or newer. With base 0 it is
   accepted also if the key is deleted: its writer doesn't know that there was one. Its version is then the one after
   the deletion's, whatever the record says, so that versions never go back. A deletion is a change like any other:
   versions count on.
5. A key is dirty exactly when its last record was ignored, or says another version than the one in force.

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
    """The state in force of a key. `value` is None once the key is deleted."""

    __slots__ = ("nonce", "value", "version")

    def __init__(self, version: int, nonce: bytes, value: T | None) -> None:
        self.version = version
        self.nonce = nonce
        self.value = value


class Verdict(Enum):
    """The decision about a record."""

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
        """The state in force of a key, deleted ones too; None for a key that was never seen."""
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
        """The change that repairs a dirty key, and its value."""
        state = self._states[key]
        return Change(state.version, state.version, state.nonce, repair=True), state.value

    def forget(self, key: str) -> None:
        """Forget a deleted key, some time after its last record is gone from the log."""
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
