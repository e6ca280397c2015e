"""What a schema sees of bytes that are passed on as they came."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import given, strategies as st

from dispatcher.core.event.raw_json import reading

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES, st.booleans())
def test_any_value_is_read_as_python_reads_it(value: Any, ascii_only: bool) -> None:
    assert reading(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"123456789012345678901234567890", 123456789012345678901234567890),
        (b"-18446744073709551617", -18446744073709551617),
        (b"1e999", sys.float_info.max),
        (b"-1e999", -sys.float_info.max),
        (b"9" * 5000, sys.float_info.max),
        (rb'"\ud83d"', "\ufffd"),
        (rb'"\ud83d\ude00"', "\U0001f600"),
        (b'{"a": 1, "a": 2}', {"a": 2}),
    ],
)
def test_what_a_double_or_utf8_cannot_say_becomes_what_is_nearest(text: bytes, value: object) -> None:
    found = reading(text)
    assert found == value
    assert type(found) is type(value)
