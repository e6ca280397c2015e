"""How many subscriptions a tenant has, in all and to each origin: those of the API and of the file.

Counting all tenants at the start would take memory for a million subscriptions, of which few tenants make any. So a tenant is counted
when it is first asked for, and kept up from then on by what the registry tells. The counts of the tenants asked for last are kept.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Final

from dispatcher.core.request.urls import Origin
from dispatcher.core.subscription.model import Subscription
from dispatcher.registry.registry import Registry

_KEPT: Final = 1000  # tenants


class _TenantTally:
    """Of one tenant."""

    __slots__ = ("all", "by_origin")

    def __init__(self) -> None:
        self.all = 0
        self.by_origin: Counter[Origin] = Counter()

    def add(self, subscription: Subscription, step: int) -> None:
        self.all += step
        self.by_origin[subscription.origin] += step
        if not self.by_origin[subscription.origin]:
            del self.by_origin[subscription.origin]


class TenantCounts:
    """Counts, from the registry's snapshot. One of its watchers."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._kept: OrderedDict[str, _TenantTally] = OrderedDict()
        registry.watchers.append(self._replaced)

    def all(self, tenant: str) -> int:
        """How many subscriptions the tenant has."""
        return self._of(tenant).all

    def to(self, tenant: str, origin: Origin) -> int:
        """How many of them lead to this origin."""
        return self._of(tenant).by_origin[origin]

    def _of(self, tenant: str) -> _TenantTally:
        counts = self._kept.get(tenant)
        if counts is None:
            counts = _TenantTally()
            for subscription in self._registry.index.of_tenant(tenant):
                counts.add(subscription, 1)
            self._kept[tenant] = counts
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(tenant)
        return counts

    def _replaced(self, old: Subscription | None, new: Subscription | None) -> None:
        if old is None and new is None:
            self._kept.clear()
            return
        for subscription, step in ((old, -1), (new, 1)):
            if subscription is None or subscription.tenant is None:
                continue
            counts = self._kept.get(subscription.tenant)
            if counts is not None:
                counts.add(subscription, step)
