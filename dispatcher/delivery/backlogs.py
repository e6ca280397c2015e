"""Reads the parked topic, and hands what is parked to its lane as fast as the endpoint takes it, the oldest first.

Each record is read twice. First in the order of the partition, as it comes: only where it is gets noted
(`core/parked.py`). Then by its offset, when its endpoint takes something. A subscription with anything parked is looked at when that
may have changed: its cool-down is over, the time it asked for is, its deliveries with the lane have halved, its status
is another one. The lane says how many it takes; with fresh ones in the lane it takes turns.

What is parked for one subscription comes in small portions: about what it has taken in the last second, and no more than half a thousand. So memory
holds little of it, and a breaker that opens gives little back. Subscriptions are served in turns, and each partition by a task of its own: a
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
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import structlog

from dispatcher.broker.base import BrokerError, Message, Record, Stretch, TopicPartition, UnreadableBatch
from dispatcher.core.commit.parked import REFILL, Backlog, ParkedTracker
from dispatcher.core.retry.policy import RETRY_AFTER_CAP
from dispatcher.core.retry.records import UNREADABLE, InvalidLetter, Letter, read_letter
from dispatcher.core.retry.tiers import left_of
from dispatcher.core.retry.wheel import Entry
from dispatcher.delivery.membership import Membership
from dispatcher.delivery.outbox import Outbox
from dispatcher.delivery.parking import SINCE
from dispatcher.runtime.timers import Callback, Timers
from dispatcher.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_PORTION: Final = 500  # parked ones read at a time
_PORTION_BYTES: Final = 1 << 20
_GAP: Final = 50  # records between two wanted ones that are rather read than left out
_SLICE: Final = 32  # deliveries handed over between two turns of the loop
_RATE_OVER: Final = 0.25  # seconds that a rate is measured over
_AGAIN: Final = 0.25  # seconds until another look at what was given back
_AWAY: Final = 1.0  # seconds until another try where the broker couldn't be read
_STUCK: Final = 30.0  # likewise where they can't be unpacked
_KEPT: Final = 60.0  # seconds between two looks at what is kept: whether it was for too long
_WATCH: Final = 0.5  # seconds between two looks whether subscriptions have changed
_SWEPT: Final = 1000  # backlogs looked at between two turns of the loop
_RENEWED: Final = 200  # records of a partition that are written anew at a time
_LONG: Final = (
    100_000  # offsets between the oldest and the newest, of which few are owed, that are worth renewing for
)
_FEW: Final = 4  # so many times as many as are owed
_MARK: Final = 1000  # records between two whose time is noted

_READY: Final = "ready"

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

    def take_parked(self, letter: Letter, tracker: ParkedTracker, offset: int) -> None:
        """Deliver it, settle its offset, or give it back to the tracker."""

    def expire_parked(self, letter: Letter, tracker: ParkedTracker, offset: int) -> None:
        """It was kept for long enough; settle its offset."""

    def refuse(self, record: Record, tracker: ParkedTracker, reason: str, detail: str) -> None:
        """Nobody can read it: to the dead letters with it, then settle the offset."""


class _Served:
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
        self.ready: deque[Backlog] = deque()
        self.some = asyncio.Event()
        self.states: dict[Backlog, object] = {}  # what the host said of each when it was last looked at
        self.marks: deque[tuple[int, float]] = (
            deque()
        )  # of every so-manieth record its offset and when it was written
        self.renewing = 0
        self.refilling = False
        self.stuck: UnreadableBatch | None = None  # was readable when it was noted, and isn't any more
        self.task: asyncio.Task[None] | None = None


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
        self._outbox = outbox
        self._metrics = metrics
        self._timers = timers
        self._read_from = read_from
        self._read_one = read
        self._start = start
        self._keeps = keeps
        self._renew_after = renew_after
        self._wall = wall
        self._clock = asyncio.get_running_loop().time
        self._served: dict[TopicPartition, _Served] = {}
        self._stopped = False

    # For metrics.

    def parked(self) -> dict[tuple[str, ...], float]:
        """How many are parked in the partitions of this process, by why."""
        counts: dict[tuple[str, ...], float] = {}
        for served in self._served.values():
            for reason, count in served.tracker.reasons().items():
                counts[reason,] = counts.get((reason,), 0) + count
        return counts

    def waiting(self) -> dict[tuple[str, ...], int]:
        """The same by topic and partition."""
        return {(p.topic, str(p.partition)): len(served.tracker) for p, served in self._served.items()}

    # Batches that can't be unpacked: as a consumer has it.

    def stuck(self) -> Mapping[TopicPartition, UnreadableBatch]:
        """Where a backlog stands still, since what it is to send can't be unpacked any more. Others of the partition go on."""
        return {
            served.partition: served.stuck for served in self._served.values() if served.stuck is not None
        }

    def skip(self, partition: TopicPartition) -> None:
        """Give up the batch that the partition is stuck at; nothing where it isn't stuck."""
        served = self._served.get(partition)
        if served is None or served.stuck is None:
            return
        served.tracker.give_up(served.stuck.first, served.stuck.last)
        served.stuck = None
        for backlog in served.tracker.backlogs.values():
            self._wake(served, backlog)

    def _stand_still(self, served: _Served, error: UnreadableBatch) -> None:
        if served.stuck is None or served.stuck.first != error.first:
            log.error(
                "what is parked can't be unpacked",
                topic=served.partition.topic,
                partition=served.partition.partition,
                error=str(error),
                hint="/readyz says how to give it up",
            )
        served.stuck = error

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
                served = self._served[partition] = _Served(partition, tracker)
                tracker.freed = partial(self._freed, served)
                served.task = self._start(
                    self._serve(served), f"parked {partition.topic}-{partition.partition}"
                )

    def _give_up(self, served: _Served) -> None:
        del self._served[served.partition]
        served.tracker.freed = None
        for backlog in served.tracker.backlogs.values():
            if isinstance(backlog.waiting, Entry):
                self._timers.cancel(backlog.waiting)
            backlog.waiting = None
        served.ready.clear()
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
            since = _milliseconds(headers.get(SINCE), record.timestamp)
            backlog = tracker.note(offset, key.decode(), min(since // 1000, (1 << 32) - 1), reason)
            if reason == "retry_after":
                wait = left_of(record.timestamp / 1000, _milliseconds(headers.get("due_ms"), 0) / 1000, unix)
                backlog.asked_until = max(backlog.asked_until, now + min(wait, RETRY_AFTER_CAP))
            if backlog.waiting is None and not backlog.taken:
                self._wake(served, backlog)

    # Who is next.

    def _wake(self, served: _Served, backlog: Backlog) -> None:
        if backlog.waiting is _READY:
            return
        if isinstance(backlog.waiting, Entry):
            self._timers.cancel(backlog.waiting)
        backlog.waiting = _READY
        served.ready.append(backlog)
        served.some.set()

    def _sleep(self, served: _Served, backlog: Backlog, until: float) -> None:
        entry: Entry[Callback] = self._timers.at(until, partial(self._slept, served, backlog))
        backlog.waiting = entry

    def _slept(self, served: _Served, backlog: Backlog) -> None:
        backlog.waiting = None
        self._wake(served, backlog)

    def _freed(self, served: _Served, backlog: Backlog, given_back: bool) -> None:
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
                self._look_after_age(served)

    async def _notice(self, served: _Served) -> None:
        """Wake those whose subscription has changed."""
        state_of = self._host.state_of
        for number, (backlog, state) in enumerate(list(served.states.items()), 1):
            if state_of(backlog.id) != state and served.states.get(backlog) is state:
                self._wake(served, backlog)
            if number % _SWEPT == 0:
                await asyncio.sleep(0)

    async def _serve(self, served: _Served) -> None:
        """Hand over what is parked in one partition, until it is somebody else's."""
        while not served.tracker.lost and self._served.get(served.partition) is served:
            await served.some.wait()
            served.some.clear()
            while served.ready:
                backlog = served.ready.popleft()
                backlog.waiting = None
                await self._look(served, backlog)

    async def _look(self, served: _Served, backlog: Backlog) -> None:
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
            self._start_refill(served, backlog)
        oldest = backlog.oldest
        if oldest is None:
            if backlog.over and tracker.backlogs.get(backlog.id) is backlog:
                del tracker.backlogs[backlog.id]
                served.states.pop(backlog, None)
            elif backlog.more_from is not None:
                self._sleep(served, backlog, now + _AGAIN)
            return  # all of it is with the lane: `_freed`
        served.states[backlog] = self._host.state_of(backlog.id)
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
            self._start_refill(served, backlog)
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

    async def _expire(self, served: _Served, backlog: Backlog, unix: float) -> None:
        """Drop the oldest of what is kept, as far as it was kept for long enough."""
        before = len(served.tracker)

        def expire(letter: Letter, tracker: ParkedTracker, offset: int) -> None:
            if backlog.taken.get(offset, 0) + self._keeps <= unix:
                self._host.expire_parked(letter, tracker, offset)
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

    # Reading by offset.

    async def _hand_over(
        self,
        served: _Served,
        backlog: Backlog,
        count: int,
        take: Callable[[Letter, ParkedTracker, int], None],
    ) -> int:
        """Read the oldest, at most so many, and hand each to `take`; how many. Where the broker can't be read, wait a little."""
        tracker = served.tracker
        offsets = deque(tracker.take(backlog, count))
        handed = 0
        left: deque[int] = deque()  # of a run that was read
        try:
            while offsets:
                run, records = await self._read(served.partition, offsets)
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
                        self._gone(served, offset)
                        continue
                    await self._take(record, tracker, take)
                    handed += 1
                    if handed % _SLICE == 0:
                        await asyncio.sleep(0)
        except UnreadableBatch as error:
            self._stand_still(served, error)
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

    async def _read(
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
        size = _PORTION_BYTES if wanted > 1 else 1
        stretch = await self._read_from(partition, first, min(last - first + 1, 2 * _PORTION), size)
        # What is not there although reading has gone past it was deleted.
        reached = max(stretch.next, first + 1) if stretch.records or stretch.next > first else last + 1
        run: deque[int] = deque()
        while offsets and offsets[0] < reached and len(run) < wanted:
            run.append(offsets.popleft())
        return run, {record.offset: record for record in stretch.records}

    async def _take(
        self, record: Record, tracker: ParkedTracker, take: Callable[[Letter, ParkedTracker, int], None]
    ) -> None:
        offset = record.offset
        try:
            letter = read_letter(record)
            if letter.omitted:
                letter = await self._restored(letter)
        except InvalidLetter as error:
            self._host.refuse(record, tracker, UNREADABLE, str(error))
            return
        if not tracker.lost:
            take(letter, tracker, offset)

    async def _restored(self, letter: Letter) -> Letter:
        """The letter with its event's body, which was too large for the topic."""
        topic, partition, offset = letter.place
        try:
            origin = await self._read_one(TopicPartition(topic, partition), offset)
        except UnreadableBatch as error:
            raise InvalidLetter(
                f"the value was too large for the topic, and of its origin {error}"
            ) from error
        if origin is None or origin.value is None:
            raise InvalidLetter("the value was too large for the topic, and its origin has been deleted")
        return letter.with_body(origin.value)

    def _gone(self, served: _Served, offset: int) -> None:
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

    def _start_refill(self, served: _Served, backlog: Backlog) -> None:
        if not served.refilling:
            served.refilling = True
            self._start(self._refill(served, backlog), f"refill {served.partition}")

    async def _refill(self, served: _Served, backlog: Backlog) -> None:
        """Read the partition again from where notes of this one are missing, until it has enough of them."""
        tracker = served.tracker
        try:
            while not tracker.lost and len(backlog) < 2 * REFILL and (at := backlog.more_from) is not None:
                if at >= tracker.next:
                    backlog.more_from = None
                    break
                stretch = await self._read_from(served.partition, at, 2 * _PORTION, _PORTION_BYTES)
                if backlog.more_from != at:
                    break  # it has lost more of them meanwhile
                end = min(max(stretch.next, at + 1), tracker.next)
                for record in stretch.records:
                    key = record.key
                    if at <= record.offset < end and key is not None and key == backlog.id.encode():
                        since = _milliseconds(dict(record.headers).get(SINCE), record.timestamp) // 1000
                        tracker.renote(backlog, record.offset, min(since, (1 << 32) - 1))
                backlog.more_from = end
                await asyncio.sleep(0)
        except UnreadableBatch as error:
            self._stand_still(served, error)
            await asyncio.sleep(_AWAY)
        except BrokerError as error:
            log.warning("what is parked can't be read, trying again", error=str(error))
            await asyncio.sleep(_AWAY)
        finally:
            served.refilling = False

    # Renewing.

    def _look_after_age(self, served: _Served) -> None:
        """Have the oldest written anew where that is needed."""
        tracker = served.tracker
        lowest = tracker.committable
        marks = served.marks
        while len(marks) > 1 and marks[1][0] <= lowest:
            marks.popleft()
        if served.renewing or not len(tracker):
            return
        old = bool(marks) and self._is_old(marks[0][1])
        stretch = tracker.next - lowest
        if not old and (stretch < _LONG or stretch < _FEW * len(tracker)):
            return
        offsets = tracker.renew(_RENEWED)
        if offsets:
            served.renewing = len(offsets)
            self._start(self._renew(served, deque(offsets), old=old), f"renew {served.partition}")

    def _is_old(self, written: float) -> bool:
        return self._wall() - written > self._renew_after

    async def _renew(self, served: _Served, offsets: deque[int], *, old: bool) -> None:
        tracker = served.tracker

        def written(offset: int) -> None:
            served.renewing -= 1
            tracker.settle(offset)

        try:
            while offsets and not tracker.lost:
                run, records = await self._read(served.partition, offsets)
                for offset in run:
                    record = records.get(offset)
                    if record is None:
                        served.renewing -= 1
                        self._gone(served, offset)
                        continue
                    if old and not self._is_old(record.timestamp / 1000):
                        if served.marks and served.marks[0][0] <= offset:
                            served.marks[0] = (offset, record.timestamp / 1000)
                        served.renewing -= 1
                        tracker.keep(offset)
                        continue
                    if record.key is not None:
                        backlog = tracker.backlogs.get(record.key.decode(errors="replace"))
                        if backlog is not None:
                            backlog.drop(offset)
                    headers = [(name, value) for name, value in record.headers if value is not None]
                    if all(name != SINCE for name, _ in headers):
                        headers.append((SINCE, b"%d" % record.timestamp))
                    message = Message(
                        self.topic, record.value, record.key, headers, timestamp_ms=int(self._wall() * 1000)
                    )
                    self._outbox.put(message, partial(written, offset))
        except UnreadableBatch as error:
            self._stand_still(served, error)
            await asyncio.sleep(_AWAY)
        except BrokerError as error:
            log.warning("what is parked can't be read, trying again", error=str(error))
        finally:
            served.renewing -= len(offsets)
            for offset in offsets:
                tracker.keep(offset)


def _milliseconds(raw: bytes | None, otherwise: int) -> int:
    """A header's number; what isn't one is as good as not there."""
    return int(raw) if raw is not None and len(raw) <= 15 and raw.isdigit() else max(0, otherwise)
