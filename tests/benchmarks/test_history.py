"""What the benchmark of the history asks and prepares is what the history reads."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from benchmarks.history import _attempts, _settings
from benchmarks.history_store import (
    _MONTH,
    DAYS,
    Filled,
    Questions,
    _fill_sqlite,
    delivery_of,
)
from dispatcher.history.base import DeliveryState
from dispatcher.history.logged import DAY_MS, read_attempt
from dispatcher.history.merge import made
from dispatcher.history.sqlite.store import SqliteHistory


def test_the_prepared_log_is_read_as_the_attempt_log_is() -> None:
    records = [read_attempt(message.value, at) for at, message in enumerate(islice(_attempts(500, "t"), 600))]
    assert len(records) == 500
    assert {record.decision for record in records} == {"delivered", "retry"}
    assert len({record.delivery_id for record in records}) < 500
    assert all(made(record) and record.v == 2 for record in records)


def test_a_password_has_its_own_place_in_the_settings() -> None:
    settings = _settings("x", "postgresql://user:secret@127.0.0.1:1/db", roles=("history",))
    assert settings["history"] == {"store": "postgresql://user@127.0.0.1:1/db", "password": "secret"}
    assert _settings("x", None)["history"] == {"store": "off"}
    assert _settings("x", "sqlite", events=False)["history"] == {"store": "sqlite", "events": False}


async def test_every_question_finds_something_in_a_store_that_is_filled(tmp_path: Path) -> None:
    filled = Filled(DAYS * 100)
    await _fill_sqlite(tmp_path / "history", filled)
    store = SqliteHistory(tmp_path / "history", _MONTH)
    await store.open()
    reader = Questions(store, filled)._reader
    try:
        events, deliveries = filled.of_day(DAYS - 1)
        (found,) = (await reader.event(None, f"evt_{events[0]}")).value
        assert found.event is not None
        assert found.event.time_ms == filled.until_ms - DAY_MS
        whole = [(await reader.delivery(None, delivery_of(number))).value for number in deliveries]
        assert {each.row.state for each in whole} >= {DeliveryState.DELIVERED}
        assert all(len(each.attempts) == each.row.last_attempt for each in whole)
        for ask in Questions(store, filled).kinds().values():
            await ask()
    finally:
        await store.close()
