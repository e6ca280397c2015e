"""What a delivery's records come to: one row, the attempts that followed, and the counts. Pure.

Rules:

1. Generations beat each other in their order. Within one, `delivered` beats `dead` beats `dropped` beats the rest (`DeliveryState`); of two that
   are equal the later one holds, unless it is an end: the first end is the one that counted.
2. The order in which records come doesn't matter for the row's state, and a record that comes twice is counted once: generation,
   time and number tell an attempt of a delivery from the others.
3. The first record that is known of a delivery is in its row. What follows are rows of their own.
4. A delivery id with another event is another delivery: its topic was made anew, and the offsets begin again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from dispatcher.core.retry.records import FIRST_GENERATION
from dispatcher.history.base import (
    BUCKETS,
    COUNTED,
    FAILURE_CODES,
    LATENCY_BOUNDS_MS,
    AttemptRow,
    CountKey,
    DeliveryRow,
    DeliveryState,
)
from dispatcher.history.bounds import small, storable
from dispatcher.history.logged import AttemptDetail, LoggedAttempt, detail_of

Key = tuple[int, int, int]
"""Generation, time and number of an attempt."""

Group = tuple[str, str]
"""A delivery's id, without what all begin with, and its event's id (rule 4)."""

_STATES: Final = {
    "delivered": DeliveryState.DELIVERED,
    "dead": DeliveryState.DEAD,
    "dropped": DeliveryState.DROPPED,
    "retry": DeliveryState.RETRYING,
    "parked": DeliveryState.PENDING,
    "left_to_another": DeliveryState.PENDING,
}
_ENDED: Final = DeliveryState.DROPPED
_HEADS: Final = msgspec.json.Decoder(AttemptDetail)
_WIDTH: Final = len(COUNTED) + len(BUCKETS)
_FIRST_BUCKET: Final = len(COUNTED)

Counts = dict[CountKey, list[int]]


def grouped(records: Iterable[LoggedAttempt]) -> dict[Group, list[LoggedAttempt]]:
    """The records of each delivery, in their order."""
    groups: dict[Group, list[LoggedAttempt]] = {}
    for record in records:
        group = (record.delivery_id[4:], storable(record.event_id))
        held = groups.get(group)
        if held is None:
            groups[group] = [record]
        else:
            held.append(record)
    return groups


def repeats(row: DeliveryRow, records: Sequence[LoggedAttempt]) -> bool:
    """Whether one of the records may be known of the delivery already, so that `merge` needs the keys of all."""
    return len(records) > 1 or key_of(records[0]) <= (row.generation, row.last_ms, row.last_attempt)


def merge(
    existing: DeliveryRow | None,
    records: Sequence[LoggedAttempt],
    keys: Iterable[Key],
    created_ms: int,
    kept: Callable[[int], int],
    counts: Counts,
) -> tuple[DeliveryRow | None, list[AttemptRow]]:
    """The delivery's row with these records of it, and the rows of those that are not its first. None where nothing changed.

    `keys` are those of the attempts that stand beside the existing row; needed where it `repeats`. A new row is `created_ms`; `kept` makes of a
    record's time the one that it is counted by. What is new is added to `counts`.
    """
    row = existing
    seen: set[Key] = set() if row is None else {key_of_first(row), *keys} if repeats(row, records) else set()
    followed: list[AttemptRow] = []
    changed = False
    for record in records:
        key = key_of(record)
        if key in seen:
            continue
        seen.add(key)
        if row is None:
            row = first = _first(record, created_ms)
            count(record, kept(record.time_ms), counts, first)
        else:
            generation, time_ms, attempt = key
            followed.append(
                AttemptRow(row.delivery_id, small(generation), time_ms, small(attempt), detail_of(record))
            )
            row = _next(row, record)
            count(record, kept(record.time_ms), counts)
        changed = True
    return (row if changed else None), followed


def succeeded_at_once(row: DeliveryRow) -> bool:
    """Whether the row, new and without anything that followed, says nothing but that the first attempt succeeded."""
    return row.state == DeliveryState.DELIVERED and row.last_attempt <= 1


def key_of(record: LoggedAttempt) -> Key:
    """Tells this attempt of its delivery from the others, in their order."""
    return (record.generation, record.time_ms, record.attempt)


def made(record: LoggedAttempt) -> bool:
    """Whether a request was made: some deliveries end without one."""
    return record.total_ms is not UNSET


def key_of_first(row: DeliveryRow) -> Key:
    """That of the record that is in the row."""
    head = _HEADS.decode(row.first)
    return (head.generation, head.time_ms, head.attempt)


def _first(record: LoggedAttempt, created_ms: int) -> DeliveryRow:
    return DeliveryRow(
        record.delivery_id[4:],
        created_ms,
        storable(record.event_id),
        storable(record.event_type),
        None if record.tenant is None else storable(record.tenant, 256),
        storable(record.subscription_id, 64),
        storable(record.topic, 249),
        small(record.partition),
        record.offset,
        small(record.generation),
        int(_STATES[record.decision]),
        _reason(record),
        1 if made(record) else 0,
        record.time_ms,
        small(record.attempt),
        _status(record),
        _text(record.failure, 64),
        _total(record),
        _due(record),
        _text(record.host, 253),
        detail_of(record),
    )


def _next(row: DeliveryRow, record: LoggedAttempt) -> DeliveryRow:
    state = _STATES[record.decision]
    later = key_of(record) > (row.generation, row.last_ms, row.last_attempt)
    # Whose partition moved says nothing about what becomes of it.
    silent = record.decision == "left_to_another"
    if record.generation > row.generation:
        holds = True
    elif record.generation < row.generation or silent:
        holds = False
    else:
        old = row.state
        holds = state > old if max(state, old) >= _ENDED else later
    # At one go: three calls of `_replace` take as long as all the rest.
    return DeliveryRow(
        row.delivery_id,
        row.created_ms,
        row.event_id,
        row.event_type,
        row.tenant,
        row.subscription_id,
        row.topic,
        row.partition,
        row.offset,
        small(record.generation) if holds else row.generation,
        int(state) if holds else row.state,
        _reason(record) if holds else row.reason,
        small(row.attempts + (1 if made(record) else 0)),
        record.time_ms if later else row.last_ms,
        small(record.attempt) if later else row.last_attempt,
        _status(record) if later else row.status,
        _text(record.failure, 64) if later else row.failure,
        _total(record) if later else row.total_ms,
        _due(record) if holds else row.due_ms,
        (_text(record.host, 253) or row.host) if later else row.host,
        row.first,
    )


def count(record: LoggedAttempt, kept_ms: int, counts: Counts, made_of_it: DeliveryRow | None = None) -> None:
    """Count it in its minute. `made_of_it` is the row that is this record's alone, if there is one: its texts are storable already."""
    minute_ms = kept_ms // 60_000 * 60_000
    status = _counted_status(record)
    if made_of_it is None:
        total = _total(record)
        key = CountKey(
            minute_ms,
            "" if record.tenant is None else storable(record.tenant, 256),
            storable(record.subscription_id, 64),
            storable(record.event_type),
            _text(record.host, 253) or "",
            status,
        )
    else:
        total = made_of_it.total_ms
        key = CountKey(
            minute_ms,
            made_of_it.tenant or "",
            made_of_it.subscription_id,
            made_of_it.event_type,
            made_of_it.host or "",
            status,
        )
    row = counts.get(key)
    if row is None:
        row = counts[key] = [0] * _WIDTH
    decision = record.decision
    if made(record):
        row[0] += 1
        if decision != "delivered":
            row[2] += 1
        row[6] += total
        row[_FIRST_BUCKET + bisect_left(LATENCY_BOUNDS_MS, total)] += 1
    if decision == "delivered":
        row[1] += 1
        # What is sent again by hand says nothing of how late deliveries come.
        if record.event_time_ms is not UNSET and record.generation == FIRST_GENERATION:
            row[7] += max(0, min(record.time_ms + total - record.event_time_ms, 2**40))
            row[8] += 1
    elif decision == "dead":
        row[3] += 1
    elif decision == "dropped":
        row[4] += 1
    elif decision == "parked":
        row[5] += 1


def _status(record: LoggedAttempt) -> int | None:
    return None if record.status is UNSET else small(record.status)


def _counted_status(record: LoggedAttempt) -> int:
    if record.status is not UNSET:
        return small(record.status)
    return 0 if record.failure is UNSET else FAILURE_CODES.get(record.failure, 0)


def _reason(record: LoggedAttempt) -> str | None:
    return _text(record.reason, 64)


def _total(record: LoggedAttempt) -> int:
    return 0 if record.total_ms is UNSET else max(0, small(record.total_ms))


def _due(record: LoggedAttempt) -> int | None:
    return None if record.due_ms is UNSET else record.due_ms


def _text(value: str | UnsetType, limit: int) -> str | None:
    return None if value is UNSET else storable(value, limit)
