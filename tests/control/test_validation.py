"""Pending subscriptions and their endpoints."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.control import validation
from dispatcher.control.errors import (
    VersionMismatch,
    WrongState,
)
from tests.control.conftest import IN_FILE, Make, Plane
from tests.world import until

pytestmark = [pytest.mark.looptime]


async def test_one_that_asks_for_it_is_pending_until_its_endpoint_has_agreed(plane: Plane) -> None:
    plane.endpoints.allow()
    created = await plane.create(validate=True)
    assert (created.view.status, created.view.reason) == ("pending", "not validated")
    await until(lambda: plane.views.get(created.view.id, tenant=None).status == "active")
    assert "WebHook-Request-Origin: dispatcher.example" in plane.endpoints.asked[0][0]


async def test_the_rate_that_the_endpoint_allows_becomes_the_limit(plane: Plane) -> None:
    plane.endpoints.allow("120")
    low = (await plane.create(validate=True, rate_limit="1/s")).view.id
    high = (await plane.create(validate=True, rate_limit="10/s")).view.id
    none = (await plane.create(validate=True)).view.id
    await until(lambda: plane.registry.counts()["pending"] == 0)
    limits = [plane.registry.index.get(id_).rate_limit for id_ in (low, high, none)]  # type: ignore[union-attr]
    assert limits == [1.0, 2.0, 2.0]


async def test_one_that_refuses_stays_pending_says_so_and_is_asked_again_by_request(plane: Plane) -> None:
    plane.endpoints.refuse()
    id_ = (await plane.create(validate=True)).view.id
    await until(lambda: "other.example" in (plane.views.get(id_, tenant=None).reason or ""))
    with pytest.raises(WrongState, match=r"other\.example"):
        await plane.checks.validate(id_, tenant=None)
    plane.endpoints.allow()
    assert (await plane.checks.validate(id_, tenant=None)).status == "active"


async def test_it_is_asked_a_few_times_more_by_itself_and_then_left_alone(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "PAUSES", (1.0, 5.0))
    plane.endpoints.refuse()
    id_ = (await plane.create(validate=True)).view.id
    await asyncio.sleep(120)
    assert len(plane.endpoints.asked) == 3
    plane.endpoints.allow()
    await plane.subscriptions.update(id_, {"url": "https://new.example/"}, tenant=None)
    await until(lambda: plane.registry.counts()["pending"] == 0)


async def test_another_url_has_to_pass_by_itself(plane: Plane) -> None:
    plane.endpoints.allow()
    id_ = (await plane.create(validate=True)).view.id
    await until(lambda: plane.registry.counts()["pending"] == 0)
    plane.endpoints.refuse()
    view = await plane.subscriptions.update(id_, {"url": "https://victim.example/"}, tenant=None)
    assert view.status == "pending"
    await plane.subscriptions.update(id_, {"payload": "thin"}, tenant=None)
    assert plane.views.get(id_, tenant=None).status == "pending"


async def test_a_change_of_the_url_that_fails_leaves_the_validation_as_it_was(plane: Plane) -> None:
    plane.endpoints.allow()
    id_ = (await plane.create(validate=True)).view.id
    await until(lambda: plane.registry.counts()["pending"] == 0)
    version = plane.views.get(id_, tenant=None).version

    def come_between() -> None:
        stored = plane.store.rows[id_]
        plane.store.write(id_, {**stored.document, "payload": "thin"}, stored.secrets)

    plane.store.before_write = come_between
    moving = plane.subscriptions.update(id_, {"url": "https://new.example/"}, tenant=None, if_match=version)
    with pytest.raises(VersionMismatch):
        await moving
    assert plane.views.get(id_, tenant=None).status == "active"


async def test_an_allowed_rate_beyond_any_limit_is_none(plane: Plane) -> None:
    plane.endpoints.allow(rate="100000000")
    id_ = (await plane.create(validate=True)).view.id
    await until(lambda: plane.registry.counts()["pending"] == 0)
    assert "rate_limit" not in plane.views.get(id_, tenant=None).document


async def test_what_the_old_endpoint_allows_is_no_limit_of_the_new_one(plane: Plane) -> None:
    plane.endpoints.allow(rate="5")
    plane.endpoints.delay = 1.0
    id_ = (await plane.create(validate=True)).view.id
    await until(lambda: bool(plane.endpoints.asked))
    plane.endpoints.allow()
    await plane.subscriptions.update(id_, {"url": "https://new.example/"}, tenant=None)
    await until(lambda: plane.registry.counts()["pending"] == 0)
    assert "rate_limit" not in plane.views.get(id_, tenant=None).document


async def test_a_tenant_whose_endpoints_are_silent_leaves_room_for_others(plane: Plane) -> None:
    plane.endpoints.delay = 1000.0
    for number in range(12):
        await plane.create(tenant="slow", validate=True, url=f"https://slow{number}.example/")
    await plane.create(tenant="acme", validate=True, url="https://acme.example/")
    await until(lambda: any("Host: acme.example" in head for head, _ in plane.endpoints.asked))
    assert sum("Host: slow" in head for head, _ in plane.endpoints.asked) == 4


async def test_those_of_the_file_are_asked_too(make: Make) -> None:
    plane = await make([{**IN_FILE, "validate": True}])
    assert plane.registry.counts()["pending"] == 1
    plane.endpoints.allow()
    await until(lambda: plane.registry.counts()["pending"] == 0)
    assert len(plane.endpoints.asked) == 1


async def test_the_file_has_to_say_a_rate_that_the_endpoint_wants(make: Make) -> None:
    plane = await make([{**IN_FILE, "validate": True}])
    plane.endpoints.allow("60")
    with pytest.raises(WrongState, match="rate_limit: 60/m"):
        await plane.checks.validate("sub_file", tenant=None)
    assert plane.registry.counts()["pending"] == 1
