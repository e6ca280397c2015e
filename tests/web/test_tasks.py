"""Five tasks as somebody does them who has never seen the console: by mouse, and by keyboard alone. The steps are counted.

A step by mouse is a click, or a text that is typed or pasted. A step by keyboard is a key that is pressed, or such a text. The table in
docs/console.md says how many each task takes: a change that makes one longer has to say so there.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from standardwebhooks import Webhook

from tests.web.browser import IN_CHROMIUM, opened, settled
from tests.web.stage import Stage

pytestmark = IN_CHROMIUM
DOCS = Path(__file__).parent.parent.parent / "docs" / "console.md"
_WITHIN = 60_000  # milliseconds for what the daemon and its history do


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("stage"), delivery={"breaker_threshold": 0}) as stage:
        stage.call(
            "PUT",
            "/v1/event-types/order.shipped",
            {"description": "An order left.", "example": {"id": "ord_1"}},
        )
        stage.subscribe("sub_globex", "/well", ["order.*"], tenant="globex", status="paused")
        stage.subscribe("sub_well", "/well", ["order.*"])
        stage.subscribe("sub_slow", "/slow", ["order.*"])
        stage.subscribe("sub_refused", "/refused", ["report.ready"], retry={"schedule": ["100ms"]})
        stage.publish(
            *({"type": "order.shipped", "id": f"evt_order_{n}", "data": {"n": n}} for n in range(20)),
            {"type": "order.shipped", "id": "evt_globex", "tenant": "globex", "data": {"n": 1}},
        )
        for query, count in (
            ("subscription=sub_well&state=delivered", 20),
            ("subscription=sub_slow&state=delivered", 20),
        ):
            stage.until(
                lambda query=query, count=count: len(stage.deliveries(query)) == count,  # type: ignore[misc]
                f"{count} deliveries of {query}",
            )
        yield stage


class Person(ABC):
    """Somebody in front of the page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.steps = 0

    @abstractmethod
    def use(self, what: Locator, key: str = "") -> None:
        """Click it. `key` does the same, wherever the focus is."""

    @abstractmethod
    def submit(self, button: Locator) -> None:
        """Send the form that this button sends."""

    @abstractmethod
    def write(self, where: Locator, text: str) -> None:
        """Write a text into a field that may have another one."""

    @abstractmethod
    def choose(self, where: Locator, text: str) -> None:
        """Choose an entry of a field."""

    @abstractmethod
    def find(self, text: str, kind: str) -> None:
        """Find something by its name, from any page."""

    def _typed(self, text: str) -> None:
        self.page.keyboard.insert_text(text)
        self.steps += 1


class Mouse(Person):
    """Clicks, and writes where it must."""

    def use(self, what: Locator, key: str = "") -> None:
        what.click()
        self.steps += 1

    def submit(self, button: Locator) -> None:
        self.use(button)

    def write(self, where: Locator, text: str) -> None:
        where.click(click_count=3)
        self.steps += 1
        self._typed(text)

    def choose(self, where: Locator, text: str) -> None:
        where.select_option(text)
        self.steps += 2  # it opens, and an entry is taken

    def find(self, text: str, kind: str) -> None:
        self.use(self.page.get_by_role("button", name="Find an id or a page"))
        self._typed(text)
        self.use(self.page.get_by_role("option", name=kind).first)


class Keyboard(Person):
    """Never touches the mouse."""

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)
        self.steps += 1

    def _reach(self, what: Locator) -> None:
        what.wait_for()
        for _ in range(60):
            if what.evaluate("element => element === document.activeElement"):
                return
            self.press("Tab")
        raise AssertionError(f"the focus never came to {what}")

    def use(self, what: Locator, key: str = "") -> None:
        if key:
            what.wait_for()
            for each in key.split():
                if len(each) == 1 or each == "Enter":
                    self.press(each)
                else:
                    self._typed(each)
            return
        self._reach(what)
        self.press("Space" if what.evaluate("element => element.type === 'checkbox'") else "Enter")

    def submit(self, button: Locator) -> None:
        button.wait_for()
        # Enter in any field of the form sends it.
        sends = "button => document.activeElement === button || (document.activeElement.tagName === 'INPUT' && document.activeElement.form === button.form)"
        for _ in range(60):
            if button.evaluate(sends):
                self.press("Enter")
                return
            self.press("Tab")
        raise AssertionError(f"the focus never came to the form of {button}")

    def write(self, where: Locator, text: str) -> None:
        self._reach(where)
        self.page.keyboard.press("Control+a")  # a field that is reached by Tab is selected already
        self._typed(text)

    def choose(self, where: Locator, text: str) -> None:
        self._reach(where)
        names = where.evaluate("element => [...element.options].map(each => each.textContent)")
        now = where.evaluate("element => element.selectedIndex")
        for _ in range(abs(names.index(text) - now)):
            self.press("ArrowDown" if names.index(text) > now else "ArrowUp")

    def find(self, text: str, kind: str) -> None:
        self.press("/")
        self._typed(text)
        options = self.page.get_by_role("option")
        names = options.all_inner_texts()
        for _ in range(next(at for at, name in enumerate(names) if kind in name)):
            self.press("ArrowDown")
        self.press("Enter")


Task = Callable[[Stage, Page, Person], None]


def why_a_customer_got_nothing(_stage: Stage, page: Page, person: Person) -> None:
    person.find("globex", "subscriptions of this tenant")
    settled(page)
    expect(page.locator("tr.under")).to_contain_text("Nothing is sent")
    person.use(page.locator("a.row-link"), "j Enter")
    settled(page)
    expect(page.locator(".note.warn").first).to_contain_text("paused")


def send_again_what_failed_between_two_times(stage: Stage, page: Page, person: Person) -> None:
    stage.endpoints.mended.clear()
    stage.publish(*({"type": "report.ready", "data": {"n": n}} for n in range(4)))
    stage.until(lambda: len(stage.deliveries("subscription=sub_refused&state=dead")) >= 4, "four have failed")
    stage.endpoints.mended.set()
    person.use(page.get_by_role("link", name="Deliveries", exact=True), "g d")
    settled(page)
    person.use(page.get_by_role("button", name="Filter", exact=True), "f")
    person.choose(page.get_by_label("State"), "failed (all)")
    person.submit(page.get_by_role("button", name="Apply"))
    settled(page)
    person.use(page.get_by_role("group", name="Time range").get_by_role("button"), "t")
    now = datetime.now(UTC)
    dialog = page.get_by_role("dialog")
    person.write(dialog.get_by_label("From"), (now - timedelta(hours=1)).strftime("%Y-%m-%d %H:%M:%SZ"))
    person.write(dialog.get_by_label("Until"), (now + timedelta(hours=1)).strftime("%Y-%m-%d %H:%M:%SZ"))
    person.submit(dialog.get_by_role("button", name="Apply"))
    settled(page)
    person.use(page.get_by_role("link", name="Send all of these again"))
    person.submit(page.get_by_role("button", name="Plan"))
    person.use(page.get_by_role("button", name=re.compile("^Send [0-9]")))
    page.wait_for_url("**/replay?id=*")
    expect(page.locator("main .badge").first).to_have_text("done", timeout=_WITHIN)


def rotate_a_secret(stage: Stage, page: Page, person: Person) -> None:
    before = len(stage.call("GET", "/v1/subscriptions/sub_well")["secrets"])
    person.find("sub_well", "Subscription")
    settled(page)
    person.use(page.get_by_role("button", name="Rotate secret"))
    person.submit(page.get_by_role("dialog").get_by_role("button", name="Rotate secret"))
    expect(page.locator(".note code").first).to_contain_text("whsec_")
    person.use(page.locator(".note").get_by_role("button", name="Copy").first)
    assert len(stage.call("GET", "/v1/subscriptions/sub_well")["secrets"]) == before + 1


def make_a_subscription_and_see_a_test_event_verified(stage: Stage, page: Page, person: Person) -> None:
    person.use(page.get_by_role("link", name="Subscriptions", exact=True), "g s")
    settled(page)
    person.use(page.get_by_role("link", name="New subscription"))
    settled(page)
    person.write(page.get_by_label("URL"), f"{stage.endpoints.url}/well")
    person.use(page.get_by_role("checkbox", name="order.shipped"))
    person.submit(page.get_by_role("button", name="Create"))
    secret = page.locator(".note code").first.inner_text()
    person.use(page.get_by_role("button", name="I have kept it"))
    page.wait_for_url("**/console/subscription?id=*")
    settled(page)
    person.use(page.get_by_role("button", name="Send a test event"))
    dialog = page.get_by_role("dialog")
    person.write(dialog.get_by_label("Event type"), "order.shipped")
    person.submit(dialog.get_by_role("button", name="Send", exact=True))
    expect(page.get_by_role("dialog").last).to_contain_text("Acknowledged", timeout=_WITHIN)
    headers, body = stage.endpoints.last
    Webhook(secret).verify(body, headers)


def find_who_is_slow(_stage: Stage, page: Page, person: Person) -> None:
    person.use(page.get_by_role("link", name="Who is slow"), "/ who Enter")
    page.wait_for_url("**order=slowest*")
    settled(page)
    first = page.locator("details.fold tr.row").first
    expect(first).to_contain_text("sub_slow")
    person.use(first.locator("a"), "j Enter")
    page.wait_for_url("**subscription=sub_slow*")


TASKS: dict[str, Task] = {
    "Find why a customer got nothing": why_a_customer_got_nothing,
    "Send again what failed between two times": send_again_what_failed_between_two_times,
    "Rotate a secret": rotate_a_secret,
    "Make a subscription, and see a test event verified": make_a_subscription_and_see_a_test_event_verified,
    "Find who is slow": find_who_is_slow,
}


def told() -> dict[tuple[str, str], int]:
    """The steps of each task, as the page of the documentation says."""
    found: dict[tuple[str, str], int] = {}
    for name, mouse, keys in re.findall(r"^\| (.+?) \| (\d+) \| (\d+) \|", DOCS.read_text(), re.MULTILINE):
        found |= {(name, "mouse"): int(mouse), (name, "keyboard"): int(keys)}
    return found


@pytest.mark.parametrize("how", ["mouse", "keyboard"])
@pytest.mark.parametrize("name", TASKS)
def test_the_task_is_done_in_as_many_steps_as_the_documentation_says(
    stage: Stage, window: Browser, name: str, how: str
) -> None:
    with opened(window, f"{stage.url}/console/") as (page, watch):
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        settled(page)
        person: Any = Mouse(page) if how == "mouse" else Keyboard(page)
        TASKS[name](stage, page, person)
        assert told()[name, how] == person.steps
        watch.check()


def test_the_documentation_counts_the_steps_of_every_task_and_no_other() -> None:
    assert {name for name, _ in told()} == set(TASKS)
