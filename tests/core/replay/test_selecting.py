"""What a replay sends, and to whom."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.broker.base import StoredRecord
from dispatcher.core.event.decode import Event
from dispatcher.core.replay.job import ReplayJob, ReplayRequest, ReplaySource
from dispatcher.core.replay.selecting import (
    BODY_LOST,
    DELETED,
    NOT_ACTIVE,
    UNREADABLE,
    FoundDelivery,
    Selection,
    Selector,
)
from dispatcher.core.retry.records import Source, delivery_headers, unreadable_headers
from dispatcher.core.retry.sources import ExpectedEvent
from dispatcher.core.subscription.index import Index
from dispatcher.core.subscription.model import Status
from tests.fakes import subscription

SUBSCRIPTIONS = [
    subscription("sub_acme", tenant="acme", event_types=("order.*",)),
    subscription("sub_globex", tenant="globex"),
    subscription("sub_all", tenant="*", event_types=("order.made",)),
    subscription("sub_none", tenant=None),
    subscription("sub_paused", tenant="acme", status=Status.PAUSED),
]


def selector(owner: str | None = None, source: ReplaySource = ReplaySource.EVENTS, **asked: Any) -> Selector:
    request = ReplayRequest(source, asked.pop("until_ms", 10_000), **asked)
    return Selector(
        request, owner, "rpl_1", lambda: Index(SUBSCRIPTIONS), lambda _source, _subscription, known: known + 1
    )


def test_a_replay_begins_a_generation_of_its_own_and_none_below_what_is_known() -> None:
    request = ReplayRequest(ReplaySource.DELIVERIES, 10_000)

    def of(number: int, known: int) -> int:
        made = Selector(
            request, None, "rpl_1", lambda: Index(SUBSCRIPTIONS), lambda _source, _subscription, known: known + 1,
            ReplayJob("rpl_1", request, None, 1, "ops", number).generation,
        )  # fmt: skip
        expected = ExpectedEvent("evt_1", "order.made", "acme")
        found = FoundDelivery("sub_acme", Source("events", 0, 1), known, expected)
        return made.delivery(found).records[0].generation

    assert [of(number, 1) for number in (0, 1, 2, 7)] == [2, 2, 3, 8]
    assert [of(2, known) for known in (2, 3, 9)] == [3, 4, 10]


def event(tenant: str | None = "acme", kind: str = "order.made", timestamp: int = 5000) -> StoredRecord:
    more = "" if tenant is None else f', "tenant": "{tenant}"'
    return StoredRecord(7, timestamp, None, f'{{"id": "evt_1", "type": "{kind}"{more}}}'.encode())


def to(selection: Selection) -> list[str]:
    return sorted(record.subscription_id for record in selection.records)


def test_an_event_goes_to_whoever_wants_it_now() -> None:
    found = selector().event(event(), "events", 3)
    assert to(found) == ["sub_acme", "sub_all"]
    assert found.skipped == [NOT_ACTIVE]
    record = found.records[0]
    assert (record.replay, record.source, record.generation) == ("rpl_1", ("events", 3, 7), 2)
    assert record.event == ("evt_1", "order.made", "acme")
    assert record.at is None


@pytest.mark.parametrize("owner", [None, "acme"])
def test_a_subscription_gets_events_of_its_own_tenant_whoever_asks(owner: str | None) -> None:
    for name in ("sub_acme", "sub_globex", "sub_all", "sub_none"):
        wanted: dict[str, set[str | None]] = {
            "sub_acme": {"acme"},
            "sub_globex": {"globex"},
            "sub_all": {"acme", "globex", None},
            "sub_none": {None},
        }
        for tenant in ("acme", "globex", None):
            found = to(selector(owner, subscription=name).event(event(tenant), "events", 0))
            reached = tenant in wanted[name] and (owner is None or (tenant == owner and name == "sub_acme"))
            assert found == ([name] if reached else []), (name, tenant)


def test_a_tenant_reaches_its_own_subscriptions_only() -> None:
    assert to(selector("acme").event(event(), "events", 0)) == ["sub_acme"]
    assert to(selector("globex").event(event(), "events", 0)) == []


def test_the_type_has_to_be_wanted_by_the_subscription_and_by_the_caller() -> None:
    named = selector(subscription="sub_acme")
    assert to(named.event(event(kind="order.made.late"), "events", 0)) == ["sub_acme"]
    assert to(named.event(event(kind="invoice.paid"), "events", 0)) == []
    assert (
        to(
            selector(subscription="sub_acme", event_types=("order.made",)).event(
                event(kind="order.x"), "events", 0
            )
        )
        == []
    )
    assert to(selector(event_types=("x", "order.*")).event(event(), "events", 0)) == ["sub_acme", "sub_all"]


def test_only_what_is_of_the_time() -> None:
    for timestamp, within in ((999, False), (1000, True), (1999, True), (2000, False)):
        found = selector(since_ms=1000, until_ms=2000, subscription="sub_acme").event(
            event(timestamp=timestamp), "events", 0
        )
        assert bool(found.records) is within


def test_what_is_no_event_is_left_out() -> None:
    assert selector().event(StoredRecord(0, 5000, None, b"no JSON"), "events", 0).skipped == (UNREADABLE,)
    assert selector().event(StoredRecord(0, 5000, b"k", None), "events", 0) == Selection()
    gone = selector(subscription="sub_gone").event(event(), "events", 0)
    assert gone.skipped == (DELETED,)


def letter(
    subscription_id: str = "sub_acme",
    *,
    tenant: str | None = "acme",
    reason: str = "exhausted",
    result: str | None = "status 503",
    value: bytes = b"{}",
) -> StoredRecord:
    made = Event("evt_1", "order.made", tenant, value, 5, b"")
    headers = delivery_headers(
        made,
        subscription_id,
        Source("events", 2, 9),
        attempt=4,
        first_attempt_ms=1,
        last_result=result,
        reason=reason,
        generation=3,
    )
    return StoredRecord(5, 5000, None, value, headers)


DEAD = ReplaySource.DEAD_LETTERS


def test_a_dead_letter_is_sent_from_its_own_copy_in_the_next_generation() -> None:
    (record,) = selector(source=DEAD).dead_letter(letter(), "dispatcher.dead", 1).records
    assert (record.source, record.at) == (("events", 2, 9), ("dispatcher.dead", 1, 5))
    assert (record.generation, record.subscription_id) == (4, "sub_acme")


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({"reasons": ("gone",)}, False),
        ({"reasons": ("gone", "exhausted")}, True),
        ({"status_codes": ("503",)}, True),
        ({"status_codes": ("4xx", "5xx")}, True),
        ({"status_codes": ("500",)}, False),
        ({"tenant": "acme"}, True),
        ({"tenant": "globex"}, False),
        ({"subscription": "sub_globex"}, False),
        ({"event_types": ("order.*",)}, True),
        ({"event_types": ("x",)}, False),
        ({"since_ms": 5001}, False),
    ],
)
def test_the_filters_of_dead_letters(asked: dict[str, Any], sent: bool) -> None:
    assert bool(selector(source=DEAD, **asked).dead_letter(letter(), "dispatcher.dead", 1).records) is sent


def test_a_dead_letter_without_an_answer_has_no_status() -> None:
    found = selector(source=DEAD, status_codes=("5xx",)).dead_letter(letter(result="timeout: x"), "d", 0)
    assert found == Selection()


def test_a_dead_letter_of_which_the_body_is_lost_is_left_out() -> None:
    found = selector(source=DEAD).dead_letter(letter(reason="body_expired", value=b""), "d", 0)
    assert (found.records, found.skipped) == ((), (BODY_LOST,))


def test_unreadable_dead_letters_are_told_to_operators_who_ask_for_all() -> None:
    headers = unreadable_headers((), topic="events", partition=0, offset=1, reason="json", detail="x")
    record = StoredRecord(0, 5000, None, b"x", headers)
    assert selector(source=DEAD).dead_letter(record, "d", 0).skipped == (UNREADABLE,)
    assert selector(source=DEAD, tenant="acme").dead_letter(record, "d", 0) == Selection()
    assert selector("acme", source=DEAD).dead_letter(record, "d", 0) == Selection()


def test_a_tenant_is_sent_and_told_of_its_own_dead_letters_only() -> None:
    assert to(selector("acme", source=DEAD).dead_letter(letter(), "d", 0)) == ["sub_acme"]
    for other in (
        letter("sub_globex", tenant="globex"),
        letter("sub_all"),
        letter("sub_gone", tenant="globex"),
    ):
        assert selector("acme", source=DEAD).dead_letter(other, "d", 0) == Selection()


def test_a_delivery_to_what_takes_nothing_is_left_out() -> None:
    def found(name: str, tenant: str | None = "acme") -> Selection:
        known = FoundDelivery(name, Source("events", 0, 1), 2, ExpectedEvent("evt_1", "x", tenant))
        return selector(source=ReplaySource.DELIVERIES).delivery(known)

    assert found("sub_acme").records[0].generation == 3
    assert found("sub_paused").skipped == (NOT_ACTIVE,)
    assert found("sub_gone").skipped == (DELETED,)
    # The id went to another tenant meanwhile.
    assert found("sub_globex", "acme").skipped == (DELETED,)
