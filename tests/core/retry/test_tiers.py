"""The tiers: where a wait goes, and when what waits comes out."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from dispatcher.core.retry.tiers import LEAD, Tier, Tiers, comes_out

DEFAULT = (30.0, 120.0, 600.0, 3600.0, 21600.0)
NOW = 1_800_000_000.0

delays = st.lists(st.integers(1, 7 * 86400), min_size=1, max_size=8, unique=True).map(
    lambda found: tuple(float(delay) for delay in sorted(found))
)


def test_topics_are_named_after_their_delays() -> None:
    tiers = Tiers((1.0, 90.0, 86400.0), "dispatcher.")
    assert [tier.topic for tier in tiers] == [
        "dispatcher.retry.1s",
        "dispatcher.retry.1m30s",
        "dispatcher.retry.1d",
    ]
    assert tiers.of("dispatcher.retry.1m30s") == Tier(90.0, "1m30s", "dispatcher.retry.1m30s")
    with pytest.raises(KeyError):
        tiers.of("dispatcher.dead")


@given(delays, st.floats(-1e6, 1e9))
def test_a_wait_goes_to_the_largest_tier_that_is_not_longer(delays: tuple[float, ...], wait: float) -> None:
    fitting = [delay for delay in delays if delay <= wait]
    assert Tiers(delays, "").choose(wait).delay == (max(fitting) if fitting else delays[0])


@given(delays, st.floats(0, 1, exclude_min=True), st.floats(0, 60 * 86400), st.floats(0, 0.25))
def test_a_wait_cascades_down_to_the_horizon_in_few_steps_and_is_never_overslept(
    delays: tuple[float, ...], share: float, wait: float, late: float
) -> None:
    """The naive model: what is left after each tier, added up by hand; `late` is how late each reading is."""
    tiers = Tiers(delays, "")
    horizon = delays[0] * (1 + share)
    due = NOW + wait
    now = NOW
    steps = 0
    while due - now > horizon:
        left = due - now
        tier = tiers.choose(left)
        out = comes_out(tier, now, due, now)
        assert now < out <= now + tier.delay
        assert tier.delay - (out - now) <= LEAD + 1e-3
        now = out + late
        assert now <= due + late
        assert due - now < left
        steps += 1
    # Each tier is passed as often as it fits into what the next larger one left, and once more for the lead.
    fits = [larger / smaller for smaller, larger in zip(delays, (*delays[1:], wait + 1), strict=True)]
    assert steps <= sum(fit / 0.9 + 2 for fit in fits)


@pytest.mark.parametrize("wait", [5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0])
def test_the_usual_schedule_takes_few_writes(wait: float) -> None:
    tiers = Tiers(DEFAULT, "")
    now, writes = NOW, 0
    while NOW + wait - now > 30.0:
        now = comes_out(tiers.choose(NOW + wait - now), now, NOW + wait, now)
        writes += 1
    assert writes <= 8


@given(st.lists(st.floats(0, 1000), min_size=2, max_size=20), st.data())
def test_records_of_a_partition_come_out_in_the_order_they_were_written(
    gaps: list[float], data: st.DataObject
) -> None:
    tiers = Tiers(DEFAULT, "")
    tier = data.draw(st.sampled_from(list(tiers)))
    written = NOW
    outs = []
    for gap in gaps:
        written += gap
        due = written + tier.delay + data.draw(st.floats(0, 1e6))
        outs.append(comes_out(tier, written, due, NOW + 1e9))
    assert outs == sorted(outs)


def test_what_is_due_sooner_than_the_delay_comes_out_when_it_is_due() -> None:
    tier = Tiers(DEFAULT, "").choose(30.0)
    assert comes_out(tier, NOW - 1, NOW + 10, NOW) == NOW + 10 - LEAD


@pytest.mark.parametrize("written", [NOW + 3600, 0.0, -0.001])
def test_nobody_waits_for_a_clock_that_is_ahead_or_missing(written: float) -> None:
    tier = Tiers(DEFAULT, "").choose(600.0)
    assert comes_out(tier, written, NOW + 86400, NOW) <= NOW + 600.0


def test_short_tiers_lead_by_less() -> None:
    tier = Tiers((1.0,), "").choose(1.0)
    assert comes_out(tier, NOW - 0.5, NOW + 5, NOW) == pytest.approx(NOW + 0.4)
