"""Parked records are read again by their offsets."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from dispatcher.broker.base import UnreadableBatch
from dispatcher.core.control.skips import Skip
from tests.delivery.test_backlogs import PARKED, PATIENT, park
from tests.fakes import FixedRegistry, MemoryBroker, subscription
from tests.world import Queueing, accounted, running, sent_ids, until

pytestmark = [pytest.mark.looptime]


async def test_no_more_than_the_endpoint_takes_in_about_a_second_is_in_memory() -> None:
    broker = MemoryBroker()
    for number in range(5000):
        park(broker, number)
    async with running(FixedRegistry(subscription()), broker) as world:
        world.transport.answer = Queueing(50.0)
        peak = 0.0
        for _ in range(200):
            await asyncio.sleep(0.1)
            peak = max(peak, world.value("deliveries_in_flight") or 0)
        assert peak <= 64
        assert 900 <= world.metrics.delivered <= 1010


@pytest.mark.parametrize("way", ["mended", "skipped"])
async def test_a_batch_that_can_no_longer_be_unpacked_stops_only_whom_it_belongs_to_until_it_is_given_up(
    way: str,
) -> None:
    broker = MemoryBroker()
    for number in range(60):
        park(broker, number, "hit" if number < 30 else "well")
    broker.damaged[PARKED] = UnreadableBatch(10, 19, "its checksum is wrong")
    registry = FixedRegistry(
        subscription("hit", "http://hit.test/", retry=PATIENT),
        subscription("well", "http://well.test/", retry=PATIENT),
    )
    skips: list[Skip] = []
    async with running(registry, broker, skips=skips) as world:
        await until(lambda: world.metrics.delivered == 40, within=10)
        (warning,) = world.engine.warnings()
        assert "dispatcher topics skip dispatcher.retry.parked 0 10" in warning
        assert world.value("partitions_stuck", topic=PARKED.topic, partition="0") == 1
        asked = len(broker.ranges)
        await asyncio.sleep(25)
        assert len(broker.ranges) == asked, "it is asked for every half a minute, not every second"
        if way == "mended":
            del broker.damaged[PARKED]
        else:
            skips.append(Skip(PARKED.topic, PARKED.partition, 12))
        lost = {f"evt_{number}" for number in range(10, 20)} if way == "skipped" else set()
        await until(lambda: world.metrics.delivered == 60 - len(lost), within=40)
        assert Counter(sent_ids(world)).keys() == {f"evt_{number}" for number in range(60)} - lost
        assert world.metrics.skipped["unreadable"] == len(lost)
        assert world.engine.warnings() == []
        await until(lambda: broker.committed.get(PARKED) == 60)


async def test_records_that_retention_took_or_nobody_can_read_hold_nothing_up() -> None:
    broker = MemoryBroker()
    for number in range(10):
        park(broker, number)
    broker.log[PARKED][5].headers = [("subscription_id", b"sub_1")]
    broker.log[PARKED][6].key = b"\xff"
    broker.begins[PARKED] = 3
    async with running(FixedRegistry(subscription()), broker) as world:
        await until(lambda: world.metrics.delivered == 5, within=10)
        assert world.metrics.deliveries["dropped_record_gone"] == 3
        await until(lambda: len(world.dead()) == 2)
        assert [letter["reason"] for letter in world.dead()] == ["retry_record"] * 2
        await accounted(world)
