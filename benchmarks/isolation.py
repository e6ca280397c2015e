"""Whether endpoints can hurt each other, and whether a fast one has to fear for its backlog. On a real Kafka.

*Among bad ones.* 50 healthy hosts share 5,000 events a second: without, then with two bad hosts beside them, in turns. One of the
bad ones accepts connections and never answers, the other one refuses them. Each is owed as many events as a healthy one, on
top of the 5,000. Every setting has its default, but for those that let deliveries go to loopback addresses without
TLS. Each turn has a topic, a group, retry topics and a daemon of its own, so that nothing is left over from the one before.

- *Latency*: as in `scale.py`, from before the event is handed to the producer until nginx has answered its request. Of the healthy hosts.
- *Commit lag*: each second the group's committed offsets are read from the broker. What counts is how long ago the
  event at the committed offset was produced: nothing that is done with may stand before it for longer than `retry.hold_limit`.
- *Lost*: every event of a healthy host must have arrived. After the daemon's stop every event of a bad one must still be owed: it stands in a retry topic
  where the next process reads it, in the dead-letter topic, or in its own topic beyond the commit.

*A backlog.* 200,000 events wait for one host when the daemon starts. Nothing may be parked: the host is busy, not slow. Its rate is
compared with the plain case of `end_to_end.py` (the same count for 8 hosts), in turns, over the same number of connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import uvloop
from aiokafka.admin import AIOKafkaAdminClient

from benchmarks.end_to_end import (
    HOSTS,
    PARTITIONS,
    TOPIC,
    Daemon,
    Listener,
    Metrics,
    Run,
    Wrong,
    events,
    kafka,
)
from benchmarks.harness import (
    BODY_BYTES,
    CONNECTIONS,
    Nginx,
    Sampler,
    Section,
    Table,
    beside_wrk,
    envelope,
    median,
    require,
    spread,
    two_digits,
)
from benchmarks.scale import addresses, fill, percentile, publish, subscription_for
from dispatcher.broker.base import Message, TopicPartition
from dispatcher.broker.open import open_broker
from dispatcher.core.commit.note import read_note
from dispatcher.core.subscription.fields import MAX_IN_FLIGHT
from dispatcher.settings.groups import DeliverySettings, KafkaSettings, RetrySettings

_HEALTHY: Final = 50
_PACE: Final = 5000  # events a second for the healthy ones together
_WARM: Final = 3.0  # seconds before anything counts: connections are opened, code gets warm
_LATE: Final = 60.0  # seconds after the last event by which the healthy hosts must have theirs
_BACKLOG: Final = 200_000
_TYPE: Final = "order.paid"

# What the daemon is held to.
_RATIO: Final = 1.3  # of the p99
_SHARE: Final = 0.9  # of the rate to 8 hosts

Offsets = Mapping[TopicPartition, tuple[int, str]]
"""What is committed, and the note beside it."""


@dataclass
class Turn:
    """What one daemon showed, at a given pace."""

    taken: list[float]  # seconds from produce to receipt, each of a healthy host's
    twice: int  # arrivals of those beyond the first
    lag: float  # seconds that an event was not committed after it was produced, at most
    held: float  # `partition_held_seconds`, at most
    owed: int  # events of the bad hosts
    busy: float  # share of its core that the daemon used
    last: Metrics

    def quantile(self, share: float) -> float:
        return percentile(self.taken, share)


class Dead:
    """A host that accepts connections, reads nothing and answers nothing."""

    def __init__(self, address: str, port: int) -> None:
        self._listening = socket.create_server((address, port), backlog=4096)
        self._accepted: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                self._accepted.append(self._listening.accept()[0])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join(5.0)
        for connection in (*self._accepted, self._listening):
            connection.close()


class Watch:
    """Looks at what is committed, each second, and at the daemon's metrics, every fifth; part of the event loop that produces."""

    def __init__(self, daemon: Daemon, servers: str, group: str) -> None:
        self._daemon = daemon
        self._group = group
        self._admin = AIOKafkaAdminClient(bootstrap_servers=servers)
        self.commits: list[tuple[float, dict[int, int]]] = []  # (Unix seconds, committed by partition)
        self.held = 0.0

    async def __aenter__(self) -> Self:
        await self._admin.start()
        self._watching = asyncio.get_running_loop().create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watching
        await self._admin.close()

    async def _watch(self) -> None:
        looks = 0
        while True:
            await asyncio.sleep(1.0)
            now = time.time()
            offsets = await committed(self._admin, self._group)
            self.commits.append((now, {each.partition: at for each, (at, _) in offsets.items()}))
            looks += 1
            if looks % 5 == 0:
                await self.scrape()

    async def scrape(self) -> Metrics:
        look = await asyncio.to_thread(self._daemon.scrape)
        self.held = max(self.held, *look.starting("partition_held_seconds").values(), 0.0)
        return look


def lag(commits: Sequence[tuple[float, Mapping[int, int]]], produced: Sequence[Sequence[str]]) -> float:
    """The most seconds ago that an event was produced which was not committed.

    `commits` are looks at the committed offset of each partition, `produced` the ids by partition and offset.
    """
    ages = [
        now - _made(ids[at])
        for now, offsets in commits
        for partition, ids in enumerate(produced)
        if (at := offsets.get(partition, 0)) < len(ids)
    ]
    return max([0.0, *ages])  # below 0: produced after the look


def _made(event_id: str) -> float:
    """When it was produced, in Unix seconds."""
    return float(event_id.partition("-")[0])


def _number(event_id: str) -> int:
    """Its place among those of its topic; the hosts come in turns."""
    return int(event_id.partition("-")[2])


async def committed(admin: AIOKafkaAdminClient, group: str) -> Offsets:
    """Of all its partitions that have been committed."""
    found = await admin.list_consumer_group_offsets(group)
    return {
        TopicPartition(*key): (each.offset, each.metadata) for key, each in found.items() if each.offset >= 0
    }


async def _standing(broker: str, topics: Sequence[str], offsets: Offsets) -> set[str]:
    """The ids of the events in these topics that whoever begins at these offsets reads: all that is not done with."""
    done = {key: read_note(*key, at, note).done for key, (at, note) in offsets.items()}
    port = open_broker(broker, KafkaSettings())
    await port.connect()
    ids: set[str] = set()
    try:
        ends = {
            TopicPartition(topic.name, each.partition): each.latest
            for topic in await port.topics()
            if topic.name in topics
            for each in topic.partitions
            if each.latest > each.earliest
        }
        if not ends:
            return ids
        consumer = port.consumer(topics, f"bench-audit-{time.monotonic_ns()}", Listener())
        await consumer.start()
        async with asyncio.timeout(120.0):
            while ends:
                for partition, records in await consumer.poll(1.0, 5000):
                    start = offsets.get(partition, (0, ""))[0]
                    for record in records:
                        at = record.offset
                        if at >= start and not any(
                            first <= at < end for first, end in done.get(partition, ())
                        ):
                            ids.add((dict(record.headers).get("event_id") or b"").decode())
                    if records and records[-1].offset + 1 >= ends.get(partition, 0):
                        ends.pop(partition, None)
        await consumer.stop()
    finally:
        await port.close()
    return ids


def arrived(
    every: Sequence[str], timed: Sequence[str], arrivals: Sequence[tuple[str, float]], hosts: int
) -> tuple[list[float], int]:
    """Seconds of each that is timed, and how many came again. Wrong if any is missing or did not belong there."""
    first: dict[str, float] = {}
    for event_id, at in arrivals:
        first.setdefault(event_id, at)
    healthy = {each for each in every if _number(each) % hosts < _HEALTHY}
    missing, foreign = healthy - first.keys(), first.keys() - healthy
    if missing or foreign:
        raise Wrong(
            f"of {len(healthy):,} events {len(missing):,} did not arrive, {len(foreign):,} unknown ones did"
        )
    return (
        [first[each] - _made(each) for each in timed if each in healthy],
        len(arrivals) - len(first),
    )


class Stage:
    """Healthy hosts at a given pace, with or without bad ones."""

    def __init__(self, broker: str, folder: Path, *, seconds: float, pace: float) -> None:
        self._broker = broker
        self._servers = broker.removeprefix("kafka://")
        self._folder = folder
        self._seconds = seconds
        self._pace = pace
        self._turns = 0

    def turn(self, *, bad: bool) -> Turn:
        """One daemon, from its start to its end."""
        self._turns += 1
        name = f"bench-isolation-{self._turns}"
        group = f"{name}-{os.getpid()}"
        folder = self._folder / name
        folder.mkdir()
        *healthy, dead, refusing = addresses(_HEALTHY + 2)
        fill(self._broker, name, iter(()))
        with Nginx(healthy, count=True) as endpoint, contextlib.ExitStack() as stack:
            hosts = [*healthy]
            if bad:
                stack.enter_context(Dead(dead, endpoint.port))
                hosts += [dead, refusing]  # nobody listens at the latter
            daemon = Daemon(
                self._broker,
                endpoint,
                folder,
                topic=name,
                subscriptions=[
                    subscription_for(number, host, endpoint.port, f"tenant-{number}", _TYPE)
                    for number, host in enumerate(hosts)
                ],
                group=group,
                topics={"prefix": f"{name}."},
                **DEFAULTS,
            )
            with daemon.started() as child, Sampler(child.pid) as usage:
                daemon.wait_until_ready()
                watch, warm, ids, begin, last = uvloop.run(self._drive(daemon, name, group, len(hosts)))
            if child.returncode != 0:
                raise Wrong(f"the daemon ended with {child.returncode} after SIGTERM")
            arrivals = endpoint.arrivals()
        taken, twice = arrived([*warm, *ids], ids, arrivals, len(hosts))
        produced: list[list[str]] = [[] for _ in range(PARTITIONS)]
        for batch in (warm, ids):
            for event_id in batch:
                produced[_number(event_id) // len(hosts) % PARTITIONS].append(event_id)
        owed = {each for each in (*warm, *ids) if _number(each) % len(hosts) >= _HEALTHY}
        uvloop.run(self._account(name, group, owed, produced))
        busy = usage.cpu_between(begin, begin + self._seconds) / self._seconds
        return Turn(taken, twice, lag(watch.commits, produced), watch.held, len(owed), busy, last)

    async def _drive(
        self, daemon: Daemon, topic: str, group: str, hosts: int
    ) -> tuple[Watch, list[str], list[str], float, Metrics]:
        kinds = [(_TYPE, f"tenant-{number}") for number in range(hosts)]
        pace = self._pace * hosts / _HEALTHY
        async with Watch(daemon, self._servers, group) as watch:
            warm = await publish(self._broker, topic, pace, _WARM, kinds)
            begin = time.monotonic()
            ids = await publish(self._broker, topic, pace, self._seconds, kinds)
            expected = sum(_number(each) % hosts < _HEALTHY for each in (*warm, *ids))
            last = await watch.scrape()
            deadline = time.monotonic() + _LATE
            while last.delivered < expected:
                if time.monotonic() > deadline:
                    raise Wrong(
                        f"{last.delivered:,.0f} of {expected:,} deliveries to healthy hosts were made"
                    )
                await asyncio.sleep(0.25)
                last = await watch.scrape()
        return watch, warm, ids, begin, last

    async def _account(
        self, topic: str, group: str, owed: set[str], produced: Sequence[Sequence[str]]
    ) -> None:
        """Wrong unless each of `owed` is written down somewhere; then the topics go, for the disk's sake."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self._servers)
        await admin.start()
        try:
            own = [name for name in await admin.list_topics() if name.startswith(f"{topic}.")]
            found: set[str] = set()
            for key, (start, note) in (await committed(admin, group)).items():
                done = read_note(*key, start, note).done
                found.update(
                    event_id
                    for at, event_id in enumerate(produced[key.partition])
                    if at >= start and not any(first <= at < end for first, end in done)
                )
            retries = [name for name in own if ".retry." in name]
            found |= await _standing(self._broker, retries, await committed(admin, f"{group}.retry"))
            found |= await _standing(self._broker, [f"{topic}.dead"], {})
            if lost := owed - found:
                raise Wrong(
                    f"of {len(owed):,} events for the bad hosts {len(lost):,} are neither waiting nor dead letters"
                )
            await admin.delete_topics([topic, *own])
        finally:
            await admin.close()


# What `Daemon` sets for other benchmarks.
DEFAULTS: Final[Mapping[str, Any]] = {
    "delivery": {"connections_per_host": DeliverySettings().connections_per_host},
    "api": {"operational_events": True},
}


def _among_bad_ones(section: Section, broker: str, folder: Path, *, quick: bool, runs: int) -> None:
    seconds, pace = (20, 2000) if quick else (100, _PACE)
    stage = Stage(broker, folder, seconds=seconds, pace=pace)
    without: list[Turn] = []

    def turn(*, bad: bool) -> Turn:
        seen = stage.turn(bad=bad)
        print(
            f"  {'with' if bad else 'without'} bad hosts: p50 {seen.quantile(0.5) * 1000:.1f} ms,"
            f" p99 {seen.quantile(0.99) * 1000:.1f} ms, commit lag {seen.lag:.1f} s",
            flush=True,
        )
        return seen

    def baseline() -> float:
        without.append(turn(bad=False))
        return without[-1].quantile(0.99)

    def measured() -> tuple[float, Turn]:
        seen = turn(bad=True)
        return seen.quantile(0.99), seen

    compared = beside_wrk(measured, baseline, runs)
    among = compared.seen
    table = Table(
        ("healthy hosts, ms", "without", "with a dead and a refusing one", "ratio, in turns", "wanted")
    )

    def row(what: str, share: float, ratios: str = "", wanted: str = "") -> None:
        values = ([turn.quantile(share) * 1000 for turn in turns] for turns in (without, among))
        table.add(what, *(spread(each, lambda value: f"{value:.1f}") for each in values), ratios, wanted)

    holds = median(compared.ratios) <= _RATIO
    row("p50", 0.5)
    row("p99", 0.99, spread(compared.ratios, two_digits), f"<= {_RATIO:g} {'✓' if holds else '✗ missed'}")
    row("longest", 1.0)
    section.add(table)
    table = Table(("", "without", "with", "wanted"))
    hold_limit = RetrySettings().hold_limit
    lags, held = (
        [[getattr(turn, name) for turn in turns] for turns in (without, among)] for name in ("lag", "held")
    )
    for what, values in (("commit lag, the most, s", lags), ("partition_held_seconds, the most", held)):
        highest = [max(each) for each in values]
        table.add(
            what,
            *(f"{value:.1f}" for value in highest),
            f"<= {hold_limit:g} {'✓' if max(highest) <= hold_limit else '✗ missed'}",
        )
    shares = ([turn.busy for turn in turns] for turns in (without, among))
    table.add(
        "share of its core that the daemon used", *(spread(each, "{:.0%}".format) for each in shares), ""
    )
    twice = [sum(turn.twice for turn in turns) for turns in (without, among)]
    table.add("deliveries that came twice", *(f"{value:,}" for value in twice), "")
    section.add(table)
    if remark := compared.remark():
        section.add(remark)
    last = among[-1].last
    section.add(
        f"{_HEALTHY} healthy hosts, {pace:,} events of {BODY_BYTES} bytes a second for {seconds} s, {len(among)} turns with the bad ones; these are owed "
        f"{pace // _HEALTHY:,} a second each, on top. Every event of a healthy host arrived; every one of a bad host's "
        f"({sum(turn.owed for turn in among):,}) was written down at the end, in a retry topic or as a dead letter. "
        f"In the last turn with them: attempts that failed {words(last, 'attempts_total', 'delivered')}; parked {words(last, 'deliveries_parked_total')}."
    )


def words(look: Metrics, counter: str, without: str = "") -> str:
    """What a counter counted: `1,234 breaker, 5 cap`."""
    counted = Counter[str]()
    for name, value in look.starting(counter).items():
        word = re.search(r'(?:outcome|reason)="(\w+)"', name)
        if word and value and word[1] != without:
            counted[word[1]] += int(value)
    return ", ".join(f"{count:,} {word}" for word, count in counted.most_common()) or "none"


def _backlog(section: Section, broker: str, folder: Path, *, count: int, runs: int) -> None:
    topic = "bench-backlog"
    fill(broker, TOPIC, (message for _, message in events(count)))
    ids = [f"evt_{number:010d}" for number in range(count)]
    fill(broker, topic, _single(topic, count))

    def drain(endpoint: Nginx, **more: Any) -> Run:
        """A daemon of its own, with retry topics of its own: what another one has parked comes to no other."""
        name = f"backlog-{time.monotonic_ns()}"
        (folder / name).mkdir()
        return Daemon(broker, endpoint, folder / name, topics={"prefix": f"{name}."}, **more).run(count)

    def drain_one(endpoint: Nginx, *, in_flight: int, **more: Any) -> Run:
        subscription = subscription_for(0, HOSTS[0], endpoint.port, "tenant-0", _TYPE)
        subscription["max_in_flight"] = in_flight
        return drain(endpoint, topic=topic, subscriptions=[subscription], **more)

    wide = {"in_flight": CONNECTIONS, "delivery": {"connections_per_host": CONNECTIONS}}
    default = {"in_flight": MAX_IN_FLIGHT, **DEFAULTS}
    with Nginx(HOSTS, count=True) as endpoint:
        seen = [drain_one(endpoint, **default)]
        received = Counter(endpoint.received())
    if received != dict.fromkeys(ids, 1):
        missing = len(set(ids) - received.keys())
        raise Wrong(
            f"of {count:,} events of the backlog {missing:,} did not arrive, {received.total():,} requests came"
        )
    with Nginx(HOSTS) as endpoint:

        def measure(options: Mapping[str, Any]) -> tuple[float, None]:
            seen.append(drain_one(endpoint, **options))
            print(f"  {seen[-1].rate:,.0f}/s", flush=True)
            return seen[-1].rate, None

        compared = {
            what: beside_wrk(partial(measure, options), lambda: drain(endpoint).rate, runs)
            for what, options in (("the same connections", wide), ("every setting at its default", default))
        }
    parked = sum(run.parked for run in seen)
    table = Table(
        (f"a backlog of {count:,} for one host", "deliveries/s", "8 hosts, in turns", "ratio", "wanted")
    )
    for what, found in compared.items():
        ratio = median(found.ratios)
        table.add(
            what,
            spread(found.rates),
            spread(found.wrk),
            spread(found.ratios, two_digits),
            f">= {_SHARE:.2f} {'✓' if ratio >= _SHARE else '✗ missed'}"
            if found is compared["the same connections"]
            else "",
        )
    table.add("parked, in all runs", f"{parked:,}", "", "", f"0 {'✓' if not parked else '✗ missed'}")
    section.add(table)
    for what, found in compared.items():
        if remark := found.remark():
            section.add(f"{what}: {remark}")
    section.add(
        f"Over {CONNECTIONS} connections each; by default one subscription gets {MAX_IN_FLIGHT} at a time. In a run of its own, with the "
        f"defaults and a counting endpoint, each of the {count:,} ids arrived exactly once."
    )


def _single(topic: str, count: int) -> Iterator[Message]:
    for number in range(count):
        yield Message(
            topic, envelope(number, BODY_BYTES, _TYPE, "tenant-0")[1], partition=number % PARTITIONS
        )


def run(command: str, *, quick: bool, count: int | None = None, runs: int | None = None) -> Section:
    """Both parts."""
    require("nginx", "taskset")
    section = Section("Isolation", command)
    with kafka() as broker, tempfile.TemporaryDirectory(prefix="bench-") as name:
        _among_bad_ones(section, broker, Path(name), quick=quick, runs=runs or (1 if quick else 3))
        _backlog(
            section,
            broker,
            Path(name),
            count=count or (20_000 if quick else _BACKLOG),
            runs=runs or (1 if quick else 3),
        )
    return section
