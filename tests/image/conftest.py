"""The image as its Dockerfile's steps make it, once for all tests."""

from __future__ import annotations

import shutil
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.dockerfile import Build, Built

ROOT = Path(__file__).parents[2]


def _missing() -> str | None:
    if shutil.which("gcc") is None:
        return "a C compiler (Debian: gcc libc6-dev)"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python.h (Debian: python3-dev)"
    return None


@pytest.fixture(scope="session")
def image() -> Iterator[Built]:
    """Fetches what is pinned and compiles the hot path: minutes. Skipped where there is no compiler."""
    if (missing := _missing()) is not None:
        pytest.skip(f"NOT TESTED: the container image and its compiled wheel; {missing} is missing")
    # Not below pytest's own directory, into which another user can't look.
    folder = Path(tempfile.mkdtemp(prefix="dispatcher-image-"))
    folder.chmod(0o755)
    try:
        yield Build(ROOT, folder).run()
    finally:
        shutil.rmtree(folder)
