"""An endpoint that stalls for seconds and is well again gets what it missed at its own pace. On virtual time."""

from __future__ import annotations

import asyncio
import os
from collections import Counter

import pytest

from dispatcher.core.request.results import Failure, Reason, Response, Result
from dispatcher.core.request.urls import Origin
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.transport.base import Exchange
from tests.fakes import FixedRegistry, subscription
from tests.world import accounted, id_of, now, publish, running, until

pytestmark = [pytest.mark.looptime]

BEGIN = 2.0  # seconds of good health before the stall
AFTER = 2.0  # seconds for which events go on to come after it
TIMEOUT = 15.0
PATIENT = RetryPolicy((5.0, 300.0, 300.0, 300.0), 0.0)

LONG = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        "DISPATCHER_TEST_LONG" not in os.environ, reason="takes minutes: DISPATCHER_TEST_LONG=1"
    ),
]


class Stalling:
    """Takes `rate` a second, one after the other; from `BEGIN` on for `stall` seconds it hangs, or says 503."""

    def __init__(self, rate: float, stall: float, *, hangs: bool) -> None:
        self.rate = rate
        self.end = BEGIN + stall
        self.hangs = hangs
        self.free_at = 0.0
        self.failed: set[str] = set()  # whose attempt failed
        self.delivered: dict[str, float] = {}

    def __call__(self, _: Origin, exchange: Exchange) -> tuple[float, Result]:
        ill = BEGIN <= now() < self.end
        id_ = id_of(exchange.request)
        if ill and not self.hangs:
            self.failed.add(id_)
            return 0.005, Response(503)
        free_at = max(self.free_at, self.end if ill else now()) + 1 / self.rate
        if free_at - now() >= TIMEOUT:
            self.failed.add(id_)
            return TIMEOUT, Failure(Reason.TIMEOUT, "no answer")
        self.free_at = free_at
        self.delivered[id_] = free_at
        return free_at - now(), Response(200)


CASES = [
    pytest.param(
        stall,
        rate,
        hangs,
        marks=LONG if rate * (stall + 4) > 20_000 and (stall, rate, hangs) != (7.0, 3000, True) else [],
    )
    for stall in (2.0, 4.0, 7.0, 12.0, 60.0)
    for rate in (50, 300, 3000)
    for hangs in (True, False)
]


@pytest.mark.parametrize(("stall", "rate", "hangs"), CASES)
async def test_after_a_stall_everything_that_waited_is_delivered_as_fast_as_the_endpoint_takes_it(
    stall: float, rate: int, *, hangs: bool
) -> None:
    endpoint = Stalling(2 * rate, stall, hangs=hangs)
    async with running(FixedRegistry(subscription(retry=PATIENT, timeout=TIMEOUT))) as world:
        world.transport.answer = endpoint
        count = await publish(world, rate, BEGIN + stall + AFTER)
        backlog = rate * (stall + AFTER)
        limit = endpoint.end + backlog / (0.8 * endpoint.rate) + 5.0
        if stall >= 2 * TIMEOUT:
            limit += TIMEOUT + 12.0  # a probe that had begun before the end, and the pause until the next one
        ids = {f"evt_{number}" for number in range(count)}
        await asyncio.sleep(max(0.0, limit - now()))
        missing = ids - endpoint.failed - endpoint.delivered.keys()
        late = {id_ for id_, at in endpoint.delivered.items() if at > limit} - endpoint.failed
        print(
            f"{len(missing)} of {count} missing at {limit - endpoint.end:.1f} s after the stall, {len(late)} late,"
            f" {len(endpoint.failed)} had a failed attempt, parked {dict(world.metrics.parked)}"
        )
        assert not missing
        assert not late
        await until(lambda: world.metrics.delivered == count, within=2000)
        await until(lambda: world.value("deliveries_in_flight") == 0)
        writes = Counter(letter["event_id"] for letter in world.parked())
        assert sum(writes.values()) < 3 * count
        assert sorted(writes[id_] for id_ in ids)[count // 2] < 2
        await accounted(world)
