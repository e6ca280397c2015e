from __future__ import annotations

from pathlib import Path

import pytest

from dispatcher.broker.base import Record, TopicPartition
from dispatcher.broker.open import open_broker
from dispatcher.commands.session import connected
from dispatcher.core.event.decode import decode
from dispatcher.settings.groups import Settings
from dispatcher.settings.load import load
from tests.commands import console


def embedded(directory: Path) -> Settings:
    return load(None, {}, {"broker": f"sqlite:///{directory}/dispatcher-data/log.db"})


async def published(directory: Path, topic: str = "events") -> list[Record]:
    """What is in the topic, partition by partition."""
    records = []
    async with connected(embedded(directory)) as broker:
        for info in await broker.topics():
            for partition in info.partitions if info.name == topic else ():
                for offset in range(partition.earliest, partition.latest):
                    record = await broker.read(TopicPartition(topic, partition.partition), offset)
                    assert record is not None
                    records.append(record)
    return records


async def test_an_event_is_written_as_it_was_given(tmp_path: Path) -> None:
    ended = console.dispatcher(
        *("publish", "invoice.paid", "--id", "evt_7", "--tenant", "acme", "--data", '{"a": "ü"}'),
        *("--header", "traceparent=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        cwd=tmp_path,
    )
    assert (ended.returncode, ended.stdout) == (0, "evt_7\n"), ended.stderr
    assert ended.stderr == "published 1 event to events\n"
    (record,) = await published(tmp_path)
    event = decode(record, "events", 0)
    assert (event.id, event.type, event.tenant, event.body) == (
        "evt_7",
        "invoice.paid",
        "acme",
        '{"a": "ü"}'.encode(),
    )
    assert b"traceparent: 00-0af7" in event.head.lower()


async def test_many_events_have_ids_of_their_own(tmp_path: Path) -> None:
    ended = console.dispatcher("publish", "ping", "--count", "1500", "--id", "load", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    printed = ended.stdout.split()
    assert printed[:2] + printed[-1:] == ["load-1", "load-2", "load-1500"]
    assert {decode(record, "events", 0).id for record in await published(tmp_path)} == set(printed)


async def test_without_an_id_a_new_one_is_made_each_time(tmp_path: Path) -> None:
    ids = [console.dispatcher("publish", "ping", cwd=tmp_path).stdout.strip() for _ in range(2)]
    assert len(set(ids)) == 2
    assert sorted(decode(record, "events", 0).id for record in await published(tmp_path)) == sorted(ids)


async def test_the_body_comes_from_a_file_or_from_standard_input(tmp_path: Path) -> None:
    (tmp_path / "body.json").write_text('{"from": "file"}\n')
    console.dispatcher("publish", "ping", "--data", "@body.json", cwd=tmp_path)
    console.dispatcher("publish", "ping", "--data", "-", cwd=tmp_path, stdin='{"from": "stdin"}')
    bodies = {record.value for record in await published(tmp_path)}
    assert bodies == {b'{"from": "file"}\n', b'{"from": "stdin"}'}


async def test_a_body_that_is_not_json_needs_a_content_type(tmp_path: Path) -> None:
    refused = console.dispatcher("publish", "ping", "--data", "hello", cwd=tmp_path)
    assert refused.returncode == 2
    assert "--content-type" in refused.stderr
    taken = console.dispatcher(
        "publish", "ping", "--data", "hello", "--content-type", "text/plain", cwd=tmp_path
    )
    assert taken.returncode == 0, taken.stderr
    (record,) = await published(tmp_path)
    assert b"content-type: text/plain" in decode(record, "events", 0).head.lower()


async def test_another_topic_may_be_named(tmp_path: Path) -> None:
    ended = console.dispatcher(
        "publish", "ping", "--topic", "others", "--set", "topics.events=events,others", cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    assert len(await published(tmp_path, "others")) == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["a\nb"], "type"),
        (["ping", "--id", "a\nb"], "id"),
        (["ping", "--data", "@nowhere.json"], "nowhere.json"),
        (["ping", "--header", "x"], "NAME=VALUE"),
        (["ping", "--header", "type=pong"], "TYPE"),
        (["ping", "--count", "0"], "--count"),
        (["ping", "--broker", "amqp://here"], "broker"),
        ([], "TYPE"),
    ],
)
def test_a_wrong_command_line_exits_2_and_writes_nothing(
    tmp_path: Path, arguments: list[str], word: str
) -> None:
    ended = console.dispatcher("publish", *arguments, cwd=tmp_path)
    assert ended.returncode == 2
    assert word in ended.stderr
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert list(tmp_path.iterdir()) == []


async def test_an_embedded_broker_in_use_says_what_to_do(tmp_path: Path) -> None:
    settings = embedded(tmp_path)
    (tmp_path / "dispatcher-data").mkdir()
    broker = open_broker(settings.broker, settings.kafka, settings.sqlite)
    await broker.connect()
    try:
        ended = console.dispatcher("publish", "ping", cwd=tmp_path)
    finally:
        await broker.close()
    assert (ended.returncode, ended.stdout) == (1, "")
    assert len(ended.stderr.splitlines()) == 1
    assert "in use" in ended.stderr


@pytest.mark.slow
def test_a_broker_that_is_away_is_one_line_and_exit_1(tmp_path: Path) -> None:
    ended = console.dispatcher("publish", "ping", "--broker", "kafka://127.0.0.1:9", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("Error: no broker after 10 s: ")
    assert len(ended.stderr.splitlines()) == 1


async def test_a_topic_that_nobody_reads_is_refused_and_not_made(tmp_path: Path) -> None:
    refused = console.dispatcher("publish", "ping", "--topic", "evnets", cwd=tmp_path)
    assert refused.returncode == 2
    assert "evnets is not in topics.events (events)" in refused.stderr
    assert "--force" in refused.stderr
    assert await published(tmp_path, "evnets") == []
    forced = console.dispatcher("publish", "ping", "--topic", "evnets", "--force", cwd=tmp_path)
    assert forced.returncode == 0, forced.stderr
    assert len(await published(tmp_path, "evnets")) == 1
    assert await published(tmp_path) == []


async def test_reserved_types_are_refused_with_force_too(tmp_path: Path) -> None:
    refused = console.dispatcher("publish", "dispatcher.subscription.disabled", "--force", cwd=tmp_path)
    assert refused.returncode == 2
    assert "the dispatcher's own" in refused.stderr
    assert await published(tmp_path) == []


async def test_what_is_no_time_is_refused_as_one(tmp_path: Path) -> None:
    for name in ("timestamp", "ce_time"):
        refused = console.dispatcher(
            "publish", "ping", "--header", f"{name}=2026-13-45T99:99:99Z", cwd=tmp_path
        )
        assert refused.returncode == 2
        assert f"{name} is no time" in refused.stderr


async def test_an_id_and_a_type_of_any_characters_and_json_as_javascript_writes_it(tmp_path: Path) -> None:
    body = b'{"text": "\\ud83d"}'
    ended = console.dispatcher(
        *("publish", "com.example/order:created v2", "--id", "order 1", "--data", body.decode()), cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    (record,) = await published(tmp_path)
    event = decode(record, "events", 0)
    assert (event.id, event.type, event.body) == ("order 1", "com.example/order:created v2", body)
