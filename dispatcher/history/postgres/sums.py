"""Counts per hour and day in PostgreSQL (`history/rolling.py`): made by the maintenance, and kept true by what is counted late.

The row of `history_rolled` is what both wait for: whoever adds up has it for update, whoever counts late shares it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from dispatcher.history.logged import DAY_MS
from dispatcher.history.merge import Counts
from dispatcher.history.rolling import (
    DAYS,
    HOUR_MS,
    HOURS,
    LATE_MS,
    MINUTES,
    Rolled,
    late,
    summing,
    until_when,
)

Ensure = Callable[[Any, str, Iterable[int]], Awaitable[None]]
"""Has a table have a partition for each of these days, when the transaction is committed."""


async def with_late(connection: Any, counts: Counts, now_ms: int) -> dict[str, Counts]:
    """What is to be counted, by the table that it goes into."""
    if all(key.minute_ms >= now_ms - LATE_MS for key in counts):
        return {MINUTES: counts}
    row = await connection.fetchrow("SELECT hours, days FROM history_rolled FOR SHARE")
    return {MINUTES: counts, **late(counts, Rolled(row["hours"], row["days"]))}


async def roll(connection: Any, now_ms: int, ensure: Ensure) -> bool:
    """Add up the hours that are over, at most to the end of a day; whether there may be more."""
    end = until_when(now_ms)
    async with connection.transaction():
        await connection.execute(
            f"LOCK TABLE {MINUTES} IN ACCESS SHARE MODE"
        )  # before the row, as a rebuild does
        begin = await connection.fetchval("SELECT hours FROM history_rolled FOR UPDATE")
        if begin >= end:
            return False
        first = await connection.fetchval(
            f"SELECT min(minute_ms) FROM {MINUTES} WHERE minute_ms >= $1 AND day >= $2",
            begin,
            begin // DAY_MS,
        )
        if first is None or first >= end:
            return False
        # A day that has begun is gone on with; days on which nothing was counted are left out.
        day = (begin if begin % DAY_MS else first) // DAY_MS
        begin, end = max(begin, day * DAY_MS), min(end, (day + 1) * DAY_MS)
        whole = end == (day + 1) * DAY_MS
        await ensure(connection, HOURS, (day,))
        chosen = f"day = {day} AND minute_ms >= {begin} AND minute_ms < {end}"
        await connection.execute(summing(MINUTES, HOURS, HOUR_MS, chosen, "day"))
        if whole:
            await ensure(connection, DAYS, (day,))
            await connection.execute(summing(HOURS, DAYS, DAY_MS, f"day = {day}", "day"))
        await connection.execute(
            "UPDATE history_rolled SET hours = $1, days = CASE WHEN $2 THEN $1 ELSE days END", end, whole
        )
    return True
