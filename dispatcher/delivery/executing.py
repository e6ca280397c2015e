"""Executes what people have commanded about deliveries whose events are in this process's partitions.

In come commands (`interventions.py`), and the partitions that this process has. A retry, and a delivery to a named subscription, become a delivery of the
command's generation: its event is read where it was published, and it goes to its lane as a retry that is due. A cancel becomes the end of the delivery in the
attempt log. Out goes the end of each command, once its delivery is settled and the attempt log has its records. This room alone has the trackers of commands,
and writes to the topic what a command has come to.

Rules:

1. A command is executed by the process that has the partition of its event, and again by the next one until its end is recorded.
2. Whoever takes over a command that may have been begun makes it begin one more generation first. So what the former process wrote of it to a tier is
   superseded, and comes once.
3. Nothing is taken over before everything is read that was in the topic when the partitions came: the former process may have recorded ends.
4. At most `_AT_A_TIME` commands are under way, and none is taken up while there is no room below the caps.
5. What is sent is the event that was asked for: its id, type and tenant are those of the command, or it counts as deleted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, Protocol

import structlog
from msgspec.structs import replace

from dispatcher.broker.base import (
    BrokerError,
    BrokerRefused,
    Record,
    TopicPartition,
    UnreadableBatch,
    UnreadableRecord,
)
from dispatcher.core.attempt.encode import Decided
from dispatcher.core.attempt.outcome import DROPPED
from dispatcher.core.commit.commands import CommandTracker
from dispatcher.core.commit.offsets import PartitionTracker
from dispatcher.core.event.decode import Event, InvalidEvent, decode
from dispatcher.core.retry.dead_letters import InvalidDeadLetter, read_dead_letter
from dispatcher.core.retry.generations import CANCELLED
from dispatcher.core.retry.interventions import CANCEL, Intervention
from dispatcher.core.retry.records import BODY_EXPIRED, BODY_UNREADABLE, LostBody, RetryRecord
from dispatcher.delivery.attempt_log import AttemptLog
from dispatcher.delivery.interventions import InterventionLog
from dispatcher.delivery.membership import Membership
from dispatcher.delivery.outbox import Outbox
from dispatcher.registry.registry import Registry
from dispatcher.runtime.backoff import Backoff

log = structlog.get_logger(__name__)

_AT_A_TIME: Final = 200
_NO_ROOM: Final = 0.05  # seconds until another look whether there is room

Read = Callable[[TopicPartition, int], Awaitable[Record | None]]


class CommandHost(Protocol):
    """Who delivers what is commanded (`returning.py`)."""

    def has_room(self) -> bool:
        """Whether one more delivery may be taken up."""

    def take_commanded(self, retry: RetryRecord, tracker: PartitionTracker, number: int) -> None:
        """Deliver it now, or settle it where nobody is owed it."""

    def give_up_lost(self, lost: LostBody, tracker: PartitionTracker, offset: int) -> None:
        """Its body can't be read any more: a dead letter of the delivery, then settle it."""


class _Execution(NamedTuple):
    key: str
    id: str
    generation: int


class Executing:
    """The commands of this process's partitions."""

    def __init__(
        self,
        interventions: InterventionLog,
        events: Membership,
        host: CommandHost,
        attempts: AttemptLog,
        outbox: Outbox,
        *,
        registry: Registry,
        read: Read,
        dead_topic: str,
    ) -> None:
        """`read` gives one record of any topic."""
        self._log = interventions
        self._events = events
        self._host = host
        self._attempts = attempts
        self._outbox = outbox
        self._registry = registry
        self._read = read
        self._dead_topic = dead_topic
        self._trackers: dict[TopicPartition, tuple[PartitionTracker, CommandTracker]] = {}
        self._came: set[TopicPartition] = set()  # what is to be taken over there is not known yet
        self._due: deque[tuple[str, bool]] = deque()  # keys, and whether somebody may have begun it before
        self._some = asyncio.Event()
        self._number = 0
        self._under_way: dict[int, _Execution] = {}
        self._fewer = asyncio.Event()  # of those
        self._ended: list[_Execution] = []
        self._done: dict[str, _Execution] = {}  # ended, and that is not read back yet
        self._some_ended = asyncio.Event()
        interventions.listener = self

    def __len__(self) -> int:
        """Commands that are under way."""
        return len(self._under_way)

    # What comes.

    def commanded(self, command: Intervention) -> None:
        """A command is in force (`interventions.InterventionListener`)."""
        key = command.key
        if command.ended or self._done.get(key) != _execution(command):
            self._done.pop(key, None)
        partition = TopicPartition(command.topic, command.partition)
        # What comes before its partition is taken over may have been begun by the former process.
        if not command.ended and partition in self._trackers and partition not in self._came:
            self._due.append((key, False))
            self._some.set()

    def outrun(self, command: Intervention) -> None:
        """Write it once more, so that it is the last one of its key."""
        if command.topic == "" or self._tracker(command) is not None:
            self._outbox.put(self._log.message(command), _nothing)

    def _tracker(self, command: Intervention) -> CommandTracker | None:
        mine = self._trackers.get(TopicPartition(command.topic, command.partition))
        return None if mine is None else mine[1]

    def reassigned(self) -> bool:
        """The partitions are others; whether any went elsewhere, so that deliveries are lost."""
        trackers = self._events.trackers
        lost = False
        for partition, (of_events, mine) in list(self._trackers.items()):
            if trackers.get(partition) is not of_events:
                mine.lost = lost = True
                del self._trackers[partition]
                self._came.discard(partition)
        for partition, tracker in trackers.items():
            if partition not in self._trackers:
                self._trackers[partition] = (tracker, CommandTracker(*partition, self._settled))
                self._came.add(partition)
        if self._came:
            self._some.set()
        return lost

    # Executing.

    async def run(self) -> None:
        """Execute what is commanded, until cancelled."""
        while True:
            await self._some.wait()
            self._some.clear()
            if self._came:
                await self._take_over()
            while self._due:
                await self._execute(*self._due.popleft())

    async def _take_over(self) -> None:
        """Rule 3."""
        backoff = Backoff()
        while True:
            came = set(self._came)
            try:
                await self._log.catch_up()
                break
            except BrokerError as error:
                pause = backoff.failed()
                log.warning("interventions can't be read, trying again", error=str(error), pause=pause)
                await asyncio.sleep(pause)
        # What came while it was read was read with it, and has not been begun here.
        for command in self._log.open():
            if TopicPartition(command.topic, command.partition) in came:
                self._due.append((command.key, True))
        self._came -= came

    async def _execute(self, key: str, begun: bool) -> None:
        await self._room()
        command = self._log.get(key)
        if command is None or command.ended or self._is_under_way(command):
            return
        tracker = self._tracker(command)
        if tracker is None:
            return
        if command.action == CANCEL:
            self._cancel(command)
            return
        if begun:
            await self._begin_anew(command)
            return
        number = self._number = self._number + 1
        tracker.track(number, 1)
        self._under_way[number] = _execution(command)
        retry = await self._retry_of(command, tracker)
        if tracker.lost or retry is None:
            tracker.settle(number)
        elif isinstance(retry, LostBody):
            self._host.give_up_lost(retry, tracker, number)
        else:
            self._host.take_commanded(retry, tracker, number)

    async def _room(self) -> None:
        while len(self._under_way) >= _AT_A_TIME:
            self._fewer.clear()
            await self._fewer.wait()
        while not self._host.has_room():  # noqa: ASYNC110 - an event would cost every settlement a check
            await asyncio.sleep(_NO_ROOM)

    def _is_under_way(self, command: Intervention) -> bool:
        known = _execution(command)
        return known in self._under_way.values() or self._done.get(command.key) == known

    async def _begin_anew(self, command: Intervention) -> None:
        """Rule 2. What comes of it is `commanded`."""
        again = replace(command, generation=command.generation + 1)
        backoff = Backoff()
        while self._log.get(command.key) is command and self._tracker(command) is not None:
            try:
                await self._log.write(again)
            except (BrokerError, TimeoutError) as error:
                pause = backoff.failed()
                log.warning(
                    "an intervention can't be taken over, trying again", error=str(error), pause=pause
                )
                await asyncio.sleep(pause)

    async def _retry_of(
        self, command: Intervention, tracker: CommandTracker
    ) -> RetryRecord | LostBody | None:
        """The delivery that is commanded, with its event; or why that can't be sent. None where the partition went elsewhere meanwhile."""
        backoff = Backoff()
        while not tracker.lost:
            try:
                return await self._find(command)
            except BrokerError as error:
                pause = backoff.failed()
                log.warning(
                    "the event of an intervention can't be read, trying again", error=str(error), pause=pause
                )
                await asyncio.sleep(pause)
        return None

    async def _find(self, command: Intervention) -> RetryRecord | LostBody:
        why, detail = BODY_EXPIRED, "its event has been deleted from its topic"
        try:
            record = await self._read(TopicPartition(command.topic, command.partition), command.offset)
        except UnreadableBatch as error:
            record, why, detail = None, BODY_UNREADABLE, f"at its source {error}"
        event = None if record is None else event_at(record, command)
        if event is None and command.dead_letter is not None:
            event = await self._of_dead_letter(command, *command.dead_letter)
        if event is not None:
            return _retry(command, event)
        return LostBody(_retry(command, bodiless(command)), why, detail)

    async def _of_dead_letter(self, command: Intervention, partition: int, offset: int) -> Event | None:
        try:
            record = await self._read(TopicPartition(self._dead_topic, partition), offset)
        except (UnreadableBatch, BrokerRefused):
            return None
        return None if record is None else event_of_dead_letter(record, command)

    def _cancel(self, command: Intervention) -> None:
        """The delivery's end. Written again after a crash it is the same record: it counts once."""
        if self._attempts.failures:
            self._attempts.decided(
                Decided(
                    bodiless(command),
                    command.subscription_id,
                    command.source,
                    self._registry.index.get(command.subscription_id),
                    command.attempts,
                    DROPPED,
                    CANCELLED,
                    command.at_ms / 1000,
                    command.generation - 1,
                    None,
                    None,
                    command.by,
                )
            )
        log.info("delivery cancelled", delivery_id=command.key, intervention=command.id, by=command.by)
        self._end(_execution(command))

    # Ends.

    def _settled(self, number: int, lost: bool) -> None:
        execution = self._under_way.pop(number)
        self._fewer.set()
        if not lost:
            self._end(execution)

    def _end(self, execution: _Execution) -> None:
        self._done[execution.key] = execution
        self._ended.append(execution)
        self._some_ended.set()

    async def record_ends(self) -> None:
        """Write what has ended, until cancelled."""
        while True:
            await self._some_ended.wait()
            self._some_ended.clear()
            ended = list(self._ended)
            # As a commit does: a log that takes nothing doesn't hold it up for ever.
            await self._attempts.caught_up()
            for execution in ended:
                command = self._log.get(execution.key)
                if command is None or _execution(command) != execution:
                    self._done.pop(execution.key, None)  # another command has taken its place
                elif not command.ended:
                    self._outbox.put(self._log.message(replace(command, ended=True)), _nothing)
            del self._ended[: len(ended)]


def _execution(command: Intervention) -> _Execution:
    return _Execution(command.key, command.id, command.generation)


def event_at(record: Record, command: Intervention) -> Event | None:
    """The event of a record, if it is the one that the command is about."""
    if isinstance(record, UnreadableRecord):
        return None
    try:
        event = decode(record, command.topic, command.partition)
    except InvalidEvent:
        return None
    return event if is_that_of(event, command) else None


def event_of_dead_letter(record: Record, command: Intervention) -> Event | None:
    """The event in a dead letter, if it is the one that the command is about, and its body is there."""
    try:
        letter = read_dead_letter(record)
    except InvalidDeadLetter:
        return None
    if letter.omitted or letter.source != command.source or not is_that_of(letter.event, command):
        return None
    return letter.event


def is_that_of(event: Event, command: Intervention) -> bool:
    """Whether the event is the one that the command is about: a topic made anew has somebody else's at the old offset."""
    return (event.id, event.type, event.tenant) == (command.event_id, command.event_type, command.tenant)


def bodiless(command: Intervention) -> Event:
    """What is known of the event without its record."""
    return Event(command.event_id, command.event_type, command.tenant, b"", -1, b"")


def _retry(command: Intervention, event: Event) -> RetryRecord:
    return RetryRecord(
        event,
        command.subscription_id,
        command.source,
        attempt=0,
        first_attempt_ms=None,
        due=0.0,
        last_result=None,
        omitted=False,
        parked=0,
        generation=command.generation,
        triggered_by=command.by,
    )


def _nothing() -> None:
    """Nobody waits for it."""
