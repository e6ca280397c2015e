from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from dispatcher.core.event.schemas import MAX_SUBSCHEMAS, Cost, TooMany


def levels(schema: Any, count: int = 4) -> list[int]:
    cost = Cost(schema)
    return [cost.at(depth) for depth in range(count)]


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (True, [1, 0, 0]),
        ({"type": "object"}, [1, 0, 0]),
        ({"allOf": [{}, {"anyOf": [{}, {}]}], "not": {}, "if": {}, "then": {}, "else": {}}, [9, 0, 0]),
        # Members are different places, and so are items; what applies to all of them counts with each.
        ({"properties": {"a": {}, "b": {"allOf": [{}, {}]}}}, [1, 3, 0]),
        ({"properties": {"a": {}}, "patternProperties": {"^a": {}, "b$": {}}}, [1, 3, 0]),
        ({"additionalProperties": {"not": {}}, "propertyNames": {}}, [1, 3, 0]),
        ({"prefixItems": [{}, {}], "items": {"not": {}}, "contains": {}}, [1, 3, 0]),
        ({"items": {"items": {"items": True}}}, [1, 1, 1]),
        ({"dependentSchemas": {"a": {"properties": {"x": {}}}}, "properties": {"x": {}}}, [2, 2, 0]),
        # Definitions count where they are referred to, and each time.
        ({"$defs": {"a": {}}}, [1, 0, 0]),
        ({"$defs": {"a": {"not": {}}}, "allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}, [7, 0, 0]),
        ({"$defs": {"a": {"$anchor": "x", "not": {}}}, "$ref": "#x"}, [3, 0, 0]),
        ({"$defs": {"a": {"$dynamicAnchor": "x", "not": {}}}, "$dynamicRef": "#x"}, [3, 0, 0]),
        ({"$id": "https://a.example/s", "$defs": {"a": {"$id": "t", "not": {}}}, "$ref": "t"}, [3, 0, 0]),
        (
            {"$defs": {"a": {"$id": "t", "$defs": {"b": {"not": {}}}, "$ref": "#/$defs/b"}}, "$ref": "t"},
            [4, 0, 0],
        ),
        ({"elsewhere": {"a/b~": {"not": {}}}, "$ref": "#/elsewhere/a~1b~0"}, [3, 0, 0]),
        ({"elsewhere": [{}, {"not": {}}], "$ref": "#/elsewhere/1"}, [3, 0, 0]),
        ({"elsewhere": {"a": {"$ref": "#/elsewhere/b"}, "b": {}}, "$ref": "#/elsewhere/a"}, [3, 0, 0]),
        # Recursion: a circle at one place ends, one through a member goes on with the payload.
        ({"$ref": "#"}, [1, 0, 0]),
        ({"allOf": [{"$ref": "#"}], "$defs": {}}, [2, 0, 0]),
        ({"properties": {"a": {"$ref": "#"}, "b": {"$ref": "#"}}}, [1, 2, 2]),
        ({"properties": {"a": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}}}, [1, 5, 10]),
        # What isn't a schema where one could be is none.
        ({"properties": {"a": 1}, "items": "x", "allOf": {"a": {}}, "$ref": 5}, [2, 0, 0]),
    ],
)
def test_a_place_is_compared_with_what_applies_to_it(schema: Any, expected: list[int]) -> None:
    assert levels(schema, 3) == expected


def test_counts_end_somewhere() -> None:
    definitions = {f"d{number}": {"anyOf": [{"$ref": f"#/$defs/d{number + 1}"}] * 2} for number in range(200)}
    found = levels({"$ref": "#/$defs/d0", "$defs": {**definitions, "d200": True}})
    assert 10**12 < found[0] < 10**13
    recursive = {"items": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}}
    assert 10**12 < Cost(recursive).at(10_000) < 10**13


def test_a_chain_is_followed_however_long_it_is() -> None:
    definitions = {f"d{number}": {"$ref": f"#/$defs/d{number + 1}"} for number in range(4000)}
    assert levels({"$ref": "#/$defs/d0", "$defs": {**definitions, "d4000": True}}) == [4002, 0, 0, 0]


def test_a_payload_is_counted_place_by_place() -> None:
    cost = Cost({"items": {"properties": {"a": {"not": {}}}}})
    assert cost.of(5) == (1, 1, 0)
    assert cost.of([{"a": 1}, {"a": 2}]) == (5, 1 + 2 + 4, 0)


def test_there_may_not_be_very_many() -> None:
    with pytest.raises(TooMany, match=str(MAX_SUBSCHEMAS)):
        Cost({"allOf": [{}] * MAX_SUBSCHEMAS})


NAMES = st.sampled_from(["a", "b"])
SCHEMAS: Any = st.recursive(
    st.one_of(
        st.booleans(),
        st.just({}),
        st.builds(lambda name: {"$ref": f"#/$defs/{name}"}, NAMES),
        st.sampled_from(
            [{"$ref": "#"}, {"$ref": "#/$defs/a/allOf/0"}, {"$ref": "nowhere"}, {"$ref": "#nowhere"}]
        ),
    ),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "allOf": st.lists(inner, max_size=3),
            "not": inner,
            "items": inner,
            "properties": st.dictionaries(NAMES, inner),
            "$defs": st.dictionaries(NAMES, inner),
        },
    ),
    max_leaves=12,
)


def naive(schema: Any, root: Any, value: Any, on_the_way: tuple[int, ...] = ()) -> int:
    """As a validator does it, but for the answer: how many times it looks at a place."""
    if id(schema) in on_the_way:
        return 0
    count = 1
    if not isinstance(schema, dict):
        return count
    way = (*on_the_way, id(schema))
    here = [*schema.get("allOf", []), *([schema["not"]] if "not" in schema else [])]
    name = schema.get("$ref", "").removeprefix("#/$defs/")
    if name == "#":
        here.append(root)
    elif isinstance(root, dict) and name in root.get("$defs", {}):
        here.append(root["$defs"][name])
    count += sum(naive(each, root, value, way) for each in here)
    if isinstance(value, list) and "items" in schema:
        count += sum(naive(schema["items"], root, each) for each in value)
    if isinstance(value, dict):
        known = schema.get("properties", {})
        count += sum(naive(known[name], root, each) for name, each in value.items() if name in known)
    return count


@given(
    SCHEMAS,
    st.recursive(
        st.just(1),
        lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(NAMES, inner)),
        max_leaves=6,
    ),
)
def test_nothing_takes_more_than_was_counted(schema: Any, payload: Any) -> None:
    _, work, _ = Cost(schema).of(payload)
    if "#/$defs/a/allOf/0" not in str(schema):
        assert naive(schema, schema, payload) <= work
