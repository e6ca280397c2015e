"""What arrives twice after a crash, or when a replica joins: what was under way, however many subscriptions an event has.

Each case ends with nothing owed but what goes to the endpoint that fails, and with that committed. So nothing that was
acknowledged may come again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.admin import AIOKafkaAdminClient

from dispatcher.broker.base import Broker, Message, TopicPartition
from dispatcher.broker.open import open_broker
from dispatcher.core.commit.note import read_note, read_whole
from dispatcher.settings.groups import KafkaSettings
from tests.e2e.daemon import SECRET, Daemon, envelope, eventually, publish
from tests.e2e.test_delivery import Stage
from tests.e2e.test_retries import QUICK

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

# What fails waits in memory, its offsets owed, for as long as the test takes.
HELD: dict[str, Any] = {"horizon": "30s", "hold_limit": "1h", "tiers": ["30s", "2m"]}
OFTEN = {"schedule": ["25s"] * 50, "jitter": 0}
MANY = {"max_in_flight": 20_000, "breaker_threshold": 0, "max_queue_wait": "1h", "connections_per_host": 64}


class Sink:
    """An endpoint that does no more than count: path and event of each request. Paths with `bad` answer 503."""

    def __init__(self) -> None:
        self.good: Counter[tuple[bytes, bytes]] = Counter()
        self.bad: Counter[tuple[bytes, bytes]] = Counter()
        self.url = ""

    def request(self, path: bytes, event_id: bytes) -> bytes:
        if b"bad" in path:
            self.bad[path, event_id] += 1
            return b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"
        self.good[path, event_id] += 1
        return b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

    @property
    def again(self) -> int:
        """Deliveries that were acknowledged more than once."""
        return sum(count - 1 for count in self.good.values())


class _Connection(asyncio.Protocol):
    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            length = int(head.split(b"content-length: ")[1].split(b"\r")[0])
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            event_id = head.split(b"webhook-id: ")[1].split(b"\r")[0]
            self._transport.write(self._sink.request(head.split(b" ")[1], event_id))


@asynccontextmanager
async def listening() -> AsyncIterator[Sink]:
    sink = Sink()
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(sink), "127.0.0.1", 0)
    sink.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield sink
    finally:
        server.close()


class Case(NamedTuple):
    """So many tenants publish so many events each; each has so many subscriptions that go well, and so many that fail."""

    tenants: int
    events: int
    good: int
    bad: int

    @property
    def delivered(self) -> int:
        return self.tenants * self.events * self.good

    @property
    def owed(self) -> int:
        return self.tenants * self.events * self.bad

    def subscriptions(self, url: str) -> list[dict[str, Any]]:
        return [
            {
                # As random as those that the API gives: ids in a row would deflate to nothing.
                "id": f"sub_{blake2b(f'{tenant} {kind} {number}'.encode(), digest_size=13).hexdigest()}",
                "tenant": f"t{tenant}",
                "url": f"{url}/{kind}/{tenant}/{number}",
                "event_types": ["*"],
                "retry": OFTEN,
                "max_in_flight": 64,
                "secrets": [SECRET],
            }
            for tenant in range(self.tenants)
            for kind, count in (("good", self.good), ("bad", self.bad))
            for number in range(count)
        ]

    def messages(self, topic: str) -> Sequence[Message]:
        return [
            Message(
                topic,
                envelope(tenant * self.events + number, tenant=f"t{tenant}")[1],
                key=b"%d" % (tenant * self.events + number),
            )
            for tenant in range(self.tenants)
            for number in range(self.events)
        ]


CASES = [
    pytest.param(Case(tenants=1, events=40, good=19, bad=1), id="fan-out 20"),
    pytest.param(Case(tenants=1, events=40, good=199, bad=1), id="fan-out 200"),
    pytest.param(Case(tenants=1, events=12, good=999, bad=1), id="fan-out 1000"),
    pytest.param(Case(tenants=200, events=6, good=1, bad=3), id="three of each of 200 tenants fail"),
    pytest.param(Case(tenants=10_000, events=1, good=1, bad=1), id="10,000 tenants"),
]


def daemon_of(stage: Stage, folder: Path, case: Case, sink: Sink) -> Daemon:
    folder.mkdir(exist_ok=True)
    topics = {"events": [stage.topic], "prefix": f"{stage.name}.d."}
    return Daemon(
        folder,
        stage.broker_url,
        case.subscriptions(sink.url),
        group=stage.name,
        topics=topics,
        kafka=QUICK,
        retry=HELD,
        delivery=MANY,
        attempts={"log": "none"},
        log={"level": "error"},
    )


async def started(daemon: Daemon) -> None:
    await daemon.start(ready=False)
    await daemon.ready(within=240)  # a file of 20,000 subscriptions is read before


async def settled(stage: Stage, case: Case, sink: Sink, *daemons: Daemon) -> None:
    """Wait until everything that goes well is acknowledged, everything else owed, and both committed."""
    await eventually(
        lambda: len(sink.good) == case.delivered and len(sink.bad) == case.owed,
        within=240,
        describe=lambda: f"{len(sink.good)} of {case.delivered}, {len(sink.bad)} of {case.owed} failed",
    )
    owed = -1.0
    while owed != case.owed:
        assert all(daemon.running for daemon in daemons), daemons[0].log()
        owed = sum([await daemon.metric("deliveries_in_flight") for daemon in daemons])
        await asyncio.sleep(0.1)
    broker = open_broker(stage.broker_url, KafkaSettings())
    await broker.connect()
    try:
        while await unknown(broker, stage, case):
            assert all(daemon.running for daemon in daemons), daemons[0].log()
            await asyncio.sleep(0.2)
    finally:
        await broker.close()


async def unknown(broker: Broker, stage: Stage, case: Case) -> int:
    """Events of which nobody who takes over now would know what has become of them, and deliveries that are done and owed by a note."""
    (topic,) = [info for info in await broker.topics() if info.name == stage.topic]
    admin = AIOKafkaAdminClient(bootstrap_servers=stage.broker_url.partition("://")[2])
    await admin.start()
    try:
        keys = [KafkaPartition(stage.topic, each.partition) for each in topic.partitions]
        committed = await admin.list_consumer_group_offsets(stage.name, partitions=keys)
    finally:
        await admin.close()
    left = owed = 0
    for each in topic.partitions:
        offset, text = committed[stage.topic, each.partition]
        if offset < 0:
            left += each.latest - each.earliest
            continue
        note = read_note(stage.topic, each.partition, offset, text)
        if note.pointer is not None:
            place = TopicPartition(f"{stage.name}.d.progress", note.pointer.partition)
            record = await broker.read(place, note.pointer.offset)
            assert record is not None
            whole = read_whole(stage.topic, each.partition, offset, record.value, note.pointer)
            assert whole is not None
            note = whole
        left += each.latest - offset - sum(end - first for first, end in note.done)
        left -= sum(end - first for first, end, _ in note.partly)
        each_event = case.good + case.bad
        owed += sum(
            (end - first) * (len(who.ids) if who.owed else each_event - len(who.ids))
            for first, end, who in note.partly
        )
    return left + max(owed - case.owed, 0)


@pytest.fixture
def stage(tmp_path: Path, kafka: str) -> Stage:
    return Stage(tmp_path, f"kafka://{kafka}")


@pytest.mark.parametrize("case", CASES)
async def test_after_kill_9_nothing_acknowledged_comes_again_and_what_is_owed_does(
    stage: Stage, case: Case
) -> None:
    async with listening() as sink:
        await publish(stage.broker_url, case.messages(stage.topic))
        daemon = daemon_of(stage, stage.folder / "one", case, sink)
        await started(daemon)
        try:
            await settled(stage, case, sink, daemon)
            assert sink.again == 0
            await daemon.kill()
            sink.bad.clear()
            await started(daemon)
            await settled(stage, case, sink, daemon)
            assert sink.again == 0
        finally:
            await daemon.kill()


@pytest.mark.parametrize("case", CASES)
async def test_a_second_replica_that_joins_sends_nothing_again_that_was_acknowledged(
    stage: Stage, case: Case
) -> None:
    async with listening() as sink:
        await publish(stage.broker_url, case.messages(stage.topic))
        first = daemon_of(stage, stage.folder / "one", case, sink)
        second = daemon_of(stage, stage.folder / "two", case, sink)
        await started(first)
        try:
            await settled(stage, case, sink, first)
            await started(second)
            await eventually(lambda: max(sink.bad.values()) > 1 or sink.again > 0, within=120)
            await settled(stage, case, sink, first, second)
            assert await second.metric("deliveries_in_flight") > 0, "it has partitions"
            assert sink.again == 0
        finally:
            await first.kill()
            await second.kill()
