"""A run on Apache Kafka: replicas that die, freeze, leave and come back, a broker that is killed, relays that cut them off.

The producer and everything else of the harness connect to the broker directly; only the daemons go through relays.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from aiokafka import TopicPartition as KafkaPartition, errors
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, RecordsToDelete

from dispatcher.broker.base import BrokerError, Message, TopicPartition, TopicSpec
from dispatcher.broker.kafka.broker import KafkaBroker
from dispatcher.settings.groups import KafkaSettings
from tests.kafka.server import Cluster
from tests.torture.endpoints import Endpoints
from tests.torture.ledger import Trouble
from tests.torture.odd import odd
from tests.torture.relay import Relay, RelayedCluster
from tests.torture.replica import HEARD_WITHIN
from tests.torture.report import Report
from tests.torture.run import PARTITIONS, Run, read_all
from tests.torture.schedule import Fault, Kind
from tests.torture.store import HistoryServer
from tests.torture.traits import Act, Trait, Turn

REPLICAS = 2
COMMITTED_WITHIN = 30.0
_NOTICED_WITHIN = (
    45.0  # partitions that were added, topics made anew: 30 s, and what joining takes on a busy machine
)
_STARTED_WITHIN = 15.0  # until the start of a group that begins at the end is committed
_DONE_WITHIN = 60.0  # for a second topic to be read to its end, before it is deleted
T = TypeVar("T")


class KafkaRun(Run):
    def __init__(
        self,
        report: Report,
        endpoints: Endpoints,
        folder: Path,
        ground: Ground,
        mutant: str | None = None,
        store: HistoryServer | None = None,
    ) -> None:
        super().__init__(report, endpoints, folder, mutant, store)
        self.ground = ground
        self.broker = self._connection()
        self.producer = (
            self._connection()
        )  # made anew when topics change: it remembers partitions for minutes
        self.broker_lock = asyncio.Lock()
        self.draw = random.Random(f"producing {self.schedule.seed}")
        self.with_more = Trait.ANEW in self.traits  # whether the second topic takes events now
        self.more_exists = True
        self.narrow = Trait.LATEST in self.traits  # whether only one partition gets events
        self.writing = asyncio.Lock()
        replicas = 1 if Trait.ALONE in self.traits else REPLICAS
        self.replicas = [
            self.replica(number, f"kafka://{ground.address(number)}") for number in range(replicas)
        ]

    def _connection(self) -> KafkaBroker:
        return KafkaBroker(self.ground.cluster.bootstrap.split(","), KafkaSettings(request_timeout="10s"))

    async def __call__(self) -> None:
        await self.broker.connect()
        await self.producer.connect()
        try:
            wanted = [TopicSpec(self.topic, PARTITIONS)]
            if Trait.ANEW in self.traits:
                wanted.append(TopicSpec(self.more, 2))
            await self.broker.ensure_topics(wanted, create=True)
            if Trait.LATEST in self.traits:
                await self.producer.produce(self.messages(40, owed=False))
            sampling = self.tasks.start(self._sample(), "sample commits")
            await self._begin()
            producing = self.tasks.start(self._produce(), "produce")
            playing = self.tasks.start(self.endpoints.play(self.schedule.phases), "play")
            started = self.clock()
            self.doing = [
                self.tasks.start(self._inflict(fault, started), str(fault)) for fault in self.schedule.faults
            ]
            self.doing += [
                self.tasks.start(self._take(turn, started), str(turn)) for turn in self.schedule.turns
            ]
            self.doing.append(self.tasks.start(self.crash_store(), "crash the store"))
            self.stage("start")
            await asyncio.gather(*self.doing, playing, producing)
            self.stage("faults")
            await self._heal()
            self.pauses.forgive()
            await self.settled(self.replicas)
            self.stage("settle")
            await self._committed()
            self.stage("commit")
            if Trait.HISTORY in self.traits:
                await self.audit.send_again()
                await self._committed()
                self.stage("send again")
            sampling.cancel()
            await asyncio.gather(*(replica.terminate() for replica in self.replicas))
            self.stage("stop")
            await self.nothing_left(self.replicas[0])
            self.stage("nothing left")
            records = await read_all(self.broker, self.own_topics, epoch=1)
            self.judge(records)
            self.stage("judge")
            if Trait.HISTORY in self.traits:
                await self.audit(records)
                self.stage("history")
        finally:
            for replica in self.replicas:
                replica.up = False
                await replica.daemon.kill()
            await self.tasks.stop()
            await self.broker.close()
            await self.producer.close()
            self.ground.heal()

    async def _begin(self) -> None:
        """Start replicas. Where it matters what is owed from when on, wait until that is settled."""
        first = self.replicas[: self.schedule.replicas]
        if not self.traits:
            for replica in first:
                await replica.start()
            return
        await first[0].start()
        try:
            await first[0].daemon.ready(120.0)
        except AssertionError as error:
            self.report.findings.append(f"{first[0].name}: not ready at first: {str(error)[-1500:]}")
        if {Trait.LATEST, Trait.RETENTION} & self.traits:
            everything = {TopicPartition(self.topic, number) for number in range(PARTITIONS)}
            if not await self.until(lambda: self.committed.keys() >= everything, _STARTED_WITHIN):
                self.report.notes.append(f"the start was not committed within {_STARTED_WITHIN:.0f} s")
        if Trait.PAUSE in self.traits:
            await self.pauses.make_by_api()
        for replica in first[1:]:
            await replica.start()

    # Producing.

    async def _produce(self) -> None:
        steps = max(1, round(self.schedule.length * 5))
        left, bursts = self.schedule.events, self.schedule.bursts
        for step in range(steps, 0, -1):
            self.narrow = self.narrow and step > steps // 2
            count, burst = left // step, bursts // step
            left -= count
            bursts -= burst
            if Trait.ODD in self.traits and step % 5 == 0:
                async with self.writing:
                    await odd(self)
            async with self.writing:
                await self._write(self._some(count, burst))
            await asyncio.sleep(0.2)

    def _some(self, count: int, burst: int) -> list[Message]:
        second = count // 3 if self.with_more else 0
        messages = self.messages(count - second)
        messages += self.messages(second, self.more)
        messages += self.messages(burst, bursts=True)
        if self.narrow:
            for message in messages:
                message.partition = 0
        return messages

    async def _write(self, messages: Sequence[Message]) -> None:
        while messages:
            try:
                await self.producer.produce(messages)
                break
            except BrokerError:
                await asyncio.sleep(0.5)

    async def _fresh_producer(self) -> None:
        """One that knows the topics as they are now. Only while nobody writes."""
        old, self.producer = self.producer, self._connection()
        await old.close()
        await self.producer.connect()

    # What is done because of a trait.

    async def _take(self, turn: Turn, started: float) -> None:
        await asyncio.sleep(max(0.0, started + turn.at - self.clock()))
        match turn.act:
            case Act.ADD:
                await self._add(turn.number)
            case Act.ANEW:
                await self._anew(turn.number, turn.lasts)
            case Act.STALL:
                await self.stall(turn.lasts)
            case Act.EXPIRE:
                await self._expire(self.draw.choice(self.event_topics), turn.number)
            case Act.FORGET:
                for topic in self.retry_topics:
                    await self._expire(topic, turn.number)
            case Act.PAUSE:
                await self.pauses.play(turn.number, turn.lasts)

    async def _add(self, partitions: int) -> None:
        begin = self.clock()

        async def create(admin: AIOKafkaAdminClient) -> None:
            with contextlib.suppress(errors.InvalidPartitionsError):  # it is done, though nobody heard
                await admin.create_partitions({self.topic: NewPartitions(partitions)})

        await self._admin(create)
        async with self.writing:
            await self._fresh_producer()
            self.narrow = False
            await self._write(self.messages(40))  # the schedule may be over
        self.report.notes.append(f"{partitions} partitions after {self.clock() - begin:.1f} s")
        self.hopeful = self.clock() + _NOTICED_WITHIN

    async def _anew(self, partitions: int, lasts: float) -> None:
        async with self.writing:  # nothing new for the second topic from here on
            self.with_more = False

        async def ends() -> dict[TopicPartition, int]:
            return await self.ends([self.more])

        # What was taken from it must be done with: what is deleted unread nobody can deliver.
        deadline = self.clock() + _DONE_WITHIN
        while any(self.committed.get(key, 0) < end for key, end in (await ends()).items()):
            if self.clock() > deadline:
                self.report.notes.append(
                    "the second topic was not read to its end in time, and stays as it is"
                )
                self.with_more = True
                return
            await asyncio.sleep(0.3)
        self.saved += await self._retried(lambda: read_all(self.broker, [self.more]))
        begin = self.clock()

        async def delete(admin: AIOKafkaAdminClient) -> None:
            await admin.delete_topics([self.more])

        await self._admin(delete)
        while await ends():
            await asyncio.sleep(0.1)
        for key in [key for key in self.committed if key.topic == self.more]:
            del self.committed[key]
        await asyncio.sleep(lasts)
        await self._retried(
            lambda: self.broker.ensure_topics([TopicSpec(self.more, partitions)], create=True)
        )
        async with self.writing:
            await self._fresh_producer()
            self.with_more = True
            await self._write(self.messages(40, self.more))  # likewise
        self.report.notes.append(
            f"the second topic made anew with {partitions} partitions within {self.clock() - begin:.1f} s"
        )
        self.hopeful = self.clock() + _NOTICED_WITHIN

    async def _expire(self, topic: str, partition: int) -> None:
        """Delete what is there, as retention does; kept here is what it was."""
        records = await self._retried(lambda: read_all(self.broker, [topic], epoch=1))
        gone = [each for each in records if each.partition.partition == partition]
        if not gone:
            return
        end = gone[-1].record.offset + 1
        # Where producing goes on, what came meanwhile stays.
        self.saved += gone
        key = KafkaPartition(topic, partition)

        async def delete(admin: AIOKafkaAdminClient) -> None:
            await admin.delete_records({key: RecordsToDelete(end)})

        await self._admin(delete)
        behind = end - self.committed.get(TopicPartition(topic, partition), 0)
        self.report.notes.append(
            f"{topic.rpartition('.')[2]}-{partition}: everything before {end} deleted"
            + (f", {behind} of it not committed" if topic in self.event_topics else "")
        )

    async def _admin(self, ask: Callable[[AIOKafkaAdminClient], Awaitable[T]]) -> T:
        return await self._retried(lambda: self.broker._admin.ask(ask, "changing topics"))

    async def _retried(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Again and again while the broker is away."""
        deadline = self.clock() + 60.0
        while True:
            try:
                return await ask()
            except (BrokerError, TimeoutError):
                if self.clock() > deadline:
                    raise
                await asyncio.sleep(0.5)

    # Commits.

    async def _sample(self) -> None:
        while True:
            with contextlib.suppress(BrokerError):
                await self._look()
            await asyncio.sleep(0.5)

    async def _look(self) -> None:
        found = await self.broker._admin.ask(
            lambda admin: admin.list_consumer_group_offsets(self.name), "looking at the commits"
        )
        for key, position in found.items():
            if key.topic in self.event_topics and position.offset >= 0:
                self.committed[TopicPartition(*key)] = position.offset

    async def ends(self, topics: Sequence[str]) -> dict[TopicPartition, int]:
        infos = await self._retried(self.broker.topics)
        return {
            TopicPartition(info.name, each.partition): each.latest
            for info in infos
            if info.name in topics
            for each in info.partitions
        }

    async def _committed(self) -> None:
        """Wait until the group has committed everything."""
        ends = await self.ends(self.event_topics)

        def astray() -> dict[TopicPartition, tuple[int, int]]:
            return {
                key: (self.committed.get(key, 0), end)
                for key, end in ends.items()
                if self.committed.get(key, 0) != end
            }

        if not await self.until(lambda: not astray(), COMMITTED_WITHIN):
            self.report.findings.append(
                f"commits did not reach the end: partition: (committed, end): {astray()}"
            )

    # Faults.

    async def _heal(self) -> None:
        self.ground.heal()
        self.endpoints.heal()
        for node in self.ground.cluster.nodes:
            if node.pid is None:
                await asyncio.to_thread(node.start)
        for replica in self.replicas:
            if not replica.check() and replica is self.replicas[0]:
                await replica.start()

    async def _inflict(self, fault: Fault, started: float) -> None:
        await asyncio.sleep(max(0.0, started + fault.at - self.clock()))
        replica = self.replicas[fault.target % len(self.replicas)]
        if fault.kind is Kind.BROKER:
            async with self.broker_lock:
                begin = self.clock()
                nodes = self.ground.cluster.nodes
                node = nodes[fault.target % len(nodes)]
                await asyncio.to_thread(node.kill)
                await asyncio.sleep(fault.lasts)
                await asyncio.to_thread(node.start)
                self.troubles.append(Trouble("broker", None, begin, self.clock() + HEARD_WITHIN, wide=True))
            return
        async with replica.lock:
            begin = self.clock()
            if not replica.check():  # not there yet: it joins
                await replica.start()
                return
            match fault.kind:
                case Kind.KILL:
                    await replica.kill()
                    await asyncio.sleep(fault.lasts)
                    await replica.start()
                case Kind.TERM:
                    await replica.terminate()
                    await asyncio.sleep(fault.lasts)
                    await replica.start()
                case Kind.STOP:
                    replica.daemon.signal(signal.SIGSTOP)
                    await asyncio.sleep(fault.lasts)
                    replica.daemon.signal(signal.SIGCONT)
                    replica.trouble("stop", begin, self.clock() + HEARD_WITHIN, wide=True)
                case Kind.CUT | Kind.STALL:
                    relay = self.ground.relays[fault.target]
                    relay.cut() if fault.kind is Kind.CUT else relay.stall()
                    await asyncio.sleep(fault.lasts)
                    relay.heal()
                    replica.trouble(fault.kind.value, begin, self.clock() + HEARD_WITHIN, wide=True)
                case _:
                    raise AssertionError(f"no fault of a replica: {fault}")


class Ground:
    """One Kafka for any number of runs: a node and a relay for each replica, or three nodes and replication 3."""

    def __init__(self, *, replicated: bool) -> None:
        self.relays = [] if replicated else [Relay() for _ in range(REPLICAS)]
        self.cluster = Cluster(3) if replicated else RelayedCluster(self.relays)

    def address(self, replica: int) -> str:
        """Where that replica finds the broker."""
        return f"127.0.0.1:{self.relays[replica].port}" if self.relays else self.cluster.bootstrap

    def heal(self) -> None:
        for relay in self.relays:
            relay.heal()


@contextlib.asynccontextmanager
async def kafka_ground(*, replicated: bool = False) -> AsyncIterator[Ground]:
    """Raises tests.kafka.server.Unavailable where there is no Kafka."""
    ground = Ground(replicated=replicated)
    for relay in ground.relays:
        await relay.start()
    try:
        await asyncio.to_thread(ground.cluster.start)
        yield ground
    finally:
        await asyncio.to_thread(ground.cluster.stop)
        for relay in ground.relays:
            await relay.close()
