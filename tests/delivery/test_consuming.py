"""What is taken up of the event topics, and how much of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from dispatcher.broker.base import (
    BrokerUnavailable,
    Position,
    TopicPartition,
)
from dispatcher.core.request.results import Response
from dispatcher.core.subscription.model import Status
from tests.delivery.test_engine import RetryPolicyOf
from tests.fakes import FixedRegistry, MemoryBroker, subscription
from tests.world import EVENTS, event, running, until

pytestmark = [pytest.mark.looptime]


async def test_what_nobody_wants_is_counted_and_committed() -> None:
    async with running(FixedRegistry()) as world:
        for number in range(100):
            world.broker.append(event(number))
        await until(lambda: world.committed == 100)
        assert world.value("events_unmatched_total") == 100
        assert world.transport.sent == []


@pytest.mark.parametrize(
    ("value", "headers", "reason"),
    [
        (b"not json", [], "json"),
        (b'{"no": "type"}', [], "type"),
        (b"anything", [("type", b"bad\ntype")], "type"),
    ],
)
async def test_a_record_that_is_no_event_is_dead_lettered_and_blocks_nothing(
    value: bytes, headers: list[tuple[str, bytes | None]], reason: str
) -> None:
    async with running(FixedRegistry(subscription())) as world:
        world.broker.append(value, headers)
        world.broker.append(event(2))
        await until(lambda: world.committed == 2)
        assert len(world.transport.sent) == 1
        (dead,) = world.dead()
        assert dead["reason"] == reason
        assert dead["offset"] == "0"
        assert world.broker.produced[0].value == value
        assert [name for name, _ in headers] == [
            n.removeprefix("original.") for n in dead if "original." in n
        ]
        assert world.value("events_invalid_total", reason=reason) == 1


async def test_a_tombstone_is_skipped_and_counted() -> None:
    async with running(FixedRegistry(subscription())) as world:
        world.broker.append(None)
        await until(lambda: world.committed == 1)
        assert world.value("events_skipped_total", reason="tombstone") == 1
        assert world.dead() == []


@pytest.mark.parametrize(
    "headers",
    [
        (
            ("ce_specversion", b"1.0"),
            ("ce_id", b"ce 1"),
            ("ce_source", b"/s"),
            ("ce_type", b"user/deleted v2"),
        ),
        (("type", b"user/deleted v2"), ("id", b"ce 1")),
    ],
    ids=["CloudEvents", "header-routed"],
)
async def test_an_event_without_data_is_delivered_with_an_empty_body_and_so_is_its_dead_letter(
    headers: Any,
) -> None:
    async with running(FixedRegistry(subscription(retry=RetryPolicyOf(5.0, 20.0)))) as world:
        world.transport.answer = lambda *_: (0.0, Response(503))
        world.broker.append(None, headers)
        await until(lambda: world.committed == 1, within=400)
        assert len(world.transport.sent) == 3
        for _, _, request in world.transport.sent:
            head, _, body = request.partition(b"\r\n\r\n")
            assert body == b""
            assert b"\r\nContent-Length: 0" in head
            assert b"Content-Type" not in head
            assert b"\r\nwebhook-id: ce%201\r\n" in head
            assert b"\r\nwebhook-event-type: user/deleted%20v2\r\n" in head
        assert world.broker.produced[-1].value == b""
        assert world.dead()[0]["event_id"] == "ce 1"
        assert not world.value("events_skipped_total", reason="tombstone")


async def test_at_the_cap_nothing_more_is_consumed_but_the_group_still_hears_from_this_member() -> None:
    async with running(
        FixedRegistry(subscription(max_in_flight=1000)), max_in_flight=100, max_queue_wait=3600.0
    ) as world:
        world.transport.answer = lambda *_: (30.0, Response(200))
        for number in range(500):
            world.broker.append(event(number))
        consumer = world.broker.consumers[0]
        await until(lambda: world.value("deliveries_in_flight") == 100)
        polls = consumer.polls
        await asyncio.sleep(10)
        assert world.value("deliveries_in_flight") == 100
        assert world.value("consumption_paused") == 1
        assert consumer.paused == {EVENTS}
        assert consumer.polls >= polls + 15
        await until(lambda: world.committed == 500, within=2000)
        assert consumer.paused == set()
        assert len(world.transport.sent) == 500


async def test_at_the_cap_nobody_waits_for_what_is_dropped_as_soon_as_it_is_looked_at() -> None:
    async with running(FixedRegistry(subscription(status=Status.PAUSED)), max_in_flight=5) as world:
        for number in range(100):
            world.broker.append(event(number))
        await until(lambda: world.committed == 100)
        assert world.value("deliveries_total", outcome="dropped_paused") == 100
        assert world.value("deliveries_in_flight") == 0


async def test_the_cap_holds_within_the_fan_out_of_one_event() -> None:
    registry = FixedRegistry(*(subscription(f"s{n}", f"http://h{n}.test/") for n in range(300)))
    async with running(registry, max_in_flight=50) as world:
        world.transport.answer = lambda *_: (1.0, Response(200))
        world.broker.append(event(1))
        peak = 0.0
        while world.committed != 1:
            peak = max(peak, world.value("deliveries_in_flight") or 0)
            await asyncio.sleep(0.05)
        assert peak == 50
        assert len({origin.host for _, origin, _ in world.transport.sent}) == 300


ELSEWHERE = TopicPartition("events", 1)


async def test_records_polled_before_their_partition_left_and_came_back_do_not_pass_for_its_new_ones() -> (
    None
):
    """A batch waits behind another partition's at the cap; its partition goes and comes meanwhile."""

    def named(number: int, kind: str) -> bytes:
        return f'{{"id": "evt_{kind}{number}", "type": "test.{kind}"}}'.encode()

    registry = FixedRegistry(
        subscription("a", "http://a.test/", event_types=("test.a",)),
        subscription("b", "http://b.test/", event_types=("test.b",)),
    )
    broker = MemoryBroker(EVENTS, ELSEWHERE)
    async with running(registry, broker, max_in_flight=4) as world:
        world.transport.answer = lambda *_: None
        broker.append(named(0, "b"), partition=ELSEWHERE)
        await until(lambda: len(world.transport.sent) == 1)
        for number in range(6):
            broker.append(named(number, "a"), partition=EVENTS)
        for number in range(1, 5):
            broker.append(named(number, "b"), partition=ELSEWHERE)
        await until(lambda: world.value("consumption_paused") == 1)
        await broker.consumers[0].assign([EVENTS])
        await asyncio.sleep(0.1)
        await broker.consumers[0].assign([EVENTS, ELSEWHERE])
        world.transport.sent.clear()
        world.transport.answer = lambda *_: (0.001, Response(200))
        world.transport.end(lambda request: Response(500 if b"evt_b0\r" in request else 200))
        await until(lambda: broker.committed.get(ELSEWHERE) == 5, within=700)
        assert any(b"webhook-id: evt_b0\r" in request for _, _, request in world.transport.sent)


async def test_room_that_comes_right_after_a_rebalance_is_used() -> None:
    async with running(FixedRegistry(subscription()), max_in_flight=20) as world:
        await asyncio.sleep(0.1)
        await world.engine._events.on_revoked([EVENTS])
        for number in range(100):
            world.broker.append(event(number))
        await until(lambda: world.value("consumption_paused") == 1)
        await world.engine._events.on_assigned({EVENTS: Position(0)})
        await until(lambda: world.committed == 100)
        assert world.broker.consumers[0].paused == set()


async def test_a_rebalance_within_the_poll_of_a_paused_member_loses_nothing() -> None:
    async with running(FixedRegistry(subscription(max_in_flight=32)), max_in_flight=4) as world:
        world.transport.answer = lambda *_: (2.0, Response(200))
        for number in range(40):
            world.broker.append(event(number))
        await until(lambda: world.value("consumption_paused") == 1)
        consumer = world.broker.consumers[0]
        poll = consumer.poll
        rebalanced = False

        async def rebalancing_poll(timeout: float, limit: int) -> Any:
            nonlocal rebalanced
            if timeout == 0 and not rebalanced:
                rebalanced = True
                await consumer.assign([EVENTS])
            return await poll(timeout, limit)

        consumer.poll = rebalancing_poll  # type: ignore[method-assign]
        await until(lambda: world.committed == 40, within=300)
        assert rebalanced
        delivered = {
            request.split(b"webhook-id: ")[1].split(b"\r")[0] for _, _, request in world.transport.sent
        }
        assert len(delivered) == 40


async def test_what_is_no_event_is_held_to_the_caps_too() -> None:
    async with running(FixedRegistry(), max_in_flight=10) as world:
        world.broker.produce_errors = [BrokerUnavailable("away")] * 5
        for _ in range(200):
            world.broker.append(b"no event")
        await asyncio.sleep(3)
        assert world.value("deliveries_in_flight") == 10
        await until(lambda: world.committed == 200)


async def test_what_nobody_wants_is_told_with_its_tenant_and_type() -> None:
    with capture_logs() as logs:
        async with running(FixedRegistry(subscription(tenant=None))) as world:
            for number in range(3):
                world.broker.append(event(number, tenant="acme"))
            await until(lambda: world.committed == 3)
    [line] = [line for line in logs if "no subscription wants" in line["event"]]
    assert (line["tenant"], line["type"], line["event_id"]) == ("acme", "test.event", "evt_0")
