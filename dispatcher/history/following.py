"""One partition of a topic that the history follows: what is read of it next, and what that says.

Read by offset, without a group's consumer: where reading goes on is the store's word alone, whatever was rebalanced or restored.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

import structlog

from dispatcher.broker.base import (
    Broker,
    PartitionInfo,
    Record,
    Stretch,
    TopicPartition,
    UnreadableBatch,
    UnreadableRecord,
)
from dispatcher.core.attempt.record import InvalidRecord
from dispatcher.core.event.decode import InvalidEvent, decode, is_tombstone
from dispatcher.core.retry.records import UNREADABLE_RECORD
from dispatcher.history.base import DeadRow, EventRow, Gap, LogBatch, LogPartition, Standing
from dispatcher.history.bounds import storable
from dispatcher.history.logged import LoggedAttempt, read_attempt

log = structlog.get_logger(__name__)

READ_SIZE: Final = 1 << 20
"""Bytes of a partition that are read at a time."""

_SLICE: Final = 100  # records that are looked at before others have their turn: a millisecond at the most
_PAUSES: Final = (
    0.25,
    0.5,
    1.0,
    2.0,
)  # seconds between two looks at a partition that nothing comes from; the last one goes on
_LOOK_AGAIN: Final = 5.0  # seconds
_NUMBER_LIMIT: Final = 15  # digits


class TopicKind(Protocol):
    """What the records of a topic are to the history."""

    def __call__(self, partition: LogPartition, records: Sequence[Record]) -> LogBatch:
        """A batch with the rows of these records; its positions are set by the caller. Must not raise."""


class Ends(NamedTuple):
    """First and last offset that a partition has, as of a look: its records are from `earliest` to before `latest`."""

    earliest: int
    latest: int


class Counter:
    """What came of the records, for the metrics."""

    def __init__(self) -> None:
        self.indexed = 0
        self.refused = 0
        self.skipped = 0

    def counts(self) -> dict[str, int]:
        """By what came of them."""
        return {"indexed": self.indexed, "refused": self.refused, "skipped": self.skipped}

    def refuse(self, partition: LogPartition, offset: int, why: str) -> None:
        """A record that says nothing the history understands."""
        self.refused += 1
        if self.refused == 1 or self.refused % 10_000 == 0:
            log.warning(
                "a record can't be read for the history, passed over",
                topic=partition.topic,
                partition=partition.partition,
                offset=offset,
                error=why,
                refused=self.refused,
            )


def of_attempts(counter: Counter) -> TopicKind:
    """The attempt log's records."""

    def read(partition: LogPartition, records: Sequence[Record]) -> LogBatch:
        attempts: list[LoggedAttempt] = []
        for record in records:
            try:
                attempts.append(read_attempt(record.value, record.offset))
            except InvalidRecord as error:
                counter.refuse(partition, record.offset, str(error))
        return LogBatch(partition, None, 0, 0, attempts=attempts)

    return read


def of_events(counter: Counter) -> TopicKind:
    """The records of an event topic, without their bodies."""

    def read(partition: LogPartition, records: Sequence[Record]) -> LogBatch:
        rows: list[EventRow] = []
        topic, _, number = partition
        for record in records:
            if isinstance(record, UnreadableRecord) or is_tombstone(record):
                continue
            try:
                event = decode(record, topic, number)
            except InvalidEvent as error:
                counter.refuse(partition, record.offset, str(error))
                continue
            rows.append(
                EventRow(
                    topic,
                    number,
                    record.offset,
                    record.timestamp,
                    storable(event.id),
                    storable(event.type),
                    None if event.tenant is None else storable(event.tenant, 256),
                    hashlib.sha256(event.body).hexdigest(),
                    len(event.body),
                )
            )
        return LogBatch(partition, None, 0, 0, events=rows)

    return read


def of_dead_letters(counter: Counter) -> TopicKind:
    """The records of the dead-letter topic."""

    def read(partition: LogPartition, records: Sequence[Record]) -> LogBatch:
        rows: list[DeadRow] = []
        for record in records:
            if isinstance(record, UnreadableRecord):
                counter.refuse(partition, record.offset, record.problem)
                continue
            headers = dict(record.headers)

            def text(name: str, headers: dict[str, bytes | None] = headers) -> str | None:
                raw = headers.get(name)
                return None if raw is None else storable(raw.decode(errors="replace"))

            def number(name: str, headers: dict[str, bytes | None] = headers) -> int:
                raw = headers.get(name)
                return int(raw) if raw is not None and raw.isdigit() and len(raw) <= _NUMBER_LIMIT else -1

            delivery = text("delivery_id")
            rows.append(
                DeadRow(
                    partition.partition,
                    record.offset,
                    record.timestamp,
                    text("reason") or UNREADABLE_RECORD,
                    None if delivery is None else delivery.removeprefix("dlv_"),
                    text("subscription_id"),
                    text("event_id"),
                    text("event_type"),
                    text("tenant"),
                    text("topic") or "",
                    max(-1, min(number("partition"), 2**31 - 1)),
                    number("offset"),
                )
            )
        return LogBatch(partition, None, 0, 0, dead=rows)

    return read


class Followed:
    """A partition, where the store stands in it, and when it is looked at again."""

    def __init__(self, partition: LogPartition, kind: TopicKind) -> None:
        self.partition = partition
        self.standing: Standing | None = None
        self.ends: Ends | None = None
        self.due = 0.0
        """Loop time of the next look."""
        self.seen_end_ms = 0
        """When there was nothing more to read, in Unix ms."""
        self._kind = kind
        self._idle = 0
        self._looked = float("-inf")  # loop time

    @property
    def source(self) -> TopicPartition:
        return TopicPartition(self.partition.topic, self.partition.partition)

    @property
    def next(self) -> int | None:
        return None if self.standing is None else self.standing.next

    def as_of_ms(self) -> int:
        """Until when the history knows what the partition says, in Unix ms; 0 for not at all."""
        return max(self.seen_end_ms, 0 if self.standing is None else self.standing.time_ms)

    def behind(self) -> int:
        """Records that are there and not read, as of the last look at the ends."""
        if self.ends is None:
            return 0
        return max(0, self.ends.latest - max(self.next or 0, self.ends.earliest))

    def take(self, standing: Standing | None) -> None:
        """The store stands there."""
        self.standing = standing
        self._idle = 0
        self.due = 0.0

    async def read(self, broker: Broker, limit: int, now_ms: Callable[[], int]) -> LogBatch | None:
        """What comes next, ready to be kept; None when nothing has come. Raises BrokerError."""
        begin = self.next or 0
        loop = asyncio.get_running_loop()
        asked_ms = now_ms()
        try:
            stretch = await broker.read_from(self.source, begin, limit, READ_SIZE)
        except UnreadableBatch as error:
            return self._unreadable(error)
        if stretch.next <= begin:
            self.seen_end_ms = asked_ms
            self.due = loop.time() + _PAUSES[min(self._idle, len(_PAUSES) - 1)]
            self._idle += 1
            return None
        self._idle = 0
        self.due = loop.time()  # at once, but behind those that have waited for longer
        return await self._batch(broker, begin, stretch)

    def _unreadable(self, error: UnreadableBatch) -> LogBatch:
        last_ms = 0 if self.standing is None else self.standing.time_ms
        gap = Gap(self.partition, error.first, error.last + 1, last_ms, last_ms, "unreadable")
        return LogBatch(self.partition, self.next, error.last + 1, last_ms, gap=gap)

    async def _batch(self, broker: Broker, begin: int, stretch: Stretch) -> LogBatch:
        whole = LogBatch(self.partition, self.next, stretch.next, 0)
        attempts: list[LoggedAttempt] = []
        events: list[EventRow] = []
        dead: list[DeadRow] = []
        records = stretch.records
        for at in range(0, len(records), _SLICE):
            part = self._kind(self.partition, records[at : at + _SLICE])
            attempts += part.attempts
            events += part.events
            dead += part.dead
            await asyncio.sleep(0)
        last_ms = 0 if self.standing is None else self.standing.time_ms
        time_ms = max(0, records[-1].timestamp if records else last_ms)
        first = records[0].offset if records else stretch.next
        gap = None
        if self.standing is not None and begin < first:
            # Markers of transactions leave such holes, too: what is not there any more is what lies below the first offset.
            earliest = await self._earliest(broker)
            if begin < earliest:
                gap = Gap(
                    self.partition, begin, min(first, earliest), last_ms, max(last_ms, time_ms), "retention"
                )
        return whole._replace(attempts=attempts, events=events, dead=dead, time_ms=time_ms, gap=gap)

    async def _earliest(self, broker: Broker) -> int:
        """The first offset that is there; looked up where nobody has looked lately."""
        now = asyncio.get_running_loop().time()
        if self.ends is None or now - self._looked > _LOOK_AGAIN:
            for info in await broker.topics(only=self.partition.topic.__eq__):
                self.ends = next(
                    (ends_of(found) for found in info.partitions if found.partition == self.source.partition),
                    self.ends,
                )
            self._looked = now
        return 0 if self.ends is None else self.ends.earliest


async def peek(broker: Broker, partition: TopicPartition, offset: int) -> Record | None:
    """The first record from the offset on that can be read; None where there is none yet."""
    while True:
        try:
            stretch = await broker.read_from(partition, offset, 1, 1)
        except UnreadableBatch as error:
            offset = error.last + 1
            continue
        if stretch.records:
            return stretch.records[0]
        if stretch.next <= offset:
            return None
        offset = stretch.next


async def seek(broker: Broker, partition: TopicPartition, ends: Ends, time_ms: int) -> int:
    """The first offset whose record is of that time or later, as far as timestamps grow; the end where there is none.

    By halves: the port can't be asked for times, and a partition of a thousand million records takes thirty reads.
    """
    low, high = ends.earliest, ends.latest
    while low < high:
        middle = (low + high) // 2
        record = await peek(broker, partition, middle)
        if record is None or record.offset >= high:
            high = middle
        elif record.timestamp < time_ms:
            low = record.offset + 1
        else:
            high = middle
    return low


def ends_of(info: PartitionInfo) -> Ends:
    return Ends(info.earliest, info.latest)
