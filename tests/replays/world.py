"""Replicas that run replays on one broker in memory, on virtual time, and somebody who delivers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from dispatcher.broker.base import BrokerUnavailable, Message, Stretch, TopicPartition
from dispatcher.control.errors import VersionMismatch
from dispatcher.core.replay.job import JobState, ReplayJob, ReplayRequest, ReplaySource
from dispatcher.core.replay.record import ReplayRecord, read_replay_record
from dispatcher.core.subscription.index import Index
from dispatcher.replays.runner import ReplayParts, ReplayRunner
from dispatcher.replays.sources import AskedHistory
from dispatcher.replays.store import ReplayStore
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import Settings
from tests.fakes import MemoryBroker, subscription

REPLAY = TopicPartition("dispatcher.replay", 0)
JOBS = TopicPartition("dispatcher.replays", 0)
DEAD = TopicPartition("dispatcher.dead", 0)
WALL = 2_000_000_000.0
ID = "rpl_01d1a94a2000aa"


class Killed(BaseException):
    """The process dies here."""


class ReplayBroker(MemoryBroker):
    """Dies at a write where it is told to: before the write, or between the write and its acknowledgement."""

    def __init__(self) -> None:
        super().__init__(TopicPartition("events", 0))
        self.writes: list[str] = []
        self.unreadable_for = 0  # calls of `read_from` that fail yet
        self.dies: Callable[[int, str], str | None] = lambda _number, _topic: None

    async def produce(self, messages: Sequence[Message], acknowledged: Any = None) -> None:
        topic = messages[0].topic
        number = len(self.writes)
        self.writes.append(topic)
        when = self.dies(number, topic)
        if when == "before":
            raise Killed
        await super().produce(messages, acknowledged)
        if when == "after":
            raise Killed

    async def read_from(self, partition: TopicPartition, offset: int, limit: int, size: int) -> Stretch:
        if self.unreadable_for:
            self.unreadable_for -= 1
            raise BrokerUnavailable("away")
        return await super().read_from(partition, offset, limit, size)

    def replayed(self) -> list[ReplayRecord]:
        """What was written to the replay topic."""
        return [read_replay_record(record.value) for record in self.log[REPLAY]]


class Replica:
    """A process that may run replays."""

    def __init__(self, world: ReplayWorld, name: str, history: AskedHistory | None = None) -> None:
        self.failures: list[BaseException] = []

        def failed(_: str, error: BaseException) -> None:
            self.failures.append(error)

        self.store = ReplayStore(Settings(), world.broker, wall=world.wall, on_failure=failed)
        self.parts = ReplayParts(
            world.broker,
            self.store,
            lambda: world.index,
            history,
            event_topics=["events"],
            dead_topic="dispatcher.dead",
            replay_topic="dispatcher.replay",
            group="dispatcher.retry",
            events_group="dispatcher",
            replica=name,
            next_generation=lambda _source, _subscription, known: known + 1,
            clock=asyncio.get_running_loop().time,
        )
        self.runner = ReplayRunner(self.parts, on_failure=failed)

    def start(self) -> None:
        self.store.start()
        self.runner.start()

    async def stop(self) -> None:
        await self.runner.stop()
        await self.store.stop()

    async def kill(self) -> None:
        """Nothing more comes of it: no word of farewell."""
        for tasks in (self.runner._tasks, self.store._tasks):
            with suppress(Killed):
                await tasks.stop()

    def job(self, id_: str = ID) -> ReplayJob:
        row = self.store.get(id_)
        assert row is not None
        return row.value

    async def change(self, change: Callable[[ReplayJob], ReplayJob]) -> None:
        """Change the job; again where its runner was first."""
        while True:
            row = self.store.get(ID)
            assert row is not None
            with suppress(VersionMismatch):
                await self.store.put(change(row.value), base=row.version)
                return


class ReplayWorld:
    """A broker, replicas, and deliveries."""

    def __init__(self) -> None:
        self.broker = ReplayBroker()
        self.index = Index([subscription()])
        self.replicas: list[Replica] = []
        self.delivers = True
        self.later = 0.0

    def wall(self) -> float:
        return WALL + self.later + asyncio.get_running_loop().time()

    def replica(self, name: str = "a", history: AskedHistory | None = None) -> Replica:
        made = Replica(self, name, history)
        self.replicas.append(made)
        made.start()
        return made

    def publish(
        self, count: int, *, partition: int = 0, first_ms: int = int(WALL * 1000) - 10_000_000
    ) -> None:
        """So many events, a second apart; of a topic that nobody consumes here."""
        where = TopicPartition("events", partition)
        for number in range(count):
            value = b'{"id": "evt_%d_%d", "type": "test.event"}' % (partition, number)
            self.broker.append(value, partition=where, timestamp=first_ms + 1000 * number)

    async def deliver(self) -> None:
        """Deliver all that is written, every half second: what is committed is that."""
        while True:
            await asyncio.sleep(0.5)
            if self.delivers:
                self.broker.committed[REPLAY] = len(self.broker.log[REPLAY])

    def sent(self) -> Counter[str]:
        """How often each event was written to be sent."""
        return Counter(record.event.id for record in self.broker.replayed())


def asked(source: ReplaySource = ReplaySource.EVENTS, **more: Any) -> ReplayJob:
    """A job that nobody runs yet."""
    request = ReplayRequest(source, more.pop("until_ms", int(WALL * 1000)), **more)
    return ReplayJob(ID, request, None, int(WALL * 1000), "operator ops")


@asynccontextmanager
async def world() -> AsyncIterator[ReplayWorld]:
    made = ReplayWorld()
    tasks = Tasks()
    tasks.start(made.deliver(), "deliver")
    try:
        yield made
    finally:
        await tasks.stop()
        for replica in made.replicas:
            await replica.kill()


async def over(replica: Replica, within: float = 600.0) -> ReplayJob:
    """The job, once nothing more comes of it."""
    async with asyncio.timeout(within):
        while (row := replica.store.get(ID)) is None or not row.value.state.over:
            await asyncio.sleep(0.05)
    return replica.job()


async def becomes(replica: Replica, state: JobState, within: float = 600.0) -> None:
    async with asyncio.timeout(within):
        while (row := replica.store.get(ID)) is None or row.value.state is not state:
            await asyncio.sleep(0.05)
