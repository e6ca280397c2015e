"""The real daemon, as processes, through a schedule of faults, and a ledger that shows what was lost.

A producer writes events with known ids while replicas die, freeze, leave and come back, the broker is killed, and
relays cut replicas off from it. Then everything heals, and the run waits until the ledger is complete and
everything is committed. What counts:

1. Nothing is lost (`ledger.lost`), however long it took; what picky refuses is in the dead-letter topic.
2. Every duplicate is explained, and there are no more of them than `ledger.bound`: what was in flight when trouble began,
   and what was completed within the last commit interval before.
3. No daemon ends by itself, none logs a traceback, each ends with 0 after SIGTERM.
4. The group's committed positions reach the end, and a fresh start delivers nothing.

The producer and everything else of the harness connect to the broker directly; only the daemons go through relays.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from dispatcher.broker.base import (
    Broker,
    BrokerError,
    Jump,
    Message,
    Position,
    Record,
    TopicPartition,
    TopicSpec,
)
from dispatcher.broker.kafka.broker import KafkaBroker
from dispatcher.broker.open import open_broker
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.settings import DeliverySettings, KafkaSettings
from tests.e2e.daemon import Daemon, envelope
from tests.kafka.server import Cluster
from tests.ports import free_port
from tests.torture import ledger as books, mutants
from tests.torture.endpoints import Endpoints, refused
from tests.torture.ledger import COMMITTED, Debt, Payment, Trouble
from tests.torture.relay import Relay, RelayedCluster
from tests.torture.schedule import Fault, Kind, Schedule

PARTITIONS = 4
REPLICAS = 2
SESSION = 6.0
DRAIN = 5.0
STOPS_WITHIN = 60.0  # drain, and what a broker that is away costs
COMPLETE_WITHIN = 150.0
PARKED_WITHIN = 600.0  # what waited for an endpoint that hung gets its appointments by how little that took
COMMITTED_WITHIN = 30.0
_LEAVES_WITHIN = 6.0  # at the end of a stop: what is left is written, committed, and the groups are left
_HEARD_WITHIN = 10.0  # that its partitions are somebody else's
_QUIET = 4.0  # seconds without anything to do, after which nothing is thought to come any more
_ROOM = 12 << 20  # of the small disk
_BUSY = re.compile(
    rb"^dispatcher_(?:deliveries_in_flight|partition_lag|outbox_waiting)(?:\{.*\})? (\S+)$", re.MULTILINE
)
_TIERS = ("1s", "2s", "5s")


@dataclass
class Report:
    """What a run came to."""

    broker: str
    schedule: Schedule
    events: int = 0
    owed: int = 0
    lost: int = 0
    duplicates: int = 0
    bound: int = 0
    oldest: float = 0.0  # seconds before its trouble that the oldest duplicate had been paid
    causes: Counter[str] = field(default_factory=Counter)  # of duplicates, by kind of trouble
    dead: int = 0
    parked: Counter[str] = field(default_factory=Counter)  # records in retry topics, by why
    healed_after: float = 0.0  # seconds from the end of the faults to the complete ledger
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)  # seconds that each took
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    folder: Path = Path()

    HEAD = (
        "| broker | seed | events | owed | lost | duplicates | bound | explained by | oldest s | dead | healed s | all s"
        " | findings |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |"
    )

    def __str__(self) -> str:
        return (
            f"| {self.broker} | {self.schedule.seed} | {self.events} | {self.owed} | {self.lost} | {self.duplicates}"
            f" | {self.bound} | {', '.join(f'{kind} {n}' for kind, n in sorted(self.causes.items())) or '-'}"
            f" | {self.oldest:.1f} | {self.dead} | {self.healed_after:.1f} | {self.seconds:.1f} | {len(self.findings)} |"
        )

    def line(self) -> bytes:
        """For `totals.py`: one line of JSON."""
        schedule = self.schedule
        return orjson.dumps(
            {
                "broker": self.broker,
                "seed": schedule.seed,
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "schedule": str(schedule),
                "parking": schedule.parking,
                "longest_stop": max((f.lasts for f in schedule.faults if f.kind is Kind.STOP), default=0.0),
                "events": self.events,
                "owed": self.owed,
                "lost": self.lost,
                "duplicates": self.duplicates,
                "bound": self.bound,
                "oldest": round(self.oldest, 2),
                "causes": self.causes,
                "dead": self.dead,
                "parked": self.parked,
                "healed_after": round(self.healed_after, 1),
                "seconds": round(self.seconds, 1),
                "stages": {name: round(seconds, 1) for name, seconds in self.stages.items()},
                "findings": self.findings,
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )


class Replica:
    """One daemon, however often it is started. `lock` is held by whoever is doing something to it."""

    def __init__(self, name: str, number: int, daemon: Daemon, endpoints: Endpoints, report: Report) -> None:
        self.name = name
        self.daemon = daemon
        self.lock = asyncio.Lock()
        self.up = False
        self.troubles: list[Trouble] = []
        self.births: list[tuple[float, str]] = []
        self._number = number
        self._endpoints = endpoints
        self._report = report

    @property
    def life(self) -> str:
        return f"{self._number}.{len(self.births)}"

    async def start(self) -> None:
        self.births.append((now(), f"{self._number}.{len(self.births) + 1}"))
        self.daemon.write_subscriptions(self._endpoints.subscriptions(self.life))
        await self.daemon.start(ready=False)
        self.up = True

    def trouble(
        self, kind: str, begin: float, until: float, since: float | None = None, over: float | None = None
    ) -> None:
        self.troubles.append(Trouble(kind, self.life, begin, until, since, over))

    async def kill(self) -> None:
        self.check()
        self.up = False
        begin = now()
        await self.daemon.kill()
        self.trouble("kill", begin, math.inf, over=now())

    async def terminate(self) -> None:
        """SIGTERM, and wait for its end."""
        if not self.check():
            return
        # Before it handles signals, one ends it as it ends any process.
        early = (await self._get("/healthz")) != 200
        self.up = False
        begin = now()
        self.daemon.signal(signal.SIGTERM)
        try:
            code = await self.daemon.ended(STOPS_WITHIN)
        except TimeoutError:
            self._report.findings.append(f"{self.name}: did not end within {STOPS_WITHIN:.0f} s of SIGTERM")
            await self.daemon.kill()
            return
        finally:
            # It commits what has ended; only what was cut off at the end of the drain may come again.
            self.trouble("term", begin, math.inf, since=max(begin, now() - _LEAVES_WITHIN), over=now())
        if code != 0 and not (early and code == -signal.SIGTERM):
            self._report.findings.append(f"{self.name}: exit code {code} after SIGTERM")
        self._report.notes.append(f"{self.name}: ended {now() - begin:.1f} s after SIGTERM")

    def check(self) -> bool:
        """Whether it runs as it should; if it ended by itself that is a finding."""
        if self.up and not self.daemon.running:
            self.up = False
            tail = "\n    ".join(self.daemon.log().splitlines()[-15:])
            self._report.findings.append(f"{self.name}: ended by itself:\n    {tail}")
        return self.up

    async def busy(self) -> bool:
        """Whether it isn't ready, or has anything in flight or to read."""
        try:
            async with asyncio.timeout(2.0):
                if (await self.daemon.get("/readyz"))[0] != 200:
                    return True
                _, body = await self.daemon.get("/metrics")
        except TimeoutError:
            return True
        values = _BUSY.findall(body)
        return not values or any(float(value) for value in values)

    async def _get(self, path: str) -> int:
        try:
            async with asyncio.timeout(2.0):
                return (await self.daemon.get(path))[0]
        except TimeoutError:
            return 0

    def heard(self) -> list[Trouble]:
        """What its log tells of: partitions that were taken from it, commits that came too late."""
        ahead = time.time() - now()
        found = []
        for message, earlier in {"partitions revoked": 0.5, "commit refused": SESSION + COMMITTED}.items():
            for line in self.daemon.log_lines(message):
                at = datetime.fromisoformat(line["timestamp"]).timestamp() - ahead
                life = ["", *(name for birth, name in self.births if birth <= at)][-1]
                found.append(Trouble(message.split()[-1], life, at - earlier, at + _HEARD_WITHIN))
        return found


def now() -> float:
    """Seconds of the loop's clock, by which everything here is noted."""
    return asyncio.get_running_loop().time()


class _Listener:
    """Of a consumer that only reads."""

    async def on_assigned(self, partitions: Mapping[TopicPartition, Position]) -> None: ...

    async def on_revoked(self, partitions: Collection[TopicPartition]) -> None: ...

    def on_gone(self, partitions: Collection[TopicPartition]) -> None: ...

    def on_jump(self, jump: Jump) -> None: ...


async def read_all(broker: Broker, topics: Sequence[str]) -> list[tuple[TopicPartition, Record]]:
    """Every record of the topics and where it stands, through a group of its own."""
    infos = [info for info in await broker.topics() if info.name in topics]
    ends = {
        TopicPartition(info.name, each.partition): each.latest
        for info in infos
        for each in info.partitions
        if each.latest > each.earliest
    }
    records: list[tuple[TopicPartition, Record]] = []
    consumer = broker.consumer(topics, f"audit-{uuid.uuid4().hex}", _Listener())
    try:
        async with asyncio.timeout(60.0):
            await consumer.start()
            while ends:
                for partition, batch in await consumer.poll(1.0, 5000):
                    records += ((partition, record) for record in batch)
                    if batch and batch[-1].offset + 1 >= ends.get(partition, 0):
                        ends.pop(partition, None)
    finally:
        await consumer.stop()
    return records


class Run:
    """One seed on one kind of broker: what both have in common."""

    def __init__(self, report: Report, endpoints: Endpoints, folder: Path) -> None:
        self.report = report
        self.schedule = report.schedule
        self.endpoints = endpoints
        self.folder = folder
        self.name = f"torture{self.schedule.seed}-{uuid.uuid4().hex[:6]}"
        self.topic = f"{self.name}.events"
        self.dead_topic = f"{self.name}.dead"
        self.ids: list[str] = []
        self.troubles: list[Trouble] = []
        self.committed: dict[int, int] = {}
        self.clock = now
        self.tasks = Tasks()
        self._stage_begun = now()

    def stage(self, name: str) -> None:
        """What has gone by since the last one was that."""
        begun, self._stage_begun = self._stage_begun, self.clock()
        self.report.stages[name] = self.report.stages.get(name, 0.0) + self._stage_begun - begun

    @property
    def own_topics(self) -> list[str]:
        """The topics from which the end is told."""
        return [self.topic, self.dead_topic, *(f"{self.name}.retry.{level}" for level in _TIERS)]

    def replica(self, number: int, broker: str) -> Replica:
        folder = self.folder / f"{self.name}-{number}"
        folder.mkdir()
        port = free_port()
        own = DeliverySettings()  # what a deployment has that says nothing of it
        isolation = {
            "breaker_threshold": own.breaker_threshold,
            "max_queue_wait": f"{own.max_queue_wait:g}s",
        }
        daemon = Daemon(
            folder,
            broker,
            self.endpoints.subscriptions(),
            group=self.name,
            http={"port": port},
            topics={"events": [self.topic], "prefix": f"{self.name}."},
            delivery={
                "max_in_flight": self.schedule.max_in_flight,
                **(isolation if self.schedule.parking else {}),
            },
            retry={
                "tiers": list(_TIERS),
                "horizon": f"{self.schedule.horizon:g}s",
                "hold_limit": f"{self.schedule.hold_limit:g}s",
            },
            shutdown={"drain": f"{DRAIN:g}s"},
            kafka={
                "session_timeout": f"{SESSION:g}s",
                "heartbeat_interval": "1s",
                "rebalance_timeout": "10s",
                "request_timeout": "10s",
            },
        )
        daemon.port = port
        return Replica(
            f"seed {self.schedule.seed} replica {number}", number, daemon, self.endpoints, self.report
        )

    def messages(self, count: int) -> list[Message]:
        messages = []
        for number in range(len(self.ids), len(self.ids) + count):
            event, value = envelope(number, size=100)
            self.ids.append(event)
            messages.append(Message(self.topic, value, key=b"%d" % number))
        return messages

    def owed(self) -> set[Debt]:
        return {(each["id"], event) for each in self.endpoints.subscriptions() for event in self.ids}

    def incomplete(self) -> int:
        """Debts that are not paid and are not expected in the dead-letter topic."""
        paid = self.endpoints.ledger.paid
        return sum(
            1
            for debt in self.owed()
            if debt not in paid and not (debt[0] == "sub_picky" and refused(debt[1]))
        )

    async def until(self, done: Callable[[], bool], within: float) -> bool:
        deadline = self.clock() + within
        while not done():
            if self.clock() > deadline:
                return False
            await asyncio.sleep(0.1)
        return True

    def judge(self, replicas: Sequence[Replica], records: Sequence[tuple[TopicPartition, Record]]) -> None:
        report, ledger = self.report, self.endpoints.ledger
        ahead = time.time() - self.clock()
        places: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        dead: set[Debt] = set()
        for (topic, partition), record in records:
            if topic == self.topic:
                event = orjson.loads(record.value or b"{}")["id"]
                places[event].append((partition, record.offset))
                continue
            headers = {name: (value or b"").decode() for name, value in record.headers}
            debt = (headers["subscription_id"], headers["event_id"])
            if topic == self.dead_topic:
                dead.add(debt)
                continue
            report.parked[headers["reason"]] += 1
            # For the retry of an attempt that got through it was asked.
            if headers["reason"] != "retry" or headers.get("last_result", "").startswith("connect"):
                ledger.aside[debt].append(record.timestamp / 1000 - ahead)
        if missing := [event for event in self.ids if event not in places]:
            report.findings.append(
                f"the broker lost {len(missing)} acknowledged events (no fault of the dispatcher)"
            )
        copies = {event: len(found) for event, found in places.items()}
        owed = self.owed()
        report.events, report.owed, report.dead = len(self.ids), len(owed), len(dead)
        lost = books.lost(ledger, owed, dead)
        report.lost = len(lost)
        if lost:
            asked = sum(1 for debt in lost if ledger.requests[debt])
            shown = ", ".join(f"{debt[0]} {debt[1]} at {places[debt[1]]}" for debt in lost[:10])
            report.findings.append(f"lost {len(lost)} deliveries ({asked} of them attempted): {shown}")
        for replica in replicas:
            self.troubles += replica.troubles
            self.troubles += replica.heard()
        report.duplicates = books.excess(ledger, copies)
        report.bound = books.bound(ledger, self.troubles)
        strange: list[str] = []
        for debt, payments in books.duplicates(ledger, copies):
            found = books.causes(ledger, debt, payments, copies[debt[1]], self.troubles)
            for number, cause in enumerate(found, start=len(payments) - len(found)):
                if cause is None:
                    strange.append(f"{debt[0]} {debt[1]} at {places[debt[1]]}: {payments}")
                else:
                    report.causes[cause.kind] += 1
                    report.oldest = max(report.oldest, cause.begin - payments[number - 1].at)
        if report.duplicates > report.bound:
            report.findings.append(f"{report.duplicates} duplicates, and the bound is {report.bound}")
        if strange:
            report.findings.append(
                f"{len(strange)} duplicates that nothing explains: {'; '.join(strange[:4])}"
            )
        self._write_down(places)
        for replica in replicas:
            self._read_log(replica)

    def _write_down(self, places: Mapping[str, Sequence[tuple[int, int]]]) -> None:
        """Beside the logs, for whoever looks for the cause; times as in the logs."""
        ahead = time.time() - self.clock()

        def wall(at: float) -> str:
            return "" if math.isinf(at) else datetime.fromtimestamp(at + ahead, UTC).isoformat()

        def told(payment: Payment) -> str:
            return f"{wall(payment.at)} from {payment.life}"

        document = {
            "schedule": str(self.schedule),
            "troubles": [
                f"{wall(each.begin)} to {wall(each.until)}: {each}"
                for each in sorted(self.troubles, key=lambda each: each.begin)
            ],
            "paid": {
                f"{subscription} {event}": {
                    "at": [f"{p}:{offset}" for p, offset in places.get(event, ())],
                    "paid": [told(each) for each in payments],
                }
                for (subscription, event), payments in self.endpoints.ledger.paid.items()
            },
        }
        (self.folder / f"{self.name}.json").write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))

    def _read_log(self, replica: Replica) -> None:
        for number, line in enumerate(replica.daemon.log().splitlines(), start=1):
            if "Traceback" in line:
                where = f"{replica.daemon.output}, line {number}"
                self.report.findings.append(f"{replica.name}: traceback in {where}:\n    {line[:3000]}")
                return

    async def settled(self, replicas: Sequence[Replica]) -> None:
        """Wait for the ledger, and until nothing is in flight and the retry topics are empty: copies may wait there of what has
        been paid. Where nothing is left to be done, nothing more will be paid.
        """
        begin = self.clock()
        quiet = 0.0
        within = PARKED_WITHIN if self.schedule.parking else COMPLETE_WITHIN
        while quiet < (_QUIET if self.incomplete() else _QUIET / 2):
            if self.clock() - begin > within:
                self.report.findings.append(
                    f"after {within:.0f} s {self.incomplete()} debts are open, or it is still busy"
                )
                break
            before = self.clock()
            busy = [await replica.busy() for replica in replicas if replica.check()]
            await asyncio.sleep(0.2)
            quiet = quiet + self.clock() - before if busy and not any(busy) else 0.0
            if self.incomplete():
                self.report.healed_after = self.clock() - begin

    async def nothing_left(self, replica: Replica) -> None:
        """A fresh start delivers nothing."""
        before = self.endpoints.ledger.requests.total()
        await replica.start()
        try:
            await replica.daemon.ready(within=60.0)
        except AssertionError as error:
            self.report.findings.append(f"{replica.name}: not ready after the faults: {str(error)[-1500:]}")
        await asyncio.sleep(2.0)
        if again := self.endpoints.ledger.requests.total() - before:
            self.report.findings.append(f"{again} requests after a fresh start, with everything committed")
        await replica.terminate()


class KafkaRun(Run):
    def __init__(self, report: Report, endpoints: Endpoints, folder: Path, ground: Ground) -> None:
        super().__init__(report, endpoints, folder)
        self.ground = ground
        self.broker = KafkaBroker(ground.cluster.bootstrap.split(","), KafkaSettings(request_timeout="10s"))
        self.broker_lock = asyncio.Lock()
        self.replicas = [
            self.replica(number, f"kafka://{ground.address(number)}") for number in range(REPLICAS)
        ]

    async def __call__(self) -> None:
        await self.broker.connect()
        try:
            await self.broker.ensure_topics([TopicSpec(self.topic, PARTITIONS)], create=True)
            sampling = self.tasks.start(self._sample(), "sample commits")
            producing = self.tasks.start(self._produce(), "produce")
            playing = self.tasks.start(self.endpoints.play(self.schedule.phases), "play")
            for replica in self.replicas[: self.schedule.replicas]:
                await replica.start()
            started = self.clock()
            faults = [
                self.tasks.start(self._inflict(fault, started), str(fault)) for fault in self.schedule.faults
            ]
            self.stage("start")
            await asyncio.gather(*faults, playing, producing)
            self.stage("faults")
            await self._heal()
            await self.settled(self.replicas)
            self.stage("settle")
            await self._committed()
            self.stage("commit")
            sampling.cancel()
            await asyncio.gather(*(replica.terminate() for replica in self.replicas))
            self.stage("stop")
            await self.nothing_left(self.replicas[0])
            self.stage("nothing left")
            self.judge(self.replicas, await read_all(self.broker, self.own_topics))
            self.stage("judge")
        finally:
            for replica in self.replicas:
                replica.up = False
                await replica.daemon.kill()
            await self.tasks.stop()
            await self.broker.close()
            self.ground.heal()

    async def _produce(self) -> None:
        steps = max(1, round(self.schedule.length * 5))
        left = self.schedule.events
        for step in range(steps, 0, -1):
            count = left // step
            left -= count
            messages = self.messages(count)
            while messages:
                try:
                    await self.broker.produce(messages)
                    break
                except BrokerError:
                    await asyncio.sleep(0.5)
            await asyncio.sleep(0.2)

    async def _sample(self) -> None:
        while True:
            with contextlib.suppress(BrokerError):
                await self._look()
            await asyncio.sleep(0.5)

    async def _look(self) -> None:
        found = await self.broker._with_admin(
            lambda admin: admin.list_consumer_group_offsets(self.name), "looking at the commits"
        )
        for key, position in found.items():
            if key.topic == self.topic and position.offset >= 0:
                self.committed[key.partition] = position.offset

    async def _committed(self) -> None:
        """Wait until the group has committed everything."""
        ends: dict[int, int] = {}
        for info in await self.broker.topics():
            if info.name == self.topic:
                ends = {each.partition: each.latest for each in info.partitions}

        def behind() -> dict[int, tuple[int, int]]:
            return {
                p: (self.committed.get(p, 0), end)
                for p, end in ends.items()
                if self.committed.get(p, 0) < end
            }

        if not await self.until(lambda: not behind(), COMMITTED_WITHIN):
            self.report.findings.append(
                f"commits did not reach the end: partition: (committed, end): {behind()}"
            )

    async def _heal(self) -> None:
        self.ground.heal()
        self.endpoints.heal()
        for node in self.ground.cluster.nodes:
            if node.pid is None:
                await asyncio.to_thread(node.start)
        for replica in self.replicas:
            if not replica.check() and replica is self.replicas[0]:
                await replica.start()

    async def _inflict(self, fault: Fault, started: float) -> None:
        await asyncio.sleep(max(0.0, started + fault.at - self.clock()))
        replica = self.replicas[fault.target % REPLICAS]
        if fault.kind is Kind.BROKER:
            async with self.broker_lock:
                begin = self.clock()
                nodes = self.ground.cluster.nodes
                node = nodes[fault.target % len(nodes)]
                await asyncio.to_thread(node.kill)
                await asyncio.sleep(fault.lasts)
                await asyncio.to_thread(node.start)
                self.troubles.append(Trouble("broker", None, begin, self.clock() + _HEARD_WITHIN))
            return
        async with replica.lock:
            begin = self.clock()
            if not replica.check():  # not there yet: it joins
                await replica.start()
                return
            match fault.kind:
                case Kind.KILL:
                    await replica.kill()
                    await asyncio.sleep(fault.lasts)
                    await replica.start()
                case Kind.TERM:
                    await replica.terminate()
                    await asyncio.sleep(fault.lasts)
                    await replica.start()
                case Kind.STOP:
                    replica.daemon.signal(signal.SIGSTOP)
                    await asyncio.sleep(fault.lasts)
                    replica.daemon.signal(signal.SIGCONT)
                    replica.trouble("stop", begin, self.clock() + _HEARD_WITHIN)
                case Kind.CUT | Kind.STALL:
                    relay = self.ground.relays[fault.target]
                    relay.cut() if fault.kind is Kind.CUT else relay.stall()
                    await asyncio.sleep(fault.lasts)
                    relay.heal()
                    replica.trouble(fault.kind.value, begin, self.clock() + _HEARD_WITHIN)
                case _:
                    raise AssertionError(f"no fault of a replica: {fault}")


class EmbeddedRun(Run):
    """SQLite serves one process: the events are written between two lives of the daemon."""

    def __init__(
        self,
        report: Report,
        endpoints: Endpoints,
        folder: Path,
        disk: Path | None,
        mutant: str | None,
    ) -> None:
        super().__init__(report, endpoints, folder)
        self.disk = disk
        place = (disk or folder) / self.name
        self.url = f"sqlite:///{place}.db"
        self.one = self.replica(0, self.url)
        if mutant is not None:
            self.one.daemon.command = [sys.executable, mutants.__file__, mutant]

    async def __call__(self) -> None:
        playing = self.tasks.start(self.endpoints.play(self.schedule.phases), "play")
        share = self.schedule.events // len(self.schedule.faults)
        try:
            for fault in self.schedule.faults:
                await self._write(share)
                started = self.clock()
                await self.one.start()
                if fault.at >= 1.0:  # else somewhere while it starts
                    await self.until(lambda: self.endpoints.last_request > started, 60.0)  # noqa: B023 - awaited here
                await asyncio.sleep(fault.at)
                await self._inflict(fault)
                await self._look()
            self.stage("faults")
            playing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await playing
            self.endpoints.heal()
            await self.one.start()
            await self.settled([self.one])
            self.stage("settle")
            await self.one.terminate()
            await self._look()
            self.stage("stop")
            await self.nothing_left(self.one)
            self.stage("nothing left")
            broker = await self._open()
            try:
                self.judge([self.one], await read_all(broker, self.own_topics))
            finally:
                await broker.close()
            self.stage("judge")
        finally:
            self.one.up = False
            await self.one.daemon.kill()
            await self.tasks.stop()

    async def _open(self) -> Broker:
        broker = open_broker(self.url, KafkaSettings())
        await broker.connect()
        return broker

    async def _write(self, count: int) -> None:
        broker = await self._open()
        try:
            await broker.ensure_topics([TopicSpec(self.topic, PARTITIONS)], create=True)
            await broker.produce(self.messages(count))
        finally:
            await broker.close()

    async def _look(self) -> None:
        broker = await self._open()
        try:
            for info in await broker.topics(self.name):
                if info.name == self.topic:
                    self.committed = {each.partition: each.committed or 0 for each in info.partitions}
        finally:
            await broker.close()

    async def _inflict(self, fault: Fault) -> None:
        if fault.kind is Kind.FULL:
            if self.disk is None:
                self.report.notes.append("no small disk here (it takes root): not filled")
            else:
                begin = self.clock()
                with _filled(self.disk):
                    await asyncio.sleep(fault.lasts)
                    self.one.check()
                # Room again: it has to go on by itself, and then its end is as good as any.
                await asyncio.sleep(1.0)
                self.one.trouble("full", begin, self.clock() + _HEARD_WITHIN)
        if fault.kind is Kind.TERM:
            await self.one.terminate()
        else:
            await self.one.kill()


@contextlib.contextmanager
def _filled(disk: Path) -> Any:
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size):
                    pass
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def _small_disk(folder: Path) -> Any:
    """A tmpfs of its own, where that is allowed; else None."""
    disk = folder / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_ROOM}", "none", str(disk)]
    if (
        os.geteuid() != 0
        or shutil.which("mount") is None
        or subprocess.run(command, capture_output=True, check=False).returncode != 0
    ):
        yield None
        return
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


class Ground:
    """One Kafka for any number of runs: a node and a relay for each replica, or three nodes and replication 3."""

    def __init__(self, *, replicated: bool) -> None:
        self.relays = [] if replicated else [Relay() for _ in range(REPLICAS)]
        self.cluster = Cluster(3) if replicated else RelayedCluster(self.relays)

    def address(self, replica: int) -> str:
        """Where that replica finds the broker."""
        return f"127.0.0.1:{self.relays[replica].port}" if self.relays else self.cluster.bootstrap

    def heal(self) -> None:
        for relay in self.relays:
            relay.heal()


@contextlib.asynccontextmanager
async def kafka_ground(*, replicated: bool = False) -> AsyncIterator[Ground]:
    """Raises tests.kafka.server.Unavailable where there is no Kafka."""
    ground = Ground(replicated=replicated)
    for relay in ground.relays:
        await relay.start()
    try:
        await asyncio.to_thread(ground.cluster.start)
        yield ground
    finally:
        await asyncio.to_thread(ground.cluster.stop)
        for relay in ground.relays:
            await relay.close()


async def torture(
    schedule: Schedule, folder: Path, ground: Ground | None, *, mutant: str | None = None
) -> Report:
    """One run: on Kafka, or without a ground on the embedded broker; `mutant` names a daemon of mutants.py."""
    report = Report(_kind(ground), schedule, folder=folder)
    begin = time.monotonic()
    async with Endpoints(schedule.seed) as endpoints:
        if ground is not None:
            await KafkaRun(report, endpoints, folder, ground)()
        else:
            small = Path(tempfile.mkdtemp(prefix="torture-", dir=folder))
            with _small_disk(small) as disk:
                await EmbeddedRun(report, endpoints, folder, disk, mutant)()
    report.seconds = time.monotonic() - begin
    return report


def _kind(ground: Ground | None) -> str:
    if ground is None:
        return "sqlite"
    return "kafka" if ground.relays else "replicated"
