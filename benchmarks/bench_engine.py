"""What engine and transport add to a delivery, without sockets.

The engine: everything between a polled batch and the settled offset. The real one, with a broker that holds nothing and a transport that answers 200 in the next turn of the
loop: decode, match, track, queue, build and sign, decide, settle and the loop's turns are in the
figure; system calls, the HTTP parser and Kafka's client are not.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn, cast

import structlog
import uvloop
from aiokafka.producer.message_accumulator import BatchBuilder

from benchmarks.harness import NOW, SECRET, envelope
from dispatcher.broker.base import Broker, Entry, Message, Position, Record, StoredRecord, TopicPartition
from dispatcher.broker.kafka.wire.bulk import by_partition, fill_bulk
from dispatcher.core.attempt.encode import Noted
from dispatcher.core.event.decode import decode
from dispatcher.core.request.netguard import Guard
from dispatcher.core.request.results import Failure, Response, Result
from dispatcher.core.request.urls import Origin
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.core.subscription.index import Index
from dispatcher.core.subscription.model import Status, Subscription
from dispatcher.delivery.attempt_log import AttemptLog
from dispatcher.delivery.engine import Engine
from dispatcher.registry.registry import Registry
from dispatcher.runtime.timers import Timers
from dispatcher.settings.groups import AttemptsSettings, DeliverySettings, Settings
from dispatcher.telemetry.metrics import Metrics
from dispatcher.transport.base import Exchange
from dispatcher.transport.client import Transport
from dispatcher.transport.connection import Connection, Shared

HOSTS = 8
BATCH = 1000
ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Sun, 22 Nov 2026 03:31:33 GMT\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 0\r\nConnection: keep-alive\r\n\r\n"
)
_PARTITION = TopicPartition("events", 0)


class _Consumer:
    problem = None

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        pass

    resume = pause

    def ends(self) -> Mapping[TopicPartition, int]:
        return {}

    async def commit(self, positions: Mapping[TopicPartition, Position]) -> None:
        pass


class SilentBroker:
    """Never asked for anything while deliveries succeed."""

    metadata_limit = 4096

    def consumer(self, *_: object, **__: object) -> _Consumer:
        return _Consumer()

    async def read(self, partition: TopicPartition, offset: int) -> Record | None:
        raise AssertionError(partition, offset)

    async def read_from(self, partition: TopicPartition, offset: int, *_: int) -> NoReturn:
        raise AssertionError(partition, offset)

    async def produce(self, messages: Sequence[Message]) -> None:
        raise AssertionError(messages)

    async def produce_bulk(self, topic: str, entries: Sequence[Entry]) -> None:
        raise AssertionError(topic, entries)


class _Line:
    """What the transport says that carries an exchange: it takes the next one too."""

    dropped = False

    def __init__(self, transport: _Transport) -> None:
        self._transport = transport

    def send(self, exchange: Exchange) -> None:
        self._transport.carry(exchange)

    def prefetch(self) -> int:
        return 0


class _Transport:
    """Answers everything with 200, a turn of the loop later, as many at once as a socket's read would bring."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Exchange] = []

    def send(self, _: Origin, exchange: Exchange) -> _Line:
        self.carry(exchange)
        return _Line(self)

    def carry(self, exchange: Exchange) -> None:
        if not self._waiting:
            self._loop.call_soon(self._answer)
        self._waiting.append(exchange)

    def _answer(self) -> None:
        waiting, self._waiting = self._waiting, []
        for exchange in waiting:
            exchange.done(Response(200))


class RegistryOfOne:
    def __init__(self, index: Index) -> None:
        self.index = index

    def failing(self, _: str) -> None:
        return None


def subscription_of(id_: str, tenant: str, host: str, pattern: str = "orders.*") -> Subscription:
    """One that wants the events of `benchmarks.harness.envelope`, at port 8000 of a host."""
    return Subscription(
        id=id_,
        tenant=tenant,
        origin=Origin("http", host, 8000),
        target="/hook",
        event_types=(pattern,),
        secrets=(SECRET,),
        signatures=("v1",),
        headers=(),
        thin=False,
        timeout=15.0,
        max_in_flight=16,
        retry=RetryPolicy((5.0,), 0.1),
        status=Status.ACTIVE,
    )


def _subscriptions(fan_out: int) -> list[Subscription]:
    return [
        subscription_of(f"sub_{turn}_{copy}", f"tenant-{turn}", f"127.0.0.{turn + 1}")
        for turn in range(HOSTS)
        for copy in range(fan_out)
    ]


def _records(count: int) -> list[Record]:
    return [
        StoredRecord(number, NOW * 1000, None, envelope(number, tenant=f"tenant-{number % HOSTS}")[1])
        for number in range(count)
    ]


async def round_of(
    engine: Engine,
    metrics: Metrics,
    failed: Sequence[BaseException],
    records: Sequence[Record],
    fan_out: int,
    flush: Callable[[], object] | None = None,
) -> float:
    """Seconds of CPU a delivery, of all the records in batches until each is delivered. Raises what has `failed`.

    With a `flush` of all threads, and of sending what spans are left: as a daemon does every five seconds.
    """
    assigned: Mapping[TopicPartition, Position] = {_PARTITION: Position(0)}
    engine._events.trackers.clear()
    await engine._events.on_assigned(assigned)
    goal = metrics.delivered + len(records) * fan_out
    cpu = time.thread_time if flush is None else time.process_time
    begin = cpu()
    for at in range(0, len(records), BATCH):
        await engine._consuming.take_up(engine._events.trackers[_PARTITION], records[at : at + BATCH])
    while metrics.delivered < goal:
        if failed:
            raise failed[0]  # what is missing won't come any more
        await asyncio.sleep(0)
    if flush is not None:
        await asyncio.to_thread(flush)
    return (cpu() - begin) / len(records) / fan_out


async def _run(records: Sequence[Record], fan_out: int, rounds: int) -> float:
    loop = asyncio.get_running_loop()
    # The attempt log has its own line; here nobody would write what it collects.
    settings = Settings(
        delivery=DeliverySettings(connections_per_host=8), attempts=AttemptsSettings(log="none")
    )
    timers = Timers(loop)
    metrics = Metrics()
    failed: list[BaseException] = []
    engine = Engine(
        settings,
        cast("Broker", SilentBroker()),
        cast("Transport", _Transport()),
        cast("Registry", RegistryOfOne(Index(_subscriptions(fan_out)))),
        Guard(),
        metrics,
        timers,
        on_failure=lambda _, error: failed.append(error),
    )
    taken = [await round_of(engine, metrics, failed, records, fan_out) for _ in range(rounds)]
    timers.close()
    return statistics.median(taken)


def cost(fan_out: int = 1, *, events: int = 10_000, rounds: int = 9) -> float:
    """Seconds of CPU per delivery."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    result: Any = uvloop.run(_run(_records(events // fan_out), fan_out, rounds))
    return float(result)


def _acknowledged(number: int, subscription: Subscription) -> Noted:
    event = decode(_records(1)[0], *_PARTITION)
    answer = Response(200, body=b'{"ok":true}')
    # fmt: off
    return Noted(event, subscription, "events", 0, number, 1, 1, None, None, 1.0, 1.012, answer, "delivered", 1.02, NOW, None, None)
    # fmt: on


async def _log_attempts(rounds: int, count: int) -> float:
    """From the note of the engine to a batch of the library that is ready to be sent, and no longer."""

    async def fill(_: str, entries: Sequence[Entry]) -> None:
        for share in by_partition(entries, HOSTS).values():
            batch = BatchBuilder(1 << 30, 0)
            fill_bulk(batch, share, 0, len(share))
            batch._build()

    subscriptions = _subscriptions(1)
    ended = [_acknowledged(number, subscriptions[number % HOSTS]) for number in range(count)]
    attempts = AttemptLog("all", "dispatcher.attempts", "bench:1", fill)
    taken: list[float] = []
    for _ in range(rounds):
        begin = time.thread_time()
        for each in ended:
            attempts.note(each)
        await attempts.finish(60)
        taken.append((time.thread_time() - begin) / count)
    assert attempts.written == rounds * count
    return statistics.median(taken)


class _Socket:
    """Swallows what is written."""

    def write(self, data: bytes) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        pass


class _Pool:
    tenant: object = None
    endpoint: object = None

    def __init__(self) -> None:
        self.idle: list[Connection] = []

    def returned(self, connection: Connection) -> None:
        self.idle.append(connection)

    def left(self, connection: Connection) -> None:
        pass

    def resend(self, exchange: Exchange) -> None:
        raise AssertionError(exchange)

    def made(self, connection: Connection) -> None:
        pass

    def secured(self, connection: Connection) -> None:
        raise AssertionError(connection)

    def failed(self, connection: Connection, failure: Failure) -> None:
        raise AssertionError(connection, failure)


class _Exchange:
    def __init__(self) -> None:
        self.request = b""
        self.deadline = 0.0
        self.answered = 0

    def done(self, result: Result) -> None:
        assert type(result) is Response
        self.answered += 1


async def _exchange(rounds: int, count: int) -> float:
    loop = asyncio.get_running_loop()
    timers = Timers(loop)
    shared = Shared(loop, timers, response_cap=65536, idle_timeout=60, max_age=600, max_requests=10**9)
    pool = _Pool()
    connection = Connection(shared, pool, pool)
    connection.connection_made(cast("asyncio.Transport", _Socket()))
    exchange = _Exchange()
    exchange.deadline = loop.time() + 60
    connection.use(exchange)
    connection.data_received(ANSWER)
    taken: list[float] = []
    for _ in range(rounds):
        begin = time.thread_time()
        for _ in range(count):
            pool.idle.pop().start(exchange)
            connection.write_now()
            connection.data_received(ANSWER)
        taken.append((time.thread_time() - begin) / count)
    assert exchange.answered == rounds * count + 1
    connection.abort()
    timers.close()
    return statistics.median(taken)


def results(*, quick: bool = False) -> dict[str, float]:
    """Seconds per delivery, by name."""
    rounds = 3 if quick else 9
    return {
        "engine: batch to settled, without sockets": cost(1, rounds=rounds),
        "the same, each event to 10 subscriptions": cost(10, rounds=rounds),
        "attempt log: note, encode, fill a batch": uvloop.run(_log_attempts(rounds, 5000)),
        "connection: send, parse the answer, without a socket": uvloop.run(_exchange(5 * rounds, 2000)),
    }


if __name__ == "__main__":
    for name, seconds in results().items():
        print(f"{name:<55} {seconds * 1e6:6.2f} us")
