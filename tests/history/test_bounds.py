"""What a log says, as both stores can keep it."""

from __future__ import annotations

import pytest

from dispatcher.history.bounds import FUTURE_MS, kept_time, small, storable

NOW = 1_764_000_000_000


@pytest.mark.parametrize(
    ("text", "limit", "kept"),
    [
        ("evt_1", 1024, "evt_1"),
        ("", 1024, ""),
        ("ab", 2, "ab"),
        ("abc", 2, "ab"),
        ("a\0b", 1024, "a�b"),
        ("a\ud800b", 1024, "a?b"),
        ("üü", 3, "ü"),
        ("😀", 3, ""),
    ],
)
def test_a_text_is_one_that_both_stores_hold(text: str, limit: int, kept: str) -> None:
    assert storable(text, limit) == kept


@pytest.mark.parametrize(
    ("number", "kept"),
    [(-1, -1), (0, 0), (2**31 - 1, 2**31 - 1), (2**31, 2**31 - 1), (-2, -1), (2**60, 2**31 - 1)],
)
def test_a_small_number_fits_into_four_bytes(number: int, kept: int) -> None:
    assert small(number) == kept


@pytest.mark.parametrize(
    ("time_ms", "kept"),
    [
        (NOW - 5000, NOW - 5000),
        (NOW + FUTURE_MS, NOW + FUTURE_MS),
        (NOW + FUTURE_MS + 1, NOW),
        (10**12, 10**12),
        (10**12 - 1, NOW),
        (0, NOW),
        (-1, NOW),
    ],
)
def test_a_clock_that_cannot_be_right_does_not_choose_the_day(time_ms: int, kept: int) -> None:
    assert kept_time(time_ms, NOW) == kept
