"""The topic of interventions: followed, written, and forgotten when nothing is left of what it was about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import pytest
from structlog.testing import capture_logs

from dispatcher.broker.base import BrokerRefused, BrokerUnavailable, MadeAnew, TopicPartition
from dispatcher.core.retry.interventions import Intervention, encode_intervention
from dispatcher.delivery import interventions
from dispatcher.delivery.interventions import InterventionLog, interventions_topic
from tests.core.retry.test_interventions import AT, command, purge
from tests.fakes import MemoryBroker
from tests.world import until

pytestmark = [pytest.mark.looptime]

TOPIC = TopicPartition(interventions_topic("dispatcher."), 0)
DAY = 86_400.0


class Heard:
    """Who executes."""

    def __init__(self) -> None:
        self.commanded_: list[str] = []
        self.outrun_: list[str] = []

    def commanded(self, command: Intervention) -> None:
        self.commanded_.append(command.id)

    def outrun(self, command: Intervention) -> None:
        self.outrun_.append(command.id)


@asynccontextmanager
async def following(broker: MemoryBroker, step: float = 0.0) -> AsyncIterator[InterventionLog]:
    loop = asyncio.get_running_loop()
    failures: list[BaseException] = []
    log = InterventionLog(
        broker,
        TOPIC.topic,
        wall=lambda: step + loop.time(),
        chance=lambda: 0.5,
        on_failure=lambda _, error: failures.append(error),
    )
    assert "not read yet" in str(log.problem)
    await log.start()
    assert log.problem is None
    yield log
    await log.stop()
    assert not failures


def put(broker: MemoryBroker, key: bytes | None, value: bytes | None, *headers: tuple[str, bytes]) -> None:
    broker.append(value, headers, key=key, partition=TOPIC)


async def test_what_is_there_is_known_after_the_start_and_what_is_written_when_it_is_answered() -> None:
    broker = MemoryBroker()
    put(broker, command().key.encode(), encode_intervention(command()))
    async with following(broker) as log, following(broker) as other:
        assert log.get(command().key) == command()
        assert log.generations.any
        assert await log.write(purge())
        assert log.get("subscription:sub_1") == purge()
        await other.catch_up()
        assert other.get("subscription:sub_1") == purge()
        assert log.counts() == {"pending": 1, "ended": 1}
        assert [each.id for each in log.open()] == [command().id]


async def test_foreign_records_are_passed_over_and_what_is_in_force_is_said_to_whoever_executes() -> None:
    broker = MemoryBroker()
    with capture_logs() as logs:
        async with following(broker) as log:
            log.listener = heard = Heard()
            assert await log.write(command())
            put(broker, command().key.encode(), b"hello")
            put(broker, None, b"hello")
            put(broker, command().key.encode(), None)
            put(broker, command().key.encode(), None, ("id", purge().id.encode()))
            assert not await log.write(command(id=purge().id))
            assert log.get(command().key) == command()
            assert heard.commanded_ == [command().id]
            assert heard.outrun_ == [command().id] * 4, "not for the one without a key"
    assert [each["event"] for each in logs].count(
        "a foreign record in the topic of interventions, passed over"
    ) == 2


async def test_a_write_waits_for_a_broker_that_is_away_and_says_what_refuses_it() -> None:
    broker = MemoryBroker()
    async with following(broker) as log:
        broker.produce_errors = [BrokerUnavailable("gone fishing")] * 2
        assert await log.write(command())
        broker.produce_errors = [BrokerRefused("no right to write")]
        with pytest.raises(BrokerRefused):
            await log.write(purge())
        broker.produce_errors = [BrokerUnavailable("gone fishing")] * 1000
        with pytest.raises(TimeoutError):
            await log.write(purge())
        broker.produce_errors = []


async def test_a_topic_that_is_made_anew_gets_back_what_was_known() -> None:
    broker = MemoryBroker()
    async with following(broker) as log:
        assert await log.write(command())
        assert await log.write(purge())
        broker.log[TOPIC].clear()
        broker.readers[-1].error = MadeAnew("the topic is another one")
        broker._wake()
        with capture_logs():
            await until(lambda: len(broker.log[TOPIC]) == 2)
        assert log.get(command().key) == command()
        written = [orjson.loads(record.value or b"") for record in broker.log[TOPIC]]
        assert [each["action"] for each in written] == ["retry", "purge"]
        assert await log.write(command(generation=3, id=f"int_{9:024x}"))


async def test_what_has_had_its_time_is_forgotten_by_everybody() -> None:
    broker = MemoryBroker()
    until_ms = 4000_000
    async with following(broker) as log, following(broker) as other:
        with capture_logs() as logs:
            assert await log.write(command(until_ms=until_ms))
            assert await log.write(purge(until_ms=until_ms))
            await asyncio.sleep(3990)
            assert log.generations.any
            await until(lambda: not log.generations.any and not other.generations.any, 300)
        assert log.get(command().key) is None
        assert log.generations.verdict(AT, "sub_1", 1) is None
        assert [each["event"] for each in logs if "never executed" in each["event"]]
        assert all(record.value is None for record in broker.log[TOPIC][2:])


async def test_a_clock_that_is_wrong_for_a_while_forgets_nothing() -> None:
    broker = MemoryBroker()
    put(broker, command().key.encode(), encode_intervention(command(until_ms=round(30 * DAY * 1000))))
    async with following(broker, step=365 * DAY) as log:
        await asyncio.sleep(3500)
        assert log.get(command().key) is not None


async def test_more_than_a_process_can_remember_is_refused_with_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interventions, "MOST", 4)
    monkeypatch.setattr(interventions, "MOST_OF_TENANT", 2)
    async with following(MemoryBroker()) as log:
        for number in range(4):
            assert log.full(None) is None
            tenant = "acme" if number < 2 else "globex"
            assert await log.write(command(offset=number, id=f"int_{number:024x}", tenant=tenant))
        assert "4 interventions" in str(log.full(None))
        monkeypatch.setattr(interventions, "MOST", 5)
        assert "2 interventions about this tenant's" in str(log.full("acme"))
        assert log.full(None) is None
        assert log.full("initech") is None


async def test_catching_up_reads_what_is_there_and_waits_for_no_more() -> None:
    broker = MemoryBroker()
    async with following(broker) as log:
        await log.catch_up()
        for number in range(1200):
            made = command(offset=number)
            put(broker, made.key.encode(), encode_intervention(made))
        await log.catch_up()
        assert len(log.open()) == 1200


async def test_a_stop_ends_what_waits_to_be_read_back() -> None:
    broker = MemoryBroker()
    async with following(broker) as log:
        writing = asyncio.gather(log.write(command()), return_exceptions=True)
        await asyncio.sleep(0)
        await log.stop()
        (found,) = await writing
        assert isinstance(found, BrokerUnavailable)
