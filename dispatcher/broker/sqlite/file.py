"""The embedded broker's file: its tables, its lock, and the SQL of every change.

The file holds a table per partition whose rowid is the offset. An append then always goes to the
right edge of its own B-tree, reading from an offset is one seek, and retention cuts at the left
edge. One table for all partitions was rejected: appends in the middle of a tree split pages, and
rows of a kilobyte overflow in the `WITHOUT ROWID` form that such a primary key asks for.

Rules:

1. A `LogFile` belongs to one thread, that of its `LogStore`; nothing in here knows of the event loop.
2. An offset is given out inside the transaction that stores the record. `_counts` is what is committed,
   `_changed` what the open transaction makes of it.
3. A transaction that fails leaves nothing behind, neither in the file nor in `_counts`.
4. One process at a time holds the file, and nobody but its owner reads it (`access.py`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from struct import error as StructError, pack, unpack_from  # noqa: N812 - `error` is what handlers call theirs
from typing import Any, NamedTuple

import orjson

from dispatcher.broker.base import (
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    Message,
    Position,
    Record,
    StoredRecord,
    TopicPartition,
    UnreadableRecord,
)
from dispatcher.broker.sqlite.access import claim, real_file

_APPLICATION_ID = 0x77686470  # "whdp"
_VERSION = 1
_PAGE_SIZE = 8192
_POLL_BYTES = 8 << 20  # one poll returns at most this much, or one record
_CHUNK = 2000  # rows that one step of retention or compaction looks at: some milliseconds
_FREE_PAGES = 1024
_NULL = 0xFFFFFFFF
_LENGTH = "ifnull(length(key), 0) + ifnull(length(value), 0) + ifnull(length(headers), 0)"


class Meta(NamedTuple):
    """A partition as the file has it."""

    id: int
    topic: str
    partition: int
    config: dict[str, str]
    start: int
    end: int
    clean: int


class ReadRequest(NamedTuple):
    """Read partition `id` from `offset`."""

    id: int
    partition: TopicPartition
    offset: int


class Batch(NamedTuple):
    """What was read; `next` is where reading goes on."""

    partition: TopicPartition
    records: list[Record]
    next: int


class Swept(NamedTuple):
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


class LogFile:
    """The SQLite file `path`, for one thread (rule 1)."""

    def __init__(self, path: Path) -> None:
        self._path = real_file(path)
        self._db: sqlite3.Connection | None = None
        self._lock: int | None = None
        self._counts: dict[int, _Counts] = {}
        self._changed: dict[int, _Counts] = {}  # by the open transaction

    def open(self) -> list[Meta]:
        """Lock and open the file; the partitions in it."""
        self._lock = claim(self._path)
        try:
            return self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> list[Meta]:
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
            found.append(Meta(id_, topic, number, orjson.loads(config), start, end, clean))
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

    def write(self, changes: Sequence[Callable[[LogFile], Any]]) -> list[Any]:
        """All of them, in one transaction; the result of each."""
        with self._transaction():
            return [change(self) for change in changes]

    # Changes: called inside a transaction.

    def create(self, name: str, partitions: int, config: Mapping[str, str]) -> list[Meta]:
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
            created.append(Meta(id_, name, number, dict(config), 0, 0, 0))
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

    def expire(self, id_: int, before: int | None, keep: int | None) -> Swept:
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
        return Swept(start, start, rows < _CHUNK)

    def compact(self, id_: int, begin: int, end: int, forget: int) -> Swept:
        """Of the next records below `end`, delete those whose key comes again below it, and tombstones from before `forget`."""
        db = self._open_db
        counts = self._change(id_)
        rows = db.execute(
            f"SELECT position, {_LENGTH}, EXISTS (SELECT 1 FROM log_{id_} b WHERE b.key = a.key AND b.position > a.position"  # noqa: S608
            " AND b.position < ?),"
            f" a.value IS NULL AND a.timestamp < ? FROM log_{id_} a WHERE position >= ? AND position < ?"
            f" ORDER BY position LIMIT {_CHUNK}",
            (end, forget, begin, end),
        ).fetchall()
        gone = [(offset, length) for offset, length, again, forgotten in rows if again or forgotten]
        db.executemany(f"DELETE FROM log_{id_} WHERE position = ?", [(offset,) for offset, _ in gone])  # noqa: S608
        counts.count -= len(gone)
        counts.bytes -= sum(length for _, length in gone)
        done = len(rows) < _CHUNK
        reached = end if done else rows[-1][0] + 1
        if done:
            db.execute("UPDATE partitions SET clean=? WHERE id=?", (end, id_))
        return Swept(counts.start, reached, done)

    # Reading.

    def fetch(self, requests: Sequence[ReadRequest], limit: int, room: int = _POLL_BYTES) -> list[Batch]:
        """From each request's offset on, together at most `limit` records, and some `room` bytes of them."""
        db = self._open_db
        batches = []
        for id_, partition, offset in requests:
            records: list[Record] = []
            following = offset
            full = False
            for position, timestamp, key, value, headers in db.execute(
                f"SELECT position, timestamp, key, value, headers FROM log_{id_}"  # noqa: S608
                " WHERE position >= ? ORDER BY position LIMIT ?",
                (offset, limit),
            ):
                try:
                    unpacked = unpack_headers(headers) if headers else ()
                except (ValueError, StructError, StopIteration) as error:
                    records.append(
                        UnreadableRecord(
                            position, timestamp, key, value, problem=f"its headers can't be unpacked: {error}"
                        )
                    )
                else:
                    records.append(StoredRecord(position, timestamp, key, value, unpacked))
                following = position + 1
                room -= len(value or b"") + len(headers or b"")
                if room <= 0:
                    full = True
                    break
            limit -= len(records)
            if not full and limit:
                # Nothing more is there: what was compacted away at the end isn't waited for.
                following = max(following, self._counts[id_].end)
            batches.append(Batch(partition, records, following))
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

    def all_committed(self) -> dict[str, dict[int, Position]]:
        found: dict[str, dict[int, Position]] = {}
        for group, id_, offset, metadata in self._open_db.execute(
            "SELECT member_group, partition, position, metadata FROM commits"
        ):
            found.setdefault(group, {})[id_] = Position(offset, metadata)
        return found

    def count(self, id_: int) -> int:
        """Records in it."""
        return self._counts[id_].count

    def uncleanable(self, id_: int, begin: int, end: int, since: int) -> int:
        """The first position from `begin` on whose record is younger than `since` (Unix ms); `end` if none is."""
        row = self._open_db.execute(
            f"SELECT position FROM log_{id_} WHERE position >= ? AND position < ? AND timestamp > ?"  # noqa: S608
            " ORDER BY position LIMIT 1",
            (begin, end, since),
        ).fetchone()
        return end if row is None else int(row[0])

    def give_back(self) -> bool:
        """Shrink the file a little where much of it is free; whether there is more to do."""
        db = self._open_db
        free = db.execute("PRAGMA freelist_count").fetchone()[0]
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        if free < _FREE_PAGES or free * 4 < pages:
            return False
        db.execute(f"PRAGMA incremental_vacuum({_FREE_PAGES})").fetchall()
        return True


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


# What somebody has to change; a path that can't be made is not one that appears by itself.
_IMPOSSIBLE = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EROFS,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
}


def mapped(error: Exception, path: Path) -> BrokerError:
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
    if isinstance(error, OSError) and error.errno in _IMPOSSIBLE:
        return BrokerRefused(f"{path} can't be used: {error}")
    if isinstance(error, sqlite3.OperationalError | OSError):
        return BrokerUnavailable(f"{path}: {error}")
    return BrokerError(f"{path}: {error}")
