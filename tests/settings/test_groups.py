"""The groups: what their fields make of each other."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from dispatcher.settings.groups import Settings
from dispatcher.settings.load import load
from tests.settings.test_load import KEY, mistakes


def test_checks_between_fields_are_made_beside_other_mistakes_but_not_on_wrong_values(write: Any) -> None:
    found = mistakes(write("delivery: {timeout: 1, connect_timeout: 20s}\nhttp: {host: 0.0.0.0}\n"))
    assert [each.split(": ")[1] for each in found] == ["delivery.timeout", "api.keys"]


@pytest.mark.parametrize(
    ("host", "fine"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("::", False), ("web", False)]
)
def test_beyond_loopback_keys_are_required(host: Any, fine: Any) -> None:
    load(None, {"DISPATCHER_HTTP__HOST": host, "DISPATCHER_API__KEYS": KEY}, {})
    if fine:
        load(None, {"DISPATCHER_HTTP__HOST": host}, {})
    else:
        assert "api.keys" in mistakes(environ={"DISPATCHER_HTTP__HOST": host})[0]


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(Settings(), "group", "x")  # noqa: B010 - the type checker knows it is wrong
    with pytest.raises(ValidationError, match="frozen"):
        setattr(Settings().delivery, "timeout", 1.0)  # noqa: B010
