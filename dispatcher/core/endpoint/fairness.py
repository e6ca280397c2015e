"""How tenants share what there is once for all of them: attempts, memory, the slots of a lane.

The rule is a threshold that moves with what is free (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998):
a tenant may have at most `FACTOR` times as much as is free. Nobody counts tenants, and nobody has to know who will come. Where all of
`n` tenants want more than that, each has the same, and `FACTOR * n / (1 + FACTOR * n)` of everything is in use: four fifths with two tenants, 95 % with ten.
Whoever wants less has all that he wants. So it is max-min fair, and a part is always left for the next one to come.
That part is what it costs: an attempt that runs can't be taken back before its timeout, so what is given away is gone for that long.

A tenant that alone has attempts under way is lent more of them: all but an eighth (`RESERVE`). The next tenant has its part of that eighth at once, and the
first one begins nothing until it has no more than its own part again. Of the bytes nothing is lent: an eighth of them may be a few bodies.

The same rule holds between the subscriptions of a tenant, within what the tenant may have more.

Where there is one tenant only, nobody else can come, and nothing is kept free: then only its subscriptions share. Subscriptions without a tenant,
and those for every tenant, are the operator's. Together they count as one tenant.

Rules:

1. Who has nothing gets something as long as anything is free.
2. Below half of a capacity nobody is ever refused (`easy`, `easy_bytes`). So while nobody is short, two comparisons are all that this costs.
3. Each `began` is followed by one `ended`.
4. A tenant stands in `_line` exactly while somebody of it waits (`hold`). `next` goes round the tenants.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from itertools import islice
from typing import Final

FACTOR: Final = 2
"""A tenant may have so many times what is free."""

RESERVE: Final = 8
"""The part that a tenant which is alone leaves free for the next one to come: an eighth."""

_SPARE: Final = 16  # the part of the bytes that may be under way beyond them
_LOOKS: Final = 64  # tenants that are looked at in one search for the next
_KEPT: Final = 4096  # tenants that are kept although they use nothing


class TenantUsage:
    """What one tenant uses."""

    __slots__ = (
        "attempt_bytes",
        "attempts",
        "bytes",
        "held",
        "in_flight",
        "owner",
        "tenant",
    )

    def __init__(self, owner: object, tenant: str | None) -> None:
        """`owner` is whose usage this is; the tenant is None for the operator's own."""
        # What every delivery looks at comes first: compiled, it is side by side in memory.
        self.owner: object | None = owner  # None: it was dropped, find another
        self.attempts = 0
        self.attempt_bytes = 0
        self.in_flight = (
            0  # deliveries in memory, and the bytes of their events; kept by who counts all of them
        )
        self.bytes = 0
        self.held: deque[object] | None = None  # who waits until the tenant may begin one more
        self.tenant = tenant


def more(held: int, free: int) -> int:
    """How many more somebody may have who has `held`, where so many are `free` and others may want them. The last one is for who has none."""
    return min(free - 1, FACTOR * free - held) if held else free


def level(amounts: list[int], total: int) -> int:
    """To what each of the ascending `amounts` must be cut, so that together they are at most `total`."""
    left = total
    for number, amount in enumerate(amounts):
        most = left // (len(amounts) - number)
        if amount > most:
            return most
        left -= amount
    return amounts[-1] if amounts else 0


class Fairness:
    """The attempts of all tenants together, and who may begin the next one."""

    __slots__ = (
        "_line",
        "_usages",
        "attempt_bytes",
        "attempts",
        "easy",
        "easy_bytes",
        "most",
        "most_bytes",
        "reserve",
        "shared",
        "waiting",
    )

    def __init__(self, most: int, most_bytes: int) -> None:
        """So many attempts may be under way at a time, with so many bytes of events."""
        # What every delivery looks at comes first: compiled, it is side by side in memory.
        self.attempts = 0
        self.attempt_bytes = 0
        self.easy = (most + 1) // 2  # see rule 2
        self.easy_bytes = (most_bytes + 1) // 2
        self.waiting = 0
        """Tenants of which somebody waits."""
        self.shared = False
        """Whether a tenant of a name has been seen: then there may be others."""
        self.most = most
        self.most_bytes = most_bytes
        self.reserve = max(1, most // RESERVE)
        self._usages: dict[str | None, TenantUsage] = {}
        self._line: deque[TenantUsage] = deque()

    def __len__(self) -> int:
        """Tenants that are known."""
        return len(self._usages)

    def usages(self) -> list[TenantUsage]:
        """Those of all tenants that are known."""
        return list(self._usages.values())

    def usage_of(self, tenant: str | None) -> TenantUsage:
        """What a tenant uses; None for the operator's own. Whoever keeps this looks at its `owner` before each use."""
        usage = self._usages.get(tenant)
        if usage is None:
            usage = self._usages[tenant] = TenantUsage(self, tenant)
            if tenant is not None:
                self.shared = True
        return usage

    def began(self, usage: TenantUsage, size: int) -> None:
        """An attempt with a body of so many bytes is under way."""
        self.attempts += 1
        self.attempt_bytes += size
        usage.attempts += 1
        usage.attempt_bytes += size

    def ended(self, usage: TenantUsage, size: int) -> None:
        """It is over."""
        self.attempts -= 1
        self.attempt_bytes -= size
        usage.attempts -= 1
        usage.attempt_bytes -= size

    def admits(self, usage: TenantUsage, own: int) -> bool:
        """Whether a subscription of the tenant that has `own` attempts under way may begin one more."""
        free = self.most - self.attempts
        if free <= 0:
            return False
        if not usage.attempts:
            return True
        free_bytes = self.most_bytes - self.attempt_bytes
        if free_bytes <= 0:
            # With one tenant, its subscriptions that have none under way get one all the same, for a while.
            return not self.shared and not own and free_bytes > -(self.most_bytes // _SPARE)
        if self.fits(usage.attempts, usage.attempt_bytes, own, free, free_bytes):
            return True
        # It may be alone: then it is lent what nobody else wants.
        return (
            usage.attempts == self.attempts
            and usage.attempt_bytes < FACTOR * free_bytes
            and own < FACTOR * (free - self.reserve)
        )

    def fits(self, held: int, held_bytes: int, own: int, free: int, free_bytes: int) -> bool:
        """Whether a subscription that has `own` of the `held` of its tenant may have one more. Something is free of both."""
        if not self.shared:
            return own < FACTOR * free
        if held_bytes >= FACTOR * free_bytes:
            return False
        room = more(held, free)
        return room > 0 and own < FACTOR * room

    def at_share(self) -> list[TenantUsage]:
        """Tenants of which somebody waits, some of them where there are many."""
        return list(islice(self._line, _LOOKS))

    def hold(self, usage: TenantUsage, waiter: object) -> None:
        """`waiter`, of the tenant's, is refused for now: `next` gives it back."""
        if usage.held is None:
            usage.held = deque()
        if not usage.held:
            self._line.append(usage)
            self.waiting += 1
        usage.held.append(waiter)

    def next(self) -> object | None:
        """Who of those that wait is to be asked again, since its tenant may begin one more; None if nobody is."""
        line = self._line
        for _ in range(min(len(line), _LOOKS)):
            usage = line.popleft()
            held = usage.held
            if held is not None and self.admits(usage, 0):
                waiter = held.popleft()
                if held:
                    line.append(usage)
                else:
                    usage.held = None
                    self.waiting -= 1
                return waiter
            line.append(usage)
        return None

    @property
    def many(self) -> bool:
        """Whether there is a need to `sweep`."""
        return len(self._usages) > _KEPT

    def sweep(self, used: Collection[TenantUsage]) -> None:
        """Drop tenants that use nothing, and that nobody refers to as `used`; called now and then."""
        for tenant, usage in list(self._usages.items()):
            if not usage.in_flight and not usage.attempts and usage.held is None and usage not in used:
                usage.owner = None
                del self._usages[tenant]


UNLIMITED: Final = Fairness(1 << 40, 1 << 40)
"""For lanes that stand alone."""

NOBODY: Final = UNLIMITED.usage_of(None)
