"""The API's share of the loop's time: on virtual time, where work takes as long as the tests say, and over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from aiohttp import web

from dispatcher.api import loop_budget
from dispatcher.api.loop_budget import CallerKind, LoopBudget, Meter, account_of
from dispatcher.api.problems import Problem
from tests.api.serving import KEY, problem, serving

NOBODY, TENANT, OPERATOR = CallerKind.NOBODY, CallerKind.TENANT, CallerKind.OPERATOR


class Deliveries:
    """Whether they are behind; and a clock on which work takes time."""

    def __init__(self) -> None:
        self.behind = True
        self.worked = 0.0

    def now(self) -> float:
        return asyncio.get_running_loop().time() + self.worked


def made(share: float = 0.25) -> tuple[LoopBudget, Deliveries]:
    deliveries = Deliveries()
    return LoopBudget(share, lambda: deliveries.behind, deliveries.now), deliveries


@pytest.mark.looptime
async def test_while_no_delivery_is_behind_nobody_waits() -> None:
    budget, deliveries = made()
    deliveries.behind = False
    for _ in range(100):
        await budget.turn(NOBODY, "a")
        budget.charge(1.0)
    assert asyncio.get_running_loop().time() == 0
    assert (budget.spent, budget.waits) == (100.0, {"served": 0, "refused": 0})


@pytest.mark.looptime
@pytest.mark.parametrize("share", [0.1, 0.25, 0.8])
async def test_while_deliveries_are_behind_requests_have_their_share_of_the_time(share: float) -> None:
    budget, _ = made(share)

    async def request() -> None:
        await budget.turn(NOBODY, "a", refusable=False)
        budget.charge(0.05)

    loop = asyncio.get_running_loop()
    await asyncio.gather(*(request() for _ in range(40)))
    took = loop.time()
    # All but the last one, which nobody has waited for yet.
    assert budget.spent - 0.05 <= 0.02 + share * took + 1e-6
    assert took <= budget.spent / share, "and no less than that"
    assert budget.waits["served"] >= 38


@pytest.mark.looptime
async def test_what_is_little_never_waits() -> None:
    budget, _ = made(0.25)
    for _ in range(200):
        await budget.turn(NOBODY, "a")
        budget.charge(0.002)
        await asyncio.sleep(0.01)
    assert budget.waits == {"served": 0, "refused": 0}


@pytest.mark.looptime
async def test_all_of_the_time_is_no_bound() -> None:
    budget, _ = made(1.0)
    budget.charge(10.0)
    assert not budget.short
    await budget.turn(NOBODY, "a")


@pytest.mark.looptime
async def test_kinds_of_callers_have_their_turns_and_of_each_the_callers() -> None:
    budget, _ = made()
    order: list[str] = []

    async def request(kind: CallerKind, caller: str) -> None:
        await budget.turn(kind, caller, refusable=False)
        order.append(caller)
        budget.charge(0.05, account_of(kind, caller))

    wanted = [(NOBODY, "flood")] * 20 + [(NOBODY, "quiet"), (TENANT, "acme"), (TENANT, "acme")]
    wanted += [(TENANT, "globex"), (OPERATOR, "ops"), (OPERATOR, "ops")]
    for kind, caller in set(wanted):
        budget.charge(2.0, account_of(kind, caller))  # each has taken more than its part
    await asyncio.gather(*(request(*each) for each in wanted))
    assert len(order) == len(wanted)
    assert sorted(order[:3]) == ["acme", "flood", "ops"]
    assert sorted(order[3:6]) == ["globex", "ops", "quiet"]
    assert order[6:8] in (["flood", "acme"], ["acme", "flood"])


@pytest.mark.looptime
async def test_whoever_has_not_taken_its_part_does_not_wait_for_those_who_have() -> None:
    """One tenant's requests take two seconds each; the others' a millisecond."""
    budget, _ = made(0.3)
    loop = asyncio.get_running_loop()
    expensive = 0

    async def flood() -> None:
        nonlocal expensive
        while True:
            await budget.turn(TENANT, "flood", refusable=False)
            budget.charge(2.0, account_of(TENANT, "flood"))
            expensive += 1

    flooding = [loop.create_task(flood()) for _ in range(4)]
    await asyncio.sleep(1)
    for _ in range(20):
        for tenant in range(10):
            began = loop.time()
            await budget.turn(TENANT, f"tenant-{tenant}")
            assert loop.time() == began
            budget.charge(0.001, account_of(TENANT, f"tenant-{tenant}"))
        await asyncio.sleep(1)
    assert 1 < expensive <= 0.3 * loop.time() / 2.0 + 1, "and that one has what they leave over"
    for task in flooding:
        task.cancel()


@pytest.mark.looptime
@pytest.mark.parametrize("tenants", [1, 5, 50])
async def test_the_parts_of_all_are_no_more_than_half_of_the_share(tenants: int) -> None:
    budget, _ = made(0.3)
    budget.charge(2.0)
    loop = asyncio.get_running_loop()
    waited = 0
    for _ in range(2000):  # twenty seconds, in which the rest of the API owes more than it has
        budget.charge(0.01)
        for tenant in range(tenants):
            account = account_of(TENANT, f"tenant-{tenant}")
            if budget._has_left(account):
                budget.charge(0.002, account)
                waited += 1
        await asyncio.sleep(0.01)
    taken = waited * 0.002
    assert 0.15 * loop.time() * 0.9 <= taken <= 0.15 * loop.time() + tenants * (0.02 + 0.002)


@pytest.mark.looptime
async def test_accounts_of_whom_nothing_is_heard_are_let_go_of() -> None:
    budget, _ = made()
    for number in range(100):
        budget.charge(0.001, account_of(TENANT, f"tenant-{number}"))
    await asyncio.sleep(61)
    budget.charge(0.001, account_of(TENANT, "one"))
    assert list(budget._accounts) == [account_of(TENANT, "one")]
    assert account_of(NOBODY, "127.0.0.1") is None


@pytest.mark.looptime
async def test_who_waits_too_long_is_told_to_come_again() -> None:
    budget, _ = made(0.05)
    budget.charge(2.0)
    with pytest.raises(Problem) as caught:
        await budget.turn(NOBODY, "a")
    assert asyncio.get_running_loop().time() == pytest.approx(5.0)
    assert (caught.value.kind.status, caught.value.headers["Retry-After"]) == (503, "2")
    assert budget.waits == {"served": 0, "refused": 1}
    assert budget._waiting == 0
    assert not any(budget._queues.values())
    await asyncio.sleep(60)
    await budget.turn(NOBODY, "a")


@pytest.mark.looptime
async def test_so_many_of_one_caller_wait_and_another_one_has_room() -> None:
    budget, _ = made(0.5)
    budget.charge(2.0)
    waiting = [asyncio.get_running_loop().create_task(budget.turn(NOBODY, "flood")) for _ in range(60)]
    other = asyncio.get_running_loop().create_task(budget.turn(NOBODY, "quiet"))
    await asyncio.sleep(0)
    refused = [task for task in waiting if task.done()]
    assert len(refused) == 10
    assert all(isinstance(task.exception(), Problem) for task in refused)
    await other
    await asyncio.gather(*waiting, return_exceptions=True)
    assert budget.waits == {"served": 51, "refused": 10}


@pytest.mark.looptime
async def test_in_all_so_many_wait_but_for_those_that_are_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_budget, "_WAITING", 3)
    budget, _ = made(0.5)
    budget.charge(1.0)
    tasks = [
        asyncio.get_running_loop().create_task(budget.turn(NOBODY, f"caller-{number}")) for number in range(4)
    ]
    at_work = asyncio.get_running_loop().create_task(budget.turn(NOBODY, "caller-9", refusable=False))
    results = await asyncio.gather(*tasks, at_work, return_exceptions=True)
    assert [isinstance(result, Problem) for result in results] == [False, False, False, True, False]


@pytest.mark.looptime
async def test_whoever_gives_up_leaves_nothing_behind() -> None:
    budget, _ = made(0.1)
    budget.charge(2.0)
    tasks = [
        asyncio.get_running_loop().create_task(budget.turn(NOBODY, caller)) for caller in ("a", "a", "b")
    ]
    await asyncio.sleep(0.01)
    assert budget._waiting == 3
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert budget._waiting == 0
    assert not any(budget._queues.values())


@pytest.mark.looptime
async def test_when_deliveries_have_caught_up_all_are_let_in() -> None:
    budget, deliveries = made(0.05)
    budget.charge(2.0)
    tasks = [asyncio.get_running_loop().create_task(budget.turn(NOBODY, "a")) for _ in range(20)]
    await asyncio.sleep(1)
    assert not any(task.done() for task in tasks)
    deliveries.behind = False
    await asyncio.gather(*tasks)
    assert asyncio.get_running_loop().time() == pytest.approx(1.0, abs=0.1)


Steps = Callable[[], Any]


async def drive(budget: LoopBudget, steps: Steps) -> web.StreamResponse:
    return await Meter(budget, "a").drive(steps())


@pytest.mark.looptime
async def test_a_request_at_work_waits_where_it_gives_up_its_turn() -> None:
    budget, _ = made(0.25)
    at: list[float] = []

    async def steps() -> web.Response:
        for _ in range(5):
            at.append(asyncio.get_running_loop().time())
            budget.charge(0.1)
            await asyncio.sleep(0)
        return web.Response(body=b"done")

    response = await drive(budget, steps)
    assert isinstance(response, web.Response)
    assert response.body == b"done"
    pauses = [later - earlier for earlier, later in pairwise(at)]
    assert pauses[0] == pytest.approx(0.32, abs=0.06)
    assert all(pause == pytest.approx(0.4, abs=0.06) for pause in pauses[1:])


@pytest.mark.looptime
async def test_what_is_raised_and_what_is_cancelled_reaches_the_handler() -> None:
    budget, _ = made(0.25)
    seen: list[str] = []

    async def fails() -> web.Response:
        await asyncio.sleep(0.1)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await drive(budget, fails)

    async def waits(long: float) -> web.Response:
        budget.charge(2.0)
        try:
            async with asyncio.timeout(1):
                await asyncio.sleep(long)
        except TimeoutError:
            seen.append("timeout")
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        return web.Response()

    await drive(budget, lambda: waits(5))  # a timer
    await drive(budget, lambda: waits(0))  # its turn
    assert seen == ["timeout", "timeout"]
    task = asyncio.get_running_loop().create_task(drive(budget, lambda: waits(0)))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen[2:] == ["cancelled"]
    assert budget._waiting == 0


async def test_steps_are_measured_and_so_is_what_a_thread_does() -> None:
    budget = LoopBudget(0.5, lambda: True)

    def work() -> int:
        return sum(range(200_000))

    async def steps() -> web.Response:
        work()
        return web.Response()

    await drive(budget, steps)
    alone = budget.spent
    assert alone > 0
    assert await Meter(budget, "a").beside(work) == work()
    assert budget.spent > alone

    def fails() -> int:
        raise LookupError(work())

    before = budget.spent
    with pytest.raises(LookupError):
        await Meter(budget, "a").beside(fails)
    assert budget.spent > before


async def test_health_is_answered_while_everybody_else_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_budget, "_PATIENCE", 0.05)
    monkeypatch.setattr(loop_budget, "account_of", lambda *_: None)  # nobody has a part of its own left
    deliveries = Deliveries()
    deliveries.behind = False
    budget = LoopBudget(0.05, lambda: deliveries.behind, lambda: 0.0)  # what is owed stays owed
    async with serving(KEY, budget=budget) as (call, _):
        stranger = call.using(None)
        first = await stranger("GET", "/metrics")
        budget.charge(1.0)
        deliveries.behind = True
        for path in ("/healthz", "/readyz"):
            assert (await stranger("GET", path)).status == 200
        for caller, method, path in (
            (call, "GET", "/v1/subscriptions"),
            (call, "POST", "/v1/events"),
            (stranger, "GET", "/v1/event-types"),
            (stranger, "GET", "/docs"),
            (stranger, "GET", "/openapi.json"),
        ):
            refused = await caller(method, path, {"type": "a"} if method == "POST" else None)
            document = problem(refused, 503, "unavailable")
            assert "deliveries" in document["detail"]
            assert refused.headers["Retry-After"] == "2"
        assert budget.waits == {"served": 0, "refused": 5}
        # Nobody without a key is told before anything else, and the metrics are those of a moment ago.
        assert (await stranger("GET", "/v1/subscriptions")).status == 401
        again = await stranger("GET", "/metrics")
        assert (again.status, again.body) == (200, first.body)
        deliveries.behind = False
        assert (await call("GET", "/v1/subscriptions")).status == 200
        assert (await stranger("GET", "/metrics")).status == 200
