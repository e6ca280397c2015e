"""The operations on subscriptions."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.control.errors import (
    FileManaged,
    NotFound,
    VersionMismatch,
    WrongState,
)
from dispatcher.control.views import View
from dispatcher.core.subscription.model import Status
from tests.control.conftest import IN_FILE, OTHER, SECRET, Make, Plane, flaws
from tests.world import until

pytestmark = [pytest.mark.looptime]


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


async def test_what_an_operator_disables_no_tenant_releases(make: Make) -> None:
    plane = await make([IN_FILE], operational_events=True)
    await plane.create(tenant="acme", id="sub_a")
    for id_ in ("sub_a", "sub_file"):
        view = await plane.subscriptions.disable(id_, "floods its endpoint", tenant=None)
        assert (view.status, view.reason, view.reason_text) == ("disabled", "operator", "floods its endpoint")
        with pytest.raises(WrongState, match="floods its endpoint"):
            await plane.subscriptions.enable(id_, tenant="acme")
    for change in ({"url": "https://else.example/"}, {"url": "https://else.example/", "payload": "thin"}):
        with pytest.raises(WrongState, match="only an operator enables it"):
            await plane.subscriptions.update("sub_a", change, tenant="acme")
    assert (
        await plane.subscriptions.update("sub_a", {"payload": "thin"}, tenant="acme")
    ).status == "disabled"
    for verb in (plane.subscriptions.pause, plane.subscriptions.resume):
        with pytest.raises(WrongState):
            await verb("sub_a", tenant="acme")
    assert plane.views.get("sub_a", tenant="acme").reason_text == "floods its endpoint"
    again = await plane.subscriptions.disable("sub_a", "another reason", tenant=None)
    assert again.reason_text == "another reason"
    enabled = await plane.subscriptions.enable("sub_a", tenant=None)
    assert (enabled.status, enabled.reason, enabled.reason_text) == ("active", None, None)
    await until(lambda: len(plane.events()) == 4)
    said = [event["data"] for event in plane.events() if event["type"] == "dispatcher.subscription.disabled"]
    assert [(each["reason"], each["reason_text"]) for each in said] == [
        ("operator", "floods its endpoint"),
        ("operator", "floods its endpoint"),
        ("operator", "another reason"),
    ]


async def test_a_reason_that_says_nothing_and_an_old_version_disable_nothing(plane: Plane) -> None:
    version = (await plane.create(id="sub_a")).view.version
    assert "reason" in await flaws(plane.subscriptions.disable("sub_a", "  ", tenant=None))
    assert "reason" in await flaws(plane.subscriptions.disable("sub_a", "a\nb", tenant=None))
    with pytest.raises(VersionMismatch):
        await plane.subscriptions.disable("sub_a", "a", tenant=None, if_match=version + 1)
    with pytest.raises(NotFound):
        await plane.subscriptions.disable("sub_b", "a", tenant=None)
    assert plane.views.get("sub_a", tenant=None).status == "active"
