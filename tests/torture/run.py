"""One seed on one kind of broker: what all have in common, and the judgement at the end.

What counts:

1. Nothing is lost (`ledger.lost`), however long it took; what picky refuses is in the dead-letter topic. What expired before
   it was read, and what was matched while its subscription was paused, need not come; the daemon has to say of the first that it is gone.
2. Every duplicate is explained, and there are no more of them than `ledger.bound`: what was in flight when trouble began,
   and what was completed within the last commit interval before.
3. No daemon ends by itself, none logs a traceback, each ends with 0 after SIGTERM.
4. The group's committed positions reach the end, and a fresh start delivers nothing.
5. A subscription that is paused gets nothing; one endpoint's stall delays nothing for longer than what has gathered takes.
6. With the trait `history`, the history says the same as the endpoints (`history.py`).
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from dispatcher.broker.base import Broker, Jump, Message, Position, Record, TopicPartition
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import DeliverySettings
from tests.e2e.daemon import Daemon, envelope
from tests.ports import free_port
from tests.torture import ledger as books
from tests.torture.endpoints import Endpoints
from tests.torture.history import HistoryAudit
from tests.torture.hitches import Hitches
from tests.torture.ledger import Debt, Payment, Trouble
from tests.torture.pauses import Pauses
from tests.torture.replica import Replica, now
from tests.torture.report import Report
from tests.torture.store import HistoryServer
from tests.torture.subscribers import BURST, EVENT, STALLING, Published, Subscribers
from tests.torture.traits import Trait

PARTITIONS = 4
SESSION = 6.0
ALONE_SESSION = 30.0  # a deployment's
DRAIN = 5.0
COMPLETE_WITHIN = 150.0
PARKED_WITHIN = 600.0  # what waited for an endpoint that hung gets its appointments by how little that took
_MUTANTS = Path(__file__).with_name("mutants.py")
_QUIET = 4.0  # seconds without anything to do, after which nothing is thought to come any more
_TIERS = ("1s", "2s", "5s")
_RESUMES_WITHIN = (
    12.0  # from the start of the only replica after kill -9 to its first request; 3 s on an idle machine
)
_DRAINS = 5.0  # seconds after a stall, and what follows takes at so many a second
_DRAIN_RATE = 100.0


class Placed(NamedTuple):
    """A record and where it stands; `epoch` tells topics of one name apart."""

    partition: TopicPartition
    record: Record
    epoch: int = 0


class Found(NamedTuple):
    """What the records say."""

    places: Mapping[str, Sequence[tuple[int, TopicPartition, int]]]
    """Where each event stands: epoch, partition and offset."""
    dead: Collection[Debt]
    dead_ids: Collection[str]
    """Of the deliveries whose dead letters there are."""
    refused_at: Collection[tuple[str, int, int]]
    """Where the records stand that were no events, and have a dead letter."""
    written: Mapping[Debt, Sequence[tuple[TopicPartition, int]]]
    """Where retries stand."""


class Late(NamedTuple):
    """What a stall left undelivered for too long."""

    begin: float
    deadline: float
    debts: Sequence[Debt]


class _Listener:
    """Of a consumer that only reads."""

    async def on_assigned(self, partitions: Mapping[TopicPartition, Position]) -> None: ...

    async def on_revoked(self, partitions: Collection[TopicPartition]) -> None: ...

    def on_gone(self, partitions: Collection[TopicPartition]) -> None: ...

    def on_jump(self, jump: Jump) -> None: ...


async def read_all(broker: Broker, topics: Sequence[str], epoch: int = 0) -> list[Placed]:
    """Every record of the topics and where it stands, through a group of its own."""
    infos = [info for info in await broker.topics() if info.name in topics]
    ends = {
        TopicPartition(info.name, each.partition): each.latest
        for info in infos
        for each in info.partitions
        if each.latest > each.earliest
    }
    records: list[Placed] = []
    if not ends:
        return records
    consumer = broker.consumer([info.name for info in infos], f"audit-{uuid.uuid4().hex}", _Listener())
    try:
        async with asyncio.timeout(60.0):
            await consumer.start()
            while ends:
                for partition, batch in await consumer.poll(1.0, 5000):
                    records += (Placed(TopicPartition(*partition), record, epoch) for record in batch)
                    if batch and batch[-1].offset + 1 >= ends.get(partition, 0):
                        ends.pop(partition, None)
    finally:
        await consumer.stop()
    return records


class Run:
    """One seed on one kind of broker."""

    def __init__(
        self,
        report: Report,
        endpoints: Endpoints,
        folder: Path,
        mutant: str | None = None,
        store: HistoryServer | None = None,
    ) -> None:
        """`mutant` names a daemon of mutants.py; `store` has the history, where that isn't on SQLite."""
        self.report = report
        self.schedule = report.schedule
        self.endpoints = endpoints
        self.ledger = endpoints.ledger
        self.folder = folder
        self.traits = self.schedule.traits
        self.name = f"torture{self.schedule.seed}-{uuid.uuid4().hex[:6]}"
        self.topic = f"{self.name}.events"
        self.more = f"{self.name}.more"  # the second event topic, where there is one
        self.dead_topic = f"{self.name}.dead"
        self.subscribers = Subscribers(
            self.schedule.seed, self.traits, endpoints.ports, self.schedule.timeout
        )
        self.published: dict[str, Published] = {}
        self.troubles: list[Trouble] = []
        self.committed: dict[TopicPartition, int] = {}
        self.saved: list[Placed] = []  # records that were there, of topics or partitions that were emptied
        self.odd: set[tuple[str, int, int]] = set()  # where records stand that owe a dead letter
        self.late: list[Late] = []
        self.hopeful = 0.0  # until when what is open may still be found without anybody being busy
        self.clock = now
        self.tasks = Tasks()
        self.hitches = Hitches()
        self.tasks.start(self.hitches.run(), "hitches")
        self.replicas: list[Replica] = []
        self.doing: list[asyncio.Task[None]] = []
        self.pauses = Pauses(self)
        self.audit = HistoryAudit(self)
        self.found = Found({}, (), (), (), {})
        self._mutant = mutant
        self._store = store
        self._stage_begun = now()

    def stage(self, name: str) -> None:
        """What has gone by since the last one was that."""
        begun, self._stage_begun = self._stage_begun, self.clock()
        self.report.stages[name] = self.report.stages.get(name, 0.0) + self._stage_begun - begun

    @property
    def event_topics(self) -> list[str]:
        return [self.topic, self.more] if Trait.ANEW in self.traits else [self.topic]

    @property
    def retry_topics(self) -> list[str]:
        return [f"{self.name}.retry.{level}" for level in (*_TIERS, "parked")]

    @property
    def own_topics(self) -> list[str]:
        """The topics from which the end is told."""
        return [*self.event_topics, self.dead_topic, *self.retry_topics]

    def replica(self, number: int, broker: str) -> Replica:
        folder = self.folder / f"{self.name}-{number}"
        folder.mkdir()
        history = {} if self._store is None else {"store": self._store.url(self.schema)}
        port = free_port()
        own = DeliverySettings()  # what a deployment has that says nothing of it
        isolation = {
            "breaker_threshold": own.breaker_threshold,
            "max_queue_wait": f"{own.max_queue_wait:g}s",
        }
        session = ALONE_SESSION if Trait.ALONE in self.traits else SESSION
        daemon = Daemon(
            folder,
            broker,
            [],
            group=self.name,
            http={"port": port},
            topics={"events": self.event_topics, "prefix": f"{self.name}."},
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
            history=history,
            kafka={
                "session_timeout": f"{session:g}s",
                "heartbeat_interval": "1s",
                "rebalance_timeout": f"{max(10.0, session):g}s",
                "request_timeout": "10s",
                "offset_reset": "latest" if Trait.LATEST in self.traits else "earliest",
            },
        )
        daemon.port = port
        if self._store is not None:
            daemon.environ["DISPATCHER_HISTORY__PASSWORD"] = self._store.password
        if self._mutant is not None:
            daemon.command = [sys.executable, str(_MUTANTS), self._mutant]
        return Replica(
            f"seed {self.schedule.seed} replica {number}",
            number,
            daemon,
            self.endpoints,
            self.subscribers,
            self.report,
            session,
            self.hitches,
        )

    @property
    def schema(self) -> str:
        """Where the history is, in a database."""
        return self.name.replace("-", "_")

    async def crash_store(self) -> None:
        """kill -9 the database of the history once in mid-run. Deliveries don't notice."""
        if self._store is not None:
            draw = random.Random(f"store {self.schedule.seed}")
            await asyncio.sleep(draw.uniform(0.2, 0.8) * self.schedule.length)
            await self._store.crash(draw.uniform(0.5, 3.0))

    def messages(
        self, count: int, topic: str = "", *, bursts: bool = False, owed: bool = True
    ) -> list[Message]:
        """As many new events, entered as owed unless nobody is to get them."""
        messages = []
        for number in range(len(self.published), len(self.published) + count):
            type_ = BURST if bursts else EVENT
            tenant = None if bursts else self.subscribers.tenant_of(number)
            fields = {} if tenant is None else {"tenant": tenant}
            event, value = envelope(number, type_, size=100, **fields)
            self.enter(Published(event, self.clock(), type_, tenant, owed))
            messages.append(Message(topic or self.topic, value, key=b"%d" % number))
        return messages

    def enter(self, event: Published) -> None:
        self.published[event.id] = event
        if event.owed:
            self.ledger.owe(self.subscribers.owed(event))

    def incomplete(self) -> int:
        """Debts that are not paid and are not expected in the dead-letter topic."""
        return self.endpoints.incomplete()

    async def until(self, done: Callable[[], bool], within: float) -> bool:
        deadline = self.clock() + within
        while not done():
            if self.clock() > deadline:
                return False
            await asyncio.sleep(0.1)
        return True

    async def stall(self, lasts: float) -> None:
        """One endpoint hangs for so long; then what has gathered must come as fast as it takes it."""
        begin = self.clock()
        await self.endpoints.stall(lasts)

        def waiting(among: Iterable[Debt]) -> list[Debt]:
            failed = self.endpoints.failed
            return [debt for debt in among if debt in self.ledger.open and debt not in failed]

        gathered = waiting([debt for debt in self.ledger.open if debt[0] == STALLING])
        deadline = self.clock() + _DRAINS + len(gathered) / _DRAIN_RATE
        await self.until(lambda: not waiting(gathered), deadline - self.clock())
        self.report.notes.append(
            f"a stall of {lasts:.1f} s: {len(gathered)} had gathered, {len(waiting(gathered))} of them were left"
            f" {self.clock() - begin - lasts:.1f} s later"
        )
        if left := waiting(gathered):
            self.late.append(Late(begin, deadline, left))

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
            if before < self.hopeful and self.incomplete():
                busy.append(True)
            await asyncio.sleep(0.2)
            quiet = quiet + self.clock() - before if busy and not any(busy) else 0.0
            if self.incomplete():
                self.report.healed_after = self.clock() - begin
        else:
            # A fresh start may still bring them, but nothing would have.
            if (left := self.incomplete()) and Trait.RETENTION not in self.traits:
                self.report.findings.append(f"{left} debts are open, and nobody is busy")

    async def nothing_left(self, replica: Replica) -> None:
        """A fresh start delivers nothing."""
        before = self.ledger.requests
        await replica.start()
        try:
            await replica.daemon.ready(within=120.0)
        except AssertionError as error:
            self.report.findings.append(f"{replica.name}: not ready after the faults: {str(error)[-1500:]}")
        await asyncio.sleep(2.0)
        if again := self.ledger.requests - before:
            self.report.findings.append(f"{again} requests after a fresh start, with everything committed")
        if Trait.HISTORY in self.traits:
            await self.audit.caught_up(replica)
        await replica.terminate()

    async def ends(self, topics: Sequence[str]) -> dict[TopicPartition, int]:
        """Where these topics end."""
        raise NotImplementedError

    # The judgement.

    def judge(self, records: Sequence[Placed]) -> None:
        report, ledger = self.report, self.ledger
        self.found = self._sort([*self.saved, *records])
        places, dead, _, refused_at, written = self.found
        if missing := [event for event in self.published if event not in places]:
            report.findings.append(
                f"the broker lost {len(missing)} acknowledged events (no fault of the dispatcher): {missing[:5]}"
            )
        copies = {event: len(found) for event, found in places.items()}
        report.events, report.owed, report.dead = len(self.published), len(ledger.owed), len(dead)
        self._judge_lost(places, dead, written)
        for replica in self.replicas:
            self.troubles += replica.troubles
            self.troubles += replica.heard()
        self._judge_duplicates(places, copies)
        for late in self.late:
            found = [t for t in self.troubles if t.begin < late.deadline and t.begin > late.begin - 15.0]
            text = f"{len(late.debts)} deliveries without a failed attempt still waited {late.deadline - late.begin:.1f} s after"
            text += f" the beginning of a stall: {late.debts[:3]}"
            (report.notes if found else report.findings).append(
                text + (f" ({', '.join(map(str, found))} meanwhile)" if found else "")
            )
        self._judge_odd(refused_at)
        if old := {
            event for _, event in ledger.paid if event in self.published and not self.published[event].owed
        }:
            report.findings.append(
                f"{len(old)} events from before the group's start were delivered: {sorted(old)[:5]}"
            )
        if Trait.ALONE in self.traits:
            self._judge_pauses_of_crashes()
        report.findings += self.pauses.findings()
        if self.endpoints.strangers:
            report.notes.append(f"{self.endpoints.strangers} requests from an address of no life")
        self._write_down(places)
        for replica in self.replicas:
            self._read_log(replica)

    def _sort(self, records: Iterable[Placed]) -> Found:
        ahead = time.time() - self.clock()
        places: defaultdict[str, list[tuple[int, TopicPartition, int]]] = defaultdict(list)
        dead: set[Debt] = set()
        dead_ids: set[str] = set()
        refused_at: set[tuple[str, int, int]] = set()
        written: defaultdict[Debt, list[tuple[TopicPartition, int]]] = defaultdict(list)
        for partition, record, epoch in records:
            headers = {name: (value or b"").decode(errors="replace") for name, value in record.headers}
            if partition.topic in self.event_topics:
                event = headers.get("ce_id") or _id_of(record.value)
                if event in self.published:
                    places[event].append((epoch, partition, record.offset))
            elif partition.topic == self.dead_topic and not headers.get("subscription_id"):
                refused_at.add((headers["topic"], int(headers["partition"]), int(headers["offset"])))
            else:
                debt = (headers["subscription_id"], headers["event_id"])
                if partition.topic == self.dead_topic:
                    dead.add(debt)
                    dead_ids.add(headers["delivery_id"])
                    continue
                self.report.parked[headers["reason"]] += 1
                written[debt].append((partition, record.offset))
                self.ledger.written[debt].append(record.timestamp / 1000 - ahead)
        return Found(places, dead, dead_ids, refused_at, written)

    def _judge_lost(
        self,
        places: Mapping[str, Sequence[tuple[int, TopicPartition, int]]],
        dead: Collection[Debt],
        written: Mapping[Debt, Sequence[tuple[TopicPartition, int]]],
    ) -> None:
        report, ledger = self.report, self.ledger
        lost = books.lost(ledger, dead)
        if Trait.RETENTION in self.traits:
            gone = self.told_gone()
            excused = {
                debt
                for debt in lost
                if any(gone(partition, offset) for _, partition, offset in places.get(debt[1], ()))
                or any(gone(*each) for each in written.get(debt, ()))
            }
            report.excused = len(excused)
            lost = [debt for debt in lost if debt not in excused]
        report.lost = len(lost)
        if lost:
            asked = sum(1 for debt in lost if debt in ledger.asked)
            shown = ", ".join(
                f"{debt[0]} {debt[1]} at {_told(places.get(debt[1], ()))}" for debt in lost[:10]
            )
            report.findings.append(f"lost {len(lost)} deliveries ({asked} of them attempted): {shown}")

    def _judge_odd(self, refused_at: Collection[tuple[str, int, int]]) -> None:
        """Each record that is no event has a dead letter, or is gone and was said to be."""
        gone = self.told_gone()
        without = self.odd.difference(refused_at)
        if left := [each for each in sorted(without) if not gone(TopicPartition(*each[:2]), each[2])]:
            self.report.findings.append(
                f"{len(left)} of {len(self.odd)} records that are no events have no dead letter: {left[:5]}"
            )

    def told_gone(self) -> Callable[[TopicPartition, int], bool]:
        """Whether a daemon has said of a record that it was deleted too early. Only where somebody deletes records."""
        deletes = Trait.RETENTION in self.traits
        told = [gap for replica in self.replicas for gap in replica.skipped()] if deletes else []

        def gone(partition: TopicPartition, offset: int) -> bool:
            return any(partition == each and first <= offset < end for each, first, end in told)

        return gone

    def _judge_duplicates(
        self, places: Mapping[str, Sequence[tuple[int, TopicPartition, int]]], copies: Mapping[str, int]
    ) -> None:
        report, ledger = self.report, self.ledger
        report.duplicates = books.excess(ledger, copies)
        report.bound = books.bound(ledger, self.troubles)
        strange: list[str] = []
        for debt, payments in books.duplicates(ledger, copies):
            count = copies.get(debt[1], 1)
            found = books.causes(ledger, debt, payments, count, self.troubles)
            for number, cause in enumerate(found, start=len(payments) - len(found)):
                if cause is None:
                    strange.append(f"{debt[0]} {debt[1]} at {_told(places.get(debt[1], ()))}: {payments}")
                else:
                    report.causes[cause.kind] += 1
                    report.oldest = max(report.oldest, cause.begin - payments[number - 1].at)
        if report.duplicates > report.bound:
            report.findings.append(f"{report.duplicates} duplicates, and the bound is {report.bound}")
        if strange:
            report.findings.append(
                f"{len(strange)} duplicates that nothing explains: {'; '.join(strange[:4])}"
            )

    def _judge_pauses_of_crashes(self) -> None:
        for replica in self.replicas:
            starts = replica.starts()
            ends = [*(birth for birth, _ in replica.births[1:]), math.inf]
            for (birth, life), end in list(zip(replica.births, ends, strict=True))[1:]:
                if life not in replica.owing:
                    continue
                # Python itself takes seconds to be there on a busy machine.
                begin = next((at for at in starts if birth <= at < end), birth)
                first = self.endpoints.first.get(life, math.inf)
                if math.isinf(min(first, end)) and not self.report.lost:
                    continue  # what was open is dead, or gone and said to be: there was nothing to ask for
                if min(first, end) - begin > _RESUMES_WITHIN:
                    self.report.findings.append(
                        f"{replica.name}: the first request of life {life} came {first - begin:.1f} s after its start"
                    )
                elif first < math.inf:
                    self.report.notes.append(f"life {life} delivered {first - begin:.1f} s after its start")

    def _write_down(self, places: Mapping[str, Sequence[tuple[int, TopicPartition, int]]]) -> None:
        """Beside the logs, for whoever looks for the cause; times as in the logs."""
        ahead = time.time() - self.clock()

        def wall(at: float) -> str:
            return "" if math.isinf(at) else datetime.fromtimestamp(at + ahead, UTC).isoformat()

        def told(payment: Payment) -> str:
            return f"{wall(payment.at)} from {payment.life}"

        document: dict[str, Any] = {
            "schedule": str(self.schedule),
            "troubles": [
                f"{wall(each.begin)} to {wall(each.until)}: {each}"
                for each in sorted(self.troubles, key=lambda each: each.begin)
            ],
            "notes": self.report.notes,
            "pauses": [each.told(wall) for each in self.pauses.all],
            "open": sorted(
                f"{debt[0]} {debt[1]} at {_told(places.get(debt[1], ()))}" for debt in self.ledger.open
            ),
            "paid": {
                f"{subscription} {event}": {
                    "at": _told(places.get(event, ())),
                    "paid": [told(each) for each in payments],
                }
                for (subscription, event), payments in self.ledger.paid.items()
            },
        }
        (self.folder / f"{self.name}.json").write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))

    def _read_log(self, replica: Replica) -> None:
        for number, line in enumerate(replica.daemon.log().splitlines(), start=1):
            if "Traceback" in line:
                where = f"{replica.daemon.output}, line {number}"
                self.report.findings.append(f"{replica.name}: traceback in {where}:\n    {line[:3000]}")
                return


def _id_of(value: bytes | None) -> str:
    """The id in an envelope; nothing where it is none."""
    try:
        document = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        return ""
    found = document.get("id", "") if isinstance(document, dict) else ""
    return found if isinstance(found, str) else ""


def _told(places: Iterable[tuple[int, TopicPartition, int]]) -> str:
    return " ".join(
        f"{topic.rpartition('.')[2]}-{partition}:{offset}" for _, (topic, partition), offset in places
    )
