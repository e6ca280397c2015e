from __future__ import annotations

from typing import Any

from dispatcher.broker.base import (
    Message,
    TopicSpec,
)
from tests.broker.backends import Member
from tests.broker.sqlite.conftest import Opened


async def test_a_reader_behind_what_was_compacted_at_the_end_does_not_spin(opened: Opened) -> None:
    broker = await opened()
    await broker.ensure_topics([TopicSpec("t", 1, config={"cleanup.policy": "compact"})], create=True)
    await broker.produce([Message("t", b"v", b"k"), Message("t", None, b"k", timestamp_ms=1)])
    await broker.maintain()
    member = Member(broker, ["t"], "g")
    await member.consumer.start()
    fetches = 0
    fetch = broker._store._file.fetch

    def counted(*arguments: Any) -> Any:
        nonlocal fetches
        fetches += 1
        return fetch(*arguments)

    broker._store._file.fetch = counted
    assert await member.poll(0.3) == 0
    assert fetches <= 1
