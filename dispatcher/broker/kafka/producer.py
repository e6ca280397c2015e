"""Writing to Kafka: batches per partition, on a producer of aiokafka that is replaced when it has failed.

- The library's `send` costs 30 us a record; filling a batch and sending it costs 2.5 us. Messages queue per partition.
  A batch takes what is queued when the batch before it was acknowledged, whichever call it came from.
- The library never uses a failed batch's sequence numbers again, so the broker answers "out of order" to its idempotent
  producer for that partition from then on. Nobody can tell whether a batch that failed after retries was written, so
  rolling the numbers back could make the broker drop new data as duplicates. Hence a failed batch retires the library's
  producer, and the next producer gets a fresh id. Where that doesn't help, the pauses between fresh producers grow, and
  `problem` names what is wrong.
- The library waits for ever for a broker that is away. `produce` gives up after `request_timeout`.
- The library repeats what a broker refuses for now (too few replicas in sync, a full disk), and says so in log lines only.
  So `_watch` looks at the answers on their way to the library: `problem` names what is refused, for as long as it is.

Rules:

1. Per partition one batch is under way at a time (`_Lane.busy`): order is kept, and a batch is built
   as late as possible.
2. A `_Call` ends once: with the last of its messages acknowledged, or by its caller giving up, or after the first error, once
   nothing of it is under way any more. What is still queued of a call that failed or ended is not sent.
3. A retired producer of the library is given no more, and ends what it has under way for other partitions.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import structlog
from aiokafka import AIOKafkaProducer, errors
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest

from dispatcher.broker.base import (
    Acknowledged,
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    Entry,
    Message,
    MessageTooLarge,
)
from dispatcher.broker.kafka.client import TOO_LARGE, describe, mapped, reason_of
from dispatcher.broker.kafka.wire.bulk import by_partition, fill_bulk
from dispatcher.broker.partitioning import Partitioner, partition_of
from dispatcher.runtime.backoff import pause_after
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import KafkaSettings

log = structlog.get_logger(__name__)

# Enough for 100 to 250 records of a kilobyte or two: at 2 ms per acknowledgement 100,000 records/s per partition.
BATCH_BYTES = 256 * 1024
# The broker's own limit (message.max.bytes) is usually 1 MiB and refuses cleanly. What exceeds
# socket.request.max.bytes (100 MiB) it answers by closing the connection, and that would be tried for ever.
LARGEST_MESSAGE = 64 << 20
_OVERHEAD = 100  # bytes of batch header and record framing
_STOP_TIMEOUT = 5.0
_ELECTION = 1.0  # seconds for which a refusal is nothing to tell of: a new topic, a leader that moves
_REPEATED = 10.0  # seconds; the library repeats every quarter of one, or when the broker has taken its time
_TOPIC_TIMEOUT = 10.0  # how long a topic that the cluster doesn't know is asked for again
# A fresh producer cures it: sequence numbers that are lost, or a producer that was retired meanwhile.
_FRESH_PRODUCER = (
    errors.ProducerClosed,
    errors.OutOfOrderSequenceNumber,
    errors.UnknownProducerId,
    errors.InvalidProducerEpoch,
    errors.InvalidProducerIdMapping,
    errors.ProducerFenced,
)


class _Call:
    """One `produce()`: `pending` messages have not been acknowledged (rule 2), `under_way` have been sent."""

    __slots__ = ("acknowledged", "error", "future", "pending", "under_way")

    def __init__(self, pending: int, acknowledged: Acknowledged | None) -> None:
        self.pending = pending
        self.under_way = 0
        self.acknowledged = acknowledged
        self.error: Exception | None = None
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def over(self) -> bool:
        """Nothing more of it is to be sent."""
        return self.error is not None or self.future.done()

    def fail(self, error: Exception) -> None:
        if self.error is None:
            self.error = error
        self.returned(0)

    def returned(self, count: int) -> None:
        """So many are no longer under way, whatever has become of them."""
        self.under_way -= count
        if not self.under_way and self.error is not None and not self.future.done():
            self.future.set_exception(self.error)

    def written(self, numbers: Sequence[int]) -> None:
        """These are acknowledged."""
        self.pending -= len(numbers)
        if self.acknowledged is not None:
            self.acknowledged(numbers)
        if not self.pending and not self.future.done():
            self.future.set_result(None)
        self.returned(len(numbers))


class _Refused:
    """A partition that takes nothing for now, although its broker answers. Times of the monotonic clock."""

    __slots__ = ("last", "since", "told", "why")

    def __init__(self, since: float) -> None:
        self.since = self.last = since
        self.why = ""
        self.told = False


class _Chunk:
    """One call's messages for one partition, with their numbers in the call; those before `at` have been sent."""

    __slots__ = ("at", "call", "messages", "numbers")

    def __init__(self, call: _Call) -> None:
        self.call = call
        self.messages: list[Message] = []
        self.numbers: list[int] = []
        self.at = 0


class _Lane:
    """The way into one partition."""

    __slots__ = ("busy", "fenced", "limit", "partition", "queue", "topic", "why")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.queue: deque[_Chunk] = deque()
        self.limit = BATCH_BYTES  # smaller once the topic has refused a batch
        self.busy = False
        self.fenced = 0  # batches one after the other, each of which took a fresh producer
        self.why = ""  # the last of them was refused

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}"


def _size(message: Message) -> int:
    size = len(message.value or b"") + len(message.key or b"") + _OVERHEAD
    for name, value in message.headers:
        size += len(name) + len(value) + 8
    return size


# Long: both ways to write share the library's producer, and a failed batch of either retires it for both.
class KafkaProducer:
    """Writes to one cluster. Owns the library's producers, one after the other."""

    def __init__(
        self, options: Mapping[str, Any], settings: KafkaSettings, problem: Callable[[], str | None]
    ) -> None:
        """`options` are what to make a client of the library with; `problem` says why there is no answer."""
        self._options = options
        self._settings = settings
        self._problem = problem
        self._tasks = Tasks()
        self._live: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        self._lanes: dict[tuple[str, int], _Lane] = {}
        self._partitioner = Partitioner(_size)
        self._refused: dict[tuple[str, int], _Refused] = {}  # by partition, until it takes something again

    @property
    def problem(self) -> str | None:
        """What a partition refuses for now, in one sentence."""
        now = time.monotonic()
        # What is no longer repeated was given up by whoever wrote it.
        for refused in self._refused.values():
            if refused.told and now - refused.last < _REPEATED:
                return refused.why
        for lane in self._lanes.values():
            if lane.fenced > 1 and lane.queue:
                return f"writing to {lane}: {lane.why}"
        return None

    @property
    def client(self) -> AIOKafkaClient | None:
        """The library's client of the producer in use, if there is one just now."""
        return None if self._live is None else self._live.client

    async def live_client(self) -> AIOKafkaClient:
        """The same; a producer is started where there is none."""
        producer = await self._live_producer()
        return producer.client

    async def close(self) -> None:
        """End at once; the calls that wait fail."""
        await self._tasks.stop()
        producer, self._live = self._live, None
        if producer is not None:
            await _stop_producer(producer, flush=1.0)  # nobody waits for it any more
        for lane in self._lanes.values():
            self._fail(lane, BrokerUnavailable("the connection was closed"))

    async def _live_producer(self) -> AIOKafkaProducer:
        """The producer, a new one if the last was retired."""
        async with self._starting:
            if self._live is not None:
                return self._live
            compression = self._settings.compression
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
                async with asyncio.timeout(self._settings.request_timeout):
                    await producer.start()
            except BaseException as error:
                await _stop_producer(producer)
                if isinstance(error, errors.KafkaError | OSError | TimeoutError):
                    raise mapped(error, "starting the producer") from error
                raise
            producer.client.send = self._watch(producer.client.send)
            self._live = producer
            return producer

    def _watch(self, send: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """Look at what brokers answer to batches (once per batch), on its way to the library."""

        async def watched(node_id: Any, request: Any, **options: Any) -> Any:
            response = await send(node_id, request, **options)
            if isinstance(request, ProduceRequest):
                for topic, partitions in response.topics:
                    for number, code, *_ in partitions:
                        self._answered(topic, number, code)
            return response

        return watched

    def _answered(self, topic: str, partition: int, code: int) -> None:
        key = topic, partition
        if not code:
            if self._refused:
                refused = self._refused.pop(key, None)
                if refused is not None and refused.told:
                    log.info("written again", partition=f"{topic}-{partition}")
            return
        error = errors.for_code(code)
        if not getattr(error, "retriable", False):
            return  # whoever writes is told at once
        now = time.monotonic()
        refused = self._refused.get(key)
        if refused is None or now - refused.last >= _REPEATED:
            refused = self._refused[key] = _Refused(now)
        refused.last = now
        refused.why = f"writing to {topic}-{partition}: {reason_of(error())}"
        if not refused.told and now - refused.since >= _ELECTION:
            refused.told = True
            log.warning("write refused, trying again", error=refused.why)

    def _retire(self, producer: AIOKafkaProducer) -> None:
        """A batch of it failed: give it no more. What it has under way for other partitions, it ends."""
        if self._live is producer:
            self._live = None
            self._tasks.start(
                _stop_producer(producer, flush=self._settings.request_timeout), "retire a producer"
            )

    async def produce(self, messages: Sequence[Message], acknowledged: Acknowledged | None = None) -> None:
        """Return when every message is acknowledged by all in-sync replicas."""
        if not messages:
            return
        call = _Call(len(messages), acknowledged)
        shares: dict[tuple[str, int], _Chunk] = {}
        sizes: dict[str, int] = {}
        choose = self._partitioner.choose
        for position, message in enumerate(messages):
            topic = message.topic
            partitions = sizes.get(topic)
            if partitions is None:
                partitions = sizes[topic] = await self._partitions(topic)
            number = choose(message, partitions)
            share = shares.get((topic, number))
            if share is None:
                share = shares[topic, number] = _Chunk(call)
            share.messages.append(message)
            share.numbers.append(position)
        for key, share in shares.items():
            lane = self._lanes.get(key)
            if lane is None:
                lane = self._lanes[key] = _Lane(*key)
            lane.queue.append(share)
            if not lane.busy:
                lane.busy = True
                self._tasks.start(self._pump(lane), f"produce {lane}")
        try:
            # Who is told of each message gains nothing by giving up: the library repeats what is under way until it is
            # answered, with the numbers that keep a broker from writing it twice.
            async with asyncio.timeout(None if acknowledged is not None else self._settings.request_timeout):
                await call.future
        except TimeoutError:
            raise self._no_answer() from None

    def _no_answer(self) -> BrokerUnavailable:
        return BrokerUnavailable(
            self._problem()
            or self.problem
            or f"no acknowledgement within {self._settings.request_timeout:g} s"
        )

    async def produce_bulk(self, topic: str, entries: Sequence[Entry]) -> None:
        """The same for many small records of one topic: no object and no place in a queue for each."""
        if not entries:
            return
        shares: dict[int, list[Entry]] = {}
        written: dict[int, int] = {}  # how many of each share
        try:
            try:
                async with asyncio.timeout(self._settings.request_timeout):
                    partitions = await self._partitions(topic)
                    shares = by_partition(entries, partitions)
                    # All of them to their end, also when one fails: nothing of an ended call is sent any more.
                    ended = await asyncio.gather(
                        *(self._append(topic, number, share, written) for number, share in shares.items()),
                        return_exceptions=True,
                    )
            except TimeoutError:
                raise self._no_answer() from None
            for outcome in ended:
                if isinstance(outcome, BaseException):
                    raise outcome
        except BrokerError as error:
            if shares:
                error.left = [
                    entry for number, share in shares.items() for entry in share[written.get(number, 0) :]
                ]
            raise

    async def produce_one(self, topic: str, entry: Entry) -> tuple[int, int]:
        """Write one record; its partition and offset."""
        try:
            async with asyncio.timeout(self._settings.request_timeout):
                number = partition_of(entry[0], await self._partitions(topic))
                offset = await self._append(topic, number, [entry], {})
        except TimeoutError:
            raise self._no_answer() from None
        if offset < 0:  # so it is where a repeated batch had been written before
            raise BrokerError(f"the broker has not told where in {topic}-{number} it wrote")
        return number, offset

    async def _append(
        self, topic: str, partition: int, entries: Sequence[Entry], written: dict[int, int]
    ) -> int:
        """Write them in order, and keep in `written` how many of the partition's are; the offset of the first of the last batch."""
        at, most = 0, len(entries)
        offset = -1
        fenced = 0
        while at < len(entries):
            producer = await self._live_producer()
            batch = producer.create_batch()
            count = fill_bulk(batch, entries, at, most)
            if not count:
                raise MessageTooLarge(f"a message of {len(entries[at][1])} bytes for {topic} is too large")
            try:
                placed = await (await producer.send_batch(batch, topic, partition=partition))
                offset = placed.offset
            except (errors.KafkaError, OSError, TimeoutError, AssertionError) as error:
                self._retire(producer)
                if isinstance(error, TOO_LARGE) and count > 1:
                    most = count // 2
                elif isinstance(error, _FRESH_PRODUCER):
                    fenced += 1
                    if fenced > 1:  # the last fresh one was no better
                        await asyncio.sleep(pause_after(fenced - 1))
                else:
                    raise mapped(error, f"writing to {topic}-{partition}") from error
            else:
                at += count
                written[partition] = at
                fenced = 0
        return offset

    async def _partitions(self, topic: str) -> int:
        """How many partitions it has."""
        producer = await self._live_producer()
        if (known := producer.client.cluster.partitions_for_topic(topic)) is not None:
            return len(known)
        deadline = time.monotonic() + min(_TOPIC_TIMEOUT, self._settings.request_timeout)
        # Ask without creating it first: the library's own question lets the broker create the topic.
        while not (await describe(await self.live_client(), [topic])).get(topic):
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
        for chunk, count in taken:
            chunk.call.under_way += count
        try:
            future = await producer.send_batch(batch, lane.topic, partition=lane.partition)
            await future
        except (errors.KafkaError, OSError, TimeoutError, AssertionError) as error:
            self._retire(producer)
            self._not_written(lane, batch.size(), taken, error)
            if lane.fenced > 1 and isinstance(error, _FRESH_PRODUCER):  # the last one was no better
                await asyncio.sleep(pause_after(lane.fenced - 1))
        except asyncio.CancelledError:
            for chunk, count in taken:
                chunk.call.fail(BrokerUnavailable("the connection was closed"))
                chunk.call.returned(count)
            raise
        else:
            lane.fenced = 0
            for chunk, count in taken:
                chunk.call.written(chunk.numbers[chunk.at - count : chunk.at])

    def _fill(self, lane: _Lane, batch: Any) -> list[tuple[_Chunk, int]]:
        """Take from the queue what fits; how many messages of which chunk."""
        taken: list[tuple[_Chunk, int]] = []
        queue = lane.queue
        append = batch.append
        limit = lane.limit if lane.limit < BATCH_BYTES else 0
        while queue:
            chunk = queue[0]
            if chunk.call.over:
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
            if at < len(messages) and not chunk.call.over:
                break  # the batch is full
            queue.popleft()
        return taken

    def _not_written(
        self, lane: _Lane, size: int, taken: list[tuple[_Chunk, int]], error: BaseException
    ) -> None:
        count = sum(number for _, number in taken)
        split = isinstance(error, TOO_LARGE) and count > 1
        if split:
            lane.limit = max(1, min(lane.limit, size) // 2)
            log.info(
                "batch refused as too large, splitting it", partition=str(lane), bytes=size, records=count
            )
        if not split and isinstance(error, _FRESH_PRODUCER):
            if not isinstance(error, errors.ProducerClosed):  # that was another partition's fault
                lane.fenced += 1
                lane.why = reason_of(error)
            log.warning("a fresh producer is needed", partition=str(lane), error=reason_of(error))
        if split or isinstance(error, _FRESH_PRODUCER):
            for chunk, number in reversed(taken):
                chunk.at -= number
                if not lane.queue or lane.queue[0] is not chunk:
                    lane.queue.appendleft(chunk)
                chunk.call.returned(number)
            return
        problem = mapped(error, f"writing to {lane}")
        log.warning("write failed", partition=str(lane), records=count, error=str(problem))
        for chunk, number in taken:
            chunk.call.fail(problem)
            chunk.call.returned(number)


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
