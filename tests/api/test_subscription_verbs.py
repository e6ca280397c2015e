"""Pausing, rotating, enabling and validating over HTTP, on the whole dispatcher."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import web
from standardwebhooks import Webhook

from tests.api.real import made, running, shown
from tests.e2e.daemon import Endpoint, eventually

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NEW = {"url": "http://127.0.0.1:80/", "event_types": ["*"]}


async def test_a_rotated_secret_signs_beside_the_old_one(tmp_path: Path) -> None:
    async with Endpoint() as endpoint, running(tmp_path) as (call, _):
        made(
            await call(
                "POST", "/v1/subscriptions", {**NEW, "id": "a", "url": endpoint.url, "secrets": [SECRET]}
            )
        )
        rotated = (await call("POST", "/v1/subscriptions/a/secret/rotate")).json
        assert (await call("POST", "/v1/subscriptions/a/ping")).json["delivered"]
        _, headers, body = endpoint.requests[-1]
        for secret in (SECRET, rotated["secret"]):
            Webhook(secret).verify(body, headers)
        secrets = (await shown(call, "a"))["secrets"]
        assert [bool(secret["expires_at"]) for secret in secrets] == [False, True]
        assert SECRET not in str(secrets)


async def test_an_endpoint_that_gave_up_is_enabled_again(tmp_path: Path) -> None:
    gone = True

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=410 if gone else 200)

    async with Endpoint(answer) as endpoint, running(tmp_path) as (call, app):
        made(await call("POST", "/v1/subscriptions", {**NEW, "id": "a", "url": endpoint.url}))
        await call("POST", "/v1/events", {"type": "a", "id": "evt_1"})
        await eventually(lambda: app.registry.counts()["disabled"] == 1, within=60)
        found = await shown(call, "a")
        assert (found["status"], found["reason"]) == ("disabled", "gone")
        gone = False
        assert (await call("POST", "/v1/subscriptions/a/enable")).json["status"] == "active"
        await call("POST", "/v1/events", {"type": "a", "id": "evt_2"})
        await endpoint.received({"evt_2"}, within=60)


@pytest.mark.parametrize("wanted", ["echo", "refuse"])
async def test_a_subscription_waits_for_its_validation(tmp_path: Path, wanted: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.method == "OPTIONS":
            return web.Response(status=405)
        body = await request.json()
        challenge = body.get("data", {}).get("challenge", "") if wanted == "echo" else ""
        return web.json_response({"challenge": challenge})

    async with Endpoint(answer) as endpoint, running(tmp_path) as (call, _):
        new = {**NEW, "id": "a", "url": endpoint.url, "validate": True}
        assert made(await call("POST", "/v1/subscriptions", new))["subscription"]["status"] == "pending"
        answered = await call("POST", "/v1/subscriptions/a/validate")
        if wanted == "echo":
            assert answered.status == 200, answered.body
            assert (await shown(call, "a"))["status"] == "active"
        else:
            assert answered.status == 409, answered.body
            assert (await shown(call, "a"))["status"] == "pending"
