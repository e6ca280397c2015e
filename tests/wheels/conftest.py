from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.wheels.building import ROOT, Environment, interpreter, sdist


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment of this Python without any package, to build in: pip fetches what a build asks for."""
    python = interpreter("{}.{}".format(*sys.version_info))
    assert python is not None
    return Environment(tmp_path_factory.mktemp("clean") / "venv", python)


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """auditwheel and cibuildwheel."""
    python = interpreter("{}.{}".format(*sys.version_info))
    assert python is not None
    made = Environment(tmp_path_factory.mktemp("tools") / "venv", python)
    made.pip("install", "--require-hashes", "-r", ROOT / "tests" / "wheels" / "requirements.txt")
    return made


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution."""
    return sdist(tmp_path_factory.mktemp("sdist"))
