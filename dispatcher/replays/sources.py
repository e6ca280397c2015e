"""Where a replay finds what to send, piece by piece: a log's ranges, or the pages of the history.

A piece is what was found, and where reading goes on behind it. The caller keeps that as the checkpoint once it has written what was found.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from dispatcher.broker.base import Broker, Record, TopicPartition, UnreadableBatch, UnreadableRecord
from dispatcher.core.replay.job import Cursor, ReplayJob, ReplayRange, ReplayRequest, ReplaySource
from dispatcher.core.replay.record import ReplayRecord
from dispatcher.core.replay.selecting import UNREADABLE, FoundDelivery, Selection, Selector
from dispatcher.core.retry.records import Source
from dispatcher.core.retry.sources import ExpectedEvent
from dispatcher.history.base import PAGE_LIMIT, DeliveryQuery, DeliveryRow, DeliveryState, HistoryPage

READ_SIZE: Final = 1 << 20
"""Bytes of a partition that are read at a time."""

READ_RECORDS: Final = 1000
_SLICE: Final = 20  # records that are looked at before others have their turn


class Piece(NamedTuple):
    """Some of what a replay sends."""

    records: Sequence[ReplayRecord]
    looked: int
    skipped: Mapping[str, int]
    ranges: tuple[ReplayRange, ...] | None
    cursor: Cursor | None
    exhausted: bool


class ReplayReading(Protocol):
    """What a replay reads from."""

    async def read(self, limit: int) -> Piece:
        """The next ones, some `limit` of them; fewer, or none, where little matches. Raises BrokerError or HistoryError."""


class AskedHistory(Protocol):
    """The part of the history's store that a replay asks."""

    async def deliveries(self, query: DeliveryQuery) -> HistoryPage[DeliveryRow]: ...


class LogReading:
    """Reads the ranges of a log in turns, so that no partition has to wait for the others."""

    def __init__(
        self,
        broker: Broker,
        ranges: Sequence[ReplayRange],
        select: Callable[[Record, str, int], Selection],
    ) -> None:
        self._broker = broker
        self._ranges = list(ranges)
        self._select = select
        self._turn = 0
        self._ahead: dict[
            int, tuple[Sequence[Record], int]
        ] = {}  # read of a range and not looked at, and where that ends

    async def read(self, limit: int) -> Piece:
        found: list[ReplayRecord] = []
        looked = 0
        skipped: Counter[str] = Counter()
        at = self._next()
        if at is not None:
            looked = await self._look(at, limit, found, skipped)
        return Piece(found, looked, skipped, tuple(self._ranges), None, self._next(peek=True) is None)

    def _next(self, *, peek: bool = False) -> int | None:
        """Which range has its turn."""
        count = len(self._ranges)
        for step in range(count):
            at = (self._turn + step) % count
            each = self._ranges[at]
            if each.next < each.end:
                if not peek:
                    self._turn = at + 1
                return at
        return None

    async def _look(self, at: int, limit: int, found: list[ReplayRecord], skipped: Counter[str]) -> int:
        """Look at what comes next in one range; how many records that were."""
        each = self._ranges[at]
        ahead = self._ahead.pop(at, None)
        if ahead is None:
            try:
                stretch = await self._broker.read_from(
                    TopicPartition(each.topic, each.partition),
                    each.next,
                    min(READ_RECORDS, each.end - each.next),
                    READ_SIZE,
                )
            except UnreadableBatch as error:
                skipped[UNREADABLE] += 1
                self._advance(at, error.last + 1)
                return 1
            # The end was there when the job was planned: where nothing comes before it, retention has taken the rest.
            ahead = stretch.records, stretch.next if stretch.next > each.next else each.end
        records, end = ahead
        looked = 0
        for record in records:
            if record.offset >= each.end:
                break
            if len(found) >= limit:
                self._ahead[at] = records[looked:], end
                return looked
            looked += 1
            self._advance(at, record.offset + 1)
            if isinstance(record, UnreadableRecord):
                skipped[UNREADABLE] += 1
                continue
            selection = self._select(record, each.topic, each.partition)
            found += selection.records
            skipped.update(selection.skipped)
            if looked % _SLICE == 0:
                await asyncio.sleep(0)
        self._advance(at, end)
        return looked

    def _advance(self, at: int, to: int) -> None:
        each = self._ranges[at]
        self._ranges[at] = each._replace(next=min(max(each.next, to), each.end))


class HistoryReading:
    """Reads the deliveries of the history, newest first, and sends each page in the order of the sources."""

    def __init__(
        self,
        store: AskedHistory,
        request: ReplayRequest,
        owner: str | None,
        selector: Selector,
        cursor: Cursor | None,
    ) -> None:
        self._store = store
        self._request = request
        self._query = history_query(request, owner)
        self._selector = selector
        self._cursor = cursor
        self._page: list[DeliveryRow] = []  # the next one last
        self._more = True

    async def read(self, limit: int) -> Piece:
        looked = 0
        if not self._page and self._more:
            page = await self._store.deliveries(self._query._replace(after=self._cursor))
            self._page = list(reversed(page.items))
            self._more = page.last is not None
            if not self._page and page.last is not None:
                # Nothing among the rows that one question looks at.
                self._cursor = (int(page.last[0]), str(page.last[1]))
        taken: list[DeliveryRow] = []
        while self._page and len(taken) < limit:
            taken.append(self._page.pop())
        if taken:
            looked = len(taken)
            self._cursor = (taken[-1].created_ms, taken[-1].delivery_id)
        found: list[ReplayRecord] = []
        skipped: Counter[str] = Counter()
        for row in sorted(taken, key=_by_source):
            if wanted(row, self._request, self._selector):
                selection = self._selector.delivery(found_delivery(row))
                found += selection.records
                skipped.update(selection.skipped)
        return Piece(found, looked, skipped, None, self._cursor, not self._page and not self._more)


def history_query(request: ReplayRequest, owner: str | None) -> DeliveryQuery:
    """What the store is asked; what it doesn't ask for by itself, `wanted` does."""
    codes, reasons, types = request.status_codes, request.reasons, request.event_types
    return DeliveryQuery(
        request.since_ms or 0,
        request.until_ms,
        PAGE_LIMIT,
        tenant=request.tenant if owner is None else owner,
        subscription_id=request.subscription,
        event_type=types[0] if len(types) == 1 and "*" not in types[0] else None,
        states=[DeliveryState[name.upper()] for name in request.states],
        status=_codes(codes[0]) if len(codes) == 1 else None,
        reason=reasons[0] if len(reasons) == 1 else None,
    )


def wanted(row: DeliveryRow, request: ReplayRequest, selector: Selector) -> bool:
    """Whether a row is one of those that were asked for."""
    return (
        (not request.status_codes or any(_has(row.status, code) for code in request.status_codes))
        and (not request.reasons or row.reason in request.reasons or row.failure in request.reasons)
        and (request.tenant is None or row.tenant == request.tenant)
        and selector.of_type(row.event_type)
    )


def _codes(code: str) -> tuple[int, int]:
    return (int(code[0]) * 100, int(code[0]) * 100 + 99) if code.endswith("xx") else (int(code), int(code))


def _has(status: int | None, code: str) -> bool:
    low, high = _codes(code)
    return status is not None and low <= status <= high


def _by_source(row: DeliveryRow) -> tuple[str, int, int]:
    return row.topic, row.partition, row.offset


def found_delivery(row: DeliveryRow) -> FoundDelivery:
    """A row of the history, for the selector."""
    return FoundDelivery(
        row.subscription_id,
        Source(row.topic, row.partition, row.offset),
        row.generation,
        ExpectedEvent(row.event_id, row.event_type, row.tenant),
    )


def log_reading(broker: Broker, job: ReplayJob, selector: Selector) -> LogReading:
    """What a replay of events or dead letters reads from its checkpoint on."""
    select = selector.dead_letter if job.request.source is ReplaySource.DEAD_LETTERS else selector.event
    return LogReading(broker, job.ranges or (), select)
