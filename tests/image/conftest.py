"""The image as its Dockerfile's steps make it, once for all tests.

That takes minutes of one core, so it begins when the tests are collected, beside those that come before, and with the lowest priority.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest

from tests.image.dockerfile import Built

ROOT = Path(__file__).parents[2]


class _Making:
    """The process that makes the image, and what it writes."""

    def __init__(self) -> None:
        # Not below pytest's own directory, into which another user can't look.
        self.folder = Path(tempfile.mkdtemp(prefix="dispatcher-image-"))
        self.folder.chmod(0o755)
        self._said = self.folder / "said"
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                ["nice", "-n", "19", sys.executable, "-m", "tests.image.make", ROOT, self.folder],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def made(self) -> Built:
        """Wait for it."""
        if self._process.wait():
            pytest.fail(self._said.read_text()[-8000:], pytrace=False)
        built: Built = pickle.loads((self.folder / "built").read_bytes())
        return built

    def end(self) -> None:
        """Also where nobody has waited for it."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self.folder)


_making = pytest.StashKey[_Making]()


def _missing() -> str | None:
    if shutil.which("gcc") is None:
        return "a C compiler (Debian: gcc libc6-dev)"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python.h (Debian: python3-dev)"
    return None


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin, if any test is going to ask for it."""
    if session.config.option.collectonly or _missing() is not None:
        return
    if any("image" in getattr(item, "fixturenames", ()) for item in session.items):
        making = session.config.stash[_making] = _Making()
        session.config.add_cleanup(making.end)


@pytest.fixture(scope="session")
def image(request: pytest.FixtureRequest) -> Built:
    """Fetches what is pinned and compiles the hot path: minutes. Skipped where there is no compiler."""
    if (missing := _missing()) is not None:
        pytest.skip(f"NOT TESTED: the container image and its compiled wheel; {missing} is missing")
    return request.config.stash[_making].made()
