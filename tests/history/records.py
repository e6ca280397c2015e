"""Records of the logs, as stores are given them."""

from __future__ import annotations

import json
from typing import Any

from dispatcher.core.retry.records import delivery_id
from dispatcher.history.base import DeadRow, DeliveryRow, DeliveryState, EventRow, Gap, LogBatch, LogPartition
from dispatcher.history.logged import DAY_MS, LoggedAttempt, read_attempt

NOON = 20_400 * DAY_MS + DAY_MS // 2
"""Of a day in 2025, in Unix ms: the present of these tests."""

ATTEMPTS = LogPartition("dispatcher.attempts", "id-1", 0)
OTHER = LogPartition("dispatcher.attempts", "id-1", 1)
EVENTS = LogPartition("events", "id-2", 0)
DEAD = LogPartition("dispatcher.dead", "id-3", 0)


def value(
    offset: int = 0,
    subscription: str = "sub_a",
    *,
    time_ms: int = NOON,
    attempt: int = 1,
    decision: str = "delivered",
    **more: Any,
) -> bytes:
    """A record's value, of the delivery of the event at that offset."""
    topic, partition = more.pop("topic", "events"), more.pop("partition", 0)
    status = (
        {} if "failure" in more or "reason" in more else {"status": 200 if decision == "delivered" else 503}
    )
    record = {
        "delivery_id": delivery_id(topic, partition, offset, subscription),
        "event_id": f"evt_{offset}",
        "event_type": "invoice.paid",
        "tenant": "acme",
        "subscription_id": subscription,
        "attempt": attempt,
        "time_ms": time_ms,
        "decision": decision,
        "queue_ms": 3,
        "total_ms": 40,
        "topic": topic,
        "partition": partition,
        "offset": offset,
        "replica": "dispatcher-0:1",
        **status,
    }
    return json.dumps(record | more).encode()


def attempt(at: int, offset: int = 0, subscription: str = "sub_a", **more: Any) -> LoggedAttempt:
    """The record at the log's offset `at`."""
    return read_attempt(value(offset, subscription, **more), at)


def batch(
    records: list[LoggedAttempt],
    first: int | None,
    next_: int,
    *,
    partition: LogPartition = ATTEMPTS,
    events: list[EventRow] | None = None,
    dead: list[DeadRow] | None = None,
    time_ms: int = NOON,
    gap: Gap | None = None,
) -> LogBatch:
    return LogBatch(partition, first, next_, time_ms, records, events or [], dead or [], gap)


def event(offset: int, *, event_id: str | None = None, **more: Any) -> EventRow:
    """The event at the offset of `EVENTS`."""
    row = EventRow(
        "events",
        0,
        offset,
        NOON,
        event_id or f"evt_{offset}",
        "invoice.paid",
        "acme",
        f"{offset:064x}",
        100 + offset,
    )
    return row._replace(**more)


def dead_letter(at: int, offset: int, subscription: str | None = "sub_a", **more: Any) -> DeadRow:
    """The dead letter at the offset `at` of `DEAD`, of the event at `offset`."""
    id_ = None if subscription is None else delivery_id("events", 0, offset, subscription)[4:]
    row = DeadRow(
        0,
        at,
        NOON,
        "exhausted",
        id_,
        subscription,
        f"evt_{offset}",
        "invoice.paid",
        "acme",
        "events",
        0,
        offset,
    )
    return row._replace(**more)


def delivery_row(**more: Any) -> DeliveryRow:
    """The delivery of the event at offset 7, delivered at the first attempt."""
    row = DeliveryRow(
        delivery_id="0" * 24,
        created_ms=NOON,
        event_id="evt_7",
        event_type="invoice.paid",
        tenant="acme",
        subscription_id="sub_a",
        topic="events",
        partition=0,
        offset=7,
        generation=1,
        state=DeliveryState.DELIVERED,
        reason=None,
        attempts=1,
        last_ms=NOON,
        last_attempt=1,
        status=200,
        failure=None,
        total_ms=40,
        due_ms=None,
        host="a.example",
        first="{}",
    )
    return row._replace(**more)
