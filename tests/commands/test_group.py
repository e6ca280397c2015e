from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from dispatcher.cli import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pubish"], "No such command 'pubish'"),
        (["--nonsense"], "No such option '--nonsense'"),
        (["publish"], "Missing argument 'TYPE' (see dispatcher publish --help)"),
        (["listen", "--port", "x"], "Invalid value for '--port'"),
    ],
)
def test_a_broken_command_line_is_one_line_that_says_where_to_look(arguments: list[str], said: str) -> None:
    ended = CliRunner().invoke(main, arguments, prog_name="dispatcher")
    assert ended.exit_code == 2
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert "--help)" in ended.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["publish", "--help"], []])
def test_help_is_whole(arguments: list[str]) -> None:
    ended = CliRunner().invoke(main, arguments, prog_name="dispatcher")
    assert "Usage: dispatcher" in ended.output
    assert "Error" not in ended.output
    assert len(ended.output.splitlines()) > 5


@pytest.mark.parametrize(
    "command", ["failing", "cluster", "events", "deliveries", "subscriptions", "replays"]
)
def test_a_command_that_asks_the_api_imports_no_broker_and_no_server(command: str) -> None:
    """Somebody waits for it at 3 a.m.: the whole program takes seconds of a busy machine to be imported."""
    program = (
        "import sys\n"
        "from dispatcher.cli import main\n"
        f"main.commands[{command!r}]\n"
        "heavy = {'aiokafka', 'dispatcher.app', 'dispatcher.api', 'dispatcher.broker'}\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_every_command_is_where_the_table_says() -> None:
    assert {name: command.name for name, command in main.commands.items()} == {
        name: name for name in main.commands
    }
