"""Reading one whole partition from Kafka without a group: a `Reader` of the port on a consumer of aiokafka.

The library goes on after records that were cut away, or in a topic that was made anew, as if nothing had happened
(`auto_offset_reset`). Here that is an error: who reads a whole partition keeps what it has read. The library's
background task may die without a word: `read` looks after it, and goes on with another consumer where the last one stopped.

Reading stands still before a batch that can't be unpacked, since later records may depend on the batch. The way past it is
a record behind it that asks for its skip (`core/control/skips.py`): only for such a record is the rest looked through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition as KafkaPartition, errors
from aiokafka.client import AIOKafkaClient

from dispatcher.broker.assignment import absent, vanished
from dispatcher.broker.base import (
    LOOK_INTERVAL,
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    MadeAnew,
    Record,
    Remembered,
    TopicPartition,
    UnreadableBatch,
)
from dispatcher.broker.kafka.client import mapped, milliseconds, stop_consumer
from dispatcher.broker.kafka.wire.metadata import TopicsSeen
from dispatcher.core.control.skips import read_skip, skip_command
from dispatcher.runtime.backoff import Backoff
from dispatcher.settings.groups import KafkaSettings

_TRY_AGAIN = 30.0  # seconds until an unreadable batch is fetched again
_FETCH_WAIT = 2.0  # seconds

log = structlog.get_logger(__name__)


def fetch_wait(settings: KafkaSettings) -> float:
    """Seconds that the broker may wait for records of a topic of which there are few.

    They come at once all the same. A process has several readers, and each of two empty answers a second costs the processor half a millisecond.
    """
    return max(settings.fetch_max_wait, min(_FETCH_WAIT, settings.request_timeout / 2))


class ReaderCluster(Protocol):
    """What a reader needs of the connection it belongs to."""

    @property
    def settings(self) -> KafkaSettings: ...

    @property
    def options(self) -> Mapping[str, Any]:
        """What to make a client of the library with, once connected."""

    async def look(self, topics: Sequence[str]) -> dict[str, Remembered]:
        """Those of these topics that exist."""

    async def survey(self, topics: Sequence[str], known: Mapping[str, Remembered]) -> TopicsSeen:
        """What is there of topics of which something is known."""

    def forget_reader(self, reader: KafkaReader) -> None:
        """It has stopped."""


class KafkaReader:
    """Reads a partition from its first record on, and follows it."""

    def __init__(self, cluster: ReaderCluster, partition: TopicPartition) -> None:
        self._cluster = cluster
        self._partition = KafkaPartition(*partition)
        self._consumer: AIOKafkaConsumer | None = None
        self._position: int | None = None  # the next offset to read
        self._end = 0  # where it had to come to be caught up
        self._caught_up = False
        self._stopped = False
        self._stuck: UnreadableBatch | None = None  # reading stands before it
        self._retry_at = 0.0  # loop time
        self._problem: str | None = "not started yet"
        self._topic: Mapping[str, Remembered] = {}
        self._looked = 0.0  # when it was last seen to be that topic (loop time)
        self._absent: str | None = None

    @property
    def client(self) -> AIOKafkaClient | None:
        return None if self._consumer is None else self._consumer._client

    @property
    def caught_up(self) -> bool:
        return self._caught_up

    @property
    def problem(self) -> str | None:
        return self._problem or self._absent

    async def start(self) -> None:
        backoff = Backoff()
        while self._consumer is None and not self._stopped:
            try:
                await self._start()
            except BrokerUnavailable as error:
                pause = backoff.failed()
                self._problem = str(error)
                log.warning(
                    "can't read the topic, trying again",
                    error=str(error),
                    tries=backoff.failures,
                    pause=pause,
                )
                await asyncio.sleep(pause)
            except BrokerError as error:
                self._problem = str(error)
                raise

    async def _start(self) -> None:
        topic, number = self._partition
        there = await self._cluster.look([topic])
        if topic not in there or number >= there[topic].partitions:
            raise BrokerUnavailable(f"partition {topic}-{number} does not exist")
        self._looked = asyncio.get_running_loop().time()
        if vanished([TopicPartition(topic, number)], self._topic, there):
            raise self._cut("the topic is another one")
        self._topic = there
        settings = self._cluster.settings
        consumer = AIOKafkaConsumer(
            **self._cluster.options,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_wait_ms=milliseconds(fetch_wait(settings)),
            fetch_max_bytes=settings.fetch_max_bytes,
            max_partition_fetch_bytes=settings.fetch_max_bytes_per_partition,
        )
        try:
            async with asyncio.timeout(settings.request_timeout):
                await consumer.start()
                first = (await consumer.beginning_offsets([self._partition]))[self._partition]
                end = (await consumer.end_offsets([self._partition]))[self._partition]
            position = self._go_on(first, end)
            consumer.assign([self._partition])
            consumer.seek(self._partition, position)  # before it can look for a position by itself
        except BaseException as error:
            await stop_consumer(consumer)
            if isinstance(error, errors.KafkaError | OSError | TimeoutError):
                raise mapped(error, f"reading {topic}-{number}") from error
            raise
        self._consumer = consumer
        self._advance(position)
        self._problem = None

    def _go_on(self, first: int, end: int) -> int:
        """Where to go on reading, or to begin."""
        if self._position is None:
            self._position, self._end = first, end
        elif not first <= self._position <= end:
            raise self._cut(f"it has the offsets {first} to {end}")
        return self._position

    async def read(self, timeout: float, limit: int) -> Sequence[Record]:
        consumer = self._consumer
        if self._stopped:
            return ()
        if consumer is None or consumer._fetcher._fetch_task.done():
            await self._restart()
            consumer = self._consumer
        if consumer is None:
            return ()
        await self._look()
        try:
            fetched = await consumer.getmany(self._partition, timeout_ms=timeout * 1000, max_records=limit)
            if not fetched and self._stuck is None:
                # What was compacted away at the end is not waited for.
                async with asyncio.timeout(0.1):
                    self._advance(await consumer.position(self._partition))
        except errors.ConsumerStoppedError:
            return ()
        except errors.OffsetOutOfRangeError as error:
            raise self._cut("the next offset is not there any more") from error
        except TimeoutError:
            return ()
        except (errors.KafkaError, OSError) as error:
            problem = mapped(error, f"reading {self._partition.topic}-{self._partition.partition}")
            if self._problem != str(problem):
                log.warning("can't read the topic, trying again", error=str(problem))
            self._problem = str(problem)
            if isinstance(problem, BrokerRefused):
                raise problem from error
            await asyncio.sleep(min(timeout, 1.0))
            return ()
        if fetched and type(fetched[self._partition][0]) is UnreadableBatch:
            await self._stand_still(consumer, fetched[self._partition][0], timeout)
            return ()
        if self._stuck is not None:
            self._look_for_skip(consumer, fetched.get(self._partition, ()))
            return ()
        self._problem = None
        if not fetched:
            return ()
        records: list[Record] = fetched[self._partition]
        if self._position is not None and records[0].offset < self._position:
            raise self._cut(f"offset {records[0].offset} follows")
        self._advance(records[-1].offset + 1)
        return records

    async def _stand_still(self, consumer: AIOKafkaConsumer, error: UnreadableBatch, timeout: float) -> None:
        topic, number = self._partition
        stuck = self._stuck
        if stuck is None:
            self._stuck = error
            self._retry_at = asyncio.get_running_loop().time() + _TRY_AGAIN
            self._problem = (
                f"{topic}-{number} can't be read on: {error}. A replica that has read it before still knows what it said;"
                f" to go on without it: `{skip_command(topic, number, error.first)}`"
            )
            log.error("the topic can't be read on", topic=topic, partition=number, error=str(error))
        elif error.first == self._position:
            self._retry_at = asyncio.get_running_loop().time() + _TRY_AGAIN
        consumer.seek(self._partition, error.last + 1)
        await asyncio.sleep(min(timeout, 0.1))

    def _look_for_skip(self, consumer: AIOKafkaConsumer, records: Sequence[Record]) -> None:
        """Whether somebody asks to go on behind what can't be unpacked; after a while it is fetched once more."""
        stuck = self._stuck
        assert stuck is not None  # noqa: S101 - for the type checker: the caller has looked
        topic, number = self._partition
        for record in records:
            skip = read_skip(record.key)
            if (
                skip is not None
                and skip.concerns((topic, number), None)
                and stuck.first <= skip.offset <= stuck.last
            ):
                log.warning(
                    "passed over what can't be unpacked, as an operator has asked",
                    topic=topic,
                    partition=number,
                    first=stuck.first,
                    last=stuck.last,
                )
                self._stuck = self._problem = None
                self._advance(stuck.last + 1)
                consumer.seek(self._partition, stuck.last + 1)
                return
        if asyncio.get_running_loop().time() >= self._retry_at:
            self._stuck = None  # `_problem` says so until it can be read
            consumer.seek(self._partition, stuck.first)

    async def _look(self) -> None:
        """See now and then whether it is still the same topic: the library takes one that was made anew for the old one."""
        now = asyncio.get_running_loop().time()
        if now - self._looked < LOOK_INTERVAL:
            return
        self._looked = now
        topic, number = self._partition
        try:
            there, denied = await self._cluster.survey([topic], self._topic)
        except BrokerError:
            return  # that is told by what it fails to read
        if denied:
            return  # likewise
        self._absent = absent([topic], there)
        if self._absent is None and vanished([TopicPartition(topic, number)], self._topic, there):
            raise self._cut("the topic is another one")

    def _advance(self, position: int) -> None:
        self._position = max(position, self._position or 0)
        self._caught_up = self._caught_up or self._position >= self._end

    async def _restart(self) -> None:
        log.error("the reader has died, starting another", topic=self._partition.topic)
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop_consumer(consumer)
        await self.start()

    def _cut(self, what: str) -> MadeAnew:
        topic, number = self._partition
        self._problem = (
            f"{topic}-{number} was cut or its topic made anew: it was read to offset {self._position}, and {what};"
            " start again to read it from its beginning"
        )
        return MadeAnew(self._problem)

    async def stop(self) -> None:
        self._stopped = True
        self._problem = "stopped"
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop_consumer(consumer)
        self._cluster.forget_reader(self)
