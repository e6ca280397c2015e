"""Cursors of lists."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, strategies as st

from dispatcher.core.text.cursors import read_cursor, write_cursor


@given(st.lists(st.integers(-(2**53), 2**53) | st.text()))
def test_a_key_comes_back_and_its_text_is_for_a_url(key: list[Any]) -> None:
    text = write_cursor(key)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", text)
    assert read_cursor(text) == key


@given(st.text())
def test_whatever_comes_back_is_read_or_is_none(text: str) -> None:
    read_cursor(text)


@pytest.mark.parametrize("text", ["", "abc", "é", "W10x", "\ud800", "bnVsbA"])
def test_what_is_no_cursor_is_none(text: str) -> None:
    assert read_cursor(text) is None
