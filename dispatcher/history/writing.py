"""What batches of the logs come to as rows of a store that asks before it writes. Pure.

A store makes a `plan`, asks for the rows that it names (`Work.asked`), then for the attempts (`Work.repeated`), and merges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from dispatcher.history.base import (
    DeliveryRow,
    LogBatch,
    LogPartition,
    Retention,
)
from dispatcher.history.bounds import kept_time
from dispatcher.history.logged import DAY_MS, LoggedAttempt
from dispatcher.history.merge import Counts, Group, Key, grouped, merge, repeats, succeeded_at_once

_SLICE: Final = 100  # deliveries: a millisecond, or two

Source = tuple[str, int]
"""Topic and partition of an event."""

Log = tuple[str, int]
"""Topic and partition of a log."""


class Spans:
    """Of which stretch of each source partition each day has deliveries: elsewhere there is nothing to look for.

    A log partition's are written by whoever has it. They are current as long as it stands where this process has put it.
    """

    def __init__(self) -> None:
        self._days: dict[Source, dict[int, tuple[int, int]]] = {}
        self._standing: dict[LogPartition, int] | None = None

    def current(self, positions: Mapping[LogPartition, int | None]) -> bool:
        """Whether nobody else has moved these partitions since."""
        standing = self._standing
        return standing is not None and all(
            standing.get(partition) == next_ for partition, next_ in positions.items()
        )

    def load(self, rows: Iterable[Sequence[Any]]) -> None:
        """Topic, partition, day, lowest and highest offset of each, as the store has them."""
        self._days = {}
        for topic, partition, day, low, high in rows:
            self._days.setdefault((topic, partition), {})[day] = (low, high)
        self._standing = {}

    def forget(self) -> None:
        """They have to be loaded again."""
        self._standing = None

    def add(
        self,
        spans: Mapping[tuple[Log, tuple[str, int, int]], tuple[int, int]],
        positions: Mapping[LogPartition, int],
    ) -> None:
        """These have been written, and the partitions stand there."""
        for (_, (topic, partition, day)), (low, high) in spans.items():
            days = self._days.setdefault((topic, partition), {})
            before = days.get(day, (low, high))
            days[day] = (min(before[0], low), max(before[1], high))
        if self._standing is not None:
            self._standing.update(positions)

    def days(self, source: Source, offset: int) -> list[int]:
        """The days that may know a delivery of that event."""
        return [day for day, (low, high) in self._days.get(source, {}).items() if low <= offset <= high]


class Work:
    """What is to be written, and what has to be known for that. Rows carry their day, but for those of deliveries."""

    def __init__(self, now_ms: int, retention: Retention, *, keep_all: bool) -> None:
        self.new: list[DeliveryRow] = []
        self.changed: list[DeliveryRow] = []
        self.attempts: list[tuple[Any, ...]] = []
        self.events: list[tuple[Any, ...]] = []
        self.dead: list[tuple[Any, ...]] = []
        self.counts: Counts = {}
        self.spans: dict[tuple[Log, tuple[str, int, int]], tuple[int, int]] = {}
        self.keys: dict[str, list[Key]] = {}
        """Those of the attempts that are there, of the deliveries that are `repeated`."""
        self._groups: list[tuple[Log, dict[Group, list[LoggedAttempt]]]] = []
        self._rows: dict[Group, DeliveryRow] = {}
        self._now_ms = now_ms
        self._oldest = retention.oldest_day(now_ms)
        self._oldest_minute = retention.oldest_minute(now_ms)
        self._keep_all = keep_all

    def take(self, batch: LogBatch) -> None:
        """All that a batch brings."""
        self._groups.append(((batch.partition.topic, batch.partition.partition), grouped(batch.attempts)))
        for event in batch.events:
            time_ms = kept_time(event.time_ms, self._now_ms)
            if time_ms // DAY_MS >= self._oldest:
                self.events.append((time_ms // DAY_MS, *event._replace(time_ms=time_ms)))
        for dead in batch.dead:
            time_ms = kept_time(dead.time_ms, self._now_ms)
            if time_ms // DAY_MS >= self._oldest:
                self.dead.append((time_ms // DAY_MS, *dead._replace(time_ms=time_ms)))

    def asked(self, spans: Spans | None) -> tuple[list[str], set[int]]:
        """The ids of deliveries that may be there already, and the days to look at; without spans all of them."""
        ids: list[str] = []
        days: set[int] = set()
        for _, groups in self._groups:
            for (id_, _), records in groups.items():
                record = records[0]
                if spans is None:
                    ids.append(id_)
                elif there := spans.days((record.topic, record.partition), record.offset):
                    ids.append(id_)
                    days.update(there)
        return ids, days

    def found(self, rows: Iterable[DeliveryRow]) -> None:
        """These are there."""
        for row in rows:
            group = (row.delivery_id, row.event_id)
            before = self._rows.get(group)
            if before is None or before.created_ms < row.created_ms:
                self._rows[group] = row

    def repeated(self) -> list[str]:
        """The ids of deliveries whose attempts' keys are needed."""
        return [
            group[0]
            for _, groups in self._groups
            for group, records in groups.items()
            if (row := self._rows.get(group)) is not None and repeats(row, records)
        ]

    def merging(self) -> Iterator[None]:
        """Fill what is to be written, with a pause after each `_SLICE` deliveries: whoever has a loop lets it turn there."""
        number = 0
        for log, groups in self._groups:
            for group, records in groups.items():
                self._merge(log, group, records)
                number += 1
                if number % _SLICE == 0:
                    yield

    def _merge(self, log: Log, group: Group, records: Sequence[LoggedAttempt]) -> None:
        row = self._rows.get(group)
        created_ms = self._kept(records[0].time_ms) if row is None else row.created_ms
        day = created_ms // DAY_MS
        if day < self._oldest and self._kept(records[-1].time_ms) < self._oldest_minute:
            return
        merged, followed = merge(
            row, records, self.keys.get(group[0], ()), created_ms, self._kept, self.counts
        )
        if merged is None or day < self._oldest:
            return
        if row is None and not followed and not self._keep_all and succeeded_at_once(merged):
            return
        (self.new if row is None else self.changed).append(merged)
        self.attempts += [(day, *attempt) for attempt in followed]
        span = (log, (merged.topic, merged.partition, day))
        low, high = self.spans.get(span, (merged.offset, merged.offset))
        self.spans[span] = (min(low, merged.offset), max(high, merged.offset))

    def _kept(self, time_ms: int) -> int:
        return kept_time(time_ms, self._now_ms)

    @property
    def days(self) -> set[int]:
        """The days that there are rows of."""
        deliveries = (row.created_ms // DAY_MS for row in (*self.new, *self.changed))
        return {*deliveries, *(row[0] for row in (*self.attempts, *self.events, *self.dead))}


def plan(batches: Sequence[LogBatch], now_ms: int, retention: Retention, *, keep_all: bool) -> Work:
    """What these batches bring. `keep_all`: also what succeeded at the first attempt."""
    work = Work(now_ms, retention, keep_all=keep_all)
    for batch in batches:
        work.take(batch)
    return work
