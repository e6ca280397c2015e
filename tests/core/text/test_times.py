from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given, strategies as st

from dispatcher.core.text.times import LAST_MS, rfc3339, rfc3339_ascii

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_769_860_800_123, "2026-01-31T12:00:00.123Z"),
        (253_402_300_799_000, "9999-12-31T23:59:59.000Z"),
        (1_760_000_000_250, "2025-10-09T08:53:20.250Z"),
        (None, None),
        (-1, None),
        (253_402_300_800_000, None),
        (2**63 - 1, None),
        (float("nan"), None),
        (float("inf"), None),
    ],
)
def test_a_time_is_written_in_utc_or_not_at_all(milliseconds: float | None, text: str | None) -> None:
    assert rfc3339(milliseconds) == text


@given(st.lists(st.integers(0, LAST_MS), min_size=1, max_size=3))
@example([0, 59_999, 60_000, 0])
@example([LAST_MS])
def test_a_time_is_written_as_datetime_writes_it(moments: list[int]) -> None:
    for moment in moments:
        expected = (EPOCH + timedelta(milliseconds=moment)).isoformat(timespec="milliseconds")
        assert rfc3339_ascii(moment).decode() == rfc3339(moment) == expected.replace("+00:00", "Z")
