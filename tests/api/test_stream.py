"""The stream over HTTP: its form, its bounds, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
import pytest

from dispatcher.api import frame
from dispatcher.control import live
from dispatcher.control.history import HistoryReader
from tests.api.serving import KEY, Client, problem, serving
from tests.history.records import attempt, batch


@pytest.fixture
async def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a history."""
    monkeypatch.setattr(HistoryReader, "kept", True)


@asynccontextmanager
async def following(call: Client, path: str = "/v1/stream") -> AsyncIterator[AsyncIterator[tuple[str, Any]]]:
    headers = {"Authorization": f"Bearer {call.key}"}
    async with call.session.get(call.base + path, headers=headers) as response:
        assert response.status == 200, await response.text()
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["Cache-Control"] == "no-store"
        yield events(response)


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    name = ""
    async for line in response.content:
        text = line.decode().strip()
        if text.startswith("event: "):
            name = text.removeprefix("event: ")
        elif text.startswith("data: "):
            yield name, orjson.loads(text.removeprefix("data: "))


async def test_a_page_hears_of_its_tenants_deliveries(kept: None) -> None:
    async with serving(KEY) as (call, plane):
        made = await call("POST", "/v1/portal-sessions", {"tenant": "acme"})
        async with following(call.using(made.json["token"])) as heard:
            assert (await anext(heard))[0] == "hello"
            records = [attempt(0, 0, "sub_acme", tenant="acme"), attempt(1, 1, "sub_globex", tenant="globex")]
            plane.live.indexed([batch(records, None, 2)])
            name, data = await anext(heard)
            assert (name, list(data["subscriptions"])) == ("tick", ["sub_acme"])


async def test_a_session_that_is_revoked_ends_its_streams(
    kept: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "HEARTBEAT", 0.05)
    async with serving(KEY) as (call, _):
        made = await call("POST", "/v1/portal-sessions", {"tenant": "acme"})
        async with following(call.using(made.json["token"])) as heard:
            assert (await anext(heard))[0] == "hello"
            assert (await anext(heard))[0] == "heartbeat"
            await call("DELETE", "/v1/portal-sessions?tenant=acme")
            said = [each async for each in heard]
            assert said[-1] == ("end", {"reason": "session"})


async def test_the_stop_of_the_server_ends_streams_and_does_not_wait_for_readers(kept: None) -> None:
    async with serving(KEY) as (call, plane), following(call) as heard:
        assert (await anext(heard))[0] == "hello"
        plane.live.close()
        assert [each async for each in heard] == [("end", {"reason": "stopping"})]


async def test_a_reader_that_has_gone_gives_its_place_back(
    kept: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MAX_OF_CALLER", 1)
    monkeypatch.setattr(live, "HEARTBEAT", 0.05)
    async with serving(KEY) as (call, plane):
        async with following(call) as heard:
            await anext(heard)
            problem(await call("GET", "/v1/stream"), 429, "overloaded")
        async with asyncio.timeout(30):
            while plane.live.listening:
                await asyncio.sleep(0.01)
        assert (await call("HEAD", "/v1/stream")).status == 200
        async with following(call) as heard:
            assert (await anext(heard))[0] == "hello"


async def test_a_reader_that_takes_nothing_is_cut_off(kept: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame, "STREAM_TIMEOUT", 0.05)
    monkeypatch.setattr(live, "HEARTBEAT", 0.001)
    monkeypatch.setattr(live, "message", lambda _event, _data: b"x" * 1_000_000)
    async with serving(KEY) as (call, plane):
        port = int(call.base.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        head = f"GET /v1/stream HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {call.key}\r\n\r\n"
        writer.write(head.encode())
        async with asyncio.timeout(60):
            while not plane.live.listening:
                await asyncio.sleep(0.01)
            while plane.live.listening:
                await asyncio.sleep(0.01)
        writer.close()


async def test_without_a_history_there_is_nothing_to_hear() -> None:
    async with serving(KEY) as (call, _):
        problem(await call("GET", "/v1/stream"), 409, "history-off")


async def test_a_tenant_names_no_other(kept: None) -> None:
    async with serving(KEY) as (call, _):
        made = await call("POST", "/v1/portal-sessions", {"tenant": "acme"})
        reader = call.using(made.json["token"])
        problem(await reader("GET", "/v1/stream?tenant=globex"), 422, "invalid")
        async with following(reader, "/v1/stream?tenant=acme&subscription=sub_globex") as heard:
            assert (await anext(heard))[0] == "hello"
