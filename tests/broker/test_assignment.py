from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest

from dispatcher.broker.assignment import Extent, GuardedListener, Start, plan, start_of
from dispatcher.broker.base import BrokerError, Jump, Position, Remembered, TopicPartition, Why


@pytest.mark.parametrize(("from_latest", "offset"), [(False, 10), (True, 20)])
def test_without_a_commit_reading_starts_where_the_settings_say(from_latest: bool, offset: int) -> None:
    assert start_of(None, 10, 20, from_latest=from_latest) == Start(Position(offset))


@pytest.mark.parametrize("offset", [10, 15, 20])
def test_a_commit_within_the_partition_is_taken_up_with_its_metadata(offset: int) -> None:
    committed = Position(offset, "noted")
    assert start_of(committed, 10, 20, from_latest=True) == Start(committed)


def test_a_commit_beyond_the_end_gives_the_earliest_record_without_its_metadata() -> None:
    assert start_of(Position(21, "noted"), 10, 20, from_latest=True) == Start(Position(10), Why.CUT)


def test_a_commit_that_retention_has_passed_is_taken_up_with_its_metadata_and_read_from_what_is_left() -> (
    None
):
    partition = TopicPartition("t", 0)
    committed = Position(9, "noted")
    assert start_of(committed, 10, 20, from_latest=True) == Start(committed, Why.RETENTION)
    topics = {"t": Remembered("id", 1)}
    found = plan(topics, {partition: committed}, {partition: Extent(10, 20)}, topics, from_latest=True)
    assert (found.starts, found.reads) == ({partition: committed}, {partition: 10})
    assert found.commits == {}, "who has the partition commits what comes of it"
    assert found.jumps == [Jump(partition, Why.RETENTION, 9, 10)]


@pytest.mark.parametrize("earliest", [5, 12])
def test_of_a_topic_made_anew_no_former_note_is_believed_wherever_it_begins(earliest: int) -> None:
    partition = TopicPartition("t", 0)
    found = plan(
        {"t": Remembered("new", 1)},
        {partition: Position(9, "noted")},
        {partition: Extent(earliest, 20)},
        {"t": Remembered("old", 1)},
        from_latest=False,
    )
    assert found.starts == found.commits == {partition: Position(earliest)}
    assert found.reads == {partition: earliest}


class Failing:
    """A listener that fails with `error`, unless it is None."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    async def on_assigned(self, partitions: Mapping[TopicPartition, Position]) -> None:
        if self.error is not None:
            raise self.error

    async def on_revoked(self, partitions: Collection[TopicPartition]) -> None:
        if self.error is not None:
            raise self.error

    def on_gone(self, partitions: Collection[TopicPartition]) -> None: ...

    def on_jump(self, jump: Jump) -> None: ...


@pytest.mark.parametrize("change", ["assigned", "revoked"])
async def test_a_listeners_failure_is_raised_once_and_later(change: str) -> None:
    error = ValueError("no")
    owner = GuardedListener("g", Failing(error))
    await (owner.assigned({}) if change == "assigned" else owner.revoked(()))
    with pytest.raises(BrokerError, match=r"group g: .*: no") as raised:
        owner.raise_failure()
    assert raised.value.__cause__ is error
    owner.raise_failure()


async def test_a_listener_that_does_its_work_leaves_nothing_to_raise() -> None:
    owner = GuardedListener("g", Failing(None))
    await owner.assigned({})
    await owner.revoked(())
    owner.raise_failure()
