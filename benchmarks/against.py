"""What a delivery costs here and in another revision, run by run in turns: `python -m benchmarks against --base REV`.

Rates on these machines drift by a fifth within minutes, and identical builds differ by some per cent from run to run. So each round
runs both, in an order that changes from round to round, and what is told is the median of the rounds' ratios of CPU per delivery.

Where even a run is too long for the machine to stay the same, `--slices N` tells more: both daemons are there at a time, each with its own backlog, and run in
turns of a second, the other one stopped meanwhile. What is told is the median of the ratios of N pairs, with its standard error.
"""

from __future__ import annotations

import contextlib
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from benchmarks.end_to_end import HOSTS, PARTITIONS, TOPIC, Daemon, Wrong, events, kafka
from benchmarks.harness import (
    BODY_BYTES,
    ROOT,
    CannotRun,
    Disturbance,
    Nginx,
    Section,
    Table,
    envelope,
    median,
    one_digit,
    require,
    revision,
    spread,
    wait_for,
    wait_for_calm,
)
from benchmarks.scale import addresses, fill, subscription_for
from dispatcher.broker.base import Message

_FAN_OUT: Final = 10
_MANY: Final = 100_000  # subscriptions
_HOSTS: Final = 10_000
_ROUNDS: Final = 8
_SLICED: Final = 1_000_000  # events, for some 90 pairs of slices
_SLICE: Final = 0.6  # seconds
_WAKING: Final = 0.25  # seconds that a daemon has before each of its slices
_READY: Final = 300.0  # seconds until the first deliveries
CASES: Final = ("plain", "fan-out", "subscriptions", "hosts", "embedded")

Made = Callable[[str | None, Path], Daemon]
"""A daemon of a site (None: this checkout's), with files of its own in a folder."""


@contextlib.contextmanager
def _case(name: str, broker: str, count: int, *, quick: bool) -> Iterator[tuple[Made, int]]:
    """How to make a daemon of a case, and what it delivers; the topic is filled."""
    many, hosts = (number // 10 if quick else number for number in (_MANY, _HOSTS))
    topic = f"bench-against-{name}"

    def each(width: int, number: int) -> Iterator[Message]:
        for n in range(number):
            body = envelope(n, BODY_BYTES, "order.paid", f"tenant-{n * 7919 % width}")[1]
            yield Message(topic, body, partition=n % PARTITIONS)

    match name:
        case "plain" | "embedded":
            fill(broker, TOPIC, (message for _, message in events(count)))
            with Nginx(HOSTS) as endpoint:
                yield lambda site, folder: Daemon(broker, endpoint, folder, site=site), count
        case "fan-out":
            fill(
                broker,
                topic,
                (
                    Message(topic, envelope(n, BODY_BYTES, "fan.out", "wide")[1], partition=n % PARTITIONS)
                    for n in range(count // _FAN_OUT)
                ),
            )
            with Nginx(HOSTS) as endpoint:
                wanted = [
                    subscription_for(n, HOSTS[n % len(HOSTS)], endpoint.port, "wide", "fan.*")
                    for n in range(_FAN_OUT)
                ]
                yield (
                    lambda site, folder: Daemon(
                        broker, endpoint, folder, topic=topic, subscriptions=wanted, site=site
                    ),
                    count // _FAN_OUT * _FAN_OUT,
                )
        case "subscriptions":
            often = max(count, many * 5)
            fill(broker, topic, each(many, often))
            with Nginx(HOSTS) as endpoint:
                wanted = [
                    subscription_for(n, HOSTS[n % len(HOSTS)], endpoint.port, f"tenant-{n}", "order.*")
                    for n in range(many)
                ]
                yield (
                    lambda site, folder: Daemon(
                        broker,
                        endpoint,
                        folder,
                        topic=topic,
                        subscriptions=wanted,
                        ready=300.0,
                        warm=0.24,
                        site=site,
                    ),
                    often,
                )
        case _:
            fill(broker, topic, each(hosts, count))
            far = addresses(hosts)
            with Nginx(far) as endpoint:
                wanted = [
                    subscription_for(n, host, endpoint.port, f"tenant-{n}", "order.*")
                    for n, host in enumerate(far)
                ]
                yield (
                    lambda site, folder: Daemon(
                        broker,
                        endpoint,
                        folder,
                        topic=topic,
                        subscriptions=wanted,
                        delivery={"connections_per_host": 1},
                        ready=120.0,
                        warm=1.2 * hosts / count,
                        site=site,
                    ),
                    count,
                )


def run(
    command: str,
    *,
    base: str,
    cases: tuple[str, ...] = CASES,
    quick: bool,
    compiled: bool,
    history: bool = False,
    count: int | None = None,
    runs: int | None = None,
    slices: int = 0,
) -> Section:
    """Each case of `cases`, in this checkout and in the revision `base`. `history`: with the history in the same process, as is the default.

    With `slices`, so many pairs of them instead of rounds.
    """
    require("nginx", "taskset", "git", "tar")
    if slices and "embedded" in cases:
        raise CannotRun("embedded: one process has the log at a time, so two can't run in slices")
    count = count or (20_000 if quick else _SLICED if slices else 200_000)
    rounds = runs or (2 if quick else _ROUNDS)
    section = Section(f"Against {base}", command)
    table = Table(("us of CPU a delivery", "here", base, "ratio by round", "median"))
    with revision(base, compiled=compiled) as site, tempfile.TemporaryDirectory(prefix="bench-") as name:
        for case in cases:
            with contextlib.ExitStack() as held:
                broker = f"sqlite:///{name}/log.db" if case == "embedded" else held.enter_context(kafka())
                make, expected = held.enter_context(_case(case, broker, count, quick=quick))
                sides: dict[str, Daemon] = {}
                for side, package in (("here", None), ("base", site)):
                    folder = Path(name, f"{case}-{side}")
                    folder.mkdir()
                    sides[side] = make(package, folder)
                    if not history and Path(package or ROOT, "dispatcher", "history").exists():
                        sides[side].configure(history={"store": "off"})
                if slices:
                    seen = _in_slices(sides, expected, slices)
                    table.add(case, *_told_of_slices(seen["here"], seen["base"]))
                    continue
                seen = {side: [] for side in sides}
                disturbed = 0
                for number in range(rounds):
                    for side in sorted(sides, reverse=bool(number % 2)):
                        wait_for_calm(10.0)
                        disturbance = Disturbance()
                        seen[side].append(sides[side].run(expected).cpu * 1e6)
                        disturbed += disturbance.read()[0] > Disturbance.LIMIT
                    print(f"  {case}: {seen['here'][-1]:.2f}, {seen['base'][-1]:.2f} us", flush=True)
            ratios = [here / there for here, there in zip(seen["here"], seen["base"], strict=True)]
            table.add(
                case,
                spread(seen["here"], one_digit),
                spread(seen["base"], one_digit),
                spread(ratios, lambda value: f"{value:.3f}"),
                f"{median(ratios):.3f}",
            )
            if disturbed:
                section.add(f"{case}: other processes disturbed {disturbed} of {2 * rounds} runs.")
    section.parts.insert(0, table)
    section.add(
        f"{f'{slices} pairs of slices' if slices else f'{rounds} rounds'} of each case, {count:,} events (many subscriptions: five for each), "
        f"{'with' if history else 'without'} the history where the revision has one."
    )
    return section


def _in_slices(sides: dict[str, Daemon], expected: int, pairs: int) -> dict[str, list[float]]:
    """CPU a delivery in microseconds, by slice, of daemons of which one runs at a time; fewer pairs where the backlog ends before."""
    seen: dict[str, list[float]] = {side: [] for side in sides}
    children: dict[str, subprocess.Popen[bytes]] = {}
    with contextlib.ExitStack() as running:
        for side, daemon in sides.items():
            child = children[side] = running.enter_context(daemon.started())
            # Before the daemon is ended: one that is stopped doesn't end.
            running.callback(child.send_signal, signal.SIGCONT)
            wait_for(lambda daemon=daemon: _begun(daemon, 0.01 * expected), _READY, "deliveries begin")  # type: ignore[misc]
            child.send_signal(signal.SIGSTOP)
        for number in range(pairs):
            pair = {}
            for side in sorted(sides, reverse=bool(number % 2)):
                child = children[side]
                child.send_signal(signal.SIGCONT)
                time.sleep(_WAKING)
                before, cpu = sides[side].scrape().delivered, _scheduled(child.pid)
                time.sleep(_SLICE)
                after, until = sides[side].scrape().delivered, _scheduled(child.pid)
                child.send_signal(signal.SIGSTOP)
                if after > 0.97 * expected:
                    return seen
                if after <= before:
                    raise Wrong(f"nothing was delivered:\n{sides[side].log.read_text()[-2000:]}")
                pair[side] = (until - cpu) / (after - before) * 1e6
            for side, cost in pair.items():
                seen[side].append(cost)
            print(f"  {pair['here']:.1f}, {pair['base']:.1f} us", flush=True)
    return seen


def _begun(daemon: Daemon, deliveries: float) -> bool:
    with contextlib.suppress(OSError):
        return daemon.scrape().delivered > deliveries
    return False  # it doesn't listen yet


def _scheduled(pid: int) -> float:
    """Seconds of CPU that a process has had, in all threads that it has. Finer than its times in `stat`, which are hundredths."""
    return (
        sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9
    )


def _told_of_slices(here: list[float], base: list[float]) -> tuple[str, str, str, str]:
    """The table's columns: quartiles of both sides and of their ratios, and the median ratio with its standard error."""
    if len(here) < 4:
        raise CannotRun("the backlog was at its end after less than four pairs of slices: give more --events")
    ratios = [one / other for one, other in zip(here, base, strict=True)]

    def quartiles(values: list[float], digits: int) -> str:
        low, middle, high = statistics.quantiles(values, n=4)
        return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    error = 1.253 * statistics.stdev(ratios) / len(ratios) ** 0.5  # of a median of what is normal
    return (
        quartiles(here, 1),
        quartiles(base, 1),
        f"{quartiles(ratios, 3)}, {len(ratios)} pairs",
        f"{median(ratios):.3f} ± {error:.3f}",
    )
