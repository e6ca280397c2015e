from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import dispatcher.core.subscription.index as module
from dispatcher.core.request.urls import Origin
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.core.subscription import patterns
from dispatcher.core.subscription.index import Index
from dispatcher.core.subscription.model import Status, Subscription


def subscription(
    name: Any = "s",
    tenant: Any = None,
    event_types: Any = ("*",),
    status: Any = Status.ACTIVE,
    target: Any = "/",
) -> Any:
    return Subscription(
        id=name,
        tenant=tenant,
        origin=Origin("https", "hooks.example.com", 443),
        target=target,
        event_types=tuple(event_types),
        secrets=("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",),
        signatures=("v1",),
        headers=(("X-Env", "prod"),),
        thin=False,
        timeout=15.0,
        max_in_flight=16,
        retry=RetryPolicy((5.0,), 0.1),
        status=status,
    )


def ids(found: Any) -> Any:
    return sorted(each.id for each in found)


def naive(pattern: Any, kind: Any) -> Any:
    """The rule of docs/api.md, read word by word."""

    if kind.startswith("dispatcher.") and not pattern.startswith("dispatcher."):
        return False

    def walk(want: Any, have: Any) -> Any:
        if want == ["*"]:
            return len(have) >= 1
        if not want or not have:
            return want == have
        return want[0] in ("*", have[0]) and walk(want[1:], have[1:])

    return walk(pattern.split("."), kind.split("."))


def wanted(subscriptions: Any, tenant: Any, kind: Any) -> Any:
    return sorted(
        each.id
        for each in subscriptions
        if each.tenant in ("*", tenant) and any(naive(pattern, kind) for pattern in each.event_types)
    )


SEGMENT = st.sampled_from(["a", "b", "billing", "dispatcher"])
# What CloudEvents allows of a type: empty segments, a star, anything that is no control character.
TYPE = (
    st.lists(SEGMENT | st.sampled_from(["", "*", "x y/z:\u00e9"]), min_size=1, max_size=4)
    .map(".".join)
    .filter(bool)
)
PATTERN = st.lists(SEGMENT | st.just("*"), min_size=1, max_size=4).map(".".join)
TENANT = st.sampled_from([None, "acme", "globex", "*"])
SUBSCRIPTION = st.builds(
    subscription,
    name=st.sampled_from([f"s{number}" for number in range(12)]),
    tenant=TENANT,
    event_types=st.lists(PATTERN, min_size=1, max_size=4),
    status=st.sampled_from(list(Status)),
)


@pytest.mark.parametrize("scanned", [0, 64], ids=["trie", "scan"])
@given(subscriptions=st.lists(SUBSCRIPTION, max_size=12), asked=st.lists(st.tuples(TENANT, TYPE), max_size=8))
def test_the_index_finds_what_a_naive_matcher_finds(scanned: Any, subscriptions: Any, asked: Any) -> None:
    unique = {each.id: each for each in subscriptions}.values()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patterns, "SCANNED", scanned)
        index = Index(subscriptions)
        for tenant, kind in [*asked, *asked]:
            if tenant != "*":  # no event has it
                assert ids(index.match(tenant, kind)) == wanted(unique, tenant, kind)
    assert len(index) == len(unique)
    assert ids(index) == ids(unique)


class IndexMachine(RuleBasedStateMachine):
    """An index and its successors against a dictionary; predecessors must go on answering as before."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(patterns, "SCANNED", 4)
        self.patch.setattr(module, "_ANSWERS", 6)
        self.patch.setattr(module, "_ANSWERS_OF_ONE", 3)
        self.patch.setattr(module, "_SHARD", 2)
        self.index = Index([subscription(f"s{number}", "acme", ("a.*", "b")) for number in range(4)])
        self.model = {each.id: each for each in self.index}
        self.old = (self.index, dict(self.model))

    def teardown(self) -> None:
        self.patch.undo()

    @rule(each=SUBSCRIPTION)
    def replace(self, each: Any) -> None:
        self.old = (self.index, dict(self.model))
        self.index = self.index.replaced(each)
        self.model[each.id] = each

    @rule(name=st.sampled_from([f"s{number}" for number in range(12)]), status=st.sampled_from(list(Status)))
    def change_status(self, name: Any, status: Any) -> None:
        found = self.index.get(name)
        if found is not None:
            self.replace(found.with_status(status, "because"))

    @rule(name=st.sampled_from([f"s{number}" for number in range(12)]))
    def remove(self, name: Any) -> None:
        self.old = (self.index, dict(self.model))
        self.index = self.index.without(name)
        self.model.pop(name, None)

    @rule(tenant=st.sampled_from([None, "acme", "globex", "nobody"]), kind=TYPE)
    def match(self, tenant: Any, kind: Any) -> None:
        found = self.index.match(tenant, kind)
        assert ids(found) == wanted(self.model.values(), tenant, kind)
        assert all(each is self.model[each.id] for each in found)
        index, model = self.old
        assert ids(index.match(tenant, kind)) == wanted(model.values(), tenant, kind)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert len(self.index) == len(self.model)
        assert {each.id: each for each in self.index} == self.model
        assert all(self.index.get(name) is each for name, each in self.model.items())
        assert self.index._kept == sum(map(len, self.index._answers.values())) <= 6


IndexMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestIndexMachine = IndexMachine.TestCase


def test_a_subscription_with_several_matching_patterns_is_found_once() -> None:
    index = Index([subscription(event_types=("a.*", "a.b", "*", "*.b"))])
    assert len(index.match(None, "a.b")) == 1


def test_without_a_tenant_only_events_without_a_tenant_match_and_a_star_takes_both() -> None:
    index = Index([subscription("none"), subscription("star", "*"), subscription("acme", "acme")])
    assert ids(index.match(None, "ping")) == ["none", "star"]
    assert ids(index.match("acme", "ping")) == ["acme", "star"]
    assert ids(index.match("other", "ping")) == ["star"]


def test_paused_and_disabled_ones_are_found_too_for_the_engine_to_count() -> None:
    index = Index([subscription(status.value, status=status) for status in Status])
    assert {each.status for each in index.match(None, "ping")} == set(Status)


@pytest.fixture
def derived(monkeypatch: Any) -> list[str]:
    """The types of the answers that were not kept."""
    types: list[str] = []
    derive = Index._find

    def counted(index: Index, group: Any, type_: str) -> tuple[Subscription, ...]:
        types.append(type_)
        return derive(index, group, type_)

    monkeypatch.setattr(Index, "_find", counted)
    return types


def test_an_answer_is_derived_once(derived: list[str]) -> None:
    index = Index([subscription("one", tenant="acme"), subscription("two"), subscription("three")])
    for tenant, found in (("acme", ["one"]), (None, ["three", "two"])):
        for type_ in ("ping", "pong"):
            assert sorted(each.id for each in index.match(tenant, type_)) == found
            assert index.match(tenant, type_) == index.match(tenant, type_)
    assert derived == ["ping", "pong", "ping", "pong"]


def test_types_and_tenants_from_outside_dont_pile_up(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_ANSWERS", 100)
    monkeypatch.setattr(module, "_ANSWERS_OF_ONE", 20)
    index = Index([subscription(f"s{n}", f"t{n}", ("a.*",)) for n in range(50)])
    for number in range(5000):
        assert len(index.match(f"t{number % 50}", f"a.x{number}")) == 1
        assert index.match(f"stranger{number}", f"a.x{number}") == ()
    assert sum(map(len, index._answers.values())) <= 100
    assert len(index._strangers) <= 20


def test_a_changed_status_leaves_other_tenants_answers_warm(derived: list[str]) -> None:
    index = Index([subscription("a", "acme"), subscription("g", "globex")])
    kept = index.match("globex", "ping")
    index = index.replaced(subscription("a", "acme", status=Status.DISABLED))
    derived.clear()
    assert index.match("globex", "ping") == kept
    assert derived == []
    assert index.match("acme", "ping")[0].status is Status.DISABLED
    assert derived == ["ping"]


def test_an_index_that_grows_one_by_one_from_nothing_stays_cheap_to_change(monkeypatch: Any) -> None:
    """Whatever it grew from, a change copies no more than a few shards' worth."""
    monkeypatch.setattr(module, "_SHARD", 8)
    monkeypatch.setattr(module, "_SPREAD", 32)
    index = Index()
    for number in range(1000):
        index = index.replaced(subscription(f"s{number}", tenant=f"t{number % 500}"))
    assert max(map(len, index._by_id)) <= 32
    assert max(map(len, index._groups)) <= 32
    assert len(index) == 1000
    assert ids(index) == ids(Index(index))
    assert all(ids(index.match(f"t{n}", "a")) == sorted([f"s{n}", f"s{n + 500}"]) for n in range(500))
    assert sorted(index.ids_of("t7") or ()) == ["s507", "s7"]
    for number in range(1000):
        index = index.without(f"s{number}")
    assert len(index) == 0


def test_the_ids_of_a_tenant_are_at_hand_unless_there_are_very_many() -> None:
    index = Index([subscription(f"s{n}", tenant="large") for n in range(100)] + [subscription("s", "small")])
    assert index.ids_of("large") is None
    assert index.ids_of("small") == ("s",)
    assert index.ids_of("none") == ()
