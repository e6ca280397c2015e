"""The afternoon of docs/afternoon.md: its page shows what the script runs; and the whole of it, with DISPATCHER_TEST_LONG=1."""

from __future__ import annotations

import os
import re

import pytest

from tests import afternoon
from tests.transcript import run_in

PAGE = afternoon.PAGE


def test_the_page_shows_the_steps_of_the_script() -> None:
    """A step that is changed is played anew: `make afternoon ARGS="--write docs/afternoon.md"`."""
    page = PAGE.read_text()
    assert run_in(page) == [step.command for part in afternoon.PARTS for step in part.steps]
    headings = [part.heading for part in afternoon.PARTS if part.heading]
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == headings


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif("DISPATCHER_TEST_LONG" not in os.environ, reason="takes minutes: DISPATCHER_TEST_LONG=1")
async def test_everything_is_as_the_page_says() -> None:
    assert await afternoon.afternoon("HEAD~1")
