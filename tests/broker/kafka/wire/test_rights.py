from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from dispatcher.broker.kafka.broker import KafkaBroker
from tests.broker.backends import WITHIN, OnKafka
from tests.broker.kafka.secured import Secured, allow_nobody_but_bob


@pytest.mark.kafka
async def test_rights_that_are_missing_are_warnings_until_they_are_given(
    secured: Secured, unique: Callable[[str], str]
) -> None:
    backend = OnKafka(unique, secured.cluster.bootstrap)
    try:
        boss = await backend.connect(secured.settings(sasl_username="admin", password="admin-secret"))
        topic, group = await backend.topic(boss), unique("group")
        await allow_nobody_but_bob(boss, 2, topic)
        broker = await backend.connect(secured.settings())
        assert isinstance(broker, KafkaBroker)

        async def warned(topics: dict[str, tuple[str, ...]], groups: dict[str, tuple[str, ...]]) -> list[str]:
            """Once the broker has heard of its own ACL."""
            async with asyncio.timeout(WITHIN):
                while not broker.warnings():
                    await broker.check_rights(topics, groups)
            return broker.warnings()

        read, write = await warned({topic: ("READ", "WRITE")}, {group: ("READ",)})
        assert read.startswith(f"the broker does not let us READ the topic {topic}: ")
        assert write.startswith(f"the broker does not let us WRITE the topic {topic}: ")
        assert "--add --allow-principal User:alice --operation Write --topic" in write
        await broker.check_rights({}, {group: ("READ",)})
        assert broker.warnings() == []
        await allow_nobody_but_bob(boss, 3, group)
        (warning,) = await warned({}, {group: ("READ",)})
        assert f"READ the group {group}" in warning
        await broker.check_rights({}, {unique("group"): ("READ",)})
        assert broker.warnings() == []
    finally:
        await backend.close_all()
