"""Bodies, read where the history says that they stand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dispatcher.broker.base import (
    BrokerUnavailable,
    PartitionInfo,
    Record,
    TopicInfo,
    TopicPartition,
    UnreadableBatch,
    UnreadableRecord,
)
from dispatcher.control.errors import Gone, NotFound, Unavailable
from dispatcher.control.history import HistoryReader
from dispatcher.control.payloads import Payload, Payloads
from dispatcher.core.event.payload_mask import PayloadMask
from dispatcher.core.retry.records import Source
from dispatcher.history.base import DeliveryRow, EventRow, HistoryPage
from tests.fakes import MemoryBroker
from tests.history.records import delivery_row

NOW_MS = 1_760_000_000_000
BODY = b'{"id": "evt_1", "type": "invoice.paid", "tenant": "acme", "data": {"n": 1}}'
EVENTS = TopicPartition("events", 3)


def row(offset: int = 0, body: bytes = BODY, **fields: Any) -> EventRow:
    made = EventRow(
        "events",
        3,
        offset,
        NOW_MS,
        "evt_1",
        "invoice.paid",
        "acme",
        hashlib.sha256(body).hexdigest(),
        len(body),
    )
    return made._replace(**fields)


class Store:
    """Knows these events and deliveries of the id."""

    def __init__(self, *events: EventRow, deliveries: Sequence[DeliveryRow] = ()) -> None:
        self.rows = events
        self.deliveries_ = deliveries

    async def events(self, query: Any) -> HistoryPage[EventRow]:
        return HistoryPage([each for each in self.rows if query.tenant in (None, each.tenant)], None)

    async def deliveries(self, query: Any) -> HistoryPage[DeliveryRow]:
        return HistoryPage([each for each in self.deliveries_ if query.tenant in (None, each.tenant)], None)

    async def gaps(self, *_: int) -> list[Any]:
        return []


class Broker(MemoryBroker):
    """With a topic that keeps its records for a week."""

    def __init__(self) -> None:
        super().__init__(EVENTS)
        self.infos = [TopicInfo("events", [PartitionInfo(3, 5, 9)], {"retention.ms": str(7 * 86_400_000)})]
        self.failure: Exception | None = None

    async def topics(
        self, group: str | None = None, *, only: Callable[[str], bool] | None = None
    ) -> Sequence[TopicInfo]:
        return [info for info in self.infos if only is None or only(info.name)]

    async def read(self, partition: TopicPartition, offset: int) -> Record | None:
        if self.failure is not None:
            raise self.failure
        if partition.topic == "events" and offset < self.begins[partition]:
            return None
        return await super().read(partition, offset)


async def read(
    store: Store, broker: Broker, tenant: str | None = "acme", source: Source | None = None
) -> Payload:
    kept: Any = store
    return await Payloads(HistoryReader(kept, None), broker).payload(tenant, "evt_1", source, secrets=True)


@pytest.fixture
def broker() -> Broker:
    made = Broker()
    made.append(BODY)
    return made


async def test_the_bytes_come_as_they_were_published_with_their_type(broker: Broker) -> None:
    found = await read(Store(row()), broker)
    assert found == Payload(BODY, "application/json", Source("events", 3, 0))
    headers = [
        ("type", b"invoice.paid"),
        ("id", b"evt_1"),
        ("tenant", b"acme"),
        ("content-type", b"text/plain"),
    ]
    at = broker.append(b"\xff\0", headers)
    found = await read(Store(row(at, b"\xff\0")), broker)
    assert (found.body, found.content_type) == (b"\xff\0", "text/plain")
    at = broker.append(None, headers[:3])
    found = await read(Store(row(at, b"")), broker)
    assert (found.body, found.content_type) == (b"", None)


async def test_of_two_with_one_id_the_newest_or_the_one_that_is_named(broker: Broker) -> None:
    other = BODY.replace(b"1}}", b"2}}")
    store = Store(row(broker.append(other), other), row())
    assert (await read(store, broker)).body == other
    assert (await read(store, broker, source=Source("events", 3, 0))).body == BODY
    with pytest.raises(NotFound, match="at that place"):
        await read(store, broker, source=Source("events", 2, 0))


async def test_without_rows_of_events_the_deliveries_say_where_it_stands(broker: Broker) -> None:
    delivery = delivery_row(event_id="evt_1", partition=3, offset=0)
    assert (await read(Store(deliveries=[delivery]), broker)).body == BODY
    with pytest.raises(Gone, match="made anew"):
        await read(Store(deliveries=[delivery._replace(event_type="order.made")]), broker)


async def test_anothers_is_not_found(broker: Broker) -> None:
    with pytest.raises(NotFound):
        await read(Store(row()), broker, "globex")
    assert (await read(Store(row()), broker, None)).body == BODY


@pytest.mark.parametrize(
    "record",
    [
        BODY.replace(b"evt_1", b"evt_2"),
        BODY.replace(b"invoice.paid", b"order.made"),
        BODY.replace(b"acme", b"globex"),
        BODY.replace(b'"tenant": "acme", ', b""),
        BODY.replace(b"1}}", b"2}}"),
        b"no event",
    ],
)
async def test_another_record_at_the_old_offset_is_never_shown(broker: Broker, record: bytes) -> None:
    at = broker.append(record)
    with pytest.raises(Gone, match="another record stands where the event was") as caught:
        await read(Store(row(at)), broker)
    assert "globex" not in str(caught.value)


async def test_what_retention_took_is_gone_and_the_answer_says_since_when(broker: Broker) -> None:
    for number in range(9):
        broker.append(BODY, timestamp=NOW_MS + number * 1000)
    broker.begins[EVENTS] = 5
    with pytest.raises(Gone) as caught:
        await read(Store(row()), broker)
    assert str(caught.value) == (
        "the body is gone: events-3 has no offset 0 any more; the topic keeps records for 7d, which were over for this one at"
        " 2025-10-16T08:53:20.000Z; the oldest record there is of 2025-10-09T08:53:24.000Z"
    )


async def test_a_topic_that_is_gone_or_ends_before_it_is_said(broker: Broker) -> None:
    with pytest.raises(Gone, match="deleted and made anew, or cut"):
        await read(Store(row(12)), broker)
    broker.infos.clear()
    with pytest.raises(Gone, match="there is no events-3 any more"):
        await read(Store(row(12)), broker)


async def test_a_record_that_cannot_be_unpacked_is_gone_and_a_broker_that_is_away_is_not(
    broker: Broker,
) -> None:
    broker.failure = UnreadableBatch(0, 3, "a bit is wrong")
    with pytest.raises(Gone, match="a bit is wrong"):
        await read(Store(row()), broker)
    broker.failure = BrokerUnavailable("no answer")
    with pytest.raises(Unavailable, match="no answer"):
        await read(Store(row()), broker)
    broker.failure = None
    broker.log[EVENTS][0] = UnreadableRecord(0, NOW_MS, None, BODY, problem="a length is wrong")
    with pytest.raises(Gone, match="a length is wrong"):
        await read(Store(row()), broker)


async def test_fields_of_the_mask_are_hidden_from_whoever_may_not_see_secrets(broker: Broker) -> None:
    kept: Any = Store(row())
    of = Payloads(HistoryReader(kept, None), broker, PayloadMask(["/data/n"]))
    seen = await of.payload("acme", "evt_1", None, secrets=True)
    assert (seen.body, seen.masked) == (BODY, False)
    hidden = await of.payload("acme", "evt_1", None, secrets=False)
    assert hidden.body == b'{"id":"evt_1","type":"invoice.paid","tenant":"acme","data":{"n":"***"}}'
    assert hidden.masked
    elsewhere = Payloads(HistoryReader(kept, None), broker, PayloadMask(["/data/other"]))
    assert await elsewhere.payload("acme", "evt_1", None, secrets=False) == seen
