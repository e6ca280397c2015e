"""What goes on, as it is indexed: server-sent events for pages that show it."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from dispatcher.api.models import QueryModel, SubscriptionId, TenantFilter
from dispatcher.api.problems import Kind, invalid
from dispatcher.api.route import Audience, Call, Reply, Route, RouteAnswer
from dispatcher.control.history import HistoryOff
from dispatcher.control.live import Channel
from dispatcher.core.flaws import Flaw
from dispatcher.runtime.replica import replica_name

EVENT_STREAM: Final = "text/event-stream"


class StreamFilters(QueryModel):
    """What to hear of."""

    tenant: TenantFilter | None = None
    subscription: Annotated[SubscriptionId, Field(description="Of this subscription.")] | None = None


async def follow(call: Call) -> Reply:
    query: StreamFilters = call.query
    services = call.services
    if not services.history.kept:
        raise HistoryOff
    if call.tenant is not None and query.tenant not in (None, call.tenant):
        raise invalid([Flaw(("tenant",), "must be your own, or left out")])
    tenant = call.tenant or query.tenant
    stream = services.live.listen(
        call.caller.id, Channel(tenant, query.subscription), replica_name(), call.still_admitted
    )
    # Proxies that gather answers would keep the events.
    return Reply(content_type=EVENT_STREAM, stream=stream, headers={"X-Accel-Buffering": "no"})


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        "/v1/stream",
        "followStream",
        "deliveries",
        "Hear of deliveries as they are indexed",
        Audience.TENANT,
        "read",
        {200: RouteAnswer("Server-sent events, until one side ends them.", media=EVENT_STREAM)},
        follow,
        description="Events: `hello`; `tick` (counts, at most one a second, only when something happened); `deliveries` (the newest 20 of that"
        " second, and how many more); `failing` (a subscription has begun to fail, or has ended failing); `heartbeat` every 5 s of silence;"
        " `end` (`slow`, `stopping`, `session`). Read it with `fetch`. docs/api.md says more.",
        query=StreamFilters,
        quota="streams",
        problems=(Kind.HISTORY_OFF, Kind.OVERLOADED),
    ),
)
