"""What the history costs: `python -m benchmarks history`, on a real Kafka and a real PostgreSQL.

Its parts, each by itself with `--part`:

- `cost`: CPU per delivery of the delivering process, with a history in a process of its own beside it and without, in turns.
- `rate`: all in one process. From a backlog, deliveries a second with the history and without; then the highest rate at which the
  index stays at most a minute behind. And what the history adds to RSS.
- `index`: CPU to index an attempt, in the process and in the server, and how fast it goes: from a log that is prepared in advance, and
  at 10,000 attempts a second as they come.
- `queries`, `sqlite`: what questions take of a full store (`history_store.py`).
- `replay`: fresh events during a replay at full speed, and a dry run over a million events (`history_replay.py`).

Where everything runs: what is measured has the client core. Kafka, nginx, PostgreSQL, the producer, and in `cost` the process with the
history share the server core. PostgreSQL's CPU is that of all its processes, by the kernel's count.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import uvloop

from benchmarks import history_replay, history_store
from benchmarks.end_to_end import HOSTS, PARTITIONS, TOPIC, TYPES, Daemon, Metrics, Run, Wrong, events, kafka
from benchmarks.harness import (
    BODY_BYTES,
    CORES,
    CannotRun,
    Disturbance,
    Nginx,
    Section,
    Table,
    Usage,
    beside_wrk,
    crossing,
    median,
    mib,
    one_digit,
    require,
    spread,
    tree_cpu,
    two_digits,
    wait_for,
    wait_for_calm,
)
from benchmarks.history_store import empty_database, postgres
from benchmarks.scale import fill, publish, wait_until_delivered
from dispatcher.broker.base import Message, TopicSpec
from dispatcher.broker.open import open_broker
from dispatcher.core.attempt.record import AttemptRecord, encode_record
from dispatcher.core.retry.records import delivery_id
from dispatcher.settings.groups import KafkaSettings

PARTS: Final = ("cost", "rate", "index", "queries", "sqlite", "replay")

_INDEXED: Final = 'history_records_total{result="indexed"}'
_SUBSCRIPTIONS: Final = 200  # of the prepared log
_FAILING: Final = 0.1  # of the prepared log's deliveries fail once
_FLOOR: Final = 10_000  # attempts a second
_PREPARED: Final = 20_000  # attempts that are prepared for each second of indexing
_LADDER: Final = (5_000, 10_000, 12_500, 15_000, 17_500, 20_000, 25_000, 30_000, 35_000, 40_000)
_CATCH_UP: Final = 600.0  # seconds that the index may take behind a backlog
_runs: Final = itertools.count(1)

# What the history is held to.
_COST: Final = 1.03  # of the delivering process's CPU
_BACKLOG: Final = 0.9  # of the deliveries/s without
_BEHIND: Final = 60.0  # seconds
_IN_PROCESS: Final = 12e-6  # seconds of CPU an attempt, PostgreSQL
_IN_SERVER: Final = 15e-6
_SQLITE: Final = 25e-6  # in all
_RSS: Final = 40 << 20


def run(
    command: str,
    part: str,
    *,
    quick: bool,
    rows: int | None = None,
    minutes: float | None = None,
    count: int | None = None,
    runs: int | None = None,
) -> Section:
    """One of `PARTS`."""
    minutes = minutes or (0.2 if quick else 10.0)
    match part:
        case "cost":
            return _cost(
                command, count=count or (20_000 if quick else 200_000), runs=runs or (1 if quick else 8)
            )
        case "rate":
            count, runs = count or (20_000 if quick else 200_000), runs or (1 if quick else 5)
            return _rate(command, count=count, runs=runs, minutes=min(minutes, 2.0), quick=quick)
        case "index":
            return _index(command, minutes=minutes, runs=runs or (1 if quick else 3), quick=quick)
        case "queries":
            return history_store.run_postgres(
                command, rows=rows or (60_000 if quick else 30_000_000), quick=quick
            )
        case "sqlite":
            return history_store.run_sqlite(
                command, rows=rows or (30_000 if quick else 5_000_000), quick=quick
            )
        case _:
            return history_replay.run(command, count=count, runs=runs or (1 if quick else 3), quick=quick)


def _settings(name: str, store: str | None, *, roles: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """Of a process of the installation `name`: its own group and its own topics. `store` None: no history."""
    history: dict[str, Any] = {"store": "off"} if store is None else {"store": store, **more}
    if store is not None and (password := urlsplit(store).password) is not None:
        # In a file of its settings, a password has a place of its own.
        history |= {"store": store.replace(f":{password}@", "@"), "password": password}
    made: dict[str, Any] = {"group": name, "topics": {"prefix": f"{name}."}, "history": history}
    if roles:
        made["roles"] = list(roles)
    return made


def _name() -> str:
    return f"bench-history-{os.getpid()}-{next(_runs)}"


def _folder(parent: Path, name: str) -> Path:
    made = parent / name
    made.mkdir(parents=True)
    return made


def _verdict(wanted: str, *, holds: bool) -> str:
    return f"{wanted} {'✓' if holds else '✗ missed'}"


# The delivering process.


class _Beside(Enum):
    """What runs beside the delivering process, and whether that knows of it."""

    HISTORY = "a history beside it"
    UNKNOWN = "one that it doesn't know of"
    NOTHING = "without"


def _cost(command: str, *, count: int, runs: int) -> Section:
    require("nginx", "taskset")
    section = Section("History: the delivering process", command)
    seen: dict[_Beside, list[Run]] = {beside: [] for beside in _Beside}
    disturbed = 0
    with (
        kafka() as broker,
        postgres() as server,
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        Nginx(HOSTS) as endpoint,
    ):
        fill(broker, TOPIC, (message for _, message in events(count)))

        def deliver(beside: _Beside) -> Run:
            name = _name()
            own = _folder(Path(folder), name)
            store = None if beside is _Beside.NOTHING else empty_database(server)
            known = store if beside is _Beside.HISTORY else None
            deliverer = Daemon(broker, endpoint, own, **_settings(name, known, roles=("deliver",)))
            if store is None:
                return deliverer.run(count)
            keeper = Daemon(
                broker,
                endpoint,
                _folder(own, "history"),
                subscriptions=(),
                core=CORES.server,
                **_settings(name, store, roles=("history",)),
            )
            with keeper.started():
                keeper.wait_until_ready()
                run = deliverer.run(count)
                # Events and attempts: that it worked beside the deliveries, and not only stood there.
                _wait_until_indexed(keeper, 2 * count)
            return run

        for number in range(runs):
            for beside in _Beside if number % 2 else reversed(_Beside):
                wait_for_calm(10.0)
                disturbance = Disturbance()
                seen[beside].append(deliver(beside))
                disturbed += disturbance.read()[0] > Disturbance.LIMIT
            print(
                "  " + ", ".join(f"{each.value} {seen[each][-1].cpu * 1e6:.2f} us" for each in _Beside),
                flush=True,
            )
    table = Table(
        ("", *(each.value for each in _Beside), "to one that it doesn't know of", "to without", "wanted")
    )

    def ratios(value: Callable[[Run], float], to: _Beside) -> list[float]:
        return [value(one) / value(other) for one, other in zip(seen[_Beside.HISTORY], seen[to], strict=True)]

    own, whole = (ratios(lambda run: run.cpu, to) for to in (_Beside.UNKNOWN, _Beside.NOTHING))
    table.add(
        "CPU per delivery of the delivering process, us",
        *(spread([run.cpu * 1e6 for run in seen[beside]], one_digit) for beside in _Beside),
        *(spread(each, lambda value: f"{value:.3f}") for each in (own, whole)),
        _verdict(f"<= {_COST:.2f}", holds=median(whole) <= _COST),
    )
    table.add(
        "deliveries/s",
        *(spread([run.rate for run in seen[beside]]) for beside in _Beside),
        *(spread(ratios(lambda run: run.rate, to), two_digits) for to in (_Beside.UNKNOWN, _Beside.NOTHING)),
        "",
    )
    section.add(table)
    section.add(
        f"{count:,} events of {BODY_BYTES} bytes, {runs} turns. All log every attempt. The process with the history indexes events and attempts"
        " into PostgreSQL; it shares the server core with PostgreSQL, Kafka and nginx, so the rates are not what two machines would reach. One"
        " that the deliveries don't know of takes the same from that core: what is more than it is what the delivering process itself does for a history."
    )
    if disturbed:
        section.add(f"Other processes disturbed {disturbed} of {len(_Beside) * runs} runs.")
    return section


def _wait_until_indexed(daemon: Daemon, records: float, within: float = _CATCH_UP) -> Metrics:
    looks: list[Metrics] = []

    def done() -> bool:
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            looks.append(daemon.scrape())
            return looks[-1][_INDEXED] >= records
        return False

    wait_for(done, within, f"{records:,.0f} records are indexed")
    return looks[-1]


# In one process.


def _rate(command: str, *, count: int, runs: int, minutes: float, quick: bool) -> Section:
    require("nginx", "taskset")
    section = Section("History: in one process", command)
    table = Table(("", "with", "without", "ratio, in turns", "wanted"))
    peaks: dict[str, list[int]] = {"postgresql": [], "sqlite": [], "off": []}
    with (
        kafka() as broker,
        postgres() as server,
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        Nginx(HOSTS) as endpoint,
    ):
        fill(broker, TOPIC, (message for _, message in events(count)))

        def deliver(store: str) -> tuple[float, Run]:
            name = _name()
            own = _folder(Path(folder), name)
            url = empty_database(server) if store == "postgresql" else None if store == "off" else store
            run = Daemon(broker, endpoint, own, **_settings(name, url)).run(count)
            peaks[store].append(run.rss)
            print(f"  {store}: {run.rate:,.0f}/s, {run.cpu * 1e6:.1f} us, {mib(run.rss)}", flush=True)
            return run.rate, run

        for store in ("postgresql", "sqlite"):
            compared = beside_wrk(lambda store=store: deliver(store), lambda: deliver("off")[0], runs)  # type: ignore[misc]
            table.add(
                f"deliveries/s from a backlog, {store}",
                spread(compared.rates),
                spread(compared.wrk),
                spread(compared.ratios, two_digits),
                _verdict(f">= {_BACKLOG:.2f}", holds=median(compared.ratios) >= _BACKLOG),
            )
            if remark := compared.remark():
                section.add(f"{store}: {remark}")
        for store in ("postgresql", "sqlite"):
            more = max(peaks[store]) - max(peaks["off"])
            table.add(
                f"peak RSS, {store}",
                mib(max(peaks[store])),
                mib(max(peaks["off"])),
                "",
                _verdict(f"<= {mib(_RSS)} more", holds=more <= _RSS),
            )
        section.parts.insert(0, table)
        held = Table(("sustained with PostgreSQL", "events/s", "behind at the end, s", "wanted"))
        best = 0
        for pace in _LADDER[:1] if quick else _LADDER:
            sustained = _sustained(broker, endpoint, Path(folder), empty_database(server), pace, minutes * 60)
            print(f"  {pace:,}/s: {sustained}", flush=True)
            if sustained.holds:
                best = pace
            held.add(
                "index and deliveries keep up" if sustained.holds else "they don't",
                f"{sustained.rate:,.0f}",
                f"{sustained.behind:.0f}",
                "",
            )
            if not sustained.holds:
                break
        held.add("highest", f"{best:,}", "", _verdict(f">= {_FLOOR:,}", holds=best >= _FLOOR))
        section.add(held)
    section.add(
        f"{count:,} events of {BODY_BYTES} bytes from a backlog, {runs} turns; the history falls behind meanwhile. Sustained: {minutes:g} minutes at each rate,"
        f" the index at most {_BEHIND:.0f} s behind at the end and not falling further behind, every event delivered. Events and attempts are indexed."
        " The process has the client core; PostgreSQL, Kafka, nginx and the producer share the other one."
    )
    return section


class _Sustained(NamedTuple):
    rate: float  # events a second that were published
    behind: float  # seconds, at the end
    holds: bool


def _sustained(
    broker: str, endpoint: Nginx, folder: Path, store: str, pace: int, seconds: float
) -> _Sustained:
    name = _name()
    topic = f"{name}-events"
    fill(broker, topic, iter(()), {"retention.bytes": str(1 << 30), "segment.bytes": str(64 << 20)})
    daemon = Daemon(broker, endpoint, _folder(folder, name), topic=topic, **_settings(name, store))
    looks: list[tuple[float, float]] = []
    with daemon.started():
        daemon.wait_until_ready()

        async def load() -> list[str]:
            async def watch() -> None:
                while True:
                    await asyncio.sleep(1.0)
                    with contextlib.suppress(OSError):
                        look = await asyncio.to_thread(daemon.scrape)
                        looks.append((look.at, look["history_behind_seconds"]))

            watching = asyncio.get_running_loop().create_task(watch())
            try:
                return await publish(broker, topic, pace, seconds)
            finally:
                watching.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watching

        ids = uvloop.run(load())
        try:
            wait_until_delivered(daemon, len(ids), within=10.0)
        except Wrong:
            return _Sustained(len(ids) / seconds, looks[-1][1] if looks else 0.0, holds=False)
    if not looks:
        raise CannotRun(
            "the daemon's metrics did not answer once: the machine is too busy to measure anything"
        )
    quarter = max(1, len(looks) // 4)
    before, last = (
        median([behind for _, behind in part])
        for part in (looks[-2 * quarter : -quarter] or looks, looks[-quarter:])
    )
    rate = len(ids) / seconds
    return _Sustained(rate, last, holds=last <= _BEHIND and last <= before + 5.0 and rate >= 0.95 * pace)


# Indexing.


def _attempts(count: int, topic: str, *, begin: int = 0) -> Iterator[Message]:
    """The attempt log of deliveries to some subscriptions of some tenants; some fail once, and are delivered at the second attempt."""
    chance = random.Random(begin + 1)
    made = 0
    for number in itertools.count(begin):
        which = int(_SUBSCRIPTIONS * chance.random() ** 2)  # some have more than others
        id_ = delivery_id("events", number % PARTITIONS, number, f"sub_{which}")
        fails = chance.random() < _FAILING
        now = int(time.time() * 1000)
        for attempt in (1, 2) if fails else (1,):
            if made >= count:
                return
            made += 1
            failed = fails and attempt == 1
            took = chance.randrange(5, 80)
            record = AttemptRecord(
                id_, f"evt_{number}", TYPES[which % len(TYPES)], f"tenant-{which % 50}", f"sub_{which}", attempt, now + attempt,
                "retry" if failed else "delivered", "events", number % PARTITIONS, number, "dispatcher-0:1", 2,
                event_time_ms=now - 20, body_bytes=BODY_BYTES, host=f"hooks-{which}.example.com", path="/hook", queue_ms=3,
                total_ms=took, status=503 if failed else 200, first_byte_ms=took - 1, response="busy" if failed else "", response_bytes=4,
            )  # fmt: skip
            yield Message(topic, encode_record(record), id_.encode(), partition=number % PARTITIONS)


class _Indexed(NamedTuple):
    rate: float  # attempts a second between 5 % and 95 %
    slowest: float  # of any minute (any quarter, where it took less than four)
    process: float  # seconds of CPU an attempt, in the process
    server: float  # likewise, in PostgreSQL


def _index(command: str, *, minutes: float, runs: int, quick: bool) -> Section:
    require("taskset")
    section = Section("History: indexing", command)
    count = int(minutes * 60 * _PREPARED)
    few = min(count, 20_000 if quick else 600_000)
    costs: dict[str, list[_Indexed]] = {"postgresql": [], "sqlite": []}
    with kafka() as broker, tempfile.TemporaryDirectory(prefix="bench-") as folder, Nginx() as endpoint:
        short, long = f"{_name()}.", f"{_name()}."
        _prepare(broker, short, few)
        for _ in range(runs):
            for store, kept in costs.items():
                with postgres() as server:
                    url = server.url if store == "postgresql" else "sqlite"
                    found = _follow(
                        broker, endpoint, Path(folder), short, few, url, lambda: tree_cpu(server.pid)
                    )
                    kept.append(found)
                    print(
                        f"  {store}: {found.rate:,.0f}/s, {found.process * 1e6:.1f} + {found.server * 1e6:.1f} us",
                        flush=True,
                    )
        print(f"  preparing {count:,} records", flush=True)
        _prepare(broker, long, count)
        with postgres() as server:
            lasting = _follow(
                broker,
                endpoint,
                Path(folder),
                long,
                count,
                server.url,
                lambda: tree_cpu(server.pid),
                minutes * 60,
            )
        with postgres() as server:
            behind = _as_they_come(broker, endpoint, Path(folder), server.url, minutes * 60)
    table = Table(("", "measured", "wanted"))

    def cpu(what: str, values: list[float], wanted: float) -> None:
        table.add(
            what,
            spread([value * 1e6 for value in values], one_digit),
            _verdict(f"<= {wanted * 1e6:g}", holds=median(values) <= wanted),
        )

    on_postgres = costs["postgresql"]
    cpu("PostgreSQL: CPU an attempt in the process, us", [each.process for each in on_postgres], _IN_PROCESS)
    cpu("PostgreSQL: CPU an attempt in the server, us", [each.server for each in on_postgres], _IN_SERVER)
    cpu("SQLite: CPU an attempt in all, us", [each.process for each in costs["sqlite"]], _SQLITE)
    table.add("PostgreSQL: attempts/s as fast as it can", spread([each.rate for each in on_postgres]), "")
    table.add("SQLite: attempts/s as fast as it can", spread([each.rate for each in costs["sqlite"]]), "")
    table.add(
        f"PostgreSQL, {minutes:g} minutes as fast as it can: attempts/s",
        f"{lasting.rate:,.0f}",
        f">= {2 * _FLOOR:,} wished {'✓' if lasting.rate >= 2 * _FLOOR else '✗'}",
    )
    table.add(
        "the slowest of its minutes",
        f"{lasting.slowest:,.0f}",
        _verdict(f">= {_FLOOR:,}", holds=lasting.slowest >= _FLOOR),
    )
    table.add(
        f"PostgreSQL, {minutes:g} minutes of {behind.rate:,.0f} attempts/s as they come: behind at most, s",
        f"{behind.most:.1f}",
        _verdict(f"<= {_BEHIND:.0f}", holds=behind.most <= _BEHIND),
    )
    table.add("behind at the end, s", f"{behind.last:.1f}", "")
    section.add(table)
    section.add(
        f"Records of {_SUBSCRIPTIONS} subscriptions of 50 tenants, {_FAILING:.0%} of the deliveries with a second attempt; {few:,} for the CPU ({runs} runs), up to"
        f" {count:,} for the load that lasts. The process with the history has the client core; PostgreSQL and Kafka share the other one, with the producer"
        " where attempts come at a rate. `history.events` is off here: an event's row is one COPY more."
    )
    return section


def _prepare(broker: str, prefix: str, count: int) -> None:
    fill(broker, f"{prefix}attempts", _attempts(count, f"{prefix}attempts"), {"max.message.bytes": "1048576"})


def _follow(
    broker: str,
    endpoint: Nginx,
    folder: Path,
    prefix: str,
    count: int,
    store: str,
    server_cpu: Callable[[], float],
    seconds: float = _CATCH_UP,
) -> _Indexed:
    """Index the log of that prefix, at most for so many seconds."""
    name = _name()
    settings = _settings(name, store, roles=("history",), events=False, max_behind="30d")
    settings["topics"] = {"prefix": prefix}
    daemon = Daemon(broker, endpoint, _folder(folder, name), subscriptions=(), **settings)
    looks: list[tuple[float, float, float, float]] = []  # time, indexed, CPU of the process, of the server
    with daemon.started() as child:
        began = time.monotonic()
        while (not looks or looks[-1][1] < count) and time.monotonic() - began < seconds + 30.0:
            if child.poll() is not None:
                raise Wrong(f"the daemon ended with {child.returncode}:\n{daemon.log.read_text()[-2000:]}")
            # Each look takes some 7 ms of the process's CPU: not more than one a second, if there are so many.
            time.sleep(min(1.0, max(0.1, count / 200_000)))
            with contextlib.suppress(OSError):
                look = daemon.scrape()
                looks.append((look.at, look[_INDEXED], Usage.of(child.pid).cpu, server_cpu()))
            if looks and looks[-1][1] and looks[-1][0] - _first(looks) > seconds:
                break
    done = looks[-1][1] if looks else 0
    if not done:
        raise Wrong(f"nothing was indexed:\n{daemon.log.read_text()[-2000:]}")
    first = max(number for number, look in enumerate(looks) if not look[1] or number == 0)
    curve = looks[first:]
    low, high = 0.05 * done, 0.95 * done
    at, process, server = (
        crossing([(look[1], look[which]) for look in curve], high)
        - crossing([(look[1], look[which]) for look in curve], low)
        for which in (0, 2, 3)
    )
    width = min(60.0, max(at / 4, 0.5))
    begin = crossing([(look[1], look[0]) for look in curve], low)
    marks = [begin + number * width for number in range(int(at / width) + 1)]
    indexed = [crossing([(look[0], look[1]) for look in curve], mark) for mark in marks]
    slowest = min((b - a) / width for a, b in itertools.pairwise(indexed))
    return _Indexed((high - low) / at, slowest, process / (high - low), server / (high - low))


def _first(looks: list[tuple[float, float, float, float]]) -> float:
    return next((look[0] for look in looks if look[1]), looks[-1][0])


class _Behind(NamedTuple):
    rate: float
    most: float  # seconds
    last: float


def _as_they_come(broker: str, endpoint: Nginx, folder: Path, store: str, seconds: float) -> _Behind:
    """`_FLOOR` attempts a second, written while they are indexed."""
    name = _name()
    daemon = Daemon(
        broker,
        endpoint,
        _folder(folder, name),
        subscriptions=(),
        **_settings(name, store, roles=("history",), events=False),
    )
    behind: list[float] = []
    fill(broker, f"{name}.attempts", iter(()))

    async def load() -> int:
        port = open_broker(broker, KafkaSettings())
        await port.connect()
        await port.ensure_topics([TopicSpec(f"{name}.attempts", PARTITIONS)], create=True)
        loop = asyncio.get_running_loop()
        sending: set[asyncio.Task[None]] = set()
        source = _attempts(2**62, f"{name}.attempts")
        begin, sent, looked = loop.time(), 0, 0.0
        try:
            while (now := loop.time()) < begin + seconds:
                due = min(int((now - begin) * _FLOOR), sent + 2000)
                if batch := list(itertools.islice(source, due - sent)):
                    sent = due
                    task = loop.create_task(port.produce(batch))
                    sending.add(task)
                    task.add_done_callback(sending.discard)
                if now - looked >= 1.0 and now - begin > 5.0:  # by then the members have their partitions
                    looked = now
                    with contextlib.suppress(OSError):
                        look = await asyncio.to_thread(daemon.scrape)
                        behind.append(look["history_behind_seconds"])
                await asyncio.sleep(0.02)
            await asyncio.gather(*sending)
        finally:
            await port.close()
        return sent

    with daemon.started():
        daemon.wait_until_ready()
        sent = uvloop.run(load())
        behind.append(daemon.scrape()["history_behind_seconds"])
        _wait_until_indexed(daemon, sent)
    return _Behind(sent / seconds, max(behind), behind[-1])
