"""Lanes: limits, turns between subscriptions, order within one, and no traces left. See also test_lanes_against_model.py."""

from __future__ import annotations

import pytest

from dispatcher.core.endpoint.lane import Lane


def test_a_flood_to_one_subscription_costs_its_neighbour_one_turn() -> None:
    lane: Lane[str] = Lane(limit=1)
    for i in range(1000):
        lane.offer("flood", 16, f"flood {i}", 0.0)
    first = lane.take(0.0)
    assert first is not None
    lane.offer("neighbour", 16, "the neighbour's", 0.0)
    lane.release(first[1])
    served = []
    for _ in range(2):
        taken = lane.take(0.0)
        assert taken is not None
        served.append(taken[0])
        lane.release(taken[1])
    assert "the neighbour's" in served


def test_a_subscription_at_its_own_limit_leaves_the_slots_to_others() -> None:
    lane: Lane[str] = Lane(limit=10)
    for i in range(5):
        lane.offer("narrow", 2, f"narrow {i}", 0.0)
        lane.offer("wide", 8, f"wide {i}", 0.0)
    taken = []
    while (next_one := lane.take(0.0)) is not None:
        taken.append(next_one[0].split()[0])
    assert taken.count("narrow") == 2
    assert taken.count("wide") == 5


@pytest.mark.parametrize("passing", [False, True], ids=["queued", "passed through"])
def test_a_lane_hands_out_no_more_at_a_time_than_its_limit(passing: bool) -> None:
    lane: Lane[int] = Lane(limit=3)
    shares = []
    for number in range(5):
        if passing and (share := lane.pass_through(str(number), 16, None)) is not None:
            shares.append(share)
        else:
            lane.offer(str(number), 16, number, 0.0)
    while (taken := lane.take(0.0)) is not None:
        shares.append(taken[1])
    assert (len(shares), lane.in_flight, lane.queued) == (3, 3, 2)
    lane.release(shares[0])
    assert lane.take(0.0) is not None
    assert lane.take(0.0) is None


def test_a_lowered_limit_holds_at_once() -> None:
    lane: Lane[str] = Lane(limit=10)
    for i in range(4):
        lane.offer("a", 3, str(i), 0.0)
    first = lane.take(0.0)
    assert first is not None
    lane.offer("a", 1, "with the new limit", 0.0)
    assert lane.take(0.0) is None
    lane.release(first[1])
    assert lane.take(0.0) is not None


def test_a_rate_is_kept_within_every_second_and_wastes_nothing() -> None:
    lane: Lane[int] = Lane(limit=1000)
    for number in range(1000):
        lane.offer("a", 1000, number, 0.0, rate=50.0)
    times: list[float] = []
    now = 0.0
    while now < 10.0:
        while lane.take(now) is not None:
            times.append(now)
        (share,) = lane.blocked
        assert share.blocked_until > now
        now = share.blocked_until
        lane.blocked.clear()
        lane.unblock(share)
    assert len(times) == pytest.approx(500, abs=5)
    assert max(sum(start <= time < start + 1 for time in times) for start in times) <= 55


def test_a_share_at_its_rate_leaves_the_slots_to_others() -> None:
    lane: Lane[str] = Lane(limit=10)
    for _ in range(5):
        lane.offer("limited", 10, "limited", 0.0, rate=1.0)
        lane.offer("free", 10, "free", 0.0)
    taken = [item for _ in range(10) if (item := lane.take(0.0)) is not None]
    assert [item for item, _ in taken].count("limited") == 1
    assert [item for item, _ in taken].count("free") == 5


def test_a_rate_is_remembered_while_nothing_is_owed() -> None:
    lane: Lane[str] = Lane(limit=10)
    lane.offer("a", 10, "first", 0.0, rate=0.1)
    first = lane.take(0.0)
    assert first is not None
    lane.release(first[1])
    lane.tidy(5.0)
    lane.offer("a", 10, "second", 0.0, rate=0.1)
    assert lane.take(5.0) is None
    assert lane.take(10.0) is None, "the owner unblocks it"
    lane.unblock(lane.blocked[0])
    assert lane.take(10.0) is not None


def test_a_rate_that_is_lifted_lets_everything_go() -> None:
    lane: Lane[str] = Lane(limit=10)
    for _ in range(3):
        lane.offer("a", 10, "limited", 0.0, rate=0.001)
    assert lane.take(0.0) is not None
    assert lane.take(0.0) is None
    lane.offer("a", 10, "free", 0.0)
    assert sum(lane.take(0.0) is not None for _ in range(4)) == 3


def test_an_overloaded_endpoint_gets_half_as_many_at_a_time_once_a_round_and_one_more_for_each_round() -> (
    None
):
    lane: Lane[str] = Lane(limit=100)
    for number in range(100):
        lane.offer("a", 16, str(number), 0.0)
    shares = [taken[1] for _ in range(16) if (taken := lane.take(0.0)) is not None]
    share = shares[0]
    for _ in range(4):
        share.throttled(0.0, 1.0)
    assert share.limit == 8, "once for all that were under way"
    share.throttled(2.0, 3.0)
    assert share.limit == 4
    for _ in range(4):
        share.succeeded(4.0, 5.0)
    assert share.limit in {4, 5}
    for _ in range(300):
        share.succeeded(6.0, 7.0)
    assert share.limit == 16
    lane.tidy(8.0)
    assert share.backpressure is None


def test_what_comes_to_an_open_breaker_is_turned_away_and_the_first_after_it_is_the_only_one() -> None:
    lane: Lane[str] = Lane(limit=100)
    for number in range(20):
        lane.offer("a", 16, str(number), 0.0)
    taken = lane.take(0.0)
    assert taken is not None
    share = taken[1]
    opened = [share.failed(0.0, 1.0, 0.5, 0.8) for _ in range(10)]
    assert opened == [False] * 9 + [True]
    assert len(lane.withdraw_share(share)) == 19
    lane.release(share)
    refusal = lane.offer("a", 16, "too early", 2.0)
    assert refusal is not None
    assert (refusal.reason, refusal.until) == ("breaker", share.open_until)
    assert lane.offer("a", 16, "probe", 10.0) is None
    assert lane.offer("a", 16, "waits for the probe", 10.0) is None
    probe = lane.take(10.0)
    assert probe is not None
    assert probe[0] == "probe"
    assert lane.take(10.0) is None
    assert share.succeeded(10.0, 11.0)
    assert lane.take(11.0) is None
    lane.release(share)
    assert lane.take(11.0) is not None


def test_nothing_is_turned_away_where_nothing_is_known_and_the_newest_go_first() -> None:
    lane: Lane[int] = Lane(limit=4, max_wait=5.0)
    for number in range(1000):
        assert lane.offer("a", 4, number, 0.0) is None
    for _ in range(4):
        lane.take(0.0)
    for _ in range(40):  # twenty seconds in which nothing comes back
        lane.measure(0.5)
    refusal = lane.offer("a", 4, 1000, 20.0)
    assert refusal is not None
    assert refusal.reason == "queue_wait"
    assert lane.offer("a", 4, 1001, 20.0, tight=False) is None, "memory is not scarce"
    assert lane.trim(1) == [1001]
    trimmed = lane.trim(10_000)
    assert trimmed == sorted(trimmed, reverse=True)
    assert trimmed[0] == 999
    assert lane.queued == 996 - len(trimmed)
    assert lane.queued < 20


def test_who_has_one_delivery_queued_is_not_measured_and_who_has_more_is_until_that_is_over() -> None:
    lane: Lane[int] = Lane(limit=200, max_wait=5.0)

    def measured() -> list[str]:
        return [share.key for share in lane.shares() if share.throughput is not None]

    for key in ("deep", *(f"single-{number}" for number in range(99))):
        lane.offer(key, 1, 0, 0.0)  # under way from now on
        lane.offer(key, 1, 1, 0.0)
    lane.offer("deep", 1, 2, 0.0)
    while lane.take(0.0) is not None:
        pass
    lane.measure(0.5)
    assert measured() == ["deep"]
    deep = lane.find("deep")
    assert deep is not None
    assert lane.withdraw_share(deep) == [1, 2]
    for _ in range(10):  # five seconds without anything to do
        lane.measure(0.5)
    assert measured() == []
    lane.release(deep)
    assert lane.find("deep") is None
    # One that comes again is another share, and is measured all the same.
    for number in range(3):
        lane.offer("deep", 1, number, 6.0)
    lane.take(6.0)
    lane.measure(0.5)
    assert measured() == ["deep"]


def test_who_asks_for_a_little_time_time_after_time_has_asked_for_a_long_one_until_something_is_taken() -> (
    None
):
    lane: Lane[int] = Lane(limit=4, max_wait=5.0)
    lane.offer("a", 4, 0, 0.0)
    lane.offer("a", 4, 1, 0.0)
    taken = lane.take(0.0)
    assert taken is not None
    share = taken[1]
    assert lane.postpone(share, 0.0, 4.0, 1.0) == (False, True)
    assert lane.postpone(share, 0.0, 4.0, 1.0) == (False, False), "said again within the round"
    assert lane.postpone(share, 4.0, 7.0, 4.0) == (True, True)
    refusal = lane.offer("a", 4, 2, 5.0)
    assert refusal is not None
    assert (refusal.reason, refusal.until) == ("retry_after", 7.0)
    share.succeeded(8.0, 9.0)
    assert lane.postpone(share, 9.0, 13.0, 9.0) == (False, True)


@pytest.mark.parametrize(
    ("rate", "other"), [(10.0, 10.0), (None, 10.0), (10.0, None)], ids=["kept", "given", "lifted"]
)
def test_who_asked_for_a_little_time_gets_it_whatever_becomes_of_the_rate_meanwhile(
    rate: float | None, other: float | None
) -> None:
    lane: Lane[int] = Lane(limit=4, max_wait=5.0)
    lane.offer("a", 4, 0, 0.0, rate=rate)
    taken = lane.take(0.0)
    assert taken is not None
    lane.postpone(taken[1], 0.0, 4.0, 0.5)
    lane.release(taken[1])
    lane.tidy(1.0)  # the rate is forgotten, for it has been kept
    lane.offer("a", 4, 1, 1.0, rate=other)
    assert lane.take(1.0) is None
    assert [share.blocked_until for share in lane.blocked] == [4.0]


def test_a_rate_that_was_forgotten_leaves_no_room_behind() -> None:
    lane: Lane[int] = Lane(limit=4, max_wait=5.0)
    lane.offer("a", 4, 0, 0.0, rate=0.1)
    taken = lane.take(0.0)
    assert taken is not None
    taken[1].failed(0.0, 0.0, 0.5, 0.8)
    lane.release(taken[1])
    lane.tidy(11.0)
    assert [lane.offer("a", 4, number, 11.0) for number in range(10)] == [None] * 10


def test_a_raised_limit_holds_at_once_also_where_what_is_offered_is_turned_away() -> None:
    lane: Lane[int] = Lane(limit=4, max_wait=5.0)
    for number in range(10):
        lane.offer("a", 1, number, 0.0)
    lane.take(0.0)
    for _ in range(40):  # twenty seconds in which nothing comes back
        lane.measure(0.5)
    assert lane.take(20.0) is None
    assert lane.offer("a", 2, 10, 20.0) is not None
    assert lane.take(20.0) is not None


def test_what_is_offered_to_a_closed_lane_is_not_lost_without_a_word() -> None:
    lane: Lane[int] = Lane(limit=1)
    lane.close()
    assert lane.take(0.0) is None
    with pytest.raises(AttributeError):
        lane.offer("a", 1, 0, 0.0)
