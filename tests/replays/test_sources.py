"""What a replay reads, piece by piece, and where it goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.broker.base import StoredRecord, TopicPartition, UnreadableBatch, UnreadableRecord
from dispatcher.core.replay.job import ReplayJob, ReplayRange, ReplayRequest, ReplaySource
from dispatcher.core.replay.selecting import Selector
from dispatcher.core.subscription.index import Index
from dispatcher.history.base import DeliveryQuery, DeliveryRow, DeliveryState, HistoryPage
from dispatcher.replays.sources import HistoryReading, Piece, ReplayReading, history_query, log_reading
from tests.fakes import MemoryBroker, subscription
from tests.history.records import delivery_row
from tests.replays.world import asked

pytestmark = [pytest.mark.looptime]


def selector(job: ReplayJob) -> Selector:
    index = Index([subscription()])
    return Selector(job.request, job.owner, job.id, lambda: index, lambda _source, _sub, known: known + 1)


def broker_with(*counts: int) -> MemoryBroker:
    broker = MemoryBroker()
    for partition, count in enumerate(counts):
        for number in range(count):
            value = b'{"id": "evt_%d_%d", "type": "a.b"}' % (partition, number)
            broker.append(value, partition=TopicPartition("events", partition))
    return broker


def of(*ranges: tuple[int, int, int]) -> ReplayJob:
    made = tuple(ReplayRange("events", partition, start, start, end) for partition, start, end in ranges)
    return replace(asked(), ranges=made)


async def all_of(reading: ReplayReading, limit: int) -> list[Piece]:
    pieces = [await reading.read(limit)]
    while not pieces[-1].exhausted:
        pieces.append(await reading.read(limit))
    return pieces


def ids(pieces: list[Piece]) -> list[str]:
    return [record.event.id for piece in pieces for record in piece.records]


async def test_partitions_have_their_turns_and_each_is_read_in_its_order() -> None:
    job = of((0, 0, 2500), (1, 10, 20))
    pieces = await all_of(log_reading(broker_with(2500, 30), job, selector(job)), 1000)
    assert sorted(ids(pieces)) == sorted(
        [f"evt_0_{number}" for number in range(2500)] + [f"evt_1_{number}" for number in range(10, 20)]
    )
    assert len(pieces[1].records) == 10  # it has not waited for the large one
    assert sum(piece.looked for piece in pieces) == 2510


@pytest.mark.parametrize("limit", [1, 7, 500])
async def test_from_any_checkpoint_on_exactly_the_rest_comes(limit: int) -> None:
    broker = broker_with(60, 25)
    job = of((0, 5, 60), (1, 0, 25))
    whole = await all_of(log_reading(broker, job, selector(job)), limit)
    for number, piece in enumerate(whole):
        assert len(piece.records) <= limit
        again = replace(job, ranges=piece.ranges)
        rest = [] if piece.exhausted else await all_of(log_reading(broker, again, selector(job)), limit)
        assert sorted(ids(rest)) == sorted(ids(whole[number + 1 :]))


async def test_what_retention_took_and_what_is_damaged_is_passed_over() -> None:
    broker = broker_with(100)
    where = TopicPartition("events", 0)
    broker.begins[where] = 10
    broker.damaged[where] = UnreadableBatch(40, 49, "checksum")
    broken = StoredRecord(60, 0, None, b"no JSON")
    broker.log[where][60] = broken
    broker.log[where][61] = UnreadableRecord(61, 0, None, b"", problem="checksum")
    job = of((0, 0, 100))
    pieces = await all_of(log_reading(broker, job, selector(job)), 500)
    left_out = {*range(10), *range(40, 50), 60, 61}
    assert ids(pieces) == [f"evt_0_{number}" for number in range(100) if number not in left_out]
    skipped = [piece.skipped.get("unreadable", 0) for piece in pieces]
    assert sum(skipped) == 3


async def test_a_range_that_ends_beyond_the_log_ends_all_the_same() -> None:
    """Its topic was deleted and made anew, say."""
    job = of((0, 0, 1000))
    pieces = await all_of(log_reading(broker_with(5), job, selector(job)), 500)
    assert len(ids(pieces)) == 5


def row(number: int, **changes: object) -> DeliveryRow:
    dead = {"state": DeliveryState.DEAD, "reason": "exhausted", "status": 503}
    where = {"partition": number % 2, "offset": 100 - number, "generation": 2}
    known = delivery_row(
        delivery_id=f"{number:024x}",
        created_ms=1000 + number,
        event_id=f"evt_{number}",
        event_type="a.b",
        tenant=None,
        subscription_id="sub_1",
        **where,
        **dead,
    )
    return known._replace(**changes)  # type: ignore[arg-type] # its fields


class History:
    """Rows, newest first, a page at a time; some pages are empty and yet not the last."""

    def __init__(self, *rows: DeliveryRow, page: int = 3) -> None:
        self.rows = sorted(rows, key=lambda each: (each.created_ms, each.delivery_id), reverse=True)
        self.page = page
        self.asked: list[DeliveryQuery] = []

    async def deliveries(self, query: DeliveryQuery) -> HistoryPage[DeliveryRow]:
        self.asked.append(query)
        left = [
            each
            for each in self.rows
            if query.after is None or (each.created_ms, each.delivery_id) < query.after
        ]
        looked = left[: self.page]
        found = [each for each in looked if query.states is None or each.state in query.states]
        last = (looked[-1].created_ms, looked[-1].delivery_id) if len(left) > len(looked) else None
        return HistoryPage(found, last)


def asked_history(**more: object) -> ReplayRequest:
    request = asked(ReplaySource.DELIVERIES, since_ms=0, until_ms=5000, states=("dead",)).request
    return replace(request, **more)  # type: ignore[arg-type] # its fields


async def read_history(history: History, request: ReplayRequest, limit: int = 500) -> list[Piece]:
    job = replace(asked(), request=request)
    return await all_of(HistoryReading(history, request, None, selector(job), None), limit)


async def test_the_history_is_read_page_by_page_also_past_empty_ones() -> None:
    delivered = [row(number, state=DeliveryState.DELIVERED) for number in range(10, 20)]
    history = History(*map(row, range(10)), *delivered)
    pieces = await read_history(history, asked_history())
    assert sorted(ids(pieces)) == sorted(f"evt_{number}" for number in range(10))
    assert [record.generation for piece in pieces for record in piece.records] == [3] * 10
    # Within a piece they come in the order of their source.
    for piece in pieces:
        sources = [record.source for record in piece.records]
        assert sources == sorted(sources)


@pytest.mark.parametrize("limit", [1, 2, 500])
async def test_from_any_checkpoint_on_the_history_gives_the_rest(limit: int) -> None:
    history = History(*map(row, range(11)))
    request = asked_history()
    job = replace(asked(), request=request)
    whole = await read_history(history, request, limit)
    for number, piece in enumerate(whole):
        if not piece.exhausted:
            rest = await all_of(HistoryReading(history, request, None, selector(job), piece.cursor), limit)
            assert sorted(ids(rest)) == sorted(ids(whole[number + 1 :]))


@pytest.mark.parametrize(
    ("filters", "sent"),
    [
        ({"status_codes": ("503",)}, [1]),
        ({"status_codes": ("4xx", "503")}, [1, 2]),
        ({"reasons": ("gone", "timeout")}, [2, 3]),
        ({"event_types": ("a.*",)}, [1, 2, 3]),
        ({"event_types": ("a.b", "x")}, [1, 2]),
        ({"tenant": "acme"}, []),
    ],
)
async def test_the_filters_of_deliveries(filters: dict[str, object], sent: list[int]) -> None:
    history = History(
        row(1),
        row(2, status=410, reason="gone"),
        row(3, status=None, failure="timeout", event_type="a.c"),
    )
    pieces = await read_history(history, asked_history(**filters))
    assert sorted(ids(pieces)) == [f"evt_{number}" for number in sent]


def test_what_the_store_can_filter_it_is_asked_for() -> None:
    request = asked_history(
        subscription="sub_1", status_codes=("5xx",), reasons=("gone",), event_types=("a.b",)
    )
    query = history_query(request, "acme")
    assert (query.tenant, query.subscription_id, query.status, query.reason, query.event_type) == (
        "acme",
        "sub_1",
        (500, 599),
        "gone",
        "a.b",
    )
    assert query.states == [DeliveryState.DEAD]
    wide = history_query(asked_history(status_codes=("5xx", "410"), event_types=("a.*",)), None)
    assert (wide.status, wide.event_type) == (None, None)
