"""Chromium, driven by Playwright, and what it complains about."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

WEB: Final = Path(__file__).parent.parent.parent / "web"
AXE: Final = WEB / "node_modules" / "axe-core" / "axe.min.js"
"""It comes with what builds the pages. Where no Node is, the pages are looked at without it."""

# Debian's package. Headless, as root, with little shared memory, and calling nobody of its own accord.
_FLAGS: Final = (
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
)


def chromium() -> str | None:
    """Where the browser is."""
    return shutil.which("chromium")


IN_CHROMIUM: Final = [
    pytest.mark.skipif(chromium() is None, reason="needs Chromium"),
    pytest.mark.slow,
    pytest.mark.timeout(300),
]
"""Of a module whose tests open pages."""


@contextmanager
def browser() -> Iterator[Browser]:
    path = chromium()
    assert path is not None
    expect.set_options(
        timeout=20_000
    )  # as everything else waits: what a page asks for every five seconds comes later than that
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=list(_FLAGS))
        try:
            yield opened
        finally:
            opened.close()


class Watch:
    """What a page's browser complains about, and whom it asks."""

    def __init__(self, page: Page, allowed: str) -> None:
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self._host = urlsplit(allowed).netloc
        # An answer that is an error is for the page to show; the console repeats it.
        page.on("console", lambda message: self._said(message.type, message.text))
        page.on(
            "pageerror", lambda error: self.complaints.append(f"{error.name}: {error.message}\n{error.stack}")
        )
        page.on("request", lambda request: self._asked(request.url))

    def _said(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and "the server responded with a status of" not in text:
            self.complaints.append(f"{kind}: {text}")

    def _asked(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.netloc != self._host:
            self.foreign.append(url)

    def check(self) -> None:
        assert self.complaints == []
        assert self.foreign == []


@contextmanager
def opened(
    window: Browser,
    url: str,
    *,
    width: int = 1280,
    theme: str = "light",
    language: str = "en",
    zone: str = "Europe/Berlin",
) -> Iterator[tuple[Page, Watch]]:
    """A page of its own, and what it complains about."""
    context: BrowserContext = window.new_context(
        viewport={"width": width, "height": 900 if width > 600 else 800},
        color_scheme="dark" if theme == "dark" else "light",
        locale=language,
        timezone_id=zone,
        reduced_motion="reduce",
    )
    context.set_default_timeout(20_000)
    page = context.new_page()
    watch = Watch(page, url)
    try:
        page.goto(url)
        yield page, watch
    finally:
        context.close()


def settled(page: Page) -> None:
    """Wait until no panel loads any more."""
    page.wait_for_function(
        "() => document.querySelector('main, .gate') !== null"
        " && document.querySelector('[aria-busy=true], .skeleton') === null && !document.querySelector('#app > .skeleton')"
    )


def keep(page: Page, name: str) -> None:
    """A screenshot, for somebody to look at."""
    if folder := os.environ.get("DISPATCHER_TEST_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def axe(page: Page) -> list[dict[str, Any]]:
    """What axe finds serious or worse."""
    page.evaluate(AXE.read_text())
    found = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    return [
        {
            "rule": each["id"],
            "impact": each["impact"],
            "nodes": [node["html"][:200] for node in each["nodes"][:5]],
        }
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]
