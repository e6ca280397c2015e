"""What the contract suite runs on: the same questions to every broker."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.structs import TopicPartition as KafkaPartition

from dispatcher.broker.base import (
    AssignmentListener,
    Broker,
    BrokerUnavailable,
    Consumer,
    GroupMemory,
    Jump,
    Message,
    Position,
    Record,
    TopicPartition,
    TopicSpec,
)
from dispatcher.broker.open import open_broker
from dispatcher.settings.groups import KafkaSettings, SqliteSettings
from tests.kafka.mock import MockCluster

SQLITE = pytest.param("sqlite", id="sqlite")
KAFKA = pytest.param("kafka", id="kafka", marks=pytest.mark.kafka)
MOCK = pytest.param("mock", id="mock")

administered = pytest.mark.parametrize("backend", [SQLITE, KAFKA], indirect=True)
"""For what the mock cluster has no requests for."""

WITHIN = 30.0  # seconds that anything may take before it counts as hanging

QUICK = KafkaSettings(
    session_timeout=6.0,
    heartbeat_interval=0.2,
    rebalance_timeout=10.0,
    request_timeout=10.0,
    fetch_max_wait=0.1,
)


class Backend(ABC):
    """One kind of broker."""

    name: str

    def __init__(self, unique: Callable[[str], str]) -> None:
        self.unique = unique
        self.settings = QUICK
        self._open: list[Broker] = []

    @property
    @abstractmethod
    def url(self) -> str: ...

    async def connect(self, settings: KafkaSettings | None = None) -> Broker:
        """A connected broker; closed at the end of the test."""
        broker = open_broker(self.url, settings or self.settings, SqliteSettings())
        self._open.append(broker)
        await broker.connect()
        return broker

    async def close(self, broker: Broker) -> None:
        self._open.remove(broker)
        await broker.close()

    async def close_all(self) -> None:
        while self._open:
            await self._open.pop().close()

    async def topic(self, broker: Broker, partitions: int = 4, **config: str) -> str:
        """A new topic."""
        name = self.unique("topic")
        spec = TopicSpec(
            name, partitions, config={key.replace("_", "."): value for key, value in config.items()}
        )
        assert await broker.ensure_topics([spec], create=True) == []
        return name

    @abstractmethod
    async def delete_before(self, broker: Broker, partition: TopicPartition, offset: int) -> None:
        """Delete the records below `offset`, as retention does."""


class OnSqlite(Backend):
    name = "sqlite"

    def __init__(self, unique: Callable[[str], str], directory: Path) -> None:
        super().__init__(unique)
        self._path = directory / "log.db"

    @property
    def url(self) -> str:
        return f"sqlite:///{self._path}"

    async def delete_before(self, broker: Any, partition: TopicPartition, offset: int) -> None:
        # Retention by age, with all that is to go made old.
        state = broker._store.topics[partition.topic].partitions[partition.partition]

        def age(file: Any) -> None:
            file._open_db.execute(f"UPDATE log_{state.id} SET timestamp = 0 WHERE position < {offset}")

        await broker._store._write(age)
        await broker.maintain()


class OnKafka(Backend):
    name = "kafka"

    def __init__(self, unique: Callable[[str], str], address: str) -> None:
        super().__init__(unique)
        self.address = address

    @property
    def url(self) -> str:
        return f"kafka://{self.address}"

    async def delete_before(self, broker: Broker, partition: TopicPartition, offset: int) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.address)
        await admin.start()
        try:
            await admin.delete_records({KafkaPartition(*partition): RecordsToDelete(offset)})
        finally:
            await admin.close()

    @contextlib.asynccontextmanager
    async def _admin(self) -> Any:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.address)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()

    async def add_partitions(self, topic: str, total: int) -> None:
        async with self._admin() as admin:
            await admin.create_partitions({topic: NewPartitions(total)})

    async def delete_topic(self, topic: str) -> None:
        async with self._admin() as admin:
            await admin.delete_topics([topic])

    async def make_anew(self, topic: str, partitions: int = 4) -> None:
        """Delete the topic, and create it again."""
        await self.delete_topic(topic)
        await self.create_topic(topic, partitions)

    async def create_topic(self, topic: str, partitions: int) -> None:
        """As soon as the broker lets us: one of that name may be on its way out."""
        async with self._admin() as admin, asyncio.timeout(WITHIN):
            while (await admin.create_topics([NewTopic(topic, partitions, 1)])).topic_errors[0][1]:
                await asyncio.sleep(0.05)


class OnMock(OnKafka):
    """librdkafka's mock: groups of one member, no admin requests."""

    name = "mock"

    def __init__(self, unique: Callable[[str], str], cluster: MockCluster) -> None:
        super().__init__(unique, cluster.bootstrap)
        self.cluster = cluster

    async def topic(self, broker: Broker, partitions: int = 4, **config: str) -> str:
        name = self.unique("topic")
        self.cluster.create_topic(name, partitions)
        return name


class Listener:
    """Notes what it is told; `during_assigned` and `during_revoked` run inside the calls."""

    def __init__(
        self,
        during_assigned: Callable[[Mapping[TopicPartition, Position]], Awaitable[None]] | None = None,
        during_revoked: Callable[[Collection[TopicPartition]], Awaitable[None]] | None = None,
    ) -> None:
        self.during_assigned = during_assigned
        self.during_revoked = during_revoked
        self.calls: list[str] = []
        self.assigned: dict[TopicPartition, Position] = {}
        self.starts: dict[TopicPartition, Position] = {}  # as of the last assignment
        self.gone: set[TopicPartition] = set()
        self.jumps: list[Jump] = []

    async def on_assigned(self, partitions: Mapping[TopicPartition, Position]) -> None:
        self.calls.append("assigned")
        if self.during_assigned is not None:
            await self.during_assigned(partitions)
        self.assigned = dict(partitions)
        self.starts = dict(partitions)

    async def on_revoked(self, partitions: Collection[TopicPartition]) -> None:
        self.calls.append("revoked")
        assert set(partitions) == set(self.assigned), "revoked is what was assigned"
        if self.during_revoked is not None:
            await self.during_revoked(partitions)
        self.assigned = {}

    def on_gone(self, partitions: Collection[TopicPartition]) -> None:
        self.gone |= set(partitions)

    def on_jump(self, jump: Jump) -> None:
        self.jumps.append(jump)


class Member:
    """A consumer with its listener; checks with every poll that nothing comes of what isn't assigned."""

    def __init__(
        self,
        broker: Broker,
        topics: Collection[str],
        group: str,
        listener: Listener | None = None,
        *,
        own: bool = False,
        memory: GroupMemory | None = None,
    ) -> None:
        self.listener = listener or Listener()
        port: AssignmentListener = self.listener
        self.consumer: Consumer = broker.consumer(topics, group, port, own=own, memory=memory)
        self.records: defaultdict[TopicPartition, list[Record]] = defaultdict(list)

    async def poll(self, timeout: float = 0.2, limit: int = 1000) -> int:
        """Records taken by this poll."""
        count = 0
        for partition, records in await self.consumer.poll(timeout, limit):
            assert partition in self.listener.assigned, "records of what the listener was not told of"
            assert records, "empty batches are left out"
            self.records[partition].extend(records)
            count += len(records)
        assert count <= limit
        return count

    async def poll_until(self, done: Callable[[], object]) -> None:
        async with asyncio.timeout(WITHIN):
            while not done():
                await self.poll()

    async def poll_for(self, count: int) -> None:
        await self.poll_until(lambda: len(self.all) >= count)

    @property
    def all(self) -> list[Record]:
        return [record for records in self.records.values() for record in records]

    @property
    def placed(self) -> list[tuple[TopicPartition, Record]]:
        """The same, each with the partition that it came from."""
        return [(partition, record) for partition, records in self.records.items() for record in records]

    @property
    def values(self) -> list[bytes | None]:
        return [record.value for record in self.all]

    @contextlib.asynccontextmanager
    async def polling(self) -> Any:
        """Poll in the background, as the owner of a member must."""

        async def forever() -> None:
            while True:
                await self.poll()

        task = asyncio.get_running_loop().create_task(forever())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def eventually(done: Callable[[], object]) -> None:
    async with asyncio.timeout(WITHIN):
        while not done():
            await asyncio.sleep(0.02)


async def produced(broker: Broker, message: Message) -> None:
    """Write it, again where a broker that has just come back doesn't answer in time."""
    async with asyncio.timeout(WITHIN):
        while True:
            try:
                await broker.produce([message])
            except BrokerUnavailable:
                await asyncio.sleep(0.1)
            else:
                return


class Forwarder:
    """A port of our own in front of a broker: refuses until `start`, and can be cut off."""

    def __init__(self, port: int, target: str) -> None:
        self.port = port
        self.target = target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            await self.cut()

    async def cut(self) -> None:
        """Close what is connected; new connections go to `target`, which may be another by now."""
        for writer in list(self._writers):
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(*self.target.rsplit(":", 1))
        self._writers |= {writer, there_writer}
        await asyncio.gather(self._copy(reader, there_writer), self._copy(there_reader, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()
        self._writers.discard(writer)
