"""Putting the parts together: what goes wrong between start and the first delivery."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from dispatcher.app import App
from dispatcher.broker.base import BrokerRefused, BrokerUnavailable, TopicSpec
from dispatcher.settings.groups import HttpSettings, Settings, TopicsSettings
from tests.e2e.daemon import eventually


def settings(folder: Path, **changes: object) -> Settings:
    broker = f"sqlite:///{folder}/log.db"
    return Settings.model_validate({"broker": broker, "http": HttpSettings(port=0), **changes})


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    app = App(settings(tmp_path), {})
    yield app
    await app.stop()


async def test_it_is_ready_once_partitions_are_assigned(app: App) -> None:
    await app.start()
    assert app.problems() == ["not connected yet"]
    assert not app.started
    await eventually(lambda: not app.problems(), within=90)
    assert app.started


async def test_a_broker_that_goes_away_while_topics_are_made_is_waited_for(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    ensure = app.broker.ensure_topics

    async def away_twice(topics: Sequence[TopicSpec], *, create: bool) -> Sequence[str]:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise BrokerUnavailable("connection closed")
        return await ensure(topics, create=create)

    monkeypatch.setattr(app.broker, "ensure_topics", away_twice)
    await app.start()
    await eventually(lambda: not app.problems(), within=90)
    assert calls == 3
    assert app.failure is None


async def test_missing_topics_that_may_not_be_made_end_it_with_what_to_do(tmp_path: Path) -> None:
    app = App(settings(tmp_path, topics=TopicsSettings(create=False)), {})
    try:
        await app.start()
        async with asyncio.timeout(30):
            await app.wait()
        assert isinstance(app.failure, BrokerRefused)
        assert "dispatcher topics --create" in str(app.failure)
        assert not app.started
    finally:
        await app.stop()


async def test_a_part_that_cannot_be_stopped_does_not_keep_the_others_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App(settings(tmp_path), {})
    await app.start()
    await eventually(lambda: not app.problems(), within=90)

    async def broken() -> None:
        raise RuntimeError("stuck")

    monkeypatch.setattr(app.registry, "stop", broken)
    port = app.http_port
    await app.stop()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
