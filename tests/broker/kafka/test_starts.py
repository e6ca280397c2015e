"""Where a member starts to read, whatever is the matter with one of its partitions."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import TopicPartition as KafkaPartition, errors
from aiokafka.structs import OffsetAndMetadata

from dispatcher.broker.base import CommitRefused, Position, TopicPartition, Why
from dispatcher.broker.kafka.consumer import KafkaConsumer
from tests.broker.kafka.library import ONE, TWO, ZERO, Cluster, Library, Listener

pytestmark = [pytest.mark.looptime]


async def test_a_partition_that_the_asked_broker_does_not_know_yet_is_taken_when_it_does() -> None:
    cluster, library, listener = Cluster(1), Library(2), Listener()
    library.committed = {ZERO: OffsetAndMetadata(3, ""), ONE: OffsetAndMetadata(4, "")}
    member = KafkaConsumer(cluster, ["events"], "group", listener)
    member._consumer = library
    await member.take([ZERO, ONE])
    assert listener.starts == {TopicPartition("events", 0): Position(3)}
    assert library.paused == {ONE}, "or it is fetched from somewhere, and nobody knows what to do with it"
    await member._look_around()
    assert library.rejoins == 0

    cluster.partitions = 2
    await member._look_around()
    assert library.rejoins == 1
    await member.take([ZERO, ONE])
    assert listener.starts[TopicPartition("events", 1)] == Position(4)
    await member._look_around()
    assert library.rejoins == 1


async def test_a_committed_partition_without_a_leader_stops_no_other_and_starts_at_its_commit() -> None:
    cluster, library, listener = Cluster(3), Library(3), Listener()
    library.committed = {ONE: OffsetAndMetadata(7, "note")}
    library.leaderless = {ONE}
    member = KafkaConsumer(cluster, ["events"], "group", listener)
    member._consumer = library
    await member.take([ZERO, ONE, TWO])
    assert library.rejoins == 0
    assert listener.starts == {
        TopicPartition("events", 0): Position(0),
        TopicPartition("events", 1): Position(7, "note"),
        TopicPartition("events", 2): Position(0),
    }


async def test_a_partition_without_leader_and_commit_waits_until_it_has_a_leader() -> None:
    cluster, library, listener = Cluster(2), Library(2), Listener()
    library.leaderless = {ONE}
    member = KafkaConsumer(cluster, ["events"], "group", listener)
    member._consumer = library
    await member.take([ZERO, ONE])
    assert listener.starts == {TopicPartition("events", 0): Position(0)}
    assert library.paused == {ONE}
    for _ in range(3):
        await member._look_around()
    assert library.rejoins == 0, "the group is left alone as long as it would change nothing"

    library.leaderless = set()
    await member._look_around()
    assert library.rejoins == 1
    await member.take([ZERO, ONE])
    assert listener.starts[TopicPartition("events", 1)] == Position(0)
    assert library.committed[ONE].offset == 0


async def test_a_topic_that_may_not_be_seen_stops_no_other_and_is_not_gone() -> None:
    cluster, library, listener = Cluster(1), Library(1), Listener()
    member = KafkaConsumer(cluster, ["events", "orders"], "group", listener)
    member._consumer = library
    order = KafkaPartition("orders", 0)
    await member.take([ZERO, order])
    assert set(listener.starts) == {ZERO, order}

    cluster.denied = {"orders"}
    await member.revoke()
    await member.take([ZERO, order])
    assert set(listener.starts) == {ZERO}
    assert listener.gone == set()
    assert library.rejoins == 0
    assert member.problem is not None
    assert "orders" in member.problem
    assert "allow this user READ" in member.problem

    cluster.denied = set()
    await member._look_around()
    assert library.rejoins == 1
    await member.take([ZERO, order])
    assert set(listener.starts) == {ZERO, order}
    assert member.problem is None


async def test_a_topic_on_which_nothing_may_be_committed_stops_no_other() -> None:
    cluster, library, listener = Cluster(1), Library(1), Listener()
    library.read_only = {"orders"}
    member = KafkaConsumer(cluster, ["events", "orders"], "group", listener)
    member._consumer = library
    await member.take([ZERO, KafkaPartition("orders", 0)])
    assert set(listener.starts) == {ZERO}
    assert library.rejoins == 0
    assert "orders" in (member.problem or "")


async def test_the_new_start_of_a_cut_partition_is_committed_before_the_group_shares_it_out() -> None:
    library, listener = Library(2), Listener()
    library.committed = {ZERO: OffsetAndMetadata(9, "note"), ONE: OffsetAndMetadata(4, "")}
    member = KafkaConsumer(Cluster(2), ["events"], "group", listener)
    member._consumer = library
    await member.take([ZERO, ONE])
    library.ends[ZERO] = 5
    cut = TopicPartition("events", 0)
    await member._look_for_positions(errors.OffsetOutOfRangeError({ZERO: 9}))
    assert library.rejoins == 0, "not before the commit"
    with pytest.raises(CommitRefused) as refused:
        await member.commit({cut: Position(12), TopicPartition("events", 1): Position(6)})
    assert refused.value.partitions == [cut]
    while not library.rejoins:
        await asyncio.sleep(0.01)
    assert library.committed[ZERO] == OffsetAndMetadata(0, "")
    assert library.committed[ONE].offset == 6, "others of the same commit are committed"
    assert [(jump.partition, jump.why, jump.expected, jump.to) for jump in listener.jumps] == [
        (cut, Why.CUT, 9, 0)
    ]
    await member.revoke()
    await member.take([ZERO, ONE])
    assert listener.starts[cut] == Position(0)
    assert len(listener.jumps) == 1, "told once"
    assert listener.gone == {cut}


async def test_only_the_partitions_that_are_out_of_range_are_asked_for() -> None:
    library, listener = Library(2), Listener()
    member = KafkaConsumer(Cluster(2), ["events"], "group", listener)
    member._consumer = library
    await member.take([ZERO, ONE])
    library.firsts[ZERO] = 3
    library.leaderless = {ONE}
    await member._look_for_positions(errors.OffsetOutOfRangeError({ZERO: 0}))
    assert [(jump.why, jump.to) for jump in listener.jumps] == [(Why.RETENTION, 3)]


async def test_a_partition_without_a_leader_keeps_only_its_own_member_waiting() -> None:
    cluster, library, listener = Cluster(2), Library(2), Listener()
    library.leaderless = {ONE}
    member = KafkaConsumer(cluster, ["events"], "group", listener)
    member._consumer = library
    await member.take([ZERO])
    assert listener.starts == {TopicPartition("events", 0): Position(0)}
    assert library.rejoins == 0
