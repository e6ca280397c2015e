"""Reading one whole partition of the embedded broker without a group: a `Reader` of the port."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import structlog

from dispatcher.broker.base import BrokerUnavailable, Record, TopicPartition
from dispatcher.broker.sqlite.file import ReadRequest
from dispatcher.broker.sqlite.store import LogStore, Partition

log = structlog.get_logger(__name__)


class SqliteReader:
    """Reads a partition from its first record on, and follows it."""

    def __init__(self, store: LogStore, partition: TopicPartition) -> None:
        self._store = store
        self._key = partition
        self._partition: Partition | None = None
        self._position = 0  # the next offset to read
        self._end = 0  # where it has to come to be caught up
        self._caught_up = False
        self._stopped = False
        self._wake = asyncio.Event()
        self._problem: str | None = "not started yet"

    @property
    def caught_up(self) -> bool:
        return self._caught_up

    @property
    def problem(self) -> str | None:
        return self._problem

    async def start(self) -> None:
        while self._partition is None and not self._stopped:
            added = self._store.topics_added
            topic = self._store.topics.get(self._key.topic)
            if topic is None or self._key.partition >= len(topic.partitions):
                self._problem = f"partition {self._key.topic}-{self._key.partition} does not exist"
                log.warning("can't read the topic yet", error=self._problem)
                await added.wait()
                continue
            self._partition = topic.partitions[self._key.partition]
            self._partition.readers.add(self)
            self._position, self._end = self._partition.start, self._partition.end
            self._caught_up = self._position >= self._end
            self._problem = None

    async def read(self, timeout: float, limit: int) -> Sequence[Record]:
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        while not self._stopped and self._partition is not None:
            self._wake.clear()
            pause = deadline - clock()
            if self._position < self._partition.end:
                request = ReadRequest(self._partition.id, self._key, self._position)
                try:
                    (batch,) = await self._store.fetch([request], limit)
                except BrokerUnavailable as error:
                    self._problem = str(error)
                    log.warning("can't read, trying again", error=str(error), topic=self._key.topic)
                    pause = min(pause, 1.0)
                else:
                    self._problem = None
                    self._position = batch.next
                    self._caught_up = self._caught_up or self._position >= self._end
                    if batch.records:
                        return batch.records
                    continue
            if pause <= 0:
                await asyncio.sleep(0)
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
        return ()

    def wake(self) -> None:
        self._wake.set()

    async def stop(self) -> None:
        self._stopped = True
        self._problem = "stopped"
        if self._partition is not None:
            self._partition.readers.discard(self)
        self._wake.set()
