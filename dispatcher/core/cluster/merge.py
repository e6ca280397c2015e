"""What several processes say of one subscription, put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from dispatcher.core.cluster.record import ReplicaRecord, Trouble

_BREAKERS: Final = ("closed", "half-open", "open")
_ON_ITS_WAY_MS: Final = 2000


class Failing(NamedTuple):
    """A subscription in trouble, as all processes see it. Times in Unix ms."""

    subscription_id: str
    tenant: str | None
    since_ms: int | None
    """Since when some process has had nothing but failures; None where nothing fails: deliveries are only parked."""
    attempts: int
    """Of the last ones, those that are known, and how many of them were acknowledged."""
    succeeded: int
    latency_mean_ms: float | None
    """Of those that were acknowledged; the next one is the largest that a process has."""
    latency_p95_ms: float | None
    breaker: str
    """The worst."""
    queued: int
    in_flight: int
    held: int
    parked: int
    parked_more: bool
    oldest_ms: int | None
    next_ms: int | None
    last_result: str | None
    last_ms: int | None
    replicas: tuple[str, ...]
    """Those that say it is in trouble."""


def merged(records: Iterable[ReplicaRecord]) -> dict[str, Failing]:
    """All that are in trouble, by id."""
    found: dict[str, Failing] = {}
    for record in records:
        for trouble in record.troubles:
            before = found.get(trouble.subscription_id)
            if before is None or before.tenant != trouble.tenant:
                found[trouble.subscription_id] = _first(record.replica, trouble)
            else:
                found[trouble.subscription_id] = _both(before, record.replica, trouble)
    return found


class Elsewhere:
    """What the other processes have seen of subscriptions last: by id, in Unix ms."""

    def __init__(self) -> None:
        self.failed: dict[str, int] = {}
        """When an attempt failed last, of those that some process says fail."""
        self.delivered: dict[str, int] = {}
        """When something was delivered, of those that some process has said fail."""

    def add(self, record: ReplicaRecord, heard_ms: int) -> None:
        """What one of them says, that was heard at `heard_ms` by the clock of whoever asks.

        A clock that is set differently is allowed for by that. Within two seconds it isn't told from the time that the record was on its way.
        """
        ahead = heard_ms - record.at_ms
        if abs(ahead) <= _ON_ITS_WAY_MS:
            ahead = 0
        for trouble in record.troubles:
            if trouble.since_ms is not None:
                at = trouble.since_ms if trouble.last_ms is None else trouble.last_ms
                _latest(self.failed, trouble.subscription_id, at + ahead)
        for id_, at in record.recovered.items():
            _latest(self.delivered, id_, min(at + ahead, heard_ms))


def _latest(times: dict[str, int], id_: str, at: int) -> None:
    times[id_] = max(at, times.get(id_, at))


def together(replica_troubles: Iterable[tuple[str, Trouble]]) -> Failing | None:
    """What several processes say of one subscription; None where none says anything."""
    found: Failing | None = None
    for replica, trouble in replica_troubles:
        found = _first(replica, trouble) if found is None else _both(found, replica, trouble)
    return found


def worst_first(found: Mapping[str, Failing]) -> list[Failing]:
    """Those that fail for longest first, then those that only wait, for longest."""
    later = 2**53
    return sorted(
        found.values(),
        key=lambda each: (
            later if each.since_ms is None else each.since_ms,
            later if each.oldest_ms is None else each.oldest_ms,
            each.subscription_id,
        ),
    )


def _first(replica: str, trouble: Trouble) -> Failing:
    return Failing(
        trouble.subscription_id,
        trouble.tenant,
        trouble.since_ms,
        trouble.attempts,
        trouble.succeeded,
        trouble.latency_mean_ms,
        trouble.latency_p95_ms,
        trouble.breaker if trouble.breaker in _BREAKERS else "closed",
        trouble.queued,
        trouble.in_flight,
        trouble.held,
        trouble.parked,
        trouble.parked_more,
        trouble.oldest_ms,
        trouble.next_ms,
        trouble.last_result,
        trouble.last_ms,
        (replica,),
    )


def _both(one: Failing, replica: str, two: Trouble) -> Failing:
    other = _first(replica, two)
    last = max(one, other, key=lambda each: each.last_ms or 0)
    return Failing(
        one.subscription_id,
        one.tenant,
        _least(one.since_ms, other.since_ms),
        one.attempts + other.attempts,
        one.succeeded + other.succeeded,
        _mean((one.latency_mean_ms, one.succeeded), (other.latency_mean_ms, other.succeeded)),
        max((each.latency_p95_ms for each in (one, other) if each.latency_p95_ms is not None), default=None),
        max(one.breaker, other.breaker, key=_BREAKERS.index),
        one.queued + other.queued,
        one.in_flight + other.in_flight,
        one.held + other.held,
        one.parked + other.parked,
        one.parked_more or other.parked_more,
        _least(one.oldest_ms, other.oldest_ms),
        _least(one.next_ms, other.next_ms),
        last.last_result,
        last.last_ms,
        (*one.replicas, *other.replicas),
    )


def _mean(*parts: tuple[float | None, int]) -> float | None:
    known = [(value, count) for value, count in parts if value is not None and count]
    total = sum(count for _, count in known)
    return sum(value * count for value, count in known) / total if total else None


def _least(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else min(one, other)
