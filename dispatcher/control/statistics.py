"""Statistics of deliveries per minute, hour or day, as the history counts them: bounded series, the busiest groups first.

A tenant sees what is counted for it. Latency quantiles are estimated from buckets, as Prometheus does: linear within a bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from dispatcher.control.errors import Invalid
from dispatcher.control.history import Answered, HistoryReader
from dispatcher.core.flaws import Flaw
from dispatcher.history.base import (
    BUCKETS,
    COUNTED,
    FAILURE_CLASSES,
    FAILURE_CODES,
    GROUPS_LIMIT,
    LATENCY_BOUNDS_MS,
    CountQuery,
    CountRow,
)

STEPS: Final[Mapping[str, int]] = {"minute": 60_000, "hour": 3_600_000, "day": 86_400_000}
"""What counts are added up by, in ms. Days begin at midnight UTC."""

MAX_POINTS: Final = 1500
"""Of a series: a day of minutes, two months of hours, four years of days."""

MAX_SERIES: Final = 200
SERIES: Final = 20

_DEFAULT_STEPS: Final = {"minute": 60, "hour": 24, "day": 30}  # of a time that doesn't say since when
_FIRST_BUCKET: Final = len(COUNTED)
_FIRST_CLASS: Final = len(COUNTED) + len(BUCKETS)
_DIMENSIONS: Final = {
    "tenant": "tenant",
    "subscription": "subscription_id",
    "event_type": "event_type",
    "host": "host",
    "status": "status",
}
_WORDS: Final = {code: word for word, code in FAILURE_CODES.items()}
_ALL: Final = 2**53  # ms: one step for all of the time


class StatisticsQuery(NamedTuple):
    """What is asked for. What is None isn't."""

    since_ms: int | None = None
    until_ms: int | None = None
    step: str | None = None
    """One of `STEPS`; None chooses the finest that makes few points."""
    group: Sequence[str] = ()
    """Of `tenant`, `subscription`, `event_type`, `host`, `status`."""
    tenant: str | None = None
    subscription_id: str | None = None
    event_type: str | None = None
    host: str | None = None
    status: str | None = None
    """A status, its class (`4xx`), or the word for a failure without an answer."""
    limit: int = SERIES


class Figures(NamedTuple):
    """What was counted together. Quantiles and means are None where nothing was attempted."""

    attempts: int
    delivered: int
    failed: int
    dead: int
    dropped: int
    parked: int
    failures: Mapping[str, int]
    """Failed attempts by class."""
    mean_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    late_ms: float | None
    """From the event's own time to the acknowledgement, on average."""


class Point(NamedTuple):
    """A step's figures; `time_ms` is its beginning."""

    time_ms: int
    figures: Figures


class Series(NamedTuple):
    """A group's figures in their order. Steps without any are left out."""

    group: Mapping[str, str | int | None]
    points: Sequence[Point]
    totals: Figures


class Statistics(NamedTuple):
    """An answer. `cut`: there are more groups than were shown."""

    since_ms: int
    until_ms: int
    step: str
    series: Sequence[Series]
    totals: Figures
    cut: bool


class StatisticsReader:
    """Asks the history for counts. `tenant` None is an operator, who sees all."""

    def __init__(self, history: HistoryReader, clock: Callable[[], float]) -> None:
        """`clock` gives Unix seconds."""
        self._history = history
        self._clock = clock

    async def statistics(self, tenant: str | None, query: StatisticsQuery) -> Answered[Statistics]:
        """The figures of a time. Raises Invalid where that is too long for the step."""
        since, until, step = self._range(query)
        names = [name for name in _DIMENSIONS if name in query.group]
        asked = CountQuery(
            since,
            until,
            STEPS[step],
            tenant=query.tenant if tenant is None else tenant,
            subscription_id=query.subscription_id,
            event_type=query.event_type,
            host=query.host,
            status=_status(query.status),
        )
        if tenant is not None and query.tenant not in (None, tenant):
            empty = Statistics(since, until, step, (), figures(()), cut=False)
            return await self._history.answered(empty, since, until)
        totals = await self._counts(asked._replace(step_ms=_ALL))
        if not names:
            rows = await self._counts(asked)
            series = [_series({}, rows)] if rows else []
            found = Statistics(since, until, step, series, figures(totals), cut=False)
            return await self._history.answered(found, since, until)
        by = [_DIMENSIONS[name] for name in names]
        steps = (until - since) // STEPS[step] + 1
        most = max(1, min(query.limit, GROUPS_LIMIT // steps))
        ranked = await self._counts(asked._replace(by=by, busiest=most + 1))
        shown = [row.key for row in ranked[:most]]
        rows = await self._counts(asked._replace(by=by, only=shown)) if shown else []
        points: dict[tuple[str | int, ...], list[CountRow]] = {key: [] for key in shown}
        for row in rows:
            points[row.key].append(row)
        series = [_series(_group(names, key), points[key]) for key in shown]
        found = Statistics(since, until, step, series, figures(totals), cut=len(ranked) > most)
        return await self._history.answered(found, since, until)

    async def _counts(self, query: CountQuery) -> Sequence[CountRow]:
        rows: Sequence[CountRow] = await self._history.ask(lambda store: store.counts(query))
        return rows

    def _range(self, query: StatisticsQuery) -> tuple[int, int, str]:
        """The time in whole steps, and the step."""
        now = int(self._clock() * 1000)
        until = now if query.until_ms is None else query.until_ms
        step = query.step
        if step is None:
            long = STEPS["hour"] if query.since_ms is None else until - query.since_ms
            step = "minute" if long <= 6 * STEPS["hour"] else "hour" if long <= 14 * STEPS["day"] else "day"
        size = STEPS[step]
        since = until - _DEFAULT_STEPS[step] * size if query.since_ms is None else query.since_ms
        if since > until:
            raise Invalid([Flaw(("since",), "must not be later than until")])
        since = max(0, since // size * size)
        if (until - since) // size >= MAX_POINTS:
            flaw = Flaw(
                ("step",),
                f"makes more than {MAX_POINTS} points of this time: ask for a longer step, or a shorter time",
            )
            raise Invalid([flaw])
        return since, until, step


def figures(rows: Sequence[CountRow]) -> Figures:
    """What these rows come to together."""
    sums = [sum(column) for column in zip(*(row.counts for row in rows), strict=True)]
    if not sums:
        sums = [0] * (_FIRST_CLASS + len(FAILURE_CLASSES))
    counted = dict(zip(COUNTED, sums, strict=False))
    buckets = sums[_FIRST_BUCKET:_FIRST_CLASS]
    failures = dict(zip(FAILURE_CLASSES, sums[_FIRST_CLASS:], strict=True))
    failures["other"] = max(0, counted["failed"] - sum(failures.values()))
    attempts, late = counted["attempts"], counted["late_count"]
    return Figures(
        attempts,
        counted["delivered"],
        counted["failed"],
        counted["dead"],
        counted["dropped"],
        counted["parked"],
        failures,
        round(counted["total_ms"] / attempts, 1) if attempts else None,
        quantile(buckets, 0.5),
        quantile(buckets, 0.95),
        quantile(buckets, 0.99),
        round(counted["late_ms"] / late, 1) if late else None,
    )


def quantile(buckets: Sequence[int], share: float) -> float | None:
    """The duration in ms that this share of the attempts did not exceed; at most the last bound, None where there are none."""
    rank = share * sum(buckets)
    if not rank:
        return None
    below, low = 0, 0
    for count, high in zip(buckets, LATENCY_BOUNDS_MS, strict=False):
        if count and below + count >= rank:
            return round(low + (high - low) * (rank - below) / count, 1)
        below += count
        low = high
    return float(LATENCY_BOUNDS_MS[-1])


def _series(group: Mapping[str, str | int | None], rows: Sequence[CountRow]) -> Series:
    return Series(group, [Point(row.time_ms, figures([row])) for row in rows], figures(rows))


def _group(names: Sequence[str], key: Sequence[str | int]) -> dict[str, str | int | None]:
    return {name: _shown(name, value) for name, value in zip(names, key, strict=True)}


def _shown(name: str, value: str | int) -> str | int | None:
    """None for no tenant, no host, and for what ended or was parked without a request."""
    if name == "status" and isinstance(value, int):
        return value if value > 0 else _WORDS.get(value)
    return value or None


def _status(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if text in FAILURE_CODES:
        return FAILURE_CODES[text], FAILURE_CODES[text]
    if text in FAILURE_CLASSES:
        return FAILURE_CLASSES[text]
    if text.endswith("xx"):
        return int(text[0]) * 100, int(text[0]) * 100 + 99
    return int(text), int(text)
