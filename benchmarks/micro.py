"""What each step of a delivery costs by itself: microseconds, on one core, without sockets.

The sum is a lower bound of the daemon's own time per delivery; what is missing from it are the
system calls, the event loop, and the broker's client. Each cleverness for speed has its line here,
so that its loss would show.
"""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from collections.abc import Callable

from benchmarks import bench_core, bench_engine
from benchmarks.harness import (
    CORES,
    NOW,
    SECRET,
    CannotRun,
    Section,
    Table,
    micros,
    on_core,
    per_call,
    pinned,
)
from dispatcher.core.commit.offsets import PartitionTracker
from dispatcher.core.endpoint.lane import Lane
from dispatcher.core.request.results import Failure, Reason, Response
from dispatcher.core.request.urls import Origin
from dispatcher.core.retry.policy import RetryPolicy, decide
from dispatcher.core.retry.wheel import Wheel
from dispatcher.core.subscription.index import Index
from dispatcher.core.subscription.model import Status, Subscription
from dispatcher.telemetry.metrics import ATTEMPT_BUCKETS, Histogram

Loop = Callable[[int], object]  # does its thing so many times


def _subscription(number: int = 0, secrets: tuple[str, ...] = (SECRET,)) -> Subscription:
    """A tenant's only one, for `orders.*`."""
    return Subscription(
        id=f"sub_{number}",
        tenant=f"tenant-{number}",
        origin=Origin("https", "hooks.example.com", 443),
        target="/webhooks",
        event_types=("orders.*",),
        secrets=secrets,
        signatures=("v1",),
        headers=(),
        thin=False,
        timeout=15.0,
        max_in_flight=16,
        retry=RetryPolicy((5.0, 300.0), 0.1),
        status=Status.ACTIVE,
    )


def _repeat(call: Callable[[], object]) -> Loop:
    def loop(n: int) -> None:
        for _ in itertools.repeat(None, n):
            call()

    return loop


def _core() -> dict[str, Loop]:
    return {name: _repeat(call) for name, call in bench_core.cases().items()}


def _match() -> dict[str, Loop]:
    index = Index([_subscription(number) for number in range(10_000)])
    tenants = [f"tenant-{number}" for number in range(0, 10_000, 10)]

    def loop(n: int) -> None:
        match = index.match
        for tenant in itertools.islice(itertools.cycle(tenants), n):
            match(tenant, "orders.item.created")

    return {"match, one of 10,000 subscriptions": loop}


def _track() -> dict[str, Loop]:
    def in_order(n: int) -> None:
        tracker = PartitionTracker("events", 0, 0)
        for offset in range(n):
            tracker.track(offset, 1)
            if offset >= 1000:
                tracker.settle(offset - 1000)

    def shuffled(n: int) -> None:
        tracker = PartitionTracker("events", 0, 0)
        for begin in range(0, n, 1000):
            for offset in range(begin, begin + 1000):
                tracker.track(offset, 1)
            for step in order:
                tracker.settle(begin + step)

    order = list(range(1000))
    random.Random(1).shuffle(order)
    return {"track and settle, in order": in_order, "track and settle, out of order": shuffled}


def _lane() -> dict[str, Loop]:
    item = object()

    def loop(n: int) -> None:
        lane: Lane[object] = Lane(8)
        for _ in range(64):
            lane.offer("sub_0", 16, item, 0.0)
        for _ in itertools.repeat(None, n):
            lane.offer("sub_0", 16, item, 0.0)
            taken = lane.take(0.0)
            assert taken is not None
            lane.release(taken[1])

    def shared(n: int) -> None:
        lane: Lane[object] = Lane(8)
        keys = [f"sub_{number}" for number in range(100)]
        for key in keys:
            lane.offer(key, 16, item, 0.0)
        for key in itertools.islice(itertools.cycle(keys), n):
            lane.offer(key, 16, item, 0.0)
            taken = lane.take(0.0)
            assert taken is not None
            lane.release(taken[1])

    return {"lane: offer, take, release": loop, "the same among 100 subscriptions": shared}


def _wheel() -> dict[str, Loop]:
    def cancelled(n: int) -> None:
        wheel: Wheel[int] = Wheel(0.0)
        for number in range(n):
            wheel.cancel(wheel.add(15.0 + number * 1e-5, number))

    def fired(n: int) -> None:
        wheel: Wheel[int] = Wheel(0.0)
        rng = random.Random(1)
        for number in range(n):
            wheel.add(rng.random() * 30, number)
        now = 0.0
        while wheel:
            now += 0.01
            wheel.advance(now)

    return {"wheel: add, cancel": cancelled, "wheel: add, advance until due": fired}


def _decide() -> dict[str, Loop]:
    policy = RetryPolicy((5.0, 300.0), 0.1)
    refused = Failure(Reason.CONNECT_REFUSED)
    busy = Response(503, retry_after="120")
    return {
        "decide, no answer": _repeat(lambda: decide(refused, 1, policy, NOW, 0.5, 30.0)),
        "decide, 503 with Retry-After": _repeat(lambda: decide(busy, 1, policy, NOW, 0.5, 30.0)),
    }


def _observe() -> dict[str, Loop]:
    histogram = Histogram(ATTEMPT_BUCKETS)
    return {"Histogram.observe": _repeat(lambda: histogram.observe(0.0031))}


def run(command: str, *, quick: bool) -> Section:
    """Every step, on the client core."""
    section = Section("Micro-benchmarks", command)
    table = Table(("step, 1 KiB body", "us"))
    with on_core(CORES.client):
        for part in (_core, _match, _track, _lane, _wheel, _decide, _observe):
            for name, loop in part().items():
                table.add(name, micros(per_call(loop, repeats=3 if quick else 11)))
        for name, seconds in bench_engine.results(quick=quick).items():
            table.add(name, micros(seconds))
    section.add(table)
    section.add(
        "CPU time, medians of 11 runs of some 50 ms each; the loop around a call (0.05 us) is not taken off. "
        "In parentheses: what others' code alone costs, for comparison."
    )
    return section


def run_matching(command: str, *, quick: bool) -> Section:
    """Matching among a million subscriptions, in a process of its own: it takes a gigabyte."""
    section = Section("Matching", command)
    size = ["--count", "100000", "--tenants", "10000"] if quick else []
    ran = subprocess.run(
        pinned(CORES.client, [sys.executable, "-m", "benchmarks.bench_match", *size]),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if ran.returncode:
        raise CannotRun(f"the matching benchmark failed: {ran.stderr.strip()[-2000:]}")
    section.add(f"```text\n{ran.stdout.strip()}\n```")
    return section
