"""Figures over time, over HTTP: what an answer looks like, and what is refused."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dispatcher.core.text.times import rfc3339
from dispatcher.history.base import LogPartition
from tests.api.real import keep, running
from tests.api.serving import KEY, fields, problem, serving
from tests.history.records import attempt, batch

NOW = int(time.time() * 1000)
SEED = LogPartition("seed", "", 0)
RECORDS = [
    attempt(
        0, 0, "sub_a", time_ms=NOW - 60_000, host="a.example", total_ms=80, event_time_ms=NOW - 61_000, v=2
    ),
    attempt(1, 1, "sub_a", time_ms=NOW - 60_000, host="a.example", decision="retry", status=503, v=2),
    attempt(
        2, 2, "sub_b", time_ms=NOW - 3_600_000, host="b.example", decision="retry", failure="timeout", v=2
    ),
    attempt(
        3, 3, "sub_c", time_ms=NOW - 60_000, tenant=None, decision="dead", reason="gone", status=410, v=2
    ),
]


async def test_figures_come_in_series_with_what_is_known_of_them(tmp_path: Path) -> None:
    async with running(tmp_path, KEY) as (call, app):
        assert app._history is not None
        await keep(app._history.store, batch(RECORDS, None, 4, partition=SEED))
        since = rfc3339(NOW - 2 * 3_600_000)
        found = (await call("GET", f"/v1/statistics?since={since}&step=minute")).json
        assert (found["step"], found["cut"], found["gaps"]) == ("minute", False, [])
        assert found["as_of"] is not None
        (series,) = found["series"]
        assert [point["attempts"] for point in series["points"]] == [1, 3]
        assert series["totals"] == found["totals"]
        totals = found["totals"]
        assert {name: totals[name] for name in ("attempts", "delivered", "failed", "dead")} == {
            "attempts": 4,
            "delivered": 1,
            "failed": 3,
            "dead": 1,
        }
        assert totals["failures"] == {
            "3xx": 0,
            "4xx": 1,
            "5xx": 1,
            "timeout": 1,
            "connect": 0,
            "dns": 0,
            "tls": 0,
            "other": 0,
        }
        assert totals["late_ms"] == 1080.0
        assert 25 < totals["p50_ms"] < 100
        grouped = (await call("GET", f"/v1/statistics?since={since}&group=subscription,status&limit=2")).json
        assert grouped["cut"]
        assert len(grouped["series"]) == 2
        assert grouped["totals"]["attempts"] == 4
        by_status = (await call("GET", f"/v1/statistics?since={since}&group=status")).json
        assert {series["group"]["status"] for series in by_status["series"]} == {200, 503, "timeout", 410}
        for asked, attempts in (
            ("subscription=sub_a", 2),
            ("host=A.example.", 2),
            ("status=5xx", 1),
            ("status=timeout", 1),
            ("event_type=invoice.*", 4),
            ("event_type=order.*", 0),
            ("tenant=acme", 3),
            (f"until={rfc3339(NOW - 1_800_000)}", 1),
        ):
            found = (await call("GET", f"/v1/statistics?since={since}&{asked}")).json
            assert found["totals"]["attempts"] == attempts, asked


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("group=path", "group"),
        ("group=host,host", "group"),
        ("step=week", "step"),
        ("status=600", "status"),
        ("status=xx", "status"),
        ("limit=0", "limit"),
        ("limit=1000", "limit"),
        ("since=yesterday", "since"),
        ("by=host", "by"),
    ],
)
async def test_what_cannot_be_asked_is_refused_with_its_field(query: str, field: str) -> None:
    async with serving(KEY) as (call, _):
        assert fields(problem(await call("GET", f"/v1/statistics?{query}"), 422, "invalid")) == [field]


async def test_a_time_of_too_many_points_is_refused() -> None:
    async with serving(KEY) as (call, _):
        query = "since=2025-01-01T00:00:00Z&until=2025-02-01T00:00:00Z&step=minute"
        document = problem(await call("GET", f"/v1/statistics?{query}"), 422, "invalid")
        assert fields(document) == ["step"]


async def test_without_a_history_the_answer_says_which_setting_helps() -> None:
    async with serving(KEY) as (call, _):
        document = problem(await call("GET", "/v1/statistics"), 409, "history-off")
        assert "history.store" in document["detail"]
