"""`dispatcher topics`: the topics' contents, and how far the group has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.table import Table

from dispatcher.broker.base import PartitionInfo, TopicInfo
from dispatcher.commands.group import Commands
from dispatcher.commands.loop import run
from dispatcher.commands.options import load_settings, settings_options
from dispatcher.commands.session import connected, quiet
from dispatcher.commands.skip import skip
from dispatcher.commands.tables import console
from dispatcher.core.retry.tiers import Tiers
from dispatcher.delivery.parking import parked_topic
from dispatcher.settings.groups import Settings
from dispatcher.topics.checks import retry_group
from dispatcher.topics.specs import topic_specs


@click.group(
    cls=Commands,
    invoke_without_command=True,
    no_args_is_help=False,
    short_help="Show topics, offsets and lag.",
)
@click.option("--create", is_flag=True, help="Create the topics that are missing.")
@click.option("--all", "everything", is_flag=True, help="Show other topics of the broker too.")
@click.option(
    "--behind", is_flag=True, help="Show only partitions of event topics that are not read to their end."
)
@settings_options
@click.pass_context
def topics(
    context: click.Context,
    *,
    create: bool,
    everything: bool,
    behind: bool,
    config: Path | None,
    overrides: dict[str, Any],
) -> None:
    """Show the dispatcher's topics: partitions, offsets, and how far the group is behind.

    Exits 1 when a topic it needs is missing.
    """
    if context.invoked_subcommand is not None:
        return
    settings = load_settings(config, overrides)
    quiet()
    missing, found = run(_topics(settings, create=create))
    own = [topic for topic in found if everything or _is_own(topic.name, settings)]
    if behind:
        own = _behind(own, settings)
    output = console()
    if own:
        output.print(table(own, settings, repeat=not output.is_terminal))
    elif behind:
        click.echo("every partition of the event topics is read to its end", err=True)
    if missing:
        names = ", ".join(missing)
        raise click.ClickException(f"missing: {names}; dispatcher topics --create makes them")


topics.add_command(skip)


async def _topics(settings: Settings, *, create: bool) -> tuple[Sequence[str], Sequence[TopicInfo]]:
    specs = topic_specs(settings)
    async with connected(settings) as broker:
        missing = await broker.ensure_topics(specs, create=False)
        if missing and create:
            created = missing
            missing = await broker.ensure_topics(specs, create=True)
            for name in created:
                if name not in missing:
                    click.echo(f"created {name}", err=True)
        found = {topic.name: topic for topic in await broker.topics(settings.group)}
        retried = _retry_topics(settings)
        # What waits in them is read by a group of its own.
        again = await broker.topics(retry_group(settings), only=lambda name: name in retried)
        return missing, list({**found, **{topic.name: topic for topic in again}}.values())


def _retry_topics(settings: Settings) -> set[str]:
    prefix = settings.topics.prefix
    return {*(tier.topic for tier in Tiers(settings.retry.tiers, prefix)), parked_topic(prefix)}


def _is_own(name: str, settings: Settings) -> bool:
    return name in settings.topics.events or name.startswith(settings.topics.prefix)


def _behind(found: Sequence[TopicInfo], settings: Settings) -> list[TopicInfo]:
    """The event topics, each with the partitions that have a lag alone."""
    left = [
        replace(topic, partitions=[each for each in topic.partitions if lag(each)])
        for topic in found
        if topic.name in settings.topics.events
    ]
    return [topic for topic in left if topic.partitions]


def table(found: Sequence[TopicInfo], settings: Settings, *, repeat: bool) -> Table:
    """Return a row per partition, with the topic's name in each (`repeat`) or in the first alone.

    Lag counts from the commit, or from the earliest record where there is none. Of a retry topic it is what waits there,
    behind the oldest that still does.
    """
    title = f"groups {settings.group}, {retry_group(settings)}"
    shown = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="dim")
    retried = _retry_topics(settings)
    shown.add_column("topic", overflow="fold")
    for name in ("partition", "earliest", "latest", "committed", "lag"):
        shown.add_column(name, justify="right", no_wrap=True)
    for topic in sorted(found, key=lambda topic: topic.name):
        consumed = topic.name in settings.topics.events or topic.name in retried
        for number, partition in enumerate(sorted(topic.partitions, key=lambda one: one.partition)):
            shown.add_row(
                topic.name if repeat or number == 0 else "",
                str(partition.partition),
                str(partition.earliest),
                str(partition.latest),
                "-" if partition.committed is None else str(partition.committed),
                str(lag(partition)) if consumed or partition.committed is not None else "-",
            )
    return shown


def lag(partition: PartitionInfo) -> int:
    """Return how many offsets the group has still before it."""
    done = partition.earliest if partition.committed is None else max(partition.committed, partition.earliest)
    return max(partition.latest - done, 0)
