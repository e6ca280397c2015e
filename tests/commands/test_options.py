"""How the options that the commands share become settings: flags before `--set`, both before the environment and the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from dispatcher.commands.options import flags, load_settings, settings_options
from dispatcher.settings.load import Flag


@click.command()
@settings_options
def shown(config: Path | None, overrides: dict[str, Any]) -> None:
    settings = load_settings(config, overrides)
    click.echo(f"{settings.group} {settings.log.level} {settings.broker}")


def run(*arguments: str, **environment: str) -> Any:
    clean = {name: None for name in os.environ if name.startswith("DISPATCHER_")}
    return CliRunner().invoke(shown, arguments, env={**clean, **environment})


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_flag_goes_before_set_that_before_the_environment_and_that_before_the_file() -> None:
    Path("d.yaml").write_text("group: file\nlog: {level: error}\n")
    environment = {"DISPATCHER_CONFIG": "d.yaml"}
    assert run(**environment).output.startswith("file error ")
    environment["DISPATCHER_GROUP"] = "environment"
    assert run(**environment).output.startswith("environment error ")
    assert run("--set", "group=set", **environment).output.startswith("set error ")
    assert run("--set", "group=set", "--group", "flag", **environment).output.startswith("flag error ")


def test_the_file_of_the_checkout_is_read_where_it_is_there_and_none_is_named() -> None:
    assert run().output.startswith("dispatcher info ")
    Path("config").mkdir()
    Path("config/dispatcher.yaml").write_text("group: found\n")
    assert run().output.startswith("found info ")


@pytest.mark.parametrize("given", ["group", "=x", ""])
def test_a_set_without_name_or_value_is_a_wrong_command_line(given: str) -> None:
    ended = run("--set", given)
    assert ended.exit_code == 2
    assert "is not KEY=VALUE" in ended.output


def test_a_set_that_is_refused_is_not_quoted_where_it_may_hold_a_secret() -> None:
    ended = run("--set", "api.keys=hunter2")
    assert ended.exit_code == 2
    assert "hunter2" not in ended.output


def test_only_flags_that_were_given_are_settings_and_each_is_named_as_it_was_typed() -> None:
    made = flags(http__host=("--http-host", None), http__port=("--http-port", 0))
    assert made == {"http.port": Flag("--http-port", 0)}
