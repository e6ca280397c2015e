"""What the process is told of the control plane, and what the engine tells it."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.control import operational_events as announcements
from dispatcher.core.event.decode import Event
from tests.control.conftest import Make, Plane
from tests.fakes import subscription

pytestmark = pytest.mark.looptime


async def test_a_delivery_given_up_is_published_but_not_of_an_operational_event(plane: Plane) -> None:
    owner = subscription(tenant="*")
    for kind in ("a.b", announcements.EXHAUSTED, announcements.DISABLED):
        plane.plane.exhausted(
            owner, Event("evt_1", kind, "acme", b"{}", 0, b""), "exhausted", 10, "status 500"
        )
    await asyncio.sleep(5)
    [event] = plane.events()
    assert event["type"] == "dispatcher.delivery.exhausted"
    assert "tenant" not in event
    assert event["data"] == {
        "subscription_id": owner.id,
        "event_id": "evt_1",
        "event_type": "a.b",
        "event_tenant": "acme",
        "reason": "exhausted",
        "attempts": 10,
        "last_result": "status 500",
    }


async def test_it_says_what_it_waits_for_and_what_is_not_delivered_to(make: Make) -> None:
    plane = await make()
    assert plane.plane.problems() == []
    assert plane.plane.warnings() == []
    plane.store.reading = True
    assert plane.plane.problems() == ["still reading"]
    plane.store.refused = {"invalid": 2, "sealed": 1}
    assert [warning.partition(":")[0] for warning in plane.plane.warnings()] == [
        "2 subscriptions are not delivered to, reason invalid",
        "1 subscription is not delivered to, reason sealed",
    ]
