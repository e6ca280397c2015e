"""A few short schedules in every run of the tests; many and longer ones: `python -m tests.torture --seeds 1-200`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kafka.server import Unavailable, missing
from tests.torture.harness import kafka_ground, torture
from tests.torture.ledger import (
    Disturbance,
    Ledger,
    bound,
    duplicates,
    excess,
    lost,
    unexplained,
)
from tests.torture.schedule import Kind, plan, plan_embedded, plan_quiet


def test_a_seed_makes_the_same_schedule_again_and_another_seed_another() -> None:
    assert plan(7) == plan(7)
    assert plan_embedded(7) == plan_embedded(7)
    assert plan_quiet(7).faults == ()
    assert len({str(plan(seed)) for seed in range(50)}) == 50
    drawn = {fault.kind for seed in range(50) for fault in (*plan(seed).faults, *plan_embedded(seed).faults)}
    assert drawn == set(Kind)
    assert all(
        fault.lasts > 6 for seed in range(50) for fault in plan(seed).faults if fault.kind is Kind.STOP
    )


def test_the_ledger_tells_what_was_lost_from_what_was_paid_and_what_was_given_up() -> None:
    ledger = Ledger()
    ledger.ask("a", "unpaid")
    ledger.pay("a", "paid", 1.0)
    owed = [("a", "paid"), ("a", "dead"), ("a", "unpaid"), ("a", "unasked")]
    assert lost(ledger, owed, {("a", "dead")}) == [("a", "unasked"), ("a", "unpaid")]


def test_a_second_payment_is_a_duplicate_unless_the_producer_wrote_the_event_twice() -> None:
    ledger = Ledger()
    for event in ("once", "twice", "twice", "copied", "copied"):
        ledger.pay("a", event, 1.0)
    copies = {"once": 1, "twice": 1, "copied": 2}
    assert duplicates(ledger, copies) == [(("a", "twice"), [1.0, 1.0])]
    assert excess(ledger, copies) == 1


def test_a_duplicate_is_explained_by_a_fault_in_front_of_it_and_bounded_by_what_no_commit_covered() -> None:
    ledger = Ledger()
    for event, times in {"covered": [1.0], "open": [2.0, 12.0], "later": [90.0]}.items():
        for time in times:
            ledger.pay("a", event, time)
    places = {"covered": [(0, 4)], "open": [(0, 5)], "later": [(0, 6)]}
    fault = Disturbance(begin=10.0, until=11.0, committed={0: 5})
    found = duplicates(ledger, {"covered": 1, "open": 1, "later": 1})
    assert bound(ledger, places, [fault]) == 1
    assert bound(ledger, places, [fault, fault]) == 2
    assert bound(ledger, places, []) == 0
    assert unexplained(found, [fault]) == []
    assert unexplained(found, []) == found
    after = Disturbance(begin=13.0, until=14.0, committed={0: 5})
    assert unexplained(found, [after]) == found
    before = Disturbance(begin=0.5, until=1.5, committed={0: 5})
    assert unexplained(found, [before]) == found
    assert bound(ledger, places, [before]) == 0


@pytest.mark.slow
async def test_a_replica_on_sqlite_that_is_killed_again_and_again_loses_nothing(tmp_path: Path) -> None:
    report = await torture(plan_embedded(2, rounds=3), tmp_path, None)
    assert report.owed > 0
    assert report.lost == 0
    assert not report.findings, f"{report.schedule}\n" + "\n".join(report.findings)


@pytest.mark.slow
@pytest.mark.kafka
async def test_two_replicas_on_kafka_lose_nothing_whatever_befalls_them(tmp_path: Path) -> None:
    if (problem := missing()) is not None:
        pytest.skip(f"no real Apache Kafka: {problem}")
    try:
        async with kafka_ground() as ground:
            for seed in (7, 9):
                report = await torture(plan(seed, length=6.0), tmp_path, ground)
                assert report.owed > 0
                assert report.lost == 0
                assert not report.findings, f"{report.schedule}\n" + "\n".join(report.findings)
    except Unavailable as error:
        pytest.skip(f"no real Apache Kafka: {error}")
