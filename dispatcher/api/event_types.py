"""The catalogue of event types over the API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field

from dispatcher.api.models import (
    ReplyModel,
    RequestModel,
    Time,
)
from dispatcher.api.problems import Kind, Problem
from dispatcher.api.route import Audience, Body, Call, Reply, Route, RouteAnswer, etag
from dispatcher.control.catalogue import EventTypeView
from dispatcher.control.errors import NotFound
from dispatcher.core.text.times import rfc3339


# --- event types ----------------------------------------------------------------------------------------------------
class EventTypePut(RequestModel):
    """An entry of the catalogue."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "description": "An invoice was paid.",
                "schema": {"type": "object", "properties": {"amount": {"type": "integer"}}},
                "example": {"amount": 4200},
            }
        }
    )

    description: Annotated[str, Field(max_length=10_000)] | None = None
    schema_: Annotated[
        dict[str, Any] | bool | None,
        Field(alias="schema", description="JSON Schema (2020-12) of the payload; no references elsewhere."),
    ] = None
    example: Any = None
    deprecated: bool | None = None


class EventTypeReply(ReplyModel):
    """An event type: its documentation, schema and example."""

    model_config = ConfigDict(title="EventType")

    name: str
    description: str
    schema_: Annotated[dict[str, Any] | bool | None, Field(alias="schema")]
    example: Any
    deprecated: bool
    version: int
    updated_at: Time | None


class EventTypeList(ReplyModel):
    """The catalogue, by name."""

    event_types: list[EventTypeReply]


def event_type_reply(view: EventTypeView) -> EventTypeReply:
    """An entry of the catalogue."""
    return EventTypeReply(
        name=view.type.name,
        description=view.type.description,
        schema_=view.type.schema,
        example=view.type.example,
        deprecated=view.type.deprecated,
        version=view.version,
        updated_at=rfc3339(view.updated_ms),
    )


# --- event types
async def list_event_types(call: Call) -> Reply:
    return Reply(call.services.catalogue.written(_event_types))


def _event_types(views: Sequence[EventTypeView]) -> bytes:
    listed = EventTypeList(event_types=[event_type_reply(view) for view in views])
    return listed.model_dump_json(by_alias=True).encode()


async def get_event_type(call: Call) -> Reply:
    view = call.services.catalogue.get(call.path["name"])
    return Reply(event_type_reply(view), headers=etag(view.version))


async def put_event_type(call: Call) -> Reply:
    name, catalogue = call.path["name"], call.services.catalogue
    if_match = None
    if call.if_match is not None:
        try:
            current = catalogue.get(name).version
        except NotFound:
            raise Problem(
                Kind.VERSION_MISMATCH, f"If-Match is {call.if_match}, and there is no {name}"
            ) from None
        if_match = call.if_match_version(current)
    view, new = await catalogue.put(name, _given(call.body), if_match=if_match, only_new=call.only_new)
    call.audit("event-type.put", name, new=new, fields=sorted(call.body))
    return Reply(event_type_reply(view), 201 if new else 200, etag(view.version))


async def delete_event_type(call: Call) -> Reply:
    name, catalogue = call.path["name"], call.services.catalogue
    await catalogue.delete(name, if_match=call.if_match_version(catalogue.get(name).version))
    call.audit("event-type.delete", name)
    return Reply(status=204)


def _given(document: Mapping[str, Any]) -> dict[str, Any]:
    # An example may be null.
    return {name: value for name, value in document.items() if value is not None or name == "example"}


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        "/v1/event-types",
        "listEventTypes",
        "event types",
        "What may be subscribed to",
        Audience.PUBLIC,
        None,
        {200: RouteAnswer("The catalogue, by name.", EventTypeList)},
        list_event_types,
    ),
    Route(
        "GET",
        "/v1/event-types/{name}",
        "getEventType",
        "event types",
        "Show an event type",
        Audience.PUBLIC,
        None,
        {200: RouteAnswer("The event type.", EventTypeReply, ("ETag",))},
        get_event_type,
        problems=(Kind.NOT_FOUND,),
    ),
    Route(
        "PUT",
        "/v1/event-types/{name}",
        "putEventType",
        "event types",
        "Document an event type",
        Audience.OPERATOR,
        None,
        {
            200: RouteAnswer("It was there, and is replaced.", EventTypeReply, ("ETag",)),
            201: RouteAnswer("It is new.", EventTypeReply, ("ETag",)),
        },
        put_event_type,
        body=Body(EventTypePut),
        problems=(Kind.VERSION_MISMATCH,),
        if_match=True,
        only_new=True,
    ),
    Route(
        "DELETE",
        "/v1/event-types/{name}",
        "deleteEventType",
        "event types",
        "Forget an event type",
        Audience.OPERATOR,
        None,
        {204: RouteAnswer("It is gone; subscriptions and events of the type stay as they are.")},
        delete_event_type,
        problems=(Kind.NOT_FOUND, Kind.VERSION_MISMATCH),
        if_match=True,
    ),
)
