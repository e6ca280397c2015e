"""Quotas and maxima of tenants: which there are, and what of a subscription is beyond them.

A quota bounds what a tenant has or takes (subscriptions, events a second). A maximum bounds a field of a subscription. The settings give
each a value for all tenants (`quotas.*`), and an operator may give one tenant another. Operators themselves are bound by none.

A maximum binds what a tenant sets. What stands in a subscription already stays, whatever the maxima become.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final, Literal, NamedTuple, get_args

from dispatcher.core.flaws import Flaw
from dispatcher.core.text.units import format_duration, format_size, parse_duration

QuotaName = Literal[
    "subscriptions",
    "subscriptions_per_origin",
    "creations_per_minute",
    "events_per_second",
    "bytes_per_second",
    "replays",
    "queries",
    "streams",
    "max_timeout",
    "max_in_flight",
    "max_schedule",
    "max_headers",
    "max_patterns",
]


class TenantQuotas(NamedTuple):
    """Those of one tenant. Durations in seconds, sizes in bytes."""

    subscriptions: int
    """Subscriptions of the tenant, whoever made them."""
    subscriptions_per_origin: int
    """Of them, those to one origin."""
    creations_per_minute: int
    events_per_second: int
    bytes_per_second: int
    """Of the data of events."""
    replays: int
    """That are not over."""
    queries: int
    """Requests to the history at a time."""
    streams: int
    """Streams at a time."""
    max_timeout: float
    max_in_flight: int
    max_schedule: int
    """Waits between the attempts of a delivery."""
    max_headers: int
    max_patterns: int


QUOTAS: Final[tuple[QuotaName, ...]] = get_args(QuotaName)
"""All of them, in the order of the settings."""

Overrides = Mapping[QuotaName, float]
"""What one tenant has other than the settings say."""

MAX_CALLERS: Final = 10_000
"""Tenants whose rate is counted at a time."""


def overridden(quotas: TenantQuotas, overrides: Overrides) -> TenantQuotas:
    """These quotas with what one tenant has instead."""
    return quotas._replace(**document_of(overrides)) if overrides else quotas


def written(name: QuotaName, value: float) -> str:
    """A quota as people write it."""
    if name == "max_timeout":
        return format_duration(value)
    return format_size(int(value)) if name == "bytes_per_second" else str(int(value))


def document_of(overrides: Overrides) -> dict[str, Any]:
    """As they are kept."""
    return {str(name): value for name, value in overrides.items()}


def overrides_of(document: Mapping[str, Any]) -> Overrides:
    """The overrides of a record; what another version has written and this one doesn't know is left out. Raises TypeError, ValueError."""
    found: dict[QuotaName, float] = {}
    for name in QUOTAS:
        if name in document:
            value = document[name]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"{name} is no number")
            found[name] = float(value) if name == "max_timeout" else int(value)
    return found


def beyond(quotas: TenantQuotas, wanted: Mapping[str, Any], present: Mapping[str, Any]) -> list[Flaw]:
    """What of a tenant's document is beyond a maximum, and more than what is `present` there already.

    Documents are as people write them. A field that isn't even of its type is not looked at: others say what is wrong with it.
    """
    flaws = []
    for name, path, must, measure in _MEASURED:
        size = measure(wanted)
        if size is None:
            continue
        most = getattr(quotas, name)
        if size > most and size > (measure(present) or 0):
            said = f"must {must.format(written(name, most))} ({name} of your tenant's quotas): lower it, or ask an operator for more"
            flaws.append(Flaw(path, said))
    return flaws


def _timeout(document: Mapping[str, Any]) -> float | None:
    value = document.get("timeout")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    try:
        return parse_duration(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _in_flight(document: Mapping[str, Any]) -> float | None:
    value = document.get("max_in_flight")
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _schedule(document: Mapping[str, Any]) -> float | None:
    retry = document.get("retry")
    return _length(retry.get("schedule")) if isinstance(retry, Mapping) else None


def _headers(document: Mapping[str, Any]) -> float | None:
    return _length(document.get("headers"))


def _patterns(document: Mapping[str, Any]) -> float | None:
    return _length(document.get("event_types"))


def _length(value: object) -> float | None:
    return len(value) if isinstance(value, (list, tuple, Mapping)) else None


_Measure = Callable[[Mapping[str, Any]], float | None]
_MEASURED: Final[tuple[tuple[QuotaName, tuple[str, ...], str, _Measure], ...]] = (
    ("max_timeout", ("timeout",), "be at most {}", _timeout),
    ("max_in_flight", ("max_in_flight",), "be at most {}", _in_flight),
    ("max_schedule", ("retry", "schedule"), "have at most {} waits", _schedule),
    ("max_headers", ("headers",), "have at most {} entries", _headers),
    ("max_patterns", ("event_types",), "have at most {} entries", _patterns),
)


class RateCounter:
    """What callers take at a rate. Each may take `burst` seconds' worth at once, and with one request go beyond that.

    Going beyond is a debt: the next request waits until it is paid. So a request that is larger than a burst is possible, and in the mean
    nobody takes more than the rate. Rule: `_paid` has when each caller has paid for all that it took; who is forgotten owes nothing.
    """

    def __init__(self, burst: float, most: int = MAX_CALLERS) -> None:
        self._burst = burst
        self._most = most
        self._paid: dict[str, float] = {}

    def wait(self, caller: str, now: float) -> float:
        """Seconds until the caller may take something; 0: it may now."""
        paid = self._paid.get(caller)
        if paid is None or paid - now < self._burst:
            return 0.0
        # Never 0: that would say that it may.
        return max(paid - now - self._burst, 1e-3)

    def take(self, caller: str, amount: float, rate: float, now: float) -> None:
        """Count what the caller takes, of `rate` a second."""
        paid = max(self._paid.pop(caller, now), now)
        if len(self._paid) >= self._most:
            self._make_room(now)
        self._paid[caller] = paid + amount / rate

    def forget(self, caller: str) -> None:
        """It owes nothing any more."""
        self._paid.pop(caller, None)

    def _make_room(self, now: float) -> None:
        """Forget callers that have paid; where there are none, a sixteenth, those heard of longest ago."""
        self._paid = {caller: paid for caller, paid in self._paid.items() if paid > now}
        if len(self._paid) >= self._most:
            for caller in list(islice(self._paid, self._most // 16 + 1)):
                del self._paid[caller]

    def __len__(self) -> int:
        return len(self._paid)
