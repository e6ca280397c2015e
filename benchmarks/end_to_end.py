"""The whole daemon, from a broker's topic to an HTTP endpoint, on one core.

The topic is loaded before anything is timed, so that the broker only serves fetches meanwhile. Then,
in turns with wrk: `dispatcher run` as a process of its own on the client core, in a new consumer
group that begins at the topic's start, until everything is delivered. nginx and, where there
is one, Kafka share the server core; wrk has nginx for itself.

Every event is for one of 8 subscriptions (one tenant, one type, one host each: 127.0.0.1 to
127.0.0.8), over at most 8 connections per host.

The rate is that of the deliveries between 5 % and 95 % of all, read from the daemon's own
`/metrics` twice a second. Whether they arrived is not taken from there: one run, not
timed, goes to an nginx that notes each request's `webhook-id`, and every id must be there once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import subprocess
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import orjson
import uvloop
import yaml

from benchmarks.harness import (
    BODY_BYTES,
    CONNECTIONS,
    CORES,
    SECRET,
    CannotRun,
    Nginx,
    Sampler,
    Section,
    Table,
    beside_wrk,
    crossing,
    daemon_environ,
    daemon_python,
    envelope,
    free_port,
    median,
    mib,
    on_core,
    pinned,
    process,
    require,
    spread,
    two_digits,
    wait_for,
    wrk,
)
from benchmarks.profiling import Profile
from dispatcher.broker.base import Jump, Message, Position, TopicPartition, TopicSpec
from dispatcher.broker.open import open_broker
from dispatcher.settings.groups import KafkaSettings

EVENTS: Final = 200_000
HOSTS: Final = tuple(f"127.0.0.{number}" for number in range(1, 9))
PARTITIONS: Final = 8
TOPIC: Final = "bench-events"
TYPES: Final = (
    "orders.item.created",
    "orders.item.cancelled",
    "invoice.paid",
    "invoice.payment.failed",
    "customer.created",
    "customer.address.changed",
    "shipment.sent",
    "ping",
)

# What the daemon is held to.
_RATE: Final = 25_000.0
_SHARE: Final = 0.30
_SHARE_TLS: Final = 0.25
_RATE_EMBEDDED: Final = 8_000.0
_SHARE_EMBEDDED: Final = 0.15
_RSS: Final = 300 << 20

_SCRAPES: Final = 1.0  # seconds between two looks at /metrics; each costs the daemon 5 ms or more
_READY: Final = 60.0
_STALLED: Final = 30.0  # seconds without a delivery after which a run is given up

_groups = itertools.count()


class Wrong(Exception):
    """The daemon did something that it must not do, whatever its speed."""


def events(count: int) -> Iterator[tuple[str, Message]]:
    """Ids and records: evenly over the subscriptions, and for each of those evenly over the partitions."""
    for number in range(count):
        turn = number % len(HOSTS)
        event_id, body = envelope(number, BODY_BYTES, TYPES[turn], f"tenant-{turn}")
        yield event_id, Message(TOPIC, body, partition=number // len(HOSTS) % PARTITIONS)


class Broker:
    """The broker's client by itself, on the client core: fills the topic, and reads it once."""

    def __init__(self, url: str, count: int) -> None:
        self._url = url
        self._count = count
        self.ids: set[str] = set()
        self.produce = 0.0  # seconds of CPU per record
        self.consume = 0.0

    def load(self) -> None:
        """Do both."""
        with on_core(CORES.client):  # the broker has the other one to itself
            uvloop.run(self._load())

    async def _load(self) -> None:
        broker = open_broker(self._url, KafkaSettings())
        await broker.connect()
        try:
            await broker.ensure_topics([TopicSpec(TOPIC, PARTITIONS)], create=True)
            source = events(self._count)
            while batch := list(itertools.islice(source, 2000)):
                messages = [message for _, message in batch]
                begin = time.process_time()
                await broker.produce(messages)
                self.produce += (time.process_time() - begin) / self._count
                self.ids.update(event_id for event_id, _ in batch)
            consumer = broker.consumer([TOPIC], f"bench-{os.getpid()}-{next(_groups)}", Listener())
            await consumer.start()
            left = self._count
            while left == self._count:
                left -= sum(len(records) for _, records in await consumer.poll(1.0, 1000))
            begin, some = time.process_time(), left
            async with asyncio.timeout(_READY):
                while left:
                    left -= sum(len(records) for _, records in await consumer.poll(1.0, 1000))
            self.consume = (time.process_time() - begin) / max(some, 1)
            await consumer.stop()
        finally:
            await broker.close()


class Listener:
    """Of a group that has one member and commits nothing."""

    async def on_assigned(self, partitions: Mapping[TopicPartition, Position]) -> None:
        pass

    async def on_revoked(self, partitions: Collection[TopicPartition]) -> None:
        pass

    def on_gone(self, partitions: Collection[TopicPartition]) -> None:
        pass

    def on_jump(self, jump: Jump) -> None:
        pass


# The daemon.


class Metrics:
    """One look at `/metrics`."""

    def __init__(self, text: str) -> None:
        self.at = time.monotonic()
        self._samples: dict[str, float] = {}
        for name, value in re.findall(r"^dispatcher_(\S+) (\S+)$", text, re.MULTILINE):
            self._samples[name] = float(value)

    def __getitem__(self, sample: str) -> float:
        """`deliveries_total{outcome="delivered"}`; 0 where there is none."""
        return self._samples.get(sample, 0.0)

    def starting(self, prefix: str) -> Mapping[str, float]:
        return {name: value for name, value in self._samples.items() if name.startswith(prefix)}

    @property
    def delivered(self) -> float:
        return self['deliveries_total{outcome="delivered"}']

    def quantile(self, histogram: str, share: float, since: Metrics) -> float:
        """The bucket's upper bound below which `share` of the observations since then lie."""
        buckets = []
        for name, value in self._samples.items():
            if found := re.fullmatch(rf'{histogram}_bucket{{le="(.+)"}}', name):
                buckets.append((float(found[1]), value - since[name]))
        buckets.sort()
        total = buckets[-1][1] if buckets else 0
        return next((bound for bound, count in buckets if count >= share * total), float("inf"))


@dataclass
class Run:
    """What one pass of the daemon over the topic showed."""

    rate: float  # deliveries/s between 5 % and 95 %
    overall: float  # deliveries/s from the first to the last
    cpu: float  # seconds per delivery, between 5 % and 95 %
    busy: float  # share of its core, likewise
    rss: int  # bytes, the peak
    lag: float  # seconds, p99 of the event loop's lag, as a bucket's bound
    connections: int  # opened
    parked: int  # deliveries


class Endpoint(Protocol):
    """Where deliveries go."""

    port: int
    tls_port: int
    ca_file: Path


def per_host(endpoint: Endpoint, *, tls: bool = False) -> list[dict[str, Any]]:
    """One subscription for each host, as `events` publishes for them."""
    scheme, port = ("https", endpoint.tls_port) if tls else ("http", endpoint.port)
    return [
        {
            "id": f"sub_{turn}",
            "tenant": f"tenant-{turn}",
            "url": f"{scheme}://{host}:{port}/hook",
            "event_types": [TYPES[turn]],
            "secrets": [SECRET],
        }
        for turn, host in enumerate(HOSTS)
    ]


class Daemon:
    """`dispatcher run` on the client core, over everything in the topic."""

    def __init__(
        self,
        broker: str,
        endpoint: Endpoint,
        folder: Path,
        *,
        tls: bool = False,
        topic: str = TOPIC,
        subscriptions: Sequence[Mapping[str, Any]] | None = None,
        ready: float = _READY,
        warm: float = 0.05,
        site: str | None = None,
        options: Sequence[str] = (),
        core: int | None = None,
        **settings: Any,
    ) -> None:
        """`subscriptions` are those of `per_host` unless given; `ready` are the seconds until the first delivery.

        `options` are of `dispatcher run`.

        `site` is the folder with the package to run, where it is another revision's; `core` another one than the client core.

        The rate counts from when the share `warm` of all is delivered.
        """
        self._endpoint = endpoint
        self._broker = broker
        self._tls = tls
        self._topic = topic
        self._subscriptions = subscriptions
        self._ready = ready
        self._warm = warm
        self._site = site
        self._options = options
        self._core = CORES.client if core is None else core
        self._settings = settings
        self._folder = folder
        self._port = 0
        self.log = folder / "daemon.log"

    def configure(self, **settings: Any) -> None:
        """Settings besides those that it was made with."""
        self._settings = {**self._settings, **settings}

    def _configure(self) -> Path:
        self._port = free_port()
        subscriptions = self._subscriptions
        if subscriptions is None:
            subscriptions = per_host(self._endpoint, tls=self._tls)
        listed = self._folder / "subscriptions.yaml"
        # JSON is YAML, and a hundred thousand of them are written in no time.
        listed.write_bytes(orjson.dumps({"subscriptions": list(subscriptions)}))
        document: dict[str, Any] = {
            "broker": self._broker,
            "group": f"bench-{os.getpid()}-{next(_groups)}",
            "subscriptions_file": str(listed),
            "topics": {"events": [self._topic]},
            "http": {"port": self._port},
            "network": {"allow": ["127.0.0.0/8"], "https_only": self._tls},
            "api": {"operational_events": False},
            "delivery": {"connections_per_host": CONNECTIONS // len(HOSTS)},
            "log": {"format": "json"},
        }
        if self._tls:
            document["network"]["ca_file"] = str(self._endpoint.ca_file)
        for name, value in self._settings.items():
            document[name] = {**document.get(name, {}), **value} if isinstance(value, dict) else value
        config = self._folder / "dispatcher.yaml"
        config.write_text(yaml.safe_dump(document))
        return config

    @contextlib.contextmanager
    def started(self, prefix: Sequence[str] = ()) -> Iterator[subprocess.Popen[bytes]]:
        """The process, until the block ends; `prefix` goes before its command."""
        run = [daemon_python(), "-m", "dispatcher", "run", "--config", str(self._configure()), *self._options]
        command = pinned(self._core, [*prefix, *run])
        with process(command, log=self.log, cwd=self._folder, environ=daemon_environ(self._site)) as child:
            yield child

    def wait_until_ready(self) -> None:
        """Partitions are assigned, subscriptions loaded."""
        wait_for(self._is_ready, self._ready, "the daemon is ready")

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            url = f"http://127.0.0.1:{self._port}/readyz"
            with urllib.request.urlopen(url, timeout=10) as response:
                return bool(response.status == 200)
        return False

    @property
    def url(self) -> str:
        """Of its API, while it is started."""
        return f"http://127.0.0.1:{self._port}"

    def scrape(self) -> Metrics:
        """One look at its metrics; OSError while it doesn't listen."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=10) as response:
            return Metrics(response.read().decode())

    def _said(self) -> str:
        return "\n".join(self.log.read_text().splitlines()[-20:])

    def run(self, expected: int, profile: Profile | None = None) -> Run:
        """Start it, let it deliver everything, stop it. Raises Wrong unless all went as it must."""
        with self.started() as child, Sampler(child.pid) as usage:
            seen: list[Metrics] = []
            deadline = time.monotonic() + self._ready
            profiling = contextlib.ExitStack()
            with profiling:
                while not seen or seen[-1].delivered < expected:
                    if child.poll() is not None:
                        raise Wrong(f"the daemon ended with {child.returncode}:\n{self._said()}")
                    if time.monotonic() > deadline:
                        done = seen[-1].delivered if seen else 0
                        parked = _parked(seen[-1]) if seen else 0
                        raise Wrong(
                            f"no delivery for a while, {done:,.0f} of {expected:,} done, {parked:,} were parked:\n"
                            f"{self._said()}"
                        )
                    time.sleep(_SCRAPES if seen and seen[-1].delivered else _SCRAPES / 5)
                    with contextlib.suppress(OSError):  # not listening yet
                        now = self.scrape()
                        if seen and now.delivered > seen[-1].delivered:
                            deadline = time.monotonic() + _STALLED
                            if profile is not None and now.delivered > 0.05 * expected:
                                profiling.enter_context(profile.of(child.pid))
                                profile = None
                        seen.append(now)
            last = seen[-1]
        if child.returncode != 0:
            raise Wrong(f"the daemon ended with {child.returncode} after SIGTERM:\n{self._said()}")
        failed = {
            name: value
            for name, value in {
                **last.starting("deliveries_total"),
                **last.starting("attempts_total"),
            }.items()
            if value and 'outcome="delivered"' not in name
        }
        if failed or last.delivered != expected:
            raise Wrong(f"{last.delivered:,.0f} deliveries for {expected:,} events; besides: {failed}")
        return self._judge(seen, usage, expected)

    def _judge(self, seen: Sequence[Metrics], usage: Sampler, expected: int) -> Run:
        first = max((i for i, look in enumerate(seen) if not look.delivered), default=0)
        curve = [(look.delivered, look.at) for look in seen[first:]]
        begin, over = crossing(curve, self._warm * expected), crossing(curve, 0.95 * expected)
        counted = (0.95 - self._warm) * expected
        cpu = usage.cpu_between(begin, over)
        return Run(
            rate=counted / (over - begin),
            overall=expected / (seen[-1].at - seen[first].at),
            cpu=cpu / counted,
            busy=cpu / (over - begin),
            rss=usage.peak,
            lag=seen[-1].quantile("event_loop_lag_seconds", 0.99, seen[first]),
            connections=int(seen[-1]["connections_opened_total"]),
            parked=_parked(seen[-1]),
        )


def _parked(look: Metrics) -> int:
    return int(sum(look.starting("deliveries_parked_total").values()))


# The benchmarks.


@contextlib.contextmanager
def kafka() -> Iterator[str]:
    """A real Apache Kafka on the server core; gives its broker URL."""
    try:
        from tests.kafka.server import Cluster, Unavailable  # noqa: PLC0415 - only this benchmark needs it
    except ImportError as error:
        raise CannotRun(
            "the end-to-end benchmark uses the tests' Kafka: run it from the repository"
        ) from error
    require("java", "mvn")
    cluster = Cluster(heap="1g")
    try:
        cluster.start()
    except Unavailable as error:
        raise CannotRun(str(error)) from error
    try:
        yield f"kafka://{cluster.bootstrap}"
    finally:
        cluster.stop()


def check_once(broker: str, folder: Path, ids: set[str], *, tls: bool = False) -> str:
    """Deliver everything to an endpoint that counts. Raises Wrong unless each id arrived exactly once."""
    with Nginx(HOSTS, count=True) as endpoint:
        Daemon(broker, endpoint, folder, tls=tls).run(len(ids))
        received = Counter(endpoint.received())
    missing = len(ids - received.keys())
    foreign = len(received.keys() - ids)
    twice = sum(count > 1 for count in received.values())
    if missing or foreign or twice:
        raise Wrong(
            f"of {len(ids):,} events {missing:,} did not arrive, {twice:,} more than once, {foreign:,} unknown"
        )
    return f"In a run of its own with a counting endpoint each of the {len(ids):,} ids arrived exactly once."


def measure(
    title: str,
    command: str,
    broker: str,
    *,
    count: int,
    runs: int,
    least: float | None,
    share: float,
    profile: bool,
    quick: bool,
    tls: bool = False,
) -> Section:
    """Load, check, measure. `least` deliveries a second are wanted, and that `share` of wrk's rate."""
    require("nginx", "wrk", "taskset")
    section = Section(title, command)
    seen = Profile(title) if profile else None
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        client = Broker(broker, count)
        client.load()
        once = check_once(broker, folder, client.ids, tls=tls)  # also lets the broker warm up
        with Nginx(HOSTS) as endpoint:
            daemon = Daemon(broker, endpoint, folder, tls=tls)
            url = endpoint.tls_url if tls else endpoint.url

            def deliver() -> tuple[float, Run]:
                run = daemon.run(count)
                print(f"  {run.rate:,.0f}/s, {run.cpu * 1e6:.1f} us", flush=True)
                return run.rate, run

            compared = beside_wrk(deliver, lambda: wrk(url, seconds=4).rate, runs)
            if seen is not None:
                daemon.run(count, seen)
                section.add(seen.table(median([run.cpu for run in compared.seen])))
                section.add(seen.top())
                if not quick:
                    seen.keep()
    table = Table(("", "median (lowest-highest)", "wanted"))

    def row(what: str, figure: str, wanted: str = "", holds: bool | None = None) -> None:
        table.add(
            what,
            figure,
            wanted if holds is None else f"{wanted} {'✓' if holds else '✗ missed'}",
        )

    all_runs = compared.seen
    rates, ratios = sorted(compared.rates), sorted(compared.ratios)
    middle = len(rates) // 2
    peak = max(run.rss for run in all_runs)
    if least is None:
        row("deliveries/s", spread(compared.rates))
    else:
        row("deliveries/s", spread(compared.rates), f">= {least:,.0f}", rates[middle] >= least)
    row(
        "share of wrk's requests/s",
        spread(compared.ratios, two_digits),
        f">= {share:.2f}",
        ratios[middle] >= share,
    )
    row("wrk, same nginx, same core", spread(compared.wrk))
    row("deliveries/s from the first to the last", spread([run.overall for run in all_runs]))
    row(
        "daemon's CPU per delivery, us",
        spread([run.cpu * 1e6 for run in all_runs], lambda value: f"{value:.1f}"),
    )
    row("of that, to consume a record (read alone)", f"{client.consume * 1e6:.1f}")
    row("share of its core in use", spread([run.busy for run in all_runs], lambda value: f"{value:.0%}"))
    row("peak RSS", mib(peak), f"< {mib(_RSS)}", peak < _RSS)
    row(
        "event loop lag, p99 at most",
        spread([run.lag * 1000 for run in all_runs], lambda value: f"{value:g} ms"),
    )
    row("to produce a record, in batches, us", f"{client.produce * 1e6:.1f}")
    row("connections opened", spread([run.connections for run in all_runs]))
    section.parts.insert(0, table)
    section.parts.insert(
        1,
        f"{count:,} events of {BODY_BYTES} bytes in {PARTITIONS} partitions, {len(HOSTS)} subscriptions on {len(HOSTS)} hosts, "
        f"{CONNECTIONS} connections, {'TLS' if tls else 'plain HTTP'}, {runs} runs. {once} {compared.remark()}".strip(),
    )
    return section


def run(
    command: str,
    *,
    quick: bool,
    profile: bool,
    count: int | None = None,
    runs: int | None = None,
    tls: bool = False,
) -> Section:
    """From Kafka. With `tls` to endpoints with TLS, compared with wrk over TLS."""
    with kafka() as url:
        return measure(
            "End to end, TLS" if tls else "End to end",
            command,
            url,
            count=count or (40_000 if quick else EVENTS),
            runs=runs or (1 if quick else 5),
            least=None if tls else _RATE,
            share=_SHARE_TLS if tls else _SHARE,
            profile=profile,
            quick=quick,
            tls=tls,
        )


def run_embedded(
    command: str, *, quick: bool, profile: bool, count: int | None = None, runs: int | None = None
) -> Section:
    """From the embedded broker, which works in the daemon's own process and shares its core."""
    with tempfile.TemporaryDirectory(prefix="bench-sqlite-") as folder:
        return measure(
            "End to end, embedded broker",
            command,
            f"sqlite:///{folder}/log.db",
            count=count or (20_000 if quick else EVENTS // 2),
            runs=runs or (1 if quick else 5),
            least=_RATE_EMBEDDED,
            share=_SHARE_EMBEDDED,
            profile=profile,
            quick=quick,
        )
