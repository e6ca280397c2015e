"""What goes wrong before anything has begun: said once, as it was typed, without a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.console import dispatcher

ASCII = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}


@pytest.mark.parametrize("command", ["run", "check-config", "topics"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("delivery.timout=5s", "delivery.timout: there is no such setting (did you mean delivery.timeout?)"),
        (
            "timeout=5s",
            "timeout: there is no such setting (did you mean delivery.timeout or tracing.timeout?)",
        ),
        ("delivery=5s", "delivery: names a group of settings; set delivery.timeout and so on"),
        ("http.port=x", "http.port: must be a whole number, not 'x'"),
    ],
)
def test_a_mistake_in_set_is_named_as_typed_with_the_nearest_right_name(
    tmp_path: Path, command: str, given: str, said: str
) -> None:
    done = dispatcher(command, "--set", given, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, f"Error: --set: {said}\n")


def test_a_flag_is_named_by_its_own_name(tmp_path: Path) -> None:
    done = dispatcher("run", "--http-port", "99999", "--broker", "x", cwd=tmp_path)
    assert done.returncode == 2
    assert [line.partition(": ")[0] for line in done.stderr.removeprefix("Error: ").splitlines()] == [
        "--broker",
        "--http-port",
    ]
    shown = dispatcher("check-config", "--set", "group=a", "--broker", "sqlite:///x.db", cwd=tmp_path).stdout
    assert [
        line.split()[-1] for line in shown.splitlines() if line.split()[:1] in (["group"], ["broker"])
    ] == [
        "--broker",
        "--set",
    ]


def test_roles_that_the_embedded_broker_can_not_split_are_refused_with_what_to_do(tmp_path: Path) -> None:
    done = dispatcher("run", "--roles", "deliver", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "Error: --roles: roles: must be all of deliver, api, history with the embedded broker"
    )
    assert not list(tmp_path.iterdir()), "nothing was begun"


# What can't be right and what isn't there, each found by another part of the daemon.
FAILED_STARTS = {
    "the broker's path": ("--broker", "sqlite:////dev/null/log.db"),
    "the subscriptions file": ("--subscriptions", "nowhere.yaml"),
    "the address": ("--http-host", "203.0.113.1", "--set", "api.keys=abcdefghijklmnopqrst"),
    "the broker's certificates": (
        *("--broker", "kafka://127.0.0.1:1", "--set", "kafka.security_protocol=ssl"),
        *("--set", "kafka.tls_ca_file=nowhere.pem"),
    ),
    "the deliveries' certificates": ("--set", "network.ca_file=nowhere.pem"),
}


@pytest.mark.parametrize("what", FAILED_STARTS)
def test_a_failed_start_says_its_reason_once_and_shows_no_traceback(tmp_path: Path, what: str) -> None:
    done = dispatcher("run", *FAILED_STARTS[what], "--set", "log.format=console", cwd=tmp_path)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count(errors[0].removeprefix("Error: ")) == 1


@pytest.mark.parametrize("what", FAILED_STARTS)
def test_where_machines_read_the_log_the_reason_is_one_of_its_lines(tmp_path: Path, what: str) -> None:
    done = dispatcher("run", *FAILED_STARTS[what], "--set", "log.format=json", cwd=tmp_path)
    assert done.returncode == 2
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["message"] for line in lines if line["level"] in ("error", "critical")] == ["can't go on"]
    assert not any("exception" in line for line in lines)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("demo", "--help"),
        ("check-config",),
        ("topics", "--create"),
        ("publish", "invoice.paid", "--id", "évt", "--tenant", "Zürich", "--data", '{"name": "Ünal"}'),
        ("subscriptions", "list"),
        ("event-types", "list"),
        ("keys", "list"),
        ("publish", b"\xff"),
        ("publish", "a.b", "--tenant", b"\xff", "--header", b"x=\xff"),
        ("topics", "--set", b"\xff=1"),
        ("subscriptions", "show", b"\xff"),
        ("check-config", "--set", "group=\N{SNOWMAN}"),
        ("listen", "--secret", b"whsec_\xff"),
        ("listen", "--host", b"\xff"),
        ("nothing \N{SNOWMAN}",),
    ],
    ids=ascii,
)
def test_no_command_ends_in_a_traceback_where_nothing_but_ascii_is_shown(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = dispatcher(*arguments, cwd=tmp_path, **ASCII)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in (0, 1, 2)
    assert done.stdout.isascii()
    assert done.stderr.isascii()


def test_what_others_wrote_is_shown_escaped_and_json_stays_json(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from dispatcher.cli import main\n"
        "from dispatcher.commands.client import print_json\n"
        "from dispatcher.commands.tables import print_fields\n"
        "@main.command('show')\n"
        "def show():\n"
        "    print_fields({'name': 'Z\\xfcrich \\N{SNOWMAN}'})\n"
        "    print_json({'name': 'Z\\xfcrich'})\n"
        "main(['show'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=ASCII, capture_output=True, check=True
    )
    table, _, document = done.stdout.partition(b"\n")
    assert b"Z\\xfcrich \\u2603" in table
    assert json.loads(document) == {"name": "Zürich"}
