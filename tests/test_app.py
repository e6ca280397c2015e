"""Putting the parts together: what goes wrong between start and the first delivery."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from dispatcher.app import App
from dispatcher.broker.base import BrokerRefused, BrokerUnavailable, TopicSpec
from dispatcher.history.base import EventQuery, StoreUnavailable
from dispatcher.settings.groups import HttpSettings, Settings, TopicsSettings
from tests.api.real import running
from tests.e2e.daemon import eventually

KEY = "operator-key-0123456789"


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


async def test_the_stop_waits_for_the_historys_database_only_after_the_drain(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that doesn't answer would take time from deliveries that are under way."""
    await app.start()
    await eventually(lambda: not app.problems(), 60)
    history, engine = app._history, app._engine
    assert history is not None
    assert engine is not None
    order: list[str] = []
    drain, close = engine.stop, history.close

    async def stop(seconds: float) -> None:
        order.append("drain")
        await drain(seconds)

    async def let_go() -> None:
        order.append("database")
        await close()

    monkeypatch.setattr(engine, "stop", stop)
    monkeypatch.setattr(history, "close", let_go)
    await app.stop()
    assert order == ["drain", "database"]


async def test_the_history_is_on_by_default_and_knows_what_was_published(tmp_path: Path) -> None:
    async with running(tmp_path, KEY) as (client, app):
        event = {"id": "evt_1", "type": "invoice.paid", "data": {}}
        answer = await client("POST", "/v1/events", event)
        assert answer.status == 202
        assert app._history is not None
        store = app._history.store

        async def known() -> bool:
            try:
                return len((await store.events(EventQuery(0, 2**53, 10, event_id="evt_1"))).items) == 1
            except StoreUnavailable:
                return False  # not open yet

        async with asyncio.timeout(60):
            while not await known():
                await asyncio.sleep(0.02)
        assert app.warnings() == []
    assert (tmp_path / "log-history" / "history.db").exists()


async def test_a_history_that_cannot_be_kept_is_a_warning_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "log-history").write_text("no directory")
    async with running(tmp_path, KEY) as (client, app):
        await eventually(lambda: any("history.directory" in warning for warning in app.warnings()), within=60)
        answer = await client("POST", "/v1/events", {"type": "invoice.paid", "data": {}})
        assert answer.status == 202
        assert app.problems() == []


async def test_without_a_history_nothing_of_it_is_there(tmp_path: Path) -> None:
    async with running(tmp_path, KEY, history={"store": "off"}) as (_, app):
        assert app._history is None
        assert app.warnings() == []
    assert not (tmp_path / "log-history").exists()
