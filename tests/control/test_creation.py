"""New subscriptions: ids, secrets, Idempotency-Keys."""

from __future__ import annotations

import asyncio
import re

import pytest

from dispatcher.control.documents import StoredSecret
from dispatcher.control.errors import (
    AlreadyExists,
    Unavailable,
    WrongState,
)
from tests.control.conftest import IN_FILE, SECRET, Make, Plane, flaws

pytestmark = [pytest.mark.looptime]


async def test_one_is_made_with_an_id_and_a_secret_shown_once(plane: Plane) -> None:
    created = await plane.create()
    assert re.fullmatch(r"sub_[A-Za-z0-9_-]{16,}", created.view.id)
    [secret] = created.secrets
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", secret)
    view = plane.views.get(created.view.id, tenant=None)
    assert (view.version, view.managed, view.status, view.reason) == (1, "api", "active", None)
    assert [one.masked for one in view.secrets] == [f"whsec_...{secret[-4:]}"]
    assert "secrets" not in view.document
    assert plane.registry.index.get(created.view.id) is not None


async def test_an_ed25519_key_is_made_where_the_signatures_need_one(plane: Plane) -> None:
    created = await plane.create(signatures=["v1", "v1a"])
    assert [secret.split("_")[0] for secret in created.secrets] == ["whsec", "whsk"]


async def test_an_id_is_taken_once(make: Make) -> None:
    plane = await make([IN_FILE])
    await plane.create(id="sub_a")
    with pytest.raises(AlreadyExists, match="sub_a"):
        await plane.create(id="sub_a")
    with pytest.raises(AlreadyExists, match="file"):
        await plane.create(id="sub_file")


async def test_a_tenant_makes_its_own_only(plane: Plane) -> None:
    created = await plane.create(tenant="acme")
    assert created.view.document["tenant"] == "acme"
    assert "tenant" in await flaws(
        plane.creation.create(
            {"url": "https://x.example/", "event_types": ["*"], "tenant": "other"},
            principal="me",
            tenant="acme",
        )
    )
    assert "tenant" in await flaws(
        plane.creation.create(
            {"url": "https://x.example/", "event_types": ["*"], "tenant": "*"}, principal="me", tenant="acme"
        )
    )


async def test_the_same_request_sent_again_gives_what_the_first_made(plane: Plane) -> None:
    first = await plane.create(key="k1")
    again = await plane.create(key="k1")
    assert (again.view.id, again.secrets, again.replayed) == (first.view.id, first.secrets, True)
    assert len(plane.store) == 1
    await plane.subscriptions.rotate(first.view.id, tenant=None)
    assert (await plane.create(key="k1")).secrets == ()


async def test_another_request_with_the_same_key_is_refused(plane: Plane) -> None:
    await plane.create(key="k1")
    assert "Idempotency-Key" in await flaws(plane.create(key="k1", event_types=["other"]))
    assert "Idempotency-Key" in await flaws(plane.create(key=""))
    assert "Idempotency-Key" in await flaws(plane.create(key="k" * 300))


async def test_of_two_at_once_with_the_same_key_one_is_told_to_wait(plane: Plane) -> None:
    results = await asyncio.gather(plane.create(key="k1"), plane.create(key="k1"), return_exceptions=True)
    assert sum(isinstance(result, WrongState) for result in results) == 1
    assert len(plane.store) == 1


async def test_of_two_replicas_with_the_same_key_only_one_makes_it(plane: Plane) -> None:
    """The other finds what the first has made, though it saw nothing when it began."""
    first = await plane.create(key="k1")
    stored = plane.store.rows.pop(first.view.id)

    def come_between() -> None:
        plane.store.rows[first.view.id] = stored

    plane.store.before_write = come_between
    again = await plane.create(key="k1")
    assert (again.view.id, again.replayed, again.secrets) == (first.view.id, True, first.secrets)


async def test_nothing_is_answered_before_everything_is_read_or_while_the_broker_is_away(
    plane: Plane,
) -> None:
    plane.store.reading = True
    for call in (
        lambda: plane.views.get("x", tenant=None),
        lambda: plane.listing.page(tenant=None),
        plane.catalogue.list,
    ):
        with pytest.raises(Unavailable):
            call()
    assert plane.plane.problems()
    plane.store.reading = False
    plane.store.away = True
    with pytest.raises(Unavailable):
        await plane.create()


async def test_endpoints_of_tenants_have_to_agree_where_the_setting_says_so(make: Make) -> None:
    plane = await make(require_validation=True)
    assert (await plane.create(tenant="acme")).view.status == "pending"
    assert (await plane.create(tenant=None)).view.status == "active"
    said = await flaws(plane.create(tenant="acme", validate=False))
    assert said.keys() == {"validate"}


async def test_a_new_url_has_to_agree_too_and_an_old_subscription_stays_as_it_is(make: Make) -> None:
    plane = await make(require_validation=True)
    await plane.create(id="sub_a")
    plane.store.write(
        "sub_old",
        {"url": "https://hooks.acme.example/in", "event_types": ["a"], "tenant": "acme"},
        [StoredSecret(SECRET)],
    )
    kept = await plane.subscriptions.update("sub_old", {"payload": "thin"}, tenant="acme")
    assert kept.status == "active"
    moved = await plane.subscriptions.update("sub_old", {"url": "https://else.example/"}, tenant="acme")
    assert (moved.status, moved.document["validate"]) == ("pending", True)


async def test_a_tenant_chooses_no_id(plane: Plane) -> None:
    await plane.create(id="sub_a", tenant=None)
    new = {"url": "https://hooks.acme.example/in", "event_types": ["a"]}
    taken, free = [
        await flaws(plane.creation.create({**new, "id": id_}, principal="me", tenant="acme"))
        for id_ in ("sub_a", "sub_b")
    ]
    assert taken == free
    assert taken.keys() == {"id"}
