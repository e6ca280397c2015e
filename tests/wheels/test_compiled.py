"""The compiled wheel of each Python: built, looked at, installed into an empty environment, and held to the tests of the core and of the transport.

Minutes for each, so it is asked for: `make wheels`, or DISPATCHER_TEST_WHEELS=3.12 (3.11,3.12; 1 for all). The Pythons have to be on the
path as `python3.11`, `python3.12`, ..., each with its headers, and a C compiler has to be there.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.wheels.building import ROOT, Environment, interpreter, pins, project
from tests.wheels.selection import SELECTED, project_in, pytest_arguments
from tests.wheels.test_cibuildwheel import CONFIGURATION, classified

_ASKED = os.environ.get("DISPATCHER_TEST_WHEELS", "")
_NEWEST_LIBC = (2, 28)
"""Of manylinux, as the configuration of cibuildwheel names it: what is older installs too."""

pytestmark = [
    pytest.mark.skipif(
        _ASKED in ("", "0"), reason="NOT TESTED: compiled wheels; DISPATCHER_TEST_WHEELS=1 does"
    ),
    pytest.mark.slow,
    pytest.mark.timeout(3600),
]


def asked() -> list[str]:
    known = sorted(classified(), key=lambda version: int(version[2:]))
    return known if _ASKED in ("", "0", "1") else _ASKED.split(",")


@pytest.mark.parametrize("version", asked())
def test_the_compiled_wheel_does_the_main_job_and_passes_the_tests_of_core_and_transport(
    version: str, tools: Environment, tmp_path: Path
) -> None:
    python = interpreter(version)
    if python is None:
        pytest.fail(f"there is no python{version} on the path", pytrace=False)
    built = Environment(tmp_path / "build", python).wheel(ROOT, tmp_path / "wheels", DISPATCHER_COMPILE="1")
    tag = version.replace(".", "")
    assert f"-cp{tag}-cp{tag}-linux_" in built.name
    _fits_old_systems(tools, built)
    installed = Environment(tmp_path / "installed", python)
    installed.pip("install", built)
    assert f"Python {version}." in installed.run(
        "python", ROOT / "tests" / "wheels" / "check.py", "--compiled"
    )
    _passes(installed, tmp_path)


def _fits_old_systems(tools: Environment, built: Path) -> None:
    """It would become a manylinux wheel: no newer symbol of libc, and no library beside it."""
    said = tools.run("auditwheel", "show", built)
    found = re.search(r'"manylinux_(\d+)_(\d+)_\w+"', said)
    assert found is not None, said
    assert (int(found[1]), int(found[2])) <= _NEWEST_LIBC, said
    for name, image in CONFIGURATION.items():
        if name.startswith("manylinux-"):
            assert image == "manylinux_{}_{}".format(*_NEWEST_LIBC)


def _passes(installed: Environment, folder: Path) -> None:
    """The core and the transport, against what is installed: there is no package beside these tests."""
    copy = project_in(folder)
    wanted = project()["dependency-groups"]["test"]
    installed.pip("install", "--constraint", pins(folder, "requirements-dev.txt"), *wanted)
    selected = [*SELECTED["core"], *SELECTED["transport"]]
    said = installed.run("python", *pytest_arguments(copy, selected), cwd=copy)
    print(f"{said.splitlines()[-1]} ({installed.command('python')})")
    assert " passed" in said
