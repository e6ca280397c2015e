"""Who is failing now, and the processes of this installation."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from dispatcher.api.models import HostFilter, QueryModel, ReplyModel, TenantFilter, Time, whole_number
from dispatcher.api.route import Audience, Call, Reply, Route, RouteAnswer
from dispatcher.control.cluster import FAILING, MAX_FAILING, FailingNow
from dispatcher.core.cluster.record import ReplicaRecord
from dispatcher.core.text.times import rfc3339

_FAILING: Final[dict[str, Any]] = {
    "subscription_id": "sub_billing",
    "tenant": "acme",
    "host": "billing.example",
    "status": "active",
    "reason": None,
    "failing_since": "2026-01-31T11:20:00.000Z",
    "success_rate": 0.25,
    "last_result": "status 503",
    "last_result_at": "2026-01-31T12:00:05.250Z",
    "breaker": "open",
    "waiting": {
        "queued": 0,
        "in_flight": 1,
        "held": 3,
        "parked": 120,
        "parked_at_least": False,
        "retrying": 15,
        "retrying_at_least": False,
    },
    "oldest_waiting_since": "2026-01-31T11:20:00.000Z",
    "next_attempt_at": "2026-01-31T12:00:35.000Z",
    "replicas": ["dispatcher-0:1"],
}
_REPLICA: Final[dict[str, Any]] = {
    "replica": "dispatcher-0:1",
    "version": "1.0.0",
    "roles": ["deliver", "api", "history"],
    "started_at": "2026-01-31T08:00:00.000Z",
    "reported_at": "2026-01-31T12:00:05.000Z",
    "ready": True,
    "problems": [],
    "warnings": [],
    "partitions": {"events": [0, 1, 2, 3]},
    "lag": {"events": 0},
    "queued": 0,
    "in_flight": 2,
    "held": 3,
    "parked": {"breaker": 120},
    "lanes": 14,
    "breakers_open": {"subscription": 1, "host": 0},
    "subscriptions_in_trouble": 1,
    "history": {"as_of": "2026-01-31T12:00:04.000Z", "behind_records": 0, "partitions": 12},
}


class FailingFilters(QueryModel):
    """Which subscriptions, and how many."""

    tenant: TenantFilter | None = None
    subscription: Annotated[str, Field(min_length=1, max_length=64, description="This one only.")] | None = (
        None
    )
    host: HostFilter | None = None
    limit: Annotated[
        int,
        Field(ge=1, le=MAX_FAILING, description="At most so many, the worst."),
        BeforeValidator(whole_number),
    ] = FAILING


class WaitingReply(ReplyModel):
    """What waits for a subscription."""

    queued: Annotated[int, Field(description="With its host's queue, to be sent soon.")]
    in_flight: Annotated[int, Field(description="Requests that are under way.")]
    held: Annotated[int, Field(description="In memory, until their retry is due.")]
    parked: Annotated[
        int, Field(description="In the parked topic, until the endpoint takes something again.")
    ]
    parked_at_least: Annotated[bool, Field(description="There are more parked than were counted.")]
    retrying: Annotated[
        int | None,
        Field(
            description="To be tried again at a known time, those that are held and those in retry topics, as the history has it; null where"
            " it can't be asked."
        ),
    ]
    retrying_at_least: Annotated[bool, Field(description="There are more of them than were counted.")]


class FailingSubscription(ReplyModel):
    """A subscription whose last attempt failed, or for which something is parked."""

    subscription_id: str
    tenant: str | None
    host: str
    status: Literal["active", "paused", "pending", "disabled"]
    reason: Annotated[
        str | None, Field(description="Why it can't be delivered to, where settings or keys are to blame.")
    ]
    failing_since: Annotated[
        Time | None,
        Field(
            description="Since when nothing is acknowledged; null where attempts succeed, and something waits all the same."
        ),
    ]
    success_rate: Annotated[
        float | None, Field(description="Of the last attempts (64 of each replica at the most).")
    ]
    last_result: Annotated[str | None, Field(description="Of the last attempt that failed.")]
    last_result_at: Time | None
    breaker: Literal["closed", "half-open", "open"]
    waiting: WaitingReply
    oldest_waiting_since: Time | None
    next_attempt_at: Annotated[Time | None, Field(description="Where that is known.")]
    replicas: Annotated[list[str], Field(description="Those that say so: host name and process id.")]


class FailingReply(ReplyModel):
    """Who is failing now, those that fail for longest first."""

    model_config = ConfigDict(
        title="FailingSubscriptions",
        json_schema_extra={
            "example": {
                "failing": [_FAILING],
                "total": 1,
                "cut": False,
                "replicas": ["dispatcher-0:1", "dispatcher-1:1"],
            }
        },
    )

    failing: list[FailingSubscription]
    total: Annotated[int, Field(description="How many there are, of those that were asked for.")]
    cut: Annotated[
        bool,
        Field(
            description="There may be more: a replica names 1,000 subscriptions at the most, and one has more in trouble."
        ),
    ]
    replicas: Annotated[
        list[str],
        Field(
            description="Those that deliver and were heard of in the last 35 seconds: the answer is made of these."
        ),
    ]


class ReplicaHistory(ReplyModel):
    """How far a replica has indexed the logs."""

    as_of: Annotated[Time | None, Field(description="What happened before is known; null: nothing yet.")]
    behind_records: int
    partitions: Annotated[int, Field(description="Of topics, that it indexes.")]


class ReplicaReply(ReplyModel):
    """A process of this installation."""

    replica: Annotated[str, Field(description="Host name and process id.")]
    version: str
    roles: list[str]
    started_at: Time | None
    reported_at: Annotated[Time | None, Field(description="When it said all of this, by its clock.")]
    ready: bool
    problems: Annotated[list[str], Field(description="Why it isn't ready, a sentence each.")]
    warnings: list[str]
    partitions: Annotated[dict[str, list[int]], Field(description="Those that it reads, by topic.")]
    lag: Annotated[dict[str, int], Field(description="Records of them that are not taken up yet, by topic.")]
    queued: int
    in_flight: int
    held: int
    parked: Annotated[dict[str, int], Field(description="Deliveries in the parked topic, by why.")]
    lanes: Annotated[int, Field(description="Hosts with anything queued or lately sent.")]
    breakers_open: Annotated[dict[str, int], Field(description="Of subscriptions and of hosts.")]
    subscriptions_in_trouble: int
    history: ReplicaHistory | None


class ClusterReply(ReplyModel):
    """The processes of this installation."""

    model_config = ConfigDict(title="Cluster", json_schema_extra={"example": {"replicas": [_REPLICA]}})

    replicas: Annotated[
        list[ReplicaReply], Field(description="Those heard of in the last 35 seconds, by name.")
    ]


def _failing(now: FailingNow) -> FailingSubscription:
    failing, subscription, awaiting = now
    oldest = [failing.oldest_ms, None if awaiting is None else awaiting.oldest_ms]
    due = failing.next_ms if failing.next_ms is not None or awaiting is None else awaiting.due_ms
    return FailingSubscription(
        subscription_id=failing.subscription_id,
        tenant=failing.tenant,
        host=subscription.origin.host,
        status=subscription.status.value,
        reason=subscription.reason,
        failing_since=rfc3339(failing.since_ms),
        success_rate=round(failing.succeeded / failing.attempts, 4) if failing.attempts else None,
        last_result=failing.last_result,
        last_result_at=rfc3339(failing.last_ms),
        breaker=failing.breaker,
        waiting=WaitingReply(
            queued=failing.queued,
            in_flight=failing.in_flight,
            held=failing.held,
            parked=failing.parked,
            parked_at_least=failing.parked_more,
            retrying=None if awaiting is None else awaiting.waiting,
            retrying_at_least=awaiting is not None and awaiting.at_least,
        ),
        oldest_waiting_since=rfc3339(min((each for each in oldest if each is not None), default=None)),
        next_attempt_at=rfc3339(due),
        replicas=list(failing.replicas),
    )


def _replica(record: ReplicaRecord) -> ReplicaReply:
    history = record.history
    return ReplicaReply(
        replica=record.replica,
        version=record.version,
        roles=list(record.roles),
        started_at=rfc3339(record.started_ms),
        reported_at=rfc3339(record.at_ms),
        ready=not record.problems,
        problems=list(record.problems),
        warnings=list(record.warnings),
        partitions={topic: list(numbers) for topic, numbers in record.partitions.items()},
        lag=record.lag,
        queued=record.queued,
        in_flight=record.in_flight,
        held=record.held,
        parked=record.parked,
        lanes=record.lanes,
        breakers_open=record.breakers,
        subscriptions_in_trouble=record.troubles_total,
        history=None
        if history is None
        else ReplicaHistory(
            as_of=rfc3339(history.as_of_ms) if history.as_of_ms else None,
            behind_records=history.behind_records,
            partitions=history.partitions,
        ),
    )


async def list_failing(call: Call) -> Reply:
    query: FailingFilters = call.query
    page = await call.services.cluster.failing(
        call.tenant,
        of_tenant=query.tenant,
        subscription_id=query.subscription,
        host=query.host,
        limit=query.limit,
    )
    return Reply(
        FailingReply(
            failing=[_failing(each) for each in page.items],
            total=page.total,
            # Of others' nobody learns that there are any.
            cut=page.cut or len(page.items) < page.total,
            replicas=list(page.replicas),
        )
    )


async def get_cluster(call: Call) -> Reply:
    return Reply(ClusterReply(replicas=[_replica(record) for record in call.services.cluster.replicas()]))


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        "/v1/failing",
        "listFailing",
        "statistics",
        "Who is failing now",
        Audience.TENANT,
        "read",
        {200: RouteAnswer("Those that fail for longest first.", FailingReply)},
        list_failing,
        description="Subscriptions whose last attempt failed, and those for which something is parked though they may be delivered to; of all"
        " replicas together. Paused, pending and disabled ones are not among them. Takes no history.",
        query=FailingFilters,
    ),
    Route(
        "GET",
        "/v1/cluster",
        "getCluster",
        "statistics",
        "The processes of this installation",
        Audience.OPERATOR,
        None,
        {
            200: RouteAnswer(
                "Each as it says of itself, every two seconds where something changes.", ClusterReply
            )
        },
        get_cluster,
    ),
)
