"""Events that were published: which there were, and whether one is known by its id."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field

from dispatcher.api.deliveries import delivery_reply
from dispatcher.api.history_models import (
    Cursor,
    DeliveryReply,
    HistoryReply,
    PageSize,
    QueryTime,
    SourceReply,
    known,
)
from dispatcher.api.models import QueryModel, ReplyModel, TenantFilter, Time, TypeFilter
from dispatcher.api.problems import Kind
from dispatcher.api.route import Audience, Call, Reply, Route, RouteAnswer
from dispatcher.control.history import PAGE, FoundEvent
from dispatcher.core.retry.records import Source
from dispatcher.core.text.times import rfc3339
from dispatcher.history.base import EventQuery, EventRow

OCTETS: Final = "application/octet-stream"
_EVENT: Final[dict[str, Any]] = {
    "id": "evt_19lV",
    "type": "invoice.paid",
    "tenant": "acme",
    "published_at": "2026-01-31T12:00:00.000Z",
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "size": 812,
    "source": {"topic": "events", "partition": 3, "offset": 42},
}


class EventFilters(QueryModel):
    """Which events, and how many. Without `since`, those of the last 24 hours."""

    tenant: TenantFilter | None = None
    type: TypeFilter | None = None
    since: Annotated[QueryTime, Field(description="Published at this time or later.")] | None = None
    until: Annotated[QueryTime, Field(description="Published before this time.")] | None = None
    cursor: Cursor | None = None
    limit: PageSize = PAGE


class KnownEvent(ReplyModel):
    """An event that was published."""

    id: str
    type: str
    tenant: str | None
    published_at: Annotated[
        Time | None,
        Field(description="The record's time; null where the history keeps no events (`history.events`)."),
    ]
    sha256: Annotated[
        str | None,
        Field(description="Of the body as it is delivered, in hex; null where the history keeps no events."),
    ]
    size: Annotated[int | None, Field(description="Bytes of the body; likewise.")]
    source: SourceReply


class KnownEventPage(HistoryReply):
    """A page of events, newest first. It may be empty and yet have a `next_cursor`: then there was more to look at."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "events": [_EVENT],
                "next_cursor": None,
                "as_of": "2026-01-31T12:00:06.000Z",
                "gaps": [],
            }
        }
    )

    events: list[KnownEvent]
    next_cursor: str | None


class EventWithDeliveries(KnownEvent):
    """An event and what became of it."""

    deliveries: Annotated[
        list[DeliveryReply], Field(description="Newest first, of all events of the id at most 200.")
    ]


class EventsOfId(HistoryReply):
    """The events of one id, newest first: a producer may use an id twice."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "events": [{**_EVENT, "deliveries": []}],
                "as_of": "2026-01-31T12:00:06.000Z",
                "gaps": [],
            }
        }
    )

    events: list[EventWithDeliveries]


def _fields(row: EventRow) -> dict[str, Any]:
    return {
        "id": row.event_id,
        "type": row.event_type,
        "tenant": row.tenant,
        "published_at": rfc3339(row.time_ms),
        "sha256": row.sha256,
        "size": row.size,
        "source": SourceReply(topic=row.topic, partition=row.partition, offset=row.offset),
    }


def _with_deliveries(found: FoundEvent) -> EventWithDeliveries:
    deliveries = [delivery_reply(row) for row in found.deliveries]
    if found.event is not None:
        return EventWithDeliveries(**_fields(found.event), deliveries=deliveries)
    first = deliveries[0]
    return EventWithDeliveries(
        id=first.event_id,
        type=first.event_type,
        tenant=first.tenant,
        published_at=None,
        sha256=None,
        size=None,
        source=first.source,
        deliveries=deliveries,
    )


async def list_events(call: Call) -> Reply:
    query: EventFilters = call.query
    history = call.services.history
    since, until = history.range_of(query.since, query.until)
    asked = EventQuery(since, until, query.limit, tenant=query.tenant, event_type=query.type)
    found = await history.events(call.tenant, asked, query.cursor)
    return Reply(
        KnownEventPage(
            events=[KnownEvent(**_fields(row)) for row in found.value],
            next_cursor=found.next_cursor,
            **known(found.as_of_ms, found.gaps),
        )
    )


class PayloadPlace(QueryModel):
    """Which of the events of the id."""

    source: (
        Annotated[
            str,
            Field(
                pattern=r"^[A-Za-z0-9._-]{1,249}-[0-9]{1,9}-[0-9]{1,18}$",
                description="Topic, partition and offset of the one that is meant, where an id was used twice; else the newest.",
                examples=["events-3-42"],
            ),
        ]
        | None
    ) = None


async def get_payload(call: Call) -> Reply:
    query: PayloadPlace = call.query
    source = None
    if query.source is not None:
        topic, partition, offset = query.source.rsplit("-", 2)
        source = Source(topic, int(partition), int(offset))
    secrets = "secrets" in call.caller.capabilities
    found = await call.services.payloads.payload(call.tenant, call.path["id"], source, secrets=secrets)
    at = found.source
    headers = {
        # Somebody else wrote it, and a browser that is led here must not run it.
        "Content-Disposition": "attachment",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "X-Content-Type-Options": "nosniff",
        "X-Event-Source": f"{at.topic}-{at.partition}-{at.offset}",
    }
    if found.masked:
        headers["X-Payload-Masked"] = "true"
    return Reply(found.body, headers=headers, content_type=found.content_type or OCTETS)


async def get_event(call: Call) -> Reply:
    found = await call.services.history.event(call.tenant, call.path["id"])
    events = [_with_deliveries(each) for each in found.value]
    return Reply(EventsOfId(events=events, **known(found.as_of_ms, found.gaps)))


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        "/v1/events",
        "listEvents",
        "events",
        "List events that were published",
        Audience.TENANT,
        "read",
        {200: RouteAnswer("A page of events, newest first.", KnownEventPage)},
        list_events,
        query=EventFilters,
        problems=(Kind.HISTORY_OFF,),
        quota="queries",
        exports="events",
    ),
    Route(
        "GET",
        "/v1/events/{id}",
        "getEvent",
        "events",
        "Verify an event by its id",
        Audience.TENANT,
        "read",
        {
            200: RouteAnswer(
                "The events of that id, with the SHA-256 of their bodies and their deliveries.", EventsOfId
            )
        },
        get_event,
        description="Tells a receiver whether this installation has published an event: compare type and SHA-256 with what came. A tenant's key"
        " sees its own events; others are not found.",
        problems=(Kind.NOT_FOUND, Kind.HISTORY_OFF),
        quota="queries",
    ),
    Route(
        "GET",
        "/v1/events/{id}/payload",
        "getEventPayload",
        "events",
        "Read an event's body",
        Audience.TENANT,
        "read",
        {
            200: RouteAnswer(
                "The bytes as they were published.", headers=("X-Event-Source", "X-Payload-Masked"), raw=True
            )
        },
        get_payload,
        description="With the content type with which the event is delivered; `application/octet-stream` where it has none. The body is read"
        " from the broker. 410 where it isn't there any more: the answer says when retention took it. Fields that `payload.mask` names are"
        ' `"***"` for callers without the capability `secrets`; then `X-Payload-Masked` says so.',
        query=PayloadPlace,
        problems=(Kind.NOT_FOUND, Kind.HISTORY_OFF, Kind.GONE),
        quota="queries",
    ),
)
