"""The Kafka broker: the connection to a cluster, its topics, and single records.

Writing and consuming have modules of their own (`producer.py`, `consumer.py`), all of them on
aiokafka 0.14, whose parts behave as its source says, not always as its documentation does. Here:

- The library's own bootstrap hides why a server doesn't let us in, so `connect` tries the servers itself first.
- It waits for a broker that is away for ever, and never asks the bootstrap servers again. `_watch` asks the
  brokers every few seconds whether one answers, says in `problem` what is wrong, and asks the bootstrap
  servers when no known broker answers.
- It would create a topic by asking for it. Whether a topic is there is asked without.

Rules:

1. Connected means that there is a `_producer`: it is set when a server has let us in and a producer has
   started, and taken away by `close`.
2. The clients for topics (`_admin`), for single records (`_reader`) and for `produce_bulk` (`_bulk`) are made when first asked for, and thrown
   away after an error. The reader has one partition at a time, so it serves one call at a time (`_reading`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition as KafkaPartition, errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.protocol.admin import ApiVersionRequest
from aiokafka.protocol.metadata import MetadataRequest

from dispatcher.broker.assignment import RETRY_SUFFIX, inherited
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
    PartitionInfo,
    Position,
    Record,
    Remembered,
    Stretch,
    TopicInfo,
    TopicPartition,
    TopicSpec,
    UnreadableBatch,
    check_exact,
)
from dispatcher.broker.kafka.client import (
    client_options,
    describe,
    mapped,
    milliseconds,
    pause_after,
    reason_of,
    thin_out_logs,
)
from dispatcher.broker.kafka.consumer import KafkaConsumer, stop_consumer
from dispatcher.broker.kafka.diagnosis import mismatch, spoken, unreachable
from dispatcher.broker.kafka.groups import offsets_of, readers_of
from dispatcher.broker.kafka.lookup import Ranges
from dispatcher.broker.kafka.predecessor import MemberName
from dispatcher.broker.kafka.producer import KafkaProducer
from dispatcher.broker.kafka.reader import KafkaReader
from dispatcher.broker.kafka.wire.metadata import look
from dispatcher.broker.kafka.wire.rights import Rights, missing_rights
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import KafkaSettings

log = structlog.get_logger(__name__)
T = TypeVar("T")

_CONNECT_TIMEOUT = 10.0
_WATCH_INTERVAL = 5.0
_STARTING = 15.0  # seconds that a broker may take to become able to do what it is asked
_TOO_FEW = 5.0  # of those, seconds for other brokers to appear
_AGAIN = 0.25
_SLOW = 1.0  # seconds without an answer, after which a server is asked what it speaks
_METADATA_LIMIT = 4096  # the broker's `offset.metadata.max.bytes`, unless it is configured
_SHOWN_CONFIGS = {
    "cleanup.policy",
    "retention.ms",
    "retention.bytes",
    "max.message.bytes",
    "min.compaction.lag.ms",
    "min.insync.replicas",
}


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
        self._admin: AIOKafkaAdminClient | None = None
        self._reader: AIOKafkaConsumer | None = None
        self._reading = asyncio.Lock()
        self._ranges = Ranges(self._live_client, settings.request_timeout)
        self._consumers: set[KafkaConsumer] = set()
        self._readers: set[KafkaReader] = set()
        self._needed: tuple[Rights, Rights] = ({}, {})
        self._denied: list[str] = []  # what of it the broker's ACLs don't allow
        self._asked = True  # and whether they have been asked for
        self._away: str | None = None  # what to say of brokers that the cluster names and nobody reaches
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
        tries = 0
        while self._producer is None:
            try:
                await self._probe()
                await producer.live_client()
                self._producer = producer
            except BrokerUnavailable as error:
                pause = pause_after(tries)
                tries += 1
                self._problem = str(error)
                log.warning(
                    "the broker is not there, trying again", error=str(error), tries=tries, pause=pause
                )
                await asyncio.sleep(pause)
            except BrokerRefused as error:
                self._problem = str(error)
                raise
        self._problem = None
        log.info("connected to the broker", servers=self._servers, tries=tries + 1)
        self._tasks.start(self._watch(), "kafka watch")

    async def _probe(self) -> None:
        """Return when a bootstrap server lets us in. The library's own bootstrap hides why one doesn't."""
        options = self._options | {
            "request_timeout_ms": milliseconds(min(_CONNECT_TIMEOUT, self.settings.request_timeout))
        }
        del options["bootstrap_servers"], options["retry_backoff_ms"]
        found: list[BrokerError] = []
        for host, port, _ in collect_hosts(self._servers):
            server = f"{host}:{port}"
            attempt = self._tasks.start(self._let_in(host, port, options), f"connect to {server}")
            try:
                done, _ = await asyncio.wait({attempt}, timeout=_SLOW)
                if not done:
                    await self._refuse_mismatch(host, port)
                brokers = await attempt
            finally:
                attempt.cancel()
            if not isinstance(brokers, Exception):
                await self._check_advertised(server, brokers)
                return
            if not isinstance(brokers, ConnectionRefusedError | socket.gaierror):
                await self._refuse_mismatch(host, port)
            found.append(mapped(brokers, server))
        for problem in found:
            if isinstance(problem, BrokerRefused):
                raise problem
        raise BrokerUnavailable("; ".join(str(problem) for problem in found))

    async def _let_in(
        self, host: str, port: int, options: Mapping[str, Any]
    ) -> list[tuple[str, int]] | Exception:
        """Where the cluster's brokers are, as this server says once it has let us in; or why it doesn't."""
        try:
            connection = await create_conn(host, port, **options)
            try:
                # A listener that wants credentials closes the connection at the first request that isn't about them.
                response = await connection.send(MetadataRequest([], allow_auto_topic_creation=False))
            finally:
                connection.close()
        except (errors.KafkaError, OSError, TimeoutError, ValueError) as error:
            return error
        return [(broker[1], broker[2]) for broker in response.brokers]

    async def _refuse_mismatch(self, host: str, port: int) -> None:
        """Raise BrokerRefused where the server speaks something else than the settings say."""
        found = await spoken(host, port)
        settings = self.settings
        if found is not None:
            said = mismatch(f"{host}:{port}", found, settings.security_protocol, settings.sasl_mechanism)
            if said is not None:
                raise BrokerRefused(said)

    async def _check_advertised(self, server: str, brokers: Sequence[tuple[str, int]]) -> None:
        """Clients go on to the addresses that the brokers advertise: say which of them can't be reached."""
        away = await unreachable(brokers)
        self._away = (
            f"{server} says that these brokers belong to the cluster, and they can't be reached from here:"
            f" {', '.join(f'{address} ({why})' for address, why in away.items())}. Are they down? Else change"
            " advertised.listeners on them to an address that this host reaches, or make the name known to this host"
            if away
            else None
        )
        if away and len(away) == len(set(brokers)):
            raise BrokerUnavailable(self._away)
        if self._away is not None:
            log.warning("some brokers can't be reached", error=self._away)

    def warnings(self) -> list[str]:
        return ([] if self._away is None else [self._away]) + self._denied

    async def check_rights(self, topics: Rights, groups: Rights) -> None:
        self._needed = (topics, groups)
        self._asked = False
        await self._look_at_rights()
        for denied in self._denied:
            log.error("a right is missing", error=denied)

    async def _look_at_rights(self) -> None:
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                client = await self._connected().live_client()
                name = self.settings.sasl_username
                principal = "User:<the client's name>" if name is None else f"User:{name}"
                self._denied = await missing_rights(client, *self._needed, principal)
                self._asked = True
        except (BrokerError, errors.KafkaError, OSError, TimeoutError) as error:
            log.info("the broker's ACLs can't be asked for", error=reason_of(error))

    async def _watch(self) -> None:
        """Ask every few seconds whether a broker answers; where none does, ask the bootstrap servers."""
        tries = 0
        while True:
            await asyncio.sleep(pause_after(tries) if tries else _WATCH_INTERVAL)
            if (self._denied or not self._asked) and not tries:
                await self._look_at_rights()
            try:
                await self._check()
                await self._look_at_advertised()
            except BrokerError as error:
                pause = pause_after(tries)
                tries += 1
                self._problem = await self._reason(error)
                log.warning("the broker is away, trying again", error=self._problem, tries=tries, pause=pause)
                await self._bootstrap_again()
            else:
                if tries:
                    log.info("the broker is back", tries=tries)
                tries = 0
                self._problem = None

    async def _reason(self, error: BrokerError) -> str:
        """What the bootstrap servers say of it, if they don't answer either; the library says little."""
        try:
            await self._probe()
        except BrokerError as said:
            return str(said)
        return str(error)

    async def _look_at_advertised(self) -> None:
        """Whether those that couldn't be reached can be by now."""
        if self._away is not None:
            client = await self._connected().live_client()
            brokers = [(broker.host, broker.port) for broker in client.cluster.brokers()]
            if not await unreachable(brokers):
                self._away = None

    async def _check(self) -> None:
        client = await self._connected().live_client()
        problem = "no broker is known"
        for broker in client.cluster.brokers():
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT):
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
        await self._drop_reader()
        await self._drop_admin()

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
        if offset < 0:
            return None
        key = KafkaPartition(*partition)
        return await self._with_reader(
            lambda reader: self._read(reader, key, offset), f"reading {key[0]}-{key[1]}"
        )

    async def read_from(self, partition: TopicPartition, offset: int, limit: int, size: int) -> Stretch:
        return await self._ranges.read(partition, offset, limit, size)

    async def _live_client(self) -> AIOKafkaClient:
        return await self._connected().live_client()

    async def _read(self, reader: AIOKafkaConsumer, key: KafkaPartition, offset: int) -> Record | None:
        if key.partition not in (reader.partitions_for_topic(key.topic) or ()):
            found = (await self.describe([key.topic])).get(key.topic)
            if found is None or key.partition not in found:
                return None
        first, end = await asyncio.gather(reader.beginning_offsets([key]), reader.end_offsets([key]))
        if not first[key] <= offset < end[key]:
            return None
        reader.assign([key])
        try:
            reader.seek(key, offset)
            while True:
                for records in (await reader.getmany(key, timeout_ms=1000, max_records=1)).values():
                    record: Record = records[0]
                    if isinstance(record, UnreadableBatch):
                        raise record
                    if record.offset >= offset:
                        return record if record.offset == offset else None
                    # The assignment's own look for where to start has come after the seek.
                    reader.seek(key, offset)
                if await reader.position(key) > offset:
                    return None  # compacted away, or a transaction's marker
        finally:
            reader.pause(key)  # or it would go on fetching what nobody reads

    async def _with_reader(self, ask: Callable[[AIOKafkaConsumer], Awaitable[T]], doing: str) -> T:
        """Ask the consumer without a group; a new one after an error."""
        self._connected()
        async with self._reading:
            try:
                async with asyncio.timeout(self.settings.request_timeout):
                    if self._reader is None:
                        reader = AIOKafkaConsumer(
                            **self._options,
                            group_id=None,
                            enable_auto_commit=False,
                            auto_offset_reset="earliest",
                            max_partition_fetch_bytes=64 * 1024,  # a larger record comes all the same
                            isolation_level="read_committed",
                        )
                        try:
                            await reader.start()
                        except BaseException:
                            await stop_consumer(reader)
                            raise
                        self._reader = reader
                    return await ask(self._reader)
            except (errors.KafkaError, OSError, TimeoutError) as error:
                await self._drop_reader()
                raise mapped(error, doing) from error

    async def _drop_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            await stop_consumer(reader)

    # Topics.

    async def describe(self, topics: Sequence[str] | None) -> dict[str, list[int]]:
        """The partitions of each of these topics that exists (None: of all but the broker's own)."""
        return await describe(await self._connected().live_client(), topics)

    async def look(self, topics: Sequence[str]) -> dict[str, Remembered]:
        """Those of these topics that exist."""
        return await look(await self._connected().live_client(), topics)

    async def readers_of(self, topics: Collection[str], suffix: str) -> Mapping[str, GroupState]:
        found = await self.look(sorted(topics))
        keys = [
            KafkaPartition(name, number)
            for name, topic in found.items()
            for number in range(topic.partitions)
        ]
        if not keys:
            return {}
        return await self._with_admin(
            lambda admin: readers_of(admin, keys, suffix), "asking for the groups that read the retry topics"
        )

    async def has_commits(self, group: str, topics: Collection[str]) -> bool:
        found = await self.look(sorted(topics))
        keys = [
            KafkaPartition(name, number)
            for name, topic in found.items()
            for number in range(topic.partitions)
        ]
        committed = await self._with_admin(
            lambda admin: offsets_of(admin, group, keys),
            f"asking for the offsets of group {group}",
        )
        return any(at.offset >= 0 for at in committed.values())

    async def inherited(self, group: str, topics: Collection[str]) -> Mapping[TopicPartition, Position]:
        return inherited(group, await self.readers_of(topics, RETRY_SUFFIX))

    async def ensure_topics(self, topics: Sequence[TopicSpec], *, create: bool) -> Sequence[str]:
        found = await self.describe([spec.name for spec in topics])
        missing = [spec for spec in topics if spec.name not in found]
        exact = [spec for spec in topics if spec.exact and spec.name in found]
        if exact:
            configs = await self._configs([spec.name for spec in exact])
            for spec in exact:
                check_exact(spec, len(found[spec.name]), configs.get(spec.name, {}))
        if not create or not missing:
            return [spec.name for spec in missing]
        await self._with_admin(lambda admin: self._create(admin, missing), "creating topics")
        names = [spec.name for spec in missing]
        deadline = time.monotonic() + self.settings.request_timeout
        while left := sorted(set(names) - (await self.describe(names)).keys()):
            if time.monotonic() > deadline:
                return left
            await asyncio.sleep(0.1)
        return []

    async def _create(self, admin: AIOKafkaAdminClient, specs: Sequence[TopicSpec]) -> None:
        began = time.monotonic()
        while admin._client.cluster.controller is None:
            if time.monotonic() - began > _STARTING:
                raise BrokerUnavailable("the cluster has no controller just now")
            await asyncio.sleep(_AGAIN)
            await admin._client.force_metadata_update()
        defaults: Mapping[str, str] = {}
        while True:
            request = [
                NewTopic(
                    spec.name,
                    spec.partitions or int(defaults.get("num.partitions", -1)),
                    spec.replication or int(defaults.get("default.replication.factor", -1)),
                    # Without it -1, the broker's default, is not let through.
                    replica_assignments={}
                    if None in (spec.partitions, spec.replication) and not defaults
                    else None,
                    topic_configs=dict(spec.config),
                )
                for spec in specs
            ]
            response = await admin.create_topics(request)
            again = False
            for name, code, *said in response.topic_errors:
                error = errors.for_code(code)
                if error is errors.NoError:
                    log.info("topic created", topic=name)
                elif error is errors.TopicAlreadyExistsError:
                    continue
                elif (
                    error in {errors.InvalidReplicationFactorError, errors.InvalidPartitionsError}
                    and not defaults
                ):
                    defaults = await self._broker_defaults(admin)  # brokers before 2.4 don't know -1
                    again = True
                elif time.monotonic() - began < _patience(error):
                    again = True
                    log.info("the topic can't be created yet, trying again", topic=name, error=error.__name__)
                else:
                    detail = said[0] if said and said[0] else error.description
                    raise BrokerRefused(f"topic {name} could not be created: {detail}")
            if not again:
                return
            await asyncio.sleep(_AGAIN)
            await admin._client.force_metadata_update()

    async def _broker_defaults(self, admin: AIOKafkaAdminClient) -> Mapping[str, str]:
        cluster = await admin.describe_cluster()
        wanted = dict.fromkeys(("num.partitions", "default.replication.factor"))
        node = str(cluster["brokers"][0]["node_id"])
        (response,) = await admin.describe_configs([ConfigResource(ConfigResourceType.BROKER, node, wanted)])
        return {entry[0]: entry[1] for resource in response.resources for entry in resource[4]}

    async def topics(
        self, group: str | None = None, *, only: Callable[[str], bool] | None = None
    ) -> Sequence[TopicInfo]:
        found = await self.describe(None)
        if only is not None:
            found = {name: numbers for name, numbers in found.items() if only(name)}
        keys = [KafkaPartition(name, number) for name, numbers in found.items() for number in numbers]
        if not keys:
            return []

        async def offsets(reader: AIOKafkaConsumer) -> tuple[Mapping[Any, int], Mapping[Any, int]]:
            # All at once: asked for offsets, the library looks for one unknown topic after the other.
            await reader._client.set_topics(found)
            first, end = await asyncio.gather(reader.beginning_offsets(keys), reader.end_offsets(keys))
            return first, end

        first, end = await self._with_reader(offsets, "asking for offsets")
        committed: Mapping[Any, Any] = {}
        if group is not None:
            name = group
            committed = await self._with_admin(
                lambda admin: admin.list_consumer_group_offsets(name, partitions=keys),
                f"asking for the offsets of group {group}",
            )
        configs = await self._configs(list(found))
        return [
            TopicInfo(
                name,
                [
                    PartitionInfo(
                        number,
                        first[name, number],  # a partition equals any tuple of the same values
                        end[name, number],
                        committed[name, number].offset
                        if (name, number) in committed and committed[name, number].offset >= 0
                        else None,
                    )
                    for number in numbers
                ],
                configs.get(name, {}),
            )
            for name, numbers in sorted(found.items())
        ]

    async def _configs(self, topics: Iterable[str]) -> dict[str, dict[str, str]]:
        """What may be shown of each topic's config; nothing where that isn't allowed."""
        resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
        try:
            (response,) = await self._with_admin(
                lambda admin: admin.describe_configs(resources), "asking for configs"
            )
        except BrokerError as error:
            log.info("topic configs can't be read", error=str(error))
            return {}
        return {
            name: {entry[0]: entry[1] for entry in entries if entry[0] in _SHOWN_CONFIGS}
            for _, _, _, name, entries in response.resources
        }

    async def _with_admin(self, ask: Callable[[AIOKafkaAdminClient], Awaitable[T]], doing: str) -> T:
        self._connected()
        deadline = time.monotonic() + _STARTING
        try:
            async with asyncio.timeout(self.settings.request_timeout):
                while True:
                    if self._admin is None:
                        admin = AIOKafkaAdminClient(**self._options)
                        try:
                            await admin.start()
                        except BaseException:
                            await admin.close()
                            raise
                        self._admin = admin
                    try:
                        return await ask(self._admin)
                    except errors.BrokerResponseError as error:
                        # A broker that has just started has no coordinator and no controller yet, and says so.
                        if not error.retriable or time.monotonic() > deadline:
                            raise
                    await asyncio.sleep(_AGAIN)
                    await self._admin._client.force_metadata_update()
        except (errors.KafkaError, OSError, TimeoutError) as error:
            await self._drop_admin()
            raise mapped(error, doing) from error

    async def _drop_admin(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            with contextlib.suppress(errors.KafkaError, OSError, TimeoutError):
                await admin.close()


def _patience(error: type[errors.BrokerResponseError]) -> float:
    """For how many seconds a topic that the broker refuses with this error is tried again: it may be starting."""
    if error is errors.InvalidReplicationFactorError:
        return _TOO_FEW
    return _STARTING if error.retriable else 0.0
