"""The operations on subscriptions."""

from __future__ import annotations

import asyncio
import re
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from orjson import loads

from dispatcher.api.subscriptions import subscription_reply
from dispatcher.control import validation
from dispatcher.control.errors import (
    AlreadyExists,
    FileManaged,
    Invalid,
    NotFound,
    Overloaded,
    Unavailable,
    VersionMismatch,
    WrongState,
)
from dispatcher.control.views import View
from dispatcher.core.request.results import Failure, Reason, Response
from dispatcher.core.subscription.model import Status
from tests.control.conftest import SECRET, Make, Plane, until

pytestmark = [pytest.mark.looptime]

OTHER = "whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVowMTIzNDU="
IN_FILE = {
    "id": "sub_file",
    "tenant": "acme",
    "url": "https://file.example/in",
    "event_types": ["invoice.paid"],
    "secrets": [SECRET],
    "headers": {"Authorization": "Bearer abcdefghijklmnopqrstuvwxyz"},
}


async def flaws(awaitable: Any) -> dict[str, str]:
    with pytest.raises(Invalid) as caught:
        await awaitable
    return {flaw.field: flaw.message for flaw in caught.value.flaws}


# Create.


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


async def test_everything_that_is_wrong_is_told_at_once_and_nothing_is_written(plane: Plane) -> None:
    wrong = await flaws(
        plane.create(
            id="a b",
            url="http://10.0.0.1/",
            event_types=["*x"],
            status="disabled",
            secrets=["abc"],
            client_certificate={"cert_file": "/etc/passwd"},
            bogus=1,
        )
    )
    assert set(wrong) == {
        "id",
        "url",
        "event_types[0]",
        "status",
        "secrets[0]",
        "client_certificate",
        "bogus",
    }
    assert len(plane.store) == 0


async def test_a_reference_to_the_environment_is_not_replaced(plane: Plane) -> None:
    created = await plane.create(headers={"X-Path": "${PATH}"})
    assert created.view.document["headers"] == {"X-Path": "${PATH}"}


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


# Read.


async def test_a_tenant_does_not_learn_that_anothers_is_there(make: Make) -> None:
    plane = await make([IN_FILE])
    await plane.create(tenant="acme", id="sub_a")
    operations = plane.subscriptions
    for id_ in ("sub_a", "sub_file", "sub_none"):
        calls: list[Any] = [
            operations.update(id_, {"payload": "thin"}, tenant="other"),
            operations.delete(id_, tenant="other"),
            operations.pause(id_, tenant="other"),
            operations.resume(id_, tenant="other"),
            operations.enable(id_, tenant="other"),
            operations.rotate(id_, tenant="other"),
            plane.checks.ping(id_, tenant="other"),
            plane.checks.validate(id_, tenant="other"),
        ]
        said = set()
        for call in calls:
            with pytest.raises(NotFound) as caught:
                await call
            said.add(str(caught.value))
        with pytest.raises(NotFound):
            plane.views.get(id_, tenant="other")
        with pytest.raises(NotFound):
            plane.checks.health(id_, tenant="other")
        assert said == {f"there is no subscription {id_}"}
    assert plane.listing.page(tenant="other").items == []
    assert plane.listing.page(tenant="other", of_tenant="acme").items == []


async def test_those_of_the_file_are_shown_and_not_changed(make: Make) -> None:
    plane = await make([IN_FILE])
    view = plane.views.get("sub_file", tenant="acme")
    assert (view.managed, view.version, view.status) == ("file", 0, "active")
    assert view.document["url"] == "https://file.example/in"
    assert view.document["headers"] == {"Authorization": "Bearer ...wxyz"}
    assert SECRET not in str(view)
    operations = plane.subscriptions
    calls: list[Any] = [
        operations.update("sub_file", {"payload": "thin"}, tenant=None),
        operations.delete("sub_file", tenant="acme"),
        operations.pause("sub_file", tenant="acme"),
        operations.resume("sub_file", tenant="acme"),
        operations.rotate("sub_file", tenant="acme"),
    ]
    for call in calls:
        with pytest.raises(FileManaged):
            await call


async def test_pages_cover_everything_once_in_order_while_things_come_and_go(make: Make) -> None:
    plane = await make([{**IN_FILE, "id": f"sub_{n:03}f"} for n in range(10)])
    for number in range(10):
        await plane.create(id=f"sub_{number:03}")
    seen: list[str] = []
    cursor = None
    while True:
        page = plane.listing.page(tenant=None, cursor=cursor, limit=3)
        seen += [view.id for view in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
        if len(seen) == 6:
            await plane.subscriptions.delete(seen[0] if not seen[0].endswith("f") else seen[1], tenant=None)
            await plane.create(id="sub_000_behind")
            await plane.create(id="sub_999_ahead")
    assert seen == sorted(set(seen))
    assert len(seen) == 21
    assert seen[-1] == "sub_999_ahead"


async def test_a_cursor_or_a_filter_that_makes_no_sense_is_refused(plane: Plane) -> None:
    for query in ({"cursor": "%%%"}, {"cursor": "é"}, {"limit": 0}, {"limit": 201}, {"status": "odd"}):
        with pytest.raises(Invalid):
            plane.listing.page(tenant=None, **query)


async def test_filters_pick_what_fits_all_of_them(make: Make) -> None:
    plane = await make([IN_FILE])
    await plane.create(id="a", tenant="acme", event_types=["invoice.*"], url="https://one.example/")
    await plane.create(id="b", tenant="acme", event_types=["other.*"], status="paused")
    await plane.create(id="c", event_types=["*"], url="https://ONE.example:8443/")

    def ids(tenant: str | None = None, **query: Any) -> list[str]:
        return [view.id for view in plane.listing.page(tenant=tenant, **query).items]

    assert ids() == ["a", "b", "c", "sub_file"]
    assert ids(of_tenant="acme") == ids("acme") == ["a", "b", "sub_file"]
    assert ids(status="paused") == ["b"]
    assert ids(event_type="invoice.paid") == ["a", "c", "sub_file"]
    assert ids(host="One.Example") == ["a", "c"]
    assert ids("acme", event_type="invoice.paid", host="one.example") == ["a"]
    assert ids(of_tenant="nobody") == []


async def test_a_page_looks_at_so_many_and_no_more_and_at_a_tenants_own_only(plane: Plane) -> None:
    """No time is asserted; what is, is that no page looks at all of them."""
    await plane.store.fill(12_500, tenants=2500)
    page = plane.listing.page(tenant=None, host="nowhere.example")
    assert page.items == []
    assert page.next_cursor is not None  # there is more to look at
    page = plane.listing.page(tenant=None, host="nowhere.example", cursor=page.next_cursor)
    assert page.next_cursor is None
    mine = plane.listing.page(tenant="t7")
    assert [view.id for view in mine.items] == [f"s{n:06}" for n in range(7, 12_500, 2500)]
    assert mine.next_cursor is None
    # Showing one is work, too: one tenant's among many of others end a page before its number does.
    await plane.store.fill(12_500, tenants=50)
    first = plane.listing.page(tenant="t7", limit=200)
    assert 100 < len(first.items) < 200
    second = plane.listing.page(tenant="t7", limit=200, cursor=first.next_cursor)
    assert [view.id for view in (*first.items, *second.items)] == [f"s{n:06}" for n in range(7, 12_500, 50)]
    assert second.next_cursor is None


# Change.


async def test_a_merge_patch_changes_what_it_names(plane: Plane) -> None:
    created = await plane.create(
        headers={"X-Env": "prod", "X-Gone": "1"}, retry={"schedule": ["1s"], "jitter": 0.5}, timeout="2s"
    )
    view = await plane.subscriptions.update(
        created.view.id,
        {"headers": {"X-Gone": None, "X-New": "2"}, "retry": {"jitter": 0}, "timeout": None},
        tenant=None,
    )
    assert view.version == 2
    assert view.document["headers"] == {"X-Env": "prod", "X-New": "2"}
    assert view.document["retry"] == {"schedule": ["1s"], "jitter": 0}
    assert "timeout" not in view.document


async def test_a_patch_that_changes_nothing_writes_nothing(plane: Plane) -> None:
    created = await plane.create()
    view = await plane.subscriptions.update(
        created.view.id, {"event_types": ["billing.*"], "status": "active"}, tenant=None
    )
    assert view.version == 1


async def test_a_masked_header_that_comes_back_keeps_its_value(plane: Plane) -> None:
    token = "Bearer abcdefghijklmnopqrstuvwxyz"
    created = await plane.create(headers={"Authorization": token, "X-Api-Key": "short"})
    shown = created.view.document["headers"]
    assert shown == {"Authorization": "Bearer ...wxyz", "X-Api-Key": "..."}
    await plane.subscriptions.update(
        created.view.id, {"headers": {**shown, "X-Env": "prod"}, "payload": "thin"}, tenant=None
    )
    stored = plane.store.rows[created.view.id].document
    assert stored["headers"] == {"Authorization": token, "X-Api-Key": "short", "X-Env": "prod"}


async def test_a_patch_finds_a_header_however_its_name_is_written(plane: Plane) -> None:
    id_ = (await plane.create(headers={"X-Env": "prod", "X-Token": "t" * 24})).view.id
    view = await plane.subscriptions.update(
        id_, {"headers": {"x-env": None, "x-token": "u" * 24}}, tenant=None
    )
    assert list(view.document["headers"]) == ["X-Token"]
    stored = plane.store.get(id_)
    assert stored is not None
    assert stored.document["headers"] == {"X-Token": "u" * 24}
    both = {"headers": {"X-Token": None, "x-token": "v" * 24}}
    await plane.subscriptions.update(id_, both, tenant=None)
    stored = plane.store.get(id_)
    assert stored is not None
    assert stored.document["headers"] == {"x-token": "v" * 24}


async def test_what_a_patch_may_not_touch_is_named(plane: Plane) -> None:
    created = await plane.create()
    wrong = await flaws(
        plane.subscriptions.update(
            created.view.id,
            {"id": "other", "secrets": [SECRET], "tenant": "other", "url": "ftp://x", "max_in_flight": 0},
            tenant=None,
        )
    )
    assert set(wrong) == {"id", "secrets", "tenant", "url", "max_in_flight"}
    assert plane.store.rows[created.view.id].version == 1


async def test_a_change_of_another_version_than_the_one_in_force_is_refused(plane: Plane) -> None:
    id_ = (await plane.create()).view.id
    await plane.subscriptions.pause(id_, tenant=None, if_match=1)
    for call in (
        plane.subscriptions.update(id_, {"payload": "thin"}, tenant=None, if_match=1),
        plane.subscriptions.resume(id_, tenant=None, if_match=1),
        plane.subscriptions.rotate(id_, tenant=None, if_match=1),
        plane.subscriptions.delete(id_, tenant=None, if_match=1),
        plane.subscriptions.enable(id_, tenant=None, if_match=1),
    ):
        with pytest.raises(VersionMismatch) as caught:
            await call
        assert caught.value.current == 2


async def test_of_two_at_once_one_wins_and_without_a_version_both_take_effect(plane: Plane) -> None:
    id_ = (await plane.create()).view.id
    results = await asyncio.gather(
        plane.subscriptions.update(id_, {"payload": "thin"}, tenant=None, if_match=1),
        plane.subscriptions.update(id_, {"timeout": "3s"}, tenant=None, if_match=1),
        return_exceptions=True,
    )
    assert [type(result) for result in results if isinstance(result, Exception)] == [VersionMismatch]
    assert sum(isinstance(result, View) for result in results) == 1
    await asyncio.gather(
        plane.subscriptions.update(id_, {"max_in_flight": 2}, tenant=None),
        plane.subscriptions.update(id_, {"headers": {"X-A": "b"}}, tenant=None),
    )
    document = plane.store.rows[id_].document
    assert (document["max_in_flight"], document["headers"]) == (2, {"X-A": "b"})


async def test_pause_and_resume(plane: Plane) -> None:
    id_ = (await plane.create()).view.id
    assert (await plane.subscriptions.pause(id_, tenant=None)).status == "paused"
    assert (await plane.subscriptions.pause(id_, tenant=None)).version == 2  # said twice, written once
    assert plane.registry.index.get(id_).status is Status.PAUSED  # type: ignore[union-attr]
    assert (await plane.subscriptions.resume(id_, tenant=None)).status == "active"


async def test_a_disabled_one_says_why_and_is_enabled_again_of_the_file_too(make: Make) -> None:
    plane = await make([IN_FILE])
    id_ = (await plane.create()).view.id
    for one in (id_, "sub_file"):
        plane.registry.disable(one, "gone")
        view = plane.views.get(one, tenant=None)
        assert (view.status, view.reason) == ("disabled", "gone")
        assert (await plane.subscriptions.enable(one, tenant=None)).status == "active"
        assert (await plane.subscriptions.enable(one, tenant=None)).status == "active"
    plane.registry.disable(id_, "gone")
    for call in (plane.subscriptions.resume, plane.subscriptions.pause, plane.checks.validate):
        with pytest.raises(WrongState, match="enable"):
            await call(id_, tenant=None)


async def test_one_that_the_file_disables_is_enabled_in_the_file(make: Make) -> None:
    plane = await make([{**IN_FILE, "status": "disabled"}])
    with pytest.raises(FileManaged):
        await plane.subscriptions.enable("sub_file", tenant=None)


async def test_what_is_deleted_is_gone(plane: Plane) -> None:
    id_ = (await plane.create()).view.id
    await plane.subscriptions.delete(id_, tenant=None)
    assert plane.registry.index.get(id_) is None
    with pytest.raises(NotFound):
        await plane.subscriptions.delete(id_, tenant=None)


# Secrets.


async def test_of_an_ed25519_secret_the_public_key_is_shown_and_of_others_none(plane: Plane) -> None:
    vector = loads((Path(__file__).parents[1] / "vectors" / "standard-webhooks.json").read_text())
    created = await plane.create(
        secrets=[vector["v1a"]["secret"], vector["v1"]["secret"]], signatures=["v1", "v1a"]
    )
    keys = [secret.public_key for secret in created.view.secrets]
    assert keys == [vector["v1a"]["public"], None]
    shown = plane.views.get(created.view.id, tenant=None)
    assert [secret.public_key for secret in shown.secrets] == keys
    assert subscription_reply(shown).secrets[0].public_key == vector["v1a"]["public"]


async def test_after_a_rotation_both_sign_and_the_old_one_has_an_end(plane: Plane) -> None:
    created = await plane.create()
    rotated = await plane.subscriptions.rotate(created.view.id, tenant=None, overlap=60.0)
    stored = plane.store.rows[created.view.id].secrets
    assert [one.secret for one in stored] == [rotated.secret, created.secrets[0]]
    assert [one.expires_ms for one in stored] == [None, rotated.old_expires_ms]
    await asyncio.sleep(61)
    assert len(plane.views.get(created.view.id, tenant=None).secrets) == 1


async def test_without_an_overlap_the_old_one_ends_at_once(plane: Plane) -> None:
    id_ = (await plane.create()).view.id
    rotated = await plane.subscriptions.rotate(id_, tenant=None, overlap=0, secret=OTHER)
    assert rotated.secret == OTHER
    assert [one.secret for one in plane.store.rows[id_].secrets] == [OTHER]


async def test_rotating_again_and_again_leaves_no_more_than_may_be_live(plane: Plane) -> None:
    id_ = (await plane.create()).view.id
    for _ in range(11):
        await plane.subscriptions.rotate(id_, tenant=None)
    last = await plane.subscriptions.rotate(id_, tenant=None)
    assert len(last.view.secrets) == 8
    assert plane.store.rows[id_].secrets[0].secret == last.secret
    assert [one.expires_ms is None for one in plane.store.rows[id_].secrets] == [True] + [False] * 7


async def test_rotating_one_kind_leaves_the_other_alone(plane: Plane) -> None:
    created = await plane.create(signatures=["v1", "v1a"])
    await plane.subscriptions.rotate(created.view.id, tenant=None, overlap=0)
    kept = [one.secret for one in plane.store.rows[created.view.id].secrets]
    assert created.secrets[1] in kept
    assert created.secrets[0] not in kept


async def test_a_rotation_without_an_overlap_leaves_the_other_kinds_old_secret_alone(plane: Plane) -> None:
    old, new = (f"whsk_{b64encode(bytes([n]) * 32).decode()}" for n in (1, 2))
    id_ = (await plane.create(signatures=["v1", "v1a"], secrets=[SECRET, old])).view.id
    await plane.subscriptions.rotate(id_, tenant=None, secret=new)
    await plane.subscriptions.rotate(id_, tenant=None, overlap=0)
    stored = plane.store.get(id_)
    assert stored is not None
    kept = {one.secret: one.expires_ms for one in stored.secrets}
    assert SECRET not in kept
    assert kept[new] is None
    assert kept[old] is not None


async def test_a_rotation_that_would_leave_too_many_for_ever_is_refused(plane: Plane) -> None:
    keys = [f"whsk_{b64encode(bytes([n]) * 32).decode()}" for n in range(7)]
    id_ = (await plane.create(signatures=["v1", "v1a"], secrets=[SECRET, *keys])).view.id
    rotating = plane.subscriptions.rotate(id_, tenant=None, secret=OTHER)
    assert (await rotating).old_expires_ms
    eight = (await plane.create(signatures=["v1a"], secrets=[*keys, f"whsk_{'Q' * 43}="])).view.id
    assert set(await flaws(plane.subscriptions.rotate(eight, tenant=None, secret=OTHER))) == {"secret"}


async def test_a_secret_that_cannot_be_used_is_refused(plane: Plane) -> None:
    created = await plane.create()
    id_ = created.view.id
    assert "secret" in await flaws(plane.subscriptions.rotate(id_, tenant=None, secret="abc"))
    assert "secret" in await flaws(
        plane.subscriptions.rotate(id_, tenant=None, secret=created.secrets[0], overlap=0)
    )
    assert "overlap" in await flaws(plane.subscriptions.rotate(id_, tenant=None, overlap=-1))
    assert plane.store.rows[id_].version == 1


# Ask.


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
        breaker, queued, in_flight = "open", 3, 1
        last_failure, last_failure_at = "status 500", 1234.5

        def health(self, _id: str) -> Engine:
            return self

    plane.plane.attach(Engine())
    health = plane.checks.health(id_, tenant=None)
    assert (health.success_rate, health.breaker, health.queued) == (0.5, "open", 3)
    assert (health.last_failure, health.last_failure_ms) == ("status 500", 1_234_500)
    assert health.failing_since_ms == 1_000_000


# Validation.


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


async def test_headers_that_were_taken_before_stand_in_the_way_of_their_own_change_only(plane: Plane) -> None:
    assert "headers.webhook.id" in await flaws(plane.create(headers={"webhook.id": "x"}))
    id_ = (await plane.create()).view.id
    stored = plane.store.get(id_)
    assert stored is not None
    await plane.store.put(
        id_, {**stored.document, "headers": {"webhook.id": "x"}}, stored.secrets, base=stored.version
    )
    assert (await plane.subscriptions.pause(id_, tenant=None)).status == "paused"
    await plane.subscriptions.rotate(id_, tenant=None, overlap=0, secret=OTHER)
    changed = plane.subscriptions.update(id_, {"timeout": "3s"}, tenant=None)
    assert "headers.webhook.id" in await flaws(changed)
    view = await plane.subscriptions.update(
        id_, {"timeout": "3s", "headers": {"webhook.id": None}}, tenant=None
    )
    assert "headers" not in view.document or view.document["headers"] == {}
