"""`dispatcher topics skip`: give up a batch that can't be unpacked, so that its partition goes on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import orjson

from dispatcher.broker.base import Broker, Message, TopicPartition, UnreadableBatch, UnreadableRecord
from dispatcher.commands.loop import run
from dispatcher.commands.options import load_settings, settings_options
from dispatcher.commands.session import connected, quiet
from dispatcher.control.store import subscriptions_topic
from dispatcher.core.control.skips import Skip, skip_key
from dispatcher.core.retry.tiers import Tiers
from dispatcher.settings.groups import Settings
from dispatcher.topics.specs import topic_specs


@click.command(short_help="Pass over a batch that can't be unpacked.")
@click.argument("topic")
@click.argument("partition", type=click.IntRange(min=0))
@click.argument("offset", type=click.IntRange(min=0))
@settings_options
def skip(topic: str, partition: int, offset: int, *, config: Path | None, overrides: dict[str, Any]) -> None:
    """Give up the batch at OFFSET, whose partition stands still because nobody can unpack it.

    `/readyz` names TOPIC, PARTITION and OFFSET. All records of the batch are lost to the dispatcher; they stay in the topic.
    Works while the dispatcher runs (replicas go on within seconds) and while it is stopped (they pass over it when
    they come there). A record that can be read is never passed over.
    """
    settings = load_settings(config, overrides)
    quiet()
    click.echo(run(_skip(settings, Skip(topic, partition, offset))))


async def _skip(settings: Settings, asked: Skip) -> str:
    topic, partition, offset, _ = asked
    control = subscriptions_topic(settings)
    read = {
        *settings.topics.events,
        *(tier.topic for tier in Tiers(settings.retry.tiers, settings.topics.prefix)),
        control,
    }
    if topic not in read:
        raise click.ClickException(
            f"the dispatcher does not read {topic}; it reads {', '.join(sorted(read))}"
        )
    async with connected(settings) as broker:
        if missing := await broker.ensure_topics(
            [spec for spec in topic_specs(settings) if spec.name in {topic, control}], create=False
        ):
            raise click.ClickException(f"missing: {', '.join(missing)}")
        batch = await _at(broker, asked)
        found = (await broker.look([topic])).get(topic)
        asked = asked._replace(topic_id=None if found is None else found.id)
        value = orjson.dumps({"last": batch.last, "at_ms": int(time.time() * 1000)})
        await broker.produce([Message(control, value, skip_key(asked), partition=0)])
    return (
        f"{topic}-{partition}: the batch that holds offset {offset} and ends with offset {batch.last} is given up ({batch.reason})."
        f" Written to {control}: replicas that run go on behind it within seconds, one that is started later when it comes"
        " there. Its bytes stay in the topic as long as its retention keeps them."
    )


async def _at(broker: Broker, asked: Skip) -> UnreadableBatch:
    """The batch that can't be unpacked; an error where there is none."""
    topic, partition, offset, _ = asked
    try:
        record = await broker.read(TopicPartition(topic, partition), offset)
    except UnreadableBatch as batch:
        return batch
    if record is None:
        why = "is not there: it was deleted by retention, compacted away, not written yet, or the partition does not exist"
    elif isinstance(record, UnreadableRecord):
        why = "costs only itself: it becomes a dead letter, and its partition goes on by itself"
    else:
        why = "can be read"
    raise click.ClickException(f"offset {offset} of {topic}-{partition} {why}; nothing to skip")
