"""`dispatcher history`: make the history again from the topics, or compare it with them."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click

from dispatcher.commands.group import Commands
from dispatcher.commands.loop import run
from dispatcher.commands.options import load_settings, settings_options
from dispatcher.commands.session import connected, quiet
from dispatcher.core.text.units import parse_duration
from dispatcher.history.base import HistoryError, HistoryStore
from dispatcher.history.open import followed_names, open_store
from dispatcher.history.rebuilding import Compared, compare, positions_since
from dispatcher.settings.groups import Settings


@click.group(cls=Commands, short_help="Make the history again, or compare it with the topics.")
def history() -> None:
    """The history is made of the topics. With SQLite, and on the embedded broker, stop the dispatcher first."""


def _since(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    try:
        return None if value is None else parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from error


@history.command(short_help="Forget it, and read the topics again.")
@click.option(
    "--since", callback=_since, help="Only what is not older: 7d, 12h [default: all that the topics have]."
)
@click.option("--yes", is_flag=True, help="Don't ask.")
@settings_options
def rebuild(*, since: float | None, yes: bool, config: Path | None, overrides: dict[str, Any]) -> None:
    """Forget the history and read the topics again, as far back as they go or as --since says.

    The dispatcher reads them when it runs. Until it has come to the end, answers are of what it has read.
    """
    settings = load_settings(config, overrides)
    quiet()
    if not yes:
        click.confirm("Forget the history, and make it again of what the topics still have?", abort=True)
    click.echo(run(_rebuild(settings, since)))


async def _rebuild(settings: Settings, since: float | None) -> str:
    since_ms = 0 if since is None else max(1, int((time.time() - since) * 1000))
    async with _opened(settings) as store, connected(settings) as broker:
        positions = await positions_since(broker, followed_names(settings), since_ms)
        await store.rebuild(positions)
    records = sum(standing.until - standing.next for standing in positions.values())
    return f"the history is empty; the dispatcher will read {records} records of {len(positions)} partitions into it"


@history.command(short_help="Compare it with the attempt log.")
@click.option(
    "--samples", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="Records to look up."
)
@click.option("--since", callback=_since, default="1d", show_default=True, help="Of this time.")
@settings_options
def check(*, samples: int, since: float, config: Path | None, overrides: dict[str, Any]) -> None:
    """Draw records of the attempt log and look whether the history has them.

    Exits 1 when one is missing. What the history has not read yet counts as behind, not as missing.
    """
    settings = load_settings(config, overrides)
    quiet()
    found = run(_check(settings, samples, since))
    click.echo(
        f"{found.looked} records looked up, {len(found.differences)} missing; {found.behind} not read yet"
    )
    for source, offset, delivery_id in found.differences[:20]:
        click.echo(f"missing: {delivery_id}, from {source.topic}-{source.partition} offset {offset}")
    if found.differences:
        raise click.ClickException(
            "the history differs from the log: `GET /v1/deliveries` names gaps that it knows of; `dispatcher history rebuild` makes it again"
        )


async def _check(settings: Settings, samples: int, since: float) -> Compared:
    if settings.attempts.log == "none":
        raise click.ClickException("attempts.log is none: there is nothing to compare with")
    async with _opened(settings) as store, connected(settings) as broker:
        return await compare(
            broker,
            store,
            f"{settings.topics.prefix}attempts",
            samples,
            int((time.time() - since) * 1000),
            everything=settings.history.keep == "all",
            draw=random.Random(),  # noqa: S311 - samples, not secrets
        )


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[HistoryStore]:
    try:
        store = open_store(settings)
        if store is None:
            raise click.ClickException("history.store is off: there is no history")
        try:
            await store.open()
            yield store
        finally:
            await store.close()
    except HistoryError as error:
        raise click.ClickException(str(error)) from error
