from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.web.browser import browser


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    """Of each module its own: as long as Playwright runs, no test with a loop can."""
    with browser() as window:
        yield window
