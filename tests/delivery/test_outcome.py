"""What a result means for its delivery."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dispatcher.core.request.results import Failure, Reason, Response, Result
from tests.delivery.test_engine import RetryPolicyOf
from tests.fakes import FixedRegistry, subscription
from tests.world import event, running, until

pytestmark = [pytest.mark.looptime]


async def test_a_failed_attempt_is_made_again_when_the_schedule_says_with_the_same_id_and_a_new_timestamp() -> (
    None
):
    async with running(FixedRegistry(subscription())) as world:
        answers: Iterator[Result] = iter([Response(500), Failure(Reason.TIMEOUT), Response(200)])
        world.transport.answer = lambda *_: (0.0, next(answers))
        world.broker.append(event(1))
        await until(lambda: len(world.transport.sent) == 3, within=400)
        times = [time for time, _, _ in world.transport.sent]
        assert times[1] - times[0] == pytest.approx(5.0, abs=0.1)
        assert times[2] - times[1] == pytest.approx(300.0, abs=0.1)
        assert all(b"webhook-id: evt_1\r\n" in request for _, _, request in world.transport.sent)
        assert len({request for _, _, request in world.transport.sent}) == 3
        assert world.value("attempts_total", outcome="status", code_class="5xx") == 1
        assert world.value("attempts_total", outcome="timeout", code_class="none") == 1
        assert world.value("retries_due_total", level="memory") == 2


async def test_what_the_egress_proxy_stopped_is_tried_again_without_using_up_the_schedule() -> None:
    async with running(FixedRegistry(subscription(retry=RetryPolicyOf()))) as world:
        answers: Iterator[Result] = iter([*[Failure(Reason.PROXY_ERROR)] * 5, Response(200)])
        world.transport.answer = lambda *_: (0.0, next(answers))
        world.broker.append(event(1))
        await until(lambda: world.committed == 1)
        assert world.dead() == []
        assert len(world.transport.sent) == 6


async def test_410_disables_the_subscription_and_dead_letters_what_else_it_was_owed() -> None:
    async with running(FixedRegistry(subscription(max_in_flight=1))) as world:
        world.transport.answer = lambda *_: (0.5, Response(410))
        for number in range(5):
            world.broker.append(event(number))
        await until(lambda: world.committed == 5)
        assert world.registry.disabled == [("sub_1", "gone")]
        assert len(world.transport.sent) == 1
        assert [dead["reason"] for dead in world.dead()] == ["gone"] * 5
