"""Deliveries: which there were, and each with its attempts."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import ConfigDict, Field

from dispatcher.api.history_models import (
    Cursor,
    DeliveryReply,
    HistoryReply,
    PageSize,
    QueryTime,
    SourceReply,
    known,
)
from dispatcher.api.models import (
    HostFilter,
    QueryModel,
    ReplyModel,
    SubscriptionFilter,
    TenantFilter,
    TypeFilter,
)
from dispatcher.api.problems import Kind
from dispatcher.api.route import Audience, Call, Reply, Route, RouteAnswer
from dispatcher.control.history import PAGE
from dispatcher.core.text.times import rfc3339
from dispatcher.history.base import DeadRow, DeliveryQuery, DeliveryRow, DeliveryState

_EXAMPLE: Final[dict[str, Any]] = {
    "id": "dlv_3f0c9b1e5d7a42c68e90b1d2",
    "event_id": "evt_19lV",
    "event_type": "invoice.paid",
    "tenant": "acme",
    "subscription_id": "sub_billing",
    "state": "retrying",
    "reason": None,
    "generation": 1,
    "created_at": "2026-01-31T12:00:00.000Z",
    "attempts": 2,
    "last_attempt_at": "2026-01-31T12:00:05.250Z",
    "status": 503,
    "failure": None,
    "duration_ms": 46,
    "next_attempt_at": "2026-01-31T12:05:05.296Z",
    "host": "billing.example",
    "source": {"topic": "events", "partition": 3, "offset": 42},
}


class DeliveryFilters(QueryModel):
    """Which deliveries, and how many. Without `since`, those of the last 24 hours."""

    tenant: TenantFilter | None = None
    subscription: SubscriptionFilter | None = None
    event: (
        Annotated[str, Field(min_length=1, max_length=1024, description="Of events of this id.")] | None
    ) = None
    event_type: TypeFilter | None = None
    state: Literal["pending", "retrying", "dropped", "dead", "delivered", "failed"] | None = None
    status: (
        Annotated[
            str,
            Field(
                pattern=r"^[1-5](xx|[0-9]{2})$",
                description="The last answer's, or its class.",
                examples=["503", "4xx"],
            ),
        ]
        | None
    ) = None
    reason: (
        Annotated[
            str,
            Field(
                min_length=1,
                max_length=64,
                description="Why it ended, or why the last attempt had no answer.",
            ),
        ]
        | None
    ) = None
    host: HostFilter | None = None
    cause: (
        Annotated[
            str,
            Field(
                min_length=1,
                max_length=64,
                description="Why it isn't delivered, of those that wait, are retried or are dead: why the last attempt had no answer, else the"
                " status of its answer, else the reason. As issues count them.",
                examples=["503", "timeout"],
            ),
        ]
        | None
    ) = None
    since: Annotated[QueryTime, Field(description="Begun at this time or later.")] | None = None
    until: Annotated[QueryTime, Field(description="Begun before this time.")] | None = None
    cursor: Cursor | None = None
    limit: PageSize = PAGE


class DeliveryPage(HistoryReply):
    """A page of deliveries, newest first. It may be empty and yet have a `next_cursor`: then there was more to look at."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "deliveries": [_EXAMPLE],
                "next_cursor": None,
                "as_of": "2026-01-31T12:00:06.000Z",
                "gaps": [],
            }
        }
    )

    deliveries: list[DeliveryReply]
    next_cursor: str | None


class DeadLetterReply(ReplyModel):
    """Where the dead letter of a delivery stands."""

    partition: int
    offset: int
    reason: str


class DeliveryAttempts(HistoryReply):
    """A delivery with its attempts."""

    model_config = ConfigDict(
        title="DeliveryDetail",
        json_schema_extra={
            "example": {
                "delivery": _EXAMPLE,
                "attempts": [
                    {
                        "attempt": 1,
                        "time_ms": 1769860800000,
                        "decision": "retry",
                        "queue_ms": 4,
                        "total_ms": 5000,
                        "replica": "dispatcher-0:1",
                        "failure": "timeout",
                        "due_ms": 1769860805000,
                    },
                    {
                        "attempt": 2,
                        "time_ms": 1769860805250,
                        "decision": "retry",
                        "queue_ms": 1,
                        "total_ms": 46,
                        "replica": "dispatcher-0:1",
                        "status": 503,
                        "first_byte_ms": 41,
                        "response": "try again later",
                        "due_ms": 1769861105296,
                    },
                ],
                "dead_letter": None,
                "as_of": "2026-01-31T12:00:06.000Z",
                "gaps": [],
            }
        },
    )

    delivery: DeliveryReply
    attempts: Annotated[
        list[dict[str, Any]],
        Field(
            description="Oldest first, at most 1,000, with the fields of the attempt log (docs/attempts.md)."
        ),
    ]
    dead_letter: DeadLetterReply | None


def delivery_reply(row: DeliveryRow) -> DeliveryReply:
    """A delivery as it is shown."""
    return DeliveryReply(
        id=f"dlv_{row.delivery_id}",
        event_id=row.event_id,
        event_type=row.event_type,
        tenant=row.tenant,
        subscription_id=row.subscription_id,
        state=DeliveryState(row.state).name.lower(),
        reason=row.reason,
        generation=row.generation,
        created_at=rfc3339(row.created_ms),
        attempts=row.attempts,
        last_attempt_at=rfc3339(row.last_ms),
        status=row.status,
        failure=row.failure,
        duration_ms=row.total_ms,
        next_attempt_at=rfc3339(row.due_ms),
        host=row.host,
        source=SourceReply(topic=row.topic, partition=row.partition, offset=row.offset),
    )


def _dead_letter(row: DeadRow | None) -> DeadLetterReply | None:
    return (
        None
        if row is None
        else DeadLetterReply(partition=row.partition, offset=row.offset, reason=row.reason)
    )


def _states(name: str | None) -> list[DeliveryState] | None:
    if name is None:
        return None
    if name == "failed":
        return [DeliveryState.RETRYING, DeliveryState.DEAD, DeliveryState.DROPPED]
    return [DeliveryState[name.upper()]]


def _status(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if text.endswith("xx"):
        return int(text[0]) * 100, int(text[0]) * 100 + 99
    return int(text), int(text)


async def list_deliveries(call: Call) -> Reply:
    query: DeliveryFilters = call.query
    history = call.services.history
    since, until = history.range_of(query.since, query.until)
    asked = DeliveryQuery(
        since,
        until,
        query.limit,
        tenant=query.tenant,
        subscription_id=query.subscription,
        event_id=query.event,
        event_type=query.event_type,
        states=_states(query.state),
        status=_status(query.status),
        reason=query.reason,
        host=query.host,
        cause=query.cause,
    )
    found = await history.deliveries(call.tenant, asked, query.cursor)
    return Reply(
        DeliveryPage(
            deliveries=[delivery_reply(row) for row in found.value],
            next_cursor=found.next_cursor,
            **known(found.as_of_ms, found.gaps),
        )
    )


async def get_delivery(call: Call) -> Reply:
    found = await call.services.history.delivery(call.tenant, call.path["id"])
    return Reply(
        DeliveryAttempts(
            delivery=delivery_reply(found.value.row),
            attempts=[orjson.loads(attempt) for attempt in found.value.attempts],
            dead_letter=_dead_letter(found.value.dead_letter),
            **known(found.as_of_ms, found.gaps),
        )
    )


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        "/v1/deliveries",
        "listDeliveries",
        "deliveries",
        "List deliveries",
        Audience.TENANT,
        "read",
        {200: RouteAnswer("A page of deliveries, newest first.", DeliveryPage)},
        list_deliveries,
        description="`state=failed` is those that are retrying, dead or dropped.",
        query=DeliveryFilters,
        problems=(Kind.HISTORY_OFF,),
        quota="queries",
        exports="deliveries",
    ),
    Route(
        "GET",
        "/v1/deliveries/{id}",
        "getDelivery",
        "deliveries",
        "Show a delivery with its attempts",
        Audience.TENANT,
        "read",
        {200: RouteAnswer("The delivery.", DeliveryAttempts)},
        get_delivery,
        problems=(Kind.NOT_FOUND, Kind.HISTORY_OFF),
        quota="queries",
    ),
)
