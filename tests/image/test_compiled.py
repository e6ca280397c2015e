"""The wheel that the container image is made of: its hot path is compiled, and it does the main job all the same."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.image.dockerfile import Built

ROOT = Path(__file__).parents[2]


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
        timeout=300,
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


@pytest.mark.timeout(1200)
def test_the_compiled_connection_withstands_the_zoo(site: Path) -> None:
    """mypyc trusts the annotations: where one of them is wrong, the compiled connection fails in ways that the other doesn't."""
    folder = site.parent / "project"
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__", "target"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    files = ("test_client.py", "test_zoo.py", "test_tls.py", "test_proxy.py", "test_connection.py")
    replaced = "not_parsed_again"  # puts a function into the place of a method: that can't be seen from C
    done = run(
        site,
        *(
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(folder),
            "-k",
            f"not {replaced}",
        ),
        *(str(folder / "tests" / "transport" / file) for file in files),
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
