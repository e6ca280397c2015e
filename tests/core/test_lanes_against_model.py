"""Lanes against a naive model: limits, windows, rates, demands, breakers, rooms, trimming, and all of them at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dispatcher.core.endpoint.breaker import Breaker, State
from dispatcher.core.endpoint.fairness import FACTOR
from dispatcher.core.endpoint.lane import Lane
from dispatcher.core.endpoint.share import BURST, Share
from dispatcher.core.endpoint.throughput import Throughput
from dispatcher.core.endpoint.turns import NO_SHARES

KEYS = ["a", "b", "c"]
LANE: Final = "the lane"
MAX_WAIT: Final = 5.0
THRESHOLD: Final = 0.8
MIDDLE: Final = 0.5  # no jitter
FORGOTTEN: Final = 600.0
PRECISION: Final = 1e-6  # of tokens, in the model

KINDS = st.sampled_from(["urgent", "parked", "fresh", "fresh"])
ROUNDS = st.sampled_from([0, 1, 4])

Item = tuple[str, int]


class Flying(NamedTuple):
    key: str
    share: Share[Item]
    started: float


class Backpressure:
    """What the model knows of an endpoint that has failed. Its breaker is a real one: that has a model of its own."""

    def __init__(self) -> None:
        self.breaker: Breaker | None = None
        self.window: float | None = None
        self.rising = False
        self.opened = False
        self.cut_at = 0.0
        self.asked = 0.0
        self.quiet_until = 0.0
        self.closed_until = 0.0


class Side:
    """The lane, or one subscription in it."""

    def __init__(self, own: int) -> None:
        self.own = own
        self.done = 0
        self.rate: float | None = None
        self.tokens = 0.0
        self.room = float("inf")
        self.throughput: Throughput | None = None
        self.backpressure: Backpressure | None = None
        self.urgent: deque[int] = deque()
        self.parked: deque[int] = deque()
        self.parked_last = False
        self.fresh: deque[int] = deque()

    @property
    def limit(self) -> int:
        window = None if self.backpressure is None else self.backpressure.window
        return self.own if window is None else min(self.own, int(window))

    @property
    def queued(self) -> int:
        return len(self.urgent) + len(self.parked) + len(self.fresh)

    @property
    def line(self) -> list[int]:
        return [*self.urgent, *self.parked, *self.fresh]

    def next(self) -> int:
        """Due retries first, then the parked and the fresh in turns."""
        if self.urgent:
            return self.urgent.popleft()
        self.parked_last = bool(self.parked) and not (self.parked_last and self.fresh)
        return (self.parked if self.parked_last else self.fresh).popleft()

    @property
    def bucket(self) -> float:
        """Its size in tokens: a tenth of a second's worth, one at least."""
        return max(1.0, BURST * (self.rate or 0.0))

    @property
    def roomy(self) -> float:
        """The room of one of which only the rate is known."""
        return float("inf") if self.rate is None else max(1.0, self.rate * MAX_WAIT)

    def ill(self) -> Backpressure:
        if self.backpressure is None:
            self.backpressure = Backpressure()
        return self.backpressure

    def failed(self, started: float, now: float) -> bool:
        trouble = self.ill()
        trouble.breaker = trouble.breaker or Breaker(now, THRESHOLD)
        opened = trouble.breaker.failed(started, now, MIDDLE)
        if opened:
            trouble.window, trouble.rising, trouble.cut_at = 1.0, True, now
            trouble.opened = True
        return opened

    def succeeded(self, started: float, now: float) -> bool:
        trouble = self.backpressure
        if trouble is None:
            return False
        closed = trouble.breaker is not None and trouble.breaker.succeeded(started, now)
        if trouble.window is not None and started >= trouble.cut_at:
            trouble.asked = 0.0
            trouble.window += 1 if trouble.rising else 1 / trouble.window
            if trouble.window >= self.own:
                trouble.window = None
                trouble.opened = False
                if trouble.breaker is not None:
                    trouble.breaker.recovered()
        return closed

    @property
    def recovering(self) -> bool:
        return self.backpressure is not None and self.backpressure.opened

    def gauge(self, seconds: float, *, busy: bool, under_way: int, recovering: bool) -> bool:
        if recovering:
            self.throughput = None
            self.room = self.roomy
            return self.queued > 0
        if self.throughput is None:
            if busy:
                self.throughput = Throughput(self.done)
        elif busy:
            self.throughput.busy(self.done, under_way, seconds)
            if self.throughput.rate is not None:
                self.room = max(1.0, self.throughput.rate * MAX_WAIT)
        elif self.throughput.idle(self.done, seconds):
            self.throughput = None
            self.room = self.roomy
        return self.throughput is not None

    def settle_down(self, now: float, *, silent: bool) -> None:
        trouble = self.backpressure
        if trouble is None:
            return
        breaker = trouble.breaker
        promised = max(trouble.closed_until, trouble.quiet_until)
        clean = (breaker is None or breaker.spotless(now)) and trouble.window is None and promised <= now
        ends = [promised, trouble.cut_at, *(() if breaker is None else (breaker.since, breaker.until))]
        if clean or (silent and now - max(ends) > FORGOTTEN):
            self.backpressure = None


class LaneAgainstModel(RuleBasedStateMachine):
    """The model has no turns and drops nothing: it works out from plain lists who may be served, and asks why if nobody is."""

    @initialize(limit=st.sampled_from([1, 3, 5]))
    def start(self, limit: int) -> None:
        self.lane: Lane[Item] = Lane(limit, MAX_WAIT)
        self.whole = Side(limit)
        self.sides = {key: Side(1) for key in KEYS}
        self.wanted: dict[str, float | None] = dict.fromkeys(KEYS)
        self.flying: list[Flying] = []
        self.passed_over = dict.fromkeys(KEYS, 0)
        self.blocked: list[Share[Item]] = []
        self.count = 0
        self.now = 0.0
        self.measured = 0.0

    # What the model knows.

    def in_flight(self, key: str) -> int:
        return sum(1 for each in self.flying if each.key == key)

    @property
    def queued(self) -> int:
        return sum(side.queued for side in self.sides.values())

    def remembered(self, key: str) -> bool:
        side = self.sides[key]
        return bool(
            side.queued
            or self.in_flight(key)
            or side.rate is not None
            or side.backpressure
            or side.throughput
        )

    def waits(self, key: str) -> bool:
        """Has something to send, and a slot of its own."""
        side = self.sides[key]
        return side.queued > 0 and self.in_flight(key) < side.limit

    def fair(self, key: str) -> bool:
        """Alone in the lane, or with less than a multiple of the slots that are free."""
        alone = sum(map(self.remembered, KEYS)) == 1
        return alone or self.in_flight(key) < FACTOR * (self.whole.limit - len(self.flying))

    @property
    def crowded(self) -> bool:
        """So many slots are taken that one subscription could have more than its part."""
        return len(self.flying) >= FACTOR * (self.whole.limit - len(self.flying))

    def quiet(self, key: str) -> bool:
        trouble = self.sides[key].backpressure
        return trouble is not None and trouble.quiet_until > self.now

    def spent(self, key: str) -> bool:
        side = self.sides[key]
        return side.rate is not None and side.tokens < 1 - PRECISION

    # Time.

    @rule(seconds=st.sampled_from([0.01, 0.25, 1.0, 3.0, 6.0, 20.0, 400.0, 700.0]))
    def advance(self, seconds: float) -> None:
        self.now += seconds
        for side in self.sides.values():
            if side.rate is not None:
                side.tokens = min(side.bucket, side.tokens + side.rate * seconds)
        self.unblock()

    def unblock(self) -> None:
        """As the owner must: when `blocked_until` has come."""
        self.blocked += self.lane.blocked
        self.lane.blocked.clear()
        for share in [share for share in self.blocked if share.blocked_until <= self.now]:
            self.blocked.remove(share)
            self.lane.unblock(share)

    @rule(times=st.sampled_from([1, 6]))
    def measure(self, times: int) -> None:
        for _ in range(times):
            self.advance(0.5)
            seconds, self.measured = self.now - self.measured, self.now
            full = self.crowded
            recovering = self.whole.recovering
            needed = recovering and self.queued > 0
            if not recovering:
                busy = full and self.queued > 0
                needed = self.whole.gauge(seconds, busy=busy, under_way=len(self.flying), recovering=False)
            else:
                self.whole.throughput, self.whole.room = None, float("inf")
            for key, side in self.sides.items():
                if side.queued > 1 or side.throughput:
                    here = self.in_flight(key)
                    busy = side.queued > 0 and (full or here >= side.limit)
                    needed |= side.gauge(
                        seconds, busy=busy, under_way=here, recovering=recovering or side.recovering
                    )
            assert self.lane.measure(seconds) == needed

    @rule()
    def tidy(self) -> None:
        full = {share.key: share.full_at <= self.now for share in self.lane.shares()}
        self.lane.tidy(self.now)
        self.whole.settle_down(self.now, silent=not self.queued and not self.flying)
        for key, side in self.sides.items():
            silent = not side.queued and not self.in_flight(key)
            side.settle_down(self.now, silent=silent)
            if side.rate is not None and silent:
                if abs(side.tokens - side.bucket) > PRECISION:
                    assert not full[key]
                if full[key]:
                    side.rate = None
                    if side.throughput is None or side.throughput.rate is None:
                        side.room = side.roomy

    # Queueing.

    @rule(
        key=st.sampled_from(KEYS),
        limit=st.sampled_from([1, 2, 4]),
        rate=st.sampled_from(["as before", "as before", None, 0.5, 4.0, 64.0]),
        kind=KINDS,
        times=st.integers(1, 12),
        tight=st.booleans(),
    )
    def offer(
        self, key: str, limit: int, rate: float | str | None, kind: str, times: int, tight: bool
    ) -> None:
        if not isinstance(rate, str):
            self.wanted[key] = rate
        for _ in range(times):
            self.offer_one(key, limit, kind, tight=tight)

    @rule(key=st.sampled_from(KEYS), limit=st.sampled_from([1, 2, 4]), times=st.integers(1, 5))
    def pass_through(self, key: str, limit: int, times: int) -> None:
        """Sent at once where nothing is queued and nothing the matter: as if it had been offered and taken."""
        side = self.sides[key]
        for _ in range(times):
            troubled = self.whole.backpressure is not None or side.backpressure is not None
            limited = self.wanted[key] is not None or side.rate is not None
            free = not self.crowded and self.in_flight(key) < limit
            known = side.own == limit or not self.remembered(key)
            share = self.lane.pass_through(key, limit, self.wanted[key])
            assert (share is not None) == (
                not self.queued and free and known and not troubled and not limited
            )
            if share is not None:
                side.own = limit
                self.flying.append(Flying(key, share, self.now))

    @rule(
        keys=st.sets(st.sampled_from(KEYS), min_size=1),
        limit=st.sampled_from([1, 4]),
        kind=KINDS,
        tight=st.booleans(),
    )
    def overload(self, keys: set[str], limit: int, kind: str, tight: bool) -> None:
        """More comes than goes, for long enough that this is noticed."""
        for _ in range(8):
            for key in sorted(keys):
                self.offer_one(key, limit, kind, tight=tight)
        self.take(self.whole.own)
        self.measure(6)

    def offer_one(self, key: str, limit: int, kind: str, *, tight: bool) -> None:
        self.count += 1
        side, rate = self.sides[key], self.wanted[key]
        if not self.remembered(key):
            side.parked_last = False
        side.own = limit
        if side.rate != rate:
            side.rate = rate
            side.tokens = side.bucket
            side.room = side.roomy
        expected = self.turned_away(key, urgent=kind == "urgent", tight=tight)
        refusal = self.lane.offer(
            key,
            limit,
            (key, self.count),
            self.now,
            urgent=kind == "urgent",
            parked=kind == "parked",
            tight=tight,
            rate=rate,
        )
        assert refusal == expected
        if expected is None:
            getattr(side, kind).append(self.count)

    @rule(key=st.sampled_from(KEYS), limit=st.sampled_from([1, 2, 4]))
    def ask_for_room(self, key: str, limit: int) -> None:
        """What says that there is room for one parked is not followed by a refusal of it."""
        if self.sides[key].queued:
            return
        rate = self.wanted[key]
        most, _, again = self.lane.room_for_parked(key, limit, rate, self.now)
        for each in (
            self.whole,
            self.sides[key],
        ):  # who asks finds an open breaker probing, once its time has come
            trouble = each.backpressure
            if trouble is None:
                continue
            if trouble.breaker is not None and not trouble.breaker.admits(self.now):
                break
            if max(trouble.closed_until, trouble.quiet_until) > self.now:
                break
        if most:
            before = self.count
            self.offer_one(key, limit, "parked", tight=False)
            full = (
                self.whole.recovering and self.queued >= self.whole.own
            )  # by others: it is given back, and waits
            assert full or self.sides[key].line[-1:] == [before + 1]
        else:
            assert again > self.now

    def turned_away(self, key: str, *, urgent: bool, tight: bool) -> tuple[str, float] | None:
        side = self.sides[key]
        before = len(side.urgent) if urgent else side.queued
        others = sum(self.remembered(each) for each in KEYS if each != key)
        for each in (self.whole, side):
            trouble = each.backpressure
            if trouble is None:
                continue
            if trouble.breaker is not None and not trouble.breaker.admits(self.now):
                return "breaker", trouble.breaker.until
            if trouble.opened:
                full = side.queued >= side.own
                if each is self.whole:
                    full = self.queued >= each.own and (before + 1) * (others + 1) >= each.own
                if full:
                    return "breaker", self.now
            if trouble.closed_until > self.now:
                return "retry_after", trouble.closed_until
        if not tight:
            return None
        if before >= side.room:
            return "queue_wait", self.now
        if self.queued >= self.whole.room and (before + 1) * (others + 1) >= self.whole.room:
            return "queue_wait", self.now
        return None

    # Serving.

    @rule(times=st.integers(1, 12))
    def take(self, times: int) -> None:
        for _ in range(times):
            self.take_one()

    def take_one(self) -> None:
        waiting = [key for key in KEYS if self.waits(key)]
        fair = [key for key in waiting if self.fair(key)]
        taken = self.lane.take(self.now)
        if len(self.flying) >= self.whole.limit:
            assert taken is None
            return
        if taken is None:
            for key in fair:
                side = self.sides[key]
                held_back = self.quiet(key) or (side.rate is not None and side.tokens < 1 + PRECISION)
                assert held_back, f"{key} could have been served"
            return
        (key, number), share = taken
        side = self.sides[key]
        assert key in fair
        assert not self.quiet(key)
        assert not self.spent(key)
        assert side.next() == number
        if side.rate is not None:
            side.tokens -= 1
        self.flying.append(Flying(key, share, self.now))
        for other in waiting:
            ready = other in fair and other != key and not self.quiet(other) and not self.spent(other)
            self.passed_over[other] = self.passed_over[other] + 1 if ready else 0
            assert self.passed_over[other] < len(KEYS), f"{other} waits for its turn"
        for other in KEYS:
            if other not in waiting:
                self.passed_over[other] = 0

    def land(self, data: st.DataObject, rounds: int = 0) -> Iterator[Flying]:
        """One of those in flight; or all of them, and those that follow them, so many times."""
        if not rounds:
            yield data.draw(st.sampled_from(self.flying))
        for number in range(rounds):
            yield from list(self.flying)
            if number < rounds - 1:
                self.take(self.whole.own)

    def release(self, each: Flying) -> None:
        self.flying.remove(each)
        self.whole.done += 1
        self.sides[each.key].done += 1
        self.lane.release(each.share)

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def nothing_is_said_of_it(self, data: st.DataObject) -> None:
        """It was dropped, or cancelled, or the deployment's own proxy failed."""
        for each in self.land(data):
            self.release(each)

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), rounds=ROUNDS)
    def succeed(self, data: st.DataObject, rounds: int) -> None:
        for each in self.land(data, rounds):
            for side, valve in ((self.whole, self.lane), (self.sides[each.key], each.share)):
                assert valve.succeeded(each.started, self.now) == side.succeeded(each.started, self.now)
            self.release(each)

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), rounds=ROUNDS)
    def fail(self, data: st.DataObject, rounds: int) -> None:
        """By a status, or without an answer: the subscription is to blame."""
        for each in self.land(data, rounds):
            self.blame(each)
            self.release(each)

    def blame(self, each: Flying) -> None:
        side = self.sides[each.key]
        opened = each.share.failed(each.started, self.now, MIDDLE, THRESHOLD)
        assert opened == side.failed(each.started, self.now)
        if opened:
            self.withdraw_share(each)

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), rounds=ROUNDS)
    def fail_to_connect(self, data: st.DataObject, rounds: int) -> None:
        """The host is to blame."""
        for each in self.land(data, rounds):
            opened = self.lane.failed(each.started, self.now, MIDDLE, THRESHOLD)
            assert opened == self.whole.failed(each.started, self.now)
            if opened:
                self.withdraw(lambda _: True)
            self.release(each)

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), rounds=ROUNDS)
    def throttle(self, data: st.DataObject, rounds: int) -> None:
        """429 without a time: half as many, once for each round."""
        for each in self.land(data, rounds):
            trouble = self.sides[each.key].ill()
            news = each.started >= trouble.cut_at
            if news:
                least = min(self.sides[each.key].limit, self.in_flight(each.key))
                trouble.window, trouble.rising, trouble.cut_at = max(1.0, least // 2), False, self.now
                trouble.opened = False
            assert each.share.throttled(each.started, self.now) == news
            if news:
                self.blame(each)
            self.release(each)

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), rounds=st.integers(0, 1), wait=st.sampled_from([0.5, 2.0, 4.0, 30.0]))
    def demand_time(self, data: st.DataObject, rounds: int, wait: float) -> None:
        """Retry-After."""
        for each in self.land(data, rounds):
            trouble = self.sides[each.key].ill()
            until = self.now + wait
            news = each.started >= trouble.cut_at
            trouble.asked = trouble.asked + wait if news else max(trouble.asked, wait)
            trouble.window, trouble.rising, trouble.cut_at = 1.0, True, self.now
            long = trouble.asked > MAX_WAIT
            if long:
                trouble.closed_until = max(trouble.closed_until, until)
            else:
                trouble.quiet_until = max(trouble.quiet_until, until)
            assert self.lane.postpone(each.share, each.started, until, self.now) == (long, news)
            if news:
                self.blame(each)
            if long:
                self.withdraw_share(each)
            self.release(each)

    # Taking out of the queue.

    def withdraw_share(self, each: Flying) -> None:
        side = self.sides[each.key]
        expected = side.line
        for queue in (side.urgent, side.parked, side.fresh):
            queue.clear()
        assert [number for _, number in self.lane.withdraw_share(each.share)] == expected

    @rule(rest=st.integers(0, 2))
    def withdraw_some(self, rest: int) -> None:
        self.withdraw(lambda item: item[1] % 3 == rest)

    def withdraw(self, unwanted: Any) -> None:
        withdrawn = self.lane.withdraw(unwanted)
        for key, side in self.sides.items():
            expected = [number for number in side.line if unwanted((key, number))]
            assert [number for found, number in withdrawn if found == key] == expected
            side.urgent = deque(number for number in side.urgent if number not in expected)
            side.parked = deque(number for number in side.parked if number not in expected)
            side.fresh = deque(number for number in side.fresh if number not in expected)

    @rule(most=st.sampled_from([1, 5, 1000]))
    def trim(self, most: int) -> None:
        left = {key: min(side.queued, int(min(side.room, 1e9))) for key, side in self.sides.items()}
        if sum(left.values()) > self.whole.room:
            total = int(self.whole.room)
            level = max(
                level
                for level in range(max(left.values()) + 1)
                if sum(min(each, level) for each in left.values()) <= total
            )
            left = {key: min(each, level) for key, each in left.items()}
        beyond = sum(side.queued - left[key] for key, side in self.sides.items())
        trimmed = self.lane.trim(most)
        assert min(most, beyond) <= len(trimmed) + len(KEYS)
        assert len(trimmed) <= max(most, 1) + len(KEYS)
        for key, number in trimmed:
            side = self.sides[key]
            assert (side.parked or side.fresh or side.urgent).pop() == number, "the newest first"
        for key, side in self.sides.items():
            if most == 1000:
                assert side.queued == left[key]
            else:
                assert side.queued >= left[key]

    # What always holds.

    @invariant()
    def nothing_is_put_into_what_lanes_without_shares_have_in_common(self) -> None:
        assert not NO_SHARES

    @invariant()
    def the_model_agrees(self) -> None:
        if not hasattr(self, "lane"):
            return
        self.passed_over = {key: n * self.waits(key) for key, n in self.passed_over.items()}
        lane = self.lane
        assert lane.in_flight == len(self.flying) <= self.whole.own
        assert lane.queued == self.queued
        assert {share.key for share in lane.shares()} == {key for key in KEYS if self.remembered(key)}
        for side, valve, here in (
            (self.whole, lane, len(self.flying)),
            *((self.sides[share.key], share, self.in_flight(share.key)) for share in lane.shares()),
        ):
            assert valve.limit == side.limit
            assert valve.room == side.room
            assert valve.in_flight == here
            assert (valve.backpressure is None) == (side.backpressure is None)
            breaker = None if side.backpressure is None else side.backpressure.breaker
            assert valve.state == (State.CLOSED if breaker is None else breaker.state)
        assert len(set(map(id, lane._turns))) == len(lane._turns)
        for share in lane.shares():
            if self.waits(share.key):
                assert share in lane._turns or share in [*lane.blocked, *self.blocked], "its turn never comes"
            assert share.queued == self.sides[share.key].queued
            assert [number for _, number in share._queue()] == self.sides[share.key].line
        assert lane.empty == (not any(map(self.remembered, KEYS)) and self.whole.backpressure is None)

    def teardown(self) -> None:
        """Once everything is over, and long ago, no trace is left."""
        if hasattr(self, "lane"):
            for each in list(self.flying):
                self.release(each)
            self.lane.withdraw(lambda _: True)
            for _ in range(2):
                self.lane.measure(10.0)
                self.now += 7200.0
                self.lane.tidy(self.now)
            assert self.lane.empty
            assert self.lane.room == float("inf")


TestLaneAgainstModel = LaneAgainstModel.TestCase
TestLaneAgainstModel.settings = settings(max_examples=100, stateful_step_count=80)
