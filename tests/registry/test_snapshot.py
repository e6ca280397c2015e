from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from dispatcher.core.subscription.model import Status
from dispatcher.registry import loading
from dispatcher.registry.snapshot import Runtime
from tests.registry.conftest import document, entry, managed


@pytest.mark.parametrize("piecemeal", [100, 0], ids=["piecemeal", "anew"])
async def test_a_disabled_one_stays_so_until_its_entry_changes(
    registries: Any, file: Any, monkeypatch: Any, piecemeal: Any
) -> None:
    monkeypatch.setattr(loading, "_PIECEMEAL", piecemeal)
    registry = await registries(
        document(entry("a"), entry("b"), entry("p", extra=", status: paused")), poll=1000
    )
    with capture_logs() as logs:
        registry.disable("a", "gone")
        registry.disable("a", "gone")
        registry.disable("nobody", "gone")
    assert [(each["subscription"], each["reason"]) for each in logs] == [("a", "gone")]
    assert registry.counts() == {"active": 1, "paused": 1, "pending": 0, "disabled": 1}
    for text in (
        document(entry("a"), entry("b", "pong"), entry("p", extra=", status: paused")),
        document(entry("p", extra=", status: paused"), entry("a"), entry("c")),
    ):
        file.write_text(text)
        assert await registry.reload()
        found = registry.index.get("a")
        assert found is not None
        assert (found.status, found.reason) == (Status.DISABLED, "gone")
        assert registry.counts()["disabled"] == 1
    file.write_text(document(entry("a", "ping, pong"), entry("c")))
    assert await registry.reload()
    assert registry.index.match(None, "pong")[0].status is Status.ACTIVE
    assert registry.counts() == {"active": 2, "paused": 0, "pending": 0, "disabled": 0}


@pytest.mark.parametrize("piecemeal", [100, 0], ids=["piecemeal", "anew"])
async def test_of_an_id_that_both_have_the_files_is_in_force_and_that_is_said(
    registries: Any, file: Any, monkeypatch: Any, piecemeal: Any
) -> None:
    monkeypatch.setattr(loading, "_PIECEMEAL", piecemeal)
    registry = await registries(document(entry("a")), poll=1000)
    with capture_logs() as logs:
        registry.put_managed(managed("a", ("of.the.api",)))
    assert [each["subscriptions"] for each in logs if each["log_level"] == "warning"] == [["a"]]
    assert registry.index.match(None, "of.the.api") == ()
    file.write_text(document(entry("b")))
    assert await registry.reload()
    assert [each.id for each in registry.index.match(None, "of.the.api")] == ["a"]
    file.write_text(document(entry("b"), entry("a")))
    with capture_logs() as logs:
        assert await registry.reload()
    assert [each["subscriptions"] for each in logs if each["log_level"] == "warning"] == [["a"]]
    assert registry.index.match(None, "of.the.api") == ()
    assert registry.counts()["active"] == 2


async def test_a_changed_entry_starts_over_even_should_it_become_what_it_was(
    registries: Any, file: Any
) -> None:
    registry = await registries(document(entry("a")), poll=1000)
    registry.disable("a", "gone")
    told: Any = []
    registry.on_status = told.append
    for types in ("pong", "ping"):
        file.write_text(document(entry("a", types)))
        assert await registry.reload()
        assert registry.index.match(None, types)[0].status is Status.ACTIVE
    assert told == ["a"]


async def test_passing_the_validation_ends_a_pending_and_nothing_else(registries: Any) -> None:
    registry = await registries(document(entry("a")), poll=1000)
    for status, effective in (
        (Status.PENDING, Status.ACTIVE),
        (Status.PAUSED, Status.PAUSED),
        (Status.DISABLED, Status.DISABLED),
    ):
        registry.put_managed(managed("m", status=status), "t")
        registry.set_runtime("m", Runtime("t", Status.ACTIVE))
        assert registry.index.get("m").status is effective
    registry.put_managed(managed("m", status=Status.PENDING), "created anew")
    assert registry.index.get("m").status is Status.PENDING
