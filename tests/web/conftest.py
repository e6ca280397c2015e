from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.web.browser import AXE, WEB, browser
from tests.web.test_build import node


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    """Of each module its own: as long as Playwright runs, no test with a loop can."""
    with browser() as window:
        yield window


@pytest.fixture(scope="session")
def packages() -> None:
    """What builds the pages, and axe with it."""
    if not AXE.exists() and node():
        subprocess.run(["npm", "ci", "--no-progress"], cwd=WEB, check=True, capture_output=True, timeout=170)
