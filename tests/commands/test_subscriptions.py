from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from dispatcher.control.endpoint_checks import PingResult
from dispatcher.control.views import SecretView
from tests.commands.calling import Api, one_line


def test_a_subscription_from_its_first_to_its_last_day(api: Api) -> None:
    added = api(
        *("subscriptions", "add", "https://a.example/", "invoice.*", "ping", "--id", "sub_a"),
        *("--header", "X-A=b=c", "--timeout", "5s", "--retry-after", "5s", "--retry-after", "1h", "--paused"),
        *("--signature", "v1", "--signature", "github", "--validate"),
    )
    assert added.exit_code == 0, added.output
    assert "whsec_new" in added.stdout
    assert "shown only now" in added.stdout
    assert api.plane.subscriptions.calls[-1][1][0] == {
        "id": "sub_a",
        "url": "https://a.example/",
        "event_types": ["invoice.*", "ping"],
        "headers": {"X-A": "b=c"},
        "timeout": "5s",
        "retry": {"schedule": ["5s", "1h"]},
        "status": "paused",
        "signatures": ["v1", "github"],
        "validate": True,
    }
    shown = api("subscriptions", "show", "sub_a")
    assert "https://a.example/" in shown.stdout
    assert "last failure" in shown.stdout
    assert api("subscriptions", "pause", "sub_a").stdout == "sub_a is paused\n"
    assert api("subscriptions", "resume", "sub_a").stdout == "sub_a is active\n"
    assert api("subscriptions", "enable", "sub_a").exit_code == 0
    assert api("subscriptions", "validate", "sub_a").exit_code == 0
    changed = api(
        *("subscriptions", "update", "sub_a", "--to", "https://b.example/", "--unset", "timeout"),
        *("--unset-header", "X-A", "--header", "X-B=1", "--version", "5"),
    )
    assert changed.exit_code == 0, changed.output
    assert api.plane.subscriptions.calls[-1] == (
        "update",
        {"url": "https://b.example/", "headers": {"X-B": "1", "X-A": None}, "timeout": None},
    )
    rotated = api("subscriptions", "rotate", "sub_a", "--overlap", "1h")
    assert "whsec_rotated" in rotated.stdout
    given = api("subscriptions", "rotate", "sub_a", "--secret", "whsec_mine")
    assert "whsec_mine" not in given.stdout
    assert api("subscriptions", "delete", "sub_a").stdout == "sub_a is deleted\n"
    one_line(api("subscriptions", "show", "sub_a"), "no subscription sub_a")


def test_a_list_goes_over_pages_and_says_when_there_is_more(api: Api) -> None:
    for number in range(450):
        api.plane.subscriptions.add(f"sub_{number:03}", "acme" if number % 2 else None)
    listed = api("subscriptions", "list", "--limit", "420")
    rows = [line for line in listed.stdout.splitlines() if line.startswith("sub_")]
    assert len(rows) == 420
    assert "there are more" in listed.stderr
    assert len(api.json("subscriptions", "list", "--limit", "1000")) == 450
    api(
        "subscriptions",
        "list",
        "--tenant",
        "acme",
        "--status",
        "paused",
        "--host",
        "h",
        "--event-type",
        "a.b",
    )
    assert api.plane.subscriptions.calls[-1] == ("list", (None, "acme", "paused", "a.b", "h", None, 100))


def test_a_subscription_comes_from_a_file_as_well(api: Api, tmp_path: Path) -> None:
    file = tmp_path / "sub.yaml"
    file.write_text("url: https://a.example/\nevent_types: [a]\nmax_in_flight: 3\n")
    assert api("subscriptions", "add", "--file", str(file), "--id", "sub_f").exit_code == 0
    assert api.plane.subscriptions.views["sub_f"].document["max_in_flight"] == 3
    text = json.dumps({"url": "https://b.example/", "event_types": ["b"], "id": "sub_g"})
    assert api("subscriptions", "add", "--file", "-", stdin=text).exit_code == 0
    file.write_text("- a\n")
    one_line(api("subscriptions", "add", "--file", str(file)), "must hold the fields", code=2)
    file.write_text("a: [\n")
    one_line(api("subscriptions", "add", "--file", str(file)), "sub.yaml:", code=2)
    one_line(api("subscriptions", "add", "--file", str(tmp_path / "none")), "can't read", code=2)


def test_a_ping_that_was_not_acknowledged_exits_1(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api.plane.subscriptions.add("sub_1")
    assert api("subscriptions", "ping", "sub_1").exit_code == 0

    async def refused(id: str, *, tenant: str | None) -> PingResult:  # noqa: A002
        return PingResult("evt_1", False, None, "connect_refused", "port 1", 0.01, "\x1b[31mred")

    monkeypatch.setattr(api.plane.subscriptions, "ping", refused)
    ended = api("subscriptions", "ping", "sub_1")
    assert ended.exit_code == 1
    assert "connect_refused" in ended.stdout
    assert "\x1b" not in ended.stdout
    assert "\\x1b[31mred" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("subscriptions", "add"), "URL EVENT_TYPE"),
        (
            ("subscriptions", "add", "https://a.example/", "a", "--timeout", "5"),
            "timeout: must be a duration",
        ),
        (("subscriptions", "add", "https://a.example/", "a", "--header", "x"), "NAME=VALUE"),
        (("subscriptions", "update", "sub_1"), "nothing to change"),
        (("subscriptions", "update", "sub_1", "--timeout", "5s", "--unset", "timeout"), "both set and unset"),
        (("subscriptions", "list", "--status", "lost"), "--status"),
        (("subscriptions", "show", ".."), "can't be a name"),
        (("subscriptions", "list", "--url", "ftp://a"), "DISPATCHER_API_URL"),
        (("subscriptions", "list", "--url", "http://user:pass@a"), "DISPATCHER_API_URL"),
        (("subscriptions", "list", "--key", "ä"), "DISPATCHER_API_KEY"),
        (("subscriptions", "lst"), "lst"),
    ],
)
def test_what_is_wrong_with_a_command_is_one_line(api: Api, arguments: Sequence[str], said: str) -> None:
    one_line(api(*arguments), said, code=2)


def test_the_public_key_of_an_ed25519_secret_is_shown(api: Api) -> None:
    view = api.plane.subscriptions.add("sub_a", secrets=(SecretView("whsk_...abcd", None, "whpk_MCow"),))
    assert view.secrets[0].public_key == "whpk_MCow"
    assert "whsk_...abcd (public key whpk_MCow)" in api("subscriptions", "show", "sub_a").stdout
    assert api.json("subscriptions", "show", "sub_a")["secrets"][0]["public_key"] == "whpk_MCow"


def test_an_operator_disables_one_and_says_why(api: Api) -> None:
    api.plane.subscriptions.add("sub_a", "acme")
    disabled = api("subscriptions", "disable", "sub_a", "--reason", "floods its endpoint")
    assert disabled.stdout == "sub_a is disabled (operator: floods its endpoint)\n"
    assert "operator: floods its endpoint" in api("subscriptions", "show", "sub_a").stdout
    assert api("subscriptions", "disable", "sub_a").exit_code == 2


def test_a_test_event_is_sent_and_its_outcome_told(api: Api) -> None:
    api.plane.subscriptions.add("sub_a", "acme")
    sent = api("subscriptions", "test", "sub_a", "invoice.paid", "--data", '{"amount": 3}')
    assert sent.exit_code == 0
    assert "evt_test" in sent.stdout
    assert api.plane.subscriptions.calls[-1] == ("test", ("invoice.paid", {"amount": 3}))
    one_line(api("subscriptions", "test", "sub_a", "invoice.paid", "--data", "{"), "not JSON", code=2)
