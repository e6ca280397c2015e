"""The site of the documentation is made without a warning, has every command and route, and asks no other host for anything."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from dispatcher.cli import main

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warning, such as of a link that leads nowhere, fails the build."""
    folder = tmp_path_factory.mktemp("site")
    ran = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "site" / "build.py"), str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert ran.returncode == 0, ran.stderr
    return folder


def text_of(page: Path) -> str:
    return re.sub(r"<[^>]+>", "", page.read_text())


def test_every_command_is_there(site: Path) -> None:
    commands = text_of(site / "commands.html")
    for name, command in main.commands.items():
        assert command.hidden or f"dispatcher {name}" in commands


def test_every_route_is_there(site: Path) -> None:
    routes = text_of(site / "routes.html")
    for path, methods in orjson.loads((ROOT / "docs" / "openapi.json").read_bytes())["paths"].items():
        for method in {"get", "post", "put", "patch", "delete"}.intersection(methods):
            assert f"{method.upper()} {path}" in routes


def test_it_can_be_searched_and_read_offline(site: Path) -> None:
    assert "kill -9" in text_of(site / "architecture.html")
    assert (site / "searchindex.js").stat().st_size > 10_000
    for page in site.glob("**/*.html"):
        fetched = re.findall(
            r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["'](https?:[^"']*)""", page.read_text()
        )
        assert fetched == [], page.name
