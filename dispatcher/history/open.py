"""The store that the settings name, and what follows the logs for it."""

from __future__ import annotations

from pathlib import Path

from dispatcher.history.base import HistoryStore, Retention, StoreRefused
from dispatcher.history.following import Counter, TopicKind, of_attempts, of_dead_letters, of_events
from dispatcher.history.sqlite.store import SqliteHistory
from dispatcher.settings.broker_url import SqliteFile, parse_broker_url
from dispatcher.settings.groups import Settings


def open_store(settings: Settings) -> HistoryStore | None:
    """The store, not open yet; None where history.store is off. Raises StoreRefused where what it takes isn't installed."""
    history = settings.history
    if history.store == "off":
        return None
    retention = Retention(round(history.retention * 1000), round(history.retention_counts * 1000))
    keep_all = history.keep == "all"
    if history.store == "sqlite":
        return SqliteHistory(history_directory(settings), retention, keep_all=keep_all)
    try:
        from dispatcher.history.postgres.store import PostgresHistory  # noqa: PLC0415 - asyncpg is an extra
    except ImportError as error:
        raise StoreRefused(
            "history.store names PostgreSQL, whose client is not installed: pip install 'webhook-dispatcher[postgres]'"
        ) from error
    password = None if history.password is None else history.password.get_secret_value()
    return PostgresHistory(history.store, retention, password=password, keep_all=keep_all)


async def check_store(settings: Settings) -> None:
    """Ask a server that the settings name whether a history can be there. Raises StoreRefused, StoreUnavailable; nothing is changed."""
    if not shares_history(settings) or not {"api", "history"} & {*settings.roles}:
        return
    open_store(settings)  # says what is not installed
    from dispatcher.history.postgres.store import check  # noqa: PLC0415 - asyncpg is an extra

    password = settings.history.password
    await check(settings.history.store, None if password is None else password.get_secret_value())


def history_directory(settings: Settings) -> Path:
    """Where SQLite's files are: `history.directory`, or beside the embedded broker's file."""
    if settings.history.directory is not None:
        return settings.history.directory
    match parse_broker_url(settings.broker):
        case SqliteFile(path):
            return path.parent / f"{path.stem}-history"
        case _:
            return Path("dispatcher-data/history")


def followed_names(settings: Settings) -> list[str]:
    """The topics that the history is made of; none without a history."""
    if settings.history.store == "off":
        return []
    prefix = settings.topics.prefix
    logs = [f"{prefix}dead"] if settings.attempts.log == "none" else [f"{prefix}dead", f"{prefix}attempts"]
    return [*logs, *(settings.topics.events if settings.history.events else ())]


def followed_topics(settings: Settings, counter: Counter) -> dict[str, TopicKind]:
    """They, each with what its records are."""
    prefix = settings.topics.prefix
    own = {f"{prefix}dead": of_dead_letters(counter), f"{prefix}attempts": of_attempts(counter)}
    events = of_events(counter)
    return {name: own.get(name, events) for name in followed_names(settings)}


def shares_history(settings: Settings) -> bool:
    """Whether several processes share one store, and so the partitions."""
    return settings.history.store not in {"off", "sqlite"}


def history_group(settings: Settings) -> str:
    """The group by which they do."""
    return f"{settings.group}.history"
