"""What answers from the history have in common."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from dispatcher.api.models import ReplyModel, Time, whole_number
from dispatcher.control.history import MAX_PAGE
from dispatcher.core.text.times import rfc3339
from dispatcher.history.base import DeliveryState, Gap

STATES: Final = tuple(state.name.lower() for state in DeliveryState)


def _milliseconds(value: Any) -> Any:
    """Unix milliseconds of a time in RFC 3339."""
    if not isinstance(value, str) or len(value) > 64:
        raise ValueError("must be a time in RFC 3339, such as 2026-01-31T12:00:00Z")
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise ValueError("must be a time in RFC 3339, such as 2026-01-31T12:00:00Z")
    try:
        return max(0, round(found.astimezone(UTC).timestamp() * 1000))
    except OverflowError:
        raise ValueError("must be a time between the years 1970 and 9999") from None


QueryTime = Annotated[
    int,
    BeforeValidator(_milliseconds),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-01-31T12:00:00Z"]}),
]
PageSize = Annotated[int, Field(ge=1, le=MAX_PAGE), BeforeValidator(whole_number)]
Cursor = Annotated[str, Field(min_length=1, max_length=4096, description="`next_cursor` of the page before.")]


class GapReply(ReplyModel):
    """A stretch of a log that the history doesn't know: what it said is missing."""

    topic: str
    partition: int
    since: Time | None
    until: Time | None
    records: Annotated[int, Field(description="How many at the most.")]
    reason: Annotated[
        str,
        Field(
            description="`behind`, `before` (older than the installation's history), `retention`, `unreadable`."
        ),
    ]


class HistoryReply(ReplyModel):
    """What is to be known of an answer from the history."""

    as_of: Annotated[
        Time | None,
        Field(description="What happened before is in it, but for `gaps`; null: nothing is known yet."),
    ]
    gaps: Annotated[list[GapReply], Field(description="What the history doesn't know of this time.")]


class SourceReply(ReplyModel):
    """Where an event stands."""

    topic: str
    partition: int
    offset: int


class DeliveryReply(ReplyModel):
    """A delivery as it stands."""

    id: Annotated[str, Field(examples=["dlv_3f0c9b1e5d7a42c68e90b1d2"])]
    event_id: str
    event_type: str
    tenant: str | None
    subscription_id: str
    state: Literal["pending", "retrying", "dropped", "dead", "delivered"]
    reason: Annotated[str | None, Field(description="Why it is dead, dropped or parked.")]
    generation: Annotated[int, Field(description="A manual retry or a replay begins the next one.")]
    created_at: Annotated[
        Time | None, Field(description="When its first attempt began, or what else is known first.")
    ]
    attempts: int
    last_attempt_at: Time | None
    status: Annotated[int | None, Field(description="Of the last answer; null where there was none.")]
    failure: Annotated[str | None, Field(description="Why the last attempt had no answer.")]
    duration_ms: Annotated[int, Field(description="Of the last attempt.")]
    next_attempt_at: Time | None
    host: str | None
    source: SourceReply


def known(as_of_ms: int, gaps: Sequence[Gap]) -> dict[str, Any]:
    """The fields of a `HistoryReply`."""
    return {
        "as_of": rfc3339(as_of_ms) if as_of_ms else None,
        "gaps": [
            GapReply(
                topic=gap.partition.topic,
                partition=gap.partition.partition,
                since=rfc3339(gap.since_ms),
                until=rfc3339(gap.until_ms),
                records=gap.next - gap.first,
                reason=gap.reason,
            )
            for gap in gaps
        ],
    }
