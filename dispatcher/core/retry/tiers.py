"""The upper levels of the timing wheel: retry topics in which every record waits the same time.

A delivery that is due in T goes to the largest tier of at most T. When it comes out, what is left of T
goes to a tier again, or into the wheel in memory when it is within the horizon: timers cascade, as
between the levels of any hierarchical wheel. The due time travels with the record, so the tiers
don't quantise it.

Because all records of a tier wait the same time, a partition of it is a queue in the order in which its records
come out, and only its head needs looking at. Two things could disturb that, and neither is let: a
record that is due sooner than its tier's delay (nothing is shorter) comes out when it is due if it is at the
head by then, and after its tier's delay at the latest; a timestamp in the future (another replica's clock) counts
as now.

A record comes out a little before its time (`LEAD`): reading on a partition that was paused takes a
broker's round trip, and the wheel keeps what is early to the millisecond.

Rejected: a topic per wait of the schedules (schedules are per subscription, and Retry-After names any
time); topics of powers of two (twice the topics, and no fewer writes for the usual schedules).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from dispatcher.core.text.units import format_duration

LEAD: Final = 2.0
"""Seconds before its time that a record comes out; less for tiers of less than twenty."""

RETRY_RETENTION: Final = 7 * 24 * 3600.0
"""Seconds beyond a tier's delay for which its topic keeps records. Whatever happened to a process for a week, what waits in a tier is still there."""

_LEAD_SHARE: Final = 0.1


class Tier(NamedTuple):
    """One retry topic. `delay` in seconds; `level` is how people write it: `10m`."""

    delay: float
    level: str
    topic: str


class Tiers:
    """All of them, the shortest first."""

    __slots__ = ("_all", "_by_topic", "_delays")

    def __init__(self, delays: Sequence[float], prefix: str) -> None:
        """`delays` in seconds, growing; topics are `<prefix>retry.<delay>`."""
        levels = [format_duration(delay) for delay in delays]
        self._delays = list(delays)
        self._all = [
            Tier(delay, level, f"{prefix}retry.{level}") for delay, level in zip(delays, levels, strict=True)
        ]
        self._by_topic = {tier.topic: tier for tier in self._all}

    def __iter__(self) -> Iterator[Tier]:
        return iter(self._all)

    def of(self, topic: str) -> Tier:
        """The tier that has this topic; KeyError if none has."""
        return self._by_topic[topic]

    def choose(self, wait: float) -> Tier:
        """The largest tier of at most `wait` seconds; the smallest where each is larger."""
        return self._all[max(0, bisect_right(self._delays, wait) - 1)]


def comes_out(tier: Tier, written: float, due: float, now: float) -> float:
    """When a record at the head of its partition leaves the tier; all times in Unix seconds.

    `written` is the record's own timestamp. Ask once per record: never later than the tier's delay from `now`.
    """
    if not 0 < written < now:
        written = now
    return min(written + tier.delay, due) - min(LEAD, tier.delay * _LEAD_SHARE)


def left_of(written: float, due: float, now: float) -> float:
    """Seconds left, at `now`, until a record is due; all times in Unix seconds, `written` the record's own timestamp.

    A record from the future was written by a clock that is ahead, or before this one was set back: what is left is not more
    than it was given when it was written.
    """
    return due - max(written, now)
