from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from dispatcher.core.text.units import (
    format_duration,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("15s", 15),
        ("2m", 120),
        ("1h30m", 5400),
        ("5d", 432000),
        ("0s", 0),
        ("1.5s", 1.5),
        ("1m500ms", 60.5),
    ],
)
def test_durations_are_read(text: Any, seconds: Any) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "15",
        "s",
        "15 s",
        "-1s",
        "1m1h",
        "1s1s",
        "1w",
        "15S",
        "1e3s",
        "\u0661s",
        "1s\n",
        "9" * 400 + "d",
        "infs",
        "1._s",
    ],
)
def test_what_is_no_duration_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="unit"):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=10**12))
def test_a_duration_survives_being_written_and_read(milliseconds: Any) -> None:
    assert round(parse_duration(format_duration(milliseconds / 1000)) * 1000) == milliseconds


@pytest.mark.parametrize(
    ("text", "size"), [("512B", 512), ("64KiB", 65536), ("1.5MiB", 1572864), ("1 GiB", 1 << 30)]
)
def test_sizes_are_read(text: Any, size: Any) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "64", "64KB", "64kib", "-1B", "KiB", "1MiB\n"])
def test_what_is_no_size_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="unit"):
        parse_size(text)


@given(st.integers(min_value=0, max_value=1 << 49))
def test_a_size_survives_being_written_and_read(size: Any) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "rate"), [("100/s", 100.0), ("10/m", 1 / 6), ("1800/h", 0.5), ("1.5/s", 1.5), ("6 / m", 0.1)]
)
def test_rates_are_read_per_second(text: Any, rate: Any) -> None:
    assert parse_rate(text) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["", "100", "100/", "/s", "100/d", "-1/s", "1e3/s", "100/s\n", "100 per s"])
def test_what_is_no_rate_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="minute or hour"):
        parse_rate(text)
