"""What comes out of our own topics, and to whom it goes."""

from __future__ import annotations

import pytest

from dispatcher.core.request.results import Response
from dispatcher.core.subscription.index import Index
from dispatcher.core.subscription.model import Status
from tests.delivery.test_retry_reader import FIRST, SECOND, patient, waiting
from tests.fakes import FixedRegistry, MemoryBroker, subscription
from tests.world import event, running, until

pytestmark = [pytest.mark.looptime]


async def test_a_retry_goes_ahead_of_fresh_deliveries() -> None:
    broker = MemoryBroker()
    waiting(broker, 777, due=20.0)
    async with running(FixedRegistry(subscription(max_in_flight=1)), broker, max_queue_wait=3600.0) as world:
        world.transport.answer = lambda *_: (1.0, Response(200))
        for number in range(60):
            broker.append(event(number))
        await until(lambda: len(world.transport.sent) >= 30)
        sent = [b"evt_777\r" in request for _, _, request in world.transport.sent]
        assert sent.index(True) == pytest.approx(20, abs=2)


async def test_a_retry_for_a_subscription_that_is_deleted_is_dropped_when_it_comes_out_for_a_paused_one_kept() -> (
    None
):
    broker = MemoryBroker()
    waiting(broker, 1, due=10_000.0, subscription_id="sub_gone", where=SECOND)
    waiting(broker, 2, due=20.0)
    async with running(FixedRegistry(subscription(status=Status.PAUSED)), broker) as world:
        await until(lambda: broker.committed.get(FIRST) == 1, within=25)
        assert [letter["reason"] for letter in world.parked()] == ["paused"]
        assert world.value("deliveries_total", outcome="dropped_paused") == 0
        await until(lambda: world.value("deliveries_total", outcome="dropped_deleted") == 1, within=200)
        assert world.transport.sent == []
        assert world.value("deliveries_in_flight") == 0


async def test_a_retry_is_not_sent_to_another_tenant_that_got_the_subscription_id() -> None:
    async with running(patient(100.0)) as world:
        world.transport.answer = lambda *_: (0.0, Response(500))
        world.broker.append(event(1, tenant="acme"))
        await until(lambda: world.committed == 1)
        world.registry.index = Index([subscription(tenant="globex", url="http://globex.test/")])
        await until(lambda: world.value("deliveries_total", outcome="dropped_deleted") == 1, within=200)
        assert [origin.host for _, origin, _ in world.transport.sent] == ["endpoint.test"]
