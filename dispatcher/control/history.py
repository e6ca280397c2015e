"""What became of events and deliveries, for whoever may know: questions to the history, each bounded.

A tenant sees its own. What is another's is not found, whether it is asked for by its id, a filter or a cursor.

Every answer says as of when it is (`as_of_ms`), and which gaps the history has in the time that was asked about.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from dispatcher.control.errors import ControlError, Invalid, NotFound, Unavailable
from dispatcher.core.flaws import Flaw
from dispatcher.core.retry.records import Source
from dispatcher.core.text.cursors import read_cursor, write_cursor
from dispatcher.history.base import (
    DeliveryDetail,
    DeliveryQuery,
    DeliveryRow,
    EventQuery,
    EventRow,
    Gap,
    HistoryError,
    HistoryStore,
    QueryTooLong,
)
from dispatcher.telemetry.metrics import Metrics

T = TypeVar("T")

MAX_PAGE: Final = 200
PAGE: Final = 50
DEFAULT_RANGE_MS: Final = 24 * 3600 * 1000
"""How far back a list looks that doesn't say."""

SLOW: Final = 1.0
"""Seconds after which an answer of the store is called slow."""

_ANY_TIME: Final = 2**53
_AHEAD_MS: Final = 2 * 3600 * 1000  # rows may be so far ahead by their clocks
_DELIVERIES_SHOWN: Final = 200  # of one event


class HistoryOff(ControlError):
    """There is no history to ask."""

    def __init__(self) -> None:
        super().__init__(
            "this process has no history to ask: set history.store to sqlite (with the role history) or to PostgreSQL's URL"
        )


class Progress(Protocol):
    """How far the history has come."""

    def as_of_ms(self) -> int: ...


class Answered(NamedTuple, Generic[T]):
    """An answer, and what is to be known of it."""

    value: T
    as_of_ms: int
    """What happened before is in it, but for gaps; 0 where the history knows nothing yet."""
    gaps: Sequence[Gap]
    next_cursor: str | None = None


class FoundEvent(NamedTuple):
    """An event that this installation knows, and its deliveries."""

    event: EventRow | None
    """None where the history keeps no events (`history.events`): then the deliveries tell of it."""
    deliveries: Sequence[DeliveryRow]

    @property
    def row(self) -> EventRow | DeliveryRow:
        """What tells of it."""
        return self.deliveries[0] if self.event is None else self.event

    @property
    def source(self) -> Source:
        """Where it stands."""
        return Source(self.row.topic, self.row.partition, self.row.offset)


class HistoryReader:
    """Asks the store. `tenant` None is an operator, who sees all."""

    def __init__(
        self,
        store: HistoryStore | None,
        progress: Progress | None,
        *,
        clock: Callable[[], float] = time.time,
        metrics: Metrics | None = None,
    ) -> None:
        """`clock` gives Unix seconds; `metrics` count the questions."""
        self._metrics = metrics or Metrics()
        self._store = store
        self._progress = progress
        self._clock = clock

    @property
    def kept(self) -> bool:
        """Whether there is a history to ask."""
        return self._store is not None

    def range_of(self, since_ms: int | None, until_ms: int | None) -> tuple[int, int]:
        """The time that is asked about; the last day where nothing is said."""
        now = int(self._clock() * 1000)
        until = now + _AHEAD_MS if until_ms is None else until_ms
        since = max(0, min(until, now) - DEFAULT_RANGE_MS) if since_ms is None else since_ms
        if since > until:
            raise Invalid([Flaw(("since",), "must not be later than until")])
        return since, until

    async def events(
        self, tenant: str | None, query: EventQuery, cursor: str | None
    ) -> Answered[Sequence[EventRow]]:
        """A page of events, newest first. `query.tenant` is an operator's filter."""
        if tenant is not None and query.tenant not in (None, tenant):
            return await self.answered([], query.since_ms, query.until_ms)
        after = None if cursor is None else _after(cursor, (int, str, str, int, int))
        asked = query._replace(tenant=tenant or query.tenant, after=after)
        page = await self.ask(lambda store: store.events(asked))
        return await self.answered(page.items, query.since_ms, query.until_ms, page.last)

    async def deliveries(
        self, tenant: str | None, query: DeliveryQuery, cursor: str | None
    ) -> Answered[Sequence[DeliveryRow]]:
        """Likewise, of deliveries."""
        if tenant is not None and query.tenant not in (None, tenant):
            return await self.answered([], query.since_ms, query.until_ms)
        after = None if cursor is None else _after(cursor, (int, str))
        asked = query._replace(tenant=tenant or query.tenant, after=after)
        page = await self.ask(lambda store: store.deliveries(asked))
        return await self.answered(page.items, query.since_ms, query.until_ms, page.last)

    async def event(self, tenant: str | None, event_id: str) -> Answered[Sequence[FoundEvent]]:
        """Every event of that id, newest first: a producer may use one twice. Raises NotFound."""
        asked = EventQuery(0, _ANY_TIME, PAGE, tenant=tenant, event_id=event_id)
        rows = (await self.ask(lambda store: store.events(asked))).items
        wanted = DeliveryQuery(0, _ANY_TIME, _DELIVERIES_SHOWN, tenant=tenant, event_id=event_id)
        deliveries = (await self.ask(lambda store: store.deliveries(wanted))).items
        by_source: dict[tuple[str, int, int], list[DeliveryRow]] = {}
        for row in deliveries:
            by_source.setdefault((row.topic, row.partition, row.offset), []).append(row)
        found = [FoundEvent(row, by_source.pop((row.topic, row.partition, row.offset), [])) for row in rows]
        found += [FoundEvent(None, rest) for rest in by_source.values()]
        if not found:
            raise NotFound(f"there is no event {event_id}")
        return await self.answered(found, 0, _ANY_TIME)

    async def delivery(self, tenant: str | None, delivery_id: str) -> Answered[DeliveryDetail]:
        """One delivery with its attempts. Raises NotFound."""
        bare = delivery_id.removeprefix("dlv_")
        found = await self.ask(lambda store: store.delivery(bare))
        if found is None or (tenant is not None and found.row.tenant != tenant):
            raise NotFound(f"there is no delivery {delivery_id}")
        return await self.answered(found, found.row.created_ms, _ANY_TIME)

    async def ask(self, ask: Callable[[HistoryStore], Any]) -> Any:
        """What the store answers. Raises HistoryOff, Invalid for what takes too long, Unavailable."""
        if self._store is None:
            raise HistoryOff
        began = time.perf_counter()
        result = "failed"
        try:
            answer = await ask(self._store)
            result = "slow" if time.perf_counter() - began > SLOW else "answered"
        except QueryTooLong as error:
            result = "too_long"
            raise Invalid([Flaw(("since",), str(error))]) from error
        except HistoryError as error:
            raise Unavailable(f"the history can't be asked now: {error}", 5.0) from error
        else:
            return answer
        finally:
            self._metrics.history_queries[result] += 1
            self._metrics.history_query.observe(time.perf_counter() - began)

    async def answered(
        self, value: T, since_ms: int, until_ms: int, last: tuple[int | str, ...] | None = None
    ) -> Answered[T]:
        """The answer with what is to be known of it; `last` is where the next page goes on."""
        gaps = await self.ask(lambda store: store.gaps(since_ms, until_ms))
        as_of = 0 if self._progress is None else self._progress.as_of_ms()
        cursor = None if last is None else write_cursor(last)
        return Answered(value, as_of, gaps, cursor)


def _after(cursor: str, shape: tuple[type, ...]) -> Any:
    """What a cursor says; it comes back from outside, and tells nobody more than the filters allow."""
    key = read_cursor(cursor)
    if not isinstance(key, list) or [type(part) for part in key] != list(shape) or not _small(key):
        raise Invalid([Flaw(("cursor",), "must be a next_cursor as it was sent")])
    return tuple(key)


def _small(key: Sequence[int | str]) -> bool:
    return all(not isinstance(part, int) or abs(part) <= _ANY_TIME for part in key)
