"""`dispatcher events`, against a dispatcher whose history has been told what to know."""

from __future__ import annotations

import time

import pytest

from dispatcher.broker.base import Message
from tests.commands.calling import Api, HistoryApi, one_line
from tests.history.records import EVENTS, attempt, batch, event

NOW = int(time.time() * 1000)
ODD = "order/1 ä?%2F"


@pytest.fixture(scope="module", autouse=True)
def known(history_api: HistoryApi) -> None:
    events = [
        event(0, time_ms=NOW - 3000),
        event(1, event_id=ODD, event_type="order.sent", tenant=None, time_ms=NOW - 2000),
        event(2, event_id="evt_twice", time_ms=NOW - 1500),
        event(3, event_id="evt_twice", time_ms=NOW - 1000),
    ]
    records = [attempt(0, 0, time_ms=NOW - 2900)]
    history_api.remember(
        batch(records, None, 4, partition=EVENTS._replace(topic="seeded-events"), events=events)
    )


def ids(api: HistoryApi, *arguments: str) -> list[str]:
    return [each["id"] for each in api.json("events", "list", *arguments)["events"]]


def test_the_filters_are_those_of_the_route(history_api: HistoryApi) -> None:
    assert ids(history_api) == ["evt_twice", "evt_twice", ODD, "evt_0"]
    assert ids(history_api, "--tenant", "acme", "--limit", "2") == ["evt_twice", "evt_twice"]
    assert ids(history_api, "--type", "order.*") == [ODD]
    assert ids(history_api, "--until", "1h") == []
    assert ids(history_api, "--since", "1h", "--type", "order.sent") == [ODD]


def test_a_table_names_each_event_and_where_it_stands(history_api: HistoryApi) -> None:
    listed = history_api("events", "list", "--limit", "3")
    assert listed.exit_code == 0, listed.output
    lines = listed.stdout.splitlines()
    assert lines[0].split() == ["published", "type", "tenant", "size", "source", "id"]
    assert "events-0 offset 3" in lines[1]
    assert lines[3].rstrip().endswith(ODD)
    assert "there are more: --limit 30" in listed.stderr
    assert "there are none" in history_api("events", "list", "--tenant", "nobody").stderr


def test_an_event_is_shown_with_its_sum_and_its_deliveries(history_api: HistoryApi) -> None:
    shown = history_api("events", "show", "evt_0")
    assert shown.exit_code == 0, shown.output
    assert "0" * 64 in shown.stdout
    assert "dlv_" in shown.stdout
    assert "delivered" in shown.stdout
    (found,) = history_api.json("events", "show", "evt_0")["events"]
    assert len(found["deliveries"]) == 1


def test_an_id_may_hold_any_character(history_api: HistoryApi) -> None:
    (found,) = history_api.json("events", "show", ODD)["events"]
    assert (found["id"], found["type"]) == (ODD, "order.sent")


def test_an_id_that_was_used_twice_shows_both(history_api: HistoryApi) -> None:
    shown = history_api("events", "show", "evt_twice").stdout
    assert "offset 3" in shown
    assert "offset 2" in shown


def test_a_payload_is_written_as_it_was_published(history_api: HistoryApi) -> None:
    body = b'{"id": "evt_real", "type": "invoice.paid", "data": "\xc3\xa4"}'
    history_api.produce(Message("events", body, partition=0))
    deadline = time.monotonic() + 60
    while (ended := history_api("events", "payload", "evt_real")).exit_code and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (ended.exit_code, ended.stdout_bytes) == (0, body)
    one_line(history_api("events", "payload", "evt_0"), "another record stands where the event was")
    one_line(
        history_api("events", "payload", "evt_twice"), "the body is gone: events-0 has no offset 3 any more"
    )
    one_line(history_api("events", "payload", "evt_none"), "there is no event evt_none")
    one_line(history_api("events", "payload", "evt_real", "--source", "here"), "source", code=2)


def test_an_event_is_explained_in_a_sentence_for_each_subscription(history_api: HistoryApi) -> None:
    shown = history_api("events", "explain", "evt_0")
    assert shown.exit_code == 0, shown.output
    first, *sentences = shown.stdout.splitlines()
    assert first.startswith("evt_0, invoice.paid, published ")
    assert any("It was delivered to sub_a at " in sentence for sentence in sentences)
    (found,) = history_api.json("events", "explain", "evt_0", "--subscription", "sub_a")["events"]
    assert [each["outcome"] for each in found["explanations"]] == ["delivered"]
    assert "There is no subscription" in history_api("events", "explain", ODD).stdout
    one_line(history_api("events", "explain", "evt_none"), "there is no event evt_none")


def test_what_is_wrong_is_one_line(history_api: HistoryApi) -> None:
    one_line(history_api("events", "show", "evt_none"), "there is no event evt_none")
    one_line(history_api("events", "list", "--since", "soon"), "RFC 3339", "--since", code=2)


def test_without_a_history_it_says_how_to_have_one(api: Api) -> None:
    one_line(api("events", "list"), "set history.store to sqlite")
    one_line(api("events", "show", "evt_1"), "set history.store to sqlite")
