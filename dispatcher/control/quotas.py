"""What a tenant may have and take, and whether it has reached that.

The settings give the quotas of all tenants. `quotas:<tenant>` of the control topic has what an operator has given one tenant instead. An
operator is bound by none: where a method takes a tenant, None stands for an operator.

What holds over replicas:

- How many subscriptions there are is the same on all replicas. Two replicas that make one at the same moment may both find room.
- Rates (creations, events, bytes), and queries and streams at a time, are counted by each replica alone.

Somebody who reaches a quota again and again is told of once: a warning in the log and an operational event when it *lives at* a quota, which
means at a count at the first refusal, at a rate when it has been refused for a minute. It is told of anew after ten minutes without a refusal.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn

import structlog

from dispatcher.control.errors import Invalid, QuotaExceeded, Unavailable, VersionMismatch
from dispatcher.control.operational_events import AT_QUOTA, Announcer
from dispatcher.control.table import Table
from dispatcher.control.tenant_counts import TenantCounts
from dispatcher.core.control.quotas import (
    QUOTAS,
    Overrides,
    QuotaName,
    RateCounter,
    TenantQuotas,
    beyond,
    overridden,
    written,
)
from dispatcher.core.event.decode import valid_tenant
from dispatcher.core.flaws import Flaw
from dispatcher.core.request.urls import Origin
from dispatcher.settings.groups import QuotaSettings
from dispatcher.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

AtATime = Literal["queries", "streams"]
"""Quotas of what a tenant has under way in this process."""
Gate = Literal["queries", "streams", "events_per_second"]
"""Quotas that a request is held against before it is looked at."""

_TRIES: Final = 5
_A_MINUTE: Final = 60.0
_BURST: Final = 2.0  # seconds' worth of events that may come at once
_LIVES: Final = 60.0  # seconds of refusals after which it is told of a rate
_OVER: Final = 600.0  # seconds without a refusal after which it is over
_EPISODES: Final = 10_000
_COUNTS: Final[frozenset[QuotaName]] = frozenset(("subscriptions", "subscriptions_per_origin", "replays"))
_FREED: Final[Mapping[AtATime, tuple[str, float]]] = {
    "queries": ("wait until one of them is answered", 1.0),
    "streams": ("close one of them", 5.0),
}
"""How there is room again, and in how many seconds it is worth another try."""
_MORE: Final = "ask an operator for a larger quota"


@dataclass(slots=True)
class _Episode:
    """Refusals of one tenant for one quota."""

    first: float
    last: float
    told: bool = False


@dataclass(frozen=True, slots=True)
class QuotasView:
    """The quotas of a tenant: those in force, those that are its own, and what is used. `version` 0: it has none of its own."""

    tenant: str
    quotas: TenantQuotas
    overrides: Overrides
    used: int
    version: int
    updated_ms: int | None


class Quotas:
    """Says what each tenant may, and refuses what is beyond. `tenant` None is an operator, who may everything."""

    def __init__(
        self,
        settings: QuotaSettings,
        table: Table[Overrides],
        ready: Callable[[], None],
        counts: TenantCounts,
        announcer: Announcer,
        metrics: Metrics,
    ) -> None:
        """`ready` raises Unavailable while the table isn't read."""
        self._common = TenantQuotas(**settings.model_dump())
        self._table = table
        self._ready = ready
        self._counts = counts
        self._announcer = announcer
        self._metrics = metrics
        self._clock = asyncio.get_running_loop().time
        self._creations = RateCounter(_A_MINUTE)
        self._events = RateCounter(_BURST)
        self._bytes = RateCounter(_BURST)
        self._creating: Counter[tuple[str, Origin | None]] = (
            Counter()
        )  # under way: of a tenant, of one origin
        self._under_way: Counter[tuple[str, AtATime]] = Counter()
        self._episodes: dict[tuple[str, QuotaName], _Episode] = {}
        metrics.reads("tenants_at_quota", self._at_quota)

    # What a tenant may.

    def of(self, tenant: str) -> TenantQuotas:
        """The quotas of a tenant."""
        row = self._table.get(tenant)
        return self._common if row is None else overridden(self._common, row.value)

    def beyond(
        self, tenant: str | None, wanted: Mapping[str, Any], present: Mapping[str, Any] | None = None
    ) -> list[Flaw]:
        """What of a subscription's document is beyond the tenant's maxima, and more than `present` has already."""
        return [] if tenant is None else beyond(self.of(tenant), wanted, present or {})

    def check(self, tenant: str | None, quota: Literal["replays"], used: int) -> None:
        """Raise QuotaExceeded where the tenant has `used` as many as it may: whoever makes them knows how many there are."""
        if tenant is None:
            return
        most = int(getattr(self.of(tenant), quota))
        if used >= most:
            self._refuse(tenant, quota, most, f"wait until one is over, or cancel one, or {_MORE}", 60.0)

    @contextmanager
    def creating(self, tenant: str | None, origin: Origin, *, new: bool = True) -> Iterator[None]:
        """While a subscription to the origin is made, or (`new` False) changed to lead there. Raises QuotaExceeded."""
        if tenant is None:
            yield
            return
        quotas, counts, creating = self.of(tenant), self._counts, self._creating
        if new and counts.all(tenant) + creating[tenant, None] >= quotas.subscriptions:
            said = f"delete some that you don't need, or {_MORE}"
            self._refuse(tenant, "subscriptions", quotas.subscriptions, said)
        if counts.to(tenant, origin) + creating[tenant, origin] >= quotas.subscriptions_per_origin:
            said = f"that many lead to {origin}: delete some of them, or {_MORE}"
            self._refuse(tenant, "subscriptions_per_origin", quotas.subscriptions_per_origin, said)
        if new:
            now = self._clock()
            if wait := self._creations.wait(tenant, now):
                said = f"send it again later, or {_MORE}"
                self._refuse(tenant, "creations_per_minute", quotas.creations_per_minute, said, wait)
            self._creations.take(tenant, 1.0, quotas.creations_per_minute / _A_MINUTE, now)
        held = ((tenant, None), (tenant, origin)) if new else ((tenant, origin),)
        creating.update(held)
        try:
            yield
        finally:
            creating.subtract(held)
            for each in held:
                if not creating[each]:
                    del creating[each]

    @contextmanager
    def admitted(self, tenant: str | None, gate: Gate | None) -> Iterator[None]:
        """While a request is served that is held against this quota. Raises QuotaExceeded."""
        if tenant is None or gate is None:
            yield
            return
        if gate == "events_per_second":
            self._check_publishing(tenant)
            yield
            return
        most = int(getattr(self.of(tenant), gate))
        if self._under_way[tenant, gate] >= most:
            remedy, retry_after = _FREED[gate]
            self._refuse(tenant, gate, most, f"{remedy}, or {_MORE}", retry_after)
        self._under_way[tenant, gate] += 1
        try:
            yield
        finally:
            self._under_way[tenant, gate] -= 1
            if not self._under_way[tenant, gate]:
                del self._under_way[tenant, gate]

    def _check_publishing(self, tenant: str) -> None:
        now = self._clock()
        quotas = self.of(tenant)
        said = f"send it again later, or {_MORE}"
        if wait := self._events.wait(tenant, now):
            self._refuse(tenant, "events_per_second", quotas.events_per_second, said, wait)
        if wait := self._bytes.wait(tenant, now):
            self._refuse(tenant, "bytes_per_second", quotas.bytes_per_second, said, wait)

    def take_events(self, tenant: str | None, events: int, size: int) -> None:
        """Count events that a tenant publishes, and the bytes of their data. Raises QuotaExceeded where it may publish none just now."""
        if tenant is None:
            return
        self._check_publishing(tenant)
        now = self._clock()
        quotas = self.of(tenant)
        self._events.take(tenant, events, quotas.events_per_second, now)
        self._bytes.take(tenant, size, quotas.bytes_per_second, now)

    # What operators give.

    def view(self, tenant: str) -> QuotasView:
        """The quotas of a tenant, and what it uses of them. Raises Unavailable."""
        self._ready()
        row = self._table.get(tenant)
        overrides: Overrides = {} if row is None else row.value
        return QuotasView(
            tenant,
            overridden(self._common, overrides),
            overrides,
            self._counts.all(tenant),
            0 if row is None else row.version,
            None if row is None else row.updated_ms,
        )

    async def put(self, tenant: str, overrides: Overrides, *, if_match: int | None = None) -> QuotasView:
        """Give the tenant these in the place of those that it has; without any it has those of all. Raises Invalid, VersionMismatch, Unavailable."""
        self._ready()
        if not valid_tenant(tenant):
            raise Invalid([Flaw(("tenant",), "must be 1 to 256 printable characters, and no *")])
        for _ in range(_TRIES):
            row = self._table.get(tenant)
            base = 0 if row is None else row.version
            if if_match is not None and base != if_match:
                raise VersionMismatch(base)
            if (row is None and not overrides) or (row is not None and row.value == overrides):
                return self.view(tenant)
            try:
                if overrides:
                    await self._table.put(tenant, overrides, base=base)
                else:
                    await self._table.delete(tenant, base=base)
            except VersionMismatch:
                if if_match is not None:
                    raise
                continue
            self._start_over(tenant)
            return self.view(tenant)
        raise Unavailable(f"the quotas of {tenant} are changed by others all the time: send it again", 1.0)

    def _start_over(self, tenant: str) -> None:
        """What was taken of a rate that is another one by now says nothing."""
        for counter in (self._creations, self._events, self._bytes):
            counter.forget(tenant)
        for name in QUOTAS:
            self._episodes.pop((tenant, name), None)

    # Refusals.

    def _refuse(
        self, tenant: str, quota: QuotaName, most: float, remedy: str, retry_after: float | None = None
    ) -> NoReturn:
        self._metrics.quota_exceeded[quota] += 1
        self._note(tenant, quota, most)
        raise QuotaExceeded(
            quota, f"{_SAID[quota].format(written(quota, most))} (quota {quota}): {remedy}", retry_after
        )

    def _note(self, tenant: str, quota: QuotaName, most: float) -> None:
        now = self._clock()
        episode = self._episodes.pop((tenant, quota), None)
        if episode is None or now - episode.last > _OVER:
            episode = _Episode(now, now)
        episode.last = now
        if len(self._episodes) >= _EPISODES:
            del self._episodes[next(iter(self._episodes))]
        self._episodes[tenant, quota] = episode
        if episode.told or (quota not in _COUNTS and now - episode.first < _LIVES):
            return
        episode.told = True
        value = written(quota, most)
        log.warning(
            "a tenant lives at its quota: what it asks for beyond is refused",
            tenant=tenant,
            quota=quota,
            value=value,
            hint="give it a larger one if it should have that: dispatcher tenants quotas set",
        )
        self._announcer.announce_tenant(AT_QUOTA, tenant, {"quota": quota, "value": value})

    def _at_quota(self) -> dict[tuple[str, ...], float]:
        now = self._clock()
        found: dict[tuple[str, ...], float] = {(name,): 0.0 for name in QUOTAS if name in _SAID}
        for (_, name), episode in self._episodes.items():
            if episode.told and now - episode.last <= _OVER:
                found[name,] += 1
        return found


_SAID: Final[Mapping[QuotaName, str]] = {
    "subscriptions": "your tenant may have {} subscriptions, and not more",
    "subscriptions_per_origin": "your tenant may have {} subscriptions to one origin, and not more",
    "creations_per_minute": "your tenant makes more than {} subscriptions a minute",
    "events_per_second": "your tenant publishes more than {} events a second",
    "bytes_per_second": "your tenant publishes more than {} a second",
    "replays": "your tenant may have {} replays that are not over, and not more",
    "queries": "your tenant may have {} requests to the history under way, and not more",
    "streams": "your tenant may have {} streams open, and not more",
}
