"""Who may have how much of the memory, while there is too little of it.

In come questions of the rooms that are about to queue or to hold a delivery. Out goes the answer, and to `lanes.py` which tenants have too much. This room alone
writes `short`.

Rules:

1. Memory is shared (`core/endpoint/fairness.py`) only while it is `short`: consumption has waited at a cap for longer than a second. A long queue that moves
   does nobody harm, and to park it would cost a write for each of its deliveries. Where there is one tenant, consumption waits for `delivery.max_queue_wait`: lanes
   that are slow are noticed before that, and it is theirs to give something up.
2. What is under way can't be given up, so it counts: a tenant whose attempts hang has little room for what waits.
"""

from __future__ import annotations

from typing import Final

from dispatcher.core.endpoint.fairness import Fairness, TenantUsage, level
from dispatcher.delivery.settlement import Settlement
from dispatcher.settings.groups import Settings

_RELIEVED: Final = 0.75  # of a cap: what is in memory beyond it is parked, while memory is short
_PATIENCE: Final = 1.0  # seconds at the most for which tenants wait for consumption to go on by itself


class MemoryShares:
    """The caps, as tenants share them."""

    def __init__(self, settings: Settings, settlement: Settlement, fairness: Fairness) -> None:
        self.short = False
        self._settlement = settlement
        self._fairness = fairness
        self._relieved = int(settings.delivery.max_in_flight * _RELIEVED)
        self._relieved_bytes = int(settings.delivery.max_in_flight_bytes * _RELIEVED)
        self._patience = settings.delivery.max_queue_wait

    def look(self, now: float) -> bool:
        """Whether memory is short; called some times a second."""
        settlement = self._settlement
        if settlement.full:
            patience = min(self._patience, _PATIENCE) if self._fairness.shared else self._patience
            self.short = self.short or now - settlement.full_since >= patience
        elif self.short:
            self.short = settlement.tight()
        return self.short

    def crowded(self, usage: TenantUsage, own: int) -> bool:
        """Whether a subscription of the tenant's has its part of the memory, with `own` deliveries queued or under way."""
        if not self.short:
            return False
        free, free_bytes = self._settlement.free, self._settlement.free_bytes
        if free <= 0 or free_bytes <= 0:
            return True
        return not self._fairness.fits(usage.in_flight, usage.bytes, own, free, free_bytes)

    def surplus(self) -> list[tuple[TenantUsage, int]]:
        """Which tenants have more than their part of the memory, and how many deliveries more."""
        usages = self._fairness.usages()
        most = level(sorted([usage.in_flight for usage in usages]), self._relieved)
        most_bytes = level(sorted([usage.bytes for usage in usages]), self._relieved_bytes)
        found: list[tuple[TenantUsage, int]] = []
        for usage in usages:
            beyond = usage.in_flight - most
            if usage.bytes > most_bytes:
                beyond = max(beyond, usage.in_flight - usage.in_flight * most_bytes // usage.bytes)
            if beyond > 0:
                found.append((usage, beyond))
        return found
