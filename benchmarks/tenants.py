"""What tenants cost, and what a hostile one costs the others. On a real Kafka.

*Many tenants.* The plain case of `end_to_end.py` (8 hosts) with 100 and with 10,000 tenants of one subscription each, in turns with one tenant: with
one that has as many subscriptions, so that nothing but the tenants differs, and with one that has eight, one for each host. The first of these also in
one process without system calls (`engine_case.py`): that tells a few per cent where a shared machine's clock doesn't.

*Among hostile ones.* 50 honest tenants with a host each share 2,000 events a second: without, then with a tenant beside them whose endpoints take connections
and never answer: 320 origins, 32 attempts at a time for ten minutes each. It has published before the honest ones begin, so it has all it can have.
Every setting has its default, but for those that let deliveries go to loopback addresses without TLS.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvloop

from benchmarks.end_to_end import HOSTS, PARTITIONS, TYPES, Daemon, Run, kafka
from benchmarks.harness import (
    BODY_BYTES,
    SECRET,
    Nginx,
    Section,
    Table,
    beside_wrk,
    daemon_site,
    envelope,
    in_turns,
    median,
    require,
    spread,
    two_digits,
    wait_for,
)
from benchmarks.isolation import DEFAULTS, Dead, arrived
from benchmarks.scale import addresses, fill, percentile, publish, subscription_for, wait_until_delivered
from benchmarks.toggles import engine_cost
from dispatcher.broker.base import Message

TENANTS: Final = (100, 10_000)
_ROUNDS: Final = 9  # in one process
_DELIVERIES: Final = 50_000
_EVENTS: Final = 200_000
_HONEST: Final = 50
_PACE: Final = 2000  # events a second for the honest ones together
_ORIGINS: Final = 320
_BURST: Final = 32  # events of the hostile tenant, each for every origin
_WARM: Final = 3.0  # seconds before anything counts
_LATE: Final = 60.0  # seconds after the last event by which the honest tenants must have theirs
_TYPE: Final = "order.paid"
_runs: Final = itertools.count(1)

# What the daemon is held to.
_COST: Final = 0.97  # of the rate with one tenant
_RATIO: Final = 1.3  # of the honest tenants' p99


def subscriptions(count: int, tenants: int, port: int) -> list[dict[str, Any]]:
    """So many, evenly of these tenants and hosts; no two want the same events."""
    return [
        {
            "id": f"sub_{number}",
            "tenant": f"tenant-{number % tenants}",
            "url": f"http://{HOSTS[number % len(HOSTS)]}:{port}/hook",
            "event_types": [_kind(number)],
            "secrets": [SECRET],
        }
        for number in range(count)
    ]


def events(topic: str, subscriptions: int, tenants: int, count: int) -> Iterator[Message]:
    """Evenly for these, and for the partitions in turns."""
    for number in range(count):
        turn = number % subscriptions
        body = envelope(number, BODY_BYTES, _kind(turn), f"tenant-{turn % tenants}")[1]
        yield Message(topic, body, partition=number // len(HOSTS) % PARTITIONS)


def _kind(subscription: int) -> str:
    return f"{TYPES[subscription % len(TYPES)]}.{subscription}"


def _many(section: Section, broker: str, folder: Path, *, count: int, runs: int) -> None:
    filled: dict[tuple[int, int], str] = {}
    table = Table(
        (
            "tenants",
            "the one has subscriptions",
            "deliveries/s",
            "one tenant, in turns",
            "ratio",
            "CPU per delivery, us",
            "of one tenant, us",
            "wanted",
        )
    )
    remarks: list[str] = []
    with Nginx(HOSTS) as endpoint:

        def deliver(subscribed: int, tenants: int) -> tuple[float, Run]:
            topic = filled.get((subscribed, tenants))
            if topic is None:
                topic = filled[subscribed, tenants] = f"bench-tenants-{subscribed}-{tenants}"
                fill(broker, topic, events(topic, subscribed, tenants, count))
            own = folder / f"tenants-{next(_runs)}"
            own.mkdir()
            run = Daemon(
                broker,
                endpoint,
                own,
                topic=topic,
                subscriptions=subscriptions(subscribed, tenants, endpoint.port),
                topics={"prefix": f"{own.name}-{os.getpid()}."},
            ).run(count)
            print(
                f"  {subscribed:,} subscriptions of {tenants:,} tenants: {run.rate:,.0f}/s, {run.cpu * 1e6:.1f} us",
                flush=True,
            )
            return run.rate, run

        compares = [(tenants, own) for tenants in TENANTS for own in (tenants, len(HOSTS))]
        for tenants, subscribed in compares:
            one: list[Run] = []

            def baseline(subscribed: int = subscribed, one: list[Run] = one) -> float:
                one.append(deliver(subscribed, 1)[1])
                return one[-1].rate

            compared = beside_wrk(partial(deliver, tenants, tenants), baseline, runs)
            ratio = median(compared.ratios)
            held = subscribed == tenants
            table.add(
                f"{tenants:,}",
                f"{subscribed:,}",
                spread(compared.rates),
                spread(compared.wrk),
                spread(compared.ratios, two_digits),
                *(spread([run.cpu * 1e6 for run in each], "{:.1f}".format) for each in (compared.seen, one)),
                f">= {_COST:.2f} {'✓' if ratio >= _COST else '✗ missed'}" if held else "",
            )
            if remark := compared.remark():
                remarks.append(f"{tenants:,} tenants beside one with {subscribed:,} subscriptions: {remark}")
    section.add(table)
    section.parts.extend(remarks)


def _in_one_process(section: Section, *, quick: bool) -> None:
    deliveries, rounds = (10_000, 2) if quick else (_DELIVERIES, _ROUNDS)
    table = Table(
        (
            "in one process, no system calls: tenants",
            "CPU per delivery, us",
            "of one tenant, us",
            "ratio, in turns",
            "wanted",
        )
    )
    for tenants in TENANTS:
        cases = (f"{tenants:,}-tenants", f"one-of-{tenants:,}")
        seen = in_turns(cases, rounds, lambda case: engine_cost(daemon_site(), case, str(deliveries), "3"))
        many, one = (seen[case] for case in cases)
        ratios = [alone / each for each, alone in zip(many, one, strict=True)]
        print(f"  {tenants:,} tenants in one process: {median(ratios):.3f}", flush=True)
        table.add(
            f"{tenants:,}",
            *(spread(each, "{:.1f}".format) for each in (many, one)),
            spread(ratios, "{:.3f}".format),
            f">= {_COST:.2f} {'✓' if median(ratios) >= _COST else '✗ missed'}",
        )
    section.add(table)


def _hostile(origins: list[str], port: int) -> list[dict[str, Any]]:
    return [
        {
            **subscription_for(1000 + number, host, port, "hostile", _TYPE),
            "timeout": "10m",
            "max_in_flight": 32,
        }
        for number, host in enumerate(origins)
    ]


def _turn(broker: str, folder: Path, *, seconds: float, hostile: bool) -> list[float]:
    """Seconds that each delivery of an honest tenant took, sorted."""
    name = f"bench-hostile-{next(_runs)}-{os.getpid()}"
    own = folder / name
    own.mkdir()
    honest = addresses(_HONEST)
    origins = [f"127.200.{1 + number // 250}.{1 + number % 250}" for number in range(_ORIGINS)]
    kinds = [(_TYPE, f"tenant-{number}") for number in range(_HONEST)]
    bursts = (
        Message(name, envelope(number, BODY_BYTES, _TYPE, "hostile")[1], partition=number % PARTITIONS)
        for number in range(_BURST if hostile else 0)
    )
    fill(broker, name, bursts)
    with Nginx(honest, count=True) as endpoint, contextlib.ExitStack() as stack:
        listed = [
            subscription_for(number, host, endpoint.port, f"tenant-{number}", _TYPE)
            for number, host in enumerate(honest)
        ]
        if hostile:
            for host in origins:
                stack.enter_context(Dead(host, endpoint.port))
            listed += _hostile(origins, endpoint.port)
        daemon = Daemon(
            broker,
            endpoint,
            own,
            topic=name,
            subscriptions=listed,
            topics={"prefix": f"{name}."},
            **DEFAULTS,
        )
        with daemon.started():
            daemon.wait_until_ready()
            if hostile:
                wait_for(
                    lambda: daemon.scrape()["tenants_at_share"] == 1,
                    _LATE,
                    "the hostile tenant has its share",
                )
            warm = uvloop.run(publish(broker, name, _PACE, _WARM, kinds))
            ids = uvloop.run(publish(broker, name, _PACE, seconds, kinds))
            expected = len(warm) + len(ids)
            wait_until_delivered(daemon, expected, _LATE)
        return sorted(arrived([*warm, *ids], ids, endpoint.arrivals(), _HONEST)[0])


def _among_hostile_ones(section: Section, broker: str, folder: Path, *, quick: bool, runs: int) -> None:
    seconds = 10 if quick else 60
    without: list[list[float]] = []

    def baseline() -> float:
        without.append(_turn(broker, folder, seconds=seconds, hostile=False))
        return percentile(without[-1], 0.99)

    def measured() -> tuple[float, list[float]]:
        taken = _turn(broker, folder, seconds=seconds, hostile=True)
        return percentile(taken, 0.99), taken

    compared = beside_wrk(measured, baseline, runs)
    table = Table(("honest tenants, ms", "without", "with a hostile one", "ratio, in turns", "wanted"))
    for what, share in (("p50", 0.5), ("p99", 0.99), ("longest", 1.0)):
        figures = (
            spread([percentile(each, share) * 1000 for each in turns], "{:.1f}".format)
            for turns in (without, compared.seen)
        )
        if what == "p99":
            holds = median(compared.ratios) <= _RATIO
            table.add(
                what,
                *figures,
                spread(compared.ratios, two_digits),
                f"<= {_RATIO:g} {'✓' if holds else '✗ missed'}",
            )
        else:
            table.add(what, *figures, "", "")
    section.add(table)
    if remark := compared.remark():
        section.add(remark)
    section.add(
        f"{_HONEST} honest tenants with a host each, {_PACE:,} events of {BODY_BYTES} bytes a second for {seconds} s. The hostile tenant has {_ORIGINS} origins that "
        f"never answer, and is owed {_ORIGINS * _BURST:,} deliveries. Every event of an honest tenant arrived."
    )


def run(command: str, *, quick: bool, count: int | None = None, runs: int | None = None) -> Section:
    """All parts."""
    require("nginx", "taskset")
    section = Section("Tenants", command)
    turns = runs or (1 if quick else 3)
    with kafka() as broker, tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        _in_one_process(section, quick=quick)
        _many(section, broker, folder, count=count or (20_000 if quick else _EVENTS), runs=turns)
        _among_hostile_ones(section, broker, folder, quick=quick, runs=turns)
    return section
