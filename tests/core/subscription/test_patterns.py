"""Patterns of event types: what they match, and what is none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from dispatcher.core.subscription.patterns import check_pattern, matches
from tests.core.subscription.test_index import PATTERN, TYPE, naive


@pytest.mark.parametrize(
    ("pattern", "kind", "expected"),
    [
        ("*", "ping", True),
        ("*", "billing.invoice.paid", True),
        ("billing.*", "billing.paid", True),
        ("billing.*", "billing.invoice.paid", True),
        ("billing.*", "billing", False),
        ("billing.*", "billings.paid", False),
        ("*.paid", "invoice.paid", True),
        ("*.paid", "billing.invoice.paid", False),
        ("a.*.c", "a.b.c", True),
        ("a.*.c", "a.b.b.c", False),
        ("a.*.*", "a.b", False),
        ("a.*.*", "a.b.c.d", True),
        ("invoice.paid", "invoice.paid", True),
        ("invoice.paid", "invoice.paid.late", False),
        ("*", "dispatcher.subscription.created", False),
        ("*.*", "dispatcher.x", False),
        ("*.subscription.created", "dispatcher.subscription.created", False),
        ("dispatcher.*", "dispatcher.subscription.created", True),
        ("dispatcher.*.created", "dispatcher.subscription.created", True),
        ("dispatcher.subscription.disabled", "dispatcher.subscription.disabled", True),
        ("*", "dispatcher", True),
        ("*", "dispatchers.x", True),
        ("com.example/order:created v2", "com.example/order:created v2", True),
        ("com.*", "com.example/order:created v2", True),
        ("*.\u00e9", "a.\u00e9", True),
        ("a.*", "a.", True),
        ("a.*.b", "a..b", True),
        ("*", ".", True),
    ],
)
def test_patterns_mean_what_the_pages_say(pattern: Any, kind: Any, expected: Any) -> None:
    assert matches(pattern, kind) is expected
    assert naive(pattern, kind) is expected


@given(PATTERN, TYPE)
def test_a_pattern_matches_as_the_naive_reading_does(pattern: Any, kind: Any) -> None:
    assert matches(pattern, kind) == naive(pattern, kind)


@pytest.mark.parametrize(
    "pattern", ["*", "a", "a.*", "*.a-b_C9", "x" * 1024, "\u00e9", "a b", "a/b", "*.example/order:created v2"]
)
def test_good_patterns_are_accepted(pattern: Any) -> None:
    check_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a*",
        "**",
        "a.b*.c",
        " a",
        "a ",
        "x" * 1025,
        "\u00e9" * 513,
        "a\n",
        "a\0b",
        "\ud800",
    ],
)
def test_bad_patterns_are_refused(pattern: Any) -> None:
    with pytest.raises(ValueError, match=r"must|has"):
        check_pattern(pattern)
