"""Verifying an event by its id, with the code that the receivers' page gives, against a running dispatcher."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote

import pytest

from tests.api.real import running
from tests.api.serving import KEY, Client
from tests.e2e.daemon import Endpoint

PAGE = Path(__file__).parents[2] / "docs" / "receivers.md"


def code(language: str) -> str:
    """The page's code of this section."""
    section = PAGE.read_text().partition("## Verify an event by its id\n")[2].partition("\n## ")[0]
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return str(found)


def page_code(monkeypatch: pytest.MonkeyPatch, call: Client, key: str | None = None) -> Callable[..., Any]:
    """The page's `was_published`, asking with this key."""
    monkeypatch.setenv("DISPATCHER_API_URL", call.base)
    monkeypatch.setenv("DISPATCHER_API_KEY", key or KEY)
    names: dict[str, Any] = {}
    exec(compile(code("python"), str(PAGE), "exec"), names)
    was_published = names["was_published"]
    return lambda headers, body: asyncio.to_thread(was_published, headers, body)


async def received(call: Client, endpoint: Endpoint, *events: dict[str, Any]) -> dict[str, Any]:
    """Headers and body of each event, by its id on the wire, once the endpoint has them and the history knows them."""
    made = await call("POST", "/v1/subscriptions", {"url": endpoint.url, "event_types": ["*"], "tenant": "*"})
    assert made.status == 201, made.body
    for each in events:
        assert (await call("POST", "/v1/events", each)).status == 202
    async with asyncio.timeout(60):
        for each in events:
            while (await call("GET", f"/v1/events/{quote(each['id'], safe='')}")).status != 200:
                await asyncio.sleep(0.02)
        while len(endpoint.ids) < len(events):
            await asyncio.sleep(0.02)
    return {headers["webhook-id"]: (headers, body) for _, headers, body in endpoint.requests}


@pytest.mark.parametrize("id_", ["evt_1", "order/1 ä", "100%25"])
async def test_what_was_delivered_is_verified_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, id_: str
) -> None:
    async with Endpoint() as endpoint, running(tmp_path, KEY) as (call, _):
        event = {"type": "invoice.paid", "id": id_, "data": {"amount": 42}}
        ((headers, body),) = (await received(call, endpoint, event)).values()
        was_published = page_code(monkeypatch, call)
        assert await was_published(headers, body)
        assert not await was_published(headers, body.replace(b"42", b"43"))
        assert not await was_published({**headers, "webhook-event-type": "invoice.void"}, body)
        assert not await was_published({**headers, "webhook-id": "evt_none"}, body)
        with pytest.raises(HTTPError, match="401"):
            await page_code(monkeypatch, call, "wrong-key-" + "k" * 32)(headers, body)


async def test_a_tenant_verifies_its_own_events_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Endpoint() as endpoint, running(tmp_path, KEY) as (call, _):
        events: list[dict[str, Any]] = [
            {"type": "invoice.paid", "id": f"evt_{tenant}", "tenant": tenant, "data": {}}
            for tenant in ("acme", "globex")
        ]
        came = await received(call, endpoint, *events)
        key = await call(
            "POST",
            "/v1/keys",
            {"name": "verifier", "scope": "tenant", "tenant": "acme", "capabilities": ["read"]},
        )
        assert key.status == 201, key.body
        was_published = page_code(monkeypatch, call, key.json["secret"])
        assert await was_published(*came["evt_acme"])
        assert not await was_published(*came["evt_globex"])


@pytest.mark.skipif(
    None in map(shutil.which, ("curl", "jq", "sha256sum")), reason="the page's tools are not here"
)
async def test_the_commands_verify_what_was_delivered_and_nothing_else(tmp_path: Path) -> None:
    async with Endpoint() as endpoint, running(tmp_path, KEY) as (call, _):
        event = {"type": "invoice.paid", "id": "evt_19lV", "data": {"amount": 42}}
        ((_, body),) = (await received(call, endpoint, event)).values()
        environ = {**os.environ, "DISPATCHER_API_URL": call.base, "DISPATCHER_API_KEY": KEY}

        async def run(text: str, sent: bytes) -> tuple[int | None, bytes]:
            (tmp_path / "body").write_bytes(sent)
            process = await asyncio.create_subprocess_exec(
                *("sh", "-c", text), cwd=tmp_path, env=environ, stdout=-1, stderr=-1
            )
            output, _ = await process.communicate()
            return process.returncode, output

        commands = code("sh")
        assert await run(commands, body) == (0, b"true\n")
        assert await run(commands, body + b" ") == (1, b"false\n")
        ended, output = await run(commands.replace("evt_19lV", "evt_none"), body)
        assert (ended != 0, output) == (True, b"")
