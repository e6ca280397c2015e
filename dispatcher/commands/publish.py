"""`dispatcher publish`: write events to the broker, as a producer would."""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click
import orjson

from dispatcher.broker.base import BrokerError, Message, StoredRecord, TopicSpec
from dispatcher.commands.loop import run
from dispatcher.commands.options import load_settings, settings_options
from dispatcher.commands.session import PATIENCE, connected, quiet
from dispatcher.core.event.decode import (
    RESERVED,
    InvalidEvent,
    decode,
    without_lone_surrogates,
)
from dispatcher.core.event.moment import valid_time
from dispatcher.core.text.redact import name_of
from dispatcher.settings.groups import Settings

_BATCH: Final = 1000
_TIMES: Final = ("timestamp", "ce_time")
_OWN: Final = {"type": "TYPE", "id": "--id", "tenant": "--tenant", "content-type": "--content-type"}


@click.command(short_help="Publish an event.")
@click.argument("type_", metavar="TYPE")
@click.option(
    "--data", default="{}", show_default=True, help="The body: JSON, @FILE, or - for standard input."
)
@click.option("--id", "id_", help="Event id; with --count, -1, -2... are added [default: a new one].")
@click.option("--tenant", help="Tenant [default: none].")
@click.option("--count", default=1, show_default=True, type=click.IntRange(1, 10_000_000), help="How many.")
@click.option("--topic", help="Topic to write to, of topics.events [default: the first of them].")
@click.option("--force", is_flag=True, help="Write to a topic that is not in topics.events, too.")
@click.option(
    "--header", "headers", multiple=True, metavar="K=V", help="A record header, such as traceparent=..."
)
@click.option("--content-type", help="Of the body; without it the body has to be JSON.")
@settings_options
def publish(
    type_: str,
    data: str,
    id_: str | None,
    tenant: str | None,
    count: int,
    topic: str | None,
    force: bool,
    headers: tuple[str, ...],
    content_type: str | None,
    config: Path | None,
    overrides: dict[str, Any],
) -> None:
    """Publish an event of TYPE (such as invoice.paid) to the configured broker.

    Prints the id of each event once the broker has acknowledged it.
    """
    settings = load_settings(config, overrides)
    quiet()
    body = _body(data, content_type)
    routing = _headers(type_, tenant, content_type, headers)
    ids = _ids(id_, count)
    if type_.startswith(RESERVED):
        raise click.UsageError(
            f"types that begin with {RESERVED} are the dispatcher's own: choose another type"
        )
    topic = topic or settings.topics.events[0]
    if topic not in settings.topics.events and not force:
        raise click.UsageError(
            f"{topic} is not in topics.events ({', '.join(settings.topics.events)}), so the dispatcher doesn't read it; "
            "--force writes there all the same"
        )
    messages = (_message(topic, event_id, body, routing) for event_id in ids)
    _check(_message(topic, id_ if id_ is not None else "evt_0", body, routing), type_)
    run(_publish(settings, topic, messages))
    click.echo(f"published {count} event{'s' if count > 1 else ''} to {topic}", err=True)


async def _publish(settings: Settings, topic: str, messages: Iterator[Message]) -> None:
    async with connected(settings) as broker:
        spec = TopicSpec(topic, settings.topics.partitions, settings.topics.replication)
        if await broker.ensure_topics([spec], create=settings.topics.create):
            raise click.ClickException(f"there is no topic {topic}: dispatcher topics --create makes it")
        written = 0
        while batch := list(islice(messages, _BATCH)):
            try:
                async with asyncio.timeout(PATIENCE):
                    await broker.produce(batch)
            except (TimeoutError, BrokerError) as error:
                said = (
                    str(error) or f"no acknowledgement within {PATIENCE:g} s: {broker.problem or 'no answer'}"
                )
                raise click.ClickException(f"{said} ({written} events are written)") from error
            written += len(batch)
            for message in batch:
                click.echo(dict(message.headers)["id"])


def _body(data: str, content_type: str | None) -> bytes:
    try:
        if data == "-":
            body = sys.stdin.buffer.read()
        elif data.startswith("@"):
            body = Path(data[1:]).read_bytes()
        else:
            body = data.encode(errors="surrogateescape")
    except OSError as error:
        raise click.BadParameter(f"can't read {data[1:]}: {error.strerror}", param_hint="--data") from error
    if content_type is None:
        try:
            orjson.loads(without_lone_surrogates(body) or body)
        except orjson.JSONDecodeError as error:
            raise click.BadParameter(
                f"not JSON ({error}); name what it is with --content-type", param_hint="--data"
            ) from error
    return body


def _headers(
    type_: str, tenant: str | None, content_type: str | None, given: Iterable[str]
) -> list[tuple[str, bytes]]:
    headers = [("type", type_.encode())]
    if tenant is not None:
        headers.append(("tenant", tenant.encode()))
    if content_type is not None:
        headers.append(("content-type", content_type.encode()))
    for header in given:
        name, equals, value = header.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{name_of(header)} is not NAME=VALUE", param_hint="--header")
        if name.lower() in _OWN:
            raise click.BadParameter(f"{name} is given by {_OWN[name.lower()]}", param_hint="--header")
        if name in _TIMES and not valid_time(value):
            raise click.BadParameter(
                f"{name} is no time (ISO 8601: 2026-03-01T09:30:00Z)", param_hint="--header"
            )
        headers.append((name, value.encode()))
    return headers


def _ids(id_: str | None, count: int) -> Iterator[str]:
    if count == 1 and id_ is not None:
        yield id_
        return
    for number in range(1, count + 1):
        yield f"{id_}-{number}" if id_ is not None else f"evt_{secrets.token_urlsafe(15)}"


def _message(topic: str, event_id: str, body: bytes, headers: list[tuple[str, bytes]]) -> Message:
    encoded = event_id.encode()
    return Message(topic, body, key=encoded, headers=[("id", encoded), *headers])


def _check(message: Message, type_: str) -> None:
    """Refuse what the daemon could only put into the dead-letter topic."""
    record = StoredRecord(0, int(time.time() * 1000), message.key, message.value, message.headers)
    try:
        event = decode(record, message.topic, 0)
    except InvalidEvent as error:
        raise click.UsageError(f"the dispatcher would refuse this event: {error}") from error
    if event.type != type_:
        raise click.UsageError(f"with these headers the event's type is {event.type}, not {type_}")
