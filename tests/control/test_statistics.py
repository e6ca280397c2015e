"""What becomes of counts on their way to whoever asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from dispatcher.control.errors import Invalid
from dispatcher.control.history import HistoryReader
from dispatcher.control.statistics import MAX_POINTS, StatisticsQuery, StatisticsReader, figures, quantile
from dispatcher.history.base import (
    BUCKETS,
    COUNTED,
    FAILURE_CLASSES,
    GROUPS_LIMIT,
    LATENCY_BOUNDS_MS,
    CountQuery,
    CountRow,
)

HOUR = 3_600_000
NOW = 1_760_000_000.0
NOW_MS = round(NOW * 1000)


def row(time_ms: int = 0, key: tuple[str | int, ...] = (), **counts: int) -> CountRow:
    names = (*COUNTED, *BUCKETS, *FAILURE_CLASSES)
    return CountRow(time_ms, tuple(key), [counts.get(name, 0) for name in names])


class Store:
    """Answers with what it is given, and keeps what it was asked."""

    def __init__(self, *rows: CountRow) -> None:
        self.rows = list(rows)
        self.asked: list[CountQuery] = []

    async def counts(self, query: CountQuery) -> Sequence[CountRow]:
        self.asked.append(query)
        if query.busiest is not None:
            return [each._replace(time_ms=0) for each in self.rows[: query.busiest]]
        if query.only is not None:
            return [each for each in self.rows if each.key in query.only]
        return self.rows

    async def gaps(self, _since: int, _until: int) -> list[Any]:
        return []


def reader(store: Any) -> StatisticsReader:
    return StatisticsReader(HistoryReader(store, None), lambda: NOW)


def buckets(**counts: int) -> list[int]:
    bounds = [*map(str, LATENCY_BOUNDS_MS), "more"]
    return [counts.get(f"to_{bound}", 0) for bound in bounds]


def test_quantiles_are_linear_within_a_bucket_and_end_with_the_last_bound() -> None:
    assert quantile(buckets(to_100=10), 0.5) == 75.0
    assert quantile(buckets(to_5=50, to_10=50), 0.5) == 5.0
    assert quantile(buckets(to_5=99, to_1000=1), 0.99) == 5.0
    assert quantile(buckets(to_5=98, to_1000=2), 0.99) == 750.0
    assert quantile(buckets(to_more=3), 0.5) == 30_000.0
    assert quantile(buckets(), 0.5) is None


def test_failures_that_are_of_no_class_are_others() -> None:
    classes: Any = {"4xx": 1, "5xx": 2, "timeout": 1}
    found = figures([row(attempts=10, failed=6, total_ms=100, **classes)])
    assert found.failures == {
        "3xx": 0,
        "4xx": 1,
        "5xx": 2,
        "timeout": 1,
        "connect": 0,
        "dns": 0,
        "tls": 0,
        "other": 2,
    }
    assert (found.mean_ms, found.late_ms) == (10.0, None)
    nothing = figures([])
    assert (nothing.attempts, nothing.mean_ms, nothing.p50_ms, nothing.failures["5xx"]) == (0, None, None, 0)


async def test_without_a_group_there_is_one_series() -> None:
    store = Store(row(NOW_MS, attempts=1, delivered=1), row(NOW_MS + 60_000, attempts=2))
    found = (await reader(store).statistics(None, StatisticsQuery())).value
    assert [point.figures.attempts for point in found.series[0].points] == [1, 2]
    assert (found.totals.attempts, found.step, found.cut) == (3, "minute", False)
    assert (found.since_ms, found.until_ms) == ((NOW_MS - HOUR) // 60_000 * 60_000, NOW_MS)
    assert (await reader(Store()).statistics(None, StatisticsQuery())).value.series == []


async def test_groups_are_the_busiest_and_what_they_are_of_has_its_name() -> None:
    store = Store(
        row(1, ("", "", 503), attempts=3),
        row(1, ("acme", "a.example", -1), attempts=2),
        row(1, ("acme", "a.example", 0), dropped=1),
    )
    asked = StatisticsQuery(group=("status", "host", "tenant"), limit=2)
    found = (await reader(store).statistics(None, asked)).value
    assert [series.group for series in found.series] == [
        {"tenant": None, "host": None, "status": 503},
        {"tenant": "acme", "host": "a.example", "status": "timeout"},
    ]
    assert found.cut
    assert found.totals.attempts == 5
    assert store.asked[-1].only == [("", "", 503), ("acme", "a.example", -1)]
    assert list(store.asked[-1].by) == ["tenant", "host", "status"]


async def test_an_answer_has_no_more_points_than_a_store_gives() -> None:
    store = Store()
    asked = StatisticsQuery(NOW_MS - 1000 * 60_000, NOW_MS, "minute", ("host",), limit=200)
    await reader(store).statistics(None, asked)
    (ranked,) = [query for query in store.asked if query.busiest is not None]
    assert ranked.busiest is not None
    assert (ranked.busiest - 1) * 1001 <= GROUPS_LIMIT < ranked.busiest * 1001


@pytest.mark.parametrize(
    ("since", "step"), [(1, "minute"), (6, "minute"), (7, "hour"), (14 * 24, "hour"), (15 * 24, "day")]
)
async def test_the_step_is_chosen_by_the_time(since: int, step: str) -> None:
    found = await reader(Store()).statistics(None, StatisticsQuery(NOW_MS - since * HOUR, NOW_MS))
    assert found.value.step == step


async def test_a_time_that_makes_too_many_points_is_refused_with_what_to_do() -> None:
    since = NOW_MS - MAX_POINTS * 60_000
    with pytest.raises(Invalid, match="longer step") as caught:
        await reader(Store()).statistics(None, StatisticsQuery(since, NOW_MS, "minute"))
    assert [flaw.field for flaw in caught.value.flaws] == ["step"]
    await reader(Store()).statistics(None, StatisticsQuery(since + 120_000, NOW_MS, "minute"))
    with pytest.raises(Invalid, match="later than until"):
        await reader(Store()).statistics(None, StatisticsQuery(NOW_MS, NOW_MS - 1))


async def test_a_tenant_asks_for_its_own_and_of_anothers_gets_nothing() -> None:
    store = Store(row(NOW_MS, attempts=1))
    await reader(store).statistics("acme", StatisticsQuery())
    assert {query.tenant for query in store.asked} == {"acme"}
    store.asked.clear()
    found = (await reader(store).statistics("acme", StatisticsQuery(tenant="globex"))).value
    assert (found.series, found.totals.attempts, store.asked) == ((), 0, [])
    await reader(store).statistics(None, StatisticsQuery(tenant="globex"))
    assert {query.tenant for query in store.asked} == {"globex"}


@pytest.mark.parametrize(
    ("status", "codes"),
    [
        ("503", (503, 503)),
        ("4xx", (400, 499)),
        ("2xx", (200, 299)),
        ("timeout", (-1, -1)),
        ("tls", (-10, -7)),
    ],
)
async def test_a_status_is_a_code_a_class_or_a_failures_word(status: str, codes: tuple[int, int]) -> None:
    store = Store()
    await reader(store).statistics(None, StatisticsQuery(status=status))
    assert {query.status for query in store.asked} == {codes}
