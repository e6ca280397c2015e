"""What is done beyond a commit, on its way to the broker and back: packed, kept, read again.

`core/commit/note.py` says what a note is. Most are some bytes, and go beside the commit. One that doesn't fit there is
written, whole, into a record of the topic `<prefix>progress`, and acknowledged, before the commit that points to it. Whoever takes the
partition over reads that one record. The topic is compacted, with group, topic and partition as the key: it keeps one record
for each of them, of less than 1 MB.

What it may cost: nothing for a partition in which nothing has changed; at most one record for each partition and commit interval, and
only while its note doesn't fit; of the loop's time at most a fiftieth, of a core's a twentieth, for each partition, and a tenth and a quarter
for all of them: notes that take longer are made less often (`NoteBudget`).

Rules:

1. A commit never waits for the record for longer than `_WRITE_LIMIT`: it goes without, with what fits beside it. The record is written when that
   may succeed again, also where nothing has changed since.
2. What can't be read is not believed, and costs duplicates, never events.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

import structlog

from dispatcher.broker.base import Broker, BrokerError, MessageTooLarge, Position, TopicPartition
from dispatcher.core.commit.note import (
    RECORD_LIMIT,
    Note,
    Packed,
    Partly,
    Pointer,
    Runs,
    checksum_of,
    pack,
    pointing,
    read_note,
    read_whole,
    reserving,
)
from dispatcher.core.commit.offsets import PartitionTracker
from dispatcher.settings.groups import Settings

log = structlog.get_logger(__name__)

_WRITE_LIMIT: Final = 3.0  # seconds that commits wait for their records
READ_LIMIT: Final = 5.0  # seconds that taking partitions over waits for theirs, at the most
_AGAIN: Final = 30.0  # seconds without a record, after one could not be written
_INLINE: Final = (
    1000  # runs and ids that are packed on the loop, in a millisecond or two; more go to a thread
)
_REST_LOOP: Final = 50.0  # times the loop's time that a note took, until the next one
_REST: Final = 20.0  # times the thread's
_REST_LOOP_ALL: Final = 10.0  # likewise of what the notes of all partitions took that took long
_REST_ALL: Final = 4.0
_SHORT: Final = 0.005  # seconds that nobody has to rest from


def notes_topic(settings: Settings) -> str | None:
    """The topic of notes that don't fit beside their commits; None where the broker takes them of any length."""
    return f"{settings.topics.prefix}progress" if not settings.embedded else None


class Prepared(NamedTuple):
    """A commit, and the state of the tracker that it is of."""

    position: Position
    state: tuple[int, int, int]
    reserved: int


class _Snapshot(NamedTuple):
    partition: TopicPartition
    offset: int
    state: tuple[int, int, int]
    done: Runs
    partly: Partly
    served: float
    reserved: int
    took: float


class NoteBudget:
    """When the notes of partitions that take long are due again, by what they took last."""

    def __init__(self) -> None:
        self._due: dict[TopicPartition, float] = {}
        self._took: dict[TopicPartition, tuple[float, float]] = {}

    def is_due(self, partition: TopicPartition, now: float) -> bool:
        return self._due.get(partition, 0.0) <= now

    def note(self, partition: TopicPartition, loop: float, thread: float, now: float) -> None:
        """Making one took so many CPU seconds of the loop, and of a thread."""
        if loop + thread <= _SHORT:
            self._due.pop(partition, None)
            self._took.pop(partition, None)
            return
        self._took[partition] = loop, thread
        every_loop, every_thread = map(sum, zip(*self._took.values(), strict=True))
        self._due[partition] = now + max(
            loop * _REST_LOOP, thread * _REST, every_loop * _REST_LOOP_ALL, every_thread * _REST_ALL
        )

    def clear(self) -> None:
        """Other partitions are assigned."""
        self._due.clear()
        self._took.clear()


class CommitNotes:
    """The notes of one group."""

    def __init__(
        self,
        broker: Broker,
        group: str,
        topic: str | None,
        *,
        reserves: bool = False,
        read_limit: float = READ_LIMIT,
    ) -> None:
        """`topic` is where those go that don't fit; None for nowhere. `reserves`: they say how far their owner may read.

        `read_limit` is how long taking partitions over may wait for their records, in seconds.
        """
        self.limit = broker.metadata_limit
        """Characters that a note may have beside its commit."""
        self.problem: str | None = None
        """Why notes can't be kept whole, in one sentence; None while they can."""
        self._broker = broker
        self._group = group
        self._topic = topic
        self._reserves = reserves
        self._read_limit = read_limit
        self._record_limit = RECORD_LIMIT
        self._clock = asyncio.get_running_loop().time
        self._again = 0.0  # no record before
        # Of which the last note may have left something out for want of its record.
        self._short: set[TopicPartition] = set()
        self._budget = NoteBudget()

    async def prepare(
        self, trackers: Mapping[TopicPartition, PartitionTracker], *, last: bool
    ) -> dict[TopicPartition, Prepared]:
        """What is to be committed of those that have something to say. `last`: they are given up, nothing may wait."""
        now = self._clock()
        snapshots: list[_Snapshot] = []
        for partition, tracker in trackers.items():
            reserved = tracker.reservation.wanted(tracker.next, last=last)
            closes = last and self._reserves and reserved < tracker.reservation.below
            short = partition in self._short and now >= self._again
            if not (closes or short or tracker.changed()) or not (
                last or self._budget.is_due(partition, now)
            ):
                continue
            began = time.thread_time()
            tracker.reservation.making(reserved)
            snapshot = _Snapshot(
                partition,
                tracker.committable,
                tracker.state(),
                tracker.completed(),
                tracker.partly(),
                tracker.served,
                reserved,
                time.thread_time() - began,
            )
            snapshots.append(snapshot)
            if snapshot.took > _SHORT:
                await asyncio.sleep(0)  # others have their turn: there may be many partitions
        prepared: dict[TopicPartition, Prepared] = {}
        wholes: dict[TopicPartition, tuple[_Snapshot, Packed, bytes]] = {}
        for snapshot in snapshots:
            packed = await self._pack(snapshot)
            if packed.whole is not None:
                wholes[snapshot.partition] = snapshot, packed, packed.whole
            prepared[snapshot.partition] = Prepared(
                Position(snapshot.offset, packed.text), snapshot.state, snapshot.reserved
            )
        if wholes:
            for partition, text in (await self._write(wholes)).items():
                prepared[partition] = prepared[partition]._replace(
                    position=Position(prepared[partition].position.offset, text)
                )
        return prepared

    async def _pack(self, snapshot: _Snapshot) -> Packed:
        record = 0
        if self._topic is not None:
            if self._clock() >= self._again:
                record = self._record_limit
                self._short.discard(snapshot.partition)
            else:
                self._short.add(snapshot.partition)
        weight = len(snapshot.done) + sum(len(who.ids) + len(runs) for who, runs in snapshot.partly.items())
        if weight <= _INLINE:
            packed, took = self._packed(snapshot, record)
            loop, thread = snapshot.took + took, 0.0
        else:
            packed, thread = await asyncio.to_thread(self._packed, snapshot, record)
            loop = snapshot.took
        self._budget.note(snapshot.partition, loop, thread, self._clock())
        return packed

    def _packed(self, snapshot: _Snapshot, record: int) -> tuple[Packed, float]:
        """The note, and the CPU seconds that it took."""
        began = time.thread_time()
        packed = pack(
            *snapshot.partition,
            snapshot.offset,
            snapshot.done,
            snapshot.partly,
            self.limit,
            served=snapshot.served,
            record=record,
            reserved=snapshot.reserved if self._reserves else None,
        )
        return packed, time.thread_time() - began

    async def _write(
        self, wholes: Mapping[TopicPartition, tuple[_Snapshot, Packed, bytes]]
    ) -> dict[TopicPartition, str]:
        """Write them; the texts that point to them. Nothing where that wasn't possible."""
        topic = self._topic
        if topic is None:
            return {}
        stamp = time.time_ns() // 1_000_000
        try:
            async with asyncio.timeout(_WRITE_LIMIT):
                places = await asyncio.gather(
                    *(
                        self._broker.produce_one(topic, (self._key(partition), whole, stamp))
                        for partition, (_, _, whole) in wholes.items()
                    )
                )
        except (BrokerError, TimeoutError) as error:
            self._again = self._clock() + _AGAIN
            self._short.update(wholes)
            if isinstance(error, MessageTooLarge):
                self._again = 0.0
                self._record_limit //= 2
            why = str(error) or f"no acknowledgement within {_WRITE_LIMIT:g} s"
            self.problem = (
                f"what is done beyond the commits of group {self._group} can't be written to {topic}, so more may"
                f" arrive twice after a crash: {why}"
            )
            log.warning(
                "what is done beyond a commit doesn't fit beside it, and can't be written to its topic: more may"
                " arrive twice after a crash",
                group=self._group,
                topic=topic,
                error=why,
            )
            return {}
        self.problem = None
        texts = {}
        for (partition, (snapshot, packed, whole)), (number, offset) in zip(
            wholes.items(), places, strict=True
        ):
            pointer = Pointer(number, offset, checksum_of(whole))
            texts[partition] = pointing(*partition, snapshot.offset, packed.text, pointer, self.limit)
        return texts

    def reserving(
        self, partition: TopicPartition, tracker: PartitionTracker, reserved: int
    ) -> Position | None:
        """The tracker's last commit, with a note that reserves so much and is the same else; None where that isn't possible."""
        text = reserving(*partition, tracker.committed, tracker.noted, reserved, self.limit)
        return None if text is None else Position(tracker.committed, text)

    def keep_reserved(self, partition: TopicPartition, tracker: PartitionTracker, made: Prepared) -> Prepared:
        """The same commit with what has been reserved since it was prepared; where there is no room for that, it is taken back."""
        below = tracker.reservation.below
        if below <= made.reserved:
            return made
        text = reserving(*partition, *made.position, below, self.limit)
        if text is None:
            tracker.reservation.making(made.reserved)
            return made
        return Prepared(Position(made.position.offset, text), made.state, below)

    def _key(self, partition: TopicPartition) -> bytes:
        return f"{self._group}/{partition.topic}/{partition.partition}".encode()

    async def read(
        self, positions: Mapping[TopicPartition, Position], known: Collection[TopicPartition]
    ) -> dict[TopicPartition, Note]:
        """What the notes beside these commits say. Those of `known` partitions are ours: their records need no reading."""
        self._budget.clear()
        self._short.intersection_update(positions.keys() & known)
        notes = {partition: read_note(*partition, *position) for partition, position in positions.items()}
        unread = [p for p, note in notes.items() if note.pointer is not None and p not in known]
        left = len(unread)
        try:
            async with asyncio.timeout(self._read_limit):
                for partition in unread:
                    whole = await self._whole(
                        partition, positions[partition].offset, notes[partition].pointer
                    )
                    if whole is not None:
                        # The text may have been written again since.
                        notes[partition] = whole._replace(reserved=notes[partition].reserved)
                        left -= 1
        except TimeoutError:
            pass
        if left:
            log.warning(
                "what is done beyond some commits could not be read: more may arrive twice",
                group=self._group,
                topic=self._topic,
                partitions=left,
            )
        return notes

    async def _whole(self, partition: TopicPartition, committed: int, pointer: Pointer | None) -> Note | None:
        if self._topic is None or pointer is None:
            return None
        try:
            record = await self._broker.read(TopicPartition(self._topic, pointer.partition), pointer.offset)
        except BrokerError as error:
            log.warning("a note's record can't be read", topic=self._topic, error=str(error))
            return None
        if record is None:
            return None
        return await asyncio.to_thread(read_whole, *partition, committed, record.value, pointer)
