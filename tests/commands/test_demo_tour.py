"""The demo that goes on."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import socket
from pathlib import Path

import aiohttp
from rich.console import Console

from dispatcher.commands.demo import Demo, Endpoint, demo_settings
from dispatcher.commands.demo_tour import events_of, free_port
from dispatcher.commands.receiver import healthy
from tests.api.serving import Client
from tests.e2e.daemon import eventually


def test_the_usual_port_is_taken_only_if_it_is_free() -> None:
    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # somebody else has it, which is the same
            taken.bind(("127.0.0.1", 8080))
        assert free_port("127.0.0.1") == 0


def test_traffic_never_stops_and_never_floods() -> None:
    counts = [events_of(float(second), second) for second in range(300)]
    assert min(counts) >= 1
    assert max(counts) <= 10
    assert len(set(counts)) > 3


async def test_its_console_shows_what_the_demo_has_made_and_what_goes_on(tmp_path: Path) -> None:
    cast = [
        Endpoint("audit", "wants everything", "*", ["*"], lambda _event: True, healthy),
        Endpoint(
            "dead",
            "refuses",
            "acme",
            ["*"],
            lambda event: event.tenant == "acme",
            None,
            {"retry": {"schedule": ["50ms"]}},
        ),
    ]
    screen = io.StringIO()
    settings = demo_settings(None, {}, tmp_path)
    demo = Demo(settings, cast, 16, Console(file=screen, width=120), keep_running=True)

    async def look() -> None:
        await eventually(lambda: "Look around" in screen.getvalue(), 60)
        found = re.search(r"Look around: (http://\S+)/console", screen.getvalue())
        assert found is not None
        async with aiohttp.ClientSession() as session:
            call = Client(found[1], session, None)
            assert (await call("GET", "/console")).status == 200
            assert (await call("GET", "/v1/session")).json["environment"]["name"] == "demo"
            types = (await call("GET", "/v1/event-types")).json["event_types"]
            assert "invoice.paid" in [each["name"] for each in types]

            async def there(path: str, name: str) -> list[str]:
                return [each["event_id"] for each in (await call("GET", path)).json[name]]

            seen: set[str] = set()
            while not {"evt_000000", "evt_000016"} <= seen:
                seen |= set(await there("/v1/deliveries?limit=200", "deliveries"))
            while not await there("/v1/deliveries?state=dead", "deliveries"):
                pass
        demo._interrupt()

    async with asyncio.timeout(120):
        code, _ = await asyncio.gather(demo.run(), look())
    assert code == 0
    assert "Interrupted" in screen.getvalue()
