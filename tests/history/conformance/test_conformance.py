"""What every history store keeps to."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from dispatcher.history.base import (
    BUCKETS,
    COUNTED,
    DELETED,
    FAILURE_CLASSES,
    LATENCY_BOUNDS_MS,
    Awaiting,
    CountQuery,
    DeliveryQuery,
    DeliveryState,
    EventQuery,
    Gap,
    HistoryStore,
    PositionMoved,
    Retention,
    Standing,
    StoreUnavailable,
    SubscriptionVersion,
    UndeliveredGroup,
    UndeliveredQuery,
)
from dispatcher.history.logged import DAY_MS
from dispatcher.history.postgres import store as postgres_store
from dispatcher.history.sqlite import store as sqlite_store
from tests.history.conformance.backends import EVER, Backend, Crash, OnPostgres, dump
from tests.history.records import (
    ATTEMPTS,
    DEAD,
    EVENTS,
    NOON,
    OTHER,
    attempt,
    batch,
    dead_letter,
    event,
)


def everything(**more: Any) -> DeliveryQuery:
    return DeliveryQuery(0, EVER, more.pop("limit", 100), **more)


async def rows_of(store: HistoryStore, **more: Any) -> list[Any]:
    return list((await store.deliveries(everything(**more))).items)


def counted(row: Any, name: str) -> int:
    number: int = row.counts[COUNTED.index(name)]
    return number


async def totals(store: HistoryStore) -> dict[str, int]:
    (row,) = await store.counts(CountQuery(0, EVER, EVER))
    return {name: counted(row, name) for name in COUNTED}


# Rows.


async def test_a_delivery_that_succeeds_at_once_is_one_row(backend: Backend) -> None:
    store = await backend.store()
    await store.apply([batch([attempt(0, 7)], None, 1)], NOON)
    (row,) = await rows_of(store)
    assert row.state == DeliveryState.DELIVERED
    assert (row.event_id, row.event_type, row.tenant, row.subscription_id) == (
        "evt_7",
        "invoice.paid",
        "acme",
        "sub_a",
    )
    assert (row.topic, row.partition, row.offset) == ("events", 0, 7)
    assert (row.attempts, row.status, row.total_ms, row.created_ms) == (1, 200, 40, NOON)
    found = await store.delivery(row.delivery_id)
    assert found is not None
    (only,) = found.attempts
    assert json.loads(only)["replica"] == "dispatcher-0:1"
    assert found.row == row


async def test_attempts_that_follow_are_found_with_their_delivery_also_days_later(backend: Backend) -> None:
    store = await backend.store()
    first, second, third = NOON, NOON + DAY_MS, NOON + 3 * DAY_MS
    await store.apply(
        [batch([attempt(0, 7, time_ms=first, decision="retry", due_ms=second)], None, 1)], first
    )
    (row,) = await rows_of(store)
    assert (row.state, row.due_ms, row.status) == (DeliveryState.RETRYING, second, 503)
    await store.apply(
        [batch([attempt(1, 7, time_ms=second, attempt=2, decision="retry", due_ms=third)], 1, 2)], second
    )
    await store.apply([batch([attempt(2, 7, time_ms=third, attempt=3)], 2, 3)], third)
    (row,) = await rows_of(store)
    assert (row.state, row.created_ms, row.last_ms, row.attempts, row.due_ms) == (
        DeliveryState.DELIVERED,
        first,
        third,
        3,
        None,
    )
    found = await store.delivery(row.delivery_id)
    assert found is not None
    assert [json.loads(detail)["attempt"] for detail in found.attempts] == [1, 2, 3]


async def test_several_records_of_a_delivery_in_one_batch_are_one_row(backend: Backend) -> None:
    store = await backend.store()
    records = [
        attempt(number, 7, time_ms=NOON + number * 1000, attempt=number + 1, decision="retry")
        for number in range(3)
    ]
    await store.apply([batch([*records, attempt(3, 7, time_ms=NOON + 4000, attempt=4)], None, 4)], NOON)
    (row,) = await rows_of(store)
    assert (row.state, row.attempts) == (DeliveryState.DELIVERED, 4)


async def test_a_record_that_the_log_has_twice_counts_once(backend: Backend) -> None:
    store = await backend.store()
    await store.apply([batch([attempt(0, 7), attempt(1, 7)], None, 2)], NOON)
    await store.apply([batch([attempt(2, 7), attempt(3, 8, decision="retry")], 2, 4)], NOON)
    again = [attempt(4, 8, decision="retry"), attempt(5, 8, time_ms=NOON + 1000, attempt=2)]
    await store.apply([batch(again, 4, 6)], NOON)
    await store.apply([batch([attempt(6, 8, time_ms=NOON + 1000, attempt=2)], 6, 7)], NOON)
    assert sorted(row.attempts for row in await rows_of(store)) == [1, 2]
    assert (await totals(store))["attempts"] == 3


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
async def test_within_a_generation_delivered_beats_dead_beats_dropped_beats_retry(
    backend: Backend, order: tuple[int, ...]
) -> None:
    store = await backend.store()
    decisions = ("retry", "dropped", "dead", "delivered")
    best = DeliveryState.PENDING
    expected = (DeliveryState.RETRYING, DeliveryState.DROPPED, DeliveryState.DEAD, DeliveryState.DELIVERED)
    for at, number in enumerate(order):
        record = attempt(at, 7, time_ms=NOON + number * 1000, attempt=number + 1, decision=decisions[number])
        await store.apply([batch([record], at or None, at + 1)], NOON)
        best = max(best, expected[number])
        (row,) = await rows_of(store)
        assert row.state == best


async def test_the_next_generation_begins_anew_and_an_older_one_changes_nothing(backend: Backend) -> None:
    store = await backend.store()
    await store.apply(
        [batch([attempt(0, 7, decision="dead", v=2, generation=1, reason="exhausted", status=503)], None, 1)],
        NOON,
    )
    await store.apply(
        [batch([attempt(1, 7, time_ms=NOON + 1000, decision="retry", v=2, generation=2)], 1, 2)], NOON
    )
    (row,) = await rows_of(store)
    assert (row.generation, row.state, row.reason) == (2, DeliveryState.RETRYING, None)
    await store.apply([batch([attempt(2, 7, time_ms=NOON + 2000, v=2, generation=1, attempt=9)], 2, 3)], NOON)
    (row,) = await rows_of(store)
    assert (row.generation, row.state) == (2, DeliveryState.RETRYING)


async def test_an_event_id_that_is_used_again_is_another_delivery(backend: Backend) -> None:
    store = await backend.store()
    # Its topic was made anew: the same offset, and with it the same delivery id, is of another event.
    await store.apply([batch([attempt(0, 7, decision="dead", event_id="old")], None, 1)], NOON)
    later = NOON + 2 * DAY_MS
    await store.apply([batch([attempt(1, 7, event_id="new", time_ms=later)], 1, 2)], later)
    rows = await rows_of(store)
    assert {(row.event_id, row.state) for row in rows} == {
        ("old", DeliveryState.DEAD),
        ("new", DeliveryState.DELIVERED),
    }
    found = await store.delivery(rows[0].delivery_id)
    assert found is not None
    assert found.row.event_id == "new"
    # Also on the same day, where the newer one takes the place of the older.
    await store.apply([batch([attempt(2, 7, event_id="newest", time_ms=later + 5)], 2, 3)], later)
    assert {row.event_id for row in await rows_of(store)} == {"old", "newest"}


async def test_events_are_found_by_id_with_and_without_deliveries(backend: Backend) -> None:
    store = await backend.store()
    rows = [event(0), event(1, tenant=None), event(2, event_id="evt_0", time_ms=NOON + 5)]
    await store.apply([batch([], None, 3, partition=EVENTS, events=rows)], NOON)
    page = await store.events(EventQuery(0, EVER, 10, event_id="evt_0"))
    assert list(page.items) == [rows[2], rows[0]]
    page = await store.events(EventQuery(0, EVER, 10, event_id="evt_1", tenant="acme"))
    assert page.items == []
    page = await store.events(EventQuery(0, EVER, 10))
    assert list(page.items) == [rows[2], rows[1], rows[0]]


async def test_a_dead_letter_is_found_with_its_delivery(backend: Backend) -> None:
    store = await backend.store()
    await store.apply(
        [batch([], None, 5, partition=DEAD, dead=[dead_letter(4, 7), dead_letter(3, 9, None)])], NOON
    )
    await store.apply([batch([attempt(0, 7, decision="dead")], None, 1)], NOON)
    (row,) = await rows_of(store)
    found = await store.delivery(row.delivery_id)
    assert found is not None
    assert found.dead_letter == dead_letter(4, 7)


async def test_an_unknown_delivery_is_none(backend: Backend) -> None:
    store = await backend.store()
    assert await store.delivery("0" * 24) is None


# Lists.


async def test_lists_are_cut_by_every_filter(backend: Backend) -> None:
    store = await backend.store()
    records = [
        attempt(0, 0, "sub_a"),
        attempt(1, 1, "sub_b", decision="retry", host="b.example"),
        attempt(
            2,
            2,
            "sub_a",
            decision="dead",
            reason="exhausted",
            v=2,
            status=410,
            tenant="other",
            event_type="invoice.void",
        ),
        attempt(
            3, 3, "sub_c", decision="parked", v=2, reason="breaker", tenant=None, event_type="order.made"
        ),
        attempt(4, 4, "sub_c", decision="retry", v=2, failure="timeout", time_ms=NOON - 1000),
    ]
    await store.apply([batch(records, None, 5)], NOON)

    async def offsets(**more: Any) -> list[int]:
        return sorted(row.offset for row in await rows_of(store, **more))

    assert await offsets() == [0, 1, 2, 3, 4]
    assert await offsets(tenant="acme") == [0, 1, 4]
    assert await offsets(subscription_id="sub_a") == [0, 2]
    assert await offsets(subscription_id="sub_a", tenant="acme") == [0]
    assert await offsets(event_id="evt_3") == [3]
    assert await offsets(event_type="invoice.*") == [0, 1, 2, 4]
    assert await offsets(event_type="order.made") == [3]
    assert await offsets(event_type="*") == [0, 1, 2, 3, 4]
    assert await offsets(states=[DeliveryState.DELIVERED]) == [0]
    assert await offsets(states=[DeliveryState.RETRYING, DeliveryState.PENDING]) == [1, 3, 4]
    assert await offsets(states=[DeliveryState.RETRYING, DeliveryState.DELIVERED]) == [0, 1, 4]
    assert await offsets(states=[]) == []
    assert await offsets(states=[DeliveryState.DEAD], tenant="other") == [2]
    assert await offsets(status=(400, 499)) == [2]
    assert await offsets(status=(503, 503)) == [1]
    assert await offsets(reason="exhausted") == [2]
    assert await offsets(reason="timeout") == [4]
    assert await offsets(host="b.example") == [1]
    page = await store.deliveries(DeliveryQuery(NOON - 1000, NOON, 10))
    assert [row.offset for row in page.items] == [4]


async def test_pages_show_each_row_once_while_rows_are_written(backend: Backend) -> None:
    store = await backend.store()
    days = 3
    count = 60
    records = [attempt(at, at, time_ms=NOON - at % days * DAY_MS + at // 20) for at in range(count)]
    await store.apply([batch(records, None, count)], NOON)
    seen: list[int] = []
    query = everything(limit=7)
    at = count
    while True:
        page = await store.deliveries(query)
        seen += [row.offset for row in page.items if row.offset < count]
        if page.last is None:
            break
        query = query._replace(after=page.last)  # type: ignore[arg-type] # its shape
        # A delivery that is new, and another attempt of each that has been shown.
        more = [attempt(at, at, time_ms=NOON + at)] + [
            attempt(at + 1 + n, row.offset, time_ms=NOON + at + n, attempt=at)
            for n, row in enumerate(page.items)
        ]
        await store.apply([batch(more, at, at + len(more))], NOON)
        at += len(more)
    assert sorted(seen) == list(range(count))
    keys = [(row.created_ms, row.delivery_id) for row in await rows_of(store, limit=1000)]
    assert keys == sorted(keys, reverse=True)


async def test_pages_of_events_show_each_once_though_id_and_time_are_the_same(backend: Backend) -> None:
    store = await backend.store()
    rows = [event(offset, event_id="same") for offset in range(10)]
    await store.apply([batch([], None, 10, partition=EVENTS, events=rows)], NOON)
    seen: list[int] = []
    query = EventQuery(0, EVER, 3, event_id="same")
    while True:
        page = await store.events(query)
        seen += [row.offset for row in page.items]
        if page.last is None:
            break
        query = query._replace(after=page.last)  # type: ignore[arg-type] # its shape
    assert sorted(seen) == list(range(10))


async def test_a_page_that_found_nothing_in_what_it_looked_at_goes_on_from_there(backend: Backend) -> None:
    store = await backend.store(looked_at=10)
    records = [attempt(at, at, time_ms=NOON - at * DAY_MS // 10) for at in range(35)]
    records.append(attempt(35, 99, time_ms=NOON - 4 * DAY_MS, decision="dead"))
    await store.apply([batch(records, None, 36)], NOON)
    query = everything(limit=5, host=None, status=(503, 503))
    found: list[int] = []
    pages = 0
    while True:
        page = await store.deliveries(query)
        found += [row.offset for row in page.items]
        pages += 1
        if page.last is None:
            break
        query = query._replace(after=page.last)  # type: ignore[arg-type] # its shape
    assert found == [99]
    assert pages >= 4


# Counts.


async def test_what_is_sent_again_by_hand_is_not_late(backend: Backend) -> None:
    store = await backend.store()
    records = [
        attempt(0, 0, total_ms=1, event_time_ms=NOON - 1000),
        attempt(1, 1, total_ms=1, event_time_ms=NOON - 10**9, generation=2),
    ]
    await store.apply([batch(records, None, 2)], NOON)
    (row,) = await store.counts(CountQuery(NOON, NOON + 60_000, 60_000))
    assert (counted(row, "delivered"), counted(row, "late_count"), counted(row, "late_ms")) == (2, 1, 1001)


async def test_counts_add_up_by_minute_and_by_what_is_asked(backend: Backend) -> None:
    store = await backend.store()
    records = [
        attempt(0, 0, total_ms=1),
        attempt(1, 1, total_ms=LATENCY_BOUNDS_MS[-1] + 1, time_ms=NOON + 60_000, event_time_ms=NOON),
        attempt(2, 2, "sub_b", decision="retry", tenant=None),
        attempt(3, 3, "sub_b", decision="dropped", v=2, failure="timeout"),
    ]
    await store.apply([batch(records, None, 4)], NOON)
    rows = await store.counts(CountQuery(NOON, NOON + 120_000, 60_000))
    assert [(row.time_ms, row.key) for row in rows] == [(NOON, ()), (NOON + 60_000, ())]
    assert counted(rows[0], "attempts") == 3
    assert counted(rows[0], "failed") == 2
    assert rows[0].counts[len(COUNTED)] == 1
    assert rows[1].counts[len(COUNTED) + len(BUCKETS) - 1] == 1
    assert counted(rows[1], "late_count") == 1
    by_subscription = await store.counts(CountQuery(0, EVER, EVER, ("subscription_id",)))
    assert [(row.key, counted(row, "attempts")) for row in by_subscription] == [
        (("sub_a",), 2),
        (("sub_b",), 2),
    ]
    by_both = await store.counts(CountQuery(0, EVER, EVER, ("tenant", "status")))
    assert [row.key for row in by_both] == [("", 503), ("acme", -1), ("acme", 200)]
    only = await store.counts(
        CountQuery(0, EVER, EVER, (), tenant="acme", subscription_id="sub_b", event_type="invoice.*")
    )
    assert [counted(row, "dropped") for row in only] == [1]


async def test_failures_are_counted_by_why_and_in_classes(backend: Backend) -> None:
    store = await backend.store()
    failures = ["timeout", "connect_timeout", "dns_failed", "tls_expired", "closed", "a word of tomorrow"]
    records = [
        attempt(number, number, decision="retry", failure=failure, v=2)
        for number, failure in enumerate(failures)
    ]
    for status in (301, 404, 500, 503):
        records.append(attempt(len(records), len(records), decision="retry", status=status))
    records += [
        attempt(len(records), len(records)),
        attempt(len(records) + 1, len(records) + 1, decision="dropped", reason="deleted", v=2),
    ]
    await store.apply([batch(records, None, len(records))], NOON)
    (row,) = await store.counts(CountQuery(0, EVER, EVER))
    by_class = dict(zip(FAILURE_CLASSES, row.counts[len(COUNTED) + len(BUCKETS) :], strict=True))
    assert by_class == {"3xx": 1, "4xx": 1, "5xx": 2, "timeout": 2, "connect": 0, "dns": 1, "tls": 1}
    assert counted(row, "failed") - sum(by_class.values()) == 2 + 1  # closed, unknown, and the one that ended
    statuses = {row.key[0] for row in await store.counts(CountQuery(0, EVER, EVER, ("status",)))}
    assert statuses == {-1, -2, -6, -7, -11, 0, 200, 301, 404, 500, 503}
    timeouts = await store.counts(CountQuery(0, EVER, EVER, status=(-2, -1)))
    assert [counted(row, "attempts") for row in timeouts] == [2]


async def test_counts_are_found_by_host_and_of_the_busiest_groups(backend: Backend) -> None:
    store = await backend.store()
    records = [
        attempt(at, at, f"sub_{name}", host=f"{name}.example", time_ms=NOON + day * DAY_MS)
        for at, (name, day) in enumerate(
            [("a", 0), ("b", 0), ("b", 1), ("c", 1), ("c", 1), ("c", 0), ("d", 2)]
        )
    ]
    for at, record in enumerate(records):
        await store.apply([batch([record], at or None, at + 1)], record.time_ms)
    busiest = await store.counts(CountQuery(0, EVER, EVER, ("host",), busiest=2))
    assert [(row.key, counted(row, "attempts")) for row in busiest] == [
        (("c.example",), 3),
        (("b.example",), 2),
    ]
    shown = [row.key for row in busiest]
    rows = await store.counts(CountQuery(0, EVER, DAY_MS, ("host",), only=shown))
    assert [(row.time_ms // DAY_MS - NOON // DAY_MS, row.key[0]) for row in rows] == [
        (0, "b.example"),
        (0, "c.example"),
        (1, "b.example"),
        (1, "c.example"),
    ]
    both = await store.counts(
        CountQuery(
            0, EVER, EVER, ("subscription_id", "host"), only=[("sub_a", "a.example"), ("sub_a", "b.example")]
        )
    )
    assert [row.key for row in both] == [("sub_a", "a.example")]
    (row,) = await store.counts(CountQuery(0, EVER, EVER, host="d.example"))
    assert counted(row, "attempts") == 1
    assert await store.counts(CountQuery(0, EVER, EVER, ("host",), only=[])) == []
    assert await store.counts(CountQuery(0, 1, EVER, ("host",), busiest=5)) == []


async def test_failures_only_keeps_the_counts_of_all(backend: Backend) -> None:
    store = await backend.store(keep_all=False)
    records = [attempt(0, 0), attempt(1, 1, decision="retry"), attempt(2, 2)]
    await store.apply([batch(records, None, 3)], NOON)
    await store.apply([batch([attempt(3, 1, attempt=2, time_ms=NOON + 1000)], 3, 4)], NOON)
    (row,) = await rows_of(store)
    assert (row.offset, row.state, row.attempts) == (1, DeliveryState.DELIVERED, 2)
    assert (await totals(store))["delivered"] == 3


# Positions.


async def test_positions_advance_by_compare_and_set_and_whoever_lost_a_partition_keeps_nothing(
    backend: Backend,
) -> None:
    store = await backend.store()
    await store.apply([batch([attempt(0, 0)], None, 1)], NOON)
    for wrong in (None, 0, 2):
        with pytest.raises(PositionMoved):
            await store.apply(
                [batch([attempt(5, 5)], None, 9, partition=OTHER), batch([attempt(1, 1)], wrong, 2)], NOON
            )
    assert await store.positions() == {ATTEMPTS: Standing(1, NOON)}
    assert [row.offset for row in await rows_of(store)] == [0]
    await store.apply([batch([attempt(1, 1)], 1, 2)], NOON)
    assert sorted(row.offset for row in await rows_of(store)) == [0, 1]
    assert (await store.positions())[ATTEMPTS].next == 2


async def test_a_topic_that_is_made_anew_is_another_log(backend: Backend) -> None:
    store = await backend.store()
    await store.apply([batch([attempt(5, 0)], None, 6)], NOON)
    anew = ATTEMPTS._replace(topic_id="id-9")
    await store.apply([batch([attempt(0, 1)], None, 1, partition=anew)], NOON)
    assert await store.positions() == {ATTEMPTS: Standing(6, NOON), anew: Standing(1, NOON)}
    assert sorted(row.offset for row in await rows_of(store)) == [0, 1]


async def test_two_indexers_after_a_rebalance_keep_what_one_has_kept_once(backend: Backend) -> None:
    if not isinstance(backend, OnPostgres):
        pytest.skip("one process has the files")
    before, after = await backend.store(), await backend.store()
    await before.apply([batch([attempt(0, 0, decision="retry")], None, 1)], NOON)
    await after.positions()
    # Both have read the same; one of them no longer has the partition and doesn't know.
    outcomes = await asyncio.gather(
        *(
            store.apply([batch([attempt(1, 0, attempt=2, time_ms=NOON + 1000), attempt(2, 1)], 1, 3)], NOON)
            for store in (before, after)
        ),
        return_exceptions=True,
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType", "PositionMoved"]
    # The one that goes on knows what the other one had kept, days later too.
    later = NOON + 2 * DAY_MS
    await after.apply([batch([attempt(3, 0, attempt=3, time_ms=later), attempt(4, 1)], 3, 5)], later)
    await before.apply([batch([attempt(5, 1, attempt=2, time_ms=later)], 5, 6)], later)
    rows = sorted(await rows_of(before), key=lambda row: row.offset)
    assert [(row.offset, row.attempts) for row in rows] == [(0, 3), (1, 2)]
    assert (await totals(before))["attempts"] == 5


async def test_a_delivery_whose_log_partition_is_another_one_now_is_found(backend: Backend) -> None:
    store = await backend.store()
    await store.apply([batch([attempt(0, 0, decision="retry")], None, 1)], NOON)
    # The log has been given more partitions meanwhile.
    await store.apply(
        [batch([attempt(0, 0, attempt=2, time_ms=NOON + 1000)], None, 1, partition=OTHER)], NOON
    )
    (row,) = await rows_of(store)
    assert row.attempts == 2


async def test_gaps_are_kept_with_the_position_behind_them(backend: Backend) -> None:
    store = await backend.store()
    await store.apply([batch([attempt(0, 0)], None, 1)], NOON)
    gap = Gap(ATTEMPTS, 1, 1000, NOON, NOON + 3600_000, "behind")
    await store.apply([batch([], 1, 1000, gap=gap)], NOON)
    assert (await store.positions())[ATTEMPTS].next == 1000
    assert await store.gaps(NOON + 3500_000, NOON + 9000_000) == [gap]
    assert await store.gaps(NOON + 3700_000, NOON + 9000_000) == []
    assert await store.gaps(NOON - 10, NOON) == []


async def test_what_was_kept_is_there_for_the_next_process(backend: Backend) -> None:
    store = await backend.store()
    await store.apply([batch([attempt(0, 0, decision="retry"), attempt(1, 1)], None, 2)], NOON)
    before = await dump(store)
    await backend.close(store)
    store = await backend.store()
    assert await dump(store) == before
    await store.apply([batch([attempt(2, 0, attempt=2, time_ms=NOON + DAY_MS)], 2, 3)], NOON + DAY_MS)
    assert len(await rows_of(store)) == 2


# Crashes.


def story() -> list[tuple[list[Any], int]]:
    """Batches over three days, with all that there is: retries over midnights, repeats, ends, events, dead letters, a gap."""
    one, two, three = NOON, NOON + DAY_MS, NOON + 2 * DAY_MS
    return [
        (
            [
                batch(
                    [
                        attempt(n, n, decision="retry" if n % 3 == 0 else "delivered", time_ms=one + n)
                        for n in range(6)
                    ],
                    None,
                    6,
                ),
                batch([], None, 4, partition=EVENTS, events=[event(n, time_ms=one) for n in range(4)]),
                batch([], None, 1, partition=DEAD, dead=[dead_letter(0, 3)]),
            ],
            one,
        ),
        (
            [
                batch(
                    [
                        attempt(6, 0, attempt=2, time_ms=two, decision="retry"),
                        attempt(7, 3, attempt=2, time_ms=two, decision="dead"),
                        attempt(8, 9, time_ms=two),
                        attempt(9, 1, time_ms=one + 1),
                        attempt(10, 9, time_ms=two),
                    ],
                    6,
                    11,
                ),
                batch([], 4, 6, partition=EVENTS, events=[event(n, time_ms=two) for n in range(4, 6)]),
            ],
            two,
        ),
        (
            [
                batch(
                    [
                        attempt(11, 0, attempt=3, time_ms=three),
                        attempt(12, 12, time_ms=two + 5, decision="retry"),
                        attempt(13, 12, attempt=2, time_ms=three),
                        attempt(14, 14, time_ms=three),
                    ],
                    11,
                    15,
                ),
                batch([], 1, 50, partition=DEAD, gap=Gap(DEAD, 1, 50, one, two, "behind")),
            ],
            three,
        ),
    ]


async def tell(store: HistoryStore) -> None:
    """Apply what of the story isn't kept yet, as an indexer does: from the positions on."""
    for batches, now in story():
        standing = await store.positions()
        left = []
        for told in batches:
            held = standing.get(told.partition)
            next_ = None if held is None else held.next
            if next_ is None or next_ < told.next:
                assert next_ == told.first
                left.append(told)
        if left:
            await store.apply(left, now)


@pytest.mark.parametrize("after", [False, True], ids=["before", "behind"])
async def test_a_crash_between_any_two_statements_loses_and_doubles_nothing(
    backend: Backend, after: bool
) -> None:
    whole = await backend.store()
    await tell(whole)
    expected = await dump(whole)
    statements = 0
    crashes = 0
    while True:
        await whole.rebuild({})
        backend.fuse.light(statements, after=after)
        try:
            await tell(whole)
        except (Crash, StoreUnavailable):  # the client says of a connection that is cut what it likes
            assert backend.fuse.burned
            crashes += 1
            await backend.crash(whole)
            whole = await backend.store()
            await tell(whole)
            assert await dump(whole) == expected, f"crashed at statement {statements}"
            statements += 1
            continue
        backend.fuse.out()
        break
    assert crashes > 15


async def test_a_crash_while_it_is_made_anew_leaves_what_can_be_made_anew(backend: Backend) -> None:
    store = await backend.store()
    await tell(store)
    expected = await dump(store)
    for statements in range(30):
        backend.fuse.light(statements, after=statements % 2 == 0)
        try:
            await store.rebuild({})
        except (Crash, StoreUnavailable):  # the client says of a connection that is cut what it likes
            assert backend.fuse.burned
            await backend.crash(store)
            store = await backend.store()
            if await store.positions():
                await store.rebuild({})
            await tell(store)
            assert await dump(store) == expected
            continue
        backend.fuse.out()
        return
    pytest.fail("there are more statements than anybody expects")


async def test_rebuilding_stands_where_it_is_told_and_has_nothing_else(backend: Backend) -> None:
    store = await backend.store()
    await tell(store)
    version = SubscriptionVersion("sub_a", NOON, "acme", "active", "{}")
    await store.note_versions([version])
    await store.rebuild({ATTEMPTS: Standing(6, NOON)})
    assert await rows_of(store) == []
    assert await store.positions() == {ATTEMPTS: Standing(6, NOON)}
    assert await store.counts(CountQuery(0, EVER, EVER)) == []
    assert list(await store.versions(["sub_a"])) == [version]


# Hostile input.


async def test_text_that_no_database_likes_is_kept_and_found_alike(backend: Backend) -> None:
    store = await backend.store()
    hostile = [
        "a\0b",
        "x" * 5000,
        "ü" * 3000,
        "\U0001f600",
        "'; DROP TABLE history_deliveries; --",
        "%_\\",
        "{}",
        "$1 ?1",
    ]
    records = [
        attempt(
            at,
            at,
            event_id=text,
            event_type=text,
            tenant=text,
            host=text,
            response=text * 10,
            detail=text,
            decision="retry",
        )
        for at, text in enumerate(hostile)
    ]
    await store.apply([batch(records, None, len(records))], NOON)
    for at, text in enumerate(hostile):
        (row,) = await rows_of(store, event_id=text)
        assert row.offset == at
        assert [row.offset for row in await rows_of(store, tenant=row.tenant)] == [at]
        found = await store.delivery(row.delivery_id)
        assert found is not None
        assert json.loads(found.attempts[0])["decision"] == "retry"
    for text in ("\ud800", "a\ud800b", "\0", "", "y" * 100_000):
        assert await rows_of(store, event_id=text) == []
        assert await rows_of(store, event_type=text + "*", tenant=text) == []
        assert await store.delivery(text) is None
        assert list(await store.versions([text])) == []
        assert list(await store.known_subscriptions(text, 10)) == []
        assert list(await store.present_subscriptions(text, 10)) == []
        assert dict(await store.awaiting([text])) == {text: Awaiting(0, False, None, None)}
        assert await store.counts(CountQuery(0, EVER, EVER, ("host",), host=text, only=[(text,)])) == []
        assert (await store.events(EventQuery(0, EVER, 10, tenant=text, event_type=text))).items == []


async def test_numbers_beyond_what_a_column_holds_are_cut(backend: Backend) -> None:
    store = await backend.store()
    big = 2**53
    record = attempt(
        0, 0, attempt=big, generation=big, total_ms=big, status=big, v=2, decision="retry", due_ms=big
    )
    await store.apply([batch([record, attempt(1, 0, attempt=-big, generation=-big, v=2)], None, 2)], NOON)
    assert len(await rows_of(store)) == 1


@pytest.mark.parametrize("time_ms", [-5, 0, 1_760_000_000, NOON + 400 * DAY_MS, 2**53])
async def test_a_clock_that_is_wrong_does_not_choose_the_day(backend: Backend, time_ms: int) -> None:
    store = await backend.store()
    await store.apply(
        [
            batch([attempt(0, 0, time_ms=time_ms)], None, 1),
            batch([], None, 1, partition=EVENTS, events=[event(0, time_ms=time_ms)]),
            batch([], None, 1, partition=DEAD, dead=[dead_letter(0, 0, time_ms=time_ms)]),
        ],
        NOON,
    )
    (row,) = await rows_of(store)
    assert row.created_ms == NOON
    (only,) = (await store.events(EventQuery(NOON, NOON + 1, 10))).items
    assert only.time_ms == NOON


async def test_a_clock_that_steps_back_between_attempts_loses_none(backend: Backend) -> None:
    store = await backend.store()
    await store.apply([batch([attempt(0, 0, decision="retry", time_ms=NOON)], None, 1)], NOON)
    back = NOON - 2 * DAY_MS
    await store.apply([batch([attempt(1, 0, attempt=2, time_ms=back)], 1, 2)], back)
    (row,) = await rows_of(store)
    assert (row.created_ms, row.attempts, row.state) == (NOON, 2, DeliveryState.DELIVERED)


# Retention.


async def test_retention_takes_whole_days_and_keeps_counts_as_long_as_they_are_to_be_kept(
    backend: Backend,
) -> None:
    store = await backend.store(Retention(2 * DAY_MS, 5 * DAY_MS))
    for day in range(6):
        now = NOON + day * DAY_MS
        records = [attempt(day, day, time_ms=now)]
        await store.apply([batch(records, day or None, day + 1)], now)
        await store.retain(now)
        await store.retain(now)  # again, as the next process does
    assert sorted(row.offset for row in await rows_of(store)) == [3, 4, 5]
    rows = await store.counts(CountQuery(0, EVER, DAY_MS))
    assert [counted(row, "attempts") for row in rows] == [1] * len(rows)
    assert 5 <= len(rows) <= 6
    # What was never seen of a day that is gone is not begun again.
    now = NOON + 5 * DAY_MS
    await store.apply([batch([attempt(6, 99, time_ms=NOON)], 6, 7)], now)
    assert 99 not in [row.offset for row in await rows_of(store)]


# Sums of counts.

HOUR = 3_600_000
MIDNIGHT = NOON - DAY_MS // 2

# Some at both ends of hours and days, and some on a day of which nothing else is counted.
COUNTED_AT = [
    MIDNIGHT + at
    for at in (0, 59 * 60_000, HOUR, 13 * HOUR + 7, DAY_MS - 1, DAY_MS, DAY_MS + 5 * HOUR, 3 * DAY_MS + HOUR)
]
ASKED = [
    (since, until, step)
    for since in (0, MIDNIGHT, MIDNIGHT + 30 * 60_000, MIDNIGHT + DAY_MS)
    for until in (MIDNIGHT + DAY_MS, MIDNIGHT + 3 * DAY_MS + 90 * 60_000, EVER)
    for step in (60_000, HOUR, DAY_MS, EVER)
]


async def figures_of(store: HistoryStore) -> list[Any]:
    """What each of `ASKED` is answered with, by subscription and without."""
    return [
        list(await store.counts(CountQuery(since, until, step, by, tenant=tenant)))
        for since, until, step in ASKED
        for by, tenant in (((), None), (("subscription_id", "status"), None), (("status",), "acme"))
    ]


async def count_at(store: HistoryStore, times: list[int], now: int, *, first: int = 0) -> None:
    """Attempts at these times, each of a delivery of its own."""
    records = [
        attempt(first + number, first + number, f"sub_{number % 2}", time_ms=time_ms, total_ms=number)
        for number, time_ms in enumerate(times)
    ]
    await store.apply([batch(records, first or None, first + len(records))], now)


async def test_figures_are_the_same_before_and_after_counts_are_added_up(backend: Backend) -> None:
    store = await backend.store()
    now = MIDNIGHT + 3 * DAY_MS + 2 * HOUR
    await count_at(store, COUNTED_AT, now)
    before = await figures_of(store)
    assert [counted(row, "attempts") for row in before[0]] == [1, 1, 1, 1, 1]
    for later in (now, now, now + HOUR, now + DAY_MS, now + 3 * DAY_MS):
        await store.retain(later)
        assert await figures_of(store) == before
    # The next process finds them so.
    await backend.close(store)
    assert await figures_of(await backend.store()) == before


async def test_what_is_counted_late_is_in_every_figure(backend: Backend) -> None:
    store, plain = await backend.store(), []
    now = MIDNIGHT + 3 * DAY_MS + 2 * HOUR
    await count_at(store, COUNTED_AT, now)
    await store.retain(now)
    await count_at(store, [at + 60_000 for at in COUNTED_AT], now, first=len(COUNTED_AT))
    plain = await figures_of(store)
    await store.retain(now + DAY_MS)
    assert await figures_of(store) == plain
    # All at once, before anything is added up, they come to the same.
    await store.rebuild({})
    assert not any(await figures_of(store))
    await count_at(store, COUNTED_AT, now)
    await count_at(store, [at + 60_000 for at in COUNTED_AT], now, first=len(COUNTED_AT))
    assert await figures_of(store) == plain


async def test_a_day_is_added_up_in_parts_as_its_hours_end(backend: Backend) -> None:
    store = await backend.store()
    told = 0
    for hour in range(0, 50, 7):
        now = MIDNIGHT + hour * HOUR
        await count_at(store, [now + 1, now + 2], now + 10, first=told)
        told += 2
        await store.retain(now + 10)
        found = [await store.counts(CountQuery(0, now + HOUR, step)) for step in (60_000, HOUR, DAY_MS, EVER)]
        assert [sum(counted(row, "attempts") for row in rows) for rows in found] == [told] * 4


@pytest.mark.parametrize("after", [False, True], ids=["before", "behind"])
async def test_a_crash_while_counts_are_added_up_changes_no_figure(backend: Backend, after: bool) -> None:
    store = await backend.store()
    now = MIDNIGHT + 3 * DAY_MS + 2 * HOUR
    await count_at(store, COUNTED_AT, now)
    expected = await figures_of(store)
    crashes = 0
    for statements in range(200):
        backend.fuse.light(statements, after=after)
        try:
            await store.retain(now)
        except (Crash, StoreUnavailable):  # the client says of a connection that is cut what it likes
            assert backend.fuse.burned
            crashes += 1
            await backend.crash(store)
            store = await backend.store()
            assert await figures_of(store) == expected, f"crashed at statement {statements}"
            continue
        backend.fuse.out()
        break
    assert crashes > 5
    await store.retain(now)
    assert await figures_of(store) == expected


async def test_a_retry_of_a_day_that_is_gone_begins_a_row(backend: Backend) -> None:
    store = await backend.store(Retention(DAY_MS, DAY_MS))
    await store.apply([batch([attempt(0, 0, decision="retry")], None, 1)], NOON)
    later = NOON + 5 * DAY_MS
    await store.retain(later)
    await store.apply([batch([attempt(1, 0, attempt=4, time_ms=later)], 1, 2)], later)
    (row,) = await rows_of(store)
    assert (row.created_ms, row.last_attempt) == (later, 4)


async def test_questions_are_answered_while_retention_takes_what_they_ask_for(backend: Backend) -> None:
    store = await backend.store(Retention(3 * DAY_MS, 3 * DAY_MS))
    for day in range(8):
        now = NOON + day * DAY_MS
        await store.apply(
            [
                batch(
                    [attempt(day * 10 + n, day * 10 + n, time_ms=now) for n in range(10)],
                    day * 10 or None,
                    day * 10 + 10,
                )
            ],
            now,
        )

    async def ask() -> None:
        for _ in range(30):
            rows = await rows_of(store, limit=1000)
            await store.counts(CountQuery(0, EVER, DAY_MS))
            assert len(rows) >= 30
            await asyncio.sleep(0)

    asking = [asyncio.get_running_loop().create_task(ask()) for _ in range(3)]
    for day in range(8):
        await store.retain(NOON + day * DAY_MS)
    await asyncio.gather(*asking)
    assert len(await rows_of(store, limit=1000)) == 40


# What subscriptions were.


async def test_versions_of_a_subscription_are_kept_where_they_differ(backend: Backend) -> None:
    store = await backend.store()

    def version(since: int, status: str, document: str = "{}") -> SubscriptionVersion:
        return SubscriptionVersion("sub_a", NOON + since, "acme", status, document)

    await store.note_versions([version(0, "active"), version(1, "active"), version(2, "paused")])
    await store.note_versions([version(3, "paused"), version(4, "active"), version(5, "active", '{"a": 1}')])
    expected = [
        version(0, "active"),
        version(2, "paused"),
        version(4, "active"),
        version(5, "active", '{"a": 1}'),
    ]
    assert list(await store.versions(["sub_a"])) == expected
    assert list(await store.versions(["sub_b"])) == []
    # The last one from before what is kept still says what held then.
    await store.retain(NOON + 4 + 30 * DAY_MS)
    assert list(await store.versions(["sub_a"])) == expected[2:]


async def test_sizes_are_told(backend: Backend) -> None:
    store = await backend.store()
    await store.apply([batch([attempt(0, 0)], None, 1)], NOON)
    sizes = await store.sizes()
    assert sizes.rows >= 0
    assert sizes.size > 0


async def test_subscriptions_are_known_by_their_tenants_those_that_are_gone_too(backend: Backend) -> None:
    store = await backend.store()

    def version(id_: str, tenant: str | None, status: str = "active", since: int = 0) -> SubscriptionVersion:
        return SubscriptionVersion(id_, NOON + since, tenant, status, "{}")

    await store.note_versions(
        [
            version("sub_b", "acme"),
            version("sub_a", "acme"),
            version("sub_a", "acme", DELETED, 1),
            version("sub_c", "acme"),
            version("sub_c", "globex", since=1),
            version("sub_n", None),
            version("Sub_z", "acme", DELETED),
        ]
    )
    assert list(await store.known_subscriptions("acme", 10)) == ["Sub_z", "sub_a", "sub_b", "sub_c"]
    assert list(await store.known_subscriptions("acme", 2)) == ["Sub_z", "sub_a"]
    assert list(await store.known_subscriptions("globex", 10)) == ["sub_c"]
    assert list(await store.known_subscriptions(None, 10)) == ["sub_n"]
    present = await store.present_subscriptions("", 2)
    assert [(each.subscription_id, each.tenant) for each in present] == [
        ("sub_b", "acme"),
        ("sub_c", "globex"),
    ]
    assert [each.subscription_id for each in await store.present_subscriptions("sub_c", 2)] == ["sub_n"]
    assert list(await store.present_subscriptions("sub_n", 2)) == []
    both = await store.versions(["sub_c", "sub_a", "sub_none"])
    assert [(each.subscription_id, each.since_ms - NOON) for each in both] == [
        ("sub_a", 0),
        ("sub_a", 1),
        ("sub_c", 0),
        ("sub_c", 1),
    ]


async def test_what_is_to_be_tried_again_is_told_of_several_subscriptions(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await backend.store()
    later = NOON + DAY_MS
    records = [
        attempt(0, 0, "sub_a", decision="retry", due_ms=later + 5),
        attempt(1, 1, "sub_a", decision="retry", due_ms=later + 3, time_ms=later),
        attempt(2, 2, "sub_a", decision="dead"),
        attempt(3, 3, "sub_a"),
        attempt(4, 4, "sub_b", decision="parked", reason="breaker", v=2),
        attempt(5, 5, "sub_c", decision="retry"),
    ]
    await store.apply([batch(records, None, 6)], later)
    assert dict(await store.awaiting(["sub_a", "sub_b", "sub_c", "sub_d"])) == {
        "sub_a": Awaiting(2, False, NOON, later + 3),
        "sub_b": Awaiting(0, False, None, None),
        "sub_c": Awaiting(1, False, NOON, None),
        "sub_d": Awaiting(0, False, None, None),
    }
    assert dict(await store.awaiting([])) == {}
    for module in (sqlite_store, postgres_store):
        monkeypatch.setattr(module, "AWAITING_LOOKED_AT", 1)
    (newest,) = (await store.awaiting(["sub_a"])).values()
    assert (newest.waiting, newest.at_least) == (1, True)


def groups_of(found: Any) -> list[tuple[Any, ...]]:
    return [
        (each.subscription_id, each.cause, each.pending, each.retrying, each.dead) for each in found.groups
    ]


async def test_what_is_not_delivered_is_grouped_by_subscription_and_cause(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await backend.store()
    later = NOON + DAY_MS
    records = [
        attempt(0, 0, "sub_a", decision="retry", due_ms=later + 5),
        attempt(1, 1, "sub_a", decision="retry", due_ms=later + 3, time_ms=later),
        attempt(2, 2, "sub_a", decision="dead", reason="exhausted", status=503, v=2),
        attempt(3, 3, "sub_a"),
        attempt(4, 4, "sub_a", decision="dropped", reason="cancelled", status=503, v=2),
        attempt(5, 5, "sub_b", decision="parked", reason="breaker", v=2),
        attempt(6, 6, "sub_b", decision="retry", failure="timeout", v=2, tenant="globex"),
        attempt(7, 7, "sub_b", decision="dead", reason="disabled", v=2),
        attempt(8, 8, "sub_b"),
    ]
    await store.apply([batch(records, None, 9)], later)
    everything_ = UndeliveredQuery(0, EVER)
    found = await store.undelivered(everything_)
    assert found.groups[0] == UndeliveredGroup("sub_a", "503", 0, 2, 1, NOON, later, later + 3)
    assert groups_of(found) == [
        ("sub_a", "503", 0, 2, 1),
        ("sub_b", "breaker", 1, 0, 0),
        ("sub_b", "disabled", 0, 0, 1),
        ("sub_b", "timeout", 0, 1, 0),
    ]
    assert not found.at_least
    assert groups_of(await store.undelivered(everything_._replace(tenant="globex"))) == [
        ("sub_b", "timeout", 0, 1, 0)
    ]
    assert groups_of(await store.undelivered(UndeliveredQuery(0, EVER, "acme", "sub_b"))) == [
        ("sub_b", "breaker", 1, 0, 0),
        ("sub_b", "disabled", 0, 0, 1),
    ]
    assert groups_of(await store.undelivered(UndeliveredQuery(later, EVER))) == [("sub_a", "503", 0, 1, 0)]
    assert groups_of(await store.undelivered(UndeliveredQuery(0, 1))) == []
    # Each counts exactly what its cause lists.
    for group in found.groups:
        listed = await rows_of(store, subscription_id=group.subscription_id, cause=group.cause)
        assert len(listed) == group.pending + group.retrying + group.dead
    assert await rows_of(store, cause="200") == []
    dead = await rows_of(store, cause="503", states=[DeliveryState.DEAD])
    assert [row.offset for row in dead] == [2]
    for module in (sqlite_store, postgres_store):
        monkeypatch.setattr(module, "UNDELIVERED_LOOKED_AT", 2)
    newest = await store.undelivered(everything_)
    assert newest.at_least
    assert sum(each.pending + each.retrying + each.dead for each in newest.groups) <= 2


async def test_the_last_success_is_found_among_the_newest_deliveries_and_else_by_its_minute(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await backend.store()
    later = NOON + DAY_MS
    records = [
        attempt(0, 0, "sub_a", time_ms=NOON + 61_001),
        attempt(1, 1, "sub_a", decision="retry", time_ms=NOON + 62_000),
        attempt(2, 2, "sub_b", decision="retry", time_ms=NOON),
        attempt(3, 3, "sub_b", decision="retry", time_ms=NOON + 5),
        # A retry of the oldest.
        attempt(4, 2, "sub_b", time_ms=later + 61_007, attempt=2),
        attempt(5, 5, "sub_c", decision="dead", reason="exhausted", status=503, v=2),
    ]
    await store.apply([batch(records, None, 6)], later)
    ids = ["sub_a", "sub_b", "sub_c", "sub_d"]
    assert dict(await store.last_successes(ids, 0)) == {"sub_a": NOON + 61_001, "sub_b": later + 61_007}
    assert dict(await store.last_successes(ids, NOON + 61_002)) == {"sub_b": later + 61_007}
    assert dict(await store.last_successes([], 0)) == {}
    for module in (sqlite_store, postgres_store):
        monkeypatch.setattr(module, "SUCCESSES_LOOKED_AT", 1)
    assert dict(await store.last_successes(ids, 0)) == {"sub_a": NOON + 60_000, "sub_b": later + 60_000}


async def test_a_success_of_which_no_row_is_kept_is_found_by_its_minute(backend: Backend) -> None:
    store = await backend.store(keep_all=False)
    await store.apply([batch([attempt(0, 0, time_ms=NOON + 61_001)], None, 1)], NOON)
    assert dict(await store.last_successes(["sub_a"], NOON)) == {"sub_a": NOON + 60_000}


async def test_a_log_that_has_lost_its_end_is_read_on_from_there_and_nothing_is_doubled(
    backend: Backend,
) -> None:
    store = await backend.store()
    records = [attempt(at, at) for at in range(5)]
    await store.apply(
        [batch(records, None, 5), batch([], None, 3, partition=EVENTS, events=[event(2)])], NOON
    )
    await store.cut(ATTEMPTS, 3)
    await store.cut(EVENTS, 7)  # it was not so far
    positions = await store.positions()
    assert (positions[ATTEMPTS].next, positions[EVENTS].next) == (3, 3)
    # Others come at these offsets; one of the lost ones is written again.
    again = [attempt(3, 4), attempt(4, 9)]
    await store.apply([batch(again, 3, 5)], NOON)
    assert sorted(row.offset for row in await rows_of(store)) == [0, 1, 2, 3, 4, 9]
    assert (await totals(store))["attempts"] == 6
    assert len((await store.events(EventQuery(0, EVER, 10))).items) == 1
    # Also for the next process.
    await backend.close(store)
    store = await backend.store()
    assert (await store.positions())[ATTEMPTS].next == 5
