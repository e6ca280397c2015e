"""Parked records are written anew."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from dispatcher.core.subscription.index import Index
from dispatcher.core.subscription.model import Status
from dispatcher.settings.groups import SubscriptionSettings
from tests.delivery.test_backlogs import PARKED, WALL, park
from tests.fakes import FixedRegistry, MemoryBroker, subscription
from tests.world import accounted, running, sent_ids, until

pytestmark = [pytest.mark.looptime]


async def test_old_records_are_written_anew_before_retention_takes_them_and_keep_their_time() -> None:
    broker = MemoryBroker()
    week = 7 * 86400.0
    park(broker, 0, "paused", since=-week + 100.0, reason="paused")
    park(broker, 1, "paused", reason="paused")
    registry = FixedRegistry(subscription("paused", status=Status.PAUSED))
    keeps = SubscriptionSettings(pause_keeps=30 * 86400.0)
    async with running(registry, broker, subscription=keeps) as world:
        broker.log[PARKED][0].timestamp -= 24 * 86400 * 1000  # written when its retention was half over
        await asyncio.sleep(110)
        (letter,) = world.parked()
        assert (letter["event_id"], letter["reason"]) == ("evt_0", "paused")
        assert float(letter["since_ms"]) == (WALL - week + 100.0) * 1000
        assert world.broker.committed[PARKED] == 1
        registry.index = Index([subscription("paused")])
        await until(lambda: world.metrics.delivered == 2, within=3)
        assert Counter(sent_ids(world)) == {"evt_0": 1, "evt_1": 1}
        await accounted(world)
