"""What waits in memory for its retry, and what becomes of it at a stop."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests.delivery.test_engine import as_their_names_say, slow_and_failing
from tests.world import World, event, running, until

pytestmark = [pytest.mark.looptime]


async def test_stopping_hands_what_waits_to_the_retry_topics_so_that_no_event_is_sent_again() -> None:
    world = World(slow_and_failing(), max_queue_wait=3600.0)
    world.engine.start()
    world.transport.answer = as_their_names_say
    for number in range(5):
        world.broker.append(event(number))
    await until(lambda: world.value("deliveries_held") == 5)
    started = asyncio.get_running_loop().time()
    await world.engine.stop(drain=3)
    assert asyncio.get_running_loop().time() - started == pytest.approx(3, abs=0.5)
    assert world.committed == 5
    left = {
        topic: Counter(
            (d["subscription_id"], d["attempt"], d["reason"])
            for d in world.written(f"dispatcher.retry.{topic}")
        )
        for topic in ("parked", "30s")
    }
    assert left == {
        "parked": {
            ("slow", "0", "shutdown"): 5
        },  # of one the attempt was cut off: nobody knows whether it arrived
        "30s": {("failing", "1", "shutdown"): 5},  # a retry has a time of its own
    }
    assert world.value("deliveries_parked_total", reason="shutdown") == 10
    async with running(world.registry, world.broker) as again:
        await until(lambda: again.value("deliveries_total", outcome="delivered") == 10, within=120)
        sent = Counter(origin.host for _, origin, _ in world.transport.sent + again.transport.sent)
        assert sent == {"well.test": 5, "slow.test": 6, "failing.test": 10}
