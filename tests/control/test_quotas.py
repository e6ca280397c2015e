"""What tenants may have and take, on the control plane in memory and on virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from dispatcher.control.errors import Invalid, QuotaExceeded, Unavailable, VersionMismatch
from dispatcher.control.operational_events import AT_QUOTA
from dispatcher.settings.groups import QuotaSettings
from tests.control.conftest import Make, Plane, flaws
from tests.world import until

pytestmark = pytest.mark.looptime

FEW = QuotaSettings(subscriptions=3, subscriptions_per_origin=2, replays=1, queries=2)


async def refused(awaitable: Any) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as caught:
        await awaitable
    return caught.value


async def test_a_tenant_makes_as_many_as_it_may_and_one_that_goes_makes_room(make: Make) -> None:
    plane = await make(quotas=FEW)
    made = [await plane.create("acme", url=f"https://h{number}.example/") for number in range(3)]
    error = await refused(plane.create("acme", url="https://h4.example/"))
    assert error.quota == "subscriptions"
    assert error.retry_after is None
    for part in ("may have 3 subscriptions", "quota subscriptions", "delete some", "operator"):
        assert part in str(error)
    assert len(plane.store.ids()) == 3
    await plane.create("globex", url="https://h4.example/")
    await plane.create("acme", id="sub_5", url="https://h5.example/")  # an operator is not bound
    assert plane.metrics.quota_exceeded == {"subscriptions": 1}
    for each in made[:2]:  # three, and the operator's: two have to go
        await plane.subscriptions.delete(each.view.id, tenant="acme")
    await plane.create("acme", url="https://h6.example/")


async def test_so_many_may_lead_to_one_origin_by_a_change_too(make: Make) -> None:
    plane = await make(quotas=FEW)
    for path in ("a", "b"):
        await plane.create("acme", url=f"https://shared.example/{path}")
    error = await refused(plane.create("acme", url="https://shared.example/c"))
    assert error.quota == "subscriptions_per_origin"
    assert "https://shared.example" in str(error)
    other = (await plane.create("acme", url="https://other.example/")).view.id

    def move(tenant: str | None) -> Any:
        return plane.subscriptions.update(other, {"url": "https://shared.example/c"}, tenant=tenant)

    assert (await refused(move("acme"))).quota == "subscriptions_per_origin"
    # What stays where it is, or is moved by an operator, is not asked.
    await plane.subscriptions.update(other, {"payload": "thin"}, tenant="acme")
    await plane.subscriptions.update(other, {"url": "https://other.example/more"}, tenant="acme")
    await move(None)


async def test_those_that_are_being_made_count(make: Make) -> None:
    plane = await make(quotas=FEW)
    results = await asyncio.gather(
        *(plane.create("acme", url=f"https://h{number}.example/") for number in range(10)),
        return_exceptions=True,
    )
    assert len(plane.store.ids()) == 3
    assert sum(isinstance(result, QuotaExceeded) for result in results) == 7
    assert not plane.quotas._creating, "nothing is held for what is over"
    plane.store.away = True
    with pytest.raises(Unavailable):
        await plane.create("globex")
    assert not plane.quotas._creating


async def test_so_many_are_made_a_minute_and_the_wait_is_told(make: Make) -> None:
    plane = await make(quotas=QuotaSettings(creations_per_minute=6, subscriptions_per_origin=1000))
    for _ in range(6):
        await plane.create("acme")
    error = await refused(plane.create("acme"))
    assert error.quota == "creations_per_minute"
    assert error.retry_after is not None
    await asyncio.sleep(5)
    await plane.create("acme")
    assert (await refused(plane.create("acme"))).quota == "creations_per_minute"


async def test_a_request_sent_again_with_its_key_takes_nothing(make: Make) -> None:
    plane = await make(quotas=QuotaSettings(subscriptions=1))
    first = await plane.create("acme", key="k")
    assert (await plane.create("acme", key="k")).view.id == first.view.id


async def test_maxima_bind_what_tenants_set_and_leave_what_is_there(make: Make) -> None:
    plane = await make(quotas=QuotaSettings(max_timeout=30.0, max_in_flight=10, max_patterns=2))
    wrong: dict[str, Any] = {"timeout": "31s", "max_in_flight": 11, "event_types": ["a", "b", "c"]}
    said = await flaws(plane.create("acme", **wrong))
    assert said.keys() == wrong.keys()
    assert "max_timeout" in said["timeout"]
    assert not plane.store.ids()
    id_ = (await plane.create("acme", id="sub_a", **wrong)).view.id  # by an operator
    await plane.subscriptions.update(id_, {"payload": "thin"}, tenant="acme")
    await plane.subscriptions.update(id_, {"event_types": ["a", "b", "d"], "timeout": "31s"}, tenant="acme")
    said = await flaws(plane.subscriptions.update(id_, {"timeout": "32s"}, tenant="acme"))
    assert said.keys() == {"timeout"}
    await plane.subscriptions.update(id_, {"timeout": "30s"}, tenant="acme")
    assert (await flaws(plane.subscriptions.update(id_, {"timeout": "31s"}, tenant="acme"))).keys() == {
        "timeout"
    }
    await plane.subscriptions.update(id_, {"timeout": "9m"}, tenant=None)


async def test_an_operator_gives_a_tenant_quotas_of_its_own_and_takes_them_back(make: Make) -> None:
    plane = await make(quotas=FEW)
    view = await plane.quotas.put("acme", {"subscriptions": 5, "max_timeout": 300.0})
    assert (view.version, view.overrides) == (1, {"subscriptions": 5, "max_timeout": 300.0})
    assert (view.quotas.subscriptions, view.quotas.replays) == (5, 1)
    for number in range(5):
        await plane.create("acme", url=f"https://h{number}.example/", timeout="5m")
    assert (await refused(plane.create("acme", url="https://h.example/"))).quota == "subscriptions"
    assert plane.quotas.view("acme").used == 5
    with pytest.raises(VersionMismatch):
        await plane.quotas.put("acme", {}, if_match=7)
    view = await plane.quotas.put("acme", {}, if_match=1)
    assert (view.version, view.overrides, view.quotas) == (0, {}, plane.quotas.of("globex"))
    assert view.used == 5, "what is there stays"
    assert (await plane.quotas.put("acme", {})).version == 0
    with pytest.raises(Invalid, match="tenant"):
        await plane.quotas.put("*", {"subscriptions": 5})
    plane.store.reading = True
    with pytest.raises(Unavailable):
        plane.quotas.view("acme")


async def test_of_two_changes_at_once_the_one_that_was_made_of_another_version_is_made_again(
    make: Make,
) -> None:
    plane = await make()
    await asyncio.gather(*(plane.quotas.put("acme", {"subscriptions": number}) for number in (5, 6)))
    assert plane.quotas.view("acme").version == 2


async def test_whoever_makes_replays_asks_how_many_there_may_be(make: Make) -> None:
    plane = await make(quotas=FEW)
    plane.quotas.check("acme", "replays", 0)
    plane.quotas.check(None, "replays", 100)
    with pytest.raises(QuotaExceeded, match="may have 1 replays"):
        plane.quotas.check("acme", "replays", 1)


async def test_so_many_queries_are_under_way_at_a_time(make: Make) -> None:
    plane = await make(quotas=FEW)
    admitted = plane.quotas.admitted
    with admitted("acme", "queries"), admitted("acme", "queries"):
        with pytest.raises(QuotaExceeded, match="may have 2 requests"), admitted("acme", "queries"):
            pass
        with admitted("globex", "queries"), admitted(None, "queries"), admitted("acme", None):
            pass
    with admitted("acme", "queries"):
        pass
    assert not plane.quotas._under_way


@pytest.mark.parametrize(
    ("quotas", "quota"),
    [
        (QuotaSettings(events_per_second=10), "events_per_second"),
        (QuotaSettings(bytes_per_second=1024), "bytes_per_second"),
    ],
)
async def test_events_are_taken_at_the_rate_of_the_tenant(
    make: Make, quotas: QuotaSettings, quota: str
) -> None:
    plane = await make(quotas=quotas)
    for _ in range(20 if quota == "events_per_second" else 11):
        plane.quotas.take_events("acme", 1, 200)
    with pytest.raises(QuotaExceeded) as caught:
        plane.quotas.take_events("acme", 1, 200)
    assert caught.value.quota == quota
    assert caught.value.retry_after is not None
    with pytest.raises(QuotaExceeded), plane.quotas.admitted("acme", "events_per_second"):
        pytest.fail("its body is not looked at")
    for _ in range(1000):
        plane.quotas.take_events(None, 1, 200)
    plane.quotas.take_events("globex", 1000, 1 << 20)  # one request may go beyond
    await asyncio.sleep(1)
    plane.quotas.take_events("acme", 1, 200)


async def test_what_is_published_is_counted_before_it_is_checked(make: Make) -> None:
    plane = await make(quotas=QuotaSettings(events_per_second=1))
    for _ in range(2):
        with pytest.raises(Invalid):
            await plane.publisher.publish([{"type": ""}], tenant="acme")
    assert (
        await refused(plane.publisher.publish([{"type": "a"}], tenant="acme"))
    ).quota == "events_per_second"
    await plane.publisher.publish([{"type": "a"}] * 100, tenant=None)


def told(plane: Plane) -> list[dict[str, Any]]:
    return [event for event in plane.events() if event["type"] == AT_QUOTA]


async def test_a_tenant_that_lives_at_its_quota_is_told_of_once(make: Make) -> None:
    plane = await make(quotas=QuotaSettings(subscriptions=0))
    with capture_logs() as logs:
        for _ in range(100):
            await refused(plane.create("acme"))
            await asyncio.sleep(1)
    assert sum("lives at its quota" in line["event"] for line in logs) == 1
    await until(lambda: len(told(plane)) == 1)
    (event,) = told(plane)
    assert event["tenant"] == "acme"
    assert event["data"] == {"quota": "subscriptions", "value": "0"}
    assert plane.metrics.quota_exceeded["subscriptions"] == 100
    assert plane.quotas._at_quota()["subscriptions",] == 1
    # After ten minutes without one it is over, and the next one is told of anew.
    await asyncio.sleep(601)
    assert plane.quotas._at_quota()["subscriptions",] == 0
    await refused(plane.create("acme"))
    await until(lambda: len(told(plane)) == 2)
    # So it is when an operator has given it another one.
    await plane.quotas.put("acme", {"subscriptions": 0})
    assert plane.quotas._at_quota()["subscriptions",] == 0


async def test_a_burst_that_is_refused_is_no_life_at_a_quota(make: Make) -> None:
    plane = await make(quotas=QuotaSettings(queries=1))

    def meet() -> None:
        with (
            plane.quotas.admitted("acme", "queries"),
            pytest.raises(QuotaExceeded),
            plane.quotas.admitted("acme", "queries"),
        ):
            pass

    for _ in range(50):
        meet()
        await asyncio.sleep(1)
    assert told(plane) == []
    for _ in range(12):
        meet()
        await asyncio.sleep(1)
    await until(lambda: len(told(plane)) == 1)
    assert plane.quotas._at_quota()["queries",] == 1


async def test_refusals_are_remembered_in_bounded_memory(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispatcher.control.quotas._EPISODES", 10)
    plane = await make(quotas=FEW)
    for number in range(100):
        with pytest.raises(QuotaExceeded):
            plane.quotas.check(f"tenant-{number}", "replays", 1)
    assert len(plane.quotas._episodes) == 10
