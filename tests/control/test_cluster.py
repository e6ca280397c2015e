"""The cluster view: who is failing, as all processes say it, and as whoever asks may see it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pytest

from dispatcher.control.cluster import ClusterView
from dispatcher.control.history import HistoryReader
from dispatcher.core.cluster.record import ReplicaRecord, Trouble
from dispatcher.history.base import Awaiting, StoreUnavailable
from tests.fakes import FixedRegistry, subscription


def record(
    replica: str, *troubles: Trouble, more: int = 0, roles: tuple[str, ...] = ("deliver",)
) -> ReplicaRecord:
    return ReplicaRecord(
        replica=replica,
        version="1",
        started_ms=1,
        at_ms=1,
        roles=roles,
        troubles=troubles,
        troubles_total=len(troubles) + more,
    )


def trouble(id_: str, tenant: str | None = "acme", since: int = 1) -> Trouble:
    return Trouble(subscription_id=id_, tenant=tenant, since_ms=since)


class Processes:
    """What is known of all processes."""

    replica = "one:1"

    def __init__(self, *records: ReplicaRecord) -> None:
        self.records = records

    def all(self) -> Sequence[ReplicaRecord]:
        return self.records


class Store:
    """Knows what waits."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.away = False

    async def awaiting(self, ids: Collection[str]) -> Mapping[str, Awaiting]:
        self.asked.append(list(ids))
        if self.away:
            raise StoreUnavailable("away")
        return {id_: Awaiting(3, False, 100, 200) for id_ in ids}


SUBSCRIPTIONS = (
    subscription("sub_a", "http://a.test/", tenant="acme"),
    subscription("sub_b", "http://b.test/", tenant="acme"),
    subscription("sub_c", "http://a.test/", tenant="globex"),
    subscription("sub_d", "http://a.test/", tenant="*"),
)


def view(*records: ReplicaRecord, store: Store | None = None) -> ClusterView:
    registry: Any = FixedRegistry(*SUBSCRIPTIONS)
    processes: Any = Processes(*records)
    kept: Any = store
    return ClusterView(processes, registry, HistoryReader(kept, None))


ALL = [
    trouble("sub_c", "globex", 1),
    trouble("sub_b", since=2),
    trouble("sub_a", since=3),
    trouble("sub_d", "*", 4),
]


async def ids(made: ClusterView, tenant: str | None, **filters: Any) -> list[str]:
    page = await made.failing(tenant, **filters)
    assert page.total >= len(page.items)
    return [each.failing.subscription_id for each in page.items]


async def test_an_operator_sees_all_and_a_tenant_its_own() -> None:
    made = view(record("one:1", *ALL))
    assert await ids(made, None) == ["sub_c", "sub_b", "sub_a", "sub_d"]
    assert await ids(made, "acme") == ["sub_b", "sub_a"]
    assert await ids(made, "globex") == ["sub_c"]
    assert await ids(made, "nobody") == []
    assert await ids(made, "acme", of_tenant="globex") == []
    assert await ids(made, "acme", subscription_id="sub_c") == []


async def test_filters_choose() -> None:
    made = view(record("one:1", *ALL))
    assert await ids(made, None, of_tenant="acme") == ["sub_b", "sub_a"]
    assert await ids(made, None, host="a.test") == ["sub_c", "sub_a", "sub_d"]
    assert await ids(made, None, subscription_id="sub_a") == ["sub_a"]
    page = await made.failing(None, limit=3)
    assert (len(page.items), page.total) == (3, 4)


async def test_what_is_gone_or_somebody_elses_by_now_is_not_shown() -> None:
    made = view(record("one:1", trouble("sub_none"), trouble("sub_a", "globex"), trouble("sub_b")))
    assert await ids(made, None) == ["sub_b"]
    assert await ids(made, "globex") == []


async def test_the_answer_says_of_which_processes_it_is_and_whether_some_have_more() -> None:
    made = view(
        record("one:1", trouble("sub_a")),
        record("two:1", trouble("sub_a")),
        record("three:1", roles=("api",)),
    )
    page = await made.failing(None)
    assert (page.replicas, page.cut) == (["one:1", "two:1"], False)
    assert page.items[0].failing.replicas == ("one:1", "two:1")
    assert (await view(record("one:1", trouble("sub_a"), more=1)).failing(None)).cut


async def test_what_waits_in_retry_topics_is_the_historys_and_may_be_unknown() -> None:
    store = Store()
    made = view(record("one:1", *ALL), store=store)
    page = await made.failing("acme")
    assert [each.awaiting for each in page.items] == [Awaiting(3, False, 100, 200)] * 2
    assert store.asked == [["sub_b", "sub_a"]]
    store.away = True
    assert [each.awaiting for each in (await made.failing("acme")).items] == [None, None]
    assert [each.awaiting for each in (await view(record("one:1", *ALL)).failing("acme")).items] == [
        None,
        None,
    ]


@pytest.mark.parametrize(("tenant", "said"), [("acme", True), ("globex", False)])
async def test_what_a_process_says_of_a_former_owner_is_not_the_new_ones(tenant: str, said: bool) -> None:
    made = view(
        record("one:1", trouble("sub_a", tenant)), record("two:1", more=1), record("api:1", roles=("api",))
    )
    seen = made.of_subscription(SUBSCRIPTIONS[0])
    assert [(each.replica, each.trouble is not None, each.cut) for each in seen] == [
        ("one:1", said, False),
        ("two:1", False, True),
    ]
