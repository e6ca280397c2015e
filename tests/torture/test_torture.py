"""A few short schedules in every run of the tests; many and longer ones: `python -m tests.torture --seeds 1-200`."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import orjson
import pytest

from dispatcher.broker.base import TopicPartition
from tests.e2e.daemon import Daemon
from tests.kafka.server import Unavailable, missing
from tests.torture import totals
from tests.torture.endpoints import NAMES, Endpoints
from tests.torture.harness import Ground, Report, kafka_ground, torture
from tests.torture.hitches import Hitches
from tests.torture.ledger import (
    COMMITTED,
    Ledger,
    Payment,
    Trouble,
    bound,
    causes,
    duplicates,
    excess,
    lost,
)
from tests.torture.mutants import (
    LOSING,
    OF_HISTORY,
    OF_TRAITS,
    REPEATING,
    knows_only_what_is_done,
    settles_before_the_broker_has_it,
)
from tests.torture.pauses import Pause, Pauses
from tests.torture.replica import HEARD_WITHIN, RECORD_GONE, Replica
from tests.torture.run import Run
from tests.torture.schedule import (
    AMONG,
    Kind,
    Schedule,
    drawn,
    plan,
    plan_embedded,
    plan_mutant,
    plan_pause_in_a_crash,
    plan_quiet,
    plan_replicated,
    plan_trait,
    with_traits,
)
from tests.torture.subscribers import Published, Subscribers
from tests.torture.traits import EMBEDDED, ON_KAFKA, Trait, fit

Mutant = Callable[[], None]
LONG = pytest.mark.skipif(
    not os.environ.get("DISPATCHER_TEST_LONG"), reason="takes minutes; DISPATCHER_TEST_LONG=1 runs it"
)
QUIET = {Trait.FANOUT, Trait.TENANTS, Trait.LATEST, Trait.ODD, Trait.ALONE, Trait.HISTORY}
"""Traits that do nothing at a time of their own."""


def test_a_seed_makes_the_same_schedule_again_and_another_seed_another() -> None:
    assert plan(7) == plan(7)
    assert plan_embedded(7) == plan_embedded(7)
    assert plan_quiet(7).faults == ()
    assert len({str(plan(seed)) for seed in range(50)}) == 50
    drawn = {fault.kind for seed in range(50) for fault in (*plan(seed).faults, *plan_embedded(seed).faults)}
    assert drawn == set(Kind)
    stops = [fault.lasts for seed in range(50) for fault in plan(seed).faults if fault.kind is Kind.STOP]
    assert all(seconds > 6 for seconds in stops)
    assert max(stops) == 30
    for kind in (plan, plan_replicated, plan_embedded):
        assert {kind(seed).parking for seed in range(20)} == {True, False}
        assert all(kind(seed).hold_limit >= kind(seed).horizon for seed in range(50))


def test_the_ledger_tells_what_was_lost_from_what_was_paid_and_what_was_given_up() -> None:
    ledger = Ledger()
    ledger.owe([("a", "paid"), ("a", "dead"), ("a", "unpaid"), ("a", "unasked"), ("a", "forgiven")])
    ledger.ask(("a", "unpaid"), "0.1", 0.5)
    ledger.pay(("a", "paid"), "0.1", 1.0)
    ledger.forgive([("a", "forgiven")])
    assert lost(ledger, {("a", "dead")}) == [("a", "unasked"), ("a", "unpaid")]


def test_a_second_payment_is_a_duplicate_unless_the_producer_wrote_the_event_twice() -> None:
    ledger = Ledger()
    for event in ("once", "twice", "twice", "copied", "copied"):
        ledger.pay(("a", event), "0.1", 1.0)
    copies = {"once": 1, "twice": 1, "copied": 2}
    found = list(duplicates(ledger, copies))
    assert found == [(("a", "twice"), [Payment(1.0, "0.1"), Payment(1.0, "0.1")])]
    assert excess(ledger, copies) == 1


def paid(*payments: tuple[float, str]) -> tuple[Ledger, list[Payment]]:
    ledger = Ledger()
    for at, life in payments:
        ledger.ask(("a", "e"), life, at)
        ledger.pay(("a", "e"), life, at, at)
    return ledger, ledger.paid["a", "e"]


KILL = Trouble("kill", "0.1", 10.0)


@pytest.mark.parametrize(
    ("payments", "trouble", "explained"),
    [
        pytest.param([(9.5, "0.1"), (12.0, "0.2")], KILL, True, id="completed right before it"),
        pytest.param([(7.0, "0.1"), (12.0, "0.2")], KILL, False, id="completed long before it"),
        pytest.param([(9.5, "0.1"), (9.9, "0.1")], KILL, False, id="twice before it"),
        pytest.param([(9.5, "1.1"), (12.0, "1.2")], KILL, False, id="it befell another"),
        pytest.param(
            [(9.5, "1.1"), (12.0, "1.2")], Trouble("broker", None, 10.0, wide=True), True, id="it befell all"
        ),
        pytest.param(
            [(14.0, "1.1"), (15.0, "0.1")],
            Trouble("stop", "0.1", 10.0, 20.0, wide=True),
            True,
            id="while it lasted, by another",
        ),
        pytest.param(
            [(21.0, "0.1"), (22.0, "1.1")],
            Trouble("stop", "0.1", 10.0, 20.0, wide=True),
            False,
            id="after its end",
        ),
        pytest.param(
            [(10.4, "0.1"), (12.0, "1.1")],
            Trouble("revoked", "0.1", 10.0, before=11.0),
            True,
            id="under way when its partitions went",
        ),
        pytest.param(
            [(11.5, "0.1"), (12.0, "1.1")],
            Trouble("revoked", "0.1", 10.0, before=11.0),
            False,
            id="begun after its partitions had gone",
        ),
        pytest.param([(9.5, "0.2"), (12.0, "1.1")], KILL, False, id="paid by another than the one it befell"),
        pytest.param(
            [(9.5, "0.1"), (12.0, "1.1")],
            Trouble("term", "0.1", 9.0, since=10.0),
            False,
            id="before the end of a stop in good order",
        ),
    ],
)
def test_a_duplicate_is_explained_by_trouble_of_its_sender_right_after_the_first_payment_and_by_nothing_else(
    payments: list[tuple[float, str]], trouble: Trouble, explained: bool
) -> None:
    ledger, found = paid(*payments)
    assert causes(ledger, ("a", "e"), found, 1, [trouble]) == [trouble if explained else None]
    assert causes(ledger, ("a", "e"), found, 1, []) == [None]
    assert causes(ledger, ("a", "e"), found, 2, [trouble]) == [], "the producer wrote it twice"


def test_what_was_set_aside_unasked_right_before_trouble_is_at_risk_too_and_nobody_has_to_have_asked() -> (
    None
):
    kill = Trouble("kill", "0.1", 10.0, over=10.2)
    for set_aside, explained in {7.0: False, 9.0: True, 10.1: True, 11.0: False}.items():
        ledger, found = paid((12.0, "0.2"), (13.0, "0.2"))
        ledger.written["a", "e"].append(set_aside)
        assert causes(ledger, ("a", "e"), found, 1, [kill]) == [kill if explained else None], set_aside
        assert bound(ledger, [kill]) == explained


def test_the_bound_is_what_was_in_flight_or_completed_within_the_last_commit_interval_of_each_trouble() -> (
    None
):
    ledger = Ledger()
    for event, at in {"long ago": 3.0, "just now": 9.0, "in flight": 10.5}.items():
        ledger.ask(("a", event), "0.1", at)
        ledger.pay(("a", event), "0.1", at)
    ledger.ask(("a", "later"), "0.2", 12.0)
    ledger.pay(("a", "later"), "0.2", 12.0)
    assert bound(ledger, [KILL]) == 2
    assert bound(ledger, [KILL, KILL]) == 4
    assert bound(ledger, []) == 0


def test_refused_commits_of_one_rebalance_are_one_trouble(tmp_path: Path) -> None:
    message = "commit refused: the partitions were reassigned"
    daemon = Daemon(tmp_path, "sqlite:///x.db", [])
    daemon.output.write_text(
        "".join(
            f'{{"timestamp":"2026-01-01T00:00:{second:02d}Z","message":"{message}"}}\n'
            for second in (10, 12, 40)
        )
    )

    async def heard() -> list[Trouble]:
        endpoints, report = Endpoints(1), Report("kafka", plan(1))
        subscribers = Subscribers(1, (), dict.fromkeys(NAMES, 1), 5.0)
        replica = Replica("one", 0, daemon, endpoints, subscribers, report, 6.0, Hitches())
        replica.births.append((-math.inf, "0.1"))
        return replica.heard()

    first, second = asyncio.run(heard())
    assert first.until - first.begin == pytest.approx(6.0 + COMMITTED + 2.0 + HEARD_WITHIN, abs=0.1)
    assert second.begin > first.until
    assert {first.life, second.life} == {"0.1"}
    assert first.wide


@pytest.mark.parametrize("deletes", [True, False])
def test_what_was_deleted_is_excused_where_the_daemon_has_said_so_and_nowhere_else(
    tmp_path: Path, deletes: bool
) -> None:
    daemon = Daemon(tmp_path, "sqlite:///x.db", [])
    lines: list[dict[str, object]] = [
        {"message": RECORD_GONE, "topic": "parked", "partition": 3, "offset": 19},
        {"why": "retention", "topic": "events", "partition": 1, "expected": 5, "read_from": 8},
    ]
    daemon.output.write_bytes(b"\n".join(orjson.dumps({"message": "", **line}) for line in lines))
    traits = {Trait.RETENTION} if deletes else set()
    report, ledger = Report("kafka", plan(1)), Ledger()
    replica = SimpleNamespace(daemon=daemon)
    replica.skipped = lambda: Replica.skipped(cast("Replica", replica))
    odd = {("events", 1, 7), ("events", 1, 8), ("events", 1, 9)}
    run = SimpleNamespace(report=report, ledger=ledger, traits=traits, replicas=[replica], odd=odd)
    run.told_gone = lambda: Run.told_gone(cast("Run", run))
    ledger.owe([("a", "parked and said"), ("a", "parked"), ("a", "read and said"), ("a", "read")])
    places = {
        "read and said": [(1, TopicPartition("events", 1), 6)],
        "read": [(1, TopicPartition("events", 2), 6)],
    }
    parked = TopicPartition("parked", 3)
    written = {("a", "parked and said"): [(parked, 19)], ("a", "parked"): [(parked, 20)]}
    Run._judge_lost(cast("Run", run), places, (), written)
    assert (report.lost, report.excused) == ((2, 2) if deletes else (4, 0))
    report.findings.clear()
    Run._judge_odd(cast("Run", run), {("events", 1, 9)})
    (finding,) = report.findings
    assert finding.endswith("[('events', 1, 8)]" if deletes else "[('events', 1, 7), ('events', 1, 8)]")


@pytest.mark.parametrize(
    ("first", "lost", "found"),
    [(None, 0, False), (None, 1, True), (51.0, 0, False), (90.0, 0, True)],
    ids=["nothing to deliver", "nothing delivered", "at once", "late"],
)
def test_the_only_replica_delivers_soon_after_a_crash_where_there_is_anything_to_deliver(
    first: float | None, lost: int, found: bool
) -> None:
    report = Report("kafka", plan(1), lost=lost)
    replica = SimpleNamespace(
        name="one", births=[(0.0, "0.1"), (50.0, "0.2")], owing={"0.2"}, starts=lambda: [0.0, 50.0]
    )
    endpoints = SimpleNamespace(first={} if first is None else {"0.2": first})
    Run._judge_pauses_of_crashes(
        cast("Run", SimpleNamespace(report=report, replicas=[replica], endpoints=endpoints))
    )
    assert bool(report.findings) is found


def test_runs_are_added_up_and_of_a_seed_the_last_one_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = [
        Report("kafka", plan(1), owed=10, bound=4, findings=["lost 2 deliveries"], lost=2),
        Report("kafka", plan(2), owed=20, bound=5, duplicates=3, oldest=0.5),
        Report("kafka", plan(4), owed=30, bound=6),
        Report("sqlite", plan_embedded(1), owed=40),
        Report("kafka", plan(1), owed=1000, bound=7),
    ]
    file = tmp_path / "runs.jsonl"
    file.write_bytes(b"".join(report.line() for report in reports))
    monkeypatch.setattr("sys.argv", ["totals", str(file)])
    assert totals.main() == 0
    out = capsys.readouterr().out
    assert re.search(
        r"\| `kafka` \| none \| 1-2,4 \| \d \| \d \| 1,050 \| 0 \| 3 \| 18 \| 0\.5 s \| 0 \|", out
    )
    assert "`sqlite` | none | 1 |" in out
    assert "4 schedules" in out
    assert "1 earlier runs" in out


def test_a_seed_draws_traits_that_fit_together_and_every_trait_is_drawn_by_some() -> None:
    for broker, among in AMONG.items():
        makers: dict[str, Callable[[int], Schedule]] = {
            "kafka": plan,
            "replicated": plan_replicated,
            "sqlite": plan_embedded,
        }
        make = makers[broker]
        schedules = [drawn(make(seed), broker) for seed in range(100)]
        assert schedules[7] == drawn(make(7), broker)
        assert all(1 <= len(each.traits - {Trait.HISTORY}) <= 3 and fit(each.traits) for each in schedules)
        assert {trait for each in schedules for trait in each.traits} == set(among)
        for each in schedules:
            assert all(0 < turn.at < each.length for turn in each.turns)
            assert bool(each.turns) == bool(each.traits - QUIET)
    assert not fit({Trait.FANOUT, Trait.TENANTS})


def test_where_the_history_is_compared_its_process_and_the_broker_are_killed() -> None:
    traits = frozenset({Trait.HISTORY})
    for seed in range(50):
        embedded = with_traits(plan_embedded(seed, rounds=2), traits)
        assert Kind.KILL in {fault.kind for fault in embedded.faults}
        assert len(embedded.faults) == 2
        killed = {(fault.kind, fault.target) for fault in with_traits(plan(seed), traits).faults}
        assert (Kind.KILL, 0) in killed
        assert Kind.BROKER in {kind for kind, _ in killed}
        assert killed >= {(fault.kind, fault.target) for fault in plan(seed).faults}
        # Of three brokers no more than one at a time is away.
        replicated = with_traits(plan_replicated(seed), traits).faults
        assert [f for f in replicated if f.kind is Kind.BROKER] == [
            f for f in plan_replicated(seed).faults if f.kind is Kind.BROKER
        ]
    assert not with_traits(plan_quiet(1), traits).faults


def test_what_is_matched_while_a_subscription_is_paused_is_not_owed_and_what_was_matched_before_is() -> None:
    ledger = Ledger()
    published = {
        event: Published(event, at)
        for event, at in {"matched before": 1.0, "late before": 9.0, "while": 12.0, "after": 31.0}.items()
    }
    run = SimpleNamespace(ledger=ledger, published=published, clock=lambda: 100.0)
    pauses = Pauses(cast("Run", run))
    pauses.all.append(Pause("a", 10.0, in_force=11.0, resumed=20.0, end=30.0))
    ledger.owe([(owner, event) for owner in "ab" for event in published])
    ledger.ask(("b", "matched before"), "0.1", 2.0)
    for at, event in enumerate(("late before", "while", "after"), start=31):
        ledger.ask(("b", event), "0.1", at)
    pauses.forgive()
    assert {debt for debt in ledger.owed if debt[0] == "a"} == {("a", "matched before"), ("a", "after")}
    assert len([debt for debt in ledger.owed if debt[0] == "b"]) == 4
    assert pauses.findings() == []
    ledger.ask(("a", "matched before"), "0.1", 19.0)
    assert "while it was paused" in pauses.findings()[0]


@pytest.mark.timeout(600)
async def test_a_daemon_that_is_right_passes_and_one_with_a_fault_does_not(tmp_path: Path) -> None:
    """The harness itself is put to the test: what it doesn't find here it wouldn't find anywhere."""

    async def life(mutant: Mutant | None) -> Report:
        folder = tmp_path / (mutant.__name__ if mutant else "right")
        folder.mkdir()
        return await torture(
            # What is held tells of notes and commits, what is in a tier of its writing.
            plan_mutant(1.0 if mutant is settles_before_the_broker_has_it else 10.0),
            folder,
            None,
            mutant=mutant.__name__ if mutant is not None else None,
        )

    right, *wrong = await asyncio.gather(*(life(mutant) for mutant in (None, *LOSING, *REPEATING)))
    assert right.lost == 0
    assert not right.findings, "\n".join(right.findings)
    assert right.dead > 0
    for mutant, report in zip(LOSING, wrong, strict=False):
        assert report.lost > 0, f"{mutant.__name__}: nothing found"
    for mutant, report in zip(REPEATING, wrong[len(LOSING) :], strict=True):
        assert any("that nothing explains" in finding for finding in report.findings), (
            f"{mutant.__name__}: nothing found"
        )


@LONG
@pytest.mark.timeout(900)
async def test_the_history_says_what_the_endpoints_say_and_one_with_a_fault_does_not(tmp_path: Path) -> None:
    """Of each of its mutants. One that is right is in every run of the tests, as are the mutants' twins in tests/mutants.py."""

    async def life(mutant: Mutant | None) -> Report:
        folder = tmp_path / (mutant.__name__ if mutant else "right")
        folder.mkdir()
        return await torture(
            plan_trait(Trait.HISTORY), folder, None, mutant=mutant.__name__ if mutant is not None else None
        )

    right, *wrong = await asyncio.gather(*(life(mutant) for mutant in (None, *OF_HISTORY)))
    assert not right.findings, "\n".join(right.findings)
    assert right.audited >= right.owed > 0
    for mutant, report in zip(OF_HISTORY, wrong, strict=True):
        assert report.lost == 0
        assert any(finding.startswith("the history: ") for finding in report.findings), (
            f"{mutant.__name__}: nothing found"
        )


def test_every_trait_has_a_daemon_that_is_wrong_by_it_and_each_replaces_what_there_is() -> None:
    assert OF_TRAITS.keys() == set(Trait)
    # In a process of its own: they stay replaced.
    script = "from tests.torture.mutants import ALL\nfor mutant in ALL: mutant()"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


@contextlib.asynccontextmanager
async def ground_or_skip() -> AsyncIterator[Ground]:
    if (problem := missing()) is not None:
        pytest.skip(f"no real Apache Kafka: {problem}")
    try:
        async with kafka_ground() as ground:
            yield ground
    except Unavailable as error:
        pytest.skip(f"no real Apache Kafka: {error}")


async def find(traits: Iterable[Trait], folder: Path, ground: Ground | None) -> None:
    """A daemon that is right passes with each of the traits, and one that is wrong by it doesn't."""
    room = asyncio.Semaphore(4)

    async def life(trait: Trait, mutant: str | None) -> Report:
        own = folder / f"{trait}-{mutant or 'right'}"
        own.mkdir()
        async with room:
            return await torture(plan_trait(trait), own, ground, mutant=mutant)

    wanted = sorted(traits)
    names = {trait: OF_TRAITS[trait].__name__ for trait in wanted}
    found = await asyncio.gather(*(life(trait, name) for trait in wanted for name in (None, names[trait])))
    for trait, right, wrong in zip(wanted, found[::2], found[1::2], strict=True):
        assert right.owed > 0
        assert not right.findings, f"{trait}: " + "\n".join(right.findings)
        assert wrong.findings, f"{names[trait]}: nothing found"


@LONG
@pytest.mark.timeout(900)
async def test_what_the_traits_are_for_is_found_on_sqlite(tmp_path: Path) -> None:
    await find(EMBEDDED, tmp_path, None)


@LONG
@pytest.mark.kafka
@pytest.mark.timeout(900)
async def test_what_the_traits_are_for_is_found_on_kafka(tmp_path: Path) -> None:
    async with ground_or_skip() as ground:
        await find(set(ON_KAFKA).difference(EMBEDDED), tmp_path, ground)


@pytest.mark.kafka
@pytest.mark.timeout(600)
async def test_what_was_taken_up_before_a_crash_is_owed_through_a_pause_and_a_daemon_that_forgets_it_is_found(
    tmp_path: Path,
) -> None:
    schedule = plan_pause_in_a_crash()

    async def life(mutant: str | None) -> Report:
        folder = tmp_path / (mutant or "right")
        folder.mkdir()
        return await torture(schedule, folder, ground, mutant=mutant)

    async with ground_or_skip() as ground:
        right, wrong = await asyncio.gather(life(None), life(knows_only_what_is_done.__name__))
    assert right.owed > 0
    assert not right.findings, "\n".join(right.findings)
    assert wrong.lost > 0


@pytest.mark.kafka
@pytest.mark.timeout(600)
async def test_a_group_that_begins_at_the_end_loses_nothing_when_partitions_are_added(tmp_path: Path) -> None:
    schedule = with_traits(plan(9, length=4.0), frozenset({Trait.LATEST, Trait.PARTITIONS, Trait.HISTORY}))
    async with ground_or_skip() as ground:
        report = await torture(schedule, tmp_path, ground)
    assert report.owed > 0
    assert report.audited > 0
    assert report.lost == 0
    assert not report.findings, f"{report.schedule}\n" + "\n".join(report.findings)


@pytest.mark.timeout(600)
async def test_a_replica_on_sqlite_that_is_killed_again_and_again_loses_nothing_and_its_history_tells_all(
    tmp_path: Path,
) -> None:
    schedule = with_traits(plan_embedded(3, rounds=2), frozenset({Trait.HISTORY}))
    report = await torture(schedule, tmp_path, None)
    assert report.owed > 0
    assert report.lost == 0
    assert report.audited >= report.owed
    assert not report.findings, f"{report.schedule}\n" + "\n".join(report.findings)


@pytest.mark.kafka
@pytest.mark.timeout(600)
async def test_two_replicas_on_kafka_lose_nothing_whatever_befalls_them(tmp_path: Path) -> None:
    async with ground_or_skip() as ground:
        report = await torture(plan(9, length=4.0), tmp_path, ground)
    assert report.owed > 0
    assert report.lost == 0
    assert not report.findings, f"{report.schedule}\n" + "\n".join(report.findings)
