"""Whom an event might have been for, and what each caller is told of it: on a real store."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dispatcher.control import explaining
from dispatcher.control.errors import NotFound
from dispatcher.control.explaining import Explained, ExplainedEvent, Explanations
from dispatcher.control.history import HistoryReader
from dispatcher.core.retry.records import Source
from dispatcher.history.base import DELETED, Retention, SubscriptionVersion
from dispatcher.history.explanation import ReadTime, VersionDocument
from dispatcher.history.logged import DAY_MS
from dispatcher.history.sqlite.store import SqliteHistory
from tests.fakes import FixedRegistry, subscription
from tests.history.records import EVENTS, attempt, batch, event

NOW = int(time.time() * 1000)


def version(
    id_: str, tenant: str | None = "acme", status: str = "active", since: int = -1000, *types: str
) -> SubscriptionVersion:
    document = msgspec.json.encode(VersionDocument(types or ("*",), created_ms=NOW - 5000)).decode()
    return SubscriptionVersion(id_, NOW + since, tenant, status, document)


class Bench:
    """A store that knows one event of acme's, delivered to one subscription, and a registry."""

    def __init__(self, folder: Path) -> None:
        self.store = SqliteHistory(folder / "history", Retention(30 * DAY_MS, 30 * DAY_MS))
        self.registry: Any = FixedRegistry(
            subscription("sub_a", tenant="acme"),
            subscription("sub_orders", tenant="acme", event_types=("order.*",)),
            subscription("sub_all", tenant="*"),
            subscription("sub_globex", tenant="globex"),
        )

    async def open(self) -> None:
        await self.store.open()
        await self.store.apply(
            [
                batch([attempt(0, 7, time_ms=NOW, event_type="invoice.paid")], None, 1),
                batch([], None, 8, partition=EVENTS, events=[event(7, time_ms=NOW)]),
            ],
            NOW,
        )
        await self.store.note_versions(
            [
                version("sub_a"),
                version("sub_orders", "acme", "active", -1000, "order.*"),
                version("sub_all", "*"),
                version("sub_globex", "globex"),
                version("sub_gone", "acme", "active", -2000),
                version("sub_gone", "acme", DELETED, -1000),
            ]
        )

    async def explain(
        self, tenant: str | None, event_id: str = "evt_7", subscription_id: str | None = None
    ) -> ExplainedEvent:
        explanations = Explanations(HistoryReader(self.store, None), self.registry, keeps_all=True)
        (found,) = (await explanations.explain(tenant, event_id, subscription_id)).value
        return found

    async def outcomes(self, tenant: str | None, subscription_id: str | None = None) -> dict[str, str]:
        found = await self.explain(tenant, subscription_id=subscription_id)
        return {each.subscription_id: each.explanation.outcome for each in found.explanations}


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    await made.open()
    yield made
    await made.store.close()


async def test_everybody_for_whom_it_might_have_been_is_explained_those_with_a_delivery_first(
    bench: Bench,
) -> None:
    found = await bench.explain(None)
    assert (found.source, found.event_type, found.tenant, found.time_ms) == (
        Source("events", 0, 7),
        "invoice.paid",
        "acme",
        NOW,
    )
    assert found.explanations[0].subscription_id == "sub_a"
    assert found.explanations[0].delivery_id is not None
    assert {each.subscription_id: each.explanation.outcome for each in found.explanations} == {
        "sub_a": "delivered",
        "sub_all": "pending",
        "sub_orders": "no_match_type",
        "sub_gone": "deleted",
    }
    assert not found.cut


async def test_a_tenant_is_told_of_its_own_and_of_nobody_elses(bench: Bench) -> None:
    own = {"sub_a": "delivered", "sub_orders": "no_match_type", "sub_gone": "deleted"}
    assert await bench.outcomes("acme") == own
    for id_, outcome in own.items():
        assert await bench.outcomes("acme", id_) == {id_: outcome}
    said = []
    for id_ in ("sub_globex", "sub_all", "sub_none"):
        with pytest.raises(NotFound) as caught:
            await bench.outcomes("acme", id_)
        said.append(str(caught.value).replace(id_, "..."))
    assert len(set(said)) == 1
    for tenant in ("globex", "nobody"):
        with pytest.raises(NotFound):
            await bench.outcomes(tenant)


async def test_an_event_that_was_never_published_is_not_found(bench: Bench) -> None:
    with pytest.raises(NotFound, match="there is no event evt_none"):
        await bench.explain(None, "evt_none")


async def test_an_operator_may_ask_about_any_subscription_that_is_known(bench: Bench) -> None:
    assert await bench.outcomes(None, "sub_globex") == {"sub_globex": "no_match_tenant"}
    with pytest.raises(NotFound, match="there is no subscription sub_none"):
        await bench.outcomes(None, "sub_none")


async def test_what_an_id_was_for_its_former_owner_is_not_told_to_the_new_one(bench: Bench) -> None:
    await bench.store.note_versions(
        [version("sub_new", "globex", "paused", -3000), version("sub_new", "acme", "active", 1000)]
    )
    bench.registry.index = bench.registry.index.replaced(subscription("sub_new", tenant="acme"))
    found = (await bench.explain("acme", subscription_id="sub_new")).explanations
    assert [each.explanation.outcome for each in found] == ["unknown"]
    assert "paused" not in found[0].explanation.sentence
    assert await bench.outcomes(None, "sub_new") == {"sub_new": "no_match_tenant"}


async def test_an_answer_is_bounded_and_says_when_it_is_cut(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explaining, "MOST", 2)
    found = await bench.explain(None)
    assert [each.subscription_id for each in found.explanations] == ["sub_a", "sub_all"]
    assert found.cut
    assert await bench.outcomes(None, "sub_gone") == {"sub_gone": "deleted"}


async def test_each_event_of_an_id_is_explained_by_itself(bench: Bench) -> None:
    again = event(8, event_id="evt_7", event_type="order.made", time_ms=NOW + 5)
    await bench.store.apply([batch([], 8, 9, partition=EVENTS, events=[again])], NOW)
    explanations = Explanations(HistoryReader(bench.store, None), bench.registry, keeps_all=True)
    found = (await explanations.explain("acme", "evt_7")).value
    assert [(each.source.offset, _of(each, "sub_orders").explanation.outcome) for each in found] == [
        (8, "pending"),
        (7, "no_match_type"),
    ]


def _of(found: ExplainedEvent, id_: str) -> Explained:
    return next(each for each in found.explanations if each.subscription_id == id_)


async def test_the_time_at_which_it_was_read_is_what_its_other_deliveries_say(bench: Bench) -> None:
    # It was made a second ago by its producer's clock, which is slow, and read just now: sub_orders is paused since then.
    await bench.store.note_versions([version("sub_orders", "acme", "paused", -500, "*")])
    late = event(9, time_ms=NOW - 900)
    records = [attempt(1, 9, time_ms=NOW, event_type="invoice.paid")]
    await bench.store.apply([batch(records, 1, 2), batch([], 8, 10, partition=EVENTS, events=[late])], NOW)
    found = _of(await bench.explain("acme", "evt_9"), "sub_orders")
    assert found.explanation.outcome == "paused"


async def test_its_neighbours_are_asked_only_where_that_makes_a_difference(bench: Bench) -> None:
    asked: list[Source] = []

    class Times:
        async def around(self, source: Source) -> ReadTime:
            asked.append(source)
            return ReadTime(NOW - 100, NOW)

    alone = event(9, time_ms=NOW - 900)
    await bench.store.apply([batch([], 8, 10, partition=EVENTS, events=[alone])], NOW)
    explanations = Explanations(
        HistoryReader(bench.store, None),
        bench.registry,
        keeps_all=True,
        reading_times=Times(),  # type: ignore[arg-type] # what is asked of it
    )

    async def outcome(id_: str) -> str:
        (found,) = (await explanations.explain("acme", "evt_9", id_)).value
        return found.explanations[0].explanation.outcome

    await bench.store.note_versions(
        [version("sub_a", since=-9_000_000), version("sub_orders", "acme", "paused", -500, "*")]
    )
    bench.registry.index = bench.registry.index.replaced(subscription("sub_same", tenant="acme"))
    await bench.store.note_versions([version("sub_same", since=-9_000_000)])
    assert await outcome("sub_same") == "pending"
    assert asked == []
    assert await outcome("sub_orders") == "paused"
    assert asked == [Source("events", 0, 9)]
