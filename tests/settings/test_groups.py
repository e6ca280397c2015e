"""The groups: what their fields make of each other."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from dispatcher.settings.groups import Settings
from dispatcher.settings.load import Flag, load
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


ON_KAFKA = {"DISPATCHER_BROKER": "kafka://h"}


@pytest.mark.parametrize(
    ("written", "roles"),
    [
        ("deliver", ("deliver",)),
        ("api, history", ("api", "history")),
        ("[history, api, deliver]", ("history", "api", "deliver")),
    ],
)
def test_on_kafka_a_process_may_have_some_of_the_roles(written: str, roles: tuple[str, ...]) -> None:
    assert load(None, {**ON_KAFKA, "DISPATCHER_ROLES": written}, {}).roles == roles
    assert load(None, ON_KAFKA, {}).roles == ("deliver", "api", "history")


@pytest.mark.parametrize("written", ["deliver", "api,history", "deliver,api"])
def test_on_the_embedded_broker_a_process_has_all_of_them(written: str) -> None:
    (said,) = mistakes(overrides={"roles": Flag("--roles", written)})
    assert said == (
        "--roles: roles: must be all of deliver, api, history with the embedded broker, whose file serves one process: leave"
        " roles out, or use kafka://"
    )
    assert load(None, {"DISPATCHER_ROLES": "history,deliver,api"}, {}).embedded


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("consume", "must be 'deliver', 'api' or 'history', not 'consume'"),
        ("api,api", "must not contain a value twice"),
        ("[]", "must not be empty"),
    ],
)
def test_roles_that_do_not_exist_are_mistakes(written: str, said: str) -> None:
    (mistake,) = mistakes(environ={**ON_KAFKA, "DISPATCHER_ROLES": written})
    assert said in mistake


def test_a_process_without_the_api_needs_no_keys_beyond_loopback() -> None:
    load(None, {**ON_KAFKA, "DISPATCHER_HTTP__HOST": "0.0.0.0", "DISPATCHER_ROLES": "deliver"}, {})
    assert mistakes(environ={**ON_KAFKA, "DISPATCHER_HTTP__HOST": "0.0.0.0", "DISPATCHER_ROLES": "api"})


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(Settings(), "group", "x")  # noqa: B010 - the type checker knows it is wrong
    with pytest.raises(ValidationError, match="frozen"):
        setattr(Settings().delivery, "timeout", 1.0)  # noqa: B010
