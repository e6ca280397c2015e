"""The Kafka broker: the connection to a cluster, and the parts that use it.

Each part has a module of its own: topics and groups' offsets (`admin.py`), records by offset (`lookup.py`), writing
(`producer.py`), consuming (`consumer.py`), whole partitions (`reader.py`). All of them use aiokafka 0.14, whose parts
behave as its source says, not always as its documentation does. Here:

- The library's own bootstrap hides why a server doesn't let us in, so `connect` asks the servers itself first (`bootstrap.py`).
- The library waits for ever for a broker that is away, and never asks the bootstrap servers again. `_watch` asks the
  brokers every few seconds whether one answers, says in `problem` what is wrong, and asks the bootstrap
  servers when no known broker answers.

Rules:

1. Connected means that there is a `_producer`: it is set when a server has let us in and a producer has
   started, and taken away by `close`.
2. The producer for `produce_bulk` (`_bulk`) is made when first asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import structlog
from aiokafka import errors
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.admin import ApiVersionRequest

from dispatcher.broker.base import (
    Acknowledged,
    AssignmentListener,
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    Entry,
    GroupMemory,
    GroupState,
    Message,
    Position,
    Record,
    Remembered,
    Stretch,
    TopicInfo,
    TopicPartition,
    TopicSpec,
)
from dispatcher.broker.kafka.admin import KafkaAdmin
from dispatcher.broker.kafka.bootstrap import CONNECT_TIMEOUT, BootstrapServers
from dispatcher.broker.kafka.client import client_options, reason_of, thin_out_logs
from dispatcher.broker.kafka.consumer import KafkaConsumer
from dispatcher.broker.kafka.lookup import RecordLookup
from dispatcher.broker.kafka.predecessor import MemberName
from dispatcher.broker.kafka.producer import KafkaProducer
from dispatcher.broker.kafka.reader import KafkaReader
from dispatcher.broker.kafka.wire.metadata import TopicsSeen
from dispatcher.broker.kafka.wire.rights import Rights, missing_rights
from dispatcher.runtime.backoff import Backoff
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import KafkaSettings

log = structlog.get_logger(__name__)

_WATCH_INTERVAL = 5.0
_METADATA_LIMIT = 4096  # the broker's `offset.metadata.max.bytes`, unless it is configured


class KafkaBroker:
    """A connection to a Kafka cluster; `servers` are `host:port`."""

    def __init__(
        self, servers: Sequence[str], settings: KafkaSettings, name: MemberName | None = None
    ) -> None:
        """`name`: of this process in its groups."""
        self.settings = settings
        self.name = name
        self._servers = list(servers)
        self._tasks = Tasks()
        self._options: dict[str, Any] = {}
        self._producer: KafkaProducer | None = None
        self._bulk: KafkaProducer | None = None
        self._bootstrap = BootstrapServers(servers, settings, self._tasks)
        self._lookup = RecordLookup(self._live_client, lambda: self._options, settings.request_timeout)
        self._admin = KafkaAdmin(self._live_client, lambda: self._options, settings, self._lookup)
        self._consumers: set[KafkaConsumer] = set()
        self._readers: set[KafkaReader] = set()
        self._needed: tuple[Rights, Rights] = ({}, {})
        self._denied: list[str] = []  # what of it the broker's ACLs don't allow
        self._asked = True  # and whether they have been asked for
        self._problem: str | None = "not connected yet"
        thin_out_logs()

    @property
    def problem(self) -> str | None:
        if self._problem is not None or self._producer is None:
            return self._problem
        return self._producer.problem

    @property
    def options(self) -> Mapping[str, Any]:
        """What to make another client with."""
        return self._options

    async def connect(self) -> None:
        if self._producer is not None:
            return
        self._options = client_options(self._servers, self.settings)
        producer = KafkaProducer(self._options, self.settings, lambda: self._problem)
        backoff = Backoff()
        while self._producer is None:
            try:
                await self._bootstrap.probe(self._options)
                await producer.live_client()
                self._producer = producer
            except BrokerUnavailable as error:
                pause = backoff.failed()
                self._problem = str(error)
                log.warning(
                    "the broker is not there, trying again",
                    error=str(error),
                    tries=backoff.failures,
                    pause=pause,
                )
                await asyncio.sleep(pause)
            except BrokerRefused as error:
                self._problem = str(error)
                raise
        self._problem = None
        log.info("connected to the broker", servers=self._servers, tries=backoff.failures + 1)
        self._tasks.start(self._watch(), "kafka watch")

    def warnings(self) -> list[str]:
        away = self._bootstrap.away
        return ([] if away is None else [away]) + self._denied

    async def check_rights(self, topics: Rights, groups: Rights) -> None:
        self._needed = (topics, groups)
        self._asked = False
        await self._look_at_rights()
        for denied in self._denied:
            log.error("a right is missing", error=denied)

    async def _look_at_rights(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                client = await self._connected().live_client()
                name = self.settings.sasl_username
                principal = "User:<the client's name>" if name is None else f"User:{name}"
                self._denied = await missing_rights(client, *self._needed, principal)
                self._asked = True
        except (BrokerError, errors.KafkaError, OSError, TimeoutError) as error:
            log.info("the broker's ACLs can't be asked for", error=reason_of(error))

    async def _watch(self) -> None:
        """Ask every few seconds whether a broker answers; where none does, ask the bootstrap servers."""
        backoff = Backoff()
        pause = _WATCH_INTERVAL
        while True:
            await asyncio.sleep(pause)
            if (self._denied or not self._asked) and not backoff.failures:
                await self._look_at_rights()
            try:
                await self._check()
                await self._bootstrap.look_again(await self._live_client())
            except BrokerError as error:
                pause = backoff.failed()
                self._problem = await self._reason(error)
                log.warning(
                    "the broker is away, trying again",
                    error=self._problem,
                    tries=backoff.failures,
                    pause=pause,
                )
                await self._bootstrap_again()
            else:
                if backoff.failures:
                    log.info("the broker is back", tries=backoff.failures)
                backoff.succeeded()
                pause = _WATCH_INTERVAL
                self._problem = None

    async def _reason(self, error: BrokerError) -> str:
        """What the bootstrap servers say of it, if they don't answer either; the library says little."""
        try:
            await self._bootstrap.probe(self._options)
        except BrokerError as said:
            return str(said)
        return str(error)

    async def _check(self) -> None:
        client = await self._connected().live_client()
        problem = "no broker is known"
        for broker in client.cluster.brokers():
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    await client.send(broker.nodeId, ApiVersionRequest())
            except (errors.KafkaError, OSError, TimeoutError) as error:
                problem = f"{broker.host}:{broker.port}: {reason_of(error)}"
            else:
                return
        raise BrokerUnavailable(f"no broker of the cluster answers ({problem})")

    async def _bootstrap_again(self) -> None:
        """Learn the brokers' addresses anew: all of them may have moved."""
        clients = [consumer.client for consumer in self._consumers]
        clients += [reader.client for reader in self._readers]
        clients += [producer.client for producer in (self._producer, self._bulk) if producer is not None]
        for client in clients:
            if client is not None:
                with contextlib.suppress(errors.KafkaError, OSError, TimeoutError):
                    await client.bootstrap()

    async def close(self) -> None:
        for consumer in list(self._consumers):
            await consumer.stop()
        for reader in list(self._readers):
            await reader.stop()
        await self._tasks.stop()
        producers = [producer for producer in (self._producer, self._bulk) if producer is not None]
        self._producer = self._bulk = None
        self._problem = "closed"
        for producer in producers:
            await producer.close()
        await self._lookup.close()
        await self._admin.close()

    def consumer(
        self,
        topics: Collection[str],
        group: str,
        listener: AssignmentListener,
        *,
        own: bool = False,
        memory: GroupMemory | None = None,
    ) -> KafkaConsumer:
        consumer = KafkaConsumer(self, topics, group, listener, own=own, memory=memory)
        self._consumers.add(consumer)
        return consumer

    def reader(self, topic: str, partition: int = 0) -> KafkaReader:
        reader = KafkaReader(self, TopicPartition(topic, partition))
        self._readers.add(reader)
        return reader

    def forget_reader(self, reader: KafkaReader) -> None:
        """It has stopped."""
        self._readers.discard(reader)

    def forget(self, consumer: KafkaConsumer) -> None:
        """It has stopped."""
        self._consumers.discard(consumer)

    def _connected(self) -> KafkaProducer:
        """The producer; BrokerUnavailable while there is no connection (rule 1)."""
        if self._producer is None:
            raise BrokerUnavailable(self._problem or "not connected")
        return self._producer

    # Records.

    async def produce(self, messages: Sequence[Message], acknowledged: Acknowledged | None = None) -> None:
        await self._connected().produce(messages, acknowledged)

    async def produce_bulk(self, topic: str, entries: Sequence[Entry]) -> None:
        await self._bulk_producer().produce_bulk(topic, entries)

    async def produce_one(self, topic: str, entry: Entry) -> tuple[int, int]:
        return await self._bulk_producer().produce_one(topic, entry)

    def _bulk_producer(self) -> KafkaProducer:
        self._connected()
        if self._bulk is None:
            self._bulk = KafkaProducer(self._options, self.settings, lambda: self._problem)
        return self._bulk

    @property
    def metadata_limit(self) -> int:
        return _METADATA_LIMIT

    async def read(self, partition: TopicPartition, offset: int) -> Record | None:
        return await self._lookup.read(partition, offset)

    async def read_from(self, partition: TopicPartition, offset: int, limit: int, size: int) -> Stretch:
        return await self._lookup.read_from(partition, offset, limit, size)

    async def _live_client(self) -> AIOKafkaClient:
        return await self._connected().live_client()

    # Topics.

    async def look(self, topics: Sequence[str]) -> dict[str, Remembered]:
        return await self._admin.look(topics)

    async def survey(self, topics: Sequence[str], known: Mapping[str, Remembered]) -> TopicsSeen:
        """What is there of topics of which something is known."""
        return await self._admin.survey(topics, known)

    async def ensure_topics(self, topics: Sequence[TopicSpec], *, create: bool) -> Sequence[str]:
        return await self._admin.ensure_topics(topics, create=create)

    async def topics(
        self, group: str | None = None, *, only: Callable[[str], bool] | None = None
    ) -> Sequence[TopicInfo]:
        return await self._admin.topics(group, only=only)

    async def positions_of(self, group: str, topic: str) -> Mapping[TopicPartition, Position]:
        return await self._admin.positions_of(group, topic)

    async def readers_of(self, topics: Collection[str], suffix: str) -> Mapping[str, GroupState]:
        return await self._admin.readers_of(topics, suffix)

    async def has_commits(self, group: str, topics: Collection[str]) -> bool:
        return await self._admin.has_commits(group, topics)

    async def inherited(self, group: str, topics: Collection[str]) -> Mapping[TopicPartition, Position]:
        return await self._admin.inherited(group, topics)
