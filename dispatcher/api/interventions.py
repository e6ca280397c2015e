"""What a caller may command about deliveries: send one again, end one, send an event to a named subscription, end all that a subscription is owed."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field

from dispatcher.api.history_models import SourceReply
from dispatcher.api.models import ReplyModel, RequestModel, Time
from dispatcher.api.problems import Kind
from dispatcher.api.route import Audience, Body, Call, Reply, Route, RouteAnswer
from dispatcher.core.retry.interventions import Intervention
from dispatcher.core.text.times import rfc3339

_ASKED: Final[dict[str, Any]] = {
    "id": "int_3f0c9b1e5d7a42c68e90b1d2",
    "subscription_id": "sub_billing",
    "requested_at": "2026-01-31T12:00:00.000Z",
    "requested_by": "operator ops",
}


class SourceWanted(RequestModel):
    """Where an event stands, as `GET /v1/events/{id}` shows it."""

    topic: Annotated[str, Field(min_length=1, max_length=249)]
    partition: Annotated[int, Field(ge=0, le=2**31 - 1)]
    offset: Annotated[int, Field(ge=0, le=2**53)]


class DeliverTo(RequestModel):
    """Which subscription gets the event."""

    model_config = ConfigDict(json_schema_extra={"example": {"subscription": "sub_billing"}})

    subscription: Annotated[
        str,
        Field(min_length=1, max_length=64, description="Its id. Its patterns don't matter, its tenant does."),
    ]
    source: Annotated[
        SourceWanted | None,
        Field(description="Which event, where several have this id: a producer may use an id twice."),
    ] = None


class DeliveryCommanded(ReplyModel):
    """A command about one delivery that is in force. What comes of it, `GET /v1/deliveries/{id}` says."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                **_ASKED,
                "action": "retry",
                "delivery_id": "dlv_3f0c9b1e5d7a42c68e90b1d2",
                "generation": 2,
                "event_id": "evt_19lV",
                "event_type": "invoice.paid",
                "tenant": "acme",
                "source": {"topic": "events", "partition": 3, "offset": 42},
            }
        }
    )

    id: str
    action: Literal["retry", "cancel", "deliver"]
    delivery_id: str
    generation: Annotated[
        int,
        Field(
            description="Records of older generations are not sent any more. A retry is of this one, or a later one where another process"
            " had to begin it anew; what a cancel ends is of the one before."
        ),
    ]
    subscription_id: str
    event_id: str
    event_type: str
    tenant: str | None
    source: SourceReply
    requested_at: Time | None
    requested_by: str


class SubscriptionPurged(ReplyModel):
    """A purge that is in force."""

    model_config = ConfigDict(json_schema_extra={"example": {**_ASKED, "action": "purge"}})

    id: str
    action: Literal["purge"]
    subscription_id: str
    requested_at: Time | None
    requested_by: str


def commanded(call: Call, command: Intervention) -> Reply:
    """The answer to a command about one delivery, with its line for the audit."""
    call.audit(f"delivery.{command.action}", command.key, intervention=command.id)
    return Reply(
        DeliveryCommanded(
            id=command.id,
            action=command.action,
            delivery_id=command.key,
            generation=command.generation,
            subscription_id=command.subscription_id,
            event_id=command.event_id,
            event_type=command.event_type,
            tenant=command.tenant,
            source=SourceReply(topic=command.topic, partition=command.partition, offset=command.offset),
            requested_at=rfc3339(command.at_ms),
            requested_by=command.by,
        ),
        status=202,
    )


async def retry_delivery(call: Call) -> Reply:
    return commanded(call, await call.services.interventions.retry(call.caller, call.path["id"]))


async def cancel_delivery(call: Call) -> Reply:
    return commanded(call, await call.services.interventions.cancel(call.caller, call.path["id"]))


async def deliver_event(call: Call) -> Reply:
    wanted: DeliverTo = call.model
    source = wanted.source
    where = None if source is None else (source.topic, source.partition, source.offset)
    return commanded(
        call,
        await call.services.interventions.deliver(call.caller, call.path["id"], wanted.subscription, where),
    )


async def purge_subscription(call: Call) -> Reply:
    command = await call.services.interventions.purge(call.caller, call.path["id"])
    call.audit("subscription.purge", command.subscription_id, intervention=command.id)
    return Reply(
        SubscriptionPurged(
            id=command.id,
            action="purge",
            subscription_id=command.subscription_id,
            requested_at=rfc3339(command.at_ms),
            requested_by=command.by,
        ),
        status=202,
    )


SENDS: Final = (Kind.NOT_FOUND, Kind.WRONG_STATE, Kind.GONE, Kind.OVERLOADED)
"""What can be wrong with a command to send something."""

_GENERATION: Final = (
    " It begins the delivery's next generation: what waits of an older one is settled without being sent. Only an attempt that is under way when"
    " the command is read may arrive besides."
)

ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "POST",
        "/v1/deliveries/{id}/retry",
        "retryDelivery",
        "deliveries",
        "Send a delivery again now",
        Audience.TENANT,
        "resend",
        {202: RouteAnswer("The command is in force.", DeliveryCommanded)},
        retry_delivery,
        description="Whatever its state, ahead of its schedule, which begins anew. The event is read where it was published."
        + _GENERATION,
        problems=(*SENDS, Kind.HISTORY_OFF),
    ),
    Route(
        "POST",
        "/v1/deliveries/{id}/cancel",
        "cancelDelivery",
        "deliveries",
        "End a delivery that is pending or retrying",
        Audience.TENANT,
        "resend",
        {202: RouteAnswer("The command is in force.", DeliveryCommanded)},
        cancel_delivery,
        description="It ends as `dropped`, reason `cancelled`, and is not sent (any more). An attempt that is under way may arrive;"
        " then the delivery is `delivered`.",
        problems=(Kind.NOT_FOUND, Kind.WRONG_STATE, Kind.OVERLOADED, Kind.HISTORY_OFF),
    ),
    Route(
        "POST",
        "/v1/events/{id}/deliveries",
        "deliverEvent",
        "events",
        "Deliver an event to a named subscription",
        Audience.TENANT,
        "resend",
        {202: RouteAnswer("The command is in force.", DeliveryCommanded)},
        deliver_event,
        description="Also to one that it did not match, or that was made later. The event's tenant must be the subscription's."
        + _GENERATION,
        body=Body(DeliverTo),
        problems=(*SENDS, Kind.HISTORY_OFF),
    ),
    Route(
        "POST",
        "/v1/subscriptions/{id}/purge",
        "purgeSubscription",
        "subscriptions",
        "End all that a subscription is owed",
        Audience.TENANT,
        "write",
        {202: RouteAnswer("The purge is in force.", SubscriptionPurged)},
        purge_subscription,
        description="Of every event that stands in the event topics now, of retries and deliveries that were asked for, and of replays that have begun:"
        " each ends as `dropped`, reason `purged`, when its turn comes, and is not sent. Attempts that are under way may arrive. It changes nothing"
        " about what is published later.",
        problems=(Kind.NOT_FOUND, Kind.OVERLOADED),
    ),
)
