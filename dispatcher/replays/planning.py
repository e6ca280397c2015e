"""Before a replay begins: which stretches of the topics it reads, and for a dry run how many deliveries it would send.

Kafka is not asked for times: offsets are found by halves (`history/following.seek`), as the port has it on every broker. Timestamps of a partition grow only
roughly, since producers choose them. So a stretch begins and ends some minutes wider than was asked for, and each record's own time decides.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, NamedTuple

from dispatcher.broker.base import Broker, Record, TopicPartition, UnreadableBatch, UnreadableRecord
from dispatcher.core.replay.job import ReplayRange, ReplayRequest
from dispatcher.core.replay.selecting import NOT_ACTIVE, Selection, Selector
from dispatcher.history.base import DeliveryRow
from dispatcher.history.following import Ends, ends_of, seek
from dispatcher.replays.sources import AskedHistory, found_delivery, history_query, wanted

_MARGIN_MS: Final = 300_000  # how much later than its neighbours a record may be written by its timestamp
_AT_ONCE: Final = 8  # partitions that are looked at at the same time
_WHOLE: Final = 20_000  # records that are all looked at; of more than that some are
_SAMPLES: Final = 100  # places that are looked at then
_PAGES: Final = 20  # of the history
_SLICE: Final = 100
_READ_SIZE: Final = 1 << 20
_TYPES_SHOWN: Final = 100


class ReplayPlan(NamedTuple):
    """What a replay would send."""

    records: int
    """Records or rows that it would look at."""
    deliveries: int
    exact: bool
    """Whether everything was looked at; else the numbers are estimates from a sample."""
    by_type: Mapping[str, int]
    not_active: int
    """Deliveries that are left out, since their subscriptions are not active."""
    first_ms: int | None
    """When the first of them was published or written, as far as was looked at."""
    last_ms: int | None


class _Tally:
    """Adds up what was selected."""

    def __init__(self) -> None:
        self.looked = 0
        self.types: Counter[str] = Counter()
        self.not_active = 0
        self.first: int | None = None
        self.last: int | None = None

    def add(self, selection: Selection, time_ms: int) -> None:
        self.looked += 1
        self.not_active += sum(why == NOT_ACTIVE for why in selection.skipped)
        if selection.records:
            self.types[selection.event_type] += len(selection.records)
            self.first = time_ms if self.first is None else min(self.first, time_ms)
            self.last = time_ms if self.last is None else max(self.last, time_ms)

    def plan(self, records: int, *, exact: bool) -> ReplayPlan:
        scale = 1.0 if exact or not self.looked else max(1.0, records / self.looked)
        return ReplayPlan(
            records,
            round(self.types.total() * scale),
            exact,
            {name: round(count * scale) for name, count in self.types.most_common(_TYPES_SHOWN)},
            round(self.not_active * scale),
            self.first,
            self.last,
        )


async def plan_ranges(
    broker: Broker, topics: Collection[str], request: ReplayRequest, now_ms: int
) -> tuple[ReplayRange, ...]:
    """The stretches of these topics that are of the time that was asked for. Raises BrokerError."""
    names = frozenset(topics)
    slots = asyncio.Semaphore(_AT_ONCE)

    async def one(partition: TopicPartition, ends: Ends) -> ReplayRange | None:
        async with slots:
            start, end = ends
            if request.since_ms is not None:
                start = await seek(broker, partition, ends, max(0, request.since_ms - _MARGIN_MS))
            if request.until_ms + _MARGIN_MS < now_ms:
                end = await seek(broker, partition, Ends(start, ends.latest), request.until_ms + _MARGIN_MS)
        return ReplayRange(*partition, start, start, end) if start < end else None

    found = await asyncio.gather(
        *(
            one(TopicPartition(info.name, each.partition), ends_of(each))
            for info in await broker.topics(only=names.__contains__)
            for each in info.partitions
        )
    )
    return tuple(each for each in found if each is not None)


async def plan_log(
    broker: Broker, ranges: Sequence[ReplayRange], select: Callable[[Record, str, int], Selection]
) -> ReplayPlan:
    """How many deliveries these would be: of many records those in places that are evenly spread are looked at. Raises BrokerError."""
    total = sum(each.end - each.next for each in ranges)
    tally = _Tally()
    exact = total <= _WHOLE
    for each in ranges:
        size = each.end - each.next
        if exact:
            await _look(broker, each, each.next, size, select, tally)
            continue
        places = max(1, round(_SAMPLES * size / total))
        count = max(1, min(_WHOLE // _SAMPLES, size // places))
        for number in range(places):
            await _look(broker, each, each.next + number * size // places, count, select, tally)
    return tally.plan(tally.looked if exact else total, exact=exact)


async def _look(
    broker: Broker,
    each: ReplayRange,
    at: int,
    count: int,
    select: Callable[[Record, str, int], Selection],
    tally: _Tally,
) -> None:
    end = min(at + count, each.end)
    while at < end:
        try:
            stretch = await broker.read_from(
                TopicPartition(each.topic, each.partition), at, end - at, _READ_SIZE
            )
        except UnreadableBatch as error:
            at = error.last + 1
            continue
        for number, record in enumerate(stretch.records, 1):
            if record.offset >= end:
                return
            if isinstance(record, UnreadableRecord):
                continue
            tally.add(select(record, each.topic, each.partition), record.timestamp)
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        if stretch.next <= at:
            return
        at = stretch.next


async def plan_history(
    store: AskedHistory, request: ReplayRequest, owner: str | None, selector: Selector
) -> ReplayPlan:
    """How many deliveries the history has of these; at least so many where there are too many to look at. Raises HistoryError."""
    query = history_query(request, owner)
    tally = _Tally()
    for _ in range(_PAGES):
        page = await store.deliveries(query)
        for row in page.items:
            tally.add(_row(row, request, selector), row.created_ms)
        if page.last is None:
            return tally.plan(tally.looked, exact=True)
        query = query._replace(after=(int(page.last[0]), str(page.last[1])))
        await asyncio.sleep(0)
    covered = (request.until_ms - (query.after or (0, ""))[0]) / max(
        1, request.until_ms - (request.since_ms or 0)
    )
    return tally.plan(round(tally.looked / min(1.0, max(covered, 0.001))), exact=False)


def _row(row: DeliveryRow, request: ReplayRequest, selector: Selector) -> Selection:
    return selector.delivery(found_delivery(row)) if wanted(row, request, selector) else Selection()
