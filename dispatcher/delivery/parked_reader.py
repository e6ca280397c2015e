"""A partition of the parked topic that is this process's, and reading what is parked there by its offset.

In come the offsets of what is to be delivered (`backlogs.py`) or written anew (`renewal.py`). Out go the records, each with its event's body; those that
can't be read become dead letters. This room alone writes where a partition stands still and whether it is being read again for lost notes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, NamedTuple, Protocol

import structlog

from dispatcher.broker.base import BrokerError, Record, Stretch, TopicPartition, UnreadableBatch
from dispatcher.core.commit.parked import REFILL, Backlog, ParkedTracker
from dispatcher.core.endpoint.rounds import Rounds
from dispatcher.core.retry.records import (
    BODY_EXPIRED,
    BODY_UNREADABLE,
    UNREADABLE,
    InvalidRetryRecord,
    LostBody,
    RetryRecord,
    read_retry_record,
)
from dispatcher.delivery.parking import SINCE
from dispatcher.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_READ_AT_A_TIME: Final = 1000  # records
_READ_BYTES: Final = 1 << 20
_GAP: Final = 50  # records between two wanted ones that are rather read than left out
_AWAY: Final = 1.0  # seconds until another try where the broker couldn't be read

ReadFrom = Callable[[TopicPartition, int, int, int], Awaitable[Stretch]]
ReadOne = Callable[[TopicPartition, int], Awaitable[Record | None]]
Start = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]


class Appetite(NamedTuple):
    """What a subscription can take of what is parked for it."""

    most: int
    """So many at a time; 0 for none now."""
    again: float
    """Where it takes none: when to ask again, in seconds of the loop."""
    kept: str | None
    """Why it takes nothing until its status changes; None if it isn't that."""
    room: int = 1 << 30
    """So many at once."""


class ParkedHost(Protocol):
    """Who delivers what was parked (`returning.py`)."""

    def appetite(self, subscription_id: str, since: float, rate: float) -> Appetite:
        """How many of a subscription may be with its lane."""

    def state_of(self, subscription_id: str) -> object:
        """Something that is another one when the subscription has become deliverable, or is no more."""

    def purge_of(self, subscription_id: str) -> int:
        """Another number when all that a subscription was owed has been purged (again); 0 where it never was."""

    def purge_parked(self, retry: RetryRecord, tracker: ParkedTracker, offset: int) -> bool:
        """Settle it if it is superseded, else give it back to the tracker; whether it was settled."""

    def tenant_of(self, subscription_id: str) -> object:
        """Whose turn it is when something is handed over; tenants take turns."""

    def take_parked(self, retry: RetryRecord, tracker: ParkedTracker, offset: int) -> None:
        """Deliver it, settle its offset, or give it back to the tracker."""

    def expire_parked(self, retry: RetryRecord, tracker: ParkedTracker, offset: int) -> None:
        """It was kept for long enough; settle its offset."""

    def give_up_lost(self, lost: LostBody, tracker: ParkedTracker, offset: int) -> None:
        """Its body can't be read any more: a dead letter of the delivery, then settle the offset."""

    def refuse(self, record: Record, tracker: ParkedTracker, reason: str, detail: str) -> None:
        """Nobody can read it: to the dead letters with it, then settle the offset."""


class ServedPartition:
    """A partition that is this process's."""

    __slots__ = (
        "marks",
        "partition",
        "ready",
        "refilling",
        "renewing",
        "some",
        "states",
        "stuck",
        "task",
        "tracker",
    )

    def __init__(self, partition: TopicPartition, tracker: ParkedTracker) -> None:
        self.partition = partition
        self.tracker = tracker
        self.ready: Rounds[Backlog] = Rounds()
        self.some = asyncio.Event()
        self.states: dict[Backlog, object] = {}  # what the host said of each when it was last looked at
        self.marks: deque[tuple[int, float]] = (
            deque()
        )  # of every so-manieth record its offset and when it was written
        self.renewing = 0
        self.refilling = False
        self.stuck: UnreadableBatch | None = None  # was readable when it was noted, and isn't any more
        self.task: asyncio.Task[None] | None = None

    def stand_still(self, error: UnreadableBatch) -> None:
        """What is to be read can't be unpacked any more. Others of the partition go on."""
        if self.stuck is None or self.stuck.first != error.first:
            log.error(
                "what is parked can't be unpacked",
                topic=self.partition.topic,
                partition=self.partition.partition,
                error=str(error),
                hint="/readyz says how to give it up",
            )
        self.stuck = error


class ParkedReader:
    """Reads what is parked, again and by its offset."""

    def __init__(
        self, host: ParkedHost, metrics: Metrics, *, read_from: ReadFrom, read: ReadOne, start: Start
    ) -> None:
        """`read_from` and `read` are the broker's; `start` starts a task."""
        self._host = host
        self._metrics = metrics
        self._read_from = read_from
        self._read_one = read
        self._start = start

    async def read(
        self, partition: TopicPartition, offsets: deque[int]
    ) -> tuple[deque[int], dict[int, Record]]:
        """The next of the wanted offsets that stand near to each other, taken out of `offsets`, with their records."""
        first = last = offsets[0]
        wanted = 0
        for offset in offsets:
            if offset - last > _GAP:
                break
            last = offset
            wanted += 1
        size = _READ_BYTES if wanted > 1 else 1
        stretch = await self._read_from(partition, first, min(last - first + 1, _READ_AT_A_TIME), size)
        # What is not there although reading has gone past it was deleted.
        reached = max(stretch.next, first + 1) if stretch.records or stretch.next > first else last + 1
        run: deque[int] = deque()
        while offsets and offsets[0] < reached and len(run) < wanted:
            run.append(offsets.popleft())
        return run, {record.offset: record for record in stretch.records}

    async def take(
        self, record: Record, tracker: ParkedTracker, take: Callable[[RetryRecord, ParkedTracker, int], None]
    ) -> None:
        offset = record.offset
        try:
            retry = read_retry_record(record)
            if retry.omitted:
                retry = await self._restored(retry)
        except LostBody as error:
            self._host.give_up_lost(error, tracker, offset)
            return
        except InvalidRetryRecord as error:
            self._host.refuse(record, tracker, UNREADABLE, str(error))
            return
        if not tracker.lost:
            take(retry, tracker, offset)

    async def _restored(self, retry: RetryRecord) -> RetryRecord:
        """The retry with its event's body, which was too large for the topic."""
        topic, partition, offset = retry.source
        try:
            origin = await self._read_one(TopicPartition(topic, partition), offset)
        except UnreadableBatch as error:
            raise LostBody(
                retry, BODY_UNREADABLE, f"the value was too large for the topic, and of its origin {error}"
            ) from error
        if origin is None or origin.value is None:
            raise LostBody(
                retry, BODY_EXPIRED, "the value was too large for the topic, and its origin has been deleted"
            )
        return retry.with_body(origin.value)

    def gone(self, served: ServedPartition, offset: int) -> None:
        """Retention, or somebody, has deleted the record."""
        self._metrics.deliveries["dropped_record_gone"] += 1
        log.error(
            "a parked delivery is lost: its record has been deleted from the topic",
            topic=served.partition.topic,
            partition=served.partition.partition,
            offset=offset,
            hint="raise the topic's retention.ms, and set its retention.bytes to -1",
        )
        served.tracker.settle(offset)

    def start_refill(self, served: ServedPartition, backlog: Backlog) -> None:
        if not served.refilling:
            served.refilling = True
            self._start(self._refill(served, backlog), f"refill {served.partition}")

    async def _refill(self, served: ServedPartition, backlog: Backlog) -> None:
        """Read the partition again from where notes of this one are missing, until it has enough of them."""
        tracker = served.tracker
        try:
            while not tracker.lost and len(backlog) < 2 * REFILL and (at := backlog.more_from) is not None:
                if at >= tracker.next:
                    backlog.more_from = None
                    break
                stretch = await self._read_from(served.partition, at, _READ_AT_A_TIME, _READ_BYTES)
                if backlog.more_from != at:
                    break  # it has lost more of them meanwhile
                end = min(max(stretch.next, at + 1), tracker.next)
                for record in stretch.records:
                    key = record.key
                    if at <= record.offset < end and key is not None and key == backlog.id.encode():
                        since = milliseconds(dict(record.headers).get(SINCE), record.timestamp) // 1000
                        tracker.renote(backlog, record.offset, min(since, (1 << 32) - 1))
                backlog.more_from = end
                await asyncio.sleep(0)
        except UnreadableBatch as error:
            served.stand_still(error)
            await asyncio.sleep(_AWAY)
        except BrokerError as error:
            log.warning("what is parked can't be read, trying again", error=str(error))
            await asyncio.sleep(_AWAY)
        finally:
            served.refilling = False


def milliseconds(raw: bytes | None, otherwise: int) -> int:
    """A header's number; what isn't one is as good as not there."""
    return int(raw) if raw is not None and len(raw) <= 15 and raw.isdigit() else max(0, otherwise)
