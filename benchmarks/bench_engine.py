"""What the engine adds to a delivery: everything between a polled batch and the settled offset, without sockets.

The real engine with a broker that holds nothing and a transport that answers 200 in the next turn of the
loop: decode, match, track, queue, build and sign, decide, settle and the loop's turns are in the
figure; system calls, the HTTP parser and Kafka's client are not.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import structlog
import uvloop

from benchmarks.harness import NOW, SECRET, envelope
from dispatcher.broker.base import Broker, Message, Position, Record, StoredRecord, TopicPartition
from dispatcher.core.netguard import Guard, Origin
from dispatcher.core.policy import RetryPolicy
from dispatcher.core.results import Response
from dispatcher.core.subscriptions import Index, Status, Subscription
from dispatcher.engine import Engine
from dispatcher.metrics import Metrics
from dispatcher.registry import Registry
from dispatcher.settings import DeliverySettings, Settings
from dispatcher.timers import Timers
from dispatcher.transport.base import Exchange
from dispatcher.transport.client import Transport

HOSTS = 8
BATCH = 1000
_PARTITION = TopicPartition("events", 0)


class _Consumer:
    problem = None

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        pass

    resume = pause


class _Broker:
    """Never asked for anything while deliveries succeed."""

    def consumer(self, *_: object) -> _Consumer:
        return _Consumer()

    async def produce(self, messages: Sequence[Message]) -> None:
        raise AssertionError(messages)


class _Transport:
    """Answers everything with 200, a turn of the loop later, as many at once as a socket's read would bring."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Exchange] = []

    def send(self, _: Origin, exchange: Exchange, _certificate: object) -> None:
        if not self._waiting:
            self._loop.call_soon(self._answer)
        self._waiting.append(exchange)

    def _answer(self) -> None:
        waiting, self._waiting = self._waiting, []
        for exchange in waiting:
            exchange.done(Response(200))


class _Registry:
    def __init__(self, index: Index) -> None:
        self.index = index


def _subscriptions(fan_out: int) -> list[Subscription]:
    return [
        Subscription(
            id=f"sub_{turn}_{copy}",
            tenant=f"tenant-{turn}",
            origin=Origin("http", f"127.0.0.{turn + 1}", 8000),
            target="/hook",
            event_types=("orders.*",),
            secrets=(SECRET,),
            signatures=("v1",),
            headers=(),
            thin=False,
            timeout=15.0,
            max_in_flight=16,
            retry=RetryPolicy((5.0,), 0.1),
            status=Status.ACTIVE,
        )
        for turn in range(HOSTS)
        for copy in range(fan_out)
    ]


def _records(count: int) -> list[Record]:
    return [
        StoredRecord(
            *_PARTITION, number, NOW * 1000, None, envelope(number, tenant=f"tenant-{number % HOSTS}")[1]
        )
        for number in range(count)
    ]


async def _run(records: Sequence[Record], fan_out: int, rounds: int) -> float:
    loop = asyncio.get_running_loop()
    settings = Settings(delivery=DeliverySettings(connections_per_host=8))
    timers = Timers(loop)
    metrics = Metrics()
    engine = Engine(
        settings,
        cast("Broker", _Broker()),
        cast("Transport", _Transport()),
        cast("Registry", _Registry(Index(_subscriptions(fan_out)))),
        Guard(),
        metrics,
        timers,
    )
    taken: list[float] = []
    for _ in range(rounds):
        assigned: Mapping[TopicPartition, Position] = {_PARTITION: Position(0)}
        engine._trackers.clear()
        await engine.on_assigned(assigned)
        goal = metrics.delivered + len(records) * fan_out
        begin = time.thread_time()
        for at in range(0, len(records), BATCH):
            await engine._take_up(_PARTITION, records[at : at + BATCH])
        while metrics.delivered < goal:
            await asyncio.sleep(0)
        taken.append((time.thread_time() - begin) / len(records) / fan_out)
    timers.close()
    return statistics.median(taken)


def cost(fan_out: int = 1, *, events: int = 10_000, rounds: int = 9) -> float:
    """Seconds of CPU per delivery."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    result: Any = uvloop.run(_run(_records(events // fan_out), fan_out, rounds))
    return float(result)


def results(*, quick: bool = False) -> dict[str, float]:
    """Seconds per delivery, by name."""
    rounds = 3 if quick else 9
    return {
        "engine: batch to settled, without sockets": cost(1, rounds=rounds),
        "the same, each event to 10 subscriptions": cost(10, rounds=rounds),
    }


if __name__ == "__main__":
    for name, seconds in results().items():
        print(f"{name:<45} {seconds * 1e6:6.2f} us")
