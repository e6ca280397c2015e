"""Counts per hour and per day, made of those per minute: a page of a month's figures would look at millions of minutes otherwise. Pure.

Rules, for every store:

1. Counts per minute are kept whole. Those per hour and day are sums of them, made `ROLLED_AFTER_MS` after the hour is over (`retain`), and a question
   asks the longest that lie whole in its time and in its steps.
2. `Rolled` says until when there are sums. It changes in the transaction that makes them.
3. What is counted later for a minute before that goes into the minute and into its sums, in one transaction (`late`). Whoever makes sums and whoever
   counts so late wait for each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from dispatcher.history.base import BUCKETS, COUNTED, CountKey
from dispatcher.history.logged import DAY_MS

MINUTES: Final = "history_counts"
HOURS: Final = "history_hours"
DAYS: Final = "history_days"
"""The tables. They have the same columns; `minute_ms` is the beginning of the minute, hour or day."""

HOUR_MS: Final = 3_600_000

ROLLED_AFTER_MS: Final = 1_800_000
"""How long an hour is over before it is added up: most of what is counted for it has come by then."""

LATE_MS: Final = ROLLED_AFTER_MS // 2
"""Older minutes than that may have been added up already. The rest is for clocks that differ."""

_KEY: Final = "tenant, subscription_id, event_type, host, status"
_VALUES: Final = ", ".join((*COUNTED, *BUCKETS))
_SUMS: Final = ", ".join(f"sum({name})" for name in (*COUNTED, *BUCKETS))


class Rolled(NamedTuple):
    """Until when there are sums, in Unix ms: whole hours, whole days."""

    hours: int
    days: int


NOT_ROLLED: Final = Rolled(0, 0)


class CountStretch(NamedTuple):
    """A part of a question's time, and the table that tells of it."""

    table: str
    since_ms: int
    until_ms: int


def stretches(since_ms: int, until_ms: int, step_ms: int, rolled: Rolled) -> list[CountStretch]:
    """What tells of this time in such steps: days where they can, hours where they can, minutes at the edges and for what is not added up yet."""
    found: list[CountStretch] = []

    def divide(since: int, until: int, levels: Sequence[tuple[str, int, int]]) -> None:
        if since >= until:
            return
        if not levels:
            found.append(CountStretch(MINUTES, since, until))
            return
        (table, length, end), *shorter = levels
        first = -(-since // length) * length
        last = min(until, end) // length * length
        if first >= last or (step_ms % length and until_ms > step_ms):
            divide(since, until, shorter)
            return
        divide(since, first, shorter)
        found.append(CountStretch(table, first, last))
        divide(last, until, shorter)

    divide(since_ms, until_ms, ((DAYS, DAY_MS, rolled.days), (HOURS, HOUR_MS, rolled.hours)))
    return found


def until_when(now_ms: int) -> int:
    """Until when hours may be added up."""
    return (now_ms - ROLLED_AFTER_MS) // HOUR_MS * HOUR_MS


def summing(source: str, target: str, length_ms: int, condition: str, day: str = "") -> str:
    """The statement that adds up what the condition chooses. `day` is the name of the column that a table has for its day, if it has one."""
    extra = f"{day}, " if day else ""
    return (
        f"INSERT INTO {target} ({extra}minute_ms, {_KEY}, {_VALUES}) SELECT {extra}minute_ms / {length_ms} * {length_ms}, {_KEY}, {_SUMS}"
        f" FROM {source} WHERE {condition} GROUP BY {extra}minute_ms / {length_ms} * {length_ms}, {_KEY}"
    )


def late(counts: Mapping[CountKey, Sequence[int]], rolled: Rolled) -> dict[str, dict[CountKey, list[int]]]:
    """What belongs into sums that are made already, by their table."""
    found: dict[str, dict[CountKey, list[int]]] = {HOURS: {}, DAYS: {}}
    for table, length, end in ((HOURS, HOUR_MS, rolled.hours), (DAYS, DAY_MS, rolled.days)):
        sums = found[table]
        for key, values in counts.items():
            if key.minute_ms >= end:
                continue
            of = key._replace(minute_ms=key.minute_ms // length * length)
            held = sums.get(of)
            sums[of] = list(values) if held is None else [a + b for a, b in zip(held, values, strict=True)]
    return found
