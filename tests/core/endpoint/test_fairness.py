"""Fair shares between tenants: the rule, against a naive model, and against max-min fairness."""

from __future__ import annotations

from random import Random
from typing import Final

import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dispatcher.core.endpoint.fairness import FACTOR, RESERVE, Fairness, TenantUsage, level, more

TENANTS: Final = [None, "a", "b", "c"]
PLENTY: Final = 1 << 30


def greedy(fairness: Fairness, usage: TenantUsage, size: int = 0) -> int:
    """Begin as many as the tenant may, each of another subscription; how many that are."""
    count = 0
    while fairness.admits(usage, 0):
        fairness.began(usage, size)
        count += 1
    return count


def test_a_tenant_alone_takes_all_but_an_eighth_and_the_next_ones_two_thirds_of_what_they_find() -> None:
    fairness = Fairness(9000, PLENTY)
    taken = [greedy(fairness, fairness.usage_of(name)) for name in ("a", "b", "c", "d")]
    assert taken == [7875, 750, 250, 84]
    assert greedy(fairness, fairness.usage_of("e")) > 0


def test_what_a_tenant_alone_was_lent_goes_to_the_next_one_as_it_comes_back() -> None:
    fairness = Fairness(9000, PLENTY)
    a, b = fairness.usage_of("a"), fairness.usage_of("b")
    greedy(fairness, a)
    while a.attempts > b.attempts:
        greedy(fairness, b)
        fairness.ended(a, 0)
        assert not fairness.admits(a, 0) or a.attempts < 2 * (9000 - fairness.attempts)
    assert b.attempts == 3600, "as if it had been the first"


def test_the_operator_alone_takes_everything() -> None:
    fairness = Fairness(9000, PLENTY)
    assert greedy(fairness, fairness.usage_of(None)) == 9000


def test_of_an_operator_alone_no_subscription_takes_what_another_needs() -> None:
    fairness = Fairness(100, PLENTY)
    usage = fairness.usage_of(None)
    own = 0
    while fairness.admits(usage, own):
        fairness.began(usage, 0)
        own += 1
    assert own == 67
    assert fairness.admits(usage, 0)


def test_a_tenant_may_have_all_but_bytes() -> None:
    """Its bodies are large: a few attempts of it would keep all the memory."""
    fairness = Fairness(9000, 900)
    a, b = fairness.usage_of("a"), fairness.usage_of("b")
    assert greedy(fairness, a, 10) == 60
    assert fairness.admits(b, 0)


def test_a_tenant_that_has_nothing_gets_one_whatever_the_bytes() -> None:
    fairness = Fairness(10, 100)
    fairness.began(fairness.usage_of("a"), 1000)
    b = fairness.usage_of("b")
    assert fairness.admits(b, 0)
    fairness.began(b, 1)
    assert not fairness.admits(b, 0)


def test_a_subscription_of_the_operator_alone_that_has_nothing_gets_one_beyond_the_bytes_for_a_while() -> (
    None
):
    fairness = Fairness(100, 160)
    usage = fairness.usage_of(None)
    fairness.began(usage, 160)
    assert fairness.admits(usage, 0)
    assert not fairness.admits(usage, 1)
    fairness.began(usage, 10)
    assert not fairness.admits(usage, 0)


def test_tenants_are_asked_in_turns_and_a_tenant_that_may_not_is_passed_over() -> None:
    fairness = Fairness(30, PLENTY)
    a, b, c = (fairness.usage_of(name) for name in "abc")
    greedy(fairness, a)
    for waiter in ("a1", "a2"):
        fairness.hold(a, waiter)
    fairness.hold(b, "b1")
    fairness.hold(c, "c1")
    fairness.hold(b, "b2")
    assert fairness.waiting == 3
    assert [fairness.next() for _ in range(4)] == ["b1", "c1", "b2", None]
    assert fairness.waiting == 1
    for _ in range(20):
        fairness.ended(a, 0)
    assert [fairness.next() for _ in range(3)] == ["a1", "a2", None]
    assert fairness.waiting == 0


def test_tenants_that_use_nothing_are_dropped_where_there_are_many_and_nobody_refers_to_them() -> None:
    fairness = Fairness(9000, PLENTY)
    usages = [fairness.usage_of(str(number)) for number in range(5000)]
    assert fairness.many
    fairness.began(usages[0], 1)
    usages[1].in_flight = 1
    fairness.hold(usages[2], "waits")
    fairness.sweep({usages[3]})
    assert [usage.owner is fairness for usage in usages[:5]] == [True, True, True, True, False]
    assert fairness.usage_of("4") is not usages[4]
    assert len(fairness) == 5
    assert not fairness.many


@pytest.mark.parametrize(
    ("amounts", "total", "expected"),
    [([1, 2, 3], 6, 3), ([1, 5, 5], 7, 3), ([4, 4], 3, 1), ([5000] * 3, 0, 0), ([], 7, 0), ([0, 9], 4, 4)],
)
def test_the_level_to_which_amounts_are_cut(amounts: list[int], total: int, expected: int) -> None:
    assert level(amounts, total) == expected


class FairnessAgainstModel(RuleBasedStateMachine):
    """The model keeps a list of the attempts that are under way, and counts it whenever it is asked."""

    @initialize(most=st.sampled_from([1, 2, 3, 7, 30]), most_bytes=st.sampled_from([10, 1000]))
    def start(self, most: int, most_bytes: int) -> None:
        self.fairness = Fairness(most, most_bytes)
        self.most, self.most_bytes = most, most_bytes
        self.under_way: list[tuple[str | None, int, int]] = []  # tenant, subscription, bytes
        self.waiters: list[tuple[str | None, int, int]] = []
        self.seen: set[str | None] = set()

    # The model.

    def held(self, tenant: str | None, subscription: int | None = None) -> int:
        return sum(1 for who, which, _ in self.under_way if who == tenant and subscription in (None, which))

    def may(self, tenant: str | None, subscription: int) -> bool:
        return self.fits(tenant, subscription) or self.lent(tenant, subscription)

    def fits(self, tenant: str | None, subscription: int) -> bool:
        free = self.most - len(self.under_way)
        free_bytes = self.most_bytes - sum(size for _, _, size in self.under_way)
        own = self.held(tenant, subscription)
        if not free:
            return False
        if not self.held(tenant):
            return True
        several = any(self.seen)
        if free_bytes <= 0:
            return not several and not own and -free_bytes < self.most_bytes // 16
        room = free
        if several:
            if sum(size for who, _, size in self.under_way if who == tenant) >= FACTOR * free_bytes:
                return False
            room = min(free - 1, FACTOR * free - self.held(tenant))
        return own < FACTOR * room

    def lent(self, tenant: str | None, subscription: int) -> bool:
        """Nobody else has anything, and an eighth stays free."""
        free = self.most - len(self.under_way)
        free_bytes = self.most_bytes - sum(size for _, _, size in self.under_way)
        if self.held(tenant) < len(self.under_way) or FACTOR * free_bytes <= self.most_bytes - free_bytes:
            return False
        return self.held(tenant, subscription) < FACTOR * (free - max(1, self.most // RESERVE))

    def ask(self, tenant: str | None, subscription: int, size: int) -> None:
        usage = self.fairness.usage_of(tenant)
        self.seen.add(tenant)
        admitted = self.fairness.admits(usage, self.held(tenant, subscription))
        assert admitted == self.may(tenant, subscription)
        if admitted:
            self.fairness.began(usage, size)
            self.under_way.append((tenant, subscription, size))
        else:
            self.waiters.append((tenant, subscription, size))
            self.fairness.hold(usage, (tenant, subscription, size))

    # What happens.

    @rule(
        tenant=st.sampled_from(TENANTS),
        subscription=st.integers(0, 2),
        size=st.sampled_from([0, 1, 5, 200]),
        times=st.sampled_from([1, 1, 20]),
    )
    def begin(self, tenant: str | None, subscription: int, size: int, times: int) -> None:
        for _ in range(times):
            self.ask(tenant, subscription, size)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), times=st.sampled_from([1, 1, 10]))
    def end(self, data: st.DataObject, times: int) -> None:
        for _ in range(min(times, len(self.under_way))):
            ended = data.draw(st.sampled_from(self.under_way))
            self.under_way.remove(ended)
            self.fairness.ended(self.fairness.usage_of(ended[0]), ended[2])
        self.resume()

    def resume(self) -> None:
        """As the owner does; each is asked once."""
        for _ in range(len(self.waiters)):
            waiter = self.fairness.next()
            if waiter is None:
                break
            assert waiter in self.waiters
            first = next(each for each in self.waiters if each[0] == waiter[0])
            assert waiter == first, "of a tenant, who waits longest"
            self.waiters.remove(first)
            self.ask(*first)

    # What always holds.

    @invariant()
    def the_model_agrees(self) -> None:
        if not hasattr(self, "fairness"):
            return
        fairness = self.fairness
        assert fairness.attempts == len(self.under_way) <= self.most
        assert fairness.attempt_bytes == sum(size for _, _, size in self.under_way)
        for tenant in self.seen:
            usage = fairness.usage_of(tenant)
            assert usage.attempts == self.held(tenant)
            assert (usage.held is None) == (tenant not in {who for who, _, _ in self.waiters})
        assert fairness.waiting == len({who for who, _, _ in self.waiters})

    @invariant()
    def nobody_is_refused_below_half(self) -> None:
        if not hasattr(self, "fairness"):
            return
        fairness = self.fairness
        if fairness.attempts < fairness.easy and fairness.attempt_bytes < fairness.easy_bytes:
            assert all(self.may(tenant, subscription) for tenant in TENANTS for subscription in range(3))


TestFairnessAgainstModel = FairnessAgainstModel.TestCase
TestFairnessAgainstModel.settings = settings(max_examples=100, stateful_step_count=50)


def max_min(wanted: list[int], capacity: int) -> list[int]:
    """The naive model: one at a time to whoever has least of those that want more."""
    given_out = [0] * len(wanted)
    while capacity and (wanting := [n for n, want in enumerate(wanted) if given_out[n] < want]):
        given_out[min(wanting, key=given_out.__getitem__)] += 1
        capacity -= 1
    return given_out


@given(
    wanted=st.lists(st.sampled_from([0, 1, 5, 40, 1000]), min_size=1, max_size=6),
    most=st.sampled_from([50, 100, 300]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_whoever_came_first_in_time_everybody_has_the_max_min_share(
    wanted: list[int], most: int, seed: int
) -> None:
    """The first tenant takes all it may before the others come; then attempts end and begin in any order."""
    random = Random(seed)
    fairness = Fairness(most, PLENTY)
    usages = [fairness.usage_of(f"tenant-{number}") for number in range(len(wanted))]

    def fill(which: list[int]) -> None:
        begun = True
        while begun:
            begun = False
            for number in which:
                usage = usages[number]
                if usage.attempts < wanted[number] and fairness.admits(usage, 0):
                    fairness.began(usage, 0)
                    begun = True

    fill([0])
    everybody = list(range(len(wanted)))
    fill(everybody)
    for _ in range(20 * most):
        under_way = [usage for usage in usages for _ in range(usage.attempts)]
        if not under_way:
            break
        fairness.ended(random.choice(under_way), 0)
        random.shuffle(everybody)
        fill(everybody)
    have = [usage.attempts for usage in usages]
    ideal = max_min(wanted, sum(have))
    assert all(abs(mine - best) <= FACTOR for mine, best in zip(have, ideal, strict=True)), (have, ideal)
    greedy_ones = sum(mine < want for mine, want in zip(have, wanted, strict=True))
    free = most - sum(have)
    if greedy_ones:
        assert free <= most / (1 + FACTOR * greedy_ones) + 1, "no more is kept free than the rule says"
        assert free > 0, "for the next one to come"


def test_how_many_more_follow_from_what_is_free() -> None:
    assert [more(held, 4) for held in (0, 4, 5, 8, 9)] == [4, 3, 3, 0, -1]
