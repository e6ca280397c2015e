"""When an event was read that has no delivery itself: between what stands before and behind it in its partition, which has some.

Records of a partition are read in their order. So what is recorded of the deliveries of its neighbours bounds when an event was read, whatever time its
producer has written into it. That is asked only where an explanation depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from dispatcher.broker.base import Broker, BrokerError, Record, TopicPartition, UnreadableRecord
from dispatcher.control.history import HistoryReader
from dispatcher.core.event.decode import InvalidEvent, decode, is_tombstone
from dispatcher.core.retry.records import Source
from dispatcher.history.base import DeliveryQuery, DeliveryRow
from dispatcher.history.bounds import storable
from dispatcher.history.explanation import NOT_KNOWN, ReadTime, read_time_of

NEAR: Final = 16
"""Neighbours on either side that are looked at, at the most."""

_SIZE: Final = 1 << 18  # bytes of them on either side
_ANY_TIME: Final = 2**53
_DELIVERIES: Final = 10  # of a neighbour


class ReadingTimes:
    """Looks at the neighbours of events. What it finds are times, and nothing of whose events they are."""

    def __init__(self, history: HistoryReader, broker: Broker) -> None:
        self._history = history
        self._broker = broker

    async def around(self, source: Source) -> ReadTime:
        """When the event that stands there was read, as far as its neighbours tell. Raises HistoryOff, Invalid, Unavailable."""
        partition = TopicPartition(source.topic, source.partition)
        begin = max(0, source.offset - NEAR)
        try:
            before = (
                await self._broker.read_from(partition, begin, source.offset - begin, _SIZE)
                if source.offset
                else None
            )
            behind = await self._broker.read_from(partition, source.offset + 1, NEAR, _SIZE)
        except BrokerError:
            return NOT_KNOWN  # the sentence says so
        earlier = [] if before is None else [each for each in before.records if each.offset < source.offset]
        since = (await self._first(reversed(earlier), partition)).since_ms
        until = (await self._first(behind.records, partition)).until_ms
        if since is not None and until is not None and until < since:
            since, until = until, since  # replicas whose clocks differ
        return ReadTime(since, until)

    async def _first(self, records: Iterable[Record], partition: TopicPartition) -> ReadTime:
        """When the first of these was read that has deliveries."""
        for record in records:
            if isinstance(record, UnreadableRecord) or is_tombstone(record):
                continue
            try:
                event = decode(record, *partition)
            except InvalidEvent:
                continue
            rows = await self._deliveries(storable(event.id))
            at = (*partition, record.offset)
            found = read_time_of(row for row in rows if (row.topic, row.partition, row.offset) == at)
            if found.known:
                # Of one that was parked at once it is known only that it was read by then.
                return found if found.since_ms is not None else ReadTime(found.until_ms, found.until_ms)
        return NOT_KNOWN

    async def _deliveries(self, event_id: str) -> Sequence[DeliveryRow]:
        asked = DeliveryQuery(0, _ANY_TIME, _DELIVERIES, event_id=event_id)
        rows: Sequence[DeliveryRow] = (await self._history.ask(lambda store: store.deliveries(asked))).items
        return rows
