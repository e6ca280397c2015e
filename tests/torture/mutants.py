"""Daemons with a fault built in: what the torture must find, or it would find nothing.

`python tests/torture/mutants.py NAME run --config ...` is `dispatcher run --config ...` with that fault.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import structlog
from msgspec import structs

from dispatcher.broker import assignment
from dispatcher.broker.assignment import Start
from dispatcher.broker.base import Position, TopicPartition, Why
from dispatcher.broker.kafka import starts
from dispatcher.broker.kafka.consumer import KafkaConsumer
from dispatcher.broker.kafka.starts import GroupStarts
from dispatcher.cli import main as dispatcher
from dispatcher.core.commit.note import Note
from dispatcher.core.commit.offsets import PartitionTracker
from dispatcher.core.commit.reservation import Reservation
from dispatcher.delivery import parking, returning, sending
from dispatcher.delivery.outbox import Outbox
from dispatcher.delivery.settlement import Settlement
from dispatcher.history import merge
from dispatcher.history.sqlite.day_file import DayFile
from dispatcher.history.sqlite.files import HistoryFiles
from dispatcher.transport.pool import Pool

RECORD_GONE = "a parked delivery is lost: its record has been deleted from the topic"


def commits_what_is_owed() -> None:
    """The commit passes over deliveries that wait for their retry."""
    _replace(PartitionTracker, "committable", property(lambda tracker: tracker.next))
    notes_nothing()


def settles_before_the_broker_has_it() -> None:
    """A retry counts as written two seconds before it is."""
    put = Outbox.put

    def early(outbox: Outbox, message: Any, written: Callable[[], None]) -> None:
        written()
        asyncio.get_running_loop().call_later(2.0, put, outbox, message, lambda: None)

    _replace(Outbox, "put", early)


def notes_one_too_many() -> None:
    """Of each stretch that is done, one offset more is said to be."""
    completed = PartitionTracker.completed

    def more(tracker: PartitionTracker) -> list[tuple[int, int]]:
        runs = completed(tracker)
        return [
            (first, min(end + 1, runs[number + 1][0] if number + 1 < len(runs) else end + 1))
            for number, (first, end) in enumerate(runs)
        ]

    _replace(PartitionTracker, "completed", more)


def notes_nothing() -> None:
    """Commits say nothing of what is done beyond them, as it was before there were notes."""
    _replace(PartitionTracker, "completed", lambda _: [])
    _replace(PartitionTracker, "partly", lambda _: {})


def notes_whole_events_only() -> None:
    """An event that waits for one subscription is owed to all of them."""
    _replace(PartitionTracker, "partly", lambda _: {})


def notes_little() -> None:
    """Notes name who has been served, and one that names many, or many sets of them, is left out."""
    partly = PartitionTracker.partly

    def few(tracker: PartitionTracker) -> Any:
        groups = partly(tracker)
        return {} if len(groups) > 10 or any(len(who.ids) > 100 for who in groups) else groups

    _replace(PartitionTracker, "_keep_the_fewer", lambda _: None)
    _replace(PartitionTracker, "partly", few)


def drops_what_waits_at_a_pause() -> None:
    """What a paused subscription was owed is dropped when its next attempt is due."""
    for module in (parking, sending, returning):
        _replace(module, "keeps", lambda _: None)


def knows_only_what_is_done() -> None:
    """What a killed process had taken up behind the last offset that is done passes for matched by the next one."""
    begin = Reservation.__init__

    def forgetful(reservation: Reservation, start: int, ahead: Note) -> None:
        begin(reservation, start, ahead._replace(reserved=None))

    _replace(Reservation, "__init__", forgetful)


def leaves_alone_what_has_stalled() -> None:
    """An endpoint that let it wait for a second and a half gets nothing for half a minute."""
    send = Pool.send
    last: dict[int, float] = {}
    again: dict[int, float] = {}

    def late(pool: Pool, exchange: Any) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now - last.get(id(pool), now) > 1.5:
            again[id(pool)] = now + 30.0
        last[id(pool)] = now
        wait = again.get(id(pool), 0.0) - now
        if wait > 0:
            loop.call_later(wait, send, pool, exchange)
        else:
            send(pool, exchange)

    _replace(Pool, "send", late)


def decides_the_start_again() -> None:
    """A partition that hasn't moved has no commit, and where there is none `latest` counts at each start of the process."""
    look_back, take, commit = GroupStarts.look_back, GroupStarts.take, KafkaConsumer.commit
    began: dict[TopicPartition, int] = {}

    async def for_the_first_time(group: GroupStarts) -> None:
        await look_back(group)
        if not group.read:
            group._past, group._fresh = {}, group._from_latest

    async def noticed(group: GroupStarts, *others: Any) -> Any:
        taken = await take(group, *others)
        began.update({key: at.offset for key, at in taken.starts.items()})
        return taken

    async def moved(member: KafkaConsumer, positions: Mapping[TopicPartition, Position]) -> None:
        await commit(member, {key: at for key, at in positions.items() if at.offset != began.get(key)})

    async def nothing(*_: Any) -> None: ...

    _replace(GroupStarts, "look_back", for_the_first_time)
    _replace(GroupStarts, "take", noticed)
    _replace(KafkaConsumer, "commit", moved)
    _replace(starts, "_commit", nothing)


def begins_added_partitions_at_their_end() -> None:
    """What is written to a partition before anybody knows of it is passed over."""
    plan = assignment.plan

    def late(topics: Any, committed: Any, extents: Any, past: Any, **others: Any) -> Any:
        if past:
            committed = {**{key: Position(extent.end) for key, extent in extents.items()}, **committed}
        return plan(topics, committed, extents, past, **others)

    _replace(starts, "plan", late)


def goes_on_where_the_old_topic_ended() -> None:
    """What a topic that was made anew holds is taken for read."""
    start_of = assignment.start_of

    def late(committed: Position | None, earliest: int, end: int, **others: Any) -> Start:
        found = start_of(committed, earliest, end, **others)
        return Start(Position(end)) if found.why in {Why.MADE_ANEW, Why.CUT, Why.EXPIRED} else found

    _replace(assignment, "start_of", late)


def says_nothing_of_what_expired() -> None:
    """Records that were deleted before they were read, or delivered, are passed over in silence."""
    structlog.configure(processors=[_silence, *structlog.get_config()["processors"]])
    configure = structlog.configure

    def silent(*, processors: Any = (), **others: Any) -> None:
        configure(processors=[_silence, *processors], **others)

    _replace(structlog, "configure", silent)


def _silence(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if "why" in event or event["event"] == RECORD_GONE:
        raise structlog.DropEvent
    return event


def passes_over_what_it_cannot_read() -> None:
    """A record that is no event costs nothing, not even a dead letter."""

    def settle(_: Settlement, record: Any, tracker: PartitionTracker, *__: Any) -> None:
        tracker.settle(record.offset)

    _replace(Settlement, "refuse", settle)


def comes_back_late() -> None:
    """It waits before it joins, as for a member that is gone."""
    start = KafkaConsumer.start

    async def late(member: KafkaConsumer) -> None:
        await asyncio.sleep(20.0)
        await start(member)

    _replace(KafkaConsumer, "start", late)


def advances_the_history_before_its_rows() -> None:
    """The history stands behind rows that it writes some seconds later."""
    write, advance = DayFile.write, HistoryFiles._advance
    late: list[tuple[Any, ...]] = []

    def early(files: HistoryFiles, batches: Any) -> None:
        advance(files, batches)
        if late:
            time.sleep(3.0)
        while late:
            write(*late.pop(0))

    _replace(DayFile, "write", lambda *work: late.append(work))
    _replace(HistoryFiles, "_advance", early)


def writes_again_what_a_day_has() -> None:
    """After a crash between the commits of its two files the history takes what it reads again for new."""
    advance = HistoryFiles._advance

    def late(files: HistoryFiles, batches: Any) -> None:
        if any(batch.attempts or batch.events or batch.dead for batch in batches):
            time.sleep(3.0)
        advance(files, batches)

    _replace(HistoryFiles, "_has", lambda *_: False)
    _replace(HistoryFiles, "_advance", late)


def knows_no_generations() -> None:
    """To the history an end stays the end, whatever generation follows it."""
    next_ = merge._next

    def same(row: Any, record: Any) -> Any:
        return next_(row, structs.replace(record, generation=row.generation))

    _replace(merge, "_next", same)


def _replace(owner: object, name: str, value: object) -> None:
    if not hasattr(owner, name):
        raise AttributeError(f"{owner!r} has no {name}: what it was called is called otherwise by now")
    setattr(owner, name, value)


LOSING = (commits_what_is_owed, settles_before_the_broker_has_it, notes_one_too_many)
REPEATING = (notes_nothing, notes_whole_events_only)
OF_TRAITS = {
    "pause": drops_what_waits_at_a_pause,
    "stalls": leaves_alone_what_has_stalled,
    "latest": decides_the_start_again,
    "fanout": notes_little,
    "tenants": notes_little,
    "partitions": begins_added_partitions_at_their_end,
    "anew": goes_on_where_the_old_topic_ended,
    "retention": says_nothing_of_what_expired,
    "odd": passes_over_what_it_cannot_read,
    "alone": comes_back_late,
    "history": advances_the_history_before_its_rows,
}
"""What each trait is there to find."""

OF_HISTORY = (advances_the_history_before_its_rows, writes_again_what_a_day_has, knows_no_generations)
"""The history says what isn't so, and every delivery is made."""

ALL = (*LOSING, *REPEATING, *OF_TRAITS.values(), *OF_HISTORY, knows_only_what_is_done)

if __name__ == "__main__":
    {each.__name__: each for each in ALL}[sys.argv.pop(1)]()
    dispatcher(prog_name="dispatcher")
