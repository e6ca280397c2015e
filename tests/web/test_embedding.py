"""The portal in a frame: only where it is allowed, with tokens from its parent and from nobody else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.ports import HOST, free_port
from tests.web.browser import IN_CHROMIUM
from tests.web.stage import Stage

KEY = "operator-key-of-the-tests-0123456789"
pytestmark = IN_CHROMIUM
_PAGE = b"""<!doctype html><title>host</title><iframe id="portal" width="900" height="600"></iframe>
<script>window.heard = []; addEventListener("message", event => heard.push({origin: event.origin, ...event.data}))</script>"""


class Host(ThreadingHTTPServer):
    """Somebody's application, on an origin of its own."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(_PAGE)))
                self.end_headers()
                self.wfile.write(_PAGE)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
                """Nobody reads it."""

        super().__init__((HOST, port), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def origin(self) -> str:
        return f"http://{HOST}:{self.server_port}"


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    friend, stranger = Host(free_port()), Host(free_port())
    yield friend, stranger
    for host in (friend, stranger):
        host.shutdown()
        host.server_close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, hosts: tuple[Host, Host]) -> Iterator[Stage]:
    settings: dict[str, Any] = {"api": {"keys": [KEY]}, "portal": {"frame_ancestors": [hosts[0].origin]}}
    with Stage(tmp_path_factory.mktemp("stage"), **settings) as stage:
        stage.key = KEY
        stage.subscribe("sub_acme", "/well", ["invoice.*"])
        yield stage


def embed(page: Page, host: Host, url: str) -> None:
    page.goto(host.origin)
    page.evaluate("url => { document.getElementById('portal').src = url }", url)


def test_it_is_shown_where_it_may_be_and_takes_another_token_from_its_parent_only(
    stage: Stage, window: Browser, hosts: tuple[Host, Host]
) -> None:
    friend, stranger = hosts
    first = stage.call("POST", "/v1/portal-sessions", {"tenant": "acme", "next": "/subscriptions"})
    second, foreign = (
        stage.call("POST", "/v1/portal-sessions", {"tenant": name}) for name in ("acme", "globex")
    )
    page = window.new_page()
    sent: list[str | None] = []
    page.on("request", lambda request: sent.append(request.headers.get("authorization")))
    embed(page, friend, first["url"])
    frame = page.frame_locator("#portal")
    expect(frame.get_by_text("sub_acme")).to_be_visible(timeout=30_000)
    page.wait_for_function("() => heard.some(each => each.type === 'dispatcher:height' && each.height > 100)")

    stage.call("DELETE", f"/v1/portal-sessions/{first['session']['id']}")
    frame.get_by_role("button", name="Reload").click()
    expect(frame.get_by_text("The session has ended")).to_be_visible()
    page.wait_for_function("() => heard.some(each => each.type === 'dispatcher:renew')")
    assert all(each["origin"] == stage.url for each in page.evaluate("() => heard"))

    # Another frame of the page, of a stranger's origin, can reach the portal's window, but not make it listen.
    page.evaluate(
        "url => new Promise(done => { const other = document.createElement('iframe'); other.src = url; other.onload = done; document.body.append(other) })",
        stranger.origin,
    )
    other = next(each for each in page.frames if each.url.startswith(stranger.origin))
    other.evaluate(
        "message => parent.frames[0].postMessage(message, '*')",
        {"type": "dispatcher:token", "token": foreign["token"]},
    )
    # Its parent's comes behind that one. With a token that it takes, the portal asks at once.
    page.evaluate(
        "message => document.getElementById('portal').contentWindow.postMessage(message, '*')",
        {"type": "dispatcher:token", "token": second["token"]},
    )
    expect(frame.get_by_text("sub_acme")).to_be_visible()
    assert f"Bearer {second['token']}" in sent
    assert f"Bearer {foreign['token']}" not in sent
    page.close()


def test_a_page_that_may_not_hold_it_gets_nothing(
    stage: Stage, window: Browser, hosts: tuple[Host, Host]
) -> None:
    url = stage.call("POST", "/v1/portal-sessions", {"tenant": "acme"})["url"]
    page = window.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    embed(page, hosts[1], url)
    page.wait_for_function("() => document.getElementById('portal').contentDocument === null")
    expect(page.frame_locator("#portal").locator("#app")).to_have_count(0)
    assert any("frame-ancestors" in each for each in refused), refused
    page.close()


def test_the_console_is_held_by_nobody(stage: Stage, window: Browser, hosts: tuple[Host, Host]) -> None:
    page = window.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    embed(page, hosts[0], f"{stage.url}/console")
    page.wait_for_function("() => document.getElementById('portal').contentDocument === null")
    expect(page.frame_locator("#portal").locator("#app")).to_have_count(0)
    assert any("frame-ancestors" in each or "X-Frame-Options" in each for each in refused), refused
    page.close()
