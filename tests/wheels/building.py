"""Builds the project's distributions and installs them, each step in a virtual environment that has nothing else.

Rules:

1. A step sees this machine's way to the package index and nothing else of pip's or Python's settings, and no setting of the dispatcher.
2. Where no compiler may be needed, `CC` and `CXX` are `false`: a package without a wheel for this platform fails there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
NO_COMPILER: Final = {"CC": "false", "CXX": "false"}
_HIDDEN: Final = re.compile(r"DISPATCHER_\w+|PYTHON\w+|PIP_(?:CONSTRAINT|TARGET|PREFIX|USER)")
_MARKED: Final = re.compile(r"^([A-Za-z0-9._-]+==[^\\\n]+?)\s*\\?$", re.MULTILINE)


class Failed(AssertionError):
    """A step ended with an error; the message has what it said."""


def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def run(*command: str | Path, cwd: Path | None = None, environ: Mapping[str, str] | None = None) -> str:
    """What it says. Raises Failed."""
    kept = {name: value for name, value in os.environ.items() if not _HIDDEN.fullmatch(name)}
    ran = subprocess.run(
        list(map(str, command)),
        cwd=cwd or ROOT,
        env={**kept, **(environ or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise Failed(f"{' '.join(map(str, command))}: {ran.returncode}\n{ran.stdout[-8000:]}")
    return ran.stdout


def interpreter(version: str) -> Path | None:
    """A Python of this minor version, on the path; the one that runs this where it fits."""
    if version == "{}.{}".format(*sys.version_info):
        return Path(sys._base_executable)  # type: ignore[attr-defined] # says what venv itself asks for
    for folder in os.get_exec_path():
        found = shutil.which(f"python{version}", path=folder)
        if found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            return Path(found)  # a shim of a version manager may lead nowhere
    return None


class Environment:
    """A virtual environment with pip and nothing else."""

    def __init__(self, folder: Path, python: Path) -> None:
        run(python, "-m", "venv", folder)
        self._folder = folder

    def command(self, name: str) -> Path:
        return self._folder / "bin" / name

    def pip(self, *arguments: str | Path, environ: Mapping[str, str] | None = None) -> None:
        pip = (self.command("python"), "-m", "pip", "--quiet", "--disable-pip-version-check")
        run(*pip, *arguments, environ=environ)

    def run(self, name: str, *arguments: str | Path, cwd: Path | None = None) -> str:
        """One of its commands; what it says. Raises Failed."""
        return run(self.command(name), *arguments, cwd=cwd)

    def wheel(self, source: Path, folder: Path, **environ: str) -> Path:
        """The wheel of a source tree or a source distribution, put into an empty folder."""
        self.pip("wheel", "--no-deps", "--wheel-dir", folder, source, environ=environ)
        (built,) = folder.glob("*.whl")
        return built


def sdist(folder: Path) -> Path:
    """The source distribution of the checkout."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder)
    (built,) = folder.glob("*.tar.gz")
    return built


def pins(folder: Path, *files: str) -> Path:
    """The versions that these requirement files pin, as a file of constraints. Without hashes: what is built here has none."""
    path = folder / "constraints.txt"
    lines = [line for name in files for line in _MARKED.findall((ROOT / name).read_text())]
    path.write_text("\n".join(dict.fromkeys(lines)) + "\n")
    return path
