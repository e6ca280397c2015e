"""The commands that call the API, against a server with the control plane in memory."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from aiohttp import web
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from dispatcher.cli import main
from dispatcher.control.errors import Unavailable
from dispatcher.control.subscriptions import PingResult, SecretView
from tests.api.fakes import Plane
from tests.api.serving import KEY, serving


class Api:
    """A server in a thread of its own, as a command has its own loop."""

    def __init__(self, *keys: str) -> None:
        self._keys = keys
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._done = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.url = ""
        self.plane: Plane

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(60)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        async with serving(*self._keys) as (client, plane):
            self.url, self.plane = client.base, plane
            self._ready.set()
            await self._done.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join(60)

    def __call__(self, *arguments: str, stdin: str | None = None, **variables: str | None) -> Result:
        environ = {"DISPATCHER_API_URL": self.url, "DISPATCHER_API_KEY": KEY, "COLUMNS": "200", **variables}
        return CliRunner().invoke(main, arguments, prog_name="dispatcher", input=stdin, env=environ)

    def json(self, *arguments: str) -> Any:
        ended = self(*arguments, "--json")
        assert ended.exit_code == 0, ended.output
        return json.loads(ended.stdout)


@pytest.fixture
def api() -> Iterator[Api]:
    made = Api(KEY)
    with capture_logs():  # of the server, which shares the process and so the output
        made.start()
        yield made
        made.stop()


def one_line(ended: Result, *said: str, code: int = 1) -> None:
    """An error is one line that says what to do."""
    assert ended.exit_code == code, ended.output
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert ended.stderr.startswith("Error: ")
    for part in said:
        assert part in ended.stderr


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


def test_an_empty_list_is_no_silence(api: Api) -> None:
    for command in ("subscriptions", "event-types", "keys"):
        ended = api(command, "list")
        assert (ended.exit_code, ended.stdout, ended.stderr) == (0, "", "there are none\n")
        assert api.json(command, "list") == []


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


def test_a_long_reason_leaves_room_for_the_other_columns(api: Api) -> None:
    reason = "not validated: " + "the endpoint said so " * 20
    api.plane.subscriptions.add("sub_1", status="pending", reason=reason)
    listed = api("subscriptions", "list").stdout
    assert "pending (not validated" in listed
    assert reason not in listed
    assert "https://" in listed
    assert "the endpoint said so the endpoint" in api("subscriptions", "show", "sub_1").stdout


def test_keys_are_made_listed_and_revoked(api: Api) -> None:
    made = api("keys", "create", "acme's back end", "--tenant", "acme")
    secret = made.stdout.strip()
    assert secret.startswith("dk_")
    assert "shown in full only now" in made.stderr
    listed = api("keys", "list").stdout
    assert "acme's back end" in listed
    assert secret not in listed
    assert api("subscriptions", "list", DISPATCHER_API_KEY=f"{secret}\n").exit_code == 0
    one_line(api("keys", "list", DISPATCHER_API_KEY=secret), "operator's key")
    [key] = api.json("keys", "list")
    assert api("keys", "revoke", key["id"]).stdout == f"{key['id']} is revoked\n"
    one_line(api("subscriptions", "list", DISPATCHER_API_KEY=secret), "not valid", "DISPATCHER_API_KEY")
    for wrong in ((), ("--operator", "--tenant", "a")):
        one_line(api("keys", "create", "a", *wrong), "--operator, or --tenant", code=2)


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


def test_where_no_api_is_one_line_says_so(api: Api) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = f"http://127.0.0.1:{probe.getsockname()[1]}"
    one_line(api("subscriptions", "list", DISPATCHER_API_URL=free), free, "--url or DISPATCHER_API_URL")
    one_line(api("subscriptions", "list", DISPATCHER_API_KEY=None), "wants a key", "DISPATCHER_API_KEY")
    api.plane.subscriptions.failure = Unavailable("the broker is away: connection refused")
    one_line(api("subscriptions", "add", "https://a.example/", "a"), "the broker is away")


def test_a_key_follows_no_redirect_and_another_server_is_recognized() -> None:
    asked: list[str | None] = []

    async def elsewhere(request: web.Request) -> web.Response:
        asked.append(request.headers.get("Authorization"))
        raise web.HTTPFound("/v1/elsewhere")

    ready, loop = threading.Event(), asyncio.new_event_loop()
    stop: asyncio.Event = asyncio.Event()
    port = 0

    async def serve() -> None:
        nonlocal port
        app = web.Application()
        app.router.add_get("/{path:.*}", elsewhere)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(60)
    url = f"http://127.0.0.1:{port}"
    ended = CliRunner().invoke(main, ["keys", "list", "--url", url, "--key", "hush"], prog_name="dispatcher")
    loop.call_soon_threadsafe(stop.set)
    thread.join(60)
    loop.close()
    one_line(ended, "answered 302", "no API of a dispatcher")
    assert asked == ["Bearer hush"]


def test_every_command_of_the_api_has_help_and_takes_json() -> None:
    for name in ("subscriptions", "event-types", "keys"):
        group = main.commands[name]
        assert isinstance(group, click.Group)
        for command in group.commands.values():
            assert command.help
            options = {option for parameter in command.params for option in parameter.opts}
            assert {"--url", "--key", "--json"} <= options


def test_the_public_key_of_an_ed25519_secret_is_shown(api: Api) -> None:
    view = api.plane.subscriptions.add("sub_a", secrets=(SecretView("whsk_...abcd", None, "whpk_MCow"),))
    assert view.secrets[0].public_key == "whpk_MCow"
    assert "whsk_...abcd (public key whpk_MCow)" in api("subscriptions", "show", "sub_a").stdout
    assert api.json("subscriptions", "show", "sub_a")["secrets"][0]["public_key"] == "whpk_MCow"
