"""The store that the settings name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dispatcher.history.base import StoreRefused
from dispatcher.history.following import Counter
from dispatcher.history.open import followed_names, followed_topics, history_directory, open_store
from dispatcher.history.postgres.store import PostgresHistory
from dispatcher.history.sqlite.store import SqliteHistory
from dispatcher.settings.groups import AttemptsSettings, HistorySettings, Settings

KAFKA = "kafka://127.0.0.1:9092"
POSTGRES = HistorySettings(store="postgresql://dispatcher@127.0.0.1:1/dispatcher")


def test_each_store_is_made_by_its_name() -> None:
    assert isinstance(open_store(Settings()), SqliteHistory)
    assert isinstance(open_store(Settings(history=POSTGRES)), PostgresHistory)
    assert open_store(Settings(history=HistorySettings(store="off"))) is None


def test_a_client_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dispatcher.history.postgres.store", None)
    with pytest.raises(StoreRefused, match=r"webhook-dispatcher\[postgres\]"):
        open_store(Settings(history=POSTGRES))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Settings(broker="sqlite:////var/lib/dispatcher/log.db"), "/var/lib/dispatcher/log-history"),
        (Settings(broker=KAFKA), "dispatcher-data/history"),
        (Settings(broker=KAFKA, history=HistorySettings(directory=Path("/x"))), "/x"),
    ],
)
def test_the_files_are_where_the_settings_say(settings: Settings, expected: str) -> None:
    assert history_directory(settings) == Path(expected)


def test_what_is_followed_follows_from_the_settings() -> None:
    assert followed_names(Settings()) == ["dispatcher.dead", "dispatcher.attempts", "events"]
    less = Settings(attempts=AttemptsSettings(log="none"), history=HistorySettings(events=False))
    assert list(followed_topics(less, Counter())) == ["dispatcher.dead"]
    assert followed_names(Settings(history=HistorySettings(store="off"))) == []
