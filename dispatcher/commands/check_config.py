"""`dispatcher check-config`: everything that is wrong with the settings and subscriptions, before a start."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.table import Table

from dispatcher.broker.assignment import RETRY_SUFFIX
from dispatcher.broker.base import BrokerRefused
from dispatcher.broker.open import check_broker
from dispatcher.commands.group import ConfigError
from dispatcher.commands.loop import run
from dispatcher.commands.options import flags, load_settings, settings_options
from dispatcher.commands.session import connected, quiet as silence
from dispatcher.commands.tables import console
from dispatcher.core.request.netguard import Guard
from dispatcher.core.retry.tiers import Tiers
from dispatcher.history.base import HistoryError, StoreRefused
from dispatcher.history.open import check_store
from dispatcher.registry.file import SubscriptionsError, load_file
from dispatcher.settings.broker_url import SqliteFile
from dispatcher.settings.groups import Settings
from dispatcher.settings.load import describe
from dispatcher.telemetry.tracing import check_tracing
from dispatcher.topics.checks import concerns, retry_group, takes_over, warnings
from dispatcher.topics.specs import needed_specs
from dispatcher.transport import tls


@click.command(name="check-config", short_help="Check settings and subscriptions, and show them.")
@click.option("--quiet", "-q", is_flag=True, help="Only say whether it is right.")
@click.option(
    "--connect",
    is_flag=True,
    help="Ask the broker too: topics, retention, retries left over; and PostgreSQL, where the history is there.",
)
@click.option(
    "--subscriptions", "subscriptions_file", type=click.Path(path_type=Path), help="Subscriptions file."
)
@settings_options
def check_config(
    *,
    quiet: bool,
    connect: bool,
    subscriptions_file: Path | None,
    config: Path | None,
    overrides: dict[str, Any],
) -> None:
    """Read settings and subscriptions as `run` would, list every error with its place, or show what is in force.

    Secrets are masked. Nothing is started or changed; nobody is contacted but with --connect. Exits 2 if anything is
    wrong, and 1 if the broker, or PostgreSQL, doesn't answer. What is worth a warning is written to stderr.
    """
    own = flags(subscriptions_file=("--subscriptions", subscriptions_file))
    settings = load_settings(config, {**overrides, **own})
    found = _subscriptions(settings)
    _files(settings)
    try:
        check_tracing(settings, os.environ)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not quiet:
        _show(settings)
    if connect:
        _connect(settings)
    click.echo(f"ok: settings and {found}")


def _connect(settings: Settings) -> None:
    """Ask the broker what `run` would meet."""
    address = settings.broker_address
    if isinstance(address, SqliteFile) and not address.path.exists():
        click.echo(f"{settings.broker} is not there yet: `run` makes it", err=True)
        return
    silence()
    missing, found = run(_ask(settings))
    run(_ask_store(settings))
    for warning in found:
        click.echo(f"Warning: {warning}", err=True)
    if missing and settings.topics.create:
        click.echo(f"topics that `run` will create: {', '.join(missing)}", err=True)
    elif missing:
        raise ConfigError(f"missing topics: {', '.join(missing)}; `dispatcher topics --create` makes them")


async def _ask(settings: Settings) -> tuple[Sequence[str], Sequence[str]]:
    """The mistakes of a check: what is missing, and what is wrong."""
    async with connected(settings) as broker:
        missing = await broker.ensure_topics(needed_specs(settings), create=False)
        topics = await broker.topics(retry_group(settings), only=lambda name: concerns(settings, name))
        tiers = [tier.topic for tier in Tiers(settings.retry.tiers, settings.topics.prefix)]
        readers = await broker.readers_of(tiers, RETRY_SUFFIX)
        return missing, [*warnings(settings, topics, readers), *takes_over(settings, readers)]


async def _ask_store(settings: Settings) -> None:
    """Whether the history can be kept where the settings say."""
    try:
        await check_store(settings)
    except StoreRefused as error:
        raise ConfigError(str(error)) from error
    except HistoryError as error:
        raise click.ClickException(str(error)) from error


def _subscriptions(settings: Settings) -> str:
    if settings.subscriptions_file is None:
        return "no subscriptions file (subscriptions_file is not set): what the API has is delivered to"
    network = settings.network
    guard = Guard(network.allow, network.deny, network.https_only, network.ports)
    try:
        subscriptions = load_file(settings.subscriptions_file, settings, guard, os.environ)
    except SubscriptionsError as error:
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from None
    return f"{len(subscriptions)} subscriptions in {settings.subscriptions_file}"


def _files(settings: Settings) -> None:
    """Read the certificates that the settings name."""
    try:
        check_broker(settings.broker, settings.kafka)
    except (ValueError, BrokerRefused) as error:
        raise ConfigError(str(error)) from error
    try:
        tls.context(None if settings.network.ca_file is None else str(settings.network.ca_file))
    except OSError as error:
        raise ConfigError(f"network.ca_file {settings.network.ca_file}: {error.strerror or error}") from error


def _show(settings: Settings) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for column in ("setting", "value", "from"):
        table.add_column(column, overflow="fold")
    for setting in describe(settings):
        style = "dim" if setting.source == "default" else None
        table.add_row(setting.name, setting.value, setting.source, style=style)
    console().print(table)
