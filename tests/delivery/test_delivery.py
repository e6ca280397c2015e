"""A delivery as what it is: its record, its place, and who is told of what becomes of it."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.broker.base import StoredRecord
from dispatcher.core.commit.offsets import PartitionTracker
from dispatcher.core.endpoint.fairness import Fairness
from dispatcher.core.event.decode import decode
from dispatcher.core.request.results import Response, Result
from dispatcher.core.retry.records import AttemptSummary, Source, read_retry_record
from dispatcher.delivery.delivery import Delivery, DeliveryOwner, DeliveryRoute
from tests.fakes import subscription
from tests.world import event

BODY = event(7, tenant="acme")


class Owner(DeliveryOwner):
    """Remembers what it is told; `fails` is raised then."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.fails: Exception | None = None

    def done(self, delivery: Delivery, result: Result) -> None:
        self.told.append(("done", delivery, result))
        if self.fails is not None:
            raise self.fails

    def wake(self, delivery: Delivery) -> None:
        self.told.append(("wake", delivery))
        if self.fails is not None:
            raise self.fails

    def broken(self, where: str, error: Exception) -> None:
        self.told.append((where, error))


def made(owner: DeliveryOwner | None = None, *, offset: int = 5) -> Delivery:
    """A delivery of the event at `offset` of the first partition of `events`."""
    found = decode(StoredRecord(offset, 1_700_000_000_000, None, BODY), "events", 0)
    return Delivery(owner or Owner(), found, subscription(), PartitionTracker("events", 0, 5), offset)


def test_its_record_says_all_that_the_next_process_needs() -> None:
    delivery = made()
    delivery.attempt = 3
    delivery.first_attempt_ms = 1_700_000_001_000
    delivery.last_result = "status 503"
    delivery.generation = 4
    delivery.replay = "rpl_01d1a94a2000aa"
    delivery.triggered_by = "key ops"
    delivery.history = (AttemptSummary(1, 1_700_000_001_000, "status 503"),)
    message = delivery.record(
        "dispatcher.retry.2m",
        "retry",
        due=1_700_000_100.0,
        parked=2,
        extra=[("more", b"1")],
        unix=1_700_000_002.5,
    )
    assert (message.topic, message.key, message.value) == ("dispatcher.retry.2m", b"sub_1", BODY)
    assert message.timestamp_ms == 1_700_000_002_500
    assert ("more", b"1") in message.headers
    read = read_retry_record(StoredRecord(0, 0, message.key, message.value, message.headers))
    assert (read.event.id, read.event.type, read.event.tenant) == ("evt_7", "test.event", "acme")
    assert read.source == delivery.source == ("events", 0, 5)
    for name in (
        "attempt",
        "first_attempt_ms",
        "last_result",
        "generation",
        "replay",
        "triggered_by",
        "history",
    ):
        assert getattr(read, name) == getattr(delivery, name), name
    assert (read.subscription_id, read.due, read.parked) == ("sub_1", 1_700_000_100.0, 2)


def test_its_source_is_where_the_event_was_read_also_when_it_comes_out_of_a_topic_of_ours() -> None:
    delivery = made()
    assert delivery.source == ("events", 0, 5)
    delivery.event_source = Source("events", 3, 99)
    assert delivery.source == ("events", 3, 99)
    assert (
        delivery.record("dispatcher.dead", "gone").headers != made().record("dispatcher.dead", "gone").headers
    )


def test_it_is_overdue_from_when_its_offset_has_been_owed_for_too_long() -> None:
    delivery = made(offset=6)
    assert not delivery.overdue
    delivery.tracker.overdue_below = 6
    assert not delivery.overdue
    delivery.tracker.overdue_below = 7
    assert delivery.overdue


def test_the_attempt_log_is_told_of_an_end_without_a_request() -> None:
    delivery = made()
    delivery.attempt, delivery.generation, delivery.last_result = 2, 3, "status 500"
    told = delivery.decided("dropped", "cancelled", 1_700_000_000.5)
    assert (told.event, told.subscription_id, told.source) == (delivery.event, "sub_1", ("events", 0, 5))
    assert (told.attempt, told.decision, told.reason, told.generation) == (2, "dropped", "cancelled", 3)


def test_its_owner_is_told_of_results_and_of_the_end_of_a_wait() -> None:
    owner = Owner()
    delivery = made(owner)
    result = Response(200)
    delivery.done(result)
    delivery.wake()
    assert owner.told == [("done", delivery, result), ("wake", delivery)]


@pytest.mark.parametrize(("call", "where"), [("done", "result of an attempt"), ("wake", "retry")])
def test_an_error_where_none_can_be_reaches_its_owner_and_neither_the_transport_nor_the_wheel(
    call: str, where: str
) -> None:
    owner = Owner()
    owner.fails = RuntimeError("a bug")
    delivery = made(owner)
    delivery.done(Response(200)) if call == "done" else delivery.wake()
    assert owner.told[-1] == (where, owner.fails)


def test_a_route_that_is_closed_is_nobodys_and_has_no_pool() -> None:
    owner = object()
    route = DeliveryRoute(owner, 4, 5.0, Fairness(10, 1000), reserved=False)
    assert route.owner is owner
    assert route.offer("sub_1", 4, made(), 0.0) is None
    route.withdraw(lambda _: True)
    route.close()
    assert (route.owner, route.pool) == (None, None)
    with pytest.raises(AttributeError):
        route.offer("sub_1", 4, made(), 0.0)  # a delivery that came too late is no lost one
