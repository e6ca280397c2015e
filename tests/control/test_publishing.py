"""Publishing over HTTP, and operational events."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from dispatcher.broker.base import BrokerRefused, BrokerUnavailable, Message, MessageTooLarge, StoredRecord
from dispatcher.control.errors import Invalid, Overloaded, TooLarge, Unavailable
from dispatcher.core.attempt.tracing import traceparent_of
from dispatcher.core.event.decode import Event, decode
from tests.control.conftest import Make, Plane, flaws

pytestmark = [pytest.mark.looptime]


def read(message: Message) -> Event:
    return decode(StoredRecord(0, 5, message.key, message.value, message.headers), message.topic, 0)


async def test_what_is_answered_is_in_the_topic_as_it_will_be_read(plane: Plane) -> None:
    given = {"type": "a.b", "id": "evt_1", "tenant": "acme", "created": 12.5, "data": {"n": 1}}
    [published] = await plane.publisher.publish([given], tenant=None)
    assert (published.id, published.duplicate, published.warnings) == ("evt_1", False, [])
    [message] = plane.messages()
    event = read(message)
    assert (event.id, event.type, event.tenant, event.occurred_ms) == ("evt_1", "a.b", "acme", 12_500)
    assert plane.events()[0]["data"] == {"n": 1}


async def test_a_trace_goes_on_to_the_endpoints(plane: Plane) -> None:
    parent = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    trace = [("traceparent", parent), ("tracestate", b"a=1")]
    await plane.publisher.publish([{"type": "a.b"}, {"type": "a.c"}], tenant=None, trace=trace)
    for message in plane.messages():
        event = read(message)
        assert event.head.endswith(b"traceparent: %b\r\ntracestate: a=1\r\n" % parent)
        assert traceparent_of(event) == parent


async def test_an_id_and_a_time_are_made_where_there_are_none(plane: Plane) -> None:
    [published] = await plane.publisher.publish([{"type": "a.b"}], tenant=None)
    assert plane.events()[0]["id"] == published.id
    assert plane.events()[0]["created"] >= 1_000_000_000


async def test_a_tenants_events_are_its_own(plane: Plane) -> None:
    await plane.publisher.publish([{"type": "a.b"}], tenant="acme")
    assert plane.events()[0]["tenant"] == "acme"
    assert "tenant" in await flaws(
        plane.publisher.publish([{"type": "a.b", "tenant": "other"}], tenant="acme")
    )


async def test_an_id_is_written_once_within_the_window_and_for_each_tenant(make: Make) -> None:
    plane = await make(publish_window=600.0)
    event = {"type": "a.b", "id": "evt_1"}
    for tenant, duplicate in ((None, False), (None, True), ("acme", False), ("acme", True)):
        [published] = await plane.publisher.publish([event], tenant=tenant)
        assert published.duplicate is duplicate
    assert len(plane.events()) == 2
    await asyncio.sleep(601)
    [published] = await plane.publisher.publish([event], tenant=None)
    assert not published.duplicate


async def test_an_id_stands_for_one_event(plane: Plane) -> None:
    await plane.publisher.publish([{"type": "a.b", "id": "evt_1"}], tenant=None)
    assert "id" in await flaws(plane.publisher.publish([{"type": "a.c", "id": "evt_1"}], tenant=None))
    batch = [{"type": "a.b", "id": "evt_2"}, {"type": "a.c", "id": "evt_2"}]
    assert "[1].id" in await flaws(plane.publisher.publish(batch, tenant=None))
    batch[1] = batch[0]
    first, second = await plane.publisher.publish(batch, tenant=None)
    assert (first.duplicate, second.duplicate) == (False, True)


async def test_a_batch_is_written_whole_or_not_at_all(plane: Plane) -> None:
    wrong = await flaws(
        plane.publisher.publish(
            [
                {"type": "a.b"},
                {"type": "a\nb"},
                {"data": 1},
                {"type": "dispatcher.delivery.exhausted"},
                {"type": "a", "id": ""},
                {"type": "a", "id": "a\nb"},
                {"type": "a", "created": True},
                {"type": "a", "bogus": 1},
                5,  # type: ignore[list-item]
                {"type": "a", "tenant": "*"},
            ],
            tenant=None,
        )
    )
    assert set(wrong) == {
        "[1].type",
        "[2].type",
        "[3].type",
        "[4].id",
        "[5].id",
        "[6].created",
        "[7].bogus",
        "[8]",
        "[9].tenant",
    }
    assert plane.messages() == []
    with pytest.raises(Invalid):
        await plane.publisher.publish([], tenant=None)


async def test_what_is_too_large_is_refused(make: Make) -> None:
    plane = await make(max_event_bytes=2000)
    for events in (
        [{"type": "a", "data": "x" * 2000}],
        [{"type": "a", "data": "x" * 1900}] * 9,
        [{"type": "a"}] * 1001,
    ):
        with pytest.raises(TooLarge):
            await plane.publisher.publish(events, tenant=None)
    with pytest.raises(TooLarge) as caught:
        await plane.publisher.publish([{"type": "a"}, {"type": "a", "data": "x" * 2000}], tenant=None)
    assert [flaw.field for flaw in caught.value.flaws] == ["[1]"]
    plane.broker.produce_errors.append(MessageTooLarge("1 MB at most"))
    with pytest.raises(TooLarge):
        await plane.publisher.publish([{"type": "a"}], tenant=None)
    assert plane.messages() == []


async def test_a_broker_that_is_away_or_says_no_is_unavailable_and_the_event_can_be_sent_again(
    plane: Plane,
) -> None:
    event = {"type": "a.b", "id": "evt_1"}
    for error in (BrokerUnavailable("away"), BrokerRefused("no")):
        plane.broker.produce_errors.append(error)
        with pytest.raises(Unavailable):
            await plane.publisher.publish([event], tenant=None)
    [published] = await plane.publisher.publish([event], tenant=None)
    assert not published.duplicate
    assert len(plane.events()) == 1


async def test_nothing_is_published_before_the_topics_are_there(plane: Plane) -> None:
    plane.store.reading = True
    with pytest.raises(Unavailable):
        await plane.publisher.publish([{"type": "a"}], tenant=None)


async def test_a_broker_that_does_not_answer_is_not_waited_for_for_ever(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = await make()

    async def hang(_messages: Sequence[Message]) -> None:
        await asyncio.sleep(1e6)

    monkeypatch.setattr(plane.publisher, "_produce", hang)
    with pytest.raises(Unavailable, match="same id"):
        await plane.publisher.publish([{"type": "a.b", "id": "evt_1"}], tenant=None)


async def test_what_waits_for_the_broker_is_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    plane = await make(max_event_bytes=20 << 20)
    gate = asyncio.Event()

    async def slow(_messages: Sequence[Message]) -> None:
        await gate.wait()

    monkeypatch.setattr(plane.publisher, "_produce", slow)

    async def publish() -> Any:
        return await plane.publisher.publish([{"type": "a", "data": "x" * (12 << 20)}], tenant=None)

    async def open_gate() -> None:
        await asyncio.sleep(1)
        gate.set()

    results = await asyncio.gather(publish(), publish(), publish(), open_gate(), return_exceptions=True)
    overloaded = [result for result in results if isinstance(result, Overloaded)]
    assert len(overloaded) == 1
    assert overloaded[0].retry_after > 0
    assert not (await publish())[0].duplicate


async def test_of_two_at_once_with_the_same_id_the_second_waits_for_what_becomes_of_the_first(
    plane: Plane,
) -> None:
    event = {"type": "a.b", "id": "evt_1"}

    async def publish() -> bool:
        [published] = await plane.publisher.publish([event], tenant=None)
        return published.duplicate

    assert sorted(await asyncio.gather(publish(), publish())) == [False, True]
    plane.broker.produce_errors.append(BrokerUnavailable("away"))
    event = {"type": "a.b", "id": "evt_2"}
    results = await asyncio.gather(publish(), publish(), return_exceptions=True)
    assert isinstance(results[0], Unavailable)
    assert results[1] is False
    assert [one["id"] for one in plane.events()] == ["evt_1", "evt_2"]


async def test_payloads_are_compared_with_their_schemas_as_the_setting_says(make: Make) -> None:
    for setting, warned in (("off", []), ("warn", ["[1].data"])):
        plane = await make(publish_validation=setting)
        await plane.catalogue.put("a.b", {"schema": {"type": "object"}})
        result = await plane.publisher.publish([{"type": "a.b", "data": {}}, {"type": "a.b"}], tenant=None)
        assert [flaw.field for one in result for flaw in one.warnings] == warned
    plane = await make(publish_validation="enforce")
    await plane.catalogue.put("a.b", {"schema": {"type": "object"}})
    assert "data" in await flaws(plane.publisher.publish([{"type": "a.b", "data": 1}], tenant=None))
    assert plane.messages() == []
