"""Who may look: logging in with a key, operators who may only read, the portal by its link, and what comes of an ended session."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.web.browser import IN_CHROMIUM, opened, settled
from tests.web.stage import Stage

KEY = "operator-key-of-the-tests-0123456789"
pytestmark = IN_CHROMIUM


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    settings: dict[str, Any] = {"api": {"keys": [KEY]}, "console": {"name": "staging", "color": "#b4540a"}}
    with Stage(tmp_path_factory.mktemp("stage"), **settings) as stage:
        stage.key = KEY
        stage.subscribe("sub_acme", "/well", ["invoice.*"])
        stage.subscribe("sub_globex", "/well", ["*"], tenant="globex")
        stage.publish({"type": "invoice.paid", "id": "evt_acme", "data": {"amount": 1}})
        stage.publish({"type": "invoice.paid", "id": "evt_globex", "tenant": "globex", "data": {"amount": 2}})
        stage.until(lambda: len(stage.deliveries("state=delivered")) >= 2, "both are delivered")
        yield stage


def portal(stage: Stage, **fields: Any) -> tuple[str, str]:
    """A link into the portal of acme, and its session."""
    made = stage.call("POST", "/v1/portal-sessions", {"tenant": "acme", **fields})
    return made["url"], made["session"]["id"]


def test_a_link_from_a_chat_asks_for_the_key_and_then_shows_what_it_leads_to(
    stage: Stage, window: Browser
) -> None:
    with opened(window, f"{stage.url}/console/event?id=evt_acme") as (page, watch):
        settled(page)
        expect(page.get_by_role("heading", name="staging")).to_be_visible()
        page.get_by_label("Operator's key").fill("a-wrong-key-0123456789-0123456789")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("not known")
        page.get_by_label("Operator's key").fill(KEY)
        page.get_by_role("button", name="Sign in").click()
        settled(page)
        expect(page.locator("h1")).to_have_text("invoice.paid")
        expect(page.locator(".environment")).to_have_text("staging")
        cookie = next(
            each for each in page.context.cookies() if "session" in each["name"].lower() or each["httpOnly"]
        )
        assert cookie["httpOnly"]
        assert cookie["sameSite"] == "Strict"
        assert KEY not in page.evaluate(
            "() => document.cookie + JSON.stringify(localStorage) + JSON.stringify(sessionStorage) + location.href"
        )
        page.reload()
        settled(page)
        expect(page.locator("h1")).to_have_text("invoice.paid")
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("Operator's key")).to_be_visible()
        watch.check()


def test_an_action_from_a_session_carries_what_protects_it(stage: Stage, window: Browser) -> None:
    with opened(window, f"{stage.url}/console/subscription?id=sub_globex") as (page, watch):
        page.get_by_label("Operator's key").fill(KEY)
        page.get_by_role("button", name="Sign in").click()
        settled(page)
        page.get_by_role("button", name="Pause").click()
        page.get_by_role("dialog").get_by_role("button", name="Pause").click()
        expect(page.locator(".note[role=status]")).to_contain_text("Paused")
        assert (
            page.evaluate(
                "async () => (await fetch('../v1/subscriptions/sub_globex/resume', {method: 'POST'})).status"
            )
            == 403
        )
        assert stage.call("GET", "/v1/subscriptions/sub_globex")["status"] == "paused"
        stage.call("POST", "/v1/subscriptions/sub_globex/resume")
        watch.check()


def test_an_operator_who_may_only_read_is_offered_nothing_else(stage: Stage, window: Browser) -> None:
    made = stage.call("POST", "/v1/keys", {"name": "reader", "scope": "operator", "capabilities": ["read"]})
    with opened(window, f"{stage.url}/console/subscription?id=sub_acme") as (page, watch):
        page.get_by_label("Operator's key").fill(made["secret"])
        page.get_by_role("button", name="Sign in").click()
        settled(page)
        expect(page.get_by_text("read only")).to_be_visible()
        for name in ("Pause", "Ping", "Delete", "Rotate secret", "Disable"):
            assert page.get_by_role("button", name=name).count() == 0
        watch.check()


def test_the_portal_takes_its_token_out_of_the_address_and_shows_its_tenant_only(
    stage: Stage, window: Browser
) -> None:
    url, _ = portal(
        stage,
        branding={
            "name": "Example Inc.",
            "colors": {"light": {"accent": "#7a1fa2"}, "dark": {"accent": "#d9a6f0"}},
        },
        back_url="https://app.example.com/settings",
    )
    token = url.partition("token=")[2].partition("&")[0]
    with opened(window, url) as (page, watch):
        settled(page)
        assert token not in page.url
        expect(page.locator(".brand")).to_have_text("Example Inc.")
        expect(page.get_by_role("link", name="Back")).to_have_attribute(
            "href", "https://app.example.com/settings"
        )
        expect(page.locator(".skip")).to_have_css("background-color", "rgb(122, 31, 162)")
        assert token not in page.evaluate(
            "() => document.cookie + JSON.stringify(localStorage) + JSON.stringify(sessionStorage) + location.href"
        )
        page.get_by_role("link", name="Endpoints").click()
        settled(page)
        expect(page.locator("tr.row")).to_have_count(1)
        expect(page.locator("main")).to_contain_text("sub_acme")
        assert "globex" not in page.locator("body").inner_text()
        for name in ("Keys", "Replicas", "Dead letters"):
            assert page.get_by_role("link", name=name, exact=True).count() == 0
        page.evaluate(
            "() => { history.pushState({}, '', 'subscription?id=sub_globex'); dispatchEvent(new PopStateEvent('popstate')) }"
        )
        expect(page.get_by_role("alert").first).to_contain_text("nothing here")
        page.evaluate(
            "() => { history.pushState({}, '', 'event?id=evt_globex'); dispatchEvent(new PopStateEvent('popstate')) }"
        )
        expect(page.locator("main")).to_contain_text("nothing here")
        watch.check()


def test_a_portal_session_that_is_revoked_says_so(stage: Stage, window: Browser) -> None:
    url, session = portal(stage, refresh_url="https://app.example.com/webhooks")
    with opened(window, url) as (page, watch):
        settled(page)
        stage.call("DELETE", f"/v1/portal-sessions/{session}")
        page.locator("[data-reload]").first.click()
        expect(page.get_by_text("The session has ended")).to_be_visible()
        expect(page.get_by_role("link", name="Get a new link")).to_have_attribute(
            "href", "https://app.example.com/webhooks"
        )
        assert watch.foreign == []


def test_the_portal_without_a_link_says_whom_to_ask(stage: Stage, window: Browser) -> None:
    with opened(window, f"{stage.url}/portal") as (page, watch):
        settled(page)
        expect(page.get_by_text("Open the link that you were given")).to_be_visible()
        watch.check()
