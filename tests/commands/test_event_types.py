from __future__ import annotations

from pathlib import Path

from tests.commands.calling import Api, one_line


def test_event_types_are_added_changed_and_forgotten(api: Api, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    added = api("event-types", "put", "invoice.paid", "--description", "Paid.", "--schema", f"@{schema}")
    assert added.stdout == "invoice.paid is added\n"
    changed = api("event-types", "put", "invoice.paid", "--example", '{"amount": 1}', "--deprecated")
    assert changed.stdout == "invoice.paid is changed\n"
    shown = api.json("event-types", "show", "invoice.paid")
    assert {name: shown[name] for name in ("description", "schema", "example", "deprecated")} == {
        "description": "Paid.",
        "schema": {"type": "object"},
        "example": {"amount": 1},
        "deprecated": True,
    }
    assert '"amount": 1' in api("event-types", "show", "invoice.paid").stdout
    assert "invoice.paid" in api("event-types", "list").stdout
    one_line(api("event-types", "put", "a", "--schema", "{"), "--schema: not JSON", code=2)
    one_line(api("event-types", "put", "a", "--schema", str(schema)), f"@{schema} reads the file", code=2)
    one_line(api("event-types", "put", "a\nb"), "name", code=2)
    assert api("event-types", "delete", "invoice.paid").exit_code == 0
    one_line(api("event-types", "delete", "invoice.paid"), "no event type")
