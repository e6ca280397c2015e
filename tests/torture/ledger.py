"""What arrived where and when, and what that says: lost, duplicate, explained.

Names: a *debt* is one event owed to one subscription. It is paid when the endpoint has answered 2xx, or
given up when it stands in the dead-letter topic.

**Lost** is a debt that is neither. There must be none.

**Duplicates** are payments of a debt beyond the number of records that carry the event (a producer whose
broker dies before the acknowledgement writes again: its copies are no fault of the dispatcher). At least once
means that there are some; these are the ones there may be:

- A process that dies, or is away for longer than its session, has paid debts that no commit covers. Offsets are
  committed about every second, each partition's lowest owed one: what was paid above an offset that still waits
  for a retry is not covered either, as long as commits carry no note of it.
- A rebalance hands partitions on. Attempts under way get some seconds to end, then what is committed counts.
- A process that was stopped or cut off goes on with what it has in memory until it hears that the partitions are
  somebody else's.

So each fault *disturbs* twice, as it begins and as it ends (the replica that comes back makes a rebalance as
well), and one disturbance makes a debt be paid again at most once. Its share of the bound is the number of debts at
or above the committed position, as seen last before it, that were paid by the end of its window
(`GRACE` after the fault: session timeout, drain and commit). The bound is the sum of the shares. It is
generous where an endpoint hangs, and nothing at all where no fault was: a duplicate that no disturbance lies
in front of, after its first payment, is *unexplained*, and a finding whatever the sum says.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

GRACE = 20.0

Debt = tuple[str, str]  # subscription, event


@dataclass(frozen=True, slots=True)
class Disturbance:
    begin: float
    end: float
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
    """Paid again without anything having happened between two payments, or shortly before the first."""
    return [
        (debt, times)
        for debt, times in found
        if not any(each.begin <= times[-1] and each.end + GRACE >= times[0] for each in disturbances)
    ]


def bound(
    ledger: Ledger, places: Mapping[str, Collection[tuple[int, int]]], disturbances: Iterable[Disturbance]
) -> int:
    """`places` says at which partitions and offsets an event stands."""
    total = 0
    for each in disturbances:
        until = each.end + GRACE
        committed = each.committed
        total += sum(
            1
            for (_, event), times in ledger.paid.items()
            if times[0] <= until
            and any(offset >= committed.get(partition, 0) for partition, offset in places.get(event, ()))
        )
    return total
