"""What arrived where and when, and what that says: lost, duplicate, explained.

Names: a *debt* is one event owed to one subscription. It is paid when the endpoint has answered 2xx, or
given up when it stands in the dead-letter topic.

**Lost** is a debt that is neither. There must be none.

**Duplicates** are payments of a debt beyond the number of records that carry the event (a producer whose
broker dies before the acknowledgement writes again: its copies are no fault of the dispatcher). At least once
means that there are some. Two things may cause them, each a *disturbance*:

- Partitions are assigned. Whoever gets them reads on from the committed position, and pays again what others (or
  its own former life) had paid above it. Positions are committed about every second, each partition's lowest
  owed offset: as long as commits carry no note of what is done beyond it, everything that was paid above an
  offset which waits for a retry is paid again. Its share of the bound: the debts at or above the committed position,
  as it was seen last before the assignment, that had been paid by then.
- A replica is frozen or cut off. It goes on with what it has in memory until it hears that the partitions
  are somebody else's, and attempts that were under way time out after they were answered. Its share: the debts at
  or above the position committed when it began, that were paid by ten seconds after its end.

The bound is the sum of the shares: one disturbance makes a debt be paid again at most once. A duplicate
without a disturbance between its first payment and its last is *unexplained*, and a finding whatever the sum says;
where no fault was, there is none.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

Debt = tuple[str, str]  # subscription, event


@dataclass(frozen=True, slots=True)
class Disturbance:
    begin: float
    until: float  # what is paid by then may be paid again because of it
    committed: Mapping[int, int]  # partition to position, as it was seen last before `begin`


class Ledger:
    """What the endpoints got, and what they paid for."""

    def __init__(self) -> None:
        self.paid: dict[Debt, list[float]] = defaultdict(list)
        self.requests: Counter[Debt] = Counter()

    def ask(self, subscription: str, event: str) -> None:
        self.requests[subscription, event] += 1

    def pay(self, subscription: str, event: str, now: float) -> None:
        self.paid[subscription, event].append(now)


def lost(ledger: Ledger, owed: Iterable[Debt], dead: Collection[Debt]) -> list[Debt]:
    return sorted(debt for debt in owed if debt not in ledger.paid and debt not in dead)


def duplicates(ledger: Ledger, copies: Mapping[str, int]) -> list[tuple[Debt, list[float]]]:
    """Each debt that was paid too often, with the times."""
    return [
        (debt, times) for debt, times in sorted(ledger.paid.items()) if len(times) > max(1, copies[debt[1]])
    ]


def excess(ledger: Ledger, copies: Mapping[str, int]) -> int:
    return sum(len(times) - max(1, copies[debt[1]]) for debt, times in duplicates(ledger, copies))


def unexplained(
    found: Iterable[tuple[Debt, list[float]]], disturbances: Collection[Disturbance]
) -> list[tuple[Debt, list[float]]]:
    """Paid again without anything having happened between the payments."""
    return [
        (debt, times)
        for debt, times in found
        if not any(each.begin <= times[-1] and each.until >= times[0] for each in disturbances)
    ]


def bound(
    ledger: Ledger, places: Mapping[str, Collection[tuple[int, int]]], disturbances: Iterable[Disturbance]
) -> int:
    """`places` says at which partitions and offsets an event stands."""
    total = 0
    for each in disturbances:
        committed = each.committed
        total += sum(
            1
            for (_, event), times in ledger.paid.items()
            if times[0] <= each.until
            and any(offset >= committed.get(partition, 0) for partition, offset in places.get(event, ()))
        )
    return total
