"""`dispatcher listen --inspect` in a real browser: what a local receiver got, for people who write receivers."""

from __future__ import annotations

import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, expect
from standardwebhooks import Webhook

from tests.commands import console
from tests.web.browser import AXE, IN_CHROMIUM, axe, keep, opened, settled
from tests.web.stage import MARKUP

SECRET = "whsec_" + "QUJDRA" * 6
OTHER = "whsec_" + "RERERE" * 6
pytestmark = [*IN_CHROMIUM, pytest.mark.usefixtures("packages")]


class Listening(NamedTuple):
    """A receiver, its page, and where its lines go."""

    url: str
    page: str
    output: Path


@pytest.fixture(scope="module")
def listening(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listening]:
    folder = tmp_path_factory.mktemp("listen")
    output = folder / "lines"
    with output.open("wb") as lines:
        process = subprocess.Popen(
            [
                console.COMMAND,
                "listen",
                "--port",
                "0",
                "--inspect",
                "--inspect-port",
                "0",
                "--secret",
                SECRET,
            ],
            cwd=folder,
            env=console.environment({}),
            stdout=subprocess.PIPE,
            stderr=lines,
            text=True,
        )
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("Listening on ").strip()
        page = process.stdout.readline().removeprefix("Inspect at ").strip()
        try:
            yield Listening(url, page, output)
        finally:
            console.end(process)
            process.stdout.close()


def send(
    url: str,
    event_id: str,
    body: bytes,
    *,
    secret: str = SECRET,
    ago: float = 0,
    media: str = "application/json",
) -> None:
    """A request as the public library of the specification signs it."""
    when = datetime.now(UTC) - timedelta(seconds=ago)
    headers = {
        "content-type": media,
        "webhook-id": event_id,
        "webhook-timestamp": str(int(when.timestamp())),
        "webhook-signature": Webhook(secret).sign(event_id, when, body.decode()),
        "webhook-event-type": "invoice.paid",
    }
    urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30).close()


def test_each_request_is_shown_with_its_signature_headers_body_and_answer(
    listening: Listening, window: Browser
) -> None:
    send(listening.url + "hooks", "evt_right", b'{"amount": 9223372036854775807, "note": "n"}')
    send(listening.url + "hooks", "evt_wrong", b"{}", secret=OTHER)
    send(listening.url + "hooks", "evt_old", b"{}", ago=3600)
    urllib.request.urlopen(urllib.request.Request(listening.url, b"plain"), timeout=30).close()
    with opened(window, listening.page) as (page, watch):
        settled(page)
        expect(page.locator("h1")).to_have_text("Requests")
        expect(page.locator("tr.row")).to_have_count(4)
        for row, words in (
            ("evt_right", "valid"),
            ("evt_wrong", "doesn't fit"),
            ("evt_old", "too old"),
            ("request-", "not signed"),
        ):
            expect(page.locator("tr.row", has_text=row)).to_contain_text(words)
        expect(page.locator("tr.under", has_text="ago, more than 5 minutes")).to_have_count(1)
        expect(
            page.locator("tr.under", has_text="webhook-id, webhook-timestamp, webhook-signature")
        ).to_have_count(1)
        page.locator("tr.row", has_text="evt_wrong").locator("a").first.click()
        settled(page)
        expect(page.locator(".note.bad")).to_contain_text("another secret")
        expect(page.get_by_text("Would verify")).to_be_visible()
        page.go_back()
        settled(page)
        page.locator("tr.row", has_text="evt_right").locator("a").first.click()
        settled(page)
        main = page.locator("main")
        expect(main).to_contain_text("The signature verifies")
        expect(main).to_contain_text("Acknowledged: the sender is done with it.")
        expect(page.locator(".headers").first).to_contain_text("Webhook-Signature")
        expect(page.locator(".tree")).to_contain_text("9223372036854775807")
        expect(main).to_contain_text("HTTP 200")
        page.get_by_role("button", name="Bytes").click()
        expect(page.locator("pre.hex")).to_contain_text("7b 22 61 6d")
        watch.check()


def test_what_is_copied_as_curl_verifies(listening: Listening, window: Browser) -> None:
    curl = shutil.which("curl")
    assert curl is not None
    send(listening.url + "again?a='b'", "evt_again", '{"text": "it\'s ü"}'.encode())
    with opened(window, f"{listening.page}?event=evt_again") as (page, watch):
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        settled(page)
        page.locator("a.row-link").click()
        settled(page)
        page.get_by_role("button", name="Copy as curl").click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        command = page.evaluate("() => navigator.clipboard.readText()")
        ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=True)
        assert ran.stdout.startswith("HTTP/1.1 200")
        # The page hears of it and waits to be asked.
        page.locator(".note[role=status]").get_by_role("button", name="Show").click()
        settled(page)
        expect(page.locator(".timeline li")).to_have_count(2)
        expect(page.locator(".timeline .badge")).to_have_text(["valid", "valid"])
        watch.check()


def test_what_comes_waits_until_it_is_asked_for(listening: Listening, window: Browser) -> None:
    with opened(window, f"{listening.page}?event=evt_live") as (page, watch):
        settled(page)
        expect(page.locator(".live")).to_have_class("live live")
        send(listening.url, "evt_live", b"{}")
        expect(page.locator(".note[role=status]")).to_contain_text("1 new")
        assert page.locator("tr.row").count() == 0
        page.get_by_role("button", name="Show", exact=True).click()
        expect(page.locator("tr.row")).to_have_count(1)
        watch.check()


@pytest.mark.parametrize(
    ("theme", "language", "width"), [("light", "en", 1280), ("dark", "de", 380)], ids=["wide", "narrow"]
)
def test_it_is_usable_by_everybody_and_runs_nothing_that_strangers_wrote(
    listening: Listening, window: Browser, theme: str, language: str, width: int
) -> None:
    send(
        listening.url + "x" * 200,
        f"evt_{MARKUP}",
        f'{{"note": "{MARKUP[:9]}"}}'.encode(),
        media=f"text/{MARKUP}",
    )
    with opened(window, listening.page, theme=theme, language=language, width=width) as (page, watch):
        settled(page)
        for name in ("list", "request"):
            keep(page, f"inspect-{name}-{width}-{theme}-{language}")
            assert page.evaluate("() => window.hit") is None
            assert page.locator("img[src=x]").count() == 0
            assert (
                page.evaluate(
                    "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
                )
                <= 0
            )
            if AXE.exists():
                assert axe(page) == []
            if name == "list":
                page.keyboard.press("j")
                page.keyboard.press("Enter")
                page.wait_for_url("**/delivery?id=*")
                settled(page)
        watch.check()


def test_a_page_of_another_name_gets_nothing(listening: Listening) -> None:
    request = urllib.request.Request(listening.page, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=30)
