"""Reads `dispatcher.replay`: deliveries of replays, of which only the sources are written, and hands each to its lane when nothing fresh waits.

In come records of the replay topic (`retry_reader.py` polls them). Each waits in the line of its replay and subscription. When the lane of that subscription
has a slot to spare, the bodies of the next ones are read where their events stand, in runs, and handed over (`returning.py`). This room alone writes
the lines.

A replay is written at most some thousand deliveries ahead, so the lines are short: nothing here has to be spilled.

Rules:

1. A record is tracked as soon as it is read. What waits in a line is owed.
2. Lines of a paused replay stand still. Those of a cancelled one are settled without being sent. So is what belongs to a replay that nobody
   knows, once that has been so for `_STRANGE` seconds: the record of a replay is written before its deliveries.
3. Nothing is handed over that would wait in a lane: what is fresh must find its slot free.
4. After each slice the loop turns. Where a turn was long, others have work, and this room rests for a multiple of that time. While fresh events come,
   it hands over in a sixteenth of the time at most: the way of an event from the broker takes some ten turns of the loop, and each turn has its slice.
5. A partition with more than `_MOST` waiting is paused until half of them are gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple, Protocol

import structlog

from dispatcher.broker.base import (
    BrokerError,
    BrokerUnavailable,
    Record,
    Stretch,
    TopicPartition,
    UnreadableBatch,
    UnreadableRecord,
)
from dispatcher.core.commit.offsets import PartitionTracker
from dispatcher.core.commit.replayed import ReplayTracker
from dispatcher.core.event.decode import Event
from dispatcher.core.replay.record import InvalidReplayRecord, ReplayRecord, read_replay_record
from dispatcher.core.replay.standing import ReplayStanding, ReplayStandings
from dispatcher.core.retry.dead_letters import InvalidDeadLetter, read_dead_letter
from dispatcher.core.retry.records import BODY_UNREADABLE, UNREADABLE, Source
from dispatcher.core.retry.sources import EventLost, check_same, read_again
from dispatcher.delivery.membership import Membership

log = structlog.get_logger(__name__)

_SLICE: Final = 4  # deliveries handed over between two turns of the loop
_RUN: Final = 100  # deliveries whose bodies are read at a time
_GAP: Final = 50  # records between two wanted ones that are rather read than left out
_READ_BYTES: Final = 1 << 20
_KEPT: Final = 4  # stretches that were read last: lines of other subscriptions want the same events
_LOOK: Final = 0.05  # seconds between two looks where nothing could be handed over
_IDLE: Final = 1.0  # seconds between two looks at lines that stand still
_AWAY: Final = 1.0  # seconds until another try where the broker couldn't be read
_STRANGE: Final = 30.0  # see rule 2
_MOST: Final = 20_000  # see rule 5
_BUSY_TURN: Final = 0.002  # seconds that a turn of a busy loop takes
_REST: Final = 2.0  # times of a long turn
_LONGEST_REST: Final = 0.25  # seconds
_BESIDE_FRESH: Final = 15.0  # times of a slice that it rests while fresh events come
_FRESH: Final = 0.25  # seconds after one for which fresh events come

ReadFrom = Callable[[TopicPartition, int, int, int], Awaitable[Stretch]]


class ReplayHost(Protocol):
    """Who delivers what was replayed (`returning.py`)."""

    def replay_room(self, subscription_id: str) -> int:
        """How many deliveries to a subscription may be handed over now."""

    def take_replayed(
        self, record: ReplayRecord, event: Event, tracker: PartitionTracker, offset: int
    ) -> None:
        """Deliver it, or settle its offset."""

    def lose_replayed(
        self, record: ReplayRecord, lost: EventLost, tracker: PartitionTracker, offset: int
    ) -> None:
        """Its body can't be read any more: end it, then settle its offset."""

    def refuse(self, record: Record, tracker: PartitionTracker, reason: str, detail: str) -> None:
        """Nobody can read it: to the dead letters with it, then settle the offset."""


class _WaitingReplay(NamedTuple):
    record: ReplayRecord
    tracker: ReplayTracker
    offset: int
    read: float  # seconds of the loop's clock


class _Bodies(NamedTuple):
    """What was read of a partition, from `first` to before `next`."""

    partition: TopicPartition
    first: int
    next: int
    records: dict[int, Record]
    unreadable: Sequence[UnreadableBatch]


class ReplayReader:
    """The lines of deliveries that replays have written to the partitions of this process."""

    def __init__(
        self,
        topic: str,
        dead_topic: str,
        membership: Membership,
        host: ReplayHost,
        standings: ReplayStandings,
        *,
        read_from: ReadFrom,
        turn: Callable[[], float],
        fresh: Callable[[], int],
    ) -> None:
        """`read_from` is the broker's; `turn` gives seconds of a clock by which turns of the loop are measured; `fresh` how many events have come."""
        self.topic = topic
        self._dead_topic = dead_topic
        self._membership = membership
        self._host = host
        self._standings = standings
        self._read_from = read_from
        self._turn = turn
        self._fresh = fresh
        self._fresh_seen = fresh()
        self._fresh_until = 0.0
        self._slice = 0  # deliveries of this slice
        self._used = 0.0  # seconds that they have taken
        self._clock = asyncio.get_running_loop().time
        self._lines: dict[tuple[str, str], deque[_WaitingReplay]] = {}
        self._counts: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._later: dict[
            tuple[str, str], float
        ] = {}  # lines whose events can't be read now, and when to try again
        self._some = asyncio.Event()
        self._bodies: deque[_Bodies] = deque(maxlen=_KEPT)
        self._stopped = False

    def waiting(self) -> dict[tuple[str, ...], int]:
        """Deliveries that were read and wait, by topic and partition."""
        return {(p.topic, str(p.partition)): count for p, count in self._counts.items() if count}

    def stop(self) -> None:
        """Hand nothing over any more."""
        self._stopped = True

    # What the topic says.

    def reassigned(self) -> None:
        """The partitions are others; lines of those that stayed go on."""
        self._counts.clear()
        self._paused.clear()
        for key, line in list(self._lines.items()):
            kept = [waiting for waiting in line if not waiting.tracker.lost]
            line.clear()  # in its place: whoever is about to take from it goes on with what is left
            line.extend(kept)
            if not kept:
                del self._lines[key]
            for waiting in kept:
                self._count(waiting, 1)
        self._some.set()

    def keep(self, partition: TopicPartition, records: Sequence[Record]) -> None:
        """Take these into their lines."""
        tracker = self._membership.trackers.get(partition)
        if not isinstance(tracker, ReplayTracker):
            return  # revoked since it was read
        tracker.freed = self._some.set
        now = self._clock()
        for record in records:
            if tracker.seen(record.offset):
                continue
            tracker.track(record.offset, 1)
            try:
                if isinstance(record, UnreadableRecord):
                    raise InvalidReplayRecord(record.problem)  # noqa: TRY301 - handled like what `read_replay_record` raises
                found = read_replay_record(record.value)
            except InvalidReplayRecord as error:
                self._host.refuse(record, tracker, UNREADABLE, str(error))
                continue
            waiting = _WaitingReplay(found, tracker, record.offset, now)
            self._lines.setdefault((found.replay, found.subscription_id), deque()).append(waiting)
            self._count(waiting, 1)
        if self._counts.get(partition, 0) > _MOST:
            self._paused.add(partition)
            self._membership.consumer.pause([partition])
        self._some.set()

    def _count(self, waiting: _WaitingReplay, by: int) -> None:
        partition = TopicPartition(waiting.tracker.topic, waiting.tracker.partition)
        left = self._counts[partition] = self._counts.get(partition, 0) + by
        if by < 0 and partition in self._paused and left <= _MOST // 2:
            self._paused.discard(partition)
            self._membership.consumer.resume([partition])

    # To the lanes.

    async def run(self) -> None:
        """Hand over what may go, until cancelled."""
        while True:
            if not self._lines:
                await self._some.wait()
            self._some.clear()
            handed, still = await self._round()
            if handed:
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_IDLE if still else _LOOK):
                    await self._some.wait()

    async def _round(self) -> tuple[int, bool]:
        """Look at each line once: how many were handed over, and whether all of them stand still."""
        handed = 0
        still = True
        for key, line in list(self._lines.items()):
            if self._stopped:
                break
            if self._lines.get(key) is not line:
                continue
            match self._standings.standing(key[0]):
                case ReplayStanding.GO:
                    still = False
                    if self._later.get(key, 0.0) <= self._clock():
                        self._later.pop(key, None)
                        handed += await self._hand_over(key, line)
                case ReplayStanding.OVER:
                    still = False
                    handed += await self._drop(line)
                case ReplayStanding.UNKNOWN:
                    if line and line[0].read + _STRANGE <= self._clock():
                        log.warning(
                            "deliveries of a replay that nobody knows are not sent",
                            replay=key[0],
                            deliveries=len(line),
                        )
                        handed += await self._drop(line)
                case ReplayStanding.WAIT:
                    pass
            if not line and self._lines.get(key) is line:
                del self._lines[key]
                self._later.pop(key, None)
        return handed, still

    async def _drop(self, line: deque[_WaitingReplay]) -> int:
        """Settle what is not to be sent: it never was owed for long enough to be recorded."""
        dropped = 0
        while line:
            waiting = line.popleft()
            self._count(waiting, -1)
            if not waiting.tracker.lost:
                waiting.tracker.settle(waiting.offset)
            dropped += 1
            if dropped % _SLICE == 0:
                await self._breathe()
        return dropped

    async def _hand_over(self, key: tuple[str, str], line: deque[_WaitingReplay]) -> int:
        """As many of a line as there is room for now; how many."""
        handed = 0
        while line and not self._stopped:
            if self._host.replay_room(key[1]) <= 0:
                break
            # More than there is room for: a broker answers with up to a mebibyte, and what is left of it is wanted next.
            run = self._run(line)
            try:
                bodies = await self._bodies_of(run)
            except BrokerError as error:
                log.warning(
                    "the events of a replay can't be read, trying again", replay=key[0], error=str(error)
                )
                self._later[key] = self._clock() + _AWAY
                break
            # A replay may have been paused, or a partition lost, while the events were read.
            if self._standings.standing(key[0]) is not ReplayStanding.GO or self._lines.get(key) is not line:
                break
            done = 0
            for waiting in run:
                if (
                    not line
                    or line[0] is not waiting
                    or waiting.record.body_at.offset >= bodies.next
                    or self._host.replay_room(key[1]) <= 0
                ):
                    break
                line.popleft()
                self._count(waiting, -1)
                if not waiting.tracker.lost:
                    begin = self._turn()
                    self._hand(waiting, bodies)
                    self._used += self._turn() - begin
                done += 1
                self._slice += 1
                if self._slice >= _SLICE:
                    await self._breathe()
            handed += done
            if done < len(run):
                break
        return handed

    def _run(self, line: deque[_WaitingReplay]) -> list[_WaitingReplay]:
        """The next ones whose bodies stand near to each other."""
        run: list[_WaitingReplay] = []
        last: Source | None = None
        for waiting in line:
            at = waiting.record.body_at
            if len(run) >= _RUN:
                break
            if last is not None and (at[:2] != last[:2] or not 0 <= at.offset - last.offset <= _GAP):
                break
            run.append(waiting)
            last = at
        return run

    async def _bodies_of(self, run: Sequence[_WaitingReplay]) -> _Bodies:
        """The records that the bodies of these are in, or of the first ones where they are large. Raises BrokerError."""
        topic, number, first = run[0].record.body_at
        last = run[-1].record.body_at.offset
        partition = TopicPartition(topic, number)
        for kept in self._bodies:
            if kept.partition == partition and kept.first <= first < kept.next:
                return kept
        records: dict[int, Record] = {}
        unreadable: list[UnreadableBatch] = []
        at = first
        size = 0
        while at <= last and size < _READ_BYTES:
            try:
                stretch = await self._read_from(partition, at, last - at + 1, _READ_BYTES)
            except UnreadableBatch as error:
                unreadable.append(error)
                at = max(at, error.last) + 1
                continue
            for record in stretch.records:
                records[record.offset] = record
                size += len(record.value or b"")
            if stretch.next <= at:
                # The partition ends before it. A leader that is new may not know its end yet.
                if run[0].read + _STRANGE > self._clock():
                    raise BrokerUnavailable(f"{topic}-{number} ends before offset {at}")
                at = last
            at = max(stretch.next, at + 1)
        self._bodies.append(bodies := _Bodies(partition, first, at, records, unreadable))
        return bodies

    def _hand(self, waiting: _WaitingReplay, bodies: _Bodies) -> None:
        record, tracker, offset, _ = waiting
        at = record.body_at.offset
        body = bodies.records.get(at)
        try:
            for batch in bodies.unreadable:
                if batch.first <= at <= batch.last:
                    raise EventLost(BODY_UNREADABLE, str(batch))  # noqa: TRY301 - handled like what `_event` raises
            if isinstance(body, UnreadableRecord):
                raise EventLost(BODY_UNREADABLE, f"the event's record can't be unpacked: {body.problem}")  # noqa: TRY301 - likewise
            event = self._event(record, body)
        except EventLost as error:
            self._host.lose_replayed(record, error, tracker, offset)
        else:
            self._host.take_replayed(record, event, tracker, offset)

    def _event(self, record: ReplayRecord, body: Record | None) -> Event:
        at = record.body_at
        if at.topic != self._dead_topic or body is None:
            return read_again(body, at.topic, at.partition, record.event)
        try:
            event = read_dead_letter(body).event
        except InvalidDeadLetter as error:
            raise EventLost(BODY_UNREADABLE, f"its dead letter can't be read: {error}") from error
        check_same(event, record.event)
        return event

    async def _breathe(self) -> None:
        """Let the loop turn; see rule 4."""
        before = self._turn()
        await asyncio.sleep(0)
        took = self._turn() - before
        rest = took * _REST if took > _BUSY_TURN else 0.0
        if self._fresh_come():
            rest = max(rest, self._used * _BESIDE_FRESH)
        if rest:
            await asyncio.sleep(min(rest, _LONGEST_REST))
        self._slice = 0
        self._used = 0.0

    def _fresh_come(self) -> bool:
        """Whether fresh events come."""
        now = self._clock()
        seen = self._fresh()
        if seen != self._fresh_seen:
            self._fresh_seen = seen
            self._fresh_until = now + _FRESH
        return now < self._fresh_until
