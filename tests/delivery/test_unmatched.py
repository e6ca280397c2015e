"""What is said of events that are for nobody."""

from __future__ import annotations

from typing import Any

from structlog.testing import capture_logs

from dispatcher.core.event.decode import Event
from dispatcher.delivery import unmatched
from dispatcher.delivery.unmatched import Unmatched


def event(number: int = 0, tenant: str | None = None, type_: str = "a.b") -> Event:
    return Event(f"evt_{number}", type_, tenant, b"{}", 0, b"")


def told(level: str, logs: list[Any]) -> list[tuple[str | None, str]]:
    return [(line["tenant"], line["type"]) for line in logs if line["log_level"] == level]


def test_the_first_of_each_tenant_and_type_is_told_and_every_one_at_debug() -> None:
    for debug in (False, True):
        said = Unmatched(lambda: 0.0, debug=debug)
        with capture_logs() as logs:
            for number in range(3):
                for tenant, type_ in ((None, "a.b"), ("acme", "a.b"), ("acme", "c")):
                    said.note(event(number, tenant, type_))
        assert told("info", logs) == [(None, "a.b"), ("acme", "a.b"), ("acme", "c")]
        assert len(told("debug", logs)) == (9 if debug else 0)
        assert all("tenant" in line["hint"] for line in logs if line["log_level"] == "info")


def test_of_very_many_tenants_and_types_the_rest_is_told_of_together(monkeypatch: Any) -> None:
    monkeypatch.setattr(unmatched, "REMEMBERED", 3)
    now = 1000.0
    said = Unmatched(lambda: now, debug=False)
    with capture_logs() as logs:
        for number in range(100):
            said.note(event(number, f"t{number}"))
        assert len(told("info", logs)) == 4
        now += unmatched.SUMMARY_EVERY
        said.note(event(100, "t100"))
    assert len(told("info", logs)) == 5
    assert [line["events"] for line in logs if "events" in line] == [1, 97]
    assert len(said._told) == 3


def test_the_dispatchers_own_events_are_no_matter_for_anybody() -> None:
    said = Unmatched(lambda: 0.0, debug=False)
    with capture_logs() as logs:
        said.note(event(1, "acme", "dispatcher.subscription.created"))
    assert logs == []
