"""`dispatcher backup` and `dispatcher restore`: the topic of what the API has made, as a file, and back.

The file is a line of JSON for each record, between a first line that says what it is and a last one with the number of records and
a digest of all before it: a file that was cut is told from a whole one.

    {"format": "webhook-dispatcher backup", "version": 1, "topic": "dispatcher.subscriptions", "created": "2026-03-01T09:30:00Z"}
    {"key": "sub_billing", "value": "<base64>", "headers": [["v", "<base64>"]], "timestamp_ms": 1772357400000}
    {"records": 1, "sha256": "..."}

All records are kept, in their order: which of two changes to one subscription is in force is decided by the order of the log.
"""

from __future__ import annotations

import base64
import hashlib
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

import click
import orjson

from dispatcher.broker.base import Broker, BrokerError, Message, Record, TopicSpec, UnreadableRecord
from dispatcher.commands.group import ConfigError
from dispatcher.commands.loop import run
from dispatcher.commands.options import load_settings, settings_options
from dispatcher.commands.session import PATIENCE, connected, quiet
from dispatcher.control.store import subscriptions_topic
from dispatcher.settings.groups import Settings
from dispatcher.topics.specs import topic_specs

_FORMAT: Final = "webhook-dispatcher backup"
_VERSION: Final = 1
_BATCH: Final = 500
_POLL: Final = 1.0  # seconds


@click.command(short_help="Write what the API has made into a file.")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@settings_options
def backup(file: Path, *, config: Path | None, overrides: dict[str, Any]) -> None:
    """Write the topic of subscriptions, keys and event types into FILE (- for standard output).

    Works while the dispatcher runs, on Kafka. The file holds secrets as the topic does: sealed with api.secrets_keys, or readable
    where there are none. It is made for its owner alone, and replaces an older one only when it is complete.
    """
    settings = load_settings(config, overrides)
    quiet()
    with _opened(file) as opened:
        output = _Output(opened)
        run(_backup(settings, output))
    click.echo(f"{output.records} records of {subscriptions_topic(settings)} are in {file}", err=True)
    if output.left_out:
        click.echo(
            f"Warning: {output.left_out} records are not the dispatcher's or can't be read; they are left out",
            err=True,
        )


@click.command(short_help="Write a backup into an empty topic.")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True))
@settings_options
def restore(file: Path, *, config: Path | None, overrides: dict[str, Any]) -> None:
    """Write FILE, which `dispatcher backup` made, into the topic of subscriptions, keys and event types.

    Stop every replica first: one that runs writes its own memory into a topic that is made anew. The topic must be empty, or not be there;
    it is made then. Nothing is written unless the whole file is right.
    """
    settings = load_settings(config, overrides)
    quiet()
    messages = list(_read(file, subscriptions_topic(settings)))
    run(_restore(settings, messages))
    click.echo(f"{len(messages)} records are in {subscriptions_topic(settings)}", err=True)


class _Output:
    """The lines of a backup, on their way into a file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.records = 0
        self.left_out = 0

    def write(self, line: dict[str, Any]) -> None:
        text = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        self._digest.update(text)
        self._file.write(text)

    def take(self, record: Record) -> None:
        """One record. What is none of the dispatcher's (it has a key in UTF-8) is left out."""
        try:
            key = (record.key or b"").decode()
        except UnicodeDecodeError:
            key = ""
        if isinstance(record, UnreadableRecord) or not key:
            self.left_out += 1
            return
        headers = [[name, _encoded(value)] for name, value in record.headers if value is not None]
        value = None if record.value is None else _encoded(record.value)
        self.write({"key": key, "value": value, "headers": headers, "timestamp_ms": record.timestamp})
        self.records += 1

    def end(self) -> None:
        self.write({"records": self.records, "sha256": self._digest.hexdigest()})


@contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    """Standard output, or a new file for its owner alone that takes the name once it is complete."""
    if str(file) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    new = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as output:
            yield output
            output.flush()
            os.fsync(output.fileno())
        new.replace(file)
    except OSError as error:
        raise click.ClickException(f"can't write {file}: {error.strerror or error}") from error
    finally:
        new.unlink(missing_ok=True)


async def _backup(settings: Settings, output: _Output) -> None:
    topic = subscriptions_topic(settings)
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    output.write({"format": _FORMAT, "version": _VERSION, "topic": topic, "created": now})
    async with connected(settings) as broker:
        if await broker.ensure_topics([_spec(settings)], create=False):
            raise click.ClickException(f"there is no topic {topic}: nothing to back up")
        async for record in _all(broker, topic):
            output.take(record)
    output.end()


async def _all(broker: Broker, topic: str) -> AsyncIterator[Record]:
    """Every record that is there now."""
    reader = broker.reader(topic)
    await reader.start()
    try:
        silent = 0.0
        while not reader.caught_up:
            found = await reader.read(_POLL, _BATCH)
            for record in found:
                yield record
            silent = 0.0 if found else silent + _POLL
            if silent >= PATIENCE:
                raise click.ClickException(reader.problem or f"{topic} can't be read: no answer")
    finally:
        await reader.stop()


async def _restore(settings: Settings, messages: Sequence[Message]) -> None:
    topic = subscriptions_topic(settings)
    async with connected(settings) as broker:
        await broker.ensure_topics([_spec(settings)], create=True)
        async for _ in _all(broker, topic):
            raise click.ClickException(
                f"{topic} is not empty: stop every replica, delete the topic, and restore again"
            )
        for begin in range(0, len(messages), _BATCH):
            try:
                await broker.produce(messages[begin : begin + _BATCH])
            except BrokerError as error:
                raise click.ClickException(
                    f"{error} ({begin} of {len(messages)} records are written: delete {topic} and restore again)"
                ) from error


def _spec(settings: Settings) -> TopicSpec:
    (spec,) = (spec for spec in topic_specs(settings) if spec.name == subscriptions_topic(settings))
    return spec


def _read(file: Path, topic: str) -> Iterator[Message]:
    """The records of a backup. What is wrong with it ends the command before anything is written."""
    try:
        text = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise ConfigError(f"can't read {file}: {error.strerror or error}") from error
    body, _, last = text.removesuffix(b"\n").rpartition(b"\n")
    lines = body.split(b"\n")
    try:
        head, end = orjson.loads(lines[0] or last), orjson.loads(last)
    except orjson.JSONDecodeError:
        head = end = None
    if not isinstance(head, dict) or head.get("format") != _FORMAT:
        raise ConfigError(f"{file} is no backup: `dispatcher backup` makes one")
    if head.get("version") != _VERSION:
        raise ConfigError(f"{file} was made by a newer version of the dispatcher: use that one")
    digest = hashlib.sha256(body + b"\n").hexdigest()
    if not isinstance(end, dict) or end.get("records") != len(lines) - 1 or end.get("sha256") != digest:
        raise ConfigError(f"{file} is not whole: it was cut or changed")
    for line in lines[1:]:
        record = orjson.loads(line)
        yield Message(
            topic,
            None if record["value"] is None else base64.b64decode(record["value"]),
            record["key"].encode(),
            [(name, base64.b64decode(value)) for name, value in record["headers"]],
            partition=0,
            timestamp_ms=record["timestamp_ms"],
        )


def _encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()
