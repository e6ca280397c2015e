"""A million pending retries: what they cost in memory, how long a start with them takes, how late the near ones come.

They wait in a tier of an hour, due at various times much later; the broker is a real Kafka. Then:

- *Memory*: the daemon's RSS some seconds after a start without them, and after a start with them.
- *Start*: from starting the process until `/readyz` says ready, with them.
- *Lateness*: while they wait, retries that are due in some 25 to 55 seconds, a steady stream of them, go through several
  short tiers (levels of the wheel) and the wheel in memory, to an nginx that notes when it answered each. Late is what
  lies between the time a retry was due and its answer, the delivery itself included.

In virtual time the same is held by tests (`tests/delivery/test_retry_reader.py`, `tests/core/retry/test_wheel.py`).
"""

from __future__ import annotations

import itertools
import random
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import uvloop

from benchmarks.end_to_end import HOSTS, PARTITIONS, Daemon, Wrong, kafka, per_host
from benchmarks.harness import CORES, Nginx, Section, Table, Usage, mib, on_core, require
from dispatcher.broker.base import Message, TopicSpec
from dispatcher.broker.open import open_broker
from dispatcher.core.event.decode import JSON_HEAD, Event
from dispatcher.core.retry.records import Source, delivery_headers
from dispatcher.settings.groups import KafkaSettings

PENDING: Final = 1_000_000
NEAR: Final = 6_000
_WAITS: Final = (25.0, 55.0)  # seconds until the near ones are due
_TIERS: Final = ("2s", "10s", "1h")
SETTINGS: Final[Mapping[str, Any]] = {"tiers": list(_TIERS), "horizon": "2s"}
_PREFIX: Final = "dispatcher."
_SETTLE: Final = 10.0  # seconds after ready until the RSS is read

# What the daemon is held to.
_GROWTH: Final = 100 << 20
_START: Final = 15.0
_LATE: Final = 0.25


def _retry(number: int, due: float, tier: str, name: str, prefix: str = _PREFIX) -> Message:
    """A delivery that waits in a tier, as the dispatcher writes it."""
    turn = number % len(HOSTS)
    event = Event(f"{name}_{number}", "ping", f"tenant-{turn}", b'{"n":%d}' % number, 1, JSON_HEAD, None)
    headers = delivery_headers(
        event, f"sub_{turn}", Source("bench-events", 0, number), attempt=1, first_attempt_ms=1,
        last_result="status 503", reason="retry", due=due,
    )  # fmt: skip
    # Evenly over the partitions: eight keys would leave some of them empty.
    return Message(
        f"{prefix}retry.{tier}",
        event.body,
        b"sub_%d" % turn,
        headers,
        number % PARTITIONS,
        int(time.time() * 1000),
    )


def fill_pending(url: str, count: int, prefix: str = _PREFIX) -> None:
    """Retry topics in which so many wait for hours."""
    with on_core(CORES.server):
        uvloop.run(_write(url, _pending(count, prefix), prefix))


def _pending(count: int, prefix: str) -> Iterator[Message]:
    now = time.time()
    chance = random.Random(1)
    for number in range(count):
        yield _retry(number, now + chance.uniform(2, 72) * 3600, "1h", "far", prefix)


async def _write(url: str, messages: Iterator[Message], prefix: str = _PREFIX) -> None:
    broker = open_broker(url, KafkaSettings())
    await broker.connect()
    try:
        topics = [TopicSpec(f"{prefix}retry.{tier}", PARTITIONS) for tier in _TIERS]
        await broker.ensure_topics([*topics, TopicSpec("bench-events", PARTITIONS)], create=True)
        while batch := list(itertools.islice(messages, 2000)):
            await broker.produce(batch)
    finally:
        await broker.close()


def _stream(count: int, dues: dict[str, float]) -> Iterator[Message]:
    begin = time.time()
    low, high = _WAITS
    for number in range(count):
        due = begin + low + (high - low) * number / count
        dues[f"near_{number}"] = round(due * 1000) / 1000
        yield _retry(number, due, "10s", "near")


def _start(daemon: Daemon) -> tuple[float, Any, int]:
    """Start it, let it settle; seconds to ready, the process's context, RSS."""
    begin = time.monotonic()
    context = daemon.started()
    child = context.__enter__()
    daemon.wait_until_ready()
    took = time.monotonic() - begin
    time.sleep(_SETTLE)
    return took, context, Usage.of(child.pid).rss


def run(command: str, *, quick: bool) -> Section:
    """On a real Kafka."""
    require("nginx", "taskset")
    count, near = (50_000, 500) if quick else (PENDING, NEAR)
    section = Section("Pending retries", command)
    dues: dict[str, float] = {}
    with kafka() as url, tempfile.TemporaryDirectory(prefix="bench-retries-") as name:
        with Nginx(HOSTS, count=True) as endpoint:
            daemon = Daemon(
                url,
                endpoint,
                Path(name),
                subscriptions=[{**each, "event_types": ["ping"]} for each in per_host(endpoint)],
                topics={"prefix": _PREFIX},
                group="bench-retries",
                retry=SETTINGS,
            )
            fill_pending(url, 0)
            empty_start, context, empty = _start(daemon)
            context.__exit__(None, None, None)
            fill_pending(url, count)
            start, context, full = _start(daemon)
            try:
                uvloop.run(_write(url, _stream(near, dues)))
                time.sleep(_WAITS[1] + 5)
            finally:
                context.__exit__(None, None, None)
            arrivals = endpoint.arrivals()
        arrived = dict(arrivals)
        missing = dues.keys() - arrived.keys()
        if missing or len(arrivals) != len(dues):
            raise Wrong(
                f"{len(dues):,} retries were due, {len(missing):,} of them did not come, {len(arrivals):,} requests did"
            )
    late = sorted(arrived[event_id] - due for event_id, due in dues.items())
    early = max(0.0, -late[0])
    p50, p99 = (late[int(share * (len(late) - 1))] for share in (0.5, 0.99))
    table = Table(("", "measured", "wanted"))

    def row(what: str, figure: str, wanted: str = "", holds: bool | None = None) -> None:
        table.add(what, figure, wanted if holds is None else f"{wanted} {'✓' if holds else '✗ missed'}")

    row("RSS with none pending", mib(empty))
    row(f"RSS with {count:,} pending", mib(full))
    row("growth", mib(full - empty), f"< {mib(_GROWTH)}", full - empty < _GROWTH)
    row("start to ready with none, s", f"{empty_start:.1f}")
    row(f"start to ready with {count:,}, s", f"{start:.1f}", f"< {_START:g}", start < _START)
    row("lateness at the endpoint, p50", f"{p50 * 1000:.0f} ms")
    row("lateness at the endpoint, p99", f"{p99 * 1000:.0f} ms", f"<= {_LATE * 1000:.0f} ms", p99 <= _LATE)
    row("the latest", f"{late[-1] * 1000:.0f} ms")
    row("the earliest, before its time", f"{early * 1000:.0f} ms", "0", early < 0.002)
    section.add(table)
    section.add(
        f"{near:,} near retries, {near / (_WAITS[1] - _WAITS[0]):,.0f} a second, each through several tiers ({', '.join(_TIERS)}, horizon 2 s); "
        f"{PARTITIONS} partitions per tier, {len(HOSTS)} hosts."
    )
    return section
