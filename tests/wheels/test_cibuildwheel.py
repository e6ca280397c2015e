"""The wheels for publishing are cibuildwheel's work, in containers that can't be had everywhere. What is told to it agrees with the project."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.wheels.building import ROOT, Environment, Failed, project, run
from tests.wheels.check import compiled_modules

CONFIGURED_ONLY = {"3.14"}
"""Pythons that nothing here has run on yet: no classifier names them."""

CONFIGURATION = project()["tool"]["cibuildwheel"]


def classified() -> set[str]:
    found = (
        re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", each)
        for each in project()["project"]["classifiers"]
    )
    return {each[1] for each in found if each is not None}


def test_each_python_of_the_classifiers_gets_a_wheel() -> None:
    selected = [re.fullmatch(r"cp3(\d+)-\*", each) for each in CONFIGURATION["build"]]
    assert {f"3.{each[1]}" for each in selected if each is not None} == classified() | CONFIGURED_ONLY
    assert None not in selected
    oldest = min(classified(), key=lambda version: int(version[2:]))
    assert project()["project"]["requires-python"] == f">={oldest}"


def test_its_wheels_are_compiled_and_checked_by_our_own_check() -> None:
    assert CONFIGURATION["environment"] == {"DISPATCHER_COMPILE": "1"}
    python, script, *options = shlex.split(CONFIGURATION["test-command"])
    assert (python, options) == ("python", ["--compiled"])
    check = script.replace("{project}", str(ROOT))
    assert "--compiled" in run(sys.executable, check, "--help")
    assert len(compiled_modules()) > 40


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_cibuildwheel_itself_takes_it_and_would_build_these(tools: Environment, tmp_path: Path) -> None:
    """Asked what it would build it needs no container engine, and an option that it doesn't know is an error."""
    ask = ("--print-build-identifiers", "--platform", "linux", "--archs", "x86_64")
    would = tools.run("cibuildwheel", *ask, ROOT).split()
    tags = {each.replace(".", "") for each in classified() | CONFIGURED_ONLY}
    assert would == [f"cp{each}-manylinux_x86_64" for each in sorted(tags)]
    text = (ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(text.replace("\ntest-command", "\ntest-comand"))
    with pytest.raises(Failed, match="test-comand"):
        tools.run("cibuildwheel", *ask, tmp_path)
