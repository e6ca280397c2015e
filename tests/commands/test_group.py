from __future__ import annotations

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
