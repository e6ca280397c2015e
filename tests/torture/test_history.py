"""The comparison of the history with the endpoints' record finds what it is for; the daemons that it finds are in test_torture.py."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dispatcher.core.retry.records import delivery_id
from dispatcher.history.base import DeliveryState, Retention
from dispatcher.history.logged import DAY_MS
from dispatcher.history.sqlite.store import SqliteHistory
from tests.history.records import (
    ATTEMPTS,
    DEAD,
    EVENTS,
    NOON,
    attempt,
    batch,
    dead_letter,
    event,
)
from tests.torture.history import Snapshot, Truth, changes, differences, take

TAKEN, REFUSED, WAITING = ("sub_a", "evt_0"), ("sub_a", "evt_1"), ("sub_a", "evt_2")


def id_of(offset: int) -> str:
    return delivery_id("events", 0, offset, "sub_a")[4:]


TRUTH = Truth(
    {f"evt_{offset}": {("events", 0, offset)} for offset in range(3)},
    owed={TAKEN, REFUSED},
    paid={TAKEN: 1},
    asked={TAKEN: 2, REFUSED: 2},
    dead={id_of(1)},
    bodies={"evt_0": f"{0:064x}"},
    present={(f"evt_{offset}", ("events", 0, offset)) for offset in range(2)},
)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteHistory]:
    """One that has an event which was taken at the second attempt, and one that was refused twice."""
    made = SqliteHistory(tmp_path, Retention(30 * DAY_MS, 30 * DAY_MS), keep_all=True)
    await made.open()
    records = [
        attempt(0, 0, decision="retry"),
        attempt(1, 0, attempt=2, time_ms=NOON + 1),
        attempt(2, 1, decision="retry"),
        attempt(3, 1, attempt=2, time_ms=NOON + 1, decision="dead", status=422, reason="exhausted"),
    ]
    await made.apply([batch(records, None, 4, partition=ATTEMPTS)], NOON)
    await made.apply([batch([], None, 2, partition=EVENTS, events=[event(0), event(1)])], NOON)
    await made.apply([batch([], None, 1, partition=DEAD, dead=[dead_letter(0, 1)])], NOON)
    yield made
    await made.close()


async def log(store: SqliteHistory, *records: Any) -> Snapshot:
    """What the history says once the log says this, too."""
    await store.apply([batch(list(records), 4, 4 + len(records))], NOON)
    return await take(store)


async def test_a_history_that_says_what_the_endpoints_say_differs_in_nothing(store: SqliteHistory) -> None:
    found = await take(store)
    assert differences(found, TRUTH) == []
    assert changes(found, await take(store), events=True) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"owed": {TAKEN, REFUSED, WAITING}, "paid": {TAKEN: 1, WAITING: 1}}, "that have ended are missing"),
        ({"paid": {}}, "no endpoint has acknowledged them"),
        ({"dead": ()}, "are dead without a dead letter"),
        ({"dead": {id_of(0), id_of(1)}}, "dead letters are missing"),
        ({"places": {"evt_0": {("events", 0, 0)}}}, "are of nothing that was published"),
        ({"asked": {TAKEN: 1, REFUSED: 2}}, "more answers than came requests"),
        ({"paid": {TAKEN: 2}}, "lack acknowledgements that no trouble explains"),
        ({"bodies": {"evt_0": "0" * 63 + "1"}}, "the SHA-256 of another body"),
        ({"present": {("evt_2", ("events", 0, 2))}}, "events are missing"),
        ({"again": {id_of(1): DeliveryState.DELIVERED}}, "not delivered in a later generation"),
        ({"again": {id_of(1): DeliveryState.DEAD}}, "not dead in a later generation"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_whatever_the_endpoints_or_topics_say_otherwise_is_found(
    store: SqliteHistory, change: dict[str, Any], said: str
) -> None:
    assert any(said in difference for difference in differences(await take(store), replace(TRUTH, **change)))


async def test_an_acknowledgement_of_a_process_in_trouble_may_be_missing(store: SqliteHistory) -> None:
    truth = replace(TRUTH, paid={TAKEN: 2}, risky=lambda debt: 1 if debt == TAKEN else 0)
    assert differences(await take(store), truth) == []


async def test_what_still_waits_when_nobody_has_anything_to_do_is_found(store: SqliteHistory) -> None:
    found = await log(store, attempt(4, 2, decision="retry"))
    truth = replace(TRUTH, asked={**TRUTH.asked, WAITING: 1})
    assert any("nobody has anything to do" in each for each in differences(found, truth))
    acknowledged = replace(truth, owed={*TRUTH.owed, WAITING}, paid={**TRUTH.paid, WAITING: 1})
    assert any("are retrying, and an endpoint" in each for each in differences(found, acknowledged))
    assert differences(found, replace(truth, deletes=True)) == []


async def test_the_end_of_the_last_generation_is_the_one_that_counts(store: SqliteHistory) -> None:
    found = await log(store, attempt(4, 1, generation=2, time_ms=NOON + 2))
    truth = replace(TRUTH, paid={TAKEN: 1, REFUSED: 1}, asked={TAKEN: 2, REFUSED: 3})
    assert differences(found, replace(truth, again={id_of(1): DeliveryState.DELIVERED})) == []


async def test_rows_that_are_there_twice_and_sums_that_are_none_are_found(store: SqliteHistory) -> None:
    found = await take(store)
    doubled = {id_: [*attempts, attempts[0]] for id_, attempts in found.attempts.items()}
    for changed, said in (
        (found._replace(deliveries=[*found.deliveries, found.deliveries[0]]), "deliveries have several rows"),
        (found._replace(events=[*found.events, found.events[0]]), "events have several rows"),
        (found._replace(attempts=doubled), "have an attempt twice"),
        (found._replace(counts={**found.counts, "delivered": 2}), "2 are counted as delivered"),
        (found._replace(events=[event(0), event(1), event(2, event_id="evt_9")]), "never published there"),
    ):
        assert any(said in difference for difference in differences(changed, TRUTH)), said


async def test_a_history_made_again_that_says_otherwise_is_found(store: SqliteHistory) -> None:
    found = await take(store)
    fewer = found._replace(deliveries=found.deliveries[1:], events=found.events[1:])
    assert any("deliveries are not there again" in each for each in changes(found, fewer, events=True))
    assert any("events are not there again" in each for each in changes(found, fewer, events=True))
    assert any("deliveries are there that were not" in each for each in changes(fewer, found, events=False))
    other = found._replace(deliveries=[row._replace(reason="gone") for row in found.deliveries])
    assert any("told otherwise" in each for each in changes(found, other, events=True))
    bare = found._replace(attempts=dict.fromkeys(found.attempts, ()))
    assert any("have other attempts" in each for each in changes(found, bare, events=True))
    assert any("counts were" in each for each in changes(found, found._replace(counts={}), events=True))
