"""Replays: sending many deliveries again, as jobs."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field

from dispatcher.api.history_models import Cursor, PageSize, QueryTime
from dispatcher.api.models import (
    Pattern,
    QueryModel,
    RateLimit,
    ReplyModel,
    RequestModel,
    SubscriptionFilter,
    Tenant,
    Time,
)
from dispatcher.api.problems import Kind
from dispatcher.api.route import Audience, Body, Call, Reply, Route, RouteAnswer
from dispatcher.core.replay.job import JobState, ReplayJob, ReplaySource
from dispatcher.core.text.times import rfc3339
from dispatcher.core.text.units import format_rate, parse_rate
from dispatcher.replays.service import PAGE, Planned, ReplayAsked

_Sources = Literal["dead_letters", "events", "deliveries"]
_States = Literal["planned", "running", "paused", "done", "cancelled", "failed"]
_EXAMPLE: Final[dict[str, Any]] = {
    "id": "rpl_019a3f5e8c4017b2e9d1",
    "state": "running",
    "detail": None,
    "source": "events",
    "subscription": "sub_billing",
    "tenant": None,
    "since": "2026-01-31T13:00:00.000Z",
    "until": "2026-01-31T15:00:00.000Z",
    "event_types": ["invoice.*"],
    "states": [],
    "status_codes": [],
    "reasons": [],
    "rate": "200/s",
    "created_at": "2026-01-31T16:00:00.000Z",
    "created_by": "operator ops",
    "started_at": "2026-01-31T16:00:00.500Z",
    "ended_at": None,
    "updated_at": "2026-01-31T16:00:06.000Z",
    "runner": "dispatcher-0:1",
    "progress": {
        "fraction": 0.25,
        "looked": 5000,
        "written": 1200,
        "sent": 1000,
        "behind": 200,
        "skipped": {"not_active": 0},
    },
    "estimate": {"per_second": 199.5, "seconds_left": 19.0, "ends_at": None},
}

StatusCode = Annotated[
    str,
    Field(pattern=r"^[1-5](xx|[0-9]{2})$", description="A status, or its class.", examples=["503", "4xx"]),
]


class ReplayStart(RequestModel):
    """What to send again. What is left out isn't asked for."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "source": "events",
                "subscription": "sub_billing",
                "since": "2026-01-31T13:00:00Z",
                "until": "2026-01-31T15:00:00Z",
                "rate": "200/s",
                "dry_run": True,
            }
        }
    )

    source: Annotated[
        _Sources,
        Field(
            description="dead_letters: what was given up, from the dead-letter topic. events: what the subscriptions want now, from the "
            "event topics, whether or not it was sent before. deliveries: what the history knows, by any of the filters."
        ),
    ]
    subscription: SubscriptionFilter | None = None
    tenant: Annotated[Tenant, Field(description="Events of this tenant.")] | None = None
    since: (
        Annotated[
            QueryTime,
            Field(
                description="Of events: published at this time or later. Of dead letters: written then. Of deliveries: begun then."
            ),
        ]
        | None
    ) = None
    until: Annotated[QueryTime, Field(description="Before this time; now, where it is left out.")] | None = (
        None
    )
    event_types: (
        Annotated[list[Pattern], Field(max_length=256, description="Types that match one of these.")] | None
    ) = None
    states: (
        Annotated[
            list[Literal["dead", "dropped", "delivered"]],
            Field(
                max_length=3,
                description="Of deliveries only: in one of these states; dead and dropped where it is left out. What is pending or retrying "
                "is still on its way.",
            ),
        ]
        | None
    ) = None
    status_codes: (
        Annotated[
            list[StatusCode],
            Field(
                max_length=64,
                description="Of deliveries and dead letters: whose last answer was one of these.",
            ),
        ]
        | None
    ) = None
    reasons: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=64)]],
            Field(
                max_length=64,
                description="Of deliveries and dead letters: that ended, or had no answer, for one of these reasons.",
            ),
        ]
        | None
    ) = None
    rate: (
        Annotated[
            RateLimit,
            Field(description="At most so many deliveries; as fast as it goes where it is left out."),
        ]
        | None
    ) = None
    dry_run: Annotated[bool, Field(description="Only say what would be sent.")] = False


class ReplayPlanReply(ReplyModel):
    """What a replay would send."""

    model_config = ConfigDict(title="ReplayPlan")

    source: _Sources
    records: Annotated[int, Field(description="Records or deliveries that it would look at.")]
    deliveries: Annotated[int, Field(description="Deliveries that it would send.")]
    exact: Annotated[bool, Field(description="Whether each was looked at; else the numbers are estimates.")]
    by_type: Annotated[
        dict[str, int], Field(description="Deliveries by event type; the 100 most frequent ones.")
    ]
    not_active: Annotated[
        int,
        Field(
            description="Deliveries that are left out: their subscriptions are paused, pending or disabled."
        ),
    ]
    since: Time | None
    until: Time | None
    first_at: Annotated[Time | None, Field(description="Time of the first one, as far as was looked at.")]
    last_at: Annotated[Time | None, Field(description="Time of the last one.")]
    seconds: Annotated[float | None, Field(description="How long it takes at the rate; null without a rate.")]
    warnings: Annotated[list[str], Field(description="What is to be known of it, a sentence each.")]


class ReplayProgress(ReplyModel):
    """How far a replay has come."""

    fraction: Annotated[float | None, Field(description="How much of its source is read, 0 to 1.")]
    looked: Annotated[int, Field(description="Records or deliveries that were looked at.")]
    written: Annotated[int, Field(description="Deliveries that were found and are to be sent.")]
    sent: Annotated[
        int,
        Field(
            description="Of these, those that were attempted, or wait for a retry or for their endpoint as any delivery does."
        ),
    ]
    behind: Annotated[int, Field(description="Of these, those that are not sent yet.")]
    skipped: Annotated[
        dict[str, int],
        Field(
            description="What was left out: `not_active`, `deleted` (subscriptions), `unreadable`, `body_lost`."
        ),
    ]


class ReplayEstimate(ReplyModel):
    """How long a replay takes from now on."""

    per_second: Annotated[float | None, Field(description="Deliveries that were sent in a second lately.")]
    seconds_left: float | None
    ends_at: Time | None


class ReplayReply(ReplyModel):
    """A replay."""

    model_config = ConfigDict(title="Replay")

    id: Annotated[str, Field(description="Also in the header `webhook-replay` of its requests.")]
    state: _States
    detail: Annotated[str | None, Field(description="Why it failed or was cancelled.")]
    source: _Sources
    subscription: str | None
    tenant: str | None
    since: Time | None
    until: Time | None
    event_types: list[str]
    states: list[str]
    status_codes: list[str]
    reasons: list[str]
    rate: str | None
    created_at: Time
    created_by: str
    started_at: Time | None
    ended_at: Time | None
    updated_at: Annotated[Time | None, Field(description="When its progress was written down last.")]
    runner: Annotated[str | None, Field(description="The replica that runs it.")]
    progress: ReplayProgress
    estimate: ReplayEstimate


class ReplayShown(ReplyModel):
    """A replay, or what one would send."""

    model_config = ConfigDict(json_schema_extra={"example": {"replay": _EXAMPLE, "plan": None}})

    replay: ReplayReply | None = None
    plan: ReplayPlanReply | None = None


class ReplayPage(ReplyModel):
    """A page of replays, newest first."""

    model_config = ConfigDict(json_schema_extra={"example": {"replays": [_EXAMPLE], "next_cursor": None}})

    replays: list[ReplayReply]
    next_cursor: str | None


class ReplayFilters(QueryModel):
    """Which replays, and how many."""

    state: _States | None = None
    subscription: SubscriptionFilter | None = None
    limit: PageSize = PAGE
    cursor: Cursor | None = None


def replay_reply(job: ReplayJob) -> ReplayReply:
    """A job as it is shown."""
    request = job.request
    left = job.seconds_left()
    return ReplayReply(
        id=job.id,
        state=job.state.value,
        detail=job.detail,
        source=request.source.value,
        subscription=request.subscription,
        tenant=request.tenant,
        since=rfc3339(request.since_ms),
        until=rfc3339(request.until_ms),
        event_types=list(request.event_types),
        states=list(request.states),
        status_codes=list(request.status_codes),
        reasons=list(request.reasons),
        rate=None if request.rate is None else format_rate(request.rate),
        created_at=rfc3339(job.created_ms) or "",
        created_by=job.created_by,
        started_at=rfc3339(job.started_ms),
        ended_at=rfc3339(job.ended_ms),
        updated_at=rfc3339(job.updated_ms),
        runner=job.runner,
        progress=ReplayProgress(
            fraction=None if job.fraction is None else round(job.fraction, 4),
            looked=job.looked,
            written=job.written,
            sent=job.sent,
            behind=job.behind,
            skipped=dict(job.skipped),
        ),
        estimate=ReplayEstimate(
            per_second=None if job.per_second is None else round(job.per_second, 1),
            seconds_left=None if left is None else round(left, 1),
            ends_at=None if left is None or job.updated_ms is None else rfc3339(job.updated_ms + left * 1000),
        ),
    )


def _plan_reply(planned: Planned) -> ReplayPlanReply:
    plan, request = planned.plan, planned.request
    return ReplayPlanReply(
        source=request.source.value,
        records=plan.records,
        deliveries=plan.deliveries,
        exact=plan.exact,
        by_type=dict(plan.by_type),
        not_active=plan.not_active,
        since=rfc3339(request.since_ms),
        until=rfc3339(request.until_ms),
        first_at=rfc3339(plan.first_ms),
        last_at=rfc3339(plan.last_ms),
        seconds=None if planned.seconds is None else round(planned.seconds, 1),
        warnings=list(planned.warnings),
    )


async def start_replay(call: Call) -> Reply:
    request: ReplayStart = call.model
    asked = ReplayAsked(
        ReplaySource(request.source),
        request.subscription,
        request.tenant,
        request.since,
        request.until,
        request.event_types or (),
        request.states or (),
        request.status_codes or (),
        request.reasons or (),
        None if request.rate is None else parse_rate(request.rate),
    )
    if request.dry_run:
        return Reply(
            ReplayShown(plan=_plan_reply(await call.services.replays.plan(asked, tenant=call.tenant)))
        )
    job = await call.services.replays.start(
        asked,
        tenant=call.tenant,
        principal=call.caller.id,
        name=called(call),
        idempotency_key=call.idempotency_key,
    )
    call.audit("replay.start", job.id, source=request.source, subscription=request.subscription)
    return Reply(ReplayShown(replay=replay_reply(job)), 201, {"Location": f"/v1/replays/{job.id}"})


def called(call: Call) -> str:
    """Who began a replay, for people."""
    return f"{call.caller.scope} {call.caller.name}"


async def list_replays(call: Call) -> Reply:
    query: ReplayFilters = call.query
    page = call.services.replays.list(
        tenant=call.tenant,
        state=None if query.state is None else JobState(query.state),
        subscription=query.subscription,
        limit=query.limit,
        cursor=query.cursor,
    )
    return Reply(ReplayPage(replays=[replay_reply(job) for job in page.jobs], next_cursor=page.next))


async def get_replay(call: Call) -> Reply:
    return _shown(call.services.replays.get(call.path["id"], tenant=call.tenant))


async def pause_replay(call: Call) -> Reply:
    job = await call.services.replays.pause(call.path["id"], tenant=call.tenant)
    call.audit("replay.pause", job.id)
    return _shown(job)


async def resume_replay(call: Call) -> Reply:
    job = await call.services.replays.resume(call.path["id"], tenant=call.tenant)
    call.audit("replay.resume", job.id)
    return _shown(job)


async def cancel_replay(call: Call) -> Reply:
    job = await call.services.replays.cancel(call.path["id"], tenant=call.tenant, by=called(call))
    call.audit("replay.cancel", job.id)
    return _shown(job)


def _shown(job: ReplayJob) -> Reply:
    return Reply(ReplayShown(replay=replay_reply(job)))


_SHOWN: Final = RouteAnswer("The replay.", ReplayShown)

ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "POST",
        "/v1/replays",
        "startReplay",
        "replays",
        "Send many again, or say what would be sent",
        Audience.TENANT,
        "resend",
        {
            200: RouteAnswer("With `dry_run`: what it would come to. Nothing is sent.", ReplayShown),
            201: RouteAnswer("It is begun, and runs in the background.", ReplayShown, ("Location",)),
        },
        start_replay,
        description="Each request carries the header `webhook-replay` with the replay's id. Fresh events go first, and failures don't count for "
        "disabling the subscription; retries take its schedule. A subscription that is not active is left out. Sent is the event as it stands in "
        "its topic; where that was deleted, a dead letter's own copy. After a crash some may be sent twice, and none is left out.",
        body=Body(ReplayStart),
        problems=(Kind.NOT_FOUND, Kind.WRONG_STATE, Kind.HISTORY_OFF, Kind.OVERLOADED),
        idempotent=True,
        quota="queries",
    ),
    Route(
        "GET",
        "/v1/replays",
        "listReplays",
        "replays",
        "List replays",
        Audience.TENANT,
        "resend",
        {200: RouteAnswer("A page of replays, newest first.", ReplayPage)},
        list_replays,
        description="A tenant's key sees those that its tenant's keys have begun. They are kept for 7 days after they are over.",
        query=ReplayFilters,
    ),
    Route(
        "GET",
        "/v1/replays/{id}",
        "getReplay",
        "replays",
        "Show a replay with its progress",
        Audience.TENANT,
        "resend",
        {200: _SHOWN},
        get_replay,
        problems=(Kind.NOT_FOUND,),
    ),
    Route(
        "POST",
        "/v1/replays/{id}/pause",
        "pauseReplay",
        "replays",
        "Send nothing more for now",
        Audience.TENANT,
        "resend",
        {200: _SHOWN},
        pause_replay,
        description="It takes hold at once; what is under way ends, and retries of what was attempted go on. "
        "One that stays paused for 7 days is cancelled.",
        problems=(Kind.NOT_FOUND, Kind.WRONG_STATE),
    ),
    Route(
        "POST",
        "/v1/replays/{id}/resume",
        "resumeReplay",
        "replays",
        "Go on with a paused replay",
        Audience.TENANT,
        "resend",
        {200: _SHOWN},
        resume_replay,
        problems=(Kind.NOT_FOUND, Kind.WRONG_STATE),
    ),
    Route(
        "POST",
        "/v1/replays/{id}/cancel",
        "cancelReplay",
        "replays",
        "End a replay",
        Audience.TENANT,
        "resend",
        {200: _SHOWN},
        cancel_replay,
        description="It takes hold at once; what is under way ends, and retries of it are dropped, reason `cancelled`.",
        problems=(Kind.NOT_FOUND, Kind.WRONG_STATE),
    ),
)
