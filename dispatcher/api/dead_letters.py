"""Dead letters, straight from their topic."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BeforeValidator, ConfigDict, Field

from dispatcher.api.history_models import Cursor, SourceReply
from dispatcher.api.interventions import SENDS, DeliveryCommanded, commanded
from dispatcher.api.models import QueryModel, ReplyModel, Time, whole_number
from dispatcher.api.problems import Kind
from dispatcher.api.route import Audience, Call, Reply, Route, RouteAnswer
from dispatcher.control.dead_letters import MAX_PAGE, PAGE, FoundDeadLetter
from dispatcher.core.text.times import rfc3339


class DeadLetterFilters(QueryModel):
    """Which dead letters, and how many."""

    partition: (
        Annotated[
            int, Field(ge=0, le=2**31 - 1, description="Of this partition."), BeforeValidator(whole_number)
        ]
        | None
    ) = None
    cursor: Cursor | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE), BeforeValidator(whole_number)] = PAGE


class DeadLetterRecord(ReplyModel):
    """A record of the dead-letter topic, without its body."""

    id: Annotated[str, Field(description="Partition and offset.", examples=["0-42"])]
    partition: int
    offset: int
    written_at: Time | None
    reason: Annotated[
        str | None, Field(description="Why the delivery was given up, or the record could not be read.")
    ]
    detail: Annotated[str | None, Field(description="The same in words, where there are any.")]
    retryable: Annotated[
        bool,
        Field(description="Whether it is a delivery. A record that is no event can only be published again."),
    ]
    delivery_id: str | None
    subscription_id: str | None
    event_id: str | None
    event_type: str | None
    tenant: str | None
    attempts: int | None
    generation: int | None
    last_result: str | None
    source: Annotated[
        SourceReply | None, Field(description="Where the event, or the record that is none, was read.")
    ]
    body_bytes: int


class DeadLetterList(ReplyModel):
    """A page of dead letters, newest first. It may be empty and yet have a `next_cursor`: then there is more to look at."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "dead_letters": [
                    {
                        "id": "0-42",
                        "partition": 0,
                        "offset": 42,
                        "written_at": "2026-01-31T12:00:00.000Z",
                        "reason": "exhausted",
                        "detail": None,
                        "retryable": True,
                        "delivery_id": "dlv_3f0c9b1e5d7a42c68e90b1d2",
                        "subscription_id": "sub_billing",
                        "event_id": "evt_19lV",
                        "event_type": "invoice.paid",
                        "tenant": "acme",
                        "attempts": 9,
                        "generation": 1,
                        "last_result": "status 503",
                        "source": {"topic": "events", "partition": 3, "offset": 42},
                        "body_bytes": 812,
                    }
                ],
                "next_cursor": None,
            }
        }
    )

    dead_letters: list[DeadLetterRecord]
    next_cursor: str | None


def _reply(letter: FoundDeadLetter) -> DeadLetterRecord:
    delivery = letter.delivery
    event = None if delivery is None else delivery.event
    source = letter.source
    return DeadLetterRecord(
        id=f"{letter.partition}-{letter.offset}",
        partition=letter.partition,
        offset=letter.offset,
        written_at=rfc3339(letter.time_ms),
        reason=letter.reason,
        detail=letter.detail,
        retryable=delivery is not None,
        delivery_id=letter.delivery_id,
        subscription_id=None if delivery is None else delivery.subscription_id,
        event_id=None if event is None else event.id,
        event_type=None if event is None else event.type,
        tenant=None if event is None else event.tenant,
        attempts=None if delivery is None else delivery.attempt,
        generation=None if delivery is None else delivery.generation,
        last_result=None if delivery is None else delivery.last_result,
        source=None if source is None else SourceReply(**source._asdict()),
        body_bytes=letter.body_bytes,
    )


async def list_dead_letters(call: Call) -> Reply:
    query: DeadLetterFilters = call.query
    page = await call.services.dead_letters.page(query.partition, query.limit, query.cursor)
    return Reply(
        DeadLetterList(dead_letters=[_reply(letter) for letter in page.items], next_cursor=page.next_cursor)
    )


async def retry_dead_letter(call: Call) -> Reply:
    partition, _, offset = call.path["id"].partition("-")
    return commanded(
        call,
        await call.services.interventions.retry_dead_letter(call.caller, int(partition), int(offset)),
    )


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        "/v1/dead-letters",
        "listDeadLetters",
        "dead letters",
        "List dead letters",
        Audience.OPERATOR,
        None,
        {200: RouteAnswer("A page of dead letters, newest first.", DeadLetterList)},
        list_dead_letters,
        description="Straight from the topic, without any history: also records that could not be read as events.",
        query=DeadLetterFilters,
        problems=(Kind.NOT_FOUND,),
    ),
    Route(
        "POST",
        "/v1/dead-letters/{id}/retry",
        "retryDeadLetter",
        "dead letters",
        "Send a dead letter's delivery again now",
        Audience.OPERATOR,
        None,
        {202: RouteAnswer("The command is in force.", DeliveryCommanded)},
        retry_dead_letter,
        description="The id is the record's partition and offset: `0-42`. Needs no history. The event is read where it was published, or from the dead letter"
        " where retention has taken it there.",
        problems=SENDS,
    ),
)
