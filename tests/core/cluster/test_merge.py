"""What several processes say of one subscription, put together."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from dispatcher.core.cluster.merge import Elsewhere, merged, together, worst_first
from dispatcher.core.cluster.record import ReplicaRecord, Trouble


def record(replica: str, *troubles: Trouble) -> ReplicaRecord:
    return ReplicaRecord(
        replica=replica, version="1", started_ms=1, at_ms=1, troubles=troubles, troubles_total=len(troubles)
    )


def trouble(id_: str = "sub", tenant: str | None = "acme", **fields: Any) -> Trouble:
    return Trouble(subscription_id=id_, tenant=tenant, **fields)


def test_counts_are_added_up_and_of_times_the_telling_one_is_kept() -> None:
    one = trouble(
        since_ms=100,
        attempts=64,
        succeeded=16,
        latency_mean_ms=10.0,
        latency_p95_ms=30.0,
        queued=1,
        in_flight=2,
        held=3,
        parked=4,
        oldest_ms=90,
        next_ms=500,
        last_result="status 500",
        last_ms=400,
        breaker="half-open",
    )
    two = trouble(
        since_ms=50,
        attempts=64,
        succeeded=48,
        latency_mean_ms=20.0,
        latency_p95_ms=25.0,
        queued=10,
        parked=40,
        parked_more=True,
        oldest_ms=95,
        next_ms=450,
        last_result="status 503",
        last_ms=410,
        breaker="open",
    )
    found = merged([record("a", one), record("b", two)])["sub"]
    assert (found.since_ms, found.attempts, found.succeeded) == (50, 128, 64)
    assert (found.queued, found.in_flight, found.held, found.parked, found.parked_more) == (
        11,
        2,
        3,
        44,
        True,
    )
    assert (found.oldest_ms, found.next_ms, found.breaker) == (90, 450, "open")
    assert (found.last_result, found.last_ms) == ("status 503", 410)
    assert (found.latency_mean_ms, found.latency_p95_ms) == (17.5, 30.0)
    assert found.replicas == ("a", "b")
    assert together([("b", two), ("a", one)]) == found._replace(replicas=("b", "a"))
    assert together([]) is None


def test_of_an_id_that_went_to_another_tenant_the_two_are_not_mixed() -> None:
    found = merged([record("a", trouble(parked=1)), record("b", trouble(tenant="globex", parked=2))])
    assert (found["sub"].tenant, found["sub"].parked, found["sub"].replicas) == ("globex", 2, ("b",))


def test_a_breaker_of_a_later_version_is_no_breaker_that_is_known() -> None:
    assert merged([record("a", trouble(breaker="ajar"))])["sub"].breaker == "closed"


def test_those_that_fail_for_longest_come_first_and_those_that_only_wait_last() -> None:
    found = merged(
        [
            record(
                "a",
                trouble("waits", oldest_ms=1),
                trouble("late", since_ms=200),
                trouble("early", since_ms=100),
                trouble("waits_less", oldest_ms=2),
                trouble("same", since_ms=100),
            )
        ]
    )
    assert [each.subscription_id for each in worst_first(found)] == [
        "early",
        "same",
        "late",
        "waits",
        "waits_less",
    ]


def test_of_what_others_say_the_latest_counts_and_what_only_waits_is_no_failure() -> None:
    records = [
        record("a", trouble("one", since_ms=1, last_ms=10), trouble("waits", parked=3, last_ms=5)),
        record("e", trouble("begins", since_ms=3)),
        record("b", trouble("one", since_ms=1, last_ms=20), trouble("two", since_ms=1, last_ms=7)),
        replace(record("c"), recovered={"one": 15, "two": 8}),
        replace(record("d"), recovered={"one": 12}),
    ]
    found = Elsewhere()
    for each in records:
        found.add(each, 1000)
    assert found.failed == {"one": 20, "two": 7, "begins": 3}
    assert found.delivered == {"one": 15, "two": 8}


def test_another_clock_is_allowed_for_and_nothing_was_delivered_after_it_was_said() -> None:
    found = Elsewhere()
    said = replace(
        record("a", trouble("one", since_ms=1, last_ms=40_000)), at_ms=50_000, recovered={"two": 45_000}
    )
    found.add(said, 80_000)
    assert (found.failed, found.delivered) == ({"one": 70_000}, {"two": 75_000})
    ahead = Elsewhere()
    ahead.add(replace(said, recovered={"two": 2**53}), 20_000)
    assert (ahead.failed, ahead.delivered) == ({"one": 10_000}, {"two": 20_000})
