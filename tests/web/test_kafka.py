"""The main pages and actions against the daemon on a real Kafka with PostgreSQL: what they show is the same as on the embedded broker."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.web.browser import IN_CHROMIUM, opened, settled
from tests.web.stage import Stage

pytestmark = IN_CHROMIUM
_WITHIN = 60_000  # milliseconds for what the daemon and its history do
_DEAD = 6


def make_schema(url: str, name: str) -> None:
    """A schema of this module's own. In a thread of its own: Playwright has a loop in this one."""

    async def make() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(f"CREATE SCHEMA {name}")
        await connection.close()

    thread = threading.Thread(target=lambda: asyncio.run(make()))
    thread.start()
    thread.join()


@pytest.fixture(scope="module")
def stage(kafka: str, postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    name = f"web_{uuid4().hex[:8]}"
    make_schema(postgres, name)
    parts = urlsplit(postgres)
    settings = {
        "broker": f"kafka://{kafka}",
        "group": name,
        "topics": {"events": [f"{name}.events"], "prefix": f"{name}.", "partitions": 2},
        "history": {
            "store": f"postgresql://{parts.username}@{parts.hostname}:{parts.port}{parts.path}?search_path={name}",
            "password": parts.password,
        },
        "delivery": {"breaker_threshold": 0},
    }
    with Stage(tmp_path_factory.mktemp("stage"), **settings) as stage:
        stage.call("PUT", "/v1/event-types/report.ready", {"description": "A report can be read."})
        stage.subscribe("sub_well", "/well", ["order.*"])
        stage.subscribe("sub_refused", "/refused", ["report.ready"], retry={"schedule": ["100ms"]})
        stage.subscribe("sub_later", "/later", ["invoice.*"], retry={"schedule": ["1h"]})
        stage.publish(
            *({"type": "report.ready", "id": f"evt_report_{n}", "data": {"n": n}} for n in range(_DEAD)),
            *({"type": "order.shipped", "id": f"evt_order_{n}", "data": {"n": n}} for n in range(20)),
            {"type": "invoice.paid", "id": "evt_invoice", "data": {"n": 1}},
        )
        for query, count in (
            ("subscription=sub_refused&state=dead", _DEAD),
            ("subscription=sub_well&state=delivered", 20),
            ("subscription=sub_later&state=retrying", 1),
        ):
            stage.until(
                lambda query=query, count=count: len(stage.deliveries(query)) == count,  # type: ignore[misc]
                f"{count} deliveries of {query}",
            )
        yield stage


def confirm(page: Page, name: str) -> None:
    """Click an action, and say yes."""
    page.locator("main").get_by_role("button", name=name, exact=True).first.click()
    page.get_by_role("dialog").get_by_role("button", name=name, exact=True).click()


def test_the_main_pages_show_what_happened(stage: Stage, window: Browser) -> None:
    dead = stage.deliveries("subscription=sub_refused&state=dead")[0]["id"]
    pages = {
        "": "Failing now",
        "deliveries?state=dead": "sub_refused",
        f"delivery?id={dead}": "All attempts of its schedule failed",
        "events": "evt_order_0",
        "event?id=evt_report_0": "sub_refused",
        "subscriptions": "sub_later",
        "subscription?id=sub_refused": "How it goes",
        "failing": "sub_later",
        "dead-letters": "report.ready",
        "replays": "Replays",
        "event-types": "A report can be read.",
        "keys": "Keys",
        "replicas": "deliver",
    }
    with opened(window, f"{stage.url}/console/") as (page, watch):
        for address, words in pages.items():
            page.goto(f"{stage.url}/console/{address}")
            settled(page)
            expect(page.locator("main")).to_contain_text(words)
            assert page.locator(".note.bad[role=alert]").all_inner_texts() == [], address
        watch.check()


def test_a_retry_and_a_cancel_are_followed_to_their_ends(stage: Stage, window: Browser) -> None:
    dead = stage.deliveries("subscription=sub_refused&state=dead")[-1]["id"]
    waiting = stage.deliveries("subscription=sub_later&state=retrying")[0]["id"]
    with opened(window, f"{stage.url}/console/delivery?id={dead}") as (page, watch):
        settled(page)
        stage.endpoints.mended.set()
        confirm(page, "Retry now")
        expect(page.locator(".note.good[role=status]")).to_contain_text("Delivered", timeout=_WITHIN)
        page.goto(f"{stage.url}/console/delivery?id={waiting}")
        settled(page)
        confirm(page, "Cancel delivery")
        expect(page.locator(".note.good[role=status]")).to_contain_text("Cancelled", timeout=_WITHIN)
        watch.check()


def test_a_subscription_is_paused_resumed_and_gets_a_new_secret(stage: Stage, window: Browser) -> None:
    before = stage.call("GET", "/v1/subscriptions/sub_well")["secrets"]
    with opened(window, f"{stage.url}/console/subscription?id=sub_well") as (page, watch):
        settled(page)
        confirm(page, "Pause")
        expect(page.locator(".note.good[role=status]")).to_contain_text("Paused")
        confirm(page, "Resume")
        expect(page.get_by_role("button", name="Pause", exact=True)).to_be_visible()
        assert stage.call("GET", "/v1/subscriptions/sub_well")["status"] == "active"
        confirm(page, "Rotate secret")
        expect(page.get_by_text("Keep it now")).to_be_visible()
        expect(page.locator(".note code").first).to_contain_text("whsec_")
        assert len(stage.call("GET", "/v1/subscriptions/sub_well")["secrets"]) == len(before) + 1
        watch.check()


def test_what_failed_is_planned_and_sent_again(stage: Stage, window: Browser) -> None:
    stage.endpoints.mended.set()
    left = len(stage.deliveries("subscription=sub_refused&state=dead"))
    assert left > 0
    with opened(window, f"{stage.url}/console/deliveries?state=dead&subscription=sub_refused") as (
        page,
        watch,
    ):
        settled(page)
        page.get_by_role("link", name="Send all of these again").click()
        page.get_by_role("button", name="Plan").click()
        expect(page.locator(".note[role=status]")).to_contain_text(f"{left} ")
        page.get_by_role("button", name="Send").click()
        page.wait_for_url("**/replay?id=*")
        expect(page.locator("main .badge").first).to_have_text("done", timeout=_WITHIN)
        stage.until(lambda: not stage.deliveries("subscription=sub_refused&state=dead"), "all were delivered")
        watch.check()
