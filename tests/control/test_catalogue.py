"""The catalogue of event types."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest

from dispatcher.control.catalogue import EventTypeView
from dispatcher.control.errors import NotFound, VersionMismatch
from dispatcher.control.operational_events import TYPES
from dispatcher.core.event.catalogued import EventType
from dispatcher.core.subscription.patterns import matches
from tests.control.conftest import Make, Plane, flaws

SCHEMA = {
    "type": "object",
    "required": ["amount"],
    "properties": {"amount": {"type": "integer", "minimum": 1}, "lines": {"items": {"type": "string"}}},
}


async def test_an_entry_is_added_replaced_listed_and_forgotten(plane: Plane) -> None:
    view, new = await plane.catalogue.put("invoice.paid", {"description": "Money came.", "schema": SCHEMA})
    assert new
    assert view.version == 1
    view, new = await plane.catalogue.put("invoice.paid", {"deprecated": True})
    assert not new
    assert view.type == EventType("invoice.paid", deprecated=True)
    await plane.catalogue.put("a.b", {})
    assert [one.type.name for one in plane.catalogue.list()] == ["a.b", "invoice.paid"]
    await plane.catalogue.delete("a.b")
    with pytest.raises(NotFound):
        plane.catalogue.get("a.b")


async def test_the_listing_is_written_anew_only_when_it_has_changed(plane: Plane) -> None:
    calls: list[list[str]] = []

    def write(views: Sequence[EventTypeView]) -> bytes:
        calls.append([view.type.name for view in views])
        return b"%d" % len(calls)

    await plane.catalogue.put("a.b", {})
    assert [plane.catalogue.written(write) for _ in range(3)] == [b"1"] * 3
    await plane.catalogue.put("a.b", {"deprecated": True})
    assert plane.catalogue.written(write) == b"2"
    await plane.catalogue.delete("a.b")
    assert [plane.catalogue.written(write) for _ in range(2)] == [b"3"] * 2
    assert calls == [["a.b"], ["a.b"], []]


async def test_the_same_again_writes_nothing(plane: Plane) -> None:
    await plane.catalogue.put("a.b", {"schema": SCHEMA})
    view, _ = await plane.catalogue.put("a.b", {"schema": SCHEMA})
    assert view.version == 1


async def test_a_change_of_another_version_is_refused_and_of_two_at_once_one_wins(plane: Plane) -> None:
    await plane.catalogue.put("a.b", {})
    results = await asyncio.gather(
        plane.catalogue.put("a.b", {"description": "1"}, if_match=1),
        plane.catalogue.put("a.b", {"description": "2"}, if_match=1),
        return_exceptions=True,
    )
    assert sum(isinstance(result, VersionMismatch) for result in results) == 1
    with pytest.raises(VersionMismatch):
        await plane.catalogue.delete("a.b", if_match=1)
    with pytest.raises(VersionMismatch):
        await plane.catalogue.put("new.one", {}, if_match=1)
    with pytest.raises(VersionMismatch):
        await plane.catalogue.put("a.b", {}, only_new=True)
    results = await asyncio.gather(
        plane.catalogue.put("new.one", {"description": "1"}, only_new=True),
        plane.catalogue.put("new.one", {"description": "2"}, only_new=True),
        return_exceptions=True,
    )
    assert sum(isinstance(result, VersionMismatch) for result in results) == 1


@pytest.mark.parametrize(
    ("name", "document", "field"),
    [
        ("a\nb", {}, "name"),
        ("dispatcher.subscription.created", {}, "name"),
        ("a.b", {"bogus": 1}, "bogus"),
        ("a.b", {"description": 5}, "description"),
        ("a.b", {"deprecated": "yes"}, "deprecated"),
        ("a.b", {"schema": "x"}, "schema"),
        ("a.b", {"schema": {"type": "nope"}}, "schema"),
        ("a.b", {"schema": {"$schema": "http://json-schema.org/draft-04/schema#"}}, "schema.$schema"),
        ("a.b", {"schema": {"$ref": "http://127.0.0.1/x.json"}}, "schema"),
        ("a.b", {"schema": {"$ref": "file:///etc/passwd"}}, "schema"),
        ("a.b", {"schema": {"$ref": "#/$defs/nothing"}}, "schema"),
        ("a.b", {"schema": {"pattern": "(?=a)b"}}, "schema"),
        ("a.b", {"schema": {"description": "x" * 300_000}}, "schema"),
        ("a.b", {"schema": SCHEMA, "example": {"amount": 0}}, "example.amount"),
    ],
)
async def test_what_cannot_be_used_is_refused_with_its_field(
    plane: Plane, name: str, document: dict[str, Any], field: str
) -> None:
    assert field in await flaws(plane.catalogue.put(name, document))
    assert len(plane.store.event_types) == 0


def doubling(count: int) -> dict[str, Any]:
    """Each definition refers twice to the next: 2 ** count comparisons of one value."""
    definitions: dict[str, Any] = {
        f"d{number}": {"allOf": [{"$ref": f"#/$defs/d{number + 1}"}] * 2} for number in range(count)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{count}": {"type": "integer"}}}


async def test_a_schema_that_multiplies_work_is_refused(plane: Plane) -> None:
    """A definition more, and comparing one number with it would take for ever."""
    await plane.catalogue.put("a.b", {"schema": doubling(8), "example": 1})
    assert plane.catalogue.validate_payload("a.b", 1) == []
    found = await flaws(plane.catalogue.put("c.d", {"schema": doubling(40), "example": 1}))
    assert "refer to each once" in found["schema"]
    below = {"properties": {"x": {"items": {"$id": "https://a.example/x", **doubling(40)}}}}
    assert "schema" in await flaws(plane.catalogue.put("c.d", {"schema": below}))
    assert list(plane.store.event_types.names()) == ["a.b"]


async def test_a_schema_that_multiplies_work_and_is_in_the_topic_stops_nothing(plane: Plane) -> None:
    """Another release has taken it."""
    await plane.store.event_types.put("a.b", EventType("a.b", schema=doubling(60)), base=0)
    assert plane.catalogue.validate_payload("a.b", "x") == []


def nested(levels: int, leaf: Any = 1) -> Any:
    value = leaf
    for _ in range(levels):
        value = {"op": "add", "left": value, "right": 1}
    return value


async def test_what_a_payload_multiplies_is_bounded(plane: Plane) -> None:
    """An expression refers to itself in each alternative, so every level of one doubles the work."""
    alternatives = [
        {
            "properties": {"op": {"const": op}, "left": {"$ref": "#"}, "right": {"$ref": "#"}},
            "required": ["op"],
        }
        for op in ("add", "multiply")
    ]
    schema = {"if": {"type": "object"}, "then": {"oneOf": alternatives}, "else": {"type": "integer"}}
    await plane.catalogue.put("a.b", {"schema": schema, "example": nested(3)})
    assert plane.catalogue.validate_payload("a.b", nested(8)) == []
    assert "data" in {flaw.field for flaw in plane.catalogue.validate_payload("a.b", nested(8, "x"))}
    [flaw] = plane.catalogue.validate_payload("a.b", nested(40))
    assert (flaw.field, "too long to compare" in flaw.message) == ("data", True)


async def test_a_large_payload_of_a_large_schema_is_bounded(plane: Plane) -> None:
    alternatives = [{"const": number} for number in range(500)]
    await plane.catalogue.put("a.b", {"schema": {"items": {"oneOf": alternatives}}})
    assert plane.catalogue.validate_payload("a.b", [499] * 1000) == []
    # What differs is not looked for where that would take a minute.
    [flaw] = plane.catalogue.validate_payload("a.b", [999] * 1000)
    assert (flaw.field, "too large to say where" in flaw.message) == ("data", True)
    assert len(plane.catalogue.validate_payload("a.b", [999] * 30)) == 20
    [flaw] = plane.catalogue.validate_payload("a.b", [499] * 20_000)
    assert (flaw.field, "too long to compare" in flaw.message) == ("data", True)


async def test_a_tree_that_refers_to_itself_may_be_as_deep_as_any_payload(plane: Plane) -> None:
    schema = {"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}, "op": {"type": "string"}}}
    await plane.catalogue.put("a.b", {"schema": schema})
    assert plane.catalogue.validate_payload("a.b", nested(63)) == []
    assert len(plane.catalogue.validate_payload("a.b", {"left": {"op": 1}})) == 1


async def test_a_payload_is_compared_with_the_schema_in_force(plane: Plane) -> None:
    validate = plane.catalogue.validate_payload
    assert validate("invoice.paid", {}) == []
    await plane.catalogue.put("invoice.paid", {"schema": SCHEMA})
    assert validate("invoice.paid", {"amount": 1}) == []
    assert [flaw.field for flaw in validate("invoice.paid", {"amount": 1, "lines": ["a", 1]})] == [
        "data.lines[1]"
    ]
    assert [flaw.field for flaw in validate("invoice.paid", {})] == ["data"]
    await plane.catalogue.put("invoice.paid", {"schema": True})
    assert validate("invoice.paid", {}) == []


async def test_a_payload_cannot_keep_a_pattern_busy(plane: Plane) -> None:
    """With a backtracking engine this takes longer than anybody waits."""
    await plane.catalogue.put("a.b", {"schema": {"pattern": "^(a+)+$"}})
    assert len(plane.catalogue.validate_payload("a.b", "a" * 5000 + "!")) == 1


@pytest.mark.parametrize(
    ("schema", "fine", "too_much"),
    [
        ({"items": {"multipleOf": 0.01}}, [1234.5] * 50_000, [1e300] * 50_000),  # 2.3 s
        ({"items": {"enum": ["a", *range(1000)]}}, [999] * 900, [999] * 50_000),  # 14 s
        ({"items": {"pattern": "^[xy]*x[xy]{2000}z$"}}, ["xy" * 2000], ["xy" * 500_000]),  # 30 s
        ({"pattern": "^[A-Za-z ]+$"}, "a" * 1_000_000, None),
        ({"items": {"maximum": 1e301}}, [10**18] * 10_000, [10**300] * 20_000),
    ],
)
async def test_keywords_that_take_long_on_the_values_at_hand_are_bounded(
    plane: Plane, schema: Any, fine: Any, too_much: Any
) -> None:
    await plane.catalogue.put("a.b", {"schema": schema})
    said = plane.catalogue.validate_payload("a.b", fine)
    assert not any("too long to compare" in flaw.message for flaw in said)
    if too_much is not None:
        [flaw] = plane.catalogue.validate_payload("a.b", too_much)
        assert (flaw.field, "too long to compare" in flaw.message) == ("data", True)


async def test_a_message_does_not_repeat_a_large_payload(plane: Plane) -> None:
    await plane.catalogue.put("a.b", {"schema": {"type": "integer"}})
    [flaw] = plane.catalogue.validate_payload("a.b", "x" * 100_000)
    assert len(flaw.message) < 600


async def test_a_schema_in_force_that_cannot_be_used_stops_nothing(plane: Plane) -> None:
    """Another release may have taken it."""
    await plane.store.event_types.put("a.b", EventType("a.b", schema={"type": "nope"}), base=0)
    assert plane.catalogue.validate_payload("a.b", {}) == []


async def test_patterns_are_compared_with_the_catalogue_where_the_setting_says_so(make: Make) -> None:
    plane = await make(event_types="catalogued")
    await plane.catalogue.put("invoice.paid", {})
    assert (await plane.create(event_types=["invoice.*", "dispatcher.*", "ping"])).view.version == 1
    assert "event_types[1]" in await flaws(plane.create(event_types=["invoice.paid", "invioce.paid"]))
    assert (await make()).catalogue.check_patterns(["anything"]) == []


async def test_a_pattern_that_has_become_unknown_stops_no_other_change(make: Make) -> None:
    plane = await make(event_types="catalogued")
    await plane.catalogue.put("invoice.paid", {})
    id_ = (await plane.create(event_types=["invoice.paid"])).view.id
    await plane.catalogue.delete("invoice.paid")
    view = await plane.subscriptions.update(id_, {"payload": "thin"}, tenant=None)
    assert view.version == 2


async def test_patterns_are_checked_as_subscriptions_match(make: Make) -> None:
    plane = await make(event_types="catalogued")
    names = ("a.b", "a.b.c", "x-y.z_1", "ab")
    for name in names:
        await plane.catalogue.put(name, {})
    known = (*names, "ping", *TYPES)
    patterns = [
        ".".join(steps)
        for count in (1, 2, 3, 4)
        for steps in product(("*", "a", "b", "c", "x-y", "z_1", "zz", "dispatcher"), repeat=count)
    ]
    for pattern in patterns:
        fits = any(matches(pattern, name) for name in known)
        assert bool(plane.catalogue.check_patterns([pattern])) != fits, pattern
    assert len(plane.catalogue.check_patterns([f"no.{number}" for number in range(256)])) == 20
