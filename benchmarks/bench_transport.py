"""The transport by itself: signed 1 KiB POSTs to nginx, beside wrk and the aiohttp client in the same run.

What is measured runs in a child process on the client core (`--drive`), so that every figure begins
with a fresh interpreter. The request is the product's own: `core.request.build` signs and joins it for
every exchange. wrk sends one that was built once.

    python -m benchmarks.bench_transport [--quick] [--runs 5]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import uvloop

from benchmarks.harness import (
    CONNECTIONS,
    CORES,
    NOW,
    RESULTS,
    SECRET,
    CannotRun,
    Compared,
    Nginx,
    Section,
    Table,
    beside_wrk,
    envelope,
    median,
    pinned,
    spread,
    two_digits,
    wrk,
)
from dispatcher.app import COLLECTOR
from dispatcher.core.event.decode import JSON_HEAD, Event
from dispatcher.core.request.build import build
from dispatcher.core.request.netguard import Guard
from dispatcher.core.request.results import Response, Result
from dispatcher.core.request.urls import Origin
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.core.subscription.model import Status, Subscription
from dispatcher.runtime.timers import Timers
from dispatcher.settings.groups import DeliverySettings, NetworkSettings
from dispatcher.transport.client import Transport

HOSTS = 2000
PER_HOST = 2
SHAKES = 500  # handshakes a second, of the lag measurement
IDLE = 1000  # connections, of the memory measurement
TIMEOUT = 15.0


def _subscription(origin: Origin) -> Subscription:
    return Subscription(
        id="sub",
        tenant=None,
        origin=origin,
        target="/hook",
        event_types=("*",),
        secrets=(SECRET,),
        signatures=("v1",),
        headers=(),
        thin=False,
        timeout=TIMEOUT,
        max_in_flight=PER_HOST,
        retry=RetryPolicy((5.0,), 0.1),
        status=Status.ACTIVE,
    )


class Load:
    """`count` exchanges, `width` at a time for each origin."""

    def __init__(self, transport: Transport, origins: Sequence[Origin], width: int, count: int) -> None:
        self.transport = transport
        self.clock = asyncio.get_running_loop().time
        event_id, body = envelope(0)
        self.event = Event(event_id, "orders.item.created", None, body, NOW * 1000, JSON_HEAD)
        self.left = self.open = count
        self.wrong: list[Result] = []
        self.over = asyncio.Event()
        self.exchanges = [
            Exchange(self, origin, _subscription(origin)) for origin in origins for _ in range(width)
        ]

    async def run(self) -> float:
        """Seconds."""
        begin = time.perf_counter()
        for exchange in self.exchanges:
            exchange.next()
        await self.over.wait()
        if self.wrong:
            raise SystemExit(f"{len(self.wrong)} exchanges failed, the first: {self.wrong[0]}")
        return time.perf_counter() - begin


class Exchange:
    """Sends again from inside `done`, as the engine does."""

    __slots__ = ("deadline", "load", "origin", "request", "subscription")

    def __init__(self, load: Load, origin: Origin, subscription: Subscription) -> None:
        self.load = load
        self.origin = origin
        self.subscription = subscription
        self.request = b""
        self.deadline = 0.0

    def next(self) -> None:
        load = self.load
        if load.left > 0:
            load.left -= 1
            self.request = build(self.subscription.request, load.event, int(time.time()))
            self.deadline = load.clock() + TIMEOUT
            load.transport.send(self.origin, self)

    def done(self, result: Result) -> None:
        load = self.load
        if type(result) is not Response or result.status != 200:
            load.wrong.append(result)
        load.open -= 1
        if not load.open:
            load.over.set()
        self.next()


# -- The child's side


def _transport(ca_file: str | None, **delivery: object) -> Transport:
    loopback = ("127.0.0.0/8",)
    return Transport(
        delivery=DeliverySettings.model_validate(delivery),
        network=NetworkSettings.model_validate({"allow": loopback, "ca_file": ca_file, "https_only": False}),
        guard=Guard(loopback, https_only=False),
        timers=Timers(asyncio.get_running_loop()),
    )


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _origins(scheme: str, port: int, hosts: int) -> list[Origin]:
    return [Origin(scheme, address, port) for address in addresses(hosts)]


def addresses(count: int) -> list[str]:
    return ["127.0.0.1", *(f"127.0.{1 + i // 250}.{1 + i % 250}" for i in range(count - 1))]


async def _drive(given: argparse.Namespace) -> dict[str, float]:
    transport = _transport(given.ca_file)
    origins = _origins(given.scheme, given.port, given.hosts)
    width = CONNECTIONS if given.hosts == 1 else PER_HOST
    await Load(
        transport, origins, width, len(origins) * width * 2
    ).run()  # connections are open, code is warm
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR)  # as the daemon does
    begin = time.process_time()
    load = Load(transport, origins, width, given.count)
    seconds = await load.run()
    cpu = time.process_time() - begin
    await transport.close()
    return {"rate": given.count / seconds, "cpu": cpu / given.count}


async def _aiohttp(given: argparse.Namespace) -> dict[str, float]:
    context = None
    if given.ca_file:
        import ssl  # noqa: PLC0415 - only here

        context = ssl.create_default_context(cafile=given.ca_file)
    event_id, body = envelope(0)
    event = Event(event_id, "orders.item.created", None, body, NOW * 1000, JSON_HEAD)
    origin = _origins(given.scheme, given.port, 1)[0]
    subscription = _subscription(origin)
    left = given.count
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    connector = aiohttp.TCPConnector(limit=CONNECTIONS, ssl=context if context is not None else True)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def work() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                raw = build(subscription.request, event, int(time.time()))
                head, _, content = raw.partition(b"\r\n\r\n")
                fields = (line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
                headers = {name.decode(): value.decode() for name, value in fields}
                del headers["Content-Length"]
                url = f"{given.scheme}://127.0.0.1:{given.port}/hook"
                async with session.post(url, data=content, headers=headers) as response:
                    await response.read()
                    if response.status != 200:
                        raise SystemExit(f"status {response.status}")

        begin, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
        seconds = time.perf_counter() - begin
        cpu = time.process_time() - cpu
    return {"rate": given.count / seconds, "cpu": cpu / given.count}


async def _memory(given: argparse.Namespace) -> dict[str, float]:
    transport = _transport(given.ca_file, connection_max_requests=10)
    origins = _origins(given.scheme, given.port, 1)
    await Load(transport, origins, 10, 20).run()
    gc.collect()
    before = _rss()
    await Load(transport, origins, given.count, given.count).run()
    gc.collect()
    states = transport.connections()
    if states["idle"] < given.count:
        raise SystemExit(f"not idle: {states}")
    taken = _rss() - before
    await transport.close()
    return {"bytes": taken / (states["idle"] - 10)}


async def _lag(given: argparse.Namespace) -> dict[str, float]:
    """How late the loop is while so many handshakes a second go on: each exchange on a connection of its own."""
    transport = _transport(given.ca_file, connection_max_requests=1)
    origin = _origins("https", given.port, 1)
    loop = asyncio.get_running_loop()
    lags: list[float] = []
    begin, cpu = loop.time(), time.process_time()
    done = 0
    waiting = []
    tick = 0.005
    while (now := loop.time()) < begin + given.count / SHAKES:
        due = int((now - begin) * SHAKES)
        if due > done:
            load = Load(transport, origin, due - done, due - done)
            waiting.append(loop.create_task(load.run()))
            done = due
        slept = time.perf_counter()
        await asyncio.sleep(tick)
        lags.append(time.perf_counter() - slept - tick)
    await asyncio.gather(*waiting)
    seconds = loop.time() - begin
    cpu = time.process_time() - cpu
    opened = transport.connections_opened
    # And all at once.
    burst = loop.create_task(Load(transport, origin, 200, 200).run())
    worst = 0.0
    while not burst.done():
        slept = time.perf_counter()
        await asyncio.sleep(0)
        worst = max(worst, time.perf_counter() - slept)
    await burst
    await transport.close()
    lags.sort()
    return {
        "rate": opened / seconds,
        "cpu": cpu / opened,
        "p50": statistics.median(lags),
        "p99": lags[int(len(lags) * 0.99)],
        "max": lags[-1],
        "burst": worst,
    }


DRIVERS = {"transport": _drive, "aiohttp": _aiohttp, "memory": _memory, "lag": _lag}


def _child(driver: str, scheme: str, nginx: Nginx, count: int, hosts: int = 1) -> dict[str, float]:
    port = nginx.tls_port if scheme == "https" else nginx.port
    command = [sys.executable, "-m", "benchmarks.bench_transport", "--drive", driver, "--scheme", scheme]
    command += ["--port", str(port), "--count", str(count), "--hosts", str(hosts)]
    if scheme == "https":
        command += ["--ca-file", str(nginx.ca_file)]
    ran = subprocess.run(
        pinned(CORES.client, command),
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if ran.returncode:
        raise CannotRun(f"the {driver} child failed: {ran.stderr.strip()[-2000:]}")
    found: dict[str, float] = orjson.loads(ran.stdout)
    return found


# -- The parent's side


def run(command: str, *, quick: bool = False, runs: int | None = None, patience: float = 30.0) -> Section:
    """Everything that the transport promises. `patience`: seconds to wait for a calm machine before each run."""
    runs = runs or (1 if quick else 5)
    scale = 10 if quick else 1
    seconds = 1 if quick else 3
    section = Section("Transport", command)
    rates = Table(("signed 1 KiB POSTs", "requests/s", "us CPU", "wrk/s", "of wrk", "wanted"))
    medians: dict[str, float] = {}

    def rate_of(driver: str, scheme: str, nginx: Nginx, count: int, hosts: int = 1) -> tuple[float, float]:
        found = _child(driver, scheme, nginx, count // scale, hosts)
        return found["rate"], found["cpu"]

    def compare(name: str, driver: str, scheme: str, nginx: Nginx, count: int, wanted: str) -> None:
        url = nginx.tls_url if scheme == "https" else nginx.url
        compared: Compared[float] = beside_wrk(
            lambda: rate_of(driver, scheme, nginx, count),
            lambda: wrk(url, seconds=seconds).rate,
            runs,
            spare=0 if quick else None,
            patience=0.0 if quick else patience,
        )
        medians[name] = median(compared.rates)
        cpu = f"{median(compared.seen) * 1e6:.1f}"
        ratio = spread(compared.ratios, two_digits)
        rates.add(name, spread(compared.rates), cpu, spread(compared.wrk), ratio, wanted)
        if remark := compared.remark():
            section.add(f"{name}: {remark}")

    with Nginx() as nginx:
        compare("plain, 64 connections", "transport", "http", nginx, 200_000, ">= 0.45")
        compare("TLS, 64 connections", "transport", "https", nginx, 120_000, ">= 0.45")
        compare("aiohttp, plain", "aiohttp", "http", nginx, 15_000, "")
        compare("aiohttp, TLS", "aiohttp", "https", nginx, 15_000, "")
    name = f"plain, {HOSTS:,} hosts x {PER_HOST}"
    with Nginx(addresses(200 if quick else HOSTS)) as nginx, Nginx() as single:
        # In turns with one host, and not with wrk, which knows one host only.
        hosts: Compared[float] = beside_wrk(
            lambda: rate_of("transport", "http", nginx, 200_000, 200 if quick else HOSTS),
            lambda: rate_of("transport", "http", single, 200_000)[0],
            runs,
            spare=0 if quick else None,
            patience=0.0 if quick else patience,
        )
    rates.add(name, spread(hosts.rates), f"{median(hosts.seen) * 1e6:.1f}", "", "", "")
    rates.add("in turns with it: one host", spread(hosts.wrk), "", "", "", "")
    if remark := hosts.remark():
        section.add(f"{name}: {remark}")
    section.add(rates)
    against = Table(("ratio", "median", "wanted"))
    plain, tls = medians["plain, 64 connections"], medians["TLS, 64 connections"]
    against.add("plain / aiohttp plain", f"{plain / medians['aiohttp, plain']:.1f}", ">= 6")
    against.add("TLS / aiohttp TLS", f"{tls / medians['aiohttp, TLS']:.1f}", "")
    against.add(f"{HOSTS:,} hosts / one host, in turns", spread(hosts.ratios, two_digits), ">= 0.8")
    section.add(against)

    other = Table(("", "figure", "wanted"))
    with Nginx() as nginx:
        idle = IDLE // scale
        for scheme, what, wanted in (("http", "plain", "<= 12"), ("https", "TLS", "")):
            size = median([_child("memory", scheme, nginx, idle)["bytes"] for _ in range(runs)])
            other.add(f"memory of an idle connection, {what}, KiB", f"{size / 1024:.1f}", wanted)
        found = [_child("lag", "https", nginx, SHAKES * 5 // scale) for _ in range(runs)]

        def show(key: str) -> str:
            return f"{median([one[key] for one in found]) * 1e3:.2f}"

        rate = median([one["rate"] for one in found])
        other.add("handshakes, a second", f"{rate:,.0f}", "500")
        other.add("CPU of a handshake and its exchange, ms", show("cpu"), "")
        for key in ("p50", "p99", "max"):
            other.add(f"loop lag meanwhile, {key}, ms", show(key), "a few")
        other.add("longest turn of the loop, 200 handshakes at once, ms", show("burst"), "a few")
    section.add(other)
    return section


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_transport")
    parser.add_argument("--quick", action="store_true", help="small counts, one run: a smoke test")
    parser.add_argument("--runs", type=int, help="measurements in turns with wrk (5)")
    parser.add_argument(
        "--patience", type=float, default=30.0, help="seconds to wait for a calm machine (30)"
    )
    parser.add_argument("--drive", choices=tuple(DRIVERS), help=argparse.SUPPRESS)
    parser.add_argument("--scheme", default="http", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--hosts", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--ca-file", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.drive:
        driver: Callable[[Any], Any] = DRIVERS[given.drive]
        print(orjson.dumps(uvloop.run(driver(given))).decode())
        return 0
    try:
        os.sched_setaffinity(0, {CORES.server})
        command = shlex.join(["python", "-m", "benchmarks.bench_transport", *(argv or sys.argv[1:])])
        section = run(command, quick=given.quick, runs=given.runs, patience=given.patience)
        section.report(None if given.quick else RESULTS)
    except CannotRun as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
