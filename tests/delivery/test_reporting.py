"""What the metrics say of the data path is what its rooms have, at the moment of the scrape."""

from __future__ import annotations

from typing import Any, cast

import pytest

from dispatcher.core.request.results import Response
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.delivery.reporting import lag_of
from tests.fakes import FixedRegistry, subscription
from tests.world import accounted, event, running, until

pytestmark = [pytest.mark.looptime]


async def test_the_rooms_are_asked_at_each_scrape() -> None:
    registry = FixedRegistry(
        subscription(
            "sub_hangs", "http://hangs.test/", event_types=("test.hangs",), max_in_flight=2, timeout=600.0
        ),
        subscription(
            "sub_fails",
            "http://fails.test/",
            event_types=("test.fails",),
            retry=RetryPolicy((20.0,) * 5, 0.0),
        ),
    )
    async with running(registry) as world:
        world.transport.answer = lambda origin, _: (
            None if origin.host == "hangs.test" else (0.01, Response(503))
        )
        bodies = [b'{"id": "evt_%d", "type": "test.hangs"}' % number for number in range(5)]
        bodies.append(b'{"id": "evt_9", "type": "test.fails"}')
        assert world.value("deliveries_in_flight") == world.value("lanes") == 0
        for body in bodies:
            world.broker.append(body)
        await until(lambda: world.value("deliveries_held") == 1)
        assert world.value("deliveries_in_flight") == 6
        assert world.value("deliveries_in_flight_bytes") == sum(map(len, bodies))
        assert world.value("deliveries_queued") == 3
        assert world.value("lanes") == 2
        assert world.value("consumption_paused") == 0
        assert world.value("partition_lag", topic="events", partition="0") == 0
        assert world.value("attempt_records_total", result="dropped") == 0
        await until(lambda: (world.value("partition_held_seconds", topic="events", partition="0") or 0) > 2)
        world.transport.answer = lambda *_: (0.01, Response(200))
        world.transport.end(lambda _: Response(200))
        await until(lambda: world.metrics.delivered == 6)
        await accounted(world)
        assert world.value("deliveries_held") == 0
        assert (world.value("attempt_records_total", result="written") or 0) >= 7


async def test_consumption_that_has_stopped_at_a_cap_and_its_lag_are_told() -> None:
    async with running(
        FixedRegistry(subscription(timeout=600.0)), max_in_flight=10, max_queue_wait=3600.0
    ) as world:
        world.transport.answer = lambda *_: None
        for number in range(3000):
            world.broker.append(event(number))
        await until(lambda: world.value("consumption_paused") == 1)
        assert world.value("deliveries_in_flight") == 10
        # What was read with the last of them waits beside the lag.
        await until(lambda: 0 < (world.value("partition_lag", topic="events", partition="0") or 0) < 2990)


class Rooms:
    """Says of each partition how many there are."""

    def __init__(self, counts: dict[tuple[str, str], float]) -> None:
        self.counts = counts

    def lag(self) -> dict[tuple[str, str], float]:
        return self.counts

    def waiting(self) -> dict[tuple[str, str], float]:
        return self.counts


def test_the_lag_of_a_retry_topic_has_those_that_were_read_and_wait_too() -> None:
    tier, parked = ("dispatcher.retry.2m", "0"), ("dispatcher.retry.parked", "1")
    memberships: Any = [Rooms({("events", "0"): 3.0}), Rooms({tier: 5.0, parked: 0.0})]
    found = lag_of(memberships, cast("Any", Rooms({tier: 2.0})), cast("Any", Rooms({parked: 7.0})))
    assert found == {("events", "0"): 3.0, tier: 7.0, parked: 7.0}
