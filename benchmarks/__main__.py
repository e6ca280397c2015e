"""`python -m benchmarks`: what `make bench` runs. Exit codes: 0 done, 1 the daemon did wrong, 2 can't be run here."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks import (
    against,
    bench_transport,
    control,
    end_to_end,
    history,
    isolation,
    micro,
    pages,
    restart,
    retries,
    scale,
    tenants,
    toggles,
    tracing,
    workers,
)
from benchmarks.harness import (
    CORES,
    RESULTS,
    CannotRun,
    Cores,
    Section,
    awake,
    compile_daemon,
    require,
    require_plots,
    use_python,
)

ALL = (
    "transport",
    "end-to-end",
    "end-to-end-tls",
    "embedded",
    "fan-out",
    "latency",
    "growth",
    "replicas",
    "workers",
    "isolation",
    "tenants",
    "memory",
    "retries",
    "restart",
    "control",
    "tracing",
    "micro",
    "matching",
)
LONG = ("soak", "history", "against", "toggles", "pages")  # only when asked for by name
_WITHOUT_DAEMON = {"transport", "micro", "matching", "toggles", "tracing", "pages"}
_PLOTTED = {"growth", "soak"}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the dispatcher beside wrk. Needs Linux, two cores, nginx, wrk, Java and Maven, and matplotlib for the plots.",
    )
    parser.add_argument(
        "what", nargs="*", default=["all"], metavar="WHAT", help=f"all, or some of {', '.join((*ALL, *LONG))}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small counts, one run: a smoke test; RESULTS.md stays"
    )
    parser.add_argument("--runs", type=int, help="measurements in turns with wrk (5)")
    parser.add_argument(
        "--pure", action="store_true", help="run the daemon uncompiled, not as the container image has it"
    )
    parser.add_argument(
        "--python", metavar="PATH", help="another interpreter of this version to run the daemon with"
    )
    parser.add_argument(
        "--minutes", type=float, help="of the soak (30); of `history`, of each load that lasts (10)"
    )
    parser.add_argument(
        "--part", action="append", choices=history.PARTS, help="of `history` (all); may be given repeatedly"
    )
    parser.add_argument(
        "--rows",
        type=int,
        help="of `history`, rows that are asked (30,000,000 in PostgreSQL, 5,000,000 in SQLite);"
        f" of `pages`, deliveries of the history that it looks at ({pages.ROWS:,})",
    )
    parser.add_argument(
        "--folder", type=Path, help="of `pages`: where the history is generated, kept, and used again"
    )
    parser.add_argument(
        "--base", metavar="REV", default="HEAD", help="the revision that `against` compares with (HEAD)"
    )
    parser.add_argument(
        "--case", action="append", choices=against.CASES, help="of `against` (all); may be given repeatedly"
    )
    parser.add_argument(
        "--history", action="store_true", help="leave the history on in `against`, where a revision has it"
    )
    parser.add_argument(
        "--slices",
        type=int,
        default=0,
        metavar="N",
        help="of `against`: pairs of slices of a second, instead of rounds",
    )
    parser.add_argument(
        "--toggle", action="append", metavar="TEXT", help="of `toggles`, those whose names contain it (all)"
    )
    parser.add_argument(
        "--counted",
        action="store_true",
        help="of `toggles`: count instructions and cache misses by callgrind instead of time",
    )
    parser.add_argument("--events", type=int, help=f"events of an end-to-end run ({end_to_end.EVENTS:,})")
    parser.add_argument(
        "--profile", action="store_true", help="one more run under py-spy: table and flame graph"
    )
    parser.add_argument(
        "--results", type=Path, help="the page to put the sections into (benchmarks/RESULTS.md)"
    )
    given = parser.parse_args()
    unknown = [what for what in given.what if what not in (*ALL, *LONG, "all")]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}: choose from all, {', '.join((*ALL, *LONG))}")
    for name in ("runs", "events", "rows"):
        value = getattr(given, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1")
    return given


def _sections(given: argparse.Namespace) -> Iterator[Callable[[], Section]]:
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    chosen = ALL if "all" in given.what else [what for what in (*ALL, *LONG) if what in given.what]
    end_to_end_options = {
        "quick": given.quick,
        "profile": given.profile,
        "count": given.events,
        "runs": given.runs,
    }
    load_options = {"quick": given.quick, "count": given.events, "runs": given.runs}
    for what in chosen:
        match what:
            case "end-to-end":
                yield lambda: end_to_end.run(command, **end_to_end_options)
            case "end-to-end-tls":
                yield lambda: end_to_end.run(command, **end_to_end_options, tls=True)
            case "fan-out":
                yield lambda: scale.run_fan_out(command, **load_options)
            case "latency":
                yield lambda: scale.run_latency(command, quick=given.quick, runs=given.runs)
            case "growth":
                yield lambda: scale.run_growth(command, **load_options)
            case "replicas":
                yield lambda: scale.run_replicas(command, **load_options)
            case "workers":
                yield lambda: workers.run(command, **load_options)
            case "isolation":
                yield lambda: isolation.run(command, **load_options)
            case "tenants":
                yield lambda: tenants.run(command, **load_options)
            case "memory":
                yield lambda: scale.run_memory(command, quick=given.quick)
            case "retries":
                yield lambda: retries.run(command, quick=given.quick)
            case "restart":
                yield lambda: restart.run(command, quick=given.quick, runs=given.runs)
            case "control":
                yield lambda: control.run(command, quick=given.quick)
            case "history":
                for part in history.PARTS:
                    if not given.part or part in given.part:
                        yield partial(
                            history.run,
                            command,
                            part,
                            rows=given.rows,
                            minutes=given.minutes,
                            **load_options,
                        )
            case "against":
                yield lambda: against.run(
                    command,
                    base=given.base,
                    cases=tuple(given.case or against.CASES),
                    compiled=not given.pure,
                    history=given.history,
                    slices=given.slices,
                    **load_options,
                )
            case "toggles" if given.counted:
                yield lambda: toggles.run_counted(
                    command,
                    quick=given.quick,
                    compiled=not given.pure,
                    names=given.toggle or (),
                    count=given.events,
                )
            case "toggles":
                yield lambda: toggles.run(
                    command, compiled=not given.pure, names=given.toggle or (), **load_options
                )
            case "tracing":
                yield lambda: tracing.run(command, compiled=not given.pure, **load_options)
            case "pages":
                yield lambda: pages.run(
                    command, rows=given.rows, folder=given.folder, runs=given.runs, quick=given.quick
                )
            case "soak":
                yield lambda: scale.run_soak(command, quick=given.quick, minutes=given.minutes)
            case "embedded":
                yield lambda: end_to_end.run_embedded(command, **end_to_end_options)
            case "transport":
                yield lambda: bench_transport.run(command, quick=given.quick, runs=given.runs)
            case "matching":
                yield lambda: micro.run_matching(command, quick=given.quick)
            case "micro":
                yield lambda: micro.run(command, quick=given.quick)


def main() -> int:
    given = _arguments()
    results = given.results or (None if given.quick else RESULTS)
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: what was started is ended
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        if not given.quick and not _PLOTTED.isdisjoint(ALL if "all" in given.what else given.what):
            require_plots()
        require("taskset")
        Cores.choose()
        # Everything here but what is measured belongs on the server's core; children inherit it.
        os.sched_setaffinity(0, {CORES.server})
        if given.python:
            use_python(given.python)
        if not given.pure and not {*given.what} <= _WITHOUT_DAEMON:
            print("compiling the daemon's hot path", flush=True)
            compile_daemon()
        with awake():
            for section in _sections(given):
                section().report(None if {*given.what} <= {"against", "toggles"} else results)
    except CannotRun as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except end_to_end.Wrong as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
