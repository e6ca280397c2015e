"""Kafka, through aiokafka 0.14 (its parts behave as its source says, not always as its documentation does).

What the library leaves to its caller, and how it is met here:

- Rebalances are eager: everything is revoked, positions restart at the committed offset, pauses are
  lost. It swallows the exceptions of a rebalance listener, and starts fetching before the listener
  returns. Hence `poll` hands out nothing from the beginning of a revocation until `on_assigned` has
  returned, and a listener's exception is raised by the next `poll`.
- Its `pause` throws away what it has fetched, and fetches it again after `resume`. Here pausing
  only leaves a partition out of `getmany`: what was fetched stays (at most one fetch per
  partition), and a resumed partition goes on at once.
- A commit that waits for its coordinator through a rebalance would be sent with the new generation,
  which Kafka accepts for partitions that belong to somebody else by then. Commits under way are
  cut off when their partitions are given up.
- `committed()` hides the metadata, and a committed offset may point to what retention deleted, so
  starting positions are read and checked here, once per assignment.
- `send` costs 30 us a record, filling a batch and sending it 2.5 us. Messages queue per partition; a
  batch takes what is there when the one before it was acknowledged, whichever call it came from.
- After a batch failed, its sequence numbers are never used again, and the idempotent producer gets
  "out of order" for that partition for good. It can't be told whether a batch that failed after
  retries was written, so rolling the numbers back could make the broker drop new data as
  duplicates. Hence a failed batch retires the producer: the next one gets a fresh producer id.
- A producer waits for a broker that is away for ever, a consumer tells of it in log lines, ten a second.
  `produce` gives up after `request_timeout`; `problem` says what is wrong; the log lines are thinned out.
- It never asks the bootstrap servers again: `_watch` does when no known broker answers.

Rules:

1. `_mine` is what the listener has been told of and has not been told to lose. Only partitions in
   it are polled or committed.
2. `_open` is true from the end of `on_assigned` to the beginning of `on_revoked`.
3. Per partition one batch is under way at a time (`_Lane.busy`): order is kept, and a batch is built
   as late as possible.
4. A `_Call` ends once: with the last of its messages acknowledged, with the first error, or by its
   caller giving up. What is still queued of an ended call is not sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import structlog
from aiokafka import (
    AIOKafkaConsumer,
    AIOKafkaProducer,
    ConsumerRebalanceListener,
    TopicPartition as KafkaPartition,
    errors,
)
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.protocol.admin import ApiVersionRequest
from aiokafka.protocol.metadata import MetadataRequest

from dispatcher.broker.base import (
    AssignmentListener,
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    CommitRefused,
    Message,
    MessageTooLarge,
    PartitionInfo,
    Position,
    Record,
    TopicInfo,
    TopicPartition,
    TopicSpec,
)
from dispatcher.broker.partitioning import StickyPartitions, partition_of
from dispatcher.settings import KafkaSettings
from dispatcher.tasks import Tasks

log = structlog.get_logger(__name__)
T = TypeVar("T")

# Enough for 100 to 250 records of a kilobyte or two: at 2 ms per acknowledgement 100,000 records/s per partition.
BATCH_BYTES = 256 * 1024
# The broker's own limit (message.max.bytes) is usually 1 MiB and refuses cleanly. What exceeds
# socket.request.max.bytes (100 MiB) it answers by closing the connection, and that would be tried for ever.
LARGEST_MESSAGE = 64 << 20
_OVERHEAD = 100  # bytes of batch header and record framing
_CONNECT_TIMEOUT = 10.0
_STOP_TIMEOUT = 5.0
_TOPIC_TIMEOUT = 10.0  # how long a topic that the cluster doesn't know is asked for again
_WATCH_INTERVAL = 5.0
_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds between tries; the last one goes on
_RETRY_BACKOFF_MS = 250  # while a broker is away, several tasks of each client try again this often
_NEVER_MS = 2**31 - 1
_SHOWN_CONFIGS = {
    "cleanup.policy",
    "retention.ms",
    "retention.bytes",
    "max.message.bytes",
    "min.insync.replicas",
}

_UNAVAILABLE = (
    errors.KafkaConnectionError,
    errors.KafkaTimeoutError,
    errors.KafkaUnavailableError,
    errors.BrokerNotAvailableError,
    errors.ReplicaNotAvailableError,
    OSError,
    TimeoutError,
)
_REFUSED = (
    errors.AuthenticationFailedError,
    errors.AuthenticationMethodNotSupported,
    errors.SaslAuthenticationFailed,
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
    errors.TopicAuthorizationFailedError,
    errors.GroupAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
    errors.TransactionalIdAuthorizationFailed,
    errors.InvalidTopicError,
    errors.InvalidPartitionsError,
    errors.InvalidReplicationFactorError,
    errors.InvalidConfigurationError,
    errors.PolicyViolationError,
    errors.InvalidGroupIdError,
    errors.InvalidSessionTimeoutError,
    errors.InconsistentGroupProtocolError,
    errors.OffsetMetadataTooLargeError,
    errors.UnsupportedVersionError,
    errors.IncompatibleBrokerVersion,
    errors.UnsupportedCodecError,
    errors.SecurityDisabled,
    ssl.SSLCertVerificationError,
)
_COMMIT_REFUSED = (
    errors.CommitFailedError,
    errors.IllegalStateError,
    errors.UnknownMemberIdError,
    errors.IllegalGenerationError,
    errors.RebalanceInProgressError,
)
_TOO_LARGE = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)
# A fresh producer cures it: sequence numbers that are lost, or a producer that was retired meanwhile.
_FRESH_PRODUCER = (
    errors.ProducerClosed,
    errors.OutOfOrderSequenceNumber,
    errors.UnknownProducerId,
    errors.InvalidProducerEpoch,
    errors.InvalidProducerIdMapping,
    errors.ProducerFenced,
)


def mapped(error: BaseException, doing: str) -> BrokerError:
    """The library's and the system's errors in the port's words."""
    if isinstance(error, BrokerError):
        return error
    text = f"{doing}: {_said(error)}"
    if isinstance(error, _COMMIT_REFUSED):
        return CommitRefused(text)
    if isinstance(error, _TOO_LARGE):
        return MessageTooLarge(text)
    if isinstance(error, _REFUSED):
        return BrokerRefused(text)
    if isinstance(error, _UNAVAILABLE) or getattr(error, "retriable", False):
        return BrokerUnavailable(text)
    return BrokerError(text)


def _said(error: BaseException) -> str:
    """One line; the library's errors often say little more than their name."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"the certificate was not accepted: {error.verify_message}"
        case ConnectionRefusedError():
            return "connection refused"
        case socket.gaierror():
            return f"the name can't be resolved ({error.strerror})"
        case TimeoutError() if not str(error):
            return "no answer in time"
        case errors.CommitFailedError():
            return "the group has rebalanced meanwhile"
        case errors.BrokerResponseError():
            said = ": ".join(str(part) for part in error.args) or error.description.split(". ")[0]
            return f"{type(error).__name__} ({error.errno}): {said.strip().rstrip('.')}"
    # `str` of the library's own errors begins with the class's name, or is that name alone.
    return str(error).strip() or type(error).__name__


def client_options(servers: Sequence[str], settings: KafkaSettings) -> dict[str, Any]:
    """What every client of the library is made with. Reads the TLS files; BrokerRefused if it can't."""
    protocol = settings.security_protocol.upper()
    options: dict[str, Any] = {
        "bootstrap_servers": list(servers),
        "client_id": settings.client_id,
        "request_timeout_ms": _ms(settings.request_timeout),
        "retry_backoff_ms": _RETRY_BACKOFF_MS,
        "security_protocol": protocol,
    }
    if protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(settings)
    if protocol.startswith("SASL"):
        password = settings.sasl_password
        options["sasl_mechanism"] = settings.sasl_mechanism
        options["sasl_plain_username"] = settings.sasl_username
        options["sasl_plain_password"] = None if password is None else password.get_secret_value()
    return options


def _ssl_context(settings: KafkaSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca_file)
    except (OSError, ssl.SSLError) as error:
        raise BrokerRefused(f"kafka.tls_ca_file {settings.tls_ca_file}: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.tls_cert_file is not None:
        password = settings.tls_key_password
        try:
            context.load_cert_chain(
                settings.tls_cert_file,
                settings.tls_key_file,
                # Never None: OpenSSL would ask for it on the terminal.
                "" if password is None else password.get_secret_value(),
            )
        except (OSError, ssl.SSLError) as error:
            raise BrokerRefused(
                f"kafka.tls_cert_file {settings.tls_cert_file} with its key: {error}"
            ) from error
    return context


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _pause(tries: int) -> float:
    return _PAUSES[min(tries, len(_PAUSES) - 1)]


class _Thin(logging.Filter):
    """Of the library's log lines that differ in their arguments only, one every ten seconds."""

    INTERVAL = 10.0
    # Part of every rebalance, and of every stop.
    USUAL = (
        "Heartbeat failed for group %s because it is rebalancing",
        "Sending username and password in the clear",
    )

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg in self.USUAL:
            return False
        now = time.monotonic()
        key = (record.name, str(record.msg)[:80])
        since, held = self._seen.get(key, (float("-inf"), 0))
        if now - since < self.INTERVAL:
            self._seen[key] = (since, held + 1)
            return False
        if len(self._seen) > 1000:
            self._seen.clear()
        self._seen[key] = (now, 0)
        if held:
            record.msg = f"{record.getMessage()} (and {held} more like it)"
            record.args = ()
        return True


_thin = _Thin()


def _thin_out_logs() -> None:
    # A filter holds for its own logger only, not for those below it.
    for name in [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "aiokafka"]:
        logger = logging.getLogger(name)
        if _thin not in logger.filters:
            logger.addFilter(_thin)


# ---------------------------------------------------------------------------------------------
# Writing.
# ---------------------------------------------------------------------------------------------


class _Call:
    """One `produce()`: `pending` messages have not been acknowledged (rule 4)."""

    __slots__ = ("future", "pending")

    def __init__(self, pending: int) -> None:
        self.pending = pending
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class _Chunk:
    """One call's messages for one partition; those before `at` have been sent."""

    __slots__ = ("at", "call", "messages")

    def __init__(self, call: _Call, messages: list[Message]) -> None:
        self.call = call
        self.messages = messages
        self.at = 0


class _Lane:
    """The way into one partition."""

    __slots__ = ("busy", "limit", "partition", "queue", "topic")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.queue: deque[_Chunk] = deque()
        self.limit = BATCH_BYTES  # smaller once the topic has refused a batch
        self.busy = False

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}"


def _size(message: Message) -> int:
    size = len(message.value or b"") + len(message.key or b"") + _OVERHEAD
    for name, value in message.headers:
        size += len(name) + len(value) + 8
    return size


class KafkaBroker:
    """A connection to a Kafka cluster; `servers` are `host:port`."""

    def __init__(self, servers: Sequence[str], settings: KafkaSettings) -> None:
        self.settings = settings
        self._servers = list(servers)
        self._tasks = Tasks()
        self._options: dict[str, Any] = {}
        self._producer: AIOKafkaProducer | None = None
        self._producing = asyncio.Lock()
        self._lanes: dict[tuple[str, int], _Lane] = {}
        self._sticky = StickyPartitions()
        self._admin: AIOKafkaAdminClient | None = None
        self._reader: AIOKafkaConsumer | None = None
        self._reading = asyncio.Lock()
        self._consumers: set[KafkaConsumer] = set()
        self._problem: str | None = "not connected yet"
        self._connected = False
        _thin_out_logs()

    @property
    def problem(self) -> str | None:
        return self._problem

    @property
    def options(self) -> Mapping[str, Any]:
        """What to make another client with."""
        return self._options

    async def connect(self) -> None:
        if self._connected:
            return
        self._options = client_options(self._servers, self.settings)
        tries = 0
        while not self._connected:
            try:
                await self._probe()
                await self._live_producer()
                self._connected = True
            except BrokerUnavailable as error:
                pause = _pause(tries)
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
            "request_timeout_ms": _ms(min(_CONNECT_TIMEOUT, self.settings.request_timeout))
        }
        del options["bootstrap_servers"], options["retry_backoff_ms"]
        found: list[BrokerError] = []
        for host, port, _ in collect_hosts(self._servers):
            try:
                connection = await create_conn(host, port, **options)
            except (errors.KafkaError, OSError, TimeoutError, ValueError) as error:
                found.append(mapped(error, f"{host}:{port}"))
            else:
                connection.close()
                return
        for problem in found:
            if isinstance(problem, BrokerRefused):
                raise problem
        raise BrokerUnavailable("; ".join(str(problem) for problem in found))

    async def _watch(self) -> None:
        """Ask every few seconds whether a broker answers; where none does, ask the bootstrap servers."""
        tries = 0
        while True:
            await asyncio.sleep(_pause(tries) if tries else _WATCH_INTERVAL)
            try:
                await self._check()
            except BrokerError as error:
                pause = _pause(tries)
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

    async def _check(self) -> None:
        producer = await self._live_producer()
        client: AIOKafkaClient = producer.client
        problem = "no broker is known"
        for broker in client.cluster.brokers():
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT):
                    await client.send(broker.nodeId, ApiVersionRequest())
            except (errors.KafkaError, OSError, TimeoutError) as error:
                problem = f"{broker.host}:{broker.port}: {_said(error)}"
            else:
                return
        raise BrokerUnavailable(f"no broker of the cluster answers ({problem})")

    async def _bootstrap_again(self) -> None:
        """Learn the brokers' addresses anew: all of them may have moved."""
        clients = [consumer.client for consumer in self._consumers]
        if self._producer is not None:
            clients.append(self._producer.client)
        for client in clients:
            if client is not None:
                with contextlib.suppress(errors.KafkaError, OSError, TimeoutError):
                    await client.bootstrap()

    async def close(self) -> None:
        for consumer in list(self._consumers):
            await consumer.stop()
        await self._tasks.stop()
        self._connected = False
        self._problem = "closed"
        producer, self._producer = self._producer, None
        if producer is not None:
            await _stop_producer(producer, flush=1.0)  # nobody waits for it any more
        await self._drop_reader()
        await self._drop_admin()
        for lane in self._lanes.values():
            for chunk in lane.queue:
                chunk.call.fail(BrokerUnavailable("the connection was closed"))
            lane.queue.clear()

    def consumer(self, topics: Collection[str], group: str, listener: AssignmentListener) -> KafkaConsumer:
        consumer = KafkaConsumer(self, topics, group, listener)
        self._consumers.add(consumer)
        return consumer

    def forget(self, consumer: KafkaConsumer) -> None:
        """It has stopped."""
        self._consumers.discard(consumer)

    # Writing.

    async def _live_producer(self) -> AIOKafkaProducer:
        """The producer, a new one if the last was retired."""
        async with self._producing:
            if self._producer is not None:
                return self._producer
            compression = self.settings.compression
            try:
                producer = AIOKafkaProducer(
                    **self._options,
                    enable_idempotence=True,
                    acks="all",
                    compression_type=None if compression == "none" else compression,
                    max_batch_size=BATCH_BYTES,
                )
            except RuntimeError as error:
                raise BrokerRefused(f"kafka.compression {compression}: {error} (install cramjam)") from error
            try:
                async with asyncio.timeout(self.settings.request_timeout):
                    await producer.start()
            except BaseException as error:
                await _stop_producer(producer)
                if isinstance(error, errors.KafkaError | OSError | TimeoutError):
                    raise mapped(error, "starting the producer") from error
                raise
            self._producer = producer
            return producer

    def _retire(self, producer: AIOKafkaProducer) -> None:
        """A batch of it failed: give it no more. What it has under way for other partitions, it ends."""
        if self._producer is producer:
            self._producer = None
            self._tasks.start(
                _stop_producer(producer, flush=self.settings.request_timeout), "retire a producer"
            )

    async def produce(self, messages: Sequence[Message]) -> None:
        if not self._connected:
            raise BrokerUnavailable(self._problem or "not connected")
        if not messages:
            return
        shares: dict[tuple[str, int], list[Message]] = {}
        sizes: dict[str, int] = {}
        for message in messages:
            topic = message.topic
            partitions = sizes.get(topic)
            if partitions is None:
                partitions = sizes[topic] = await self._partitions(topic)
            number = message.partition
            if number is None:
                key = message.key
                if key is None:
                    number = self._sticky.next(topic, _size(message), partitions)
                else:
                    number = partition_of(key, partitions)
            elif not 0 <= number < partitions:
                raise BrokerRefused(f"topic {topic} has no partition {number}")
            share = shares.get((topic, number))
            if share is None:
                shares[topic, number] = [message]
            else:
                share.append(message)
        call = _Call(len(messages))
        for key_, share in shares.items():
            lane = self._lanes.get(key_)
            if lane is None:
                lane = self._lanes[key_] = _Lane(*key_)
            lane.queue.append(_Chunk(call, share))
            if not lane.busy:
                lane.busy = True
                self._tasks.start(self._pump(lane), f"produce {lane}")
        try:
            async with asyncio.timeout(self.settings.request_timeout):
                await call.future
        except TimeoutError:
            raise BrokerUnavailable(
                self._problem or f"no acknowledgement within {self.settings.request_timeout:g} s"
            ) from None

    async def _partitions(self, topic: str) -> int:
        """How many partitions it has."""
        producer = await self._live_producer()
        cluster = producer.client.cluster
        if (known := cluster.partitions_for_topic(topic)) is not None:
            return len(known)
        deadline = time.monotonic() + min(_TOPIC_TIMEOUT, self.settings.request_timeout)
        # Ask without creating it first: the library's own question lets the broker create the topic.
        while not (await self.describe([topic])).get(topic):
            if time.monotonic() > deadline:
                raise BrokerRefused(f"topic {topic} does not exist")
            await asyncio.sleep(0.2)
        try:
            return len(await producer.partitions_for(topic))
        except errors.KafkaError as error:
            raise mapped(error, f"looking for topic {topic}") from error

    async def _pump(self, lane: _Lane) -> None:
        try:
            while lane.queue:
                await self._send(lane)
        except BrokerError as error:
            self._fail(lane, error)
        except Exception as error:
            self._fail(lane, BrokerError(f"writing to {lane} failed: {error!r}"))
            raise
        except asyncio.CancelledError:
            self._fail(lane, BrokerUnavailable("the connection was closed"))
            raise
        finally:
            lane.busy = False

    def _fail(self, lane: _Lane, error: BrokerError) -> None:
        while lane.queue:
            lane.queue.popleft().call.fail(error)

    async def _send(self, lane: _Lane) -> None:
        """Send one batch of what is queued, and settle what it carried."""
        producer = await self._live_producer()
        batch = producer.create_batch()
        taken = self._fill(lane, batch)
        if not taken:
            return
        try:
            future = await producer.send_batch(batch, lane.topic, partition=lane.partition)
            await future
        except (errors.KafkaError, OSError, TimeoutError, AssertionError) as error:
            self._retire(producer)
            self._not_written(lane, batch.size(), taken, error)
        except asyncio.CancelledError:
            for chunk, _ in taken:
                chunk.call.fail(BrokerUnavailable("the connection was closed"))
            raise
        else:
            for chunk, count in taken:
                call = chunk.call
                call.pending -= count
                if not call.pending and not call.future.done():
                    call.future.set_result(None)

    def _fill(self, lane: _Lane, batch: Any) -> list[tuple[_Chunk, int]]:
        """Take from the queue what fits; how many messages of which chunk."""
        taken: list[tuple[_Chunk, int]] = []
        queue = lane.queue
        append = batch.append
        limit = lane.limit if lane.limit < BATCH_BYTES else 0
        while queue:
            chunk = queue[0]
            if chunk.call.future.done():
                queue.popleft()
                continue
            messages = chunk.messages
            start = at = chunk.at
            try:
                for at in range(start, len(messages)):
                    message = messages[at]
                    value = message.value
                    if value is not None and len(value) > LARGEST_MESSAGE:
                        raise MessageTooLarge(  # noqa: TRY301 - handled as what `append` raises
                            f"a message of {len(value)} bytes for {lane} is too large"
                        )
                    if limit and batch.record_count() and batch.size() + _size(message) > limit:
                        break
                    headers = message.headers
                    if (
                        append(
                            timestamp=message.timestamp_ms,
                            key=message.key,
                            value=value,
                            # The library's C code takes nothing but a list.
                            headers=headers if type(headers) is list else list(headers),
                        )
                        is None
                    ):
                        break
                else:
                    at = len(messages)
            except Exception as error:  # noqa: BLE001 - a bad message is its call's problem, not the lane's
                chunk.call.fail(error)
            if at > start:
                taken.append((chunk, at - start))
            chunk.at = at
            if at < len(messages) and not chunk.call.future.done():
                break  # the batch is full
            queue.popleft()
        return taken

    def _not_written(
        self, lane: _Lane, size: int, taken: list[tuple[_Chunk, int]], error: BaseException
    ) -> None:
        count = sum(number for _, number in taken)
        split = isinstance(error, _TOO_LARGE) and count > 1
        if split:
            lane.limit = max(1, min(lane.limit, size) // 2)
            log.info(
                "batch refused as too large, splitting it", partition=str(lane), bytes=size, records=count
            )
        if split or isinstance(error, _FRESH_PRODUCER):
            for chunk, number in reversed(taken):
                chunk.at -= number
                if not lane.queue or lane.queue[0] is not chunk:
                    lane.queue.appendleft(chunk)
            return
        problem = mapped(error, f"writing to {lane}")
        log.warning("write failed", partition=str(lane), records=count, error=str(problem))
        for chunk, _ in taken:
            chunk.call.fail(problem)

    # Reading one record.

    async def read(self, partition: TopicPartition, offset: int) -> Record | None:
        if offset < 0:
            return None
        key = KafkaPartition(*partition)
        return await self._with_reader(
            lambda reader: self._read(reader, key, offset), f"reading {key[0]}-{key[1]}"
        )

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
                    return record if record.offset == offset else None
                if await reader.position(key) > offset:
                    return None  # compacted away, or a transaction's marker
        finally:
            reader.pause(key)  # or it would go on fetching what nobody reads

    async def _with_reader(self, ask: Callable[[AIOKafkaConsumer], Awaitable[T]], doing: str) -> T:
        """Ask the consumer without a group; a new one after an error."""
        if not self._connected:
            raise BrokerUnavailable(self._problem or "not connected")
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
                            await _stop_consumer(reader)
                            raise
                        self._reader = reader
                    return await ask(self._reader)
            except (errors.KafkaError, OSError, TimeoutError) as error:
                await self._drop_reader()
                raise mapped(error, doing) from error

    async def _drop_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            await _stop_consumer(reader)

    # Topics.

    async def describe(self, topics: Sequence[str] | None) -> dict[str, list[int]]:
        """The partitions of each of these topics that exists (None: of all but the broker's own), without creating any.

        A partition without a leader counts as well.
        """
        producer = await self._live_producer()
        client: AIOKafkaClient = producer.client
        request = MetadataRequest(None if topics is None else list(topics), allow_auto_topic_creation=False)
        problem: BaseException = errors.NoBrokersAvailable()
        for _ in range(3):
            node = client.get_random_node()
            if node is None:
                break
            try:
                response = await client.send(node, request)
            except (errors.KafkaError, OSError, TimeoutError) as error:
                problem = error
                await asyncio.sleep(0.1)
                continue
            found: dict[str, list[int]] = {}
            for code, name, internal, partitions in response.topics:
                error_type = errors.for_code(code)
                if (
                    error_type is errors.TopicAuthorizationFailedError
                    or error_type is errors.InvalidTopicError
                ):
                    raise BrokerRefused(f"topic {name}: {error_type.description}")
                if partitions and not (topics is None and (internal or name.startswith("__"))):
                    found[name] = sorted(partition[1] for partition in partitions)
            return found
        raise mapped(problem, "asking for topics") from problem

    async def ensure_topics(self, topics: Sequence[TopicSpec], *, create: bool) -> Sequence[str]:
        found = await self.describe([spec.name for spec in topics])
        missing = [spec for spec in topics if spec.name not in found]
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
        if admin._client.cluster.controller is None:
            await admin._client.force_metadata_update()
            if admin._client.cluster.controller is None:
                raise BrokerUnavailable("the cluster has no controller just now")
        defaults: Mapping[str, str] = {}
        for attempt in range(3):
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
                elif error.retriable and attempt < 2:
                    again = True
                else:
                    detail = said[0] if said and said[0] else error.description
                    raise BrokerRefused(f"topic {name} could not be created: {detail}")
            if not again:
                return
            await asyncio.sleep(0.5)

    async def _broker_defaults(self, admin: AIOKafkaAdminClient) -> Mapping[str, str]:
        cluster = await admin.describe_cluster()
        wanted = dict.fromkeys(("num.partitions", "default.replication.factor"))
        node = str(cluster["brokers"][0]["node_id"])
        (response,) = await admin.describe_configs([ConfigResource(ConfigResourceType.BROKER, node, wanted)])
        return {entry[0]: entry[1] for resource in response.resources for entry in resource[4]}

    async def topics(self, group: str | None = None) -> Sequence[TopicInfo]:
        found = await self.describe(None)
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
        if not self._connected:
            raise BrokerUnavailable(self._problem or "not connected")
        try:
            async with asyncio.timeout(self.settings.request_timeout):
                if self._admin is None:
                    admin = AIOKafkaAdminClient(**self._options)
                    try:
                        await admin.start()
                    except BaseException:
                        await admin.close()
                        raise
                    self._admin = admin
                return await ask(self._admin)
        except (errors.KafkaError, OSError, TimeoutError) as error:
            await self._drop_admin()
            raise mapped(error, doing) from error

    async def _drop_admin(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            with contextlib.suppress(errors.KafkaError, OSError, TimeoutError):
                await admin.close()


async def _stop_producer(producer: AIOKafkaProducer, flush: float = _STOP_TIMEOUT) -> None:
    """Let it end what it has under way, for `flush` seconds."""
    try:
        async with asyncio.timeout(flush):
            await producer.stop()
    except (errors.KafkaError, OSError, TimeoutError, asyncio.CancelledError) as error:
        with contextlib.suppress(errors.KafkaError, OSError):
            await producer._sender.close()
            await producer.client.close()
        # By itself it leaves those who wait for a batch waiting.
        accumulator = producer._message_accumulator
        left = [
            *accumulator._pending_batches,
            *(b for batches in accumulator._batches.values() for b in batches),
        ]
        accumulator.fail_all(errors.ProducerClosed())
        for batch in left:
            batch.future.exception()  # nobody may be waiting any more, and that is no error
        if isinstance(error, asyncio.CancelledError):
            raise


async def _stop_consumer(consumer: AIOKafkaConsumer) -> None:
    """Leave the group, if the broker lets us know in time; close the connections in any case."""
    try:
        async with asyncio.timeout(_STOP_TIMEOUT):
            await consumer.stop()
    except (errors.KafkaError, OSError, TimeoutError, asyncio.CancelledError) as error:
        log.warning("a consumer did not stop cleanly", error=_said(error))
        with contextlib.suppress(errors.KafkaError, OSError, asyncio.CancelledError):
            if consumer._fetcher is not None:
                await consumer._fetcher.close()
            await consumer._client.close()
        if isinstance(error, asyncio.CancelledError):
            raise


# ---------------------------------------------------------------------------------------------
# Consuming.
# ---------------------------------------------------------------------------------------------


class _Bridge(ConsumerRebalanceListener):  # type: ignore[misc] # the library has no types
    """Passes the library's calls on, as long as its consumer is the current one."""

    def __init__(self, owner: KafkaConsumer) -> None:
        self.owner: KafkaConsumer | None = owner

    async def on_partitions_revoked(self, revoked: Any) -> None:  # noqa: ARG002 - all of it
        if self.owner is not None:
            await self.owner.revoke()

    async def on_partitions_assigned(self, assigned: Any) -> None:
        if self.owner is not None:
            await self.owner.take(assigned)


class KafkaConsumer:
    """A member of a group."""

    def __init__(
        self, broker: KafkaBroker, topics: Collection[str], group: str, listener: AssignmentListener
    ) -> None:
        self.group = group
        self._broker = broker
        self._settings = broker.settings
        self._topics = sorted(topics)
        self._listener = listener
        self._tasks = Tasks()
        self._consumer: AIOKafkaConsumer | None = None
        self._bridge: _Bridge | None = None
        self._mine: frozenset[TopicPartition] = frozenset()
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        # What getmany is asked for: () is everything, None nothing.
        self._wanted: tuple[KafkaPartition, ...] | None = ()
        self._open = False
        self._stopped = False
        self._restarting = False
        self._joined = asyncio.Event()
        self._wake = asyncio.Event()
        self._waiting: asyncio.Timeout | None = None
        self._commits: set[asyncio.Timeout] = set()
        self._failure: BaseException | None = None
        self._problem: str | None = "not started yet"
        self._trouble: str | None = None  # of the last fetch

    @property
    def client(self) -> AIOKafkaClient | None:
        return None if self._consumer is None else self._consumer._client

    @property
    def problem(self) -> str | None:
        if self._problem is not None:
            return self._problem
        if self._trouble is not None:
            return self._trouble
        consumer = self._consumer
        if consumer is not None and consumer._coordinator.coordinator_id is None:
            return f"the coordinator of group {self.group} can't be reached"
        return None

    # Joining and leaving.

    async def start(self) -> None:
        tries = 0
        while not self._stopped:
            try:
                await self._start()
            except BrokerUnavailable as error:
                pause = _pause(tries)
                tries += 1
                self._problem = str(error)
                log.warning(
                    "can't join the group, trying again", group=self.group, error=str(error), tries=tries
                )
                await asyncio.sleep(pause)
            except BrokerRefused as error:
                self._problem = str(error)
                raise
            else:
                return

    async def _start(self) -> None:
        found = await self._broker.describe(self._topics)
        if missing := [topic for topic in self._topics if topic not in found]:
            raise BrokerUnavailable(f"topic {', '.join(missing)} does not exist")
        settings = self._settings
        options = dict(self._broker.options)
        # The answer to joining comes when every member has joined, which may take the rebalance timeout.
        options["request_timeout_ms"] = _ms(max(settings.request_timeout, settings.rebalance_timeout + 5))
        consumer = AIOKafkaConsumer(
            **options,
            group_id=self.group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",  # where retention has passed us by; `_starts` decides the rest
            isolation_level="read_committed",
            partition_assignment_strategy=(RoundRobinPartitionAssignor,),
            fetch_max_wait_ms=_ms(settings.fetch_max_wait),
            fetch_max_bytes=settings.fetch_max_bytes,
            max_partition_fetch_bytes=settings.fetch_max_bytes_per_partition,
            session_timeout_ms=_ms(settings.session_timeout),
            heartbeat_interval_ms=_ms(settings.heartbeat_interval),
            rebalance_timeout_ms=_ms(settings.rebalance_timeout),
            # The heartbeat comes from the loop that does the work: a hung program has none. And a
            # cancelled getmany leaves the count wrong that this goes by.
            max_poll_interval_ms=_NEVER_MS,
        )
        bridge = _Bridge(self)
        self._consumer, self._bridge = consumer, bridge
        self._problem = f"joining group {self.group}"
        consumer.subscribe(self._topics, listener=bridge)
        try:
            await consumer.start()
        except BaseException as error:
            bridge.owner = None
            self._consumer = None
            await _stop_consumer(consumer)
            if isinstance(error, errors.KafkaError | OSError | TimeoutError):
                raise mapped(error, f"joining group {self.group}") from error
            raise
        await self._joined.wait()

    async def stop(self) -> None:
        self._stopped = True
        self._open = False
        self._problem = "stopped"
        self._interrupt()
        if self._bridge is not None:
            self._bridge.owner = None
        await self._tasks.stop()
        consumer, self._consumer = self._consumer, None
        self._drop()
        if consumer is not None:
            await _stop_consumer(consumer)
        self._broker.forget(self)

    def _dead(self, consumer: AIOKafkaConsumer) -> bool:
        """One of the library's background tasks has died; it won't tell."""
        return bool(consumer._coordinator._coordination_task.done() or consumer._fetcher._fetch_task.done())

    async def _restart(self) -> None:
        """Begin anew with another consumer; the partitions are lost until then."""
        log.error("the consumer has died, starting another", group=self.group)
        consumer, self._consumer = self._consumer, None
        if self._bridge is not None:
            self._bridge.owner = None
        self._joined.clear()
        try:
            await self.revoke()
            if consumer is not None:
                await _stop_consumer(consumer)
            await self.start()
        except Exception as error:  # noqa: BLE001 - the owner has to know, whatever it is
            self._failure = error
        finally:
            self._restarting = False

    # What the group does with it: called by the library.

    async def revoke(self) -> None:
        """Tell the listener, then let go of everything."""
        self._open = False
        self._problem = "the group is rebalancing"
        self._interrupt()
        if self._mine:
            try:
                await self._listener.on_revoked(self._mine)
            except Exception as error:
                log.exception("on_revoked failed", group=self.group)
                self._failure = error
        self._drop()

    def _drop(self) -> None:
        """Let go of everything at once; commits are refused from now on."""
        self._open = False
        self._mine = frozenset()
        self._positions = {}
        self._paused = set()
        self._wanted = ()
        now = asyncio.get_running_loop().time()
        for commit in self._commits:
            if not commit.expired():
                commit.reschedule(now)

    async def take(self, assigned: Collection[KafkaPartition]) -> None:
        """These are its partitions now."""
        consumer = self._consumer
        if self._stopped or consumer is None:
            return
        try:
            starts = await self._starts(consumer, list(assigned))
        except (errors.KafkaError, OSError, TimeoutError) as error:
            problem = mapped(error, "reading committed offsets")
            self._problem = str(problem)
            log.warning("can't take over the partitions, joining again", group=self.group, error=str(problem))
            consumer._coordinator.request_rejoin()
            return
        for partition, position in starts.items():
            consumer.seek(partition, position.offset)
        self._mine = frozenset(TopicPartition(*partition) for partition in starts)
        self._positions = {
            TopicPartition(*partition): position.offset for partition, position in starts.items()
        }
        try:
            await self._listener.on_assigned({TopicPartition(*p): position for p, position in starts.items()})
        except Exception as error:
            log.exception("on_assigned failed", group=self.group)
            self._failure = error
        if self._consumer is not consumer:
            return  # stopped meanwhile
        self._trouble = self._problem = None
        self._open = True
        self._joined.set()
        self._interrupt()

    async def _starts(
        self, consumer: AIOKafkaConsumer, partitions: list[KafkaPartition]
    ) -> dict[KafkaPartition, Position]:
        """Where reading starts, with the metadata of the commit. No heartbeat is sent meanwhile."""
        if not partitions:
            return {}
        async with asyncio.timeout(self._settings.session_timeout / 2):
            committed, first, end = await asyncio.gather(
                consumer._coordinator.fetch_committed_offsets(partitions),
                consumer.beginning_offsets(partitions),
                consumer.end_offsets(partitions),
            )
        starts = {}
        for partition in partitions:
            found = committed.get(partition)
            if found is None:
                latest = self._settings.offset_reset == "latest"
                starts[partition] = Position(end[partition] if latest else first[partition])
            elif first[partition] <= found.offset <= end[partition]:
                starts[partition] = Position(found.offset, found.metadata or "")
            else:
                # Deleted by retention, or the topic was made anew: everything that is there is unread.
                log.warning(
                    "the committed offset is gone, starting at the earliest",
                    topic=partition.topic,
                    partition=partition.partition,
                    committed=found.offset,
                    earliest=first[partition],
                    latest=end[partition],
                )
                starts[partition] = Position(first[partition])  # what was noted of that offset holds no more
        return starts

    # What its owner does with it.

    async def poll(self, timeout: float, limit: int) -> Sequence[tuple[TopicPartition, Sequence[Record]]]:
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        while True:
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise BrokerError(
                    f"group {self.group}: a change of assignment failed: {failure}"
                ) from failure
            if self._stopped:
                return ()
            consumer, wanted = self._consumer, self._wanted
            left = max(0.0, deadline - clock())
            if self._open and consumer is not None and wanted is not None:
                try:
                    fetched = await self._getmany(
                        consumer, wanted, left, min(limit, self._settings.max_poll_records)
                    )
                except (errors.KafkaError, OSError) as error:
                    await self._fetch_failed(mapped(error, "fetching"), min(left, 1.0))
                    if left:
                        continue
                    return ()
                if fetched:
                    self._trouble = None
                    if batches := self._accept(consumer, fetched):
                        return batches
                    continue
            if (
                consumer is not None
                and not self._restarting
                and consumer._coordinator
                and self._dead(consumer)
            ):
                self._restarting = True
                self._tasks.start(self._restart(), f"restart {self.group}")
            left = deadline - clock()
            if left <= 0:
                await asyncio.sleep(0)
                return ()
            if not self._open or self._wanted is None:
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, 1.0)):
                        await self._wake.wait()

    async def _getmany(
        self, consumer: AIOKafkaConsumer, wanted: tuple[KafkaPartition, ...], timeout: float, limit: int
    ) -> dict[Any, list[Any]]:
        """What is there, or comes within `timeout`; nothing when `_interrupt` was called.

        Safe to interrupt: records leave the library's buffer in the same step of the task that returns them.
        """
        if not timeout:
            return await consumer.getmany(*wanted, timeout_ms=0, max_records=limit)  # type: ignore[no-any-return]
        try:
            # The library waits for the end of a rebalance whatever timeout it is given.
            async with asyncio.timeout(timeout + 0.1) as self._waiting:
                return await consumer.getmany(  # type: ignore[no-any-return]
                    *wanted, timeout_ms=timeout * 1000, max_records=limit
                )
        except TimeoutError:
            return {}
        finally:
            self._waiting = None

    def _accept(
        self, consumer: AIOKafkaConsumer, fetched: dict[Any, list[Any]]
    ) -> list[tuple[TopicPartition, Sequence[Record]]]:
        batches: list[tuple[TopicPartition, Sequence[Record]]] = []
        positions = self._positions
        for partition, records in fetched.items():
            offset = records[0].offset
            if partition in self._paused:
                consumer.seek(partition, offset)  # paused while we waited: it comes again after resume
                continue
            if offset < positions[partition]:
                raise BrokerError(
                    f"{partition.topic}-{partition.partition} was cut or its topic made anew: offset {offset} follows"
                    f" {positions[partition] - 1}; start again to read it from its beginning"
                )
            positions[partition] = records[-1].offset + 1
            batches.append((partition, records))
        return batches

    async def _fetch_failed(self, error: BrokerError, pause: float) -> None:
        if self._trouble != str(error):
            log.warning("can't fetch, trying again", group=self.group, error=str(error))
        self._trouble = str(error)
        await asyncio.sleep(pause)

    def _interrupt(self) -> None:
        """Let a waiting `poll` look again at what there is."""
        self._wake.set()
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(asyncio.get_running_loop().time())

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        self._paused.update(partition for partition in partitions if partition in self._mine)
        self._choose()

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        before = len(self._paused)
        self._paused.difference_update(partitions)
        if len(self._paused) != before:
            self._choose()
            self._interrupt()

    def _choose(self) -> None:
        if not self._paused:
            self._wanted = ()
        else:
            self._wanted = tuple(KafkaPartition(*p) for p in self._mine if p not in self._paused) or None

    async def commit(self, positions: Mapping[TopicPartition, Position]) -> None:
        consumer = self._consumer
        if not positions:
            return
        for topic, partition in positions:
            if consumer is None or (topic, partition) not in self._mine:
                raise CommitRefused(f"partition {topic}-{partition} is not assigned to this member")
        assert consumer is not None  # noqa: S101 - for the type checker: the loop has run
        offsets = {
            KafkaPartition(*key): (position.offset, position.metadata) for key, position in positions.items()
        }
        commit = asyncio.timeout(self._settings.request_timeout)
        self._commits.add(commit)
        try:
            async with commit:
                await consumer.commit(offsets)
        except TimeoutError as error:
            if not self._mine.issuperset(positions):
                raise CommitRefused("the partitions were given up before the commit was through") from error
            raise BrokerUnavailable(self.problem or "no answer to a commit in time") from error
        except (errors.KafkaError, OSError) as error:
            raise mapped(error, "committing") from error
        finally:
            self._commits.discard(commit)

    def assignment(self) -> Collection[TopicPartition]:
        return self._mine

    def lag(self) -> Mapping[TopicPartition, int]:
        consumer = self._consumer
        if consumer is None or not self._open:
            return {}
        behind = {}
        for partition in self._mine:
            end = consumer.highwater(KafkaPartition(*partition))
            if end is not None:
                behind[partition] = max(0, end - self._positions[partition])
        return behind
