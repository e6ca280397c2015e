"""Which tables tell of a time, and what is counted late."""

from __future__ import annotations

from hypothesis import given, strategies as st

from dispatcher.history.base import CountKey
from dispatcher.history.logged import DAY_MS
from dispatcher.history.rolling import (
    DAYS,
    HOUR_MS,
    HOURS,
    MINUTES,
    NOT_ROLLED,
    ROLLED_AFTER_MS,
    Rolled,
    late,
    stretches,
    until_when,
)

MINUTE = 60_000
EVER = 2**53
LENGTHS = {MINUTES: MINUTE, HOURS: HOUR_MS, DAYS: DAY_MS}

hours = st.integers(0, 5 * 24).map(lambda number: number * HOUR_MS)
times = st.integers(0, 5 * DAY_MS)


def rolled_until(hour: int) -> Rolled:
    return Rolled(hour, hour // DAY_MS * DAY_MS)


@given(times, times, st.sampled_from([MINUTE, 90 * MINUTE, HOUR_MS, DAY_MS, EVER]), hours.map(rolled_until))
def test_every_minute_is_told_of_once_and_by_no_more_than_its_step_holds(
    since: int, until: int, step: int, rolled: Rolled
) -> None:
    found = stretches(since, until, step, rolled)
    at = since
    for each in found:
        assert each.since_ms == at
        assert each.since_ms < each.until_ms
        at = each.until_ms
        length = LENGTHS[each.table]
        if each.table != MINUTES:
            assert each.since_ms % length == each.until_ms % length == 0
            assert each.until_ms <= (rolled.days if each.table == DAYS else rolled.hours)
            assert step % length == 0 or step >= until
    assert at == max(since, until)


def test_a_month_is_days_then_the_hours_of_today_then_the_last_minutes() -> None:
    now = 30 * DAY_MS + 10 * HOUR_MS + 40 * MINUTE
    rolled = rolled_until(until_when(now))
    assert rolled.hours == 30 * DAY_MS + 10 * HOUR_MS
    month = [(DAYS, 0, 30 * DAY_MS), (HOURS, 30 * DAY_MS, rolled.hours), (MINUTES, rolled.hours, now)]
    assert stretches(0, now, DAY_MS, rolled) == stretches(0, now, EVER, rolled) == month
    assert stretches(0, now, HOUR_MS, rolled) == [(HOURS, 0, rolled.hours), (MINUTES, rolled.hours, now)]
    assert stretches(0, now, MINUTE, rolled) == [(MINUTES, 0, now)]
    assert stretches(0, now, DAY_MS, NOT_ROLLED) == [(MINUTES, 0, now)]
    assert until_when(10 * HOUR_MS + ROLLED_AFTER_MS - 1) == 9 * HOUR_MS


def test_what_is_counted_late_goes_into_the_sums_that_are_made() -> None:
    def key(minute_ms: int, tenant: str = "acme") -> CountKey:
        return CountKey(minute_ms, tenant, "sub_a", "t", "h", 200)

    rolled = Rolled(DAY_MS + 2 * HOUR_MS, DAY_MS)
    counts = {
        key(5 * MINUTE): [1, 10],
        key(7 * MINUTE): [2, 20],
        key(7 * MINUTE, "globex"): [4, 40],
        key(DAY_MS + HOUR_MS + MINUTE): [8, 80],
        key(DAY_MS + 2 * HOUR_MS): [16, 160],
    }
    assert late(counts, rolled) == {
        HOURS: {key(0): [3, 30], key(0, "globex"): [4, 40], key(DAY_MS + HOUR_MS): [8, 80]},
        DAYS: {key(0): [3, 30], key(0, "globex"): [4, 40]},
    }
    assert late(counts, NOT_ROLLED) == {HOURS: {}, DAYS: {}}
    assert counts[key(5 * MINUTE)] == [1, 10]
