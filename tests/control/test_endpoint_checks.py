"""Pings, and how deliveries go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from msgspec.structs import replace
from orjson import loads

from dispatcher.control.cluster import ClusterView, Seen
from dispatcher.control.errors import (
    NotFound,
    Overloaded,
)
from dispatcher.core.cluster.record import Trouble
from dispatcher.core.request.results import Failure, Reason, Response
from dispatcher.core.subscription.model import Subscription
from tests.control.conftest import Plane, flaws

pytestmark = [pytest.mark.looptime]


async def test_a_ping_tells_what_came_of_it_whatever_the_status(plane: Plane) -> None:
    id_ = (await plane.create(tenant="acme", payload="thin", status="paused")).view.id
    result = await plane.checks.ping(id_, tenant="acme")
    assert (result.delivered, result.status, result.reason, result.body) == (True, 200, None, "ok")
    [(head, body)] = plane.endpoints.asked
    assert f"webhook-id: {result.event_id}" in head
    assert loads(body)["type"] == "ping"
    plane.endpoints.answer = lambda _method, _body: Response(500, None, None, b"\xff")
    result = await plane.checks.ping(id_, tenant=None)
    assert (result.delivered, result.status, result.body) == (False, 500, "�")
    plane.endpoints.answer = lambda _method, _body: Failure(Reason.TIMEOUT, "15s")
    result = await plane.checks.ping(id_, tenant=None)
    assert (result.delivered, result.status, result.reason, result.detail) == (False, None, "timeout", "15s")


async def test_too_many_pings_at_a_time_are_refused(plane: Plane) -> None:
    id_ = (await plane.create()).view.id
    results = await asyncio.gather(
        *(plane.checks.ping(id_, tenant=None) for _ in range(6)), return_exceptions=True
    )
    assert sum(isinstance(result, Overloaded) for result in results) == 2


async def test_health_says_whose_view_it_is_and_what_the_engine_knows(plane: Plane) -> None:
    id_ = (await plane.create()).view.id
    health = plane.checks.health(id_, tenant=None)
    assert health.replica
    assert (health.success_rate, health.queued, health.failing_since_ms) == (None, 0, None)
    plane.registry.note_failing(id_, 1000.0)

    class Engine:
        success_rate, latency_mean, latency_p95 = 0.5, 0.1, 0.2
        breaker, queued, in_flight, attempts = "open", 3, 1, 4
        last_failure, last_failure_at, failing_since = "status 500", 1234.5, 1200.0

        def health(self, _id: str) -> Engine:
            return self

    plane.plane.attach(Engine())
    health = plane.checks.health(id_, tenant=None)
    assert (health.success_rate, health.breaker, health.queued) == (0.5, "open", 3)
    assert (health.last_failure, health.last_failure_ms) == ("status 500", 1_234_500)
    assert health.failing_since_ms == 1_000_000


async def test_a_test_event_is_what_a_published_one_would_be(plane: Plane) -> None:
    await plane.catalogue.put("invoice.paid", {"example": {"amount": 3}, "schema": {"required": ["amount"]}})
    await plane.create(tenant="acme", id="sub_a", status="paused")
    result = await plane.checks.test("sub_a", "invoice.paid", tenant="acme")
    assert (result.delivered, result.status, result.body) == (True, 200, "ok")
    await plane.checks.test("sub_a", "invoice.paid", tenant="acme", data={"amount": 7})
    sent = [loads(body) for _, body in plane.endpoints.asked]
    assert [(each["type"], each["tenant"], each["data"]) for each in sent] == [
        ("invoice.paid", "acme", {"amount": 3}),
        ("invoice.paid", "acme", {"amount": 7}),
    ]
    assert sent[0]["id"] == result.event_id
    assert result.event_id.startswith("evt_test_")
    assert "invoice.paid" not in [event["type"] for event in plane.events()], "it isn't published"


async def test_a_test_event_that_could_not_be_published_is_refused(plane: Plane) -> None:
    await plane.catalogue.put("bare", {})
    await plane.catalogue.put("strict", {"schema": {"type": "object"}})
    await plane.create(tenant="acme", id="sub_a")
    assert "event_type" in await flaws(plane.checks.test("sub_a", "nobody.knows", tenant="acme"))
    assert "data" in await flaws(plane.checks.test("sub_a", "bare", tenant="acme"))
    assert "data" in await flaws(plane.checks.test("sub_a", "strict", tenant="acme", data=5))
    with pytest.raises(NotFound):
        await plane.checks.test("sub_a", "bare", tenant="globex", data={})
    assert plane.endpoints.asked == []


async def test_health_is_of_all_replicas_that_have_something_to_say(plane: Plane) -> None:
    id_ = (await plane.create(tenant="acme")).view.id
    trouble = Trouble(
        subscription_id=id_,
        tenant="acme",
        since_ms=5000,
        attempts=4,
        succeeded=1,
        latency_mean_ms=300.0,
        latency_p95_ms=400.0,
        breaker="open",
        queued=7,
        last_result="status 503",
        last_ms=2_000_000,
    )
    others = [
        Seen("one:1", trouble, cut=False),
        Seen("two:1", None, cut=False),
        Seen("three:1", None, cut=True),
    ]

    class Cluster(ClusterView):
        def __init__(self) -> None: ...

        def of_subscription(self, subscription: Subscription) -> Sequence[Seen]:
            assert subscription.id == id_
            return others

    plane.checks.cluster = Cluster()
    health = plane.checks.health(id_, tenant="acme")
    assert (health.success_rate, health.latency_mean, health.latency_p95) == (0.25, 0.3, 0.4)
    assert (health.breaker, health.queued, health.failing_since_ms) == ("open", 7, 5000)
    assert (health.last_failure, health.last_failure_ms) == ("status 503", 2_000_000)
    assert [(each.replica, each.in_trouble) for each in health.replicas] == [
        ("one:1", True),
        ("two:1", False),
        ("three:1", None),
    ]

    class Engine:
        success_rate, latency_mean, latency_p95 = 1.0, 0.1, 0.2
        breaker, queued, in_flight, attempts = "closed", 3, 1, 12
        last_failure, last_failure_at = "status 500", 1234.5
        failing_since: float | None = 4.0

        def health(self, _id: str) -> Engine:
            return self

    engine = Engine()
    plane.plane.attach(engine)
    # What this process says in the topic is a little old: it is told what it knows itself.
    others.append(Seen(health.replica, replace(trouble, since_ms=2000), cut=False))
    assert plane.checks.health(id_, tenant="acme").failing_since_ms == 4000
    engine.failing_since = None
    assert plane.checks.health(id_, tenant="acme").failing_since_ms == 5000
    plane.registry.note_failing(id_, 3.0)
    health = plane.checks.health(id_, tenant="acme")
    assert health.success_rate == 13 / 16
    assert health.latency_mean == pytest.approx((0.3 + 12 * 0.1) / 13)
    assert (health.queued, health.in_flight, health.breaker) == (10, 1, "open")
    assert (health.last_failure, health.failing_since_ms) == ("status 503", 3000)
