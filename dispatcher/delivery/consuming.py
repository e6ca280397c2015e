"""Events in: each record of a batch is decoded and matched, its offset tracked, and what it owes taken up.

In come batches of the event topics. Out go deliveries to `sending.py`, and records that are no event to `settlement.py`. This room alone writes
the line of batches that are polled and not taken up yet, and pauses and resumes the consumer at the caps.

Rules:

1. At a cap no further record is taken up; the consumer is still polled (paused), so that the group keeps this member.
2. Records belong to the tracker that their partition had when they were polled. A partition may leave
   and come back while they wait for room; with its new tracker they would pass for read already.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from dispatcher.broker.base import Record, TopicPartition, UnreadableRecord
from dispatcher.core.commit.offsets import PartitionTracker
from dispatcher.core.event.decode import InvalidEvent, decode, is_tombstone
from dispatcher.core.retry.records import UNREADABLE_RECORD as UNREADABLE
from dispatcher.delivery.delivery import Delivery
from dispatcher.delivery.membership import Membership
from dispatcher.delivery.sending import Sending
from dispatcher.delivery.settlement import Settlement
from dispatcher.delivery.unmatched import Unmatched
from dispatcher.registry.registry import Registry
from dispatcher.telemetry.metrics import Metrics

# Compiled, what comes of a module that isn't is looked up by its name each time.
_UNREADABLE_TYPE: Final = UnreadableRecord
_POLL_TIMEOUT: Final = 1.0
_KEEP_ALIVE: Final = 0.5  # polls while at a cap, so that the group keeps this member
_SLICE: Final = 32  # deliveries taken up between two turns of the loop: about 1 ms of work


class Consuming:
    """The consumer of events."""

    def __init__(
        self,
        events: Membership,
        *,
        registry: Registry,
        metrics: Metrics,
        unmatched: Unmatched,
        sending: Sending,
        settlement: Settlement,
        poll_limit: int,
    ) -> None:
        """`poll_limit` is how many records a poll may bring."""
        self._events = events
        self._registry = registry
        self._metrics = metrics
        self._unmatched = unmatched
        self._sending = sending
        self._settlement = settlement
        self._poll_limit = poll_limit
        self._batches: deque[tuple[PartitionTracker, Sequence[Record]]] = deque()  # polled, not taken up yet

    async def run(self) -> None:
        """Take up events, until cancelled."""
        consumer = self._events.consumer
        await consumer.start()
        while True:
            self._polled(await consumer.poll(_POLL_TIMEOUT, self._poll_limit))
            while self._batches:
                tracker, records = self._batches.popleft()
                if not tracker.lost:
                    await self._events.reserve(tracker, records[-1].offset + 1)
                if not tracker.lost:
                    await self.take_up(tracker, records)

    def _polled(self, batches: Sequence[tuple[TopicPartition, Sequence[Record]]]) -> None:
        # Bound to their trackers before the next await: see rule 2.
        trackers = self._events.trackers
        self._batches.extend((trackers[partition], records) for partition, records in batches)

    async def take_up(self, tracker: PartitionTracker, records: Sequence[Record]) -> None:
        """Take up the records of one batch, as fast as there is room."""
        metrics = self._metrics
        sending = self._sending
        settlement = self._settlement
        topic, partition = tracker.topic, tracker.partition
        metrics.consumed[topic] += len(records)
        taken = 0
        ready: list[Delivery] = []  # owed; started together, and before anything is waited for
        for record in records:
            offset = record.offset
            if tracker.seen(offset):
                metrics.skipped["seen"] += 1
            elif type(record) is _UNREADABLE_TYPE:
                tracker.track(offset, 1)
                metrics.invalid[UNREADABLE] += 1
                settlement.refuse(record, tracker, UNREADABLE, record.problem)
            elif record.value is None and is_tombstone(record):
                metrics.skipped["tombstone"] += 1
                tracker.track(offset, 0)
            else:
                try:
                    event = decode(record, topic, partition)
                except InvalidEvent as error:
                    tracker.track(offset, 1)
                    metrics.invalid[error.reason] += 1
                    settlement.refuse(record, tracker, error.reason, error.detail)
                else:
                    index = self._registry.index
                    wanted = index.match(event.tenant, event.type)
                    serial = index.serial
                    who = tracker.handed_on(offset)
                    if who is not None:
                        wanted = index.owed(event.tenant, wanted, who.owed, who.ids)
                    tracker.track(offset, len(wanted), wanted, who)
                    if not wanted:
                        metrics.unmatched += 1
                        self._unmatched.note(event)
                    size = len(event.body)
                    for subscription in wanted:
                        if taken >= _SLICE or settlement.at_cap():
                            taken = 0
                            await self._pause(ready)
                            if tracker.lost:
                                return
                        delivery = Delivery(sending, event, subscription, tracker, offset, serial)
                        settlement.owe(size)
                        ready.append(delivery)
                        taken += 1
                    if wanted:
                        continue
            # What owes no delivery is held to the caps and the slices too.
            taken += 1
            if taken >= _SLICE or settlement.at_cap():
                taken = 0
                await self._pause(ready)
                if tracker.lost:
                    return
        sending.start(ready)

    async def _pause(self, ready: list[Delivery]) -> None:
        """Start these, and let others have their turn, until there is room."""
        self._sending.start(ready)
        if self._settlement.at_cap():
            await self._room()
        else:
            await asyncio.sleep(0)

    async def _room(self) -> None:
        """Wait until there is room below the caps again, keeping the membership alive."""
        consumer = self._events.consumer
        settlement = self._settlement
        settlement.wait_for_room()
        try:
            await self._wait_for_room()
        finally:
            settlement.wait_is_over()
            # Also where nothing was paused here: a rebalance meanwhile pauses what it assigns.
            consumer.resume(consumer.assignment())

    async def _wait_for_room(self) -> None:
        consumer = self._events.consumer
        settlement = self._settlement
        while settlement.full:
            try:
                async with asyncio.timeout(_KEEP_ALIVE):
                    await settlement.has_room_again.wait()
            except TimeoutError:
                # What was polled is not all taken up, and what follows it must not come before.
                consumer.pause(consumer.assignment())
                # Nothing, unless a rebalance ends in here that has also emptied the lanes.
                self._polled(await consumer.poll(0, self._poll_limit))
            else:
                return
