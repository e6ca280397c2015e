"""How what is owed ends, and when its offset may be committed."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.broker.base import (
    BrokerUnavailable,
    MessageTooLarge,
)
from dispatcher.core.request.results import Response
from tests.delivery.test_engine import RetryPolicyOf
from tests.fakes import FixedRegistry, subscription
from tests.world import event, running, until

pytestmark = [pytest.mark.looptime]


async def test_no_offset_is_committed_past_a_delivery_that_is_still_owed() -> None:
    async with running(FixedRegistry(subscription())) as world:
        world.transport.answer = lambda _, exchange: (
            (10.0 if b"evt_3\r" in exchange.request else 0.001),
            Response(200),
        )
        for number in range(10):
            world.broker.append(event(number))
        await asyncio.sleep(5)
        assert world.committed == 3
        await until(lambda: world.committed == 10)
        assert [offset for _, offset in world.broker.commits] == [0, 3, 10]


async def test_a_delivery_given_up_is_in_the_dead_letter_topic_before_its_offset_is_committed() -> None:
    async with running(FixedRegistry(subscription(retry=RetryPolicyOf(5.0, 20.0)))) as world:
        world.transport.answer = lambda *_: (0.0, Response(503))
        world.broker.append(event(1, tenant="acme"))
        await until(lambda: world.committed == 1, within=400)
        assert len(world.transport.sent) == 3
        (dead,) = world.dead()
        assert dead["reason"] == "exhausted"
        assert dead["last_result"] == "status 503"
        assert dead["attempt"] == "3"
        assert dead["subscription_id"] == "sub_1"
        assert (dead["topic"], dead["partition"], dead["offset"]) == ("events", "0", "0")
        assert (dead["event_id"], dead["event_type"], dead["tenant"]) == ("evt_1", "test.event", "acme")
        assert world.broker.produced[0].value == event(1, tenant="acme")
        assert world.given_up == [("sub_1", "evt_1", "exhausted", 3, "status 503")]
        assert world.value("dead_letters_total", reason="exhausted") == 1
        assert world.value("deliveries_total", outcome="dead_lettered") == 1


async def test_a_broker_that_takes_no_dead_letter_holds_the_offset_until_it_does() -> None:
    async with running(FixedRegistry(subscription(retry=RetryPolicyOf()))) as world:
        world.transport.answer = lambda *_: (0.0, Response(500))
        world.broker.produce_errors = [BrokerUnavailable("gone fishing")] * 4
        world.broker.append(event(1))
        await asyncio.sleep(1.5)
        assert not world.committed
        assert world.engine.problems() == ["can't write to the broker: gone fishing"]
        await until(lambda: world.committed == 1)
        assert len(world.dead()) == 1
        assert world.engine.problems() == []


async def test_a_dead_letter_too_large_for_its_topic_is_written_without_its_value() -> None:
    async with running(FixedRegistry(subscription(retry=RetryPolicyOf()))) as world:
        world.transport.answer = lambda *_: (0.0, Response(500))
        world.broker.produce_errors = [MessageTooLarge("1 MiB at most")]
        world.broker.append(event(1))
        await until(lambda: world.committed == 1)
        (dead,) = world.dead()
        assert dead["omitted"] == f"value of {len(event(1))} bytes"
        assert world.broker.produced[0].value == b""


async def test_bytes_in_flight_are_capped_too() -> None:
    async with running(FixedRegistry(subscription(max_in_flight=1000)), max_in_flight_bytes=1 << 20) as world:
        world.transport.answer = lambda *_: (1.0, Response(200))
        for number in range(40):
            world.broker.append(event(number, pad="x" * 100_000))
        peak = 0.0
        while world.committed != 40:
            peak = max(peak, world.value("deliveries_in_flight_bytes") or 0)
            await asyncio.sleep(0.05)
        assert 1 << 20 <= peak <= (1 << 20) + 101_000
