"""The processes of this installation: each writes a record about itself to the topic of replicas, and follows those of all.

In: what this process is like (`Sources`), records of the topic. Out: records of this process. State that this module alone writes: what is
known of the others.

Rules:

1. A record is written when something has changed, at most every `INTERVAL` seconds, and every `HEARTBEAT` seconds in any case. A large one is
   written less often: `PACE` bytes a second on average.
2. A process that was not heard of for `OLD` seconds isn't shown. Of a record that was there already at the start the age is told by its timestamp,
   of another by when it came: clocks that differ make nobody disappear.
3. At the stop a tombstone is written. What isn't written for lack of a broker is let go of.
4. Nothing waits for any of this, and no failure of it ends the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol

import structlog
from msgspec.structs import replace

from dispatcher.__about__ import __version__
from dispatcher.broker.base import Broker, BrokerError, MadeAnew, Message, Reader, Record, UnreadableRecord
from dispatcher.control.log import sliced
from dispatcher.core.cluster.merge import Elsewhere
from dispatcher.core.cluster.record import (
    HistoryState,
    InvalidReplica,
    ReplicaRecord,
    read_replica,
    write_replica,
)
from dispatcher.delivery.troubles import DeliveryReport
from dispatcher.runtime.backoff import Backoff
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import Settings

log = structlog.get_logger(__name__)

INTERVAL: Final = 2.0
HEARTBEAT: Final = 10.0
OLD: Final = 35.0
PACE: Final = 64 << 10
MOST: Final = 1000
"""Processes that are known, at the most."""

_REST: Final = 30.0  # times of what a look took
_SENTENCES: Final = 10
_SENTENCE: Final = 400  # characters
_STOP_LIMIT: Final = 2.0  # seconds for the tombstone
_POLL: Final = 1.0
_BATCH: Final = 500


def replicas_topic(settings: Settings) -> str:
    """The topic that the records are in."""
    return f"{settings.topics.prefix}replicas"


class HistoryProgress(Protocol):
    """How far this process has come with the history."""

    def as_of_ms(self) -> int: ...

    def behind_records(self) -> int: ...

    @property
    def partitions(self) -> int: ...

    @property
    def all_partitions(self) -> int: ...

    @property
    def shared(self) -> bool: ...


class Sources(NamedTuple):
    """Where this process's record comes from."""

    roles: Sequence[str]
    problems: Callable[[], Sequence[str]]
    warnings: Callable[[], Sequence[str]]
    deliveries: Callable[[Elsewhere], Awaitable[DeliveryReport] | None]
    """Told what the others say; None where this process delivers nothing, or not yet."""
    history: HistoryProgress | None


class Replicas:
    """Writes this process's record, and knows those of all."""

    def __init__(
        self,
        broker: Broker,
        topic: str,
        replica: str,
        sources: Sources,
        *,
        wall: Callable[[], float],
    ) -> None:
        """`replica` names this process; `wall` gives Unix seconds."""
        self.replica = replica
        self._broker = broker
        self._topic = topic
        self._sources = sources
        self._wall = wall
        self._started_ms = self._now_ms()
        self._own = ReplicaRecord(
            replica=replica,
            version=__version__,
            started_ms=self._started_ms,
            at_ms=self._started_ms,
            roles=tuple(sources.roles),
        )
        self._clock = asyncio.get_running_loop().time
        self._tasks = Tasks(self._died)
        self._heard: dict[str, tuple[ReplicaRecord, float]] = {}  # and when that was, in loop time
        self._written = False
        self._refused = 0
        self._problem: str | None = None

    def start(self) -> None:
        """Write and follow in the background. The topic must exist."""
        self._tasks.start(self._write(), "replica's record")
        self._tasks.start(self._follow(), "replicas")

    async def stop(self) -> None:
        """Take this process's record back."""
        await self._tasks.stop()
        if not self._written:
            return
        try:
            async with asyncio.timeout(_STOP_LIMIT):
                await self._broker.produce([self._message(None)])
        except (BrokerError, TimeoutError) as error:
            log.info("this process's record was not taken back: it will be too old soon", error=str(error))

    @property
    def problem(self) -> str | None:
        """What keeps this process from knowing the others, in one sentence; None when all is well."""
        return self._problem

    @property
    def own(self) -> ReplicaRecord:
        """What this process said of itself last, `INTERVAL` seconds ago at the most."""
        return self._own

    def all(self) -> Sequence[ReplicaRecord]:
        """Every process that was heard of lately, this one too, by name."""
        oldest = self._clock() - OLD
        found = {
            name: record
            for name, (record, heard) in self._heard.items()
            if heard >= oldest and name != self.replica
        }
        found[self.replica] = self._own
        return [found[name] for name in sorted(found)]

    def _died(self, task: str, error: BaseException) -> None:
        self._problem = f"the cluster view has ended by an error of its own ({error!r}): restart this process, and report it"
        log.critical("the cluster view failed; deliveries go on", task=task, exc_info=error)

    # What this process is like.

    def _now_ms(self) -> int:
        return round(self._wall() * 1000)

    async def look(self) -> ReplicaRecord:
        """See what this process is like now."""
        asked = self._sources.deliveries(await self._elsewhere())
        self._own = record = self._record(None if asked is None else await asked)
        return record

    async def _elsewhere(self) -> Elsewhere:
        """What the others say of subscriptions; nothing, where this process delivers to none."""
        found = Elsewhere()
        if "deliver" in self._sources.roles:
            for record, heard in list(self._heard.values()):
                if record.replica != self.replica and (record.troubles or record.recovered):
                    found.add(record, round((self._wall() - self._clock() + heard) * 1000))
                    await asyncio.sleep(0)  # a thousand subscriptions each, perhaps
        return found

    def _record(self, deliveries: DeliveryReport | None) -> ReplicaRecord:
        sources = self._sources
        history = sources.history
        return ReplicaRecord(
            replica=self.replica,
            version=__version__,
            started_ms=self._started_ms,
            at_ms=self._now_ms(),
            roles=tuple(sources.roles),
            problems=_sentences(sources.problems()),
            warnings=_sentences(sources.warnings()),
            history=None
            if history is None
            else HistoryState(
                as_of_ms=history.as_of_ms(),
                behind_records=history.behind_records(),
                partitions=history.partitions,
                shared=history.shared,
            ),
            **({} if deliveries is None else deliveries._asdict()),
        )

    # Writing.

    async def _write(self) -> None:
        backoff = Backoff()
        before: ReplicaRecord | None = None
        at = float("-inf")
        while True:
            pause = INTERVAL
            began = self._clock()
            record = await self.look()
            # Where very many are in trouble, looking takes time that deliveries need.
            rest = _REST * (self._clock() - began)
            if before is None or self._clock() - at >= HEARTBEAT or _differ(before, record):
                value = write_replica(record)
                try:
                    await self._broker.produce([self._message(value)])
                except BrokerError as error:
                    pause = backoff.failed()
                    log.warning("this process's record could not be written", error=str(error), pause=pause)
                else:
                    backoff.succeeded()
                    self._written = True
                    before, at = record, self._clock()
                    pause = max(INTERVAL, len(value) / PACE)
            await asyncio.sleep(max(pause, rest))

    def _message(self, value: bytes | None) -> Message:
        return Message(self._topic, value, self.replica.encode(), partition=0)

    # Following.

    async def _follow(self) -> None:
        while True:
            reader = self._broker.reader(self._topic)
            try:
                await reader.start()
                await self._read(reader)
            except MadeAnew:
                log.info("the topic of the replicas was made anew, reading it from its beginning")
            finally:
                await reader.stop()

    async def _read(self, reader: Reader) -> None:
        while True:
            take = partial(self._take, live=reader.caught_up)
            await sliced(await reader.read(_POLL, _BATCH), take)
            self._problem = reader.problem
            self._forget()

    def _take(self, record: Record, *, live: bool) -> None:
        if record.key is None or isinstance(record, UnreadableRecord):
            return
        name = record.key.decode(errors="replace")
        if record.value is None:
            self._heard.pop(name, None)
            return
        age = 0.0 if live else max(0.0, self._wall() - record.timestamp / 1000)
        if age > OLD:
            return
        try:
            found = read_replica(record.value)
            if found.replica != name:
                raise InvalidReplica(f"it says it is of {found.replica[:80]!r}")  # noqa: TRY301 - handled like the other
        except InvalidReplica as error:
            self._refused += 1
            if self._refused == 1:
                log.warning(
                    "a foreign record in the topic of the replicas, passed over",
                    key=name[:80],
                    error=str(error),
                )
            return
        self._heard.pop(name, None)
        self._heard[name] = (found, self._clock() - age)

    def _forget(self) -> None:
        oldest = self._clock() - OLD
        for name in [name for name, (_, heard) in self._heard.items() if heard < oldest]:
            del self._heard[name]
        while len(self._heard) > MOST:
            del self._heard[next(iter(self._heard))]


class SharedProgress:
    """As of when the answers of a history are: of one that several processes fill, what the last of them knows.

    While nobody reads some of the partitions, because whoever did has died or the group shares them out, that doesn't go on.
    """

    def __init__(self, own: HistoryProgress, replicas: Replicas) -> None:
        self._own = own
        self._replicas = replicas
        self._known = 0

    def as_of_ms(self) -> int:
        """What the logs said before is known; 0: nothing is yet."""
        own = self._own
        if not own.shared:
            return own.as_of_ms()
        others = [
            record.history
            for record in self._replicas.all()
            if record.replica != self._replicas.replica
            and record.history is not None
            and record.history.shared
            and record.history.partitions
        ]
        times = [history.as_of_ms for history in others]
        if own.partitions:
            times.append(own.as_of_ms())
        found = min(times, default=0)
        if own.partitions + sum(history.partitions for history in others) < own.all_partitions:
            return min(found, self._known)
        self._known = found
        return found


def _sentences(found: Sequence[str]) -> tuple[str, ...]:
    return tuple(each[:_SENTENCE] for each in list(found)[:_SENTENCES])


def _differ(one: ReplicaRecord, other: ReplicaRecord) -> bool:
    """Whether they say different things, but for when."""
    return _timeless(one) != _timeless(other)


def _timeless(record: ReplicaRecord) -> ReplicaRecord:
    history = record.history
    return replace(record, at_ms=0, history=None if history is None else replace(history, as_of_ms=0))
