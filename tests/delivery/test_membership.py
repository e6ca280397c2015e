"""What a membership makes of its consumer's answers, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dispatcher.broker.base import (
    Broker,
    CommitRefused,
    Jump,
    Position,
    StoredRecord,
    TopicPartition,
    Why,
)
from dispatcher.core.commit.note import RECORD_LIMIT, Pointer, Who, checksum_of, pack, pointing, read_note
from dispatcher.delivery.membership import Membership
from dispatcher.runtime.tasks import Tasks
from dispatcher.telemetry.metrics import Metrics

pytestmark = [pytest.mark.looptime]

HERE, GONE = TopicPartition("events", 0), TopicPartition("orders", 0)


class Host:
    async def before_revocation(self, membership: Membership) -> None: ...

    async def after_revocation(self, membership: Membership) -> None: ...

    def after_assignment(self, membership: Membership) -> None: ...


class Consumer:
    """Refuses to commit `refused`."""

    problem = None

    def __init__(self) -> None:
        self.refused: list[TopicPartition] | None = []
        self.commits: list[Mapping[TopicPartition, Position]] = []

    def passed(self) -> dict[Any, Any]:
        return {}

    def ends(self) -> dict[Any, Any]:
        return {}

    async def commit(self, positions: Mapping[TopicPartition, Position]) -> None:
        self.commits.append(positions)
        if self.refused is None or self.refused:
            raise CommitRefused("another topic", self.refused)


class Notes:
    """A broker of whose records none can be read in time."""

    metadata_limit = 4096

    def __init__(self) -> None:
        self.made = Consumer()

    def consumer(self, *_: Any, **__: Any) -> Consumer:
        return self.made

    async def read(self, partition: TopicPartition, offset: int) -> None:
        await asyncio.Event().wait()

    async def look(self, topics: Any) -> dict[str, Any]:
        return {topic: SimpleNamespace(partitions=1) for topic in topics}


async def made(broker: Notes, **more: Any) -> Membership:
    membership = Membership(cast("Broker", broker), ["events", "orders"], "group", Host(), Metrics(), **more)
    await membership.on_assigned({HERE: Position(0), GONE: Position(0)})
    for tracker in membership.trackers.values():
        tracker.track(0, 1)
        tracker.settle(0)
    return membership


async def test_what_others_of_a_refused_commit_have_committed_is_not_committed_again() -> None:
    broker = Notes()
    membership = await made(broker)
    broker.made.refused = [GONE]
    await membership.commit()
    assert set(broker.made.commits[0]) == {HERE, GONE}
    await membership.commit()
    assert set(broker.made.commits[1]) == {GONE}


async def test_a_commit_that_is_refused_as_a_whole_is_made_again_as_a_whole() -> None:
    broker = Notes()
    membership = await made(broker)
    broker.made.refused = None
    await membership.commit()
    await membership.commit()
    assert [set(positions) for positions in broker.made.commits] == [{HERE, GONE}] * 2


async def test_notes_that_can_not_be_read_delay_an_assignment_by_no_more_than_their_limit() -> None:
    membership = await made(Notes(), notes_topic="progress", read_limit=1.5)
    text = pointing(*HERE, 7, "", Pointer(0, 3, 0))
    clock = asyncio.get_running_loop().time
    began = clock()
    await membership.on_assigned({HERE: Position(7, text)})
    assert clock() - began == pytest.approx(1.5)
    assert membership.trackers[HERE].committable == 7


@pytest.mark.parametrize("whole", [False, True], ids=["beside the commit", "in a record"])
async def test_what_a_note_says_is_done_stays_done_when_retention_has_passed_its_commit(
    monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """Committed is 15; 17 to 19 and 26 to 29 are done, 24 for a; the first that is left is 24."""
    done, partly = [(17, 20), (26, 30)], {Who(owed=False, ids=("a",)): [(24, 25)]}
    packed = pack(*HERE, 15, done, partly, 10 if whole else 4096, record=RECORD_LIMIT)
    assert (packed.whole is not None) is whole
    broker = Notes()
    text = packed.text
    if packed.whole is not None:
        record = StoredRecord(0, 0, None, packed.whole)
        text = pointing(*HERE, 15, packed.text, Pointer(0, 0, checksum_of(packed.whole)))

        async def read(partition: TopicPartition, offset: int) -> StoredRecord:
            return record

        monkeypatch.setattr(broker, "read", read)
    metrics = Metrics()
    topic = "dispatcher.progress" if whole else None
    membership = Membership(cast("Broker", broker), ["events"], "group", Host(), metrics, notes_topic=topic)
    membership.on_jump(Jump(HERE, Why.RETENTION, 15, 24))
    await membership.on_assigned({HERE: Position(15, text)})
    tracker = membership.trackers[HERE]
    assert metrics.offsets_skipped["events"] == 24 - 15 - 3, "what had been delivered before is no loss"

    monkeypatch.setattr(broker.made, "passed", lambda: {HERE: (15, 24)})
    await membership.commit()
    (committed,) = broker.made.commits
    assert committed[HERE].offset == 24
    assert read_note(*HERE, *committed[HERE]).done == ((26, 30),), "the next owner learns it too"
    assert [offset for offset in range(24, 32) if not tracker.seen(offset)] == [24, 25, 30, 31]


async def test_a_note_beside_an_offset_that_somebody_has_moved_is_not_believed_where_retention_has_passed_it() -> (
    None
):
    metrics = Metrics()
    membership = Membership(cast("Broker", Notes()), ["events"], "group", Host(), metrics)
    membership.on_jump(Jump(HERE, Why.RETENTION, 10, 24))
    await membership.on_assigned({HERE: Position(10, pack(*HERE, 15, [(17, 20), (26, 30)]).text)})
    assert metrics.offsets_skipped["events"] == 24 - 10
    assert not any(membership.trackers[HERE].seen(offset) for offset in range(24, 30))


async def test_what_this_process_has_taken_up_of_what_retention_deleted_is_delivered_and_no_loss() -> None:
    metrics = Metrics()
    broker = Notes()
    membership = Membership(cast("Broker", broker), ["events"], "group", Host(), metrics)
    await membership.on_assigned({HERE: Position(0)})
    tracker = membership.trackers[HERE]
    for offset in range(20):
        tracker.track(offset, 1)
    await membership.on_revoked([HERE])
    membership.on_jump(Jump(HERE, Why.RETENTION, 0, 24))
    await membership.on_assigned({HERE: Position(tracker.committed, tracker.noted)})
    assert membership.trackers[HERE] is tracker
    assert not tracker.lost
    assert metrics.offsets_skipped["events"] == 24 - 20, "only what was not read"


async def test_a_live_member_that_retention_passes_counts_only_what_was_not_done_before() -> None:
    metrics = Metrics()
    membership = Membership(cast("Broker", Notes()), ["events"], "group", Host(), metrics)
    await membership.on_assigned({HERE: Position(15, pack(*HERE, 15, [(17, 20)]).text)})
    membership.on_jump(Jump(HERE, Why.RETENTION, 15, 24))
    assert metrics.offsets_skipped["events"] == 24 - 15 - 3


async def test_what_is_taken_up_is_reserved_before_and_for_all_partitions_at_once() -> None:
    broker = Notes()
    membership = await made(broker, reserves=True)
    (assigned,) = broker.made.commits
    notes = {partition: read_note(*partition, *position) for partition, position in assigned.items()}
    assert {partition: note.reserved for partition, note in notes.items()} == {HERE: 1000, GONE: 1000}
    await membership.reserve(membership.trackers[HERE], 1000)
    assert len(broker.made.commits) == 1, "there is room for it"
    await membership.reserve(membership.trackers[HERE], 5000)
    assert read_note(*HERE, *broker.made.commits[1][HERE]).reserved == 5000
    await membership.reserve(membership.trackers[HERE], 5000)
    assert len(broker.made.commits) == 2


async def test_a_topic_that_is_gone_takes_no_reservation_from_the_others() -> None:
    broker = Notes()
    membership = await made(broker, reserves=True)
    broker.made.refused = [GONE]
    here, gone = membership.trackers[HERE].reservation, membership.trackers[GONE].reservation
    await membership.reserve(membership.trackers[HERE], 5000)
    assert (here.below, gone.below) == (5000, 1000)
    await membership.reserve(membership.trackers[HERE], 9000)
    assert here.below == 9000


async def test_nothing_waits_for_a_reservation_again_until_a_commit_has_gone_through() -> None:
    broker = Notes()
    membership = await made(broker, reserves=True)
    clock = asyncio.get_running_loop().time
    commit, began = broker.made.commit, clock()

    async def never(positions: Mapping[TopicPartition, Position]) -> None:
        await asyncio.Event().wait()

    broker.made.commit = never  # type: ignore[method-assign]
    for end in (5000, 6000, 7000):
        await membership.reserve(membership.trackers[HERE], end)
    assert clock() - began == pytest.approx(1.0)
    broker.made.commit = commit  # type: ignore[method-assign]
    await membership.commit()
    assert membership.trackers[HERE].reservation.below == 7000
    await membership.reserve(membership.trackers[HERE], 8000)
    assert membership.trackers[HERE].reservation.below == 8000


async def test_partitions_are_given_up_with_no_more_reserved_than_was_taken_up() -> None:
    broker = Notes()
    membership = await made(broker, reserves=True)
    await membership.commit()
    await membership.on_revoked([HERE, GONE])
    last = broker.made.commits[-1]
    assert {partition: read_note(*partition, *at).reserved for partition, at in last.items()} == {
        HERE: 1,
        GONE: 1,
    }
    await membership.reserve(membership.trackers[HERE], 5000)
    assert broker.made.commits[-1] is last, "while they move, nothing is attempted that is taken up"


class BusyLog:
    """An attempt log whose records are acknowledged when it is told."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.acknowledged = asyncio.Event()

    def __len__(self) -> int:
        return 1

    async def caught_up(self, within: float) -> bool:
        self.asked.set()
        await self.acknowledged.wait()
        return True


async def test_a_commit_that_waits_for_the_attempt_log_holds_no_reservation_up_and_takes_none_back() -> None:
    broker, attempts = Notes(), BusyLog()
    membership = await made(broker, reserves=True, attempts=cast("Any", attempts))
    committing = Tasks().start(membership.commit(), "commit")
    await attempts.asked.wait()
    clock = asyncio.get_running_loop().time
    began = clock()
    await membership.reserve(membership.trackers[HERE], 5000)
    assert clock() == began
    assert read_note(*HERE, *broker.made.commits[-1][HERE]).reserved == 5000
    attempts.acknowledged.set()
    await committing
    last = broker.made.commits[-1][HERE]
    assert last.offset == 1
    assert read_note(*HERE, *last).reserved == 5000, "the reader may be there by now"
    assert membership.trackers[HERE].reservation.below == 5000
    assert membership.trackers[GONE].reservation.below == 1001


async def test_a_batch_waits_for_the_commit_that_is_on_its_way_and_then_for_its_reservation() -> None:
    broker = Notes()
    membership = await made(broker, reserves=True)
    commit, arrived, answered = broker.made.commit, asyncio.Event(), asyncio.Event()

    async def slow(positions: Mapping[TopicPartition, Position]) -> None:
        arrived.set()
        await answered.wait()
        await commit(positions)

    broker.made.commit = slow  # type: ignore[method-assign]
    committing = Tasks().start(membership.commit(), "commit")
    await arrived.wait()
    reserving = Tasks().start(membership.reserve(membership.trackers[HERE], 5000), "reserve")
    await asyncio.sleep(0.5)
    assert not reserving.done()
    answered.set()
    await asyncio.gather(committing, reserving)
    assert read_note(*HERE, *broker.made.commits[-1][HERE]).reserved == 5000
