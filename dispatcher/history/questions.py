"""The questions to a store, as SQL that SQLite and PostgreSQL read alike.

A page looks at no more rows than it is allowed: what an index leads to is cut off at `LOOKED_AT` rows before the rest of the
conditions is asked. Where that cut off something, the page has a cursor although it may be empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from dispatcher.history.base import (
    BUCKETS,
    COUNTED,
    DELETED,
    DIMENSIONS,
    FAILURE_CLASSES,
    CountQuery,
    CountRow,
    DeliveryQuery,
    DeliveryRow,
    DeliveryState,
    EventQuery,
    UndeliveredGroup,
    UndeliveredQuery,
)
from dispatcher.history.bounds import storable
from dispatcher.history.rolling import MINUTES, Rolled, stretches

Question = tuple[str, list[Any]]


class PageQuestions(NamedTuple):
    """What a page takes: its rows; where it stopped looking, a row where the cut was made; and how many rows were looked at."""

    rows: Question
    end: Question
    looked: Question


# `offset` is a word of SQL.
DELIVERY_COLUMNS: Final = ", ".join(
    "source_offset" if name == "offset" else name for name in DeliveryRow._fields
)
EVENT_COLUMNS: Final = "topic, partition, source_offset, time_ms, event_id, event_type, tenant, sha256, size"
DEAD_COLUMNS: Final = (
    "dead_partition, dead_offset, time_ms, reason, delivery_id, subscription_id, event_id, event_type, tenant, topic, partition,"
    " source_offset"
)
ATTEMPT_COLUMNS: Final = "delivery_id, generation, time_ms, attempt, detail"
COUNT_KEY: Final = "minute_ms, tenant, subscription_id, event_type, host, status"
COUNT_VALUES: Final = ", ".join((*COUNTED, *BUCKETS))
_SUMMED: Final = (
    *COUNTED,
    *BUCKETS,
    *(
        f"(CASE WHEN status BETWEEN {first} AND {last} THEN failed ELSE 0 END)"
        for first, last in FAILURE_CLASSES.values()
    ),
)
_CAUSED: Final = (DeliveryState.PENDING, DeliveryState.RETRYING, DeliveryState.DEAD)
_CAUSE: Final = (
    f"CASE WHEN state IN ({', '.join(str(int(state)) for state in _CAUSED)})"
    " THEN coalesce(failure, CAST(status AS text), reason) END"
)
"""Why a delivery isn't delivered. What was dropped has none: somebody decided that, or retention."""
DELIVERY_ORDER: Final = "created_ms DESC, delivery_id DESC"
EVENT_ORDER: Final = "time_ms DESC, event_id DESC, topic DESC, partition DESC, source_offset DESC"


class _Conditions:
    def __init__(self, mark: Callable[[int], str]) -> None:
        self.arguments: list[Any] = []
        self.texts: list[str] = []
        self._mark = mark

    def value(self, value: Any) -> str:
        """A place for the value."""
        self.arguments.append(storable(value) if isinstance(value, str) else value)
        return self._mark(len(self.arguments))

    def add(self, text: str, *values: Any) -> None:
        """A condition with `{}` for each of the values."""
        self.texts.append(text.format(*map(self.value, values)))

    def take(self) -> str:
        """All of them so far."""
        texts, self.texts = self.texts, []
        return " AND ".join(texts) or "1 = 1"


def _type_condition(conditions: _Conditions, event_type: str) -> None:
    if event_type.endswith("*"):
        beginning = event_type[:-1]
        conditions.add(f"substr(event_type, 1, {len(storable(beginning))}) = {{}}", beginning)
    else:
        conditions.add("event_type = {}", event_type)


def deliveries(
    query: DeliveryQuery, mark: Callable[[int], str], looked_at: int, within: str = ""
) -> PageQuestions:
    """A page of deliveries.

    `mark` writes the place of the nth argument; `within` is one more condition for the rows that are looked at.
    """
    conditions = _Conditions(mark)
    conditions.add("created_ms >= {}", query.since_ms)
    conditions.add("created_ms < {}", query.until_ms)
    if query.after is not None:
        conditions.add("(created_ms, delivery_id) < ({}, {})", *query.after)
    if within:
        conditions.add(within)
    if query.event_id is not None:
        conditions.add("event_id = {}", query.event_id)
    if query.subscription_id is not None:
        conditions.add("subscription_id = {}", query.subscription_id)
    elif query.tenant is not None:
        conditions.add("tenant = {}", query.tenant)
    states = None if query.states is None else sorted(set(query.states))
    if query.cause is not None or (states is not None and DeliveryState.DELIVERED not in states):
        conditions.add("state < 4")  # as the indexes of the few say it
    looked = conditions.take()
    indexed = list(conditions.arguments)
    if query.subscription_id is not None and query.tenant is not None:
        conditions.add("tenant = {}", query.tenant)
    if query.event_type is not None:
        _type_condition(conditions, query.event_type)
    if states is not None:
        conditions.add(f"state IN ({', '.join(str(int(state)) for state in states) or 'NULL'})")
    if query.status is not None:
        conditions.add("status BETWEEN {} AND {}", *query.status)
    if query.reason is not None:
        conditions.add("(reason = {} OR failure = {})", query.reason, query.reason)
    if query.host is not None:
        conditions.add("host = {}", query.host)
    if query.cause is not None:
        conditions.add(f"{_CAUSE} = {{}}", query.cause)
    return _page(
        "history_deliveries",
        DELIVERY_COLUMNS,
        DELIVERY_ORDER,
        "created_ms, delivery_id",
        looked,
        indexed,
        conditions,
        query.limit,
        looked_at,
    )


def events(query: EventQuery, mark: Callable[[int], str], looked_at: int, within: str = "") -> PageQuestions:
    """Likewise, of events."""
    conditions = _Conditions(mark)
    conditions.add("time_ms >= {}", query.since_ms)
    conditions.add("time_ms < {}", query.until_ms)
    if query.after is not None:
        conditions.add(
            "(time_ms, event_id, topic, partition, source_offset) < ({}, {}, {}, {}, {})", *query.after
        )
    if within:
        conditions.add(within)
    if query.event_id is not None:
        conditions.add("event_id = {}", query.event_id)
    elif query.tenant is not None:
        conditions.add("tenant = {}", query.tenant)
    looked = conditions.take()
    indexed = list(conditions.arguments)
    if query.event_id is not None and query.tenant is not None:
        conditions.add("tenant = {}", query.tenant)
    if query.event_type is not None:
        _type_condition(conditions, query.event_type)
    return _page(
        "history_events",
        EVENT_COLUMNS,
        EVENT_ORDER,
        "time_ms, event_id, topic, partition, source_offset",
        looked,
        indexed,
        conditions,
        query.limit,
        looked_at,
    )


def _page(
    table: str,
    columns: str,
    order: str,
    key: str,
    looked: str,
    indexed: Sequence[Any],
    conditions: _Conditions,
    limit: int,
    looked_at: int,
) -> PageQuestions:
    rest = conditions.take()
    inner = f"SELECT {columns} FROM {table} WHERE {looked} ORDER BY {order} LIMIT {looked_at}"
    page = f"SELECT {columns} FROM ({inner}) AS looked WHERE {rest} ORDER BY {order} LIMIT {limit}"
    end = f"SELECT {key} FROM {table} WHERE {looked} ORDER BY {order} LIMIT 1 OFFSET {looked_at - 1}"
    count = f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {looked} ORDER BY {order} LIMIT {looked_at}) AS looked"
    return PageQuestions((page, conditions.arguments), (end, list(indexed)), (count, list(indexed)))


def counts(
    query: CountQuery,
    mark: Callable[[int], str],
    limit: int,
    rolled: Rolled,
    within: Callable[[int, int], str] | None = None,
    *,
    adding: str = "sum({})",
) -> Question:
    """Groups by time and dimensions.

    `rolled` says until when there are sums of counts; `within` makes one more condition for what is from the one time to before the other; `adding`
    is how the database adds up integers.
    """
    conditions = _Conditions(mark)
    if query.tenant is not None:
        conditions.add("tenant = {}", query.tenant)
    if query.subscription_id is not None:
        conditions.add("subscription_id = {}", query.subscription_id)
    if query.event_type is not None:
        _type_condition(conditions, query.event_type)
    if query.host is not None:
        conditions.add("host = {}", query.host)
    if query.status is not None:
        conditions.add("status BETWEEN {} AND {}", *query.status)
    by = [name for name in DIMENSIONS if name in query.by]
    if query.only is not None:
        each = [
            " AND ".join(f"{name} = {conditions.value(value)}" for name, value in zip(by, key, strict=True))
            for key in query.only
        ]
        conditions.texts.append(f"({' OR '.join(f'({one})' for one in each) or '1 = 0'})")
    if query.busiest is not None:
        group = ", ".join(["0", *by])
        grouped = f" GROUP BY {', '.join(by)}" if by else ""
        order = ", ".join(["sum(attempts) DESC", *by])
        limit = min(limit, query.busiest)
    else:
        step = int(query.step_ms)
        group = order = ", ".join([f"minute_ms / {step} * {step}", *by])
        grouped = f" GROUP BY {group}"
    wanted = conditions.take()
    # The same rows, whichever tables they are in.
    parts = []
    for table, since, until in stretches(query.since_ms, query.until_ms, query.step_ms, rolled):
        # Written out: PostgreSQL would plan one statement for any time, and expect a few rows of a month.
        conditions.add(f"minute_ms >= {int(since)}")
        conditions.add(f"minute_ms < {int(until)}")
        if within is not None:
            conditions.texts.append(within(since, until))
        parts.append(
            f"SELECT {COUNT_KEY}, {COUNT_VALUES} FROM {table} WHERE {conditions.take()} AND {wanted}"
        )
    counted = (
        " UNION ALL ".join(parts)
        or f"SELECT {COUNT_KEY}, {COUNT_VALUES} FROM {MINUTES} WHERE 1 = 0 AND {wanted}"
    )
    sums = ", ".join(adding.format(each) for each in _SUMMED)
    text = f"SELECT {group}, {sums} FROM ({counted}) AS counted{grouped} ORDER BY {order} LIMIT {limit}"
    return text, conditions.arguments


def awaiting(subscription: str, looked_at: int) -> str:
    """How many of a subscription's are to be tried again, of how many that were looked at; the oldest's beginning and the next due time.

    `subscription` is the place of its id.
    """
    inner = (
        f"SELECT created_ms, due_ms, state FROM history_deliveries WHERE subscription_id = {subscription} AND state < 4"
        f" ORDER BY {DELIVERY_ORDER} LIMIT {int(looked_at)}"
    )
    retrying = f"state = {int(DeliveryState.RETRYING)}"
    return (
        f"SELECT sum(CASE WHEN {retrying} THEN 1 ELSE 0 END) AS waiting, count(*) AS looked,"
        f" min(CASE WHEN {retrying} THEN created_ms END) AS oldest, min(CASE WHEN {retrying} THEN due_ms END) AS due"
        f" FROM ({inner}) AS looked"
    )


def undelivered(
    query: UndeliveredQuery, mark: Callable[[int], str], looked_at: int, limit: int, within: str = ""
) -> Question:
    """Groups of what isn't delivered: subscription, cause, how many, of them pending, retrying and dead, and the first, last and next time.

    Those without a cause, and of other tenants than were asked for, are one group of each subscription, whose cause is null: `how many` says of
    all groups together how many were looked at.
    """
    conditions = _Conditions(mark)
    whose = "" if query.tenant is None else f"tenant = {conditions.value(query.tenant)}"
    conditions.add("created_ms >= {}", query.since_ms)
    conditions.add("created_ms < {}", query.until_ms)
    conditions.add("state < 4")  # as the indexes of the few say it
    if within:
        conditions.add(within)
    if query.subscription_id is not None:
        conditions.add("subscription_id = {}", query.subscription_id)
    elif whose:
        conditions.add(whose)
    cause = f"CASE WHEN {whose} THEN {_CAUSE} END" if whose else _CAUSE
    inner = (
        f"SELECT subscription_id, state, created_ms, last_ms, due_ms, {cause} AS cause FROM history_deliveries"
        f" WHERE {conditions.take()} ORDER BY {DELIVERY_ORDER} LIMIT {int(looked_at)}"
    )
    sums = ", ".join(f"sum(CASE WHEN state = {int(state)} THEN 1 ELSE 0 END)" for state in _CAUSED)
    retrying = f"state = {int(DeliveryState.RETRYING)}"
    text = (
        f"SELECT subscription_id, cause, count(*) AS looked, {sums}, min(created_ms), max(last_ms),"
        f" min(CASE WHEN {retrying} THEN due_ms END) FROM ({inner}) AS looked GROUP BY subscription_id, cause"
        f" ORDER BY 3 DESC, 1, 2 LIMIT {int(limit)}"
    )
    return text, conditions.arguments


def last_success(subscription: str, looked_at: int) -> str:
    """When one of the subscription's newest deliveries was acknowledged last. `subscription` is the place of its id."""
    inner = (
        f"SELECT state, last_ms FROM history_deliveries WHERE subscription_id = {subscription}"
        f" ORDER BY {DELIVERY_ORDER} LIMIT {int(looked_at)}"
    )
    return f"SELECT max(CASE WHEN state = {int(DeliveryState.DELIVERED)} THEN last_ms END) AS success FROM ({inner}) AS looked"


def present_subscriptions(table: str, after: str, limit: int, collation: str = "") -> str:
    """The last version of each subscription that is not deleted; `after` is the place of the id behind which they begin."""
    return (
        f"SELECT subscription_id, since_ms, tenant, status, document FROM {table} AS present"
        f" WHERE subscription_id{collation} > {after} AND status <> '{DELETED}'"
        f" AND NOT EXISTS (SELECT 1 FROM {table} AS later WHERE later.subscription_id = present.subscription_id"
        " AND later.since_ms > present.since_ms)"
        f" ORDER BY subscription_id{collation} LIMIT {int(limit)}"
    )


def joined(rows: Iterable[Sequence[Any]]) -> tuple[list[UndeliveredGroup], int]:
    """The groups of several answers of `undelivered`, those of most deliveries first, and how many deliveries were looked at."""
    found: dict[tuple[str, str], UndeliveredGroup] = {}
    looked = 0
    for id_, cause, count, *rest in rows:
        looked += int(count)
        if cause is None:
            continue
        group = UndeliveredGroup(id_, cause, *(None if each is None else int(each) for each in rest))  # type: ignore[arg-type] # only the last one is ever null
        held = found.get((id_, cause))
        if held is not None:
            due = [each for each in (held.due_ms, group.due_ms) if each is not None]
            group = UndeliveredGroup(
                id_,
                cause,
                held.pending + group.pending,
                held.retrying + group.retrying,
                held.dead + group.dead,
                min(held.first_ms, group.first_ms),
                max(held.last_ms, group.last_ms),
                min(due, default=None),
            )
        found[id_, cause] = group
    most = sorted(found.values(), key=lambda each: (-(each.pending + each.retrying + each.dead), each[:2]))
    return most, looked


def by_busiest(rows: Iterable[CountRow]) -> list[CountRow]:
    """Those with most attempts first."""
    return sorted(rows, key=lambda row: (-row.counts[0], row.key))
