"""Tenants that can't hurt each other: attempts, memory, bytes and the slots of an origin are shared. On virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from dispatcher.core.request.results import Response, Result
from dispatcher.core.request.urls import Origin
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.core.subscription.model import Subscription
from dispatcher.transport.base import Exchange
from tests.fakes import FixedRegistry, subscription
from tests.world import World, accounted, event, running, until

pytestmark = [pytest.mark.looptime]

PATIENT = RetryPolicy((30.0,) * 40, 0.0)


def hangs(tenant: str | None, origins: int, **fields: Any) -> list[Subscription]:
    """As many subscriptions, each on an origin of its own that never answers."""
    domain = "every" if tenant == "*" else tenant
    return [
        subscription(
            f"{tenant}_{number}",
            f"http://hang{number}.{domain}.test/hang",
            tenant=tenant,
            timeout=600.0,
            max_in_flight=32,
            retry=PATIENT,
            **fields,
        )
        for number in range(origins)
    ]


def well(tenant: str | None, url: str = "http://well.test/ok", **fields: Any) -> Subscription:
    return subscription(f"{tenant}_well", url, tenant=tenant, retry=PATIENT, **fields)


def never(_: Origin, exchange: Exchange) -> tuple[float, Result] | None:
    """No answer for what goes to /hang."""
    return None if b" /hang " in exchange.request else (0.01, Response(200))


def paths(world: World) -> Counter[str]:
    return Counter(request.split()[1].decode() for _, _, request in world.transport.sent)


async def test_a_tenant_whose_endpoints_never_answer_does_not_keep_another_tenants_events() -> None:
    """40 origins with 32 attempts each are more than all that may be under way."""
    registry = FixedRegistry(*hangs("a", 40), well("b"))
    async with running(registry, max_in_flight=1000) as world:
        world.transport.answer = never
        for number in range(32):
            world.broker.append(event(number, tenant="a"))
        await asyncio.sleep(5)
        hanging = paths(world)["/hang"]
        assert 500 < hanging < 900, "all that nobody else wants, but for a part"
        assert world.value("tenants_at_share") == 1
        for number in range(5):
            world.broker.append(event(1000 + number, tenant="b"))
        await until(lambda: world.metrics.delivered == 5, within=5)
        assert paths(world)["/hang"] == hanging
        assert world.metrics.parked["fair_share"] > 0
        # Whatever else the tenant publishes doesn't stop the consumption.
        for number in range(100):
            world.broker.append(event(2000 + number, tenant="a"))
        world.broker.append(event(3000, tenant="b"))
        await until(lambda: world.metrics.delivered == 6, within=5)
        # When its endpoints are well again, it gets everything.
        world.transport.answer = lambda *_: (0.01, Response(200))
        world.transport.end(lambda _: Response(200))
        await until(lambda: world.metrics.delivered == 6 + 40 * 132, within=600)
        await until(lambda: world.value("deliveries_in_flight") == 0)
        assert world.value("tenants_at_share") == 0
        await accounted(world)


async def test_a_subscription_that_could_begin_nothing_gets_its_turn_when_attempts_of_others_have_ended() -> (
    None
):
    """It has nothing under way itself, whose end could be what it waits for."""
    registry = FixedRegistry(
        *(
            subscription(
                f"a_{kind}",
                f"http://{kind}.test/hang",
                tenant="a",
                event_types=(f"test.{kind}",),
                timeout=600.0,
                max_in_flight=32,
                retry=PATIENT,
            )
            for kind in ("first", "second", "third", "fourth", "fifth", "last")
        )
    )
    async with running(registry, max_in_flight=80) as world:
        world.transport.answer = never
        # So few that the memory is not short: else what is held would be parked, and come back by another way.
        for kind, count in (
            ("first", 28),
            ("second", 26),
            ("third", 9),
            ("fourth", 3),
            ("fifth", 2),
            ("last", 1),
        ):
            for number in range(count):
                world.broker.append(
                    b'{"id": "evt_%d", "type": "test.%s", "tenant": "a"}' % (number, kind.encode())
                )
            await asyncio.sleep(1)
        assert world.value("tenants_at_share") == 1
        assert not any(origin.host == "last.test" for _, origin, _ in world.transport.sent)
        world.transport.answer = lambda *_: (0.01, Response(200))
        world.transport.end(lambda _: Response(200))
        await until(lambda: world.metrics.delivered == 69, within=5)


async def test_one_tenant_after_the_other_that_never_gets_answers_leaves_room_for_the_next() -> None:
    registry = FixedRegistry(*(each for name in "abcd" for each in hangs(name, 40)), well("honest"))
    async with running(registry, max_in_flight=1000) as world:
        world.transport.answer = never
        for turn, name in enumerate("abcd"):
            for number in range(32):
                world.broker.append(event(100 * turn + number, tenant=name))
            await asyncio.sleep(5)
        for number in range(5):
            world.broker.append(event(1000 + number, tenant="honest"))
        await until(lambda: world.metrics.delivered == 5, within=5)


async def test_a_tenant_whose_bodies_are_large_does_not_take_all_of_the_memory() -> None:
    registry = FixedRegistry(*hangs("a", 10), well("b"))
    async with running(registry, max_in_flight_bytes=1 << 20) as world:
        world.transport.answer = never
        large = b'{"id": "evt_%d", "type": "test.event", "tenant": "a", "data": "' + b"x" * 10_000 + b'"}'
        for number in range(32):
            world.broker.append(large % number)
        await asyncio.sleep(5)
        hanging = paths(world)["/hang"]
        assert hanging < 90, "of 104 that would fit"
        world.broker.append(event(1000, tenant="b"))
        await until(lambda: world.metrics.delivered == 1, within=5)


async def test_two_subscriptions_that_hang_leave_their_origin_to_another_tenant() -> None:
    registry = FixedRegistry(
        *(
            subscription(f"a_{number}", "http://shared.test/hang", tenant="a", timeout=600.0, retry=PATIENT)
            for number in range(2)
        ),
        well("b", "http://shared.test/ok"),
    )
    async with running(registry) as world:
        world.transport.answer = never
        for number in range(40):
            world.broker.append(event(number, tenant="a"))
        await asyncio.sleep(5)
        assert 16 < paths(world)["/hang"] < 28
        for number in range(5):
            world.broker.append(event(1000 + number, tenant="b"))
        await until(lambda: world.metrics.delivered == 5, within=5)


async def test_of_one_tenant_too_a_subscription_that_hangs_leaves_room_for_the_others() -> None:
    """Without a tenant, as where there is only the operator."""
    registry = FixedRegistry(*hangs(None, 40), well(None))
    async with running(registry, max_in_flight=1000) as world:
        world.transport.answer = never
        for number in range(32):
            world.broker.append(event(number))
        await asyncio.sleep(5)
        assert paths(world)["/hang"] > 800, "nobody else can come, so little is kept free"
        delivered = world.metrics.delivered
        for number in range(5):
            world.broker.append(event(1000 + number))
        await until(lambda: world.metrics.delivered >= delivered + 5, within=20)


async def test_subscriptions_of_the_operator_count_as_one_tenant() -> None:
    registry = FixedRegistry(*hangs("*", 20), *hangs(None, 20), well("b", "http://b.test/ok"))
    async with running(registry, max_in_flight=1000) as world:
        world.transport.answer = never
        world.broker.append(event(0, tenant="b"))
        await until(lambda: world.metrics.delivered == 1, within=5)
        for number in range(64):
            world.broker.append(event(1 + number))
        await asyncio.sleep(5)
        assert 500 < paths(world)["/hang"] <= 788, "an eighth of 900 is left"
        world.broker.append(event(1000, tenant="b"))
        await until(lambda: world.metrics.delivered == 2, within=5)


async def test_few_descriptors_are_shared_too() -> None:
    """Attempts beyond what the process may open would fail, and be booked against endpoints."""
    registry = FixedRegistry(*hangs("a", 10), well("b"))
    async with running(registry, descriptors=100) as world:
        world.transport.answer = never
        for number in range(32):
            world.broker.append(event(number, tenant="a"))
        await asyncio.sleep(5)
        assert paths(world)["/hang"] <= 44, "an eighth of 50 is left"
        world.broker.append(event(1000, tenant="b"))
        await until(lambda: world.metrics.delivered == 1, within=5)
