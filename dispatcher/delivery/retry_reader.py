"""Reads the retry topics: takes each record out when its time has come, and not before.

In a tier every record waits the same time, so only the head of each partition matters. Its partition is
paused until the head is nearly due; what was read behind it waits in a short queue, which is read anew
after a rebalance. So a million pending retries cost this process no more than the few that are near.

A record that comes out is handed to the engine if it is due within the horizon; it waits there in the wheel,
its tier's offset owed. If more of its wait is left it is written to a tier again, as it is, and settled when the broker
has it. One that can't be read becomes a dead letter.

Rules:

1. Of each partition at most one poll's worth of records is kept, and the partition is paused as long as any is.
2. A record is tracked when it comes out, in the order of offsets, and not while it waits in the queue: a rebalance
   drops the queues, and the records are read again.
3. Nothing comes out while the engine has no room; that is looked at again and again, between polls, so that the
   group keeps this member. What comes out goes before fresh events, which wait for less than a full cap.
4. Due times travel by the wall clock, and are the loop's clock's from the moment a record is read: a step of the wall
   clock neither delays nor hurries what has been read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple, Protocol

import structlog

from dispatcher.broker.base import (
    BrokerError,
    Message,
    Record,
    TopicPartition,
    UnreadableBatch,
    UnreadableRecord,
)
from dispatcher.core.commit.offsets import PartitionTracker
from dispatcher.core.retry.records import (
    BODY_EXPIRED,
    BODY_UNREADABLE,
    UNREADABLE,
    InvalidRetryRecord,
    LostBody,
    RetryRecord,
    due_again,
    read_retry_record,
)
from dispatcher.core.retry.tiers import Tiers, comes_out, left_of
from dispatcher.delivery.backlogs import Backlogs
from dispatcher.delivery.membership import Membership
from dispatcher.delivery.replay_reader import ReplayReader
from dispatcher.telemetry.metrics import Labels, Metrics

log = structlog.get_logger(__name__)

_BATCH: Final = 100  # records that one poll may bring
_SLICE: Final = 50  # records taken out between two polls: about 1 ms of work
_IDLE: Final = 0.5  # seconds between two looks when nothing is near
_NO_ROOM: Final = 0.05
_SHORTEST: Final = 0.001  # a pause: what is left of a wait may be less than a clock can tell
_AWAY: Final = 1.0  # until an origin that couldn't be read is tried again

Read = Callable[[TopicPartition, int], Awaitable[Record | None]]


class RetryHost(Protocol):
    """Who takes what comes out."""

    def has_room(self) -> bool:
        """Whether one more delivery may be taken up."""

    def is_owed(self, retry: RetryRecord) -> bool:
        """Whether it need wait on: its subscription may be deleted, or the delivery superseded."""

    def take_back(self, retry: RetryRecord, tracker: PartitionTracker, offset: int, due: float) -> None:
        """It is due (by the loop's clock) within the horizon, or past due, or not wanted; the offset owes this one delivery."""

    def pass_on(self, message: Message, tracker: PartitionTracker, offset: int) -> None:
        """Write it, then settle the offset."""

    def give_up_lost(self, lost: LostBody, tracker: PartitionTracker, offset: int) -> None:
        """Its body can't be read any more: a dead letter of the delivery, then settle the offset."""

    def refuse(self, record: Record, tracker: PartitionTracker, reason: str, detail: str) -> None:
        """Nobody can read it: to the dead letters with it, then settle the offset."""


class _Waiting(NamedTuple):
    record: Record
    retry: RetryRecord | InvalidRetryRecord
    out: float  # seconds of the loop's clock, as `due`: fixed when it is read, so that no step of the wall clock moves it
    due: float


class Retries:
    """The consumer of the tiers."""

    def __init__(
        self,
        membership: Membership,
        tiers: Tiers,
        horizon: float,
        host: RetryHost,
        read: Read,
        metrics: Metrics,
        wall: Callable[[], float],
        backlogs: Backlogs,
        replays: ReplayReader,
    ) -> None:
        """`backlogs` takes what is read of the parked topic, `replays` what is read of the replay topic; `horizon` in seconds; `read` gives one record of any topic; `wall` gives Unix seconds."""
        self._membership = membership
        self._tiers = tiers
        self._horizon = horizon
        self._host = host
        self._read = read
        self._metrics = metrics
        self._wall = wall
        self._clock = asyncio.get_running_loop().time
        self._backlogs = backlogs
        self._replays = replays
        self._waiting: dict[TopicPartition, deque[_Waiting]] = {}

    def reassigned(self) -> None:
        """The partitions are read from their commits again."""
        self._waiting.clear()
        self._backlogs.reassigned()
        self._replays.reassigned()

    def waiting(self) -> dict[Labels, int]:
        """Records that were read and wait for their time, or for their lane, by topic and partition."""
        waiting: dict[Labels, int] = {
            (p.topic, str(p.partition)): len(queue) for p, queue in self._waiting.items()
        }
        return waiting | self._replays.waiting()

    async def run(self) -> None:
        """Take out what is due, until cancelled."""
        consumer = self._membership.consumer
        await consumer.start()
        while True:
            pause = await self._take_out()
            for partition, records in await consumer.poll(pause, _BATCH):
                if partition.topic == self._backlogs.topic:
                    self._backlogs.keep(partition, records)
                    await asyncio.sleep(0)  # there may be a million of them
                elif partition.topic == self._replays.topic:
                    self._replays.keep(partition, records)
                else:
                    self._keep(partition, records)

    def _keep(self, partition: TopicPartition, records: Sequence[Record]) -> None:
        if partition not in self._membership.trackers:
            return  # revoked since it was read
        queue = self._waiting.get(partition)
        if queue is None:
            queue = self._waiting[partition] = deque()
        tier = self._tiers.of(partition.topic)
        now = self._clock()
        unix = self._wall()
        for record in records:
            retry: RetryRecord | InvalidRetryRecord
            try:
                if isinstance(record, UnreadableRecord):
                    raise InvalidRetryRecord(record.problem)  # noqa: TRY301 - handled like what `read_retry_record` raises
                retry = read_retry_record(record)
            except InvalidRetryRecord as error:
                retry = error
                out = due = now  # nobody waits for it
            else:
                written = record.timestamp / 1000
                out = now + (comes_out(tier, written, retry.due, unix) - unix)
                due = now + left_of(written, retry.due, unix)
            queue.append(_Waiting(record, retry, out, due))
        self._membership.consumer.pause([partition])

    async def _take_out(self) -> float:
        """Take out what is due now, at most a slice of it; returns how long there is nothing more to do."""
        pause = _IDLE
        left = _SLICE
        for partition, queue in list(self._waiting.items()):
            tracker = self._membership.trackers.get(partition)
            if tracker is None:
                continue  # gone with its topic; the new assignment is on its way
            tier = self._tiers.of(partition.topic)
            while queue:
                now = self._clock()
                record, retry, out, due = queue[0]
                if not tracker.seen(record.offset):
                    if out > now:
                        pause = min(pause, max(out - now, _SHORTEST))
                        break
                    if not left:
                        return 0.0
                    if not self._host.has_room():
                        pause = min(pause, _NO_ROOM)
                        break
                    if isinstance(retry, RetryRecord) and retry.omitted and due - now <= self._horizon:
                        restored = await self._restored(retry)
                        if self._waiting.get(partition) is not queue:
                            return 0.0  # the partitions were reassigned meanwhile
                        if restored is None:
                            pause = min(pause, _AWAY)
                            break
                        retry = restored
                    left -= 1
                    self._metrics.retries_due[tier.level] += 1
                    self._release(record, retry, tracker, due - now)
                queue.popleft()
            else:
                del self._waiting[partition]
                self._membership.consumer.resume([partition])
        return pause

    def _release(
        self, record: Record, retry: RetryRecord | InvalidRetryRecord, tracker: PartitionTracker, wait: float
    ) -> None:
        """`wait` is how many seconds are left until it is due."""
        offset = record.offset
        tracker.track(offset, 1)
        if isinstance(retry, LostBody):
            self._host.give_up_lost(retry, tracker, offset)
        elif isinstance(retry, InvalidRetryRecord):
            self._host.refuse(record, tracker, UNREADABLE, str(retry))
        elif wait <= self._horizon or not self._host.is_owed(retry):
            self._host.take_back(retry, tracker, offset, self._clock() + wait)
        else:
            unix = self._wall()
            headers = due_again(record.headers, unix + wait)
            self._host.pass_on(
                Message(
                    self._tiers.choose(wait).topic,
                    record.value,
                    record.key,
                    headers,
                    timestamp_ms=int(unix * 1000),
                ),
                tracker,
                offset,
            )

    async def _restored(self, retry: RetryRecord) -> RetryRecord | InvalidRetryRecord | None:
        """The retry with its event's body, which was too large for the tier; None if it can't be read now."""
        topic, partition, offset = retry.source
        try:
            origin = await self._read(TopicPartition(topic, partition), offset)
        except UnreadableBatch as error:
            return LostBody(
                retry,
                BODY_UNREADABLE,
                f"the value was too large for the retry topic, and at its origin {error}",
            )
        except BrokerError as error:
            log.warning("the origin of a retry can't be read, trying again", error=str(error))
            return None
        if origin is None or origin.value is None:
            return LostBody(
                retry,
                BODY_EXPIRED,
                "the value was too large for the retry topic, and its origin has been deleted",
            )
        return retry.with_body(origin.value)
