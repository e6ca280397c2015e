"""Reads the parked topic, and hands what is parked to its lane as fast as the endpoint takes it, the oldest first.

Each record is read twice. First in the order of the partition, as it comes: only where it is gets noted
(`core/parked.py`). Then by its offset, when its endpoint takes something. A subscription with anything parked is looked at when that
may have changed: its cool-down is over, the time it asked for is, its deliveries with the lane have halved, its status
is another one. The lane says how many it takes; with fresh ones in the lane it takes turns.

What is parked for one subscription comes in small portions: about what it has taken in the last second, and no more than half a thousand. So memory
holds little of it, and a breaker that opens gives little back. Tenants are served in turns, and the subscriptions of a tenant, and each partition by a task of its own: a
partition whose leader is away delays nobody else's.

What a paused subscription is owed stays until it is resumed, or has waited for `subscription.pause_keeps`. The same holds where the
settings have come to refuse it, or no key opens its secrets.

A partition is committed up to its oldest parked record, with a note of what is done beyond. So records are *renewed*,
written once more as they are: when the topic's retention comes near, and when few of a long stretch are still owed, since whoever takes the partition over
reads all of that stretch.

Rules:

1. A record is tracked when it is first read; its offset is settled when its delivery is, or its renewed record is acknowledged.
2. Bodies are in memory only of what is with a lane, of one portion for each partition, and of what is being renewed.
3. A backlog is in one state at a time (`Backlog.waiting`): `_READY` (in line to be looked at), an entry of the timers, or None: it is
   being looked at, or all of it is with its lane.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

import structlog

from dispatcher.broker.base import BrokerError, Record, TopicPartition, UnreadableBatch
from dispatcher.core.commit.parked import REFILL, Backlog, ParkedTracker
from dispatcher.core.endpoint.rounds import Rounds
from dispatcher.core.retry.policy import RETRY_AFTER_CAP
from dispatcher.core.retry.records import UNREADABLE, RetryRecord
from dispatcher.core.retry.tiers import left_of
from dispatcher.core.retry.wheel import Entry
from dispatcher.delivery.membership import Membership
from dispatcher.delivery.outbox import Outbox
from dispatcher.delivery.parked_reader import (
    ParkedHost,
    ParkedReader,
    ReadFrom,
    ReadOne,
    ServedPartition,
    Start,
    milliseconds,
)
from dispatcher.delivery.parking import SINCE
from dispatcher.delivery.parking_log import ParkingLog
from dispatcher.delivery.renewal import Renewal
from dispatcher.runtime.timers import Callback, Timers
from dispatcher.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_PORTION: Final = 500  # parked ones read at a time
_SLICE: Final = 32  # deliveries handed over between two turns of the loop
_RATE_OVER: Final = 0.25  # seconds that a rate is measured over
_AGAIN: Final = 0.25  # seconds until another look at what was given back
_AWAY: Final = 1.0  # seconds until another try where the broker couldn't be read
_STUCK: Final = 30.0  # likewise where they can't be unpacked
_KEPT: Final = 60.0  # seconds between two looks at what is kept: whether it was for too long
_WATCH: Final = 0.5  # seconds between two looks whether subscriptions have changed
_SWEPT: Final = 1000  # backlogs looked at between two turns of the loop
_MARK: Final = 1000  # records between two whose time is noted

_READY: Final = "ready"


# Long: when a backlog is looked at, and what comes of the look, go by one state (rule 3).
class Backlogs:
    """Everything that is parked in the partitions that this process has."""

    def __init__(
        self,
        topic: str,
        membership: Membership,
        host: ParkedHost,
        outbox: Outbox,
        metrics: Metrics,
        timers: Timers,
        *,
        read_from: ReadFrom,
        read: ReadOne,
        start: Start,
        keeps: float,
        renew_after: float,
        wall: Callable[[], float],
    ) -> None:
        """`keeps` and `renew_after` in seconds: how long what is paused is kept, and how old a record gets. `start` starts a task."""
        self.topic = topic
        self._membership = membership
        self._host = host
        self._timers = timers
        self._start = start
        self._reader = ParkedReader(host, metrics, read_from=read_from, read=read, start=start)
        self._renewal = Renewal(topic, self._reader, outbox, start=start, renew_after=renew_after, wall=wall)
        self._keeps = keeps
        self._wall = wall
        self._clock = asyncio.get_running_loop().time
        self._served: dict[TopicPartition, ServedPartition] = {}
        self._stopped = False
        self._log = ParkingLog()

    def parked(self) -> dict[tuple[str, ...], float]:
        """How many are parked in the partitions of this process, by why."""
        return parked_counts(served.tracker for served in self._served.values())

    def ages(self) -> dict[tuple[str, ...], float]:
        """For how many seconds the oldest waits that is parked in the partitions of this process, by why."""
        return oldest_ages((served.tracker for served in self._served.values()), self._wall())

    def trackers(self) -> list[ParkedTracker]:
        """Those of the partitions that this process has: who has what parked in them. Not to be changed."""
        return [served.tracker for served in self._served.values()]

    def waiting(self) -> dict[tuple[str, ...], int]:
        """The same by topic and partition."""
        return {(p.topic, str(p.partition)): len(served.tracker) for p, served in self._served.items()}

    def stuck(self) -> Mapping[TopicPartition, UnreadableBatch]:
        """Where a backlog stands still, since what it is to send can't be unpacked any more. Others of the partition go on."""
        return {each.partition: each.stuck for each in self._served.values() if each.stuck is not None}

    def skip(self, partition: TopicPartition) -> None:
        """Give up the batch that the partition is stuck at; nothing where it isn't stuck."""
        served = self._served.get(partition)
        if served is None or served.stuck is None:
            return
        served.tracker.give_up(served.stuck.first, served.stuck.last)
        served.stuck = None
        for backlog in served.tracker.backlogs.values():
            self._wake(served, backlog)

    # Reading in order: where is what?

    def reassigned(self) -> None:
        """The partitions are others; those that stayed keep what is known of them."""
        trackers = {
            partition: tracker
            for partition, tracker in self._membership.trackers.items()
            if partition.topic == self.topic and isinstance(tracker, ParkedTracker)
        }
        for partition, served in list(self._served.items()):
            if trackers.get(partition) is not served.tracker:
                self._give_up(served)
        for partition, tracker in trackers.items():
            tracker.share(len(trackers))
            if partition not in self._served:
                served = self._served[partition] = ServedPartition(partition, tracker)
                tracker.freed = partial(self._freed, served)
                served.task = self._start(
                    self._serve(served), f"parked {partition.topic}-{partition.partition}"
                )

    def _give_up(self, served: ServedPartition) -> None:
        del self._served[served.partition]
        served.tracker.freed = None
        for backlog in served.tracker.backlogs.values():
            if isinstance(backlog.waiting, Entry):
                self._timers.cancel(backlog.waiting)
            backlog.waiting = None
        served.ready = Rounds()
        served.some.set()  # its task sees that the tracker is lost

    def keep(self, partition: TopicPartition, records: Sequence[Record]) -> None:
        """Note where these are, which have been read."""
        served = self._served.get(partition)
        if served is None:
            return
        tracker = served.tracker
        now, unix = self._clock(), self._wall()
        marks = served.marks
        for record in records:
            offset = record.offset
            if tracker.seen(offset):
                continue
            if not marks or offset >= marks[-1][0] + _MARK:
                marks.append((offset, record.timestamp / 1000))
            key = record.key
            if key is None or len(key) > 64 or not key.isascii():
                tracker.track(offset, 1)
                self._host.refuse(record, tracker, UNREADABLE, "the key is no subscription id")
                continue
            headers = dict(record.headers)
            reason = (headers.get("reason") or b"").decode(errors="replace")
            since = milliseconds(headers.get(SINCE), record.timestamp)
            backlog = tracker.note(offset, key.decode(), min(since // 1000, (1 << 32) - 1), reason)
            if reason == "retry_after":
                wait = left_of(record.timestamp / 1000, milliseconds(headers.get("due_ms"), 0) / 1000, unix)
                backlog.asked_until = max(backlog.asked_until, now + min(wait, RETRY_AFTER_CAP))
            if backlog.waiting is None and not backlog.taken:
                self._wake(served, backlog)

    def _wake(self, served: ServedPartition, backlog: Backlog) -> None:
        if backlog.waiting is _READY:
            return
        if isinstance(backlog.waiting, Entry):
            self._timers.cancel(backlog.waiting)
        backlog.waiting = _READY
        served.ready.put(backlog, self._host.tenant_of(backlog.id), backlog.id)
        served.some.set()

    def _sleep(self, served: ServedPartition, backlog: Backlog, until: float) -> None:
        entry: Entry[Callback] = self._timers.at(until, partial(self._slept, served, backlog))
        backlog.waiting = entry

    def _slept(self, served: ServedPartition, backlog: Backlog) -> None:
        backlog.waiting = None
        self._wake(served, backlog)

    def _freed(self, served: ServedPartition, backlog: Backlog, given_back: bool) -> None:
        if backlog.waiting is not None:
            return
        if given_back:
            self._sleep(served, backlog, self._clock() + _AGAIN)
        elif 2 * len(backlog.taken) <= backlog.window:
            self._wake(served, backlog)

    def stop(self) -> None:
        """Hand nothing over any more."""
        self._stopped = True

    async def run(self) -> None:
        """See to it that changes of subscriptions are noticed and old records renewed, until cancelled."""
        while True:
            await asyncio.sleep(_WATCH)
            for served in list(self._served.values()):
                await self._notice(served)
                self._renewal.look_after(served)
            self._log.look(
                self._clock(), {p: each.tracker.backlogs.keys() for p, each in self._served.items()}
            )

    async def _notice(self, served: ServedPartition) -> None:
        """Wake those whose subscription has changed."""
        state_of = self._host.state_of
        for number, (backlog, state) in enumerate(list(served.states.items()), 1):
            if state_of(backlog.id) != state and served.states.get(backlog) is state:
                self._wake(served, backlog)
            if number % _SWEPT == 0:
                await asyncio.sleep(0)

    async def _serve(self, served: ServedPartition) -> None:
        """Hand over what is parked in one partition, until it is somebody else's."""
        while not served.tracker.lost and self._served.get(served.partition) is served:
            await served.some.wait()
            served.some.clear()
            while served.ready:
                backlog = served.ready.pop()
                backlog.waiting = None
                await self._look(served, backlog)

    async def _look(self, served: ServedPartition, backlog: Backlog) -> None:
        if self._stopped:
            return
        now = self._clock()
        elapsed = now - backlog.looked
        if elapsed >= _RATE_OVER:
            backlog.rate = backlog.done / elapsed
            backlog.done = 0
            backlog.looked = now
        tracker = served.tracker
        if backlog.more_from is not None and not len(backlog):
            self._reader.start_refill(served, backlog)
        oldest = backlog.oldest
        if oldest is None:
            if backlog.over and tracker.backlogs.get(backlog.id) is backlog:
                del tracker.backlogs[backlog.id]
                served.states.pop(backlog, None)
            elif backlog.more_from is not None:
                self._sleep(served, backlog, now + _AGAIN)
            return  # all of it is with the lane: `_freed`
        served.states[backlog] = self._host.state_of(backlog.id)
        purge = self._host.purge_of(backlog.id)
        if purge != backlog.purge:
            if await self._purge(served, backlog):
                backlog.purge = purge
                self._wake(served, backlog)
            elif backlog.waiting is None:
                self._sleep(served, backlog, self._clock() + _AGAIN)
            return
        unix = self._wall()
        appetite = self._host.appetite(backlog.id, oldest, backlog.rate)
        if appetite.kept is not None:
            if oldest + self._keeps <= unix:
                await self._expire(served, backlog, unix)
                self._wake(served, backlog)
            else:
                self._sleep(served, backlog, now + min(_KEPT, oldest + self._keeps - unix + 1.0))
            return
        most = appetite.most
        if most and backlog.asked_until > now and appetite.again:
            self._sleep(served, backlog, backlog.asked_until)
            return
        if most and backlog.more_from is not None and len(backlog) < REFILL:
            self._reader.start_refill(served, backlog)
        backlog.window = most
        count = min(most - len(backlog.taken), appetite.room, _PORTION)
        if count <= 0:
            if not most or not backlog.taken:
                self._sleep(served, backlog, max(appetite.again, now))
            return
        handed = await self._hand_over(served, backlog, count, self._host.take_parked)
        if backlog.waiting is not None:
            return
        if not handed:
            self._sleep(served, backlog, self._clock() + _AGAIN)
        elif 2 * len(backlog.taken) <= most:
            self._wake(served, backlog)

    async def _expire(self, served: ServedPartition, backlog: Backlog, unix: float) -> None:
        """Drop the oldest of what is kept, as far as it was kept for long enough."""
        before = len(served.tracker)

        def expire(retry: RetryRecord, tracker: ParkedTracker, offset: int) -> None:
            if backlog.taken.get(offset, 0) + self._keeps <= unix:
                self._host.expire_parked(retry, tracker, offset)
            else:
                tracker.give_back(offset)

        await self._hand_over(served, backlog, _PORTION, expire)
        if dropped := before - len(served.tracker):
            log.warning(
                "expired while paused: what was kept for a subscription that takes nothing is dropped",
                subscription_id=backlog.id,
                deliveries=dropped,
                kept=self._keeps,
                hint="resume the subscription, or mend what /readyz says of it; subscription.pause_keeps says how long",
            )

    async def _purge(self, served: ServedPartition, backlog: Backlog) -> bool:
        """End what is purged, the oldest first, whether the endpoint takes anything or not; False where it can't be read now.

        Where a portion holds nothing of it, the rest is newer. What is purged and comes out of a tier later does not get here.
        """
        ended = 0

        def purge(retry: RetryRecord, tracker: ParkedTracker, offset: int) -> None:
            nonlocal ended
            ended += self._host.purge_parked(retry, tracker, offset)

        while not served.tracker.lost and len(backlog):
            before = ended
            if not await self._hand_over(served, backlog, _PORTION, purge):
                return False
            if ended == before:
                break
        if ended:
            log.warning("purged: what was parked has ended", subscription_id=backlog.id, deliveries=ended)
        return True

    # Reading by offset.

    async def _hand_over(
        self,
        served: ServedPartition,
        backlog: Backlog,
        count: int,
        take: Callable[[RetryRecord, ParkedTracker, int], None],
    ) -> int:
        """Read the oldest, at most so many, and hand each to `take`; how many. Where the broker can't be read, wait a little."""
        tracker = served.tracker
        offsets = deque(tracker.take(backlog, count))
        handed = 0
        left: deque[int] = deque()  # of a run that was read
        try:
            while offsets:
                run, records = await self._reader.read(served.partition, offsets)
                left = run
                stuck = served.stuck
                if stuck is not None and run and run[0] <= stuck.last and run[-1] >= stuck.first:
                    served.stuck = None
                while left:
                    offset = left.popleft()
                    if tracker.lost:
                        return handed
                    if offset not in backlog.taken:
                        continue
                    record = records.get(offset)
                    if record is None:
                        self._reader.gone(served, offset)
                        continue
                    await self._reader.take(record, tracker, take)
                    handed += 1
                    if handed % _SLICE == 0:
                        await asyncio.sleep(0)
        except UnreadableBatch as error:
            served.stand_still(error)
            self._sleep(served, backlog, self._clock() + _STUCK)
        except BrokerError as error:
            log.warning(
                "what is parked can't be read, trying again",
                topic=served.partition.topic,
                partition=served.partition.partition,
                error=str(error),
            )
            await asyncio.sleep(_AWAY)  # so it is with all of the partition
        finally:
            if not tracker.lost:
                for offset in (*left, *offsets):
                    tracker.give_back(offset)
        return handed


def parked_counts(trackers: Iterable[ParkedTracker]) -> dict[tuple[str, ...], float]:
    """How many are parked in these partitions, by why."""
    counts: dict[tuple[str, ...], float] = {}
    for tracker in trackers:
        for reason, count in tracker.reasons().items():
            counts[reason,] = counts.get((reason,), 0) + count
    return counts


def oldest_ages(trackers: Iterable[ParkedTracker], unix: float) -> dict[tuple[str, ...], float]:
    """For how many seconds the oldest waits of all that is parked in these partitions, by why; `unix` is now."""
    since = [item for tracker in trackers for item in tracker.oldest().items()]
    return {(reason,): max(0.0, unix - min(at for why, at in since if why == reason)) for reason, _ in since}
