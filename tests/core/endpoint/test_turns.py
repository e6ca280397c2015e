"""The slots of one origin, shared between tenants and between the subscriptions of a tenant."""

from __future__ import annotations

from collections import Counter
from typing import Final

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dispatcher.core.endpoint.fairness import FACTOR, RESERVE, Fairness, TenantUsage
from dispatcher.core.endpoint.lane import Lane
from dispatcher.core.endpoint.share import Share
from dispatcher.core.endpoint.turns import NO_SHARES

PLENTY: Final = 1 << 30


class Slots:
    """A lane with a Fairness, of which everything is taken that can be."""

    def __init__(self, limit: int, most: int = PLENTY, *, reserved: bool = True) -> None:
        self.fairness = Fairness(most, PLENTY)
        self.lane: Lane[str] = Lane(limit, fairness=self.fairness, reserved=reserved)
        self.taken: list[Share[str]] = []

    def offer(self, tenant: str | None, subscription: str, count: int, limit: int = 16) -> None:
        usage = self.fairness.usage_of(tenant)
        for _ in range(count):
            assert self.lane.offer(subscription, limit, subscription, 0.0, usage=usage) is None

    def take(self) -> Counter[str]:
        taken: Counter[str] = Counter()
        while (found := self.lane.take(0.0)) is not None:
            self.fairness.began(found[1].usage, 0)
            self.taken.append(found[1])
            taken[found[0]] += 1
        return taken

    def end(self, subscription: str) -> None:
        share = next(share for share in self.taken if share.key == subscription)
        self.taken.remove(share)
        self.fairness.ended(share.usage, 0)
        self.lane.release(share)


def test_two_subscriptions_that_hang_leave_the_origin_to_another_tenant() -> None:
    slots = Slots(32)
    slots.offer("a", "hang 1", 100)
    slots.offer("a", "hang 2", 100)
    assert slots.take().total() == 23
    for _ in range(5):
        slots.offer("b", "ok", 1)
        assert slots.take() == {"ok": 1}
        slots.end("ok")
    assert slots.lane.queued == 177


def test_one_after_the_other_tenants_that_hang_leave_room_for_the_next() -> None:
    slots = Slots(32)
    found = []
    for name in "abc":
        for number in range(4):
            slots.offer(name, f"{name}{number}", 100)
        found.append(slots.take().total())
    assert found[0] <= 28
    assert min(found) > 0
    slots.offer("d", "d", 1)
    assert slots.lane.in_flight < 32
    assert slots.take() == {"d": 1}


def test_a_subscription_that_is_alone_takes_all_slots_where_there_are_no_other_tenants() -> None:
    slots = Slots(32, reserved=False)
    slots.offer(None, "alone", 100, limit=32)
    assert slots.take() == {"alone": 32}


def test_a_tenant_that_is_alone_takes_all_slots_but_an_eighth() -> None:
    slots = Slots(32)
    slots.offer("a", "alone", 100, limit=32)
    assert slots.take() == {"alone": 28}


def test_few_slots_are_not_kept_free() -> None:
    """With less than eight, one would be too large a part of them."""
    slots = Slots(4)
    slots.offer("a", "alone", 100)
    assert slots.take() == {"alone": 4}


def test_from_when_there_may_be_other_tenants_something_is_kept_free() -> None:
    slots = Slots(32, reserved=False)
    slots.lane.reserve()
    slots.offer("a", "alone", 100, limit=32)
    assert slots.take() == {"alone": 28}


def test_of_one_tenant_two_subscriptions_that_hang_leave_slots_to_a_third() -> None:
    slots = Slots(32, reserved=False)
    slots.offer(None, "hang 1", 100)
    slots.offer(None, "hang 2", 100)
    assert slots.take().total() < 32
    slots.offer(None, "ok", 2)
    assert slots.take() == {"ok": 2}


def test_tenants_take_turns_however_many_subscriptions_they_have() -> None:
    slots = Slots(1)
    for number in range(100):
        slots.offer("a", f"a{number}", 1)
    slots.offer("b", "b", 10)
    order = []
    for _ in range(20):
        (taken,) = slots.take()
        order.append(taken)
        slots.end(taken)
    assert order[1::2] == ["b"] * 10
    assert order[::2] == [f"a{number}" for number in range(10)]


def test_once_a_second_tenant_is_there_the_first_one_gets_no_more_than_twice_what_is_free() -> None:
    slots = Slots(32)
    slots.offer("a", "hangs", 18, limit=32)
    assert slots.take() == {"hangs": 18}
    slots.offer("b", "b", 4)
    slots.take()
    slots.offer("a", "hangs", 100, limit=32)
    assert slots.take() == {"hangs": 1}
    assert slots.lane.in_flight == 23
    slots.end("b")
    assert slots.take() == {"hangs": 1}


def test_slow_and_fast_tenants_have_the_same_slots_in_the_end() -> None:
    slots = Slots(30)
    slots.offer("slow", "slow", 1000, limit=30)
    slots.offer("fast", "fast", 100_000, limit=30)
    slots.take()
    for number in range(600):
        for share in [share for share in slots.taken if share.key == "fast"]:
            slots.end(share.key)
            slots.take()
        if number % 20 == 0:
            slots.end("slow")
            slots.take()
    have = Counter(share.key for share in slots.taken)
    assert have == {"slow": 13, "fast": 12}


def test_whoever_may_begin_no_more_anywhere_is_held_until_that_is_over() -> None:
    slots = Slots(32, most=9)
    slots.offer("b", "b", 1)
    assert slots.take() == {"b": 1}
    for number in range(10):
        slots.offer("a", f"a{number}", 1)
    assert slots.take().total() == 6
    assert slots.fairness.waiting == 1
    assert slots.lane.take(0.0) is None
    assert slots.fairness.next() is None
    slots.end("a0")
    share = slots.fairness.next()
    assert isinstance(share, Share)
    assert share.lane is slots.lane
    assert share.held
    slots.lane.resume(share)
    assert slots.take().total() == 1
    assert slots.fairness.waiting == 1


def test_an_eighth_is_what_the_docs_say() -> None:
    assert RESERVE == 8


TENANT_OF: Final = {"a1": "a", "a2": "a", "a3": "a", "b1": "b", "b2": "b", "c1": "c"}


class LaneOfTenants(RuleBasedStateMachine):
    """A lane of several tenants: nobody gets more than the part, and nobody waits who may go."""

    @initialize(limit=st.sampled_from([1, 2, 5, 8, 16]), most=st.sampled_from([6, PLENTY]))
    def start(self, limit: int, most: int) -> None:
        self.limit = limit
        self.fairness = Fairness(most, PLENTY)
        self.lane: Lane[tuple[str, int]] = Lane(limit, fairness=self.fairness, reserved=True)
        self.queued: dict[str, list[int]] = {key: [] for key in TENANT_OF}
        self.flying: list[tuple[str, Share[tuple[str, int]]]] = []
        self.count = 0
        self.passed_over: Counter[str] = Counter()

    def usage(self, key: str) -> TenantUsage:
        return self.fairness.usage_of(TENANT_OF[key])

    def slots(self, tenant: str | None = None, key: str | None = None) -> int:
        return sum(
            1 for which, _ in self.flying if tenant in (None, TENANT_OF[which]) and key in (None, which)
        )

    def present(self) -> set[str]:
        return {key for key in TENANT_OF if self.queued[key] or self.slots(key=key)}

    def may(self, key: str, own_limit: int) -> bool:
        """By counting everything."""
        if not self.queued[key] or self.slots(key=key) >= own_limit:
            return False
        tenant = TENANT_OF[key]
        free = self.limit - len(self.flying)
        if free <= 0:
            return False
        held = self.slots(tenant)
        tenants = {TENANT_OF[each] for each in self.present()}
        room = free
        if len(tenants) > 1:
            room = min(free - 1, FACTOR * free - held) if held else free
        elif held:
            room = free - self.limit // RESERVE
        if room <= 0:
            return False
        siblings = [each for each in self.present() if TENANT_OF[each] == tenant]
        if len(siblings) > 1 and self.slots(key=key) >= FACTOR * room:
            return False
        return self.fairness.admits(self.usage(key), self.slots(key=key))

    @rule(key=st.sampled_from(sorted(TENANT_OF)), times=st.sampled_from([1, 3, 20]))
    def offer(self, key: str, times: int) -> None:
        for _ in range(times):
            self.count += 1
            assert self.lane.offer(key, 12, (key, self.count), 0.0, usage=self.usage(key)) is None
            self.queued[key].append(self.count)

    @rule(key=st.sampled_from(sorted(TENANT_OF)))
    def pass_through(self, key: str) -> None:
        if self.fairness.attempts >= self.fairness.easy:
            return
        share = self.lane.pass_through(key, 12, None, self.usage(key))
        if share is not None:
            self.queued[key].append(0)
            assert self.may(key, 12), "it would have been given nothing, had it been queued"
            self.queued[key].pop()
            self.fly(key, share)

    def fly(self, key: str, share: Share[tuple[str, int]]) -> None:
        self.fairness.began(share.usage, 0)
        self.flying.append((key, share))

    @rule(times=st.sampled_from([1, 20]))
    def take(self, times: int) -> None:
        for _ in range(times):
            may = {key for key in TENANT_OF if self.may(key, 12)}
            taken = self.lane.take(0.0)
            if taken is None:
                assert not may, "could have been served"
                return
            (key, number), share = taken
            assert key in may
            assert self.queued[key].pop(0) == number
            tenant = TENANT_OF[key]
            for other in ("a", "b", "c"):
                ready = other != tenant and any(TENANT_OF[each] == other for each in may)
                self.passed_over[other] = self.passed_over[other] + 1 if ready else 0
                assert self.passed_over[other] < 3, "tenants take turns"
            self.fly(key, share)

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), times=st.sampled_from([1, 4]))
    def release(self, data: st.DataObject, times: int) -> None:
        for _ in range(min(times, len(self.flying))):
            each = data.draw(st.sampled_from(self.flying))
            self.flying.remove(each)
            self.fairness.ended(each[1].usage, 0)
            self.lane.release(each[1])
        for _ in range(len(TENANT_OF)):
            share = self.fairness.next()
            if isinstance(share, Share):
                self.lane.resume(share)

    @rule(rest=st.integers(0, 2))
    def withdraw(self, rest: int) -> None:
        withdrawn = {number for _, number in self.lane.withdraw(lambda item: item[1] % 3 == rest)}
        for queue in self.queued.values():
            queue[:] = [number for number in queue if number not in withdrawn]

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "lane"):
            return
        assert not NO_SHARES
        assert self.lane.in_flight == len(self.flying) <= self.limit
        assert self.lane.queued == sum(map(len, self.queued.values()))
        assert {share.key for share in self.lane.shares()} == self.present()
        parts = self.lane._parts
        if parts is not None:
            for usage, part in parts.items():
                assert usage.tenant is not None
                assert part.in_flight == self.slots(usage.tenant)
                assert part.members == sum(TENANT_OF[key] == usage.tenant for key in self.present())

    def teardown(self) -> None:
        if hasattr(self, "lane"):
            self.lane.withdraw(lambda _: True)
            for _, share in self.flying:
                self.lane.release(share)
            assert self.lane.empty
            assert self.lane._parts is None


TestLaneOfTenants = LaneOfTenants.TestCase
TestLaneOfTenants.settings = settings(max_examples=100, stateful_step_count=60)
