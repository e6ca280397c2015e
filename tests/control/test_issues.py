"""Issues: what they count, who sees them, and what becomes of marks. On a real store, with marks in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dispatcher.control import issues as issues_module
from dispatcher.control.access import Principal
from dispatcher.control.errors import Invalid, NotFound, Overloaded, Unavailable
from dispatcher.control.history import HistoryOff, HistoryReader
from dispatcher.control.issues import Issues
from dispatcher.core.control.issues import IssueMark, IssueState
from dispatcher.history.base import DeliveryQuery, Retention, UndeliveredQuery
from dispatcher.history.logged import DAY_MS
from dispatcher.history.sqlite.store import SqliteHistory
from tests.control.memory import MemoryTable
from tests.fakes import FixedRegistry, subscription
from tests.history.records import NOON, attempt, batch

OPERATOR = Principal("settings", "key 1 of the settings", "operator")
ACME = Principal("key:acme", "acme's", "tenant", "acme")
GLOBEX = Principal("key:globex", "globex's", "tenant", "globex")
TODAY = UndeliveredQuery(NOON - DAY_MS, NOON + DAY_MS)
SUBSCRIPTIONS = (
    subscription("sub_a", "http://a.test/", tenant="acme"),
    subscription("sub_b", "http://b.test/", tenant="acme"),
    subscription("sub_c", "http://c.test/", tenant="globex"),
    subscription("sub_all", "http://a.test/", tenant="*"),
)


class World:
    """A history, a registry, and the issues of both."""

    def __init__(self, store: SqliteHistory) -> None:
        self.store = store
        self.now = NOON / 1000 + 3600
        self.marks: MemoryTable[IssueMark] = MemoryTable()
        registry: Any = FixedRegistry(*SUBSCRIPTIONS)
        self.registry = registry
        self.next = 0
        self.issues = Issues(
            HistoryReader(store, None, clock=lambda: self.now),
            self.marks,
            self.registry,
            lambda: None,
            lambda: self.now,
            30 * 86400.0,
        )

    async def happen(self, *records: tuple[str, dict[str, Any]]) -> None:
        """Attempts of events of their own, in this order."""
        made = [
            attempt(self.next + n, self.next + n, id_, **{"v": 2, **fields})
            for n, (id_, fields) in enumerate(records)
        ]
        await self.store.apply([batch(made, self.next or None, self.next + len(made))], NOON)
        self.next += len(made)

    async def states(self, tenant: str | None = None, **more: Any) -> dict[str, str]:
        page = (await self.issues.page(tenant, TODAY, **more)).value
        return {each.id: each.state.value for each in page.issues}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = SqliteHistory(tmp_path / "history", Retention(30 * DAY_MS, 30 * DAY_MS))
    await store.open()
    yield World(store)
    await store.close()


FAILS: dict[str, Any] = {"decision": "retry", "status": 503}
DEAD: dict[str, Any] = {"decision": "dead", "status": 503, "reason": "exhausted"}


async def test_a_thousand_rows_are_one_line_that_counts_exactly_what_its_filters_list(world: World) -> None:
    await world.happen(
        *[("sub_a", {**FAILS, "time_ms": NOON + n}) for n in range(700)],
        *[("sub_a", {**DEAD, "time_ms": NOON + n}) for n in range(290)],
        *[("sub_a", {"decision": "parked", "reason": "breaker", "time_ms": NOON + n}) for n in range(10)],
        ("sub_a", {"decision": "dropped", "reason": "cancelled", "status": 503}),
        ("sub_b", {"decision": "retry", "failure": "timeout"}),
        ("sub_b", {}),
    )
    page = (await world.issues.page(None, TODAY)).value
    assert [(each.id, each.group.pending, each.group.retrying, each.group.dead) for each in page.issues] == [
        ("sub_a:503", 0, 700, 290),
        ("sub_a:breaker", 10, 0, 0),
        ("sub_b:timeout", 0, 1, 0),
    ]
    assert not page.at_least
    assert not page.cut
    for each in page.issues:
        query = DeliveryQuery(
            TODAY.since_ms, TODAY.until_ms, 1000, subscription_id=each.subscription.id, cause=each.group.cause
        )
        listed = (await world.store.deliveries(query)).items
        assert len(listed) == each.group.pending + each.group.retrying + each.group.dead
        assert max(row.last_ms for row in listed) == each.group.last_ms
        assert min(row.created_ms for row in listed) == each.group.first_ms


async def test_the_next_success_resolves_it(world: World) -> None:
    await world.happen(("sub_a", DEAD), ("sub_b", {**FAILS, "time_ms": NOON}))
    assert await world.states() == {"sub_a:503": "open", "sub_b:503": "open"}
    await world.happen(("sub_a", {"time_ms": NOON + 1}))
    assert await world.states() == {"sub_b:503": "open", "sub_a:503": "resolved"}  # what is open comes first
    assert await world.states(state=IssueState.OPEN) == {"sub_b:503": "open"}
    await world.happen(("sub_a", {**DEAD, "time_ms": NOON + 2}))
    assert (await world.states())["sub_a:503"] == "open"


async def test_an_acknowledgement_holds_until_the_next_success(world: World) -> None:
    await world.happen(("sub_a", DEAD))
    marked = await world.issues.acknowledge(ACME, "sub_a:503")
    assert marked.state is IssueState.ACKNOWLEDGED
    assert marked.mark is not None
    assert (marked.mark.by, marked.mark.tenant) == ("acme's", "acme")
    now_ms = round(world.now * 1000)
    await world.happen(("sub_a", {**DEAD, "time_ms": now_ms + 1}))
    assert await world.states() == {"sub_a:503": "acknowledged"}
    await world.happen(("sub_a", {"time_ms": now_ms + 2}))
    assert await world.states() == {"sub_a:503": "resolved"}
    await world.happen(("sub_a", {**DEAD, "time_ms": now_ms + 3}))
    assert await world.states() == {"sub_a:503": "open"}


async def test_it_is_ignored_until_its_time_through_successes_too(world: World) -> None:
    await world.happen(("sub_a", DEAD))
    now_ms = round(world.now * 1000)
    assert (await world.issues.ignore(OPERATOR, "sub_a:503", now_ms + 60_000)).state is IssueState.IGNORED
    await world.happen(("sub_a", {"time_ms": now_ms + 1}), ("sub_a", {**DEAD, "time_ms": now_ms + 2}))
    assert await world.states() == {"sub_a:503": "ignored"}
    world.now += 60
    assert await world.states() == {"sub_a:503": "open"}
    for until in (now_ms, now_ms + 60_000 + 367 * DAY_MS):
        with pytest.raises(Invalid, match="until"):
            await world.issues.ignore(OPERATOR, "sub_a:503", until)


async def test_it_is_reopened_and_reopening_twice_is_no_error(world: World) -> None:
    await world.happen(("sub_a", DEAD))
    await world.issues.acknowledge(OPERATOR, "sub_a:503")
    for _ in range(2):
        assert (await world.issues.reopen(OPERATOR, "sub_a:503")).state is IssueState.OPEN
    assert len(world.marks) == 0


async def test_a_tenant_sees_and_marks_the_issues_of_its_own_subscriptions(world: World) -> None:
    # Of a subscription for every tenant, which is the operator's, an event of acme's.
    await world.happen(("sub_a", FAILS), ("sub_c", {**FAILS, "tenant": "globex"}), ("sub_all", FAILS))
    assert set(await world.states()) == {"sub_a:503", "sub_c:503", "sub_all:503"}
    assert set(await world.states("acme")) == {"sub_a:503"}
    assert set(await world.states("globex")) == {"sub_c:503"}
    hidden = (await world.issues.page("acme", TODAY._replace(tenant="globex"))).value
    assert hidden.issues == []
    for id_ in ("sub_c:503", "sub_all:503", "sub_a:500", "sub_none:503", "sub_a", ":503"):
        with pytest.raises(NotFound):
            await world.issues.acknowledge(ACME, id_)
    with pytest.raises(NotFound):
        await world.issues.reopen(GLOBEX, "sub_a:503")
    only = (await world.issues.page(None, TODAY._replace(subscription_id="sub_c"))).value
    assert [each.id for each in only.issues] == ["sub_c:503"]


async def test_of_a_subscription_that_is_deleted_or_anothers_by_now_there_are_none(world: World) -> None:
    await world.happen(("sub_a", DEAD), ("sub_gone", DEAD))
    assert set(await world.states()) == {"sub_a:503"}
    world.registry.index = FixedRegistry(subscription("sub_a", "http://new.test/", tenant="globex")).index
    assert await world.states("globex") == {}
    assert await world.states("acme") == {}


async def test_marks_are_bounded_and_those_that_have_ended_make_room(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issues_module, "MAX_MARKS_OF_TENANT", 2)
    await world.happen(*[("sub_a", {**DEAD, "status": status}) for status in (500, 501, 502)])
    soon = round(world.now * 1000) + 1000
    await world.issues.ignore(ACME, "sub_a:500", soon)
    await world.issues.acknowledge(ACME, "sub_a:501")
    with pytest.raises(Overloaded, match="reopen"):
        await world.issues.acknowledge(ACME, "sub_a:502")
    await world.issues.acknowledge(ACME, "sub_a:501")  # again: it is marked already
    world.now += 1
    await world.issues.acknowledge(ACME, "sub_a:502")
    assert world.marks.names() == ["sub_a:501", "sub_a:502"]
    monkeypatch.setattr(issues_module, "MAX_MARKS", 2)
    await world.happen(("sub_c", {**DEAD, "tenant": "globex"}))
    with pytest.raises(Overloaded):
        await world.issues.acknowledge(OPERATOR, "sub_c:503")


async def test_of_two_who_mark_it_at_the_same_moment_the_last_one_is_right(world: World) -> None:
    await world.happen(("sub_a", DEAD))
    put = world.marks.put
    raced: list[str] = []

    async def late(name: str, value: IssueMark, *, base: int) -> Any:
        if not raced:
            raced.append(name)
            await put(name, value, base=base)  # another replica's
        return await put(name, value, base=base)

    world.marks.put = late  # type: ignore[method-assign]
    assert (await world.issues.acknowledge(OPERATOR, "sub_a:503")).state is IssueState.ACKNOWLEDGED
    assert raced
    row = world.marks.get("sub_a:503")
    assert row is not None
    assert row.version == 2


async def test_more_issues_than_are_looked_at_are_told_of(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issues_module, "MAX_ISSUES", 2)
    await world.happen(*[("sub_a", {**DEAD, "status": status}) for status in (500, 500, 501, 501, 502)])
    page = (await world.issues.page(None, TODAY)).value
    assert [each.id for each in page.issues] == ["sub_a:500", "sub_a:501"]
    assert page.cut
    assert (await world.issues.page(None, TODAY, limit=1)).value.cut


async def test_without_a_history_or_while_the_marks_are_read_it_says_so(world: World) -> None:
    def unread() -> None:
        raise Unavailable("still being read")

    off = Issues(HistoryReader(None, None), world.marks, world.registry, lambda: None, lambda: 0.0, 1.0)
    with pytest.raises(HistoryOff):
        await off.page(None, TODAY)
    unready = Issues(HistoryReader(world.store, None), world.marks, world.registry, unread, lambda: 0.0, 1.0)
    with pytest.raises(Unavailable):
        await unready.page(None, TODAY)
    with pytest.raises(Unavailable):
        await unready.acknowledge(OPERATOR, "sub_a:503")
