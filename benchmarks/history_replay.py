"""What a replay at full speed does to fresh events, and how long a dry run over a million events takes. On a real Kafka.

*Fresh events*: one daemon on the client core has delivered a backlog to 8 hosts. Fresh events come at a given pace to the same hosts, first by
themselves, then while a replay of the whole backlog runs without a rate. What counts is from before an event is handed to the producer until
nginx has answered its request, as in `scale.run_latency`. What of that the broker takes to acknowledge the event is shown beside it: the producer, Kafka
and nginx share a core, which has more to do during a replay, whoever makes the requests.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import uvloop

from benchmarks.end_to_end import HOSTS, PARTITIONS, TYPES, Daemon, Metrics, Wrong, kafka
from benchmarks.harness import (
    BODY_BYTES,
    CannotRun,
    Nginx,
    Section,
    Table,
    envelope,
    median,
    one_digit,
    require,
    spread,
    two_digits,
    wait_for,
)
from benchmarks.scale import fill, percentile, publish, wait_until_delivered
from dispatcher.broker.base import Message

_BACKLOG: Final = 400_000
_PACE: Final = 2000  # fresh events a second
_MANY: Final = 1_000_000  # events of the dry run
_DRY_RUNS: Final = 5

# What the daemon is held to.
_RATIO: Final = 1.3  # of the fresh events' p99
_DRY_RUN: Final = 5.0  # seconds


def run(command: str, *, count: int | None, runs: int, quick: bool) -> Section:
    """Both parts."""
    require("nginx", "taskset")
    section = Section("History: replays", command)
    backlog = count or (20_000 if quick else _BACKLOG)
    seconds = 4.0 if quick else 15.0
    many = 20_000 if quick else _MANY
    alone: list[_Fresh] = []
    beside: list[_Fresh] = []
    rates: list[float] = []
    with kafka() as broker, tempfile.TemporaryDirectory(prefix="bench-") as name:
        for number in range(runs):
            without, during, rate = _fresh(broker, Path(name), number, backlog, seconds)
            print(f"  {without} ms, {during} ms during a replay of {rate:,.0f}/s", flush=True)
            alone.append(without)
            beside.append(during)
            rates.append(rate)
        dry = _dry_run(broker, Path(name), many)
    table = Table(("", "by themselves", "during a replay", "ratio", "wanted"))
    for what, name in (
        ("p99 of fresh events, ms", "whole"),
        ("of that until the broker acknowledged", "broker"),
        ("from then on", "dispatcher"),
    ):
        before, after = ([getattr(each, name) * 1000 for each in side] for side in (alone, beside))
        ratios = [during / without for during, without in zip(after, before, strict=True)]
        wanted = ""
        if name == "whole":
            wanted = f"<= {_RATIO:g} {'✓' if median(ratios) <= _RATIO else '✗ missed'}"
        table.add(
            what, spread(before, one_digit), spread(after, one_digit), spread(ratios, two_digits), wanted
        )
    table.add("the replay's deliveries/s meanwhile", "", spread(rates), "", "")
    slowest = max(dry)
    table.add(
        f"dry run over {many:,} events, the slowest of {len(dry)}, s",
        f"{slowest:.2f}",
        "",
        "",
        f"< {_DRY_RUN:g} {'✓' if slowest < _DRY_RUN else '✗ missed'}",
    )
    section.add(table)
    section.add(
        f"{_PACE:,} fresh events of {BODY_BYTES} bytes a second for {seconds:g} s, {runs} runs; the replay has {backlog:,} events of the same size to the same {len(HOSTS)} hosts, and"
        " no rate. Kafka, nginx and the producer share the other core. The history is on, as is the default."
    )
    return section


def _events(topic: str, count: int) -> Iterator[Message]:
    for number in range(count):
        turn = number % len(HOSTS)
        yield Message(
            topic,
            envelope(number, BODY_BYTES, TYPES[turn], f"tenant-{turn}")[1],
            partition=number // len(HOSTS) % PARTITIONS,
        )


def _call(daemon: Daemon, method: str, path: str, body: Any = None) -> Any:
    raw = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        daemon.url + path, data=raw, method=method, headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise CannotRun(
            f"{method} {path} was answered with {error.code}: {error.read().decode()[:1000]}"
        ) from error


def _daemon(broker: str, endpoint: Nginx, folder: Path, name: str) -> Daemon:
    own = folder / name
    own.mkdir()
    return Daemon(
        broker,
        endpoint,
        own,
        topic=name,
        group=name,
        topics={"prefix": f"{name}."},
        history={"directory": str(own / "history")},
    )


class _Fresh(NamedTuple):
    """p99 of fresh events, in seconds: until they were delivered, and the two parts of that."""

    whole: float
    broker: float
    dispatcher: float

    def __str__(self) -> str:
        whole, broker, dispatcher = (f"{part * 1000:.1f}" for part in self)
        return f"p99 {whole} (the broker {broker}, from then on {dispatcher})"


def _fresh(
    broker: str, folder: Path, number: int, backlog: int, seconds: float
) -> tuple[_Fresh, _Fresh, float]:
    """Of fresh events without a replay and during one, and the replay's deliveries a second."""
    name = f"bench-replay-{os.getpid()}-{number}"
    fill(broker, name, _events(name, backlog))
    with Nginx(HOSTS, count=True) as endpoint:
        daemon = _daemon(broker, endpoint, folder, name)
        with daemon.started():
            daemon.wait_until_ready()
            delivered = wait_until_delivered(daemon, backlog, 300.0).delivered
            wait_for(
                lambda: daemon.scrape()["history_behind_seconds"] < 2, 300.0, "the history has caught up"
            )
            acknowledged: dict[str, float] = {}
            alone = uvloop.run(publish(broker, name, _PACE, seconds, acknowledged=acknowledged))
            before = wait_until_delivered(daemon, delivered + len(alone))
            asked = {"source": "events", "since": "2001-01-01T00:00:00Z"}
            replay = _call(daemon, "POST", "/v1/replays", asked)["replay"]["id"]
            wait_for(lambda: _more(daemon.scrape(), before) > 1000, 60.0, "the replay runs")
            first = daemon.scrape()
            beside = uvloop.run(publish(broker, name, _PACE, seconds, acknowledged=acknowledged))
            last = daemon.scrape()
            state = _call(daemon, "GET", f"/v1/replays/{replay}")["replay"]["state"]
            if state != "running":
                raise CannotRun(
                    f"the replay was {state} before the fresh events were over: give more --events"
                )
            _call(daemon, "POST", f"/v1/replays/{replay}/cancel")
            wait_for(lambda: daemon.scrape()["deliveries_in_flight"] == 0, 60.0, "everything is delivered")
        arrived: dict[str, float] = {}
        for event_id, at in endpoint.arrivals():
            arrived.setdefault(event_id, at)
    missing = sum(event_id not in arrived for event_id in (*alone, *beside))
    if missing:
        raise Wrong(f"{missing} fresh events did not arrive")

    def fresh(ids: Sequence[str]) -> _Fresh:
        made = {event_id: float(event_id.partition("-")[0]) for event_id in ids}
        return _Fresh(
            *(
                percentile(times, 0.99)
                for times in (
                    [arrived[event_id] - made[event_id] for event_id in ids],
                    [acknowledged[event_id] - made[event_id] for event_id in ids],
                    [max(0.0, arrived[event_id] - acknowledged[event_id]) for event_id in ids],
                )
            )
        )

    return fresh(alone), fresh(beside), max(0.0, _more(last, first) - len(beside)) / (last.at - first.at)


def _more(now: Metrics, before: Metrics) -> float:
    return now.delivered - before.delivered


def _dry_run(broker: str, folder: Path, count: int) -> list[float]:
    """Seconds of each dry run of everything in a topic of so many events."""
    name = f"bench-dry-run-{os.getpid()}"
    fill(broker, name, _events(name, count))
    times = []
    with Nginx(HOSTS) as endpoint:
        daemon = _daemon(broker, endpoint, folder, name)
        with daemon.started():
            daemon.wait_until_ready()
            wait_until_delivered(daemon, count, 600.0)
            for _ in range(_DRY_RUNS):
                began = time.perf_counter()
                asked = {"source": "events", "since": "2001-01-01T00:00:00Z", "dry_run": True}
                plan = _call(daemon, "POST", "/v1/replays", asked)
                times.append(time.perf_counter() - began)
                if plan["plan"]["deliveries"] < count * 0.9:
                    raise Wrong(f"the dry run found {plan['plan']['deliveries']:,} deliveries of {count:,}")
    return times
