"""The wheel that the container image is made of: its hot path is compiled, and it does the main job all the same."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.image.dockerfile import Built
from tests.wheels.selection import SELECTED, project_in, pytest_arguments


@pytest.fixture(scope="module")
def site(image: Built) -> Path:
    """The compiled wheel that the Dockerfile makes, unpacked."""
    folder = image.folder / "compiled"
    (built,) = (image.folder / "build" / "opt" / "wheels").glob("*.whl")
    assert "none-any" not in built.name
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    install = ["install", "--no-deps", "--no-index", "--target", str(folder / "site"), str(built)]
    subprocess.run([*pip, *install], check=True)
    return folder / "site"


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("DISPATCHER_")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=site.parent,
        env={**environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


@pytest.mark.timeout(1200)
def test_the_hot_path_is_compiled(site: Path) -> None:
    modules = (
        "dispatcher.delivery.sending",
        "dispatcher.core.endpoint.lane",
        "dispatcher.transport.connection",
    )
    program = f"import importlib\nfor name in {modules}: print(importlib.import_module(name).__file__)"
    files = run(site, "-c", program).stdout.split()
    assert len(files) == len(modules)
    for file in files:
        assert file.startswith(str(site))
        assert file.endswith(sysconfig.get_config_var("EXT_SUFFIX"))


@pytest.mark.timeout(1200)
def test_the_compiled_dispatcher_does_the_main_job(site: Path) -> None:
    """`demo` checks every signature, retry and dead letter by itself."""
    done = run(site, "-m", "dispatcher", "demo")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def project(site: Path) -> Path:
    return project_in(site.parent)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("room", SELECTED)
def test_what_is_compiled_passes_the_tests(site: Path, project: Path, room: str) -> None:
    """mypyc trusts the annotations: where one of them is wrong, what is compiled fails in ways that the other doesn't."""
    done = run(site, *pytest_arguments(project, SELECTED[room]))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
