"""What changes when there is more of something: subscriptions per event, subscriptions, hosts, replicas, time.

Each figure is a ratio to the plain case of `end_to_end.py` (8 hosts, a subscription each), measured in turns
with it on the same cores. Or, at a steady pace (latency, soak), a time or a size.

*Replicas.* There is one core for all of what is measured, so each replica gets a share of it: one with that
share is compared with two. The kernel's CPU controller holds them to it; Kafka and nginx have the other core, and
are far from filling it at these rates.

*Latency* is from before the event is handed to the producer until nginx has answered its request, by one clock;
the time of the first is in the event's id. nginx notes times to the millisecond.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import orjson
import uvloop

from benchmarks.end_to_end import (
    HOSTS,
    PARTITIONS,
    TOPIC,
    Daemon,
    Metrics,
    Wrong,
    events,
    kafka,
)
from benchmarks.harness import (
    BODY_BYTES,
    CONNECTIONS,
    CORES,
    SECRET,
    CannotRun,
    Compared,
    Nginx,
    Sampler,
    Section,
    Table,
    beside_wrk,
    crossing,
    envelope,
    median,
    mib,
    on_core,
    one_digit,
    pinned,
    require,
    require_plots,
    spread,
    two_digits,
    wait_for,
    wrk,
)
from benchmarks.retries import PENDING, SETTINGS, fill_pending
from benchmarks.shares import PERIOD, core_share
from dispatcher.broker.base import Message, TopicSpec
from dispatcher.broker.open import open_broker
from dispatcher.settings.groups import KafkaSettings

_FAN_OUT: Final = 10
_MANY: Final = 100_000  # subscriptions
_EACH: Final = 5  # events for each of them
_HOSTS: Final = 10_000
_PACE: Final = 5000  # events a second, of the latency
_SHARE: Final = 0.3  # of a core, for each of two replicas; Kafka and nginx have to keep up with both
_IN_FLIGHT: Final = 10_000
_AT_ONCE: Final = 1000  # events handed to the producer together at most
_UNDER_WAY: Final = 200  # such batches that the broker has not acknowledged, at most
_SOAK: Final = 0.7  # of what the daemon can
_SUPPLY: Final = 20_000  # events a second that producer, Kafka and nginx keep up with for long, on the core that they share


def fill(
    broker: str, topic: str, messages: Iterator[Message], config: Mapping[str, str] | None = None
) -> int:
    """Make the topic and fill it; how many there were."""

    async def work() -> int:
        port = open_broker(broker, KafkaSettings())
        await port.connect()
        count = 0
        try:
            await port.ensure_topics([TopicSpec(topic, PARTITIONS, config=config or {})], create=True)
            while batch := list(itertools.islice(messages, 2000)):
                await port.produce(batch)
                count += len(batch)
        finally:
            await port.close()
        return count

    with on_core(CORES.client):
        return uvloop.run(work())


def subscription_for(number: int, host: str, port: int, tenant: str | None, pattern: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": f"sub_{number}",
        "url": f"http://{host}:{port}/hook",
        "event_types": [pattern],
        "secrets": [SECRET],
    }
    if tenant is not None:
        found["tenant"] = tenant
    return found


def addresses(count: int) -> list[str]:
    """So many loopback addresses, those of the plain case not among them."""
    return [f"127.{1 + i // 62500}.{1 + i // 250 % 250}.{1 + i % 250}" for i in range(count)]


def _beside_plain(
    plain: Daemon, other: Daemon, count: int, expected: int, runs: int
) -> tuple[Compared[float], list[float]]:
    """The rate of `other`, in turns with the plain case in the place of wrk.

    What was seen besides, and the list: seconds of CPU per delivery of `other`, and of the plain case.
    """
    plain_cpu: list[float] = []

    def measure() -> tuple[float, float]:
        run = other.run(expected)
        print(f"  {run.rate:,.0f}/s", flush=True)
        return run.rate, run.cpu

    def yardstick() -> float:
        run = plain.run(count)
        plain_cpu.append(run.cpu)
        return run.rate

    return beside_wrk(measure, yardstick, runs), plain_cpu


def run_fan_out(command: str, *, quick: bool, count: int | None = None, runs: int | None = None) -> Section:
    """One event to ten subscriptions."""
    require("nginx", "taskset")
    count = count or (20_000 if quick else 200_000)
    runs = runs or (1 if quick else 5)
    section = Section("Fan-out", command)
    with kafka() as broker, tempfile.TemporaryDirectory(prefix="bench-") as name, Nginx(HOSTS) as endpoint:
        fill(broker, TOPIC, (message for _, message in events(count)))
        fill(
            broker,
            "bench-fan-out",
            (
                Message(
                    "bench-fan-out", envelope(n, BODY_BYTES, "fan.out", "wide")[1], partition=n % PARTITIONS
                )
                for n in range(count // _FAN_OUT)
            ),
        )
        plain = Daemon(broker, endpoint, _folder(name, "plain"))
        wide = Daemon(
            broker,
            endpoint,
            _folder(name, "wide"),
            topic="bench-fan-out",
            subscriptions=[
                subscription_for(n, HOSTS[n % len(HOSTS)], endpoint.port, "wide", "fan.*")
                for n in range(_FAN_OUT)
            ],
        )
        compared, _ = _beside_plain(plain, wide, count, count // _FAN_OUT * _FAN_OUT, runs)
    table = Table(("deliveries/s", "median (lowest-highest)", "wanted"))
    table.add("one subscription an event", spread(compared.wrk), "")
    table.add(f"{_FAN_OUT} subscriptions an event", spread(compared.rates), "")
    _judge(table, "ratio", compared, 1.0)
    section.add(table)
    _remark(section, compared)
    return section


def run_growth(command: str, *, quick: bool, count: int | None = None, runs: int | None = None) -> Section:
    """Many subscriptions, many hosts, many retries that wait."""
    require("nginx", "taskset", "wrk")
    count = count or (20_000 if quick else 200_000)
    runs = runs or (1 if quick else 5)
    many, hosts, pending = (number // 10 if quick else number for number in (_MANY, _HOSTS, PENDING))
    section = Section("Growth", command)
    table = Table(("", "deliveries/s", "plain, in turns", "ratio", "wanted"))
    costs = Table(("us of CPU a delivery", "median (lowest-highest)", "plain, in turns", "more"))
    points: list[tuple[str, float]] = []

    def compare(what: str, plain: Daemon, other: Daemon, expected: int = count) -> None:
        compared, plain_cpu = _beside_plain(plain, other, count, expected, runs)
        ratio = median(compared.ratios)
        points.append((what, ratio))
        table.add(
            what,
            spread(compared.rates),
            spread(compared.wrk),
            spread(compared.ratios, two_digits),
            f">= 0.80 {'✓' if ratio >= 0.8 else '✗ missed'}",
        )
        cost(what, compared.seen, plain_cpu)
        _remark(section, compared, what)

    def cost(what: str, other: Sequence[float], plain: Sequence[float]) -> None:
        """Seconds."""
        costs.add(
            what,
            spread([each * 1e6 for each in other], one_digit),
            spread([each * 1e6 for each in plain], one_digit),
            f"{(median(other) - median(plain)) * 1e6:+.1f}",
        )

    with kafka() as broker, tempfile.TemporaryDirectory(prefix="bench-") as name:
        fill(broker, TOPIC, (message for _, message in events(count)))
        # Whoever gets a first event is looked up, and keys are made ready: of 100,000 that takes some seconds.
        often = max(count, many * _EACH)
        for topic, width, number in (("bench-many", many, often), ("bench-hosts", hosts, count)):
            # 7919 is prime to both: one after the other, but no two neighbours.
            fill(
                broker,
                topic,
                (
                    Message(
                        topic,
                        envelope(n, BODY_BYTES, "order.paid", f"tenant-{n * 7919 % width}")[1],
                        partition=n % PARTITIONS,
                    )
                    for n in range(number)
                ),
            )
        with Nginx(HOSTS) as endpoint:
            plain = Daemon(broker, endpoint, _folder(name, "plain"))
            subscriptions = [
                subscription_for(n, HOSTS[n % len(HOSTS)], endpoint.port, f"tenant-{n}", "order.*")
                for n in range(many)
            ]
            wide = Daemon(
                broker,
                endpoint,
                _folder(name, "many"),
                topic="bench-many",
                subscriptions=subscriptions,
                ready=300.0,
                warm=1.2 / _EACH,
            )
            compare(f"{many:,} subscriptions", plain, wide, often)
            far = addresses(hosts)
            with Nginx(far) as farther:
                subscriptions = [
                    subscription_for(n, host, farther.port, f"tenant-{n}", "order.*")
                    for n, host in enumerate(far)
                ]
                wide = Daemon(
                    broker,
                    farther,
                    _folder(name, "hosts"),
                    topic="bench-hosts",
                    subscriptions=subscriptions,
                    delivery={"connections_per_host": 1},
                    ready=120.0,
                    warm=1.2 * hosts / count,
                )
                compare(f"{hosts:,} hosts, a connection each", plain, wide)
                # What that costs somebody who does nothing else: sockets in the kernel, nginx's connections.
                pairs = [(wrk(farther.url, connections=hosts), wrk(farther.url)) for _ in range(runs)]
                table.add(
                    f"for comparison: wrk over {hosts:,} connections, and over {CONNECTIONS}",
                    spread([over_many.rate for over_many, _ in pairs]),
                    spread([over_few.rate for _, over_few in pairs]),
                    spread([over_many.rate / over_few.rate for over_many, over_few in pairs], two_digits),
                    "",
                )
                cost(
                    f"for comparison: a request of wrk over {hosts:,} connections, and over {CONNECTIONS}",
                    [over_many.cpu for over_many, _ in pairs],
                    [over_few.cpu for _, over_few in pairs],
                )
                busy_many, busy_few = (
                    median([each.rate * each.cpu for each in kind]) for kind in zip(*pairs, strict=True)
                )
            fill_pending(broker, pending, "bench-pending.")
            wide = Daemon(
                broker,
                endpoint,
                _folder(name, "pending"),
                topics={"prefix": "bench-pending."},
                retry=SETTINGS,
                ready=120.0,
            )
            compare(f"{pending:,} pending retries", plain, wide)
    section.parts.insert(0, table)
    section.add(costs)
    section.add(
        f"{count:,} events of {BODY_BYTES} bytes, for the many subscriptions {often:,}; these and the many hosts are counted from when "
        "each has had its first. The plain case has 8 subscriptions on 8 hosts. wrk had its core busy for "
        f"{busy_many:.0%} of the time over {hosts:,} connections, for {busy_few:.0%} over {CONNECTIONS}."
    )
    if not quick:
        section.add(_bars("growth", "Deliveries/s compared with the plain case", points))
    return section


# At a given pace.


async def publish(
    broker: str,
    topic: str,
    pace: float,
    seconds: float,
    kinds: Sequence[tuple[str, str]] | None = None,
    acknowledged: dict[str, float] | None = None,
) -> list[str]:
    """So many events a second, evenly; the id of each begins with when it was handed over. Returns the ids.

    `kinds` are the events' types and tenants, in turns: those of the plain case unless given. For each of them the partitions come in turns.
    `acknowledged` gets the Unix time when the broker had each.
    A broker that can't keep up gets fewer, so that what it has not acknowledged stays small. Raises BrokerError if it refuses any.
    """
    port = open_broker(broker, KafkaSettings())
    await port.connect()
    loop = asyncio.get_running_loop()
    ids: list[str] = []
    sending: set[asyncio.Task[None]] = set()
    failed: list[BaseException] = []

    def ended(task: asyncio.Task[None], batch_ids: Sequence[str]) -> None:
        sending.discard(task)
        if acknowledged is not None:
            acknowledged.update(dict.fromkeys(batch_ids, time.time()))
        if not task.cancelled() and (error := task.exception()) is not None:
            failed.append(error)

    bodies = [
        orjson.loads(envelope(turn, BODY_BYTES - 16, kind, tenant)[1])
        for turn, (kind, tenant) in enumerate(kinds or [(kind, f"tenant-{turn}") for turn, kind in _kinds()])
    ]
    try:
        begin = loop.time()
        sent = 0
        while (now := loop.time()) < begin + seconds:
            due = min(int((now - begin) * pace), sent + _AT_ONCE)
            batch = []
            for number in range(sent, due):
                # As the id has it, the event was made when its turn came, not when this loop got round to it.
                made = time.time() - (now - begin - number / pace)
                body = bodies[number % len(bodies)]
                body["id"] = event_id = f"{made:.6f}-{number:09d}"
                ids.append(event_id)
                batch.append(Message(topic, orjson.dumps(body), partition=number // len(bodies) % PARTITIONS))
            sent = due
            if batch:
                sending.add(task := loop.create_task(port.produce(batch)))
                task.add_done_callback(partial(ended, batch_ids=ids[-len(batch) :]))
            await asyncio.sleep(0.002)
            while len(sending) >= _UNDER_WAY:
                await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)
            if failed:
                raise failed[0]
        await asyncio.gather(*sending)
    finally:
        await port.close()
    return ids


def _kinds() -> list[tuple[int, str]]:
    return [
        (turn, orjson.loads(message.value or b"{}")["type"])
        for turn, (_, message) in enumerate(events(len(HOSTS)))
    ]


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def run_latency(command: str, *, quick: bool, runs: int | None = None) -> Section:
    """From produce to receipt, at 5,000 events a second."""
    require("nginx", "taskset")
    runs = runs or (1 if quick else 5)
    seconds = 4 if quick else 20
    section = Section("Latency", command)
    halves: list[float] = []
    tails: list[float] = []
    worst: list[float] = []
    lags: list[float] = []
    with kafka() as broker, tempfile.TemporaryDirectory(prefix="bench-") as name:
        for number in range(runs):
            topic = f"bench-latency-{number}"
            fill(broker, topic, iter(()))
            with Nginx(HOSTS, count=True) as endpoint:
                daemon = Daemon(broker, endpoint, _folder(name, topic), topic=topic)
                with daemon.started():
                    daemon.wait_until_ready()
                    uvloop.run(publish(broker, topic, _PACE, 2))  # connections are open, code is warm
                    before = daemon.scrape()
                    ids = uvloop.run(publish(broker, topic, _PACE, seconds))
                    wait_until_delivered(daemon, len(ids) + before.delivered)
                    after = daemon.scrape()
                arrived = dict(endpoint.arrivals())
            missing = [event_id for event_id in ids if event_id not in arrived]
            if missing:
                raise Wrong(f"{len(missing)} of {len(ids)} events did not arrive, the first: {missing[0]}")
            taken = [arrived[event_id] - float(event_id.partition("-")[0]) for event_id in ids]
            halves.append(percentile(taken, 0.5))
            tails.append(percentile(taken, 0.99))
            worst.append(max(taken))
            lags.append(after.quantile("event_loop_lag_seconds", 0.99, before))
            print(f"  p50 {halves[-1] * 1000:.1f} ms, p99 {tails[-1] * 1000:.1f} ms", flush=True)

    def row(what: str, values: Sequence[float], wanted: float | None = None) -> None:
        limit = (
            "" if wanted is None else f"< {wanted * 1000:g} {'✓' if median(values) <= wanted else '✗ missed'}"
        )
        table.add(what, spread([value * 1000 for value in values], lambda value: f"{value:.1f}"), limit)

    table = Table(("ms", "median (lowest-highest)", "wanted"))
    row("p50", halves, 0.010)
    row("p99", tails, 0.050)
    row("longest", worst)
    row("event loop lag, p99 at most", lags, 0.010)
    section.add(table)
    section.add(
        f"{_PACE:,} events of {BODY_BYTES} bytes a second for {seconds} s, {runs} runs; the producer shares the "
        "other core with Kafka and nginx."
    )
    return section


def wait_until_delivered(daemon: Daemon, expected: float, within: float = 60.0) -> Metrics:
    """Until so many are delivered."""
    seen: list[Metrics] = []

    def done() -> bool:
        seen.append(daemon.scrape())
        return seen[-1].delivered >= expected

    try:
        wait_for(done, within, f"{expected:,.0f} deliveries")
    except CannotRun as error:
        raise Wrong(f"{error}; {seen[-1].delivered:,.0f} were made") from error
    return seen[-1]


# Replicas.


def run_replicas(command: str, *, quick: bool, count: int | None = None, runs: int | None = None) -> Section:
    """Two replicas against one, each with the same share of a core."""
    require("nginx", "taskset")
    count = count or (40_000 if quick else 200_000)
    runs = runs or (1 if quick else 5)
    section = Section("Replicas", command)
    rates: dict[int, list[float]] = {1: [], 2: []}
    with kafka() as broker, tempfile.TemporaryDirectory(prefix="bench-") as name, Nginx(HOSTS) as endpoint:
        fill(broker, TOPIC, (message for _, message in events(count)))
        for number in range(runs):
            for replicas in (1, 2):
                rate = _replicas(broker, endpoint, _folder(name, f"{number}-{replicas}"), replicas, count)
                rates[replicas].append(rate)
                print(f"  {replicas}: {rate:,.0f}/s", flush=True)
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    table = Table(("deliveries/s", "median (lowest-highest)", "wanted"))
    table.add("one replica", spread(rates[1]), "")
    table.add("two replicas", spread(rates[2]), "")
    holds = median(ratios) >= 1.7
    table.add("ratio", spread(ratios, two_digits), f">= 1.70 {'✓' if holds else '✗ missed'}")
    section.add(table)
    section.add(
        f"{count:,} events of {BODY_BYTES} bytes. Each replica has {_SHARE:.0%} of one core (CPU controller, "
        f"{PERIOD // 1000} ms periods), Kafka and nginx have the other core."
    )
    return section


def _replicas(broker: str, endpoint: Nginx, folder: Path, replicas: int, count: int) -> float:
    """Deliveries/s of all of them together, between 30 % and 90 %: by then the group has settled."""
    group = f"bench-{os.getpid()}-{time.monotonic_ns()}"
    looks: list[tuple[float, float]] = []
    with contextlib.ExitStack() as stack:
        daemons = []
        for number in range(replicas):
            own = _folder(str(folder), str(number))
            daemon = Daemon(broker, endpoint, own, group=group)
            share = stack.enter_context(core_share(_SHARE))
            stack.enter_context(daemon.started(share.prefix))
            daemons.append(daemon)

        def done() -> bool:
            time.sleep(0.1)
            with contextlib.suppress(OSError):  # not listening yet
                looks.append((sum(daemon.scrape().delivered for daemon in daemons), time.monotonic()))
                return looks[-1][0] >= count
            return False

        wait_for(done, 300.0, "everything is delivered")
    return 0.6 * count / (crossing(looks, 0.9 * count) - crossing(looks, 0.3 * count))


# Memory.


def run_memory(command: str, *, quick: bool) -> Section:
    """RSS with ten thousand deliveries in flight, to endpoints that take three seconds."""
    require("taskset")
    in_flight = _IN_FLIGHT // 10 if quick else _IN_FLIGHT
    section = Section("Memory", command)
    with (
        kafka() as broker,
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        _Slow(seconds=3.0) as endpoint,
    ):
        fill(broker, TOPIC, (message for _, message in events(in_flight * 4)))
        daemon = Daemon(
            broker,
            endpoint,
            _folder(name, "memory"),
            subscriptions=[
                {**subscription, "max_in_flight": in_flight} for subscription in _slow_subscriptions(endpoint)
            ],
            delivery={
                "connections_per_host": in_flight // len(HOSTS) + 1,
                "max_in_flight": in_flight,
                "max_queue_wait": "1m",
            },
        )
        with daemon.started() as child, Sampler(child.pid) as usage:
            most = connections = 0.0

            def done() -> bool:
                nonlocal most, connections
                with contextlib.suppress(OSError):
                    look = daemon.scrape()
                    most = max(most, look["deliveries_in_flight"])
                    connections = max(connections, look['connections{state="busy"}'])
                    return look.delivered >= in_flight * 3
                return False

            wait_for(done, 180.0, "three rounds are delivered")
    table = Table(("", "figure", "wanted"))
    table.add("in flight, at most", f"{most:,.0f}", "")
    table.add("connections in use, at most", f"{connections:,.0f}", "")
    table.add("peak RSS", mib(usage.peak), f"< 300 MiB {'✓' if usage.peak < 300 << 20 else '✗ missed'}")
    section.add(table)
    section.add(f"Events of {BODY_BYTES} bytes; each request is answered after 3 s.")
    return section


def _slow_subscriptions(endpoint: _Slow) -> list[dict[str, Any]]:
    return [
        subscription_for(turn, host, endpoint.port, f"tenant-{turn}", kind)
        for (turn, kind), host in zip(_kinds(), HOSTS, strict=True)
    ]


class _Slow:
    """An endpoint on the server core that answers each request after so many seconds."""

    tls_port = 0
    ca_file = Path()

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            pinned(
                CORES.server, [sys.executable, "-m", "benchmarks.slow_endpoint", str(self._seconds), *HOSTS]
            ),
            cwd=Path(__file__).parents[1],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if not said.strip().isdigit():
            raise CannotRun("the slow endpoint did not start")
        self.port = int(said)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            if self._process.stdout is not None:
                self._process.stdout.close()


def run_soak(command: str, *, quick: bool, minutes: float | None = None) -> Section:
    """Half an hour at 70 % of what it can: memory must not grow."""
    require("nginx", "taskset")
    minutes = minutes or (0.5 if quick else 30)
    count = 40_000 if quick else 200_000
    section = Section("Soak", command)
    topic = "bench-soak"
    # The broker's disk needn't hold it all, but what a machine that is disturbed for minutes has not got to yet.
    limits = {"retention.bytes": str(1 << 30), "segment.bytes": str(64 << 20), "retention.ms": "600000"}
    with kafka() as broker, tempfile.TemporaryDirectory(prefix="bench-") as name, Nginx(HOSTS) as endpoint:
        fill(broker, TOPIC, (message for _, message in events(count)))
        rate = Daemon(broker, endpoint, _folder(name, "rate")).run(count).rate
        print(f"  {rate:,.0f}/s", flush=True)
        pace = min(_SOAK * rate, _SUPPLY)
        # Of a core, so that this is 70 % for a daemon that is faster than its supply.
        share = 1.0 if pace < _SUPPLY else pace / _SOAK / rate
        fill(broker, topic, iter(()), limits)
        daemon = Daemon(broker, endpoint, _folder(name, "soak"), topic=topic)
        with contextlib.ExitStack() as stack:
            prefix = stack.enter_context(core_share(share)).prefix if share < 1 else ()
            child = stack.enter_context(daemon.started(prefix))
            usage = stack.enter_context(Sampler(child.pid, interval=1.0))
            daemon.wait_until_ready()
            begin = time.monotonic()
            ids = uvloop.run(publish(broker, topic, pace, minutes * 60))
            over = time.monotonic()
            last = wait_until_delivered(daemon, len(ids), within=300.0)
    began = usage.samples[0][0]
    points = [((at - began) / 60, seen.rss / (1 << 20)) for at, seen in usage.samples]
    settled = [rss for at, rss in points if at >= minutes * 0.2]
    third = max(1, len(settled) // 3)
    early, late = median(settled[:third]), median(settled[-third:])
    table = Table(("", "figure", "wanted"))
    table.add("delivered", f"{last.delivered:,.0f} of {len(ids):,}", "all")
    table.add("RSS in the first third after warming up", f"{early:,.0f} MiB", "")
    holds = late <= early * 1.05 + 4
    table.add("RSS in the last third", f"{late:,.0f} MiB", f"no growth {'✓' if holds else '✗ missed'}")
    table.add("peak RSS", mib(usage.peak), "")
    busy = usage.cpu_between(begin, over) / (over - begin)
    table.add("of its share of a core, used", f"{busy / share:.0%}", "")
    section.add(table)
    section.add(
        f"{len(ids) / minutes / 60:,.0f} events of {BODY_BYTES} bytes a second for {minutes:g} minutes ({pace:,.0f} were asked for). "
        + (f"The daemon had {share:.0%} of a core, as the other one supplies no more. " if share < 1 else "")
        + f"That is {_SOAK:.0%} of what it delivers with so much from a backlog ({rate:,.0f}/s with all of a core). At a steady pace there is "
        "less to do at a time, and each delivery costs more."
    )
    if not quick:
        section.add(_line("soak", "RSS over time", "minutes", "MiB", points))
    return section


# Plots.


def _plot(name: str, draw: Callable[[Any], None]) -> str:
    """Draw into benchmarks/plots/; what RESULTS.md says of it."""
    require_plots()
    import matplotlib as mpl  # type: ignore[import-untyped,import-not-found,unused-ignore]  # noqa: PLC0415 - only for plots, and no development dependency

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = name
    from matplotlib import pyplot as plt  # type: ignore[import-untyped,import-not-found,unused-ignore]  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(7, 3.2))
    draw(axes)
    figure.tight_layout()
    folder = Path(__file__).with_name("plots")
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)
    return f"![{name}](plots/{name}.svg)"


def _bars(name: str, title: str, points: Sequence[tuple[str, float]]) -> str:
    def draw(axes: Any) -> None:
        axes.barh([what for what, _ in points], [ratio for _, ratio in points])
        axes.axvline(0.8, linestyle="--", color="grey")
        axes.set_title(title)

    return _plot(name, draw)


def _line(name: str, title: str, x: str, y: str, points: Sequence[tuple[float, float]]) -> str:
    def draw(axes: Any) -> None:
        axes.plot([at for at, _ in points], [value for _, value in points])
        axes.set_ylim(bottom=0)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.set_title(title)

    return _plot(name, draw)


def _folder(parent: str, name: str) -> Path:
    folder = Path(parent, name)
    folder.mkdir()
    return folder


def _judge(table: Table, what: str, compared: Compared[float], wanted: float) -> None:
    ratio = median(compared.ratios)
    table.add(
        what,
        spread(compared.ratios, two_digits),
        f">= {wanted:.2f} {'✓' if ratio >= wanted else '✗ missed'}",
    )


def _remark(section: Section, compared: Compared[float], what: str = "") -> None:
    if remark := compared.remark():
        section.add(f"{what}: {remark}" if what else remark)
