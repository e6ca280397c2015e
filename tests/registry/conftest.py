from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dispatcher.core.request.netguard import Guard
from dispatcher.registry.registry import Registry
from dispatcher.settings.groups import Settings
from tests.fakes import subscription

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def entry(name: Any, types: Any = "ping", extra: Any = "") -> Any:
    return f'  - {{id: {name}, url: "https://{name}.example/", event_types: [{types}], secrets: ["${{S}}"]{extra}}}\n'


def document(*entries: Any) -> Any:
    return "subscriptions:\n" + "".join(entries)


@pytest.fixture
def file(tmp_path: Any) -> Any:
    return tmp_path / "subscriptions.yaml"


POLL = 0.02


@pytest.fixture
async def registries(file: Any) -> Any:
    started = []

    async def start(text: Any = None, environ: Any = None, poll: Any = POLL) -> Any:
        if text is not None:
            file.write_text(text)
        registry = Registry(Settings(subscriptions_file=file), Guard(), environ or {"S": SECRET}, poll=poll)
        started.append(registry)
        await registry.start()
        return registry

    yield start
    for registry in started:
        await registry.stop()


async def eventually(condition: Any) -> Any:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(POLL / 2)


def ids(registry: Any) -> Any:
    return sorted(each.id for each in registry.index)


def replace(file: Any, text: Any) -> Any:
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(file)


def managed(name: Any, types: Any = ("ping",), **fields: Any) -> Any:
    return subscription(name, f"https://{name}.example/api", tenant=None, event_types=types, **fields)
