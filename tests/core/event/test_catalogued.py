from __future__ import annotations

from dispatcher.core.event.catalogued import EventType


def test_what_is_stored_is_read_again_as_it_was() -> None:
    known = EventType("invoice.paid", "Paid.", {"type": "object"}, {"amount": 1}, deprecated=True)
    assert EventType.of(known.name, known.document()) == known


def test_what_an_older_document_lacks_is_empty() -> None:
    assert EventType.of("a", {}) == EventType("a")
    assert EventType.of("a", {"description": None, "deprecated": None}) == EventType("a")


def test_a_schema_that_refuses_everything_is_not_taken_for_none() -> None:
    refusing = EventType("a", schema=False)
    assert EventType.of("a", refusing.document()).schema is False
