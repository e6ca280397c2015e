"""Times that events tell: the usual form is read by hand, and comes to what the general one comes to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given, strategies as st

from dispatcher.core.event.moment import milliseconds, valid_time

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def by_datetime(text: str) -> int | None:
    try:
        moment = datetime.fromisoformat(text)
        return (moment.replace(tzinfo=moment.tzinfo or UTC) - EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError):
        return None


TIMES = st.builds(
    "{}{}{}".format,
    st.datetimes().map(lambda moment: moment.isoformat(timespec="seconds")),
    st.sampled_from(
        ["", ".1", ".12", ".123", ".123456", ".123456789", ",5", ".", ".x1", ".\u0661", ".-1", ".1_0"]
    ),
    st.sampled_from(["", "Z", "z", "+00:00", "-00:00", "+02:00", " ", "Z\n"]),
)
ODD = st.text(st.sampled_from("0123456789-:.,TWZ+ "), max_size=30)


@given(TIMES | ODD)
@example("2026-11-27T07:08:09.123Z")
@example("2026-W48-5T07:08:09Z")
@example("20261127T070809:1:Z")
@example("2026-11-27T07:08:60Z")
@example("2026-13-27T07:08:09Z")
@example("2026-11-27T24:08:09Z")
@example("1969-12-31T23:59:59.9995Z")
@example("0001-01-01T00:00:00Z")
@example("2026-11-27 07:08:09.5Z")
def test_a_text_is_the_time_that_iso_8601_makes_of_it(text: str) -> None:
    if text.replace(".", "", 1).isdigit():
        return  # Unix seconds
    assert milliseconds(text) == by_datetime(text)


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (1_486_697_174, 1_486_697_174_000),
        (1_486_697_174.25, 1_486_697_174_250),
        ("1486697174.25", 1_486_697_174_250),
        (b"2017-02-10T03:26:14Z", 1_486_697_174_000),
        (-1, None),
        (253_402_300_800, None),
        (True, None),
        (None, None),
        ("", None),
        ("x" * 65, None),
        (b"\xff", None),
    ],
)
def test_seconds_bytes_and_what_is_no_time(time: str | bytes | float | None, expected: int | None) -> None:
    assert milliseconds(time) == expected


def test_valid_times() -> None:
    assert valid_time("2026-11-27T07:08:09Z")
    assert valid_time(0)
    assert not valid_time("2026-13-45T99:99:99Z")
