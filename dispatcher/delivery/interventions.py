"""The topic of interventions, followed and written: what people have commanded about deliveries.

The topic has one partition and is compacted. It is read whole at the start, before anything is delivered, and followed from then on. A write is
answered when this process has read its own record back, so the process knows by then whether the command is in force (`core/retry/interventions.py`).

In come records of the topic, and commands of the API. Out go commands to whoever listens (`executing.py`). This room alone changes `commands`, and with
that the generations by which every room tells what is superseded.

Rules:

1. `_take` alone applies records, in their order.
2. What lies behind the command in force in the topic, and does not count, is followed by that command once more: compaction keeps the last record of a
   key. The process that executes the command writes it.
3. A command whose time is over is forgotten by a tombstone. A process writes none about what it has known for less than `_SETTLED`: its clock may be wrong
   for as long.
4. Memory is bounded by `MOST` commands: `full` says so before there is one more. The topic may hold some more where several processes write at once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog

from dispatcher.broker.base import (
    Broker,
    BrokerError,
    BrokerUnavailable,
    MadeAnew,
    Message,
    Reader as TopicReader,
    Record,
    TopicPartition,
    UnreadableRecord,
)
from dispatcher.core.retry.generations import Generations
from dispatcher.core.retry.interventions import (
    PURGE,
    CommandTable,
    Intervention,
    InvalidIntervention,
    encode_intervention,
    read_intervention,
)
from dispatcher.runtime.backoff import Backoff
from dispatcher.runtime.tasks import Tasks

log = structlog.get_logger(__name__)

MOST: Final = 20_000
"""CommandTable that are remembered at a time: some 20 MB."""

MOST_OF_TENANT: Final = 2000
"""Of them, about what is one tenant's."""

WRITE_TIMEOUT: Final = 10.0
"""Seconds that a command may take until it is read back."""

_BATCH: Final = 500
_BATCH_BYTES: Final = 1 << 20
_POLL: Final = 1.0
_EXPIRY: Final = 60.0  # seconds between two looks for commands whose time is over
_SETTLED: Final = 3600.0
_AWAY: Final = 0.5  # seconds until another try to write
_NONCE: Final = "nonce"
_ENDS: Final = "id"


def interventions_topic(prefix: str) -> str:
    """The topic's name."""
    return f"{prefix}interventions"


class InterventionListener(Protocol):
    """Who executes commands. Called in the order of the topic, for what is read after it was attached."""

    def commanded(self, command: Intervention) -> None:
        """A command is in force, or has been brought up to date."""

    def outrun(self, command: Intervention) -> None:
        """A record behind this command, which is in force, doesn't count: rule 2."""


class InterventionLog:
    """Follows the topic; commands are in force when they have been read back here."""

    def __init__(
        self,
        broker: Broker,
        topic: str,
        *,
        wall: Callable[[], float],
        chance: Callable[[], float],
        on_failure: Callable[[str, BaseException], None] | None = None,
    ) -> None:
        """`wall` gives Unix seconds, `chance` a number in [0, 1). `on_failure` is told when a part of it died."""
        self.topic = topic
        self._broker = broker
        self._wall = wall
        self._chance = chance
        self._commands = CommandTable()
        self._tasks = Tasks(on_failure)
        self._clock = asyncio.get_running_loop().time
        self._reader: TopicReader | None = None
        self._loaded = asyncio.Event()
        self._waiting: dict[bytes, asyncio.Future[bool]] = {}
        self._known_since: dict[str, float] = {}
        self._next = 0  # one past the last offset that was read
        self._moved = asyncio.Event()  # something was read
        self.listener: InterventionListener | None = None

    # Starting, stopping, and what others may ask.

    async def start(self) -> None:
        """Read what there is, and follow in the background. Waits for the broker as long as it takes."""
        self._tasks.start(self._follow(), "interventions")
        await self._loaded.wait()
        self._tasks.start(self._forget_expired(), "expired interventions")

    async def stop(self) -> None:
        """Follow no more; writes under way end with BrokerUnavailable."""
        await self._tasks.stop()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(
                    BrokerUnavailable("the dispatcher is stopping: the command may still take effect")
                )
        reader, self._reader = self._reader, None
        if reader is not None:
            await reader.stop()

    @property
    def problem(self) -> str | None:
        """Why commands are not known (any more), in one sentence; None when all is well."""
        if not self._loaded.is_set():
            return "the interventions are not read yet"
        if self._reader is not None and self._reader.problem is not None:
            return f"interventions can't be followed: {self._reader.problem}"
        return None

    @property
    def generations(self) -> Generations:
        """By which records are superseded."""
        return self._commands.generations

    def get(self, key: str) -> Intervention | None:
        """The command in force about a delivery, or the purge of a subscription."""
        return self._commands.get(key)

    def open(self) -> list[Intervention]:
        """The commands about deliveries whose end is not recorded."""
        return [each for each in self._commands.all() if not each.ended and each.action != PURGE]

    def counts(self) -> dict[str, int]:
        """How many there are, by whether they have ended."""
        pending = len(self.open())
        return {"pending": pending, "ended": len(self._commands) - pending}

    def full(self, tenant: str | None) -> str | None:
        """Why no command more is taken (for a tenant; None is an operator), in one sentence; None where it is."""
        if len(self._commands) >= MOST:
            return f"{MOST} interventions are remembered already, the most there may be"
        if tenant is not None and self._commands.of_tenant(tenant) >= MOST_OF_TENANT:
            return f"{MOST_OF_TENANT} interventions about this tenant's deliveries are remembered already, the most there may be"
        return None

    # Reading.

    async def _follow(self) -> None:
        reader = await self._open()
        while True:
            try:
                while not reader.caught_up:
                    self._take_all(await reader.read(_POLL, _BATCH))
                self._loaded.set()
                self._take_all(await reader.read(_POLL, _BATCH))
            except MadeAnew as error:
                log.warning("the topic of interventions is not the one that was read", error=str(error))
                await reader.stop()
                reader = await self._open()
                await self._write_back()

    async def _open(self) -> TopicReader:
        self._next = 0
        self._reader = reader = self._broker.reader(self.topic)
        await reader.start()
        return reader

    def _take_all(self, records: Sequence[Record]) -> None:
        for record in records:
            accepted = self._take(record)
            nonce = dict(record.headers).get(_NONCE)
            future = None if nonce is None else self._waiting.pop(nonce, None)
            if future is not None and not future.done():
                future.set_result(accepted)
            self._next = record.offset + 1
        if records:
            self._moved.set()

    def _take(self, record: Record) -> bool:
        """Apply the next record; whether it counts."""
        key = (record.key or b"").decode(errors="replace")
        if isinstance(record, UnreadableRecord):
            return self._foreign(record, key, record.problem)
        if record.value is None:
            ended = (dict(record.headers).get(_ENDS) or b"").decode(errors="replace")
            if self._commands.end(key, ended):
                self._known_since.pop(key, None)
                return True
            return self._outrun(key)
        try:
            command = read_intervention(record.key, record.value)
        except InvalidIntervention as error:
            return self._foreign(record, key, str(error))
        if not self._commands.take(command):
            return self._outrun(key)
        self._known_since.setdefault(key, self._clock())
        if self.listener is not None:
            self.listener.commanded(command)
        return True

    def _outrun(self, key: str) -> bool:
        known = self._commands.get(key)
        if known is not None and self.listener is not None:
            self.listener.outrun(known)
        return False

    def _foreign(self, record: Record, key: str, why: str) -> bool:
        log.warning(
            "a foreign record in the topic of interventions, passed over",
            key=key[:80],
            offset=record.offset,
            error=why,
        )
        return self._outrun(key)

    async def catch_up(self) -> None:
        """Wait until everything is read that is in the topic now. Raises BrokerError."""
        partition = TopicPartition(self.topic, 0)
        reader = self._reader
        at = end = self._next
        while True:
            stretch = await self._broker.read_from(partition, at, _BATCH, _BATCH_BYTES)
            if not stretch.records:
                break
            end = stretch.records[-1].offset + 1
            at = max(stretch.next, end)
        while self._next < end and self._reader is reader:
            self._moved.clear()
            await self._moved.wait()

    # Writing.

    def message(self, command: Intervention, nonce: bytes | None = None) -> Message:
        """Its record."""
        headers = [] if nonce is None else [(_NONCE, nonce)]
        return Message(self.topic, encode_intervention(command), command.key.encode(), headers, partition=0)

    async def write(self, command: Intervention) -> bool:
        """Write it and wait until it is read back; whether it is in force by that.

        Raises BrokerError, or TimeoutError: then it may still take effect.
        """
        nonce = os.urandom(9).hex().encode()
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[nonce] = future
        message = self.message(command, nonce)
        try:
            async with asyncio.timeout(WRITE_TIMEOUT):
                while True:
                    try:
                        await self._broker.produce([message])
                        break
                    except BrokerUnavailable:
                        await asyncio.sleep(_AWAY)
                return await future
        finally:
            self._waiting.pop(nonce, None)
            if not future.cancel() and not future.cancelled():
                future.exception()  # raised above

    async def _write_back(self) -> None:
        """The topic was made anew: give it back what is known, as every process does that follows it."""
        known = self._commands.all()
        await self._produce([self.message(command) for command in sorted(known, key=_order)])
        log.warning("what the topic of interventions held is written to it again", commands=len(known))

    async def _forget_expired(self) -> None:
        while True:
            # Several processes do so: not all at the same time.
            await asyncio.sleep(_EXPIRY * (1 + self._chance()))
            before = self._clock() - _SETTLED
            expired = [
                command
                for command in self._commands.expired(round(self._wall() * 1000))
                if self._known_since.get(command.key, before + 1) <= before
            ]
            for command in expired:
                if not command.ended and command.action != PURGE:
                    log.warning(
                        "an intervention was never executed and is forgotten: nobody reads the topic of its event",
                        intervention=command.id,
                        key=command.key,
                        topic=command.topic,
                        partition=command.partition,
                    )
            await self._produce(
                [
                    Message(self.topic, None, each.key.encode(), [(_ENDS, each.id.encode())], partition=0)
                    for each in expired
                ]
            )

    async def _produce(self, messages: Sequence[Message]) -> None:
        backoff = Backoff()
        for first in range(0, len(messages), _BATCH):
            while True:
                try:
                    await self._broker.produce(messages[first : first + _BATCH])
                    break
                except BrokerError as error:
                    pause = backoff.failed()
                    log.warning("interventions can't be written, trying again", error=str(error), pause=pause)
                    await asyncio.sleep(pause)


def _order(command: Intervention) -> int:
    return command.order
