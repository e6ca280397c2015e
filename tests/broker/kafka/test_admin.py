"""What is said about topics that are missing, or that this user may not see or make."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import errors
from aiokafka.structs import OffsetAndMetadata
from pydantic import SecretStr

from dispatcher.broker.base import (
    BrokerRefused,
    TopicSpec,
)
from dispatcher.broker.kafka.admin import KafkaAdmin, offsets_of
from dispatcher.settings.groups import KafkaSettings
from tests.broker.backends import WITHIN, OnKafka
from tests.broker.kafka.library import ZERO
from tests.broker.kafka.secured import Secured, allow_nobody_but_bob

DENIED = errors.TopicAuthorizationFailedError.errno
NOTES = TopicSpec("dispatcher.progress", 1, None, {"cleanup.policy": "compact"})
PARKED = TopicSpec("dispatcher.retry.parked", 8, 3)
EVENTS = TopicSpec("events")


class Client:
    """A broker that tells an error code for each topic, of its metadata."""

    cluster = SimpleNamespace(controller=1)

    def __init__(self, codes: Mapping[str, int]) -> None:
        self.codes = codes

    def get_random_node(self) -> int:
        return 1

    async def send(self, node: int, request: Any) -> Any:
        topics = [
            (code, name, bytes(16), False, [] if code else [()] * 3) for name, code in self.codes.items()
        ]
        return SimpleNamespace(topics=topics)


class Library:
    """The library's admin client: it makes nothing, and says why."""

    def __init__(self, client: Client, code: int) -> None:
        self._client = client
        self.code = code

    async def create_topics(self, topics: Sequence[Any]) -> Any:
        return SimpleNamespace(topic_errors=[(topic.name, self.code, None) for topic in topics])


def admin(codes: Mapping[str, int], creating: int = 0) -> KafkaAdmin:
    async def client() -> Any:
        return made

    made = Client(codes)
    settings = KafkaSettings(sasl_username="alice", sasl_password=SecretStr("x"))
    found = KafkaAdmin(client, dict, settings, lookup=None)  # type: ignore[arg-type]
    found._admin = Library(made, creating)
    return found


async def test_all_topics_that_may_not_be_seen_are_named_with_the_command_that_allows_them() -> None:
    codes = {"events": 0, NOTES.name: DENIED, PARKED.name: DENIED}
    with pytest.raises(BrokerRefused) as refused:
        await admin(codes).ensure_topics([EVENTS, NOTES, PARKED], create=True)
    said = str(refused.value)
    assert "the topics dispatcher.progress, dispatcher.retry.parked:" in said
    assert "`dispatcher topics --create`" in said
    assert (
        "--add --allow-principal User:alice --operation Read --operation Write"
        " --topic dispatcher.progress --topic dispatcher.retry.parked`"
    ) in said


@pytest.mark.parametrize("code", [DENIED, errors.ClusterAuthorizationFailedError.errno])
async def test_all_topics_that_may_not_be_made_are_named_with_the_commands_that_make_them(code: int) -> None:
    codes = {"events": 0, NOTES.name: 3, PARKED.name: 3}
    with pytest.raises(BrokerRefused) as refused:
        await admin(codes, code).ensure_topics([EVENTS, NOTES, PARKED], create=True)
    said = str(refused.value)
    assert "the topics dispatcher.progress, dispatcher.retry.parked are missing" in said
    for command in (
        "--create --topic dispatcher.progress --partitions 1 --config cleanup.policy=compact`",
        "--create --topic dispatcher.retry.parked --partitions 8 --replication-factor 3`",
        "--allow-principal User:alice --operation Create --topic dispatcher.progress --topic dispatcher.retry.parked`",
    ):
        assert command in said


async def test_what_is_missing_is_told_without_making_it() -> None:
    codes = {"events": 0, NOTES.name: 3}
    assert await admin(codes).ensure_topics([EVENTS, NOTES], create=False) == [NOTES.name]


@pytest.mark.kafka
async def test_topics_that_may_not_be_seen_are_named_at_the_start(
    secured: Secured, unique: Callable[[str], str]
) -> None:
    backend = OnKafka(unique, secured.cluster.bootstrap)
    try:
        boss = await backend.connect(secured.settings(sasl_username="admin", password="admin-secret"))
        there, new = await backend.topic(boss), unique("topic")
        for topic in (there, new):
            await allow_nobody_but_bob(boss, 2, topic)
        broker = await backend.connect(secured.settings())
        specs = [TopicSpec(there, 4), TopicSpec(new, 1)]
        said = ""
        async with asyncio.timeout(WITHIN):
            while not (there in said and new in said):  # until the broker has heard of both of its ACLs
                try:
                    await broker.ensure_topics(specs, create=False)
                except BrokerRefused as refused:
                    said = str(refused)
        assert "--allow-principal User:alice --operation Read --operation Write" in said
    finally:
        await backend.close_all()


async def test_nor_is_it_for_who_asks_beforehand() -> None:
    class Admin:
        told: Mapping[Any, Any] = {}

        async def list_consumer_group_offsets(self, group: str, partitions: Any) -> Mapping[Any, Any]:
            return self.told

    admin = Admin()
    with pytest.raises(errors.GroupCoordinatorNotAvailableError):
        await offsets_of(admin, "group", [ZERO])
    admin.told = {ZERO: OffsetAndMetadata(-1, "")}
    assert await offsets_of(admin, "group", [ZERO]) == admin.told
