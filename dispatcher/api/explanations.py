"""Why an event was delivered to a subscription, or not."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field

from dispatcher.api.history_models import HistoryReply, SourceReply, known
from dispatcher.api.models import QueryModel, ReplyModel, Time
from dispatcher.api.problems import Kind
from dispatcher.api.route import Audience, Call, Reply, Route, RouteAnswer
from dispatcher.control.explaining import ExplainedEvent
from dispatcher.core.text.times import rfc3339

_EXAMPLE: Final[dict[str, Any]] = {
    "id": "evt_19lV",
    "type": "invoice.paid",
    "tenant": "acme",
    "published_at": "2026-01-31T12:00:00.000Z",
    "source": {"topic": "events", "partition": 3, "offset": 42},
    "explanations": [
        {
            "subscription_id": "sub_billing",
            "outcome": "delivered",
            "sentence": "It was delivered to sub_billing at 2026-01-31T12:00:00.046Z: attempt 1 was answered with status 200.",
            "delivery_id": "dlv_3f0c9b1e5d7a42c68e90b1d2",
        },
        {
            "subscription_id": "sub_orders",
            "outcome": "no_match_type",
            "sentence": "It was not owed to sub_orders, which wanted order.* when the event was published: the type invoice.paid is not"
            " among that.",
            "delivery_id": None,
        },
    ],
    "cut": False,
}


class ExplainFilters(QueryModel):
    """For which subscription."""

    subscription: (
        Annotated[
            str,
            Field(
                min_length=1,
                max_length=64,
                description="For this subscription; else for all of the tenant's.",
            ),
        ]
        | None
    ) = None


class ExplanationReply(ReplyModel):
    """What became of the event for one subscription."""

    subscription_id: str
    outcome: Annotated[
        Literal[
            "delivered",
            "retrying",
            "pending",
            "dead",
            "dropped",
            "no_match_type",
            "no_match_tenant",
            "made_later",
            "deleted",
            "paused",
            "pending_validation",
            "disabled",
            "unknown",
        ],
        Field(
            description="`unknown`: the history doesn't know, and the sentence says why. Of the words after `dropped`, each is a reason for"
            " which the event was not owed to the subscription."
        ),
    ]
    sentence: Annotated[str, Field(description="For people; it may be sent to the subscription's owner.")]
    delivery_id: str | None


class ExplainedReply(ReplyModel):
    """An event, and what became of it."""

    model_config = ConfigDict(title="ExplainedEvent")

    id: str
    type: str
    tenant: str | None
    published_at: Annotated[
        Time | None,
        Field(
            description="The record's time; where the history keeps no events, that of the first delivery."
        ),
    ]
    source: SourceReply
    explanations: Annotated[
        list[ExplanationReply],
        Field(
            description="Those with a delivery first, then those that want the type now, then the others; at most 200."
        ),
    ]
    cut: Annotated[
        bool, Field(description="There are more subscriptions than were looked at: ask for one by its id.")
    ]


class ExplanationsReply(HistoryReply):
    """The events of one id, newest first, each explained."""

    model_config = ConfigDict(
        title="Explanations",
        json_schema_extra={
            "example": {"events": [_EXAMPLE], "as_of": "2026-01-31T12:00:06.000Z", "gaps": []}
        },
    )

    events: list[ExplainedReply]


def _explained(event: ExplainedEvent) -> ExplainedReply:
    return ExplainedReply(
        id=event.event_id,
        type=event.event_type,
        tenant=event.tenant,
        published_at=rfc3339(event.time_ms),
        source=SourceReply(**event.source._asdict()),
        explanations=[
            ExplanationReply(
                subscription_id=each.subscription_id,
                outcome=each.explanation.outcome,
                sentence=each.explanation.sentence,
                delivery_id=each.delivery_id,
            )
            for each in event.explanations
        ],
        cut=event.cut,
    )


async def explain_event(call: Call) -> Reply:
    query: ExplainFilters = call.query
    found = await call.services.explanations.explain(call.tenant, call.path["id"], query.subscription)
    return Reply(
        ExplanationsReply(
            events=[_explained(event) for event in found.value], **known(found.as_of_ms, found.gaps)
        )
    )


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        "/v1/events/{id}/explain",
        "explainEvent",
        "events",
        "Why an event was delivered, or not",
        Audience.TENANT,
        "read",
        {200: RouteAnswer("A sentence for each subscription.", ExplanationsReply)},
        explain_event,
        description="For each subscription that the event might have been for: the tenant's, deleted ones too. 404 for an event that was never"
        " published, or is older than what the history keeps.",
        query=ExplainFilters,
        problems=(Kind.NOT_FOUND, Kind.HISTORY_OFF),
        quota="queries",
    ),
)
