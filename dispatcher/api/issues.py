"""Issues: what keeps deliveries from arriving, by subscription and cause; and what people said about it."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from dispatcher.api.history_models import HistoryReply, QueryTime, known
from dispatcher.api.models import (
    QueryModel,
    ReplyModel,
    RequestModel,
    SubscriptionFilter,
    TenantFilter,
    Time,
    whole_number,
)
from dispatcher.api.problems import Kind
from dispatcher.api.route import Audience, Body, Call, Reply, Route, RouteAnswer
from dispatcher.control.issues import ISSUES, MAX_ISSUES, Issue
from dispatcher.core.control.issues import IssueState
from dispatcher.core.text.times import rfc3339
from dispatcher.history.base import UndeliveredQuery

_OPERATOR: Final = "operator"
_EXAMPLE: Final[dict[str, Any]] = {
    "id": "sub_billing:503",
    "subscription_id": "sub_billing",
    "tenant": "acme",
    "host": "billing.example",
    "cause": "503",
    "state": "acknowledged",
    "deliveries": 1214,
    "pending": 1100,
    "retrying": 96,
    "dead": 18,
    "first_at": "2026-01-31T09:12:00.000Z",
    "last_failure_at": "2026-01-31T12:00:05.250Z",
    "next_attempt_at": "2026-01-31T12:05:05.296Z",
    "last_success_at": None,
    "mark": {"kind": "acknowledged", "by": "ops", "at": "2026-01-31T11:40:00.000Z", "until": None},
}

_State = Literal["open", "acknowledged", "ignored", "resolved"]


class IssueFilters(QueryModel):
    """Which issues, and how many. Without `since`, of deliveries that began in the last 24 hours."""

    tenant: TenantFilter | None = None
    subscription: SubscriptionFilter | None = None
    state: _State | None = None
    since: (
        Annotated[QueryTime, Field(description="Of deliveries that began at this time or later.")] | None
    ) = None
    until: Annotated[QueryTime, Field(description="Of deliveries that began before this time.")] | None = None
    limit: Annotated[
        int,
        Field(
            ge=1,
            le=MAX_ISSUES,
            description="At most so many, those that are open and of most deliveries first.",
        ),
        BeforeValidator(whole_number),
    ] = ISSUES


class IssueIgnored(RequestModel):
    """For how long an issue is not worth a look."""

    model_config = ConfigDict(json_schema_extra={"example": {"until": "2026-02-02T08:00:00Z"}})

    until: Annotated[QueryTime, Field(description="Until this time, which is within a year.")]


class IssueMarked(ReplyModel):
    """What somebody said about an issue."""

    kind: Literal["acknowledged", "ignored"]
    by: Annotated[str, Field(description="To a tenant every operator is `operator`.")]
    at: Time | None
    until: Annotated[Time | None, Field(description="Of `ignored`.")]


class IssueReply(ReplyModel):
    """What keeps deliveries to one subscription from arriving, by its cause."""

    model_config = ConfigDict(title="Issue", json_schema_extra={"example": _EXAMPLE})

    id: Annotated[str, Field(description="The subscription and the cause.", examples=["sub_billing:503"])]
    subscription_id: str
    tenant: str | None
    host: str
    cause: Annotated[
        str,
        Field(
            description="Why the last attempt had no answer (`timeout`), else the status of its answer (`503`), else the reason why there"
            " was none (`breaker`, `paused`)."
        ),
    ]
    state: Annotated[
        _State,
        Field(
            description="`resolved`: the endpoint acknowledged something after the last failure of this cause, and nothing is set aside for it;"
            " `acknowledged` holds until the next success, `ignored` until its time."
        ),
    ]
    deliveries: Annotated[
        int,
        Field(
            description="`GET /v1/deliveries` with this subscription and cause, and the same time, lists exactly these. What has been delivered"
            " since, or was dropped, is none of them."
        ),
    ]
    pending: Annotated[int, Field(description="Of them, those that are set aside.")]
    retrying: Annotated[int, Field(description="Of them, those that are tried again at a known time.")]
    dead: Annotated[int, Field(description="Of them, those that were given up.")]
    first_at: Annotated[Time | None, Field(description="When the oldest of them began.")]
    last_failure_at: Time | None
    next_attempt_at: Annotated[Time | None, Field(description="Where that is known.")]
    last_success_at: Annotated[
        Time | None,
        Field(
            description="When the subscription acknowledged something last, after all of these failures began; to the minute where its newest"
            " deliveries don't tell. Null where it did not."
        ),
    ]
    mark: Annotated[IssueMarked | None, Field(description="That is in force.")]


class IssuesReply(HistoryReply):
    """Issues, those to look at first."""

    model_config = ConfigDict(
        title="IssuePage",
        json_schema_extra={
            "example": {
                "issues": [_EXAMPLE],
                "at_least": False,
                "cut": False,
                "as_of": "2026-01-31T12:00:06.000Z",
                "gaps": [],
            }
        },
    )

    issues: list[IssueReply]
    at_least: Annotated[
        bool,
        Field(
            description="There may be more deliveries of each, and more issues: the newest 100,000 that aren't delivered were looked at."
        ),
    ]
    cut: Annotated[
        bool, Field(description="There are more issues than were shown: ask about one subscription.")
    ]


def _shown(issue: Issue, tenant: str | None) -> IssueReply:
    group, mark = issue.group, issue.mark
    return IssueReply(
        id=issue.id,
        subscription_id=issue.subscription.id,
        tenant=issue.subscription.tenant,
        host=issue.subscription.origin.host,
        cause=group.cause,
        state=issue.state.value,
        deliveries=group.pending + group.retrying + group.dead,
        pending=group.pending,
        retrying=group.retrying,
        dead=group.dead,
        first_at=rfc3339(group.first_ms),
        last_failure_at=rfc3339(group.last_ms),
        next_attempt_at=rfc3339(group.due_ms),
        last_success_at=rfc3339(issue.success_ms),
        mark=None
        if mark is None
        else IssueMarked(
            kind=mark.kind,
            by=_OPERATOR if tenant is not None and mark.scope == _OPERATOR else mark.by,
            at=rfc3339(mark.at_ms),
            until=rfc3339(mark.until_ms),
        ),
    )


async def list_issues(call: Call) -> Reply:
    query: IssueFilters = call.query
    since, until = call.services.history.range_of(query.since, query.until)
    found = await call.services.issues.page(
        call.tenant,
        UndeliveredQuery(since, until, query.tenant, query.subscription),
        state=None if query.state is None else IssueState(query.state),
        limit=query.limit,
    )
    page = found.value
    return Reply(
        IssuesReply(
            issues=[_shown(issue, call.tenant) for issue in page.issues],
            at_least=page.at_least,
            cut=page.cut,
            **known(found.as_of_ms, found.gaps),
        )
    )


def _marked(call: Call, issue: Issue, action: str, **details: object) -> Reply:
    call.audit(f"issue.{action}", issue.subscription.id, cause=issue.group.cause, **details)
    return Reply(_shown(issue, call.tenant))


async def acknowledge_issue(call: Call) -> Reply:
    return _marked(call, await call.services.issues.acknowledge(call.caller, call.path["id"]), "acknowledge")


async def ignore_issue(call: Call) -> Reply:
    until: int = call.model.until
    issue = await call.services.issues.ignore(call.caller, call.path["id"], until)
    return _marked(call, issue, "ignore", until=rfc3339(until))


async def reopen_issue(call: Call) -> Reply:
    return _marked(call, await call.services.issues.reopen(call.caller, call.path["id"]), "reopen")


def _mark_route(verb: str, summary: str, handler: Any, description: str, body: Body | None = None) -> Route:
    return Route(
        "POST",
        f"/v1/issues/{{id}}/{verb}",
        f"{verb}Issue",
        "issues",
        summary,
        Audience.TENANT,
        "write",
        {200: RouteAnswer("The issue as it is now.", IssueReply)},
        handler,
        description=description,
        body=body,
        problems=(Kind.NOT_FOUND, Kind.HISTORY_OFF, Kind.OVERLOADED),
        quota="queries",
    )


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        "/v1/issues",
        "listIssues",
        "issues",
        "List what keeps deliveries from arriving",
        Audience.TENANT,
        "read",
        {200: RouteAnswer("Issues, those that are open first.", IssuesReply)},
        list_issues,
        description="Deliveries that wait, are retried or are dead, by subscription and cause: a hundred thousand rows are a few lines. A"
        " tenant's key sees the issues of its own subscriptions; of a deleted subscription there are none.",
        query=IssueFilters,
        problems=(Kind.HISTORY_OFF,),
        quota="queries",
    ),
    _mark_route(
        "acknowledge",
        "Say that somebody knows of an issue",
        acknowledge_issue,
        "It holds until the next success: what fails after that opens the issue again.",
    ),
    _mark_route(
        "ignore",
        "Ignore an issue until a time",
        ignore_issue,
        "Also through successes: for an endpoint whose failures come and go.",
        Body(IssueIgnored),
    ),
    _mark_route(
        "reopen",
        "Take back what was said about an issue",
        reopen_issue,
        "An issue without a mark stays as it is.",
    ),
)
