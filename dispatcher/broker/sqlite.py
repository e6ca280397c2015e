"""The embedded broker: the semantics of Kafka on one SQLite file, for a laptop, a demo, a small site.

The file holds a table per partition whose rowid is the offset. An append then always goes to the
right edge of its own B-tree, reading from an offset is one seek, and retention cuts at the left
edge. One table for all partitions was rejected: appends in the middle of a tree split pages, and
rows of a kilobyte overflow in the `WITHOUT ROWID` form that such a primary key asks for.

SQLite blocks, so every statement runs in one thread of its own. Writes that arrive while it is
busy wait together and then share one transaction, hence one fsync (group commit): WAL with
`synchronous=FULL` makes an acknowledged append durable at the price of one fsync per transaction
instead of one per record. Calls of 1,000 records of 1 KiB: 55,000 appends/s (15 us of CPU each) and 200,000
reads/s; single records from 100 tasks at once: 14,000 appends/s (one core, NVMe).

Consumer groups live in this process, since one process owns the file; only their committed
offsets are stored. A change of membership revokes everything from everybody, then assigns anew,
as Kafka's eager protocol does.

Rules:

1. Everything in `_File` runs in the broker's one thread; everything else on the event loop.
2. An offset is given out inside the transaction that stores the record. `_Partition.end` moves on
   the loop after the commit, so a reader never waits for what was rolled back.
3. A write that fails fails its whole transaction: nothing of it is in the file, and each of its
   callers gets the error.
4. Retention and compaction look at nobody's committed offset, as in Kafka: what is older than
   `retention.ms` (default 7 days), or beyond `retention.bytes` (per partition, default unlimited), is
   deleted whether it was read or not. The file keeps its size and uses the pages again; it shrinks when
   more than a quarter of it is free.
5. One process at a time: the lock file beside the database is held with flock, which the kernel
   releases when the process dies, however it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from struct import pack, unpack_from
from typing import Any, NamedTuple, TypeVar

import orjson
import structlog

from dispatcher.broker.base import (
    AssignmentListener,
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    CommitRefused,
    Message,
    MessageTooLarge,
    PartitionInfo,
    Position,
    Record,
    StoredRecord,
    TopicInfo,
    TopicPartition,
    TopicSpec,
)
from dispatcher.broker.partitioning import StickyPartitions, partition_of
from dispatcher.tasks import Tasks

log = structlog.get_logger(__name__)
T = TypeVar("T")

DEFAULT_PARTITIONS = 4
MAX_PARTITIONS = 1000
# Kafka's own defaults, for what a topic's config leaves out.
DEFAULTS = {
    "cleanup.policy": "delete",
    "retention.ms": str(7 * 24 * 3600 * 1000),
    "retention.bytes": "-1",
    "max.message.bytes": "1048588",
    "delete.retention.ms": str(24 * 3600 * 1000),
    "min.cleanable.dirty.ratio": "0.5",
}
METADATA_LIMIT = 4096
_TOPIC_NAME = re.compile(r"(?!\.{1,2}$)[a-zA-Z0-9._-]{1,249}")
_APPLICATION_ID = 0x77686470  # "whdp"
_VERSION = 1
_PAGE_SIZE = 8192
_POLL_BYTES = 8 << 20  # one poll returns at most this much, or one record
_CHUNK = 2000  # rows that one step of retention or compaction looks at: some milliseconds
_FREE_PAGES = 1024
_NULL = 0xFFFFFFFF
_PAUSES = (0.5, 1.0, 2.0, 5.0)  # seconds between tries to open the file; the last one goes on


# ---------------------------------------------------------------------------------------------
# The file: only the broker's thread comes here.
# ---------------------------------------------------------------------------------------------


class _Meta(NamedTuple):
    """A partition as the file has it."""

    id: int
    topic: str
    partition: int
    config: dict[str, str]
    start: int
    end: int
    clean: int


class _Request(NamedTuple):
    """Read partition `id` from `offset`."""

    id: int
    partition: TopicPartition
    offset: int


class _Batch(NamedTuple):
    """What was read; `next` is where reading goes on."""

    partition: TopicPartition
    records: list[Record]
    next: int


class _Swept(NamedTuple):
    """What one step of retention or compaction did."""

    start: int
    reached: int
    done: bool


class _Counts:
    """A partition's totals, with what the open transaction adds to them."""

    __slots__ = ("bytes", "count", "end", "start")

    def __init__(self, start: int, end: int, count: int, size: int) -> None:
        self.start = start
        self.end = end
        self.count = count
        self.bytes = size

    def copy(self) -> _Counts:
        return _Counts(self.start, self.end, self.count, self.bytes)


class _File:
    """The SQLite file. Rule 1: one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._lock: int | None = None
        self._counts: dict[int, _Counts] = {}
        self._changed: dict[int, _Counts] = {}  # by the open transaction

    def open(self) -> list[_Meta]:
        """Lock and open the file; the partitions in it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _take_lock(self._path)
        try:
            return self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> list[_Meta]:
        db = sqlite3.connect(self._path, isolation_level=None, cached_statements=1024)
        self._db = db
        db.execute(f"PRAGMA page_size={_PAGE_SIZE}")
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA wal_autocheckpoint=2000")
        db.execute("PRAGMA cache_size=-32768")
        application, version = (
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        empty = not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not empty and application != _APPLICATION_ID:
            raise BrokerRefused(f"{self._path} is an SQLite database, but not one of this program's")
        if version > _VERSION:
            raise BrokerRefused(f"{self._path} was written by a newer version of this program")
        if empty:
            with self._transaction():
                db.execute(f"PRAGMA application_id={_APPLICATION_ID}")
                db.execute(f"PRAGMA user_version={_VERSION}")
                db.execute(
                    "CREATE TABLE topics (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, config TEXT NOT NULL)"
                )
                db.execute(
                    "CREATE TABLE partitions (id INTEGER PRIMARY KEY, topic INTEGER NOT NULL, partition INTEGER NOT NULL,"
                    " start INTEGER NOT NULL, next INTEGER NOT NULL, count INTEGER NOT NULL, bytes INTEGER NOT NULL,"
                    " clean INTEGER NOT NULL, UNIQUE (topic, partition))"
                )
                db.execute(
                    "CREATE TABLE commits (member_group TEXT NOT NULL, partition INTEGER NOT NULL,"
                    " position INTEGER NOT NULL, metadata TEXT NOT NULL,"
                    " PRIMARY KEY (member_group, partition)) WITHOUT ROWID"
                )
        found = []
        for id_, topic, config, number, start, end, count, size, clean in db.execute(
            "SELECT p.id, t.name, t.config, p.partition, p.start, p.next, p.count, p.bytes, p.clean"
            " FROM partitions p JOIN topics t ON t.id = p.topic ORDER BY t.name, p.partition"
        ):
            self._counts[id_] = _Counts(start, end, count, size)
            found.append(_Meta(id_, topic, number, orjson.loads(config), start, end, clean))
        return found

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def _open_db(self) -> sqlite3.Connection:
        if self._db is None:
            raise BrokerUnavailable(f"{self._path} is not open")
        return self._db

    @contextlib.contextmanager
    def _transaction(self) -> Any:
        db = self._open_db
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
            for id_, counts in self._changed.items():
                db.execute(
                    "UPDATE partitions SET start=?, next=?, count=?, bytes=? WHERE id=?",
                    (counts.start, counts.end, counts.count, counts.bytes, id_),
                )
            db.execute("COMMIT")
            self._counts.update(self._changed)
        except BaseException:
            if db.in_transaction:  # SQLite itself rolls some errors back
                db.execute("ROLLBACK")
            raise
        finally:
            self._changed.clear()

    def _change(self, id_: int) -> _Counts:
        counts = self._changed.get(id_)
        if counts is None:
            counts = self._changed[id_] = self._counts[id_].copy()
        return counts

    def write(self, changes: Sequence[Callable[[_File], Any]]) -> list[Any]:
        """All of them, in one transaction; the result of each."""
        with self._transaction():
            return [change(self) for change in changes]

    # Changes: called inside a transaction.

    def create(self, name: str, partitions: int, config: Mapping[str, str]) -> list[_Meta]:
        """A new topic; its partitions."""
        db = self._open_db
        topic = db.execute(
            "INSERT INTO topics (name, config) VALUES (?, ?)", (name, orjson.dumps(dict(config)).decode())
        ).lastrowid
        created = []
        for number in range(partitions):
            id_ = db.execute(
                "INSERT INTO partitions (topic, partition, start, next, count, bytes, clean) VALUES (?, ?, 0, 0, 0, 0, 0)",
                (topic, number),
            ).lastrowid
            assert id_ is not None  # noqa: S101 - for the type checker: an INSERT has a rowid
            db.execute(
                f"CREATE TABLE log_{id_} (position INTEGER PRIMARY KEY, timestamp INTEGER NOT NULL,"
                " key BLOB, value BLOB, headers BLOB)"
            )
            if "compact" in config.get("cleanup.policy", ""):
                db.execute(f"CREATE INDEX log_{id_}_key ON log_{id_} (key)")
            self._changed[id_] = _Counts(0, 0, 0, 0)
            created.append(_Meta(id_, name, number, dict(config), 0, 0, 0))
        return created

    def append(self, batches: Sequence[tuple[int, Sequence[Message]]], now: int) -> list[tuple[int, int]]:
        """The messages, in order; each partition's new end."""
        db = self._open_db
        ends = []
        for id_, messages in batches:
            counts = self._change(id_)
            offset = counts.end
            size = 0
            rows = []
            for message in messages:
                headers = pack_headers(message.headers) if message.headers else None
                key, value = message.key, message.value
                size += len(key or b"") + len(value or b"") + len(headers or b"")
                rows.append(
                    (
                        offset,
                        now if message.timestamp_ms is None else message.timestamp_ms,
                        key,
                        value,
                        headers,
                    )
                )
                offset += 1
            db.executemany(f"INSERT INTO log_{id_} VALUES (?, ?, ?, ?, ?)", rows)  # noqa: S608 - our own number
            counts.count += len(rows)
            counts.bytes += size
            counts.end = offset
            ends.append((id_, offset))
        return ends

    def commit(self, group: str, positions: Sequence[tuple[int, Position]]) -> None:
        self._open_db.executemany(
            "INSERT OR REPLACE INTO commits VALUES (?, ?, ?, ?)",
            [(group, id_, position.offset, position.metadata) for id_, position in positions],
        )

    def expire(self, id_: int, before: int | None, keep: int | None) -> _Swept:
        """Delete the oldest records that are from `before` then (Unix ms), or beyond `keep` bytes."""
        db = self._open_db
        counts = self._change(id_)
        start, count, size = counts.start, counts.count, counts.bytes
        rows = 0
        for offset, timestamp, length in db.execute(
            f"SELECT position, timestamp, {_LENGTH} FROM log_{id_} ORDER BY position LIMIT {_CHUNK}"  # noqa: S608
        ):
            if not ((before is not None and timestamp < before) or (keep is not None and size > keep)):
                break
            rows += 1
            count -= 1
            size -= length
            start = offset + 1
        if not count:
            start = counts.end
        if rows:
            db.execute(f"DELETE FROM log_{id_} WHERE position < ?", (start,))  # noqa: S608
            counts.start, counts.count, counts.bytes = start, count, size
        return _Swept(start, start, rows < _CHUNK)

    def compact(self, id_: int, begin: int, end: int, forget: int) -> _Swept:
        """Of the next records below `end`, delete those whose key comes again later, and tombstones from before `forget`."""
        db = self._open_db
        counts = self._change(id_)
        rows = db.execute(
            f"SELECT position, {_LENGTH}, EXISTS (SELECT 1 FROM log_{id_} b WHERE b.key = a.key AND b.position > a.position),"  # noqa: S608
            f" a.value IS NULL AND a.timestamp < ? FROM log_{id_} a WHERE position >= ? AND position < ?"
            f" ORDER BY position LIMIT {_CHUNK}",
            (forget, begin, end),
        ).fetchall()
        gone = [(offset, length) for offset, length, again, forgotten in rows if again or forgotten]
        db.executemany(f"DELETE FROM log_{id_} WHERE position = ?", [(offset,) for offset, _ in gone])  # noqa: S608
        counts.count -= len(gone)
        counts.bytes -= sum(length for _, length in gone)
        done = len(rows) < _CHUNK
        reached = end if done else rows[-1][0] + 1
        if done:
            db.execute("UPDATE partitions SET clean=? WHERE id=?", (end, id_))
        return _Swept(counts.start, reached, done)

    # Reading.

    def fetch(self, requests: Sequence[_Request], limit: int) -> list[_Batch]:
        """From each request's offset on, together at most `limit` records."""
        db = self._open_db
        batches = []
        room = _POLL_BYTES
        for id_, partition, offset in requests:
            topic, number = partition
            records: list[Record] = []
            following = offset
            full = False
            for position, timestamp, key, value, headers in db.execute(
                f"SELECT position, timestamp, key, value, headers FROM log_{id_}"  # noqa: S608
                " WHERE position >= ? ORDER BY position LIMIT ?",
                (offset, limit),
            ):
                records.append(
                    StoredRecord(
                        topic,
                        number,
                        position,
                        timestamp,
                        key,
                        value,
                        unpack_headers(headers) if headers else (),
                    )
                )
                following = position + 1
                room -= len(value or b"") + len(headers or b"")
                if room <= 0:
                    full = True
                    break
            limit -= len(records)
            if not full and limit:
                # Nothing more is there: what was compacted away at the end isn't waited for.
                following = max(following, self._counts[id_].end)
            batches.append(_Batch(partition, records, following))
            if full or limit <= 0:
                break
        return batches

    def committed(self, group: str) -> dict[int, Position]:
        return {
            id_: Position(offset, metadata)
            for id_, offset, metadata in self._open_db.execute(
                "SELECT partition, position, metadata FROM commits WHERE member_group=?", (group,)
            )
        }

    def count(self, id_: int) -> int:
        """Records in it."""
        return self._counts[id_].count

    def give_back(self) -> bool:
        """Shrink the file a little where much of it is free; whether there is more to do."""
        db = self._open_db
        free = db.execute("PRAGMA freelist_count").fetchone()[0]
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        if free < _FREE_PAGES or free * 4 < pages:
            return False
        db.execute(f"PRAGMA incremental_vacuum({_FREE_PAGES})").fetchall()
        return True

    def limit_pages(self, pages: int) -> None:
        """Let the file grow no further than this: a full disk, for tests."""
        self._open_db.execute(f"PRAGMA max_page_count={pages}").fetchone()


_LENGTH = "ifnull(length(key), 0) + ifnull(length(value), 0) + ifnull(length(headers), 0)"


def pack_headers(headers: Sequence[tuple[str, bytes | None]]) -> bytes:
    """Lengths first, then the names and values: one unpack and slices read it."""
    lengths: list[int] = []
    parts: list[bytes] = []
    for name, value in headers:
        encoded = name.encode()
        lengths.append(len(encoded))
        parts.append(encoded)
        if value is None:
            lengths.append(_NULL)
        else:
            lengths.append(len(value))
            parts.append(value)
    return pack(f"<I{len(lengths)}I", len(lengths), *lengths) + b"".join(parts)


def unpack_headers(packed: bytes) -> list[tuple[str, bytes | None]]:
    (count,) = unpack_from("<I", packed)
    at = 4 + 4 * count
    headers: list[tuple[str, bytes | None]] = []
    lengths = iter(unpack_from(f"<{count}I", packed, 4))
    for length in lengths:
        name = packed[at : at + length].decode()
        at += length
        size = next(lengths)
        if size == _NULL:
            headers.append((name, None))
        else:
            headers.append((name, packed[at : at + size]))
            at += size
    return headers


def _take_lock(path: Path) -> int:
    """The lock file's descriptor; BrokerRefused when another process holds it."""
    lock = path.with_name(path.name + ".lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
            raise
        raise BrokerRefused(
            f"{path} is in use by process {holder or 'unknown'}: the embedded broker serves one process at a time;"
            " stop that one, or use Kafka"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    return descriptor


def _mapped(error: Exception, path: Path) -> BrokerError:
    """SQLite's and the system's errors in the port's words."""
    if isinstance(error, BrokerError):
        return error
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT}:
        return BrokerUnavailable(
            f"the disk of {path} is full: free some space; nothing that was acknowledged is lost"
        )
    if isinstance(error, PermissionError) or code in {
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PERM,
    }:
        return BrokerRefused(f"{path} can't be opened for writing: {error}")
    if code in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}:
        return BrokerRefused(f"{path} is no database, or damaged: {error}")
    if isinstance(error, OSError) and error.errno in {errno.ENOTDIR, errno.EEXIST, errno.EROFS, errno.EISDIR}:
        return BrokerRefused(f"{path} can't be used: {error}")
    if isinstance(error, sqlite3.OperationalError | OSError):
        return BrokerUnavailable(f"{path}: {error}")
    return BrokerError(f"{path}: {error}")


# ---------------------------------------------------------------------------------------------
# The broker: on the event loop.
# ---------------------------------------------------------------------------------------------


class _Partition:
    """A partition as the loop knows it. `end` is the next offset to be given out (rule 2)."""

    __slots__ = ("clean", "end", "id", "key", "readers", "start", "topic")

    def __init__(self, meta: _Meta, topic: _Topic) -> None:
        self.id = meta.id
        self.key = TopicPartition(meta.topic, meta.partition)
        self.topic = topic
        self.start = meta.start
        self.end = meta.end
        self.clean = meta.clean
        self.readers: set[SqliteConsumer] = set()


class _Topic:
    """A topic; its settings are complete."""

    __slots__ = ("compacted", "deleted", "largest", "name", "partitions", "settings")

    def __init__(self, name: str, settings: dict[str, str]) -> None:
        self.name = name
        self.settings = settings
        policies = {policy.strip() for policy in self.settings["cleanup.policy"].split(",")}
        self.compacted = "compact" in policies
        self.deleted = "delete" in policies
        self.largest = int(self.settings["max.message.bytes"])
        self.partitions: list[_Partition] = []


class _Write:
    """A change on its way into the file, and what follows from it on the loop."""

    __slots__ = ("change", "done", "future")

    def __init__(
        self, change: Callable[[_File], Any], done: Callable[[Any], None] | None, future: asyncio.Future[Any]
    ) -> None:
        self.change = change
        self.done = done
        self.future = future


class SqliteBroker:
    """The embedded broker on the file `path`."""

    def __init__(
        self,
        path: Path,
        *,
        partitions: int = DEFAULT_PARTITIONS,
        retention: float = 7 * 86400.0,
        offset_reset: str = "earliest",
        rebalance_timeout: float = 60.0,
        maintenance_interval: float = 60.0,
    ) -> None:
        """`partitions` and `retention` (seconds) are for topics that don't say; `offset_reset` is where a
        group without a committed offset starts; intervals in seconds.
        """
        self._path = path
        self._default_partitions = partitions
        self._defaults = DEFAULTS | {"retention.ms": str(round(retention * 1000))}
        self._from_latest = offset_reset == "latest"
        self._rebalance_timeout = rebalance_timeout
        self._maintenance_interval = maintenance_interval
        self._file = _File(path)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite")
        self._tasks = Tasks()
        self._topics: dict[str, _Topic] = {}
        self._partitions: dict[int, _Partition] = {}
        self._groups: dict[str, _Group] = {}
        self._sticky = StickyPartitions()
        self._writes: list[_Write] = []
        self._writing: asyncio.Future[Any] | None = None
        self._new_topics = asyncio.Event()
        self._problem: str | None = "not connected yet"
        self._connected = False

    @property
    def problem(self) -> str | None:
        return self._problem

    async def connect(self) -> None:
        if self._connected:
            return
        tries = 0
        while not self._connected:
            try:
                self._add(await self._run(self._file.open))
                self._connected = True
            except BrokerUnavailable as error:
                pause = _PAUSES[min(tries, len(_PAUSES) - 1)]
                tries += 1
                self._problem = str(error)
                log.warning("can't open the log, trying again", error=str(error), tries=tries, pause=pause)
                await asyncio.sleep(pause)
        self._problem = None
        self._tasks.start(self._maintain(), "sqlite maintenance")

    def _add(self, found: Iterable[_Meta]) -> None:
        for meta in found:
            topic = self._topics.get(meta.topic)
            if topic is None:
                topic = self._topics[meta.topic] = _Topic(meta.topic, self._defaults | meta.config)
            partition = _Partition(meta, topic)
            topic.partitions.append(partition)
            self._partitions[meta.id] = partition
        self._new_topics.set()
        self._new_topics = asyncio.Event()

    async def close(self) -> None:
        for group in list(self._groups.values()):
            for member in list(group.members):
                await member.stop()
        await self._tasks.stop()
        while self._writing is not None:
            await asyncio.wait([self._writing])
        if self._connected:
            self._connected = False
            await self._run(self._file.close)
        self._problem = "closed"
        self._executor.shutdown(wait=False)

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        """In the file's thread; errors in the port's words."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)
        except (BrokerError, sqlite3.Error, OSError) as error:
            raise _mapped(error, self._path) from error

    async def _write(self, change: Callable[[_File], T], done: Callable[[T], None] | None = None) -> T:
        """Make the change with the next transaction; returns when it is on disk.

        `done` is called with the result even if the caller has been cancelled meanwhile.
        """
        if not self._connected:
            raise BrokerUnavailable(f"{self._path} is not open")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._writes.append(_Write(change, done, future))
        if self._writing is None:
            self._write_next()
        return await future

    def _write_next(self) -> None:
        writes, self._writes = self._writes, []
        changes = [write.change for write in writes]
        self._writing = asyncio.get_running_loop().run_in_executor(self._executor, self._file.write, changes)
        self._writing.add_done_callback(partial(self._written, writes))

    def _written(self, writes: list[_Write], outcome: asyncio.Future[list[Any]]) -> None:
        self._writing = None
        error = outcome.exception()
        if isinstance(error, Exception):
            mapped = _mapped(error, self._path)
            if isinstance(mapped, BrokerUnavailable):
                if self._problem is None:
                    log.error("can't write to the log", error=str(mapped))
                self._problem = str(mapped)
            for write in writes:
                if not write.future.done():
                    write.future.set_exception(_mapped(error, self._path))
        else:
            self._problem = None
            for write, result in zip(writes, outcome.result(), strict=True):
                if write.done is not None:
                    write.done(result)
                if not write.future.done():
                    write.future.set_result(result)
        if self._writes:
            self._write_next()

    # Topics.

    async def ensure_topics(self, topics: Sequence[TopicSpec], *, create: bool) -> Sequence[str]:
        missing = [spec for spec in topics if spec.name not in self._topics]
        if not create:
            return [spec.name for spec in missing]
        for spec in missing:
            _check_spec(spec)
        for spec in missing:
            if spec.name in self._topics:
                continue  # named twice, or created by another call meanwhile
            partitions = spec.partitions or self._default_partitions
            try:
                await self._write(
                    partial(_File.create, name=spec.name, partitions=partitions, config=spec.config),
                    self._add,
                )
            except BrokerError:
                if spec.name not in self._topics:
                    raise
            log.info("topic created", topic=spec.name, partitions=partitions)
        return []

    async def topics(self, group: str | None = None) -> Sequence[TopicInfo]:
        committed = {} if group is None else await self._run(self._file.committed, group)
        return [
            TopicInfo(
                topic.name,
                [
                    PartitionInfo(
                        partition.key.partition,
                        partition.start,
                        partition.end,
                        committed[partition.id].offset if partition.id in committed else None,
                    )
                    for partition in topic.partitions
                ],
                dict(topic.settings),
            )
            for topic in sorted(self._topics.values(), key=lambda topic: topic.name)
        ]

    # Writing and reading.

    async def produce(self, messages: Sequence[Message]) -> None:
        batches: dict[int, list[Message]] = {}
        topics = self._topics
        for message in messages:
            topic = topics.get(message.topic)
            if topic is None:
                raise BrokerRefused(f"topic {message.topic} does not exist")
            key, value = message.key, message.value
            size = len(value or b"") + len(key or b"")
            for name, content in message.headers:
                size += len(name) + len(content or b"")
            if size > topic.largest:
                raise MessageTooLarge(
                    f"a message of {size} bytes is larger than topic {topic.name} takes (max.message.bytes {topic.largest})"
                )
            partitions = topic.partitions
            if key is None and topic.compacted:
                raise BrokerRefused(f"topic {topic.name} is compacted: every message needs a key")
            if (number := message.partition) is not None:
                if not 0 <= number < len(partitions):
                    raise BrokerRefused(f"topic {topic.name} has no partition {number}")
            elif key is not None:
                number = partition_of(key, len(partitions))
            else:
                number = self._sticky.next(topic.name, size, len(partitions))
            batches.setdefault(partitions[number].id, []).append(message)
        if batches:
            now = time.time_ns() // 1_000_000
            await self._write(partial(_File.append, batches=list(batches.items()), now=now), self._appended)

    def _appended(self, ends: list[tuple[int, int]]) -> None:
        for id_, end in ends:
            partition = self._partitions[id_]
            partition.end = end
            for reader in partition.readers:
                reader.wake()

    async def read(self, partition: TopicPartition, offset: int) -> Record | None:
        topic = self._topics.get(partition.topic)
        if topic is None or not 0 <= partition.partition < len(topic.partitions) or offset < 0:
            return None
        request = _Request(
            topic.partitions[partition.partition].id, topic.partitions[partition.partition].key, offset
        )
        (batch,) = await self._run(self._file.fetch, [request], 1)
        if batch.records and batch.records[0].offset == offset:
            return batch.records[0]
        return None

    def consumer(self, topics: Collection[str], group: str, listener: AssignmentListener) -> SqliteConsumer:
        return SqliteConsumer(self, topics, group, listener)

    # Groups.

    def _join(self, member: SqliteConsumer) -> None:
        group = self._groups.get(member.group)
        if group is None:
            group = self._groups[member.group] = _Group(member.group)
        group.members.append(member)
        self._change(group)

    async def _leave(self, member: SqliteConsumer) -> None:
        group = self._groups.get(member.group)
        if group is None or member not in group.members:
            return
        group.members.remove(member)
        if group.members:
            self._change(group)
        else:
            del self._groups[member.group]

    def _change(self, group: _Group) -> None:
        group.version += 1
        if not group.rebalancing:
            group.rebalancing = True
            self._tasks.start(self._rebalance(group), f"rebalance {group.name}")

    async def _rebalance(self, group: _Group) -> None:
        """Revoke everything, assign everything, until nobody has come or gone meanwhile."""
        try:
            settled = -1
            while settled != group.version:
                version = group.version
                await self._revoke_all(group)
                try:
                    committed = await self._run(self._file.committed, group.name)
                except BrokerUnavailable as error:
                    log.warning(
                        "can't read committed offsets, trying again", error=str(error), group=group.name
                    )
                    await asyncio.sleep(1.0)
                    continue
                if version == group.version:
                    await self._assign_all(group, committed)
                    settled = version
        finally:
            group.rebalancing = False

    async def _assign_all(self, group: _Group, committed: Mapping[int, Position]) -> None:
        members = [(member, member.topics) for member in group.members if not member.revoking]
        sizes = {name: len(topic.partitions) for name, topic in self._topics.items()}
        await asyncio.gather(
            *(member.take(self._starts(share, committed)) for member, share in assign(members, sizes))
        )

    async def _revoke_all(self, group: _Group) -> None:
        revoking = [
            self._tasks.start(self._revoke(group, member), f"revoke {group.name}")
            for member in group.members
            if not member.revoking
        ]
        if not revoking:
            return
        _, late = await asyncio.wait(revoking, timeout=self._rebalance_timeout)
        for task in late:
            # As in Kafka: the group goes on without it, and it joins again when it is ready.
            log.warning(
                "a member is late in giving up its partitions", group=group.name, task=task.get_name()
            )
        for member in group.members:
            if member.revoking:
                member.late = True
                member.drop()

    async def _revoke(self, group: _Group, member: SqliteConsumer) -> None:
        await member.give_up()
        if member.late:
            member.late = False
            if member in group.members:
                self._change(group)

    def _starts(
        self, share: Iterable[TopicPartition], committed: Mapping[int, Position]
    ) -> dict[_Partition, Position]:
        starts = {}
        for name, number in share:
            partition = self._topics[name].partitions[number]
            position = committed.get(partition.id)
            if position is None:
                position = Position(partition.end if self._from_latest else partition.start)
            elif not partition.start <= position.offset <= partition.end:
                position = Position(partition.start)  # what was noted of that offset holds no more
            starts[partition] = position
        return starts

    # Retention and compaction.

    async def _maintain(self) -> None:
        while True:
            await asyncio.sleep(self._maintenance_interval)
            try:
                await self.maintain()
            except BrokerError as error:
                log.warning("retention or compaction failed, trying again later", error=str(error))

    async def maintain(self) -> None:
        """Apply retention and compaction once, now. Runs by itself every `maintenance_interval`."""
        for partition in list(self._partitions.values()):
            if partition.topic.deleted:
                await self._expire(partition)
            if partition.topic.compacted:
                await self._compact(partition)
        while await self._run(self._file.give_back):
            pass

    async def _expire(self, partition: _Partition) -> None:
        settings = partition.topic.settings
        age, keep = int(settings["retention.ms"]), int(settings["retention.bytes"])
        before = None if age < 0 else time.time_ns() // 1_000_000 - age
        while True:
            swept = await self._write(
                partial(_File.expire, id_=partition.id, before=before, keep=None if keep < 0 else keep),
                partial(_set_start, partition),
            )
            if swept.done:
                return

    async def _compact(self, partition: _Partition) -> None:
        settings = partition.topic.settings
        end = partition.end
        count = await self._run(self._file.count, partition.id)
        if end - partition.clean <= count * float(settings["min.cleanable.dirty.ratio"]):
            return
        forget = time.time_ns() // 1_000_000 - int(settings["delete.retention.ms"])
        begin = partition.start
        while True:
            swept = await self._write(
                partial(_File.compact, id_=partition.id, begin=begin, end=end, forget=forget)
            )
            if swept.done:
                partition.clean = end
                return
            begin = swept.reached


def _set_start(partition: _Partition, swept: _Swept) -> None:
    partition.start = swept.start


def _check_spec(spec: TopicSpec) -> None:
    if not _TOPIC_NAME.fullmatch(spec.name):
        raise BrokerRefused(
            f"{spec.name!r} is no topic name: 1 to 249 characters of a-z, A-Z, 0-9, dot, underscore and hyphen"
        )
    if spec.partitions is not None and not 1 <= spec.partitions <= MAX_PARTITIONS:
        raise BrokerRefused(f"topic {spec.name}: partitions must be from 1 to {MAX_PARTITIONS}")
    for name in ("retention.ms", "retention.bytes", "max.message.bytes", "delete.retention.ms"):
        try:
            int(spec.config.get(name, "0"))
        except ValueError:
            raise BrokerRefused(
                f"topic {spec.name}: {name} must be a number, not {spec.config[name]!r}"
            ) from None


class _Group:
    """The members of a group. Its rebalance task alone revokes and assigns."""

    __slots__ = ("members", "name", "rebalancing", "version")

    def __init__(self, name: str) -> None:
        self.name = name
        self.members: list[SqliteConsumer] = []
        self.version = 0  # of the membership
        self.rebalancing = False


M = TypeVar("M")


def assign(
    members: Sequence[tuple[M, Collection[str]]], topics: Mapping[str, int]
) -> list[tuple[M, list[TopicPartition]]]:
    """Deal out the partitions in turn, each to a member that asked for its topic (Kafka's round robin)."""
    shares: list[tuple[M, list[TopicPartition]]] = [(member, []) for member, _ in members]
    turn = 0
    for name in sorted({name for _, wanted in members for name in wanted}):
        for number in range(topics.get(name, 0)):
            while name not in members[turn % len(members)][1]:
                turn += 1
            shares[turn % len(members)][1].append(TopicPartition(name, number))
            turn += 1
    return shares


class SqliteConsumer:
    """A member of a group. `_open` holds from the end of `on_assigned` to the beginning of `on_revoked`."""

    def __init__(
        self, broker: SqliteBroker, topics: Collection[str], group: str, listener: AssignmentListener
    ) -> None:
        self.topics = frozenset(topics)
        self.group = group
        self.revoking = False
        self.late = False
        self._broker = broker
        self._listener = listener
        self._mine: dict[TopicPartition, _Partition] = {}
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._open = False
        self._stopped = False
        self._generation = 0
        self._turn = 0
        self._wake = asyncio.Event()
        self._joined = asyncio.Event()
        self._failure: BaseException | None = None
        self._problem: str | None = "not started yet"

    @property
    def problem(self) -> str | None:
        return self._problem or self._broker.problem

    async def start(self) -> None:
        broker = self._broker
        while missing := sorted(self.topics - broker._topics.keys()):
            self._problem = f"topic {', '.join(missing)} does not exist"
            log.warning("waiting for topics", missing=missing, group=self.group)
            await broker._new_topics.wait()
        self._problem = "waiting for partitions"
        broker._join(self)
        await self._joined.wait()

    async def stop(self) -> None:
        self._stopped = True
        self.drop()
        self.wake()
        self._problem = "stopped"
        await self._broker._leave(self)

    # What the group does with it.

    async def give_up(self) -> None:
        """Tell the listener, then let go of everything."""
        self._open = False
        self._problem = "the group is rebalancing"
        if not self._mine or self._stopped:
            return
        self.revoking = True
        try:
            await self._listener.on_revoked(frozenset(self._mine))
        except Exception as error:
            log.exception("on_revoked failed", group=self.group)
            self._failure = error
        finally:
            self.revoking = False
            self.drop()

    def drop(self) -> None:
        """Let go of everything at once; commits are refused from now on."""
        self._open = False
        self._generation += 1
        for partition in self._mine.values():
            partition.readers.discard(self)
        self._mine = {}
        self._positions = {}
        self._paused = set()

    async def take(self, starts: Mapping[_Partition, Position]) -> None:
        """These are its partitions now."""
        if self._stopped:
            return
        self.drop()
        self._mine = {partition.key: partition for partition in starts}
        self._positions = {partition.key: position.offset for partition, position in starts.items()}
        try:
            await self._listener.on_assigned(
                {partition.key: position for partition, position in starts.items()}
            )
        except Exception as error:
            log.exception("on_assigned failed", group=self.group)
            self._failure = error
        if self._mine.keys() != {partition.key for partition in starts}:
            return  # stopped meanwhile
        for partition in starts:
            partition.readers.add(self)
        self._open = True
        self._problem = None
        self._joined.set()
        self.wake()

    def wake(self) -> None:
        self._wake.set()

    # What its owner does with it.

    async def poll(self, timeout: float, limit: int) -> Sequence[tuple[TopicPartition, Sequence[Record]]]:
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        while True:
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise BrokerError("a change of assignment could not be handled") from failure
            if self._stopped:
                return ()
            self._wake.clear()
            pause = deadline - clock()
            if self._open and (requests := self._requests()):
                try:
                    batches = await self._fetch(requests, limit)
                except BrokerUnavailable as error:
                    self._problem = str(error)
                    log.warning("can't read, trying again", error=str(error), group=self.group)
                    pause = min(pause, 1.0)
                else:
                    if batches:
                        return batches
                    continue
            if pause <= 0:
                await asyncio.sleep(0)
                return ()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    def _requests(self) -> list[_Request]:
        """What there is to read, beginning with another partition each time."""
        positions = self._positions
        requests = [
            _Request(partition.id, key, positions[key])
            for key, partition in self._mine.items()
            if positions[key] < partition.end and key not in self._paused
        ]
        if len(requests) > 1:
            self._turn += 1
            first = self._turn % len(requests)
            requests = requests[first:] + requests[:first]
        return requests

    async def _fetch(
        self, requests: Sequence[_Request], limit: int
    ) -> list[tuple[TopicPartition, Sequence[Record]]]:
        generation = self._generation
        fetched = await self._broker._run(self._broker._file.fetch, requests, limit)
        if generation != self._generation or not self._open:
            return []
        self._problem = None
        batches: list[tuple[TopicPartition, Sequence[Record]]] = []
        for partition, records, following in fetched:
            if partition in self._paused:
                continue  # since the read began
            self._positions[partition] = following
            if records:
                batches.append((partition, records))
        return batches

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        self._paused.update(partition for partition in partitions if partition in self._mine)

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        self._paused.difference_update(partitions)
        self.wake()

    async def commit(self, positions: Mapping[TopicPartition, Position]) -> None:
        rows = []
        for key, position in positions.items():
            partition = self._mine.get(key)
            if partition is None:
                raise CommitRefused(f"partition {key[0]}-{key[1]} is not assigned to this member")
            if len(position.metadata.encode()) > METADATA_LIMIT:
                raise BrokerRefused(f"commit metadata is limited to {METADATA_LIMIT} bytes")
            rows.append((partition.id, position))
        if rows:
            await self._broker._write(partial(_File.commit, group=self.group, positions=rows))

    def assignment(self) -> Collection[TopicPartition]:
        return frozenset(self._mine)

    def lag(self) -> Mapping[TopicPartition, int]:
        return {key: max(0, partition.end - self._positions[key]) for key, partition in self._mine.items()}
