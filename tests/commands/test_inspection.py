from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime
from typing import Any

import pytest
from multidict import CIMultiDict
from standardwebhooks import Webhook

from dispatcher.commands.inspection import Inspection, delivery_id, sayable, signature_facts
from dispatcher.commands.receiver import Arrival, ReceiverAnswer, SignatureVerdict, secret_key, verify

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
KEY = secret_key(SECRET)
NOW = 1_700_000_000.0


def arrival(serial: int = 1, **changes: Any) -> Arrival:
    fields: dict[str, Any] = {
        "id": f"evt_{serial}",
        "number": 1,
        "verdict": SignatureVerdict.MISSING,
        "answer": ReceiverAnswer(),
        "at": NOW,
        "headers": CIMultiDict(),
        "body": b"{}",
        "serial": serial,
    }
    return Arrival(**{**fields, **changes})


def signed(body: bytes = b"{}", at: float = NOW, **changes: str) -> Arrival:
    """A request with the headers that the public library makes, some of them changed."""
    signature = Webhook(SECRET).sign("evt_1", datetime.fromtimestamp(at, tz=UTC), body.decode())
    headers = CIMultiDict(
        {"webhook-id": "evt_1", "webhook-timestamp": str(int(at)), "webhook-signature": signature}
    )
    for name, value in changes.items():
        headers[f"webhook-{name}"] = value
    return arrival(body=body, headers=headers, verdict=verify(KEY, headers, body, NOW))


def serials(inspection: Inspection) -> list[int]:
    return [kept.arrival.serial for kept in inspection.since(0)]


def test_the_oldest_requests_go_when_there_are_too_many() -> None:
    inspection = Inspection(requests=3)
    for serial in range(1, 6):
        inspection.keep(arrival(serial))
    assert serials(inspection) == [5, 4, 3]
    assert [kept.arrival.serial for kept in inspection.newest()] == [5, 4, 3]
    assert inspection.request(2) is None
    assert inspection.delivery(delivery_id(arrival(2))) == []


def test_the_oldest_requests_go_when_they_are_too_large_in_all_and_the_newest_stays() -> None:
    inspection = Inspection(size=1000)
    for serial in range(1, 5):
        inspection.keep(arrival(serial, body=bytes(400)))
    assert serials(inspection) == [4, 3]
    inspection.keep(arrival(5, body=bytes(5000)))
    assert serials(inspection) == [5]
    inspection.keep(arrival(6))
    assert serials(inspection) == [6]


def test_header_lines_and_the_target_count_as_what_they_take() -> None:
    inspection = Inspection(size=1000)
    inspection.keep(arrival(1, headers=CIMultiDict({"x-large": "x" * 900})))
    inspection.keep(arrival(2, target="/" + "y" * 900))
    assert serials(inspection) == [2]


def test_requests_with_one_id_are_one_delivery_listed_by_its_newest() -> None:
    inspection = Inspection()
    first, other = arrival(1, id="evt_a"), arrival(2, id="evt_b")
    for each in (first, other, arrival(3, id="evt_a", number=2)):
        inspection.keep(each)
    assert [kept.arrival.serial for kept in inspection.newest()] == [3, 2]
    assert [kept.arrival.serial for kept in inspection.delivery(delivery_id(first))] == [1, 3]


@pytest.mark.parametrize("change", [{"target": "/b"}, {"method": "PUT"}, {"id": "evt_b"}])
def test_another_id_target_or_method_is_another_delivery(change: dict[str, Any]) -> None:
    assert delivery_id(arrival(1, id="evt_a")) != delivery_id(arrival(2, **{"id": "evt_a", **change}))
    assert delivery_id(arrival(1, id="evt_a")) == delivery_id(arrival(2, id="evt_a"))


def test_a_request_without_an_id_is_a_delivery_by_itself() -> None:
    assert delivery_id(arrival(1, id="")) != delivery_id(arrival(2, id=""))


def test_a_delivery_whose_first_requests_are_forgotten_keeps_the_others() -> None:
    inspection = Inspection(requests=2)
    for serial in (1, 2, 3):
        inspection.keep(arrival(serial, id="evt_a", number=serial))
    assert [kept.arrival.number for kept in inspection.delivery(delivery_id(arrival(1, id="evt_a")))] == [
        2,
        3,
    ]


def test_a_sender_that_left_is_noted_also_when_its_request_is_forgotten() -> None:
    inspection = Inspection(requests=1)
    first, second = arrival(1), arrival(2)
    inspection.keep(first)
    inspection.keep(second)
    inspection.note_left(first)
    inspection.note_left(second)
    kept = inspection.request(2)
    assert kept is not None
    assert kept.left


async def test_who_follows_hears_of_each_request() -> None:
    inspection, event = Inspection(), asyncio.Event()
    inspection.changed.add(event)
    inspection.keep(arrival(1))
    await asyncio.wait_for(event.wait(), 10)
    inspection.keep(arrival(2))
    inspection.keep(arrival(3))
    assert [kept.arrival.serial for kept in inspection.since(1)] == [3, 2]


def test_a_valid_signature_is_the_one_that_was_expected() -> None:
    request = signed()
    facts = signature_facts(KEY, request)
    assert facts.verdict == "valid"
    assert facts.missing == ()
    assert facts.off_seconds == 0
    assert facts.schemes == ("v1",)
    assert facts.expected == request.headers["webhook-signature"]


def test_what_is_missing_is_named_and_nothing_is_expected_of_it() -> None:
    facts = signature_facts(KEY, arrival(headers=CIMultiDict({"webhook-timestamp": str(int(NOW))})))
    assert facts.missing == ("webhook-id", "webhook-signature")
    assert facts.expected is None


@pytest.mark.parametrize("off", [-400, 400])
def test_a_timestamp_tells_how_far_it_is_off(off: int) -> None:
    facts = signature_facts(KEY, signed(at=NOW + off))
    assert (facts.verdict, facts.off_seconds) == ("stale", off)


def test_a_timestamp_that_is_no_number_is_off_by_nothing_known() -> None:
    assert signature_facts(KEY, signed(timestamp="yesterday")).off_seconds is None
    assert signature_facts(KEY, signed(timestamp="9" * 5000)).off_seconds is None


def test_the_schemes_of_the_signatures_are_told() -> None:
    facts = signature_facts(KEY, signed(signature="v1a,AAAA v1,BBBB  " + "x" * 5000))
    assert facts.verdict == "wrong"
    assert facts.schemes == ("v1a", "v1", "x" * 16)
    assert facts.expected is not None
    assert facts.expected != "v1,BBBB"


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    assert sayable("ü\udcff") == "ü\N{REPLACEMENT CHARACTER}"
