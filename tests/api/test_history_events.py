"""Events of the history over HTTP, on the whole dispatcher."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.api.real import made, running
from tests.api.serving import KEY


async def test_who_may_not_see_secrets_gets_bodies_without_the_fields_of_the_mask(tmp_path: Path) -> None:
    async with running(tmp_path, KEY, payload={"mask": ["/data/card"]}) as (call, _):
        data = {"card": "4111111111111111", "amount": 42}
        event = {"type": "invoice.paid", "id": "evt_1", "tenant": "acme", "data": data}
        assert (await call("POST", "/v1/events", event)).status == 202
        eyes = made(
            await call("POST", "/v1/keys", {"name": "eyes", "scope": "operator", "capabilities": ["read"]})
        )
        portal = made(await call("POST", "/v1/portal-sessions", {"tenant": "acme", "capabilities": ["read"]}))
        path = "/v1/events/evt_1/payload"
        async with asyncio.timeout(60):
            while (seen := await call("GET", path)).status == 404:
                await asyncio.sleep(0.05)
        assert seen.json["data"] == data
        assert "X-Payload-Masked" not in seen.headers
        for secret in (eyes["secret"], portal["token"]):
            hidden = await call.using(secret)("GET", path)
            assert hidden.json["data"] == {"card": "***", "amount": 42}
            assert hidden.headers["X-Payload-Masked"] == "true"
            assert b"4111" not in hidden.body
