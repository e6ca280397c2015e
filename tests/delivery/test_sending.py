"""What becomes of a delivery between its lane and its request."""

from __future__ import annotations

import pytest

from dispatcher.core.request.results import Response
from dispatcher.core.subscription.index import Index
from dispatcher.core.subscription.model import Status
from tests.delivery.test_engine import RetryPolicyOf
from tests.fakes import FixedRegistry, subscription
from tests.world import event, running, until

pytestmark = [pytest.mark.looptime]


@pytest.mark.parametrize("status", [307, 308])
async def test_a_redirect_is_a_failure_that_names_the_location_unless_the_subscription_follows_it(
    status: int,
) -> None:
    async with running(FixedRegistry(subscription(retry=RetryPolicyOf()))) as world:
        world.transport.answer = lambda *_: (0.0, Response(status, location="/elsewhere"))
        world.broker.append(event(1))
        await until(lambda: world.committed == 1)
        assert len(world.transport.sent) == 1
        assert world.dead()[0]["last_result"] == f"status {status} to /elsewhere"


@pytest.mark.parametrize("status", [307, 308])
async def test_same_origin_redirects_are_followed_within_the_same_attempt(status: int) -> None:
    async with running(FixedRegistry(subscription(follow_redirects=True))) as world:
        answers = iter(
            [
                Response(status, location="two"),
                Response(status, location="http://endpoint.test/3?x=y"),
                Response(200),
            ]
        )
        world.transport.answer = lambda *_: (1.0, next(answers))
        world.broker.append(event(1))
        await until(lambda: world.committed == 1)
        requests = [request for _, _, request in world.transport.sent]
        assert [request.split(b" ")[1] for request in requests] == [b"/hook", b"/two", b"/3?x=y"]
        assert len({request.split(b"\r\n", 1)[1] for request in requests}) == 1, "headers and body stay"
        assert world.value("attempts_total", outcome="delivered", code_class="2xx") == 1
        assert world.value("attempt_duration_seconds_sum") == pytest.approx(3.0, abs=0.1)


async def test_no_more_than_three_redirects_are_followed() -> None:
    async with running(FixedRegistry(subscription(follow_redirects=True, retry=RetryPolicyOf()))) as world:
        world.transport.answer = lambda *_: (0.0, Response(307, location="/round"))
        world.broker.append(event(1))
        await until(lambda: world.committed == 1)
        assert len(world.transport.sent) == 4
        assert world.dead()[0]["last_result"] == "status 307 to /round"


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest",
        "http://other.test/",
        "https://endpoint.test/",
        "//127.0.0.1/",
        "http://[::1]/",
    ],
)
async def test_a_redirect_elsewhere_is_blocked(location: str) -> None:
    async with running(FixedRegistry(subscription(follow_redirects=True, retry=RetryPolicyOf()))) as world:
        world.transport.answer = lambda *_: (0.0, Response(307, location=location))
        world.broker.append(event(1))
        await until(lambda: world.committed == 1)
        assert len(world.transport.sent) == 1
        assert world.dead()[0]["last_result"].startswith("blocked: status 307, not followed: ")
        assert world.value("attempts_total", outcome="blocked", code_class="none") == 1


async def test_what_a_paused_subscription_matches_is_dropped_for_that_reason() -> None:
    async with running(FixedRegistry(subscription(status=Status.PAUSED))) as world:
        world.broker.append(event(1))
        await until(lambda: world.committed == 1)
        assert world.transport.sent == []
        assert world.value("deliveries_total", outcome="dropped_paused") == 1


async def test_a_retry_goes_to_where_the_subscription_points_by_then() -> None:
    async with running(FixedRegistry(subscription())) as world:
        world.transport.answer = lambda origin, _: (0.0, Response(200 if origin.host == "new.test" else 500))
        world.broker.append(event(1))
        await until(lambda: len(world.transport.sent) == 1)
        world.registry.index = world.registry.index.replaced(subscription(url="http://new.test/"))
        await until(lambda: world.committed == 1)
        assert [origin.host for _, origin, _ in world.transport.sent] == ["endpoint.test", "new.test"]


async def test_a_retry_for_a_deleted_subscription_is_dropped() -> None:
    async with running(FixedRegistry(subscription())) as world:
        world.transport.answer = lambda *_: (0.0, Response(500))
        world.broker.append(event(1))
        await until(lambda: len(world.transport.sent) == 1)
        world.registry.index = world.registry.index.without("sub_1")
        await until(lambda: world.committed == 1)
        assert world.value("deliveries_total", outcome="dropped_deleted") == 1


async def test_what_one_tenant_was_owed_is_not_sent_to_another_that_got_the_subscription_id() -> None:
    async with running(FixedRegistry(subscription("x", "http://acme.test/", tenant="acme"))) as world:
        world.transport.answer = lambda *_: (0.01, Response(500))
        world.broker.append(event(1, tenant="acme"))
        await until(lambda: world.value("deliveries_held") == 1)
        world.registry.index = Index([subscription("x", "http://globex.test/", tenant="globex")])
        await until(lambda: world.committed == 1)
        assert [origin.host for _, origin, _ in world.transport.sent] == ["acme.test"]


async def test_thousands_that_are_dropped_at_once_do_not_hold_up_the_loop() -> None:
    async with running(FixedRegistry(subscription(max_in_flight=1)), max_in_flight=10_000) as world:
        world.transport.answer = lambda *_: None
        for number in range(3000):
            world.broker.append(event(number))
        await until(lambda: world.value("deliveries_queued") == 2999)
        world.registry.index = Index()
        world.transport.end(lambda _: Response(200))
        assert 0 < world.metrics.deliveries["dropped_deleted"] <= 64, "in one turn of the loop"
        await until(lambda: world.committed == 3000)
        assert world.metrics.deliveries["dropped_deleted"] == 2999
