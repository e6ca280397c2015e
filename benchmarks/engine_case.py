"""Engine and transport in one process, over sockets that swallow what is written: what a delivery costs in a case.

The engine, the transport, its pools and its connections are the real ones. A socket's answer comes in the next turn of the loop. System calls
are in no figure, so that a few per cent of the daemon's own work can be told. `toggles.py` runs this as a program of its own.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

import structlog
import uvloop

from benchmarks.bench_engine import ANSWER, RegistryOfOne, SilentBroker, round_of, subscription_of
from benchmarks.harness import NOW, envelope
from dispatcher.broker.base import Broker, StoredRecord
from dispatcher.core.attempt.tracing import Sampler
from dispatcher.core.request.netguard import Guard
from dispatcher.core.request.results import Failure, Opened
from dispatcher.core.subscription.index import Index
from dispatcher.core.subscription.model import Subscription
from dispatcher.delivery.engine import Engine
from dispatcher.registry.registry import Registry
from dispatcher.runtime.timers import Timers
from dispatcher.settings.groups import (
    AttemptsSettings,
    DeliverySettings,
    NetworkSettings,
    Settings,
    TracingSettings,
)
from dispatcher.telemetry.metrics import Metrics
from dispatcher.telemetry.tracing import Tracing
from dispatcher.transport import pool
from dispatcher.transport.base import Exchange
from dispatcher.transport.client import Transport
from dispatcher.transport.connection import Connection, Shared


class Case(NamedTuple):
    """What there is: hosts, subscriptions over them, and how many of these want each event."""

    hosts: int
    subscriptions: int
    fan_out: int = 1
    tenants: int = 0
    """Whose they are, each one a type of its own; 0: those who want the same event are a tenant."""

    def whose(self, number: int) -> tuple[str, str]:
        """Tenant and event type of the subscription of that number."""
        if self.tenants:
            return f"tenant-{number % self.tenants}", f"orders.item.{number}"
        return f"tenant-{number // self.fan_out}", "orders.item.created"

    def events(self, deliveries: int) -> int:
        """How many events come to so many deliveries, or to one for each subscription where that is more."""
        return max(deliveries, self.subscriptions) // self.fan_out


CASES: Final[Mapping[str, Case]] = {
    "plain": Case(8, 8),
    "fan-out": Case(8, 80, 10),
    "subscriptions": Case(8, 100_000),
    "hosts": Case(10_000, 10_000),
    # By pairs: the same but for the tenants.
    "100-tenants": Case(8, 100, tenants=100),
    "one-of-100": Case(8, 100, tenants=1),
    "10,000-tenants": Case(8, 10_000, tenants=10_000),
    "one-of-10,000": Case(8, 10_000, tenants=1),
}


class _Lookup:
    async def resolve(self, host: str) -> Sequence[str]:
        return (host,)

    async def close(self) -> None:
        pass


class _Socket:
    """Answers what is written to it in the next turn, with all that was written meanwhile."""

    def __init__(self, network: _Network, connection: Connection) -> None:
        self._network = network
        self._connection = connection

    def write(self, _: bytes) -> None:
        self._network.answer_soon(self._connection)

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        pass

    close = abort


class _Network:
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Connection] = []

    def answer_soon(self, connection: Connection) -> None:
        if not self._waiting:
            self._loop.call_soon(self._answer)
        self._waiting.append(connection)

    def _answer(self) -> None:
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.data_received(ANSWER)

    def dial(self, shared: Shared, _: object, owner: Any, exchange: Exchange) -> _Dial:
        """In the place of `transport.dial.Dial`."""
        return _Dial(self, shared, owner, exchange)


class _Dial:
    """Connected at once."""

    def __init__(self, network: _Network, shared: Shared, owner: Any, exchange: Exchange) -> None:
        self._network = network
        self._shared = shared
        self._owner = owner
        self.exchange = exchange

    def start(self) -> None:
        asyncio.get_running_loop().call_soon(self._connect)

    def _connect(self) -> None:
        connection = Connection(self._shared, self._owner, self)
        self._owner.joined()
        connection.connection_made(cast("asyncio.Transport", _Socket(self._network, connection)))

    tenant: object = None
    endpoint: object = None

    def made(self, connection: Connection) -> None:
        self._owner.dialed(self)
        connection.use(self.exchange, Opened())

    def secured(self, connection: Connection) -> None:
        raise AssertionError(connection)

    def failed(self, connection: Connection, failure: Failure) -> None:
        raise AssertionError(connection, failure)


def _subscriptions(case: Case) -> list[Subscription]:
    found = []
    for number in range(case.subscriptions):
        tenant, kind = case.whose(number)
        host = number % case.hosts
        address = f"10.{host >> 16}.{host >> 8 & 255}.{host & 255}"
        pattern = kind if case.tenants else "orders.*"
        found.append(subscription_of(f"sub_{number}", tenant, address, pattern))
    return found


def _tracing(ratio: str, url: str) -> Tracing | None:
    from dispatcher.telemetry.otlp import OtlpSink  # noqa: PLC0415 - of no other case

    sink = OtlpSink(TracingSettings(endpoint=url, queue=1_000_000), "benchmark", {})
    return Tracing(sink, Sampler(float(ratio), by_parent=True), system="kafka")


async def _run(
    case: Case, deliveries: int, rounds: int, tracing: Tracing | None, counting: Callable[[str], object]
) -> float:
    settings = Settings(
        delivery=DeliverySettings(connections_per_host=8), attempts=AttemptsSettings(log="none")
    )
    timers = Timers(asyncio.get_running_loop())
    metrics = Metrics()
    failed: list[BaseException] = []
    guard = Guard(https_only=False, allow=("10.0.0.0/8",))
    vars(pool)["Dial"] = _Network().dial
    engine = Engine(
        settings,
        cast("Broker", SilentBroker()),
        Transport(
            delivery=settings.delivery,
            network=NetworkSettings(),
            guard=guard,
            timers=timers,
            lookup=_Lookup(),
        ),
        cast("Registry", RegistryOfOne(Index(_subscriptions(case)))),
        guard,
        metrics,
        timers,
        on_failure=lambda _, error: failed.append(error),
        tracing=tracing,
    )
    groups = case.subscriptions // case.fan_out
    records = []
    for number in range(case.events(deliveries)):
        # A prime step, so that nobody's turn comes where the memory still is from the one before.
        tenant, kind = case.whose(number * 7919 % groups * case.fan_out)
        records.append(StoredRecord(number, NOW * 1000, None, envelope(number, kind=kind, tenant=tenant)[1]))
    gc.collect()
    gc.freeze()
    sink = None if tracing is None else cast("Any", tracing.sink)
    flush = None if sink is None else sink._processor.force_flush
    await round_of(engine, metrics, failed, records, case.fan_out, flush)  # makes lanes, pools and templates
    counting("on")
    taken = [await round_of(engine, metrics, failed, records, case.fan_out, flush) for _ in range(rounds)]
    counting("off")
    assert sink is None or not sink.counts()["dropped"] + sink.counts()["failed"]
    timers.close()
    return statistics.median(taken)


def _not_counted(_: str) -> None:
    pass


def _counted(state: str) -> None:
    """Under callgrind: from here on, or no longer, count."""
    subprocess.run(
        ["callgrind_control", f"--instr={state}", str(os.getpid())],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def main() -> None:
    """CASE DELIVERIES ROUNDS [RATIO COLLECTOR]: prints microseconds of CPU a delivery. With a ratio, `off` for none, deliveries are traced
    (`tracing.py`). CASE DELIVERIES `counted`: one round, of which callgrind counts the instructions; prints how many deliveries those are.
    """
    name, deliveries, rounds, *traced = sys.argv[1:]
    case = CASES[name]
    tracing = None if not traced or traced[0] == "off" else _tracing(traced[0], traced[1])
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    if rounds == "counted":
        uvloop.run(_run(case, int(deliveries), 1, None, _counted))
        print(case.events(int(deliveries)) * case.fan_out)
        return
    result: Any = uvloop.run(_run(case, int(deliveries), int(rounds), tracing, _not_counted))
    print(f"{float(result) * 1e6:.4f}")


if __name__ == "__main__":
    main()
