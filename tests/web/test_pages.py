"""Every page in a real browser against a real dispatcher: with data, in both themes and languages, wide and narrow.

Screenshots of all of them are left in the folder that DISPATCHER_TEST_SCREENSHOTS names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Route, expect

from tests.web.browser import AXE, IN_CHROMIUM, axe, keep, opened, settled
from tests.web.stage import MARKUP, Stage

pytestmark = [*IN_CHROMIUM, pytest.mark.usefixtures("packages")]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("stage")) as stage:
        stage.play()
        yield stage


PAGES = {
    "overview": "",
    "deliveries": "deliveries",
    "deliveries-failed": "deliveries?state=failed",
    "delivery": "delivery?id={tried}",
    "delivery-dead": "delivery?id={dead}",
    "delivery-retrying": "delivery?id={retrying}",
    "events": "events",
    "event": "event?id=evt_large",
    "event-markup": f"event?id={quote('evt_' + MARKUP)}",
    "subscriptions": "subscriptions",
    "subscription": "subscription?id=sub_shop",
    "subscription-broken": "subscription?id=sub_crm",
    "edit-new": "edit",
    "edit": "edit?id=sub_billing",
    "failing": "failing",
    "issues": "issues",
    "deliveries-tail": "deliveries?tail=1",
    "deliveries-cause": "deliveries?cause=422&subscription=sub_refused",
    "overview-tenant": "?tenant=acme",
    "replays": "replays",
    "replays-new": "replays?new=dead_letters&subscription=sub_crm",
    "dead-letters": "dead-letters",
    "event-types": "event-types",
    "event-type": "event-type?id=odd.one",
    "keys": "keys",
    "replicas": "replicas",
}
"""Every page with something on it: a name, and its address below the console. In braces: a delivery (`ids`)."""


@pytest.fixture(scope="module")
def ids(stage: Stage) -> dict[str, str]:
    """A delivery that took several attempts, and one of each other fate."""
    delivered = stage.deliveries("subscription=sub_shop&limit=50")
    found = {
        "tried": next((each for each in delivered if each["attempts"] > 1), delivered[0]),
        "dead": stage.deliveries("subscription=sub_refused&state=dead")[0],
        "retrying": stage.deliveries("subscription=sub_later&state=retrying")[0],
    }
    return {name: each["id"] for name, each in found.items()}


@pytest.mark.parametrize("name", PAGES)
def test_it_renders_with_data_and_complains_of_nothing(
    stage: Stage, ids: dict[str, str], window: Browser, name: str
) -> None:
    address = f"{stage.url}/console/{PAGES[name].format(**ids)}"
    # Every page wide and narrow, light and dark, in both languages; every second one the other way round.
    themes = ("light", "dark") if [*PAGES].index(name) % 2 == 0 else ("dark", "light")
    for theme, language, width in ((themes[0], "en", 1280), (themes[1], "de", 380)):
        with opened(window, address, width=width, theme=theme, language=language) as (page, watch):
            settled(page)
            assert page.locator(".note.bad[role=alert]").all_inner_texts() == [], f"{name}: an error is shown"
            assert page.locator("html").get_attribute("lang") == language
            # Nothing is wider than the page: tables and code scroll by themselves.
            assert (
                page.evaluate(
                    "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
                )
                <= 0
            )
            keep(page, f"{name}-{width}-{theme}-{language}")
            if AXE.exists():
                assert axe(page) == []
            assert page.evaluate("() => window.hit") is None, "markup that somebody stored has run"
            assert page.locator("img[src=x]").count() == 0
            watch.check()


def test_stored_markup_is_shown_as_it_is(stage: Stage, window: Browser) -> None:
    with opened(window, f"{stage.url}/console/event?id={quote('evt_' + MARKUP)}") as (page, watch):
        settled(page)
        expect(page.get_by_text(MARKUP).first).to_be_visible()
        assert page.evaluate("() => window.hit") is None
        watch.check()
    refused = stage.deliveries("subscription=sub_refused&state=dead")[0]
    with opened(window, f"{stage.url}/console/delivery?id={refused['id']}") as (page, watch):
        settled(page)
        expect(page.get_by_text("<h1>Refused</h1>").first).to_be_visible()
        assert page.evaluate("() => window.hit") is None
        watch.check()


def test_the_address_is_the_state(stage: Stage, window: Browser) -> None:
    with opened(window, f"{stage.url}/console/deliveries?state=dead&subscription=sub_refused") as (
        page,
        watch,
    ):
        settled(page)
        before = page.locator("tr.row").count()
        assert before > 0
        assert page.locator("tr.row .badge").all_inner_texts() == ["dead"] * before
        first = page.locator("a.row-link").first
        assert re.search(r"/console/delivery\?id=dlv_", first.evaluate("link => link.href"))
        first.click()
        settled(page)
        expect(page.locator(".verdict")).to_contain_text("All attempts of its schedule failed")
        page.go_back()
        settled(page)
        assert page.locator("tr.row").count() == before
        page.reload()
        settled(page)
        assert page.locator("tr.row").count() == before
        page.locator("a.chip", has_text="dead").click()
        page.wait_for_url(lambda url: "state=" not in url)
        watch.check()


def test_a_long_list_is_read_in_several_answers(stage: Stage, window: Browser) -> None:
    everything = len(stage.deliveries("limit=200"))
    with opened(window, f"{stage.url}/console/subscriptions") as (page, watch):
        settled(page)
        asked: list[str] = []

        def fewer(route: Route) -> None:
            asked.append(route.request.url)
            route.continue_(url=route.request.url.replace("limit=200", "limit=30"))

        page.route("**/v1/deliveries?*", fewer)
        page.goto(f"{stage.url}/console/deliveries?limit=1000")
        settled(page)
        assert page.locator("tr.row").count() == everything
        assert len(asked) == everything // 30 + 1
        # It is drawn in parts, of which the eye sees nothing: columns stand beneath columns.
        assert everything > 100
        parts = page.locator(".near").count()
        # As much as ten rows each, of which one with another beneath it is two and a half; the first part is the table itself.
        unders = page.locator("tr.row").evaluate_all(
            "rows => rows.map((row) => row.classList.contains('has-under'))"
        )
        made, room = 0, 0.0
        for size in (2.5 if under else 1.0 for under in unders):
            made, room = (made + 1, 10.0) if room < size else (made, room)
            room -= size
        assert parts == made - 1
        for size in (1280, 1600):
            page.set_viewport_size({"width": size, "height": 900})
            # What is far from the view is not laid out: look at each.
            for part in range(parts):
                page.locator(".near").nth(part).scroll_into_view_if_needed()
            page.wait_for_function(
                "() => new Set([...document.querySelectorAll('table')].map((table) =>"
                " [...table.querySelector('tr.row').cells].map((cell) => Math.round(cell.getBoundingClientRect().left)).join())).size === 1"
            )
        watch.check()


def test_what_is_known_before_the_first_frame_is_drawn(stage: Stage, window: Browser) -> None:
    """Frames come late on a busy machine: then the session is known before the page's effects have run."""
    with opened(window, f"{stage.url}/console/deliveries?state=dead&subscription=sub_refused") as (
        page,
        watch,
    ):
        page.add_init_script(
            "const later = setTimeout;"
            "window.requestAnimationFrame = (call) => later(() => call(performance.now()), 500);"
            "window.setTimeout = (call, wait, ...rest) => later(call, Math.max(wait ?? 0, 500), ...rest);"
        )
        page.reload()
        settled(page)
        expect(page.locator("tr.row").first).to_be_visible()
        watch.check()


def test_64_bit_numbers_are_shown_exactly(stage: Stage, window: Browser) -> None:
    with opened(window, f"{stage.url}/console/event?id=evt_large") as (page, watch):
        settled(page)
        expect(page.get_by_text("9223372036854775807").first).to_be_visible()
        expect(page.get_by_text("as published", exact=True)).to_be_visible()
        watch.check()


def test_a_large_body_is_drawn_in_parts_and_downloaded_whole(stage: Stage, window: Browser) -> None:
    sha256 = stage.call("GET", "/v1/events/evt_mebibyte")["events"][0]["sha256"]
    with opened(window, f"{stage.url}/console/event?id=evt_mebibyte") as (page, watch):
        settled(page)
        expect(page.get_by_text("as published", exact=True)).to_be_visible()
        page.locator(".tree summary", has_text='"rows"').click()
        expect(page.get_by_role("button", name="Show more")).not_to_have_count(0)
        assert page.evaluate("() => document.querySelectorAll('*').length") < 4000
        with page.expect_download() as downloading:
            page.get_by_role("button", name="Download").click()
        assert hashlib.sha256(downloading.value.path().read_bytes()).hexdigest() == sha256
        page.get_by_role("button", name="Bytes").click()
        expect(page.locator("pre.hex")).to_contain_text("00000000  ")
        watch.check()


def test_everything_can_be_done_by_keyboard(stage: Stage, window: Browser) -> None:
    with opened(window, f"{stage.url}/console/") as (page, watch):
        settled(page)
        page.keyboard.press("?")
        expect(page.get_by_role("dialog")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
        page.keyboard.press("g")
        page.keyboard.press("d")
        page.wait_for_url("**/console/deliveries*")
        settled(page)
        page.keyboard.press("j")
        page.keyboard.press("j")
        assert (
            page.evaluate(
                "() => [...document.querySelectorAll('a.row-link')].indexOf(document.activeElement)"
            )
            == 1
        )
        page.keyboard.press("Enter")
        page.wait_for_url("**/console/delivery?id=*")
        page.keyboard.press("/")
        page.keyboard.type("evt_0001")
        page.keyboard.press("Enter")
        page.wait_for_url("**/console/event?id=evt_0001")
        settled(page)
        expect(page.locator("h1")).to_have_text("invoice.created")
        watch.check()


def test_an_error_breaks_one_panel_only(stage: Stage, window: Browser) -> None:
    with opened(window, f"{stage.url}/console/") as (page, _watch):
        settled(page)
        page.route(
            "**/v1/statistics*",
            lambda route: route.fulfill(
                status=503,
                content_type="application/problem+json",
                body='{"type": "urn:webhook-dispatcher:problem:unavailable", "title": "Not possible just now", "status": 503, "detail": "the store is away", "request_id": "req_1"}',
            ),
        )
        page.locator("[data-reload]").first.click()
        expect(page.get_by_role("alert")).to_have_count(1)
        expect(page.get_by_role("alert")).to_contain_text("the store is away")
        expect(page.get_by_role("heading", name="Failing now")).to_be_visible()


def test_the_figures_of_subscriptions_are_those_of_the_filter(stage: Stage, window: Browser) -> None:
    with opened(window, f"{stage.url}/console/subscriptions?tenant=nobody") as (page, watch):
        settled(page)
        assert page.locator("tr.row").count() == 0
        page.locator("a.chip", has_text="nobody").click()
        page.wait_for_url(lambda url: "tenant=" not in url)
        settled(page)
        expect(page.locator("tr.row", has_text="sub_shop").locator("svg.spark")).to_be_visible()
        watch.check()


def test_the_zone_that_is_chosen_rules_and_is_remembered(stage: Stage, window: Browser) -> None:
    with opened(window, f"{stage.url}/console/events") as (page, watch):
        settled(page)
        page.get_by_role("button", name="Display").click()
        page.get_by_label("Time zone").fill("Asia/Kathmandu")
        page.keyboard.press("Escape")
        stamp = page.locator("tr.row time").first
        shown, utc = stamp.inner_text(), stamp.get_attribute("datetime")
        assert utc is not None
        minutes = (int(shown[11:13]) * 60 + int(shown[14:16]) - int(utc[11:13]) * 60 - int(utc[14:16])) % 1440
        assert minutes == 5 * 60 + 45
        page.reload()
        settled(page)
        assert page.locator("tr.row time").first.inner_text() == shown
        watch.check()


def test_a_retry_is_followed_to_its_end(stage: Stage, window: Browser) -> None:
    dead = stage.deliveries("subscription=sub_refused&state=dead")[-1]
    with opened(window, f"{stage.url}/console/delivery?id={dead['id']}") as (page, watch):
        settled(page)
        page.get_by_role("button", name="Retry now").click()
        page.get_by_role("dialog").get_by_role("button", name="Retry now").click()
        expect(page.locator(".note[role=status]")).to_contain_text("The attempt failed", timeout=60_000)
        stage.endpoints.mended.set()
        try:
            page.get_by_role("button", name="Retry now").click()
            page.get_by_role("dialog").get_by_role("button", name="Retry now").click()
            expect(page.locator(".note.good[role=status]")).to_contain_text("Delivered", timeout=60_000)
            expect(page.locator("main")).to_contain_text("delivered")
            # The stream tells of it within a second or two. The page shows it already, and offers nothing.
            page.wait_for_timeout(3000)
            assert page.locator(".note[role=status]").count() == 1
        finally:
            stage.endpoints.mended.clear()
        watch.check()


def test_a_subscription_is_made_and_a_test_event_arrives(stage: Stage, window: Browser) -> None:
    with opened(window, f"{stage.url}/console/edit") as (page, watch):
        settled(page)
        page.get_by_label("URL").fill(f"{stage.endpoints.url}/well")
        page.get_by_role("button", name="Create").click()
        expect(page.get_by_role("alert").first).to_be_visible()  # it names no event types
        page.get_by_role("checkbox", name="order.shipped").check()
        page.get_by_role("button", name="Create").click()
        expect(page.get_by_text("Keep it now")).to_be_visible()
        expect(page.locator(".note code").first).to_contain_text("whsec_")
        page.get_by_role("button", name="I have kept it").click()
        page.wait_for_url("**/console/subscription?id=*")
        settled(page)
        assert "whsec_" not in page.locator("main").inner_text().replace("whsec_...", "")
        page.get_by_role("button", name="Send a test event").click()
        page.get_by_role("dialog").get_by_label("Event type").fill("order.shipped")
        page.get_by_role("dialog").get_by_role("button", name="Send").click()
        expect(page.get_by_role("dialog").last).to_contain_text("Acknowledged", timeout=60_000)
        watch.check()
