"""Retries and cancels of people on a real Kafka, by a process that is killed while it executes them."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from aiohttp import web

from tests.e2e.daemon import Daemon, Endpoint, envelope, eventually
from tests.e2e.test_delivery import Stage, everything
from tests.e2e.test_retries import QUICK, SHORT


async def deliveries(daemon: Daemon, state: str, count: int) -> dict[str, str]:
    """Ids of the deliveries in that state, by event, once there are so many."""
    async with asyncio.timeout(90):
        while True:
            _, found = await daemon.call("GET", f"/v1/deliveries?state={state}&limit=200")
            if len(found["deliveries"]) >= count:
                return {each["event_id"]: each["id"] for each in found["deliveries"]}
            await asyncio.sleep(0.1)


@pytest.mark.kafka
async def test_what_is_retried_and_cancelled_survives_kill_9_and_nothing_that_waited_is_doubled(
    tmp_path: Path, kafka: str
) -> None:
    events = dict(envelope(number) for number in range(60))
    ids = sorted(events)
    retried, cancelled, left = ids[:20], ids[20:40], ids[40:]
    failing = True
    delivered: Counter[str] = Counter()
    began: Counter[str] = Counter()

    async def answer(request: web.Request) -> web.Response:
        id_ = request.headers["webhook-id"]
        began[id_] += 1
        if failing:
            return web.Response(status=503)
        # By who sends, and not by when it is read here: what the killed process sent last may be read after its death.
        if "x-second" not in request.headers:
            await asyncio.sleep(3600)
        delivered[id_] += 1
        return web.Response()

    async with Endpoint(answer) as endpoint:
        stage = Stage(tmp_path, f"kafka://{kafka}")
        wants = everything(endpoint, retry={"schedule": ["40s"], "jitter": 0})
        # What has gone from one tier to the next within a second of the kill may come twice: until then nothing does.
        daemon = stage.make([wants], retry={**SHORT, "tiers": ["1s", "2s", "30s"]}, kafka=QUICK)
        try:
            await stage.publish(list(events.values()))
            await daemon.start()
            found = await deliveries(daemon, "retrying", 60)
            failing = False
            for id_ in retried:
                status, said = await daemon.call("POST", f"/v1/deliveries/{found[id_]}/retry")
                assert (status, said["generation"]) == (202, 2)
            await eventually(lambda: sum(began[id_] for id_ in retried) > len(retried), within=30)
            for id_ in cancelled:
                assert (await daemon.call("POST", f"/v1/deliveries/{found[id_]}/cancel"))[0] == 202
            await daemon.kill()
            daemon.write_subscriptions([{**wants, "headers": {"X-Second": "yes"}}])
            await daemon.start()
            await eventually(lambda: all(delivered[id_] for id_ in (*retried, *left)), within=120)
            # When the tiers are empty, nothing can come any more.
            async with asyncio.timeout(60):
                while await daemon.total("partition_lag") or await daemon.metric("deliveries_in_flight"):
                    await asyncio.sleep(0.2)
            await deliveries(daemon, "dropped", 20)
            assert await deliveries(daemon, "delivered", 40)
            assert {id_ for id_ in events if delivered[id_]} == {*retried, *left}
            doubled = {id_: count for id_, count in delivered.items() if count > 1}
            assert not doubled, f"what hung was not answered, so each comes once\n{daemon.log()}"
            assert await daemon.stop() == 0
        finally:
            await daemon.kill()
