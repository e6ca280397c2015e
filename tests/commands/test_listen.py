from __future__ import annotations

import base64
import json
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from standardwebhooks import Webhook

from dispatcher.commands.listen import line, printable, snippet
from dispatcher.commands.receiver import Arrival, ReceiverAnswer, SignatureVerdict
from tests.commands import console

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
Listening = Callable[..., tuple["subprocess.Popen[str]", str]]


def post(url: str, secret: str, event_id: str) -> int:
    now = datetime.now(UTC)
    headers = {
        "webhook-id": event_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(event_id, now, "{}"),
    }
    request = urllib.request.Request(url, b"{}", headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Listening]:
    """Starts `dispatcher listen` with options; gives its process and URL once it listens."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> tuple[subprocess.Popen[str], str]:
        process = console.start("listen", "--port", "0", *options, cwd=tmp_path)
        started.append(process)
        return process, read(process).removeprefix("Listening on ").strip()

    yield start
    for process in started:
        process.kill()
        process.communicate()


def read(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_each_request_is_one_line_with_its_verdict(listening: Listening) -> None:
    process, url = listening("--secret", SECRET)
    post(url, SECRET, "evt_1")
    post(url, SECRET, "evt_1")
    post(url, "whsec_" + "B" * 44, "evt_2")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert [row.split()[1:4] for row in out.splitlines()] == [
        ["200", "valid", "evt_1"],
        ["200", "valid", "evt_1"],
        ["200", "wrong", "evt_2"],
    ]
    assert ["try 2" in row for row in out.splitlines()] == [False, True, False]
    assert (process.returncode, err) == (0, "")


def test_the_secret_it_makes_and_the_subscription_it_prints_fit_each_other(listening: Listening) -> None:
    process, url = listening()
    printed = ""
    while "https_only" not in printed:
        printed += read(process)
    found = re.search(r"^subscriptions:.*?^$", printed, re.MULTILINE | re.DOTALL)
    assert found is not None
    document = yaml.safe_load(found[0])
    assert document["subscriptions"][0]["url"] == url
    post(url, document["subscriptions"][0]["secrets"][0], "evt_9")
    read(process)
    assert "  valid    evt_9" in read(process)


def test_it_answers_with_the_status_it_was_given(listening: Listening) -> None:
    _, url = listening("--status", "503")
    assert post(url, SECRET, "evt_1") == 503


def test_a_fail_rate_of_one_fails_everything(listening: Listening) -> None:
    _, url = listening("--fail-rate", "1")
    assert post(url, SECRET, "evt_1") == 500


def test_a_taken_port_is_one_line_and_exit_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = console.dispatcher("listen", "--port", str(port), cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr == f"Error: port {port} is taken: choose another with --port\n"


@pytest.mark.parametrize(
    ("options", "word"), [(["--secret", "nonsense!"], "base64"), (["--port", "70000"], "70000"), (["x"], "x")]
)
def test_a_wrong_command_line_exits_2_and_says_why(tmp_path: Path, options: list[str], word: str) -> None:
    ended = console.dispatcher("listen", *options, cwd=tmp_path)
    assert ended.returncode == 2
    assert word in ended.stderr
    assert len(ended.stderr.splitlines()) == 1, ended.stderr


def test_the_page_of_what_came_is_served_on_this_machine_and_told(listening: Listening) -> None:
    process, url = listening("--secret", SECRET, "--inspect", "--inspect-port", "0")
    page = read(process).removeprefix("Inspect at ").strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+/inspect/", page)
    post(url, SECRET, "evt_1")
    with urllib.request.urlopen(page.replace("/inspect/", "/v1/deliveries"), timeout=30) as answer:
        (row,) = json.load(answer)["deliveries"]
    assert (row["event_id"], row["received"]["signature"]["verdict"]) == ("evt_1", "valid")


def test_a_sender_that_leaves_before_its_answer_is_told_on_the_page(listening: Listening) -> None:
    process, url = listening("--secret", SECRET, "--inspect", "--inspect-port", "0", "--delay", "3600")
    page = read(process).removeprefix("Inspect at ").strip().replace("/inspect/", "/v1/deliveries")
    with pytest.raises(TimeoutError):
        urllib.request.urlopen(urllib.request.Request(url, b"{}"), timeout=3)
    end = time.monotonic() + 60
    while True:
        with urllib.request.urlopen(page, timeout=30) as answer:
            rows = json.load(answer)["deliveries"]
        if [row["received"]["answer"] for row in rows] == ["left"]:
            break
        assert time.monotonic() < end, rows
        time.sleep(0.05)


def test_a_taken_port_of_the_page_names_its_option(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = console.dispatcher(
            "listen", "--port", "0", "--inspect", "--inspect-port", str(port), cwd=tmp_path
        )
    assert ended.returncode == 1
    assert ended.stderr == f"Error: port {port} is taken: choose another with --inspect-port\n"


def arrival(**changes: Any) -> Arrival:
    fields: dict[str, Any] = {
        "id": "evt_1",
        "number": 1,
        "verdict": SignatureVerdict.VALID,
        "answer": ReceiverAnswer(),
        "at": 0.0,
    }
    return Arrival(**{**fields, "headers": {}, "body": b"{}", **changes})


def test_a_line_tells_the_events_type_which_the_body_may_not_have() -> None:
    headers = {"webhook-event-type": "invoice.paid\x1b[31m"}
    shown = line(arrival(body=b'{"amount": 42}', headers=headers)).plain
    assert "  invoice.paid\N{REPLACEMENT CHARACTER}[31m  " in shown
    assert shown.endswith('{"amount": 42}')


def test_a_body_over_several_lines_stays_one_line() -> None:
    assert line(arrival(body=b'{\n  "a": 1\n}\r\n')).plain.endswith('14 B  { "a": 1 }')


@pytest.mark.parametrize("text", ["\x1b[2J", "\x9b31m", "a\rb", "\u202eb", "\x00"])
def test_what_arrives_can_not_steer_the_terminal(text: str) -> None:
    shown = line(arrival(id=text, body=text.encode())).plain
    assert shown.isprintable()
    assert printable(text).isprintable()


def test_a_request_without_an_id_is_shown_as_such() -> None:
    assert "(no id)" in line(arrival(id="", number=7, verdict=SignatureVerdict.MISSING)).plain


def test_the_printed_subscription_is_yaml() -> None:
    document = yaml.safe_load(
        snippet("http://127.0.0.1:9000/", SECRET).split("The dispatcher calls")[0].split(":\n", 1)[1]
    )
    assert document["subscriptions"][0]["secrets"] == [SECRET]
