"""What people do with lists, in a real browser: issues, saved views, tails, breakdowns and what is charted while a page is open."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.web.browser import IN_CHROMIUM, opened, settled
from tests.web.stage import Stage

pytestmark = IN_CHROMIUM


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("stage")) as stage:
        stage.play()
        yield stage


def rows_of_all_pages(page: Page) -> int:
    """How many rows a list has, on all of its pages."""
    settled(page)
    count = page.locator("tr.row").count()
    while page.locator("[data-next]").count() > 0:
        before = page.url
        page.locator("[data-next]").click()
        page.wait_for_url(lambda url, before=before: url != before)  # type: ignore[misc]
        settled(page)
        count += page.locator("tr.row").count()
    return count


def test_each_number_of_an_issue_leads_to_exactly_the_rows_that_it_counts(
    stage: Stage, window: Browser
) -> None:
    # Nothing more happens to these: one is dead, the other waits for an hour.
    for id_, state, numbers in (("sub_refused:422", "dead", [3, 3]), ("sub_later:503", "retrying", [3, 3])):
        subscription, cause = id_.split(":")
        with opened(window, f"{stage.url}/console/issues?subscription={subscription}") as (page, watch):
            settled(page)
            row = page.locator("tr.row", has_text=cause)
            expect(row).to_have_count(1)
            part = row.locator("a.above", has_text=re.compile(r"^\d+$"))
            counted = [int(row.locator(".right").first.inner_text()), int(part.inner_text())]
            assert counted == numbers
            address = part.get_attribute("href")
            assert address is not None
            assert parse_qs(urlsplit(address).query)["state"] == [state]
            part.click()
            page.wait_for_url("**/console/deliveries?*")
            assert rows_of_all_pages(page) == numbers[1]
            page.go_back()
            page.wait_for_url("**/console/issues?*")
            settled(page)
            page.locator("tr.row", has_text=cause).locator("a.row-link").click()
            page.wait_for_url("**/console/deliveries?*")
            assert rows_of_all_pages(page) == numbers[0]
            watch.check()


def test_an_issue_is_acknowledged_ignored_and_reopened(stage: Stage, window: Browser) -> None:
    with opened(window, f"{stage.url}/console/issues?subscription=sub_later") as (page, watch):
        settled(page)
        row = page.locator("tr.row", has_text="503")
        under = page.locator("tr.under")
        expect(row.locator(".badge")).to_have_text("open")
        under.get_by_role("button", name="Acknowledge").click()
        expect(page.locator(".note.good[role=status]")).to_have_text("sub_later:503: acknowledged.")
        expect(row.locator(".badge")).to_have_text("acknowledged")
        expect(under).to_contain_text("Acknowledged by")
        under.get_by_role("button", name="Ignore …").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Until").fill("never")
        expect(dialog.get_by_role("alert")).to_be_visible()
        dialog.get_by_role("button", name="8 h").click()
        expect(dialog.get_by_role("alert")).to_have_count(0)
        dialog.get_by_role("button", name="Ignore", exact=True).click()
        expect(row.locator(".badge")).to_have_text("ignored")
        expect(under).to_contain_text("Ignored by")
        page.reload()  # it is kept by the dispatcher
        settled(page)
        expect(row.locator(".badge")).to_have_text("ignored")
        under.get_by_role("button", name="Reopen").click()
        expect(row.locator(".badge")).to_have_text("open")
        watch.check()
    audit = stage.call("GET", "/v1/audit?subject=sub_later&action=issue.")["records"]
    assert [each["action"] for each in audit] == ["issue.reopen", "issue.ignore", "issue.acknowledge"]


def test_what_an_issue_gave_up_is_planned_as_a_replay(stage: Stage, window: Browser) -> None:
    with opened(window, f"{stage.url}/console/issues?subscription=sub_refused") as (page, watch):
        settled(page)
        page.get_by_role("link", name="Send the dead again …").click()
        page.wait_for_url("**/console/replays?*")
        settled(page)
        page.get_by_role("button", name="Plan").click()
        expect(page.get_by_text("3 deliveries would be sent.")).to_be_visible()
        watch.check()


def test_a_reader_sees_issues_and_changes_none(stage: Stage, window: Browser) -> None:
    link = stage.call(
        "POST", "/v1/portal-sessions", {"tenant": "acme", "capabilities": ["read"], "next": "/issues"}
    )
    with opened(window, link["url"]) as (page, watch):
        page.wait_for_url("**/portal/issues*")
        settled(page)
        expect(page.locator("tr.row", has_text="sub_refused")).to_have_count(1)
        expect(page.get_by_role("button", name="Acknowledge")).to_have_count(0)
        expect(page.get_by_role("link", name="Send the dead again …")).to_have_count(0)
        watch.check()


def test_a_view_is_saved_found_renamed_shared_and_deleted_by_keyboard(stage: Stage, window: Browser) -> None:
    with opened(window, f"{stage.url}/console/deliveries?state=dead&subscription=sub_refused") as (
        page,
        watch,
    ):
        settled(page)
        before = page.locator("tr.row").count()
        page.keyboard.press("v")
        page.get_by_role("dialog").get_by_label("Name").fill("Refused for good")
        page.keyboard.press("Enter")
        views = page.get_by_role("navigation", name="Saved views")
        saved = views.get_by_role("link", name="Refused for good")
        expect(saved).to_have_attribute("aria-current", "true")
        # Elsewhere it is one of many lists; its name leads back, from any page.
        page.goto(f"{stage.url}/console/deliveries")
        settled(page)
        expect(saved).not_to_have_attribute("aria-current", "true")
        saved.click()
        page.wait_for_url("**state=dead**")
        settled(page)
        assert page.locator("tr.row").count() == before
        page.goto(f"{stage.url}/console/keys")
        settled(page)
        page.keyboard.press("/")
        page.keyboard.type("refused for")
        expect(page.get_by_role("option").first).to_contain_text("Refused")
        page.get_by_role("option", name="Refused for good").first.click()
        page.wait_for_url("**/console/deliveries?*state=dead*")
        settled(page)
        # Its address alone shows the same to somebody who has not saved it.
        with opened(window, page.url) as (other, _):
            settled(other)
            assert other.locator("tr.row").count() == before
            expect(other.get_by_role("link", name="Refused for good")).to_have_count(0)
        page.keyboard.press("v")
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("button", name="Rename").press("Enter")
        dialog.get_by_label("Name").fill("For good")
        page.keyboard.press("Enter")
        expect(dialog.get_by_role("link", name="For good", exact=True)).to_be_visible()
        dialog.get_by_role("button", name="Delete").press("Enter")
        expect(dialog.get_by_role("link", name="For good", exact=True)).to_have_count(0)
        page.keyboard.press("Escape")
        expect(views.get_by_role("link")).to_have_count(0)
        watch.check()


def tail_of(page: Page) -> list[str]:
    """The ids of the rows of a tail, in their order."""
    found: list[str] = page.eval_on_selector_all(
        ".tail a.row-link", "links => links.map(link => link.search)"
    )
    return found


def test_a_tail_appends_and_never_moves_what_is_being_read(stage: Stage, window: Browser) -> None:
    with opened(window, f"{stage.url}/console/deliveries?subscription=sub_audit") as (page, watch):
        settled(page)
        page.keyboard.press("l")
        page.wait_for_url("**tail=1*")
        expect(page.locator(".live.live")).to_be_visible()
        expect(page.get_by_text("Nothing has come yet.")).to_be_visible()
        tail = page.locator(".tail")
        for n in range(40):
            stage.publish({"type": "invoice.created", "id": f"evt_tail_{n:03}", "data": {"n": n}})
            # A second of the stream has room for twenty attempts, whosever they are.
            if n % 5 == 4:
                expect(tail.locator("tr.row")).to_have_count(n + 1)
        expect(tail.locator("tr.row")).to_have_count(40)
        at_end = "e => Math.round(e.scrollHeight - e.scrollTop - e.clientHeight)"
        assert tail.evaluate(at_end) <= 1
        # Somebody reads further up: rows wait, and nothing moves.
        tail.evaluate("e => { e.scrollTop = 0; }")
        expect(page.get_by_text("Paused: what you see does not change.")).to_be_visible()
        before, place = tail_of(page), tail.evaluate("e => [e.scrollTop, e.scrollHeight]")
        stage.publish(*({"type": "invoice.created", "id": f"evt_later_{n}", "data": {}} for n in range(3)))
        follow = page.get_by_role("button", name="Follow: 3 new")
        expect(follow).to_be_visible()
        assert tail_of(page) == before
        assert tail.evaluate("e => [e.scrollTop, e.scrollHeight]") == place
        follow.click()
        expect(tail.locator("tr.row")).to_have_count(43)
        assert tail_of(page)[:40] == before
        expect(tail.locator("tr.row").last).to_be_in_viewport()
        # A row that somebody stands on stays, too.
        page.keyboard.press("k")
        expect(page.get_by_text("Paused: what you see does not change.")).to_be_visible()
        page.reload()  # the address is the state
        settled(page)
        expect(page.get_by_text("Nothing has come yet.")).to_be_visible()
        page.get_by_role("link", name="Back to the list").click()
        page.wait_for_url(lambda url: "tail=" not in url)
        settled(page)
        expect(page.locator("tr.row").first).to_be_visible()
        watch.check()


def test_a_tail_of_a_filter_has_nothing_else(stage: Stage, window: Browser) -> None:
    with opened(window, f"{stage.url}/console/deliveries?subscription=sub_billing&tail=1") as (page, watch):
        settled(page)
        expect(page.locator(".live.live")).to_be_visible()
        stage.publish(
            {"type": "order.shipped", "id": "evt_filter_1", "data": {}},
            {"type": "invoice.created", "id": "evt_filter_2", "data": {}},
        )
        expect(page.locator(".tail tr.row")).to_have_count(1)
        expect(page.locator(".tail tr.row")).to_contain_text("sub_billing")
        watch.check()


def test_events_are_followed_as_they_are_published(stage: Stage, window: Browser) -> None:
    with opened(window, f"{stage.url}/console/events?type=invoice.*&tail=1") as (page, watch):
        settled(page)
        with page.expect_response("**/v1/events?*"):
            pass  # from here on what is published is new
        page.wait_for_function("() => document.querySelector('.tail') !== null")
        stage.publish(
            {"type": "invoice.created", "id": "evt_followed", "data": {}},
            {"type": "order.shipped", "id": "evt_not_followed", "data": {}},
        )
        expect(page.locator(".tail tr.row")).to_have_count(1)
        expect(page.locator(".tail tr.row")).to_contain_text("evt_followed")
        watch.check()


def test_a_tail_says_where_it_was_cut_off(stage: Stage, window: Browser) -> None:
    with opened(window, f"{stage.url}/console/deliveries?subscription=sub_audit&tail=1") as (page, _watch):
        settled(page)
        expect(page.locator(".live.live")).to_be_visible()
        stage.publish({"type": "invoice.created", "id": "evt_cut_1", "data": {}})
        expect(page.locator(".tail tr.row")).to_have_count(1)
        # A hidden tab stops listening.
        page.evaluate(
            "() => { Object.defineProperty(document, 'visibilityState', {value: 'hidden', configurable: true});"
            " document.dispatchEvent(new Event('visibilitychange')); }"
        )
        page.evaluate(
            "() => { Object.defineProperty(document, 'visibilityState', {value: 'visible', configurable: true});"
            " document.dispatchEvent(new Event('visibilitychange')); }"
        )
        expect(page.locator(".tail tr.hole")).to_have_text(re.compile("Some may be missing here"))
        expect(page.locator(".live.live")).to_be_visible()
        stage.publish({"type": "invoice.created", "id": "evt_cut_2", "data": {}})
        expect(page.locator(".tail tr.row")).to_have_count(2)


def test_what_is_not_delivered_is_broken_down_by_cause(stage: Stage, window: Browser) -> None:
    with opened(window, f"{stage.url}/console/deliveries?subscription=sub_refused") as (page, watch):
        settled(page)
        page.get_by_text("Over time", exact=True).click()
        settled(page)
        table = page.get_by_role("table", name="Not delivered yet, by cause")
        expect(table.locator("tr.row")).to_have_count(1)
        number = table.get_by_role("link", name="3", exact=True)
        number.click()
        page.wait_for_url("**cause=422*")
        settled(page)
        assert page.locator("table").last.locator("tr.row").count() == 3
        watch.check()


def test_lateness_and_lag_are_charted_and_a_tenants_figures_are_its_own(
    stage: Stage, window: Browser
) -> None:
    with opened(window, f"{stage.url}/console/") as (page, watch):
        settled(page)
        expect(
            page.get_by_role("img", name=re.compile("^From the event to its acknowledgement"))
        ).to_be_visible()
        page.get_by_text("Lag and what waits, since this page is open").click()
        expect(page.get_by_role("img", name=re.compile("^Records not taken up yet"))).to_be_visible()
        # It goes on while the page is open: a second look is a second row of its table.
        chart = page.locator("figure", has_text="Records not taken up yet")
        chart.get_by_text("As a table").click()
        expect(chart.locator("tbody tr").nth(1)).to_be_attached()
        watch.check()
    with opened(window, f"{stage.url}/console/?tenant=nobody") as (page, watch):
        settled(page)
        expect(page.locator(".number .value").first).to_have_text("0")
        expect(page.get_by_text("Nobody is failing.")).to_be_visible()
        page.locator("a.chip", has_text="nobody").click()
        page.wait_for_url(lambda url: "tenant=" not in url)
        settled(page)
        expect(page.locator(".number .value").first).not_to_have_text("0")
        watch.check()


def test_the_portal_asks_for_a_link_where_the_api_lets_everybody_in(stage: Stage, window: Browser) -> None:
    """Without keys whoever comes is an operator, and a portal is a tenant's."""
    assert stage.key is None
    assert stage.call("GET", "/v1/session")["principal"]["scope"] == "operator"
    with opened(window, f"{stage.url}/portal") as (page, watch):
        settled(page)
        expect(page.get_by_text("Open the link that you were given")).to_be_visible()
        watch.check()
