"""Operational events: what happens to subscriptions, published."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.broker.base import BrokerUnavailable, Message, StoredRecord
from dispatcher.core.event.decode import Event, decode
from tests.control.conftest import Make, Plane
from tests.fakes import subscription
from tests.world import until

pytestmark = pytest.mark.looptime


def read(message: Message) -> Event:
    return decode(StoredRecord(0, 5, message.key, message.value, message.headers), message.topic, 0)


async def test_what_happens_to_a_subscription_is_published(plane: Plane) -> None:
    plane.endpoints.allow()
    id_ = (await plane.create(tenant="acme", validate=True)).view.id
    await until(lambda: plane.registry.counts()["pending"] == 0)
    plane.registry.disable(id_, "gone")
    await plane.subscriptions.delete(id_, tenant=None)
    await until(lambda: len(plane.events()) == 4)
    assert [event["type"] for event in plane.events()] == [
        "dispatcher.subscription.created",
        "dispatcher.subscription.validated",
        "dispatcher.subscription.disabled",
        "dispatcher.subscription.deleted",
    ]
    assert {event["tenant"] for event in plane.events()} == {"acme"}
    assert {event["data"]["subscription_id"] for event in plane.events()} == {id_}
    assert plane.events()[2]["data"]["reason"] == "gone"
    # The path of a URL is often what lets somebody in.
    assert {event["data"]["host"] for event in plane.events()} == {"hooks.acme.example"}
    assert [read(message).type for message in plane.messages()] == [e["type"] for e in plane.events()]


async def test_there_are_never_too_many_of_them_and_a_broker_that_is_away_loses_none_of_the_few(
    plane: Plane,
) -> None:
    owner = subscription()
    plane.broker.produce_errors += [BrokerUnavailable("away")] * 3
    for number in range(5000):
        plane.plane.exhausted(owner, Event(f"evt_{number}", "a.b", None, b"{}", 0, b""), "exhausted", 1, None)
    await asyncio.sleep(60)
    assert [event["data"]["event_id"] for event in plane.events()] == [f"evt_{n}" for n in range(500)]
    assert plane.metrics.announcements == {"published": 500, "dropped": 4500}


async def test_one_that_cannot_be_written_harms_nothing(plane: Plane) -> None:
    plane.plane.announcer.announce("dispatcher.x", "sub_1", None, {"text": "\ud800"})
    plane.plane.announcer.announce("dispatcher.y", "sub_1", None, {})
    await asyncio.sleep(5)
    assert [event["type"] for event in plane.events()] == ["dispatcher.y"]


async def test_they_are_left_out_where_the_setting_says_so(make: Make) -> None:
    plane = await make(operational_events=False)
    await plane.create()
    await asyncio.sleep(5)
    assert plane.messages() == []
