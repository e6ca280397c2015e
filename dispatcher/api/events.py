"""Publishing events over the API."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field

from dispatcher.api.models import (
    FieldError,
    ReplyModel,
    RequestModel,
    Tenant,
    TypeName,
)
from dispatcher.api.problems import Kind
from dispatcher.api.route import NDJSON, Audience, Body, Call, Reply, Route, RouteAnswer
from dispatcher.control.publishing import MAX_BATCH, Published as PublishedEvent
from dispatcher.core.event.decode import MAX_ID


# --- events ---------------------------------------------------------------------------------------------------------
class EventRequest(RequestModel):
    """An event to publish."""

    model_config = ConfigDict(
        title="Event",
        json_schema_extra={"example": {"type": "invoice.paid", "id": "evt_4711", "data": {"amount": 4200}}},
    )

    type: TypeName
    id: (
        Annotated[
            str,
            Field(
                pattern=r"^[^\u0000-\u001f\u007f-\u009f]+$",
                min_length=1,
                max_length=MAX_ID,
                description="The same id twice is delivered once, within `api.publish_window`. Made here if left out.",
            ),
        ]
        | None
    ) = None
    tenant: (
        Annotated[Tenant, Field(description="Whose event it is; a tenant's key publishes its own.")] | None
    ) = None
    created: (
        Annotated[
            int | float,
            # In words of JSON Schema: pydantic writes the bounds of a union in its own. `publishing.py` checks them.
            Field(
                json_schema_extra={"minimum": 0, "exclusiveMaximum": 253_402_300_800},
                description="Unix seconds.",
            ),
        ]
        | None
    ) = None
    timestamp: (
        Annotated[
            str,
            Field(
                min_length=1,
                max_length=64,
                description="The same in RFC 3339.",
            ),
        ]
        | None
    ) = None
    data: Any = None


class PublishedReply(ReplyModel):
    """One event that the broker has acknowledged."""

    model_config = ConfigDict(title="Published")

    id: str
    duplicate: Annotated[bool, Field(description="It was there already: not published again.")]
    warnings: Annotated[list[FieldError], Field(description="Where it differs from its type's schema.")]


class PublishedList(ReplyModel):
    """What became of each event, in the order they were sent."""

    events: list[PublishedReply]


def published_reply(events: list[PublishedEvent]) -> PublishedList:
    """What became of each event."""
    return PublishedList(
        events=[
            PublishedReply(
                id=event.id,
                duplicate=event.duplicate,
                warnings=[FieldError(field=flaw.field, message=flaw.message) for flaw in event.warnings],
            )
            for event in events
        ]
    )


# --- events
async def publish_events(call: Call) -> Reply:
    batch = isinstance(call.body, list)
    events = call.body if batch else [call.body]
    # A customer's trace is not the provider's, nor may it decide what the provider samples.
    trace = call.trace if call.tenant is None else ()
    published = await call.services.publisher.publish(events, tenant=call.tenant, batch=batch, trace=trace)
    return Reply(published_reply(published), 202)


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "POST",
        "/v1/events",
        "publishEvents",
        "events",
        "Publish events",
        Audience.TENANT,
        "publish",
        {202: RouteAnswer("The broker has acknowledged all of them.", PublishedList)},
        publish_events,
        description=f"One event, a list of at most {MAX_BATCH:,}, or as many lines of NDJSON. All are written, or none where any "
        f"is wrong. An `id` (up to {MAX_ID} characters) makes it safe to send an event again.",
        body=Body(EventRequest, ("application/json", NDJSON), many=MAX_BATCH),
        problems=(Kind.OVERLOADED,),
        traced=True,
        quota="events_per_second",
    ),
)
