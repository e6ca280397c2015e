from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, strategies as st

from dispatcher.broker.base import (
    CommitRefused,
    Position,
    TopicPartition,
    TopicSpec,
)
from dispatcher.broker.sqlite.group import assign
from tests.broker.backends import Listener, Member, eventually
from tests.broker.sqlite.conftest import Opened


@given(
    st.lists(st.sets(st.sampled_from("abc"), min_size=1), min_size=1, max_size=5),
    st.dictionaries(st.sampled_from("abc"), st.integers(1, 7)),
)
def test_every_partition_that_somebody_wants_has_one_owner_and_shares_are_even(
    wanted: list[set[str]], topics: dict[str, int]
) -> None:
    shares = assign(list(enumerate(wanted)), topics)
    assert [member for member, _ in shares] == list(range(len(wanted)))
    given_out = [partition for _, share in shares for partition in share]
    expected = {
        TopicPartition(t, p) for t, n in topics.items() if any(t in w for w in wanted) for p in range(n)
    }
    assert len(given_out) == len(set(given_out))
    assert set(given_out) == expected
    for member, share in shares:
        assert {partition.topic for partition in share} <= wanted[member]
    if all(topics_wanted == wanted[0] for topics_wanted in wanted):
        sizes = [len(share) for _, share in shares]
        assert max(sizes) - min(sizes) <= 1


async def test_a_member_that_does_not_give_up_in_time_is_left_behind_and_joins_again(opened: Opened) -> None:
    broker = await opened(rebalance_timeout=0.3)
    await broker.ensure_topics([TopicSpec("t")], create=True)
    release = asyncio.Event()

    async def hang(_partitions: object) -> None:
        await release.wait()

    slow = Member(broker, ["t"], "g", Listener(during_revoked=hang))
    quick = Member(broker, ["t"], "g")
    await slow.consumer.start()
    await quick.consumer.start()
    assert len(quick.listener.assigned) == 4
    with pytest.raises(CommitRefused):
        await slow.consumer.commit({TopicPartition("t", 0): Position(1)})
    slow.listener.during_revoked = None
    release.set()
    await eventually(lambda: len(slow.listener.assigned) == len(quick.listener.assigned) == 2)
