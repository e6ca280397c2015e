"""Processes that write what they are like, and follow each other. On virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from dispatcher.broker.base import BrokerUnavailable, StoredRecord, TopicPartition
from dispatcher.control.replicas import HEARTBEAT, INTERVAL, OLD, Replicas, SharedProgress, Sources
from dispatcher.core.cluster.merge import Elsewhere
from dispatcher.core.cluster.record import ReplicaRecord, Trouble, read_replica, write_replica
from dispatcher.delivery.troubles import DeliveryReport
from tests.fakes import MemoryBroker

pytestmark = [pytest.mark.looptime]

TOPIC = TopicPartition("dispatcher.replicas", 0)
START = 1_000_000.0


def wall() -> float:
    return START + asyncio.get_running_loop().time()


class Progress:
    """A history that has come so far."""

    def __init__(self, as_of_ms: int = 1000, partitions: int = 2, *, shared: bool = True) -> None:
        self.partitions = partitions
        self.all_partitions = 0
        self.shared = shared
        self.at = as_of_ms

    def as_of_ms(self) -> int:
        return self.at

    def behind_records(self) -> int:
        return 5


class Process:
    """One process: what it says, and what it knows."""

    def __init__(
        self,
        broker: MemoryBroker,
        name: str,
        history: Progress | None = None,
        wall: Callable[[], float] = wall,
    ) -> None:
        self.problems: list[str] = []
        self.in_trouble: Sequence[Trouble] = ()
        self.lanes = 1
        self.looks = 0
        self.recovered: dict[str, int] = {}
        self.elsewhere = Elsewhere()
        sources = Sources(("deliver",), lambda: self.problems, lambda: ["a warning"], self._look, history)
        self.replicas = Replicas(broker, TOPIC.topic, name, sources, wall=wall)

    async def _look(self, elsewhere: Elsewhere) -> DeliveryReport:
        self.looks += 1
        self.elsewhere = elsewhere
        return DeliveryReport(
            {"events": (0,)},
            {"events": 3},
            0,
            0,
            0,
            {},
            self.lanes,
            {},
            tuple(self.in_trouble),
            len(self.in_trouble),
            self.recovered,
        )

    def known(self) -> dict[str, ReplicaRecord]:
        return {record.replica: record for record in self.replicas.all()}


@asynccontextmanager
async def running(*processes: Process) -> AsyncIterator[None]:
    for process in processes:
        process.replicas.start()
    try:
        yield
    finally:
        for process in processes:
            await process.replicas.stop()


def written(broker: MemoryBroker, name: str) -> list[StoredRecord]:
    return [record for record in broker.log[TOPIC] if record.key == name.encode()]


async def test_each_process_knows_all_others_as_they_say_they_are() -> None:
    broker = MemoryBroker()
    one, two = Process(broker, "one:1"), Process(broker, "two:1", Progress())
    one.in_trouble = [Trouble(subscription_id="sub", parked=3)]
    async with running(one, two):
        await asyncio.sleep(1)
        for process in (one, two):
            known = process.known()
            assert known.keys() == {"one:1", "two:1"}
            assert known["one:1"].troubles == tuple(one.in_trouble)
            assert known["one:1"].partitions == {"events": (0,)}
            assert (known["one:1"].warnings, known["one:1"].history) == (("a warning",), None)
            assert known["two:1"].history is not None
        one.problems.append("the broker is away")
        await asyncio.sleep(INTERVAL + 0.5)
        assert two.known()["one:1"].problems == ("the broker is away",)


async def test_each_is_told_what_the_others_say_of_the_same_subscriptions() -> None:
    broker = MemoryBroker()
    one, two = Process(broker, "one:1"), Process(broker, "two:1")
    one.in_trouble = [Trouble(subscription_id="sub", since_ms=100, last_ms=200)]
    async with running(one, two):
        await asyncio.sleep(INTERVAL + 1)
        assert (one.elsewhere.failed, two.elsewhere.failed) == ({}, {"sub": 200})
        two.recovered = {"sub": 300}
        await asyncio.sleep(2 * INTERVAL)
        assert (one.elsewhere.delivered, two.elsewhere.delivered) == ({"sub": 300}, {})


async def test_what_one_says_whose_clock_is_another_is_by_the_clock_of_who_hears_it() -> None:
    broker = MemoryBroker()
    slow = 3600.0
    one, two = Process(broker, "one:1"), Process(broker, "two:1", wall=lambda: wall() - slow)
    async with running(one, two):
        await asyncio.sleep(1)
        failed, delivered = round(wall() * 1000), round((wall() - slow) * 1000)
        one.in_trouble = [Trouble(subscription_id="sub", since_ms=100, last_ms=failed)]
        two.recovered = {"sub": delivered}
        await asyncio.sleep(3 * INTERVAL)
        assert one.elsewhere.delivered["sub"] == pytest.approx(delivered + slow * 1000, abs=3000)
        assert two.elsewhere.failed["sub"] == pytest.approx(failed - slow * 1000, abs=3000)


async def test_a_record_is_written_when_something_has_changed_and_now_and_then_all_the_same() -> None:
    broker = MemoryBroker()
    process = Process(broker, "one:1")
    async with running(process):
        await asyncio.sleep(3 * HEARTBEAT + INTERVAL)
        assert 3 <= len(written(broker, "one:1")) <= 4
        for _ in range(5):
            process.problems.append("again")
            await asyncio.sleep(INTERVAL)
        assert len(written(broker, "one:1")) >= 8
        process.lanes = 7
        await asyncio.sleep(INTERVAL)
        assert read_replica(written(broker, "one:1")[-1].value or b"").lanes == 7


async def test_a_large_record_is_written_less_often() -> None:
    broker = MemoryBroker()
    process = Process(broker, "one:1")
    async with running(process):
        for number in range(60):
            process.in_trouble = [
                Trouble(subscription_id=f"sub_{each}", last_result="x" * 500, parked=number)
                for each in range(1000)
            ]
            await asyncio.sleep(1)
        sizes = [len(record.value or b"") for record in written(broker, "one:1")]
        assert max(sizes) > 400_000
        assert sum(sizes) < 60 * (64 << 10) * 1.5


async def test_a_process_that_stops_is_gone_and_one_that_is_killed_is_gone_soon() -> None:
    broker = MemoryBroker()
    stays, stops, dies = (Process(broker, name) for name in ("stays:1", "stops:1", "dies:1"))
    async with running(stays):
        async with running(stops):
            dies.replicas.start()
            await asyncio.sleep(1)
            assert stays.known().keys() == {"stays:1", "stops:1", "dies:1"}
            await dies.replicas._tasks.stop()
        await asyncio.sleep(1)
        assert stays.known().keys() == {"stays:1", "dies:1"}
        await asyncio.sleep(OLD)
        assert stays.known().keys() == {"stays:1"}


async def test_what_was_there_before_is_known_by_its_timestamp_and_what_comes_later_by_when_it_comes() -> (
    None
):
    broker = MemoryBroker()

    def tell(name: str, timestamp: float) -> None:
        value = write_replica(ReplicaRecord(replica=name, version="1", started_ms=1, at_ms=1))
        broker.append(value, key=name.encode(), partition=TOPIC, timestamp=round(timestamp * 1000))

    tell("old:1", START - OLD - 1)
    tell("young:1", START - OLD + 10)
    process = Process(broker, "one:1")
    async with running(process):
        await asyncio.sleep(1)
        assert process.known().keys() == {"one:1", "young:1"}
        tell("slow clock:1", START - 3600)
        await asyncio.sleep(1)
        assert process.known().keys() == {"one:1", "young:1", "slow clock:1"}
        await asyncio.sleep(10)
        assert process.known().keys() == {"one:1", "slow clock:1"}


async def test_what_others_write_to_the_topic_changes_nothing() -> None:
    broker = MemoryBroker()
    process = Process(broker, "one:1")
    with capture_logs() as logs:
        async with running(process):
            await asyncio.sleep(1)
            for key, value in (
                (b"two:1", b"junk"),
                (b"two:1", write_replica(process.known()["one:1"])),
                (None, b"{}"),
                (b"\xff", None),
            ):
                broker.append(value, key=key, partition=TOPIC)
            await asyncio.sleep(1)
            assert process.known().keys() == {"one:1"}
    assert [line["event"] for line in logs].count(
        "a foreign record in the topic of the replicas, passed over"
    ) == 1


async def test_a_broker_that_is_away_is_tried_again() -> None:
    broker = MemoryBroker()
    broker.produce_errors = [BrokerUnavailable("away")] * 3
    process = Process(broker, "one:1")
    async with running(process):
        assert process.known()["one:1"].roles == ("deliver",)
        await asyncio.sleep(20)
        assert written(broker, "one:1")
    assert written(broker, "one:1")[-1].value is None


async def test_a_look_that_fails_ends_the_view_and_nothing_else() -> None:
    broker = MemoryBroker()
    process = Process(broker, "one:1")

    async def broken(_: Elsewhere) -> Any:
        raise RuntimeError("a bug")

    process.replicas._sources = process.replicas._sources._replace(deliveries=broken)
    async with running(process):
        await asyncio.sleep(1)
        assert "report it" in (process.replicas.problem or "")
        assert process.known().keys() == {"one:1"}


async def test_a_history_that_several_fill_is_as_of_the_last_of_them() -> None:
    broker = MemoryBroker()
    histories = [Progress(5000), Progress(3000), Progress(9000, shared=False), Progress(1, partitions=0)]
    processes = [Process(broker, f"p{number}:1", history) for number, history in enumerate(histories)]
    async with running(*processes):
        await asyncio.sleep(1)
        as_of = [
            SharedProgress(history, process.replicas).as_of_ms()
            for history, process in zip(histories, processes, strict=True)
        ]
    # The third one has a store of its own; the last one has no partitions, and asks a store that the first two fill.
    assert as_of == [3000, 3000, 9000, 3000]


async def test_while_nobody_reads_some_of_the_partitions_what_is_known_does_not_go_on() -> None:
    """A process is killed: it is forgotten before the group gives its partitions to the others."""
    broker = MemoryBroker()
    living, dying = Progress(5000), Progress(3000)
    living.all_partitions = 4
    one = Process(broker, "one:1", living)
    progress = SharedProgress(living, one.replicas)
    async with running(one):
        assert progress.as_of_ms() == 0, "of the other two partitions nobody has said anything"
        async with running(Process(broker, "two:1", dying)):
            await asyncio.sleep(1)
            assert progress.as_of_ms() == 3000
        await asyncio.sleep(1)
        living.at = 9000
        assert "two:1" not in one.known()
        assert progress.as_of_ms() == 3000
        living.partitions = 4
        living.at = 2000
        assert progress.as_of_ms() == 2000, "it begins where the other one had come to"
        living.at = 9000
        assert progress.as_of_ms() == 9000


async def test_of_a_history_of_which_nobody_says_anything_nothing_is_known() -> None:
    process = Process(MemoryBroker(), "one:1")
    assert SharedProgress(Progress(7, partitions=0), process.replicas).as_of_ms() == 0
