"""`dispatcher run --workers 2` against one process, each worker with the same share of a core. On a real Kafka.

There is one core for all of what is measured, so the kernel's CPU controller gives each worker four tenths of it, and the supervisor what is left. Kafka and
nginx have the other core. The history is off: of several workers only the first one keeps it, which would be measured along.

Rate and CPU are those of a window. It begins when every worker has delivered something and the group has settled, and ends when nine tenths of
all is delivered. CPU is that of the workers and the supervisor together.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from benchmarks.end_to_end import HOSTS, TOPIC, Daemon, Metrics, Wrong, events, kafka
from benchmarks.harness import (
    BODY_BYTES,
    CannotRun,
    Disturbance,
    Nginx,
    Sampler,
    Section,
    Table,
    crossing,
    median,
    one_digit,
    require,
    spread,
    two_digits,
    wait_for,
    wait_for_calm,
)
from benchmarks.scale import fill
from benchmarks.shares import PERIOD, CoreShare, core_share

WORKERS: Final = 2
_SHARE: Final = 0.4  # of a core, for each worker
_EVENTS: Final = 400_000
_SETTLED: Final = 0.02  # of all events, delivered by each worker before the window begins
_LOOKS: Final = 0.5  # seconds between two looks at /metrics
_WITHIN: Final = 300.0

# What two workers are held to, against one.
_RATE: Final = 1.8
_CPU: Final = 1.1


@dataclass(frozen=True)
class Seen:
    """What one run showed."""

    rate: float  # deliveries/s
    cpu: float  # seconds per delivery
    held: float  # the part of the periods in which the workers were held to their share, of the one that was least


def run(command: str, *, quick: bool, count: int | None = None, runs: int | None = None) -> Section:
    """One process and two workers, in turns."""
    require("nginx", "taskset")
    count = count or (100_000 if quick else _EVENTS)
    runs = runs or (1 if quick else 5)
    seen: dict[int, list[Seen]] = {1: [], WORKERS: []}
    disturbed = 0
    with kafka() as broker, tempfile.TemporaryDirectory(prefix="bench-") as name, Nginx(HOSTS) as endpoint:
        fill(broker, TOPIC, (message for _, message in events(count)))
        for number in range(runs):
            for workers in sorted(seen, reverse=bool(number % 2)):
                wait_for_calm(10.0)
                disturbance = Disturbance()
                folder = Path(name, f"{number}-{workers}")
                folder.mkdir()
                once = _measure(broker, endpoint, folder, workers, count)
                seen[workers].append(once)
                disturbed += disturbance.read()[0] > Disturbance.LIMIT
                print(
                    f"  {workers}: {once.rate:,.0f}/s, {once.cpu * 1e6:.1f} us, held in {once.held:.0%} of the periods",
                    flush=True,
                )
    return _told(Section("Workers", command), seen, count, disturbed)


def _told(section: Section, seen: dict[int, list[Seen]], count: int, disturbed: int) -> Section:
    one, more = seen[1], seen[WORKERS]
    rates = [two.rate / alone.rate for alone, two in zip(one, more, strict=True)]
    costs = [two.cpu / alone.cpu for alone, two in zip(one, more, strict=True)]
    table = Table(("", "one process", f"--workers {WORKERS}", "ratio", "wanted"))

    def row(what: str, cells: Sequence[str], ratios: Sequence[float], wanted: str, *, holds: bool) -> None:
        table.add(what, *cells, spread(ratios, two_digits), f"{wanted} {'✓' if holds else '✗ missed'}")

    row(
        "deliveries/s",
        [spread([each.rate for each in side]) for side in (one, more)],
        rates,
        f">= {_RATE:.2f}",
        holds=median(rates) >= _RATE,
    )
    row(
        "CPU per delivery, us",
        [spread([each.cpu * 1e6 for each in side], one_digit) for side in (one, more)],
        costs,
        f"<= {_CPU:.2f}",
        holds=median(costs) <= _CPU,
    )
    section.add(table)
    section.add(
        f"{count:,} events of {BODY_BYTES} bytes, {len(one)} runs in turns. Each worker has {_SHARE:.0%} of one core (CPU controller, "
        f"{PERIOD // 1000} ms periods) and was held to it in {min(each.held for each in (*one, *more)):.0%} of the periods at least."
    )
    if disturbed:
        section.add(f"Other processes disturbed {disturbed} of {2 * len(one)} runs.")
    return section


def _measure(broker: str, endpoint: Nginx, folder: Path, workers: int, count: int) -> Seen:
    options = ["--workers", str(workers)] if workers > 1 else []
    daemon = Daemon(broker, endpoint, folder, options=options, history={"store": "off"})
    looks: list[tuple[float, float]] = []  # when, and what all have delivered by then
    begin: float | None = None
    with contextlib.ExitStack() as stack:
        shares = [stack.enter_context(core_share(_SHARE)) for _ in range(workers)]
        child = stack.enter_context(daemon.started(() if workers > 1 else shares[0].prefix))
        pids = [child.pid]
        if workers > 1:
            pids += _admitted(daemon, shares)
        usage = [stack.enter_context(Sampler(pid)) for pid in pids]

        def done() -> bool:
            nonlocal begin
            time.sleep(_LOOKS)
            if child.poll() is not None:
                raise Wrong(f"the daemon ended with {child.returncode}")
            with contextlib.suppress(OSError):  # not listening yet
                look = daemon.scrape()
                each = delivered(look, workers)
                looks.append((look.at, sum(each)))
                if begin is None and min(each) >= _SETTLED * count:
                    begin = look.at
            return bool(looks) and looks[-1][1] >= count

        wait_for(done, _WITHIN, "everything is delivered")
        held = min(share.throttled() for share in shares)
    if begin is None:
        raise CannotRun(
            f"one worker had delivered most of {count:,} events before the others began: take more"
        )
    over = crossing([(amount, at) for at, amount in looks], 0.9 * count)
    amount = 0.9 * count - crossing(looks, begin)
    if amount < 0.2 * count:
        raise CannotRun(f"{count:,} events are too few: the workers had settled after {count - amount:,.0f}")
    cpu = sum(each.cpu_between(begin, over) for each in usage)
    return Seen(amount / (over - begin), cpu / amount, held)


def _admitted(daemon: Daemon, shares: Sequence[CoreShare]) -> list[int]:
    """Give each worker its share as soon as it is started; their processes."""
    pids: dict[int, int] = {}

    def all_started() -> bool:
        for line in daemon.log.read_text().splitlines():
            told = orjson.loads(line) if "worker started" in line else {}
            if told and told["worker"] not in pids:
                shares[told["worker"] - 1].admit(told["pid"])
                pids[told["worker"]] = told["pid"]
        return len(pids) == len(shares)

    wait_for(all_started, 60.0, "every worker is started")
    return [pids[number] for number in sorted(pids)]


def delivered(look: Metrics, workers: int) -> list[float]:
    """How many each has delivered; one process alone has no number."""
    found = [0.0] * workers
    for name, value in look.starting("deliveries_total{").items():
        if 'outcome="delivered"' in name:
            number = re.search(r'worker="(\d+)"', name)
            found[int(number[1]) - 1 if number else 0] += value
    return found
