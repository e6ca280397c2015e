"""The embedded broker's file as the event loop knows it: its thread, its topics, retention, compaction.

SQLite blocks, so every statement runs in one thread of its own. Writes that arrive while it is
busy wait together and then share one transaction, hence one fsync (group commit): WAL with
`synchronous=FULL` makes an acknowledged append durable at the price of one fsync per transaction
instead of one per record. Calls of 1,000 records of 1 KiB: 55,000 appends/s (15 us of CPU each) and 200,000
reads/s; single records from 100 tasks at once: 14,000 appends/s (one core, NVMe).

Rules:

1. The `LogFile` is used in the store's one thread; everything else here is the event loop's.
2. `Partition.end` moves on the loop after the commit, so a reader never waits for what was rolled back.
3. A write that fails fails its whole transaction: nothing of it is in the file, and each of its
   callers gets the error.
4. Retention and compaction look at nobody's committed offset, as in Kafka: what is older than
   `retention.ms` (default 7 days), or beyond `retention.bytes` (per partition, default unlimited), is
   deleted whether it was read or not. The file keeps its size and uses the pages again; it shrinks when
   more than a quarter of it is free.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog

from dispatcher.broker.base import (
    BrokerError,
    BrokerUnavailable,
    Message,
    Position,
    TopicPartition,
)
from dispatcher.broker.sqlite.file import Batch, LogFile, Meta, ReadRequest, Swept, mapped
from dispatcher.runtime.backoff import Backoff

log = structlog.get_logger(__name__)
T = TypeVar("T")


class RecordWaiter(Protocol):
    """Who waits for a partition's next record."""

    def wake(self) -> None:
        """There is more to read."""


class Partition:
    """A partition as the loop knows it. `end` is the next offset to be given out (rule 2)."""

    __slots__ = ("clean", "end", "id", "key", "readers", "start", "topic")

    def __init__(self, meta: Meta, topic: Topic) -> None:
        self.id = meta.id
        self.key = TopicPartition(meta.topic, meta.partition)
        self.topic = topic
        self.start = meta.start
        self.end = meta.end
        self.clean = meta.clean
        self.readers: set[RecordWaiter] = set()


class Topic:
    """A topic; its settings are complete."""

    __slots__ = ("compacted", "deleted", "largest", "name", "partitions", "settings")

    def __init__(self, name: str, settings: dict[str, str]) -> None:
        self.name = name
        self.settings = settings
        policies = {policy.strip() for policy in self.settings["cleanup.policy"].split(",")}
        self.compacted = "compact" in policies
        self.deleted = "delete" in policies
        self.largest = int(self.settings["max.message.bytes"])
        self.partitions: list[Partition] = []


class _Write:
    """A change on its way into the file, and what follows from it on the loop."""

    __slots__ = ("change", "done", "future")

    def __init__(
        self,
        change: Callable[[LogFile], Any],
        done: Callable[[Any], None] | None,
        future: asyncio.Future[Any],
    ) -> None:
        self.change = change
        self.done = done
        self.future = future


class LogStore:
    """The file `path`, and the topics in it."""

    def __init__(self, path: Path, defaults: Mapping[str, str]) -> None:
        """`defaults` are the settings that a topic's own config leaves out, all there are."""
        self.topics: dict[str, Topic] = {}
        self.topics_added = asyncio.Event()  # the next one: it is set once, and replaced
        self._path = path
        self._defaults = dict(defaults)
        self._partitions: dict[int, Partition] = {}
        self._file = LogFile(path)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite")
        self._writes: list[_Write] = []
        self._writing: asyncio.Future[Any] | None = None
        self._problem: str | None = "not connected yet"
        self._open = False

    @property
    def is_open(self) -> bool:
        return self._open

    @property
    def problem(self) -> str | None:
        """What is wrong with the file, or with the last write to it."""
        return self._problem

    async def open(self) -> None:
        """Return once the file is locked and open. Tries again while that may help; BrokerRefused if it can't."""
        backoff = Backoff()
        while not self._open:
            try:
                self._add(await self._run(self._file.open))
                self._open = True
            except BrokerUnavailable as error:
                pause = backoff.failed()
                self._problem = str(error)
                log.warning(
                    "can't open the log, trying again", error=str(error), tries=backoff.failures, pause=pause
                )
                await asyncio.sleep(pause)
        self._problem = None

    async def close(self) -> None:
        """Write what waits, then let go of the file."""
        while self._writing is not None:
            await asyncio.wait([self._writing])
        if self._open:
            self._open = False
            await self._run(self._file.close)
        self._problem = "closed"
        self._executor.shutdown(wait=False)

    def _add(self, found: Iterable[Meta]) -> None:
        for meta in found:
            topic = self.topics.get(meta.topic)
            if topic is None:
                topic = self.topics[meta.topic] = Topic(meta.topic, self._defaults | meta.config)
            partition = Partition(meta, topic)
            topic.partitions.append(partition)
            self._partitions[meta.id] = partition
        self.topics_added.set()
        self.topics_added = asyncio.Event()

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        """In the file's thread; errors in the port's words."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)
        except (BrokerError, sqlite3.Error, OSError) as error:
            raise mapped(error, self._path) from error

    async def _write(self, change: Callable[[LogFile], T], done: Callable[[T], None] | None = None) -> T:
        """Make the change with the next transaction; returns when it is on disk.

        `done` is called with the result even if the caller has been cancelled meanwhile.
        """
        if not self._open:
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
            problem = mapped(error, self._path)
            if isinstance(problem, BrokerUnavailable):
                if self._problem is None:
                    log.error("can't write to the log", error=str(problem))
                self._problem = str(problem)
            for write in writes:
                if not write.future.done():
                    write.future.set_exception(mapped(error, self._path))
        else:
            self._problem = None
            for write, result in zip(writes, outcome.result(), strict=True):
                if write.done is not None:
                    write.done(result)
                if not write.future.done():
                    write.future.set_result(result)
        if self._writes:
            self._write_next()

    # What is kept.

    async def create(self, name: str, partitions: int, config: Mapping[str, str]) -> None:
        """Add a topic."""
        await self._write(partial(LogFile.create, name=name, partitions=partitions, config=config), self._add)

    async def append(self, batches: Mapping[int, Sequence[Message]]) -> list[tuple[int, int]]:
        """Add messages to partitions, by the partitions' ids; returns when they are on disk, with each one's new end."""
        now = time.time_ns() // 1_000_000
        return await self._write(
            partial(LogFile.append, batches=list(batches.items()), now=now), self._appended
        )

    def _appended(self, ends: list[tuple[int, int]]) -> None:
        for id_, end in ends:
            partition = self._partitions[id_]
            partition.end = end
            for reader in partition.readers:
                reader.wake()

    async def fetch(
        self, requests: Sequence[ReadRequest], limit: int, size: int | None = None
    ) -> list[Batch]:
        """From each request's offset on, together at most `limit` records, and some `size` bytes of them."""
        if size is None:
            return await self._run(self._file.fetch, requests, limit)
        return await self._run(self._file.fetch, requests, limit, size)

    async def commit(self, group: str, positions: Sequence[tuple[int, Position]]) -> None:
        """Keep a group's positions, by the partitions' ids."""
        await self._write(partial(LogFile.commit, group=group, positions=positions))

    async def committed(self, group: str) -> dict[int, Position]:
        """A group's positions, by the partitions' ids."""
        return await self._run(self._file.committed, group)

    def key_of(self, id_: int) -> TopicPartition:
        """The partition of this id."""
        return self._partitions[id_].key

    async def all_committed(self) -> dict[str, dict[int, Position]]:
        """Every group's positions, by the partitions' ids."""
        return await self._run(self._file.all_committed)

    # Retention and compaction (rule 4).

    async def maintain(self) -> None:
        """Apply retention and compaction once, now."""
        for partition in list(self._partitions.values()):
            if partition.topic.deleted:
                await self._expire(partition)
        await self.compact()
        while await self._run(self._file.give_back):
            pass

    async def compact(self) -> None:
        """Compact the topics that want it, as far as there is something to gain."""
        for partition in list(self._partitions.values()):
            if partition.topic.compacted:
                await self._compact(partition)

    async def _expire(self, partition: Partition) -> None:
        settings = partition.topic.settings
        age, keep = int(settings["retention.ms"]), int(settings["retention.bytes"])
        before = None if age < 0 else time.time_ns() // 1_000_000 - age
        while True:
            swept = await self._write(
                partial(LogFile.expire, id_=partition.id, before=before, keep=None if keep < 0 else keep),
                partial(_set_start, partition),
            )
            if swept.done:
                return

    async def _compact(self, partition: Partition) -> None:
        settings = partition.topic.settings
        end = partition.end
        lag = int(settings["min.compaction.lag.ms"])
        if lag > 0:
            since = time.time_ns() // 1_000_000 - lag
            end = await self._run(self._file.uncleanable, partition.id, partition.clean, end, since)
        count = await self._run(self._file.count, partition.id)
        if end - partition.clean <= count * float(settings["min.cleanable.dirty.ratio"]):
            return
        forget = time.time_ns() // 1_000_000 - int(settings["delete.retention.ms"])
        begin = partition.start
        while True:
            swept = await self._write(
                partial(LogFile.compact, id_=partition.id, begin=begin, end=end, forget=forget)
            )
            if swept.done:
                partition.clean = end
                return
            begin = swept.reached


def _set_start(partition: Partition, swept: Swept) -> None:
    partition.start = swept.start
