"""What is beyond a quota, and rates: on time that the tests make pass."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given, strategies as st

from dispatcher.core.control.quotas import (
    QUOTAS,
    QuotaName,
    RateCounter,
    TenantQuotas,
    beyond,
    overridden,
    overrides_of,
    written,
)
from dispatcher.settings.groups import QuotaSettings

QUOTAS_OF_ALL = TenantQuotas(**QuotaSettings().model_dump())


def test_there_is_one_list_of_quotas() -> None:
    assert QUOTAS == get_args(QuotaName) == TenantQuotas._fields == tuple(QuotaSettings.model_fields)


@pytest.mark.parametrize(
    ("wanted", "present", "fields"),
    [
        ({"timeout": "1m"}, {}, []),
        ({"timeout": "1m1ms"}, {}, ["timeout"]),
        ({"timeout": 600.0}, {}, ["timeout"]),
        ({"timeout": "10m"}, {"timeout": "10m"}, []),  # it is there already
        ({"timeout": "5m"}, {"timeout": "10m"}, []),  # less than there is
        ({"timeout": "10m"}, {"timeout": "5m"}, ["timeout"]),
        ({"timeout": "soon"}, {}, []),  # whatever it is, others say so
        ({"timeout": None}, {"timeout": "10m"}, []),
        ({"max_in_flight": 100}, {}, []),
        ({"max_in_flight": 101}, {}, ["max_in_flight"]),
        ({"max_in_flight": True}, {}, []),
        ({"retry": {"schedule": ["1s"] * 20}}, {}, []),
        ({"retry": {"schedule": ["1s"] * 21}}, {}, ["retry.schedule"]),
        ({"retry": {"schedule": ["1s"] * 21}}, {"retry": {"schedule": ["1s"] * 21}}, []),
        ({"retry": {"jitter": 0.5}}, {}, []),
        ({"retry": "often"}, {}, []),
        ({"headers": {f"X-{number}": "a" for number in range(21)}}, {}, ["headers"]),
        ({"event_types": [f"a.{number}" for number in range(101)]}, {}, ["event_types"]),
        (
            {"timeout": "2m", "max_in_flight": 500, "event_types": ["*"] * 200},
            {},
            ["timeout", "max_in_flight", "event_types"],
        ),
    ],
)
def test_a_maximum_binds_what_is_set_and_not_what_is_there(
    wanted: dict[str, Any], present: dict[str, Any], fields: list[str]
) -> None:
    assert [flaw.field for flaw in beyond(QUOTAS_OF_ALL, wanted, present)] == fields


def test_a_flaw_names_the_quota_its_value_and_what_to_do() -> None:
    (flaw,) = beyond(QUOTAS_OF_ALL, {"timeout": "10m"}, {})
    for part in ("at most 1m", "max_timeout", "ask an operator"):
        assert part in flaw.message


def test_overrides_stand_in_the_place_of_the_others() -> None:
    own = overrides_of({"subscriptions": 5, "max_timeout": 90, "of_a_later_version": "x"})
    assert own == {"subscriptions": 5, "max_timeout": 90.0}
    quotas = overridden(QUOTAS_OF_ALL, own)
    assert (quotas.subscriptions, quotas.max_timeout, quotas.replays) == (5, 90.0, QUOTAS_OF_ALL.replays)
    assert overridden(QUOTAS_OF_ALL, {}) is QUOTAS_OF_ALL


@pytest.mark.parametrize("value", ["5", None, True, -1, float("inf"), [5]])
def test_an_override_that_is_no_number_can_not_be_read(value: Any) -> None:
    with pytest.raises(ValueError, match="subscriptions"):
        overrides_of({"subscriptions": value})


def test_quotas_are_written_with_their_units() -> None:
    assert written("max_timeout", 90.0) == "1m30s"
    assert written("bytes_per_second", 16 << 20) == "16MiB"
    assert written("subscriptions", 1000) == "1000"


def test_a_burst_is_free_and_then_the_rate_holds() -> None:
    counter = RateCounter(60.0)
    now = 1000.0
    for _ in range(60):
        assert counter.wait("acme", now) == 0
        counter.take("acme", 1, 1.0, now)
    assert counter.wait("acme", now) > 0
    assert counter.wait("globex", now) == 0, "each for itself"
    assert counter.wait("acme", now + 0.5) == 0
    counter.take("acme", 1, 1.0, now + 0.5)
    assert counter.wait("acme", now + 0.9) > 0
    assert counter.wait("acme", now + 1.1) == 0


def test_one_request_may_go_beyond_and_the_next_one_waits_until_that_is_paid() -> None:
    counter = RateCounter(2.0)
    counter.take("acme", 1000, 10.0, 0.0)
    assert counter.wait("acme", 0.0) == pytest.approx(98.0)
    assert counter.wait("acme", 97.9) > 0
    assert counter.wait("acme", 98.1) == 0
    counter.forget("acme")
    assert counter.wait("acme", 0.0) == 0


@given(st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(1, 50)), max_size=60))
def test_nobody_takes_more_than_a_burst_the_rate_and_one_request(steps: list[tuple[float, int]]) -> None:
    counter, now, taken, largest = RateCounter(2.0), 0.0, 0, 0
    for pause, amount in steps:
        now += pause
        largest = max(largest, amount)
        if counter.wait("acme", now) == 0:
            counter.take("acme", amount, 10.0, now)
            taken += amount
            assert taken <= 2.0 * 10.0 + now * 10.0 + largest + 1e-6


def test_callers_are_counted_in_bounded_memory_and_those_that_owe_stay() -> None:
    counter = RateCounter(2.0, most=100)
    counter.take("busy", 1000, 1.0, 0.0)
    for number in range(10_000):
        now = number * 0.01
        counter.take(f"caller-{number}", 1, 10.0, now)
        counter.take("busy", 1, 1.0, now)
        assert len(counter) <= 101
    assert counter.wait("busy", 100.0) > 0
