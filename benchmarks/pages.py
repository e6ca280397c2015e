"""How heavy the console is: `python -m benchmarks pages --folder DIR`, in Chromium.

A history of ten million deliveries is generated into SQLite's files of days and served by the daemon. Then:

- how long the overview takes until it can be used, and until its numbers are there, with the CPU slowed down fourfold;
- the longest task of the page's main thread while a list of 1,000 rows is scrolled, by the browser's own trace; with the CPU slowed down, too.

Generating takes minutes. With `--folder` the history is kept there, and used again while it is of this day and has as many rows.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from playwright.sync_api import Browser, Page

from benchmarks.harness import CannotRun, Section, Table, median, spread
from dispatcher.core.text.times import rfc3339
from dispatcher.history.base import BUCKETS, COUNTED, FAILURE_CODES, LATENCY_BOUNDS_MS, DeliveryState
from dispatcher.history.sqlite.day_file import DayFile
from tests.web.browser import browser, chromium, opened, settled
from tests.web.stage import Stage

TITLE: Final = "Pages"
ROWS: Final = 10_000_000
SLOWER: Final = 4
LISTED: Final = 1000

_DAYS: Final = 10
_SUBSCRIPTIONS: Final = 200
_DAY_MS: Final = 86_400_000
_USABLE_MS: Final = 1000.0  # goal
_TASK_MS: Final = 50.0  # goal
_WHEEL: Final = 100  # turns of the wheel
_STEP: Final = 400  # pixels of each

# Ordinary numbers of a delivery from its own number, so that a run can be repeated. `i` is the number within the day.
_MIXED: Final = "((i * 2654435761) % 4294967296)"
_STATE: Final = (
    f"CASE WHEN {_MIXED} % 1000 < 12 THEN {DeliveryState.DEAD:d} WHEN {_MIXED} % 1000 < 18 THEN {DeliveryState.RETRYING:d}"
    f" WHEN {_MIXED} % 1000 < 20 THEN {DeliveryState.DROPPED:d} ELSE {DeliveryState.DELIVERED:d} END"
)
_DELIVERIES: Final = f"""
WITH RECURSIVE numbers (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM numbers WHERE i + 1 < :rows),
  made AS (SELECT i, {_MIXED} AS mixed, :since + i * :span / :rows AS created, {_STATE} AS state FROM numbers),
  told AS (SELECT *, mixed / 7 % {_SUBSCRIPTIONS} AS which, 4 + mixed / 11 % 90 + (mixed % 100 = 0) * 2000 AS took,
    CASE WHEN state = {DeliveryState.DELIVERED:d} THEN 200 WHEN mixed % 3 = 0 THEN NULL WHEN mixed % 2 = 0 THEN 503 ELSE 422 END AS status FROM made)
INSERT INTO history_deliveries (delivery_id, created_ms, event_id, event_type, tenant, subscription_id, topic, partition, source_offset,
  generation, state, reason, attempts, last_ms, last_attempt, status, failure, total_ms, due_ms, host, first)
SELECT lower(hex(randomblob(12))), created, 'evt_' || :day || '_' || i, 'invoice.type_' || (which % 20), 'tenant-' || (which % 50), 'sub_' || which,
  'events', i % 8, i / 8, 1, state,
  CASE state WHEN {DeliveryState.DEAD:d} THEN 'exhausted' WHEN {DeliveryState.DROPPED:d} THEN 'cancelled' END, 1, created + 3, 1, status,
  CASE WHEN status IS NULL THEN 'timeout' END, took, CASE WHEN state = {DeliveryState.RETRYING:d} THEN created + 3600000 END,
  'hooks-' || which || '.example.com',
  printf('{{"attempt":1,"time_ms":%d,"decision":"%s","queue_ms":3,"total_ms":%d,"replica":"dispatcher-0:1","path":"/hook"}}',
    created, CASE state WHEN {DeliveryState.DELIVERED:d} THEN 'delivered' ELSE 'retry' END, took)
FROM told
"""


def _counts() -> str:
    """The minutes' counts of the deliveries that were made."""
    bounds = (0, *LATENCY_BOUNDS_MS)
    buckets = [f"sum(total_ms > {low} AND total_ms <= {high})" for low, high in itertools.pairwise(bounds)]
    buckets.append(f"sum(total_ms > {LATENCY_BOUNDS_MS[-1]})")
    sums = {
        "attempts": "count(*)",
        "delivered": f"sum(state = {DeliveryState.DELIVERED:d})",
        "failed": f"sum(state <> {DeliveryState.DELIVERED:d})",
        "dead": f"sum(state = {DeliveryState.DEAD:d})",
        "dropped": f"sum(state = {DeliveryState.DROPPED:d})",
        "parked": "0",
        "total_ms": "sum(total_ms)",
        "late_ms": "sum(total_ms)",
        "late_count": "count(*)",
    }
    values = ", ".join([*(sums[name] for name in COUNTED), *buckets])
    return (
        f"INSERT INTO history_counts (minute_ms, tenant, subscription_id, event_type, host, status, {', '.join((*COUNTED, *BUCKETS))})"
        " SELECT created_ms / 60000 * 60000 AS minute, tenant, subscription_id, event_type, host, "
        f" coalesce(status, {FAILURE_CODES['timeout']}) AS answer,"
        f" {values} FROM history_deliveries GROUP BY minute, tenant, subscription_id, event_type, host, answer"
    )


def generate(directory: Path, rows: int, now_ms: int) -> int:
    """A history of the days before `now_ms`, so many deliveries in all; the end of its time is returned. One of this day stays, and is
    gone on with where it isn't complete.
    """
    directory.mkdir(parents=True, exist_ok=True)
    today = now_ms // _DAY_MS
    note = directory / "generated.json"
    done: list[int] = []
    if note.exists():
        made = json.loads(note.read_text())
        if made["rows"] == rows and made["until"] // _DAY_MS == today:
            now_ms, done = made["until"], made["done"]
    began = now_ms - _DAYS * _DAY_MS
    edges = [began, *(day * _DAY_MS for day in range(began // _DAY_MS + 1, today + 1)), now_ms]
    days = {_day_name(since // _DAY_MS) for since in edges[:-1] if since // _DAY_MS in done}
    for path in directory.iterdir():
        if path.name.partition(".")[0] not in days:
            path.unlink()
    for since, until in itertools.pairwise(edges):
        share = rows * (until - since) // (now_ms - began)
        if share and since // _DAY_MS not in done:
            _generate_day(directory, since, until, share)
            done.append(since // _DAY_MS)
        note.write_text(json.dumps({"rows": rows, "until": now_ms, "done": done}))
    return now_ms


def _day_name(day: int) -> str:
    return datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m-%d")


def _generate_day(directory: Path, since: int, until: int, rows: int) -> None:
    day = since // _DAY_MS
    name = _day_name(day)
    file = DayFile(directory, day, name, sqlite3.connect)
    file.load()
    file.close()
    began = time.monotonic()
    database = sqlite3.connect(file.path, isolation_level=None)
    with contextlib.closing(database):
        # What is cut short is made anew.
        database.execute("PRAGMA journal_mode = OFF")
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA cache_size = -400000")
        database.execute("PRAGMA temp_store = MEMORY")
        # An index that is made of what is there takes a fraction of one that grows with it.
        indexes = database.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'history_deliveries' AND sql IS NOT NULL"
        ).fetchall()
        database.execute("BEGIN")
        for index, _ in indexes:
            database.execute(f"DROP INDEX {index}")
        database.execute(
            _DELIVERIES, {"rows": rows, "since": since, "span": until - since, "day": name.replace("-", "")}
        )
        database.execute(_counts())
        for _, sql in indexes:
            database.execute(sql)
        database.execute("COMMIT")
        database.execute("ANALYZE")
    print(f"  {name}: {rows:,} deliveries in {time.monotonic() - began:.0f} s", flush=True)


class _Loaded(NamedTuple):
    usable: float  # milliseconds since the navigation until the frame and the pages' links are there
    complete: float  # until no panel loads any more
    longest: float  # task of the main thread until then


# Put into the page before anything of its own: notes when what is waited for is there. A frame is waited for after it, so that it can be seen.
_NOTE: Final = """
(() => {
  const seen = window.seen = {usable: 0, complete: 0, longest: 0};
  new PerformanceObserver((list) => {
    for (const each of list.getEntries()) if (!seen.complete) seen.longest = Math.max(seen.longest, each.duration);
  }).observe({type: "longtask", buffered: true});
  const look = () => {
    if (!seen.usable && document.querySelector("#navigation a")) requestAnimationFrame(() => (seen.usable ||= performance.now()));
    if (!seen.complete && document.querySelector("main .number") && !document.querySelector("[aria-busy=true], .skeleton"))
      requestAnimationFrame(() => (seen.complete ||= performance.now()));
  };
  new MutationObserver(look).observe(document, {subtree: true, childList: true, attributes: true});
})();
"""


def _slow(page: Page) -> None:
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})


def load_overview(window: Browser, url: str, query: str) -> _Loaded:
    """Open the overview with an empty cache on a slow CPU."""
    with opened(window, "about:blank") as (page, _):
        _slow(page)
        page.add_init_script(_NOTE)
        page.goto(f"{url}/console/?{query}")
        page.wait_for_function("() => window.seen.complete > 0", timeout=120_000)
        seen = page.evaluate("() => window.seen")
    loaded = _Loaded(seen["usable"], seen["complete"], seen["longest"])
    print(f"  {loaded}", flush=True)
    return loaded


class Scrolled(NamedTuple):
    """The main thread while a list was scrolled: tasks, and milliseconds of the longest one, by the clock and of CPU."""

    rows: int
    tasks: int
    longest: float
    longest_cpu: float


def scroll(window: Browser, url: str, query: str, *, slow: bool) -> Scrolled:
    """Scroll a list of `LISTED` rows from its top to its end under the browser's trace; `slow`: on a slow CPU."""
    with opened(window, f"{url}/console/deliveries?limit={LISTED}&{query}") as (page, _):
        settled(page)
        page.locator("tr.row").nth(LISTED - 1).wait_for(state="attached", timeout=120_000)
        rows = page.locator("tr.row").count()
        if slow:
            _slow(page)
        page.mouse.move(600, 500)
        page.mouse.wheel(0, 1)
        page.wait_for_timeout(500)
        window.start_tracing(
            page=page, categories=["toplevel", "devtools.timeline", "disabled-by-default-devtools.timeline"]
        )
        for _ in range(_WHEEL):
            page.mouse.wheel(0, _STEP)
            page.wait_for_timeout(16)
        trace = window.stop_tracing()
    scrolled = Scrolled(rows, *longest_task(json.loads(trace)["traceEvents"]))
    print(f"  {scrolled}", flush=True)
    return scrolled


def longest_task(events: list[dict[str, Any]]) -> tuple[int, float, float]:
    """Of a trace: how many tasks the page's main thread had, and the milliseconds of the longest, by the clock and of CPU."""
    mains = {
        (event["pid"], event["tid"])
        for event in events
        if event.get("name") == "thread_name" and event["args"].get("name") == "CrRendererMain"
    }
    tasks = [
        event
        for event in events
        if event.get("ph") == "X"
        and event.get("name", "").endswith("RunTask")
        and (event["pid"], event["tid"]) in mains
    ]
    if not tasks:
        raise CannotRun("the browser's trace has no tasks")
    return (
        len(tasks),
        max(task["dur"] for task in tasks) / 1000,
        max(task.get("tdur", task["dur"]) for task in tasks) / 1000,
    )


def run(command: str, *, rows: int | None, folder: Path | None, runs: int | None, quick: bool) -> Section:
    """Generate, serve, and look."""
    if chromium() is None:
        raise CannotRun("needs Chromium on the path")
    os.sched_setaffinity(0, range(os.cpu_count() or 1))  # a browser has several processes
    rows = rows or (100_000 if quick else ROWS)
    runs = runs or (1 if quick else 5)
    section = Section(TITLE, command)
    table = Table(("", "measured", "goal", ""))
    with _folder(folder) as kept, tempfile.TemporaryDirectory(prefix="bench-pages-") as own:
        until = generate(kept, rows, int(time.time() * 1000))
        hour = f"since={_time(until - 3_600_000)}&until={_time(until)}"
        all_days = f"since={_time(until - _DAYS * _DAY_MS)}&until={_time(until)}"
        with (
            Stage(Path(own), history={"directory": str(kept), "events": False}) as stage,
            browser() as window,
        ):
            for number in range(_SUBSCRIPTIONS):
                stage.subscribe(f"sub_{number}", "/well", ["none.*"], tenant=f"tenant-{number % 50}")
            # What the daemon reads for the first time is no browser's business.
            load_overview(window, stage.url, hour)
            loads = [load_overview(window, stage.url, hour) for _ in range(runs)]
            scrolls = {
                (name, slow): [
                    scroll(window, stage.url, f"{query}&{all_days}", slow=slow) for _ in range(runs)
                ]
                for name, query in {"of all states": "", "that failed": "state=failed"}.items()
                for slow in (False, True)
            }
    for name, values, goal in (
        ("overview until its links can be used, ms", [each.usable for each in loads], _USABLE_MS),
        ("overview until every panel is there, ms", [each.complete for each in loads], _USABLE_MS),
    ):
        table.add(name, spread(values), f"<= {goal:,.0f}", _verdict(values, goal))
    table.add("longest task while it loads, ms", spread([each.longest for each in loads]), "", "")
    for (name, slow), found in scrolls.items():
        for how, values in (
            ("", [each.longest for each in found]),
            (", CPU", [each.longest_cpu for each in found]),
        ):
            table.add(
                f"scrolling {found[0].rows:,} rows {name}{', slowed down' if slow else ''}: longest task, ms{how}",
                spread(values, lambda value: f"{value:.1f}"),
                "" if slow else f"<= {_TASK_MS:.0f}",
                "" if slow else _verdict(values, _TASK_MS),
            )
    section.add(table)
    section.add(
        f"{rows:,} deliveries of {_SUBSCRIPTIONS} subscriptions over {_DAYS} days in SQLite. Chromium, empty cache, the CPU slowed down {SLOWER} times for the overview and where it says so,"
        f" {runs} runs. A task by the clock holds what other processes took of the cores meanwhile; one of CPU doesn't."
    )
    return section


def _time(milliseconds: int) -> str:
    return str(rfc3339(milliseconds))


def _verdict(values: list[float], goal: float) -> str:
    return "✓" if median(values) <= goal else "✗"


@contextlib.contextmanager
def _folder(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield folder.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="bench-history-") as made:
        yield Path(made)
