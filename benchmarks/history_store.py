"""What questions take of a full store: 30 million rows in PostgreSQL, 5 million in SQLite, and a tenth of each to see how it grows.

The rows are made in bulk, as the indexer leaves them: a third are events, 60 % deliveries, the rest attempts beyond the first and dead letters.
They are spread over 30 days, some subscriptions have many times what others have, and the counts are those of the deliveries.

*Warm*: the same kind of question is asked again and again, each time about something else. *Cold*: PostgreSQL is started anew, the kernel has
forgotten the files (`posix_fadvise`), and one question is asked, through a connection that is new as well. What is measured is what the
API's handlers call (`HistoryReader`, `StatisticsReader`), without HTTP: a request adds about a millisecond.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import itertools
import os
import random
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from benchmarks.harness import CannotRun, Section, Table, Usage, mib, require
from dispatcher.control.history import HistoryReader
from dispatcher.control.statistics import StatisticsQuery, StatisticsReader
from dispatcher.history.base import (
    BUCKETS,
    COUNTED,
    AttemptRow,
    DeadRow,
    DeliveryQuery,
    DeliveryRow,
    DeliveryState,
    EventRow,
    HistoryStore,
    Retention,
)
from dispatcher.history.logged import DAY_MS
from dispatcher.history.merge import Counts, count
from dispatcher.history.postgres.migrations import BY_DAY, COUNTS_BY_DAY
from dispatcher.history.postgres.store import PostgresHistory
from dispatcher.history.rolling import MINUTES
from dispatcher.history.sqlite.day_file import DayFile, DayWork
from dispatcher.history.sqlite.store import SqliteHistory

if TYPE_CHECKING:
    from tests.postgres.server import Server

DAYS: Final = 30
_SUBSCRIPTIONS: Final = 200
_TENANTS: Final = 50
_databases: Final = itertools.count(1)
_WARM: Final = 300  # questions of each kind
_FIRST: Final = 30  # of these, not counted
_COLD: Final = 12
_MONTH: Final = Retention((DAYS + 2) * DAY_MS, (DAYS + 2) * DAY_MS)
_FAILED: Final = (DeliveryState.RETRYING, DeliveryState.DEAD, DeliveryState.DROPPED)

# What questions are held to: seconds, p99.
_WANTED: Final = 0.050
_WANTED_COLD: Final = 0.500
_WANTED_STATISTICS: Final = 0.300

# What a month of it is made of, of each ten rows.
_EVENTS: Final = 1 / 3
_DELIVERIES: Final = 0.6
_AGAIN: Final = 0.04  # of the deliveries: delivered at the third attempt
_DEAD: Final = 0.006
_WAITING: Final = 0.002  # to be tried again


@contextlib.contextmanager
def postgres() -> Iterator[Server]:
    """A real PostgreSQL on the server core."""
    try:
        from tests.postgres.server import Server, Unavailable  # noqa: PLC0415 - only these benchmarks need it
    except ImportError as error:
        raise CannotRun(
            "the benchmarks of the history use the tests' PostgreSQL: run them from the repository"
        ) from error
    # Without a replica nothing of it is needed, and tables that are made in bulk go past the log.
    server = Server(
        ("wal_level=minimal", "max_wal_senders=0", "maintenance_work_mem=256MB", "max_wal_size=8GB")
    )
    try:
        server.start()
    except Unavailable as error:
        raise CannotRun(str(error)) from error
    try:
        yield server
    finally:
        server.stop()


def empty_database(server: Server) -> str:
    """The URL of a database of its own: a store goes on where it stands, so the next one on it would index less."""
    return asyncio.run(_empty_database(server.url))


async def _empty_database(url: str) -> str:
    name = f"bench_{next(_databases)}"
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()
    return f"{url.rpartition('/')[0]}/{name}"


@dataclass
class Asked:
    """What the questions of one size took, in seconds, by kind; the store's bytes and rows."""

    rows: int
    size: int = 0
    warm: dict[str, list[float]] = field(default_factory=dict)
    cold: dict[str, list[float]] = field(default_factory=dict)
    grown: int = 0
    """Bytes of RSS that all of these questions left behind."""


class Questions:
    """The kinds of questions, each about something else each time."""

    def __init__(self, store: HistoryStore, filled: Filled) -> None:
        self._reader = HistoryReader(store, None)
        self._statistics = StatisticsReader(self._reader, clock=lambda: filled.until_ms / 1000)
        self._filled = filled
        self._chance = random.Random(7)

    def kinds(self) -> dict[str, Callable[[], Awaitable[Any]]]:
        """By name; those whose name begins with `statistics` may take longer."""
        return {
            "event by id": self._event,
            "deliveries of a subscription": self._of_subscription,
            "failed ones of a tenant, a week": self._failed,
            "one delivery with its attempts": self._delivery,
            "statistics, 30 days, by subscription": lambda: self._counts(group=("subscription",)),
            "statistics, 30 days, of a tenant by status": lambda: self._counts(
                group=("status",), tenant=self._tenant()
            ),
            "statistics, 30 days, of a subscription by hour": self._by_hour,
        }

    def _tenant(self) -> str:
        return f"tenant-{self._chance.randrange(_TENANTS)}"

    async def _event(self) -> None:
        await self._reader.event(None, f"evt_{self._chance.randrange(self._filled.events)}")

    async def _delivery(self) -> None:
        number = self._chance.randrange(self._filled.deliveries)
        await self._reader.delivery(None, delivery_of(number))

    async def _of_subscription(self) -> None:
        since = self._filled.until_ms - DAYS * DAY_MS
        which = f"sub_{self._chance.randrange(_SUBSCRIPTIONS)}"
        await self._reader.deliveries(
            None, DeliveryQuery(since, self._filled.until_ms, 50, subscription_id=which), None
        )

    async def _failed(self) -> None:
        since = self._filled.until_ms - 7 * DAY_MS
        query = DeliveryQuery(since, self._filled.until_ms, 50, tenant=self._tenant(), states=_FAILED)
        await self._reader.deliveries(None, query, None)

    async def _by_hour(self) -> None:
        await self._counts(step="hour", subscription_id=f"sub_{self._chance.randrange(_SUBSCRIPTIONS)}")

    async def _counts(self, **asked: Any) -> None:
        query = StatisticsQuery(since_ms=self._filled.until_ms - DAYS * DAY_MS, **asked)
        await self._statistics.statistics(None, query)


class Filled:
    """How many there are of each, and until when."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.events = int(rows * _EVENTS)
        self.deliveries = int(rows * _DELIVERIES)
        today = int(time.time() * 1000) // DAY_MS
        self.first_day = today - DAYS
        self.until_ms = today * DAY_MS

    def of_day(self, number: int) -> tuple[range, range]:
        """The events and the deliveries of the nth day."""
        events, deliveries = self.events // DAYS, self.deliveries // DAYS
        return range(number * events, (number + 1) * events), range(
            number * deliveries, (number + 1) * deliveries
        )


def delivery_of(number: int) -> str:
    """The id of the nth delivery, as the store has it."""
    return hashlib.md5(f"delivery {number}".encode(), usedforsecurity=False).hexdigest()[:24]


# Asking.


async def _ask_warm(store: HistoryStore, filled: Filled, asked: Asked, *, quick: bool) -> None:
    before = Usage.of(os.getpid()).rss
    for label, ask in Questions(store, filled).kinds().items():
        times = []
        for _ in range(_FIRST + (20 if quick else _WARM)):
            began = time.perf_counter()
            await ask()
            times.append(time.perf_counter() - began)
        asked.warm[label] = sorted(times[_FIRST:])
    gc.collect()
    asked.grown = Usage.of(os.getpid()).rss - before


async def _ask_cold(
    make: Callable[[], HistoryStore], forget: Callable[[], None], filled: Filled, asked: Asked, *, quick: bool
) -> None:
    for number in range(2 if quick else _COLD):
        for label in Questions(make(), filled).kinds():
            await asyncio.to_thread(forget)
            store = make()
            await store.open()
            questions = Questions(store, filled)
            questions._chance.seed(1000 + number)
            ask = questions.kinds()[label]
            began = time.perf_counter()
            await ask()
            asked.cold.setdefault(label, []).append(time.perf_counter() - began)
            await store.close()


def _forget_files(folder: Path) -> None:
    """Have the kernel forget what it holds of these files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with contextlib.suppress(OSError):
                file = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(file)  # what is not on the disk yet can't be forgotten
                    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(file)


def _p99(times: Sequence[float]) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * 0.99))]


def _report(section: Section, few: Asked, many: Asked) -> None:
    table = Table(
        (
            "ms, p99",
            f"{few.rows:,} rows, warm",
            f"{many.rows:,} rows, warm",
            "median",
            "wanted",
            "cold",
            "cold, wanted",
        )
    )

    def ms(seconds: float) -> str:
        return f"{seconds * 1000:.1f}"

    def verdict(seconds: float, wanted: float) -> str:
        return f"< {wanted * 1000:g} {'✓' if seconds < wanted else '✗ missed'}"

    for label, warm in many.warm.items():
        slow = label.startswith("statistics")
        cold = _p99(many.cold[label])
        table.add(
            label,
            ms(_p99(few.warm[label])),
            ms(_p99(warm)),
            ms(warm[len(warm) // 2]),
            verdict(_p99(warm), _WANTED_STATISTICS if slow else _WANTED),
            ms(cold),
            "" if slow else verdict(cold, _WANTED_COLD),
        )
    section.add(table)
    size = many.size / many.rows
    section.add(
        f"{_WARM} questions of each kind warm, {_COLD} cold. The store has {mib(many.size)}, {size:,.0f} bytes a row with indexes and counts; a tenth of the rows has"
        f" {mib(few.size)}. So 1,000,000,000 rows over {DAYS} days would take {size * 1e9 / (1 << 30):,.0f} GiB. What all these questions left in this process's memory:"
        f" {mib(max(0, many.grown))} with all rows, {mib(max(0, few.grown))} with a tenth."
    )


# PostgreSQL.

_TIME: Final = "({first} + (n - {begin}) * {step})"
_WHICH: Final = f"floor({_SUBSCRIPTIONS} * power((n::float8 * 0.618033988749895) - floor(n::float8 * 0.618033988749895), 2))::int"
_KIND: Final = "(hashtext('kind ' || n::text) & 65535) / 65536.0"
_SQL_TYPES: Final = "(ARRAY['orders.item.created','orders.item.cancelled','invoice.paid','invoice.payment.failed','customer.created','customer.address.changed','shipment.sent','ping'])"

_FILL_EVENTS: Final = f"""
INSERT INTO {{name}} (day, topic, partition, source_offset, time_ms, event_id, event_type, tenant, sha256, size)
SELECT {{day}}, 'events', n % 8, n, {_TIME}, 'evt_' || n, {_SQL_TYPES}[1 + which % 8], 'tenant-' || which % {_TENANTS},
  md5(n::text) || md5('b' || n::text), 1024
FROM (SELECT n, {_WHICH} AS which FROM generate_series({{begin}}::bigint, {{end}}::bigint) AS n) AS made
"""

_FILL_DELIVERIES: Final = f"""
INSERT INTO {{name}} (day, delivery_id, created_ms, event_id, event_type, tenant, subscription_id, topic, partition, source_offset, generation,
  state, reason, attempts, last_ms, last_attempt, status, failure, total_ms, due_ms, host, first)
SELECT {{day}}, substr(md5('delivery ' || n), 1, 24), at, 'evt_' || event, {_SQL_TYPES}[1 + which % 8],
  'tenant-' || which % {_TENANTS}, 'sub_' || which, 'events', event % 8, event, 1,
  CASE WHEN kind < {_DEAD} THEN 3 WHEN kind < {_DEAD + _WAITING} THEN 1 ELSE 4 END, CASE WHEN kind < {_DEAD} THEN 'exhausted' END,
  CASE WHEN kind < {_DEAD + _WAITING + _AGAIN} THEN 3 ELSE 1 END, at + CASE WHEN kind < {_DEAD + _WAITING + _AGAIN} THEN 60000 ELSE 0 END,
  CASE WHEN kind < {_DEAD + _WAITING + _AGAIN} THEN 3 ELSE 1 END, CASE WHEN kind < {_DEAD + _WAITING} THEN 503 ELSE 200 END, NULL, (n % 75)::int + 5,
  CASE WHEN kind >= {_DEAD} AND kind < {_DEAD + _WAITING} THEN at + 600000 END, 'hooks-' || which || '.example.com',
  '{{{{"attempt":1,"time_ms":' || at || ',"decision":"' || CASE WHEN kind < {_DEAD + _WAITING + _AGAIN} THEN 'retry' ELSE 'delivered' END ||
  '","queue_ms":3,"total_ms":' || (n % 75)::int + 5 || ',"replica":"dispatcher-0:1","status":' || CASE WHEN kind < {_DEAD + _WAITING + _AGAIN} THEN 503 ELSE 200 END ||
  ',"first_byte_ms":4,"response":"","response_bytes":4,"body_bytes":1024,"host":"hooks-' || which || '.example.com","path":"/hook"}}}}'
FROM (SELECT n, {_TIME} AS at, {_WHICH} AS which, {_KIND} AS kind, n * {{events}} / {{deliveries}} AS event FROM generate_series({{begin}}::bigint, {{end}}::bigint) AS n) AS made
"""

_FILL_ATTEMPTS: Final = """
INSERT INTO {name} (day, delivery_id, generation, time_ms, attempt, detail)
SELECT day, delivery_id, 1, created_ms + 30000 * (number - 1), number,
  '{{"attempt":' || number || ',"time_ms":' || created_ms + 30000 * (number - 1) || ',"decision":"retry","queue_ms":3,"total_ms":30,"replica":"dispatcher-0:1","status":503}}'
FROM {deliveries}, generate_series(2, 3) AS number WHERE attempts = 3
"""

_FILL_DEAD: Final = """
INSERT INTO {name} (day, dead_partition, dead_offset, time_ms, reason, delivery_id, subscription_id, event_id, event_type, tenant, topic, partition, source_offset)
SELECT day, partition, source_offset, last_ms, 'exhausted', delivery_id, subscription_id, event_id, event_type, tenant, topic, partition, source_offset
FROM {deliveries} WHERE state = 3
"""

_BUCKET: Final = "width_bucket(total_ms, ARRAY[6, 11, 26, 51, 101, 251, 501, 1001, 2501, 5001, 10001, 30001])"
_FILL_COUNTS: Final = (
    f"INSERT INTO {{name}} (day, minute_ms, tenant, subscription_id, event_type, host, status, {', '.join((*COUNTED, *BUCKETS))})"
    " SELECT day, created_ms / 60000 * 60000, tenant, subscription_id, event_type, host, status, count(*), count(*) FILTER (WHERE state = 4),"
    " count(*) FILTER (WHERE state <> 4), count(*) FILTER (WHERE state = 3), 0, 0, sum(total_ms), sum(total_ms), count(*), "
    + ", ".join(f"count(*) FILTER (WHERE {_BUCKET} = {number})" for number in range(len(BUCKETS)))
    + " FROM {deliveries} GROUP BY 1, 2, 3, 4, 5, 6, 7"
)


async def _fill_postgres(url: str, filled: Filled) -> None:
    """Make the rows, a day at a time on two connections; the tables get their indexes when they are full."""
    store = PostgresHistory(url, _MONTH)
    await store.open()
    await store.close()
    days: asyncio.Queue[int] = asyncio.Queue()
    for number in range(DAYS):
        days.put_nowait(number)

    async def work() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute("SET synchronous_commit = off")
            while not days.empty():
                await _fill_day(connection, filled, days.get_nowait())
        finally:
            await connection.close()

    await asyncio.gather(work(), work())
    store = PostgresHistory(url, _MONTH)
    await store.open()
    await store.retain(filled.until_ms)  # as a process does that has been up for the month
    await store.close()
    connection = await asyncpg.connect(url)
    try:
        for table in (*BY_DAY, *COUNTS_BY_DAY):
            await connection.execute(f"VACUUM (ANALYZE) {table}", timeout=3600)
        await connection.execute("CHECKPOINT", timeout=3600)
    finally:
        await connection.close()


async def _fill_day(connection: Any, filled: Filled, number: int) -> None:
    events, deliveries = filled.of_day(number)
    day = filled.first_day + number
    names = {table: f"{table}_{day}" for table in (*BY_DAY, MINUTES)}
    made = names["history_deliveries"]

    def of(some: range) -> dict[str, Any]:
        return {
            "day": day, "begin": some.start, "end": some.stop - 1, "first": day * DAY_MS, "step": max(1, DAY_MS // max(1, len(some))),
            "events": filled.events, "deliveries": filled.deliveries,
        }  # fmt: skip

    async with connection.transaction():
        for table, name in names.items():
            await connection.execute(
                f"CREATE TABLE {name} (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS, CONSTRAINT in_day CHECK (day >= {day} AND day < {day + 1}))"
            )
        for statement in (
            _FILL_EVENTS.format(name=names["history_events"], **of(events)),
            _FILL_DELIVERIES.format(name=made, **of(deliveries)),
            _FILL_ATTEMPTS.format(name=names["history_attempts"], deliveries=made),
            _FILL_DEAD.format(name=names["history_dead"], deliveries=made),
            _FILL_COUNTS.format(name=names[MINUTES], deliveries=made),
        ):
            await connection.execute(statement, timeout=3600)
    for table, name in names.items():
        async with connection.transaction():
            await connection.execute(
                f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ({day}) TO ({day + 1})",
                timeout=3600,
            )
            await connection.execute(f"ALTER TABLE {name} DROP CONSTRAINT in_day")


async def _ask(
    fill: Callable[[], Awaitable[None]],
    opened: Callable[[], HistoryStore],
    forget: Callable[[], None],
    filled: Filled,
    *,
    quick: bool,
    cold: bool,
) -> Asked:
    """Fill a store and ask it all questions, warm and, where that is wanted, `cold`: after each `forget`."""
    began = time.monotonic()
    await fill()
    print(f"  {filled.rows:,} rows were made in {time.monotonic() - began:.0f} s", flush=True)
    asked = Asked(filled.rows)
    store = opened()
    await store.open()
    asked.size = (await store.sizes()).size
    await _ask_warm(store, filled, asked, quick=quick)
    await store.close()
    for label, times in asked.warm.items():
        print(
            f"  {label}: {times[len(times) // 2] * 1000:.1f} ms, p99 {_p99(times) * 1000:.1f} ms", flush=True
        )
    if cold:
        await _ask_cold(opened, forget, filled, asked, quick=quick)
    return asked


async def _ask_postgres(server: Server, filled: Filled, *, quick: bool, cold: bool) -> Asked:
    def forget() -> None:
        server.kill()
        _forget_files(server.data)
        server.start()

    return await _ask(
        lambda: _fill_postgres(server.url, filled),
        lambda: PostgresHistory(server.url, _MONTH),
        forget,
        filled,
        quick=quick,
        cold=cold,
    )


def run_postgres(command: str, *, rows: int, quick: bool) -> Section:
    """A tenth of the rows, then all of them."""
    require("taskset")
    section = Section("History: questions to PostgreSQL", command)
    found = []
    for size, cold in ((rows // 10, False), (rows, True)):
        with postgres() as server:
            found.append(asyncio.run(_ask_postgres(server, Filled(size), quick=quick, cold=cold)))
    _report(section, *found)
    section.add(
        f"{rows:,} rows over {DAYS} days: events, deliveries of {_SUBSCRIPTIONS} subscriptions of {_TENANTS} tenants, attempts beyond the first, dead letters; the counts per"
        " minute are beside them. PostgreSQL has 256 MiB of shared buffers, and shares a core with whoever asks."
    )
    return section


# SQLite.


async def _fill_sqlite(directory: Path, filled: Filled) -> None:
    store = SqliteHistory(directory, _MONTH)
    await store.open()
    await store.close()
    for number in range(DAYS):
        day = filled.first_day + number
        file = DayFile(
            directory, day, datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m-%d"), sqlite3.connect
        )
        file.load()
        file.write(_day_work(filled, number), {})
        file.close()
    store = SqliteHistory(directory, _MONTH)
    await store.open()
    await store.retain(filled.until_ms)
    await store.close()


def _day_work(filled: Filled, number: int) -> DayWork:
    from benchmarks.end_to_end import TYPES  # noqa: PLC0415 - in a circle otherwise
    from tests.history.records import attempt  # noqa: PLC0415 - only here

    work = DayWork()
    counts: Counts = {}
    chance = random.Random(number)
    begin = (filled.first_day + number) * DAY_MS
    events, deliveries = filled.of_day(number)
    for n in events:
        which = int(_SUBSCRIPTIONS * chance.random() ** 2)
        at = begin + (n - events.start) * DAY_MS // len(events)
        digest = hashlib.sha256(str(n).encode()).hexdigest()
        work.events.append(
            EventRow(
                "events",
                n % 8,
                n,
                at,
                f"evt_{n}",
                TYPES[which % 8],
                f"tenant-{which % _TENANTS}",
                digest,
                1024,
            )
        )
    for n in deliveries:
        which = int(_SUBSCRIPTIONS * chance.random() ** 2)
        at = begin + (n - deliveries.start) * DAY_MS // len(deliveries)
        kind = chance.random()
        again = kind < _DEAD + _WAITING + _AGAIN
        dead = kind < _DEAD
        waiting = not dead and kind < _DEAD + _WAITING
        state = DeliveryState.DEAD if dead else DeliveryState.RETRYING if waiting else DeliveryState.DELIVERED
        took = chance.randrange(5, 80)
        source = n * filled.events // filled.deliveries
        event_id, tenant, host = (
            f"evt_{source}",
            f"tenant-{which % _TENANTS}",
            f"hooks-{which}.example.com",
        )
        work.deliveries.append(
            DeliveryRow(
                delivery_of(n), at, event_id, TYPES[which % 8], tenant, f"sub_{which}", "events", source % 8, source, 1, int(state),
                "exhausted" if dead else None, 3 if again else 1, at + (60_000 if again else 0), 3 if again else 1,
                503 if dead or waiting else 200, None, took, at + 600_000 if waiting else None, host,
                f'{{"attempt":1,"time_ms":{at},"decision":"{"retry" if again else "delivered"}","queue_ms":3,"total_ms":{took},"replica":"dispatcher-0:1",'
                f'"status":{503 if again else 200},"first_byte_ms":4,"response":"","response_bytes":4,"body_bytes":1024,"host":"{host}","path":"/hook"}}',
            )
        )  # fmt: skip
        if again:
            work.attempts += [
                AttemptRow(
                    delivery_of(n), 1, at + 30_000 * (each - 1), each,
                    f'{{"attempt":{each},"time_ms":{at + 30_000 * (each - 1)},"decision":"retry","queue_ms":3,"total_ms":30,"replica":"dispatcher-0:1","status":503}}',
                )
                for each in (2, 3)
            ]  # fmt: skip
        if dead:
            work.dead.append(
                DeadRow(
                    n % 8,
                    n,
                    at + 60_000,
                    "exhausted",
                    delivery_of(n),
                    f"sub_{which}",
                    event_id,
                    TYPES[which % 8],
                    tenant,
                    "events",
                    n % 8,
                    n,
                )
            )
        counted = _COUNTED.get((which, dead or waiting))
        if counted is None:
            counted = _COUNTED[which, dead or waiting] = attempt(
                0, 0, f"sub_{which}", event_type=TYPES[which % 8], tenant=tenant, host=host,
                **({"decision": "retry", "status": 503} if dead or waiting else {}),
            )  # fmt: skip
        count(counted, at, counts)
    work.counts = counts
    return work


_COUNTED: Final[dict[tuple[int, bool], Any]] = {}


async def _ask_sqlite(directory: Path, filled: Filled, *, quick: bool, cold: bool) -> Asked:
    return await _ask(
        lambda: _fill_sqlite(directory, filled),
        lambda: SqliteHistory(directory, _MONTH),
        lambda: _forget_files(directory),
        filled,
        quick=quick,
        cold=cold,
    )


def run_sqlite(command: str, *, rows: int, quick: bool) -> Section:
    """A tenth of the rows, then all of them."""
    require("taskset")
    section = Section("History: questions to SQLite", command)
    found = []
    for size, cold in ((rows // 10, False), (rows, True)):
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            found.append(
                asyncio.run(_ask_sqlite(Path(folder, "history"), Filled(size), quick=quick, cold=cold))
            )
    _report(section, *found)
    section.add(
        f"{rows:,} rows over {DAYS} days, one file a day: events, deliveries of {_SUBSCRIPTIONS} subscriptions of {_TENANTS} tenants, attempts beyond the first, dead"
        " letters; the counts per minute are beside them."
    )
    return section
