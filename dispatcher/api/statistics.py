"""Figures of deliveries over time."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from dispatcher.api.history_models import HistoryReply, QueryTime, known
from dispatcher.api.models import (
    HostFilter,
    QueryModel,
    ReplyModel,
    SubscriptionFilter,
    TenantFilter,
    Time,
    TypeFilter,
    whole_number,
)
from dispatcher.api.problems import Kind
from dispatcher.api.route import Audience, Call, Reply, Route, RouteAnswer
from dispatcher.control.statistics import (
    MAX_SERIES,
    SERIES,
    Figures,
    Series,
    StatisticsQuery,
)
from dispatcher.core.text.times import rfc3339
from dispatcher.history.base import FAILURE_CODES

GROUPS: Final = ("tenant", "subscription", "event_type", "host", "status")
_COUNTS: Final[dict[str, Any]] = {
    "attempts": 1200,
    "delivered": 1180,
    "failed": 20,
    "dead": 1,
    "dropped": 0,
    "parked": 4,
    "failures": {
        "3xx": 0,
        "4xx": 0,
        "5xx": 18,
        "timeout": 2,
        "connect": 0,
        "dns": 0,
        "tls": 0,
        "other": 0,
    },
    "mean_ms": 48.2,
    "p50_ms": 37.5,
    "p95_ms": 182.0,
    "p99_ms": 240.4,
    "late_ms": 310.5,
}


def _groups(text: str) -> str:
    names = text.split(",")
    if len(set(names)) != len(names) or not set(names) <= set(GROUPS):
        raise ValueError(f"must be one or more of {', '.join(GROUPS)}, with commas between, each once")
    return text


class StatisticsFilters(QueryModel):
    """Which figures. Without `since`: the last hour in minutes, the last day in hours, or the last 30 days in days."""

    since: (
        Annotated[QueryTime, Field(description="From this time on, down to the beginning of its step.")]
        | None
    ) = None
    until: Annotated[QueryTime, Field(description="Before this time.")] | None = None
    step: (
        Annotated[
            Literal["minute", "hour", "day"],
            Field(
                description="What is added up. A series has at most 1,500 points. Left out, it is chosen by the time that is asked about."
            ),
        ]
        | None
    ) = None
    group: (
        Annotated[
            str,
            AfterValidator(_groups),
            Field(
                max_length=64,
                description=f"A series for each of what: {', '.join(f'`{name}`' for name in GROUPS)}, or several with commas between.",
                examples=["status", "subscription,status"],
            ),
        ]
        | None
    ) = None
    tenant: TenantFilter | None = None
    subscription: SubscriptionFilter | None = None
    event_type: TypeFilter | None = None
    host: HostFilter | None = None
    status: (
        Annotated[
            str,
            Field(
                pattern=rf"^([1-5](xx|[0-9]{{2}})|{'|'.join(FAILURE_CODES)}|connect|dns|tls)$",
                description="Attempts with this answer, an answer of this class, or this failure.",
                examples=["503", "4xx", "timeout"],
            ),
        ]
        | None
    ) = None
    limit: Annotated[
        int,
        Field(ge=1, le=MAX_SERIES, description="At most so many series, those with most attempts."),
        BeforeValidator(whole_number),
    ] = SERIES


class FailureCounts(ReplyModel):
    """Failed attempts by class: of the answer, or why there was none."""

    redirected: Annotated[int, Field(alias="3xx")]
    refused: Annotated[int, Field(alias="4xx")]
    broken: Annotated[int, Field(alias="5xx")]
    timeout: int
    connect: int
    dns: int
    tls: int
    other: int


class FiguresReply(ReplyModel):
    """What was counted together."""

    attempts: Annotated[int, Field(description="Requests that were made.")]
    delivered: Annotated[int, Field(description="Attempts that were acknowledged.")]
    failed: Annotated[int, Field(description="Attempts that were not.")]
    dead: Annotated[int, Field(description="Deliveries that were given up.")]
    dropped: Annotated[
        int, Field(description="Deliveries that ended without an attempt being owed any more.")
    ]
    parked: Annotated[int, Field(description="Times that a delivery was set aside to wait for its endpoint.")]
    failures: FailureCounts
    mean_ms: Annotated[
        float | None, Field(description="Of an attempt's duration; null without attempts, as the quantiles.")
    ]
    p50_ms: Annotated[
        float | None, Field(description="Estimated from buckets, as the other quantiles; at most 30,000.")
    ]
    p95_ms: float | None
    p99_ms: float | None
    late_ms: Annotated[
        float | None,
        Field(
            description="From the event's own time to the acknowledgement, on average, without what was sent again by hand or by a "
            "replay; null where nothing was delivered."
        ),
    ]


class StatisticsPoint(FiguresReply):
    """The figures of one step."""

    time: Annotated[Time | None, Field(description="Its beginning.")]


class StatisticsGroup(ReplyModel):
    """What a series is of: the fields that were asked for by `group`, each null where there is none."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    tenant: str | None = None
    subscription: str | None = None
    event_type: str | None = None
    host: str | None = None
    status: Annotated[
        int | str | None,
        Field(
            description="Of the answer; the word for the failure where there was none; null without a request."
        ),
    ] = None


class StatisticsSeries(ReplyModel):
    """The figures of a group. Steps in which nothing happened have no point."""

    group: StatisticsGroup
    points: list[StatisticsPoint]
    totals: FiguresReply


class StatisticsReply(HistoryReply):
    """Figures over time, the busiest group first."""

    model_config = ConfigDict(
        title="Statistics",
        json_schema_extra={
            "example": {
                "since": "2026-01-31T11:00:00.000Z",
                "until": "2026-01-31T12:00:00.000Z",
                "step": "minute",
                "series": [
                    {
                        "group": {
                            "tenant": None,
                            "subscription": "sub_billing",
                            "event_type": None,
                            "host": None,
                            "status": None,
                        },
                        "points": [{"time": "2026-01-31T11:00:00.000Z", **_COUNTS}],
                        "totals": _COUNTS,
                    }
                ],
                "totals": _COUNTS,
                "cut": False,
                "as_of": "2026-01-31T12:00:00.000Z",
                "gaps": [],
            }
        },
    )

    since: Time | None
    until: Time | None
    step: Literal["minute", "hour", "day"]
    series: list[StatisticsSeries]
    totals: Annotated[FiguresReply, Field(description="Of all groups, those that are not shown too.")]
    cut: Annotated[bool, Field(description="There are more groups than were shown.")]


def _fields(figures: Figures) -> dict[str, Any]:
    failures = figures.failures
    return {
        **figures._asdict(),
        "failures": FailureCounts(
            redirected=failures["3xx"],
            refused=failures["4xx"],
            broken=failures["5xx"],
            **{name: failures[name] for name in ("timeout", "connect", "dns", "tls", "other")},
        ),
    }


def _series(series: Series) -> StatisticsSeries:
    return StatisticsSeries(
        group=StatisticsGroup.model_validate(dict(series.group)),
        points=[
            StatisticsPoint(time=rfc3339(point.time_ms), **_fields(point.figures)) for point in series.points
        ],
        totals=FiguresReply(**_fields(series.totals)),
    )


async def get_statistics(call: Call) -> Reply:
    query: StatisticsFilters = call.query
    asked = StatisticsQuery(
        query.since,
        query.until,
        query.step,
        () if query.group is None else tuple(query.group.split(",")),
        query.tenant,
        query.subscription,
        query.event_type,
        query.host,
        query.status,
        query.limit,
    )
    found = await call.services.statistics.statistics(call.tenant, asked)
    value = found.value
    return Reply(
        StatisticsReply(
            since=rfc3339(value.since_ms),
            until=rfc3339(value.until_ms),
            step=value.step,
            series=[_series(series) for series in value.series],
            totals=FiguresReply(**_fields(value.totals)),
            cut=value.cut,
            **known(found.as_of_ms, found.gaps),
        )
    )


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        "/v1/statistics",
        "getStatistics",
        "statistics",
        "Figures of deliveries over time",
        Audience.TENANT,
        "read",
        {200: RouteAnswer("Series of counts and latencies.", StatisticsReply)},
        get_statistics,
        description="Counted per minute as attempts end, and kept for `history.retention_counts`. A tenant's key sees what is its own.",
        query=StatisticsFilters,
        problems=(Kind.HISTORY_OFF,),
        quota="queries",
    ),
)
