"""What keywords cost on the values at hand."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.core.event.schema_work import Weight, positions, weight
from dispatcher.core.event.schemas import Cost


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", 0),
        ("^abc$", 3),
        ("a|b", 2),
        ("[a-z]+", 1),
        ("[]a]b", 2),
        ("[^]a]b", 2),
        ("[a[b]c]d", 2),
        (r"[\]]a", 2),
        (r"\d{4}-\d{2}", 7),
        (r"\p{L}\u{1F600}a", 3),
        ("[xy]*x[xy]{2000}z", 2003),
        ("x{2,}", 3),
        ("x{,5}", 5),
        ("x{0}", 1),
        ("(ab){3}", 6),
        ("((a{10}){10}b){10}", 1010),
        ("(?:x.{0,200}z){3}", 609),  # the colon counts: more, not less
        ("(x{1000}){1000}{1000}", 1 << 20),
        ("x{00000000000000000000000000000050}", 50),
        ("x{99999999999999999999}", 1 << 20),
        ("a{b}", 4),
        ("(((", 0),
        ("a)b", 3),
        ("[abc", 1),
        ("a\\", 2),
    ],
)
def test_positions_of_a_pattern_are_counted_as_often_as_they_are_repeated(
    pattern: str, expected: int
) -> None:
    assert positions(pattern) == expected


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({}, Weight()),
        ({"type": "string", "maxLength": 5}, Weight()),
        ({"multipleOf": 3}, Weight(wide=1)),
        ({"multipleOf": 3.0}, Weight(wide=1)),
        ({"multipleOf": 0.01}, Weight(number=15, wide=1)),
        ({"multipleOf": 1e-300}, Weight(number=15 + 62, wide=1)),
        ({"minimum": 1, "exclusiveMaximum": 5}, Weight(wide=2)),
        ({"enum": ["a", "b"]}, Weight()),
        ({"enum": ["a", 1, [2, {"b": 3}]]}, Weight(fixed=7)),
        ({"const": 1}, Weight()),
        ({"const": {"a": [1, 2]}}, Weight(fixed=4)),
        ({"required": ["a"] * 100}, Weight(fixed=10)),
        ({"pattern": "^a{50}$"}, Weight(text=50)),
    ],
)
def test_a_keyword_weighs_what_it_takes(schema: Any, expected: Weight) -> None:
    assert weight(schema) == expected


@pytest.mark.parametrize(
    ("schema", "payload", "expected"),
    [
        ({"items": {"multipleOf": 0.01}}, [1.5] * 100, 1500),
        ({"items": {"multipleOf": 0.01}}, [1e300] * 100, 1500 + 100 * 997 // 16),
        ({"items": {"multipleOf": 0.01}}, ["x", True, None], 15),
        ({"items": {"maximum": 5}}, [10**300] * 16, 997),
        ({"items": {"enum": [1, 2, 3]}}, [1] * 100, 400),
        ({"items": {"allOf": [{"pattern": "a{20}"}, {"pattern": "b{20}"}]}}, ["x" * 100] * 2, 400),
        ({"items": {"pattern": "a{20}"}}, ["\u00e9" * 100], 300),
        ({"patternProperties": {"a{20}": True}}, {"k" * 100: 1}, 100),
        ({"propertyNames": {"pattern": "a{20}"}}, {"k" * 100: 1}, 100),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"b": {"multipleOf": 0.1}}}}}, {"b": 1}, 15),
    ],
)
def test_work_is_counted_on_the_values_at_hand(schema: Any, payload: Any, expected: int) -> None:
    cost = Cost(schema)
    assert cost.weighs
    assert cost.of(payload)[2] == expected


def test_most_schemas_weigh_nothing() -> None:
    cost = Cost({"type": "object", "properties": {"a": {"enum": ["x"]}, "b": {"type": "integer"}}})
    assert not cost.weighs
    assert cost.of({"a": "x", "b": 10**300})[2] == 0
