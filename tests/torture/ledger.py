"""What arrived where, when and from whom, and what that says: lost, duplicate, explained.

Names: a *debt* is one event owed to one subscription. It is paid when the endpoint has answered 2xx. A *life* is one process of a
replica, from its start to its end; every request comes from an address that says which life sent it.

**Lost** is a debt that is neither paid nor in the dead-letter topic. There must be none.

**Duplicates** are payments of a debt beyond the number of records that carry the event (a producer whose
broker dies before the acknowledgement writes again: its copies are no fault of the dispatcher). At least once
means that there are some, after *trouble*: a life was killed, frozen, cut off from its broker, had its partitions taken, or was
stopped while an attempt was under way. What trouble may cost is bounded by what the promise says: what was in flight when it began, and
what was completed within the last commit interval before. From that:

- **Narrow** trouble has a life end, or lose its partitions in good order. A debt is **at risk** from one that began at `b` if that life paid it after
  `b - COMMITTED`: in flight at `b`, or completed since the last commit that is sure to have gone through. Likewise if it was **written** to a retry topic
  then, which also completes it. The topic's records say when; they don't say by which life, so any trouble of those seconds will do.
- **Wide** trouble leaves a life alive that knows less than the others: frozen, cut off, without its broker. It may still deliver what it had, after others have.
  A debt is at risk from one if that life has asked for it, and whoever paid it did so between `b - COMMITTED` and the end of the trouble.
- A duplicate is **explained** if its debt is at risk from trouble that began before its last payment. Every other one is a finding.
- The **bound** of a run is the number of debts at risk, summed over its troubles: one trouble makes a debt be paid again at most once.

What is completed earlier must never come again, whatever holds back the committed offset: the note beside the commit says so.
This knows nothing of notes and commits. It goes by the clock alone, so that a daemon whose notes are wrong can't explain itself with them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Debt = tuple[str, str]  # subscription, event

COMMITTED = 2.5
"""Seconds after which what is done is surely committed: the commit interval of one, and a second and a half for a loaded machine."""


class Payment(NamedTuple):
    at: float
    life: str
    begin: float = -math.inf  # when its request was there


@dataclass(frozen=True, slots=True)
class Trouble:
    """Of one life, or of all (None). What is paid until `until` may be paid again because of it."""

    kind: str
    life: str | None
    begin: float
    until: float = math.inf
    since: float | None = None  # what it paid from then on is at risk; None: from COMMITTED before `begin` on
    over: float | None = None  # when the life came to its end and wrote nothing more; None: it goes on
    wide: bool = False
    before: float = math.inf  # requests that began later are not its concern

    @property
    def risky(self) -> float:
        """From when on what was completed is at risk."""
        return self.begin - COMMITTED if self.since is None else self.since

    def __str__(self) -> str:
        return f"{self.kind} {self.life or 'all'}"


@dataclass(slots=True)
class Ledger:
    """What is owed, what the endpoints got, and what they paid for."""

    owed: set[Debt] = field(default_factory=set)
    open: set[Debt] = field(default_factory=set)  # of those, the ones that nobody has paid
    paid: defaultdict[Debt, list[Payment]] = field(default_factory=lambda: defaultdict(list))
    asked: defaultdict[Debt, list[tuple[float, str]]] = field(default_factory=lambda: defaultdict(list))
    written: defaultdict[Debt, list[float]] = field(
        default_factory=lambda: defaultdict(list)
    )  # to a retry topic
    requests: int = 0

    def owe(self, debts: Iterable[Debt]) -> None:
        for debt in debts:
            self.owed.add(debt)
            if debt not in self.paid:
                self.open.add(debt)

    def forgive(self, debts: Iterable[Debt]) -> None:
        """These may be paid, and need not."""
        for debt in debts:
            self.owed.discard(debt)
            self.open.discard(debt)

    def ask(self, debt: Debt, life: str, now: float) -> None:
        self.requests += 1
        self.asked[debt].append((now, life))

    def pay(self, debt: Debt, life: str, now: float, begin: float = -math.inf) -> None:
        self.paid[debt].append(Payment(now, life, begin))
        self.open.discard(debt)

    def asked_by(self, debt: Debt, life: str) -> bool:
        return any(each == life for _, each in self.asked.get(debt, ()))


def lost(ledger: Ledger, dead: Collection[Debt]) -> list[Debt]:
    return sorted(debt for debt in ledger.open if debt not in dead)


def duplicates(ledger: Ledger, copies: Mapping[str, int]) -> Iterator[tuple[Debt, Sequence[Payment]]]:
    """Each debt that was paid too often, with its payments: as many as there should be, and those beyond."""
    for debt, payments in sorted(ledger.paid.items()):
        if len(payments) > max(1, copies[debt[1]]):
            yield debt, payments


def excess(ledger: Ledger, copies: Mapping[str, int]) -> int:
    return sum(len(payments) - max(1, copies[debt[1]]) for debt, payments in duplicates(ledger, copies))


def at_risk(ledger: Ledger, debt: Debt, payment: Payment, trouble: Trouble) -> bool:
    """Whether the trouble may have this payment made again."""
    if trouble.wide:
        concerned = trouble.life is None or ledger.asked_by(debt, trouble.life)
    else:
        concerned = payment.life == trouble.life and payment.begin <= trouble.before
    if concerned and trouble.risky <= payment.at <= trouble.until:
        return True
    last = trouble.until if trouble.over is None else trouble.over
    return any(trouble.risky <= at <= last for at in ledger.written.get(debt, ()))


def causes(
    ledger: Ledger, debt: Debt, payments: Sequence[Payment], copies: int, troubles: Collection[Trouble]
) -> list[Trouble | None]:
    """For each payment too many what explains it: of the troubles before it the one that began last, or None."""
    found: list[Trouble | None] = []
    for number in range(max(1, copies), len(payments)):
        again = payments[number]
        candidates = [
            trouble
            for trouble in troubles
            if trouble.begin <= again.at
            and any(at_risk(ledger, debt, earlier, trouble) for earlier in payments[:number])
        ]
        found.append(max(candidates, key=lambda each: each.begin, default=None))
    return found


def bound(ledger: Ledger, troubles: Iterable[Trouble]) -> int:
    return sum(
        any(at_risk(ledger, debt, payment, trouble) for payment in payments)
        for trouble in troubles
        for debt, payments in ledger.paid.items()
    )
