"""The source distribution: whoever has no wheel for their machine installs it, and needs no compiler for that."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.wheels.building import NO_COMPILER, ROOT, Environment, interpreter, pins, project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def built(source: Path, clean: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that it becomes without a compiler."""
    return clean.wheel(source, tmp_path_factory.mktemp("built"), **NO_COMPILER)


def test_without_a_compiler_it_becomes_a_wheel_that_runs_the_demo(built: Path, tmp_path: Path) -> None:
    """In an empty environment, with no package but those that the wheel asks for."""
    assert built.name.endswith("-py3-none-any.whl")
    python = interpreter("{}.{}".format(*sys.version_info))
    assert python is not None
    installed = Environment(tmp_path / "venv", python)
    constraints = pins(tmp_path, "requirements.txt")
    installed.pip("install", "--constraint", constraints, built, environ=NO_COMPILER)
    assert "ok: " in installed.run("python", ROOT / "tests" / "wheels" / "check.py", "--pure")


def test_its_wheel_has_what_the_checkouts_has(
    built: Path, clean: Environment, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A file that is missing in the source distribution would be missing at whoever installs it."""
    direct = clean.wheel(ROOT, tmp_path_factory.mktemp("direct"), **NO_COMPILER)
    assert _contents(built) == _contents(direct)


def _contents(wheel: Path) -> dict[str, int]:
    with zipfile.ZipFile(wheel) as opened:
        return {
            each.filename: each.CRC for each in opened.infolist() if not each.filename.endswith("/RECORD")
        }


def test_it_has_the_licence_the_changes_and_the_example_settings(source: Path) -> None:
    with tarfile.open(source) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {"LICENSE", "CHANGELOG.md", "README.md", "config/dispatcher.yaml", "hatch_build.py"} <= names
    assert "PKG-INFO" in names
    assert not [name for name in names if name.endswith((".pyc", ".so")) or "node_modules" in name]
    assert project()["project"]["license-files"] == ["LICENSE"]
