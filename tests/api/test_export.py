"""Lists as NDJSON and CSV: chosen by `Accept`, whole, and harmless in a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dispatcher.api import export
from dispatcher.api.export import comma_separated, wanted
from dispatcher.api.table import ROUTES
from dispatcher.history.base import LogPartition
from tests.api.real import keep, running
from tests.api.serving import KEY, problem, serving
from tests.history.records import attempt, batch, event

NOW = int(time.time() * 1000)
SEED = LogPartition("seed", "", 0)
(DELIVERIES,) = [route for route in ROUTES if route.operation == "listDeliveries"]
(HEALTH,) = [route for route in ROUTES if route.operation == "getSubscriptionHealth"]


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ((), None),
        (("*/*",), None),
        (("application/json",), None),
        (("text/html",), None),
        (("text/csv",), "text/csv"),
        (("Text/CSV;header=present",), "text/csv"),
        (("application/x-ndjson",), "application/x-ndjson"),
        (("application/x-ndjson, */*;q=0.5",), "application/x-ndjson"),
        (("text/csv;q=0.5, application/json",), None),
        (("text/csv;q=0.5", "application/x-ndjson;q=0.7"), "application/x-ndjson"),
        (("text/csv;q=0",), None),
        (("text/csv;q=much",), None),
    ],
)
def test_what_is_asked_for_is_what_weighs_most(accept: tuple[str, ...], media: str | None) -> None:
    assert wanted(DELIVERIES, accept) == media
    assert wanted(HEALTH, accept) is None


def test_no_cell_is_a_formula_and_what_is_nested_has_columns_of_its_own() -> None:
    rows = [
        {"id": "=1+1", "source": {"topic": "events", "offset": 3}, "ok": True, "types": ["a", "b"]},
        {"id": '@"x",\n', "source": {"topic": "-", "offset": None}, "count": -5},
    ]
    read = list(csv.DictReader(io.StringIO(comma_separated(rows).decode(), newline="")))
    assert read == [
        {
            "id": "'=1+1",
            "source.topic": "events",
            "source.offset": "3",
            "ok": "true",
            "types": '["a","b"]',
            "count": "",
        },
        {
            "id": '\'@"x",\n',
            "source.topic": "'-",
            "source.offset": "",
            "ok": "",
            "types": "",
            "count": "-5",
        },
    ]


async def test_an_export_has_all_pages_as_far_as_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, KEY) as (call, app):
        assert app._history is not None
        records = [attempt(at, at, time_ms=NOW - at) for at in range(7)]
        events = [event(at, time_ms=NOW - at) for at in range(3)]
        await keep(
            app._history.store,
            batch(records, None, 7, partition=SEED),
            batch([], None, 7, partition=SEED._replace(partition=1), events=events),
        )
        lines = await call("GET", "/v1/deliveries?limit=2", headers={"Accept": "application/x-ndjson"})
        assert lines.headers["Content-Type"] == "application/x-ndjson"
        assert [json.loads(line)["event_id"] for line in lines.body.splitlines()] == [
            f"evt_{at}" for at in range(7)
        ]
        assert "X-Next-Cursor" not in lines.headers
        assert (lines.headers["X-Gaps"], bool(lines.headers["X-As-Of"])) == ("0", True)
        table = await call("GET", "/v1/events", headers={"Accept": "text/csv"})
        assert table.headers["Content-Type"] == "text/csv; charset=utf-8"
        read = list(csv.DictReader(io.StringIO(table.body.decode(), newline="")))
        assert [(row["id"], row["source.offset"]) for row in read] == [
            (f"evt_{at}", str(at)) for at in range(3)
        ]
        monkeypatch.setattr(export, "MOST", 3)
        lines = await call("GET", "/v1/deliveries?limit=2", headers={"Accept": "application/x-ndjson"})
        assert len(lines.body.splitlines()) == 4
        cursor = lines.headers["X-Next-Cursor"]
        rest = await call(
            "GET", f"/v1/deliveries?limit=2&cursor={cursor}", headers={"Accept": "application/x-ndjson"}
        )
        assert [json.loads(line)["event_id"] for line in rest.body.splitlines()] == [
            "evt_4",
            "evt_5",
            "evt_6",
        ]


@pytest.mark.parametrize(
    ("media", "writer"), [("text/csv", "comma_separated"), ("application/x-ndjson", "ndjson")]
)
async def test_ten_thousand_rows_are_not_written_on_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, media: str, writer: str
) -> None:
    write = getattr(export, writer)
    threads = []

    def noted(rows: Sequence[Mapping[str, Any]]) -> bytes:
        threads.append(threading.current_thread())
        written: bytes = write(rows)
        return written

    monkeypatch.setattr(export, writer, noted)
    async with running(tmp_path, KEY) as (call, _):
        assert (await call("GET", "/v1/deliveries", headers={"Accept": media})).status == 200
    assert threads
    assert threading.main_thread() not in threads


async def test_what_is_wrong_is_a_problem_all_the_same() -> None:
    async with serving(KEY) as (call, _):
        problem(await call("GET", "/v1/deliveries", headers={"Accept": "text/csv"}), 409, "history-off")
        problem(await call("GET", "/v1/deliveries?limit=0", headers={"Accept": "text/csv"}), 422, "invalid")
