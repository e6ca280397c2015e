"""What is parked: a real broker, a real process."""

from __future__ import annotations

import asyncio
import json

import yaml
from aiohttp import web

from tests.e2e.daemon import Endpoint, envelope, eventually
from tests.e2e.test_delivery import Stage, broker_url, everything, stage

__all__ = ["broker_url", "stage"]


async def test_what_was_owed_before_a_pause_comes_after_it_also_through_a_crash_in_the_middle_of_the_drain(
    stage: Stage,
) -> None:
    mended = False

    async def answer(_: web.Request) -> web.Response:
        if mended:
            await asyncio.sleep(0.02)
        return web.Response(status=200 if mended else 503)

    async with Endpoint(answer) as endpoint:
        sub = everything(endpoint, retry={"schedule": ["2s"] * 15, "jitter": 0}, max_in_flight=4)
        daemon = stage.make([sub], shutdown={"drain": "1s"})
        events = dict(envelope(number, size=100) for number in range(400))
        await stage.publish(list(events.values()))
        await daemon.start()
        await eventually(lambda: len(endpoint.ids) == 400, within=60)
        daemon.write_subscriptions([{**sub, "status": "paused"}])
        for _ in range(600):
            if await daemon.metric("deliveries_parked_waiting", 'reason="paused"') == 400:
                break
            await asyncio.sleep(0.1)
        assert await daemon.metric("deliveries_parked_waiting", 'reason="paused"') == 400
        async with asyncio.timeout(60):
            while await daemon.metric("deliveries_in_flight"):
                await asyncio.sleep(0.05)
        mended = True
        endpoint.ids.clear()
        daemon.write_subscriptions([sub])
        await eventually(lambda: len(endpoint.ids) >= 100, within=60)
        await daemon.kill()
        await daemon.start()
        await endpoint.received(set(events), within=90)
        await daemon.stop()


async def test_what_a_killed_process_had_taken_up_is_owed_through_a_pause(stage: Stage) -> None:
    """Nothing of it was done, so that no commit has moved; and the subscription is paused before the next process starts."""
    mended = False

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=200 if mended else 503)

    async with Endpoint(answer) as endpoint:
        sub = everything(endpoint, retry={"schedule": ["20s"] * 9, "jitter": 0})
        daemon = stage.make([sub])
        events = dict(envelope(number, size=100) for number in range(60))
        await stage.publish(list(events.values()))
        await daemon.start()
        await eventually(lambda: len(endpoint.ids) == 60, within=60)
        await daemon.kill()
        daemon.write_subscriptions([{**sub, "status": "paused"}])
        await daemon.start()
        for _ in range(300):
            if await daemon.metric("deliveries_parked_waiting", 'reason="paused"') == 60:
                break
            await asyncio.sleep(0.1)
        assert await daemon.metric("deliveries_parked_waiting", 'reason="paused"') == 60
        assert await daemon.metric("deliveries_total", 'outcome="dropped_paused"') == 0
        mended = True
        endpoint.ids.clear()
        daemon.write_subscriptions([sub])
        await endpoint.received(set(events), within=60)
        await daemon.stop()


async def test_a_setting_lost_in_a_deploy_costs_no_event(stage: Stage) -> None:
    async with Endpoint() as endpoint:
        daemon = stage.make([])
        await daemon.start()
        document = {"url": endpoint.url, "event_types": ["*"], "tenant": "*"}
        status, answer = await daemon.call("POST", "/v1/subscriptions", document)
        assert status == 201, answer
        assert await daemon.stop() == 0
        settings = yaml.safe_load(daemon.settings_file.read_text())
        settings["network"]["https_only"] = True
        daemon.settings_file.write_text(yaml.safe_dump(settings))
        events = dict(envelope(number, size=100) for number in range(50))
        await stage.publish(list(events.values()))
        await daemon.start()
        _, body = await daemon.get("/readyz")
        (warning,) = [each for each in json.loads(body)["warnings"] if "invalid" in each]
        assert warning.startswith("1 subscription is not delivered to")
        assert any("SUBSCRIPTIONS ARE NOT DELIVERED TO" in line["message"] for line in daemon.log_lines())
        for _ in range(300):
            if await daemon.metric("deliveries_parked_waiting", 'reason="invalid"') == 50:
                break
            await asyncio.sleep(0.1)
        assert await daemon.metric("deliveries_parked_waiting", 'reason="invalid"') == 50
        assert await daemon.stop() == 0
        assert not endpoint.ids
        settings["network"]["https_only"] = False
        daemon.settings_file.write_text(yaml.safe_dump(settings))
        await daemon.start()
        await endpoint.received(set(events), within=30)
        assert await daemon.stop() == 0
        assert endpoint.ids.total() == 50
