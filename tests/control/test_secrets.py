"""Signing secrets are made and rotated."""

from __future__ import annotations

import asyncio
from base64 import b64encode

import pytest

from tests.control.conftest import OTHER, SECRET, Plane, flaws

pytestmark = [pytest.mark.looptime]


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
