"""`python -m tests.torture --seeds 1-20`: the schedules, what they came to, and a table."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
import tempfile
import time
from pathlib import Path

import structlog

from tests.kafka.server import Unavailable
from tests.postgres import server as postgresql
from tests.torture.harness import Ground, Report, kafka_ground, torture
from tests.torture.schedule import (
    Schedule,
    drawn,
    plan,
    plan_embedded,
    plan_quiet,
    plan_replicated,
    seeds_of,
    with_traits,
)
from tests.torture.store import HistoryServer
from tests.torture.traits import Trait, fit


def _traits(text: str) -> frozenset[Trait] | None:
    """None: those that each seed draws."""
    if text == "drawn":
        return None
    try:
        traits = frozenset(Trait(name) for name in text.split(",") if text != "none")
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; there are {', '.join(Trait)}") from None
    if not fit(traits):
        raise argparse.ArgumentTypeError(f"{text} exclude each other")
    return traits


def _schedule(arguments: argparse.Namespace, seed: int) -> Schedule:
    if arguments.broker == "sqlite":
        schedule = plan_embedded(seed, rounds=arguments.rounds, rate=arguments.rate)
    elif arguments.quiet:
        schedule = plan_quiet(seed, length=arguments.length, rate=arguments.rate)
    else:
        make = {"replicated": plan_replicated}.get(arguments.broker, plan)
        schedule = make(seed, length=arguments.length, rate=arguments.rate)
    if arguments.traits is None:
        return drawn(schedule, arguments.broker)
    return with_traits(schedule, arguments.traits) if arguments.traits else schedule


async def _run(arguments: argparse.Namespace, folder: Path) -> list[Report]:
    reports: list[Report] = []
    begin = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        ground: Ground | None = None
        if arguments.broker != "sqlite":
            replicated = arguments.broker == "replicated"
            ground = await stack.enter_async_context(kafka_ground(replicated=replicated))
        store: HistoryServer | None = None
        if arguments.history == "postgresql":
            store = await stack.enter_async_context(HistoryServer())
        for seed in arguments.seeds:
            if arguments.minutes and time.monotonic() - begin > arguments.minutes * 60:
                print(f"out of time before seed {seed}", flush=True)
                break
            schedule = _schedule(arguments, seed)
            print(f"seed {seed}: {schedule}", flush=True)
            try:
                report = await torture(schedule, folder, ground, store=store)
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError):
                    raise
                report = Report(arguments.broker, schedule, findings=[f"the harness failed: {error!r}"])
                logging.getLogger(__name__).exception("seed %d", seed)
            reports.append(report)
            if arguments.report is not None:
                with arguments.report.open("ab") as file:  # several runs may append to one
                    file.write(report.line())
            print(report, flush=True)
            for note in report.notes:
                print(f"  note: {note}", flush=True)
            for finding in report.findings:
                print(f"  FINDING seed {seed}: {finding}", flush=True)
    return reports


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seeds", type=seeds_of, default=seeds_of("1-20"), help="such as 1-20 or 3,7,11-13")
    parser.add_argument("--broker", choices=("kafka", "replicated", "sqlite"), default="kafka")
    parser.add_argument("--length", type=float, default=20.0, help="seconds of faults (kafka)")
    parser.add_argument("--rounds", type=int, default=6, help="lives of the daemon (sqlite)")
    parser.add_argument("--rate", type=float, default=60.0, help="events a second, each owed four times")
    parser.add_argument(
        "--traits",
        type=_traits,
        default="none",
        help=f"none, drawn (by each seed), or of {', '.join(Trait)} (several: a,b)",
    )
    parser.add_argument(
        "--history",
        choices=("sqlite", "postgresql"),
        default="sqlite",
        help="where the daemons keep their history; PostgreSQL is killed once in each run",
    )
    parser.add_argument("--quiet", action="store_true", help="no fault: what the numbers are compared with")
    parser.add_argument(
        "--report", type=Path, help="append a line of JSON for each seed: see tests.torture.totals"
    )
    parser.add_argument("--minutes", type=float, help="begin no seed after this long")
    arguments = parser.parse_args()
    # Ctrl-C, also from a shell that starts it in the background, and SIGTERM: leave no broker and no daemon behind.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    # Of the harness's own client: it complains of every broker that is killed.
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    folder = Path(tempfile.mkdtemp(prefix="dispatcher-torture-"))
    try:
        reports = asyncio.run(_run(arguments, folder))
    except Unavailable as error:
        print(f"Kafka can't be started: {error}", file=sys.stderr)
        return 1
    except postgresql.Unavailable as error:
        print(f"PostgreSQL can't be started: {error}", file=sys.stderr)
        return 1
    print(f"\n{Report.HEAD}")
    for report in reports:
        print(report)
    findings = sum(len(report.findings) for report in reports)
    lost = sum(report.lost for report in reports)
    duplicates = sum(report.duplicates for report in reports)
    print(
        f"\n{len(reports)} seeds, {lost} lost, {duplicates} duplicates, {findings} findings; logs in {folder}"
    )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
