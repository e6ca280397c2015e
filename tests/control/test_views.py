"""Subscriptions as their owners see them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from orjson import loads

from dispatcher.api.subscriptions import subscription_reply
from dispatcher.control.errors import (
    FileManaged,
    NotFound,
)
from tests.control.conftest import IN_FILE, SECRET, Make, Plane

pytestmark = [pytest.mark.looptime]


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
